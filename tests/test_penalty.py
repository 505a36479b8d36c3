"""Property sweeps, closed forms, caches and bad input of `advinterp.penalty`.

Interpretation regularisation on real digits (slow).
"""

import copy
import math
import os
import re
import threading

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from advinterp.adversary import PGD, OneStep, paper_b_mnist
from advinterp.attribution import saliency, smoothgrad
from advinterp.core import class_output, task_loss
from advinterp.duals import L1, L2, ElasticNet, GroupL21, LInf, WeightedL2
from advinterp.models import softplus_copy
from advinterp.penalty import (
    GradNorm,
    JacobianNorm,
    Penalty,
    ScoreMatching,
    StableIG,
    TargetMap,
    Targets,
    WeightNorm,
    finite_difference,
    permute_map,
    smoothgrad_targets,
    threshold_map,
)


def mlp(d=8, out=3, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(d, 16), nn.Tanh(), nn.Linear(16, out)).double()


def data(n=6, d=8, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.double)
    return x, torch.randint(0, classes, (n,), generator=generator)


DUALS = dict(
    l1=L1(0.3),
    l2=L2(0.3),
    linf=LInf(0.3),
    group=GroupL21(0.3, groups=torch.arange(8) // 3),
    elastic=ElasticNet(0.2, 0.1),
    weighted=WeightedL2(0.2, torch.rand(8).double() + 0.1),
)
PENALTIES = dict(
    {f"grad_{k}": GradNorm(v) for k, v in DUALS.items()},
    squared=GradNorm(L2(0.3), squared=True),
    logit=GradNorm(L1(0.3), "logit"),
    jac=JacobianNorm(),
    proj=JacobianNorm(2),
    jacprob=JacobianNorm(output="prob", squared=False),
    target=TargetMap(torch.rand(6, 8)),
    absolute=TargetMap(torch.rand(6, 8), absolute=True),
    batch=TargetMap(torch.rand(6, 8), reduction="batch"),
    cosine=TargetMap(torch.rand(6, 8), distance="cosine"),
    ig=StableIG(0.2, 4, PGD(L1(0.2), 3, random_start=False)),
    w1=WeightNorm(1),
    w2=WeightNorm(2),
    winf=WeightNorm("inf"),
    sm=ScoreMatching(),
    anti=ScoreMatching(anti=True),
)


@pytest.mark.parametrize("name", PENALTIES)
def test_differentiable_in_the_parameters(name):
    net, (x, y), pen = mlp(), data(), PENALTIES[name]

    def mean():
        torch.manual_seed(1)
        return pen(net, x, y).mean()

    value = pen(net, x, y)
    assert isinstance(pen, Penalty)
    assert value.shape == (6,)
    assert value.isfinite().all()
    for p in (net[0].weight, net[2].weight):
        (g,) = torch.autograd.grad(mean(), p)
        for i in ((0, 0), (2, 5)):
            slope = g[i].item()
            assert abs(slope - finite_difference(mean, p, i)) < 1e-5 * max(1, abs(slope))


@settings(deadline=None, max_examples=12)
@given(
    name=st.sampled_from(list(DUALS)),
    output=st.sampled_from(["loss", "logit", "prob", "logprob"]),
    seed=st.integers(0, 100),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
)
def test_grad_norm_is_h_star_of_the_gradient(name, output, seed, scale):
    net, (x, y) = mlp(seed=seed), data(seed=seed)
    x = scale * x

    def out(v, c):
        return class_output(net(v[None]), c[None], output)[0]

    g = torch.stack([torch.func.grad(out)(v, c) for v, c in zip(x, y)])
    penalty = GradNorm(DUALS[name], output)(net, x, y)
    assert torch.allclose(penalty, DUALS[name].h_star(g), rtol=1e-9, atol=1e-12)


@settings(deadline=None, max_examples=20)
@given(out=st.integers(1, 5), n=st.integers(1, 4), seed=st.integers(0, 100), prob=st.booleans())
def test_jacobian_norm(out, n, seed, prob):
    net, (x, y) = mlp(out=out, seed=seed), data(n, classes=max(out, 2), seed=seed)

    def f(v):
        z = net(v[None])[0]
        if not prob:
            return z
        return z.softmax(0) if out > 1 else z.sigmoid()

    J = torch.stack([torch.func.jacrev(f)(v) for v in x])
    output = "prob" if prob else "logit"
    squares = J.square().sum((1, 2))
    assert torch.allclose(JacobianNorm(output=output)(net, x, y), squares, atol=1e-12)
    norm = JacobianNorm(output=output, squared=False)
    assert torch.allclose(norm(net, x, y), squares.sqrt(), atol=1e-12)
    if out == 1:  # on the 0-sphere the estimate is exact
        assert torch.allclose(JacobianNorm(1, output=output)(net, x, y), squares, atol=1e-12)


@pytest.mark.parametrize("n_proj", [1, 3])
def test_projections_are_unbiased(n_proj):
    net, (x, y) = mlp(out=4), data(classes=4)
    exact = JacobianNorm()(net, x, y).detach()
    torch.manual_seed(0)
    draws = torch.stack([JacobianNorm(n_proj)(net, x, y).detach() for _ in range(600)])
    assert ((draws.mean(0) - exact).abs() < 4 * draws.std(0) / 600**0.5).all()
    assert draws.std(0).min() > 0


def test_first_order_routes_agree():
    net, (x, y) = mlp(), data(20)
    for make in (L1, L2, lambda e: ElasticNet(e, e)):

        def gap(eps):
            dual = make(eps)
            base = task_loss(net(x), y) + GradNorm(dual)(net, x, y)
            penalty = isinstance(dual, ElasticNet)
            found = []
            for adv in (OneStep(dual), PGD(dual, 20, warm_start=not penalty)):
                x_adv = adv(net, x, y)
                price = dual.h(x_adv - x) if penalty else 0.0
                found.append((task_loss(net(x_adv), y) - price - base).abs().mean())
            return torch.stack(found).detach()

        ratio = gap(0.02) / gap(0.01)
        assert ((ratio > 3.6) & (ratio < 4.5)).all()


def test_stable_ig_is_the_adversarial_loss_of_a_one_layer_net():
    torch.manual_seed(0)
    one = nn.Linear(8, 1).double()
    x, y = data(classes=2)
    s = 2 * y.double() - 1
    adv = F.softplus(-s * one(x)[:, 0] + 0.3 * one.weight.abs().sum()) - task_loss(one(x), y)
    assert torch.allclose(StableIG(0.3)(one, x, y), adv, atol=1e-9)
    net = mlp()
    gain = task_loss(net(PGD(L1(0.2))(net, x, y)), y) - task_loss(net(x), y)
    assert (StableIG(0.2, 16)(net, x, y) >= gain - 1e-9).all()  # completeness


def test_target_map_reductions_and_callable():
    net, (x, y) = mlp(), data()
    target = torch.rand(6, 8, dtype=torch.double)
    g = logit_gradients(net, x, y)
    assert torch.allclose(TargetMap(lambda x, y: target)(net, x, y), (g - target).norm(dim=1))
    public_code = TargetMap(target, absolute=True, reduction="batch")
    assert torch.allclose(public_code(net, x, y).mean(), (g.abs() - target).norm())
    cosine = TargetMap(target, distance="cosine")
    assert torch.allclose(cosine(net, x, y), 1 - F.cosine_similarity(g, target))


def logit_gradients(net, x, y):
    def logit(v, c):
        return net(v[None])[0, c]

    return torch.stack([torch.func.grad(logit)(v, c) for v, c in zip(x, y)])


@pytest.mark.parametrize("tau", [0.0, 0.1])
def test_score_matching_of_a_linear_and_a_quadratic_model(tau):
    "Equation (8) where everything is known: the trace, half of the squared gradient, its square."
    (x, y), generator = data(), torch.Generator().manual_seed(0)
    W, a = (torch.randn(3, 8, generator=generator, dtype=torch.double) for _ in range(2))

    def linear(z):
        return z @ W.T

    half = W[y].square().sum(1) / 2  # the Hessian is 0
    settings = dict(tau=tau, noise_std=0.5)
    assert torch.allclose(ScoreMatching(**settings)(linear, x, y), half, atol=1e-9)
    anti = ScoreMatching(anti=True, **settings)
    assert torch.allclose(anti(linear, x, y), torch.zeros(6).double(), atol=1e-9)

    def quadratic(z):
        return z @ W.T + z.square() @ a.T / 2

    trace = a[y].sum(1)
    g = W[y] + a[y] * x
    torch.manual_seed(0)
    estimate = -anti(quadratic, x.repeat(20000, 1), y.repeat(20000)).reshape(20000, 6)
    error = estimate.std(0) / 20000**0.5
    assert ((estimate.mean(0) - trace).abs() < 4 * error).all()
    torch.manual_seed(0)
    many = ScoreMatching(n_samples=20000, **settings)
    exact = trace + g.square().sum(1) / 2 + tau * trace.square()
    allowed = 4 * error * (1 + 2 * tau * trace.abs()) + 1e-3
    assert ((many(quadratic, x, y) - exact).abs() < allowed).all()


def test_old_names_of_arguments():
    with pytest.warns(FutureWarning, match="sigma= is now noise_std="):
        assert ScoreMatching(sigma=0.1).noise_std == 0.1
    with pytest.warns(FutureWarning, match="n_steps= is now steps="):
        assert StableIG(0.1, n_steps=3).steps == 3


def test_stable_ig_of_several_inputs():
    net, (x, y) = mlp(), data()
    penalty = StableIG(0.2, 4, PGD(L1(0.2), 3, random_start=False))

    def two(left, right):
        return net(torch.cat([left, right], 1))

    assert torch.allclose(penalty(two, (x[:, :3], x[:, 3:]), y), penalty(net, x, y))


@settings(deadline=None, max_examples=30)
@given(
    phi=st.floats(0, 3),
    fraction=st.floats(0, 1),
    seed=st.integers(0, 50),
    shape=st.sampled_from([(5,), (1, 4, 4), (3, 5, 2)]),
)
def test_threshold_and_permutation(phi, fraction, seed, shape):
    m = torch.randn(4, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    t, v = threshold_map(m, phi), m.flatten(1)
    least = v.mean(1, keepdim=True) + phi * v.std(1, keepdim=True)
    assert torch.equal(t.flatten(1), torch.where(v >= least, v, 0.0))
    p = permute_map(m, fraction, seed).flatten(1)
    assert torch.equal(p.sort(1)[0], v.sort(1)[0])
    assert ((p != v).sum(1) <= round(fraction * v.shape[1])).all()
    assert torch.equal(permute_map(m, fraction, seed), permute_map(m, fraction, seed))


def test_stored_targets_and_cache(tmp_path):
    torch.manual_seed(0)
    x, y = torch.rand(2000, 1, 6, 6), torch.arange(2000) % 3
    maps = torch.rand_like(x)
    look = Targets(x, maps)
    i = torch.randperm(2000)[:300]
    assert torch.equal(look(x[i]), maps[i])
    assert torch.equal(look((x[i] - 0.2) / 0.7 * 0.7 + 0.2), maps[i])
    with pytest.raises(ValueError, match="without augmentation"):
        look(x[:5] + 0.05)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    x, y = x[:10], y[:10]
    cache = tmp_path / "sub" / "maps"

    def targets(**settings):
        return smoothgrad_targets(net, x, y, n_samples=4, cache=cache, **settings)

    def entries():
        return {folder: folder.stat().st_mtime_ns for folder in cache.iterdir()}

    first = targets()
    made = entries()
    assert torch.equal(targets(), first)
    assert torch.equal(targets(permute=1.0, phi=0.5), threshold_map(permute_map(first), 0.5))
    assert entries() == made
    net[1].weight.data *= 2  # another teacher: not the stored maps
    assert torch.allclose(targets(), 2 * first, rtol=1e-4)
    (other,) = entries().keys() - made.keys()
    (other / "tensors.safetensors").write_bytes(b"truncated")
    with pytest.warns(UserWarning, match="was changed since it was stored"):
        assert torch.allclose(targets(), 2 * first, rtol=1e-4)
    assert len(entries()) == 2  # nothing half-written
    assert torch.allclose(
        smoothgrad_targets(net, x, y, n_samples=4, include_clean=False),
        smoothgrad(net, x, y, n_samples=4, relative=False, absolute=True, bounds=(0.0, 1.0)),
    )


def test_the_clean_input_is_one_more_copy():
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    x, y = data()
    how = dict(n_samples=3, sigma=0.5, bounds=None)
    noisy = smoothgrad_targets(net, x, y, include_clean=False, **how)
    clean = saliency(net, x, y, absolute=True)
    assert (noisy - clean).abs().max() > 0.01
    torch.testing.assert_close(smoothgrad_targets(net, x, y, **how), (3 * noisy + clean) / 4)


def test_a_copy_with_other_activations_has_maps_of_its_own(tmp_path):
    """`softplus_copy` keeps the weights, and never finds the maps of the network that it copies."""
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).double()
    x, y = data()
    smooth = softplus_copy(net)
    for model in (net, smooth, net, smooth):
        kept = smoothgrad_targets(model, x, y, n_samples=4, cache=tmp_path)
        assert torch.equal(kept, smoothgrad_targets(model, x, y, n_samples=4))
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.warns(FutureWarning, match="path= is now cache="):
        old = smoothgrad_targets(net, x, y, n_samples=4, path=tmp_path)
    assert torch.equal(old, smoothgrad_targets(net, x, y, n_samples=4))


def test_weight_norm():
    net, (x, y) = mlp(), data()
    theta = torch.cat([p.flatten() for p in net.parameters()])
    for p in (1, 2, math.inf):
        assert torch.allclose(WeightNorm(p)(net, x, y), theta.norm(p).expand(6))
    net[2].requires_grad_(False)
    assert torch.allclose(WeightNorm(1, bias=False)(net, x, y), net[0].weight.abs().sum().expand(6))
    halves = WeightNorm(1, bias=False)(net, (x[:, :3], x[:, 3:]), y)
    assert torch.equal(halves, WeightNorm(1, bias=False)(net, x, y))
    net.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable"):
        WeightNorm(1)(net, x, y)


def test_weight_norm_checks_what_every_penalty_checks():
    net, (x, y) = mlp(), data()
    assert WeightNorm(1)(net, x[:0], y[:0]).shape == (0,)
    with pytest.raises(ValueError, match="expected 6 class indices"):
        WeightNorm(1)(net, x, y[:2])
    with pytest.raises(TypeError, match=r"expected an nn.Module, whose parameters are penalised"):
        WeightNorm(1)(lambda z: net(z), x, y)


@settings(deadline=None, max_examples=20)
@given(name=st.sampled_from(list(PENALTIES)), training=st.booleans(), fail=st.booleans())
def test_leaves_statistics_modes_and_grads(name, training, fail):
    torch.manual_seed(0)
    net = (
        nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))
        .double()
        .train(training)
    )
    if fail:
        net.append(Fails())
    x, y = data()
    before = [b.clone() for b in net.buffers()], [b.data_ptr() for b in net.buffers()]
    try:
        PENALTIES[name](net, x, y)
    except ValueError as e:  # the model is named
        assert "injected" in str(e)
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), before[0]))
    assert [b.data_ptr() for b in net.buffers()] == before[1]
    assert net.training == training
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert not x.requires_grad


