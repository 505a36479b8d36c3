"""A fuzz of the public API: the right result, or one clear sentence.

Each example calls a public function with one or two arguments changed, see `tests/fuzz.py`. A few
hundred are drawn in every run, 5,000 by the nightly profile; what failed once stays as an example.
"""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import ROWS, changes_of, outcome

IS_NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
MOST = 5000 if IS_NIGHTLY else 250

# silent for a reason: (function, parameter, value)
EXPLAINED = {
    ("smoothgrad", "bounds", "narrow"): "noisy inputs are cut to the valid range, x is not judged",
    ("vargrad", "bounds", "narrow"): "as smoothgrad",
    ("smoothgrad_targets", "bounds", "narrow"): "as smoothgrad",
    ("first_order_gap", "x", "NaN"): "the gap is NaN where the input is",
}


@st.composite
def calls(draw):
    """A function and what is changed: pairs (parameter, value)."""
    name = draw(st.sampled_from(sorted(ROWS)))
    possible = changes_of(name)
    n = draw(st.integers(0, min(2, len(possible))))
    names = draw(st.permutations(sorted(possible)))[:n]
    return name, tuple((each, draw(st.sampled_from(sorted(possible[each])))) for each in names)


FOUND = [
    ("block_toy", (("seed", "-1"),)),
    ("block_toy", (("seed", "list"),)),
    ("cells", (("seed", "word"),)),
    ("cells", (("seed", "-1"),)),
    ("completeness_gap", (("x", "list"),)),
    ("completeness_gap", (("x", "pair"),)),
    ("deep_shap", (("model", "detached"),)),
    ("first_order_gap", (("dual", "word"),)),
    ("Learner.explain", (("items", "grey levels"),)),
    ("bring_data", (("device", "typo"),)),
    ("bring_data", (("target", "list"),)),
    ("from_learner", (("ds_idx", "word"),)),
    ("gaussian_blocks", (("p_pos", "word"),)),
    ("gaussian_blocks", (("seed", "word"),)),
    ("gaussian_blocks", (("strength", "none"),)),
    ("gaussian_blocks", (("strength", "word"),)),
    ("map_attack", (("x", "pair"),)),
    ("paper_table_ig", (("x", "list"),)),
]


def assert_right_or_clear(name, changes):
    if any((name, *change) in EXPLAINED for change in changes):
        return
    found, said = outcome(name, changes)
    assert found in ("right", "clear"), said


@pytest.mark.parametrize(("name", "changes"), FOUND)
def test_what_failed_once(name, changes):
    assert_right_or_clear(name, changes)
    assert outcome(name, changes)[0] == "clear"


@pytest.mark.parametrize("name", ROWS)
def test_each_function_with_arguments_that_are_right(name):
    assert outcome(name, ())[0] == "right"


@given(calls())
@settings(max_examples=MOST)
def test_the_right_result_or_one_clear_sentence(call):
    assert_right_or_clear(*call)
