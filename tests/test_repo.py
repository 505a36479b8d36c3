"Contracts of the repository: what is generated is up to date, imports go one way, notebooks keep the house style, the wheel stands alone."

import ast
import json
import re
import statistics
import subprocess
import sys
import warnings
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from tools import docs, pins, readme

ROOT = Path(__file__).resolve().parent.parent
NBS, LIB = ROOT / "nbs", ROOT / "advinterp"
NOTEBOOKS = sorted(
    p for p in NBS.rglob("*.ipynb") if not any(o[0] in "._" for o in p.relative_to(NBS).parts)
)
SETTINGS = ConfigParser(delimiters=["="])
SETTINGS.read(ROOT / "settings.ini", encoding="utf-8")
SETTINGS = SETTINGS["DEFAULT"]


def cells(nb, kind=None):
    return [
        c
        for c in json.loads(nb.read_text(encoding="utf-8"))["cells"]
        if kind in (None, c["cell_type"])
    ]


def source(cell):
    return "".join(cell["source"])


def default_exp(nb):
    return next(
        (
            m.group(1)
            for c in cells(nb, "code")
            if (m := re.search(r"^#\| *default_exp +(\S+)", source(c), re.M))
        ),
        None,
    )


NUMBER = {
    default_exp(nb): int(nb.name[:2]) for nb in NOTEBOOKS if default_exp(nb)
}  # module -> number of its notebook
MODULES = sorted(p.stem for p in LIB.glob("*.py") if not p.stem.startswith("_"))
MATHS = [m for m in MODULES if NUMBER.get(m, 99) < 10]

each_notebook = pytest.mark.parametrize(
    "nb", NOTEBOOKS, ids=lambda p: p.relative_to(NBS).as_posix()
)
each_module = pytest.mark.parametrize("module", MODULES)

# ---------------------------------------------------------------- what is generated


def test_readme_is_what_the_notebook_makes():
    assert (ROOT / "README.md").read_text(encoding="utf-8") == readme.readme(), "run make readme"


def test_every_module_has_its_notebook():
    assert set(MODULES) == set(NUMBER)


def test_docs_config_is_shared():
    assert (NBS / "_quarto.yml").read_bytes() == (ROOT / "_quarto.yml").read_bytes()
    site = yaml.safe_load((NBS / "nbdev.yml").read_text())["website"]
    assert site["description"] == SETTINGS["description"] and site["repo-url"] == SETTINGS.get(
        "git_url", raw=True
    ).replace("%(user)s", SETTINGS["user"]).replace("%(repo)s", SETTINGS["repo"])


def test_every_notebook_is_in_the_sidebar():
    def listed(contents):
        for c in contents if isinstance(contents, list) else [contents]:
            if isinstance(c, dict):
                yield from listed(c.get("contents", []))
                yield from filter(None, [c.get("href")])
            else:
                yield from (p.relative_to(NBS).as_posix() for p in NBS.glob(c)) if "*" in c else [c]

    names = list(
        listed(yaml.safe_load((ROOT / "_quarto.yml").read_text())["website"]["sidebar"]["contents"])
    )
    assert sorted(names) == sorted(set(names)), "a page is listed twice"
    assert set(names) == {p.relative_to(NBS).as_posix() for p in NOTEBOOKS}, (
        "the sidebar in _quarto.yml and the notebooks differ"
    )


def test_pins_are_within_the_bounds():
    pinned = {k.lower().replace("_", "-"): v for k, v in pins.pins().items()}
    asked = [
        Requirement(r)
        for r in (SETTINGS["requirements"] + " " + SETTINGS["dev_requirements"]).split()
    ]
    assert not [str(r) for r in asked if pinned[r.name.lower()] not in r.specifier]


def test_one_version():
    assert f'__version__ = "{SETTINGS["version"]}"' in (LIB / "__init__.py").read_text()
    assert f"## {SETTINGS['version']}" in (ROOT / "CHANGELOG.md").read_text()


# ---------------------------------------------------------------- imports


def imported(tree) -> set:
    "The modules that a piece of code imports; own ones as `.name`."
    out = set()
    for n in ast.walk(tree):
        if isinstance(n, ast.Import):
            out |= {a.name for a in n.names}
        elif isinstance(n, ast.ImportFrom):
            out |= (
                {f".{n.module}"}
                if n.level and n.module
                else {f".{a.name}" for a in n.names}
                if n.level
                else {n.module}
            )
    return {"." + m.split(".")[1] if m.startswith("advinterp.") else m for m in out}


def code_of(module):
    return ast.parse((LIB / f"{module}.py").read_text(encoding="utf-8"))


@each_module
def test_imports_go_upward(module):
    own = {m[1:] for m in imported(code_of(module)) if m.startswith(".")} & NUMBER.keys()
    assert not [f"{m} ({NUMBER[m]:02})" for m in own if NUMBER[m] >= NUMBER[module]]