class Fails(nn.Module):
    def forward(self, x):
        raise RuntimeError("injected")


def test_empty_binary_mixup_and_bad_input():
    net, (x, y) = mlp(), data()
    for penalty in PENALTIES.values():
        assert penalty(net, x[:0], y[:0]).shape == (0,)
    one = mlp(out=1)
    yb = y % 2
    assert torch.allclose(
        GradNorm(L1(0.1))(one, x, yb), GradNorm(L1(0.1))(lambda z: one(z)[:, 0], x, yb)
    )

    def mixed(z, y):
        return 0.3 * task_loss(z, y) + 0.7 * task_loss(z, y.flip(0))

    def of_one(v, a, b):
        z = net(v[None])
        return 0.3 * task_loss(z, a[None])[0] + 0.7 * task_loss(z, b[None])[0]

    g = torch.stack([torch.func.grad(of_one)(v, a, b) for v, a, b in zip(x, y, y.flip(0))])
    assert torch.allclose(GradNorm(L1(0.1))(net, x, y, mixed), 0.1 * g.abs().sum(1))
    assert torch.allclose(
        GradNorm(L1(0.1))(net, x, y, nn.CrossEntropyLoss()), GradNorm(L1(0.1))(net, x, y)
    )
    for make, err in (
        (lambda: GradNorm(0.1), TypeError),
        (lambda: GradNorm(L1(0.1), "x"), ValueError),
        (lambda: JacobianNorm(0), ValueError),
        (lambda: JacobianNorm(output="loss"), ValueError),
        (lambda: TargetMap(3.0), TypeError),
        (lambda: TargetMap(x, distance="l1"), ValueError),
        (lambda: StableIG(-1.0), ValueError),
        (lambda: StableIG(0.1, 0), ValueError),
        (lambda: StableIG(0.1, adversary=GradNorm(L1(0.1))), TypeError),
        (lambda: WeightNorm(3), ValueError),
        (lambda: WeightNorm("one"), ValueError),
        (lambda: ScoreMatching(noise_std=0.0), ValueError),
        (lambda: ScoreMatching(n_samples=0), ValueError),
        (lambda: GradNorm(L1(0.1))(net, x.long(), y), TypeError),
        (lambda: GradNorm(L1(0.1))(net, x, y[:2]), ValueError),
        (lambda: JacobianNorm()(lambda z: net(z).detach(), x, y), ValueError),
        (lambda: threshold_map(torch.ones(2, 2, dtype=torch.long)), TypeError),
        (lambda: permute_map(x, 1.5), ValueError),
        (lambda: Targets(x, x[:3]), ValueError),
    ):
        with pytest.raises(err):
            make()


