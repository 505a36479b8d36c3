"""Make README.md from nbs/index.ipynb, without Quarto: its prose, its code and what the code printed.

python tools/readme.py            writes README.md
python tools/readme.py --check    exits 1 when README.md is not what the notebook makes"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTE = "<!-- Made from nbs/index.ipynb by `make readme`: edit the notebook. -->"
HIDDEN = {"hide", "export", "exporti", "default_exp"}
LINK = re.compile(r"(!?\[[^\]]*\]\()(?![a-z]+:|#|/)([^)\s]+)")


def directives(src: str) -> tuple:
    "The `#|` lines of a code cell as a dict, and the code below them."
    lines = src.splitlines()
    n = next((i for i, l in enumerate(lines) if not l.startswith("#|")), len(lines))
    pairs = [l[2:].strip().replace(":", " ").split(None, 1) for l in lines[:n]]
    return {p[0]: (p + [""])[1].strip() for p in pairs if p}, "\n".join(lines[n:]).strip("\n")


def printed(cell: dict) -> str:
    "What a cell printed or showed, as text; pictures are left to the site."
    out = []
    for o in cell.get("outputs", []):
        data = o.get("data", {})
        if "text/markdown" in data:
            out.append("".join(data["text/markdown"]).strip("\n"))
        elif any(k.startswith("image/") for k in data):
            continue
        elif "text/plain" in data or o.get("name") == "stdout":
            out.append(
                "```\n" + "".join(data.get("text/plain", o.get("text", ""))).strip("\n") + "\n```"
            )
    return "\n\n".join(out)


def code(cell: dict) -> str:
    "A code cell: its source and what it printed, each unless a directive hides it."
    d, src = directives("".join(cell["source"]))
    if HIDDEN & d.keys() or d.get("include") == "false":
        return ""
    shown = "" if d.get("echo") == "false" or not src else f"```python\n{src}\n```"
    result = "" if d.get("output") == "false" else printed(cell)
    return "\n\n".join(filter(None, [shown, result]))


def prose(cell: dict) -> str:
    "A Markdown cell; links to files beside the notebook lead to nbs/."
    return LINK.sub(lambda m: f"{m.group(1)}nbs/{m.group(2)}", "".join(cell["source"]).strip("\n"))


def readme(nb: Path = ROOT / "nbs" / "index.ipynb") -> str:
    "The README that the notebook makes."
    cells = json.loads(nb.read_text(encoding="utf-8"))["cells"]
    parts = [
        code(c) if c["cell_type"] == "code" else prose(c) for c in cells if c["cell_type"] != "raw"
    ]
    return "\n\n".join([NOTE, *filter(None, parts)]) + "\n"


def main():
    text, file = readme(), ROOT / "README.md"
    if "--check" not in sys.argv:
        file.write_text(text, encoding="utf-8")
    elif file.read_text(encoding="utf-8") != text:
        sys.exit("README.md is not what nbs/index.ipynb makes: run make readme")


if __name__ == "__main__":
    main()
