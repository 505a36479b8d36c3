"""The records of the papers' claims, and the ledger that judges them."""

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from advinterp.papers.claims import (
    claims_table,
    find_claim,
    ledger,
    quote,
    read_claims,
    reproducibility_report,
    tally,
)
from advinterp.papers.common import legend, power, read_published

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
    absent |= {("mushroom optimum", "gini"), ("spambase optimum", "gini")}  # a study of their own
    seen = {"seen_as_meaningful", "seen_as_coherent", "ssim_randomised"}
    absent |= {("photos", name) for name in seen}
    absent |= {("toy", "share")}  # pairs of penalties whose models only guess
    assert untested == absent


def test_the_study_of_tables_decides_what_the_quick_preset_leaves(ledgers):
    """Its rows join those of the quick preset, change none of its lines, and are registered."""
    study = json.loads((RESULTS / "A-tables.json").read_text())
    record = json.loads((RESULTS / study["about"]["prereg"]["file"]).read_text())
    plan = {name: record[name] for name in ("items", "runs", "claims", "rule")}
    digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
    assert digest == record["sha256"] == study["about"]["prereg"]["sha256"]
    rows = pd.DataFrame(study["rows"])
    assert set(rows.run) <= set(record["runs"]) and not rows.run.duplicated().any()
    found = ledger("A", pd.concat([kept_rows("A"), rows]))
    alone = ledgers["A"]
    is_tested = alone.difference.notna() & (alone["item"] != "A.fig3")
    columns = ["difference", "low", "high", "verdict"]
    pd.testing.assert_frame_equal(found.loc[is_tested, columns], alone.loc[is_tested, columns])
    assert "not testable here" not in set(found.verdict)
    line = find_claim(found, "natural", "adversarial", "features_with_impact", "spambase ftrl")
    counts = rows[rows.data == "spambase"].groupby("method").features_with_impact.mean()
    assert line.difference == pytest.approx(counts["natural"] - counts["adversarial"])


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


def test_test_images_only_widen(ledgers):
    """Where rates were counted on so many images, the interval gets wider, and nowhere else."""
    for paper, found in ledgers.items():
        wide = found[found.wide != ""]
        assert (wide.wide_low < wide.low).all() and (wide.wide_high > wide.high).all()
        assert (wide.images > 0).all()
        assert found.wide_low[found.wide == ""].isna().all()
        assert len(wide) > 0 or paper in "AD"  # Gini indices have no rates, toy points no sampling
    b = ledgers["B"]
    line = find_claim(b, "interp", "natural", "robust_accuracy", "cifar10")
    rates = [0.287, 0.258]  # of 500 images, as Table 2 of the results shows them
    by_images = 1.96**2 * sum(rate * (1 - rate) for rate in rates) / 500
    by_seeds = ((line.high - line.low) / 2) ** 2
    assert (line.wide_high - line.wide_low) / 2 == pytest.approx(
        (by_images + by_seeds) ** 0.5, rel=1e-2
    )
    assert (line.verdict, line.wide) == ("confirmed", "open")


def test_seeds_that_are_needed_are_enough_and_no_more(ledgers):
    needed = pd.concat(ledgers.values()).dropna(subset=["seeds_needed"])
    assert len(needed) > 50
    for line in needed.itertuples():
        n = int(line.seeds_needed)
        assert power(line.published, line.deviation, n) >= 0.8
        assert n == 2 or power(line.published, line.deviation, n - 1) < 0.8


def test_a_claim_is_found_and_quoted(ledgers):
    line = find_claim(ledgers["A"], "adversarial", "natural", "gini", "fashion_mnist")
    assert quote(line) == "+0.046 [+0.044, +0.049] (published +0.060)"
    untested = find_claim(ledgers["C"], "harmonise-5", "standard", "top10", "birds")
    assert quote(untested) == "not testable here"
    with pytest.raises(ValueError, match="7 claims are so, expected one"):
        find_claim(ledgers["A"], "adversarial", "natural", "gini")


def report(paper, found, form):
    about = json.loads((RESULTS / f"{paper}-quick.json").read_text())["about"]
    return reproducibility_report(paper, found, about, form)


def lines_of(markdown):
    rows = markdown.split("### All claims")[1].strip().splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


def test_a_report_has_each_claim_once_with_the_numbers_of_the_ledger(ledgers):
    for paper, found in ledgers.items():
        lines = lines_of(report(paper, found, "markdown"))
        assert [line[:3] for line in lines] == found[["item", "claim", "data"]].values.tolist()
        for line, row in zip(lines, found.itertuples()):
            assert line[6] == row.verdict
            if not np.isnan(row.difference):
                assert float(line[3].split()[0]) == pytest.approx(row.difference, abs=6e-4)
            ends = re.findall(r"\[(\S+),\s(\S+)\]", line[3])
            assert len(ends) == (not np.isnan(row.low))
            for shown, end in zip(ends[0] if ends else (), (row.low, row.high)):
                assert float(shown) == pytest.approx(end, abs=6e-4)


def test_a_report_counts_what_the_tally_counts(ledgers):
    for paper, found in ledgers.items():
        text = report(paper, found, "markdown")
        plain, strict = tally(found).to_dict("records")
        for word in plain:
            assert f"{plain[word]:.0f} {word}" in text
            assert f"{strict[word]:.0f} {word}" in text


def test_a_report_in_latex_is_whole_and_escaped(ledgers, tmp_path):
    for paper, found in ledgers.items():
        text = report(paper, found, "latex")
        begun = re.findall(r"\\begin\{(\w+)\}", text)
        ended = re.findall(r"\\end\{(\w+)\}", text)
        assert sorted(begun) == sorted(ended) and begun.count("longtable") == 2
        body = text.split(r"\begin{document}")[1]
        tables = re.findall(r"\\midrule\n.*?\\end\{longtable\}", body, flags=re.S)
        assert sum(line.endswith(r"\\") for line in tables[-1].splitlines()) >= len(found)
        prose = re.sub(r"\\begin\{longtable\}.*?\\end\{longtable\}", "", body, flags=re.S)
        assert not re.search(r"(?<!\\)[&%$#_^~]", prose)
        assert text.isascii() or text.encode("latin-1")  # what the declared fonts have
        file = tmp_path / f"{paper}.tex"
        file.write_text(text, encoding="utf-8")
        if shutil.which("pdflatex"):
            command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", file.name]
            subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)


def test_the_texts_of_reports_are_complete():
    texts = read_published("reports")
    parts = {"scope", "methodology", "models", "easy", "difficult", "communication"}
    of_paper = {paper: set(group.part) for paper, group in texts.groupby("paper")}
    assert of_paper == dict.fromkeys(PAPERS, parts)
    assert not texts.isna().any(axis=None)