# --- at zero


def dead():
    "A model whose input gradient is exactly zero for some examples: all its ReLUs are off there."
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        net[0].weight.abs_()
        net[0].bias.zero_()
    x, y = data()
    x = x.abs() + 0.1
    x[:2] = -x[:2]
    return net, x, y


ZERO = PENALTIES | dict(
    norm=JacobianNorm(squared=False),
    norm_proj=JacobianNorm(2, squared=False),
    blank=TargetMap(torch.zeros(6, 8)),
    blank_cosine=TargetMap(torch.zeros(6, 8), distance="cosine"),
    blank_batch=TargetMap(torch.zeros(6, 8), reduction="batch"),
    random_start=StableIG(0.2, 4),
)


@pytest.mark.parametrize("name", ZERO)
@pytest.mark.parametrize("all_of_them", [False, True])
def test_gradients_in_the_parameters_are_finite_at_zero(name, all_of_them):
    "A root, a norm or a quotient has no derivative at 0: the one of smallest norm is taken."
    net, x, y = dead()
    if all_of_them:
        x = -x.abs()
    torch.manual_seed(1)
    value = ZERO[name](net, x, y)
    assert value.isfinite().all()
    value.mean().backward()
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    assert all(g.isfinite().all() for g in gradients)
    assert max(g.abs().max() for g in gradients) < 1e4
    if not all_of_them and name not in ("anti", "blank_cosine"):  # these are constant on pieces
        assert any((g != 0).any() for g in gradients)


