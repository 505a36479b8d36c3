"""Contracts of the repository: what is generated is up to date, the notebooks keep the style."""

import ast
import json
import re
import subprocess
import sys

import pytest
import yaml

from tests.repo import (
    LIB,
    MATHS,
    MODULES,
    NBS,
    NOTEBOOKS,
    ROOT,
    SETTINGS,
    all_of,
    cells,
    each_module,
    each_notebook,
    is_export,
    module_file,
    module_of,
    public,
    python,
    source,
    tree_of,
)
from tools import docs, readability, readme

# ---------------------------------------------------------------- what is generated


def test_readme_is_what_the_notebook_makes():
    assert (ROOT / "README.md").read_text(encoding="utf-8") == readme.readme(), "run make readme"


def test_every_module_has_its_notebook():
    modules = [module for notebook in NOTEBOOKS if (module := module_of(notebook))]
    assert sorted(modules) == MODULES


def test_docs_config_is_shared():
    assert (NBS / "_quarto.yml").read_bytes() == (ROOT / "_quarto.yml").read_bytes()
    site = yaml.safe_load((NBS / "nbdev.yml").read_text())["website"]
    assert site["description"] == SETTINGS["description"]
    assert site["repo-url"] == SETTINGS["git_url"] % dict(SETTINGS) or site["repo-url"].endswith(
        f"{SETTINGS['user']}/{SETTINGS['repo']}"
    )


def listed_pages(contents) -> list[str]:
    """The pages that a part of the sidebar lists."""
    if isinstance(contents, str):
        found = [p.relative_to(NBS).as_posix() for p in NBS.glob(contents)]
        return found if "*" in contents else [contents]
    if isinstance(contents, dict):
        inside = listed_pages(contents.get("contents", []))
        return inside + ([contents["href"]] if "href" in contents else [])
    return [page for part in contents for page in listed_pages(part)]


def test_every_notebook_is_in_the_sidebar():
    site = yaml.safe_load((ROOT / "_quarto.yml").read_text())["website"]
    pages = listed_pages(site["sidebar"]["contents"])
    assert len(pages) == len(set(pages)), "a page is listed twice"
    assert set(pages) == {path.relative_to(NBS).as_posix() for path in NOTEBOOKS}


def test_folders_are_named_like_the_sidebar():
    """Numbered notebooks stand in the folder of their section, in the order of their numbers."""
    site = yaml.safe_load((ROOT / "_quarto.yml").read_text())["website"]
    for section in site["sidebar"]["contents"]:
        pages = [p for p in listed_pages(section["contents"]) if re.match(r"\w+/\d\d_", p)]
        if pages and section["section"] not in ("Start", "Learn"):
            folder = section["section"].lower().replace(" ", "_")
            assert {p.split("/")[0] for p in pages} == {folder}
            assert pages == sorted(pages)


# ---------------------------------------------------------------- imports


def top_level_imports(module: str) -> set[str]:
    """The first parts of the names of foreign modules that a module imports when it is loaded."""
    found = set()
    for node in tree_of(module).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found - {"advinterp"}


@pytest.mark.parametrize("module", sorted({*MATHS} & {*MODULES} - {"generators", "gaze"}))
def test_maths_imports_torch_numpy_fastcore_only(module):
    allowed = sys.stdlib_module_names | {"torch", "numpy", "fastcore"}
    assert not top_level_imports(module) - allowed


