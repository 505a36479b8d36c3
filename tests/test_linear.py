"Property sweeps for the one-layer theory: every closed form against a route of its own, every theorem with and without its assumptions."

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp

from advinterp.core import flat
from advinterp.duals import Dual, ElasticNet, GroupBall, L1Ball, L2Ball, LInfBall, WeightedL2
from advinterp.linear import *
from advinterp.linear import MarginLoss

LOSSES = Logistic(), Hinge(), SoftplusHinge()
SETTINGS = settings(deadline=None, max_examples=40, derandomize=True)
seeds, losses = st.integers(0, 2**31), st.sampled_from(LOSSES)
dims = st.sampled_from([1, 2, 3, 7, 64, 513, 4096])
scales = st.sampled_from([1e-6, 1e-2, 1.0, 30.0])


class Ramp(MarginLoss):
    def g(self, z):
        return torch.sigmoid(z)


class Exp(MarginLoss):
    def g(self, z):
        return z.exp()


def problem(seed, B=5, shape=(7,), dtype=torch.double, scale=1.0, zeros=True):
    "Random weights with some exact zeros and ties, rows, labels."
    g = torch.Generator().manual_seed(seed)
    w, x = (
        torch.randn(shape, generator=g, dtype=torch.double) * scale,
        torch.randn(B, *shape, generator=g, dtype=torch.double),
    )
    if zeros:
        w = torch.where(torch.rand(shape, generator=g) < 0.2, 0.0, w)
    if w.numel() > 2:
        w.view(-1)[1] = -w.view(-1)[0]
    return w.to(dtype), x.to(dtype), torch.randint(2, (B,), generator=g) * 2 - 1


