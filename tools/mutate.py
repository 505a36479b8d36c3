"""Do the tests notice? Small errors are put into a copy of the package, one at a time.

python tools/mutate.py                       every mutation, against the tests of its module
python tools/mutate.py --all                 survivors also against the whole fast suite
python tools/mutate.py --only duals "wrong"  those of a module, or with these words
python tools/mutate.py --jobs 2              so many at a time

`tools/mutations.txt` lists the mutations. The exit code is 1 where more than 5 % survive, or where
a test that killed one fails without it as well.
"""

import argparse
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "advinterp"
LIST = ROOT / "tools/mutations.txt"

COPIED = [PACKAGE, "tests", "tools"]
LINKED = ["nbs", "settings.ini", "pyproject.toml", "pytest.ini", "Makefile", "constraints.txt"]
LARGEST_SHARE = 0.05  # of survivors
TOO_LONG = 600  # seconds; a mutation that runs for ever is noticed too
OUTPUT = "pytest.txt"

# Each run is a process of its own, forked where the libraries are imported already
FORKS = get_context("forkserver")
LIBRARIES = ["torch", "fastai.vision.all", "captum.attr", "scipy.stats", "sklearn.linear_model"]
LIBRARIES += ["matplotlib.pyplot", "seaborn", "hypothesis", "pytest"]
ENVIRONMENT = dict(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", MPLBACKEND="Agg")

# Where a module is tested, if not in the file of its name; the quick files come first
TESTS = {
    "map_adversary": ["evaluate"],
    "optimisers": ["solver", "estimator"],
    "solver": ["solver", "estimator"],
    "study": ["study_tables", "study"],
    "measures": ["comparison"],
    "experiments": ["comparison"],
    "papers.common": ["papers_common"],
    "papers.claims": ["papers_claims"],
    "papers.scorecard": ["scorecard"],
    "papers.a": ["paper_a", "reproduce"],
    "papers.b": ["paper_b", "reproduce"],
    "papers.c": ["paper_c_training", "paper_c", "reproduce"],
    "papers.d": ["paper_d", "reproduce"],
    "papers.reproduce": ["reproduce"],
}
# They read the notebooks, the site and the repository, not what the package does
ABOUT_FILES = ["repo", "docs", "tools", "packaging", "contract", "mutate"]


@dataclass(frozen=True)
class Mutation:
    module: str  # 'duals' or 'papers.b'
    what: str  # what is wrong then, in a sentence
    old: str  # code that occurs once in the module
    new: str  # what stands there instead

    @property
    def path(self) -> str:
        return f"{PACKAGE}/{self.module.replace('.', '/')}.py"

    def applied(self, source: str) -> str:
        """The source with the error. Raises ValueError where the code is not there just once."""
        n_found = source.count(self.old)
        if n_found != 1:
            raise ValueError(f"{self.module}: {n_found} times in the module: {self.old!r}")
        return source.replace(self.old, self.new)


@dataclass(frozen=True)
class Outcome:
    mutation: Mutation
    killer: str  # the first test that fails; "": it survived
    seconds: float

    def __str__(self):
        fate = "killed  " if self.killer else "SURVIVED"
        by_whom = f" ({self.killer})" if self.killer else ""
        mutation = self.mutation
        return f"{fate} {self.seconds:4.0f} s  {mutation.module}: {mutation.what}{by_whom}"


def parsed(text: str) -> list[Mutation]:
    """The mutations of a list: `# module: sentence`, then lines with `-` out and `+` in."""
    mutations = []
    for block in re.split(r"^# ", text, flags=re.M)[1:]:
        title, *lines = block.splitlines()
        module, what = title.split(": ", 1)
        old = "\n".join(line[2:] for line in lines if line.startswith("-")).strip()
        new = "\n".join(line[2:] for line in lines if line.startswith("+")).strip()
        mutations.append(Mutation(module, what, old, new))
    return mutations


def read_mutations() -> list[Mutation]:
    return parsed(LIST.read_text(encoding="utf-8"))


def test_files(module: str) -> list[str]:
    """The files that test a module first."""
    names = TESTS.get(module, [module.rpartition(".")[2]])
    return [f"tests/test_{name}.py" for name in names]


def make_copy(root: Path, copy: Path):
    """What the tests need: the code as a copy, what is only read as links."""
    for name in COPIED:
        if (root / name).exists():
            shutil.copytree(root / name, copy / name)
    for name in LINKED:
        if (root / name).exists():
            (copy / name).symlink_to(root / name)


def mutate(copy: Path, mutation: Mutation):
    """Put the error into the module, of which nothing compiled is left."""
    file = copy / mutation.path
    file.write_text(mutation.applied(file.read_text(encoding="utf-8")), encoding="utf-8")
    for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*"):
        compiled.unlink()


def run_pytest(copy: Path, arguments: list[str]):
    """Of a process of its own: pytest in a copy, whose package is the one that is imported."""
    os.chdir(copy)
    os.environ["PYTHONPATH"] = str(copy)
    sys.path.insert(0, str(copy))
    with open(copy / OUTPUT, "w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    import pytest

    code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *arguments])
    sys.stdout.flush()
    os._exit(code)  # threads and processes that a failed test left behind are not waited for