def test_imports_of_maths_are_light():
    """What is loaded after `import advinterp` and after each of its modules of mathematics."""
    heavy = ["captum", "shap", "matplotlib", "fastai", "sklearn", "scipy", "pandas", "nbdev"]
    light = sorted({*MATHS} & {*MODULES})
    code = f"""
import importlib, sys
import advinterp
print('advinterp', [h for h in {[*heavy, "torch", "numpy"]} if h in sys.modules])
for module in {light}:
    importlib.import_module(f'advinterp.{{module}}')
    print(module, [h for h in {heavy} if h in sys.modules])
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    lines = result.stdout.splitlines()
    assert len(lines) == 1 + len(light)
    assert not [line for line in lines if not line.endswith("[]")]


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    "imports",
    [
        "from fastai.learner import Learner\nfrom advinterp import LInfBall",
        "from advinterp import compare_maps\nfrom fastai.learner import Learner",
    ],
)
def test_learners_have_their_verbs_with_any_name(imports):
    """`learn.adversarial` works with the imports that its arguments need."""
    verbs = ["adversarial", "penalise", "explain", "show_maps"]
    code = f"{imports}\nprint([verb for verb in {verbs} if not hasattr(Learner, verb)])"
    command = [sys.executable, "-W", "ignore", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.splitlines() == ["[]"]


def test_lazy_names_are_those_of_their_modules():
    """What `from advinterp import ...` offers is public where it is defined, and about forty."""
    import advinterp

    homes = advinterp._HOME
    assert not [name for name, home in homes.items() if name not in all_of(home)]
    assert 35 <= len(homes) <= 64
    assert set(advinterp.__all__) == set(homes) <= set(dir(advinterp))
    assert advinterp.gini is advinterp.gini
    with pytest.raises(AttributeError, match="ginny"):
        advinterp.ginny  # noqa: B018 - the access is the test


def test_moved_modules_keep_their_old_names():
    code = """
import warnings
warnings.simplefilter('ignore')
from advinterp._deprecated import MODULES
for old, new in MODULES.items():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always', FutureWarning)
        moved = __import__(old, fromlist=['x'])
    assert new in str([str(w.message) for w in caught]), (old, new)
    target = __import__(new, fromlist=['x'])
    assert all(getattr(moved, name) is getattr(target, name) for name in target.__all__), old
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_renamed_arguments():
    from advinterp._deprecated import renamed_arguments

    @renamed_arguments(radius="eps")
    def attack(x, eps=1.0):
        return x, eps

    assert attack(2, 3) == (2, 3)
    with pytest.warns(FutureWarning, match=r"attack: argument radius= is now eps="):
        assert attack(2, radius=4) == (2, 4)
    with pytest.raises(TypeError, match="radius= and eps="):
        attack(2, radius=4, eps=4)


@each_module
def test_no_stray_names_are_public(module):
    assigned = set()
    for node in tree_of(module).body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            names = (n for n in ast.walk(node) if isinstance(n, ast.Name))
            assigned |= {n.id for n in names if isinstance(n.ctx, ast.Store)}
    assert not [name for name in all_of(module) if name in assigned and name.islower()]


@each_module
def test_public_names_have_docstrings(module):
    assert not [node.name for node in public(tree_of(module)) if not ast.get_docstring(node)]


@each_notebook
def test_public_names_have_examples(notebook):
    """Every name that a notebook exports is used by a cell of the page that runs."""
    module = module_of(notebook)
    if module is None:
        return
    shown = "\n".join(source(c) for c in cells(notebook, "code") if not is_export(c))
    assert not [name for name in all_of(module) if not re.search(rf"\b{name}\b", shown)]


def documented_functions(module: str) -> list[tuple[str, ast.FunctionDef]]:
    """The public functions of a module, and the `__init__` of its public classes."""
    found = []
    for node in public(tree_of(module)):
        if isinstance(node, ast.FunctionDef):
            found.append((node.name, node))
        else:
            found += [(node.name, f) for f in node.body if getattr(f, "name", "") == "__init__"]
    return found


def arguments(function: ast.FunctionDef) -> list[ast.arg]:
    args = function.args
    named = args.posonlyargs + args.args + args.kwonlyargs
    return [a for a in named if a.arg not in ("self", "cls")]


@each_module
def test_parameters_are_commented(module):
    lines = module_file(module).read_text(encoding="utf-8").splitlines()
    bare = [
        f"{name}({argument.arg})"
        for name, function in documented_functions(module)
        for argument in arguments(function)
        if "#" not in lines[argument.end_lineno - 1][argument.end_col_offset :]
    ]
    assert not bare


