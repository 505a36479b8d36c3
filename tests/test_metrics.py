"Metrics of maps against brute force, scikit-image and Quantus; invariances on random input."

import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from advinterp import metrics as M

finite = st.floats(-1e6, 1e6).map(lambda v: 0.0 if abs(v) < 1e-6 else v)
maps = arrays(np.float64, array_shapes(min_dims=2, max_dims=4, max_side=6), elements=finite)
quick = settings(deadline=None, max_examples=60)


def brute_gini(m):
    "Mean difference over all pairs, relative to twice the mean: O(d^2)."
    v = np.abs(m.reshape(len(m), -1))
    total, diff = v.sum(1), np.abs(v[:, :, None] - v[:, None]).sum((1, 2))
    return np.where(total > 0, diff / np.where(total > 0, 2 * v.shape[1] * total, 1), 0)


@quick
@given(maps)
def test_gini_is_the_mean_difference(m):
    np.testing.assert_allclose(M.gini(m), brute_gini(m), atol=1e-10)
    np.testing.assert_allclose(M.gini_area(m), brute_gini(m), atol=1e-10)


@quick
@given(maps, st.floats(-1e3, 1e3).filter(lambda s: abs(s) > 1e-3))
def test_conciseness_ignores_scale_sign_and_order(m, s):
    flipped = np.flip(m.reshape(len(m), -1), 1)  # a view with negative strides
    for metric in (M.gini, M.normalized_entropy):
        np.testing.assert_allclose(metric(s * m), metric(m), atol=1e-9)
        np.testing.assert_allclose(metric(flipped), metric(m), atol=1e-9)


@quick
@given(maps)
def test_ranges(m):
    d = m[0].size
    G, H, S = M.gini(m), M.normalized_entropy(m), M.share_above(m)
    assert (
        ((G >= -1e-12) & (1 - 1 / d + 1e-12 >= G)).all()
        and ((H >= -1e-12) & (H <= 1 + 1e-12)).all()
        and ((1 / d - 1e-12 <= S) & (S <= 1)).all()
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_gini_of_any_dtype(dtype):
    m = torch.randn(50, 28, 28, generator=torch.Generator().manual_seed(0)).to(dtype)
    np.testing.assert_allclose(
        M.gini(m).double(), brute_gini(m.double().numpy()), atol=1e-5
    )  # summed in single precision at least


def test_gini_of_extreme_scales():
    m = torch.rand(4, 50, generator=torch.Generator().manual_seed(0))
    big = M.gini(torch.cat([m * 1e38, m * 1e-38, m, m * 0]))
    np.testing.assert_allclose(big[:12].view(3, 4), M.gini(m).expand(3, 4), atol=1e-5)
    assert (big[12:] == 0).all()


def test_gradient_of_gini_including_zero_maps():
    m = torch.linspace(0.1, 2, 40, dtype=torch.double)[
        torch.randperm(40, generator=torch.Generator().manual_seed(0))
    ].view(2, 20)
    m = (m * torch.tensor([1, -1]).repeat(10)).requires_grad_()  # no ties: there are kinks
    assert torch.autograd.gradcheck(M.gini, m) and torch.autograd.gradcheck(M.normalized_entropy, m)
    z = torch.zeros(3, 5, requires_grad=True)
    for metric in (M.gini, M.normalized_entropy):
        assert torch.autograd.grad(metric(z).sum(), z)[0].isfinite().all()


def test_inputs_are_left_alone():
    m = torch.randn(3, 4, 4)
    before = m.clone()
    for f in (
        M.gini,
        M.normalized_entropy,
        M.share_above,
        M.lorenz,
        M.normalize_map,
        M.total_variation,
        M.connectedness,
    ):
        f(m)
    assert torch.equal(m, before)


def test_gini_equals_quantus_sparseness():
    quantus = pytest.importorskip("quantus", reason="Quantus is not installed")
    m = np.random.default_rng(0).exponential(size=(20, 28 * 28))
    ours = M.gini(m).numpy()
    theirs = quantus.Sparseness(disable_warnings=True).evaluate_batch(
        x_batch=m.reshape(20, 1, 28, 28).copy(), a_batch=m.reshape(20, 1, 28, 28).copy()
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-6)  # Quantus adds 1e-7 to each entry


def test_ssim_equals_scikit_image():
    skm = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
    a, b = np.random.default_rng(0).uniform(size=(2, 6, 24, 31))
    for L in (1.0, 255.0):
        theirs = [
            skm.structural_similarity(
                L * p,
                L * q,
                data_range=L,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
            )
            for p, q in zip(a, b)
        ]
        np.testing.assert_allclose(M.ssim(L * a, L * b, data_range=L), theirs, atol=1e-12)
        np.testing.assert_allclose(
            M.ssim(
                torch.from_numpy(L * a)[:, None], torch.from_numpy(L * b)[:, None], data_range=L
            ),
            theirs,
            atol=1e-12,
        )


@quick
@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.floats(0.02, 1.0))
def test_overlaps_are_set_sizes(seed, d, k):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, 5, d))
    b = b * (rng.uniform(size=b.shape) < 0.7)
    b[:, 0] = 1.0
    n = max(1, round(k * d))

    def top(r, n):
        return {i for i in np.argsort(-np.abs(r), kind="stable")[:n] if r[i]}

    for i, (p, q) in enumerate(zip(a, b)):
        A, B = top(p, n), top(q, n)
        assert M.topk_overlap(a, b, k)[i].item() == pytest.approx(len(A & B) / len(A))
        assert M.topk_dice(a, b, k)[i].item() == pytest.approx(2 * len(A & B) / (len(A) + len(B)))
        few = max(1, round(k * np.count_nonzero(q)))  # the share of the non-zero entries of b
        A, B = top(p, n), top(q, few)
        assert M.topk_dice(a, b, k, nonzero=True)[i].item() == pytest.approx(
            2 * len(A & B) / (len(A) + len(B))
        )
        assert M.topk_overlap(b, a, k, nonzero=True)[i].item() == pytest.approx(
            len(B & top(p, few)) / len(B)
        )
    assert (M.topk_overlap(b, -3 * b, k) == 1).all() and (
        M.topk_dice(b, b, k, nonzero=True) == 1
    ).all()


