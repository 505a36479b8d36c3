"""Studies over any data: what goes in, what is compared, what is refused."""

import importlib
import json
import os
import shutil
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from torch import nn

from advinterp import PGD, GradientPenalty, LInfBall, bring_data, compare, gini, saliency, set_seed
from advinterp.comparison import (
    Results,
    at_equal_accuracy,
    open_study,
    paired_gains,
    side_by_side,
)
from advinterp.data import tensor_dls
from advinterp.evaluate import accuracy, robust_accuracy
from advinterp.experiments import (
    _REGISTERED,
    Experiment,
    Method,
    Training,
    _experiment,
    fresh_learner,
    method_of,
)
from advinterp.jobs import read_study
from advinterp.measures import Setting, measures_of

QUICK = dict(epochs=2, seeds=1, strengths=[0.1], device="cpu", progress=False)


def table(n=120):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 3))
    income = np.where(x[:, 0] + 0.1 * x[:, 1] > 0, "high", "low")
    colour = rng.choice(["red", "green"], n)
    return pd.DataFrame(dict(a=x[:, 0], b=x[:, 1], c=x[:, 2], colour=colour, income=income))


def images(n=90):
    gen = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 3
    x = 0.3 * torch.rand(n, 1, 8, 8, generator=gen)
    x[torch.arange(n), 0, 2 * y, 2 * y] = 1.0
    return x, y


def loaders():
    x, y = images()
    pairs = [*zip(x, y)]
    of = [DataLoader(pairs[part::2], bs=15, num_workers=0) for part in (0, 1)]
    return DataLoaders(*of)


def frame_as_csv(folder):
    file = folder / "my.csv"
    table().to_csv(file, index=False)
    return str(file)


@pytest.mark.parametrize(
    "data, settings",
    [
        (frame_as_csv, dict(target="income", methods="adversarial")),
        (lambda folder: table(), dict(target="income", methods=["l1", "gradient penalty"])),
        (lambda folder: images(), dict(methods=["PGD(LInfBall(.1), steps=2)", "free"])),
        (lambda folder: loaders(), dict(methods="one-step", model="small_conv")),
        (lambda folder: images(), dict(methods=[Method("gentle", "GradNorm(L1(1))", (0.01,))])),
        (lambda folder: table(), dict(target="income", methods="jacobian", model="mlp")),
    ],
)
def test_any_data_and_method(tmp_path, data, settings):
    results = compare(data(tmp_path), out=tmp_path / "out", **{**QUICK, **settings})
    asked = settings["methods"]
    names = [asked] if isinstance(asked, str) else [getattr(m, "name", m) for m in asked]
    assert results.methods == ["natural", *names]
    assert len(results) == 1 + len(names)
    assert {"accuracy", "robust_accuracy", "gini_ig", "seconds"} <= set(results.frame)
    assert results.frame[["accuracy", "gini_ig"]].to_numpy().max() <= 1
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"report.html", "results.csv", "results.json"} <= files
    page = (tmp_path / "out" / "report.html").read_text()
    assert results.verdict().split(".")[0] in page and len(page) < 2e6
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    assert stored["verdict"] == results.verdict()
    assert open_study(tmp_path / "out").frame.equals(results.frame)


def test_the_same_again_and_resumed(tmp_path):
    first = compare(table(), "income", out=tmp_path, **QUICK)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").iterdir()}
    again = compare(table(), "income", out=tmp_path, resume=True, **QUICK)
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").iterdir()}
    assert again.frame.equals(first.frame)


@pytest.mark.slow
def test_two_processes_give_the_same_numbers():
    first = compare(table(), "income", **QUICK)
    elsewhere = compare(table(), "income", n_jobs=2, **QUICK)
    columns = ["method", "strength", "accuracy", "robust_accuracy", "gini_ig"]
    pd.testing.assert_frame_equal(elsewhere.frame[columns], first.frame[columns])


