"Retraining metrics: what is kept, known scores, the same numbers however they are computed, and a store that survives a kill."

import json
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
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.stats import t
from sklearn.linear_model import LogisticRegression
from torch import nn

from advinterp import roar as R
from advinterp.generators import block_toy

small = st.integers(-3, 3).map(float)  # ties and zeros
maps = arrays(np.float64, array_shapes(min_dims=2, max_dims=4, max_side=5), elements=small)


def mlp():
    return nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 2))


adam = R.FitAdam(mlp, epochs=4, lr=0.02, bs=50)
logistic = R.FitEstimator(LogisticRegression())
TRAIN, TEST = block_toy(500, noise=0.1, seed=1), block_toy(1000, noise=0.1, seed=2)


def toy(f, fit=adam, sign=1, **kwargs):
    kw = dict(
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
    return f(**{**kw, "fit": fit, **kwargs})


class Counted:
    "A learner that counts its models."

    settings = dict(learner="counted")

    def __init__(self):
        self.n = 0

    def __call__(self, *args):
        self.n += 1
        return logistic(*args)


# ---------------------------------------------------------------- what is kept


@given(maps, st.floats(0.01, 1.0))
def test_kept_entries(m, k):
    d = m[0].size
    n = round(k * d)
    x = np.random.default_rng(0).normal(size=m.shape)
    rank = R.ranks(m)
    assert (np.sort(rank, 1) == np.arange(d)).all()  # a permutation, in order of magnitude
    assert (
        np.diff(np.take_along_axis(np.abs(m).reshape(len(m), -1), rank.argsort(1), 1)) <= 0
    ).all()
    if not n:
        return
    for side, best in (("top", np.maximum), ("bottom", np.minimum)):
        kept = R.keep_part(x, m, k, side, fill=99.0) != 99.0
        assert (kept.reshape(len(m), -1).sum(1) == n).all()
        v = (
            np.where(kept, np.abs(m), -np.inf if side == "bottom" else np.inf).reshape(len(m), -1),
            np.where(~kept, np.abs(m), np.inf if side == "bottom" else -np.inf).reshape(len(m), -1),
        )
        assert (
            (v[0].min(1) >= v[1].max(1)).all()
            if side == "top"
            else (v[0].max(1) <= v[1].min(1)).all()
        )
        assert (R.keep_part(x, m, k, side, fill=99.0)[kept] == x[kept]).all()


def test_order_of_ties_is_seeded_and_without_preference():
    z = np.zeros((3000, 8))
    a = R.ranks(z)
    assert (
        (a == R.ranks(z)).all()
        and (a != R.ranks(z, seed=1)).any()
        and abs(a.mean(0) - 3.5).max() < 5 * (63 / 12 / 3000) ** 0.5
    )


def test_images_tensors_and_fill():
    x, m = torch.rand(6, 3, 4, 5), torch.randn(6, 3, 4, 5)
    a = R.keep_part(x, m, 0.3)
    assert a.shape == x.shape and a.dtype == np.float32
    np.testing.assert_array_equal(a, R.keep_part(x.numpy(), m.numpy(), 0.3))
    kept = R.ranks(m).reshape(x.shape) < 18
    np.testing.assert_allclose(a[~kept], np.broadcast_to(x.mean(0), x.shape)[~kept], atol=1e-6)
    channel = x.mean((0, 2, 3))[:, None, None].numpy()  # one mean for each channel
    np.testing.assert_array_equal(
        R.keep_part(x, m, 0.3, fill=channel)[~kept], np.broadcast_to(channel, x.shape)[~kept]
    )


# ---------------------------------------------------------------- scores


def test_known_scores_with_a_network():
    rnd = np.random.default_rng(0).random
    truth, reverse = (
        toy(R.diff_roar),
        toy(R.diff_roar, maps=1.0 - TRAIN.truth, maps_test=1.0 - TEST.truth),
    )
    noise = toy(R.diff_roar, maps=rnd(TRAIN.x.shape), maps_test=rnd(TEST.x.shape))
    assert (
        truth.score.score[0] > 0.4
        and truth.mean > 0.4
        and reverse.score.score[0] < -0.4
        and reverse.mean < -0.4
    )
    assert (
        abs(noise.mean) < 4 * (2 * 0.25 / 1000) ** 0.5
    )  # four standard errors of a difference on 1000 test rows
    assert toy(R.roar, fractions=(1.0,)).mean == pytest.approx(
        max(TEST.y.mean(), 1 - TEST.y.mean()), abs=0.06
    )
    assert (
        toy(R.kar, fractions=(1.0,)).mean == toy(R.kar, sign=-1, fractions=(1.0,)).mean > 0.97
    )  # everything is kept: the order does not matter, nor does the sign
    assert R.diff_roar.direction == R.kar.direction == "higher" and R.roar.direction == "lower"


def test_mean_deviation_and_interval():
    r = toy(R.diff_roar, fit=R.FitAdam(mlp, epochs=1, lr=0.005, bs=50), seeds=(3, 5, 8))
    A = {
        (f, s): g.sort_values("seed").accuracy.to_numpy()
        for (f, s), g in r.runs.groupby(["fraction", "side"])
    }
    for row in r.score.itertuples():
        pairs = [a - b for a in A[row.fraction, "top"] for b in A[row.fraction, "bottom"]]
        assert (
            row.score == pytest.approx(np.mean(pairs))
            and row.std == pytest.approx(np.std(pairs))
            and row.std > 0
        )
        d = A[row.fraction, "top"] - A[row.fraction, "bottom"]
        assert row.high - row.low == pytest.approx(2 * t.ppf(0.975, 2) * d.std(ddof=1) / 3**0.5)
    assert r.mean == pytest.approx(r.score.score.mean()) and r.low < r.mean < r.high
    assert (
        list(r.runs) == ["fraction", "side", "kept", "seed", "accuracy"]
        and r.runs.kept.tolist() == [1] * 6 + [5] * 6
    )
    assert np.isnan(toy(R.kar, fit=logistic, seeds=(0,)).low)  # one seed has no interval


def test_the_three_share_their_runs(tmp_path):
    fit = Counted()
    fr = [0.1, 0.3, 0.7, 0.9]
    d, n = toy(R.diff_roar, fit, fractions=fr, cache=tmp_path), fit.n
    k, r = (
        toy(R.kar, fit, fractions=fr, cache=tmp_path),
        toy(R.roar, fit, fractions=fr, cache=tmp_path),
    )
    assert n == 16 == fit.n == len(list(tmp_path.iterdir()))
    assert (
        d.score.score.to_numpy() == k.score.score.to_numpy() - r.score.score.to_numpy()[::-1]
    ).all()


def test_inputs_and_random_numbers_are_left_alone():
    arrays_ = [
        torch.tensor(TRAIN.x),
        torch.tensor(TRAIN.y),
        torch.rand(500, 10),
        torch.tensor(TEST.x),
        torch.tensor(TEST.y),
        torch.rand(1000, 10),
    ]
    before, state, threads = (
        [a.clone() for a in arrays_],
        torch.get_rng_state(),
        torch.get_num_threads(),
    )
    R.kar(*arrays_, adam, fractions=[0.5], seeds=[0], progress=False)
    assert (
        all(map(torch.equal, arrays_, before))
        and torch.equal(torch.get_rng_state(), state)
        and torch.get_num_threads() == threads
    )


# ---------------------------------------------------------------- the same numbers however they are computed


def test_processes_change_nothing():
    a, b = toy(R.diff_roar), toy(R.diff_roar, n_jobs=2)
    assert a.runs.equals(b.runs) and a[:3] == b[:3]


@pytest.mark.parametrize(
    "damage",
    [
        lambda s: "",
        lambda s: s[: len(s) // 2],
        lambda s: "[1, 2]",
        lambda s: '{"a": 1, "b": 2, "c": 3}',
        lambda s: '{"run": null, "sha256": ""}',
        lambda s: s.replace('"accuracy": ', '"accuracy": 1'),
        lambda s: b"\xff\xfe\x00",
    ],
)
def test_damaged_files_are_trained_again(tmp_path, damage):
    fit = Counted()
    first = toy(R.kar, fit, cache=tmp_path)
    n = fit.n
    f = sorted(tmp_path.iterdir())[1]
    good = f.read_text()
    bad = damage(good)
    f.write_bytes(bad if isinstance(bad, bytes) else bad.encode())
    with pytest.warns(UserWarning, match="damaged"):
        again = toy(R.kar, fit, cache=tmp_path)
    assert fit.n == n + 1 and again.runs.equals(first.runs) and f.read_text() == good


def test_what_the_store_tells_apart(tmp_path):
    fit = Counted()
    go = partial(toy, R.kar, fit, cache=tmp_path)

    def trained(**kwargs):
        n = fit.n
        go(**kwargs)
        return fit.n - n

    assert (
        trained() == 4 and trained() == 0 and trained(sign=-3) == 0
    )  # magnitudes count, and only their order
    flipped = 1 - TRAIN.y
    for change in (
        dict(seeds=(2, 3)),
        dict(fill=0.5),
        dict(y=flipped),
        dict(y_test=1 - TEST.y),
        dict(x=TRAIN.x + 1, fill=0.0),
        dict(maps=np.roll(TRAIN.truth * 1.0, 1, 1)),
    ):
        assert trained(**change) == 4, change
    fit.settings = dict(learner="another")
    assert trained() == 4
    assert trained(fractions=(0.1, 0.5, 0.6)) == 2  # what is there already is not trained again


def test_settings_of_the_learners():
    assert adam.settings == R.FitAdam(mlp, epochs=4, lr=0.02, bs=50).settings and json.dumps(
        adam.settings
    )
    others = [
        R.FitAdam(mlp, 5, 0.02, 50),
        R.FitAdam(mlp, 4, 0.01, 50),
        R.FitAdam(mlp, 4, 0.02, 51),
        R.FitAdam(partial(nn.Linear, 10, 2), 4, 0.02, 50),
        R.FitAdam(
            lambda: nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 2)), 4, 0.02, 50
        ),
    ]
    assert adam.settings not in [o.settings for o in others]
    assert logistic.settings != R.FitEstimator(LogisticRegression(C=3)).settings


