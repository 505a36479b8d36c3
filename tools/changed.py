"""The notebooks that differ from the last commit, one a line: what `make check` runs."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def changed_notebooks() -> list[str]:
    """Notebooks that are new or edited; no test folder, no page that is not run."""
    command = ["git", "status", "--porcelain", "--untracked-files=all", "--", "nbs"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    names = [line[3:].split(" -> ")[-1].strip('"') for line in listing.stdout.splitlines()]
    return [name for name in names if name.endswith(".ipynb") and (ROOT / name).is_file()]


if __name__ == "__main__":
    print("\n".join(changed_notebooks()))