def test_trained_learners_are_measured():
    x, y = images()
    nets = {name: nn.Sequential(nn.Flatten(), nn.Linear(64, 3)) for name in ("mine", "theirs")}
    results = compare((x, y), learners=nets, measures=["gini_gradient"])
    assert results.methods == ["mine", "theirs"] and results.matched().empty
    assert "no comparison at equal accuracy" in results.verdict()


def test_learners_and_their_data_are_told_apart():
    """A model does not know its data, and a learner is not data."""
    x, y = images()
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(TypeError, match=r"Sequential is no Learner.*compare\(data, learners="):
        compare(learners=dict(mine=net))
    learn = Learner(tensor_dls(x, y, x, y, device="cpu"), net, loss_func=nn.CrossEntropyLoss())
    with pytest.raises(TypeError, match=r"compare\(learners=\{'mine': learn\}\)"):
        compare(learn)
    of_learner = compare(learners=dict(mine=learn), measures=["gini_gradient"])
    said = compare((x, y), learners=dict(mine=learn), measures=["gini_gradient"])
    assert len(of_learner.frame) == len(said.frame) == 1


def test_results_are_readable():
    """A line of what there is and where, and the verdict."""
    nets = dict(mine=nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))
    results = compare(images(), learners=nets, measures=["gini_gradient"])
    first, verdict = repr(results).splitlines()
    assert first.endswith(f"1 model (mine) in {results.folder}")
    assert verdict == results.verdict() and "gini" in results._repr_html_()


@pytest.mark.parametrize(
    "ignored",
    [
        *[dict(model="mlp"), dict(methods="l1"), dict(strengths=[0.1]), dict(seeds=2)],
        *[dict(size=8), dict(missing="drop"), dict(groups=np.arange(9)), dict(drop="a")],
        *[dict(epochs=3), dict(lr=0.1), dict(batch_size=8), dict(resume=True), dict(n_jobs=2)],
        *[dict(backend="dask"), dict(keep_code=True), dict(dry_run=True)],
    ],
    ids=str,
)
def test_what_trained_learners_do_not_need_is_refused(tmp_path, ignored):
    (name,) = ignored
    nets = dict(mine=nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))
    with pytest.raises(ValueError, match=f"{name}= has no meaning beside learners="):
        compare(images(), learners=nets, out=tmp_path / "out", **ignored)
    assert not list(tmp_path.iterdir())


def found(**means):
    """Results of three seeds: method -> (concision, accuracy under attack), alike in all examples.

    A training of the n-th method takes 2n seconds.
    """
    rows, examples = [], {}
    for place, (method, values) in enumerate(means.items(), 1):
        numbers = dict(zip(["accuracy", "gini_ig", "robust_accuracy"], [0.9, *values]))
        strength = 0.0 if method == "natural" else 0.1
        for seed in range(3):
            settings = dict(method=method, strength=strength, seed=seed, seconds=2.0 * place)
            rows.append(settings | numbers | dict(valid_accuracy=0.9))
            arrays = {name: np.full(20, value) for name, value in numbers.items()}
            examples[method, strength, seed] = arrays | dict(maps=np.ones((20, 4)))
    about = dict(measures=list(numbers), tolerance=0.01, described="Rows.", feature_of_column=None)
    return Results(pd.DataFrame(rows), None, about, examples)