@pytest.mark.parametrize("module", MATHS)
def test_maths_imports_torch_numpy_fastcore_only(module):
    top = [n for n in code_of(module).body if isinstance(n, (ast.Import, ast.ImportFrom))]
    others = {m.split(".")[0] for n in top for m in imported(n) if not m.startswith(".")}
    assert not others - sys.stdlib_module_names - {"torch", "numpy", "fastcore"}


def test_imports_of_maths_are_light():
    "What is loaded after `import advinterp` and after each Maths module, in a fresh interpreter."
    heavy = "captum", "shap", "matplotlib", "fastai", "sklearn", "scipy", "pandas", "nbdev"
    code = f"""import importlib, sys
for m in ['advinterp', *(f'advinterp.{{m}}' for m in {MATHS})]:
    importlib.import_module(m)
    print(m, [h for h in {heavy} if h in sys.modules])"""
    r = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert MATHS and not [l for l in r.stdout.splitlines() if not l.endswith("[]")]


# ---------------------------------------------------------------- house style


def exports(nb):
    "The lines of each export cell without its directives, import cells apart."
    bodies = [
        [l for l in source(c).splitlines() if not l.startswith("#|")]
        for c in cells(nb, "code")
        if re.search(r"^#\| *exports?\b", source(c), re.M)
    ]
    return [
        b
        for b in bodies
        if any(
            not isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.parse("\n".join(b)).body
        )
    ]


def computing(lines) -> int:
    "How many lines of a cell compute: one for each signature, however many parameters it documents, none for docstrings and blank lines."
    n = sum(bool(l.strip()) for l in lines)
    for f in ast.walk(ast.parse("\n".join(lines))):
        if not isinstance(f, (ast.FunctionDef, ast.ClassDef)):
            continue
        if isinstance(f, ast.FunctionDef):
            n -= f.body[0].lineno - f.lineno - 1 if f.body[0].lineno > f.lineno else 0
        if ast.get_docstring(f) is not None:
            n -= f.body[0].end_lineno - f.body[0].lineno + 1
    return n


@each_notebook
def test_export_cells_are_short(nb):
    long = [f"{len(b)} lines from {b[0]!r}" for b in exports(nb) if len(b) > 40]
    assert not long, f"export cells of more than 40 lines: {long}"


def test_most_export_cells_compute_in_few_lines():
    medians = {
        nb.name: statistics.median(map(computing, exports(nb))) for nb in NOTEBOOKS if exports(nb)
    }
    if long := {k: v for k, v in medians.items() if v > 10}:
        warnings.warn(
            f"notebooks whose export cells compute in more than 10 lines in the median: {long}"
        )


@each_notebook
def test_notebook_is_readable_in_one_sitting(nb):
    assert len(cells(nb)) < 80
    assert sum(len(json.dumps(c["outputs"])) for c in cells(nb, "code")) <= 150_000
    ids = [c["id"] for c in cells(nb)]
    assert len(ids) == len(set(ids))
    assert not [
        o["evalue"] for c in cells(nb, "code") for o in c["outputs"] if o["output_type"] == "error"
    ], "an output is an error"


def test_title_cells_have_nothing_else():
    "nbdev takes title and subtitle from the first heading's cell, and drops the rest of that cell; `make docs` keeps it."
    titles = {
        nb.name: next(
            source(c) for c in cells(nb, "markdown") if re.search(r"^# ", source(c), re.M)
        )
        for nb in NOTEBOOKS
    }
    assert not [
        k for k, v in titles.items() if docs.TITLE.match(v).group(2).strip()
    ]  # nbdev_docs drops it


@each_notebook
def test_imports_are_in_cells_of_their_own(nb):
    "The docs run every cell that holds an import: a computation in it would run there too, out of order."
    bad = []
    for c in cells(nb, "code"):
        code = "\n".join(l for l in source(c).splitlines() if not l.startswith(("%", "!", "#|")))
        if (
            re.search(r"^#\| *(exports?|exporti|exec_doc|eval: *false)\b", source(c), re.M)
            or "nbdev_export(" in code
        ):
            continue
        nodes = [
            o
            for n in ast.parse(code).body
            if not ast.unparse(n).startswith("warnings.")
            for o in ast.walk(n)
        ]
        if any(isinstance(n, (ast.Import, ast.ImportFrom)) for n in nodes) and any(
            isinstance(n, (ast.Expr, ast.Assign)) for n in nodes
        ):
            bad.append(code)
    assert not bad, "a cell mixes imports with computation:\n" + "\n---\n".join(bad)


@each_module
def test_no_stray_names_are_public(module):
    tree = code_of(module)
    public = next(
        ast.literal_eval(n.value)
        for n in tree.body
        if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__"
    )
    assigned = {
        t.id
        for n in tree.body
        if isinstance(n, (ast.Assign, ast.AnnAssign))
        for t in ast.walk(n)
        if isinstance(t, ast.Name) and isinstance(t.ctx, ast.Store)
    }
    assert not [n for n in public if n in assigned and n.islower()]