def loop_bands(v):
    return [
        -2 if e <= -0.7 else -1 if e <= -0.3 else 0 if e <= 0.3 else 1 if e <= 0.7 else 2 for e in v
    ]


@pytest.mark.parametrize("binary", [False, True])
def test_band_scores_against_a_loop(binary):
    rng = np.random.default_rng(0)
    m, truth = rng.normal(size=(8, 3, 5, 6)), rng.choice([0, 0.4, 0.9], size=(8, 5, 6))
    got = (M.binary_score if binary else M.five_band_score)(m, truth)
    for i in range(8):
        s = m[i].sum(0).ravel()
        p, t = np.array(loop_bands(s / np.abs(s).max())), np.array(loop_bands(truth[i].ravel()))
        if binary:
            p, t = p * (abs(p) == 2), t * (abs(t) == 2)
        c = dict(tp=0, fp=0, fn=0, tn=0)
        for x, y in zip(p, t):
            c["tn" if x == 0 == y else "fn" if x == 0 else "tp" if x == y else "fp"] += 1
        assert got.pixel_acc[i].item() == pytest.approx((p == t).mean())
        assert got.recall[i].item() == pytest.approx(
            c["tp"] / (c["tp"] + c["fn"] + 1e-6)
        ) and got.precision[i].item() == pytest.approx(c["tp"] / (c["tp"] + c["fp"] + 1e-6))
        assert got.fpr[i].item() == pytest.approx(c["fp"] / (c["fp"] + c["tn"] + 1e-6))


def test_zero_maps_get_the_worst_value():
    z, m = np.zeros((2, 16, 16)), np.random.default_rng(0).normal(size=(2, 16, 16))
    assert (
        (M.gini(z) == 0).all()
        and (M.normalized_entropy(z) == 1).all()
        and (M.share_above(z) == 1).all()
        and (M.total_variation(z) == 4).all()
    )
    assert (
        (M.connectedness(z) == 0).all()
        and (M.topk_overlap(z, m, 0.1) == 0).all()
        and (M.topk_dice(z, z, 0.1) == 0).all()
    )
    assert (M.five_band_score(z, np.full((2, 16, 16), 0.9)).recall == 0).all()


def test_direction_and_citation_are_data():
    names = [
        "gini",
        "normalized_entropy",
        "share_above",
        "topk_overlap",
        "topk_dice",
        "ssim",
        "five_band_score",
        "binary_score",
        "total_variation",
        "connectedness",
        "pointing_game",
        "leakage",
    ]
    for n in names:
        f = getattr(M, n)
        assert (
            f.citation
            and set(f.direction.values() if isinstance(f.direction, dict) else [f.direction])
            <= {"higher", "lower"}
            and inspect.isfunction(f)
        )


