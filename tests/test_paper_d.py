"Paper D: the published settings run, the shortcuts are exact, the bound on weight penalties holds for every network, and verdicts follow from the numbers."

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import nn

from advinterp.adversary import margin_loss
from advinterp.core import set_seed, task_loss
from advinterp.duals import LInfBall
from advinterp.jobs import check_out, read_job, run_job, store_row
from advinterp.models import one_hidden
from advinterp.papers import d as D
from advinterp.penalty import WeightNorm

TINY = dict(width=30, epochs=3, bs=5_000, lr=0.5)


def test_paper_preset_has_the_published_settings_and_runs(tmp_path):
    "25,000 units, 4,000 epochs of 40 batches of 250, 0.1 falling by 0.75 every 50 epochs to 0.001; here one epoch of it."
    out = check_out(tmp_path)
    full = D._job(None, "l2", preset="paper").settings
    assert {k: full[k] for k in ("width", "epochs", "bs", "lr", "eps", "steps")} == dict(
        width=25_000, epochs=4_000, bs=250, lr=0.1, eps=0.45, steps=8
    )
    assert [round(D._rate(full, e), 6) for e in (0, 49, 50, 799, 850, 3_999)] == [
        0.1,
        0.1,
        0.075,
        round(0.1 * 0.75**15, 6),
        0.001,
        0.001,
    ]
    job = D._job("linf", "l2", False, preset="paper", epochs=1, bs=2_500, lr=0.01)
    assert run_job(job, out) == "done"
    row = read_job(job, out)["row"]
    assert (
        not row["diverged"]
        and len(row["pgd"]) == len(row["worst"]) == 11
        and all(w <= p + 1e-9 for w, p in zip(row["worst"], row["pgd"]))
    )


@pytest.mark.parametrize("gradient,weights", D._pairs)
@pytest.mark.parametrize("adversarial", [False, True])
def test_every_model_trains_and_repeats(tmp_path, gradient, weights, adversarial):
    "Two trainings agree to the last bit, and differ from one without the penalty."
    s = D._job(gradient, weights, adversarial, **TINY).settings
    a, b = (torch.cat([p.detach().flatten() for p in D._train(s).parameters()]) for _ in range(2))
    assert torch.equal(a, b)
    plain = torch.cat(
        [
            p.detach().flatten()
            for p in D._train(D._job(None, None, adversarial, **TINY).settings).parameters()
        ]
    )
    assert torch.equal(a, plain) == (gradient is None and weights is None)


def test_training_is_that_of_the_ten_thousand_rows():
    "The weighted points against a loop over the rows themselves."
    s = D._job(None, "l1", **dict(TINY, epochs=1)).settings
    x, y, _, kind, _ = D._points(s)
    set_seed(0)
    net = one_hidden(10, s["width"])
    opt = torch.optim.SGD(net.parameters(), s["lr"])
    for i in torch.randperm(len(kind)).split(s["bs"]):
        loss = (
            task_loss(net(x[kind[i]]), y[kind[i]]).mean()
            + s["strengths"][1] * WeightNorm(1)(net, x[:1], y[:1]).mean()
        )
        opt.zero_grad()
        loss.backward()
        opt.step()
    for p, q in zip(net.parameters(), D._train(s).parameters()):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_diverging_run_is_a_row(tmp_path):
    out = check_out(tmp_path)
    job = D._job("l2", strengths=[1e6, 0.0], **TINY)
    assert run_job(job, out) == "done" and read_job(job, out)["row"] == dict(
        accuracy=0.0, diverged=True
    )
    assert D._strengths([job], out)[0].table.accuracy.tolist() == ["diverged"]


@pytest.mark.parametrize("d", [1, 3, 10])
def test_no_network_is_below_the_optimum_of_weight_decay(d):
    "Random networks of many shapes and scales never fall below the bound, which is the minimum of its one-dimensional problem."
    x = torch.cat([torch.eye(d), -torch.eye(d)]).double()
    y = torch.arange(2).repeat_interleave(d).flip(0)
    for strength in (1e-3, 0.02, 0.5):
        least, z = D.weight_decay_optimum(strength, d)
        c = 2 * (2 * d) ** 0.5 * strength
        assert least == pytest.approx(
            minimize_scalar(
                lambda z: np.log1p(np.exp(-z)) + c * z,
                bounds=(0, 40),
                method="bounded",
                options=dict(xatol=1e-8),
            ).fun,
            abs=1e-5,
        )
        for seed in range(60):
            set_seed(seed)
            net = nn.Sequential(
                nn.Linear(d, 1 + seed % 7, bias=False),
                nn.ReLU(),
                nn.Linear(1 + seed % 7, 2, bias=False),
            ).double()
            with torch.no_grad():
                for p in net.parameters():
                    p.mul_(10 ** (seed % 4 - 1.5)).add_((seed % 5 - 2) * 0.2)
                assert (
                    task_loss(net(x), y).mean()
                    + strength * WeightNorm(2, squared=True)(net, x, y).mean()
                ).item() >= least - 1e-9
        # relu(u.x) - relu(-u.x) with u along (1, ..., 1), weights of one norm: the sum attains it
        best = minimize_scalar(
            lambda s: np.log1p(np.exp(-s * s * 2**0.5 / d**0.5)) + strength * 4 * s * s,
            bounds=(0, 12),
            method="bounded",
            options=dict(xatol=1e-8),
        ).fun
        assert best == pytest.approx(least, abs=1e-5)
    with pytest.raises(ValueError, match="strength=-1"):
        D.weight_decay_optimum(-1)


