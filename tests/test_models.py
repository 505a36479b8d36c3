"Models: counts, shapes, hooks, initial statistics, and that each of them learns from real images."

import collections
import functools
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advinterp import models
from advinterp.core import set_seed
from advinterp.data import data_table, load
from advinterp.experiments import make_model
from advinterp.models import (
    InputScale,
    madry_cnn,
    n_params,
    noack_cnn,
    one_hidden,
    one_layer,
    photo_efficientnet_b0,
    photo_resnet34,
    pooled_conv,
    small_conv,
    smooth_activations,
    softplus_copy,
    wide_resnet,
)
from advinterp.parts import bring_data

ARCHITECTURES = {
    "one_layer": (functools.partial(one_layer, 64, 10), (64,)),
    "one_hidden": (functools.partial(one_hidden, 64, 200, 10), (64,)),
    "small_conv": (small_conv, (1, 8)),
    "madry_cnn": (madry_cnn, (1, 28)),
    "madry_dropout": (functools.partial(madry_cnn, dropout=0.5, init_std=None), (1, 28)),
    "noack_cnn": (noack_cnn, (3, 32)),
    "noack_code": (functools.partial(noack_cnn, dense_relu=False), (3, 32)),
    "wide_resnet": (functools.partial(wide_resnet, units=1, width=1), (3, 32)),
    "wide_resnet_std": (
        functools.partial(wide_resnet, units=2, width=1, standardise=True),
        (3, 32),
    ),
    "wide_resnet_255": (
        functools.partial(wide_resnet, units=1, width=1, input_scale=255.0),
        (3, 32),
    ),
    "photo_resnet34": (photo_resnet34, (3, 32)),
    "photo_efficientnet_b0": (photo_efficientnet_b0, (3, 32)),
    "pooled_conv": (pooled_conv, (3, 32)),
}


@functools.cache
def images_for(shape):
    "The set that a network was made for, where it is at hand; else digits."
    name = {(1, 28): "mnist", (3, 32): "cifar10"}.get(shape)
    at_hand = [row["name"] for row in data_table() if row["where"]]
    return load(name if name in at_hand else "digits")


def batch(shape, n=32):
    "Real images as a network takes them: flat, or resized to its channels and size."
    data = images_for(shape)
    x, y = torch.tensor(data.x[:n]), torch.tensor(data.y[:n])
    if len(shape) == 1:
        return x.flatten(1), y
    channels, size = shape
    if x.shape[1:] != (channels, size, size):
        x = F.interpolate(x, size=size, mode="bilinear")
        x = x.expand(-1, channels, -1, -1).contiguous()
    return x, y


def losses_of_steps(model, opt, x, y, steps):
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(model(x), y)
        losses.append(loss.item())
        opt.zero_grad()
        loss.backward()
        opt.step()
    return losses


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_learns_from_real_images(name):
    make, shape = ARCHITECTURES[name]
    set_seed(0)
    model = make()
    x, y = batch(shape, 12)
    assert model(x).shape == (12, 10)
    opt = torch.optim.Adam(model.parameters(), lr=3e-4)
    losses = losses_of_steps(model, opt, x, y, 5)
    assert all(param.grad is not None for param in model.parameters())
    assert 1.5 < losses[0] < 20
    assert min(losses[2:]) < losses[0]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_module_is_called_once_and_none_works_in_place(name):
    make, shape = ARCHITECTURES[name]
    model = make().eval()
    calls = collections.Counter()

    def count(module, inputs, out):
        calls.update([module])

    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(count)
        assert not getattr(module, "inplace", False)
    x, _ = batch(shape, 2)
    with torch.no_grad():
        assert model(x).shape == (2, 10)
    assert set(calls.values()) == {1}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rows_do_not_meet_in_evaluation_mode_and_models_pickle(name):
    make, shape = ARCHITECTURES[name]
    model = pickle.loads(pickle.dumps(make().eval()))
    x, _ = batch(shape, 2)
    with torch.no_grad():
        assert torch.allclose(model(x)[:1], model(x[:1]), atol=1e-4)
        assert model(x[:0]).shape == (0, 10)