@pytest.mark.parametrize("name", ["w1", "w2", "winf"])
def test_weight_norms_of_zero_weights(name):
    net, (x, y) = mlp(), data()
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    value = ZERO[name](net, x, y)
    assert (value == 0).all()
    value.mean().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


def test_the_norm_of_a_jacobian_is_as_before_away_from_zero():
    net, (x, y) = mlp(), data()
    value = JacobianNorm(squared=False)(net, x, y)
    squares = JacobianNorm()(net, x, y)
    assert torch.equal(value, squares.sqrt())
    grads = [torch.autograd.grad(v.sum(), net[0].weight)[0] for v in (value, squares.sqrt())]
    assert torch.equal(*grads)


# --- what people bring


def bring(x, y):
    fastai = pytest.importorskip("fastai.torch_core")
    return {
        "subclass": (fastai.TensorImage(x.float()), fastai.TensorCategory(y)),
        "not contiguous": (torch.stack([x, x], -1)[..., 0], y),
        "single": (x.float(), y[:, None].to(torch.int8)),
        "half": (x.half(), y.numpy()),
        "bfloat16": (x.bfloat16(), y.float()),
        "list": (x, y.tolist()),
    }


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
    "in place": lambda net: Outputs(net, lambda z: z.mul_(1.0)),
    "parallel": nn.DataParallel,
    "compiled": lambda net: torch.compile(net, backend="aot_eager"),
    "learner": learner,
}


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("kind", bring(*data()))
def test_inputs_and_labels_that_people_bring(name, kind):
    net, (x, y), pen = mlp(), data(), PENALTIES[name]
    given, labels = bring(x, y)[kind]
    torch.manual_seed(1)
    expected = pen(net, given.as_subclass(torch.Tensor).double(), y)
    for around in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with around():
            z = bring(*data())[kind][0]
            torch.manual_seed(1)
            value = pen(net, z, bring(*data())[kind][1])
        assert torch.equal(value, expected)
        assert value.requires_grad
        value.sum().backward()
    for n in (0, 1):
        if isinstance(getattr(pen, "targets", None), torch.Tensor) and n:
            continue
        assert pen(net, given[:n], labels[:n]).shape == (n,)


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("kind", MODELS)
def test_models_that_people_bring(name, kind):
    net, (x, y), pen = mlp(), data(), PENALTIES[name]
    torch.manual_seed(1)
    expected = pen(net, x, y)
    right = torch.autograd.grad(expected.sum(), net[0].weight)[0]
    torch.manual_seed(1)
    value = pen(MODELS[kind](net), x, y)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value.sum(), net[0].weight)[0], right)


