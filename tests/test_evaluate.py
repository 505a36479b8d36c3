"""Evaluations against other implementations and brute force; attacks on maps; bad input."""

import sys
import threading
import tracemalloc
import warnings
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.torch_core import TensorCategory
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize, prune

from advinterp import evaluate as E
from advinterp.adversary import PGD, OneStep
from advinterp.attribution import saliency
from advinterp.core import predicted, top_count, top_mask
from advinterp.duals import L1Ball, L2Ball, LInfBall
from advinterp.map_adversary import map_attack, paper_c_map_attack
from advinterp.metrics import topk_overlap
from advinterp.models import softplus_copy

from .border import KINDS, Wrapped, agree, every_kind, tensors_of

quick = settings(deadline=None, max_examples=25)
close = partial(torch.testing.assert_close, rtol=0)


def conv(act=nn.SiLU, seed=0, n_out=4):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(2, 6, 3), act(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6 * 25, n_out)]
    return nn.Sequential(*layers).double().eval()


def magnitudes(net, x, y):
    return saliency(net, x, y, absolute=True).flatten(1)


@pytest.fixture
def batch():
    torch.manual_seed(1)
    x = torch.rand(6, 2, 12, 12, dtype=torch.double)
    return x, torch.tensor([0, 1, 2, 3, 2, 1])


# ---------------------------------------------------------------- attacks on maps


@quick
@given(
    seed=st.integers(0, 999),
    k=st.floats(0.02, 0.98),
    eps=st.floats(0.01, 3),
    steps=st.integers(1, 6),
    sign=st.booleans(),
)
def test_map_attack_is_feasible_and_never_raises_the_share(seed, k, eps, steps, sign):
    net = conv(seed=seed)
    torch.manual_seed(seed)
    x = torch.rand(3, 2, 12, 12, dtype=torch.double)
    y = torch.randint(0, 4, (3,))
    step_size = eps / 10 if sign else None
    adv = map_attack(net, x, y, eps, k=k, steps=steps, step_size=step_size, bounds=(0, 1))
    assert (adv - x).flatten(1).norm(dim=1).max() <= eps * (1 + 1e-9)
    assert 0 <= adv.min() <= adv.max() <= 1
    assert torch.equal(net(adv).argmax(1), net(x).argmax(1))
    before, after = (magnitudes(net, z, y) for z in (x, adv))
    mask = top_mask(before, top_count(before, k, nonzero=True))
    shares = [(v * mask).sum(1) / v.sum(1) for v in (before, after)]
    assert (shares[1] <= shares[0] + 1e-12).all()


@quick
@given(seed=st.integers(0, 999), k=st.floats(0.02, 1), zeros=st.floats(0, 1))
def test_top_entries_are_the_first_of_a_sorted_row(seed, k, zeros):
    torch.manual_seed(seed)
    v = torch.rand(4, 30).mul(10).round() * (torch.rand(4, 30) >= zeros)
    for row, kept in zip(v, top_mask(v, top_count(v, k, nonzero=True))):
        n_nonzero = int((row > 0).sum())
        n = min(max(1, round(k * n_nonzero)), n_nonzero)
        by_hand = sorted(range(len(row)), key=lambda i: -row[i].item())[:n]  # a stable order
        assert kept.nonzero()[:, 0].tolist() == sorted(by_hand)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        dict(output="prob"),
        dict(output="loss"),
        dict(step_size=0.05),
        dict(bounds=(0, 1)),
        dict(steps=3, k=0.1),
    ],
)
def test_map_attack_of_a_batch_is_that_of_each_image(batch, kwargs):
    (x, y), net = batch, conv()
    whole = map_attack(net, x, y, 0.5, **kwargs)
    each = [map_attack(net, *pair, 0.5, **kwargs) for pair in zip(x.split(1), y.split(1))]
    close(whole, torch.cat(each), atol=1e-8)
    close(whole, map_attack(net, x, y, 0.5, batch_size=4, **kwargs), atol=1e-8)
    assert not torch.equal(whole, x)


def attacked_by_hand(net, x0, label, eps):
    """The public code's protocol for one image, in plain torch."""

    def map_of(z, graph=False):
        output = net(z[None])[0, label]
        return torch.autograd.grad(output, z, create_graph=graph)[0].abs().flatten()

    v = map_of(x0.clone().requires_grad_())
    top = v.topk(round(0.4 * (v > 0).sum().item())).indices
    z, best, lowest = x0.clone(), x0, v[top].sum() / v.sum()
    for _ in range(10):
        z = z.detach().requires_grad_()
        v = map_of(z, True)
        step = torch.autograd.grad(v[top].sum() / v.sum(), z)[0].sign()
        z = z.detach() - eps / 100 * step
        if (z - x0).norm() > eps:
            z = x0 + (z - x0) * eps / (z - x0).norm()
        v = map_of(z.requires_grad_())
        share = v[top].sum() / v.sum()
        if net(z[None]).argmax() == net(x0[None]).argmax() and share < lowest:
            best, lowest = z.detach(), share
    return best


def test_map_attack_written_out(batch):
    (x, y), net = batch, conv()
    for x0, label, adv in zip(x, y, paper_c_map_attack(net, x, y, 2.0)):
        close(adv, attacked_by_hand(net, x0, label, 2.0), atol=1e-8)


def test_map_attack_through_a_smooth_copy(batch):
    (x, y), net = batch, conv(nn.ReLU)
    with pytest.raises(ValueError, match="softplus_copy"):
        map_attack(net, x, y, 1.0)
    adv = map_attack(net, x, y, 1.0, attack_model=softplus_copy(net))
    noise = torch.randn_like(x)
    noise = x + noise / noise.flatten(1).norm(dim=1)[:, None, None, None]
    own = saliency(net, x, y)
    under_attack, under_noise = (
        topk_overlap(own, saliency(net, z, y), 0.4, nonzero=True).mean() for z in (adv, noise)
    )
    assert under_attack < under_noise


