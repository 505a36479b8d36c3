"Property sweeps, closed forms, caches and bad input of `advinterp.penalty`; interpretation regularisation on real digits (slow)."

import math
import os

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from advinterp.adversary import PGD, OneStep, paper_b_mnist
from advinterp.attribution import smoothgrad
from advinterp.core import class_output, task_loss
from advinterp.duals import L1, L2, ElasticNet, GroupL21, LInf, WeightedL2
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
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g, dtype=torch.double), torch.randint(
        0, classes, (n,), generator=g
    )


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
    assert isinstance(pen, Penalty) and value.shape == (6,) and value.isfinite().all()
    for p in (net[0].weight, net[2].weight):
        (g,) = torch.autograd.grad(mean(), p)
        for i in ((0, 0), (2, 5)):
            assert abs(g[i].item() - finite_difference(mean, p, i)) < 1e-5 * max(
                1, abs(g[i].item())
            )


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
    g = torch.stack(
        [
            torch.func.grad(lambda v: class_output(net(v[None]), c[None], output)[0])(v)
            for v, c in zip(x, y)
        ]
    )
    assert torch.allclose(
        GradNorm(DUALS[name], output)(net, x, y), DUALS[name].h_star(g), rtol=1e-9, atol=1e-12
    )


@settings(deadline=None, max_examples=20)
@given(out=st.integers(1, 5), n=st.integers(1, 4), seed=st.integers(0, 100), prob=st.booleans())
def test_jacobian_norm(out, n, seed, prob):
    net, (x, y) = mlp(out=out, seed=seed), data(n, classes=max(out, 2), seed=seed)
    f = (
        (lambda v: (net(v[None]).softmax(1) if out > 1 else net(v[None]).sigmoid())[0])
        if prob
        else lambda v: net(v[None])[0]
    )
    J = torch.stack([torch.func.jacrev(f)(v) for v in x])
    kw = dict(output="prob" if prob else "logit")
    assert torch.allclose(JacobianNorm(**kw)(net, x, y), J.square().sum((1, 2)), atol=1e-12)
    assert torch.allclose(
        JacobianNorm(squared=False, **kw)(net, x, y), J.norm(dim=(1, 2)), atol=1e-12
    )
    if out == 1:
        assert torch.allclose(
            JacobianNorm(1, **kw)(net, x, y), J.square().sum((1, 2)), atol=1e-12
        )  # on the 0-sphere the estimate is exact


@pytest.mark.parametrize("n_proj", [1, 3])
def test_projections_are_unbiased(n_proj):
    net, (x, y) = mlp(out=4), data(classes=4)
    exact = JacobianNorm()(net, x, y).detach()
    torch.manual_seed(0)
    draws = torch.stack([JacobianNorm(n_proj)(net, x, y).detach() for _ in range(600)])
    assert ((draws.mean(0) - exact).abs() < 4 * draws.std(0) / 600**0.5).all() and draws.std(
        0
    ).min() > 0


def test_first_order_routes_agree():
    net, (x, y) = mlp(), data(20)
    for make in (L1, L2, lambda e: ElasticNet(e, e)):

        def gap(eps):
            dual = make(eps)
            base = task_loss(net(x), y) + GradNorm(dual)(net, x, y)
            z = [
                a(net, x, y)
                for a in (
                    OneStep(dual),
                    PGD(
                        dual, 20, **({} if isinstance(dual, ElasticNet) else dict(warm_start=True))
                    ),
                )
            ]
            price = [dual.h(a - x) if isinstance(dual, ElasticNet) else 0.0 for a in z]
            return torch.stack(
                [(task_loss(net(a), y) - h - base).abs().mean() for a, h in zip(z, price)]
            ).detach()

        r = gap(0.02) / gap(0.01)
        assert ((r > 3.6) & (r < 4.5)).all()


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
    I = torch.rand(6, 8, dtype=torch.double)
    g = torch.stack([torch.func.grad(lambda v, c=c: net(v[None])[0, c])(v) for v, c in zip(x, y)])
    assert torch.allclose(TargetMap(lambda x, y: I)(net, x, y), (g - I).norm(dim=1))
    assert torch.allclose(
        TargetMap(I, absolute=True, reduction="batch")(net, x, y).mean(), (g.abs() - I).norm()
    )
    assert torch.allclose(TargetMap(I, distance="cosine")(net, x, y), 1 - F.cosine_similarity(g, I))


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
    assert torch.equal(
        t.flatten(1),
        torch.where(v >= v.mean(1, keepdim=True) + phi * v.std(1, keepdim=True), v, 0.0),
    )
    p = permute_map(m, fraction, seed).flatten(1)
    assert (
        torch.equal(p.sort(1)[0], v.sort(1)[0])
        and ((p != v).sum(1) <= round(fraction * v.shape[1])).all()
    )
    assert torch.equal(permute_map(m, fraction, seed), permute_map(m, fraction, seed))