def public(module):
    return [
        n
        for n in code_of(module).body
        if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.name.startswith("_")
    ]


@each_module
def test_public_names_have_docstrings(module):
    assert not [n.name for n in public(module) if not ast.get_docstring(n)]


@each_notebook
def test_public_names_have_examples(nb):
    "Every name that a notebook exports is used by a cell of the page that runs."
    if not (module := default_exp(nb)):
        return
    code = [source(c) for c in cells(nb, "code")]
    shown = "\n".join(s for s in code if not re.search(r"^#\| *export", s, re.M))
    names = ast.literal_eval(
        re.search(
            r"^__all__ = (\[.*?\])", (LIB / f"{module}.py").read_text(encoding="utf-8"), re.M | re.S
        ).group(1)
    )
    assert not [n for n in names if not re.search(rf"\b{n}\b", shown)]


def test_parameters_are_commented():
    bare = {}
    for m in MODULES:
        lines = (LIB / f"{m}.py").read_text(encoding="utf-8").splitlines()
        for n in public(m):
            for f in (
                [n]
                if isinstance(n, ast.FunctionDef)
                else [f for f in n.body if getattr(f, "name", "") == "__init__"]
            ):
                args = [
                    a
                    for a in f.args.posonlyargs + f.args.args + f.args.kwonlyargs
                    if a.arg != "self"
                ]
                if any("#" not in lines[a.end_lineno - 1][a.end_col_offset :] for a in args):
                    bare.setdefault(m, []).append(n.name)
    assert not bare


def test_no_loose_ends():
    "No note to self, no path of one machine, in anything that git keeps."
    files = (
        subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.split("\0")
        if (ROOT / ".git").exists()
        else []
    )
    bad = re.compile(
        r"\b(TO" r"DO|FIX" r"ME|X" r"XX)\b|(?<![\w.])/(?:work|tmp|root|home|Users)" r"/\w+"
    )
    found = {}
    for f in filter(None, files):
        if (ROOT / f).suffix in (".png", ".jpg", ".safetensors", ".npz", ".parquet") or not (
            ROOT / f
        ).is_file():
            continue
        text = re.sub(r'"image/png": "[^"]*"', "", (ROOT / f).read_text(encoding="utf-8"))
        if hits := sorted({m.group(0) for m in bad.finditer(text)}):
            found[f] = hits
    assert not found


# ---------------------------------------------------------------- the wheel

ALONE = """
import sys, pkgutil, importlib
sys.modules.update(dict.fromkeys(['nbdev', 'execnb', 'IPython', 'pytest', 'hypothesis', 'smalldocs']))   # as if they were not installed
import advinterp
assert advinterp.__file__.startswith(sys.argv[1]), advinterp.__file__
for m in pkgutil.iter_modules(advinterp.__path__): importlib.import_module(f'advinterp.{m.name}')
"""


def test_wheel_stands_alone(tmp_path):
    "The wheel has the package and the command, asks for no development tool, and every module imports without them."
    src = tmp_path / "src"
    for p in [
        ROOT / f for f in ("setup.py", "settings.ini", "pyproject.toml", "README.md", "LICENSE")
    ] + list(LIB.glob("*.py")):
        to = src / p.relative_to(ROOT)
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes(p.read_bytes())

    def run(*cmd, **kw):
        return subprocess.run(
            [sys.executable, *map(str, cmd)], capture_output=True, text=True, cwd=tmp_path, **kw
        )

    r = run("-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, src)
    assert r.returncode == 0, r.stdout + r.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as z:
        names = z.namelist()
        info = {Path(n).name: z.read(n).decode() for n in names if ".dist-info/" in n}
    assert {f"advinterp/{m}.py" for m in MODULES} <= set(names) and not [
        n for n in names if not n.startswith("advinterp")
    ]
    assert SETTINGS["console_scripts"].replace("=", " = ") in info["entry_points.txt"]
    asked = [
        Requirement(l.removeprefix("Requires-Dist: "))
        for l in info["METADATA"].splitlines()
        if l.startswith("Requires-Dist: ")
    ]
    assert not {r.name for r in asked if not r.marker} & {"nbdev", "execnb", "pytest", "smalldocs"}
    assert (
        run(
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            "--target",
            tmp_path / "site",
            wheel,
        ).returncode
        == 0
    )
    env = dict(PYTHONPATH=str(tmp_path / "site"), PATH="", OMP_NUM_THREADS="1", HOME=str(tmp_path))
    r = run("-c", ALONE, tmp_path / "site", env=env)
    assert r.returncode == 0, r.stderr
    module, func = SETTINGS["console_scripts"].split("=")[1].split(":")
    r = run("-c", f"from {module} import {func}; {func}()", "--help", env=env)
    assert r.returncode == 0 and "compare" in r.stdout, r.stdout + r.stderr
