"""The comparison of natural, l1 and adversarial models: its numbers, its settings, its folder."""

import dataclasses
import os

import pandas as pd
import pytest
import torch
from torch import nn

from advinterp.core import set_seed
from advinterp.data import DataNotFound, load
from advinterp.linear import linear_ig
from advinterp.metrics import gini
from advinterp.models import one_layer, small_conv
from advinterp.study import (
    Results,
    Run,
    SkipValidation,
    TellBatches,
    compare_recipes,
    measure,
    open_study,
    plan,
    recipe,
    train,
)
from advinterp.train import adv_learner
from tests.running import Stopped, advinterp, arguments, rows, stored

CANCER = dict(data="breast_cancer", device="cpu", progress=False)
FEW = dict(CANCER, epochs=1, adv_epochs=1)

# ---------------------------------------------------------------- what is trained


def by_hand(run, lam):
    """Adam on the mean loss of one batch plus lam times the sum of |theta|."""
    set_seed(run.seed)
    model = small_conv(1, 10, 8, 16)
    optimiser = torch.optim.Adam(model.parameters(), run.recipe.lr)
    return model, optimiser, lam


def steps(model, optimiser, lam, x, y, n):
    for _ in range(n):
        size = sum(weight.abs().sum() for weight in model.parameters())
        loss = nn.functional.cross_entropy(model(x), y) + lam * size
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


@pytest.mark.parametrize("lam_sum", [True, False])
def test_the_l1_strength_is_that_of_the_summed_or_the_mean_loss(lam_sum):
    """One batch of 50: the study's model is the one of a loop written by hand.

    A lambda for the loss summed over the batch is a fiftieth of it on the mean loss.
    """
    small = recipe("digits", n_train=50, bs=50, epochs=3, lam_sum=lam_sum, n_explain=10)
    run = Run(small, "l1", 0.5, 0)
    learn = train(run)
    found = torch.cat([weight.detach().flatten() for weight in learn.model.parameters()])
    x, y = learn.dls.train_ds.x, learn.dls.train_ds.y
    assert len(x) == 50
    right = 0.5 / 50 if lam_sum else 0.5
    expected = steps(*by_hand(run, right), x, y, 3)
    wrong = steps(*by_hand(run, 0.5 if lam_sum else 0.5 / 50), x, y, 3)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (found - wrong).abs().max() > 1e-3


@pytest.mark.parametrize("method, strength", [("natural", 0.0), ("adversarial", 0.05)])
def test_robust_accuracy_is_that_within_the_eps_of_the_recipe(method, strength):
    """A one-layer net has a closed form: right if the margin is above eps times the l1 norm."""
    run = Run(recipe("breast_cancer", epochs=3, adv_epochs=3), method, strength, 0)
    learn = train(run)
    row, arrays = measure(learn, run)
    x, y = learn.dls.valid_ds.x, learn.dls.valid_ds.y
    w, b = learn.model.weight[0].detach(), learn.model.bias.detach()
    margin = (2 * y - 1) * (x @ w + b)

    def robust(eps):
        return (margin > eps * w.abs().sum()).float().mean().item()

    eps = run.recipe.eps
    assert row["robust_accuracy"] == pytest.approx(robust(eps), abs=1e-6)
    assert robust(eps / 2) > robust(eps) > robust(2 * eps)
    assert row["accuracy"] == pytest.approx(robust(0.0), abs=1e-6)
    maps = linear_ig(torch.sigmoid, w, x, torch.zeros_like(x), b)
    assert row["gini"] == pytest.approx(gini(maps).mean().item(), abs=1e-6)
    assert arrays["maps"].shape == x.shape


def test_the_adversary_has_the_strength_of_the_run():
    """Twice the strength, another model; the attack that measures is the recipe's in both."""
    used = recipe("breast_cancer", adv_epochs=6, clean_epochs=0)
    models = [train(Run(used, "adversarial", strength, 0)).model for strength in (0.0, 0.1, 0.2)]
    norms = [model.weight.abs().sum().item() for model in models]
    assert norms[0] > norms[1] > norms[2]
    natural = train(Run(dataclasses.replace(used, epochs=6), "natural", 0.0, 0)).model
    torch.testing.assert_close(natural.weight, models[0].weight)