def test_attention_can_be_penalised():
    "Its fast kernels have no second derivative; another one is taken, also for the pass back."
    torch.manual_seed(0)

    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.head = nn.Linear(8, 24), nn.Linear(8, 3)

        def forward(self, x):
            q, k, v = self.qkv(x).chunk(3, -1)
            return self.head(F.scaled_dot_product_attention(q, k, v).mean(1))

    net, x, y = Attends(), torch.randn(4, 5, 8), torch.tensor([0, 1, 2, 0])
    for pen in (GradNorm(L1(0.1)), JacobianNorm(1), TargetMap(torch.rand(5, 8)), StableIG(0.1, 2)):
        net.zero_grad()
        value = pen(net, x, y)
        value.mean().backward()  # outside of the call
        assert net.qkv.weight.grad.isfinite().all()
        assert (net.qkv.weight.grad != 0).any()


def test_penalties_of_logits_take_any_loss_and_any_form_of_labels():
    "As tables of fastai deliver them: a column of int8, and a loss that flattens it."
    net, (x, y) = mlp(), data()
    column = y[:, None].to(torch.int8)

    def flattened(z, y):
        return F.cross_entropy(z, y.flatten().long(), reduction="none")

    for pen in (GradNorm(L1(0.1), "logit"), TargetMap(torch.rand(6, 8)), ScoreMatching()):
        torch.manual_seed(0)
        expected = pen(net, x, y)
        torch.manual_seed(0)
        assert torch.equal(pen(net, x, column, flattened), expected)
    assert torch.equal(GradNorm(L1(0.1))(net, x, column, flattened), GradNorm(L1(0.1))(net, x, y))


