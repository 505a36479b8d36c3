"Models: counts, shapes, hooks, initial statistics, and that each of them learns from real images."

import collections
import functools
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advinterp import data as D
from advinterp import models as M
from advinterp.core import set_seed
from advinterp.data import load

ARCHS = {
    "one_layer": (lambda: M.one_layer(64, 10), "flat"),
    "one_hidden": (lambda: M.one_hidden(64, 200, 10), "flat"),
    "small_conv": (M.small_conv, (1, 8)),
    "madry_cnn": (M.madry_cnn, (1, 28)),
    "madry_dropout": (lambda: M.madry_cnn(dropout=0.5, init_std=None), (1, 28)),
    "noack_cnn": (M.noack_cnn, (3, 32)),
    "noack_code": (lambda: M.noack_cnn(dense_relu=False), (3, 32)),
    "wide_resnet": (lambda: M.wide_resnet(units=1, width=1), (3, 32)),
    "wide_resnet_std": (lambda: M.wide_resnet(units=2, width=1, standardise=True), (3, 32)),
    "wide_resnet_255": (lambda: M.wide_resnet(units=1, width=1, input_scale=255.0), (3, 32)),
    "resnet34": (M.resnet34, (3, 32)),
    "efficientnet_b0": (M.efficientnet_b0, (3, 32)),
}


@functools.cache
def real(name):
    return load(name) if D._find(D._entry(name)) else None


def batch(shape, n=32):
    "The set that the network was made for, where it is at hand: MNIST, CIFAR-10; else digits, resized to what it takes."
    if a := real({(1, 28): "mnist", (3, 32): "cifar10"}.get(shape, "digits")):
        return torch.tensor(a.x[:n]).flatten(1) if shape == "flat" else torch.tensor(
            a.x[:n]
        ), torch.tensor(a.y[:n])
    a = load("digits")
    x, y = torch.tensor(a.x[:n]), torch.tensor(a.y[:n])
    return (
        x.flatten(1)
        if shape == "flat"
        else F.interpolate(x, size=shape[1], mode="bilinear")
        .expand(-1, shape[0], -1, -1)
        .contiguous()
    ), y


@pytest.mark.parametrize("name", ARCHS)
def test_learns_from_real_images(name):
    f, shape = ARCHS[name]
    set_seed(0)
    m = f()
    x, y = batch(shape, 12)
    opt = torch.optim.Adam(m.parameters(), lr=3e-4)
    losses = []
    for _ in range(5):
        z = m(x)
        assert z.shape == (12, 10)
        loss = F.cross_entropy(z, y)
        losses.append(loss.item())
        opt.zero_grad()
        loss.backward()
        opt.step()
    assert all(p.grad is not None for p in m.parameters())
    assert 1.5 < losses[0] < 20 and min(losses[2:]) < losses[0]


@pytest.mark.parametrize("name", ARCHS)
def test_each_module_is_called_once_and_none_works_in_place(name):
    f, shape = ARCHS[name]
    m = f().eval()
    calls = collections.Counter()
    x, _ = batch(shape, 2)
    for o in m.modules():
        if not list(o.children()):
            o.register_forward_hook(lambda o, i, out: calls.update([o]))
        assert not getattr(o, "inplace", False)
    with torch.no_grad():
        z = m(x)
    assert set(calls.values()) == {1}
    m = pickle.loads(pickle.dumps(f().eval()))
    with torch.no_grad():
        assert torch.allclose(
            m(x)[:1], m(x[:1]), atol=1e-4
        )  # in evaluation mode the rows do not meet
    assert m(x[:0]).shape == (0, 10) and z.shape == (2, 10)


@pytest.mark.parametrize("name", ["one_hidden", "small_conv", "madry_cnn"])
def test_deep_lift_is_complete_on_them(name):
    from captum.attr import DeepLift

    f, shape = ARCHS[name]
    set_seed(0)
    m = f().eval()
    x, y = batch(shape, 4)
    gap = DeepLift(m).attribute(x, target=y, return_convergence_delta=True)[1]
    # exact for dense layers; through max-pooling captum leaves a few per cent open
    assert gap.abs().max() < (1e-4 if name == "one_hidden" else 0.1) * m(x).abs().max()


