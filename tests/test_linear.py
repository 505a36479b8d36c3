"""Property sweeps for the one-layer theory.

Every closed form against a route of its own, every theorem with and without its assumptions.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp
from scipy import stats

from advinterp.duals import Dual, ElasticNet, GroupBall, L1Ball, L2Ball, LInfBall, WeightedL2
from advinterp.linear import (
    Hinge,
    Logistic,
    MarginLoss,
    SoftplusHinge,
    adv_grad,
    adv_loss,
    adv_perturbation,
    adv_slope,
    directed_strength,
    expected_update,
    expected_update_ci,
    feat_trans,
    feature_impact,
    feature_value_impact,
    is_cond_independent,
    is_feat_trans,
    is_loss_cvx,
    is_loss_inc,
    linear_ig,
    margin,
    mean_slope,
    ova_adv_loss,
    stable_ig_risk,
    update_bound,
    weighted_average,
)

LOSSES = Logistic(), Hinge(), SoftplusHinge()
SETTINGS = settings(deadline=None, max_examples=40, derandomize=True)
seeds = st.integers(0, 2**31)
losses = st.sampled_from(LOSSES)
dims = st.sampled_from([1, 2, 3, 7, 64, 513, 4096])
scales = st.sampled_from([1e-6, 1e-2, 1.0, 30.0])


class Ramp(MarginLoss):
    def g(self, z):
        return torch.sigmoid(z)


class Exp(MarginLoss):
    def g(self, z):
        return z.exp()


class Square(MarginLoss):
    def g(self, z):
        return (1 + z) ** 2


def random(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.double)


def problem(seed, B=5, shape=(7,), dtype=torch.double, scale=1.0, zeros=True):
    "Random weights with some exact zeros and ties, rows, labels."
    generator = torch.Generator().manual_seed(seed)
    w = random(generator, *shape) * scale
    x = random(generator, B, *shape)
    if zeros:
        w = torch.where(torch.rand(shape, generator=generator) < 0.2, 0.0, w)
    if w.numel() > 2:
        w.view(-1)[1] = -w.view(-1)[0]
    y = torch.randint(2, (B,), generator=generator) * 2 - 1
    return w.to(dtype), x.to(dtype), y


def all_duals(d, eps=0.3):
    weight = torch.linspace(0.1, 2, d, dtype=torch.double)
    return [
        eps,
        LInfBall(eps),
        L2Ball(eps),
        L1Ball(eps),
        GroupBall(eps, groups=torch.arange(d) // 3),
        ElasticNet(eps, 0.2),
        ElasticNet(0.0, 2.0),
        WeightedL2(eps, weight),
        2 * ElasticNet(eps, 0.1),
        L2Ball(eps) + WeightedL2(eps, weight),
        L1Ball(0.1) + L2Ball(eps),
    ]


N_DUALS = len(all_duals(3))

# ---- losses


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_losses_meet_the_assumptions(loss):
    assert is_loss_inc(loss)
    assert is_loss_cvx(loss)
    assert is_loss_cvx(loss, -1e4, 1e4)
    z = torch.linspace(-800, 800, 3201, dtype=torch.double)
    assert torch.allclose(loss.dg(z), MarginLoss.dg(loss, z), atol=1e-14)
    by_numpy = {
        Logistic: np.logaddexp(0, z),
        Hinge: np.maximum(0, 1 + z),
        SoftplusHinge: np.logaddexp(0, 1 + z),
    }
    expected = by_numpy[type(loss)]
    # where exp is tiny too
    np.testing.assert_allclose(loss.g(z), expected, rtol=1e-13, atol=1e-320)
    assert loss.g(z[:0]).shape == (0,)


def test_predicates_refute():
    assert is_loss_inc(Ramp())
    assert not is_loss_cvx(Ramp())
    assert not is_loss_inc(Square())


def test_hinge_kink_is_zero():
    kink = torch.tensor([-1.0])
    assert Hinge().dg(kink)[0] == 0
    assert MarginLoss.dg(Hinge(), kink)[0] == 0


# ---- Lemmas 2 and 3


@SETTINGS
@given(
    seeds,
    dims,
    losses,
    scales,
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.sampled_from([0.0, 1e-3, 0.3, 10.0]),
    st.integers(0, 4),
)
def test_linf_closed_form_to_the_letter(seed, d, loss, scale, dtype, eps, B):
    w, x, y = problem(seed, B, (d,), dtype, scale)
    risk = adv_loss(w, x, y, eps, loss, 0.5)
    delta = adv_perturbation(w, y, eps)
    grad = adv_grad(w, x, y, eps, loss, 0.5)
    assert (risk.shape, delta.shape, grad.shape) == ((B,), (B, d), (B, d))
    assert risk.dtype == delta.dtype == grad.dtype == dtype
    if dtype == torch.bfloat16:
        return  # shapes and dtypes; values below
    w, x, y = w.double().numpy(), x.double().numpy(), y.numpy()
    expected = -y[:, None] * np.sign(w) * eps  # equation (7)
    np.testing.assert_allclose(delta, expected, rtol=1e-6, atol=0)

    z = torch.tensor(eps * np.abs(w).sum() - y * (x @ w + 0.5))
    size = 1 + np.abs(x) @ np.abs(w) + eps * np.abs(w).sum()  # what rounding is relative to
    tol = 20 * torch.finfo(dtype).eps * size
    assert (np.abs(risk.double().numpy() - loss.g(z).numpy()) <= tol).all()  # equation (8)

    if isinstance(loss, Hinge) and ((z + 1).abs() <= torch.tensor(tol)).any():
        return  # rounding may fall on either side of the kink
    expected = -loss.dg(z).numpy()[:, None] * (y[:, None] * x - np.sign(w) * eps)  # equation (9)
    relative = tol[:, None] + 1e-6 * (dtype == torch.float32)
    allowed = relative * (np.abs(expected) + np.abs(x) + eps)
    assert (np.abs(grad.double().numpy() - expected) <= allowed).all()


@SETTINGS
@given(seeds, st.integers(1, 5), losses, st.floats(0, 2))
def test_linf_against_all_corners(seed, d, loss, eps):
    w, x, y = problem(seed, 4, (d,))
    signs = torch.tensor(list(itertools.product([-1.0, 0, 1.0], repeat=d)), dtype=torch.double)
    best = torch.stack([loss.g(margin(w, x + eps * s, y, 0.1)) for s in signs]).amax(0)
    assert torch.allclose(adv_loss(w, x, y, eps, loss, 0.1), best, rtol=1e-12, atol=1e-12)


@SETTINGS
@given(
    seeds, st.integers(0, N_DUALS - 1), losses, st.sampled_from([0.01, 1.0, 5.0]), st.floats(-3, 3)
)
def test_no_perturbation_beats_the_adversary_and_one_attains_it(seed, k, loss, scale, b):
    w, x, y = problem(seed, 6, (7,), scale=scale)
    dual = all_duals(7)[k]
    pair = LInfBall(dual) if isinstance(dual, float) else dual
    risk = adv_loss(w, x, y, dual, loss, b)
    t = adv_slope(w, x, y, dual, loss, b)
    delta = adv_perturbation(w, y, dual, t)

    v = -y[:, None] * w
    h = (t[:, None] * v * delta).sum(1) - pair.h_star(t[:, None] * v)  # by Fenchel-Young
    attained = loss.g(margin(w, x + delta, y, b)) - h
    assert torch.allclose(attained, risk, rtol=1e-9, atol=1e-9)

    rounding = 1e-9 * (1 + risk.abs())
    generator = torch.Generator().manual_seed(seed)
    for reach in (0.01, 0.3, 1.0, 3.0):
        other = delta * torch.rand(6, 1, generator=generator, dtype=torch.double) * 2
        noise = reach * delta.abs().amax() * random(generator, 6, 7)
        if reach < 3:
            other = other + noise
        try:
            value = loss.g(margin(w, x + other, y, b)) - pair.h(other)
        except NotImplementedError:
            continue  # a sum of norms has no closed form of h
        assert (value <= risk + rounding).all()

    z = margin(w, x, y, b)
    first_order = loss.g(z) + pair.h_star(loss.dg(z)[:, None] * v)
    assert (first_order <= risk + rounding).all()
    assert (risk <= loss.g(z + pair.h_star(v)) + rounding).all()


@pytest.mark.parametrize("a", [-30.0, -4.01, -4.0, -3.99, -2.0, 0.0, 3.0])
@pytest.mark.parametrize("q", [1e-6, 0.5, 2.0, 2.0001, 4.0, 40.0])
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_penalty_maximum_against_a_fine_scan(a, q, loss):
    "d = 1, h = s^2/(4q): up to three stationary points for q > 2, ties at a = centre - q."
    w = torch.ones(1, dtype=torch.double)
    x = torch.tensor([[a]], dtype=torch.double)
    y = torch.tensor([-1])
    s = torch.linspace(0, 2 * q + 1e-9, 2_000_001, dtype=torch.double)
    best = float((loss.g(a + s) - s**2 / (4 * q)).max())
    risk = float(adv_loss(w, x, y, ElasticNet(0.0, q), loss))
    assert abs(risk - best) < 1e-9 * (1 + best)


class Times(MarginLoss):
    "A multiple of another loss, as a class weight makes it."

    def __init__(self, loss, factor):
        self.loss = loss
        self.factor = factor
        self.centre = loss.centre

    def g(self, z):
        return self.factor * self.loss.g(z)

    def dg(self, z):
        return self.factor * self.loss.dg(z)


@pytest.mark.parametrize("factor", [0.1, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_penalty_maximum_of_a_weighted_loss(loss, factor):
    "max of factor*loss - h is factor times the max of loss - h/factor."
    w, x, y = problem(8, 50, (2,), zeros=False, scale=3.0)
    risk = adv_loss(w, x, y, ElasticNet(0.1, 0.3), Times(loss, factor))
    # h of ElasticNet(.1, .3) over factor is that of ElasticNet(.1, .3*factor)
    scaled = factor * adv_loss(w, x, y, ElasticNet(0.1, 0.3 * factor), loss)
    assert torch.allclose(risk, scaled, rtol=1e-10)
    stable = stable_ig_risk(w, x, y, ElasticNet(0.1, 0.3), Times(loss, factor))
    assert torch.allclose(risk, stable, rtol=1e-9)


class Lopsided(Logistic):
    "Convex, and its slope is no sigmoid: it rises by 1 below the centre and by 2 above."

    def dg(self, z):
        return torch.where(z > 0, 2 * z.tanh() + 1, 1 + z.tanh())


class Shifted(Logistic):
    "A sigmoid slope whose centre is elsewhere."

    centre = 1.0


class Falling(Logistic):
    "Its slopes add up to a constant, but they fall."

    def dg(self, z):
        return 1 - super().dg(z)


class Stairs(Logistic):
    "Even and rising, but in two steps: not concave above the centre."

    def dg(self, z):
        return (2 + (4 * z - 8).tanh() + (4 * z + 8).tanh()) / 4


class Far(Logistic):
    "As `Stairs`, but the second step is far out, where strong models have their margins."

    place = 300.0

    def dg(self, z):
        parts = [super(Far, self).dg(z + shift) for shift in (-self.place, 0.0, self.place)]
        return sum(parts) / 3


class Farther(Far):
    place = 9_000.0


class Plunge(Logistic):
    "Even, and concave above the centre, but it falls on a line."

    def dg(self, z):
        return 0.5 - z


class Dip(Logistic):
    "A sigmoid slope that is negative far below the centre: the loss falls there."

    def g(self, z):
        return 1.4 * super().g(z) - 0.2 * z

    def dg(self, z):
        return 1.4 * super().dg(z) - 0.2


no_sigmoids = Lopsided(), Shifted(), Falling(), Stairs(), Far(), Farther(), Plunge()


@pytest.mark.parametrize("function", [adv_loss, adv_slope, adv_grad])
def test_slopes_that_fall_below_zero_are_refused(function):
    w, x, y = problem(8, 5, (2,), zeros=False)
    with pytest.raises(ValueError, match="rising from 0"):
        function(w, x, y, ElasticNet(0.1, 0.3), Dip())
    with pytest.raises(ValueError, match="never falls"):
        function(w, 9 * x, y, 0.1, Dip())


@pytest.mark.parametrize("loss", no_sigmoids, ids=repr)
@pytest.mark.parametrize("function", [adv_loss, adv_slope, adv_grad, stable_ig_risk])
def test_slopes_that_are_no_sigmoid_are_refused(function, loss):
    w, x, y = problem(8, 5, (2,), zeros=False)
    with pytest.raises(ValueError, match="sigmoid around centre="):
        function(w, x, y, ElasticNet(0.1, 0.3), loss)
    if function is not stable_ig_risk:
        function(w, x, y, 0.1, loss)  # a ball asks for no more than LOSS-INC


@SETTINGS
@given(seeds, st.integers(0, N_DUALS - 1), st.sampled_from([Logistic(), SoftplusHinge()]))
def test_gradient_is_autograd(seed, k, loss):
    w, x, y = problem(seed, 4, (7,), zeros=False)
    dual = all_duals(7)[k]
    leaf = w.clone().requires_grad_()
    risks = adv_loss(leaf, x, y, dual, loss, 0.2)
    auto = torch.stack([torch.autograd.grad(r, leaf, retain_graph=True)[0] for r in risks])
    assert torch.allclose(adv_grad(w, x, y, dual, loss, 0.2), auto, rtol=1e-8, atol=1e-9)


IMAGE_DUALS = (
    0.2,
    GroupBall(0.3, patch=3),
    GroupBall(0.3, patch=4),
    L2Ball(0.4),
    ElasticNet(0.1, 0.1),
)


@pytest.mark.parametrize("dual", IMAGE_DUALS, ids=repr)
def test_images_and_patches(dual):
    w, x, y = problem(3, 4, (2, 6, 6))
    t = adv_slope(w, x, y, dual, Logistic())
    assert adv_perturbation(w, y, dual, t).shape == x.shape
    assert adv_grad(w, x, y, dual, Logistic()).shape == x.shape
    assert expected_update(w, x, y, dual, Logistic()).shape == w.shape
    risk = adv_loss(w, x, y, dual, Logistic())
    assert torch.allclose(stable_ig_risk(w, x, y, dual, Logistic()), risk, rtol=1e-10)


def test_per_example_weights_of_a_penalty():
    w, x, y = problem(4, 5, (3,))
    weights = torch.rand(5, 3, dtype=torch.double) + 0.1
    together = adv_loss(w, x, y, WeightedL2(0.3, weights), Logistic())
    for i in range(5):
        alone = adv_loss(w, x[i : i + 1], y[i : i + 1], WeightedL2(0.3, weights[i]), Logistic())
        assert torch.allclose(together[i], alone[0], rtol=1e-13)


def test_lemma_2_needs_an_increasing_loss():
    w, x, y = torch.tensor([1.2, -0.7]), torch.tensor([[5.0, 0.0]]), torch.tensor([1])
    corners = [torch.tensor(corner) for corner in itertools.product([-0.3, 0.3], repeat=2)]
    worst = max(float(Square().g(margin(w, x + corner, y))) for corner in corners)
    assert worst - float(Square().g(margin(w, x, y) + 0.3 * w.abs().sum())) > 11  # the closed form
    for function in (adv_loss, adv_grad, adv_slope):
        with pytest.raises(ValueError, match=r"loss=Square\(\).*LOSS-INC.*margins -6"):
            function(w, x, y, 0.3, Square())
    rising_side = adv_loss(w, -x, y, 0.3, Square())  # no margin in reach is below -1
    assert float(rising_side) == pytest.approx(float(Square().g(torch.tensor(6.57))))


@pytest.mark.parametrize("function", [adv_loss, adv_grad, stable_ig_risk, adv_slope])
def test_inputs_are_left_alone(function):
    w, x, y = problem(0)
    w.requires_grad_()
    before = w.detach().clone(), x.clone(), y.clone()
    function(w, x, y, ElasticNet(0.1, 0.1), Logistic())
    assert w.grad is None
    for old, new in zip(before, (w.detach(), x, y)):
        assert torch.equal(old, new)


# ---- Lemma 1 and Theorem 3.1


def block(generator, k, m=3):
    values = random(generator, m, k)
    return values, torch.rand(m, generator=generator, dtype=torch.double).softmax(0)


def joint(*blocks):
    x, p = blocks[0]
    for values, probs in blocks[1:]:
        x = torch.cat([x.repeat_interleave(len(values), 0), values.repeat(len(x), 1)], 1)
        p = torch.kron(p, probs)
    return x, p


def dist(generator, *sizes):
    "Blocks independent given y, dependent inside; a random prior."
    prior = float(torch.rand((), generator=generator)) * 0.8 + 0.1
    x_pos, p_pos = joint(*[block(generator, k) for k in sizes])
    x_neg, p_neg = joint(*[block(generator, k) for k in sizes])
    y = torch.tensor([1, -1]).repeat_interleave(len(p_pos))
    return torch.cat([x_pos, x_neg]), y, torch.cat([prior * p_pos, (1 - prior) * p_neg])


@SETTINGS
@given(seeds)
def test_feat_trans(seed):
    x0, y, p = dist(torch.Generator().manual_seed(seed), 2, 1)
    x, c = feat_trans(x0, y, p)
    a = directed_strength(x, y, p)
    for sign in (1, -1):
        rows = y == sign
        assert torch.allclose((p[rows] / p[rows].sum()) @ x[rows], sign * a, atol=1e-13)
    assert is_feat_trans(x, y, p)
    assert torch.allclose(x + c, x0, atol=1e-13)
    _, again = feat_trans(x, y, p)
    assert torch.allclose(again, torch.zeros(3, dtype=torch.double), atol=1e-13)
    assert torch.allclose(feat_trans(x0 + 5, y, p)[0], x, atol=1e-12)  # a shift changes nothing
    assert torch.allclose(feat_trans(x0, -y, p)[0], x, atol=1e-13)  # nor do mirrored labels


@SETTINGS
@given(seeds, losses, st.floats(0, 1.5))
def test_theorem_3_1(seed, loss, eps):
    generator = torch.Generator().manual_seed(seed)
    x0, y, p = dist(generator, 2, 2)
    x, _ = feat_trans(x0, y, p)
    a = directed_strength(x, y, p)
    w = random(generator, 4)
    S = [0, 1]

    without = w * torch.tensor([0, 0, 1, 1])
    update = expected_update(without, x, y, eps, loss, p)
    part_1 = mean_slope(without, x, y, eps, loss, p) * a
    assert torch.allclose(update[S], part_1[S], atol=1e-13)

    for some in (w, w * torch.tensor([0, 1, 1, 1])):  # part 2, also with one weight of S at 0
        left = weighted_average(some, expected_update(some, x, y, eps, loss, p), S)
        slope = mean_slope(some, x, y, eps, loss, p)
        assert left <= slope * (weighted_average(some, a, S) - eps) + 1e-13
        for dual in (L2Ball(eps), L1Ball(eps), GroupBall(eps, groups=torch.tensor([0, 1, 1, 2]))):
            left = weighted_average(some, expected_update(some, x, y, dual, loss, p), S)
            assert left <= update_bound(some, x, y, dual, loss, S, p) + 1e-13

    leaf = w.clone().requires_grad_()  # against autograd through the mean loss
    (p @ adv_loss(leaf, x, y, eps, loss)).backward()
    assert torch.allclose(expected_update(w, x, y, eps, loss, p), -leaf.grad, atol=1e-12)


def bound_gap(w, x, y, p, eps, loss, S):
    "Right minus left side of Theorem 3.1, part 2."
    left = weighted_average(w, expected_update(w, x, y, eps, loss, p), S)
    return float(update_bound(w, x, y, eps, loss, S, p) - left)


def test_theorem_3_1_is_tight_in_the_limit():
    generator = torch.Generator().manual_seed(1)
    x, y, p = dist(generator, 2, 2)
    x, _ = feat_trans(x, y, p)
    w = random(generator, 4)
    gaps = []
    for k in range(7):
        small = torch.tensor([10.0**-k, 10.0**-k, 1, 1], dtype=torch.double)
        gaps.append(bound_gap(w * small, x, y, p, 0.3, Logistic(), [0, 1]))
    assert all(0 < after < 0.2 * before for before, after in itertools.pairwise(gaps))


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-9])
def test_theorem_3_1_keeps_a_gap_where_the_limit_is_a_kink(scale):
    "All rows arrive at the kink of the hinge as the weight of the coin, feature 0, goes to 0."
    x = torch.tensor([[1.0, 1.25], [-1.0, 1.25], [1.0, -1.25], [-1.0, -1.25]]).double()
    y = torch.tensor([1, 1, -1, -1])
    w = torch.tensor([scale, 1.0], dtype=torch.double)
    assert abs(bound_gap(w, x, y, None, 0.25, Hinge(), [0]) - 0.5) < 1e-6
    assert bound_gap(w, x, y, None, 0.25, SoftplusHinge(), [0]) < 0.3 * scale


@pytest.mark.parametrize(
    "dropped, least", [("FEAT-TRANS", 0.05), ("independence", 0.1), ("LOSS-CVX", 0.03)]
)
def test_theorem_3_1_fails_without(dropped, least):
    generator = torch.Generator().manual_seed(5)
    S = [0] if dropped == "independence" else [0, 1]
    worst = 0.0
    for i in range(60):
        x, y, p = dist(generator, 2, 2)
        x = x + 2 if dropped == "FEAT-TRANS" else feat_trans(x, y, p)[0]
        loss = Ramp() if dropped == "LOSS-CVX" else LOSSES[i % 3]
        w = random(generator, 4)
        assert is_cond_independent(x, y, S, p) == (dropped != "independence")
        assert is_feat_trans(x, y, p) == (dropped != "FEAT-TRANS")
        worst = max(worst, -bound_gap(w, x, y, p, 0.2, loss, S))
    assert worst > least


@SETTINGS
@given(seeds, st.integers(1, 9), st.sampled_from([1e-9, 1.0, 1e9]))
def test_weighted_average(seed, d, scale):
    generator = torch.Generator().manual_seed(seed)
    w = random(generator, d)
    q = random(generator, d)
    S = torch.rand(d, generator=generator) < 0.5
    S[0] = True
    average = weighted_average(w, q, S)
    assert average.abs() <= q[S].abs().max() + 1e-12
    expected = (w[S].abs() * w[S].sign() * q[S]).sum() / w[S].abs().sum()
    assert torch.isclose(average, expected, rtol=1e-10, atol=1e-14)
    assert torch.isclose(weighted_average(scale * w, q, S), average)
    assert torch.isclose(weighted_average(-w, q, S), -average)
    assert torch.equal(weighted_average(w, q, S.nonzero().squeeze(1).tolist()), average)


def test_expected_update_of_equal_rows_and_of_repeated_rows():
    w, x, y = problem(6)
    twice = expected_update(w, torch.cat([x, x[:1]]), torch.cat([y, y[:1]]), 0.2, Logistic())
    p = torch.tensor([2.0, 1, 1, 1, 1], dtype=torch.double) / 6
    assert torch.allclose(expected_update(w, x, y, 0.2, Logistic(), p), twice, atol=1e-14)


def test_confidence_interval():
    w, x, y = problem(7, 400, (4,))
    mean, half = expected_update_ci(w, x, y, 0.2, Logistic(), level=0.9)
    updates = -adv_grad(w, x, y, 0.2, Logistic()).numpy()
    low, high = stats.t.interval(0.9, 399, loc=updates.mean(0), scale=stats.sem(updates))
    np.testing.assert_allclose(mean - half, low, rtol=1e-10)
    np.testing.assert_allclose(mean + half, high, rtol=1e-10)


# ---- Lemma 4.1

mp.dps = 60
BY_MPMATH = {
    torch.sigmoid: lambda t: 1 / (1 + mp.exp(-t)),
    torch.exp: mp.exp,
    torch.tanh: mp.tanh,
    Logistic(): lambda t: mp.log(1 + mp.exp(t)),
    torch.sin: mp.sin,
}
STEPS = [10.0, 3.0, 1.0, 0.3, *(10.0**-k for k in range(1, 17)), 1e-20, 1e-100, 1e-300, 0.0]


@pytest.mark.parametrize("act", BY_MPMATH, ids=lambda a: getattr(a, "__name__", repr(a)))
@pytest.mark.parametrize("b", [0.0, -1.3, 2.5, -20.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_linear_ig_to_the_last_digits(act, b, sign):
    "<x-u, w> from 10 down to 0 against 60 digits; x - u itself stays of order 1."
    A = BY_MPMATH[act]
    w = torch.tensor([1.0, -1.0], dtype=torch.double)
    x = torch.tensor([[1 + sign * step, 1.0] for step in STEPS], dtype=torch.double)
    slopes = -linear_ig(act, w, x, 0.0, b)[:, 1]
    for row, slope in zip(x, slopes):
        D = mp.mpf(float(row[0])) - 1
        true = (A(b + D) - A(mp.mpf(b))) / D if D else mp.diff(A, b)
        noise = 2.0**-51 * abs(A(mp.mpf(b))) / max(abs(D), 1)  # a long step is no better than A
        error = abs(mp.mpf(float(slope)) - true)
        assert error <= 3e-14 * abs(true) + noise, (float(D), float(slope), float(true))


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1.0, 1e3, 1e8])
@pytest.mark.parametrize("step", [100.0, 1.0, 1e-4, 1e-9, 0.0])
def test_linear_ig_knows_no_scale(scale, step):
    "A(z) = sigmoid(scale*z), with steps from far above to far below 1/scale."
    x = torch.tensor([[step / scale, 1.0]], dtype=torch.double)
    w = torch.tensor([1.0, 0.0], dtype=torch.double)
    z = mp.mpf(float(x[0, 0])) * scale
    true = 1 / (1 + mp.exp(-z)) - mp.mpf(".5")
    ours = mp.mpf(float(linear_ig(lambda z: torch.sigmoid(scale * z), w, x, 0.0)[0, 0]))
    assert abs(ours - true) <= 1e-13 * abs(true)


@pytest.mark.parametrize("step", [1.0, 1e-3, 1e-8, 1e-12])
@pytest.mark.parametrize("act, kink", [(torch.relu, 0.0), (Hinge(), -1.0)], ids=["relu", "hinge"])
def test_linear_ig_over_a_kink(act, kink, step):
    "A step over the kink, 3/4 of it on the flat side: mean slope 1/4."
    w = torch.ones(1, dtype=torch.double)
    x = torch.tensor([[step / 4]], dtype=torch.double)
    slope = float(linear_ig(act, w, x, -3 * step / 4, kink)[0, 0] / step)
    assert abs(slope - 0.25) < max(1e-12, 4e-16 / step)


def test_linear_ig_without_a_step_and_on_the_flat_side():
    w = torch.ones(1, dtype=torch.double)
    x = torch.tensor([[0.25]], dtype=torch.double)
    assert linear_ig(torch.relu, w, x, x) == 0
    assert linear_ig(torch.relu, w, -x, -2 * x) == 0


@SETTINGS
@given(
    seeds,
    dims,
    st.sampled_from([torch.float32, torch.float64]),
    st.sampled_from([1e-6, 1e-3, 1.0]),
    st.integers(0, 4),
)
def test_linear_ig_is_complete(seed, d, dtype, scale, B):
    w, x, _ = problem(seed, B, (d,), dtype, scale)
    for u in (0.0, x[0] if B else 0.0, torch.zeros(1, d, dtype=dtype), 0.5 * x):
        ig = linear_ig(torch.sigmoid, w, x, u, 0.3)
        assert ig.shape == x.shape
        assert ig.dtype == dtype
        start = (torch.as_tensor(u, dtype=dtype).expand_as(x) * w).sum(1) + 0.3
        gap = (ig.sum(1) - torch.sigmoid(x @ w + 0.3) + torch.sigmoid(start)).abs()
        assert (gap <= 40 * torch.finfo(dtype).eps * (1 + (x.abs() @ w.abs()))).all()


def test_linear_ig_weights_per_example_images_and_gradient():
    w, x, _ = problem(8, 4, (2, 3, 3))
    u = torch.rand(3, 3, dtype=torch.double)
    weights = torch.stack([w * (i + 1) for i in range(4)])
    together = linear_ig(torch.tanh, weights, x, u, 0.1 * torch.arange(4))
    for i in range(4):
        alone = linear_ig(torch.tanh, weights[i], x[i : i + 1], u, 0.1 * i)
        assert torch.allclose(together[i], alone[0], atol=1e-14)
    near = x.clone()
    near[0] = u  # one row on the baseline itself
    assert torch.autograd.gradcheck(
        lambda w, x: linear_ig(torch.tanh, w, x, u),
        (w.clone().requires_grad_(), near.requires_grad_()),
    )


def test_linear_ig_of_a_loss_is_that_of_captum():
    captum = pytest.importorskip("captum.attr")
    w, x, y = problem(9, 20, (5,))
    method = captum.IntegratedGradients(lambda x, y: Logistic().g(margin(w, x, y, 0.2)))
    theirs = method.attribute(x, 0 * x, additional_forward_args=y, n_steps=100)
    ours = linear_ig(Logistic(), -y[:, None] * w, x, 0.0, -0.2 * y)
    assert torch.allclose(ours, theirs, atol=1e-7)  # captum keeps its weights in float32


@SETTINGS
@given(
    seeds, st.integers(2, 200), st.sampled_from([torch.sigmoid, torch.tanh, Logistic(), torch.exp])
)
def test_gini_of_ig_is_the_gini_of_w_times_x(seed, d, act):
    gini = pytest.importorskip("advinterp.metrics").gini
    w, x, _ = problem(seed, 6, (d,), scale=d**-0.5)
    u = random(torch.Generator().manual_seed(seed), d)
    assert torch.allclose(gini(linear_ig(act, w, x, u, 0.3)), gini(w * (x - u)), atol=1e-12)


def test_feature_impact():
    maps = torch.tensor([[1.0, -2, 0, 4], [3, 0, -1, 0]])
    by_column = torch.tensor([2.0, 1, 0.5, 2])
    assert torch.equal(feature_value_impact(maps), by_column)
    assert torch.equal(feature_impact(maps, [0, 1, 2, 3]), by_column)
    by_feature = torch.tensor([3.0, 2, 0.5])
    assert torch.equal(feature_impact(maps, torch.tensor([0, 0, 2, 1])), by_feature)


# ---- Theorem 5.1


@SETTINGS
@given(seeds, st.integers(0, N_DUALS - 1), losses, st.floats(-3, 3))
def test_theorem_5_1(seed, k, loss, b):
    w, x, y = problem(seed, 6, (7,))
    dual = all_duals(7)[k]
    risk = stable_ig_risk(w, x, y, dual, loss, b)
    assert torch.allclose(risk, adv_loss(w, x, y, dual, loss, b), rtol=1e-9, atol=1e-9)


def square_grid(side):
    return torch.cartesian_prod(*[torch.linspace(-1, 1, side, dtype=torch.double)] * 2)


@settings(SETTINGS, max_examples=15)
@given(seeds, losses, st.floats(0.01, 2))
def test_theorem_5_1_against_brute_force(seed, loss, eps):
    w, x, y = problem(seed, 3, (2,))
    v = -y[:, None] * w
    deltas = eps * square_grid(5)
    best = torch.stack([linear_ig(loss, v, x + d, x).abs().sum(1) for d in deltas]).amax(0)
    brute = loss.g(margin(w, x, y)) + best
    assert torch.allclose(brute, stable_ig_risk(w, x, y, eps, loss), rtol=1e-10, atol=1e-12)


@settings(SETTINGS, max_examples=15)
@given(seeds, losses, st.floats(0.01, 2), st.floats(-2, 2))
def test_theorem_5_1_bounds_the_change_seen_from_a_fixed_baseline(seed, loss, eps, baseline):
    "Equation 16 of the paper is at least equation 17, and here and there several times as much."
    w, x, y = problem(seed, 3, (2,))
    v = -y[:, None] * w
    seen = [
        linear_ig(loss, v, x + d, baseline) - linear_ig(loss, v, x, baseline)
        for d in eps * square_grid(5)
    ]
    change = torch.stack([maps.abs().sum(1) for maps in seen]).amax(0)
    between = stable_ig_risk(w, x, y, eps, loss) - loss.g(margin(w, x, y))
    assert (change >= between - 1e-10 * (1 + between)).all()


class Ellipse(Dual):
    M = torch.tensor([[1.0, 0.95], [0.95, 1.0]], dtype=torch.double)

    def h_star(self, g):
        return ((g @ self.M) * g).sum(1).sqrt()

    @classmethod
    def boundary(cls, n):
        "`n` points on the boundary of the ball."
        angle = torch.linspace(0, 2 * math.pi, n, dtype=torch.double)
        circle = torch.stack([angle.cos(), angle.sin()], 1)
        return circle @ torch.linalg.cholesky(cls.M).T


@pytest.mark.parametrize(
    "dual, loss, deltas, excess, message",
    [
        (1.0, Ramp(), square_grid(21), 1.5, "convex"),
        (Ellipse(), Logistic(), Ellipse.boundary(181), 5, "absolute"),
    ],
    ids=["not convex", "not absolute"],
)
def test_theorem_5_1_fails_and_is_refused_without(dual, loss, deltas, excess, message):
    w = torch.tensor([6.0, -4.0], dtype=torch.double)
    x = torch.zeros(1, 2, dtype=torch.double)
    y = torch.tensor([1])
    largest = max(linear_ig(loss, -w, x + d, x).abs().sum() for d in deltas)
    risk = float(largest + loss.g(margin(w, x, y)))
    assert risk - float(adv_loss(w, x, y, dual, loss)) > excess
    with pytest.raises(ValueError, match=message):
        stable_ig_risk(w, x, y, dual, loss)


def test_user_defined_dual():
    "Lemmas 2 and 3 hold for a norm that is not absolute, given by h_star alone."
    w, x, y = problem(10, 5, (2,), zeros=False)
    reach = (-y[:, None] * w) @ Ellipse.boundary(20001).T
    best = Logistic().g(margin(w, x, y)[:, None] + reach).amax(1)
    assert torch.allclose(adv_loss(w, x, y, Ellipse(), Logistic()), best, atol=1e-6)


def test_dual_without_a_quadratic_form_is_refused():
    class Cubic(Dual):
        def h_star(self, g):
            return g.abs().pow(3).sum(1)

    w, x, y = problem(10, 5, (2,), zeros=False)
    with pytest.raises(ValueError, match="linear-quadratic"):
        adv_loss(w, x, y, Cubic(), Logistic())


# ---- more than two classes


@SETTINGS
@given(seeds, losses, st.integers(2, 5), st.floats(0, 1))
def test_ova(seed, loss, k, eps):
    generator = torch.Generator().manual_seed(seed)
    W = random(generator, k, 3)
    x = random(generator, 6, 3)
    b = random(generator, k)
    y = torch.randint(k, (6,), generator=generator)
    signs = 2.0 * torch.nn.functional.one_hot(y, k) - 1
    corners = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=3)), dtype=torch.double)
    values = torch.stack([loss.g(-signs * ((x + eps * c) @ W.T + b)) for c in corners])
    risk = ova_adv_loss(W, x, y, eps, loss, b)
    assert torch.allclose(risk, values.amax(0).sum(1), atol=1e-11)
    assert (values.sum(2).amax(0) <= risk + 1e-11).all()

    mirrored = torch.stack([W[0], -W[0]])
    twice = 2 * adv_loss(W[0], x, 1 - 2 * (y % 2), eps, loss)
    assert torch.allclose(ova_adv_loss(mirrored, x, y % 2, eps, loss), twice, atol=1e-12)


# ---- bad input

w, x, y = torch.ones(3), torch.ones(4, 3), torch.tensor([1, -1, 1, 1])
L = Logistic()
PENALTY = ElasticNet(0.1, 0.1)
NEGATIVE = torch.tensor([-1.0, 1, 0.5, 0.5])
ZERO_ONE = (y + 1) // 2
LABELS = r"expected labels -1 and \+1"
BAD = [
    # name, call, exception, message
    ("loss 0/1", lambda: adv_loss(w, x, ZERO_ONE, 0.1, L), ValueError, r"y holds \[0, 1\]"),
    ("gradient 0/1", lambda: adv_grad(w, x, ZERO_ONE, 0.1, L), ValueError, LABELS),
    ("delta 0/1", lambda: adv_perturbation(w, ZERO_ONE, 0.1), ValueError, LABELS),
    ("strength 0/1", lambda: directed_strength(x, ZERO_ONE), ValueError, LABELS),
    ("update 0/1", lambda: expected_update(w, x, ZERO_ONE, 0.1, L), ValueError, LABELS),
    ("stable 0/1", lambda: stable_ig_risk(w, x, ZERO_ONE, 0.1, L), ValueError, LABELS),
    ("label nan", lambda: adv_loss(w, x, y * math.nan, 0.1, L), ValueError, LABELS),
    ("labels bool", lambda: adv_loss(w, x, y > 0, 0.1, L), TypeError, "y is torch.bool"),
    ("labels list", lambda: adv_loss(w, x, [1, 1, 1, 1], 0.1, L), TypeError, "y is list"),
    ("labels shape", lambda: adv_loss(w, x, y[:, None], 0.1, L), ValueError, r"shape \(4, 1\)"),
    ("one label", lambda: feat_trans(x, torch.ones(4)), ValueError, "expected both labels"),
    ("eps < 0", lambda: adv_loss(w, x, y, -0.1, L), ValueError, "eps=-0.1"),
    ("eps nan", lambda: adv_grad(w, x, y, math.nan, L), ValueError, "eps=nan"),
    ("eps inf", lambda: adv_perturbation(w, y, math.inf), ValueError, "eps=inf"),
    ("eps str", lambda: adv_loss(w, x, y, ".1", L), TypeError, "eps"),
    ("x integer", lambda: adv_loss(w, x.long(), y, 0.1, L), TypeError, r"x.float\(\)"),
    ("w integer", lambda: adv_perturbation(w.long(), y, 0.1), TypeError, r"w.float\(\)"),
    ("w shape", lambda: adv_loss(w[:2], x, y, 0.1, L), ValueError, r"\(2,\): expected \(3,\)"),
    ("dtypes", lambda: adv_loss(w.double(), x, y, 0.1, L), ValueError, "expected one dtype"),
    ("loss class", lambda: adv_loss(w, x, y, 0.1, Logistic), TypeError, "expected a MarginLoss"),
    ("loss str", lambda: expected_update(w, x, y, 0.1, "hinge"), TypeError, "a MarginLoss"),
    ("unbounded slope", lambda: adv_loss(w, x, y, PENALTY, Exp()), ValueError, "loss=Exp"),
    ("penalty's delta", lambda: adv_perturbation(w, y, PENALTY), ValueError, "adv_slope"),
    ("penalty's bound", lambda: update_bound(w, x, y, PENALTY, L, [0]), ValueError, "ElasticNet"),
    ("p sum", lambda: expected_update(w, x, y, 0.1, L, torch.ones(4)), ValueError, "sum 1"),
    ("p negative", lambda: mean_slope(w, x, y, 0.1, L, NEGATIVE), ValueError, ">= 0"),
    ("p shape", lambda: expected_update(w, x, y, 0.1, L, w / 3), ValueError, r"p has shape \(3,\)"),
    ("no rows", lambda: expected_update(w, x[:0], y[:0], 0.1, L), ValueError, "at least one"),
    ("S beyond", lambda: weighted_average(w, w, [3]), ValueError, r"S=\[3\]: .* features in 0..2"),
    ("S empty", lambda: weighted_average(w, w, []), ValueError, "at least one"),
    ("S all zero", lambda: weighted_average(0 * w, w, [0]), ValueError, "part 1"),
    ("q shape", lambda: weighted_average(w, w[:2], [0]), ValueError, "q has shape"),
    ("level", lambda: expected_update_ci(w, x, y, 0.1, L, level=95), ValueError, "level=95"),
    ("one row", lambda: expected_update_ci(w, x[:1], y[:1], 0.1, L), ValueError, "at least 2"),
    ("baseline", lambda: linear_ig(L, w, x, torch.ones(2)), ValueError, r"u has shape \(2,\)"),
    ("activation", lambda: linear_ig(torch.sum, w, x, 0.0), ValueError, "elementwise"),
    ("ig weights", lambda: linear_ig(L, w[:2], x, 0.0), ValueError, r"w has shape \(2,\)"),
    ("ig integer", lambda: linear_ig(L, w, x.long(), 0.0), TypeError, r"x.float\(\)"),
    ("classes", lambda: ova_adv_loss(x[:2], x, y + 1, 0.1, L), ValueError, "class indices 0..1"),
    ("groups", lambda: feature_impact(x, torch.tensor([0, 1])), ValueError, r"groups has shape"),
    ("impact of nothing", lambda: feature_value_impact(x[:0]), ValueError, "at least one"),
]


@pytest.mark.parametrize("name, call, exc, match", BAD, ids=[name for name, *_ in BAD])
def test_bad_input(name, call, exc, match):
    with pytest.raises(exc, match=match):
        call()


@pytest.mark.parametrize("k", range(N_DUALS))
def test_empty_batches_return_empty(k):
    dual = all_duals(3)[k]
    w = torch.ones(3).double()
    x = torch.ones(0, 3).double()
    y = torch.ones(0)
    slope = torch.ones(0).double()
    for function in (adv_loss, adv_slope, stable_ig_risk):
        assert function(w, x, y, dual, L).shape == (0,)
    assert adv_grad(w, x, y, dual, L).shape == (0, 3)
    assert adv_perturbation(w, y, dual, slope).shape == (0, 3)
    assert linear_ig(L, w, x, 0.0).shape == (0, 3)
    assert ova_adv_loss(torch.ones(2, 3).double(), x, y.long(), dual, L).shape == (0,)


def test_a_loss_derived_from_another_has_its_own_slope():
    class Twice(Logistic):
        def g(self, z):
            return 2 * super().g(z)

    z = torch.linspace(-3, 3, 13).double()
    torch.testing.assert_close(Twice().dg(z), 2 * Logistic().dg(z))
