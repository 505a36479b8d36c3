"""Retraining metrics: what is kept, known scores, and a store that survives a kill."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.torch_core import TensorCategory, TensorImage
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.stats import t
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier
from torch import nn

from advinterp import roar as R
from advinterp.estimator import AdversarialClassifier
from advinterp.evaluate import accuracy
from advinterp.generators import block_toy
from advinterp.store import make_key

ROOT = Path(__file__).resolve().parent.parent
small = st.integers(-3, 3).map(float)  # ties and zeros
maps = arrays(np.float64, array_shapes(min_dims=2, max_dims=4, max_side=5), elements=small)


def mlp(activation=nn.ReLU):
    return nn.Sequential(nn.Linear(10, 16), activation(), nn.Linear(16, 2))


adam = R.FitAdam(mlp, epochs=4, lr=0.02, bs=50)
logistic = R.FitEstimator(LogisticRegression())
TRAIN, TEST = block_toy(500, noise=0.1, seed=1), block_toy(1000, noise=0.1, seed=2)


def toy(metric, fit=adam, sign=1, **kwargs):
    """A metric of the true maps of the block toy data, with changes."""
    settings = dict(
        x=TRAIN.x,
        y=TRAIN.y,
        maps=sign * TRAIN.truth + 0.0 * TRAIN.x,
        x_test=TEST.x,
        y_test=TEST.y,
        maps_test=sign * TEST.truth + 0.0 * TEST.x,
        fractions=(0.1, 0.5),
        seeds=(0, 1),
        progress=False,
    )
    return metric(**{**settings, "fit": fit, **kwargs})


class Counted:
    """A learner that counts its models."""

    settings = dict(learner="counted")

    def __init__(self):
        self.n = 0

    def __call__(self, *args):
        self.n += 1
        return logistic(*args)


# ---------------------------------------------------------------- what is kept


@given(maps)
def test_ranks_are_a_permutation_in_order_of_magnitude(m):
    rank = R.ranks(m)
    assert (np.sort(rank, 1) == np.arange(m[0].size)).all()
    ordered = np.take_along_axis(np.abs(m).reshape(len(m), -1), rank.argsort(1), 1)
    assert (np.diff(ordered) <= 0).all()


@given(maps, st.floats(0.01, 1.0))
def test_kept_entries_are_the_largest_or_the_smallest(m, k):
    n = round(k * m[0].size)
    x = np.random.default_rng(0).normal(size=m.shape)
    if not n:
        with pytest.raises(ValueError, match="less than one of"):
            R.keep_part(x, m, k)
        return
    for side in ("top", "bottom"):
        part = R.keep_part(x, m, k, side, fill=99.0)
        kept = part != 99.0
        assert (part[kept] == x[kept]).all()
        for magnitudes, inside in zip(np.abs(m), kept):
            assert inside.sum() == n
            inner, outer = magnitudes[inside], magnitudes[~inside]
            if side == "top":
                assert inner.min() >= outer.max(initial=-np.inf)
            else:
                assert inner.max() <= outer.min(initial=np.inf)


def test_order_of_ties_is_seeded_and_without_preference():
    zeros = np.zeros((3000, 8))
    rank = R.ranks(zeros)
    assert (rank == R.ranks(zeros)).all()
    assert (rank != R.ranks(zeros, seed=1)).any()
    standard_error = (63 / 12 / 3000) ** 0.5
    assert abs(rank.mean(0) - 3.5).max() < 5 * standard_error


def test_images_tensors_and_fill():
    x, m = torch.rand(6, 3, 4, 5), torch.randn(6, 3, 4, 5)
    part = R.keep_part(x, m, 0.3)
    assert part.shape == x.shape
    assert part.dtype == np.float32
    np.testing.assert_array_equal(part, R.keep_part(x.numpy(), m.numpy(), 0.3))
    filled = R.ranks(m).reshape(x.shape) >= 18
    mean = np.broadcast_to(x.mean(0), x.shape)
    np.testing.assert_allclose(part[filled], mean[filled], atol=1e-6)
    channel = x.mean((0, 2, 3))[:, None, None].numpy()  # one mean for each channel
    by_channel = R.keep_part(x, m, 0.3, fill=channel)
    np.testing.assert_array_equal(by_channel[filled], np.broadcast_to(channel, x.shape)[filled])


# ---------------------------------------------------------------- scores


def test_known_scores_with_a_network():
    random = np.random.default_rng(0).random
    truth = toy(R.diff_roar)
    reverse = toy(R.diff_roar, maps=1.0 - TRAIN.truth, maps_test=1.0 - TEST.truth)
    noise = toy(R.diff_roar, maps=random(TRAIN.x.shape), maps_test=random(TEST.x.shape))
    assert truth.score.score[0] > 0.4
    assert truth.mean > 0.4
    assert reverse.score.score[0] < -0.4
    assert reverse.mean < -0.4
    # four standard errors of a difference on 1000 test rows
    assert abs(noise.mean) < 4 * (2 * 0.25 / 1000) ** 0.5


def test_nothing_left_and_everything_kept():
    one_class = max(TEST.y.mean(), 1 - TEST.y.mean())
    assert toy(R.roar, fractions=(1.0,)).mean == pytest.approx(one_class, abs=0.06)
    # everything is kept: the order does not matter, nor does the sign
    whole = toy(R.kar, fractions=(1.0,)).mean
    assert whole == toy(R.kar, sign=-1, fractions=(1.0,)).mean
    assert whole > 0.97


def test_which_way_is_good():
    assert R.diff_roar.direction == R.kar.direction == "higher"
    assert R.roar.direction == "lower"


def test_mean_deviation_and_interval():
    fit = R.FitAdam(mlp, epochs=1, lr=0.005, bs=50)
    result = toy(R.diff_roar, fit=fit, seeds=(3, 5, 8))
    accuracies = {}
    for part, rows in result.runs.groupby(["fraction", "side"]):
        accuracies[part] = rows.sort_values("seed").accuracy.to_numpy()
    for row in result.score.itertuples():
        top, bottom = accuracies[row.fraction, "top"], accuracies[row.fraction, "bottom"]
        pairs = [a - b for a in top for b in bottom]
        assert row.score == pytest.approx(np.mean(pairs))
        assert row.std == pytest.approx(np.std(pairs))
        assert row.std > 0
        half = t.ppf(0.975, 2) * (top - bottom).std(ddof=1) / 3**0.5
        assert row.high - row.low == pytest.approx(2 * half)
    assert result.mean == pytest.approx(result.score.score.mean())
    assert result.low < result.mean < result.high
    assert list(result.runs) == ["fraction", "side", "kept", "seed", "accuracy"]
    assert result.runs.kept.tolist() == [1] * 6 + [5] * 6


def test_one_seed_has_no_interval():
    assert np.isnan(toy(R.kar, fit=logistic, seeds=(0,)).low)


def test_the_three_share_their_runs(tmp_path):
    fit = Counted()
    fractions = [0.1, 0.3, 0.7, 0.9]
    both = toy(R.diff_roar, fit, fractions=fractions, cache=tmp_path)
    assert fit.n == 16
    kept = toy(R.kar, fit, fractions=fractions, cache=tmp_path)
    removed = toy(R.roar, fit, fractions=fractions, cache=tmp_path)
    assert fit.n == 16 == len(list((tmp_path / "runs").iterdir()))
    difference = kept.score.score.to_numpy() - removed.score.score.to_numpy()[::-1]
    assert (both.score.score.to_numpy() == difference).all()


def test_inputs_and_random_numbers_are_left_alone():
    arrays = [
        torch.tensor(TRAIN.x),
        torch.tensor(TRAIN.y),
        torch.rand(500, 10),
        torch.tensor(TEST.x),
        torch.tensor(TEST.y),
        torch.rand(1000, 10),
    ]
    before = [array.clone() for array in arrays]
    state = torch.get_rng_state()
    n_threads = torch.get_num_threads()
    R.kar(*arrays, adam, fractions=[0.5], seeds=[0], progress=False)
    assert all(map(torch.equal, arrays, before))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == n_threads


# ---------------------------------------------------------------- the same numbers in any way


def test_processes_change_nothing():
    here, elsewhere = toy(R.diff_roar), toy(R.diff_roar, n_jobs=2)
    assert here.runs.equals(elsewhere.runs)
    assert here[:3] == elsewhere[:3]


@pytest.mark.parametrize("name", ["result.json", "seal"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda text: b"",
        lambda text: text[: len(text) // 2],
        lambda text: text.replace(b"0", b"1"),
        lambda text: b"\xff\xfe\x00",
    ],
)
def test_damaged_files_are_trained_again(tmp_path, name, damage):
    fit = Counted()
    first = toy(R.kar, fit, cache=tmp_path)
    n_trained = fit.n
    file = sorted(tmp_path.glob(f"runs/*/{name}"))[1]
    file.write_bytes(damage(file.read_bytes()))
    with pytest.warns(UserWarning, match="damaged, this run is trained again"):
        again = toy(R.kar, fit, cache=tmp_path)
    assert fit.n == n_trained + 1
    assert again.runs.equals(first.runs)
    toy(R.kar, fit, cache=tmp_path)
    assert fit.n == n_trained + 1  # whole again


def test_what_the_store_tells_apart(tmp_path):
    fit = Counted()

    def trained(**kwargs):
        before = fit.n
        toy(R.kar, fit, cache=tmp_path, **kwargs)
        return fit.n - before

    assert trained() == 4
    assert trained() == 0
    assert trained(sign=-3) == 0  # magnitudes count, and only their order
    for change in (
        dict(seeds=(2, 3)),
        dict(fill=0.5),
        dict(y=1 - TRAIN.y),
        dict(y_test=1 - TEST.y),
        dict(x=TRAIN.x + 1, fill=0.0),
        dict(maps=np.roll(TRAIN.truth * 1.0, 1, 1)),
    ):
        assert trained(**change) == 4, change
    fit.settings = dict(learner="another")
    assert trained() == 4
    assert trained(fractions=(0.1, 0.5, 0.6)) == 2  # what is there is not trained again


def test_settings_of_the_learners():
    """A learner is known by everything that decides its models, activations included."""

    def identity(fit):
        return make_key("advinterp.roar:kar", dict(fit=fit)).identity

    assert identity(adam) == identity(R.FitAdam(mlp, epochs=4, lr=0.02, bs=50))
    others = [
        R.FitAdam(mlp, 5, 0.02, 50),
        R.FitAdam(mlp, 4, 0.01, 50),
        R.FitAdam(mlp, 4, 0.02, 51),
        R.FitAdam(partial(nn.Linear, 10, 2), 4, 0.02, 50),
        R.FitAdam(partial(mlp, nn.Tanh), 4, 0.02, 50),
        R.FitAdam(partial(mlp, partial(nn.Softplus, 5)), 4, 0.02, 50),
        R.FitAdam(partial(mlp, partial(nn.Softplus, 9)), 4, 0.02, 50),
        logistic,
        R.FitEstimator(LogisticRegression(C=3)),
    ]
    assert len({identity(fit) for fit in [adam, *others]}) == 10


def test_a_failing_run_is_named_and_the_others_are_kept(tmp_path):
    """The second evaluation trains what failed, and nothing else."""

    class Fails(Counted):
        def __call__(self, x, y, seed):
            if seed == 1:
                raise ArithmeticError("no luck")
            return super().__call__(x, y, seed)

    for cache in (tmp_path, None):
        with pytest.raises(RuntimeError, match=r"2 of 4 runs failed; .*ArithmeticError: no luck"):
            toy(R.kar, Fails(), cache=cache)
    fit = Counted()
    toy(R.kar, fit, cache=tmp_path)
    assert fit.n == 2


SCRIPT = """
import sys, time
from pathlib import Path
from sklearn.linear_model import LogisticRegression
from advinterp.generators import block_toy
from advinterp.roar import FitEstimator, diff_roar

