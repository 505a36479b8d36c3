"""Reproductions: published settings, presets that run, kept results, refusals before anything."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

import advinterp
from advinterp import data
from advinterp.cli import main
from advinterp.jobs import (
    Job,
    check_out,
    read_job,
    read_study,
    run_job,
    run_jobs,
    store_row,
    write_study,
)
from advinterp.models import madry_cnn, photo_resnet34
from advinterp.papers import a as paper_a
from advinterp.papers import c as paper_c
from advinterp.papers import reproduce as reproductions
from advinterp.papers.common import Item
from advinterp.papers.reproduce import (
    about_kept,
    find_items,
    freeze,
    items,
    read_kept,
    reproduce,
    show_kept,
)
from advinterp.report import Section

RESULTS = Path(__file__).parent.parent / "nbs" / "repro" / "results"
KEPT = sorted(RESULTS.glob("*-quick.json"))
PAPERS = sorted({item.name[0] for item in items()})

SHORT = dict(  # what makes a run long
    n_train=4,
    n_test=4,
    epochs=1,
    adv_epochs=1,
    clean_epochs=0,
    n_explain=2,
    ig_steps=2,
    test_steps=1,
    n=2,
    device="cpu",
)
SHORT_OF = dict(
    A=SHORT,
    B=SHORT,
    C=dict(SHORT, size=64, fractions=[0.5], seeds=[0]),
    D=dict(SHORT, n_train=64, n_test=16, roar_epochs=1),
)

# ---------------------------------------------------------------- jobs that are short


def shortened(value, short):
    """Settings with the sizes and lengths of `short`, everything else as published."""
    if not isinstance(value, dict):
        return value
    return {name: short.get(name, shortened(part, short)) for name, part in value.items()}


def short_job(job, short):
    return Job(job.func, shortened(job.settings, short), job.label)


def kind_of(value):
    """Settings without their numbers: those of one kind run the same code."""
    if isinstance(value, dict):
        return {name: kind_of(part) for name, part in value.items()}
    is_number = not isinstance(value, (str, bool, type(None)))
    return 0 if is_number else value


def kinds(paper):
    """One job of each kind among the paper presets.

    Of papers C and D, whose own tests run every method, one that trains for each function and
    data set.
    """
    found = {}
    for item in items():
        for job in item.jobs("paper", "cuda") if item.name[0] == paper else ():
            if paper in "AB":
                found.setdefault(json.dumps([job.func, kind_of(job.settings)]), job)
            elif "epochs" in job.settings:
                found.setdefault((job.func, job.settings["data"]), job)
    return list(found.values())


def is_here(name):
    return next(row["where"] for row in data.data_table() if row["name"] == name)


real_data = data.get_data


def few(name, *, bs, n_train=None, n_valid=None, seed=0, device="cpu", **kwargs):
    """A few examples of a data set; random ones of its shape where it is not here."""
    n_train = n_train or 4
    if name == "block_mnist" and not is_here("mnist"):
        name = "block_digits"  # it is made of MNIST
    if is_here(name):
        how = dict(bs=bs, n_train=n_train, n_valid=n_valid or 4, seed=seed, device=device)
        return real_data(name, **how, **kwargs)
    shapes = dict(mushroom=(117,), spambase=(57,), cifar10=(3, 32, 32))
    shape = shapes.get(name, (1, 28, 28))
    n_classes = 2 if len(shape) == 1 else 10
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n_train + 4, *shape, generator=generator)
    y = torch.arange(n_train + 4) % n_classes
    train, valid = slice(n_train), slice(n_train, None)
    vocab = [str(label) for label in range(n_classes)]
    return data.tensor_dls(x[train], y[train], x[valid], y[valid], bs, vocab=vocab, device=device)


def photos(settings):
    """Random photos, with maps, in place of those of paper C."""
    size = settings["size"]
    x = torch.rand(8, 3, size, size)
    maps = torch.rand(8, size, size)
    y = torch.arange(8) % 2
    with_maps = dict(maps=maps[:4], maps_valid=maps[4:])
    return data.tensor_dls(
        x[:4],
        y[:4],
        x[4:],
        y[4:],
        settings["bs"],
        vocab=[str(label) for label in range(10)],
        device=settings["device"],
        **({} if settings["data"] == "imagenette" else with_maps),
    )


def run_to_the_end(job, out):
    """The row of a job; its traceback where it fails."""
    state = run_job(job, out)
    failed = out / "failed" / f"{job.name}.json"
    assert state == "done", json.loads(failed.read_text())["traceback"]
    return read_job(job, out)["row"]


# ---------------------------------------------------------------- published settings


def settings_of(name, **which):
    """The settings of the runs of an item at the paper preset."""
    (item,) = find_items(name)
    found = [job.settings for job in item.jobs("paper", "cuda")]
    return [
        settings
        for settings in found
        if all((settings.get(k) or settings["recipe"].get(k)) == v for k, v in which.items())
    ]


PUBLISHED_A = dict(
    mushroom=dict(
        model="one_layer",
        optimiser="ftrl",
        lr=0.01,
        bs=32,
        epochs=30,
        split="code",
        eps=0.1,
        lam=0.02,
    ),
    mnist=dict(
        model="madry_cnn",
        optimiser="adam",
        lr=1e-4,
        bs=50,
        eps=0.3,
        steps=40,
        step_size=0.01,
        lam=0.01,
        lam_sum=True,
        lam_bias=True,
    ),
    fashion_mnist=dict(eps=0.1, steps=20, lam=0.01),
    cifar10=dict(
        model="wide_resnet",
        optimiser="sgd",
        lr=0.1,
        bs=128,
        wd=2e-4,
        eps=1 / 255,
        steps=2,
        step_size=1 / 255,
        lam=1e-5,
        lam_sum=False,
        pad=2,
    ),
)


@pytest.mark.parametrize("name", PUBLISHED_A)
def test_paper_a_is_as_published(name):
    recipe = settings_of("A.table1", data=name)[0]["recipe"]
    published = PUBLISHED_A[name]
    assert {field: recipe[field] for field in published} == published
    if name != "mushroom":
        n_train = None if name == "cifar10" else 50_000  # of the 60,000
        whole = dict(ramp=0, n_train=n_train, n_explain=10_000, fast=False)
        assert {field: recipe[field] for field in whole} == whole


@pytest.mark.parametrize(
    "name,n_images,steps,adv_steps",
    [("mnist", 50_000, 25_000, 100_000), ("cifar10", 50_000, 70_001, 70_001)],
)
def test_paper_a_trains_for_the_published_steps(name, n_images, steps, adv_steps):
    recipe = settings_of("A.table1", data=name)[0]["recipe"]
    assert recipe["epochs"] * n_images // recipe["bs"] == pytest.approx(steps, rel=0.01)
    assert recipe["adv_epochs"] * n_images // recipe["bs"] == pytest.approx(adv_steps, rel=0.01)


def test_paper_b_is_as_published():
    common = dict(n_train=None, n_test=10_000, steps=40, lr=0.01, fast=False)
    mnist = dict(common, eps=1.5, bs=64, step_size=0.5)
    cifar = dict(common, eps=80 / 255, bs=100, step_size=0.04, net="noack_cnn")
    of_mnist, of_cifar = settings_of("B.table1"), settings_of("B.table2")
    for settings in of_mnist:
        assert mnist.items() <= settings.items()
        assert "weights" not in settings  # the defaults, see below
    for settings in of_cifar:
        assert cifar.items() <= settings.items()
        assert settings["weights"]["interp"] == 0.025
    for settings in of_mnist + of_cifar:  # a tenth every 10 epochs
        assert [round(drop * settings["epochs"], 9) for drop in settings["drops"]] == [10, 20]
    assert {settings["seed"] for settings in of_mnist} == set(range(5))
    of_both = {settings["method"] for settings in of_cifar}
    only_mnist = {settings["method"] for settings in of_mnist} - of_both
    assert only_mnist == {"interp_permuted", "interp_natural"}


def test_paper_b_weighs_its_penalties_as_published():
    from advinterp.papers.b import _defaults

    weights = _defaults["weights"]
    published = dict(interp=0.07, interp_permuted=0.05, interp_natural=0.33)
    assert published.items() <= weights.items()


# ---------------------------------------------------------------- paper presets


@pytest.mark.parametrize("paper", PAPERS)
def test_paper_presets_run(paper, tmp_path, monkeypatch):
    """Every kind of job, on a few examples: the published net, batch, attack and penalty."""
    for module in ("study", *(f"papers.{name.lower()}" for name in PAPERS)):
        monkeypatch.setattr(f"advinterp.{module}.get_data", few)
    # of the scorecard: two times three models
    monkeypatch.setattr(paper_a, "_trained", lambda run, folder: madry_cnn())
    monkeypatch.setattr(paper_c, "_loaders", photos)
    # weights that would be fetched
    monkeypatch.setattr(
        paper_c, "photo_resnet34", lambda n_out, pretrained=False: photo_resnet34(n_out)
    )
    jobs = kinds(paper)
    out = check_out(tmp_path)
    assert len(jobs) > 2
    for job in jobs:
        row = run_to_the_end(short_job(job, SHORT_OF[paper]), out)
        numbers = [value for value in row.values() if isinstance(value, float)]
        assert row and not any(value != value for value in numbers), (job.label, row)


def test_paper_presets_of_several_models_run(tmp_path, monkeypatch):
    """Robustness, fidelity and stability of paper C, with the published nets and regions.

    Untrained, one image, few copies and steps.
    """

    def untrained(settings):
        return SimpleNamespace(model=paper_c._net(settings, 10))

    monkeypatch.setattr(paper_c, "_loaders", photos)
    monkeypatch.setattr(paper_c, "_fit", untrained)
    monkeypatch.setattr(paper_c, "map_robustness", partial(paper_c.map_robustness, steps=2))
    jobs = {}
    for name in ("C.fig5", "C.table5"):
        for job in find_items(name)[0].jobs("paper", "cuda"):
            if "epochs" not in job.settings:
                jobs[job.func.split(":")[1]] = job
    assert set(jobs) == {"robust_c", "faithful_c", "stable_c"}
    for job in jobs.values():
        assert job.settings["n"] >= 500
        assert (job.settings["copies"], job.settings["steps"]) == (64, 300)
    less = dict(n=1, copies=4, steps=3, radii=[0.5], aopc=[2], device="cpu")
    out = check_out(tmp_path)
    rows = {name: run_to_the_end(short_job(job, less), out) for name, job in jobs.items()}
    curves = rows["robust_c"]["curves"]
    assert len(curves) == 7
    for curve in curves.values():
        assert all(0 <= value <= 1 for value in curve["overlap"])


# ---------------------------------------------------------------- kept results


def names_of_runs(item):
    """Those of the quick preset, without the scorecard's: its row is a table."""
    jobs = item.jobs("quick", "cpu")
    return {job.name for job in jobs if job.func != "advinterp.papers.a:score"}


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_minutes_are_those_of_the_kept_results(path):
    """Half the time of the runs that an item needs.

    An item that misses a run is said not to have been run to the end.
    """
    kept = json.loads(path.read_text())
    if kept["about"]["version"] != advinterp.__version__:
        pytest.skip(f"results of version {kept['about']['version']}: runs have other names now")
    seconds = {row["run"]: row["seconds"] for row in kept["rows"]}
    shown = {section["item"] for section in kept["sections"]}
    for item in find_items(path.stem.split("-")[0]):
        names = names_of_runs(item)
        is_complete = names <= seconds.keys() and item.name in shown
        if item.minutes is None:
            # a figure may lack the weights of its runs
            assert not is_complete or ".fig" in item.name, item.name
            continue
        assert is_complete, item.name
        minutes = sum(seconds[name] for name in names) / 120
        slack = 1 if len(names) == len(item.jobs("quick", "cpu")) else 10
        assert minutes - 1 <= item.minutes <= minutes + slack, (item.name, minutes)


