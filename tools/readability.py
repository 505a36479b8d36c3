"""How readable is the code at first sight? This package beside three that are known for it.

python tools/readability.py             the table
python tools/readability.py --modules   one row for each module of this package
"""

import argparse
import ast
import importlib.util
import io
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def is_docstring(node: ast.AST) -> bool:
    text = getattr(getattr(node, "value", None), "value", None)
    return isinstance(node, ast.Expr) and isinstance(text, str)


def is_all(node: ast.AST) -> bool:
    """`__all__`, which nbdev writes at a width of its own."""
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"


def code_lines(source: str) -> list[str]:
    """The lines that hold code: no blank line, no comment line, no docstring, no `__all__`."""
    skip = set()
    for node in ast.walk(ast.parse(source)):
        if is_docstring(node) or is_all(node):
            skip |= set(range(node.lineno, node.end_lineno + 1))
    lines = enumerate(source.splitlines(), 1)
    return [line for n, line in lines if n not in skip and line.strip() and line.lstrip()[0] != "#"]


def semicolons(source: str) -> int:
    """How many statements are joined to the one before them by `;`."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return sum(token.type == tokenize.OP and token.string == ";" for token in tokens)


def expressions(tree: ast.AST) -> int:
    """How many expressions there are, neither names nor constants."""
    plain = (ast.Name, ast.Constant)
    return sum(isinstance(n, ast.expr) and not isinstance(n, plain) for n in ast.walk(tree))


def local_names(tree: ast.AST) -> list[str]:
    """The names that functions bind, each once per function."""
    names = []
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            stored = (n for n in ast.walk(function) if isinstance(n, ast.Name))
            names += {n.id for n in stored if isinstance(n.ctx, ast.Store)}
    return names


def measure(files: list[Path]) -> dict[str, float]:
    """One row of the table for these files together; shares between 0 and 1."""
    sources = [f.read_text(encoding="utf-8") for f in files]
    trees = [ast.parse(s) for s in sources]
    lines = [line for s in sources for line in code_lines(s)]
    names = [name for t in trees for name in local_names(t)]
    return {
        "lines": len(lines),
        ">100": sum(len(line) > 100 for line in lines) / len(lines),
        ">160": sum(len(line) > 160 for line in lines) / len(lines),
        "longest": max(map(len, lines)),
        "joined by ;": sum(map(semicolons, sources)) / len(lines),
        "expressions a line": sum(map(expressions, trees)) / len(lines),
        "one-letter locals": sum(len(n) == 1 for n in names) / max(len(names), 1),
    }


FORMATS = {
    "lines": "{:,}",
    ">100": "{:.1%}",
    ">160": "{:.1%}",
    "longest": "{}",
    "joined by ;": "{:.1%}",
    "expressions a line": "{:.1f}",
    "one-letter locals": "{:.0%}",
}


def package_files(name: str, pattern: str) -> list[Path]:
    """Files of an installed package, which is not imported for that."""
    (folder,) = importlib.util.find_spec(name).submodule_search_locations
    return sorted(p for p in Path(folder).glob(pattern) if p.name != "_modidx.py")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--modules", action="store_true", help="one row for each module")
    if parser.parse_args().modules:
        files = [p for p in (ROOT / "advinterp").rglob("*.py") if p.name[0] != "_"]
        rows = {p.relative_to(ROOT).as_posix(): measure([p]) for p in sorted(files)}
    else:
        rows = {
            "advinterp": measure(package_files("advinterp", "**/*.py")),
            "advinterp.papers": measure(package_files("advinterp", "papers/*.py")),
            "fastai.callback": measure(package_files("fastai", "callback/*.py")),
            "captum.attr._core": measure(package_files("captum", "attr/_core/**/*.py")),
            "sklearn.linear_model": measure(package_files("sklearn", "linear_model/*.py")),
        }
    width = max(map(len, rows))
    print(" " * width, *FORMATS, sep="  ")
    for name, row in rows.items():
        texts = [form.format(row[column]).rjust(len(column)) for column, form in FORMATS.items()]
        print(name.ljust(width), *texts, sep="  ")


if __name__ == "__main__":
    main()