def test_what_needs_no_labels_and_dense_outputs():
    net, (x, y) = mlp(), data()
    assert torch.equal(JacobianNorm()(net, x, None), JacobianNorm()(net, x, y))
    assert torch.equal(WeightNorm(1)(net, x, None), WeightNorm(1)(net, x, y))
    dense = Outputs(net, lambda z: z[:, :, None].expand(-1, -1, 2))
    of_dense = JacobianNorm()(dense, x, torch.randn(6, 3, 2), nn.MSELoss())
    torch.testing.assert_close(of_dense, 2 * JacobianNorm()(net, x, y))
    with pytest.raises(TypeError, match="y=None: expected 6 class indices"):
        GradNorm(L1(0.1))(net, x, None)
    with pytest.raises(ValueError, match=re.escape("its output has shape (6, 3, 2)")):
        JacobianNorm()(dense, x, y)


def test_penalties_from_four_threads():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).train()
    x, y = torch.randn(6, 8), torch.arange(6) % 3
    pens = [GradNorm(L1(0.1)), JacobianNorm(), StableIG(0.1, 2), TargetMap(torch.rand(6, 8))]
    expected = [pen(net, x, y) for pen in pens]
    before, buffers = copy.deepcopy(net.state_dict()), [id(b) for b in net.buffers()]
    start, differ = threading.Barrier(4), []

    def work(pen, right):
        start.wait()
        differ.extend(not torch.equal(pen(net, x, y), right) for _ in range(8))

    threads = [threading.Thread(target=work, args=pair) for pair in zip(pens, expected)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert differ == [False] * 32
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert [id(b) for b in net.buffers()] == buffers
    assert net.training and all(p.requires_grad for p in net.parameters())


# --- equal inputs


def blank_images():
    "A third of the images are blank, each with a map of its own."
    torch.manual_seed(0)
    x, maps, y = torch.rand(90, 1, 6, 6), torch.rand(90, 1, 6, 6), torch.arange(90) % 3
    x[::3] = 0.0
    return x, maps, y


def test_equal_inputs_with_other_maps_are_refused_or_share_the_mean():
    x, maps, y = blank_images()
    message = r"rows 0 and 3 are equal, their maps are not \(29 such rows\)"
    with pytest.raises(ValueError, match=message):
        Targets(x, maps)
    with pytest.raises(ValueError, match=message):  # the labels of the blank ones are the same
        Targets(x, maps, y=y)
    look = Targets(x, maps, equal="mean")
    expected = maps.clone()
    expected[::3] = maps[::3].mean(0)
    torch.testing.assert_close(look(x), expected)
    same = maps.clone()
    same[::3] = same[0]
    assert torch.equal(Targets(x, same)(x), same)
    x[3] = -x[3]  # minus zero
    assert torch.equal(Targets(x, same)(x), same)


def test_labels_tell_equal_inputs_apart():
    x, _, _ = blank_images()
    y = torch.arange(90) // 3 % 10  # ten labels among the blank images
    of_label = torch.rand(10, 1, 6, 6)
    maps = torch.where((x == 0).all((1, 2, 3), keepdim=True), of_label[y], x)
    with pytest.raises(ValueError, match=r"pass y=labels where their labels differ"):
        Targets(x, maps)
    look = Targets(x, maps, y=y.numpy()[:, None])
    assert torch.equal(look(x, y), maps)
    assert torch.equal(look(x.flip(0), y.flip(0).tolist()), maps.flip(0))
    assert torch.equal(look(x[1:3]), maps[1:3])  # these need none
    with pytest.raises(ValueError, match=r"y=None: some inputs are stored with several labels"):
        look(x)
    with pytest.raises(ValueError, match="no stored target for some inputs with these labels"):
        look(x, y + 1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 10))
    grad = net[1].weight[y].reshape(90, 1, 6, 6)
    value = TargetMap(look)(net, x, y)
    torch.testing.assert_close(value, (grad - maps).flatten(1).norm(dim=1))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_what_is_not_stored_has_no_target_in_any_units(scale):
    torch.manual_seed(0)
    x = scale * torch.rand(300, 1, 6, 6)
    look = Targets(x, torch.rand_like(x))
    for other in (x[:5] + 0.05 * scale, 0 * x[:5], x[:5] * torch.nan, x[:5] / 0):
        with pytest.raises(ValueError, match="no stored target"):
            look(other)
    assert torch.equal(look(x[:5] / 3 * 3), look(x[:5]))
    double = Targets(x.double(), look.maps.double())
    torch.testing.assert_close(double(x[:7]), look.maps[:7].double())
    assert torch.equal(double(x[:7].double() * (1 + 1e-9)), look.maps[:7].double())


