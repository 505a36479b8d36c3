"""The sdist builds and installs, the wheel stands alone, versions and bounds are said once."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from tests.repo import LIB, MODULES, ROOT, SETTINGS
from tools import pins

METADATA = ["setup.py", "settings.ini", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"]

# every module imports as if the development tools were not installed
ALONE = """
import importlib, pkgutil, sys
tools = ["nbdev", "execnb", "IPython", "pytest", "hypothesis", "smalldocs", "ruff", "playwright"]
sys.modules.update(dict.fromkeys(tools))
import advinterp
assert advinterp.__file__.startswith(sys.argv[1]), advinterp.__file__
for module in pkgutil.walk_packages(advinterp.__path__, "advinterp."):
    importlib.import_module(module.name)
"""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(*keys: str) -> list[Requirement]:
    return [Requirement(text) for key in keys for text in SETTINGS[key].split()]


def test_pins_are_within_the_bounds():
    pinned = {normal(name): version for name, version in pins.pins().items()}
    asked = requirements("requirements", "dev_requirements")
    bad = [str(r) for r in asked if pinned[normal(r.name)] not in r.specifier]
    assert not bad


def test_requirements_have_bounds():
    """A lowest version that was tried, and a next major one that was not."""
    unbounded = [str(r) for r in requirements("requirements") if len(r.specifier) != 2]
    assert not unbounded


def test_python_range_is_said_alike():
    oldest = SETTINGS["min_python"]
    assert f"Python {oldest} or newer" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"Python {oldest} or newer" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'target-version = "py{oldest.replace(".", "")}"' in project
    assert oldest not in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_workflows_call_the_makefile():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^(\w+):", makefile, re.M))
    for name in ("test", "deploy"):
        text = (ROOT / f".github/workflows/{name}.yaml").read_text(encoding="utf-8")
        assert yaml.safe_load(text)["jobs"]
        called = re.findall(r"- run: make (\w+)", text)
        assert called
        assert set(called) <= targets


def run(*command, **options) -> subprocess.CompletedProcess:
    arguments = [sys.executable, *map(str, command)]
    result = subprocess.run(arguments, capture_output=True, text=True, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    """Sdist and wheel: the wheel is built from the sdist, as pip would do it."""
    folder = tmp_path_factory.mktemp("build")
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(LIB, source / "advinterp", ignore=ignored)
    for name in [*METADATA, "CHANGELOG.md"]:
        shutil.copy(ROOT / name, source / name)
    run("-m", "build", "--no-isolation", "--outdir", folder, source, cwd=folder)
    (sdist,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


@pytest.mark.whole
def test_sdist_has_what_it_needs(built):
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert set(METADATA) <= names
    published = [*LIB.rglob("published/*.csv"), *LIB.rglob("published/*.json")]
    assert {path.suffix for path in published} == {".csv", ".json"}
    published = [path.relative_to(ROOT).as_posix() for path in published]
    assert set(published) <= names


@pytest.mark.whole
def test_wheel_stands_alone(built, tmp_path):
    """It has the package and the command, and every module imports without development tools."""
    wheel = built[1]
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        files = [name for name in names if ".dist-info/" in name]
        info = {Path(name).name: archive.read(name).decode() for name in files}
    assert not [name for name in names if not name.startswith("advinterp")]
    assert {f"advinterp/{module.replace('.', '/')}.py" for module in MODULES} <= set(names)
    assert SETTINGS["console_scripts"].replace("=", " = ") in info["entry_points.txt"]
    lines = info["METADATA"].splitlines()
    asked = [Requirement(line[15:]) for line in lines if line.startswith("Requires-Dist: ")]
    development = {requirement.name for requirement in requirements("dev_requirements")}
    assert not {requirement.name for requirement in asked if not requirement.marker} & development

    site = tmp_path / "site"
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site]
    run(*install, wheel, cwd=tmp_path)
    environment = dict(PYTHONPATH=str(site), PATH="", OMP_NUM_THREADS="1", HOME=str(tmp_path))
    run("-c", ALONE, site, env=environment, cwd=tmp_path)
    module, function = SETTINGS["console_scripts"].split("=")[1].split(":")
    code = f"import sys; from {module} import {function}; sys.exit({function}())"
    result = run("-c", code, "--help", env=environment, cwd=tmp_path)
    assert "compare" in result.stdout


LOWEST = ["numpy==1.26.4", "pandas==2.2.3", "pytz"]  # which that pandas asks for


@pytest.mark.net
@pytest.mark.slow
def test_lowest_numpy_and_pandas(tmp_path):
    """The lowest declared versions that can be laid over this environment pass the fast tests."""
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path, *LOWEST]
    run(*install)
    environment = os.environ | dict(PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    tests = [f"tests/test_{name}.py" for name in ("duals", "metrics", "evaluate", "study")]
    run("-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, cwd=ROOT, env=environment)


@pytest.mark.net
@pytest.mark.slow
def test_nbdev_3_exports_the_same_modules(tmp_path):
    """nbdev 3 reads pyproject.toml in place of settings.ini, in an environment of its own."""
    environment = tmp_path / "environment"
    run("-m", "venv", environment)
    pip = [environment / "bin/python", "-m", "pip", "install", "--quiet", "nbdev>=3,<4"]
    subprocess.run(list(map(str, pip)), check=True)
    copy = tmp_path / "project"
    shutil.copytree(ROOT / "nbs", copy / "nbs", symlinks=True)
    shutil.copytree(LIB, copy / "advinterp")
    shutil.copy(ROOT / "pyproject.toml", copy)
    subprocess.run([str(environment / "bin/nbdev-export")], cwd=copy, check=True)
    changed = [
        module
        for module in MODULES
        if (copy / f"advinterp/{module.replace('.', '/')}.py").read_bytes()
        != (LIB / f"{module.replace('.', '/')}.py").read_bytes()
    ]
    assert not changed
