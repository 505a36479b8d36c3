"""Check that `nbdev_clean` and `nbdev_export` would change nothing.

The notebooks are clean, and the modules are their export. Both commands run on a copy, into an
empty package folder: the working tree stays as it is, whatever is edited there, and a module that
no notebook makes is found as well.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

BY_HAND = ["__init__.py", "_deprecated.py", "_homes.py", "papers/__init__.py"]
COMMANDS = ["nbdev.clean import nbdev_clean as run", "nbdev.doclinks import nbdev_export as run"]


def is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "_p")) for part in path.parts)


def contents(folder: Path, pattern: str) -> dict[str, bytes]:
    """The bytes of the files under a folder, by relative path."""
    found = {path.relative_to(folder): path for path in sorted(folder.rglob(pattern))}
    return {
        name.as_posix(): path.read_bytes()
        for name, path in found.items()
        if not is_hidden(name.parent)
    }


def make_copy(root: Path, copy: Path):
    """Settings and notebooks, and of the package what is written by hand."""
    shutil.copy(root / "settings.ini", copy)
    ignored = shutil.ignore_patterns("_proc", "_docs", ".ipynb_checkpoints")
    shutil.copytree(root / "nbs", copy / "nbs", symlinks=True, ignore=ignored)
    for name in BY_HAND:
        if (root / "advinterp" / name).exists():
            (copy / "advinterp" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / "advinterp" / name, copy / "advinterp" / name)


def stale_part(root: Path, copy: Path, part: str, pattern: str, remedy: str) -> list[str]:
    """What differs in one folder, one line a file."""
    wanted = contents(copy / part, pattern)
    present = contents(root / part, pattern)
    changed = [name for name in sorted(wanted) if wanted[name] != present.get(name)]
    orphans = sorted(present.keys() - wanted.keys())
    return [f"{part}/{name} {remedy}" for name in changed] + [
        f"{part}/{name} is not made by any notebook: delete it" for name in orphans
    ]


def stale(root: Path = ROOT) -> list[str]:
    """What differs between the tree and its cleaned and exported copy, one line a file."""
    with tempfile.TemporaryDirectory(prefix="fresh-") as folder:
        copy = Path(folder)
        make_copy(root, copy)
        environment = {name: value for name, value in os.environ.items() if name != "IN_TEST"}
        for command in COMMANDS:
            code = f"from {command}; run()"
            subprocess.run([sys.executable, "-c", code], cwd=copy, env=environment, check=True)
        notebooks = stale_part(root, copy, "nbs", "*.ipynb", "is not clean: run nbdev_clean")
        remedy = "is not the export of its notebook: run nbdev_export"
        return notebooks + stale_part(root, copy, "advinterp", "*.py", remedy)


if __name__ == "__main__":
    differences = stale()
    print("\n".join(differences) or "fresh: nbdev_clean and nbdev_export leave no diff")
    sys.exit(bool(differences))