SUMS = [Job("advinterp.jobs:_example", dict(a=a), f"sum{a}") for a in (1, 2)]


def draw_sums(out, preset="quick", device="cpu"):
    from matplotlib.figure import Figure

    done = [job for job in SUMS if (out / "runs" / job.name).exists()]
    table = pd.DataFrame([read_job(job, out)["row"] for job in done]).assign(missing=float("nan"))
    fig = Figure(figsize=(1, 1))
    fig.subplots().plot(table["sum"])
    return [Section("Sums", "Two of them.", table, dict(X_fig1=(fig, "A line through the sums")))]


@pytest.fixture
def sums(tmp_path, monkeypatch):
    """A paper of one item, and a study in which some of its jobs are done."""
    item = Item("X.sums", "sums", lambda preset, device="cpu": SUMS, draw_sums, "nothing")
    monkeypatch.setattr(reproductions, "items", lambda: [item])
    monkeypatch.setitem(reproductions._papers, "X", "Nobody, On Sums")

    def study(name, jobs):
        out = check_out(tmp_path / name)
        write_study(out, SUMS)
        run_jobs(jobs, out, progress=False)
        return out

    return study


def test_what_is_frozen_is_read_again(sums, tmp_path):
    path = freeze("X", sums("all", SUMS), tmp_path / "kept")
    kept = read_kept(path)
    assert path.name == "X-quick.json"
    assert [row["sum"] for row in kept["rows"]] == [1, 2]
    assert [row["run"] for row in kept["rows"]] == [job.name for job in SUMS]
    (section,) = kept["sections"]
    assert section["table"] == dict(columns=["sum", "missing"], rows=[[1, None], [2, None]])
    assert section["figures"] == {"X_fig1": "A line through the sums"}
    assert (path.parent / "X_fig1.png").read_bytes().startswith(b"\x89PNG")
    assert section["text"] == "Two of them. Scaled down: nothing."


