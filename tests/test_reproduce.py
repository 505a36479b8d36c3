"Reproductions: the paper presets hold the published settings and run, the kept results are those of the items, and what cannot be run is said before anything is written."

import json
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import advinterp
from advinterp import data, paper_a, paper_c
from advinterp.cli import main
from advinterp.jobs import check_out, read_job, run_job
from advinterp.papers.reproduce import find_items, items, reproduce

KEPT = sorted((Path(__file__).parent.parent / "nbs" / "repro" / "results").glob("*-quick.json"))
PAPERS = sorted({i.name[0] for i in items()})
SHORT = dict(
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
)  # what makes a run long
SHORT = dict(
    A=SHORT,
    B=SHORT,
    C=dict(SHORT, size=64, fractions=[0.5], seeds=[0]),
    D=dict(SHORT, n_train=64, n_test=16, roar_epochs=1),
)


def shortened(v, short):
    "Settings with the sizes and lengths of `short`, everything else as published."
    return (
        {k: short.get(k, shortened(o, short)) for k, o in v.items()} if isinstance(v, dict) else v
    )


def kind(v):
    "Settings without their numbers: those of one kind run the same code."
    if isinstance(v, dict):
        return {k: kind(o) for k, o in v.items()}
    return v if isinstance(v, (str, bool, type(None))) else 0


def kinds(paper):
    "One job of each kind among the paper presets; of papers C and D, whose own tests run every method, one that trains for each function and data set."
    jobs = [
        j
        for i in items()
        if i.name[0] == paper
        for j in i.jobs("paper", "cuda")
        if paper in "AB" or "epochs" in j.settings
    ]
    return list(
        {
            json.dumps(
                [j.func, kind(j.settings) if paper in "AB" else j.settings["data"]], sort_keys=True
            ): j
            for j in reversed(jobs)
        }.values()
    )


def few(name, *, bs, n_train=None, n_valid=None, seed=0, device="cpu", **kwargs):
    "A few examples of a data set; random ones of its shape where it is not here."
    n_train = n_train or 4
    if name == "block_mnist" and not next(
        r["where"] for r in data.data_table() if r["name"] == "mnist"
    ):
        name = "block_digits"  # it is made of MNIST
    if next(r["where"] for r in data.data_table() if r["name"] == name):
        return real(
            name, bs=bs, n_train=n_train, n_valid=n_valid or 4, seed=seed, device=device, **kwargs
        )
    shape = dict(mushroom=(117,), spambase=(57,), cifar10=(3, 32, 32)).get(name, (1, 28, 28))
    n = 2 if len(shape) == 1 else 10
    x, y = (
        torch.rand(n_train + 4, *shape, generator=torch.Generator().manual_seed(seed)),
        torch.arange(n_train + 4) % n,
    )
    return data.tensor_dls(
        x[:n_train],
        y[:n_train],
        x[n_train:],
        y[n_train:],
        bs,
        vocab=[str(i) for i in range(n)],
        device=device,
    )


def photos(s):
    "Random photos, with maps, in place of those of paper C."
    h = s["size"]
    x, m, y = torch.rand(8, 3, h, h), torch.rand(8, h, h), torch.arange(8) % 2
    maps = {} if s["data"] == "imagenette" else dict(maps=m[:4], maps_valid=m[4:])
    return data.tensor_dls(
        x[:4],
        y[:4],
        x[4:],
        y[4:],
        s["bs"],
        vocab=[str(i) for i in range(10)],
        device=s["device"],
        **maps,
    )


real, resnet34 = data.get_data, paper_c._resnet34


def settings(name, **which):
    "The settings of the runs of an item at the paper preset."
    found = [j.settings for j in find_items(name)[0].jobs("paper", "cuda")]
    return [
        s for s in found if all((s.get(k) or s["recipe"].get(k)) == v for k, v in which.items())
    ]


