"""Check that the environment is the one in constraints.txt, and that its parts import together.

Some versions of nbdev, execnb and fastcore install side by side and then fail at import: this says
so in one line, before anything else does so in many.

    python tools/pins.py            checks
    python tools/pins.py --write    makes constraints.txt from what is installed here and what
                                    settings.ini asks for
"""

import importlib
import sys
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"

MODULES = [
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
]


def pins() -> dict[str, str]:
    """The pinned versions by package name."""
    lines = [line.strip() for line in CONSTRAINTS.read_text().splitlines()]
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def asked_for() -> list:
    """The requirements in settings.ini, development tools included."""
    from packaging.requirements import Requirement

    settings = ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    keys = ("requirements", "dev_requirements")
    return [Requirement(text) for key in keys for text in settings["DEFAULT"][key].split()]


def applies(requirement, extras) -> bool:
    """Is a requirement of a package meant for this platform and these extras of the package?"""
    if requirement.marker is None:
        return True
    return any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras))


def needed() -> dict[str, str]:
    """The installed versions of what settings.ini asks for, and of all that this asks for."""
    from packaging.requirements import Requirement

    waiting = asked_for()
    versions = {}
    seen = set()
    while waiting:
        requirement = waiting.pop()
        key = (requirement.name.lower(), *sorted(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            package = distribution(requirement.name)
        except PackageNotFoundError:
            continue
        versions[package.metadata["Name"]] = package.version.split("+")[0]
        further = [Requirement(text) for text in package.requires or []]
        waiting += [other for other in further if applies(other, requirement.extras)]
    return versions


def write():
    """Write constraints.txt; its comment lines stay."""
    comments = [line for line in CONSTRAINTS.read_text().splitlines() if line.startswith("#")]
    versions = sorted(needed().items(), key=lambda item: item[0].lower())
    lines = comments + [f"{name}=={version}" for name, version in versions]
    CONSTRAINTS.write_text("\n".join(lines) + "\n")


def differing() -> list[str]:
    """Installed packages of another version; what this platform does not need is not installed."""
    bad = []
    for name, wanted in pins().items():
        try:
            installed = version(name).split("+")[0]
        except PackageNotFoundError:
            continue
        if installed != wanted:
            bad.append(f"{name}: {installed} is installed, constraints.txt has {wanted}")
    return bad


def import_error(module: str) -> str:
    """What goes wrong when a module is imported; nothing where it works."""
    try:
        importlib.import_module(module)
    except Exception as error:
        return f"import {module}: {type(error).__name__}: {error}"
    return ""


def main():
    if "--write" in sys.argv:
        write()
        return
    bad = differing() + [error for module in MODULES if (error := import_error(module))]
    good = f"pins: {len(pins())} versions as pinned, {len(MODULES)} modules import"
    print("\n".join(bad) or good)
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