def test_the_two_callbacks_are_independent():
    """One tells of batches and lets the test set be measured; the other skips it, silently."""
    dls = train(Run(recipe("breast_cancer", epochs=1), "natural", 0.0, 0)).dls
    told = []
    for callbacks, measured in (
        ([TellBatches(lambda: told.append(1))], True),
        ([SkipValidation()], False),
    ):
        learn = adv_learner(dls, one_layer(30), cbs=callbacks)
        with learn.no_bar(), learn.no_logging():
            learn.fit(1, 0.01)
        (values,) = learn.recorder.values
        assert len(told) == len(dls.train) and (len(values) > 1) == measured


@pytest.mark.cuda
def test_on_a_gpu(tmp_path):
    """Data, model and attack meet on the device; the numbers are near those of the CPU."""
    settings = dict(FEW, epochs=3, adv_epochs=3, seeds=1)
    here = compare_recipes(**settings, out=tmp_path / "cpu")
    there = compare_recipes(**{**settings, "device": "cuda"}, out=tmp_path / "cuda")
    assert (here["gini"] - there["gini"]).abs().max() < 0.02


# ---------------------------------------------------------------- the folder


def test_killed_and_resumed(tmp_path):
    """After SIGKILL, resume computes only what is missing, and ends with the undisturbed table."""
    settings = dict(seeds=2, epochs=3)
    compare_recipes(**{**CANCER, **settings}, adv_epochs=3, out=tmp_path / "whole")
    out = tmp_path / "study"
    command = arguments(out, **settings)
    Stopped("inside a run", 2, tmp_path, command).kill()
    done = stored(out)
    assert len(done) == 2 and len(list((out / "runs").glob(".*.tmp"))) == 1
    again = advinterp(*command)
    assert again.returncode == 0, again.stderr
    assert {file: file.stat().st_mtime_ns for file in done} == done
    pd.testing.assert_frame_equal(rows(out), rows(tmp_path / "whole"))
    refused = advinterp(*[word for word in command if word != "--resume"])
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1 and "--resume" in refused.stderr


def test_settings_decide(tmp_path):
    """Other settings never find earlier results, and what was there is kept."""
    out = tmp_path / "study"
    first = compare_recipes(**FEW, out=out)
    folders = set((out / "runs").iterdir())
    other = compare_recipes(**FEW, out=out, eps=0.3, resume=True)
    assert folders < set((out / "runs").iterdir())
    assert len(first) == 3 and len(other) == 6
    assert set(first["run"]) < set(other["run"])
    assert list(other.summary().settings) == [1, 1, 1, 2, 2, 2]  # each beside its own natural one
    assert list(other.summary().seeds) == [1] * 6


@pytest.mark.parametrize("damage", ["truncated", "garbage"])
def test_damaged_data(tmp_path, damage):
    """A file that is not what it should be: one sentence, exit code 2, no study is begun."""
    folder = tmp_path / "data" / "mushroom"
    folder.mkdir(parents=True)
    content = b"not a table"
    if damage == "truncated":
        content = _mushroom()[:9000]
    (folder / "mushroom.csv.gz").write_bytes(content)
    place = dict(ADVINTERP_DATA=str(tmp_path / "data"), ADVINTERP_CACHE=str(tmp_path / "cache"))
    said = advinterp("compare", "--data", "mushroom", "--out", tmp_path / "out", **place)
    assert said.returncode == 2, said.stderr
    assert said.stderr.count("\n") == 1 and "mushroom.csv.gz" in said.stderr
    assert not (tmp_path / "out").exists()


def _mushroom():
    path = os.path.join(os.environ.get("ADVINTERP_DATA", ""), "mushroom", "mushroom.csv.gz")
    if not os.path.exists(path):
        pytest.skip("ADVINTERP_DATA has no mushroom to damage")
    with open(path, "rb") as file:
        return file.read()


# ---------------------------------------------------------------- results