def test_paper_a_is_as_published():
    tables, mnist, fashion, cifar = (
        settings("A.table1", data=d)[0]["recipe"]
        for d in ("mushroom", "mnist", "fashion_mnist", "cifar10")
    )
    assert [
        tables[k] for k in ("model", "optimiser", "lr", "bs", "epochs", "split", "eps", "lam")
    ] == ["one_layer", "ftrl", 0.01, 32, 30, "code", 0.1, 0.02]
    assert [
        mnist[k]
        for k in (
            "model",
            "optimiser",
            "lr",
            "bs",
            "eps",
            "steps",
            "step_size",
            "lam",
            "lam_sum",
            "lam_bias",
        )
    ] == ["madry_cnn", "adam", 1e-4, 50, 0.3, 40, 0.01, 0.01, True, True]
    assert (fashion["eps"], fashion["steps"], fashion["lam"]) == (0.1, 20, 0.01)
    assert [
        cifar[k]
        for k in (
            "model",
            "optimiser",
            "lr",
            "bs",
            "wd",
            "eps",
            "steps",
            "step_size",
            "lam",
            "lam_sum",
            "pad",
        )
    ] == ["wide_resnet", "sgd", 0.1, 128, 2e-4, 1 / 255, 2, 1 / 255, 1e-5, False, 2]
    steps = {
        d: (r["epochs"] * n // r["bs"], r["adv_epochs"] * n // r["bs"])
        for d, r, n in (("mnist", mnist, 60_000), ("cifar10", cifar, 50_000))
    }
    assert all(
        abs(a / b - 1) < 0.01
        for d, published in dict(mnist=(25_000, 100_000), cifar10=(70_001, 70_001)).items()
        for a, b in zip(steps[d], published)
    ), steps
    assert all(
        r["ramp"] == 0 and r["n_train"] is None and r["n_explain"] == 10_000 and not r["fast"]
        for r in (mnist, fashion, cifar)
    )


def test_paper_b_is_as_published():
    common = dict(n_train=None, n_test=10_000, steps=40, lr=0.01, fast=False)
    mnist, cifar = settings("B.table1"), settings("B.table2")
    assert all(
        {**common, "eps": 1.5, "bs": 64, "step_size": 0.5}.items() <= s.items() for s in mnist
    )
    assert all(
        {**common, "eps": 80 / 255, "bs": 100, "step_size": 0.04, "net": "noack_cnn"}.items()
        <= s.items()
        and s["weights"]["interp"] == 0.025
        for s in cifar
    )
    assert all(
        [round(d * s["epochs"], 9) for d in s["drops"]] == [10, 20] for s in mnist + cifar
    )  # a tenth every 10 epochs
    weights = import_module("advinterp.papers.b")._defaults["weights"]
    assert "weights" not in mnist[0] and [
        weights[k] for k in ("interp", "interp_permuted", "interp_natural")
    ] == [0.07, 0.05, 0.33]
    assert {s["method"] for s in mnist} - {s["method"] for s in cifar} == {
        "interp_permuted",
        "interp_natural",
    } and {s["seed"] for s in mnist} == set(range(5))


@pytest.mark.parametrize("paper", PAPERS)
def test_paper_presets_run(paper, tmp_path, monkeypatch):
    "Every kind of job of the paper presets, on a few examples: one pass with the published net, batch, attack and penalty."
    for m in ("study", *(f"paper_{p.lower()}" for p in PAPERS)):
        monkeypatch.setattr(f"advinterp.{m}.get_data", few)
    monkeypatch.setattr(
        paper_a, "_trained", lambda run, folder: paper_a.madry_cnn()
    )  # of the scorecard: two times three models
    monkeypatch.setattr(paper_c, "_loaders", photos)
    monkeypatch.setattr(
        paper_c, "_resnet34", lambda n, pretrained: resnet34(n, False)
    )  # weights that would be fetched
    jobs, out = kinds(paper), check_out(tmp_path)
    assert len(jobs) > 2
    for j in jobs:
        short = type(j)(j.func, shortened(j.settings, SHORT[paper]), j.label)
        assert run_job(short, out) == "done", json.loads(
            (out / "failed" / f"{short.name}.json").read_text()
        )["traceback"]
        row = read_job(short, out)["row"]
        assert row and all(v == v for v in row.values() if isinstance(v, float)), (j.label, row)


def test_paper_presets_of_several_models_run(tmp_path, monkeypatch):
    "Robustness, fidelity and stability of paper C: published nets, images and regions; untrained, one image, few copies and steps."
    monkeypatch.setattr(paper_c, "_loaders", photos)
    monkeypatch.setattr(paper_c, "fit_c", lambda s: SimpleNamespace(model=paper_c._net(s, 10)))
    monkeypatch.setattr(paper_c, "map_robustness", partial(paper_c.map_robustness, steps=2))
    jobs = {
        j.func.split(":")[1]: j
        for n in ("C.fig5", "C.table5")
        for j in find_items(n)[0].jobs("paper", "cuda")
        if "epochs" not in j.settings
    }
    assert set(jobs) == {"robust_c", "faithful_c", "stable_c"} and all(
        j.settings["n"] >= 500 and j.settings["copies"] == 64 and j.settings["steps"] == 300
        for j in jobs.values()
    )
    out, less = (
        check_out(tmp_path),
        dict(n=1, copies=4, steps=3, radii=[0.5], aopc=[2], device="cpu"),
    )
    short = {k: type(j)(j.func, shortened(j.settings, less), j.label) for k, j in jobs.items()}
    for j in short.values():
        assert run_job(j, out) == "done", json.loads(
            (out / "failed" / f"{j.name}.json").read_text()
        )["traceback"]
    curves = read_job(short["robust_c"], out)["row"]["curves"]
    assert len(curves) == 7 and all(0 <= v <= 1 for c in curves.values() for v in c["overlap"])


@pytest.mark.parametrize("path", KEPT, ids=lambda p: p.stem)
def test_minutes_are_those_of_the_kept_results(path):
    "Half the time of the runs that an item needs; an item that misses a run is said not to have been run to the end."
    kept = json.loads(path.read_text())
    rows, shown = (
        {r["run"]: r["seconds"] for r in kept["rows"]},
        {s["item"] for s in kept["sections"]},
    )
    if kept["about"]["version"] != advinterp.__version__:
        pytest.skip(f"results of version {kept['about']['version']}: runs have other names now")
    for i in find_items(path.stem.split("-")[0]):
        names = {
            j.name for j in i.jobs("quick", "cpu") if j.func != "advinterp.papers.a:score"
        }  # whose row is a table
        minutes = sum(rows.get(n, 0) for n in names) / 120
        complete, said = names <= rows.keys() and i.name in shown, i.minutes is not None
        assert complete if said else (not complete or ".fig" in i.name), (
            i.name
        )  # a figure may lack the weights of its runs
        if said:
            assert (
                minutes - 1
                <= i.minutes
                <= minutes + (1 if len(names) == len(i.jobs("quick", "cpu")) else 10)
            ), (i.name, minutes)


@pytest.mark.parametrize(
    "name, word",
    [
        ("A.tabel1", "did you mean A.table1"),
        ("b.table2", "B.table2"),
        ("B.tabel3", "B.table3"),
        ("E", "--list"),
        ("", "--list"),
    ],
)
def test_unknown_names_suggest_the_nearest(name, word, tmp_path, capsys):
    with pytest.raises(ValueError, match=word):
        reproduce(name, out=tmp_path / "none")
    assert main(["reproduce", name, "--out", str(tmp_path / "none")]) == 2 if name else True
    assert not list(tmp_path.iterdir())


def test_absent_data_and_absent_gpu_are_said_first(tmp_path, monkeypatch, capsys):
    "In one sentence, with exit code 2, before a folder is made."
    for variable in ("ADVINTERP_DATA", "ADVINTERP_CACHE"):
        monkeypatch.setenv(variable, str(tmp_path / "empty"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="needs the data of cifar10.*advinterp data fetch cifar10"):
        reproduce("B.table2", out=tmp_path / "none")
    monkeypatch.setattr(
        "advinterp.papers.reproduce.data_table",
        lambda: [dict(r, where="folder") for r in data.data_table()],
    )
    for name in ("A.table1", "B.table2"):
        with pytest.raises(
            ValueError, match=f"{name} takes about .* hours on a GPU.*preset=.quick."
        ):
            reproduce(name, "paper", out=tmp_path / "none", device="cpu")
    assert (
        main(
            [
                "reproduce",
                "B.table2",
                "--preset",
                "paper",
                "--device",
                "cpu",
                "--out",
                str(tmp_path / "none"),
            ]
        )
        == 2
    )
    assert capsys.readouterr().err.count("\n") == 1 and [f.name for f in tmp_path.iterdir()] == [
        "empty"
    ]
