"""Property sweeps over the duals.

Fenchel-Young, closed forms against autograd and solvers, projections, random points, bad input.
"""

import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from advinterp.duals import (
    L1,
    L2,
    Ball,
    Dual,
    ElasticNet,
    GroupBall,
    GroupL21,
    L1Ball,
    L2Ball,
    LInf,
    LInfBall,
    ScaledDual,
    SumDual,
    WeightedL2,
)

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
TOL = {
    torch.float64: 1e-12,
    torch.float32: 2e-5,
    torch.bfloat16: 3e-2,
    torch.float16: 4e-3,
}  # relative; a few roundings of the dtype
sweep = settings(deadline=None, max_examples=15)
shapes = st.one_of(
    st.tuples(st.integers(1, 4096)),
    st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 20)),
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
    st.just(()),
)
strengths = st.sampled_from([0.0, 1e-6, 8 / 255, 0.5, 1.0, 40.0])


def partition(shape, seed, n=5):
    return torch.randint(n, shape, generator=torch.Generator().manual_seed(seed))


def make(kind, shape, eps, seed=0):
    "A dual of this kind for inputs of this trailing shape"
    image = len(shape) > 1
    if kind == "patch" and image:
        return GroupBall(eps, patch=1 + seed % 7)
    if kind == "across":
        return GroupBall(eps, patch=4, across_channels=True) if image else L2Ball(eps)
    if kind in ("groups", "patch"):
        return GroupBall(eps, groups=partition(shape, seed))
    if kind == "elastic":
        return ElasticNet(eps, 0.3 * eps)
    if kind == "weighted":
        generator = torch.Generator().manual_seed(seed)
        return WeightedL2(eps, torch.rand(shape, generator=generator, dtype=torch.double) + 0.1)
    return {"linf": LInfBall, "l1": L1Ball, "l2": L2Ball}[kind](eps)


BALLS = ["linf", "l1", "l2", "patch", "across", "groups"]
KINDS = [*BALLS, "elastic", "weighted"]


