"Attributions against captum, shap, closed forms and numerical optimisation; side effects, batching, bad input."

import warnings
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import IntegratedGradients, NoiseTunnel, Saliency
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import nn

from advinterp import attribution as A
from advinterp.core import class_output
from advinterp.linear import linear_ig

quick = settings(deadline=None, max_examples=25)
OUTPUTS = ["logit", "prob", "logprob", "loss"]
METHODS = {
    "saliency": A.saliency,
    "input_x_grad": A.input_x_grad,
    "integrated_gradients": partial(A.integrated_gradients, n_steps=8),
    "smoothgrad": partial(A.smoothgrad, n_samples=4),
    "vargrad": partial(A.vargrad, n_samples=4),
    "sparsified_smoothgrad": partial(A.sparsified_smoothgrad, n_samples=4),
    "moreau_grad": partial(A.moreau_grad, steps=4, average=2, n_samples=2),
    "deep_shap": A.deep_shap,
    "captum_map": partial(A.captum_map, Saliency),
}
every = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


class Counted(nn.Module):
    "Remembers the largest batch it has seen."

    def __init__(self, net):
        super().__init__()
        self.net, self.seen = net, 0

    def forward(self, x):
        self.seen = max(self.seen, len(x))
        return self.net(x)


def madry(width=4):
    "The layout of the MNIST net of Chalasani et al. on 8x8 images: ReLU meets max-pooling."
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


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.rand(6, 1, 8, 8, dtype=torch.double), torch.tensor([0, 1, 2, 2, 1, 0])


# against other implementations


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize(
    "method",
    ["riemann_left", "riemann_right", "riemann_middle", "riemann_trapezoid", "gausslegendre"],
)
def test_ig_equals_captum(batch, output, method):
    (x, y), net = batch, madry().double()
    theirs = IntegratedGradients(lambda x, y: class_output(net(x), y, output)).attribute(
        x, 0.3 * torch.ones_like(x), additional_forward_args=y, n_steps=20, method=method
    )
    ours = A.integrated_gradients(
        net, x, y, output=output, baseline=0.3, n_steps=20, method=method, batch_size=7
    )
    if method == "riemann_trapezoid":
        theirs = theirs * 20 / 19  # captum's weights sum to 19/20
    torch.testing.assert_close(ours, theirs.detach(), atol=1e-6, rtol=0)


def test_ig_equals_captum_in_single_precision(batch):
    x, y, net = batch[0].float(), batch[1], madry()
    torch.testing.assert_close(
        A.integrated_gradients(net, x, y),
        IntegratedGradients(net)
        .attribute(x, target=y, n_steps=50, method="riemann_middle")
        .detach(),
        atol=1e-6,
        rtol=1e-5,
    )


def one_layer(n, *before):
    return nn.Sequential(*before, nn.Linear(9, n)).double()


@pytest.mark.parametrize(
    "classes, output", [(1, o) for o in OUTPUTS] + [(2, o) for o in OUTPUTS] + [(4, "logit")]
)
@pytest.mark.parametrize("flatten", [False, True])
def test_ig_of_a_one_layer_net_is_exact(classes, output, flatten):
    torch.manual_seed(0)
    net = one_layer(classes, *[nn.Flatten()] * flatten)
    x, y = (
        torch.randn(7, *(1, 3, 3) if flatten else (9,), dtype=torch.double),
        torch.tensor([0, 1, 1, 0, 1, 0, 0]),
    )
    us = torch.randn_like(x), torch.zeros_like(x[0])
    ours, gap = A.integrated_gradients(
        net, x, y, output=output, baseline=us[0], n_steps=2, batch_size=3, return_gap=True
    )
    theirs = (
        IntegratedGradients(lambda x, y: class_output(net(x), y, output))
        .attribute(x, us[0], additional_forward_args=y, n_steps=200, method="gausslegendre")
        .detach()
    )
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    assert gap.abs().max() < 1e-13
    both, gap = A.integrated_gradients(net, x, y, output=output, baseline=us, return_gap=True)
    torch.testing.assert_close(
        both, (ours + A.integrated_gradients(net, x, y, output=output)) / 2, atol=1e-14, rtol=0
    )
    assert gap.abs().max() < 1e-13


