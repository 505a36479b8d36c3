"""Check that `nbdev_clean` and `nbdev_export` would change nothing: the notebooks are clean, and the modules are their export.

Both run on a copy, into an empty package folder: the working tree stays as it is, whatever is edited there, and a module that
no notebook makes is found as well."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def files(folder, *patterns) -> dict:
    "The bytes of the files under a folder, by relative path."
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for pat in patterns
        for p in sorted(folder.rglob(pat))
        if not any(o.startswith((".", "_p")) for o in p.relative_to(folder).parts[:-1])
    }


def stale(root=ROOT) -> list:
    "What differs between the tree and its cleaned and exported copy, one line a file."
    with tempfile.TemporaryDirectory(prefix="fresh-") as tmp:
        tmp = Path(tmp)
        shutil.copy(root / "settings.ini", tmp)
        shutil.copytree(
            root / "nbs",
            tmp / "nbs",
            symlinks=True,
            ignore=shutil.ignore_patterns("_proc", "_docs", ".ipynb_checkpoints"),
        )
        (tmp / "advinterp").mkdir()
        shutil.copy(root / "advinterp" / "__init__.py", tmp / "advinterp")
        env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
        for cmd in (
            "nbdev.clean import nbdev_clean as run",
            "nbdev.doclinks import nbdev_export as run",
        ):
            subprocess.run(
                [sys.executable, "-c", f"from {cmd}; run()"], cwd=tmp, env=env, check=True
            )
        out = []
        for part, pattern, fix in (
            ("nbs", "*.ipynb", "is not clean: run nbdev_clean"),
            ("advinterp", "*.py", "is not the export of its notebook: run nbdev_export"),
        ):
            want, have = files(tmp / part, pattern), files(root / part, pattern)
            out += [f"{part}/{f} {fix}" for f in sorted(want) if want[f] != have.get(f)]
            out += [
                f"{part}/{f} is not made by any notebook: delete it"
                for f in sorted(have.keys() - want.keys())
            ]
        return out


if __name__ == "__main__":
    bad = stale()
    print("\n".join(bad) or "fresh: nbdev_clean and nbdev_export leave no diff")
    sys.exit(bool(bad))
