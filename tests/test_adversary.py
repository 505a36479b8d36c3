"""Property sweeps, side effects, strength and bad input of `advinterp.adversary`."""

import contextlib
import copy
import os
import random
import re
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from advinterp.adversary import (
    PGD,
    Adversary,
    DualAdversary,
    Harmonise,
    OneStep,
    check_attackable,
    drawn_as_in_0_1,
    first_order_gap,
    has_bf16,
    joined,
    margin_loss,
    mi_fgsm,
    paper_a_cifar,
    paper_a_mnist,
    paper_b_cifar,
    paper_b_mnist,
    paper_c_iterative,
)
from advinterp.core import task_loss
from advinterp.duals import ElasticNet, GroupBall, L1Ball, L2Ball, LInfBall, WeightedL2

BALLS = ["linf", "l2", "l1", "group"]


def make_ball(name, eps, d):
    if name == "group":
        return GroupBall(eps, groups=torch.arange(d) // 3)
    return {"linf": LInfBall, "l2": L2Ball, "l1": L1Ball}[name](eps)


def dual_norm(name, w):
    if name == "linf":
        return w.abs().sum()
    if name == "l2":
        return w.norm()
    if name == "l1":
        return w.abs().max()
    return sum(w[i : i + 3].norm() for i in range(0, len(w), 3))


def mlp(seed=0, d=12, out=3, dtype=torch.float32):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(d, 32), nn.ReLU(), nn.Linear(32, out)).to(dtype)


def data(seed=0, n=20, d=12, classes=3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, d, generator=generator, dtype=dtype)
    return x, torch.randint(0, classes, (n,), generator=generator)


def loss_at(model, x, y):
    return task_loss(model(x), y).detach()


# --- closed forms


@settings(deadline=None, max_examples=20)
@given(
    name=st.sampled_from(BALLS),
    d=st.integers(1, 40),
    eps=st.floats(1e-3, 10.0),
    reach=st.floats(0.01, 30.0),
    seed=st.integers(0, 1000),
)
def test_one_layer_closed_form(name, d, eps, reach, seed):
    torch.manual_seed(seed)
    net = nn.Linear(d, 1).double()
    net.weight.data.normal_()
    w = net.weight.data[0]
    x, y = data(seed, 5, d, 2, torch.double)
    s = 2 * y.double() - 1
    ball = make_ball(name, eps, d)
    # The slope of the loss in the logit is sigmoid(z) - y. Beyond z = 37 the sigmoid rounds to 1 in
    # float64, the gradient of a confident example is exactly 0, and no attack by gradients can see
    # its way (check_attackable warns of it). So no logit in the ball may lie beyond `reach`.
    largest = net(x).abs().max().detach() + eps * dual_norm(name, w)
    net.weight.data *= reach / largest
    net.bias.data *= reach / largest
    exact = F.softplus(-s * net(x)[:, 0] + eps * dual_norm(name, w)).detach()
    for adv in (
        OneStep(ball),
        PGD(ball, 5, random_start=False),
        PGD(ball, 25),
        PGD(ball, 3, warm_start=True),
    ):
        x_adv = adv(net, x, y)
        assert torch.allclose(loss_at(net, x_adv, y), exact, rtol=1e-6, atol=1e-6)
        assert (ball.h(x_adv - x) == 0).all()


@pytest.mark.parametrize("name", BALLS)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_default_steps_fall_from_eps_to_eps_over_steps(name, steps):
    "The loop of equation (3), written out: step t of T has the length eps (1 - t/T)."
    net, (x, y) = mlp(dtype=torch.double), data(dtype=torch.double)
    eps = 0.4
    delta = torch.zeros_like(x)
    for t in range(steps):
        z = (x + delta).requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(net(z), y, reduction="sum"), z)
        step = make_ball(name, eps * (1 - t / steps), 12)
        delta = make_ball(name, eps, 12).project(delta + step.delta_star(g))
    adv = PGD(make_ball(name, eps, 12), steps, random_start=False)
    torch.testing.assert_close(adv(net, x, y), x + delta, rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 3])
def test_best_looks_at_every_iterate(steps):
    "Start, every step, and what the last step reached: the best of them, for each example."
    net, (x, y) = mlp(dtype=torch.double), data(dtype=torch.double)
    ball = LInfBall(0.3)
    settings = dict(step_size=0.3, random_start=False)
    reached = [PGD(ball, n, **settings)(net, x, y) for n in range(1, steps + 1)]
    iterates = [x, *reached]
    losses = torch.stack([loss_at(net, z, y) for z in iterates])
    best = PGD(ball, steps, best=True, **settings)(net, x, y)
    torch.testing.assert_close(loss_at(net, best, y), losses.amax(0), rtol=1e-12, atol=0)
    for i in range(1, steps + 1):  # each is the best for some example: it would be missed
        assert (losses.argmax(0) == i).any()


@pytest.mark.parametrize("name", BALLS)
def test_default_pgd_reaches_the_closed_form(name):
    torch.manual_seed(0)
    net = nn.Linear(30, 1).double()
    w = net.weight.data[0]
    x, y = data(0, 50, 30, 2, torch.double)
    s = 2 * y.double() - 1
    ball = make_ball(name, 0.3, 30)
    exact = F.softplus(-s * net(x)[:, 0] + 0.3 * dual_norm(name, w)).detach()
    assert (exact - loss_at(net, PGD(ball, 40)(net, x, y), y)).abs().max() < 1e-6


@pytest.mark.parametrize(
    "dual",
    [
        ElasticNet(0.1, 0.2),
        ElasticNet(0.01, 0.01),
        WeightedL2(0.2, 1.5),
        WeightedL2(0.1, torch.rand(12).double() + 0.1),
    ],
    ids=["e1", "e2", "w1", "w2"],
)
def test_penalty_ascent_is_stationary_and_not_below_one_step(dual):
    net = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y = data(1, 10, dtype=torch.double)

    def objective(adv):
        z = adv(net, x, y)
        return loss_at(net, z, y) - dual.h(z - x)

    one, many = objective(OneStep(dual)), objective(PGD(dual, 60))
    assert (many >= one - 1e-9).all() and (many >= loss_at(net, x, y) - 1e-12).all()
    assert first_order_gap(dual, net, x, y, PGD(dual, 60)(net, x, y)).max() < 1e-8