def test_a_zero_map_stays(batch):
    x, y = batch
    dead = nn.Sequential(nn.Flatten(), nn.Linear(288, 4)).double()
    nn.init.zeros_(dead[1].weight)
    assert torch.equal(map_attack(dead, x, y, 1.0), x)


def test_bounds_of_one_image(batch):
    (x, y), net = batch, conv()
    low = torch.zeros(2, 12, 12).double()
    low[:, :6] = -1.0
    adv = map_attack(net, x, y, 1.0, bounds=(low, 1.0))
    assert (adv >= low).all()
    assert adv[:, :, :6].min() < 0


@pytest.mark.parametrize("attack", [map_attack, paper_c_map_attack])
def test_the_radius_of_an_attack_is_its_eps(batch, attack):
    (x, y), net = batch, conv()
    with pytest.warns(FutureWarning, match="eps="):
        old = attack(net, x, y, radius=0.5)
    assert torch.equal(old, attack(net, x, y, eps=0.5))
    with pytest.raises(TypeError, match="keep eps="):
        attack(net, x, y, radius=0.5, eps=0.5)


# ---------------------------------------------------------------- accuracy and intervals


def mends(model, x, y):
    """An attack that turns every wrong answer of an odd model into a right one, and back."""
    return x * torch.where(predicted(model(x)) == y, 1.0, -1.0)[:, None]


def spoils(model, x, y):
    """An attack under which every answer of an odd model is wrong."""
    return -mends(model, x, y)


def test_an_example_counts_only_where_it_is_right_before_and_after():
    torch.manual_seed(0)
    net = nn.Linear(5, 1, bias=False)
    x, y = torch.randn(40, 5), torch.arange(40) % 2
    clean = predicted(net(x)) == y
    assert 0 < clean.sum() < 40
    assert (predicted(net(mends(net, x, y))) == y).all()
    assert torch.equal(E.is_correct(net, x, y, mends), clean)
    assert not E.is_correct(net, x, y, spoils).any()
    assert E.robust_accuracy(net, x, y, mends, batch_size=7) == E.accuracy(net, x, y)
    assert E.robust_accuracy(net, x, y, spoils) == 0