def all_duals(d, eps=0.3):
    groups, weight = torch.arange(d) // 3, torch.linspace(0.1, 2, d, dtype=torch.double)
    return [
        eps,
        LInfBall(eps),
        L2Ball(eps),
        L1Ball(eps),
        GroupBall(eps, groups=groups),
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
    assert is_loss_inc(loss) and is_loss_cvx(loss) and is_loss_cvx(loss, -1e4, 1e4)
    z = torch.linspace(-800, 800, 3201, dtype=torch.double)
    assert torch.allclose(loss.dg(z), MarginLoss.dg(loss, z), atol=1e-14)
    ref = {
        Logistic: np.logaddexp(0, z),
        Hinge: np.maximum(0, 1 + z),
        SoftplusHinge: np.logaddexp(0, 1 + z),
    }[type(loss)]
    np.testing.assert_allclose(loss.g(z), ref, rtol=1e-13, atol=1e-320)  # also where exp is tiny
    assert loss.g(z[:0]).shape == (0,)


def test_predicates_refute():
    assert (
        is_loss_inc(Ramp())
        and not is_loss_cvx(Ramp())
        and not is_loss_inc(type("Sq", (MarginLoss,), dict(g=lambda s, z: z**2))())
    )


def test_hinge_kink_is_zero():
    assert (
        Hinge().dg(torch.tensor([-1.0]))[0] == 0
        and MarginLoss.dg(Hinge(), torch.tensor([-1.0]))[0] == 0
    )


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
    L, delta, grad = (
        adv_loss(w, x, y, eps, loss, 0.5),
        adv_perturbation(w, y, eps),
        adv_grad(w, x, y, eps, loss, 0.5),
    )
    assert (L.shape, delta.shape, grad.shape) == (
        (B,),
        (B, d),
        (B, d),
    ) and L.dtype == delta.dtype == grad.dtype == dtype
    if dtype == torch.bfloat16:
        return  # shapes and dtypes; values below
    wn, xn, yn = w.double().numpy(), x.double().numpy(), y.numpy()
    np.testing.assert_allclose(
        delta, -yn[:, None] * np.sign(wn) * eps, rtol=1e-6, atol=0
    )  # equation (7)
    z = torch.tensor(eps * np.abs(wn).sum() - yn * (xn @ wn + 0.5))
    size = 1 + np.abs(xn) @ np.abs(wn) + eps * np.abs(wn).sum()  # what rounding is relative to
    tol = 20 * torch.finfo(dtype).eps * size
    assert (np.abs(L.double().numpy() - loss.g(z).numpy()) <= tol).all()  # equation (8)
    if isinstance(loss, Hinge) and ((z + 1).abs() <= torch.tensor(tol)).any():
        return  # rounding may fall on either side of the kink
    ref = -loss.dg(z).numpy()[:, None] * (yn[:, None] * xn - np.sign(wn) * eps)  # equation (9)
    assert (
        np.abs(grad.double().numpy() - ref)
        <= (tol[:, None] + 1e-6 * (dtype == torch.float32)) * (np.abs(ref) + np.abs(xn) + eps)
    ).all()


@SETTINGS
@given(seeds, st.integers(1, 5), losses, st.floats(0, 2))
def test_linf_against_all_corners(seed, d, loss, eps):
    w, x, y = problem(seed, 4, (d,))
    corners = eps * torch.tensor(
        list(itertools.product([-1.0, 0, 1.0], repeat=d)), dtype=torch.double
    )
    best = torch.stack([loss.g(margin(w, x + c, y, 0.1)) for c in corners]).amax(0)
    assert torch.allclose(adv_loss(w, x, y, eps, loss, 0.1), best, rtol=1e-12, atol=1e-12)


@SETTINGS
@given(
    seeds, st.integers(0, N_DUALS - 1), losses, st.sampled_from([0.01, 1.0, 5.0]), st.floats(-3, 3)
)
def test_no_perturbation_beats_the_adversary_and_one_attains_it(seed, k, loss, scale, b):
    w, x, y = problem(seed, 6, (7,), scale=scale)
    dual = all_duals(7)[k]
    pair = LInfBall(dual) if isinstance(dual, float) else dual
    L, t = adv_loss(w, x, y, dual, loss, b), adv_slope(w, x, y, dual, loss, b)
    delta = adv_perturbation(w, y, dual, t)

    def value(d):
        try:
            h = pair.h(d)
        except NotImplementedError:
            return None
        return loss.g(margin(w, x + d, y, b)) - h

    v = -y[:, None] * w
    assert torch.allclose(
        loss.g(margin(w, x + delta, y, b))
        - (t[:, None] * v * delta).sum(1)
        + pair.h_star(t[:, None] * v),
        L,
        rtol=1e-9,
        atol=1e-9,
    )  # h by Fenchel-Young
    g = torch.Generator().manual_seed(seed)
    for r in (0.01, 0.3, 1.0, 3.0):
        d = delta * torch.rand(
            6, 1, generator=g, dtype=torch.double
        ) * 2 + r * delta.abs().amax() * torch.randn(6, 7, generator=g, dtype=torch.double) * (
            r < 3
        )
        if (val := value(d)) is not None:
            assert (val <= L + 1e-9 * (1 + L.abs())).all()
    z = margin(w, x, y, b)
    assert (
        loss.g(z) + pair.h_star(loss.dg(z)[:, None] * v) <= L + 1e-9 * (1 + L)
    ).all()  # the first-order value is a lower bound
    assert (loss.g(z + pair.h_star(v)) + 1e-9 * (1 + L) >= L).all()  # and this an upper one


@pytest.mark.parametrize("a", [-30.0, -4.01, -4.0, -3.99, -2.0, 0.0, 3.0])
@pytest.mark.parametrize("q", [1e-6, 0.5, 2.0, 2.0001, 4.0, 40.0])
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_penalty_maximum_against_a_fine_scan(a, q, loss):
    "d = 1, h = s^2/(4q): up to three stationary points for q > 2, ties at a = centre - q."
    w, x, y = (
        torch.ones(1, dtype=torch.double),
        torch.tensor([[a]], dtype=torch.double),
        torch.tensor([-1]),
    )
    s = torch.linspace(0, 2 * q + 1e-9, 2_000_001, dtype=torch.double)
    scan = (loss.g(a + s) - s**2 / (4 * q)).max()
    assert abs(float(adv_loss(w, x, y, ElasticNet(0.0, q), loss)) - float(scan)) < 1e-9 * (
        1 + float(scan)
    )


@SETTINGS
@given(seeds, st.integers(0, N_DUALS - 1), st.sampled_from([Logistic(), SoftplusHinge()]))
def test_gradient_is_autograd(seed, k, loss):
    w, x, y = problem(seed, 4, (7,), zeros=False)
    dual, v = all_duals(7)[k], w.clone().requires_grad_()
    auto = torch.stack(
        [
            torch.autograd.grad(o, v, retain_graph=True)[0]
            for o in adv_loss(v, x, y, dual, loss, 0.2)
        ]
    )
    assert torch.allclose(adv_grad(w, x, y, dual, loss, 0.2), auto, rtol=1e-8, atol=1e-9)


def test_images_and_patches():
    w, x, y = problem(3, 4, (2, 6, 6))
    for dual in (
        0.2,
        GroupBall(0.3, patch=3),
        GroupBall(0.3, patch=4),
        L2Ball(0.4),
        ElasticNet(0.1, 0.1),
    ):
        t = adv_slope(w, x, y, dual, Logistic())
        assert (
            adv_perturbation(w, y, dual, t).shape
            == adv_grad(w, x, y, dual, Logistic()).shape
            == x.shape
        )
        assert torch.allclose(
            stable_ig_risk(w, x, y, dual, Logistic()),
            adv_loss(w, x, y, dual, Logistic()),
            rtol=1e-10,
        )
        assert expected_update(w, x, y, dual, Logistic()).shape == w.shape


def test_per_example_weights_of_a_penalty():
    w, x, y = problem(4, 5, (3,))
    many = WeightedL2(0.3, torch.rand(5, 3, dtype=torch.double) + 0.1)
    one = torch.stack(
        [
            adv_loss(w, x[i : i + 1], y[i : i + 1], WeightedL2(0.3, many.weight[i]), Logistic())[0]
            for i in range(5)
        ]
    )
    assert torch.allclose(adv_loss(w, x, y, many, Logistic()), one, rtol=1e-13)


def test_lemma_2_needs_an_increasing_loss():
    sq = type("Sq", (MarginLoss,), dict(g=lambda s, z: (1 + z) ** 2))()
    w, x, y = torch.tensor([1.2, -0.7]), torch.tensor([[5.0, 0.0]]), torch.tensor([1])
    worst = max(
        float(sq.g(margin(w, x + torch.tensor(c), y)))
        for c in itertools.product([-0.3, 0.3], repeat=2)
    )
    assert worst - float(adv_loss(w, x, y, 0.3, sq)) > 11


def test_inputs_are_left_alone():
    w, x, y = problem(0)
    w.requires_grad_()
    before = w.detach().clone(), x.clone(), y.clone()
    for f in (adv_loss, adv_grad, stable_ig_risk, adv_slope):
        f(w, x, y, ElasticNet(0.1, 0.1), Logistic())
    assert w.grad is None and all(torch.equal(a, b) for a, b in zip(before, (w.detach(), x, y)))


# ---- Lemma 1 and Theorem 3.1


def block(g, k, m=3):
    return torch.randn(m, k, generator=g, dtype=torch.double), torch.rand(
        m, generator=g, dtype=torch.double
    ).softmax(0)


def joint(*blocks):
    x, p = blocks[0]
    for v, q in blocks[1:]:
        x, p = torch.cat([x.repeat_interleave(len(v), 0), v.repeat(len(x), 1)], 1), torch.kron(p, q)
    return x, p


def dist(g, *sizes):
    "Blocks independent given y, dependent inside; a random prior."
    prior = float(torch.rand((), generator=g)) * 0.8 + 0.1
    (x1, p1), (x0, p0) = (joint(*[block(g, k) for k in sizes]) for _ in range(2))
    return (
        torch.cat([x1, x0]),
        torch.tensor([1, -1]).repeat_interleave(len(p1)),
        torch.cat([prior * p1, (1 - prior) * p0]),
    )


@SETTINGS
@given(seeds)
def test_feat_trans(seed):
    g = torch.Generator().manual_seed(seed)
    x0, y, p = dist(g, 2, 1)
    x, c = feat_trans(x0, y, p)
    a = directed_strength(x, y, p)
    for s in (1, -1):
        m = y == s
        assert torch.allclose((p[m] / p[m].sum()) @ x[m], s * a, atol=1e-13)
    assert (
        is_feat_trans(x, y, p)
        and torch.allclose(feat_trans(x, y, p)[1], torch.zeros(3, dtype=torch.double), atol=1e-13)
        and torch.allclose(x + c, x0, atol=1e-13)
    )
    assert torch.allclose(feat_trans(x0 + 5, y, p)[0], x, atol=1e-12)  # a shift changes nothing
    assert torch.allclose(feat_trans(x0, -y, p)[0], x, atol=1e-13)  # nor do mirrored labels


@SETTINGS
@given(seeds, losses, st.floats(0, 1.5))
def test_theorem_3_1(seed, loss, eps):
    g = torch.Generator().manual_seed(seed)
    x0, y, p = dist(g, 2, 2)
    x, _ = feat_trans(x0, y, p)
    w, S = torch.randn(4, generator=g, dtype=torch.double), [0, 1]
    a, w0 = directed_strength(x, y, p), w * torch.tensor([0, 0, 1, 1])
    assert torch.allclose(
        expected_update(w0, x, y, eps, loss, p)[:2],
        (mean_slope(w0, x, y, eps, loss, p) * a)[:2],
        atol=1e-13,
    )  # part 1
    for ww in (w, w * torch.tensor([0, 1, 1, 1])):  # part 2, also with one weight of S at 0
        left = weighted_average(ww, expected_update(ww, x, y, eps, loss, p), S)
        assert (
            left <= mean_slope(ww, x, y, eps, loss, p) * (weighted_average(ww, a, S) - eps) + 1e-13
        )
        for dual in (L2Ball(eps), L1Ball(eps), GroupBall(eps, groups=torch.tensor([0, 1, 1, 2]))):
            assert (
                weighted_average(ww, expected_update(ww, x, y, dual, loss, p), S)
                <= update_bound(ww, x, y, dual, loss, S, p) + 1e-13
            )
    i = int(torch.randint(4, (), generator=g))
    q = expected_update(w, x, y, eps, loss, p)  # against autograd through the mean loss
    v = w.clone().requires_grad_()
    (p @ adv_loss(v, x, y, eps, loss)).backward()
    assert torch.allclose(q, -v.grad, atol=1e-12)


def test_theorem_3_1_is_tight_in_the_limit():
    g = torch.Generator().manual_seed(1)
    x, y, p = dist(g, 2, 2)
    x, _ = feat_trans(x, y, p)
    w = torch.randn(4, generator=g, dtype=torch.double)

    def gap(t):
        ww = w * torch.tensor([t, t, 1, 1], dtype=torch.double)
        return float(
            update_bound(ww, x, y, 0.3, Logistic(), [0, 1], p)
            - weighted_average(ww, expected_update(ww, x, y, 0.3, Logistic(), p), [0, 1])
        )

    gaps = [gap(10.0**-k) for k in range(7)]
    assert all(0 < b < 0.2 * a for a, b in zip(gaps, gaps[1:]))


@pytest.mark.parametrize(
    "dropped, least", [("FEAT-TRANS", 0.05), ("independence", 0.1), ("LOSS-CVX", 0.03)]
)
def test_theorem_3_1_fails_without(dropped, least):
    g, worst = torch.Generator().manual_seed(5), 0.0
    for i in range(60):
        x, y, p = dist(g, 2, 2)
        x = x + 2 if dropped == "FEAT-TRANS" else feat_trans(x, y, p)[0]
        loss, S, w = (
            Ramp() if dropped == "LOSS-CVX" else LOSSES[i % 3],
            [0] if dropped == "independence" else [0, 1],
            torch.randn(4, generator=g, dtype=torch.double),
        )
        assert is_cond_independent(x, y, S, p) == (dropped != "independence") and is_feat_trans(
            x, y, p
        ) == (dropped != "FEAT-TRANS")
        worst = max(
            worst,
            float(
                weighted_average(w, expected_update(w, x, y, 0.2, loss, p), S)
                - update_bound(w, x, y, 0.2, loss, S, p)
            ),
        )
    assert worst > least


@SETTINGS
@given(seeds, st.integers(1, 9), st.sampled_from([1e-9, 1.0, 1e9]))
def test_weighted_average(seed, d, scale):
    g = torch.Generator().manual_seed(seed)
    w, q = (
        torch.randn(d, generator=g, dtype=torch.double),
        torch.randn(d, generator=g, dtype=torch.double),
    )
    S = torch.rand(d, generator=g) < 0.5
    S[0] = True
    a = weighted_average(w, q, S)
    assert a.abs() <= q[S].abs().max() + 1e-12
    assert torch.isclose(
        a, (w[S].abs() * w[S].sign() * q[S]).sum() / w[S].abs().sum(), rtol=1e-10, atol=1e-14
    )
    assert torch.isclose(weighted_average(scale * w, q, S), a) and torch.isclose(
        weighted_average(-w, q, S), -a
    )
    assert torch.equal(weighted_average(w, q, S.nonzero().squeeze(1).tolist()), a)


def test_expected_update_of_equal_rows_and_of_repeated_rows():
    w, x, y = problem(6)
    twice = expected_update(w, torch.cat([x, x[:1]]), torch.cat([y, y[:1]]), 0.2, Logistic())
    p = torch.tensor([2.0, 1, 1, 1, 1], dtype=torch.double) / 6
    assert torch.allclose(expected_update(w, x, y, 0.2, Logistic(), p), twice, atol=1e-14)


def test_confidence_interval():
    w, x, y = problem(7, 400, (4,))
    mean, half = expected_update_ci(w, x, y, 0.2, Logistic(), level=0.9)
    from scipy import stats

    u = -adv_grad(w, x, y, 0.2, Logistic()).numpy()
    lo, hi = stats.t.interval(0.9, 399, loc=u.mean(0), scale=stats.sem(u))
    (
        np.testing.assert_allclose(mean - half, lo, rtol=1e-10),
        np.testing.assert_allclose(mean + half, hi, rtol=1e-10),
    )


# ---- Lemma 4.1

mp.dps = 60
MP = {
    torch.sigmoid: lambda t: 1 / (1 + mp.exp(-t)),
    torch.exp: mp.exp,
    torch.tanh: mp.tanh,
    Logistic(): lambda t: mp.log(1 + mp.exp(t)),
    torch.sin: mp.sin,
}
sweep = [10.0, 3.0, 1.0, 0.3, *(10.0**-k for k in range(1, 17)), 1e-20, 1e-100, 1e-300, 0.0]


@pytest.mark.parametrize("act", MP, ids=lambda a: getattr(a, "__name__", repr(a)))
@pytest.mark.parametrize("b", [0.0, -1.3, 2.5, -20.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_linear_ig_to_the_last_digits(act, b, sign):
    "<x-u, w> from 10 down to 0 against 60 digits; x - u itself stays of order 1."
    A, w = MP[act], torch.tensor([1.0, -1.0], dtype=torch.double)
    x = torch.stack([torch.tensor([1 + sign * e, 1.0], dtype=torch.double) for e in sweep])
    ours = -linear_ig(act, w, x, 0.0, b)[:, 1]
    for row, s in zip(x, ours):
        D = mp.mpf(float(row[0])) - 1
        true = (A(b + D) - A(mp.mpf(b))) / D if D else mp.diff(A, b)
        noise = (
            2.0**-51 * abs(A(mp.mpf(b))) / max(abs(D), 1)
        )  # a long step cannot be better than A itself
        assert abs(mp.mpf(float(s)) - true) <= 3e-14 * abs(true) + noise, (
            float(D),
            float(s),
            float(true),
        )


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1.0, 1e3, 1e8])
def test_linear_ig_knows_no_scale(scale):
    "A(z) = sigmoid(scale*z), with steps from far above to far below 1/scale."
    for e in (100.0, 1.0, 1e-4, 1e-9, 0.0):
        x, w = (
            torch.tensor([[e / scale, 1.0]], dtype=torch.double),
            torch.tensor([1.0, 0.0], dtype=torch.double),
        )
        z = mp.mpf(float(x[0, 0])) * scale
        true = 1 / (1 + mp.exp(-z)) - mp.mpf(".5")
        ours = mp.mpf(float(linear_ig(lambda z: torch.sigmoid(scale * z), w, x, 0.0)[0, 0]))
        assert abs(ours - true) <= 1e-13 * abs(true)


@pytest.mark.parametrize("e", [1.0, 1e-3, 1e-8, 1e-12])
def test_linear_ig_at_kinks(e):
    "A step over the kink of the hinge and of relu, 3/4 of it on the flat side: mean slope 1/4."
    w, x = torch.ones(1, dtype=torch.double), torch.tensor([[e / 4]], dtype=torch.double)
    for act, b in ((torch.relu, 0.0), (Hinge(), -1.0)):
        s = float(linear_ig(act, w, x, -3 * e / 4, b)[0, 0] / e)
        assert abs(s - 0.25) < max(1e-12, 4e-16 / e), (act, s)
    assert linear_ig(torch.relu, w, x, x) == 0  # no step, no attribution
    assert linear_ig(torch.relu, w, -x.abs(), -2 * x.abs()) == 0  # flat side


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
        assert ig.shape == x.shape and ig.dtype == dtype
        zu = (torch.as_tensor(u, dtype=dtype).expand_as(x) * w).sum(1) + 0.3
        gap = (ig.sum(1) - torch.sigmoid(x @ w + 0.3) + torch.sigmoid(zu)).abs()
        assert (gap <= 40 * torch.finfo(dtype).eps * (1 + (x.abs() @ w.abs()))).all()


def test_linear_ig_weights_per_example_images_and_gradient():
    w, x, y = problem(8, 4, (2, 3, 3))
    u = torch.rand(3, 3, dtype=torch.double)
    many = torch.stack([w * (i + 1) for i in range(4)])
    each = torch.cat([linear_ig(torch.tanh, many[i], x[i : i + 1], u, 0.1 * i) for i in range(4)])
    assert torch.allclose(
        linear_ig(torch.tanh, many, x, u, 0.1 * torch.arange(4)), each, atol=1e-14
    )
    near = x.clone()
    near[0] = u  # one row on the baseline itself
    assert torch.autograd.gradcheck(
        lambda w, x: linear_ig(torch.tanh, w, x, u),
        (w.clone().requires_grad_(), near.requires_grad_()),
    )


def test_linear_ig_of_a_loss_is_that_of_captum():
    captum = pytest.importorskip("captum.attr")
    w, x, y = problem(9, 20, (5,))
    ref = captum.IntegratedGradients(lambda x, y: Logistic().g(margin(w, x, y, 0.2))).attribute(
        x, torch.zeros_like(x), additional_forward_args=y, n_steps=100
    )
    assert torch.allclose(
        linear_ig(Logistic(), -y[:, None] * w, x, 0.0, -0.2 * y), ref, atol=1e-7
    )  # captum keeps its weights in float32


@SETTINGS
@given(
    seeds, st.integers(2, 200), st.sampled_from([torch.sigmoid, torch.tanh, Logistic(), torch.exp])
)
def test_gini_of_ig_is_the_gini_of_w_times_x(seed, d, act):
    gini = pytest.importorskip("advinterp.metrics").gini
    w, x, _ = problem(seed, 6, (d,), scale=d**-0.5)
    u = torch.randn(d, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    assert torch.allclose(gini(linear_ig(act, w, x, u, 0.3)), gini(w * (x - u)), atol=1e-12)


def test_feature_impact():
    m = torch.tensor([[1.0, -2, 0, 4], [3, 0, -1, 0]])
    assert torch.equal(feature_value_impact(m), torch.tensor([2.0, 1, 0.5, 2]))
    assert torch.equal(feature_impact(m, torch.tensor([0, 0, 2, 1])), torch.tensor([3.0, 2, 0.5]))
    assert torch.equal(feature_impact(m, [0, 1, 2, 3]), feature_value_impact(m))


# ---- Theorem 5.1


@SETTINGS
@given(seeds, st.integers(0, N_DUALS - 1), losses, st.floats(-3, 3))
def test_theorem_5_1(seed, k, loss, b):
    w, x, y = problem(seed, 6, (7,))
    dual = all_duals(7)[k]
    risk, adv = stable_ig_risk(w, x, y, dual, loss, b), adv_loss(w, x, y, dual, loss, b)
    assert torch.allclose(risk, adv, rtol=1e-9, atol=1e-9)


@settings(SETTINGS, max_examples=15)
@given(seeds, losses, st.floats(0.01, 2))
def test_theorem_5_1_against_brute_force(seed, loss, eps):
    w, x, y = problem(seed, 3, (2,))
    v, ds = (
        -y[:, None] * w,
        eps * torch.cartesian_prod(*[torch.linspace(-1, 1, 5, dtype=torch.double)] * 2),
    )
    best = torch.stack([linear_ig(loss, v, x + d, x).abs().sum(1) for d in ds]).amax(0)
    assert torch.allclose(
        loss.g(margin(w, x, y)) + best, stable_ig_risk(w, x, y, eps, loss), rtol=1e-10, atol=1e-12
    )


class Ellipse(Dual):
    M = torch.tensor([[1.0, 0.95], [0.95, 1.0]], dtype=torch.double)

    def h_star(self, g):
        return ((g @ self.M) * g).sum(1).sqrt()


def test_theorem_5_1_needs_convexity_and_an_absolute_norm():
    w, x, y = (
        torch.tensor([6.0, -4.0], dtype=torch.double),
        torch.zeros(1, 2, dtype=torch.double),
        torch.tensor([1]),
    )
    ring = torch.stack(
        [
            torch.linspace(0, 2 * math.pi, 181).double().cos(),
            torch.linspace(0, 2 * math.pi, 181).double().sin(),
        ],
        1,
    )
    best = lambda loss, ds: float(
        max(linear_ig(loss, -w, x + d, x).abs().sum() for d in ds) + loss.g(margin(w, x, y))
    )
    box = torch.cartesian_prod(*[torch.linspace(-1, 1, 21, dtype=torch.double)] * 2)
    assert best(Ramp(), box) - float(adv_loss(w, x, y, 1.0, Ramp())) > 1.5
    assert (
        best(Logistic(), ring @ torch.linalg.cholesky(Ellipse.M).T)
        - float(adv_loss(w, x, y, Ellipse(), Logistic()))
        > 5
    )
    for dual, loss, msg in ((1.0, Ramp(), "convex"), (Ellipse(), Logistic(), "absolute")):
        with pytest.raises(ValueError, match=msg):
            stable_ig_risk(w, x, y, dual, loss)


def test_user_defined_dual():
    "Lemmas 2 and 3 hold for a norm that is not absolute, given by h_star alone."
    w, x, y = problem(10, 5, (2,), zeros=False)
    ring = torch.linspace(0, 2 * math.pi, 20001, dtype=torch.double)
    ds = torch.stack([ring.cos(), ring.sin()], 1) @ torch.linalg.cholesky(Ellipse.M).T
    best = Logistic().g(margin(w, x, y)[:, None] + (-y[:, None] * w) @ ds.T).amax(1)
    assert torch.allclose(adv_loss(w, x, y, Ellipse(), Logistic()), best, atol=1e-6)

    class Cubic(Dual):
        def h_star(self, g):
            return g.abs().pow(3).sum(1)

    with pytest.raises(ValueError, match="linear-quadratic"):
        adv_loss(w, x, y, Cubic(), Logistic())


# ---- more than two classes


@SETTINGS
@given(seeds, losses, st.integers(2, 5), st.floats(0, 1))
def test_ova(seed, loss, k, eps):
    g = torch.Generator().manual_seed(seed)
    W, x, b = (
        torch.randn(k, 3, generator=g, dtype=torch.double),
        torch.randn(6, 3, generator=g, dtype=torch.double),
        torch.randn(k, generator=g, dtype=torch.double),
    )
    y = torch.randint(k, (6,), generator=g)
    s = 2.0 * torch.nn.functional.one_hot(y, k) - 1
    ds = eps * torch.tensor(list(itertools.product([-1.0, 1.0], repeat=3)), dtype=torch.double)
    vals = torch.stack([loss.g(-s * ((x + d) @ W.T + b)) for d in ds])
    own = ova_adv_loss(W, x, y, eps, loss, b)
    assert (
        torch.allclose(own, vals.amax(0).sum(1), atol=1e-11)
        and (vals.sum(2).amax(0) <= own + 1e-11).all()
    )
    mirrored = torch.stack([W[0], -W[0]])
    assert torch.allclose(
        ova_adv_loss(mirrored, x, y % 2, eps, loss),
        2 * adv_loss(W[0], x, 1 - 2 * (y % 2), eps, loss),
        atol=1e-12,
    )


# ---- bad input

w, x, y = torch.ones(3), torch.ones(4, 3), torch.tensor([1, -1, 1, 1])
L = Logistic()
BAD = {
    "labels 0/1": (
        lambda: adv_loss(w, x, (y + 1) // 2, 0.1, L),
        ValueError,
        r"y holds \[0, 1\]: expected labels -1 and \+1",
    ),
    "labels 0/1, gradient": (
        lambda: adv_grad(w, x, (y + 1) // 2, 0.1, L),
        ValueError,
        r"expected labels -1 and \+1",
    ),
    "labels 0/1, delta": (
        lambda: adv_perturbation(w, (y + 1) // 2, 0.1),
        ValueError,
        r"expected labels -1 and \+1",
    ),
    "labels 0/1, strength": (
        lambda: directed_strength(x, (y + 1) // 2),
        ValueError,
        r"expected labels -1 and \+1",
    ),
    "labels 0/1, update": (
        lambda: expected_update(w, x, (y + 1) // 2, 0.1, L),
        ValueError,
        r"expected labels -1 and \+1",
    ),
    "labels 0/1, stable": (
        lambda: stable_ig_risk(w, x, (y + 1) // 2, 0.1, L),
        ValueError,
        r"expected labels -1 and \+1",
    ),
    "label nan": (
        lambda: adv_loss(w, x, y * float("nan"), 0.1, L),
        ValueError,
        r"expected labels -1 and \+1",
    ),
    "labels bool": (lambda: adv_loss(w, x, y > 0, 0.1, L), TypeError, "y is torch.bool"),
    "labels list": (lambda: adv_loss(w, x, [1, 1, 1, 1], 0.1, L), TypeError, "y is list"),
    "labels shape": (
        lambda: adv_loss(w, x, y[:, None], 0.1, L),
        ValueError,
        r"y has shape \(4, 1\): expected \(4,\)",
    ),
    "one label": (lambda: feat_trans(x, torch.ones(4)), ValueError, "expected both labels"),
    "eps < 0": (lambda: adv_loss(w, x, y, -0.1, L), ValueError, "eps=-0.1"),
    "eps nan": (lambda: adv_grad(w, x, y, float("nan"), L), ValueError, "eps=nan"),
    "eps inf": (lambda: adv_perturbation(w, y, math.inf), ValueError, "eps=inf"),
    "eps str": (lambda: adv_loss(w, x, y, ".1", L), TypeError, "eps"),
    "x integer": (lambda: adv_loss(w, x.long(), y, 0.1, L), TypeError, r"x.float\(\)"),
    "w integer": (lambda: adv_perturbation(w.long(), y, 0.1), TypeError, r"w.float\(\)"),
    "w shape": (
        lambda: adv_loss(w[:2], x, y, 0.1, L),
        ValueError,
        r"w has shape \(2,\): expected \(3,\)",
    ),
    "dtypes": (lambda: adv_loss(w.double(), x, y, 0.1, L), ValueError, "expected one dtype"),
    "loss class": (lambda: adv_loss(w, x, y, 0.1, Logistic), TypeError, "expected a MarginLoss"),
    "loss str": (
        lambda: expected_update(w, x, y, 0.1, "logistic"),
        TypeError,
        "expected a MarginLoss",
    ),
    "exp with a penalty": (
        lambda: adv_loss(w, x, y, ElasticNet(0.1, 0.1), Exp()),
        ValueError,
        "loss=Exp",
    ),
    "delta of a penalty": (
        lambda: adv_perturbation(w, y, ElasticNet(0.1, 0.1)),
        ValueError,
        "adv_slope",
    ),
    "bound of a penalty": (
        lambda: update_bound(w, x, y, ElasticNet(0.1, 0.1), L, [0]),
        ValueError,
        "ElasticNet",
    ),
    "p sum": (lambda: expected_update(w, x, y, 0.1, L, torch.ones(4)), ValueError, "sum 1"),
    "p negative": (
        lambda: mean_slope(w, x, y, 0.1, L, torch.tensor([-1.0, 1, 0.5, 0.5])),
        ValueError,
        ">= 0",
    ),
    "p shape": (
        lambda: expected_update(w, x, y, 0.1, L, torch.ones(3) / 3),
        ValueError,
        r"p has shape \(3,\)",
    ),
    "no rows": (lambda: expected_update(w, x[:0], y[:0], 0.1, L), ValueError, "at least one"),
    "S out of range": (
        lambda: weighted_average(w, w, [3]),
        ValueError,
        r"S=\[3\]: expected indices of features in 0..2",
    ),
    "S empty": (lambda: weighted_average(w, w, []), ValueError, "at least one"),
    "S all zero": (lambda: weighted_average(0 * w, w, [0]), ValueError, "part 1"),
    "q shape": (lambda: weighted_average(w, w[:2], [0]), ValueError, "q has shape"),
    "level": (lambda: expected_update_ci(w, x, y, 0.1, L, level=95), ValueError, "level=95"),
    "one row": (lambda: expected_update_ci(w, x[:1], y[:1], 0.1, L), ValueError, "at least 2"),
    "baseline shape": (
        lambda: linear_ig(torch.sigmoid, w, x, torch.ones(2)),
        ValueError,
        r"u has shape \(2,\)",
    ),
    "activation": (lambda: linear_ig(torch.sum, w, x, 0.0), ValueError, "elementwise"),
    "ig weights": (
        lambda: linear_ig(torch.sigmoid, w[:2], x, 0.0),
        ValueError,
        r"w has shape \(2,\)",
    ),
    "ig integer": (lambda: linear_ig(torch.sigmoid, w, x.long(), 0.0), TypeError, r"x.float\(\)"),
    "classes": (
        lambda: ova_adv_loss(torch.ones(2, 3), x, y + 1, 0.1, L),
        ValueError,
        r"expected class indices 0..1",
    ),
    "groups": (
        lambda: feature_impact(x, torch.tensor([0, 1])),
        ValueError,
        r"groups has shape \(2,\)",
    ),
    "impact of nothing": (lambda: feature_value_impact(x[:0]), ValueError, "at least one"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, exc, match = BAD[case]
    with pytest.raises(exc, match=match):
        call()


@pytest.mark.parametrize("k", range(N_DUALS))
def test_empty_batches_return_empty(k):
    dual, w, x, y = (
        all_duals(3)[k],
        torch.ones(3).double(),
        torch.ones(0, 3).double(),
        torch.ones(0),
    )
    assert (
        adv_loss(w, x, y, dual, L).shape
        == adv_slope(w, x, y, dual, L).shape
        == stable_ig_risk(w, x, y, dual, L).shape
        == (0,)
    )
    assert (
        adv_grad(w, x, y, dual, L).shape
        == adv_perturbation(w, y, dual, torch.ones(0).double()).shape
        == linear_ig(L, w, x, 0.0).shape
        == (0, 3)
    )
    assert ova_adv_loss(torch.ones(2, 3).double(), x, y.long(), dual, L).shape == (0,)
