"""Attributions against captum, shap, closed forms and numerical optimisation; bad input."""

import copy
import threading
import warnings
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import GuidedGradCam, IntegratedGradients, NoiseTunnel, Saliency
from fastai.torch_core import TensorCategory, TensorImage
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from advinterp import attribution as A
from advinterp.adversary import PGD
from advinterp.core import bring, class_output
from advinterp.duals import LInfBall
from advinterp.linear import linear_ig

from .border import KINDS, agree, every_kind

quick = settings(deadline=None, max_examples=25)
close = partial(torch.testing.assert_close, rtol=0)
OUTPUTS = ["logit", "prob", "logprob", "loss"]
METHODS = {
    "saliency": A.saliency,
    "input_x_grad": A.input_x_grad,
    "integrated_gradients": partial(A.integrated_gradients, steps=8),
    "smoothgrad": partial(A.smoothgrad, n_samples=4),
    "vargrad": partial(A.vargrad, n_samples=4),
    "sparsified_smoothgrad": partial(A.sparsified_smoothgrad, n_samples=4),
    "moreau_grad": partial(A.moreau_grad, steps=4, average=2, n_samples=2),
    "deep_shap": A.deep_shap,
    "captum_map": partial(A.captum_map, Saliency),
}
every = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


class Counted(nn.Module):
    """Remembers the largest batch it has seen."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.seen = 0

    def forward(self, x):
        self.seen = max(self.seen, len(x))
        return self.net(x)


def madry(width=4):
    """The layout of the MNIST net of Chalasani et al. on 8x8 images: ReLU meets max-pooling."""
    return nn.Sequential(
        nn.Conv2d(1, width, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * width, 16),
        nn.ReLU(),
        nn.Linear(16, 3),
    )


def bn_net():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(144, 3),
    )


def two_layers(d, hidden, n, act=nn.Tanh):
    return nn.Sequential(nn.Linear(d, hidden), act(), nn.Linear(hidden, n)).double()


def one_layer(n, *before):
    return nn.Sequential(*before, nn.Linear(9, n)).double()


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.rand(6, 1, 8, 8, dtype=torch.double), torch.tensor([0, 1, 2, 2, 1, 0])


# ---------------------------------------------------------------- against other implementations


def captum_ig(net, x, y, baseline, output, **settings):
    captum = IntegratedGradients(lambda x, y: class_output(net(x), y, output))
    return captum.attribute(x, baseline, additional_forward_args=y, **settings).detach()


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize(
    "method",
    ["riemann_left", "riemann_right", "riemann_middle", "riemann_trapezoid", "gausslegendre"],
)
def test_ig_equals_captum(batch, output, method):
    (x, y), net = batch, madry().double()
    baseline = 0.3 * torch.ones_like(x)
    theirs = captum_ig(net, x, y, baseline, output, n_steps=20, method=method)
    if method == "riemann_trapezoid":
        theirs = theirs * 20 / 19  # captum's weights sum to 19/20
    settings = dict(output=output, baseline=0.3, steps=20, method=method, batch_size=7)
    close(A.integrated_gradients(net, x, y, **settings), theirs, atol=1e-6)


def test_ig_equals_captum_in_single_precision(batch):
    x, y, net = batch[0].float(), batch[1], madry()
    theirs = IntegratedGradients(net).attribute(x, target=y, n_steps=50, method="riemann_middle")
    ours = A.integrated_gradients(net, x, y)
    torch.testing.assert_close(ours, theirs.detach(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "n_outputs, output", [*((n, o) for n in (1, 2) for o in OUTPUTS), (4, "logit")]
)
@pytest.mark.parametrize("flatten", [False, True])
def test_ig_of_a_one_layer_net_is_exact(n_outputs, output, flatten):
    torch.manual_seed(0)
    net = one_layer(n_outputs, *[nn.Flatten()] * flatten)
    x = torch.randn(7, *(1, 3, 3) if flatten else (9,), dtype=torch.double)
    y = torch.tensor([0, 1, 1, 0, 1, 0, 0])
    us = torch.randn_like(x), torch.zeros_like(x[0])
    run = partial(A.integrated_gradients, net, x, y, output=output)
    ours, gap = run(baseline=us[0], steps=2, batch_size=3, return_gap=True)
    theirs = captum_ig(net, x, y, us[0], output, n_steps=200, method="gausslegendre")
    close(ours, theirs, atol=1e-6)
    assert gap.abs().max() < 1e-13
    both, gap = run(baseline=us, return_gap=True)
    close(both, (ours + run()) / 2, atol=1e-14)
    assert gap.abs().max() < 1e-13


@pytest.mark.parametrize("output, act", [("prob", torch.sigmoid), ("logprob", F.logsigmoid)])
@pytest.mark.parametrize("scale", [1e-9, 1e-4, 1.0, 1e4])
@pytest.mark.parametrize("label", [0, 1])
def test_ig_of_a_one_layer_net_is_lemma_4_1(output, act, scale, label):
    torch.manual_seed(0)
    one, two = one_layer(1), one_layer(2)
    x, u = torch.randn(2, 7, 9, dtype=torch.double)
    x = u + scale * (x - u)
    y = torch.full((7,), label)
    sign = 2 * label - 1
    w, b = one[0].weight[0].detach(), one[0].bias.item()
    w_two = (two[0].weight[label] - two[0].weight[1 - label]).detach()
    b_two = (two[0].bias[label] - two[0].bias[1 - label]).item()
    for net, weight, bias in ((one, sign * w, sign * b), (two, w_two, b_two)):
        ours = A.integrated_gradients(net, x, y, output=output, baseline=u)
        lemma = linear_ig(act, weight, x, u, bias)
        torch.testing.assert_close(ours, lemma, atol=0, rtol=1e-9)
    nowhere = A.integrated_gradients(one, x, y, output=output, baseline=x)
    torch.testing.assert_close(nowhere, torch.zeros_like(x))


@pytest.mark.parametrize("output", OUTPUTS)
def test_ig_of_a_one_layer_net_is_deep_shap(output):
    torch.manual_seed(0)
    net = one_layer(1)
    x, us = torch.randn(2, 7, 9, dtype=torch.double)
    y = torch.ones(7).long()
    shap = A.deep_shap(net, x, y, output=output, background=us)
    close(shap, A.integrated_gradients(net, x, y, output=output, baseline=[*us]), atol=1e-9)


class Bent(nn.Linear):
    def forward(self, x):
        return super().forward(x).relu()


MANY = dict(
    hidden=lambda: nn.Sequential(nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 2)),
    subclass=lambda: Bent(9, 2),
    norm=lambda: nn.Sequential(nn.LayerNorm(9), nn.Linear(9, 1)),
    parametrized=lambda: nn.utils.parametrizations.weight_norm(nn.Linear(9, 2)),
    function=lambda: torch.tanh,
)


@pytest.mark.parametrize("make", MANY.values(), ids=MANY.keys())
def test_ig_of_other_models_is_a_quadrature(make):
    torch.manual_seed(0)
    net = make()
    net = net.double() if isinstance(net, nn.Module) else net
    x, y = torch.randn(7, 9, dtype=torch.double), torch.tensor([0, 1, 1, 0, 1, 0, 0])
    run = partial(A.integrated_gradients, net, x, y, output="prob", baseline=x.flip(0))
    close(run(), run(method="riemann_middle"), atol=0)
    close(run(), run(method="gausslegendre", steps=500), atol=1e-2)


def test_ig_of_a_one_layer_net_sees_hooks():
    torch.manual_seed(0)
    net = one_layer(1)
    x, y = torch.randn(5, 9, dtype=torch.double), torch.tensor([0, 1, 1, 0, 1])
    net[0].register_forward_hook(lambda module, args, out: out.square())
    assert not A.is_affine(net)
    gap = A.integrated_gradients(net, x, y, steps=500, return_gap=True)[1]
    assert gap.abs().max() < 1e-4


@pytest.mark.parametrize("part", [0, None])
def test_ig_of_a_one_layer_net_sees_a_replaced_forward(part):
    torch.manual_seed(0)
    net = one_layer(1)
    x, y = torch.randn(5, 9, dtype=torch.double), torch.tensor([0, 1, 1, 0, 1])
    module = net if part is None else net[part]
    affine = module.forward
    module.forward = lambda z: affine(z).square()
    assert not A.is_affine(net)
    gap = A.integrated_gradients(net, x, y, steps=500, return_gap=True)[1]
    assert gap.abs().max() < 1e-4


@pytest.mark.parametrize("output", OUTPUTS)
def test_ig_of_three_affine_logits_is_exact(output):
    torch.manual_seed(0)
    net = nn.Linear(9, 3).double()
    x, y = torch.randn(7, 9, dtype=torch.double), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    run = partial(A.integrated_gradients, net, x, y, output=output, baseline=x.flip(0))
    close(run(), run(method="gausslegendre", steps=200), atol=1e-9)
    assert run(return_gap=True)[1].abs().max() < 1e-12


def relu_net(bias=False):
    """Convolutions, max-pooling and ReLU, with a bias in the last layer or none at all."""
    torch.manual_seed(0)
    last = nn.Linear(36, 3, bias=bias)
    pooled = nn.Conv2d(1, 4, 3, bias=False), nn.ReLU(), nn.MaxPool2d(2)
    return nn.Sequential(*pooled, nn.Flatten(), last).double()


@pytest.mark.parametrize("output", OUTPUTS)
def test_ig_of_a_relu_net_without_biases_is_one_gradient(output, monkeypatch):
    net, x, y = relu_net(), torch.rand(5, 1, 8, 8, dtype=torch.double), torch.arange(5) % 3
    passes = []
    convolve = nn.Conv2d.forward

    def counted(layer, z):
        passes.append(len(z))
        return convolve(layer, z)

    monkeypatch.setattr(nn.Conv2d, "forward", counted)
    ig, gap = A.integrated_gradients(net, x, y, output=output, return_gap=True)
    n_passes = sum(passes)
    close(ig, A.integrated_gradients(net, x, y, output=output, method="gausslegendre"), atol=1e-9)
    assert gap.abs().max() < 1e-12
    assert n_passes <= 5 * 5  # not one for each node
    if output == "logit":
        close(ig, A.input_x_grad(net, x, y), atol=1e-14)


@pytest.mark.parametrize("case", ["bias", "baseline", "hook", "tanh", "forward"])
def test_ig_elsewhere_is_no_single_gradient(case):
    net, x, y = relu_net(case == "bias"), torch.rand(5, 1, 8, 8).double(), torch.arange(5) % 3
    if case == "bias":
        net[0].bias = nn.Parameter(torch.full((4,), -0.2, dtype=torch.double))
    if case == "hook":
        net[0].register_forward_hook(lambda module, args, out: out - 0.2)
    if case == "tanh":
        net[1] = nn.Tanh()
    if case == "forward":  # replaced on the module, as wrappers of other packages do
        convolve = net[0].forward
        net[0].forward = lambda z: convolve(z) - 0.2
    baseline = 0.3 if case == "baseline" else None
    run = partial(A.integrated_gradients, net, x, y, baseline=baseline)
    close(run(), run(method="riemann_middle"), atol=0)
    one_gradient = (x - (baseline or 0)) * A.saliency(net, x, y)
    assert (one_gradient - run()).abs().max() > 1e-3
    assert A.is_homogeneous(bring(net, x)[0]) == (case == "baseline")


@pytest.mark.parametrize("output", OUTPUTS)
def test_ig_of_a_one_layer_net_checks_labels(output):
    x, y = torch.randn(5, 9, dtype=torch.double), torch.tensor([1, 2, 2, 1, 2])
    with pytest.raises(ValueError, match="labels from 1 to 2"):
        A.integrated_gradients(one_layer(1), x, y, output=output)


def test_deep_shap_equals_shap(batch):
    shap = pytest.importorskip("shap", reason="shap is not installed")
    x, y, net = batch[0].float(), batch[1], madry()
    us = torch.rand(5, 1, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = shap.DeepExplainer(net, us).shap_values(x, check_additivity=False)
    theirs = torch.as_tensor(values)[torch.arange(6), ..., y].float()  # of (B, 1, 8, 8, classes)
    ours = A.deep_shap(net, x, y, background=us)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)


def test_smoothgrad_and_vargrad_estimate_what_captum_does(batch):
    x, y = batch[0][:2], batch[1][:2]
    net, n = madry().double(), 1500
    torch.manual_seed(1)
    tunnel = NoiseTunnel(Saliency(net))
    settings = dict(nt_samples=n, nt_samples_batch_size=100, stdevs=0.2, target=y, abs=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mean = tunnel.attribute(x, nt_type="smoothgrad", **settings).detach()
        variance = tunnel.attribute(x, nt_type="vargrad", **settings).detach()
    noise = dict(n_samples=n, sigma=0.2, relative=False)
    difference = (A.smoothgrad(net, x, y, **noise) - mean).abs()
    assert (difference < 6 * (2 * variance / n).sqrt() + 1e-9).all()  # two independent means
    ours = A.vargrad(net, x, y, **noise)
    assert (ours / variance - 1).abs().mean() < 0.1
    assert ours.sum().item() == pytest.approx(variance.sum().item(), rel=0.05)


@pytest.mark.parametrize("relative", [True, False])
def test_noise_is_a_share_of_the_range_of_each_example(relative):
    """A quadratic logit has its input for a gradient: the variance is that of the noise."""

    def quadratic(x):
        value = x.square().sum(1, keepdim=True) / 2
        return torch.cat([value, -value], 1)

    low = torch.tensor([2.0, -1.0, 0.0], dtype=torch.double)[:, None]
    span = torch.tensor([1.0, 4.0, 0.5], dtype=torch.double)[:, None]
    x = low + span * torch.linspace(0, 1, 50, dtype=torch.double)
    how = dict(n_samples=400, sigma=0.2, relative=relative)
    variance = A.vargrad(quadratic, x, torch.zeros(3, dtype=torch.long), **how)
    expected = (0.2 * span[:, 0] if relative else torch.full((3,), 0.2)).square()
    assert (variance.mean(1) / expected - 1).abs().max() < 0.05


@pytest.mark.parametrize("eta", [0.0, 0.05])
def test_moreau_grad_is_the_minimiser(eta):
    torch.manual_seed(0)
    net = two_layers(5, 8, 2)
    x, y, lam = torch.randn(1, 5, dtype=torch.double), torch.tensor([1]), 0.8

    def objective(values):  # delta = p - q, p and q >= 0: smooth, for any eta
        p, q = torch.as_tensor(values).requires_grad_().split(5)
        delta = p - q
        value = net(x + delta)[0, 1] + delta.square().sum() / (2 * lam) + eta * (p + q).sum()
        return value.item(), torch.cat(torch.autograd.grad(value, (p, q))).numpy()

    settings = dict(jac=True, bounds=[(0, None)] * 10, method="L-BFGS-B")
    options = dict(ftol=1e-15, gtol=1e-10)
    best = minimize(objective, np.zeros(10), options=options, **settings).x
    exact = dict(n_samples=1, sigma=0.0, steps=1500, average=1)
    ours = A.moreau_grad(net, x, y, lam=lam, eta=eta, **exact)
    np.testing.assert_allclose(ours[0], -(best[:5] - best[5:]) / lam, atol=1e-6)


def curved(curvature):
    """Two logits, the second a parabola."""
    return lambda x: torch.stack([0 * x[:, 0], 0.5 * curvature * x.square().sum(1) + x[:, 0]], 1)


def said_by(run):
    """What a function returns, and the names of the arguments that its warnings speak of."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        return run(), {str(w.message).split("=")[0] for w in seen}


