"""Check that the environment is the one in constraints.txt, and that its parts import together.

Some versions of nbdev, execnb and fastcore install side by side and then fail at import: this says so in one line, before
anything else does so in many."""
import importlib, sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

MODULES = 'fastcore.all', 'execnb.nbio', 'nbdev.export', 'torch', 'torchvision', 'fastai.learner', 'captum.attr', 'shap', 'sklearn', 'seaborn', 'smalldocs', 'advinterp'


def pins(file=Path(__file__).parent.parent/'constraints.txt') -> dict:
    "The pinned versions by package name."
    return dict(l.strip().split('==') for l in file.read_text().splitlines() if l.strip() and not l.startswith('#'))


def differing() -> list:
    "Installed packages whose version is not the pinned one; a package that this platform does not need is not installed."
    bad = []
    for name,want in pins().items():
        try: have = version(name).split('+')[0]
        except PackageNotFoundError: continue
        if have != want: bad.append(f'{name}: {have} is installed, constraints.txt has {want}')
    return bad


def main():
    bad = differing()
    for m in MODULES:
        try: importlib.import_module(m)
        except Exception as e: bad.append(f'import {m}: {type(e).__name__}: {e}')
    print('\n'.join(bad) or f'pins: {len(pins())} versions as pinned, {len(MODULES)} modules import')
    sys.exit(bool(bad))


if __name__ == '__main__': main()