def test_what_is_not_as_published_is_said(sums, tmp_path, monkeypatch):
    noted = Item(
        "X.sums", "sums", lambda *_: SUMS, draw_sums, "", gpu_hours="1", note="there are two"
    )
    monkeypatch.setattr(reproductions, "items", lambda: [noted])
    study = sums("all", SUMS)
    texts = {
        preset: reproductions.paper_sections("X", study, preset)[0][1].text
        for preset in ("quick", "paper")
    }
    assert texts["paper"].endswith("Not as published: there are two.")
    assert "published" not in texts["quick"]


def test_rows_of_older_code_are_named():
    """The rows of the cells lack what a run on cells now stores, and the results say so."""
    kept = read_kept(RESULTS / "C-quick.json")
    lacking = [row["run"] for row in kept["rows"] if row["data"] == "cells" and not row.get("top5")]
    assert kept["about"]["older"] == lacking and len(lacking) == 15
    assert "15 rows of the cells were made by code" in about_kept(RESULTS / "C-quick.json")


def test_what_is_kept_is_shown_and_described(sums, tmp_path):
    path = freeze("X", sums("all", SUMS), tmp_path / "kept")
    shown = show_kept(path, "X.sums")
    title, *table, figure = shown.split("\n\n")
    assert title.startswith("**Sums.** Two of them.")
    cells = [cell.strip() for cell in table[0].splitlines()[-1].strip("|").split("|")]
    assert cells == ["2", ""]
    assert figure == f"![A line through the sums]({path.parent.as_posix()}/X_fig1.png)"
    assert about_kept(path).startswith("`advinterp reproduce X --preset quick` at commit")
    assert ": 2 runs, " in about_kept(path)
    with pytest.raises(ValueError, match=r"item='X\.fig1': not among the kept results"):
        show_kept(path, "X.fig1")