def test_targets_refuse_nan_and_other_shapes():
    x, maps, _ = blank_images()
    for bad_x, bad_maps in ((x * torch.nan, maps), (x, maps / 0), (x[:0], maps[:0])):
        with pytest.raises(ValueError, match=r"expected finite values of one input at least"):
            Targets(bad_x, bad_maps)
    with pytest.raises(ValueError, match="targets contain NaN"):
        TargetMap(maps * torch.nan)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    of_nan = TargetMap(lambda x, y: x * torch.nan)
    with pytest.raises(ValueError, match="targets gave NaN"):
        of_nan(net, x, torch.zeros(len(x), dtype=torch.long))
    look = Targets(x[1::3], maps[1::3])
    with pytest.raises(ValueError, match=re.escape("the stored inputs are (N, ...) of (1, 6, 6)")):
        look(x[:, :, :3])
    with pytest.raises(TypeError, match=r"x.float\(\)"):
        look(x.long())
    for change in (threshold_map, permute_map):
        with pytest.raises(ValueError, match="map contains NaN"):
            change(maps * torch.nan)
    with pytest.raises(TypeError, match="seed='a'"):
        permute_map(maps, seed="a")
    one = torch.rand(4, 1)
    assert torch.equal(threshold_map(one), one)
    assert threshold_map(one[:0]).shape == (0, 1)