def batch(shape, seed, B=3, dtype=torch.float64, scale=1.0, rough=False):
    "Normal entries; `rough`: with zeros and many ties"
    g = torch.randn(B, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    if rough:
        g = g.round()
    return (scale * g).to(dtype)


def inner(a, b):
    return (a.double() * b.double()).reshape(len(a), -1).sum(1)


# --- Fenchel-Young


@pytest.mark.parametrize("kind", KINDS)
@sweep
@given(shapes, strengths, st.integers(0, 99), st.booleans(), st.sampled_from(DTYPES))
def test_equality_at_delta_star(kind, shape, eps, seed, rough, dtype):
    d, g = make(kind, shape, eps, seed), batch(shape, seed, dtype=dtype, rough=rough)
    delta = d.delta_star(g)
    assert delta.shape == g.shape and delta.dtype == g.dtype and delta.isfinite().all()
    assert d.h_star(g).shape == (3,) and d.h_star(g).dtype == g.dtype
    star, price = d.h_star(g).double(), d.h(delta).double()
    finest = torch.finfo(dtype).tiny * torch.finfo(dtype).eps  # the dtype knows no finer move
    grain = finest * (1 + inner(g.abs(), torch.ones_like(g)))
    assert ((star + price - inner(g, delta)).abs() <= TOL[dtype] * (star + price) + grain).all()
    assert (delta[g == 0] == 0).all()  # what does not matter is not moved


@pytest.mark.parametrize("kind", KINDS)
@sweep
@given(shapes, strengths, st.integers(0, 99), st.floats(0.01, 3))
def test_inequality_everywhere(kind, shape, eps, seed, factor):
    d, g = make(kind, shape, eps, seed), batch(shape, seed)
    other = factor * d.delta_star(batch(shape, seed + 1, rough=True))
    # h calls inside what exceeds the radius by 1.5e-8
    assert (d.gap(g, other) >= -1e-7 * (1 + d.h_star(g))).all()
    if isinstance(d, Ball):
        assert (d.gap(g, d.random_point(g)) >= -1e-12 * (1 + d.h_star(g))).all()
        assert (d.gap(g, d.project(other)) >= -1e-12 * (1 + d.h_star(g))).all()


@pytest.mark.parametrize("kind", KINDS)
@sweep
@given(shapes, strengths, st.integers(0, 99))
def test_closed_form_is_autograd(kind, shape, eps, seed):
    d, g = make(kind, shape, eps, seed), batch(shape, seed)
    torch.testing.assert_close(d.delta_star(g), Dual.delta_star(d, g), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@sweep
@given(
    shapes,
    st.sampled_from([torch.float64, torch.float32]),
    st.sampled_from([-44, -38, -25, 0, 25, 36]),
    st.integers(0, 99),
)
def test_scales(kind, shape, dtype, power, seed):
    d, g = make(kind, shape, 0.1, seed), batch(shape, seed, dtype=torch.float64, rough=True)
    small = (10.0**power * g).to(dtype)
    delta = d.delta_star(small)
    assert not delta.isnan().any() and not d.h_star(small).isnan().any()
    # The best move in a ball does not know the scale; -44 is subnormal, rounded to a few bits.
    if isinstance(d, Ball) and power > -44:
        torch.testing.assert_close(delta, d.delta_star(g.to(dtype)), rtol=1e-4, atol=1e-6)
        assert (d.h(d.project(small)) == 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_gradient(kind, dtype):
    d, g = make(kind, (2, 9, 9), 0.1), torch.zeros(2, 2, 9, 9, dtype=dtype)
    assert (d.delta_star(g) == 0).all() and (Dual.delta_star(d, g) == 0).all()
    assert (d.h_star(g) == 0).all() and (d.h(g) == 0).all()


def test_group_scales_within_one_example():
    "Groups 30 orders of magnitude apart each get their own full move"
    g = torch.tensor([[1e-44, 0.0, 3e-20, 4e-20, 3e20, 4e20, 0.0, 0.0]])
    delta = GroupBall(1.0, groups=torch.arange(8) // 2).delta_star(g)
    torch.testing.assert_close(delta, torch.tensor([[1.0, 0.0, 0.6, 0.8, 0.6, 0.8, 0.0, 0.0]]))


def test_ties():
    g = torch.tensor([[2.0, -2.0, 1.0, 2.0]])
    torch.testing.assert_close(L1Ball(0.3).delta_star(g), torch.tensor([[0.1, -0.1, 0.0, 0.1]]))
    other_order = torch.tensor([3, 0, 2, 1])
    torch.testing.assert_close(
        L1Ball(0.3).delta_star(g[:, other_order]), L1Ball(0.3).delta_star(g)[:, other_order]
    )
    many = torch.ones(1, 5000, dtype=torch.bfloat16)  # more ties than bfloat16 can count
    spent = L1Ball(0.3).delta_star(many).float().sum().item()
    assert spent == pytest.approx(0.3, rel=0.01)


# --- independent values


@sweep
@given(shapes, st.integers(0, 99))
def test_penalties_against_numpy(shape, seed):
    g = batch(shape, seed)
    n = g.reshape(3, -1).numpy()
    for d, ref in (
        (L1(0.3), np.abs(n).sum(1)),
        (L2(0.3), np.linalg.norm(n, axis=1)),
        (LInf(0.3), np.abs(n).max(1)),
    ):
        np.testing.assert_allclose(d.h_star(g).numpy(), 0.3 * ref, rtol=1e-12)
    labels = partition(shape, seed).reshape(-1).numpy()
    ref = sum(np.linalg.norm(n[:, labels == k], axis=1) for k in range(5))
    np.testing.assert_allclose(
        GroupL21(0.3, groups=partition(shape, seed)).h_star(g).numpy(), 0.3 * ref, rtol=1e-12
    )


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 3), st.integers(1, 31), st.integers(1, 31), st.integers(2, 16), st.booleans())
def test_patches_against_slices(n_channels, height, width, side, across):
    g = batch((n_channels, height, width), height)
    dual = GroupBall(0.2, patch=side, across_channels=across)
    delta, nearest = dual.delta_star(g), dual.project(g)
    channels = [slice(None)] if across else range(n_channels)
    penalty = torch.zeros(3, dtype=torch.double)
    for k, i, j in itertools.product(channels, range(0, height, side), range(0, width, side)):
        at = (slice(None), k, slice(i, i + side), slice(j, j + side))
        block = g[at].reshape(3, -1)
        norm = block.norm(dim=1, keepdim=True)
        penalty += 0.2 * norm[:, 0]
        torch.testing.assert_close(delta[at].reshape(3, -1), 0.2 * block / norm)
        shrunk = block * (0.2 / norm).clamp(max=1)
        torch.testing.assert_close(nearest[at].reshape(3, -1), shrunk)
    torch.testing.assert_close(dual.h_star(g), penalty)


@pytest.mark.parametrize("kind", BALLS)
@settings(deadline=None, max_examples=6)
@given(st.integers(2, 3), st.integers(0, 99))
def test_no_direction_gains_more(kind, n, seed):
    "Of 20,000 directions, followed to the surface of the ball, none exceeds h_star, one is close"
    d, g = make(kind, (n,), 0.5, seed), batch((n,), seed, B=1)
    z = batch((n,), 1000, B=20000)
    best = (0.5 * (z @ g[0]) / d.norm(z)).max()
    assert 0.9 * d.h_star(g) < best <= d.h_star(g) + 1e-12


@settings(deadline=None, max_examples=60)
@given(st.floats(0.05, 2), st.floats(0.05, 2), st.floats(-5, 5))
def test_elastic_conjugate(eps1, eps2, delta):
    res = optimize.minimize_scalar(
        lambda z: eps1 * abs(z) + eps2 * z * z - delta * z,
        bounds=(-100, 100),
        method="bounded",
        options=dict(xatol=1e-10),
    )
    price = ElasticNet(eps1, eps2).h(torch.tensor([[delta]], dtype=torch.double))
    assert price.item() == pytest.approx(-res.fun, abs=1e-7)


# --- projection, random points


@pytest.mark.parametrize("kind", BALLS)
@sweep
@given(
    shapes,
    strengths,
    st.integers(0, 99),
    st.sampled_from([1e-3, 1.0, 1e4, 1e12]),
    st.sampled_from(DTYPES[:3]),
)
def test_projection(kind, shape, eps, seed, scale, dtype):
    d, v = make(kind, shape, eps, seed), batch(shape, seed, dtype=dtype, scale=scale)
    before = v.clone()
    w = d.project(v)
    assert torch.equal(v, before) and w.dtype == dtype and w.shape == v.shape
    assert (d.h(w) == 0).all()  # feasible
    torch.testing.assert_close(
        d.project(w), w, rtol=TOL[dtype], atol=TOL[dtype] * max(eps, 1e-9)
    )  # idempotent
    if dtype == torch.float64:  # optimal: v - w makes no acute angle with any way into the ball
        rest = v - w
        size = rest.reshape(3, -1).norm(dim=1) * (eps + w.reshape(3, -1).norm(dim=1))
        for point in (d.random_point(v), d.delta_star(rest), -w, torch.zeros_like(w)):
            assert (inner(rest, point - w) <= 1e-9 * (1e-30 + size)).all()
    ins = d.random_point(v) * 0.5
    assert torch.equal(d.project(ins), ins)  # inside nothing moves


@pytest.mark.parametrize("kind", BALLS)
@sweep
@given(shapes, st.integers(0, 99))
@pytest.mark.parametrize("c", [1e-200, 1e-6, 1e6, 1e200])
def test_units_do_not_matter(kind, c, shape, seed):
    d, v = make(kind, shape, 0.5, seed), batch(shape, seed)
    torch.testing.assert_close(
        d.with_eps(0.5 * c).project(c * v) / c, d.project(v), rtol=1e-9, atol=1e-12
    )


def water_level(a, eps):
    return optimize.brentq(
        lambda t: np.maximum(a - t, 0).sum() - eps,
        0,
        a.max(),
        xtol=1e-15,
        rtol=8.9e-16,
        maxiter=500,
    )


@sweep
@given(
    st.integers(1, 4096),
    st.sampled_from([0.01, 1.0, 30.0, 1e3]),
    st.integers(0, 99),
    st.sampled_from(["normal", "ties", "geometric", "sparse"]),
)
def test_l1_projection_against_scipy(n, eps, seed, kind):
    v = batch((n,), seed, B=2, rough=kind == "ties")
    if kind == "geometric":
        v = v.sign() * 0.99 ** torch.arange(n, dtype=torch.double) * 100
    if kind == "sparse":
        v = v * (torch.rand(2, n, generator=torch.Generator().manual_seed(seed)) < 0.01)
    w = L1Ball(eps).project(v).numpy()
    for row, projected in zip(v.numpy(), w):
        size = np.abs(row)
        expected = row
        if size.sum() > eps:
            expected = np.sign(row) * np.maximum(size - water_level(size, eps), 0)
        np.testing.assert_allclose(projected, expected, atol=1e-10)


def by_sorting(row, eps):
    """Duchi et al. 2008, in float64."""
    if not eps:
        return np.zeros_like(row)
    size = np.abs(row.astype(float))
    if size.sum() <= eps:
        return row
    falling = np.sort(size)[::-1]
    rest = np.cumsum(falling) - eps
    k = np.nonzero(falling * np.arange(1, len(row) + 1) > rest)[0][-1]
    return np.sign(row) * np.maximum(size - rest[k] / (k + 1), 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("n", [255, 256, 700])  # compiled code begins at 256
def test_l1_projection_against_sorting(n, dtype):
    normal = batch((n,), 3, B=6)
    tied = (2 * normal).round() / 2
    skewed = normal * 0.97 ** torch.arange(n)
    for v in (normal, 1000 * normal, tied, skewed, normal.abs(), torch.zeros_like(normal)):
        v = v.to(dtype)
        for eps in (0.0, 1e-12, 0.5, 20.0, 1e3):
            w = L1Ball(eps).project(v)
            assert w.dtype == dtype
            expected = np.stack([by_sorting(row, eps) for row in v.double().numpy()])
            precision = 8 * torch.finfo(dtype).eps * max(1.0, v.abs().max().item())
            np.testing.assert_allclose(w.double().numpy(), expected, atol=precision)


@pytest.mark.parametrize("n", [100, 300])
def test_l1_projection_of_broken_rows(n):
    v = batch((n,), 0, B=4)
    v[0, 3], v[1, 5] = torch.nan, torch.inf
    w = L1Ball(2.0).project(v)
    assert w[:2].isnan().all() and w[2:].isfinite().all()
    assert torch.equal(w[2:], L1Ball(2.0).project(v[2:]))
    across = v[2:].repeat(1, 2)[:, ::2]  # not contiguous
    assert torch.equal(L1Ball(2.0).project(across), L1Ball(2.0).project(across.contiguous()))


def test_l1_projection_qp():
    "256 x 3072 against the optimality conditions, and a small case against SLSQP"
    v = batch((3072,), 0, B=256)
    w = L1Ball(10.0).project(v)
    r = v - w
    assert (w.abs().sum(1) - 10).abs().max() < 1e-10
    tau = r.abs().amax(1, keepdim=True)
    on = w != 0
    assert ((r - tau * w.sign())[on].abs() < 1e-10).all() and (r.abs() <= tau + 1e-10).all()
    z = v[0, :8].numpy()

    def distance(pq):
        return 0.5 * ((pq[:8] - pq[8:] - z) ** 2).sum()

    res = optimize.minimize(
        distance,
        np.full(16, 0.01),
        bounds=[(0, None)] * 16,
        method="SLSQP",
        options=dict(ftol=1e-16, maxiter=1000),
        constraints=dict(type="ineq", fun=lambda pq: 1 - pq.sum()),
    )
    np.testing.assert_allclose(
        L1Ball(1.0).project(v[:1, :8])[0].numpy(), res.x[:8] - res.x[8:], atol=1e-5
    )


@pytest.mark.parametrize("kind", BALLS)
def test_projection_and_delta_star_are_differentiable(kind):
    d = make(kind, (2, 3, 4), 0.7)
    v = batch((2, 3, 4), 1, B=2).requires_grad_()
    assert torch.autograd.gradcheck(d.project, v)
    assert torch.autograd.gradcheck(d.project, (0.01 * v).detach().requires_grad_())
    assert torch.autograd.gradcheck(d.delta_star, v) or kind == "linf"


@pytest.mark.parametrize("kind", KINDS)
def test_penalty_is_differentiable(kind):
    d = make(kind, (2, 3, 4), 0.7)
    g = batch((2, 3, 4), 1, B=2)
    assert torch.autograd.gradcheck(d.h_star, g.clone().requires_grad_())
    g[0] = 0
    g[1, 0] = 0
    g.requires_grad_()  # kinks: a finite slope, 0
    (slope,) = torch.autograd.grad(d.h_star(g).sum(), g)
    assert slope.isfinite().all() and (slope[0] == 0).all()


@pytest.mark.parametrize("kind", BALLS)
def test_random_points(kind):
    d, x = make(kind, (2, 3, 4), 0.7, seed=2), torch.zeros(4000, 2, 3, 4)
    state = torch.get_rng_state()
    a = d.random_point(x, generator=torch.Generator().manual_seed(1))
    b = d.random_point(x, generator=torch.Generator().manual_seed(1))
    assert torch.equal(a, b) and torch.equal(state, torch.get_rng_state()) and (d.h(a) == 0).all()
    se = a.std(0) / 4000**0.5
    assert (a.mean(0).abs() < 5 * se).all()
    assert not torch.equal(d.random_point(x), d.random_point(x))
    half = d.random_point(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (d.h(half) == 0).all()


@pytest.mark.parametrize("kind", ["linf", "l1", "l2"])
def test_radius_is_that_of_the_volume(kind):
    "P(norm <= q eps) = q^24"
    dual = make(kind, (2, 3, 4), 0.7)
    generator = torch.Generator().manual_seed(3)
    point = dual.random_point(torch.zeros(20000, 2, 3, 4), generator=generator)
    share = (dual.norm(point) / 0.7) ** 24
    assert abs(share.mean() - 0.5) < 0.01
    assert abs(share.std() - 12**-0.5) < 0.01


# 4 x 5 entries in four groups of different sizes, each a ball of its own dimension.
MEMBERS = dict(
    groups=torch.tensor([0, 1, 1, *5 * [2], *12 * [3]]).reshape(4, 5),
    patches=2 * (torch.arange(4) // 3)[:, None] + torch.arange(5) // 3,  # 3x3, 3x2, 1x3, 1x2
)
UNEQUAL = dict(
    groups=GroupBall(0.7, groups=MEMBERS["groups"]),
    patches=GroupBall(0.7, patch=3),
)


@pytest.mark.parametrize("kind", UNEQUAL)
def test_points_are_uniform_in_the_ball_of_every_group(kind):
    """In a group of d features P(norm <= q eps) = q^d, all directions alike, groups independent."""
    generator = torch.Generator().manual_seed(3)
    like = torch.zeros(5000, 1, 4, 5) if kind == "patches" else torch.zeros(5000, 4, 5)
    points = UNEQUAL[kind].random_point(like, generator=generator).reshape(5000, 20)
    members = MEMBERS[kind].flatten()
    radii = []
    for group in range(4):
        own = points[:, members == group].double()
        dimension = own.shape[1]
        radius = own.norm(dim=1) / 0.7
        radii.append((radius**dimension).numpy())
        assert stats.kstest(radii[-1], "uniform").pvalue > 0.01
        # One coordinate of a direction that is uniform on the sphere: its square is Beta.
        coordinate = (own[:, 0] / own.norm(dim=1)).numpy()
        assert abs(np.sign(coordinate).mean()) < 4 / 5000**0.5
        if dimension > 1:
            square = stats.beta(0.5, (dimension - 1) / 2)
            assert stats.kstest(coordinate**2, square.cdf).pvalue > 0.01
    assert np.abs(np.corrcoef(radii) - np.eye(4)).max() < 4 / 5000**0.5


# --- algebra


@pytest.mark.parametrize("kind", KINDS)
@sweep
@given(st.floats(0, 5), st.integers(0, 99))
def test_scaling_scales_the_penalty(kind, c, seed):
    d, g = make(kind, (3, 5), 0.4, seed), batch((3, 5), seed)
    s = c * d
    assert type(s) is type(d)
    torch.testing.assert_close(s.h_star(g), c * d.h_star(g))
    torch.testing.assert_close((d * c).delta_star(g), c * d.delta_star(g))
    if c > 0.01:
        torch.testing.assert_close(s.h(0.3 * g), c * d.h(0.3 * g / c))
    if isinstance(d, Ball):
        assert s.eps == pytest.approx(0.4 * c) and d.eps == 0.4
        torch.testing.assert_close(0.4 * d.steepest(g), d.delta_star(g))
        assert d.with_eps(0.2).eps == 0.2 and type(d.with_eps(0.2)) is type(d) and d.eps == 0.4


class SqrtNorm(Dual):
    "A user's dual: the l2 norm, written with a NaN slope at 0"

    def h_star(self, g):
        return g.flatten(1).square().sum(1).sqrt()


def test_user_defined():
    g = batch((3, 4), 0)
    g[0] = 0
    torch.testing.assert_close(SqrtNorm().delta_star(g), L2Ball(1.0).delta_star(g))
    assert (SqrtNorm().delta_star(torch.zeros(2, 3)) == 0).all()
    s = 3 * SqrtNorm() + L1(0.1)
    assert isinstance(3 * SqrtNorm(), ScaledDual)
    assert isinstance(s, SumDual)
    torch.testing.assert_close(s.delta_star(g), L2Ball(3.0).delta_star(g) + L1(0.1).delta_star(g))
    with torch.no_grad():
        SqrtNorm().delta_star(g)
    for call in (lambda: SqrtNorm().h(g), lambda: s.h(g), lambda: Dual().h_star(g)):
        with pytest.raises(NotImplementedError):
            call()

    class Mean(Dual):
        def h_star(self, g):
            return g.abs().mean()

    with pytest.raises(ValueError, match="one number per example"):
        Mean().delta_star(g)


@pytest.mark.parametrize(
    "pair",
    [("linf", k) for k in KINDS] + [("l1", "l2"), ("l2", "groups"), ("patch", "l2"), ("l2", "l2")],
)
@settings(deadline=None, max_examples=5)
@given(st.integers(0, 99))
def test_infimal_convolution(pair, seed):
    "h of a sum is below every split, and Fenchel-Young is an equality at delta_star"
    a, b = (make(k, (3, 4), e, seed) for k, e in zip(pair, (0.3, 0.5)))
    s, g = a + b, batch((3, 4), seed)
    torch.testing.assert_close(
        s.gap(g, s.delta_star(g)), torch.zeros(3, dtype=torch.double), atol=1e-9, rtol=0
    )
    u, v = a.random_point(g), 0.4 * batch((3, 4), seed + 1)
    assert (s.h(u + v) <= a.h(u) + b.h(v) + 1e-9).all()
    assert (s.gap(g, u + v) >= -1e-7).all()
    torch.testing.assert_close(
        (3 * s).h(u + v), (3 * a + 3 * b).h(u + v)
    )  # scaling before or after adding


@pytest.mark.parametrize("kind", KINDS)
def test_zero_strength(kind):
    "What is_zero promises: nothing is penalised and nothing moves."
    g = batch((3, 5), 0)
    nothing, something = make(kind, (3, 5), 0.0), make(kind, (3, 5), 1e-9)
    assert nothing.is_zero()
    assert (nothing.h_star(g) == 0).all()
    assert (nothing.delta_star(g) == 0).all()
    assert not something.is_zero()
    assert (0.0 * something).is_zero()


def test_zero_strength_of_a_dual_that_names_none():
    assert not SqrtNorm().is_zero()
    assert (0.0 * SqrtNorm()).is_zero()
    assert not (2.0 * SqrtNorm()).is_zero()
    assert not ElasticNet(0.0, 0.1).is_zero()


def test_names():
    assert (L1, L2, LInf, GroupL21) == (LInfBall, L2Ball, L1Ball, GroupBall)
    assert repr(L1(8 / 255)) == f"LInfBall({8 / 255!r})"
    for k in KINDS:
        d = make(k, (3, 5), 0.4)
        g = batch((3, 5), 0)
        again = pickle.loads(pickle.dumps(d))
        assert torch.equal(again.delta_star(g), d.delta_star(g))
        assert again == d and hash(again) == hash(d)
        assert d.formula in d._repr_markdown_() and repr(d) in d._repr_markdown_()


# --- bad input


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf, -math.inf])
def test_bad_strengths(bad):
    for build in (
        L1,
        L2,
        LInf,
        GroupL21,
        lambda e: ElasticNet(e, 0.1),
        lambda e: ElasticNet(0.1, e),
        lambda e: WeightedL2(e, 1.0),
        lambda e: e * L1(0.1),
        L1(0.1).with_eps,
    ):
        with pytest.raises(ValueError, match="finite number >= 0"):
            build(bad)


@pytest.mark.parametrize("bad", [".1", None, torch.tensor(1), True, [0.1]])
def test_strengths_of_the_wrong_kind(bad):
    with pytest.raises(TypeError, match="expected a number"):
        L1(bad)


@pytest.mark.parametrize("kind", KINDS)
def test_bad_tensors(kind):
    d = make(kind, (2, 4, 4), 0.1)
    calls = [d.h, d.h_star, d.delta_star]
    if isinstance(d, Ball):
        calls += [d.project, d.random_point, d.norm, d.steepest]
    for f in calls:
        with pytest.raises(TypeError, match="floating dtype"):
            f(torch.ones(2, 2, 4, 4, dtype=torch.long))
        with pytest.raises(TypeError, match=r"torch\.Tensor"):
            f([[1.0, 2.0]])
        out = f(torch.ones(0, 2, 4, 4))
        assert len(out) == 0  # an empty batch
        assert out.shape in ((0,), (0, 2, 4, 4))
    with pytest.raises(ValueError, match="one shape"):
        d.gap(torch.ones(2, 2, 4, 4), torch.ones(1, 2, 4, 4))
    with pytest.raises(ValueError, match="at least one feature"):
        d.h_star(torch.ones(2, 0))
    with pytest.raises(ValueError, match="scalar"):
        d.h_star(torch.tensor(1.0))


@pytest.mark.parametrize("patch", [0, -1, 1.5, "14", True])
def test_bad_patch(patch):
    kind = ValueError if type(patch) is int else TypeError
    with pytest.raises(kind, match=f"patch={patch!r}: expected a whole number >= 1"):
        GroupBall(0.1, patch=patch)


@pytest.mark.parametrize(
    "groups,exc,match",
    [
        (torch.tensor([0, 1, -1]), ValueError, "index -1"),
        (torch.rand(3), TypeError, "integer tensor"),
        (torch.tensor([True, False]), TypeError, "integer tensor"),
        ([0, 1], TypeError, "integer tensor"),
        (torch.ones(0, dtype=torch.long), ValueError, "at least one feature"),
    ],
)
def test_groups_that_do_not_partition(groups, exc, match):
    with pytest.raises(exc, match=match):
        GroupBall(0.1, groups=groups)


def test_groups_of_another_shape():
    d = GroupBall(0.1, groups=torch.zeros(3, 4, dtype=torch.long))
    for x in (torch.ones(2, 12), torch.ones(2, 4, 3), torch.ones(3, 4)):
        for f in (d.h_star, d.delta_star, d.project, d.random_point):
            with pytest.raises(ValueError, match="one index for every feature"):
                f(x)
    with pytest.raises(ValueError, match="give groups="):
        GroupBall(0.1).delta_star(torch.ones(2, 12))
    with pytest.raises(ValueError, match="across_channels"):
        GroupBall(0.1, groups=torch.zeros(3).long(), across_channels=True)


@pytest.mark.parametrize(
    "weight,exc",
    [
        (torch.tensor([1.0, -1.0]), ValueError),
        (torch.tensor([1.0, math.nan]), ValueError),
        (torch.tensor([1.0, math.inf]), ValueError),
        (-1.0, ValueError),
        (torch.tensor([1, 2]), TypeError),
        ("1", TypeError),
    ],
)
def test_bad_weights(weight, exc):
    with pytest.raises(exc, match="weight"):
        WeightedL2(0.1, weight)


def test_a_weight_of_zero_leaves_the_map_free():
    dual = WeightedL2(0.5, torch.tensor([1.0, 0.0]))
    g, inside, outside = torch.tensor([[[2.0, 3.0]], [[2.0, 0.0]], [[2.0, 1e-3]]])
    assert torch.equal(dual.h_star(g), torch.tensor([2.0]))
    assert torch.equal(dual.delta_star(g), inside)
    assert torch.equal(dual.h(inside), torch.tensor([2.0])) and dual.h(outside).isinf().all()
    assert dual.gap(g, inside).abs().max() < 1e-6


@pytest.mark.parametrize("v", [(3.0, -1.0, 0.0, 0.5), (0.0, 0.0, 5.0, 0.0), (0.3, 0.0, -0.2, 0.1)])
def test_slope_of_the_l1_projection_at_zeros(v):
    v = torch.tensor(v, dtype=torch.double)

    def project(v):
        return L1Ball(2.5).project(v[None])[0]

    shifts = 1e-6 * torch.eye(4, dtype=torch.double)
    numeric = torch.stack([(project(v + s) - project(v - s)) / 2e-6 for s in shifts], 1)
    slopes = torch.autograd.functional.jacobian(project, v)
    assert (slopes - numeric).abs().max() < 1e-8


def test_weights_of_another_shape():
    for w in (torch.ones(5), torch.ones(2, 2, 3, 4), torch.ones(1, 1, 3, 4)[None]):
        with pytest.raises(ValueError, match="weight has shape"):
            WeightedL2(0.1, w).h_star(torch.ones(1, 2, 3, 4))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_gpu_agrees(kind):
    d, g = make(kind, (3, 17, 18), 0.1), batch((3, 17, 18), 0, dtype=torch.float32)
    for f in [d.h_star, d.delta_star, d.h] + ([d.project] if isinstance(d, Ball) else []):
        torch.testing.assert_close(f(g.cuda()).cpu(), f(g), rtol=1e-5, atol=1e-6)
    if isinstance(d, Ball):
        assert (d.h(d.random_point(g.cuda())) == 0).all()
