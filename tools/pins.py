"""Check that the environment is the one in constraints.txt, and that its parts import together.

Some versions of nbdev, execnb and fastcore install side by side and then fail at import: this says so in one line, before
anything else does so in many.

    python tools/pins.py            checks
    python tools/pins.py --write    makes constraints.txt from what is installed here and settings.ini asks for"""

import importlib
import sys
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

MODULES = (
    "fastcore.all",
    "execnb.nbio",
    "nbdev.export",
    "torch",
    "torchvision",
    "fastai.learner",
    "captum.attr",
    "shap",
    "sklearn",
    "seaborn",
    "smalldocs",
    "advinterp",
)


def pins() -> dict:
    "The pinned versions by package name."
    return dict(
        l.strip().split("==")
        for l in (ROOT / "constraints.txt").read_text().splitlines()
        if l.strip() and not l.startswith("#")
    )


def needed() -> dict:
    "The installed versions of what settings.ini asks for, development tools included, and of all that this asks for in turn."
    from packaging.requirements import Requirement

    cfg = ConfigParser(delimiters=["="])
    cfg.read(ROOT / "settings.ini", encoding="utf-8")
    todo, out, seen = (
        [
            Requirement(r)
            for k in ("requirements", "dev_requirements")
            for r in cfg["DEFAULT"][k].split()
        ],
        {},
        set(),
    )
    while todo:
        r = todo.pop()
        if (key := (r.name.lower(), *sorted(r.extras))) in seen:
            continue
        seen.add(key)
        try:
            d = distribution(r.name)
        except PackageNotFoundError:
            continue
        out[d.metadata["Name"]] = d.version.split("+")[0]
        todo += [
            q
            for q in map(Requirement, d.requires or [])
            if q.marker is None or any(q.marker.evaluate({"extra": e}) for e in ("", *r.extras))
        ]
    return out


def write():
    "Write constraints.txt; its comment lines stay."
    file = ROOT / "constraints.txt"
    head = [l for l in file.read_text().splitlines() if l.startswith("#")]
    file.write_text(
        "\n".join(
            head + [f"{k}=={v}" for k, v in sorted(needed().items(), key=lambda o: o[0].lower())]
        )
        + "\n"
    )


def differing() -> list:
    "Installed packages whose version is not the pinned one; a package that this platform does not need is not installed."
    bad = []
    for name, want in pins().items():
        try:
            have = version(name).split("+")[0]
        except PackageNotFoundError:
            continue
        if have != want:
            bad.append(f"{name}: {have} is installed, constraints.txt has {want}")
    return bad


def main():
    if "--write" in sys.argv:
        return write()
    bad = differing()
    for m in MODULES:
        try:
            importlib.import_module(m)
        except Exception as e:
            bad.append(f"import {m}: {type(e).__name__}: {e}")
    print(
        "\n".join(bad) or f"pins: {len(pins())} versions as pinned, {len(MODULES)} modules import"
    )
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
