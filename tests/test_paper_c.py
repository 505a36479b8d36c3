"Paper C from end to end on tiny cells in place of every kind of image: all jobs, every table and figure, claims, and their published neighbours."

import numpy as np
import pandas as pd
import pytest
import torch

from advinterp.jobs import check_out, job_folder, read_job, run_jobs
from advinterp.papers import c as paper_c
from advinterp.papers.c import items_c, run_c

TINY = dict(net="small", size=32, n_train=40, n_test=40, epochs=1, bs=20)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    "The items, and a folder with all runs that figures and claims of one seed need."
    with pytest.MonkeyPatch.context() as m:
        quick = paper_c._scale["quick"]["cells"]
        m.setitem(paper_c._scale["quick"], "cells", {**quick, **TINY})
        m.setitem(paper_c._kinds, "quick", dict(photos="cells", cells="cells", maps="cells"))
        m.setitem(paper_c._retrain, "quick", dict(n=40, epochs=1, lr=1e-3, bs=20, fractions=[0.5]))
        m.setitem(
            paper_c._many,
            "quick",
            dict(n=4, copies=4, steps=3, radii=[0.1, 0.2], patch=4, aopc=[5, 10, 20], soft=True),
        )
        out, items = check_out(tmp_path_factory.mktemp("c")), {i.name: i for i in items_c()}
        wanted = [
            j for n in ("C.fig5", "C.table5", "C.fig9", "C.table2") for j in items[n].jobs("quick")
        ] + items["C.fig13"].jobs("quick")[:4]
        states = run_jobs(wanted, out, progress=False)
        assert set(states.values()) == {"done"}, [f.read_text() for f in (out / "failed").glob("*")]
        yield items, out, {n: i.sections(out) for n, i in items.items()}


def test_every_item_is_shown(study):
    items, out, shown = study
    assert {n for n, s in shown.items() if not s} == {
        "C.table4_pretrained"
    }  # needs weights that only the development packages bring
    assert all(s.title and s.text for ss in shown.values() for s in ss)
    names = [f for ss in shown.values() for s in ss for f in s.figures]
    assert len(names) == len(set(names)) and {
        f"C_fig{i}" for i in (1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16)
    } | {"C_fig5_overlap", "C_fig5_ssim"} == set(names)
    assert all(len(alt) > 20 for ss in shown.values() for s in ss for _, alt in s.figures.values())


def test_table_3_holds_means_and_published_values(study):
    _, out, shown = study
    t = shown["C.table3"][0].table.set_index("training")
    rows = [read_job(run_c("photos", seed=s), out)["row"] for s in range(3)]
    assert t.loc["standard", "Gini"].startswith(f"{100 * np.mean([r['gini'] for r in rows]):.2f} ±")
    assert (
        t.loc["L1 0.05", ["DiffROAR, paper", "Gini, paper", "accuracy, paper"]]
        == ["2.12", "62.04", "84.13"]
    ).all()


def test_claims_are_differences_seed_by_seed(study):
    _, out, shown = study
    c = paper_c.claims_c(paper_c._claims2, "cells", out).set_index("claim")
    a, b = (
        [read_job(run_c("cells", *how, seed=s), out)["row"]["binary_recall"] for s in range(3)]
        for how in (("l1", 0.05), (None, 0.0))
    )
    row = c.loc["Binary recall rises under the L1 norm"]
    assert (
        row.difference == pytest.approx(np.mean(np.subtract(a, b)))
        and row.low <= row.difference <= row.high
    )


def test_fidelity_and_stability(study):
    _, out, shown = study
    t = shown["C.table5"][0].table.set_index("map")
    r = [read_job(paper_c._faithful_job(s, "quick", "cpu"), out)["row"]["aopc"] for s in range(3)]
    drops = [100 * (1 - v["sparse_MoreauGrad"][1] / v["SmoothGrad"][1]) for v in r]
    assert float(t.loc["sparse MoreauGrad", "drop (10)"].split(" ±")[0]) == pytest.approx(
        np.mean(drops), abs=0.01
    )
    stable = read_job(paper_c._stable_job("quick", "cpu"), out)["row"]
    assert {len(v["dice"]) for v in stable.values()} == {4} and all(
        0 <= x <= 1 for v in stable.values() for x in v["dice"]
    )


def test_models_are_loaded_or_trained_again(study, tmp_path):
    "A job of several models gives the same whether it finds their runs or not."
    _, out, _ = study
    job = run_c("photos", "l1", 0.05)
    x = torch.rand(3, 3, 32, 32)
    stored, fresh = paper_c.trained_c(job, out / "runs"), paper_c.trained_c(job, tmp_path)
    assert torch.equal(stored(x), fresh(x))