# ---------------------------------------------------------------- style


def test_code_reads_at_first_sight():
    """The limits that the comparison with fastai, captum and scikit-learn led to."""
    files = readability.package_files("advinterp", "**/*.py")
    numbers = readability.measure(files)
    assert numbers["longest"] <= 100
    assert numbers["joined by ;"] == 0
    assert numbers["expressions a line"] <= 2.2
    assert numbers["one-letter locals"] <= 0.25


@each_notebook
def test_export_cells_hold_one_thing(notebook):
    """One public function or class with its private helpers, or a few small ones of a kind."""
    crowded = []
    for cell in filter(is_export, cells(notebook, "code")):
        names = [node.name for node in public(ast.parse(python(cell)))]
        if len(names) > 1 and len(source(cell).splitlines()) > 60:
            crowded.append(names)
    assert not crowded


@each_notebook
def test_notebook_is_readable_in_one_sitting(notebook):
    assert len(cells(notebook)) < 80
    outputs = [output for cell in cells(notebook, "code") for output in cell["outputs"]]
    assert sum(len(json.dumps(output)) for output in outputs) <= 150_000
    ids = [cell["id"] for cell in cells(notebook)]
    assert len(ids) == len(set(ids))
    errors = [output["evalue"] for output in outputs if output["output_type"] == "error"]
    assert not errors, "an output is an error"


@each_notebook
def test_title_cells_have_nothing_else(notebook):
    """nbdev takes title and subtitle from the first heading's cell and drops the rest of it."""
    texts = [source(cell) for cell in cells(notebook, "markdown")]
    title = next(text for text in texts if re.search(r"^# ", text, re.M))
    assert not docs.TITLE.match(title).group(2).strip()


def mixes_imports(cell: dict) -> bool:
    """Does a cell import something and compute something as well?"""
    statements = [
        node for node in ast.parse(python(cell)).body if "warnings." not in ast.unparse(node)
    ]
    nodes = [node for statement in statements for node in ast.walk(statement)]
    imports = any(isinstance(node, ast.Import | ast.ImportFrom) for node in nodes)
    return imports and any(isinstance(node, ast.Expr | ast.Assign) for node in nodes)


@each_notebook
def test_imports_are_in_cells_of_their_own(notebook):
    """The docs run every cell with an import: a computation in it would run out of order."""
    exempt = re.compile(r"^#\| *(exports?|exporti|exec_doc|eval: *false)\b", re.M)
    bad = [
        source(cell)
        for cell in cells(notebook, "code")
        if not exempt.search(source(cell))
        and "nbdev_export(" not in source(cell)
        and mixes_imports(cell)
    ]
    assert not bad, "a cell mixes imports with computation:\n" + "\n---\n".join(bad)


BINARY = (".png", ".jpg", ".safetensors", ".npz", ".parquet")


def tracked_files() -> list[str]:
    if not (ROOT / ".git").exists():
        return []
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    names = [name for name in listing.stdout.split("\0") if name]
    return [name for name in names if (ROOT / name).is_file() and not name.endswith(BINARY)]


def test_no_loose_ends():
    """No note to self, no path of one machine, in anything that git keeps."""
    notes = r"\b(TO" r"DO|FIX" r"ME|X" r"XX)\b"
    paths = r"(?<![\w.])/(?:work|tmp|root|home|Users)" r"/\w+"
    bad = re.compile(f"{notes}|{paths}")
    found = {}
    for name in tracked_files():
        text = (ROOT / name).read_text(encoding="utf-8")
        text = re.sub(r'"image/png": "[^"]*"', "", text)
        if hits := sorted({match.group(0) for match in bad.finditer(text)}):
            found[name] = hits
    assert not found


def test_one_version():
    version = SETTINGS["version"]
    assert f'__version__ = "{version}"' in (LIB / "__init__.py").read_text()
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
