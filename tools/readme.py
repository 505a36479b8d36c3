"""Make README.md from nbs/index.ipynb, without Quarto: its prose, its code, what the code printed.

python tools/readme.py            writes README.md
python tools/readme.py --check    exits 1 when README.md is not what the notebook makes
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTE = "<!-- Made from nbs/index.ipynb by `make readme`: edit the notebook. -->"
HIDDEN = {"hide", "export", "exporti", "default_exp"}
LINK = re.compile(r"(!?\[[^\]]*\]\()(?![a-z]+:|#|/)([^)\s]+)")


def directives(text: str) -> tuple[dict[str, str], str]:
    """The `#|` lines of a code cell as a dict, and the code below them."""
    lines = text.splitlines()
    n_directives = 0
    while n_directives < len(lines) and lines[n_directives].startswith("#|"):
        n_directives += 1
    found = {}
    for line in lines[:n_directives]:
        name, _, value = line[2:].strip().replace(":", " ").partition(" ")
        if name:
            found[name] = value.strip()
    return found, "\n".join(lines[n_directives:]).strip("\n")


def fenced(text: str, language: str = "") -> str:
    return f"```{language}\n" + text.strip("\n") + "\n```"


def printed(cell: dict) -> str:
    """What a cell printed or showed, as text; pictures are left to the site."""
    shown = []
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        if "text/markdown" in data:
            shown.append("".join(data["text/markdown"]).strip("\n"))
        elif any(kind.startswith("image/") for kind in data):
            continue
        elif "text/plain" in data:
            shown.append(fenced("".join(data["text/plain"])))
        elif output.get("name") == "stdout":
            shown.append(fenced("".join(output["text"])))
    return "\n\n".join(shown)


def code(cell: dict) -> str:
    """A code cell: its source and what it printed, each unless a directive hides it."""
    found, text = directives("".join(cell["source"]))
    if HIDDEN & found.keys() or found.get("include") == "false":
        return ""
    parts = []
    if text and found.get("echo") != "false":
        parts.append(fenced(text, "python"))
    if found.get("output") != "false":
        parts.append(printed(cell))
    return "\n\n".join(filter(None, parts))


def prose(cell: dict) -> str:
    """A Markdown cell; links to files beside the notebook lead to nbs/."""
    text = "".join(cell["source"]).strip("\n")
    return LINK.sub(lambda match: f"{match.group(1)}nbs/{match.group(2)}", text)


def readme(notebook: Path = ROOT / "nbs" / "index.ipynb") -> str:
    """The README that the notebook makes."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    parts = [NOTE]
    for cell in cells:
        if cell["cell_type"] == "code":
            parts.append(code(cell))
        elif cell["cell_type"] == "markdown":
            parts.append(prose(cell))
    return "\n\n".join(filter(None, parts)) + "\n"


def main():
    text = readme()
    file = ROOT / "README.md"
    if "--check" not in sys.argv:
        file.write_text(text, encoding="utf-8")
    elif file.read_text(encoding="utf-8") != text:
        sys.exit("README.md is not what nbs/index.ipynb makes: run make readme")


if __name__ == "__main__":
    main()