def first_failure(copy: Path, arguments: list[str]) -> str:
    """The first test that fails in a copy; empty where all pass."""
    process = FORKS.Process(target=run_pytest, args=(copy, arguments))
    process.start()
    process.join(TOO_LONG)
    if process.is_alive():
        process.kill()
        return f"no answer in {TOO_LONG} seconds"
    if process.exitcode == 0:
        return ""
    output = (copy / OUTPUT).read_text(encoding="utf-8")
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.M)
    if process.exitcode not in (1, 2) or not failed:
        raise RuntimeError(f"pytest {' '.join(arguments)} ended with {process.exitcode}:\n{output}")
    return failed.group(1)


def fast_suite() -> list[str]:
    """The arguments for every test of what the package does that is not slow."""
    ignored = [f"--ignore=tests/test_{name}.py" for name in ABOUT_FILES]
    return ["-m", "not slow and not whole", *ignored]


def tried(mutation: Mutation, root: Path = ROOT, everything: bool = False) -> Outcome:
    """One mutation against the tests of its module, then with `everything` against all."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        copy = Path(folder)
        make_copy(root, copy)
        mutate(copy, mutation)
        killer = first_failure(copy, test_files(mutation.module))
        if not killer and everything:
            killer = first_failure(copy, fast_suite())
    return Outcome(mutation, killer, time.monotonic() - start)


def outcomes(mutations: list[Mutation], jobs: int = 1, **how) -> Iterator[Outcome]:
    """The outcome of each, in their order."""
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(partial(tried, **how), mutations)


def fails_anyway(killers: set[str], root: Path = ROOT) -> str:
    """The first of these tests that fails where nothing is wrong."""
    functions = {killer.partition("[")[0] for killer in killers}  # parameters may have spaces
    tests = sorted(name for name in functions if name.startswith("tests/"))
    if not tests:
        return ""
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        make_copy(root, Path(folder))
        return first_failure(Path(folder), tests)


def chosen(mutations: list[Mutation], only: list[str] | None) -> list[Mutation]:
    """Those of some modules; a name that is no module stands for words of the sentence."""
    if only is None:
        return mutations
    modules = {m.module for m in mutations}
    words = [name for name in only if name not in modules]
    return [m for m in mutations if m.module in only or any(word in m.what for word in words)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="survivors also meet the fast suite")
    parser.add_argument("--only", nargs="+", help="modules, or words of the sentence")
    parser.add_argument("--jobs", type=int, default=1, help="mutations at a time")
    args = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    FORKS.set_forkserver_preload(LIBRARIES)
    found = []
    for outcome in outcomes(chosen(read_mutations(), args.only), args.jobs, everything=args.all):
        print(outcome, flush=True)
        found.append(outcome)
    n_survivors = sum(not outcome.killer for outcome in found)
    share = n_survivors / max(len(found), 1)
    print(f"{len(found)} mutations, {n_survivors} survived ({share:.1%})")
    wrong = fails_anyway({outcome.killer for outcome in found})
    if wrong:
        print(f"{wrong} fails without a mutation as well")
    return int(share > LARGEST_SHARE or bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