@pytest.mark.parametrize("output, act", [("prob", torch.sigmoid), ("logprob", F.logsigmoid)])
@pytest.mark.parametrize("scale", [1e-9, 1e-4, 1.0, 1e4])
def test_ig_of_a_one_layer_net_is_lemma_4_1(output, act, scale):
    torch.manual_seed(0)
    one, two = one_layer(1), one_layer(2)
    x, u = torch.randn(2, 7, 9, dtype=torch.double)
    x = u + scale * (x - u)
    for c in (0, 1):
        w, b = (2 * c - 1) * one[0].weight[0].detach(), (2 * c - 1) * one[0].bias.item()
        torch.testing.assert_close(
            A.integrated_gradients(one, x, torch.full((7,), c), output=output, baseline=u),
            linear_ig(act, w, x, u, b),
            atol=0,
            rtol=1e-9,
        )
        w, b = (
            two[0].weight[c].detach() - two[0].weight[1 - c].detach(),
            (two[0].bias[c] - two[0].bias[1 - c]).item(),
        )
        torch.testing.assert_close(
            A.integrated_gradients(two, x, torch.full((7,), c), output=output, baseline=u),
            linear_ig(act, w, x, u, b),
            atol=0,
            rtol=1e-9,
        )
    torch.testing.assert_close(
        A.integrated_gradients(one, x, torch.ones(7).long(), output=output, baseline=x),
        torch.zeros_like(x),
    )


def test_ig_of_a_one_layer_net_is_deep_shap():
    torch.manual_seed(0)
    net = one_layer(1)
    x, us = torch.randn(2, 7, 9, dtype=torch.double)
    for output in OUTPUTS:
        torch.testing.assert_close(
            A.deep_shap(net, x, torch.ones(7).long(), output=output, background=us),
            A.integrated_gradients(net, x, torch.ones(7).long(), output=output, baseline=[*us]),
            atol=1e-9,
            rtol=0,
        )


class Bent(nn.Linear):
    def forward(self, x):
        return super().forward(x).relu()


