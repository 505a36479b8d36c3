"""What the papers share: verdicts, claims, means with their intervals, items of runs."""

import math

import pandas as pd
import pytest

from advinterp.jobs import Job, check_out, job_folder, run_jobs, store_row
from advinterp.papers.common import (
    claim_row,
    claim_section,
    item_of_runs,
    markdown_table,
    mean_and_half,
    read_published,
    verdict,
)
from advinterp.report import Section

NAN = math.nan
T_975 = 4.3027  # two degrees of freedom, from a printed table


@pytest.mark.parametrize(
    "low, high, published, expected",
    [
        (0.1, 0.2, None, "confirmed"),
        (-0.2, -0.1, None, "contradicted"),
        (-0.1, 0.2, None, "open"),
        (0.1, 0.2, 0.3, "confirmed"),
        (-0.2, -0.1, 0.3, "contradicted"),
        (0.1, 0.2, -0.3, "contradicted"),
        (-0.2, -0.1, -0.3, "confirmed"),
        (-0.1, 0.2, -0.3, "open"),
        (0.0, 0.2, None, "open"),
        (-0.2, 0.0, None, "open"),
        (NAN, NAN, None, "no interval"),
        (NAN, NAN, -0.3, "no interval"),
    ],
)
def test_a_verdict_is_about_the_sign(low, high, published, expected):
    assert verdict(low, high, published) == expected


def test_three_seeds_by_a_printed_table():
    """Mean 2, deviation 1: half the interval is t / sqrt(3)."""
    values = [1.0, 2.0, 3.0]
    half = T_975 / 3**0.5
    row = claim_row("It rises", "after - before", values)
    assert row["difference"] == 2
    assert row["low"] == pytest.approx(2 - half, abs=1e-3)
    assert row["high"] == pytest.approx(2 + half, abs=1e-3)
    assert row["verdict"] == "open"
    assert mean_and_half(values) == f"2.00 ± {half:.2f}"
    assert mean_and_half([*values, NAN], scale=100, digits=1) == f"200.0 ± {100 * half:.1f}"
    assert (mean_and_half([0.5]), mean_and_half([NAN])) == ("0.50", "")


def test_claims_are_shown_with_their_intervals():
    rows = [claim_row("It rises", "a - b", [1.0, 1.1]), claim_row("It falls", "b - a", [-1.0])]
    shown = claim_section("Claims", pd.DataFrame(rows)).table
    assert list(shown) == ["claim", "measured", "difference", "verdict"]
    assert list(shown.verdict) == ["confirmed", "no interval"]
    assert shown.difference[0].startswith("+1.050 [+0.415, ")
    assert shown.difference[1] == "-1.000"
    assert claim_section("Claims", pd.DataFrame()).table is None


def test_an_item_draws_the_runs_that_are_done(tmp_path):
    def runs(preset, device):
        names = "ab" if preset == "quick" else "abc"
        return [dict(name=name, device=device) for name in names]

    def as_job(run):
        return Job("advinterp.jobs:_example", dict(a=1, **run), run["name"])

    def draw(done, out):
        yield Section("Drawn", " ".join(run["name"] for run in done))

    item = item_of_runs("X.table1", "a table", runs, draw, "nothing", as_job=as_job)
    out = check_out(tmp_path)
    first, second = item.jobs()
    assert (first.label, second.label, len(item.jobs("paper"))) == ("a", "b", 3)
    assert item.sections(out) == []
    store_row(second, out, dict(sum=1), seconds=0.1)
    assert [section.text for section in item.sections(out)] == ["b"]
    assert item.sections(out, device="cuda") == []
    store_row(item.jobs("paper")[2], out, dict(sum=1), seconds=0.1)
    assert [section.text for section in item.sections(out, "paper")] == ["b c"]


def test_an_item_of_jobs_needs_no_conversion(tmp_path):
    def jobs(preset, device):
        return [Job("advinterp.jobs:_example", dict(a=a), f"sum{a}") for a in (1, 2)]

    item = item_of_runs("X.sums", "sums", jobs, lambda done, out: [done], "nothing")
    run_jobs(item.jobs()[:1], check_out(tmp_path), progress=False)
    assert job_folder(item.jobs()[0], tmp_path).exists()
    assert [[job.label for job in done] for done in item.sections(tmp_path)] == [["sum1"]]


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