@pytest.mark.parametrize(
    "name, share", [("one_hidden", 1e-4), ("small_conv", 0.1), ("madry_cnn", 0.1)]
)
def test_deep_lift_is_complete_on_them(name, share):
    "Exact for dense layers; through max-pooling captum leaves a few per cent open."
    captum = pytest.importorskip("captum.attr")
    make, shape = ARCHITECTURES[name]
    set_seed(0)
    model = make().eval()
    x, y = batch(shape, 4)
    _, gap = captum.DeepLift(model).attribute(x, target=y, return_convergence_delta=True)
    assert gap.abs().max() < share * model(x).abs().max()


def conv_5x5(x, w, b):
    "A convolution `(C, H, W)` to `(O, H, W)` with padding 2, in NumPy."
    padded = np.pad(x, ((0, 0), (2, 2), (2, 2)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), (1, 2))
    return np.einsum("chwij,ocij->ohw", windows, w) + b[:, None, None]


def relu_and_pool(x):
    c, h, w = x.shape
    return np.maximum(x, 0).reshape(c, h // 2, 2, w // 2, 2).max((2, 4))


def test_madry_cnn_against_the_formula_in_numpy():
    set_seed(0)
    model = madry_cnn()
    x = torch.rand(1, 1, 28, 28)
    params = [param.detach().double().numpy() for param in model.parameters()]
    w1, b1, w2, b2, w3, b3, w4, b4 = params
    h = relu_and_pool(conv_5x5(x[0].double().numpy(), w1, b1))
    h = relu_and_pool(conv_5x5(h, w2, b2)).ravel()
    want = w4 @ np.maximum(w3 @ h + b3, 0) + b4
    assert np.allclose(model(x).detach().numpy()[0], want, atol=1e-3, rtol=1e-4)


def test_initial_statistics():
    set_seed(1)
    model = wide_resnet(units=5, width=2)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is None
            std = (2 / (9 * module.out_channels)) ** 0.5
            assert module.weight.std().item() == pytest.approx(std, rel=0.12)
    assert model[-1].weight.std().item() == pytest.approx(128**-0.5, rel=0.1)
    with torch.no_grad():
        logits = model(torch.rand(8, 3, 32, 32))
    assert 0.1 < logits.std() < 5
    biases = torch.cat([one_layer(117).bias for _ in range(500)])
    assert biases.std().item() == pytest.approx(0.05, rel=0.15)


adam = functools.partial(torch.optim.Adam, lr=1e-4)
sgd = functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9)


@pytest.mark.parametrize(
    "make, shape, optimiser, spread, first",
    [
        (madry_cnn, (1, 28), adam, (3, 7), (4, 10)),
        (
            functools.partial(wide_resnet, width=2, input_scale=255.0),
            (3, 32),
            sgd,
            (0.3, 2),
            (1.8, 4),
        ),
        (
            functools.partial(wide_resnet, width=2, standardise=True),
            (3, 32),
            sgd,
            (0.3, 2),
            (1.8, 4),
        ),
    ],
    ids=["madry_cnn", "wide_resnet_255", "wide_resnet_std"],
)
def test_first_step_with_the_published_initialisation(make, shape, optimiser, spread, first):
    """The first step moves no weight far and lowers the loss.

    Logits are as large as the initialisation of the last layer says (3 to 6 in the MNIST network,
    near 1 behind batch normalisation), gradients reach the first layer.
    """
    set_seed(0)
    model = make()
    x, y = batch(shape, 64)
    logits = model(x)
    loss = F.cross_entropy(logits, y)
    loss.backward()
    expected = model[-1].weight.std() * model[:-1](x).norm(dim=1).mean()
    assert 0.5 < logits.std() / expected < 1.7
    assert spread[0] < expected < spread[1]
    assert first[0] < loss < first[1]
    weights = [param for param in model.parameters() if param.ndim > 1]
    before = [weight.detach().clone() for weight in weights]
    for weight in weights:
        assert 1e-6 < weight.grad.norm() < 200
    optimiser(weights).step()
    for weight, old in zip(weights, before):
        assert 0 < (weight - old).norm() < 0.3 * old.norm()
    assert F.cross_entropy(model(x), y) < loss