def test_one_page_says_what_a_method_buys_and_where_it_does_not(tmp_path):
    """Bought is what both natural training and the rival have not: .6 against .5 and .52."""
    images = found(natural=(0.5, 0.4), l1=(0.52, 0.4), adversarial=(0.6, 0.7))
    rows = found(natural=(0.5, 0.4), l1=(0.6, 0.4), adversarial=(0.6, 0.3))
    text, page = side_by_side(dict(images=images, rows=rows), tmp_path)
    assert text.startswith(
        "At equal accuracy adversarial training buys concision of integrated gradients and "
        "accuracy under attack on images; on rows it is not shown to give more than l1 and natural "
        "training do. On images: concision of integrated gradients +0.100 [+0.100, +0.100] against "
        "natural training and +0.080 [+0.080, +0.080] against l1; accuracy under attack +0.300"
    )
    assert text.count("3.0 times as long") == 2
    shown = page.read_text()
    assert "<p>At equal accuracy adversarial" in shown
    assert shown.index("<h2>images") < shown.index("<h2>rows")
    assert sorted(file.name for file in tmp_path.glob("*.png")) == [
        "images-features.png",
        "rows-features.png",
    ]
    rows.frame["seconds"] = 2.0
    only = side_by_side(dict(rows=rows), tmp_path)[0]
    assert "as long" not in only
    assert only.startswith(
        "At equal accuracy on rows adversarial training is not shown to give more than l1"
    )
    with pytest.raises(ValueError, match="rows: method='free': expected one of"):
        side_by_side(dict(rows=rows), tmp_path, method="free")
    with pytest.raises(ValueError, match="studies: expected at least one"):
        side_by_side({}, tmp_path)


def test_a_dry_run_writes_nothing(tmp_path):
    runs = compare(table(), "income", out=tmp_path / "out", dry_run=True, **QUICK)
    assert runs.runs.sum() == 3 and (runs.minutes > 0).all()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(target="incme"), "income"),
        (dict(methods="adversrial"), "did you mean 'adversarial'"),
        (dict(methods="PGD(LinfBall(.1))"), "did you mean 'LInfBall'"),
        (dict(methods="PGD(__import__('os'))"), "column 5"),
        (dict(methods="LInfBall(.1)"), "expected an adversary or a penalty, such as PGD"),
        (dict(measures="ginny"), "not a measure"),
        (dict(tolerance=1.5), "expected a share of the accuracy"),
        (dict(model="small_conv"), "does not take a table"),
        (dict(model="resnet1"), "expected one of one_layer, mlp"),
        (dict(model=nn.Linear(2, 2)), "learners="),
        (dict(seeds=0), "at least one seed"),
        (dict(device="cudda"), "device="),
        (dict(sede=3), "no such argument"),
        (dict(strengths=[-1]), "strengths=-1"),
        (dict(epochs=0), "epochs"),
    ],
)
def test_bad_input_leaves_nothing_behind(tmp_path, settings, message):
    settings = {"target": "income", **QUICK, "out": tmp_path / "out", **settings}
    with pytest.raises((ValueError, TypeError), match=message):
        compare(table(), **settings)
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_call_is_handed_on(tmp_path):
    with pytest.warns(FutureWarning, match="compare_recipes"):
        results = compare("breast_cancer", epochs=1, adv_epochs=1, device="cpu", progress=False)
    assert list(results.frame.method) == ["natural", "l1", "adversarial"]


def test_equal_accuracy_by_hand():
    accuracy = np.array([[0.9, 0.95, 0.85, 0.88, 0.5]])
    value = np.array([[1.0, 2.0, 3.0, 4.0, 5.0]])
    assert at_equal_accuracy(accuracy, value, np.array([0.89]))[0] == pytest.approx(2.6)
    assert at_equal_accuracy(accuracy, value, np.array([0.4]))[0] == 5
    assert at_equal_accuracy(accuracy, value, np.array([0.99]))[0] == pytest.approx(1)


def test_a_gain_of_nothing_is_within_its_interval():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(40):
        seeds = []
        for _ in range(5):
            base = rng.normal(size=(1, 60))
            sure = np.ones((2, 60))
            other = np.concatenate([base, base + rng.normal() + rng.normal(size=(1, 60))])
            natural = dict(accuracy=sure[:1], m=base)
            seeds.append(dict(natural=natural, other=dict(accuracy=sure, m=other)))
        low, high = np.quantile(paired_gains(seeds, "m", 0.0, 200)["other"], [0.025, 0.975])
        covered += low <= 0 <= high
    assert 28 <= covered <= 40