@pytest.mark.parametrize("bounds", [None, (-1.0, 1.0)])
def test_corners_are_the_best_of_all(bounds):
    "Against a plain loop, on networks of a few inputs."
    for seed in range(5):
        set_seed(seed)
        net = one_hidden(4, 12).double()
        x = torch.rand(3, 4).double() * 2 - 1
        y = torch.tensor([0, 1, 1])
        eps = 0.3
        got = margin_loss(net(D.Corners(LInfBall(eps), bounds=bounds)(net, x, y)), y)
        for i in range(3):
            points = [
                x[i] + eps * torch.tensor(c).double()
                for c in itertools.product((-1.0, 1.0), repeat=4)
            ]
            if bounds:
                points = [p.clamp(*bounds) for p in points]
            assert got[i].item() == pytest.approx(
                max(margin_loss(net(p[None]), y[i : i + 1]).item() for p in points), abs=1e-12
            )


def known(tmp_path, values, column="share"):
    "A study whose rows are given: model -> one number for each seed."
    out, jobs = check_out(tmp_path), []
    for (g, w, a), v in values.items():
        for seed, n in enumerate(v):
            jobs.append(D._job(g, w, a, seed, **TINY))
            store_row(jobs[-1], out, {"accuracy": 1.0, "diverged": False, column: n}, 1.0)
    return jobs, out


@pytest.mark.parametrize(
    "l2,verdict",
    [
        ([0.5, 0.52, 0.51], "confirmed"),
        ([0.1, 0.12, 0.11], "refuted"),
        ([0.1, 0.5, 0.3], "not confirmed"),
        ([0.5], "no interval"),
    ],
)
def test_verdicts_follow_from_the_numbers(tmp_path, l2, verdict):
    others = {(*p, False): [0.3, 0.31, 0.29][: len(l2)] for p in D._alone if p != (None, "l2")}
    c = D.claims_d(*known(tmp_path, {**others, (None, "l2", False): l2})).set_index("claim")
    assert c.verdict["An l2 weight penalty shows the signal best"] == verdict
    assert c.difference["An l2 weight penalty shows the signal best"] == pytest.approx(
        np.mean(np.array(l2) - [0.3, 0.31, 0.29][: len(l2)])
    )


def test_sections_of_a_study_that_has_just_begun(tmp_path):
    "One run: the items that need it show what there is, the others nothing."
    jobs, out = known(tmp_path, {(None, None, False): [0.1]})
    for i in D._toy_items():
        assert i.sections(out, "quick") == []  # those runs are of another size
    assert (
        D._gradients("t", "f", ["standard"], jobs, out) == []
        and len(D._numbers(jobs, out)[0].table) == 1
    )


def test_strengths_are_by_the_rule():
    df = pd.DataFrame(
        dict(
            model=["a"] * 3 + ["b"],
            output="loss",
            strength=[1.0, 3.0, 10.0, 1.0],
            accuracy=[1.0, 1.0, 1.0, 0.5],
            blind=[0.0, 0.0, 0.05, 0.0],
        )
    )
    assert D.chosen(df).to_dict() == {("a", "loss"): 3.0}


@pytest.mark.parametrize("data,has_truth", [("block_digits", True), ("digits", False)])
def test_images_run_and_repeat(tmp_path, data, has_truth):
    rows = []
    for k in range(2):
        job = D._image_job(
            data,
            "adversarial",
            width=8,
            n_train=60,
            n_test=40,
            epochs=1,
            steps=2,
            fractions=[0.5],
            roar_epochs=1,
        )
        out = check_out(tmp_path / str(k))
        assert run_job(job, out) == "done"
        rows.append(read_job(job, out)["row"])
    assert rows[0] == rows[1] and ("leakage" in rows[0]) == has_truth