@pytest.mark.parametrize("curvature, lam", [(25.0, 1.0), (400.0, 1.0), (-1.5, 0.5), (0.0, 3.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_moreau_grad_chooses_its_step(curvature, lam, dtype):
    x, y = torch.linspace(-1, 1, 12).reshape(3, 4).to(dtype), torch.ones(3, dtype=torch.long)
    slope = curvature * x
    slope[:, 0] += 1
    run = partial(A.moreau_grad, curved(curvature), x, y, eta=0.0, n_samples=2, sigma=0.0, lam=lam)
    found, said = said_by(run)
    close(found, slope / (1 + lam * curvature), atol=2e-3 if dtype == torch.float32 else 1e-9)
    assert not said


@pytest.mark.parametrize(
    "curvature, settings, said",
    [
        (25.0, dict(lr=0.1), {"lam"}),  # the steps diverge
        (-1.5, dict(), {"lam"}),  # no minimum
        (0.0, dict(eta=3.0), {"eta"}),  # all zero
        (0.0, dict(eta=0.5), set()),
        (25.0, dict(lr=1e-4), {"steps"}),  # on its way
    ],
)
def test_moreau_grad_says_what_is_void(curvature, settings, said):
    x, y = torch.ones(2, 4), torch.ones(2, dtype=torch.long)
    how = dict(eta=0.0, n_samples=1, sigma=0.0, steps=100, average=10) | settings
    maps, found = said_by(partial(A.moreau_grad, curved(curvature), x, y, **how))
    assert said <= found and ("eta" in found) == ("eta" in said)
    assert ("steps" in found) == ("steps" in said)
    assert (maps == 0).all() == ("eta" in said)


@pytest.mark.parametrize(
    "low, high, is_short", [(-0.9, 1e5, True), (0.0, 1e3, True), (0, 10, False)]
)
@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_moreau_grad_says_that_it_has_not_arrived(low, high, is_short, noise):
    curvatures = torch.linspace(low**3, high**3, 12).double()
    curvatures = curvatures.sign() * curvatures.abs() ** (1 / 3)
    x, y = torch.linspace(-1, 1, 36).reshape(3, 12).double(), torch.ones(3, dtype=torch.long)

    def quadratic(x):
        value = 0.5 * (curvatures * x.square()).sum(1) + x.sum(1)
        return torch.stack([0 * value, value], 1)

    settings = dict(eta=0.0, n_samples=4, sigma=noise)
    found, said = said_by(partial(A.moreau_grad, quadratic, x, y, **settings))
    exact = (curvatures * x + 1) / (1 + curvatures)
    error = (found - exact).norm(dim=1) / exact.norm(dim=1)
    assert said == ({"steps"} if is_short else set())
    assert (error.max() > 0.1) == is_short


def sine(z):
    return torch.cat([0 * z, 5 * (3 * z).sin()], 1)


@pytest.mark.parametrize("settings", [dict(), dict(lr=0.03), dict(lam=0.02)], ids=str)
def test_moreau_grad_says_where_a_lower_minimum_may_be(settings):
    """Valleys side by side: whose minimum is not the lowest one is told, and nobody else."""
    x = torch.linspace(-2, 2, 17).double()[:, None]
    y = torch.ones(1, dtype=torch.long)
    lam = settings.get("lam", 1.0)
    places = torch.linspace(-9, 9, 360_001).double()
    wrong, told = [], []
    for start in x:
        height = sine(places[:, None])[:, 1] + (places - start).square() / (2 * lam)
        exact = (start - places[height.argmin()]) / lam
        how = dict(eta=0.0, n_samples=1, sigma=0.0) | settings
        found, said = said_by(partial(A.moreau_grad, sine, start[None], y, **how))
        wrong.append((found - exact).abs().item() > 0.1)
        told.append("lam" in said)
    assert told == wrong


# ---------------------------------------------------------------- what the model looks for


def climbed(mu, **settings):
    """A linear model, and what it looks for from the middle of the box under a pull `mu`."""
    torch.manual_seed(0)
    net = nn.Linear(6, 3)
    net.weight.data += 0.1 * net.weight.data.sign()  # no entry hardly matters
    y = torch.tensor([0, 2])
    start = torch.full((2, 6), 0.5)
    found = A.feature_visualization(net, y, (6,), mu=mu, start=start, **settings)
    return net.weight[y].detach(), start, found


def test_without_a_pull_the_climb_ends_in_a_corner():
    w, _, found = climbed(0.0, steps=300, lr=0.1)
    assert torch.equal(found, (w > 0).float())


@pytest.mark.parametrize("mu", [2.0, 5.0])
def test_the_pull_is_towards_the_start(mu):
    lr = 0.002
    w, start, found = climbed(mu, steps=400, lr=lr)
    best = start + w / mu  # the maximum of <w, x> - mu/2 |x - start|^2
    assert 0.05 < (best - start).abs().max() < 0.5  # moves, and stays inside the box
    close(found, best, atol=2 * lr * 6**0.5)  # steps of a fixed length end around it


# ---------------------------------------------------------------- laws


ACTIVATIONS = dict(
    relu=F.relu,
    gelu=F.gelu,
    softplus=F.softplus,
    leaky_relu=F.leaky_relu,
    tanh=torch.tanh,
    hardswish=F.hardswish,
)


@quick
@given(
    st.integers(0, 10**6),
    st.sampled_from(OUTPUTS),
    st.sampled_from([*ACTIVATIONS]),
    st.booleans(),
)
def test_deep_shap_is_complete_on_random_nets(seed, output, act, residual):
    torch.manual_seed(seed)
    func = ACTIVATIONS[act]
    first, second, last = nn.Linear(6, 6).double(), nn.Linear(6, 6).double(), nn.Linear(6, 3)
    last.double()

    def net(x):
        once = func(first(x))
        twice = func(second(once))  # one function, used twice
        return last(once + twice if residual else F.max_pool1d(twice[:, None], 3, 1, 1)[:, 0])

    x, us = torch.randn(4, 6, dtype=torch.double), torch.randn(3, 6, dtype=torch.double)
    y = torch.tensor([0, 1, 2, 0])
    phi, gap = A.deep_shap(net, x, y, output=output, background=us, return_gap=True)
    assert gap.abs().max() < 1e-9
    of_backgrounds = [class_output(net(u.expand_as(x)), y, output) for u in us]
    change = class_output(net(x), y, output) - sum(of_backgrounds) / 3
    close(phi.sum(1), change.detach(), atol=1e-9)


@quick
@given(st.integers(0, 10**6), st.sampled_from(OUTPUTS))
def test_ig_is_complete_and_zero_where_the_input_is_the_baseline(seed, output):
    torch.manual_seed(seed)
    net = two_layers(6, 8, 3)
    x, u = torch.randn(4, 6, dtype=torch.double), torch.randn(4, 6, dtype=torch.double)
    y = torch.tensor([0, 1, 2, 0])
    u[:, 2] = x[:, 2]
    settings = dict(output=output, steps=100)
    ig, gap = A.integrated_gradients(net, x, y, baseline=u, return_gap=True, **settings)
    assert gap.abs().max() < 5e-3
    assert (ig[:, 2] == 0).all()
    back = A.integrated_gradients(net, u, y, baseline=x, **settings)
    close(back, -ig, atol=1e-6)  # antisymmetric


@every
@pytest.mark.parametrize("output", OUTPUTS)
def test_shape_and_independence_of_the_batch(method, output, batch):
    (x, y), net = batch, bn_net().double().train()
    whole = method(net, x, y, output=output)
    assert whole.shape == x.shape
    assert whole.dtype == x.dtype
    assert whole.isfinite().all()
    assert not whole.requires_grad
    close(method(net, x, y, output=output, batch_size=4), whole, atol=1e-9)
    parts = [method(net, *pair, output=output) for pair in zip(x.split(1), y.split(1))]
    close(torch.cat(parts), whole, atol=1e-9)


@every
def test_memory_bound(method, batch):
    (x, y), net = batch, Counted(madry().double())
    method(net, x, y, batch_size=4)
    assert 0 < net.seen <= 4


@every
def test_no_side_effects(method, batch):
    (x, y), net = batch, bn_net().double().train()
    net[0].weight.requires_grad_(False)
    net[1].eval()
    x = x.clone().requires_grad_()

    def state():
        return (
            [p.requires_grad for p in net.parameters()],
            [module.training for module in net.modules()],
            [buffer.clone().tolist() for buffer in net.buffers()],
            torch.random.get_rng_state().tolist(),
            x.tolist(),
        )

    before = state()
    with torch.no_grad():
        method(net, x, y)
        assert not torch.is_grad_enabled()
    assert state() == before
    assert x.grad is None
    assert all(p.grad is None for p in net.parameters())
    with pytest.raises(ValueError):
        method(net, x, y + 1)  # an exception in the middle
    assert state() == before


@every
def test_models_with_one_logit_and_empty_batches(method):
    torch.manual_seed(0)
    x, y = torch.randn(5, 7), torch.tensor([0, 1, 1, 0, 1])
    lin = nn.Linear(7, 1)
    for net in (lin, lambda x: lin(x)[:, 0]):
        assert method(net, x, y).shape == x.shape
    assert method(lin, x[:0], y[:0]).shape == (0, 7)


@every
def test_bad_input(method, batch):
    (x, y), net = batch, madry().double()
    for change, error, words in [
        (dict(y=y + 1), ValueError, "labels from 1 to 3"),
        (dict(y=y[:2]), ValueError, "6 class indices"),
        (dict(y=None), TypeError, "y=None: expected 6 class indices"),
        (dict(y=y + 0.5), ValueError, "y has fractions"),
        (dict(y=F.one_hot(y)), ValueError, "a column for each class"),
        (dict(x=x.long()), TypeError, "floating"),
        (dict(x=x.numpy()), TypeError, "expected a torch.Tensor, got ndarray"),
        (dict(x=(x, x)), TypeError, "x: expected a torch.Tensor, got tuple"),
        (dict(x=x[:, 0]), ValueError, "does not take x of shape"),
        (dict(model=nn.Sequential(net, nn.Softmax(1))), ValueError, "are probabilities"),
        (dict(model=lambda x: net(x)[:, :1].sigmoid(), y=y % 2), ValueError, "are probabilities"),
        (dict(model=lambda x: net(x) * torch.nan), ValueError, "logits are NaN"),
        (dict(model=lambda x: x), ValueError, "output has shape"),
        (dict(model="resnet18"), TypeError, "expected a module"),
        (dict(output="class"), ValueError, "output='class'"),
        (dict(batch_size=0), ValueError, "batch_size=0"),
    ]:
        with pytest.raises(error, match=words):
            method(**{**dict(model=net, x=x, y=y), **change})


# ---------------------------------------------------------------- what a user brings


def smooth_conv(n_out=4):
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 3, 3), nn.SiLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(75, n_out)]
    return nn.Sequential(*layers)


def images():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(5, 2, 12, 12, generator=generator), torch.tensor([0, 1, 2, 3, 2])


SEVERAL = METHODS | {
    "completeness_gap": lambda net, x, y: A.completeness_gap(net, x, y, x),
    "integrated_gradients, gap": partial(A.integrated_gradients, steps=3, return_gap=True),
    "paper_table_ig": A.paper_table_ig,
    "paper_image_ig": A.paper_image_ig,
    "feature_visualization": lambda net, x, y: A.feature_visualization(
        net, y, (2, 12, 12), start=x, steps=2, jitter=1
    ),
}


@every_kind
@pytest.mark.parametrize("method", SEVERAL.values(), ids=SEVERAL)
def test_whatever_is_brought_is_explained(method, kind):
    agree(method, kind, smooth_conv(), *images())


@every
@pytest.mark.parametrize("form", [lambda z: z[:, 0], torch.squeeze], ids=["(B,)", "squeezed"])
@pytest.mark.parametrize("n", [1, 5])
def test_one_logit_in_any_form(method, form, n):
    net = smooth_conv(1)
    x, y = (values[:n] for values in images())
    close(method(lambda x: form(net(x)), x, y > 1), method(net, x, y > 1), atol=1e-6)


@every
def test_a_last_batch_of_one_may_be_squeezed(method):
    net, (x, y) = smooth_conv(), images()
    close(method(lambda x: net(x).squeeze(), x, y, batch_size=2), method(net, x, y), atol=1e-5)


@pytest.mark.parametrize("method", SEVERAL.values(), ids=SEVERAL)
def test_nothing_is_explained_by_nothing(method):
    net, (x, y) = smooth_conv(), images()
    for kind in ("fastai", "float16", "(B, 1)", "learner"):
        model, few, labels = KINDS[kind].brought(net, x[:0], y[:0])
        found = method(model, few, labels)
        maps = found[0] if isinstance(found, tuple) else found
        assert maps.shape in (x[:0].shape, (0,))


@every
def test_half_precision_models(method):
    net, (x, y) = smooth_conv().bfloat16(), images()
    found = method(net, x.bfloat16(), y)
    assert found.dtype == torch.bfloat16
    assert found.isfinite().all()


def test_a_baseline_and_a_background_of_any_class_and_precision():
    net, (x, y) = smooth_conv(), images()
    us = torch.rand(3, 2, 12, 12)
    ig = partial(A.integrated_gradients, net, x, y, steps=3)
    shap = partial(A.deep_shap, net, x, y)
    with torch.inference_mode():
        for brought in (TensorImage(us), us.double(), us.clone(), us.requires_grad_()):
            close(shap(background=brought), shap(background=us.detach()), atol=1e-6)
            found = ig(baseline=[*brought])
            close(found, ig(baseline=[*us.detach()]), atol=1e-6)
            gap = A.completeness_gap(net, x, y, TensorImage(found), baseline=tuple(brought))
            assert gap.isfinite().all()
    with pytest.raises(TypeError, match="baseline='grey': expected a number, a tensor"):
        ig(baseline="grey")
    with pytest.raises(TypeError, match=r"background: expected a torch\.Tensor, got list"):
        shap(background=[0.0])


def test_nan_gradients_are_named():
    torch.manual_seed(0)
    net = nn.Linear(4, 3)
    x, y = torch.rand(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    x[4] = 0

    def root(x):
        return net(x.sqrt())

    with pytest.warns(UserWarning, match="maps of 1 of 6 inputs have NaN or infinite"):
        found = A.saliency(root, x, y, batch_size=2)
    assert (~found.isfinite()).any(1).tolist() == [False] * 4 + [True, False]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        A.saliency(root, x[:4], y[:4])


class Watched(TorchDispatchMode):
    """Counts the numbers that travel to the host."""

    def __init__(self):
        super().__init__()
        self.n_transfers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n_transfers += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


LOOPS = {
    "integrated_gradients": lambda n: partial(A.integrated_gradients, steps=2 * n, batch_size=5),
    "smoothgrad": lambda n: partial(A.smoothgrad, n_samples=n, batch_size=5),
    "sparsified_smoothgrad": lambda n: partial(A.sparsified_smoothgrad, n_samples=n, batch_size=5),
    "moreau_grad": lambda n: partial(A.moreau_grad, steps=n, average=1, n_samples=2),
    "deep_shap": lambda n: partial(A.deep_shap, background=torch.rand(n, 2, 12, 12), batch_size=10),
    "feature_visualization": lambda n: (
        lambda net, x, y: A.feature_visualization(net, y, (2, 12, 12), steps=n, start=x)
    ),
}


@pytest.mark.parametrize("method", LOOPS.values(), ids=LOOPS)
def test_loops_wait_for_no_number(method):
    net, (x, y) = smooth_conv(), images()
    counts = []
    for n in (4, 16):
        with Watched() as watched:
            method(n)(net, x, y)
        counts.append(watched.n_transfers)
    assert counts[0] == counts[1] <= 8


@pytest.mark.parametrize(
    "method", [A.smoothgrad, A.vargrad, A.sparsified_smoothgrad, A.moreau_grad]
)
@pytest.mark.parametrize(
    "setting", [dict(seed=-1), dict(seed="a"), dict(seed=0.5), dict(n_samples=-1), dict(sigma=-1)]
)
def test_wrong_settings_are_named(method, setting):
    with pytest.raises((TypeError, ValueError), match=f"^{next(iter(setting))}="):
        method(smooth_conv(), *images(), **setting)


@pytest.mark.parametrize("bounds", [(1.0, 0.0), [1], "ab", 3, (0, np.nan), (None, 1)])
def test_wrong_bounds_are_named(bounds):
    net, (x, y) = smooth_conv(), images()
    for call in (
        lambda: A.smoothgrad(net, x, y, bounds=bounds),
        lambda: A.feature_visualization(net, y, (2, 12, 12), bounds=bounds),
    ):
        with pytest.raises(ValueError, match=r"^bounds="):
            call()


def test_bounds_may_differ_from_entry_to_entry():
    net, (x, y) = smooth_conv(), images()
    run = partial(A.smoothgrad, net, x, y, n_samples=3)
    wanted = run(bounds=(0, 1))
    for low, high in ((torch.zeros(2, 12, 12), 1.0), (0, torch.ones(12, dtype=torch.double))):
        assert torch.equal(run(bounds=(low, high)), wanted)


def test_as_many_at_once_as_there_are():
    net, (x, y) = smooth_conv(), images()
    for method in (A.saliency, partial(A.integrated_gradients, steps=3), A.deep_shap):
        close(method(net, x, y, batch_size=10**30), method(net, x, y), atol=1e-6)


def test_an_affine_model_is_seen_behind_the_entrance():
    net, other = nn.Linear(3, 2), nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    assert A.is_affine(bring(net, torch.rand(1, 3))[0])
    assert not A.is_affine(bring(other, torch.rand(1, 3))[0])


def test_rules_and_hooks_see_through_compiled_code():
    net, (x, y) = smooth_conv(), images()
    compiled = torch.compile(net, backend="eager")
    close(A.deep_shap(compiled, x, y), A.deep_shap(net, x, y), atol=1e-6)
    cam = partial(GuidedGradCam, layer=net[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs, ours = (A.captum_map(cam, model, x, y) for model in (net, compiled))
    close(ours, theirs, atol=1e-6)


def test_what_is_visualised():
    net = smooth_conv()
    run = partial(A.feature_visualization, net, shape=(2, 12, 12), steps=2, jitter=1)
    wanted = run(torch.tensor([2, 1]))
    for y in ([2, 1], np.array([2.0, 1.0]), torch.tensor([[2], [1]]), TensorCategory([2, 1])):
        assert torch.equal(run(y), wanted)
    assert run(3).shape == (1, 2, 12, 12)
    assert run([]).shape == (0, 2, 12, 12)
    for change, error, words in [
        (dict(y=[4]), ValueError, "labels from 4 to 4"),
        (dict(y=[0], shape=4), TypeError, r"shape=4: expected the shape of one input"),
        (dict(y=[0], shape=(288,)), ValueError, r"jitter=1: expected 0, inputs of shape \(288,\)"),
        (dict(y=[0], start=torch.zeros(1, 2, 12, 12).long()), TypeError, "start has dtype"),
    ]:
        with pytest.raises(error, match=words):
            run(**change)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query = nn.Linear(8, 8).double()
        self.out = nn.Linear(8, 3).double()

    def forward(self, x):
        h = x[:, 0]
        weights = F.softmax(4 * self.query(h) @ h.transpose(1, 2), -1)
        return self.out((weights @ h).mean(1))


def test_deep_shap_refuses_what_it_cannot_explain(batch):
    x, y = batch
    torch.manual_seed(0)
    us = torch.rand(3, 1, 8, 8, dtype=torch.double)
    net = Attention()
    for scale in (1.0, 1e-6):  # of the outputs: the check knows no scale
        net.out.weight.data *= scale
        net.out.bias.data *= scale
        for dtype in (torch.double, torch.float):
            with pytest.raises(ValueError, match="Use integrated_gradients"):
                A.deep_shap(net.to(dtype), x.to(dtype), y, background=us)


@pytest.mark.parametrize("dtype", [torch.float, torch.double])
def test_deep_shap_of_tiny_activations(dtype):
    """A network of ReLUs without biases is homogeneous, and so are its maps."""
    torch.manual_seed(0)
    layers = [nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 3)]
    net = nn.Sequential(*layers).to(dtype)
    for layer in layers[::2]:
        nn.init.zeros_(layer.bias)
    x, us, y = torch.randn(4, 20), torch.randn(3, 20), torch.tensor([0, 1, 2, 0])
    wanted = A.deep_shap(net, x.to(dtype), y, background=us)
    found = A.deep_shap(net, 1e-6 * x.to(dtype), y, background=1e-6 * us)
    torch.testing.assert_close(1e6 * found, wanted, rtol=1e-3, atol=1e-5)


def test_paper_presets():
    torch.manual_seed(0)
    net = nn.Linear(7, 1).double()
    x = torch.randn(5, 7, dtype=torch.double)
    p = torch.stack([net(x * k / 20).sigmoid() for k in range(20)]).detach()
    by_hand = x * net.weight.detach() * (p * (1 - p)).mean(0)
    close(A.paper_table_ig(net, x), by_hand, atol=1e-6)
    smooth, y = two_layers(7, 8, 3), torch.tensor([0, 1, 2, 0, 1])
    g = torch.stack([A.saliency(smooth, x * k / 100, y) for k in range(1, 100)])
    close(A.paper_image_ig(smooth, x, y), x * g.mean(0), atol=1e-6)


def test_pretrained_style_network_runs_under_every_method():
    """Reused, in-place ReLU and residual sums."""
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
    torch.manual_seed(0)
    net = torchvision.models.resnet18(num_classes=4).double()
    x, y = torch.rand(2, 3, 32, 32, dtype=torch.double), torch.tensor([1, 3])
    phi, gap = A.deep_shap(net, x, y, return_gap=True)
    assert phi.shape == x.shape
    assert gap.abs().max() < 1e-9
    few = dict(steps=3, average=1, n_samples=2)
    assert A.moreau_grad(net, x, y, patch=14, **few).shape == x.shape


# ---------------------------------------------------------------- names and bars


@pytest.mark.parametrize(
    "method, old, new",
    [
        (A.saliency, dict(abs=True), dict(absolute=True)),
        (A.smoothgrad, dict(abs=True, n_samples=2), dict(absolute=True, n_samples=2)),
        (A.vargrad, dict(abs=True, n_samples=2), dict(absolute=True, n_samples=2)),
        (A.integrated_gradients, dict(n_steps=3), dict(steps=3)),
    ],
)
def test_old_names_of_arguments_still_work(method, old, new, batch):
    (x, y), net = batch, madry().double()
    with pytest.warns(FutureWarning, match="="):
        found = method(net, x, y, **old)
    assert torch.equal(found, method(net, x, y, **new))
    assert not torch.equal(found, method(net, x, y))


@every
def test_a_bar_is_shown_unless_it_is_switched_off(method, batch, monkeypatch):
    (x, y), net = batch, madry().double()
    bars = []

    def shown(steps, **settings):
        bars.append(settings)
        return steps

    monkeypatch.setattr("tqdm.tqdm", shown)
    method(net, x, y, batch_size=2, progress=False)
    assert not bars
    method(net, x, y, batch_size=2)
    assert bars[0] == dict(delay=5, leave=False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@every
def test_on_a_gpu(method, batch):
    x, y, net = batch[0].float().cuda(), batch[1].cuda(), madry().cuda()
    assert method(net, x, y).is_cuda


def test_maps_and_attacks_from_four_threads():
    """One model in training mode: the serial results, and the model as it was."""
    torch.manual_seed(0)
    body = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Softplus(), nn.Dropout(0.2), nn.Flatten()]
    model = nn.Sequential(*body, nn.Linear(144, 3)).train()
    x, y = torch.rand(4, 1, 8, 8), torch.arange(4) % 3
    first = [METHODS["saliency"], METHODS["smoothgrad"]]
    second = [METHODS["moreau_grad"], METHODS["deep_shap"]]
    third = [METHODS["integrated_gradients"], METHODS["captum_map"], METHODS["vargrad"]]
    tasks = [first, second, third, [PGD(LInfBall(0.1), 3, training=True)]]
    expected = [[make(model, x, y) for make in task] for task in tasks]
    held, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    start, differ = threading.Barrier(4), []

    def work(task, right):
        start.wait()
        for _ in range(8):
            differ.extend(not torch.equal(make(model, x, y), z) for make, z in zip(task, right))

    threads = [threading.Thread(target=work, args=pair) for pair in zip(tasks, expected)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert differ == [False] * 64
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(held[name], value) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