def test_paths_by_kind():
    assert method_of("adversarial", "image", colour=True).path[-1] == 8 / 255
    assert method_of("natural").path == (0.0,)
    assert [each.name for each in measures_of(["aopc"])] == ["accuracy", "aopc"]


@pytest.mark.parametrize(
    "data, settings",
    [
        (table, dict(target="income", strengths=[0.1])),
        (images, dict(strengths=[0.01], model="small_conv")),
    ],
)
def test_every_registered_method_is_trained(tmp_path, data, settings):
    kind = "table" if data is table else "image"
    names = list(_REGISTERED[kind])
    results = compare(data(), methods=names, out=tmp_path, **{**QUICK, **settings})
    assert results.methods == names
    assert np.isfinite(results.frame.gini_ig).all()
    assert not (tmp_path / "failed").exists()
    of_teacher = {e.teacher.method.name for e in _trained(tmp_path) if e.teacher is not None}
    assert of_teacher == {"adversarial"}
    labels = [job.label for job in read_study(tmp_path)["jobs"]]
    assert len(labels) == len(set(labels)), "a teacher is trained once"


def _trained(out):
    jobs = read_study(out)["jobs"]
    return [_experiment(job.settings) for job in jobs if "method" in job.settings]


def test_the_optimum_is_for_one_layer_and_two_classes(tmp_path):
    with pytest.raises(ValueError, match="is for model='one_layer' and two classes"):
        compare(table(), "income", "mlp", methods="optimum", out=tmp_path / "out", **QUICK)
    assert not (tmp_path / "out").exists()


def test_all_measures_of_two_seeds(tmp_path):
    settings = dict(QUICK, seeds=2)
    results = compare(
        *(table(), "income", "mlp", "l1"), measures="all", n_test=12, out=tmp_path, **settings
    )
    assert set(results.measures) == {each.name for each in measures_of("all")}
    values = results.frame[results.measures]
    assert np.isfinite(values.to_numpy()).all()
    for name in ("stability", "map_robustness", "retraining", "randomisation", "share_ig"):
        assert values[name].between(0, 1).all()
    assert (values.robust_accuracy_half >= values.robust_accuracy).all()
    assert (values.robust_accuracy >= values.robust_accuracy_double).all()
    stored = [json.loads(file.read_text()) for file in tmp_path.glob("runs/*/result.json")]
    assert set(values.seconds.round(1)) <= {result["seconds"] for result in stored}
    page = (tmp_path / "report.html").read_text()
    assert "The size of the attack" in page


def test_measures_that_need_more_than_there_is_are_refused():
    with pytest.raises(ValueError, match="'stability': needs models of two seeds"):
        compare(table(), "income", measures=["stability"], **QUICK)
    with pytest.raises(ValueError, match="'retraining': needs to know how the model was trained"):
        compare(images(), learners=dict(mine=nn.Linear(1, 1)), measures=["retraining"])


def test_a_metric_of_any_attribution_is_a_measure():
    asked = ["gini(saliency(absolute=True))", "gini_gradient"]
    results = compare(table(), "income", methods="l1", measures=asked, **QUICK)
    assert results.frame[asked[0]].tolist() == pytest.approx(results.frame.gini_gradient.tolist())


def coloured(n=24):
    x, y = images(n)
    return torch.nn.functional.interpolate(x, 32).expand(-1, 3, -1, -1).clone(), y


def tiny_net(parts):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, len(parts.class_names)))


MODULE = """
from torch import nn

def net(parts):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, len(parts.class_names)))
"""