@pytest.mark.parametrize(
    "call",
    [
        lambda m: M.gini(m[0, 0]),
        lambda m: M.gini(m * np.inf),
        lambda m: M.gini(np.zeros((2, 0))),
        lambda m: M.topk_overlap(m, m[:1], 0.1),
        lambda m: M.topk_overlap(m, m, 0),
        lambda m: M.topk_dice(m, m, 1.01),
        lambda m: M.ssim(m, m[:, :12]),
        lambda m: M.ssim(m[:, :9], m[:, :9]),
        lambda m: M.ssim(m, m, data_range=0),
        lambda m: M.share_above(m, 2.0),
        lambda m: M.total_variation(m[0]),
        lambda m: M.normalize_map(m, cap=0),
    ],
)
def test_bad_input_is_refused_by_name(call):
    with pytest.raises(ValueError, match="expected"):
        call(np.random.default_rng(0).normal(size=(2, 16, 16)) + 1)


@pytest.mark.parametrize(
    "bad", [[[1.0, 2.0]], np.ones((2, 3), dtype=int), torch.ones(2, 3, dtype=torch.bool), None]
)
def test_wrong_kinds_are_type_errors(bad):
    with pytest.raises(TypeError, match="map"):
        M.gini(bad)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu():
    a, b = torch.rand(2, 4, 1, 24, 24)
    for f in (M.gini, M.normalized_entropy, M.share_above, M.total_variation, M.connectedness):
        assert f(a.cuda()).is_cuda
        np.testing.assert_allclose(f(a.cuda()).cpu(), f(a), atol=1e-5)
    for f in (
        lambda a, b: M.topk_overlap(a, b, 0.1),
        lambda a, b: M.topk_dice(a, b, 0.1),
        M.ssim,
        lambda a, b: M.pointing_game(a, b > 0.5),
        lambda a, b: M.leakage(a, b > 0.5),
    ):
        np.testing.assert_allclose(f(a.cuda(), b.cuda()).cpu(), f(a, b), atol=1e-5)


# ---------------------------------------------------------------- masks and gaze

masks = st.integers(1, 5).flatmap(
    lambda b: st.tuples(arrays(np.float64, (b, 2, 3, 4), elements=finite), arrays(bool, (b, 3, 4)))
)


@quick
@given(masks)
def test_mask_metrics_against_a_loop(case):
    m, mask = case
    hit, leak = M.pointing_game(m, mask), M.leakage(m, mask)
    for i, (g, k) in enumerate(zip(np.abs(m).sum(1), mask)):
        top = g == g.max()
        assert hit[i].item() == pytest.approx((top & k).sum() / top.sum() if g.any() else 0)
        assert leak[i].item() == pytest.approx(g[k].sum() / g.sum() if g.any() else 1)
    np.testing.assert_array_equal(
        M.leakage(torch.from_numpy(m), torch.from_numpy(mask)[:, None].float()), leak
    )  # masks as the loaders serve them


def test_leakage_has_a_gradient_and_leaves_inputs_alone():
    m, mask = (
        torch.rand(3, 5, dtype=torch.double, requires_grad=True),
        torch.tensor([[1, 0, 0, 1, 0]] * 3),
    )
    before = m.detach().clone()
    assert torch.autograd.gradcheck(lambda m: M.leakage(m, mask), m) and torch.equal(
        m.detach(), before
    )
    z = torch.zeros(1, 5, requires_grad=True)
    assert torch.autograd.grad(M.leakage(z, mask[:1]).sum(), z)[0].isfinite().all()


def test_masks_on_the_generators():
    "The signal itself never leaks and always hits; the other block always leaks and never hits."
    from advinterp.generators import stack_blocks

    s = stack_blocks(
        np.random.default_rng(0).uniform(0.1, 1, size=(20, 1, 6, 6)).astype(np.float32),
        np.arange(20) % 2,
    )
    signal, other = s.x * s.truth[:, None], s.x * ~s.truth[:, None]
    assert (M.leakage(signal, ~s.truth) == 0).all() and (
        M.pointing_game(signal, s.truth) == 1
    ).all()
    assert (M.leakage(other, ~s.truth) == 1).all() and (M.pointing_game(other, s.truth) == 0).all()


@pytest.mark.parametrize(
    "mask",
    [
        np.full((2, 16, 16), 0.5),
        np.full((2, 16, 16), np.nan),
        np.full((2, 16, 16), 2),
        np.ones((2, 16, 15)),
        np.ones((2, 3, 16, 16)),
        np.ones((1, 16, 16)),
    ],
)
@pytest.mark.parametrize("f", [M.pointing_game, M.leakage])
def test_bad_masks_are_refused(f, mask):
    with pytest.raises(ValueError, match="expected"):
        f(np.ones((2, 3, 16, 16)), mask)