@pytest.mark.slow
def test_the_full_wide_resnet_learns():
    set_seed(0)
    model = wide_resnet(input_scale=255.0)
    assert models.n_params(model) == 45_901_914
    losses = losses_of_steps(model, sgd(model.parameters()), *batch((3, 32), 16), 4)
    assert 1.8 < losses[0] < 6
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if "photo" not in name])
def test_same_seed_same_weights(name):
    make, _ = ARCHITECTURES[name]
    states = []
    for seed in (3, 3, 4):
        set_seed(seed)
        states.append(torch.cat([param.flatten() for param in make().parameters()]))
    first, again, other = states
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def count_of(model, kind):
    return sum(isinstance(module, kind) for module in model.modules())


def test_the_wide_net_halves_the_image_twice():
    x = torch.rand(2, 3, 32, 32)
    for units in (1, 2):
        before_the_mean = wide_resnet(units=units, width=2).eval()[:-3]
        assert before_the_mean(x).shape == (2, 128, 8, 8)


def test_images_are_standardised_one_by_one_but_nearly_plain_ones_are_left_plain():
    """The deviation has a floor of one over the root of the number of values."""
    noise = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    noise = (noise - noise.mean((1, 2, 3), True)) / noise.flatten(1).std(1, correction=0)[0]
    deviations = torch.tensor([0.5, 1e-4])[:, None, None, None]
    scale = InputScale(standardise=True)
    out = scale(0.3 + deviations * noise)
    torch.testing.assert_close(out[0], noise[0])
    torch.testing.assert_close(out[1], 1e-4 * 48**0.5 * noise[1])
    assert torch.equal(InputScale(255.0)(noise), 255 * noise)


def test_softplus_copy_keeps_the_original_and_reaches_nested_modules():
    model = photo_resnet34().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    smooth = softplus_copy(model, beta=50.0)
    assert count_of(smooth, nn.ReLU) == 0
    assert count_of(smooth, models.SmoothLeakyReLU) == 33
    assert count_of(model, nn.ReLU) == 33
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    wide = wide_resnet(units=1, width=1).eval()
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert (softplus_copy(wide, 1e4)(x) - wide(x)).abs().max() < 1e-2
    with pytest.raises(ValueError, match="no ReLU module"):
        softplus_copy(photo_efficientnet_b0())


def test_softplus_copy_replaces_a_module_at_every_place():
    set_seed(0)
    relu = nn.ReLU()
    body = [nn.Linear(4, 8), relu, nn.Linear(8, 8), relu, nn.Linear(8, 8), nn.ReLU6()]
    body += [nn.Linear(8, 8), nn.LeakyReLU(0.2, inplace=True)]
    model = nn.Sequential(*body, nn.Linear(8, 2)).double()
    x = 20 * torch.randn(50, 4, dtype=torch.double)
    smooth = softplus_copy(model, 1e5)
    assert (smooth(x) - model(x)).abs().max() < 1e-4
    kinks = (nn.ReLU, nn.ReLU6, nn.LeakyReLU)
    assert not any(isinstance(module, kinks) for module in smooth.modules())
    t = torch.linspace(-3, 9, 400, dtype=torch.double)[:, None]
    smooth6 = softplus_copy(nn.Sequential(nn.ReLU6()), 10.0)(t)
    torch.testing.assert_close(smooth6, F.softplus(t, 10) - F.softplus(t - 6, 10))
    assert (smooth6 - F.relu6(t)).abs().max() <= 0.1 * np.log(2)


class FunctionalReLU(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8))
        self.function = function

    def forward(self, x):
        return self.function(self.body(x))


class Branches(FunctionalReLU):
    def forward(self, x):
        return self.body(x if x.sum() > 0 else -x)


def method_in_place(h):
    return h.relu_()