def test_madry_cnn_against_the_formula_in_numpy():
    set_seed(0)
    m = M.madry_cnn()
    x = torch.rand(1, 1, 28, 28)

    def conv(x, w, b):  # SAME, 5 x 5
        xp = np.pad(x, ((0, 0), (2, 2), (2, 2)))
        v = np.lib.stride_tricks.sliding_window_view(xp, (5, 5), (1, 2))
        return np.einsum("chwij,ocij->ohw", v, w) + b[:, None, None]

    def pool(x):
        c, h, w = x.shape
        return np.maximum(x, 0).reshape(c, h // 2, 2, w // 2, 2).max((2, 4))

    p = [o.detach().double().numpy() for o in m.parameters()]
    h = pool(conv(pool(conv(x[0].double().numpy(), *p[:2])), *p[2:4])).ravel()
    want = p[6] @ np.maximum(p[4] @ h + p[5], 0) + p[7]
    assert np.allclose(m(x).detach().numpy()[0], want, atol=1e-3, rtol=1e-4)


def test_initial_statistics():
    set_seed(1)
    m = M.wide_resnet(units=5, width=2)
    for o in m.modules():
        if isinstance(o, nn.Conv2d):
            assert o.bias is None and o.weight.std().item() == pytest.approx(
                (2 / (9 * o.out_channels)) ** 0.5, rel=0.12
            )
    assert m[-1].weight.std().item() == pytest.approx(128**-0.5, rel=0.1)
    with torch.no_grad():
        z = m(torch.rand(8, 3, 32, 32))
    assert 0.1 < z.std() < 5
    w = torch.cat([M.one_layer(117).bias for _ in range(500)])
    assert w.std().item() == pytest.approx(0.05, rel=0.15)


@pytest.mark.parametrize(
    "make,shape,lr",
    [
        (M.madry_cnn, (1, 28), 1e-4),
        (lambda: M.wide_resnet(width=2, input_scale=255.0), (3, 32), 0.01),
        (lambda: M.wide_resnet(width=2, standardise=True), (3, 32), 0.01),
    ],
)
def test_first_step_with_the_published_initialisation(make, shape, lr):
    "Logits as large as the initialisation says, gradients that reach the first layer, and a first step that moves no weight far and lowers the loss."
    set_seed(0)
    m = make()
    x, y = batch(shape, 64)
    z = m(x)
    loss = F.cross_entropy(z, y)
    loss.backward()
    want = (
        m[-1].weight.std() * m[:-1](x).norm(dim=1).mean()
    )  # of the last layer: 3 to 6 in the MNIST network, near 1 behind batch normalisation
    assert (
        z.isfinite().all()
        and 0.5 < z.std() / want < 1.7
        and (
            3 < want < 7 and 4 < loss < 10
            if shape == (1, 28)
            else 0.3 < want < 2 and 1.8 < loss < 4
        )
    )
    ps = [p for p in m.parameters() if p.ndim > 1]
    before = [p.detach().clone() for p in ps]
    assert all(p.grad.isfinite().all() and 1e-6 < p.grad.norm() < 200 for p in ps)
    (
        torch.optim.Adam(m.parameters(), lr=lr)
        if shape == (1, 28)
        else torch.optim.SGD(m.parameters(), lr=lr, momentum=0.9)
    ).step()
    assert (
        all(0 < (p - b).norm() < 0.3 * b.norm() for p, b in zip(ps, before))
        and F.cross_entropy(m(x), y) < loss
    )


@pytest.mark.slow
def test_the_full_wide_resnet_learns():
    set_seed(0)
    m = M.wide_resnet(input_scale=255.0)
    x, y = batch((3, 32), 16)
    opt = torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9)
    losses = []
    for _ in range(4):
        losses.append(F.cross_entropy(m(x), y))
        opt.zero_grad()
        losses[-1].backward()
        opt.step()
    assert M.n_params(m) == 45_901_914 and 1.8 < losses[0] < 6 and losses[-1] < 0.9 * losses[0]


def test_same_seed_same_weights():
    for name, (f, _) in ARCHS.items():
        if name in ("resnet34", "efficientnet_b0"):
            continue
        set_seed(3)
        a = f().state_dict()
        set_seed(3)
        b = f().state_dict()
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_softplus_copy_keeps_the_original_and_reaches_nested_modules():
    m = M.resnet34().eval()
    before = {k: v.clone() for k, v in m.state_dict().items()}
    s = M.softplus_copy(m, beta=50.0)
    assert (
        not any(isinstance(o, nn.ReLU) for o in s.modules())
        and sum(isinstance(o, M.SmoothLeakyReLU) for o in s.modules()) == 33
    )
    assert sum(isinstance(o, nn.ReLU) for o in m.modules()) == 33 and all(
        torch.equal(v, before[k]) for k, v in m.state_dict().items()
    )
    w = M.wide_resnet(units=1, width=1).eval()
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert (M.softplus_copy(w, 1e4)(x) - w(x)).abs().max() < 1e-2
    with pytest.raises(ValueError, match="no ReLU module"):
        M.softplus_copy(M.efficientnet_b0())


@pytest.mark.parametrize(
    "f",
    [
        lambda: M.one_layer(0),
        lambda: M.one_layer(3, 2.0),
        lambda: M.one_layer(3, init_std=-1),
        lambda: M.small_conv(size=6),
        lambda: M.madry_cnn(size=27),
        lambda: M.madry_cnn(n_out=True),
        lambda: M.wide_resnet(units=0),
        lambda: M.one_hidden(3, -1),
        lambda: M.resnet34(0),
        lambda: M.noack_cnn(dropout=-0.1),
        lambda: M.madry_cnn(dropout=1.5),
    ],
)
def test_impossible_sizes_are_refused(f):
    with pytest.raises(ValueError):
        f()