folder, log, stop_after = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])

class Stopping:
    settings = dict(learner="stopping")
    n = 0

    def __call__(self, x, y, seed):
        self.n += 1
        log.write_text(str(self.n))
        while self.n > stop_after:  # until it is killed
            time.sleep(0.01)
        return FitEstimator(LogisticRegression())(x, y, seed)

arrays = []
for seed in (1, 2):
    data = block_toy(300, noise=0.5, seed=seed)
    arrays += [data.x, data.y, data.truth * 1.0]
settings = dict(fractions=[0.1, 0.4, 0.8], seeds=(0, 1), progress=False)
result = diff_roar(*arrays, Stopping(), cache=folder, **settings)
result.runs.to_csv(log.with_suffix(".csv"), index=False)
"""


def wait_for(file, text, process, seconds=300):
    """Until a process has written the text, or is over, or is late."""
    deadline = time.monotonic() + seconds
    while not (file.exists() and file.read_text() == text):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def test_a_killed_evaluation_goes_on(tmp_path):
    """Killed inside the fourth run and started again: the numbers of an undisturbed one."""
    store = tmp_path / "store"

    def start(log, stop_after):
        command = [sys.executable, "-c", SCRIPT, store, tmp_path / log, stop_after]
        environment = dict(os.environ, OMP_NUM_THREADS="1")
        return subprocess.Popen([str(word) for word in command], env=environment, cwd=ROOT)

    process = start("killed", 3)
    wait_for(tmp_path / "killed", "4", process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert len(list(store.glob("runs/[!.]*"))) == 3
    assert start("resumed", 99).wait() == 0
    assert (tmp_path / "resumed").read_text() == "9"
    assert len(list(store.glob("runs/[!.]*"))) == 12
    resumed = pd.read_csv(tmp_path / "resumed.csv", float_precision="round_trip")
    arrays = []
    for seed in (1, 2):
        data = block_toy(300, noise=0.5, seed=seed)
        arrays += [data.x, data.y, data.truth * 1.0]
    settings = dict(fractions=[0.1, 0.4, 0.8], seeds=(0, 1), progress=False)
    whole = R.diff_roar(*arrays, logistic, **settings).runs
    assert resumed.equals(whole)


# ---------------------------------------------------------------- what a user brings


LABELS = {
    "(N, 1)": lambda y: torch.tensor(y)[:, None],
    "int8": lambda y: y.astype(np.int8),
    "bool": lambda y: y > 0,
    "float": lambda y: y * 1.0,
    "list": np.ndarray.tolist,
    "series": lambda y: pd.Series(y, index=range(5, 5 + len(y))),
    "fastai": lambda y: TensorCategory(torch.tensor(y)),
}
INPUTS = {
    "float16": lambda x: torch.tensor(x).half(),
    "bfloat16": lambda x: torch.tensor(x).bfloat16(),
    "float64": lambda x: x.astype(np.float64),
    "fastai": lambda x: TensorImage(torch.tensor(x)),
    "asks for gradients": lambda x: torch.tensor(x).requires_grad_(),
    "reversed": lambda x: x[:, ::-1].copy()[:, ::-1],
}


@pytest.mark.parametrize("form", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("fit", [adam, logistic], ids=["network", "estimator"])
def test_labels_of_every_form(form, fit):
    wanted = toy(R.kar, fit)
    with torch.inference_mode():
        found = toy(R.kar, fit, y=form(TRAIN.y), y_test=form(TEST.y))
    assert found.runs.equals(wanted.runs)


@pytest.mark.parametrize("form", INPUTS.values(), ids=INPUTS)
@pytest.mark.parametrize("fit", [adam, logistic], ids=["network", "estimator"])
def test_inputs_of_every_form(form, fit):
    wanted = toy(R.kar, fit)
    maps = dict(maps=form(TRAIN.truth * 1.0), maps_test=form(TEST.truth * 1.0))
    found = toy(R.kar, fit, x=form(TRAIN.x), x_test=form(TEST.x), **maps)
    difference = found.runs.accuracy - wanted.runs.accuracy
    assert difference.abs().max() < 0.05  # rounded inputs


@pytest.mark.parametrize(
    "form", [lambda z: (z, z.sum()), lambda z: dict(logits=z), lambda z: z[:, :, None]]
)
def test_networks_with_outputs_of_every_form(form):
    wanted = toy(R.kar)

    class Wrapped(nn.Sequential):
        def forward(self, x):
            return form(super().forward(x))

    found = toy(R.kar, R.FitAdam(lambda: Wrapped(*mlp()), epochs=4, lr=0.02, bs=50))
    assert found.runs.equals(wanted.runs)


def test_networks_that_cannot_learn_are_named():
    few = partial(R.FitAdam, epochs=1)
    for make, match in (
        (lambda: nn.Sequential(mlp(), nn.Softmax(1)), "its outputs are probabilities"),
        (lambda: nn.Linear(9, 2), r"does not take x of shape \(128, 10\)"),
    ):
        with pytest.raises(RuntimeError, match=match):
            toy(R.kar, few(make))
    for kwargs in (dict(epochs=0), dict(bs=0)):
        with pytest.raises(ValueError, match=f"{next(iter(kwargs))}="):
            R.FitAdam(mlp, **kwargs)


def test_an_estimator_that_has_seen_one_class_predicts_it():
    model = R.FitEstimator(DummyClassifier())(torch.rand(5, 3), torch.zeros(5), 0)
    assert accuracy(model, torch.rand(4, 3), [0, 0, 0, 0]) == 1
    assert accuracy(model, torch.rand(4, 3), [0, 1, 1, 1]) == 0.25


def test_each_seed_draws_its_own_estimator():
    """Random states decide a shallow tree on features that are all alike."""
    x = torch.ones(40, 8) * torch.arange(40.0)[:, None]
    y = (torch.arange(40) // 10) % 2
    unlike = torch.rand(64, 8, generator=torch.Generator().manual_seed(0)) * 40
    fit = R.FitEstimator(DecisionTreeClassifier(max_features=1))
    drawn = [tuple(fit(x, y, seed)(unlike).argmax(1).tolist()) for seed in (0, 0, 1, 2, 3)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1


def test_estimators_are_known_by_all_numbers_of_their_parameters():
    def identity(estimator):
        return make_key("advinterp.roar:kar", dict(fit=R.FitEstimator(estimator))).identity

    weights = np.full(2000, 0.1)
    other = weights.copy()
    other[1000] = 0.2  # in the middle of what is printed
    first, second = (AdversarialClassifier(eps=values) for values in (weights, other))
    assert identity(first) == identity(AdversarialClassifier(eps=weights.copy()))
    assert identity(first) != identity(second)
    scaled = [make_pipeline(StandardScaler(), LogisticRegression(C=C)) for C in (1.0, 1.0, 2.0)]
    assert identity(scaled[0]) == identity(scaled[1]) != identity(scaled[2])
    assert identity(scaled[0]) != identity(make_pipeline(LogisticRegression(C=1.0)))


def test_ranks_of_tensors_and_of_nothing():
    maps = torch.randn(3, 2, 4)
    wanted = R.ranks(maps.numpy())
    for form in (TensorImage(maps), maps.clone().requires_grad_(), maps.double()):
        assert np.array_equal(R.ranks(form), wanted)
    assert R.ranks(maps.bfloat16()).shape == (3, 8)
    assert R.ranks(maps[:0]).shape == (0, 8)
    with pytest.raises(ValueError, match="maps: expected finite values"):
        R.ranks(maps * torch.nan)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "change",
    [
        dict(fractions=(0,)),
        dict(fractions=(1.1,)),
        dict(fractions=(-0.5,)),
        dict(fractions=()),
        dict(fractions=(0.5, 0.5)),
        dict(fractions=(0.04,)),
        dict(fractions=(float("nan"),)),
        dict(maps=TRAIN.x[:, :9]),
        dict(maps=TRAIN.x[:9]),
        dict(maps_test=TEST.x[:3]),
        dict(maps=TRAIN.x * np.inf),
        dict(x=TRAIN.x * np.nan),
        dict(x_test=TEST.x[:0], y_test=TEST.y[:0], maps_test=TEST.x[:0]),
        dict(x=TRAIN.x[:0], y=TRAIN.y[:0], maps=TRAIN.x[:0]),
        dict(y=TRAIN.y[:10]),
        dict(y=TRAIN.y + 0.5),
        dict(y=np.eye(2)[TRAIN.y]),
        dict(y=-TRAIN.y),
        dict(y_test=TEST.y + 1),
        dict(seeds=()),
        dict(seeds=(0, 0)),
        dict(seeds=(-1,)),
        dict(seeds=(0.5,)),
        dict(fill=np.nan),
        dict(fill=np.ones(9)),
        dict(fill="mean"),
        dict(x=TRAIN.x[:, 0], maps=TRAIN.x[:, 0]),
    ],
)
@pytest.mark.parametrize("metric", [R.diff_roar, R.roar, R.kar])
def test_bad_values_are_refused_before_training(metric, change):
    fit = Counted()
    with pytest.raises(ValueError, match="expected"):
        toy(metric, fit, **change)
    assert not fit.n


@pytest.mark.parametrize(
    "change",
    [
        dict(y=None),
        dict(y_test=np.array(["a", "b"] * 50)),
        dict(seeds=3),
        dict(fractions=0.5),
        dict(x=TRAIN.x.astype(int)),
        dict(maps=TRAIN.truth),
        dict(fractions=(".5",)),
    ],
)
def test_bad_types_are_refused(change):
    with pytest.raises(TypeError, match="expected"):
        toy(R.kar, **change)


def test_a_store_needs_settings_and_a_folder(tmp_path):
    def undeclared(x, y, seed):
        return logistic(x, y, seed)

    with pytest.raises(ValueError, match="settings"):
        toy(R.kar, undeclared, cache=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cache="):
        toy(R.kar, cache=tmp_path / "file")