def test_a_failing_learner_stores_nothing(tmp_path):
    def fit(x, y, seed):
        raise RuntimeError("no luck")

    fit.settings = {}
    with pytest.raises(RuntimeError, match="no luck"):
        toy(R.kar, fit, cache=tmp_path)
    assert not list(tmp_path.iterdir())


SCRIPT = """
import sys, time, numpy as np
from pathlib import Path
from sklearn.linear_model import LogisticRegression
from advinterp.generators import block_toy
from advinterp.roar import diff_roar, FitEstimator
class Slow:
    settings = dict(learner='slow')
    def __call__(self, x, y, seed):
        with open(sys.argv[2], 'a') as f: f.write('x')
        time.sleep(float(sys.argv[3]))
        return FitEstimator(LogisticRegression())(x, y, seed)
s, t = block_toy(300, noise=.5, seed=1), block_toy(300, noise=.5, seed=2)
r = diff_roar(s.x, s.y, s.truth*1., t.x, t.y, t.truth*1., Slow(), fractions=[.1, .4, .8], seeds=(0, 1), cache=sys.argv[1], progress=False)
r.runs.to_csv(sys.argv[2] + '.csv', index=False)
"""


def test_a_killed_evaluation_goes_on(tmp_path):
    "Killed by SIGKILL after a few runs, started again: the rest is trained, and the numbers are those of an undisturbed one."

    def start(log, sleep):
        return subprocess.Popen(
            [
                sys.executable,
                "-c",
                SCRIPT,
                str(tmp_path / "store"),
                str(tmp_path / log),
                str(sleep),
            ],
            env=dict(os.environ, OMP_NUM_THREADS="1"),
            cwd=Path(__file__).parent.parent,
        )

    def done():
        return len(list((tmp_path / "store").glob("*.json")))

    p = start("killed", 0.3)
    while done() < 3 and p.poll() is None:
        time.sleep(0.02)
    p.send_signal(signal.SIGKILL)
    assert p.wait() == -signal.SIGKILL
    n = done()
    assert 3 <= n < 12
    assert start("resumed", 0).wait() == 0
    assert len((tmp_path / "resumed").read_text()) == 12 - n and done() == 12
    (s, r), resumed = (
        (block_toy(300, noise=0.5, seed=i) for i in (1, 2)),
        pd.read_csv(tmp_path / "resumed.csv", float_precision="round_trip"),
    )
    whole = R.diff_roar(
        s.x,
        s.y,
        s.truth * 1.0,
        r.x,
        r.y,
        r.truth * 1.0,
        logistic,
        fractions=[0.1, 0.4, 0.8],
        seeds=(0, 1),
        progress=False,
    ).runs
    assert resumed.accuracy.tolist() == whole.accuracy.tolist() and resumed.drop(
        columns="accuracy"
    ).equals(whole.drop(columns="accuracy"))


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
@pytest.mark.parametrize("f", [R.diff_roar, R.roar, R.kar])
def test_bad_values_are_refused_before_training(f, change):
    fit = Counted()
    with pytest.raises(ValueError, match="expected"):
        toy(f, fit, **change)
    assert not fit.n


@pytest.mark.parametrize(
    "change",
    [
        dict(y=TRAIN.y * 1.0),
        dict(x=TRAIN.x.astype(int)),
        dict(maps=TRAIN.truth),
        dict(fractions=(".5",)),
    ],
)
def test_bad_types_are_refused(change):
    with pytest.raises(TypeError, match="expected"):
        toy(R.kar, **change)


def test_a_store_needs_settings_and_a_folder(tmp_path):
    with pytest.raises(ValueError, match="settings"):
        toy(R.kar, lambda x, y, s: logistic(x, y, s), cache=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cache="):
        toy(R.kar, cache=tmp_path / "file")