@pytest.mark.parametrize(
    "values, quantile",
    [  # of Student's t at .975, from a printed table
        ([1.0, 3.0], 12.706),
        ([1.0, 2.0, 6.0], 4.303),
        ([0.5, 0.6, 0.9, 0.4, 0.1], 2.776),
    ],
)
def test_seed_interval_by_a_printed_table(values, quantile):
    mean = sum(values) / len(values)
    deviation = (sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5
    half = quantile * deviation / len(values) ** 0.5
    assert E.seed_interval(values) == pytest.approx((mean - half, mean + half), rel=1e-3)


def test_seed_interval_of_equal_runs_and_of_one():
    assert E.seed_interval([0.3, 0.3, 0.3]) == (0.3, 0.3)
    assert np.isnan(E.seed_interval([0.3])).all()
    wide, narrow = E.seed_interval([1.0, 2.0, 6.0], 0.99), E.seed_interval([1.0, 2.0, 6.0], 0.5)
    assert wide[0] < narrow[0] < 3 < narrow[1] < wide[1]


def test_bootstrap_interval_is_that_of_the_definition():
    rng = np.random.default_rng(0)
    values = rng.exponential(size=300)
    means = rng.choice(values, (20_000, 300)).mean(1)
    error = values.std() / 300**0.5
    for level in (0.8, 0.95):
        want = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
        assert E.bootstrap_interval(values, level) == pytest.approx(want, abs=0.2 * error)
    assert E.bootstrap_interval(values) == E.bootstrap_interval(torch.from_numpy(values))
    assert E.bootstrap_interval(values) != E.bootstrap_interval(values, seed=1)
    assert E.bootstrap_interval([2.0]) == (2.0, 2.0)
    assert np.isnan(E.bootstrap_interval([1.0, np.nan])).all()
    for bad in ([], [[1.0, 2.0]]):
        with pytest.raises(ValueError, match=r"expected \(N,\)"):
            E.bootstrap_interval(bad)


def test_the_bootstrap_of_many_examples_needs_little_memory():
    values = np.random.default_rng(0).exponential(size=50_000)
    E.bootstrap_interval(values[:10])  # imports
    tracemalloc.start()
    try:
        low, high = E.bootstrap_interval(values, n_resamples=300)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert low < values.mean() < high
    assert peak < 80 * 2**20  # all resamples at once are 240 MiB


# ---------------------------------------------------------------- accuracy under several attacks


def test_worst_case_is_the_intersection_and_its_order_does_not_matter(batch):
    x, net = batch[0], conv()
    y = net(x).argmax(1)
    attacks = [OneStep(LInfBall(0.02)), OneStep(L2Ball(0.3)), OneStep(L1Ball(2.0))]
    each = torch.stack([E.is_correct(net, x, y, attack) for attack in attacks]).all(0)
    for order in (attacks, attacks[::-1]):
        assert torch.equal(E.worst_case(net, x, y, order), each)
    assert torch.equal(E.worst_case(net, x, y, order, batch_size=2), each)


def test_curve_with_pgd_restarts_is_monotone_and_at_most_each_attack(batch):
    x, net = batch[0], conv()
    y = net(x).argmax(1)
    pgd = PGD(LInfBall(1.0), steps=5, restarts=2, bounds=(0, 1))
    attacks = [pgd, OneStep(LInfBall(1.0))]
    curve = E.robustness_curve(net, x, y, [0.0, 0.01, 0.03, 0.1], attacks)
    assert curve.accuracy[0] == 1
    assert (curve.accuracy.diff() <= 0).all()
    assert (curve.correct[1:] <= curve.correct[:-1]).all()
    for eps, accuracy in zip(curve.eps, curve.accuracy):
        assert accuracy <= E.robust_accuracy(net, x, y, pgd.with_eps(eps.item())) + 1e-6


def test_curve_warns_of_models_without_gradients():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    net[0].bias.data.fill_(-9.0)
    x, y = torch.rand(5, 3), torch.zeros(5).long()
    with pytest.warns(UserWarning, match="gradient is exactly zero"):
        E.robustness_curve(net, x, y, [0.1], OneStep(LInfBall(1.0)))


@pytest.mark.parametrize(
    "call",
    [
        lambda net, x, y: E.accuracy(net, x, y),
        lambda net, x, y: E.worst_case(net, x, y, OneStep(LInfBall(0.1))),
        lambda net, x, y: E.aopc_morf(net, x, y, x),
        lambda net, x, y: E.map_stability([net, net], x, y),
        lambda net, x, y: E.gradient_norms(net, x, y),
        lambda net, x, y: E.map_robustness(net, x, y, [0.1]),
        lambda net, x, y: E.cascading_randomization(net, x, y),
        lambda net, x, y: E.robustness_curve(net, x, y, [0.1], OneStep(LInfBall(1.0))),
    ],
    ids=[
        "accuracy",
        "worst_case",
        "aopc",
        "stability",
        "norms",
        "map_robustness",
        "cascading",
        "curve",
    ],
)
def test_bad_input(batch, call):
    (x, y), net = batch, conv()
    for bad_x, bad_y, error, match in (
        (x, y + 2, ValueError, "the classes 0 to 3"),
        (x[:0], y[:0], ValueError, "x is empty"),
        (x, y[:2], ValueError, "expected 6 class indices"),
        (x, None, TypeError, "y=None: expected 6 class indices"),
        (x, y + 0.5, ValueError, "y has fractions"),
        (x, ["a"] * 6, TypeError, "number the classes first"),
        (x.numpy(), y, TypeError, "x: expected a torch"),
        ((x, x), y, TypeError, "x: expected a torch"),
        (x.long(), y, TypeError, "expected a floating dtype"),
    ):
        with pytest.raises(error, match=match):
            call(net, bad_x, bad_y)
    for model, match in (
        (nn.Sequential(net, nn.Softmax(1)), "expected logits"),
        (Wrapped(net, lambda z: z[:, :1].sigmoid()), "expected logits"),
        (Wrapped(net, lambda z: z * torch.nan), "logits are NaN"),
        (Wrapped(net, lambda z: (z, z + 1)), "in which 2 tensors could be the logits"),
    ):
        with pytest.raises(ValueError, match=match):
            call(model, x, y % 2)


# ---------------------------------------------------------------- what a user brings


def small(n_out=4):
    return conv(n_out=n_out).float().train()


def images():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(6, 2, 12, 12, generator=generator), torch.tensor([0, 1, 2, 3, 2, 1])


FUNCTIONS = {
    "is_correct": E.is_correct,
    "accuracy": E.accuracy,
    "robust_accuracy": lambda *a: E.robust_accuracy(*a, OneStep(LInfBall(0.05))),
    "worst_case": lambda *a: E.worst_case(
        *a, [OneStep(LInfBall(0.05)), PGD(L2Ball(0.3), steps=2, random_start=False)]
    ),
    "robustness_curve": lambda *a: E.robustness_curve(*a, [0.02, 0.1], OneStep(LInfBall(1.0))),
    "map_robustness": lambda *a: E.map_robustness(*a, [0.2], sigma=1.0, steps=2),
    "map_stability": lambda net, x, y: E.map_stability([net, net], x, y, sigma=1.0),
    "morf_curve": lambda net, x, y: E.morf_curve(net, x, y, RANKED[: len(x)], patch=4),
    "aopc_morf": lambda net, x, y: E.aopc_morf(net, x, y, RANKED[: len(x)], patch=4),
    "cascading_randomization": lambda *a: E.cascading_randomization(*a, sigma=1.0),
    "gradient_norms": E.gradient_norms,
}
RANKED = torch.arange(6 * 2 * 144.0).sin().view(6, 2, 12, 12)  # no ties
every_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


@every_kind
@every_function
def test_whatever_is_brought_is_measured(function, kind):
    if kind is KINDS["function"] and function is FUNCTIONS["cascading_randomization"]:
        with pytest.raises(TypeError, match="whose layers can be randomised, got function"):
            function(kind.model(small()), *images())
        return
    agree(function, kind, small(), *images())


@every_function
def test_one_logit_in_any_form(function):
    net, (x, y) = small(1), images()
    for form in (lambda z: z[:, 0], torch.squeeze):
        found, wanted = (
            tensors_of(function(model, x, y > 1)) for model in (Wrapped(net, form), net)
        )
        for ours, plain in zip(found, wanted):
            torch.testing.assert_close(ours, plain, equal_nan=True, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_probabilities_are_refused_in_every_precision(dtype, context):
    torch.manual_seed(0)
    x, y = torch.randn(40, 5, dtype=dtype), torch.arange(40) % 2
    one, two = nn.Linear(5, 1).to(dtype), nn.Linear(5, 2).to(dtype)
    attack = OneStep(LInfBall(0.1))
    for ends in (nn.Sequential(one, nn.Sigmoid()), nn.Sequential(two, nn.Softmax(1))):
        for call in (
            lambda: E.accuracy(ends, x, y),
            lambda: E.robust_accuracy(ends, x, y, attack),
            lambda: E.worst_case(ends, x, y, [attack]),
            lambda: E.robustness_curve(ends, x, y, [0.1], attack),
        ):
            with context(), pytest.raises(ValueError, match="are probabilities"):
                call()
    with context():
        assert 0 <= E.accuracy(one, x, y) <= 1


def test_nan_in_any_batch_is_refused():
    torch.manual_seed(0)
    net = nn.Linear(4, 3)
    x, y = torch.rand(90, 4), torch.zeros(90).long()
    x[77, 0] = 5.0

    def broken(x):
        return torch.where(x[:, :1] > 2, torch.nan, net(x))

    def breaks(model, x, y):
        return x.add_(10.0)

    attack = OneStep(LInfBall(0.01))
    for call in (
        lambda: E.is_correct(broken, x, y, batch_size=8),
        lambda: E.accuracy(broken, x, y, batch_size=8),
        lambda: E.worst_case(broken, x, y, attack, batch_size=8),
        lambda: E.robustness_curve(broken, x, y, [0.01], attack, batch_size=8),
        lambda: E.aopc_morf(broken, x, y, x, batch_size=8),
    ):
        with pytest.raises(ValueError, match="logits are NaN for 1 of"):
            call()
    before = x.clone()
    with pytest.raises(ValueError, match="logits are NaN for 89 of"):
        E.robust_accuracy(broken, x[x[:, 0] < 2], y[1:], breaks)
    assert torch.equal(x, before)


def test_no_attack_is_no_robust_accuracy(batch):
    (x, y), net = batch, conv()
    for none in (None, [], ()):
        for call in (
            lambda: E.worst_case(net, x, y, none),
            lambda: E.robustness_curve(net, x, y, [0.1], none),
        ):
            with pytest.raises(ValueError, match=r"the accuracy without one is accuracy\(model"):
                call()
    with pytest.raises(ValueError, match="adversary=None: expected an attack"):
        E.robust_accuracy(net, x, y, None)
    for wrong in (OneStep, 0.1):
        with pytest.raises(TypeError, match="expected an attack such as"):
            E.robust_accuracy(net, x, y, wrong)
    with pytest.raises(ValueError, match=r"it gave \(2, 12, 12\) for inputs of shape \(6, 2, 12"):
        E.robust_accuracy(net, x, y, lambda model, x, y: x[0])
    with pytest.raises(TypeError, match=r"eps_grid=0\.1: expected a list of strengths"):
        E.robustness_curve(net, x, y, 0.1, OneStep(LInfBall(1.0)))


def test_functions_of_ones_own_get_the_model_and_a_copy(batch):
    (x, y), net = batch, conv()
    seen = []

    def attack(model, x, y):
        seen.append(model)
        return x.zero_()

    def attribution(model, x, y):
        seen.append(model)
        x.requires_grad_()
        g = torch.autograd.grad(model(x).gather(1, y[:, None]).sum(), x)[0]
        x.detach().zero_()
        return g

    before = x.clone()
    E.robust_accuracy(net, x, y, attack)
    stable = E.map_stability([net, conv(seed=1)], x, y, attribution, sigma=1.0)
    E.map_robustness(net, x, y, [0.1], attribution, sigma=1.0, steps=1)
    assert torch.equal(stable.rank, E.map_stability([net, conv(seed=1)], x, y, sigma=1.0).rank)
    assert torch.equal(x, before)
    assert not x.requires_grad
    assert {type(model) for model in seen} == {nn.Sequential}


@pytest.mark.parametrize(
    "call",
    [
        lambda *a, **kw: E.map_robustness(*a, [0.1], **kw),
        lambda net, *a, **kw: E.map_stability([net, net], *a, **kw),
        E.cascading_randomization,
        lambda net, x, y, **kw: E.label_randomization(lambda labels: net, y, x, y, **kw),
    ],
)
def test_settings_of_comparisons_are_checked_first(batch, call):
    def never(model, x, y):
        raise AssertionError

    for kwargs, error, match in (
        (dict(k=0), ValueError, r"k=0: expected a fraction in \(0, 1\]"),
        (dict(k=-1), ValueError, "k=-1: expected a finite number >= 0"),
        (dict(k=5), ValueError, r"k=5: expected a fraction in \(0, 1\]"),
        (dict(sigma="wide"), TypeError, "sigma='wide': expected a number"),
    ):
        with pytest.raises(error, match=match):
            call(conv(), *batch, attribution=never, **kwargs)
    with pytest.raises(TypeError, match="attribution='ig': expected a function"):
        call(conv(), *batch, attribution="ig")


WRONG_SETTINGS = {
    "is_correct": [("batch_size", 0), ("batch_size", 2.0), ("batch_size", None)],
    "map_robustness": [("seed", -1), ("seed", "a"), ("seed", None), ("batch_size", -1)],
    "morf_curve": [("patch", 0), ("steps", 0), ("steps", 999), ("fill", "grey"), ("fill", np.nan)],
    "cascading_randomization": [("seed", 0.5), ("order", "down")],
}


@pytest.mark.parametrize(
    "name, setting, value",
    [(name, *pair) for name in WRONG_SETTINGS for pair in WRONG_SETTINGS[name]],
)
def test_wrong_settings_are_named(batch, name, setting, value):
    more = dict(map_robustness=dict(eps_grid=[0.1]), morf_curve=dict(map=batch[0]))
    with pytest.raises((TypeError, ValueError), match=f"^{setting}="):
        getattr(E, name)(conv(), *batch, **more.get(name, {}), **{setting: value})


@pytest.mark.parametrize(
    "setting",
    [dict(level=0), dict(level=1.5), dict(level="a"), dict(n_resamples=0), dict(seed=None)],
)
def test_wrong_settings_of_intervals_are_named(setting):
    with pytest.raises((TypeError, ValueError), match=f"^{next(iter(setting))}="):
        E.bootstrap_interval([1.0, 2.0], **setting)


def test_as_many_as_there_are(batch):
    (x, y), net = batch, conv()
    many = dict(batch_size=10**30)
    attack = OneStep(LInfBall(0.02))
    assert torch.equal(E.is_correct(net, x, y, **many), E.is_correct(net, x, y))
    assert torch.equal(E.worst_case(net, x, y, attack, **many), E.worst_case(net, x, y, attack))


def test_threads_that_measure_one_model_get_its_numbers(batch):
    x, net = batch[0], conv().train()
    y = net(x).argmax(1)
    attack = PGD(LInfBall(0.02), steps=3)

    def measured():
        stands = E.is_correct(net, x, y, attack)
        return stands, saliency(net, x, y), *E.gradient_norms(net, x, y)

    wanted, found = measured(), []
    threads = [
        threading.Thread(target=lambda: found.extend(measured() for _ in range(4)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16
    assert all(torch.equal(a, b) for values in found for a, b in zip(values, wanted))
    assert net.training
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


# ---------------------------------------------------------------- AutoAttack


@pytest.mark.parametrize("name", ["dict", "function", "learner", "fastai", "inference mode"])
def test_autoattack_is_given_logits(name, monkeypatch):
    """A stand-in for the package shows what it gets."""
    seen = []

    class Stand:
        def __init__(self, model, norm, eps, version, n_classes, seed):
            seen.append((norm, eps, version, n_classes))
            self.model, self.eps = model, eps

        def set_device(self, device):
            seen.append(device)

        def __call__(self, x, y):
            assert self.model(x).shape == (len(x), 4)
            return (x + self.eps).clamp(0, 1)

    monkeypatch.setitem(sys.modules, "torchattacks", SimpleNamespace(AutoAttack=Stand))
    kind = KINDS[name]
    model, x, y = kind.brought(small(), *images())
    with kind.within():
        moved = E.AutoAttack(LInfBall(0.1))(model, x, y)
    torch.testing.assert_close(moved, (images()[0] + 0.1).clamp(0, 1))
    assert seen == [("Linf", 0.1, "standard", 4), torch.device("cpu")]


def test_autoattack_names_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    with pytest.raises(ImportError, match="pip install torchattacks"):
        E.AutoAttack(LInfBall(0.1))


def test_autoattack_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="expected LInfBall or L2Ball"):
        E.AutoAttack(L1Ball(1.0))
    with pytest.raises(ValueError, match="version='fast': expected one of 'standard'"):
        E.AutoAttack(LInfBall(1.0), "fast")


def test_autoattack_is_one_of_the_adversaries():
    pytest.importorskip("torchattacks", reason="torchattacks is not installed")
    net = conv().float()
    torch.manual_seed(0)
    x = torch.rand(6, 2, 12, 12)
    y = net(x).argmax(1)
    state = torch.get_rng_state()
    attack = E.AutoAttack(LInfBall(1.0), "rand")
    curve = E.robustness_curve(net.train(), x, y, [0.0, 0.02], [attack])
    assert curve.accuracy[0] == 1
    assert torch.equal(state, torch.get_rng_state())
    assert net.training
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    adv = attack.with_eps(0.02)(net, x, y)
    assert (adv - x).abs().max() <= 0.02 + 1e-6
    assert torch.equal(adv, attack.with_eps(0.02)(net, x, y))
    assert repr(attack) == "AutoAttack(LInfBall(1.0), version='rand')"
    with pytest.raises(ValueError, match="at least four logits"):
        attack.with_eps(0.1)(conv(n_out=3).float(), x, y % 3)
    with pytest.raises(ValueError, match="outside the bounds"):
        attack.with_eps(0.1)(net, 3 * x, y)


@pytest.mark.slow
def test_autoattack_and_pgd_agree_on_a_small_net():
    """Two strong attacks leave about as many examples standing, both together the fewest."""
    pytest.importorskip("torchattacks", reason="torchattacks is not installed")
    torch.manual_seed(0)
    x = torch.rand(40, 2, 12, 12)
    net = conv().float()
    y = net(x).argmax(1)
    pgd = PGD(LInfBall(0.004), steps=40, restarts=3, bounds=(0, 1), early_stop=True)
    auto = E.AutoAttack(LInfBall(0.004))
    by_pgd, by_auto, by_both = (
        E.worst_case(net, x, y, attacks).float().mean() for attacks in (pgd, auto, [pgd, auto])
    )
    assert abs(by_pgd - by_auto) < 0.1
    assert 0 < by_both <= min(by_pgd, by_auto)
    assert by_both < 1


# ---------------------------------------------------------------- faithful maps


@pytest.mark.parametrize("patch", [1, 2, 4])
@pytest.mark.parametrize("signed", [True, False])
def test_morf_curve_equals_quantus(batch, patch, signed):
    quantus = pytest.importorskip("quantus", reason="Quantus is not installed")
    x, y, net = batch[0].float(), batch[1], conv().float()
    n_regions = (12 // patch) ** 2
    heat = torch.randn(6, 1, 12, 12).expand_as(x).contiguous()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metric = quantus.RegionPerturbation(
            patch_size=patch,
            regions_evaluation=n_regions,
            abs=not signed,
            normalise=False,
            perturb_baseline=0.5,
            disable_warnings=True,
        )
        arrays = x.numpy(), y.numpy(), heat.numpy().copy()
        theirs = np.array(metric(net, *arrays, softmax=True, channel_first=True))
    ours = E.morf_curve(net, x, y, heat, patch, fill=0.5, signed=signed)
    np.testing.assert_allclose(ours[:, 1:], theirs, atol=1e-6)
    area = E.aopc_morf(net, x, y, heat, patch, fill=0.5, signed=signed)
    np.testing.assert_allclose(area, theirs.sum(1) / (n_regions + 1), atol=1e-6)


def all_regions(patch):
    """Index of every region of an image of 2 x 12 x 12."""
    if patch is None:
        return [np.unravel_index(i, (2, 12, 12)) for i in range(288)]
    starts = range(0, 12, patch)
    corners = [(top, left) for top in starts for left in starts]
    return [np.s_[:, top : top + patch, left : left + patch] for top, left in corners]


@quick
@given(seed=st.integers(0, 999), patch=st.sampled_from([None, 1, 2, 3, 5]), steps=st.integers(1, 6))
def test_morf_curve_by_brute_force(seed, patch, steps):
    net = conv(seed=seed)
    torch.manual_seed(seed)
    x = torch.rand(2, 2, 12, 12, dtype=torch.double)
    heat = torch.randn(2, 2, 12, 12).double()
    y = torch.tensor([1, 3])
    curve = E.morf_curve(net, x, y, heat, patch, steps=steps, output="logit")
    for i in range(2):
        regions = sorted(all_regions(patch), key=lambda r: -heat[i][r].abs().sum().item())
        z = x[i].clone()
        drops = [0.0]
        for region in regions[:steps]:
            z[region] = 0.0
            drops.append((net(x[i : i + 1]) - net(z[None]))[0, y[i]].item())
        close(curve[i], torch.tensor(drops).double(), atol=1e-6)


def test_relative_drop():
    assert E.relative_drop(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 4.0])) == 0.5
    with pytest.raises(ValueError, match="one shape"):
        E.relative_drop(torch.ones(2), torch.ones(3))


# ---------------------------------------------------------------- robust and stable maps


def test_robustness_of_maps_and_its_old_names(batch):
    (x, y), net = batch, conv()
    run = partial(E.map_robustness, net, x, y, sigma=1.0)
    rob = run([0.1, 0.5])
    assert rob.eps.tolist() == pytest.approx([0.1, 0.5])
    assert rob.attacked.rank.shape == rob.noise.rank.shape == (2, 6)
    moved = map_attack(net, x, y, 0.5)
    by_hand = E.map_similarity(saliency(net, x, y), saliency(net, moved, y), sigma=1.0)
    torch.testing.assert_close(rob.attacked.rank[1], by_hand.rank)
    torch.testing.assert_close(rob.attacked.dice[1], by_hand.dice)
    with pytest.warns(FutureWarning, match="eps_grid="):
        old = run(radii=[0.1, 0.5])
    assert torch.equal(old.attacked.rank, rob.attacked.rank)
    with pytest.warns(FutureWarning, match=r"MapRobustness\.eps"):
        assert rob.radii is rob.eps


def test_stability_is_the_mean_over_pairs_in_any_order(batch):
    (x, y), nets = batch, [conv(seed=seed) for seed in range(4)]
    maps = [saliency(net, x, y) for net in nets]
    pairs = [(i, j) for i in range(4) for j in range(i)]
    each = [E.map_similarity(maps[i], maps[j], sigma=1.0) for i, j in pairs]
    stable = E.map_stability(nets, x, y, sigma=1.0)
    backwards = E.map_stability(nets[::-1], x, y, sigma=1.0)
    for name in ("dice", "ssim", "rank"):
        mean = torch.stack([getattr(similarity, name) for similarity in each]).mean(0)
        torch.testing.assert_close(getattr(stable, name), mean)
        torch.testing.assert_close(getattr(stable, name), getattr(backwards, name))


def test_tables_have_no_ssim():
    x, y = torch.rand(5, 7), torch.zeros(5).long()
    nets = [nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 2)) for _ in range(2)]
    stable = E.map_stability(nets, x, y)
    assert stable.ssim.isnan().all()
    assert stable.rank.isfinite().all()
    robust = E.map_robustness(nets[0], x, y, [0.5])
    assert robust.attacked.ssim.isnan().all()
    assert robust.attacked.rank.shape == (1, 5)


# ---------------------------------------------------------------- random weights, norms


class Swapped(nn.Module):
    """Registers its layers in the opposite order of their calls."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(6, 4)
        self.norm = nn.BatchNorm1d(6)
        self.first = nn.Linear(288, 6)

    def forward(self, x):
        return self.last(self.norm(self.first(x.flatten(1))).tanh())


class Scale(nn.Module):
    """Has a parameter, but no way to draw it anew."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()).double())

    def forward(self, x):
        return self.factor * x


def test_cascade_goes_through_the_layers_as_they_are_called(batch):
    x, y = batch
    torch.manual_seed(0)
    net = Swapped().double()
    net.norm.running_mean.fill_(3.0)
    run = partial(E.cascading_randomization, net, x, y, sigma=1.0)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    found = run()
    assert found.layers == ["last", "norm", "first"]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training
    assert run(order="bottom_up").layers == found.layers[::-1]
    again, other = (run(seed=seed).similarity.rank for seed in (0, 1))
    assert torch.equal(again, found.similarity.rank)
    assert not torch.equal(other, again)


def test_a_layer_that_cannot_be_reset_needs_a_function(batch):
    x, y = batch
    net = nn.Sequential(Swapped().double(), Scale())
    run = partial(E.cascading_randomization, net, x, y, sigma=1.0)
    with pytest.raises(ValueError, match="Scale has no reset_parameters"):
        run()
    assert run(reinit=noise).layers == ["1", "0.last", "0.norm", "0.first"]


# ---------------------------------------------------------------- sanity checks that check


def noise(layer):
    """New weights of one's own."""
    for parameter in layer.parameters(recurse=False):
        parameter.normal_(0, 0.3)


def normed(norm):
    torch.manual_seed(0)
    layers = [nn.Flatten(), norm(nn.Linear(288, 16)), nn.GELU(), norm(nn.Linear(16, 4))]
    return nn.Sequential(*layers).double()


def never_below_zero(layer):
    class Magnitude(nn.Module):
        def forward(self, weight):
            return weight.abs()

        def right_inverse(self, weight):
            return weight

    parametrize.register_parametrization(layer, "weight", Magnitude())
    return layer


def twice(layer):
    return norms.spectral_norm(norms.weight_norm(layer))


norms = nn.utils.parametrizations
NORMS = {
    "plain": lambda layer: layer,
    "weight_norm": nn.utils.weight_norm,
    "spectral_norm": nn.utils.spectral_norm,
    "new weight_norm": norms.weight_norm,
    "new spectral_norm": norms.spectral_norm,
    "orthogonal": norms.orthogonal,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "one's own": never_below_zero,
    "two": twice,
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("reinit", [None, noise], ids=["reset", "own"])
@pytest.mark.parametrize("trained", [False, True], ids=["new", "trained"])
@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_weights_behind_a_norm_are_randomised(batch, norm, trained, reinit):
    (x, y), net = batch, normed(norm)
    if trained:
        opt = torch.optim.SGD(net.parameters(), 0.1)
        torch.nn.functional.cross_entropy(net(x), y).backward()
        opt.step()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    wanted = saliency(net, x, y)
    found = E.cascading_randomization(net, x, y, sigma=1.0, reinit=reinit)
    assert found.layers == ["3", "1"]
    last = found.similarity.rank[-1]
    assert last.mean() < 0.5 if norm is not never_below_zero else (last < 0.999).all()
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(saliency(net, x, y), wanted)  # the model is as it was, its classes too
    assert torch.equal(
        found.similarity.rank,
        E.cascading_randomization(net, x, y, sigma=1.0, reinit=reinit).similarity.rank,
    )


class Attends(nn.Module):
    """Its attention is called, the output layer inside is not; one layer serves as a function."""

    def __init__(self, functional):
        super().__init__()
        self.head = nn.Linear(16, 4)
        self.attend = nn.MultiheadAttention(16, 2, batch_first=True)
        self.embed = nn.Linear(36, 16)
        self.unused = nn.Linear(3, 3)
        self.functional = functional

    def forward(self, x):
        patches = x.reshape(len(x), 8, 36)
        if self.functional:
            h = nn.functional.linear(patches, self.embed.weight, self.embed.bias)
        else:
            h = self.embed(patches)
        return self.head((h + self.attend(h, h, h)[0]).mean(1))


@pytest.mark.parametrize("order", ["top_down", "bottom_up", "independent"])
@pytest.mark.parametrize("functional", [False, True])
@pytest.mark.parametrize("reinit", [None, noise])
def test_no_weight_that_is_used_is_left_trained(batch, functional, order, reinit):
    x, y = batch
    torch.manual_seed(0)
    net = Attends(functional).double()
    seen = []

    def attribution(model, x, y):
        seen.append(model)
        return saliency(model, x, y)

    found = E.cascading_randomization(net, x, y, attribution, sigma=1.0, order=order, reinit=reinit)
    layers = ["head", "attend", "embed"]
    assert found.layers == (layers[::-1] if order == "bottom_up" else layers)
    trained = dict(net.named_parameters())
    same = [
        {name for name, p in copy.named_parameters() if torch.equal(p, trained[name])}
        for copy in seen[1:]
    ]
    left = set.intersection(*same)
    assert (
        {name for name in left if not name.startswith("unused")}
        <= {"attend.in_proj_bias", "attend.out_proj.bias"}
        if reinit is None
        else left == {"unused.weight", "unused.bias"}
    )


class Cached(nn.Linear):
    """Computes with a copy of its weight."""

    def forward(self, x):
        if not hasattr(self, "copy"):
            self.copy = self.weight.detach().clone()
        return nn.functional.linear(x, self.copy, self.bias)


class Partial(nn.Linear):
    """Has a parameter that its reset forgets."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.gain = nn.Parameter(torch.full((sizes[1],), 2.0))

    def forward(self, x):
        return self.gain * super().forward(x)


class Hidden(nn.Module):
    """Its layer is used where neither a call nor a function shows it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(288, 4)

    def forward(self, x):
        return product(x, {"weight": self.layer.weight})


@torch.jit.script
def product(x, weights: dict[str, torch.Tensor]):
    return x @ weights["weight"].t()


@pytest.mark.parametrize(
    "layer, reinit, match",
    [
        (nn.Linear(288, 4), lambda layer: None, "layer '1': reinit leaves '1.weight' as trained"),
        (Partial(288, 4), None, "layer '1': reset_parameters leaves '1.gain' as trained"),
        (Cached(288, 4, bias=False), None, "layer '1': its output is the same after reset_para"),
        (Cached(288, 4, bias=False), noise, "layer '1': its output is the same after reinit"),
        (Hidden(), None, "the weights of layer '1.layer' are used neither by a call"),
    ],
)
def test_a_reset_without_effect_is_refused(batch, layer, reinit, match):
    x, y = batch
    net = nn.Sequential(nn.Flatten(), layer).double()
    with torch.no_grad():
        net(x)
    with pytest.raises(ValueError, match=match):
        E.cascading_randomization(net, x, y, sigma=1.0, reinit=reinit)


def test_a_parametrization_that_takes_no_values_is_refused(batch):
    x, y = batch
    net = normed(lambda layer: layer)
    parametrize.register_parametrization(net[3], "weight", nn.Tanh())
    with pytest.raises(ValueError, match="layer '3': the parametrization of its weight takes no"):
        E.cascading_randomization(net, x, y, sigma=1.0)


@pytest.mark.parametrize("make", [nn.BatchNorm1d, nn.LayerNorm])
def test_a_norm_that_has_learned_nothing_may_stay(batch, make):
    x, y = batch
    net = nn.Sequential(nn.Flatten(), nn.Linear(288, 6), make(6), nn.Tanh(), nn.Linear(6, 4))
    found = E.cascading_randomization(net.double(), x, y, sigma=1.0)
    assert found.layers == ["4", "2", "1"]
    assert torch.equal(found.similarity.rank[1], found.similarity.rank[0])


def test_a_transformer_is_randomised_layer_by_layer(batch):
    x, y = batch
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(12, 2, 8, batch_first=True)
    net = nn.Sequential(nn.Flatten(1, 2), encoder, nn.Flatten(), nn.Linear(288, 4)).double()
    found = E.cascading_randomization(net, x, y, sigma=1.0)
    inside = ["norm2", "linear2", "linear1", "norm1", "self_attn"]
    assert found.layers == ["3", *(f"1.{name}" for name in inside)]


def test_layers_of_a_learner_have_the_names_of_its_model(batch):
    net = conv().float()
    x, y = batch[0].float(), batch[1]
    by_learner = E.cascading_randomization(KINDS["learner"].model(net), x, y, sigma=1.0)
    assert by_learner.layers == E.cascading_randomization(net, x, y, sigma=1.0).layers


def test_label_randomization_checks_that_labels_matter():
    x, y = torch.rand(3, 4), torch.tensor([0, 1, 0])
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    with pytest.raises(ValueError, match="fit: the models trained on true and on permuted labels"):
        E.label_randomization(lambda labels: net, torch.arange(50) % 2, x, y)
    with pytest.raises(ValueError, match="leaves its 50 labels as they are"):
        E.label_randomization(lambda labels: net, torch.ones(50), x, y)
    with pytest.raises(ValueError, match="y_train is empty"):
        E.label_randomization(lambda labels: net, [], x, y)


@pytest.mark.parametrize("kind", [torch.tensor, np.array, list, pd.Series, TensorCategory])
def test_training_labels_are_permuted_in_the_form_they_have(kind):
    seen = []

    def fit(labels):
        seen.append(labels)
        return nn.Linear(4, 2)

    values = [0, 0, 1, 1, 1, 0, 1]
    with torch.inference_mode():
        E.label_randomization(fit, kind(values), torch.rand(3, 4), [0, 1, 0])
    true, permuted = seen
    assert type(true) is type(permuted)
    assert [*map(int, true)] == values
    assert sorted(map(int, permuted)) == sorted(values)
    assert [*map(int, permuted)] != values


def test_label_randomization_permutes_the_labels():
    seen = []

    def fit(labels):
        seen.append(labels)
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))

    y = torch.arange(50) % 2
    alike = E.label_randomization(fit, y, torch.rand(3, 4), torch.tensor([0, 1, 0]))
    assert alike.rank.shape == (3,)
    true, permuted = seen
    assert torch.equal(true, y)
    assert not torch.equal(permuted, y)
    assert torch.equal(permuted.sort().values, y.sort().values)