def test_minutes_are_sixty_seconds(sums, tmp_path):
    out = sums("none", [])
    for job in SUMS:
        store_row(job, out, dict(sum=0), seconds=90)
    assert read_kept(freeze("X", out, tmp_path / "kept"))["about"]["run_minutes"] == 3


def test_runs_of_an_earlier_command_stay_in_the_study(sums, tmp_path, monkeypatch):
    one, other = (replace(SUMS[i], label=f"item{i}") for i in range(2))
    items = [
        Item(
            f"X.{job.label}", job.label, lambda preset, device="cpu", job=job: [job], draw_none, ""
        )
        for job in (one, other)
    ]
    monkeypatch.setattr(reproductions, "items", lambda: items)
    monkeypatch.setattr(reproductions, "_check", lambda *arguments: None)  # the sums have no data
    for item in items:
        reproduce(item.name, out=tmp_path, device="cpu", n_jobs=1, progress=False)
    names = [job.name for job in read_study(tmp_path / "X-quick")["jobs"]]
    assert names == [one.name, other.name]


def draw_none(out, preset="quick", device="cpu"):
    return []


def test_missing_runs_are_taken_from_earlier_results(sums, tmp_path):
    """The union of two halves says what a whole study says, and how much of it was taken over."""
    whole = read_kept(freeze("X", sums("all", SUMS), tmp_path / "whole"))
    first = freeze("X", sums("first", SUMS[:1]), tmp_path / "first_kept")
    (of_first,) = read_kept(first)["sections"]
    assert of_first["text"].endswith("Incomplete: 1 of 2 runs are done.")
    union = freeze("X", sums("second", SUMS[1:]), tmp_path / "union", keep=first)
    assert read_kept(union)["sections"] == whole["sections"]
    assert [row["sum"] for row in read_kept(union)["rows"]] == [1, 2]
    assert "; 1 of the rows are taken over from the results of commit" in about_kept(union)


