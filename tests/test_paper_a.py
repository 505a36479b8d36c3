"""Paper A's effects, claims and figure 3, from runs whose numbers are known."""

import numpy as np
import pytest

from advinterp.jobs import check_out, write_study
from advinterp.papers.a import effects, items_a, runs_a
from advinterp.papers.reproduce import paper_ledger
from tests.stored import store_run

RUNS = runs_a(data=["spambase"], grid=True)
PUBLISHED = {"natural": 0.0, "l1": 0.02, "adversarial": 0.1}
GAINS = {"natural": 0.0, "l1": 0.1, "adversarial": 0.3}


def gain_of(run):
    """With Adam the adversary loses; away from the published strength it gains twice as much."""
    gain = GAINS[run.method] + 0.01 * run.seed * (run.method == "adversarial")
    if run.recipe.optimiser == "adam" and run.method == "adversarial":
        return -gain
    return gain if run.strength == PUBLISHED[run.method] else 2 * gain


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The Gini index of a natural model is .4 on one example and .6 on the other."""
    folder = check_out(tmp_path_factory.mktemp("a"))
    for run in RUNS:
        accuracy = dict(natural=0.95, l1=0.93, adversarial=0.9)[run.method]
        store_run(run, folder, np.array([0.4, 0.6]) + gain_of(run), accuracy)
    return folder


def test_effects_are_means_over_seeds_beside_the_published_ones(out):
    found = effects(RUNS, out).set_index(["optimiser", "method", "strength"])
    at_published = found.loc[("ftrl", "adversarial", 0.1)]
    assert at_published.dG == pytest.approx(0.32)  # seeds 0 to 4
    assert at_published["drop"] == pytest.approx(0.05)
    assert (at_published.paper_dG, at_published.paper_drop) == (0.17, 0.009)
    assert at_published.seeds == 5
    other = found.loc[("ftrl", "adversarial", 0.2)]
    assert other.dG == pytest.approx(0.62)  # seeds 0 to 2
    assert other.seeds == 3
    assert np.isnan(other.paper_dG)


def test_claims_are_about_the_published_strengths(out):
    """The adversary minus the penalty, seed by seed, for each optimiser."""
    write_study(out, [run.job() for run in RUNS])
    found = paper_ledger("A", out)
    of_table = found[(found["item"] == "A.table1") & (found.worse == "l1")].set_index("data")
    tested = of_table[of_table.difference.notna()]
    assert list(tested.index) == ["spambase ftrl", "spambase adam"]
    assert tested.difference.tolist() == pytest.approx([0.22, -0.42])
    assert tested.verdict.tolist() == ["confirmed", "contradicted"]
    assert tested.published.tolist() == pytest.approx([0.02, 0.02])
    assert tested.low.iloc[0] < 0.22 < tested.high.iloc[0]
    assert set(tested.runs) == {5}


def test_a_point_of_figure_3_is_the_mean_of_a_strength(out):
    (figure_3,) = [item for item in items_a() if item.name == "A.fig3"]
    ((fig, alt),) = figure_3.sections(out)[0].figures.values()
    assert "spambase" in alt
    lines = {line.get_label(): line for line in fig.axes[0].lines}
    line = lines["adversarial [ig]"]
    assert len(line.get_xdata()) == 5  # as many as strengths, of FTRL alone
    gini = dict(
        zip(sorted({run.strength for run in RUNS if run.method == "adversarial"}), line.get_xdata())
    )
    assert gini[0.1] == pytest.approx(0.5 + 0.32)
    assert gini[0.2] == pytest.approx(0.5 + 0.62)
    assert set(line.get_ydata()) == {0.9}
