"""The list of mutations is valid, and what is told of them is true."""

import pytest

from tests.repo import MODULES, each_module, module_file
from tools import mutate

MUTATIONS = mutate.read_mutations()

MODULE = """
def double(x):
    return 2 * x


def half(x):
    return x / 2
"""
TESTS = """
from advinterp.small import double


def test_double():
    assert double(2) == 4
"""
LIST = """
What comes before the first one is for people.

# small: doubles are triples
-     return 2 * x
+     return 3 * x

# small: halves are quarters
- def half(x):
-     return x / 2
+ def half(x):
+     return x / 4
"""


@each_module
def test_every_module_has_mutations_and_tests(module):
    assert module in {mutation.module for mutation in MUTATIONS}
    for file in mutate.test_files(module):
        assert (mutate.ROOT / file).is_file(), file


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: f"{m.module}: {m.what}")
def test_the_code_is_there_just_once(mutation):
    before = module_file(mutation.module).read_text(encoding="utf-8")
    after = mutation.applied(before)
    assert after != before
    compile(after, mutation.path, "exec")


def test_there_are_enough():
    assert len(MUTATIONS) >= 60
    assert len({(m.module, m.what) for m in MUTATIONS}) == len(MUTATIONS)
    assert {mutation.module for mutation in MUTATIONS} <= set(MODULES)


def test_code_that_is_not_there_is_refused():
    gone, twice = (mutate.Mutation("small", "nothing", old, "") for old in ("gone", "return"))
    with pytest.raises(ValueError, match="small: 0 times"):
        gone.applied(MODULE)
    with pytest.raises(ValueError, match="small: 2 times"):
        twice.applied(MODULE)


def test_a_kill_and_a_survivor(tmp_path, monkeypatch):
    """What no test looks at survives, also where every test runs."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # they take longer than the tests
    for folder in ("advinterp", "tests"):
        (tmp_path / folder).mkdir()
    (tmp_path / "advinterp/__init__.py").write_text("")
    (tmp_path / "advinterp/small.py").write_text(MODULE)
    (tmp_path / "tests/test_small.py").write_text(TESTS)
    mutations = mutate.parsed(LIST)
    killed, survivor = mutate.outcomes(mutations, jobs=2, root=tmp_path, everything=True)
    assert killed.killer == "tests/test_small.py::test_double"
    assert "killed" in str(killed) and "doubles are triples" in str(killed)
    assert not survivor.killer
    assert "SURVIVED" in str(survivor) and "halves are quarters" in str(survivor)
    assert (tmp_path / "advinterp/small.py").read_text() == MODULE
    assert mutate.fails_anyway({killed.killer}, root=tmp_path) == ""
    (tmp_path / "advinterp/small.py").write_text(MODULE.replace("2 *", "3 *"))
    assert mutate.fails_anyway({killed.killer}, root=tmp_path) == killed.killer


def test_some_are_chosen():
    mutations = [*mutate.parsed(LIST), mutate.Mutation("other", "small things", "a", "b")]
    first, second, third = mutations
    assert mutate.chosen(mutations, None) == mutations
    assert mutate.chosen(mutations, ["small"]) == [first, second]
    assert mutate.chosen(mutations, ["halves", "other"]) == [second, third]
    assert mutate.chosen(mutations, ["nothing like it"]) == []