def test_an_item_without_new_runs_stays_as_it_was(sums, tmp_path):
    earlier = freeze("X", sums("all", SUMS), tmp_path / "earlier")
    kept = read_kept(earlier)
    kept["sections"][0]["text"] = "As it was."
    earlier.write_text(json.dumps(kept))
    again = freeze("X", sums("second", SUMS[1:]), tmp_path / "again", keep=earlier)
    assert [section["text"] for section in read_kept(again)["sections"]] == ["As it was."]
    picture = (tmp_path / "earlier" / "X_fig1.png").read_bytes()
    assert (tmp_path / "again" / "X_fig1.png").read_bytes() == picture


def test_results_of_another_version_do_not_mix(sums, tmp_path):
    earlier = freeze("X", sums("all", SUMS), tmp_path / "kept")
    kept = read_kept(earlier)
    kept["about"]["version"] = "0.0.1"
    earlier.write_text(json.dumps(kept))
    half = sums("half", SUMS[:1])
    with pytest.raises(ValueError, match=r"was made by advinterp 0\.0\.1.*do not mix"):
        freeze("X", half, tmp_path / "none", keep=earlier)
    assert not (tmp_path / "none").exists()


def test_only_results_that_are_there_are_read(tmp_path):
    with pytest.raises(ValueError, match="no kept results here"):
        read_kept(tmp_path / "A-quick.json")


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_kept_results_are_those_of_the_items(path):
    """Every section belongs to an item, has its figures beside it, and is shown."""
    known = {item.name for item in find_items(path.stem.split("-")[0])}
    for section in read_kept(path)["sections"]:
        assert section["item"] in known
        assert section["title"] in show_kept(path, section["item"])
        for figure in section["figures"]:
            assert (path.parent / f"{figure}.png").exists(), figure


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "name, word",
    [
        ("A.tabel1", "figure; did you mean A.table1"),
        ("b.table2", r"B\.table2"),
        ("B.tabel3", r"B\.table3"),
        ("E", "figure; `advinterp reproduce --list` shows all"),
        ("", "--list"),
    ],
)
def test_unknown_names_suggest_the_nearest(name, word, tmp_path):
    with pytest.raises(ValueError, match=word):
        reproduce(name, out=tmp_path / "none")
    assert not list(tmp_path.iterdir())


def test_the_command_refuses_unknown_names(tmp_path, capsys):
    assert main(["reproduce", "A.tabel1", "--out", str(tmp_path / "none")]) == 2
    assert "did you mean A.table1" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_unknown_presets_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"preset='qick': .*'quick', 'public' or 'paper'"):
        reproduce("A.table1", "qick", out=tmp_path / "none")


@pytest.fixture
def without_data(tmp_path, monkeypatch):
    """A machine that has none of the sets that are fetched."""
    empty = tmp_path / "empty"
    empty.mkdir()
    for variable in ("ADVINTERP_DATA", "ADVINTERP_CACHE"):
        monkeypatch.setenv(variable, str(empty))


@pytest.fixture
def with_data(monkeypatch):
    """A machine that has all sets."""
    table = [dict(row, where="folder") for row in data.data_table()]
    monkeypatch.setattr("advinterp.papers.reproduce.data_table", lambda: table)


def test_absent_data_is_said_first(tmp_path, without_data):
    missing = "needs the data of cifar10.*advinterp data fetch cifar10"
    with pytest.raises(ValueError, match=missing):
        reproduce("B.table2", out=tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["A.table1", "B.table2"])
def test_an_absent_gpu_is_said_first(name, tmp_path, with_data):
    slow = f"{name} takes about .* hours on a GPU.*preset=.quick."
    with pytest.raises(ValueError, match=slow):
        reproduce(name, "paper", out=tmp_path / "none", device="cpu")
    assert not (tmp_path / "none").exists()


def test_the_command_says_so_in_one_line(tmp_path, with_data, capsys):
    command = ["reproduce", "B.table2", "--preset", "paper", "--device", "cpu"]
    assert main([*command, "--out", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "none").exists()