@pytest.mark.parametrize(
    "function",
    [
        *[F.relu, torch.relu, F.relu6, method_in_place, F.hardtanh, F.softshrink],
        *[lambda h: h.clamp(min=0), lambda h: torch.maximum(h, -h), torch.abs],
    ],
)
def test_softplus_copy_refuses_functional_kinks(function):
    with pytest.raises(ValueError, match=r"kinks are left in its copy \("):
        softplus_copy(FunctionalReLU(function))
    smooth = softplus_copy(FunctionalReLU(torch.tanh))
    assert count_of(smooth, nn.ReLU) == 0


def test_softplus_copy_refuses_kinked_modules_and_says_what_it_cannot_follow():
    for kinked in (nn.PReLU(), nn.Hardtanh(), nn.TransformerEncoderLayer(8, 2)):
        name = type(kinked).__name__
        with pytest.raises(ValueError, match=rf"kinks are left in its copy \({name}"):
            softplus_copy(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), kinked))
    with pytest.warns(UserWarning, match="the code of Branches cannot be followed"):
        softplus_copy(Branches(None))


@pytest.mark.parametrize("activation, kind", [("silu", nn.SiLU), ("gelu", nn.GELU)])
def test_smooth_activations_replace_every_relu(activation, kind):
    model = photo_resnet34()
    smooth = smooth_activations(model, activation)
    assert count_of(smooth, kind) == 33 == count_of(model, nn.ReLU)
    assert count_of(smooth, nn.ReLU) == 0
    state = smooth.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_smooth_activations_compute_what_they_say():
    set_seed(0)
    first, last = nn.Linear(4, 8), nn.Linear(8, 2)
    x = torch.randn(5, 4)
    for layer in (nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.2)):
        smooth = smooth_activations(nn.Sequential(first, layer, last))
        hidden = first(x)
        torch.testing.assert_close(smooth(x), last(hidden * hidden.sigmoid()))


def test_smooth_activations_refuse_what_keeps_a_kink():
    with pytest.raises(ValueError, match=r"kinks are left in its copy \("):
        smooth_activations(FunctionalReLU(F.relu))
    with pytest.raises(ValueError, match="no ReLU module"):
        smooth_activations(nn.Linear(4, 2))
    with pytest.raises(TypeError, match=r"expected an nn\.Module, got str"):
        smooth_activations("resnet18")
    with pytest.raises(ValueError, match="activation='relu': expected one of"):
        smooth_activations(photo_resnet34(), "relu")
    with pytest.warns(UserWarning, match="the code of Branches cannot be followed") as told:
        smooth_activations(Branches(None))
    assert told[0].filename == __file__


@pytest.mark.parametrize("old", ["resnet34", "efficientnet_b0"])
def test_old_names_work_with_a_warning(old):
    with pytest.warns(FutureWarning, match=f"models.photo_{old}"):
        assert getattr(models, old) is getattr(models, f"photo_{old}")


def test_torchvision_is_imported_only_where_it_is_used():
    code = "import sys, advinterp.models; print('torchvision' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    "make, argument",
    [
        (lambda: one_layer(0), "n_in=0"),
        (lambda: one_layer(3, 2.0), r"n_out=2\.0"),
        (lambda: one_layer(3, init_std=-1), "init_std=-1"),
        (lambda: small_conv(size=6), "size=6"),
        (lambda: small_conv(width=0), "width=0"),
        (lambda: madry_cnn(size=27), "size=27"),
        (lambda: madry_cnn(n_out=True), "n_out=True"),
        (lambda: madry_cnn(dropout=1.5), "dropout"),
        (lambda: noack_cnn(dropout=-0.1), r"dropout=-0\.1"),
        (lambda: wide_resnet(units=0), "units=0"),
        (lambda: one_hidden(3, -1), "n_hidden=-1"),
        (lambda: photo_resnet34(0), "n_out=0"),
        (lambda: photo_efficientnet_b0("10"), "n_out='10'"),
    ],
)
def test_impossible_sizes_are_refused(make, argument):
    with pytest.raises((ValueError, TypeError), match=argument):
        make()


def test_a_study_knows_the_smooth_network():
    parts = bring_data("digits", device="cpu")
    smooth = make_model("small_conv_silu", parts)
    assert count_of(smooth, nn.ReLU) == 0 < count_of(smooth, nn.SiLU)
    assert n_params(smooth) == n_params(make_model("small_conv", parts))