def test_gradient_norms_of_each_logit(batch):
    (x, y), net = batch, conv()
    norms = E.gradient_norms(net, x, y, batch_size=4)
    for i in range(6):
        jacobian = torch.autograd.functional.jacobian(lambda z: net(z[None])[0], x[i])
        by_hand = jacobian.flatten(1).norm(dim=1)
        assert norms.true[i].item() == pytest.approx(by_hand[y[i]].item(), abs=1e-9)
        others = (by_hand.sum() - by_hand[y[i]]) / 3
        assert norms.others[i].item() == pytest.approx(others.item(), abs=1e-9)


def test_gradient_norms_of_a_binary_model(batch):
    x, y = batch
    one = nn.Sequential(nn.Flatten(), nn.Linear(288, 1)).double()
    norms = E.gradient_norms(one, x, y % 2)
    torch.testing.assert_close(norms.true, one[1].weight.norm().expand(6).detach())
    torch.testing.assert_close(norms.true, norms.others)


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    "name",
    [
        "accuracy",
        "robust_accuracy",
        "robustness_curve",
        "map_robustness",
        "map_stability",
        "aopc_morf",
        "relative_drop",
        "cascading_randomization",
        "label_randomization",
        "gradient_norms",
        "rank_correlation",
    ],
)
def test_metrics_say_which_way_is_good(name):
    metric = getattr(E, name)
    directions = metric.direction
    directions = set(directions.values()) if isinstance(directions, dict) else {directions}
    assert directions <= {"higher", "lower"}
    assert metric.citation


def test_more_is_better_or_worse():
    assert E.aopc_morf.direction == E.accuracy.direction == "higher"
    assert E.relative_drop.direction == "lower"


def test_names_of_later_and_earlier_pages():
    from advinterp import linear
    from advinterp.evaluate import feature_impact
    from advinterp.evaluate import map_attack as attack

    assert attack is map_attack and feature_impact is linear.feature_impact
    with pytest.raises(AttributeError, match="no attribute 'content_hash'"):
        _ = E.content_hash


def test_cache_is_ignored_with_a_word():
    """The cache of version 0.1 is gone; scripts that name one still run."""
    net = nn.Linear(4, 3)
    x = torch.rand(5, 4)
    y = torch.tensor([0, 1, 2, 0, 1])
    attack = OneStep(LInfBall(0.1))
    with pytest.warns(FutureWarning, match="cache= is ignored.*store.remember"):
        right = E.worst_case(net, x, y, attack, cache="somewhere")
    assert torch.equal(right, E.worst_case(net, x, y, attack))