def test_stored_targets_and_cache(tmp_path):
    torch.manual_seed(0)
    x, y = torch.rand(2000, 1, 6, 6), torch.arange(2000) % 3
    maps = torch.rand_like(x)
    look = Targets(x, maps)
    i = torch.randperm(2000)[:300]
    assert torch.equal(look(x[i]), maps[i]) and torch.equal(
        look((x[i] - 0.2) / 0.7 * 0.7 + 0.2), maps[i]
    )
    with pytest.raises(ValueError, match="without augmentation"):
        look(x[:5] + 0.05)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    x, y = x[:10], y[:10]
    path = tmp_path / "sub" / "maps.safetensors"
    a = smoothgrad_targets(net, x, y, n_samples=4, path=path)
    made = path.stat().st_mtime_ns
    assert (
        torch.equal(smoothgrad_targets(net, x, y, n_samples=4, path=path), a)
        and path.stat().st_mtime_ns == made
    )
    assert torch.equal(
        smoothgrad_targets(net, x, y, n_samples=4, path=path, permute=1.0, phi=0.5),
        threshold_map(permute_map(a), 0.5),
    )
    net[1].weight.data *= 2  # another teacher: not the stored maps
    assert (
        torch.allclose(smoothgrad_targets(net, x, y, n_samples=4, path=path), 2 * a, rtol=1e-4)
        and path.stat().st_mtime_ns != made
    )
    path.write_bytes(b"truncated")
    assert torch.allclose(smoothgrad_targets(net, x, y, n_samples=4, path=path), 2 * a, rtol=1e-4)
    assert [f.name for f in path.parent.iterdir()] == ["maps.safetensors"]  # nothing half-written
    assert torch.allclose(
        smoothgrad_targets(net, x, y, n_samples=4, include_clean=False),
        smoothgrad(net, x, y, n_samples=4, relative=False, abs=True, bounds=(0.0, 1.0)),
    )


def test_weight_norm():
    net, (x, y) = mlp(), data()
    theta = torch.cat([p.flatten() for p in net.parameters()])
    for p in (1, 2, math.inf):
        assert torch.allclose(WeightNorm(p)(net, x, y), theta.norm(p).expand(6))
    net[2].requires_grad_(False)
    assert torch.allclose(WeightNorm(1, bias=False)(net, x, y), net[0].weight.abs().sum().expand(6))
    net.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable"):
        WeightNorm(1)(net, x, y)


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
    except RuntimeError as e:
        assert "injected" in str(e)
    assert (
        all(torch.equal(a, b) for a, b in zip(net.buffers(), before[0]))
        and [b.data_ptr() for b in net.buffers()] == before[1]
    )
    assert (
        net.training == training
        and all(p.grad is None and p.requires_grad for p in net.parameters())
        and not x.requires_grad
    )


class Fails(nn.Module):
    def forward(self, x):
        raise RuntimeError("injected")


def test_empty_binary_mixup_and_bad_input():
    net, (x, y) = mlp(), data()
    for name, p in PENALTIES.items():
        if not isinstance(p, TargetMap):
            assert p(net, x[:0], y[:0]).shape == (0,)
    one = mlp(out=1)
    yb = y % 2
    assert torch.allclose(
        GradNorm(L1(0.1))(one, x, yb), GradNorm(L1(0.1))(lambda z: one(z)[:, 0], x, yb)
    )
    mixed = lambda z, y: 0.3 * task_loss(z, y) + 0.7 * task_loss(z, y.flip(0))
    g = torch.stack(
        [
            torch.func.grad(
                lambda v, a=a, b=b: (
                    0.3 * task_loss(net(v[None]), a[None])[0]
                    + 0.7 * task_loss(net(v[None]), b[None])[0]
                )
            )(v)
            for v, a, b in zip(x, y, y.flip(0))
        ]
    )
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
        (lambda: ScoreMatching(sigma=0.0), ValueError),
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


# ---------------------------------------------------------------- real digits


@pytest.mark.slow
@pytest.mark.skipif("ADVINTERP_DATA" not in os.environ, reason="needs MNIST: set ADVINTERP_DATA")
def test_interpretation_and_jacobian_regularisation_make_digits_more_robust(capsys):
    "Paper B in miniature: 2000 images, 5 epochs of batch 50, a small conv net; a robust teacher trained with PGD-3 in the l2 ball of radius 1.5; PGD-40 at 1.5 on 200 test images."
    from advinterp.data import load
    from advinterp.models import small_conv

    d = load("mnist")
    x, y, xt, yt = (
        torch.tensor(d.x[:2000]).reshape(-1, 1, 28, 28),
        torch.tensor(d.y[:2000]),
        torch.tensor(d.x_test[:200]).reshape(-1, 1, 28, 28),
        torch.tensor(d.y_test[:200]),
    )

    def fit(penalty=None, weight=0.0, adversary=None, epochs=5):
        torch.manual_seed(0)
        net = small_conv(size=28, width=8)
        opt = torch.optim.Adam(net.parameters(), 2e-3)
        for e in range(epochs):
            for i in torch.randperm(len(x)).split(50):
                z = (
                    x[i]
                    if adversary is None
                    else adversary.scaled(min(1.0, (e + 1) / 3))(net, x[i], y[i])
                )
                loss = task_loss(net(z), y[i]) + (
                    weight * penalty(net, x[i], y[i]) if penalty else 0.0
                )
                opt.zero_grad()
                loss.mean().backward()
                opt.step()
        right = [
            (net(z).argmax(1) == yt).double().mean().item()
            for z in (xt, paper_b_mnist()(net, xt, yt))
        ]
        return net, right

    standard = fit()[1]
    teacher, robust = fit(adversary=PGD(L2(1.5), 3, bounds=(0, 1)))
    maps = smoothgrad_targets(teacher, x, y, n_samples=8, phi=1.0)
    mapped = fit(TargetMap(Targets(x, maps), absolute=True), 0.1)[1]
    jacobian = fit(JacobianNorm(1), 0.01)[1]
    with capsys.disabled():
        for k, v in dict(
            standard=standard, adversarial=robust, interpretation=mapped, jacobian=jacobian
        ).items():
            print(f"\n{k:15} accuracy {v[0]:.3f}, under PGD {v[1]:.3f}", end="")
    assert (
        mapped[1] > standard[1] + 0.05
        and jacobian[1] > standard[1] + 0.05
        and robust[1] > standard[1] + 0.1
    )
