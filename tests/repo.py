"""What the tests of the repository share: its notebooks, its modules, its settings."""

import ast
import json
import re
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
LIB = ROOT / "advinterp"


def is_hidden(path: Path) -> bool:
    return any(part[0] in "._" for part in path.parts)


NOTEBOOKS = sorted(p for p in NBS.rglob("*.ipynb") if not is_hidden(p.relative_to(NBS)))
MODULES = sorted(
    path.relative_to(LIB).with_suffix("").as_posix().replace("/", ".")
    for path in LIB.rglob("*.py")
    if not is_hidden(path.relative_to(LIB))
)
MATHS = [
    "units",
    "core",
    "duals",
    "adversary",
    "penalty",
    "priors",
    "cheap",
    "attribution",
    "metrics",
    "map_adversary",
    "linear",
    "store",
    "generators",
    "gaze",
]

parser = ConfigParser(delimiters=["="])
parser.read(ROOT / "settings.ini", encoding="utf-8")
SETTINGS = parser["DEFAULT"]

each_notebook = pytest.mark.parametrize(
    "notebook", NOTEBOOKS, ids=lambda path: path.relative_to(NBS).as_posix()
)
each_module = pytest.mark.parametrize("module", MODULES)


def cells(notebook: Path, kind: str | None = None) -> list[dict]:
    """The cells of a notebook, or those of one kind."""
    found = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if kind in (None, cell["cell_type"])]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def is_export(cell: dict) -> bool:
    return re.search(r"^#\| *exports?\b", source(cell), re.M) is not None


def python(cell: dict) -> str:
    """The code of a cell without directives, magics and shell lines."""
    lines = source(cell).splitlines()
    return "\n".join(line for line in lines if not line.startswith(("#|", "%", "!")))


def module_of(notebook: Path) -> str | None:
    """The module that a notebook exports to."""
    for cell in cells(notebook, "code"):
        if found := re.search(r"^#\| *default_exp +(\S+)", source(cell), re.M):
            return found.group(1)
    return None


def module_file(module: str) -> Path:
    return LIB / (module.replace(".", "/") + ".py")


def tree_of(module: str) -> ast.Module:
    return ast.parse(module_file(module).read_text(encoding="utf-8"))


def definitions(tree: ast.Module) -> list[ast.FunctionDef | ast.ClassDef]:
    """The functions and classes at the top level, methods added with @patch apart."""
    found = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    return [n for n in found if not any("patch" in ast.unparse(d) for d in n.decorator_list)]


def public(tree: ast.Module) -> list[ast.FunctionDef | ast.ClassDef]:
    return [n for n in definitions(tree) if not n.name.startswith("_")]


def all_of(module: str) -> list[str]:
    """The names in a module's `__all__`."""
    for node in tree_of(module).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return []