def steep_net():
    """A net of which a long step does not know where it ends: two hidden layers, large weights."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3)
    )
    for layer in net[::2]:
        layer.weight.data *= 4
    return net.double()


class PriceUnknown(ElasticNet):
    """Its price has no closed form, as far as it says."""

    def h(self, delta):
        raise NotImplementedError


@pytest.mark.parametrize("dual", [ElasticNet(0.1, 2.0), WeightedL2(1.0, 1.0)], ids=["e", "w"])
@pytest.mark.parametrize("bounds", [None, (-3.0, 3.0)])
def test_penalty_line_search_never_falls(dual, bounds):
    net, (x, y) = steep_net(), data(2, 12, dtype=torch.double)

    def objective(adv, settings):
        z = adv(dual, bounds=bounds, **settings)(net, x, y)
        return loss_at(net, z, y) - dual.h(z - x)

    clean = loss_at(net, x, y)
    reached = [objective(PGD, dict(steps=n)) for n in (1, 2, 5, 20, 60)]
    assert all((later >= sooner - 1e-12).all() for sooner, later in zip([clean, *reached], reached))
    half = objective(PGD, dict(steps=200, step_size=0.5))
    assert reached[-1].mean() > half.mean() + 1
    assert half.mean() < clean.mean() + 1  # the constant step that was the default
    warm = objective(PGD, dict(steps=19, warm_start=True))
    assert torch.equal(warm, reached[3])  # its first step is that start


def test_penalty_line_search_without_a_price():
    net, (x, y) = steep_net(), data(2, 12, dtype=torch.double)
    known, unknown = (PGD(kind(0.1, 0.5), 40)(net, x, y) for kind in (ElasticNet, PriceUnknown))
    gain = [loss_at(net, z, y) - ElasticNet(0.1, 0.5).h(z - x) for z in (known, unknown)]
    assert (gain[1] >= loss_at(net, x, y) - 1e-12).all()
    assert gain[1].mean() > 0.9 * gain[0].mean()


@pytest.mark.parametrize(
    "margin, dtype, lost", [(10, 32, 0), (40, 32, 1), (90, 32, 1), (30, 64, 0)]
)
def test_the_true_class_that_rounding_loses(margin, dtype, lost):
    x = torch.full((4, 1), float(margin), dtype=getattr(torch, f"float{dtype}"))
    y = torch.zeros(4, dtype=torch.long)

    def net(z):
        return torch.cat([z / 2, -z / 2, -z / 2 - 1], 1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = check_attackable(net, x, y)
        assert check_attackable(net, x, y, margin_loss) == []
    assert ["no longer feels" in message for message in found] == [True] * lost


# --- feasibility, strength


@settings(deadline=None, max_examples=40)
@given(
    name=st.sampled_from(BALLS),
    eps=st.floats(0, 2.0),
    steps=st.integers(1, 4),
    momentum=st.sampled_from([0.0, 0.9]),
    best=st.booleans(),
    restarts=st.integers(1, 2),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    bounded=st.booleans(),
    seed=st.integers(0, 100),
)
def test_feasible_and_with_best_never_below_clean(
    name, eps, steps, momentum, best, restarts, dtype, bounded, seed
):
    net, (x, y) = mlp(seed, dtype=dtype), data(seed, dtype=dtype)
    ball = make_ball(name, eps, 12)
    bounds = (0, 1) if bounded else None
    adv = PGD(ball, steps, momentum=momentum, best=best, restarts=restarts, bounds=bounds)
    x_adv = adv(net, x, y)
    assert x_adv.shape == x.shape
    assert x_adv.dtype == dtype
    assert not x_adv.requires_grad
    assert x_adv.isfinite().all()
    assert (ball.norm(x_adv - x) <= eps * (1 + 1e-4) + 1e-5).all()
    if bounded:
        assert x_adv.min() >= 0 and x_adv.max() <= 1
    if best or restarts > 1:
        assert (loss_at(net, x_adv, y) >= loss_at(net, x, y) - 1e-5).all()


def test_more_restarts_and_targets():
    net, (x, y) = mlp(dtype=torch.double), data(n=60, dtype=torch.double)
    one, two, five = (
        loss_at(net, PGD(LInfBall(0.3), 5, restarts=restarts, best=True)(net, x, y), y)
        for restarts in (1, 2, 5)
    )
    assert (two >= one - 1e-12).all()
    assert (five >= two - 1e-12).all()
    assert (five > one + 1e-9).any()
    goal = (y + 1) % 3
    x_adv = PGD(LInfBall(0.3), best=True, targeted=True)(net, x, goal)
    assert (loss_at(net, x_adv, goal) <= loss_at(net, x, goal) + 1e-12).all()
    assert (loss_at(net, x_adv, goal) < loss_at(net, x, goal)).any()


def test_early_stop_counts_the_same_and_saves_work():
    net, (x, y) = mlp(), data(n=60)
    y = net(x).argmax(1)  # every example right at first
    sizes = []

    def counted(z):
        sizes.append(len(z))
        return net(z)

    full = PGD(LInfBall(0.4), 20, restarts=2)(counted, x, y)
    n_full = sum(sizes)
    sizes.clear()
    stopped = PGD(LInfBall(0.4), 20, restarts=2, early_stop=True)(counted, x, y)
    assert sum(sizes) < n_full
    n_right = [(net(z).argmax(1) == y).sum() for z in (stopped, full)]
    assert n_right[0] <= n_right[1] < len(y)
    binary = nn.Linear(12, 1)
    yb = (binary(x) > 0).long()[:, 0]
    x_adv = PGD(LInfBall(0.5), 5, early_stop=True)(binary, x, yb)
    assert ((binary(x_adv) > 0).long()[:, 0] == yb).sum() < len(yb)


def test_early_stop_counts_the_last_step():
    """After as many steps as without: an example that none of them fools is where the last led."""
    net, (x, y) = mlp(), data(n=60)
    y = net(x).argmax(1)
    one = PGD(LInfBall(0.05), 1, random_start=False)(net, x, y)
    assert torch.equal(PGD(LInfBall(0.05), 1, random_start=False, early_stop=True)(net, x, y), one)
    assert (one != x).any(1).all()


def test_binary_head_shapes_agree():
    lin, (x, y) = nn.Linear(12, 1), data(classes=2)

    def two_logits(z):
        return torch.cat([torch.zeros(len(z), 1), lin(z)], 1)

    for adv in (OneStep(L2Ball(0.3)), PGD(L2Ball(0.3), 4, random_start=False)):
        expected = adv(lin, x, y)
        assert torch.allclose(adv(lambda z: lin(z)[:, 0], x, y), expected, atol=1e-6)
        assert torch.allclose(adv(two_logits, x, y), expected, atol=1e-6)


def test_gradient_is_per_example():
    net, (x, y) = mlp(dtype=torch.double), data(dtype=torch.double)
    for dual in (ElasticNet(0.1, 0.3), L2Ball(0.3)):
        adv = PGD(dual, 3, random_start=False)
        whole = adv(net, x, y)
        singly = [adv(net, x[i : i + 1], y[i : i + 1]) for i in range(len(x))]
        assert torch.allclose(whole, torch.cat(singly), atol=1e-5)
        assert torch.equal(adv(net, x, y, nn.CrossEntropyLoss()), whole)


def test_channels_per_feature_bounds_and_tensors():
    net, (x, y) = mlp(), data()
    lo, hi = torch.zeros(12), torch.ones(12)
    hi[3] = x[:, 3].max()
    lo[4] = -torch.inf
    out = PGD(LInfBall(0.3), 4, bounds=(lo, hi))(net, x, y)
    assert (out >= lo).all() and (out <= hi).all()


# --- no side effects


class Stateful(nn.Module):
    "Batch statistics, dropout, a counter that moves even in evaluation mode; fails when told."

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3)
        )
        self.register_buffer("calls", torch.zeros(()))
        self.left, self.error = None, RuntimeError

    def forward(self, x):
        self.calls += 1
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise self.error("injected")
        return self.net(x)


def snapshot(m, opt):
    return copy.deepcopy(
        dict(
            params=[p.detach() for p in m.parameters()],
            grads=[None if p.grad is None else p.grad.clone() for p in m.parameters()],
            flags=[p.requires_grad for p in m.parameters()],
            modes=[k.training for k in m.modules()],
            buffers=list(m.buffers()),
            ids=[id(b) for b in m.buffers()],
            opt=opt.state_dict(),
            torch=torch.get_rng_state(),
            numpy=np.random.get_state()[1].copy(),
            py=random.getstate(),
        )
    )


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(i, j) for i, j in zip(a, b))
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return (a == b).all()
    return a == b


@pytest.mark.filterwarnings("ignore:model. its gradient is NaN")
@settings(deadline=None, max_examples=50)
@given(
    fail=st.one_of(st.none(), st.integers(0, 6)),
    error=st.sampled_from([RuntimeError, KeyboardInterrupt, MemoryError]),
    training=st.sampled_from([False, True, None]),
    kind=st.sampled_from(["one", "pgd", "best", "stop", "warm", "elastic", "harmonise", "fast"]),
    nan=st.booleans(),
    seed=st.integers(0, 5),
)
def test_nothing_leaks(fail, error, training, kind, nan, seed):
    torch.manual_seed(seed)
    m = Stateful()
    opt = torch.optim.Adam(m.parameters())
    x, y = data(seed)
    task_loss(m(x), y).mean().backward()
    opt.step()
    m.net[0].bias.requires_grad_(False)
    m.net[1].eval()
    adv = dict(
        one=OneStep(LInfBall(0.1)),
        pgd=PGD(L2Ball(0.3), 4),
        best=PGD(L1Ball(0.3), 3, restarts=2),
        stop=PGD(LInfBall(0.2), 4, early_stop=True),
        warm=PGD(LInfBall(0.2), 3, warm_start=True),
        elastic=PGD(ElasticNet(0.1, 0.1), 4),
        harmonise=Harmonise(0.1, torch.rand(12)),
        fast=PGD(LInfBall(0.1), 2, fast=True),
    )[kind]
    if kind != "stop":
        adv.training = training
    before = snapshot(m, opt)
    x0 = x.clone()
    m.left, m.error = fail, error

    def nan_loss(z, y):
        return task_loss(z, y) * torch.nan

    try:
        out = adv(m, x, y, nan_loss if nan else None)
    except (RuntimeError, KeyboardInterrupt, MemoryError, ValueError) as e:
        assert "injected" in str(e)  # in the first pass the message names the model too
        out = None
    m.left = None
    assert same(snapshot(m, opt), before)
    assert torch.equal(x, x0)
    assert not x.requires_grad
    if out is not None:
        assert out.isfinite().all()
        assert out.data_ptr() != x.data_ptr()
    # still usable, and a pure function of its arguments
    assert torch.equal(adv(m, x, y), adv(m, x, y))


def test_seed_is_a_function_of_seed_data_and_model():
    net, (x, y) = mlp(), data()
    a = PGD(LInfBall(0.3), 2)
    assert torch.equal(a(net, x, y), copy.deepcopy(a)(net, x, y))
    torch.manual_seed(7)
    one = a(net, x, y)
    torch.manual_seed(8)
    assert torch.equal(one, a(net, x, y)) and not torch.equal(
        one, PGD(LInfBall(0.3), 2, seed=1)(net, x, y)
    )
    with torch.no_grad():
        net[2].bias += 1.0  # the logits move alike: the same gradient, another start
    assert not torch.equal(one, a(net, x, y))


def test_the_same_start_in_every_process():
    "The seed of a call hashes numbers, which no process salts; the hash of a string would differ."
    code = (
        "import torch; from advinterp.adversary import PGD; from advinterp.duals import LInfBall\n"
        "torch.manual_seed(0); net = torch.nn.Linear(12, 3); x = torch.rand(4, 12)\n"
        "print(PGD(LInfBall(0.3), 2)(net, x, torch.arange(4) % 3).flatten().tolist())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=dict(os.environ, PYTHONHASHSEED=salt, OMP_NUM_THREADS="1"),
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for salt in ("1", "2")
    }
    assert len(outputs) == 1


def test_caller_contexts():
    net, (x, y) = mlp(), data()
    adv = PGD(LInfBall(0.3), 3)
    ref = adv(net, x, y)
    with torch.no_grad():
        assert torch.equal(adv(net, x, y), ref)
    with torch.inference_mode():
        assert torch.equal(adv(net, x.clone(), y.clone()), ref)
    leaf = x.clone().requires_grad_()
    leaf.grad = torch.ones_like(x)
    assert torch.equal(adv(net, leaf, y), ref) and leaf.requires_grad and (leaf.grad == 1).all()
    loss = task_loss(net(x), y).mean()
    adv(net, x, y)
    loss.backward()  # the caller's graph survives an attack in between
    bn = Stateful().train()
    out = task_loss(bn(x), y).mean()
    PGD(LInfBall(0.1), 2, training=True)(bn, x, y)
    out.backward()


def test_modes_seen_by_the_model():
    seen = []

    class Spy(nn.Linear):
        def forward(self, x):
            seen.append(self.training)
            return super().forward(x)

    net, (x, y) = Spy(12, 3).train(), data()
    for t, expected in ((False, False), (True, True), (None, True)):
        seen.clear()
        PGD(LInfBall(0.1), 3, training=t)(net, x, y)
        assert seen == [expected] * 3
    net.eval()
    seen.clear()
    PGD(LInfBall(0.1), 2, training=True)(net, x, y)
    assert seen == [True] * 2 and not net.training


def test_one_forward_and_one_input_gradient_per_step():
    net, (x, y) = mlp(), data()
    calls = []

    def f(z):
        calls.append(len(z))
        return net(z)

    PGD(LInfBall(0.1), 7)(f, x, y)
    assert calls == [20] * 7
    calls.clear()
    OneStep(LInfBall(0.1))(f, x, y)
    assert calls == [20]
    assert all(p.grad is None for p in net.parameters())


# --- several inputs, other models


def test_several_inputs():
    net, (x, y) = mlp(), data()

    def model(a, i, b):
        return net(torch.cat([a, b], 1)) + 0.0 * i[:, None]

    xs = (x[:, :5], torch.arange(20), x[:, 5:])
    out = OneStep(L2Ball(0.3))(model, xs, y)
    expected = OneStep(L2Ball(0.3))(net, x, y)
    assert torch.allclose(torch.cat([out[0], out[2]], 1), expected, atol=1e-6)
    assert torch.equal(out[1], xs[1])
    out = PGD(LInfBall(0.1), 3, perturb=2, early_stop=True)(model, xs, y)
    assert torch.equal(out[0], xs[0])
    assert not torch.equal(out[2], xs[2])
    for bad in (1, 5, (0, 0), ()):
        with pytest.raises((ValueError, TypeError)):
            OneStep(LInfBall(0.1), perturb=bad)(model, xs, y)

    def times(a, b):
        return net(torch.cat([a * b, a + b], 1))

    a, b = x[:, :6], x[:, 6:]
    first = OneStep(LInfBall(0.1), perturb=0)
    expected = first(times, (a, b), y)[0]
    with torch.inference_mode():
        assert torch.equal(first(times, (a.clone(), b.clone()), y.clone())[0], expected)
    of_one, z = joined(model, xs)
    assert torch.equal(of_one.split(z)[2], xs[2])


def test_tensor_subclasses_and_half_precision():
    from fastai.torch_core import TensorCategory, TensorImage

    net, (x, y) = mlp(), data()
    for adv in (
        OneStep(LInfBall(0.1)),
        PGD(L2Ball(0.3), 3, bounds=(0, 1)),
        PGD(LInfBall(0.2), 3, early_stop=True),
    ):
        assert torch.equal(adv(net, TensorImage(x), TensorCategory(y)), adv(net, x, y))
    for dtype in (torch.bfloat16, torch.float16):
        for ball in (LInfBall(0.1), L2Ball(0.3), L1Ball(0.5)):
            half = x.to(dtype)
            out = PGD(ball, 3, best=True, bounds=(0, 1))(mlp(dtype=dtype), half, y)
            assert out.dtype == dtype
            assert (ball.norm((out - half).float()) <= 1.05 * ball.eps).all()


def test_images_groups_and_channels_last():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    x, y = torch.rand(4, 3, 16, 16), torch.arange(4) % 3
    out = PGD(GroupBall(0.2, patch=8), 3, bounds=(0, 1))(
        net, x.contiguous(memory_format=torch.channels_last), y
    )
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert (out - x).reshape(4, 3, 2, 8, 2, 8).norm(dim=(3, 5)).max() <= 0.2 + 1e-5


def test_fast_is_as_strong():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 4)
    )
    net.eval()
    x, y = torch.rand(64, 1, 8, 8), torch.arange(64) % 4
    slow, fast = (
        loss_at(net, PGD(LInfBall(0.1), 5, bounds=(0, 1), fast=fast)(net, x, y), y).mean()
        for fast in (False, True)
    )
    assert abs(slow - fast) < 0.01 * slow
    assert slow > loss_at(net, x, y).mean()
    auto = PGD(LInfBall(0.1), 5, fast="auto")(net, x, y)
    assert torch.equal(auto, PGD(LInfBall(0.1), 5, fast=has_bf16())(net, x, y))


@pytest.mark.parametrize(
    "adv",
    [
        paper_a_mnist(0.1),
        paper_a_cifar(2 / 255),
        paper_b_mnist(),
        paper_b_cifar(train=True),
        paper_c_iterative(LInfBall(0.1)),
        paper_c_iterative(ElasticNet(0.1, 0.1)),
        paper_c_iterative(GroupBall(0.1, groups=torch.arange(12) // 4), warm_start=True),
        mi_fgsm(0.1),
    ],
    ids=repr,
)
def test_presets_attack(adv):
    net, (x, y) = mlp(), data()
    x_adv = adv(net, x, y)
    assert loss_at(net, x_adv, y).mean() > loss_at(net, x, y).mean()
    assert isinstance(adv, DualAdversary)
    half = adv.scaled(0.5)(net, x, y)
    assert loss_at(net, x, y).mean() < loss_at(net, half, y).mean() < loss_at(net, x_adv, y).mean()
    assert torch.equal(adv.scaled(0.0)(net, x, y), x)


def mi_fgsm_by_hand(net, x, y, normalised):
    """Five steps of .02 with momentum 1, within .1."""
    delta, m = torch.zeros_like(x), torch.zeros_like(x)
    for _ in range(5):
        z = (x + delta).requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(net(z), y, reduction="sum"), z)
        m = m + (g / g.abs().mean(1, keepdim=True) if normalised else g)
        delta = (delta + 0.02 * m.sign()).clamp(-0.1, 0.1)
    return x + delta


def test_mi_fgsm_is_the_algorithm():
    """In a curved net the gradients differ in length, and their normalisation counts."""
    net, (x, y) = mlp(dtype=torch.double), data(dtype=torch.double)

    def curved(z):
        return net(20 * z)

    for model in (net, curved):
        expected = mi_fgsm_by_hand(model, x, y, normalised=True)
        assert torch.allclose(mi_fgsm(0.1, 5)(model, x, y), expected, atol=1e-12)
    other = mi_fgsm_by_hand(curved, x, y, normalised=False)
    assert (other - expected).abs().max() > 0.01


def test_paper_c_elastic_is_the_public_rule():
    net, (x, y) = mlp(dtype=torch.double), data(dtype=torch.double)
    delta = torch.zeros_like(x)
    for _ in range(7):
        d = delta.clone().requires_grad_()
        price = (d.abs() - 0.1).relu().square().sum() / (4 * 0.2)
        (g,) = torch.autograd.grad(F.cross_entropy(net(x + d), y, reduction="sum") - price, d)
        delta = delta + 0.3 * g / g.norm(dim=1, keepdim=True)
    assert torch.allclose(paper_c_iterative(ElasticNet(0.1, 0.2))(net, x, y), x + delta, atol=1e-10)


# --- seeds


class Drawn(DualAdversary):
    "The random start itself, which no rounding of a model blurs."

    def search(self, p, gen):
        return self.dual.random_point(p.x, gen)


def one_layer(seed=0, d=40_000):
    torch.manual_seed(seed)
    return nn.Linear(d, 2)


def test_one_and_two_threads_draw_the_same():
    "Sums of floats depend on how they are cut into parts; whole numbers do not."
    net, x = one_layer(), torch.rand(4, 40_000)
    y = torch.arange(4) % 2
    drawn = []
    for n_threads in (1, 2):
        torch.set_num_threads(n_threads)
        try:
            drawn.append(Drawn(LInfBall(0.1))(net, x, y))
        finally:
            torch.set_num_threads(1)
    assert torch.equal(*drawn)


def test_every_number_and_the_model_count_for_the_seed():
    net, (x, y) = mlp(), data()
    adv = Drawn(LInfBall(0.1))
    first = adv(net, x, y) - x
    other = x.clone()
    other[3, 4] += 1e-6
    assert not torch.equal((adv(net, other, y) - other)[:3], first[:3])
    assert not torch.equal(Drawn(LInfBall(0.1), seed=10**30)(net, x, y) - x, first)
    assert torch.equal(adv(net, x, y) - x, first)
    strided = torch.stack([x, x], -1)[..., 0]
    assert not strided.is_contiguous()
    assert torch.equal(adv(net, strided, y) - x, first)
    with torch.no_grad():
        net[2].bias[1] += 1e-6
    assert not torch.equal(adv(net, x, y) - x, first)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        as_dtype = x.to(dtype)
        assert adv(mlp(dtype=dtype), as_dtype, y).dtype == dtype


def test_a_seed_of_ones_own():
    class Fixed(Drawn):
        def call_seed(self, digest, model, x):
            seen.append((len(digest), tuple(x.shape)))
            return 5

    net, (x, y) = mlp(), data()
    seen = []
    adv = Fixed(LInfBall(0.1))
    assert torch.equal(adv(net, x, y) - x, adv(net, x, y) - x)
    expected = LInfBall(0.1).random_point(x, torch.Generator().manual_seed(5))
    assert torch.equal(adv(net, x, y), x + expected)
    assert seen == [(2, (20, 12))] * 3
    for bad in ("a", -1, 1.5, None, True):
        with pytest.raises((TypeError, ValueError), match=r"seed=.*expected a whole number >= 0"):
            PGD(LInfBall(0.1), seed=bad)


def test_drawn_as_in_version_0_1():
    "The start is that of the hash of two sums of floats."
    net, (x, y) = mlp(), data()
    ball = LInfBall(0.1)
    seed = hash((3, x.sum().item(), net[2].bias.sum().item())) % 2**63
    start = ball.random_point(x, torch.Generator().manual_seed(seed))
    old = drawn_as_in_0_1(Drawn(ball, seed=3))
    assert torch.equal(old(net, x, y), x + start)
    assert torch.equal(copy.deepcopy(old)(net, x, y), x + start)
    half = old.with_eps(0.05)(net, x, y)
    torch.testing.assert_close(half, x + start / 2)
    assert repr(old) == repr(Drawn(ball, seed=3))
    without = hash((3, x.sum().item())) % 2**63  # a function has no parameters
    start = ball.random_point(x, torch.Generator().manual_seed(without))
    assert torch.equal(old(lambda z: net(z), x, y), x + start)


def test_the_bits_of_an_attack_of_version_0_1():
    "Two rows of an attack, written down from version 0.1.0."
    x = torch.linspace(0, 1, 12).reshape(2, 6)
    net = nn.Linear(6, 3)
    with torch.no_grad():
        net.weight.copy_(torch.linspace(-1, 1, 18).reshape(3, 6).sin())
        net.bias.zero_()
    adv = PGD(LInfBall(0.1), 3, step_size=0.01, bounds=(0, 1))
    drawn = drawn_as_in_0_1(adv)(net, x, torch.tensor([0, 2]))
    assert drawn.tolist() == BITS_OF_0_1
    assert not torch.equal(adv(net, x, torch.tensor([0, 2])), drawn)


BITS_OF_0_1 = [
    [
        0.10000000149011612,
        0.08691277354955673,
        0.13129988312721252,
        0.2855820655822754,
        0.4627425968647003,
        0.47560831904411316,
    ],
    [
        0.44545450806617737,
        0.5666236281394958,
        0.6628521680831909,
        0.8724924921989441,
        0.8623329401016235,
        0.9585967063903809,
    ],
]


# --- bfloat16 in a twin


class Parts(nn.Module):
    "A body between a flattening and a head."

    def __init__(self, body, width=64):
        super().__init__()
        self.body, self.head = body, nn.Linear(width, 4)

    def forward(self, x):
        return self.head(self.body(x.flatten(1)))


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.cells, self.head = kind(8, 16, batch_first=True, num_layers=2), nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.cells(x[:, 0])[0][:, -1])


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        tokens = x[:, 0]
        return self.head(self.attention(tokens, tokens, tokens)[0].mean(1))


class Listed(nn.Module):
    "Calls its registered layers through a list, and a shared parameter as a matrix."

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 4)
        self.layers = [self.a, self.b]
        self.a2 = nn.Parameter(torch.eye(64))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        hidden = self.layers[0](x.flatten(1)).relu()
        return self.layers[1](hidden @ self.a2)


def used_twice():
    layer = nn.Linear(64, 64)
    return nn.Sequential(nn.Flatten(), layer, nn.ReLU(), layer, nn.ReLU(), nn.Linear(64, 4))


def tied_weights():
    a, b = nn.Linear(64, 64), nn.Linear(64, 64)
    b.weight = a.weight
    return Parts(nn.Sequential(a, nn.Tanh(), b))


def shared_buffer():
    a, b = nn.BatchNorm1d(64), nn.BatchNorm1d(64)
    b.running_mean = a.running_mean
    return Parts(nn.Sequential(a, nn.Linear(64, 64), b))


def hooked():
    layer = nn.Linear(64, 64)
    layer.register_forward_hook(lambda module, args, out: 2 * out)
    return Parts(nn.Sequential(layer, nn.ReLU()))


def parametrised(norm):
    return lambda: Parts(nn.Sequential(norm(nn.Linear(64, 64)), nn.Tanh()))


def module_in_list():
    layer = nn.Linear(64, 64)
    layers = nn.ModuleList([layer, nn.Tanh(), layer])
    model = Parts(nn.Sequential(*layers))
    model.layers = layers
    return model


def conv_used_twice():
    layer = nn.Conv2d(8, 8, 3, padding=1)
    parts = [nn.Conv2d(1, 8, 3, padding=1), layer, nn.ReLU(), layer, nn.BatchNorm2d(8)]
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(512, 4))


def bilinear():
    class Squares(nn.Bilinear):
        def forward(self, x):
            return super().forward(x, x)

    return Parts(Squares(64, 64, 64))


SHARED = {
    "module": used_twice,
    "conv": conv_used_twice,
    "weight": tied_weights,
    "buffer": shared_buffer,
    "hook": hooked,
    "list": Listed,
    "module list": module_in_list,
    "rnn": lambda: Recurrent(nn.RNN),
    "gru": lambda: Recurrent(nn.GRU),
    "lstm": lambda: Recurrent(nn.LSTM),
    "attention": Attends,
    "weight_norm": parametrised(nn.utils.parametrizations.weight_norm),
    "old weight_norm": parametrised(nn.utils.weight_norm),
    "spectral_norm": parametrised(nn.utils.parametrizations.spectral_norm),
    "old spectral_norm": parametrised(nn.utils.spectral_norm),
    "orthogonal": parametrised(nn.utils.parametrizations.orthogonal),
    "pruned": parametrised(lambda layer: prune.l1_unstructured(layer, "weight", 0.5)),
    "bilinear": bilinear,
    "parallel": lambda: nn.DataParallel(used_twice()),
    "jit": lambda: torch.jit.trace(used_twice(), torch.rand(2, 1, 8, 8)),
    "compiled": lambda: torch.compile(used_twice(), backend="eager"),
}


def belongings(model):
    "Everything that a model holds, by name and identity."
    found = []
    for name, module in model.named_modules(remove_duplicate=False):
        slots = [*module._parameters.items(), *module._buffers.items()]
        found += [(name, key, id(value)) for key, value in slots]
        found += [(name, key, id(value)) for key, value in module._modules.items()]
        found += [(name, "plain", key) for key in sorted(vars(module))]
        found.append((name, "mode", module.training))
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", SHARED)
def test_fast_touches_nothing_that_is_shared(name, training):
    "Whatever is shared, training goes on as if there had been no attack."
    torch.manual_seed(0)
    model = SHARED[name]().train()
    x, y = torch.rand(16, 1, 8, 8), torch.arange(16) % 4
    model(x)
    before, values = belongings(model), copy.deepcopy(model.state_dict())
    parameters = list(model.parameters())
    slow = PGD(LInfBall(0.1), 3, training=training)(model, x, y)
    fast = PGD(LInfBall(0.1), 3, training=training, fast=True)(model, x, y)
    assert belongings(model) == before
    assert all(torch.equal(values[key], value) for key, value in model.state_dict().items())
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
    assert [id(p) for p in model.parameters()] == [id(p) for p in parameters]
    share = ((slow - x).sign() == (fast - x).sign()).float().mean()
    assert share > 0.9, f"{share:.2f} of the signs agree"
    task_loss(model(x), y).mean().backward()
    assert all(p.grad is not None for p in parameters)


@pytest.mark.parametrize("name", ["spectral_norm", "bilinear"])
def test_fast_says_once_that_it_is_not(name):
    torch.manual_seed(0)
    model = SHARED[name]().eval()
    x, y = torch.rand(4, 1, 8, 8), torch.arange(4) % 4
    fast = PGD(LInfBall(0.1), 3, fast=True)
    with pytest.warns(UserWarning, match=r"fast=True: the model does not run in bfloat16 \("):
        first = fast(model, x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(fast(model, x, y), first)
    assert torch.equal(first, PGD(LInfBall(0.1), 3)(model, x, y))


def test_a_failure_of_the_model_is_no_lack_of_bfloat16():
    class Fails(nn.Linear):
        left = 2

        def forward(self, x):
            self.left -= 1
            if self.left < 0:
                raise KeyError("mine")
            return super().forward(x)

    x, y = data()
    with pytest.raises(KeyError, match="mine"):
        PGD(LInfBall(0.1), 3, fast=True)(Fails(12, 3), x, y)


# --- threads


@pytest.mark.parametrize("training", [False, True])
def test_attacks_from_four_threads(training):
    torch.manual_seed(0)
    body = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.Flatten()]
    model = nn.Sequential(*body, nn.Linear(288, 4)).train()
    model[0].bias.requires_grad_(False)
    x, y = torch.rand(8, 1, 8, 8), torch.arange(8) % 4
    attacks = [
        PGD(LInfBall(0.1), 3, training=training),
        PGD(LInfBall(0.1), 3, training=not training, best=True),
        OneStep(L2Ball(0.5), training=None),
        PGD(L2Ball(0.5), 3, fast=True, seed=1),
    ]
    expected = [adv(model, x, y) for adv in attacks]
    before, state = belongings(model), torch.get_rng_state()
    differ = []

    def attack(adv, right):
        start.wait()
        differ.extend(not torch.equal(adv(model, x, y), right) for _ in range(8))

    start = threading.Barrier(4)
    threads = [threading.Thread(target=attack, args=pair) for pair in zip(attacks, expected)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert differ == [False] * 32
    assert belongings(model) == before
    assert [p.requires_grad for p in model.parameters()].count(False) == 1
    assert torch.equal(torch.get_rng_state(), state)


# --- what people bring


class InPlace(nn.Module):
    "Writes into its input."

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        x *= 1.0
        return self.net(x)


class Outputs(nn.Module):
    "What else models return."

    def __init__(self, net, how):
        super().__init__()
        self.net, self.how = net, how

    def forward(self, x):
        return self.how(self.net(x))


def learner(net):
    fastai = pytest.importorskip("fastai.learner")
    loaders = pytest.importorskip("fastai.data.core").DataLoaders([], [])
    return fastai.Learner(loaders, net, loss_func=nn.CrossEntropyLoss())


MODELS = {
    "tuple": lambda net: Outputs(net, lambda z: (z, z.sum())),
    "dict": lambda net: Outputs(net, lambda z: {"logits": z, "loss": z.sum()}),
    "spatial": lambda net: Outputs(net, lambda z: z[:, :, None, None]),
    "function": lambda net: lambda x: net(x),
    "in place": InPlace,
    "parallel": nn.DataParallel,
    "compiled": lambda net: torch.compile(net, backend="eager"),
    "learner": learner,
}
ATTACKS = {
    "one": OneStep(LInfBall(0.1), bounds=(0, 1)),
    "pgd": PGD(L2Ball(0.3), 3),
    "best": PGD(LInfBall(0.1), 2, best=True),
    "stop": PGD(LInfBall(0.2), 3, early_stop=True),
    "elastic": PGD(ElasticNet(0.1, 0.1), 3),
    "harmonise": Harmonise(0.1, torch.rand(12)),
    "fast": PGD(LInfBall(0.1), 2, fast=True),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("kind", MODELS)
def test_models_that_people_bring(kind, attack):
    net, (x, y) = mlp(), data()
    adv = ATTACKS[attack]
    model = MODELS[kind](net)
    given = copy.deepcopy(x)
    out = adv(model, given, y)
    if kind == "function":  # has no parameters that could count for the seed
        torch.testing.assert_close(adv(lambda z: net(z), x, y), out)
    else:
        torch.testing.assert_close(out, adv(net, x, y))
    assert torch.equal(given, x)
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def labels(y):
    fastai = pytest.importorskip("fastai.torch_core")
    pandas = pytest.importorskip("pandas")
    return {
        "int8 column": y[:, None].to(torch.int8),
        "int32": y.int(),
        "floats": y.float(),
        "category": fastai.TensorCategory(y),
        "array": y.numpy(),
        "series": pandas.Series(y.numpy(), index=range(100, 120)),
        "list": y.tolist(),
    }


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("kind", labels(torch.arange(20)))
def test_labels_that_people_bring(kind, attack):
    net, (x, y) = mlp(), data()
    adv = ATTACKS[attack]
    assert torch.equal(adv(net, x, labels(y)[kind]), adv(net, x, y))
    if attack != "stop":
        assert torch.equal(adv(net, x, labels(y)[kind], margin_loss), adv(net, x, y, margin_loss))


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, contextlib.nullcontext])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("attack", ATTACKS)
def test_inputs_that_people_bring(attack, dtype, around):
    "They come back in their precision, whatever that of the model is."
    adv = ATTACKS[attack]
    fastai = pytest.importorskip("fastai.torch_core")
    net = mlp()
    for n in (0, 1, 20):
        with around():
            x, y = data()
            x, y = x[:n].to(dtype), y[:n]
            given = [x, torch.stack([x, x], -1)[..., 0], fastai.TensorImage(x)]
            found = [adv(net, z, y) for z in given]
        for z, out in zip(given, found):
            assert type(out) is torch.Tensor
            assert out.dtype == z.dtype  # fastai makes float32 of float64
            expected = adv(net, x.clone().float(), y.clone())
            assert torch.equal(out.clone(), expected.to(z.dtype))


@pytest.mark.parametrize("attack", ATTACKS)
def test_squeezed_and_single_outputs(attack):
    torch.manual_seed(0)
    net, (x, y) = nn.Linear(12, 1), data(classes=2)
    adv = ATTACKS[attack]
    squeezed = Outputs(net, torch.squeeze)
    for n in (1, 20):
        expected = adv(net, x[:n], y[:n])
        assert torch.equal(adv(squeezed, x[:n], y[:n]), expected)
    three = mlp()
    expected = adv(three, x[:1], y[:1])
    torch.testing.assert_close(adv(Outputs(three, torch.squeeze), x[:1], y[:1]), expected)


def test_a_loss_of_ones_own_gets_what_there_is():
    net, (x, y) = mlp(), data()
    two = Outputs(net, lambda z: (z, -z))

    def both(outputs, targets):
        return sum(task_loss(z, t) for z, t in zip(outputs, targets))

    expected = PGD(LInfBall(0.1), 3)(net, x, y, lambda z, y: task_loss(z, y) + task_loss(-z, y))
    assert torch.equal(PGD(LInfBall(0.1), 3)(two, x, (y, y), both), expected)

    def distance(out, target):
        return (out - target).square()

    target = torch.randn(20, 3)
    moved = PGD(LInfBall(0.1), 3)(net, x, target, distance)
    assert (distance(net(moved), target).sum() > distance(net(x), target).sum()).all()


def test_first_order_gap_and_check_attackable_take_what_people_bring():
    fastai = pytest.importorskip("fastai.torch_core")
    net, (x, y) = mlp(), data()
    x_adv = OneStep(LInfBall(0.1))(net, x, y)
    expected = first_order_gap(LInfBall(0.1), net, x, y, x_adv)
    model = Outputs(net, lambda z: (z, z.sum()))
    with torch.inference_mode():
        given = fastai.TensorImage(x.double()), y[:, None].float(), x_adv.double()
        gap = first_order_gap(LInfBall(0.1), model, *given)
        torch.testing.assert_close(gap, expected)
        assert check_attackable(model, *given[:2]) == []
    assert check_attackable(net, x[:0], y[:0]) == []
    assert first_order_gap(LInfBall(0.1), net, x[:0], y[:0], x[:0]).shape == (0,)
    with pytest.raises(ValueError, match=r"one shape, got x \(20, 12\), x_adv \(3, 12\)"):
        first_order_gap(LInfBall(0.1), net, x, y, x[:3])


def test_what_is_said_of_lost_gradients():
    net, (x, y) = mlp(), data()

    class Root(nn.Module):
        def forward(self, x):
            return net(x) + (0 * x).sqrt().sum(1, keepdim=True)  # its slope is 0 times infinity

    for adv, n in ((OneStep(LInfBall(0.1)), 1), (PGD(LInfBall(0.1), 4, best=True), 4)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            out = adv(Root(), x, y)
        assert [str(w.message)[:53] for w in caught] == [
            "model: its gradient is NaN or infinite somewhere, in "
        ]
        assert f"in {n} of {n} passes" in str(caught[0].message)
        assert caught[0].filename == __file__
        assert out.isfinite().all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for adv in ATTACKS.values():
            adv(net, x, y)
            adv(lambda z: 0 * net(z), x, y)  # a gradient of zeros is one


def test_units_and_norms_are_asked_for():
    for make, name in ((PGD, "PGD"), (OneStep, "OneStep")):
        with pytest.raises(TypeError, match=re.escape(f"{name}(LInfBall(0.03))")):
            make(eps=0.03)
        with pytest.warns(UserWarning, match=r"LInfBall\(8 / 255\)"):
            make(LInfBall(8), bounds=(0.0, 1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PGD(LInfBall(1), bounds=(0, 1))
        PGD(LInfBall(8), bounds=(0, 255))
        PGD(L2Ball(8), bounds=(0, 1))
        PGD(LInfBall(8))
    assert Harmonise(eps=0.1, attention=torch.ones(12)).eps == 0.1


def test_margin_loss_has_the_gradient_of_its_formula():
    z = torch.randn(50, 4, dtype=torch.double, requires_grad=True)
    y = torch.randint(0, 4, (50,))
    own = F.one_hot(y, 4).bool()
    by_mask = z.masked_fill(own, -torch.inf).amax(1) - z[own]
    expected = torch.autograd.grad(by_mask.sum(), z)[0]
    assert torch.equal(margin_loss(z, y), by_mask)
    assert torch.equal(torch.autograd.grad(margin_loss(z, y).sum(), z)[0], expected)


def test_several_inputs_in_their_precision():
    net, (x, y) = mlp(), data()

    def model(a, i, b):
        return net(torch.cat([a, b], 1)) + 0.0 * i[:, None]

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, *xs):
            return model(*xs)

    xs = (x[:, :5].double(), torch.arange(20), x[:, 5:].half())
    out = PGD(LInfBall(0.1), 3, perturb=0)(Model(), xs, y.tolist())
    assert [part.dtype for part in out] == [part.dtype for part in xs]
    assert torch.equal(out[2], xs[2])
    assert 0.09 < (out[0] - xs[0]).abs().max() <= 0.1 + 1e-6
    with pytest.raises(ValueError, match=r"as many rows in every input, got \[3, 20\]"):
        OneStep(LInfBall(0.1))(Model(), (x[:3, :5], torch.arange(20), x[:, 5:]), y[:3])


# --- harmonisation, guards, bad input


def test_harmonise():
    net, (x, y) = mlp(dtype=torch.double), data(dtype=torch.double)
    A = torch.rand(20, 12, dtype=torch.double)
    out = Harmonise(0.2, lambda x, y: A)(net, x, y) - x
    z = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(F.cross_entropy(net(z), y, reduction="sum"), z)
    weight = A.amax(1, keepdim=True) - 2 * A  # paper C, B.8
    assert torch.allclose(out, 0.2 * weight * g / g.norm(dim=1, keepdim=True), atol=1e-12)
    assert torch.equal(Harmonise(0.2, A).with_eps(0.0)(net, x, y), x)
    half = Harmonise(0.2, A).scaled(0.5)(net, x, y) - x
    assert torch.allclose(half, out / 2, atol=1e-12)
    assert Harmonise(0.2, A).dual is None
    assert not isinstance(Harmonise(0.2, A), DualAdversary)
    for bad, err in ((-A, ValueError), (0.5, TypeError)):
        with pytest.raises(err):
            Harmonise(0.2, bad)


class Halfway(Adversary):
    "A method of one's own that knows no dual: half of the way to the middle of the bounds."

    def search(self, p, gen):
        return p.inside((0.5 - p.x) / 2)


def test_an_adversary_needs_no_dual():
    net, (x, y) = mlp(), data()
    adv = Halfway(bounds=(0, 1))
    assert torch.allclose(adv(net, x, y), (x + 0.5) / 2, atol=1e-6)
    assert repr(adv) == "Halfway(bounds=(0, 1))"
    for missing in (adv.scaled, adv.with_eps):
        with pytest.raises(NotImplementedError, match="Halfway must define"):
            missing(0.5)


def test_methods_of_the_first_release_still_work():
    "They derived from Adversary and handed it their dual."

    class Old(Adversary):
        def search(self, p, gen):
            return p.inside(self.dual.random_point(p.x, gen))

    class New(DualAdversary):
        search = Old.search

    net, (x, y) = mlp(), data()
    with pytest.warns(FutureWarning, match="derive it from DualAdversary"):
        old = Old(LInfBall(0.2), (0, 1), seed=3)
    new = New(LInfBall(0.2), (0, 1), seed=3)
    assert torch.equal(old(net, x, y), new(net, x, y))
    assert torch.equal(old.scaled(0.5)(net, x, y), new.scaled(0.5)(net, x, y))
    assert old.with_eps(0.1).dual.eps == 0.1
    with (
        pytest.warns(FutureWarning),
        pytest.raises(TypeError, match="expected a dual such as"),
    ):
        Old(0.3)


def test_margin_loss():
    z, y = torch.randn(50, 4), torch.randint(0, 4, (50,))
    m = margin_loss(z, y)
    assert ((m > 0) == (z.argmax(1) != y)).all()
    z, y = torch.randn(50, 1), torch.randint(0, 2, (50,))
    assert ((margin_loss(z, y) > 0) == ((z[:, 0] > 0).long() != y)).all()


def test_guards():
    net, (x, y) = mlp(), data()
    ends = nn.Sequential(net, nn.Softmax(1))
    with pytest.raises(ValueError, match="outputs are probabilities"):
        check_attackable(ends, x, y)
    with pytest.warns(UserWarning, match="probabilities"):
        check_attackable(ends, x, y, nn.NLLLoss())
    with pytest.warns(UserWarning, match="not deterministic"):
        check_attackable(lambda z: net(z + torch.randn_like(z)), x, y)
    with pytest.warns(UserWarning, match="margin_loss"):
        check_attackable(lambda z: 1e4 * net(z), x, y)
    state = torch.get_rng_state()
    assert check_attackable(net, x, y) == []
    assert torch.equal(state, torch.get_rng_state())


def test_bad_input():
    net, (x, y) = mlp(), data()
    adv = PGD(LInfBall(0.1), 2, bounds=(0, 1))
    for args, err, msg in (
        ((net, 255 * x, y), ValueError, "is x normalised"),
        ((net, x.long(), y), TypeError, "x.float()"),
        ((net, x * torch.nan, y), ValueError, "NaN"),
        ((net, x / 0, y), ValueError, "infinite"),
        ((lambda z: net(z.detach()), x, y), ValueError, "does not depend"),
        ((lambda z: net(z).detach(), x, y), ValueError, "no gradient reaches"),
        ((net, x, y[:3]), ValueError, "expected 20 class indices"),
        ((net, x, y, F.cross_entropy), ValueError, "one loss per example"),
        ((net, "x", y), TypeError, "torch.Tensor"),
    ):
        with pytest.raises(err, match=re.escape(msg)):
            adv(*args)
    for bounds in ((1, 0), (0, float("nan")), 3, (torch.zeros(5), torch.ones(5)), ("a", "b")):
        with pytest.raises(ValueError, match="bounds"):
            PGD(LInfBall(0.1), bounds=bounds)(net, x, y)
    for arguments, kind, message in (
        (dict(steps=0), ValueError, "steps=0: expected a whole number >= 1"),
        (dict(steps=2.5), TypeError, "steps=2.5: expected a whole number >= 1"),
        (dict(step_size=0.0), ValueError, "step_size=0.0: expected a number > 0"),
        (dict(step_size=-1), ValueError, "step_size=-1: expected a finite number >= 0"),
        (dict(step_size=float("nan")), ValueError, "step_size=nan"),
        (dict(momentum=-1.0), ValueError, "momentum=-1.0"),
        (dict(restarts=0), ValueError, "restarts=0: expected a whole number >= 1"),
        (dict(restarts=2, random_start=False), ValueError, "every run is the same"),
        (dict(fast=2), ValueError, "fast=2: expected one of True, False or 'auto'"),
    ):
        with pytest.raises(kind, match=re.escape(message)):
            PGD(LInfBall(0.1), **arguments)
    for bad in (0.1, LInfBall, None):
        with pytest.raises(TypeError, match="expected a dual"):
            PGD(bad)
    with pytest.raises(ValueError, match="training=False"):
        PGD(LInfBall(0.1), early_stop=True, training=True)
    assert adv(net, x[:0], y[:0]).shape == (0, 12)
    rounded_up = torch.full_like(x, 1 + 1e-7)  # is clipped, not refused
    assert rounded_up.max() > 1
    assert adv(net, rounded_up, y).max() <= 1


# --- peers


@pytest.mark.parametrize("peer", ["torchattacks", "foolbox"])
def test_as_strong_as_a_peer(peer):
    lib = pytest.importorskip(peer)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), mlp(3, 64)).eval()
    x, y = torch.rand(200, 1, 8, 8), torch.randint(0, 3, (200,))
    y = net(x).argmax(1)
    if peer == "torchattacks":
        theirs = lib.PGD(net, eps=0.1, alpha=0.01, steps=20, random_start=True)(x, y)
    else:
        theirs = lib.attacks.LinfPGD(abs_stepsize=0.01, steps=20)(
            lib.PyTorchModel(net, bounds=(0, 1)), x, y, epsilons=0.1
        )[1]
    ours = PGD(LInfBall(0.1), 20, bounds=(0, 1), restarts=2)(net, x, y)
    assert (net(ours).argmax(1) == y).sum() <= (net(theirs).argmax(1) == y).sum()
    assert loss_at(net, ours, y).mean() >= loss_at(net, theirs, y).mean() - 1e-3


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_cuda():
    net, (x, y) = mlp().cuda(), data()
    x, y = x.cuda(), y.cuda()
    state = torch.cuda.get_rng_state()
    for fast in (False, True, "auto"):
        out = PGD(LInfBall(0.1), 4, bounds=(0, 1), fast=fast, training=True)(net, x, y)
        assert out.is_cuda and (out - x).abs().max() <= 0.1 + 1e-6
    assert torch.equal(state, torch.cuda.get_rng_state())