def test_results_are_a_frame_and_a_folder(tmp_path):
    """Tables of several studies can be joined, and each result still writes its own report."""
    results = compare_recipes(**FEW, out=tmp_path)
    assert isinstance(results, Results) and results.folder == tmp_path
    assert type(results.frame) is pd.DataFrame is type(results[["run", "gini"]])
    assert not results.empty and list(results) == list(results.frame)
    assert results.query("method == 'natural'").gini.item() == results.gini[0]
    both = pd.concat([results.frame, open_study(tmp_path).frame])
    assert len(both) == 2 * len(results) == 6
    assert results.report(tmp_path / "page").is_file()
    assert repr(results) == repr(results.frame) and "<table" in results._repr_html_()
    with pytest.raises(AttributeError):
        _ = results.no_such_column


def test_a_temporary_study_lives_as_long_as_its_results():
    results = compare_recipes(**FEW)
    folder = results.folder
    table = results.frame
    assert (folder / "report.html").is_file()
    del results
    assert not folder.exists() and len(table) == 3


# ---------------------------------------------------------------- what is refused

WRONG_VALUES = [
    *(dict(data=[]), dict(eps=[]), dict(lam=[]), dict(seeds=[]), dict(seeds=0), dict(seeds=-1)),
    *(dict(eps=-0.1), dict(eps=[0.1, float("nan")]), dict(lam=float("inf"))),
    *(dict(epochs=0), dict(adv_epochs=-1), dict(bs=0), dict(n_train=0), dict(pad=-1)),
    *(dict(lr=-0.1), dict(lr=0), dict(wd=-1), dict(step_size=0), dict(ramp=1.5)),
    *(dict(bounds=(1, 0)), dict(bounds=(1,)), dict(drops=(0.5, 2))),
    *(dict(model="resnet"), dict(optimiser="adamm"), dict(split="half"), dict(methods="l2")),
]
WRONG_TYPES = [
    *(dict(seeds=True), dict(seeds="2"), dict(seeds=1.5), dict(seeds=[0, True])),
    *(dict(eps=True), dict(eps="0.1"), dict(lam=["a"])),
    *(dict(epochs="x"), dict(epochs=2.0), dict(epochs=True), dict(steps=None)),
    *(dict(lr="fast"), dict(lr=None), dict(lam_sum=1), dict(shap="yes")),
    *(dict(bounds=1), dict(bounds=("a", "b")), dict(drops=0.5)),
]


@pytest.mark.parametrize("wrong", WRONG_VALUES + WRONG_TYPES, ids=str)
def test_wrong_settings_are_refused_in_one_sentence(tmp_path, wrong):
    """The argument, its value and what is allowed; nothing is written."""
    error = ValueError if wrong in WRONG_VALUES else TypeError
    ((name, _),) = wrong.items()
    with pytest.raises(error, match=rf"^{name}=.*(expected|no recipe)") as refused:
        compare_recipes(**{**CANCER, **wrong, "out": tmp_path / "out"})
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name, meant", [("madry_cn", "madry_cnn"), ("one_layers", "one_layer")])
def test_an_unknown_model_is_no_other_model(name, meant):
    """Neither through `recipe` nor in a recipe that was made by hand."""
    with pytest.raises(ValueError, match=f"did you mean '{meant}'"):
        recipe("mnist", model=name)
    wrong = dataclasses.replace(recipe("digits"), model=name)
    with pytest.raises(ValueError, match=f"did you mean '{meant}'"):
        train(Run(wrong, "natural", 0.0, 0))


def test_what_json_gives_is_accepted():
    """Lists in place of tuples, whole numbers where a number is asked for."""
    used = recipe("digits", bounds=[0, 1], drops=[0.5], lr=1, split="code", n_train=None)
    assert used.bounds == (0, 1) and used.drops == (0.5,)
    assert plan("digits", eps=1, seeds=range(2))[-1].strength == 1.0


# ---------------------------------------------------------------- the paper


def test_mushroom_as_published():
    """Mushroom with Adam, near the paper's recorded runs: .985 accuracy and .977 Gini at eps .1."""
    try:
        load("mushroom")
    except DataNotFound as error:
        pytest.skip(str(error))
    results = compare_recipes("mushroom", methods=["adversarial"], device="cpu", progress=False)
    table = results.set_index("method")
    natural, adversarial = table.loc["natural"], table.loc["adversarial"]
    assert natural.accuracy > 0.995 and abs(natural.gini - 0.91) < 0.01
    assert abs(adversarial.accuracy - 0.986) < 0.008
    assert abs(adversarial.gini - 0.977) < 0.005
    assert adversarial.dG_low > 0