MANY = dict(
    three_classes=lambda: nn.Linear(9, 3),
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
    auto, middle, fine = (
        A.integrated_gradients(net, x, y, output="prob", baseline=x.flip(0), **kw)
        for kw in (dict(), dict(method="riemann_middle"), dict(method="gausslegendre", n_steps=500))
    )
    torch.testing.assert_close(auto, middle, atol=0, rtol=0)
    torch.testing.assert_close(auto, fine, atol=1e-2, rtol=0)


def test_ig_of_a_one_layer_net_sees_hooks_and_bad_input():
    torch.manual_seed(0)
    net = one_layer(1)
    x, y = torch.randn(5, 9, dtype=torch.double), torch.tensor([0, 1, 1, 0, 1])
    net[0].register_forward_hook(lambda m, args, out: out.square())
    assert (
        not A.is_affine(net)
        and A.integrated_gradients(net, x, y, n_steps=500, return_gap=True)[1].abs().max() < 1e-4
    )
    for output in OUTPUTS:
        with pytest.raises(ValueError, match="labels from 1 to 2"):
            A.integrated_gradients(one_layer(1), x, y + 1, output=output)


def test_deep_shap_equals_shap(batch):
    shap = pytest.importorskip("shap", reason="shap is not installed")
    x, y, net, us = batch[0].float(), batch[1], madry(), torch.rand(5, 1, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = torch.as_tensor(
            shap.DeepExplainer(net, us).shap_values(x, check_additivity=False)
        )  # (B, 1, 8, 8, classes)
    theirs = theirs[torch.arange(6), ..., y].float()
    torch.testing.assert_close(A.deep_shap(net, x, y, background=us), theirs, atol=1e-5, rtol=1e-3)


def test_smoothgrad_and_vargrad_estimate_what_captum_does(batch):
    (x, y), net, n = (batch[0][:2], batch[1][:2]), madry().double(), 1500
    torch.manual_seed(1)
    tunnel = NoiseTunnel(Saliency(net))
    kw = dict(nt_samples=n, nt_samples_batch_size=100, stdevs=0.2, target=y, abs=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sg, vg = (tunnel.attribute(x, nt_type=t, **kw).detach() for t in ("smoothgrad", "vargrad"))
    kw = dict(n_samples=n, sigma=0.2, relative=False)
    assert (
        (A.smoothgrad(net, x, y, **kw) - sg).abs() < 6 * (2 * vg / n).sqrt() + 1e-9
    ).all()  # two independent means
    ours = A.vargrad(net, x, y, **kw)
    assert (ours / vg - 1).abs().mean() < 0.1 and ours.sum().item() == pytest.approx(
        vg.sum().item(), rel=0.05
    )


@pytest.mark.parametrize("eta", [0.0, 0.05])
def test_moreau_grad_is_the_minimiser(eta):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    x, y, lam = torch.randn(1, 5, dtype=torch.double), torch.tensor([1]), 0.8

    def objective(d):  # d = p - q, p and q >= 0: smooth, for any eta
        p, q = torch.as_tensor(d).requires_grad_().split(5)
        v = net(x + p - q)[0, 1] + (p - q).square().sum() / (2 * lam) + eta * (p + q).sum()
        return v.item(), torch.cat(torch.autograd.grad(v, (p, q))).numpy()

    best = minimize(
        objective,
        np.zeros(10),
        jac=True,
        bounds=[(0, None)] * 10,
        method="L-BFGS-B",
        options=dict(ftol=1e-15, gtol=1e-10),
    ).x
    ours = A.moreau_grad(net, x, y, lam=lam, eta=eta, n_samples=1, sigma=0.0, steps=1500, average=1)
    np.testing.assert_allclose(ours[0], -(best[:5] - best[5:]) / lam, atol=1e-6)


# laws


@quick
@given(
    st.integers(0, 10**6),
    st.sampled_from(OUTPUTS),
    st.sampled_from(["relu", "gelu", "softplus", "leaky_relu", "tanh", "hardswish"]),
    st.booleans(),
)
def test_deep_shap_is_complete_on_random_nets(seed, output, act, residual):
    torch.manual_seed(seed)
    f = getattr(F, act) if act != "tanh" else torch.tanh
    a, b, c = nn.Linear(6, 6).double(), nn.Linear(6, 6).double(), nn.Linear(6, 3).double()

    def net(x):
        h = f(a(x))
        g = f(b(h))  # one function, used twice
        return c(h + g if residual else F.max_pool1d(g[:, None], 3, 1, 1)[:, 0])

    x, u = torch.randn(4, 6, dtype=torch.double), torch.randn(3, 6, dtype=torch.double)
    phi, gap = A.deep_shap(
        net, x, torch.tensor([0, 1, 2, 0]), output=output, background=u, return_gap=True
    )
    assert gap.abs().max() < 1e-9
    expected = (
        class_output(net(x), torch.tensor([0, 1, 2, 0]), output)
        - sum(class_output(net(v.expand_as(x)), torch.tensor([0, 1, 2, 0]), output) for v in u) / 3
    )
    torch.testing.assert_close(phi.sum(1), expected.detach(), atol=1e-9, rtol=0)


@quick
@given(st.integers(0, 10**6), st.sampled_from(OUTPUTS))
def test_ig_is_complete_and_zero_where_the_input_is_the_baseline(seed, output):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, u, y = (
        torch.randn(4, 6, dtype=torch.double),
        torch.randn(4, 6, dtype=torch.double),
        torch.tensor([0, 1, 2, 0]),
    )
    u[:, 2] = x[:, 2]
    ig, gap = A.integrated_gradients(
        net, x, y, output=output, baseline=u, n_steps=100, return_gap=True
    )
    assert gap.abs().max() < 5e-3 and (ig[:, 2] == 0).all()
    back = A.integrated_gradients(net, u, y, output=output, baseline=x, n_steps=100)
    torch.testing.assert_close(back, -ig, atol=1e-6, rtol=0)  # antisymmetric


@every
@pytest.mark.parametrize("output", OUTPUTS)
def test_shape_and_independence_of_the_batch(method, output, batch):
    (x, y), net = batch, bn_net().double().train()
    whole = method(net, x, y, output=output)
    assert (
        whole.shape == x.shape
        and whole.dtype == x.dtype
        and whole.isfinite().all()
        and not whole.requires_grad
    )
    parts = torch.cat(
        [method(net, x[i : i + 1], y[i : i + 1], output=output) for i in range(len(x))]
    )
    torch.testing.assert_close(
        method(net, x, y, output=output, batch_size=4), whole, atol=1e-9, rtol=0
    )
    torch.testing.assert_close(parts, whole, atol=1e-9, rtol=0)


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
            [m.training for m in net.modules()],
            [b.clone().tolist() for b in net.buffers()],
            torch.random.get_rng_state().tolist(),
            x.tolist(),
        )

    before = state()
    with torch.no_grad():
        method(net, x, y)
        assert not torch.is_grad_enabled()
    assert state() == before and x.grad is None and all(p.grad is None for p in net.parameters())
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
    for kw, error, words in [
        (dict(y=y + 1), ValueError, "labels from 1 to 3"),
        (dict(y=y[:2]), ValueError, "6 class indices"),
        (dict(y=y.double()), TypeError, "class indices"),
        (dict(x=x.long()), TypeError, "floating"),
        (dict(model=nn.Sequential(net, nn.Softmax(1))), ValueError, "last softmax"),
        (dict(output="class"), ValueError, "output='class'"),
        (dict(batch_size=0), ValueError, "batch_size=0"),
    ]:
        with pytest.raises(error, match=words):
            method(**{**dict(model=net, x=x, y=y), **kw})


def test_deep_shap_refuses_what_it_cannot_explain(batch):
    x, y = batch

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.out = nn.Linear(8, 8).double(), nn.Linear(8, 3).double()

        def forward(self, x):
            h = x[:, 0]
            return self.out((F.softmax(4 * self.q(h) @ h.transpose(1, 2), -1) @ h).mean(1))

    net = Attention()
    with pytest.raises(ValueError, match="Use integrated_gradients"):
        A.deep_shap(net, x, y, background=torch.rand(3, 1, 8, 8, dtype=torch.double))


def test_paper_presets():
    torch.manual_seed(0)
    net = nn.Linear(7, 1).double()
    x = torch.randn(5, 7, dtype=torch.double)
    p = torch.stack([net(x * k / 20).sigmoid() for k in range(20)]).detach()
    torch.testing.assert_close(
        A.paper_table_ig(net, x), x * net.weight.detach() * (p * (1 - p)).mean(0), atol=1e-6, rtol=0
    )
    smooth, y = (
        nn.Sequential(nn.Linear(7, 8), nn.Tanh(), nn.Linear(8, 3)).double(),
        torch.tensor([0, 1, 2, 0, 1]),
    )
    g = [A.saliency(smooth, x * k / 100, y) for k in range(1, 100)]
    torch.testing.assert_close(
        A.paper_image_ig(smooth, x, y), x * torch.stack(g).mean(0), atol=1e-6, rtol=0
    )


def test_pretrained_style_network_runs_under_every_method():
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    net = torchvision.models.resnet18(
        num_classes=4
    ).double()  # reused, in-place ReLU and residual sums
    x, y = torch.rand(2, 3, 32, 32, dtype=torch.double), torch.tensor([1, 3])
    phi, gap = A.deep_shap(net, x, y, return_gap=True)
    assert phi.shape == x.shape and gap.abs().max() < 1e-9
    assert A.moreau_grad(net, x, y, patch=14, steps=3, average=1, n_samples=2).shape == x.shape


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@every
def test_on_a_gpu(method, batch):
    x, y, net = batch[0].float().cuda(), batch[1].cuda(), madry().cuda()
    assert method(net, x, y).is_cuda