@pytest.mark.parametrize("model", ["mobilenet_v3_small", tiny_net, "own_net_of_a_test:net"])
def test_models_of_ones_own(tmp_path, monkeypatch, model):
    (tmp_path / "own_net_of_a_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    how = dict(QUICK, epochs=1, strengths=[0.01], n_test=4)
    results = compare(coloured(), model=model, methods="one-step", out=tmp_path / "out", **how)
    assert len(results) == 2
    assert (tmp_path / "out" / "maps.png").exists() or "maps" in results.examples["natural", 0.0, 0]


def test_an_unknown_function_for_a_model(tmp_path):
    with pytest.raises(ValueError, match="cannot be imported"):
        compare(coloured(), model="no_such_module:net", out=tmp_path / "out", **QUICK)
    with pytest.raises(ValueError, match="takes photos of 3 channels, these have 1"):
        compare(images(), model="resnet18", out=tmp_path / "out", **QUICK)


OWN = """
import os, signal
from pathlib import Path

from advinterp import LInfBall, saliency
from advinterp.spec import register

@register
class HalfBall(LInfBall):
    "A ball of one's own, whose first use ends the worker."

    def delta_star(self, g):
        sign = Path(__file__).parent / "killed"
        if os.environ.get("ENDS_ONCE") and not sign.exists():
            sign.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return 0.5 * super().delta_star(g)

@register
def squared_map(model, x, y):
    return saliency(model, x, y).square()
"""


@pytest.mark.slow
def test_a_dual_and_an_attribution_of_ones_own_on_a_cluster_that_loses_a_worker(
    tmp_path, monkeypatch
):
    distributed = pytest.importorskip("dask.distributed", reason="Dask is not installed")
    (tmp_path / "own_dual_of_a_test.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    importlib.import_module("own_dual_of_a_test")
    how = dict(methods="OneStep(HalfBall(0.2))", measures=["gini(squared_map)"])
    how.update(QUICK, strengths="auto")
    here = compare(table(), "income", out=tmp_path / "here", **how)
    monkeypatch.setenv("ENDS_ONCE", "1")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50
    ) as cluster:
        monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", cluster.scheduler_address)
        there = compare(table(), "income", out=tmp_path / "there", n_jobs=2, backend="dask", **how)
    assert (tmp_path / "killed").exists()
    columns = ["method", "strength", "accuracy", "gini(squared_map)"]
    pd.testing.assert_frame_equal(there.frame[columns], here.frame[columns])


def test_a_column_that_is_the_answer_is_named_and_can_be_left_out():
    data = table().assign(twice=lambda frame: frame.income.map(dict(high="yes", low="no")))
    how = dict(target="income", methods="l1", **QUICK)
    assert "Careful: 'twice' alone tells the class" in compare(data, **how).verdict()
    assert "Careful" not in compare(data, drop="twice", **how).verdict()


def test_a_study_with_missing_runs_is_reported(tmp_path):
    how = dict(QUICK, seeds=2)
    compare(table(), "income", out=tmp_path, **how)
    shutil.rmtree(next((tmp_path / "runs").glob("l1-0.1-seed1*")))
    results = open_study(tmp_path)
    assert results.about["missing"] == ["l1-0.1-seed1"]
    assert results.verdict().startswith("1 run of the study is missing, such as l1-0.1-seed1")
    assert "1 seed" in results.verdict() or "One seed" in results.verdict()
    assert set(results.matched().method) == {"natural", "l1", "adversarial"}
    assert results.report().is_file()
    for folder in (tmp_path / "runs").glob("natural-0-*"):
        (folder / "result.json").write_text("{}")
    results = open_study(tmp_path)
    assert results.matched().empty and "natural" not in results.methods
    assert results.report().is_file()
    shutil.rmtree(tmp_path / "runs")
    results = open_study(tmp_path)
    assert results.empty and results.methods == [] and results.summary().empty
    assert results.verdict().endswith("No run of the study is complete.")
    assert "no run is finished yet" in repr(results) and results.verdict() in results.show()
    assert results.report().is_file()


@pytest.mark.parametrize("value, text", [(4 / 255, "4/255"), (0.2, "0.2"), (2e-5, "2e-05")])
def test_strengths_are_written_as_people_say_them(tmp_path, value, text):
    rows = [("natural", 0.0, 0, 0.9, 0.9), ("l1", value, 0, 0.9, 0.9)]
    columns = ["method", "strength", "seed", "valid_accuracy", "accuracy"]
    about = dict(tolerance=0.01, measures=["accuracy"], described="rows")
    right = dict(accuracy=np.ones(4))
    examples = {("natural", 0.0, 0): right, ("l1", value, 0): right}
    results = Results(pd.DataFrame(rows, columns=columns), tmp_path, about, examples)
    assert f"Validation chooses l1 {text}." in results.verdict()


# ---------------------------------------------------------------- numbers worked out by hand


def test_gains_are_taken_where_the_tolerance_ends():
    """Accuracy falls from 1 to .8, Gini rises from .2 to .4: one step of .1 is worth .1."""
    natural = dict(accuracy=np.ones((1, 10)), gini_ig=np.full((1, 10), 0.2))
    right = np.stack([np.ones(10), np.arange(10) < 8]).astype(float)
    path = dict(accuracy=right, gini_ig=np.stack([np.full(10, 0.2), np.full(10, 0.4)]))
    gains = paired_gains([dict(natural=natural, adversarial=path)], "gini_ig", tolerance=0.1)
    assert gains["adversarial"] == pytest.approx([0.1])


def test_validation_chooses_the_strongest_within_the_tolerance(tmp_path):
    rows = [("natural", 0, 0.9), ("adversarial", 1, 0.9), ("adversarial", 2, 0.895)]
    rows += [("adversarial", 4, 0.8), ("l1", 1, 0.7)]
    frame = pd.DataFrame(rows, columns=["method", "strength", "valid_accuracy"])
    results = Results(frame, tmp_path, dict(tolerance=0.01, measures=["accuracy"]), {})
    assert results.chosen() == dict(natural=0, adversarial=2, l1=0)


@pytest.mark.parametrize("name", ["robust_accuracy", "gini_gradient"])
def test_measures_are_those_of_their_functions(name):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    x = torch.randn(40, 4)
    y = (x[:, 0] > 0).long()
    net[0].weight.data[:, 0] = 3.0
    net[2].weight.data = torch.tensor([[-1.0], [1.0]]).expand(2, 8).clone()
    measure = next(each for each in measures_of([name]) if each.name == name)
    expected = dict(
        robust_accuracy=robust_accuracy(net, x, y, PGD(LInfBall(0.5), steps=20)),
        gini_gradient=gini(saliency(net, x, y)).mean().item(),
    )
    found = measure.function(net, x, y, Setting(eps=0.5)).double().mean().item()
    assert found == pytest.approx(expected[name])
    assert found != pytest.approx(accuracy(net, x, y))


@pytest.mark.parametrize("seed, strength", [(0, 1.0), (1, 1.0), (0, 2.0)])
def test_an_experiment_trains_at_its_seed_and_strength(seed, strength):
    x, y = images()
    parts = bring_data((x, y))
    method = Method("l1", "WeightNorm(1)", (1.0, 2.0))
    experiment = Experiment("{}", "small_conv", method, strength, Training(1, 0.01), seed)
    learn = fresh_learner(experiment, parts)
    (penalty,) = [cb for cb in learn.cbs if isinstance(cb, GradientPenalty)]
    assert penalty.weight == strength
    set_seed(seed)
    again = fresh_learner(experiment, parts)
    torch.rand(3)  # what was drawn before does not matter
    weights = [next(each.model.parameters()) for each in (learn, again)]
    assert torch.equal(*weights)
    other = replace(experiment, seed=seed + 1)
    assert not torch.equal(weights[0], next(fresh_learner(other, parts).model.parameters()))