def test_smoothgrad_targets_take_what_people_bring():
    fastai = pytest.importorskip("fastai.torch_core")
    torch.manual_seed(0)
    x, y = torch.rand(5, 1, 6, 6), torch.arange(5) % 3
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 3))
    expected = smoothgrad_targets(net, x, y, n_samples=3, phi=0.5)
    with torch.inference_mode():
        given = fastai.TensorImage(x.clone()), y[:, None].float()
        found = smoothgrad_targets(Outputs(net, lambda z: (z, 1)), *given, n_samples=3, phi=0.5)
    assert torch.equal(found, expected)
    half = smoothgrad_targets(learner(net), x.half(), y.tolist(), n_samples=3)
    assert half.dtype == torch.float16


# --- real digits


@pytest.mark.slow
@pytest.mark.skipif("ADVINTERP_DATA" not in os.environ, reason="needs MNIST: set ADVINTERP_DATA")
def test_interpretation_and_jacobian_regularisation_make_digits_more_robust(capsys):
    """Paper B in miniature: 2000 images, 5 epochs of batch 50, a small conv net.

    A robust teacher is trained with PGD-3 in the l2 ball of radius 1.5; PGD-40 at 1.5 attacks 200
    test images.
    """
    from advinterp.data import load
    from advinterp.models import small_conv

    mnist = load("mnist")
    x = torch.tensor(mnist.x[:2000]).reshape(-1, 1, 28, 28)
    y = torch.tensor(mnist.y[:2000])
    x_test = torch.tensor(mnist.x_test[:200]).reshape(-1, 1, 28, 28)
    y_test = torch.tensor(mnist.y_test[:200])

    def fit(penalty=None, weight=0.0, adversary=None, epochs=5):
        torch.manual_seed(0)
        net = small_conv(size=28, width=8)
        opt = torch.optim.Adam(net.parameters(), 2e-3)
        for epoch in range(epochs):
            for i in torch.randperm(len(x)).split(50):
                z = x[i]
                if adversary is not None:
                    z = adversary.scaled(min(1.0, (epoch + 1) / 3))(net, z, y[i])
                loss = task_loss(net(z), y[i])
                if penalty is not None:
                    loss = loss + weight * penalty(net, x[i], y[i])
                opt.zero_grad()
                loss.mean().backward()
                opt.step()
        attacked = paper_b_mnist()(net, x_test, y_test)
        right = [(net(z).argmax(1) == y_test).double().mean().item() for z in (x_test, attacked)]
        return net, right

    standard = fit()[1]
    teacher, robust = fit(adversary=PGD(L2(1.5), 3, bounds=(0, 1)))
    maps = smoothgrad_targets(teacher, x, y, n_samples=8, phi=1.0)
    mapped = fit(TargetMap(Targets(x, maps), absolute=True), 0.1)[1]
    jacobian = fit(JacobianNorm(1), 0.01)[1]
    found = dict(standard=standard, adversarial=robust, interpretation=mapped, jacobian=jacobian)
    with capsys.disabled():
        for name, (accuracy, under_attack) in found.items():
            print(f"\n{name:15} accuracy {accuracy:.3f}, under PGD {under_attack:.3f}", end="")
    assert mapped[1] > standard[1] + 0.05
    assert jacobian[1] > standard[1] + 0.05
    assert robust[1] > standard[1] + 0.1
