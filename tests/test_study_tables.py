"""What a study plans and trains with, and its tables, from runs whose numbers are known."""

import pytest

from advinterp.callbacks import AdversarialTraining, GradientPenalty
from advinterp.evaluate import bootstrap_interval, seed_interval
from advinterp.jobs import check_out
from advinterp.models import one_layer
from advinterp.study import (
    Results,
    Run,
    SkipValidation,
    StepDecay,
    TellBatches,
    plan,
    recipe,
    tabulate,
    train,
)
from advinterp.train import adv_learner
from tests.stored import store_run

SMALL = dict(n_train=60, bs=20, epochs=1, adv_epochs=1)

# ---------------------------------------------------------------- plans and training


def test_each_method_has_its_own_strengths():
    runs = plan("digits", eps=[0.1, 0.2], lam=0.03, seeds=[4, 5])
    strengths = {run.method: [] for run in runs}
    for run in runs:
        strengths[run.method].append((run.strength, run.seed))
    assert strengths == dict(
        natural=[(0.0, 4), (0.0, 5)],
        l1=[(0.03, 4), (0.03, 5)],
        adversarial=[(0.1, 4), (0.2, 4), (0.1, 5), (0.2, 5)],
    )
    assert {(run.recipe.eps, run.recipe.lam) for run in runs} == {(0.1, 0.03)}


def callback_of(learn, kind):
    (callback,) = [callback for callback in learn.cbs if isinstance(callback, kind)]
    return callback


def test_the_strength_rises_over_the_ramp():
    learn = train(Run(recipe("digits", **SMALL, ramp=0.4), "adversarial", 0.1, 0))
    schedule = callback_of(learn, AdversarialTraining).schedule
    strengths = [schedule(share) for share in (0.0, 0.1, 0.2, 0.4, 0.7, 1.0)]
    assert strengths == pytest.approx([0, 0.025, 0.05, 0.1, 0.1, 0.1])


@pytest.mark.parametrize("lam_bias", [True, False])
def test_biases_are_penalised_where_the_recipe_says_so(lam_bias):
    learn = train(Run(recipe("digits", **SMALL, lam_bias=lam_bias, lam_sum=True), "l1", 0.1, 0))
    callback = callback_of(learn, GradientPenalty)
    assert callback.weight == pytest.approx(0.1 / 20)
    assert (callback.penalty.p, callback.penalty.bias) == (1, lam_bias)


def test_the_learning_rate_falls_at_each_share():
    dls = train(Run(recipe("breast_cancer", epochs=1, bs=40), "natural", 0.0, 0)).dls
    rates = []
    tell = TellBatches(lambda: rates.append(learn.opt.hypers[-1]["lr"]))
    learn = adv_learner(dls, one_layer(30), cbs=[tell, SkipValidation(), StepDecay((0.25, 0.75))])
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 0.5)
    assert rates == pytest.approx([0.5] * 3 + [0.05] * 5 + [0.005] * 2)  # of ten batches


# ---------------------------------------------------------------- tables

NATURAL = {0: [0.4, 0.6], 1: [0.5, 0.5]}  # seed -> Gini index of two examples
ADVERSARIAL = {0: [0.7, 0.7], 1: [0.8, 0.9]}


@pytest.fixture
def runs():
    return plan("breast_cancer", methods="adversarial", seeds=2)


def stored(runs, out):
    for run in runs:
        sparseness = (NATURAL if run.method == "natural" else ADVERSARIAL)[run.seed]
        accuracy = 0.95 if run.method == "natural" else 0.9
        store_run(run, check_out(out, resume=True), sparseness, accuracy)


def test_a_gain_is_over_the_natural_model_of_the_same_seed(runs, tmp_path):
    stored(runs, tmp_path)
    table = tabulate(runs, tmp_path).set_index(["method", "seed"])
    gains = {0: [0.3, 0.1], 1: [0.3, 0.4]}
    for seed, gain in gains.items():
        row = table.loc[("adversarial", seed)]
        assert row.dG == pytest.approx(sum(gain) / 2)
        assert (row.dG_low, row.dG_high) == pytest.approx(bootstrap_interval(gain))
        assert row.accuracy_drop == pytest.approx(0.05)
        assert row.dG_seeds == pytest.approx((0.2 + 0.35) / 2)
        assert table.loc[("natural", seed), ["dG", "accuracy_drop"]].tolist() == [0, 0]


def test_a_run_without_its_natural_one_is_no_row(runs, tmp_path):
    stored([run for run in runs if (run.method, run.seed) != ("natural", 1)], tmp_path)
    table = tabulate(runs, tmp_path)
    assert list(zip(table.method, table.seed)) == [("natural", 0), ("adversarial", 0)]


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_interval_is_over_seeds_where_there_are_several(runs, tmp_path, seeds):
    runs = [run for run in runs if run.seed < seeds]
    stored(runs, tmp_path)
    results = Results(tabulate(runs, tmp_path), tmp_path, runs)
    row = results.summary().set_index("method").loc["adversarial"]
    expected = bootstrap_interval([0.3, 0.1]) if seeds == 1 else seed_interval([0.2, 0.35])
    assert (row.dG_low, row.dG_high) == pytest.approx(expected)
    assert row.seeds == seeds
