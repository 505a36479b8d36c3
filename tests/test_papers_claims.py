"""The records of the papers' claims, and the ledger that judges them."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from advinterp.papers.claims import claims_table, ledger, read_claims, tally
from advinterp.papers.common import legend

RESULTS = Path(__file__).parents[1] / "nbs/repro/results"
PAPERS = "ABCD"


def kept_rows(paper):
    return pd.DataFrame(json.loads((RESULTS / f"{paper}-quick.json").read_text())["rows"])


@pytest.fixture(scope="module")
def ledgers():
    return {paper: ledger(paper, kept_rows(paper)) for paper in PAPERS}


def test_every_record_is_complete_and_stands_once():
    claims = read_claims()
    compared = ["data", "better", "worse", "measure"]
    assert not claims[claims.data != ""].duplicated(compared).any()
    assert set(claims.status) == {"claim", "twin", "exploratory", "control"}
    of_papers = claims.status.isin(["claim", "twin"])
    assert claims["where"][of_papers].notna().all()  # what a paper says, it says somewhere
    assert not claims[["item", "claim", "better", "worse", "measure"]].isna().any(axis=None)
    assert claims.claim.str.len().max() < 130


def test_no_record_is_misspelt(ledgers):
    """What no kept row can test lacks its data, as the record says; nothing else is missing."""
    untested = {
        (line.data, line.measure)
        for found in ledgers.values()
        for line in found.itertuples()
        if line.verdict == "not testable here"
    }
    tables = {"mushroom ftrl", "spambase ftrl"}
    absent = {(name, "features_with_impact") for name in tables}
    absent |= {(name, "ig_shap_agreement") for name in tables}
    absent |= {("birds", "top10"), ("birds", "top5")}
    assert untested == absent


def test_published_differences_carry_their_claims(ledgers):
    for paper in "ABC":
        published = ledgers[paper].published
        assert published.notna().sum() > 10, paper
        assert not (published < 0).any(), paper


def test_published_differences_are_those_of_the_tables(ledgers):
    b = ledgers["B"].set_index(["data", "better", "worse"]).published
    assert b["mnist", "interp", "jacobian"] == pytest.approx(0.0231)
    c = ledgers["C"].set_index(["better", "worse", "measure"]).published
    assert c["l1-0.1", "group-1", "gini"] == pytest.approx(0.6553 - 0.5270)
    assert c["standard", "l1-0.05", "band_fpr"] == pytest.approx(0.0121 - 0.0076)
    of_birds = ledgers["C"][ledgers["C"].data == "birds"].set_index(["better", "worse", "measure"])
    published = of_birds.published["harmonise-5", "l2-5", "top10"]
    assert published == pytest.approx(0.5260 - 0.3984)


def test_only_claims_of_a_paper_are_its_family(ledgers):
    """Twins and what no paper says neither have an adjusted p nor raise that of others."""
    for found in ledgers.values():
        counts = found.status == "claim"
        assert found.p_holm[~counts].isna().all()
        assert set(found.holm[~counts]) <= {""}
        smallest = found[counts].sort_values("p").iloc[0]
        assert smallest.p_holm == pytest.approx(min(1, smallest.p * found.p[counts].notna().sum()))


def test_holm_only_takes_away(ledgers):
    for paper, found in ledgers.items():
        claims = found[found.status == "claim"]
        changed = claims[claims.holm != claims.verdict]
        assert set(changed.holm) <= {"open"}
        assert set(changed.verdict) <= {"confirmed", "contradicted"}
        by_interval, after = tally(found).to_numpy()
        assert by_interval.sum() == after.sum() == len(claims), paper


def test_the_rows_say_what_they_said(ledgers):
    """Figures of an independent look at the same rows."""
    a = ledgers["A"].set_index(["data", "better", "worse", "measure"])
    mnist = a.loc[("mnist", "adversarial", "natural", "gini")]
    assert (mnist.low, mnist.high) == pytest.approx((-0.023, 0.082), abs=5e-4)
    assert mnist.verdict == "open"
    mushroom = a.loc[("mushroom ftrl", "adversarial", "l1", "gini")]
    ends = (mushroom.difference, mushroom.low, mushroom.high)
    assert ends == pytest.approx((-0.0025, -0.0027, -0.0024), abs=1e-4)
    d = ledgers["D"].set_index(["better", "worse", "measure"])
    l1 = d.loc[("l1 gradient", "standard", "auc")]
    assert (l1.difference, l1.low, l1.high) == pytest.approx((0.103, 0.084, 0.122), abs=5e-4)
    c = ledgers["C"].set_index(["better", "worse", "measure"])
    l2 = c.loc[("harmonise-5", "l2-5", "top10")]
    assert l2[l2.data == "masks"].difference.item() == pytest.approx(0.016, abs=5e-4)


def test_a_ledger_is_shown_with_one_vocabulary(ledgers):
    for found in ledgers.values():
        table = claims_table(found)
        assert len(table) == len(found)
        words = {f"*{word}*" for word in set(table.verdict)}
        assert all(word in legend() for word in words)
        for shown, line in zip(table["detectable at 80 %"], found.itertuples()):
            is_open = "open" in (line.verdict, line.holm)
            assert bool(shown) == is_open


def test_rows_of_one_seed_decide_nothing():
    for paper in PAPERS:
        rows = kept_rows(paper)
        is_of_images = rows.run.str.startswith("stability")  # these compare images, not seeds
        found = ledger(paper, rows[(rows.seed == 0) & ~is_of_images])
        assert set(found.verdict) <= {"no interval", "not testable here"}, paper
        assert np.isnan(found.p_holm).all()
