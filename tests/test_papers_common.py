"""What the papers share: verdicts and their statistics, means with intervals, items of runs."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from advinterp.jobs import Job, check_out, job_folder, run_jobs, store_row
from advinterp.papers.common import (
    detectable,
    holm,
    items_of,
    legend,
    markdown_table,
    mean_and_half,
    paired_test,
    power,
    prediction_interval,
    read_published,
    rows_of,
    verdict,
)

NAN = math.nan
T_975 = 4.3027  # two degrees of freedom, from a printed table


@pytest.mark.parametrize(
    "low, high, claimed, expected",
    [
        (0.1, 0.2, 1.0, "confirmed"),
        (-0.2, -0.1, 1.0, "contradicted"),
        (-0.1, 0.2, 1.0, "open"),
        (0.1, 0.2, 0.3, "confirmed"),
        (-0.2, -0.1, 0.3, "contradicted"),
        (0.1, 0.2, -0.3, "contradicted"),
        (-0.2, -0.1, -0.3, "confirmed"),
        (-0.1, 0.2, -0.3, "open"),
        (0.0, 0.2, 1.0, "open"),
        (-0.2, 0.0, 1.0, "open"),
        (NAN, NAN, 1.0, "no interval"),
    ],
)
def test_a_verdict_is_about_the_sign(low, high, claimed, expected):
    assert verdict(low, high, claimed) == expected
    assert f"*{expected}*" in legend()


def test_a_published_number_inside_a_wide_interval_is_open():
    """.030 [-.023, .082] around a published .060 once had the best mark."""
    assert verdict(-0.023, 0.082, published=0.060) == "open"


@pytest.mark.parametrize("claimed", [0.0, NAN])
def test_a_claim_has_a_sign(claimed):
    with pytest.raises(ValueError, match=f"published={claimed}"):
        verdict(0.1, 0.2, claimed)


def test_three_seeds_by_a_printed_table():
    """Mean 2, deviation 1: half the interval is t / sqrt(3)."""
    values = [1.0, 2.0, 3.0]
    half = T_975 / 3**0.5
    row = paired_test([*values, NAN])
    assert (row["difference"], row["runs"], row["deviation"]) == (2, 3, 1)
    assert (row["low"], row["high"]) == pytest.approx((2 - half, 2 + half), abs=1e-3)
    assert row["p"] == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert mean_and_half(values) == f"2.00 ± {half:.2f}"
    assert mean_and_half([*values, NAN], scale=100, digits=1) == f"200.0 ± {100 * half:.1f}"
    assert (mean_and_half([0.5]), mean_and_half([NAN])) == ("0.50", "")


@pytest.mark.parametrize("shift", [-0.09, -0.02, 0.0, 0.03, 0.08])
def test_alike_is_two_one_sided_tests(shift):
    """The interval of margin - |difference| excludes zero exactly where both tests pass."""
    values = np.array([0.01, -0.02, 0.0, 0.015]) + shift
    row = paired_test(values, margin=0.05)
    sides = [stats.ttest_1samp(values, end).pvalue / 2 for end in (-0.05, 0.05)]
    inside = abs(values.mean()) < 0.05
    assert (row["low"] > 0) == (inside and max(sides) < 0.025)
    assert (row["high"] < 0) == (not inside and min(sides) < 0.025)
    if inside:
        assert row["p"] == pytest.approx(2 * max(sides))
    assert row["difference"] == pytest.approx(0.05 - abs(values.mean()))


def test_no_spread_and_no_seeds():
    assert paired_test([0.5, 0.5, 0.5])["p"] == 0
    assert paired_test([0.0, 0.0])["p"] == 1
    empty = paired_test([])
    assert empty["runs"] == 0
    assert math.isnan(empty["difference"]) and math.isnan(empty["p"])


def closed_testing(p):
    """Holm's rule is the closure of Bonferroni's: the worst family that a claim is in."""
    worst = np.zeros(len(p))
    for size in range(1, len(p) + 1):
        for family in itertools.combinations(range(len(p)), size):
            members = list(family)
            worst[members] = np.maximum(worst[members], min(1, size * p[members].min()))
    return worst


@pytest.mark.parametrize("seed", range(4))
def test_holm_is_closed_testing(seed):
    p = np.random.default_rng(seed).uniform(0, 0.2, 7)
    np.testing.assert_allclose(holm(p), closed_testing(p))
    with_gaps = np.insert(p, [0, 3], NAN)
    adjusted = holm(with_gaps)
    np.testing.assert_allclose(adjusted[~np.isnan(with_gaps)], closed_testing(p))
    assert np.isnan(adjusted[np.isnan(with_gaps)]).all()


@pytest.mark.parametrize("n", [2, 3, 5, 12])
@pytest.mark.parametrize("effect", [0.2, 1.0, 3.0])
def test_power_is_that_of_the_non_central_t(n, effect):
    end, shift = stats.t.ppf(0.975, n - 1), effect / 2 * n**0.5
    exact = stats.nct.sf(end, n - 1, shift) + stats.nct.cdf(-end, n - 1, shift)
    assert power(effect, 2.0, n) == power(-effect, 2.0, n) == pytest.approx(exact, abs=2e-4)
    assert power(detectable(2.0, n), 2.0, n) == pytest.approx(0.8)


def test_what_cannot_be_known_has_no_power():
    assert math.isnan(power(NAN, 1.0, 3)) and math.isnan(power(1.0, NAN, 3))
    assert math.isnan(power(1.0, 1.0, 1)) and math.isnan(detectable(1.0, 1))
    assert (power(1.0, 0.0, 3), power(0.0, 0.0, 3), detectable(0.0, 3)) == (1, 0, 0)


def test_further_runs_lie_in_the_prediction_interval():
    """By the formula, and by drawing: 95 % of further means of r runs."""
    values = [1.0, 2.0, 3.0]
    half = T_975 * (1 / 3 + 1 / 2) ** 0.5
    assert prediction_interval(values, 2) == pytest.approx((2 - half, 2 + half), abs=1e-3)
    draws = np.random.default_rng(0).normal(size=(500, 5))
    inside = []
    for draw in draws:
        low, high = prediction_interval(draw[:3], 2)
        inside.append(low <= draw[3:].mean() <= high)
    assert np.mean(inside) == pytest.approx(0.95, abs=0.03)
    assert math.isnan(prediction_interval([1.0])[0])


RECORD = dict(name="X.table1", title="a table", scaled="nothing", note="as published")


def test_an_item_draws_the_runs_that_are_done(tmp_path):
    """Its functions are called with what the record says; words fill the text."""

    def runs(preset, device, few):
        names = few if preset == "quick" else "abc"
        return [dict(name=name, device=device) for name in names]

    def as_job(run):
        return Job("advinterp.jobs:_example", dict(a=1, **run), run["name"])

    def words(done, end):
        return dict(names=" ".join(run["name"] for run in done.runs) + end, preset=done.preset)

    def nothing(done):
        return None

    sections = [dict(by="words", title="Drawn", text="{preset}: {names}", end=".")]
    sections.append(dict(by="nothing", title="Not drawn", text=""))
    record = dict(RECORD, runs=dict(of="runs", few="ab"), sections=sections)
    (item,) = items_of([record], dict(runs=runs), dict(words=words, nothing=nothing), as_job)
    assert (item.name, item.note) == ("X.table1", "as published")
    out = check_out(tmp_path)
    first, second = item.jobs()
    assert (first.label, second.label, len(item.jobs("paper"))) == ("a", "b", 3)
    assert item.sections(out) == []
    store_row(second, out, dict(sum=1), seconds=0.1)
    assert [section.text for section in item.sections(out)] == ["quick: b."]
    assert item.sections(out, device="cuda") == []
    store_row(item.jobs("paper")[2], out, dict(sum=1), seconds=0.1)
    assert [section.text for section in item.sections(out, "paper")] == ["paper: b c."]


def test_an_item_of_jobs_needs_no_conversion(tmp_path):
    def jobs(preset, device):
        return [Job("advinterp.jobs:_example", dict(a=a), f"sum{a}") for a in (1, 2)]

    def table(done):
        return dict(table=rows_of(done.runs, done.out))

    sections = [dict(by="table", title="Sums", text="")]
    record = dict(RECORD, runs=dict(of="sums"), sections=sections)
    (item,) = items_of([record], dict(sums=jobs), dict(table=table))
    run_jobs(item.jobs()[:1], check_out(tmp_path), progress=False)
    assert job_folder(item.jobs()[0], tmp_path).exists()
    (section,) = item.sections(tmp_path)
    assert section.table.a.tolist() == [1]


def test_published_numbers_are_those_of_the_file():
    table = read_published("b_tables")
    robust = table[(table.data == "mnist") & (table.method == "adversarial")]
    assert robust.robust_accuracy.item() == 90.21
    with pytest.raises(ValueError, match=r"name='b_tabels': expected one of .*'b_tables'"):
        read_published("b_tabels")


def test_a_table_keeps_numbers_beside_their_intervals():
    table = pd.DataFrame(dict(model=["a|b"], value=[NAN], gain=["+.5 [+.4, +.6]"]))
    *_, row = markdown_table(table).splitlines()
    assert [cell.strip() for cell in row.split(" | ")] == [r"| a\|b", "", "+.5 [+.4,\u00a0+.6] |"]
