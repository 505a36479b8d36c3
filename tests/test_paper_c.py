"""Paper C from end to end, on tiny cells in place of every kind of image."""

from functools import partial

import numpy as np
import pytest
import torch
from fastai.vision.all import CategoryBlock, DataBlock, GrandparentSplitter, ImageBlock
from PIL import Image

from advinterp.evaluate import seed_interval
from advinterp.jobs import check_out, read_job, run_jobs, write_study
from advinterp.papers import c as paper_c
from advinterp.papers.c import items_c
from advinterp.papers.common import read_published
from advinterp.papers.reproduce import paper_ledger

TINY = dict(net="small", size=32, n_train=40, n_test=40, epochs=1, bs=20)
MANY = dict(n=4, copies=4, steps=3, radii=[0.1, 0.2], patch=4, aopc=[5, 10, 20], soft=True)
RETRAIN = dict(n=40, epochs=1, lr=1e-3, bs=20, fractions=[0.5])


def replace_presets(patch):
    """The quick preset at a scale of seconds."""
    cells = {**paper_c._scale["quick"]["cells"], **TINY}
    patch.setitem(paper_c._scale["quick"], "cells", cells)
    patch.setitem(paper_c._kinds, "quick", dict.fromkeys(("photos", "cells", "maps"), "cells"))
    patch.setitem(paper_c._retrain, "quick", RETRAIN)
    patch.setitem(paper_c._many, "quick", MANY)
    quick_look = partial(paper_c.feature_visualization, steps=2)
    patch.setattr(paper_c, "feature_visualization", quick_look)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The items, and a folder with all runs that figures and claims of one seed need."""
    with pytest.MonkeyPatch.context() as patch:
        replace_presets(patch)
        out = check_out(tmp_path_factory.mktemp("c"))
        items = {item.name: item for item in items_c()}
        wanted = items["C.fig13"].jobs("quick")[:4]
        for name in ("C.fig5", "C.table5", "C.fig9", "C.table2"):
            wanted += items[name].jobs("quick")
        states = run_jobs(wanted, out, progress=False)
        errors = [path.read_text() for path in (out / "failed").glob("*")]
        assert set(states.values()) == {"done"}, errors
        yield items, out, {name: item.sections(out) for name, item in items.items()}


def rows_of(item, out, **which):
    """The rows of the jobs of an item with these settings, seed by seed."""
    jobs = [job for job in item.jobs("quick") if which.items() <= job.settings.items()]
    jobs.sort(key=lambda job: job.settings["seed"])
    return [read_job(job, out)["row"] for job in jobs]


def every_section(shown):
    return [section for sections in shown.values() for section in sections]


def test_every_item_is_shown(study):
    _, _, shown = study
    empty = {name for name, sections in shown.items() if not sections}
    assert empty == {"C.table4_pretrained"}  # its weights come with the development packages
    for section in every_section(shown):
        assert section.title and section.text


def test_every_figure_is_drawn_once_and_described(study):
    _, _, shown = study
    numbers = set(range(1, 17)) - {5}
    expected = {f"C_fig{number}" for number in numbers} | {"C_fig5_overlap", "C_fig5_ssim"}
    figures = [figure for section in every_section(shown) for figure in section.figures.items()]
    assert sorted(name for name, _ in figures) == sorted(expected)
    for name, (_, alt) in figures:
        assert len(alt) > 20, name


def test_table_3_holds_means_and_published_values(study):
    items, out, shown = study
    table = shown["C.table3"][0].table.set_index("training")
    rows = rows_of(items["C.table3"], out, norm=None)
    mean = 100 * np.mean([row["gini"] for row in rows])
    assert table.loc["standard", "Gini"].startswith(f"{mean:.2f} ±")
    published = ["DiffROAR, paper", "Gini, paper", "accuracy, paper"]
    assert table.loc["L1 0.05", published].tolist() == ["2.12", "62.04", "84.13"]


@pytest.mark.parametrize("name", ["c_table2", "c_table3", "c_table4", "c_table6"])
def test_published_strengths_are_those_of_the_paper_preset(name):
    """Every row of a published table has its runs, no strength twice."""
    item = next(item for item in items_c() if item.name == f"C.{name[2:]}")
    published = read_published(name)
    jobs = item.jobs("paper", "cuda")
    is_control = [job.settings["protocol"] == "wrong_maps" for job in jobs]
    runs = {job.name for job, control in zip(jobs, is_control) if not control}
    assert len(runs) == 3 * len(published)
    assert {float(np.max(job.settings["eps"])) for job in jobs} == {
        float(np.nanmax([row.eps, getattr(row, "eps2", np.nan)])) for row in published.itertuples()
    }


def test_strengths_are_read_to_the_last_digit():
    """They decide the names of the runs."""
    assert read_published("c_table3").eps.tolist()[1:4] == [0.01, 0.05, 0.1]


def test_claims_are_differences_seed_by_seed(study):
    items, out, _ = study
    agreement_job = items["C.fig5"].jobs("quick")[-1]
    write_study(out, [*items["C.table2"].jobs("quick"), agreement_job])
    claims = paper_ledger("C", out).set_index("claim")
    claim = claims.loc["Binary recall rises under the L1 norm"]
    better = rows_of(items["C.table2"], out, norm="l1")
    worse = rows_of(items["C.table2"], out, norm=None, protocol="fast")
    differences = [a["binary_recall"] - b["binary_recall"] for a, b in zip(better, worse)]
    assert claim.runs == len(differences) == 3
    assert claim.difference == pytest.approx(np.mean(differences))
    assert (claim.low, claim.high) == pytest.approx(seed_interval(differences))
    # image by image, of one comparison of trainings
    agreement = read_job(agreement_job, out)["row"]
    claim = claims.loc[
        "Maps agree more between seeds under the L1 norm than after standard training"
    ]
    gain = np.subtract(agreement["l1"]["dice"], agreement["standard"]["dice"])
    assert (claim.runs, claim.difference) == (4, pytest.approx(gain.mean()))


def test_drop_of_fidelity_is_against_the_map_before(study):
    items, out, shown = study
    table = shown["C.table5"][0].table.set_index("map")
    rows = [row["aopc"] for row in rows_of(items["C.table5"], out) if "aopc" in row]
    drops = [100 * (1 - aopc["sparse_MoreauGrad"][1] / aopc["SmoothGrad"][1]) for aopc in rows]
    shown_drop = float(table.loc["sparse MoreauGrad", "drop (10)"].split(" ±")[0])
    assert shown_drop == pytest.approx(np.mean(drops), abs=0.01)
    assert table.loc["sparse MoreauGrad", "drop (10), paper"] == "32.32"


def test_stability_is_a_share_for_each_image(study):
    items, out, _ = study
    job = items["C.fig5"].jobs("quick")[-1]
    for agreement in read_job(job, out)["row"].values():
        dice = np.array(agreement["dice"])
        assert dice.shape == (4,)
        assert ((dice >= 0) & (dice <= 1)).all()


def test_post_processing_takes_the_numbers_of_its_preset(monkeypatch):
    """Figure 14 of the paper preset has the copies and steps of that preset."""
    asked = []

    def remembered(model, x, y, **how):
        asked.append(how)
        return torch.rand_like(x)

    for name in ("saliency", "smoothgrad", "sparsified_smoothgrad", "moreau_grad"):
        monkeypatch.setattr(paper_c, name, remembered)
    maps = paper_c._post_maps({"standard": None}, torch.rand(2, 3, 4, 4), None, "paper")
    assert len(maps) == 4
    assert {how["n_samples"] for how in asked if how} == {64, 16}
    assert {how["steps"] for how in asked if "steps" in how} == {300}


def test_models_are_loaded_or_trained_again(study, tmp_path):
    """A job of several models gives the same whether it finds their runs or not."""
    items, out, _ = study
    which = dict(norm="l1", eps=0.05, seed=0)
    jobs = items["C.fig5"].jobs("quick")
    job = next(job for job in jobs if which.items() <= job.settings.items())
    x = torch.rand(3, 3, 32, 32)
    stored = paper_c._trained(job, out / "runs")
    fresh = paper_c._trained(job, tmp_path)
    assert torch.equal(stored(x), fresh(x))


def test_old_names_say_the_new_ones():
    with pytest.warns(FutureWarning, match="run_c is now advinterp.papers.c._run"):
        assert paper_c.run_c is paper_c._run


# ---------------------------------------------------------------- photos in folders


@pytest.fixture
def photo_folder(tmp_path, monkeypatch):
    """Forty training photos of two classes in place of Imagenette; each has a grey of its own."""
    for i in range(50):
        part = "train" if i < 40 else "val"
        folder = tmp_path / part / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (i, i, i)).save(folder / f"{i:02d}.png")
    block = DataBlock(
        (ImageBlock, CategoryBlock),
        get_items=lambda folder: sorted(folder.rglob("*.png")),
        get_y=lambda file: file.parent.name,
        splitter=GrandparentSplitter("train", "val"),
    )

    def loaders(name, after_batch, size, bs, device):
        return block.dataloaders(tmp_path, bs=bs, device=device, num_workers=0)

    monkeypatch.setattr(paper_c, "get_data", loaders)


def trained_photos(labels, seed):
    """Which photos a run of the paper preset is trained on, with their labels."""
    changes = dict(labels=labels, seed=seed, n_train=30, bs=10)
    settings = paper_c._run("photos", preset="paper").settings | changes
    train = paper_c._loaders(settings).train
    return {round(float(x.mean() * 255)): int(y) for x, y in train.new(shuffle=False, bs=1)}


def test_photos_are_exchanged_and_their_labels_permuted(photo_folder):
    true, other, permuted = (
        trained_photos(*which) for which in (("true", 0), ("true", 1), ("permuted", 0))
    )
    assert len(true) == len(other) == 30
    kept = [*range(0, 40, 2), *range(1, 20, 2)]  # the first 30 files: all of class a, half of b
    assert len(true.keys() - set(kept)) == len(other.keys() - set(kept)) == 3  # 10.6 %
    assert true.keys() != other.keys()
    assert all(label == photo % 2 for photo, label in true.items())
    assert permuted.keys() == true.keys() and permuted != true
    assert sorted(permuted.values()) == sorted(true.values())
