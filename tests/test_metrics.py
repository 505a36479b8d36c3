"""Metrics of maps against brute force, scikit-image and Quantus; invariances on random input."""

import inspect

import numpy as np
import pytest
import torch
from fastai.torch_core import TensorImage
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from advinterp import metrics as M
from advinterp.evaluate import map_similarity, rank_correlation

finite = st.floats(-1e6, 1e6).map(lambda v: 0.0 if abs(v) < 1e-6 else v)
maps = arrays(np.float64, array_shapes(min_dims=2, max_dims=4, max_side=6), elements=finite)
quick = settings(deadline=None, max_examples=60)


def brute_gini(m):
    """Mean difference over all pairs, relative to twice the mean: O(d^2)."""
    v = np.abs(m.reshape(len(m), -1))
    total = v.sum(1)
    differences = np.abs(v[:, :, None] - v[:, None]).sum((1, 2))
    return np.where(total > 0, differences / np.where(total > 0, 2 * v.shape[1] * total, 1), 0)


@quick
@given(maps)
def test_gini_is_the_mean_difference(m):
    np.testing.assert_allclose(M.gini(m), brute_gini(m), atol=1e-10)
    np.testing.assert_allclose(M.gini_area(m), brute_gini(m), atol=1e-10)


@quick
@given(maps, st.floats(-1e3, 1e3).filter(lambda s: abs(s) > 1e-3))
def test_conciseness_ignores_scale_sign_and_order(m, scale):
    flipped = np.flip(m.reshape(len(m), -1), 1)  # a view with negative strides
    for metric in (M.gini, M.normalized_entropy):
        np.testing.assert_allclose(metric(scale * m), metric(m), atol=1e-9)
        np.testing.assert_allclose(metric(flipped), metric(m), atol=1e-9)


@quick
@given(maps)
def test_ranges(m):
    d = m[0].size
    ranges = {M.gini: (0, 1 - 1 / d), M.normalized_entropy: (0, 1), M.share_above: (1 / d, 1)}
    for metric, (low, high) in ranges.items():
        values = metric(m)
        assert low - 1e-12 <= values.min()
        assert values.max() <= high + 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_gini_of_any_dtype(dtype):
    m = torch.randn(50, 28, 28, generator=torch.Generator().manual_seed(0)).to(dtype)
    exact = brute_gini(m.double().numpy())
    np.testing.assert_allclose(M.gini(m).double(), exact, atol=1e-5)  # single precision at least


def test_gini_of_extreme_scales():
    m = torch.rand(4, 50, generator=torch.Generator().manual_seed(0))
    values = M.gini(torch.cat([m * 1e38, m * 1e-38, m, m * 0]))
    np.testing.assert_allclose(values[:12].view(3, 4), M.gini(m).expand(3, 4), atol=1e-5)
    assert (values[12:] == 0).all()


def test_gradient_of_gini_including_zero_maps():
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    sizes = torch.linspace(0.1, 2, 40, dtype=torch.double)[order]  # no ties: there are kinks
    m = (sizes.view(2, 20) * torch.tensor([1, -1]).repeat(10)).requires_grad_()
    zero = torch.zeros(3, 5, requires_grad=True)
    for metric in (M.gini, M.normalized_entropy):
        assert torch.autograd.gradcheck(metric, m)
        assert torch.autograd.grad(metric(zero).sum(), zero)[0].isfinite().all()


@pytest.mark.parametrize(
    "metric",
    [
        M.gini,
        M.normalized_entropy,
        M.share_above,
        M.lorenz,
        M.normalize_map,
        M.total_variation,
        M.connectedness,
    ],
)
def test_inputs_are_left_alone(metric):
    m = torch.randn(3, 4, 4)
    before = m.clone()
    metric(m)
    assert torch.equal(m, before)


def test_gini_equals_quantus_sparseness():
    quantus = pytest.importorskip("quantus", reason="Quantus is not installed")
    m = np.random.default_rng(0).exponential(size=(20, 1, 28, 28))
    sparseness = quantus.Sparseness(disable_warnings=True)
    theirs = sparseness.evaluate_batch(x_batch=m.copy(), a_batch=m.copy())
    np.testing.assert_allclose(M.gini(m), theirs, atol=1e-6)  # Quantus adds 1e-7 to each entry


@pytest.mark.parametrize("data_range", [1.0, 255.0])
def test_ssim_equals_scikit_image(data_range):
    similarity = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
    a, b = data_range * np.random.default_rng(0).uniform(size=(2, 6, 24, 31))
    settings = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    theirs = [
        similarity.structural_similarity(p, q, data_range=data_range, **settings)
        for p, q in zip(a, b)
    ]
    np.testing.assert_allclose(M.ssim(a, b, data_range=data_range), theirs, atol=1e-12)
    with_channel = (torch.from_numpy(maps)[:, None] for maps in (a, b))
    np.testing.assert_allclose(M.ssim(*with_channel, data_range=data_range), theirs, atol=1e-12)


def top(row, n):
    """The places of the `n` largest magnitudes, without zeros."""
    return {i for i in np.argsort(-np.abs(row), kind="stable")[:n] if row[i]}


def by_sets(k, p, q):
    """Overlap and Dice score of two rows as sizes of sets."""
    n = max(1, round(k * len(p)))
    n_p, n_q = (max(1, round(k * np.count_nonzero(row))) for row in (p, q))
    A, B = top(p, n), top(q, n)
    overlap = len(A & B) / len(A)
    dice = 2 * len(A & B) / (len(A) + len(B))
    A, B = top(p, n_p), top(q, n_p)
    overlap_of_nonzero = len(A & B) / len(A)
    B = top(q, n_q)
    dice_of_nonzero = 2 * len(A & B) / (len(A) + len(B))
    return overlap, dice, overlap_of_nonzero, dice_of_nonzero


@quick
@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.floats(0.02, 1.0))
def test_overlaps_are_set_sizes(seed, d, k):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, 5, d))
    b = b * (rng.uniform(size=b.shape) < 0.7)
    b[:, 0] = 1.0
    for first, second in ((a, b), (b, a)):
        got = (
            M.topk_overlap(first, second, k),
            M.topk_dice(first, second, k),
            M.topk_overlap(first, second, k, nonzero=True),
            M.topk_dice(first, second, k, nonzero=True),
        )
        want = [by_sets(k, p, q) for p, q in zip(first, second)]
        np.testing.assert_allclose(torch.stack(got, 1), want)
    assert (M.topk_overlap(b, -3 * b, k) == 1).all()
    assert (M.topk_dice(b, b, k, nonzero=True) == 1).all()


def band(value, shift=0.0):
    """The number of cuts that a magnitude passes, with the sign of the value."""
    size = sum(abs(value) > cut - shift for cut in (0.3, 0.7))
    return size if value > 0 else -size


def counts(map_bands, true_bands):
    """How many pixels are right or wrong, in a loop."""
    found = dict(tp=0, fp=0, fn=0, tn=0)
    for p, t in zip(map_bands, true_bands):
        if p == 0:
            found["tn" if t == 0 else "fn"] += 1
        else:
            found["tp" if p == t else "fp"] += 1
    return found


@pytest.mark.parametrize("shift", [0.0, 0.2])
@pytest.mark.parametrize("binary", [False, True])
def test_band_scores_against_a_loop(binary, shift):
    rng = np.random.default_rng(0)
    m = rng.normal(size=(8, 3, 5, 6))
    truth = rng.choice([0, 0.4, 0.9], size=(8, 5, 6))
    got = (M.binary_score if binary else M.five_band_score)(m, truth, shift)
    for i in range(8):
        summed = m[i].sum(0).ravel()
        p = np.array([band(v, shift) for v in summed / np.abs(summed).max()])
        t = np.array([band(v) for v in truth[i].ravel()])
        if binary:
            p, t = p * (abs(p) == 2), t * (abs(t) == 2)
        n = counts(p, t)
        assert got.pixel_acc[i].item() == pytest.approx((p == t).mean())
        assert got.recall[i].item() == pytest.approx(n["tp"] / (n["tp"] + n["fn"] + 1e-6))
        assert got.precision[i].item() == pytest.approx(n["tp"] / (n["tp"] + n["fp"] + 1e-6))
        assert got.fpr[i].item() == pytest.approx(n["fp"] / (n["fp"] + n["tn"] + 1e-6))


@pytest.mark.parametrize("score", [M.five_band_score, M.binary_score])
def test_band_scores_of_magnitudes_and_the_old_name(score):
    rng = np.random.default_rng(0)
    m = rng.normal(size=(4, 2, 5, 6))
    truth = rng.choice([0, 0.4, 0.9], size=(4, 5, 6))
    new = score(m, truth, absolute=True)
    np.testing.assert_array_equal(torch.stack(new), torch.stack(score(np.abs(m), truth)))
    assert not torch.equal(torch.stack(new), torch.stack(score(m, truth)))
    with pytest.warns(FutureWarning, match="absolute="):
        old = score(m, truth, abs=True)
    assert torch.equal(torch.stack(new), torch.stack(old))


def test_pieces_may_touch_at_a_corner():
    m = np.zeros((1, 8, 8))
    m[0, [0, 1, 2], [0, 1, 2]] = 1  # a diagonal
    m[0, 6, 6] = 1  # and one pixel apart
    assert M.connectedness(m, k=4 / 64).item() == pytest.approx(3 / 4)


def test_a_normalised_map_is_cut_at_its_quantile():
    m = np.arange(101.0).reshape(1, 101)  # from 0 to 100: the quantile of .9 is 90
    expected = np.minimum(np.arange(101) / 90, 1)
    np.testing.assert_allclose(M.normalize_map(-m, cap=0.9)[0], expected)


def test_zero_maps_get_the_worst_value():
    zero = np.zeros((2, 16, 16))
    m = np.random.default_rng(0).normal(size=(2, 16, 16))
    assert (M.gini(zero) == 0).all()
    assert (M.normalized_entropy(zero) == 1).all()
    assert (M.share_above(zero) == 1).all()
    assert (M.total_variation(zero) == 4).all()
    assert (M.connectedness(zero) == 0).all()
    assert (M.topk_overlap(zero, m, 0.1) == 0).all()
    assert (M.topk_dice(zero, zero, 0.1) == 0).all()
    assert (M.five_band_score(zero, np.full((2, 16, 16), 0.9)).recall == 0).all()


@pytest.mark.parametrize(
    "name",
    [
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
    ],
)
def test_direction_and_citation_are_data(name):
    metric = getattr(M, name)
    directions = metric.direction
    directions = set(directions.values()) if isinstance(directions, dict) else {directions}
    assert directions <= {"higher", "lower"}
    assert metric.citation
    assert inspect.isfunction(metric)


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
    for metric in (
        M.gini,
        M.normalized_entropy,
        M.share_above,
        M.total_variation,
        M.connectedness,
    ):
        assert metric(a.cuda()).is_cuda
        np.testing.assert_allclose(metric(a.cuda()).cpu(), metric(a), atol=1e-5)
    for compare in (
        lambda a, b: M.topk_overlap(a, b, 0.1),
        lambda a, b: M.topk_dice(a, b, 0.1),
        M.ssim,
        lambda a, b: M.pointing_game(a, b > 0.5),
        lambda a, b: M.leakage(a, b > 0.5),
    ):
        np.testing.assert_allclose(compare(a.cuda(), b.cuda()).cpu(), compare(a, b), atol=1e-5)


# ---------------------------------------------------------------- masks and gaze


@st.composite
def maps_with_masks(draw):
    n = draw(st.integers(1, 5))
    m = draw(arrays(np.float64, (n, 2, 3, 4), elements=finite))
    return m, draw(arrays(bool, (n, 3, 4)))


@quick
@given(maps_with_masks())
def test_mask_metrics_against_a_loop(case):
    m, mask = case
    hits, leaks = M.pointing_game(m, mask), M.leakage(m, mask)
    for g, inside, hit, leak in zip(np.abs(m).sum(1), mask, hits, leaks):
        top = g == g.max()
        assert hit.item() == pytest.approx((top & inside).sum() / top.sum() if g.any() else 0)
        assert leak.item() == pytest.approx(g[inside].sum() / g.sum() if g.any() else 1)
    as_served = torch.from_numpy(mask)[:, None].float()  # as the loaders give masks
    np.testing.assert_array_equal(M.leakage(torch.from_numpy(m), as_served), leaks)


def test_leakage_has_a_gradient_and_leaves_inputs_alone():
    m = torch.rand(3, 5, dtype=torch.double, requires_grad=True)
    mask = torch.tensor([[1, 0, 0, 1, 0]] * 3)
    before = m.detach().clone()
    assert torch.autograd.gradcheck(lambda m: M.leakage(m, mask), m)
    assert torch.equal(m.detach(), before)
    zero = torch.zeros(1, 5, requires_grad=True)
    assert torch.autograd.grad(M.leakage(zero, mask[:1]).sum(), zero)[0].isfinite().all()


def test_masks_on_the_generators():
    """The signal itself never leaks and always hits; the other block always leaks, never hits."""
    from advinterp.generators import stack_blocks

    images = np.random.default_rng(0).uniform(0.1, 1, size=(20, 1, 6, 6)).astype(np.float32)
    stacked = stack_blocks(images, np.arange(20) % 2)
    signal = stacked.x * stacked.truth[:, None]
    other = stacked.x * ~stacked.truth[:, None]
    assert (M.leakage(signal, ~stacked.truth) == 0).all()
    assert (M.pointing_game(signal, stacked.truth) == 1).all()
    assert (M.leakage(other, ~stacked.truth) == 1).all()
    assert (M.pointing_game(other, stacked.truth) == 0).all()


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
@pytest.mark.parametrize("metric", [M.pointing_game, M.leakage])
def test_bad_masks_are_refused(metric, mask):
    with pytest.raises(ValueError, match="expected"):
        metric(np.ones((2, 3, 16, 16)), mask)


# ---------------------------------------------------------------- what a user brings


def of_two(metric):
    return lambda a, b: metric(a, b, 0.4)


def with_mask(metric):
    return lambda a, b: metric(a, (b.to_dense() if torch.is_tensor(b) else b.astype(float)) > 0)


OF_ONE = [
    M.gini,
    M.lorenz,
    M.gini_area,
    M.normalized_entropy,
    M.share_above,
    M.gray,
    M.normalize_map,
    M.total_variation,
    M.connectedness,
]
METRICS = {metric.__name__: lambda a, b, metric=metric: metric(a) for metric in OF_ONE} | {
    "topk_overlap": of_two(M.topk_overlap),
    "topk_dice": of_two(M.topk_dice),
    "ssim": M.ssim,
    "five_band_score": M.five_band_score,
    "binary_score": M.binary_score,
    "pointing_game": with_mask(M.pointing_game),
    "leakage": with_mask(M.leakage),
    "rank_correlation": rank_correlation,
    "map_similarity": map_similarity,
}
FORMS = {
    "fastai": TensorImage,
    "float16": torch.Tensor.half,
    "bfloat16": torch.Tensor.bfloat16,
    "float64": torch.Tensor.double,
    "non-contiguous": lambda m: m.transpose(1, 2).contiguous().transpose(1, 2),
    "asks for gradients": lambda m: m.clone().requires_grad_(),
    "sparse": torch.Tensor.to_sparse,
    "numpy": torch.Tensor.numpy,
    "numpy, half": lambda m: m.numpy().astype(np.float16),
    "numpy, another byte order": lambda m: m.numpy().astype(">f8"),
    "numpy, long": lambda m: m.numpy().astype(np.longdouble),
    "numpy, reversed": lambda m: m.numpy()[:, ::-1].copy()[:, ::-1],
    "one": lambda m: m[:1],
}
every_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)


def two_maps():
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(2, 3, 12, 12, generator=generator) * 64).round() / 64  # exact in half


@every_metric
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("context", [torch.enable_grad, torch.inference_mode])
def test_maps_of_every_form(metric, form, context):
    a, b = two_maps()
    plain_a, plain_b = (a[:1], b[:1]) if form is FORMS["one"] else (a, b)
    wanted = metric(plain_a.double(), plain_b.double())
    with context():
        found = metric(form(a), form(b))
    for ours, exact in zip(*(v if isinstance(v, tuple) else (v,) for v in (found, wanted))):
        assert type(ours) is torch.Tensor
        assert ours.dtype in (torch.float32, torch.float64)
        rough = 0.1 if form is FORMS["bfloat16"] else 2e-3
        few = ours.detach().double() - exact
        assert few.abs().mean() < rough


@every_metric
@pytest.mark.parametrize("form", [torch.Tensor.float, torch.Tensor.numpy, TensorImage])
def test_no_map_has_no_number(metric, form):
    a, b = two_maps()
    found = metric(form(a[:0]), form(b[:0]))
    for values in found if isinstance(found, tuple) else (found,):
        assert len(values) == 0


@every_metric
def test_what_is_no_map_is_named(metric):
    a, b = two_maps()
    spoiled = a.clone()
    spoiled[1, 0, 0] = torch.nan
    for wrong, error, match in (
        (spoiled, ValueError, "expected finite values, got NaN or infinity in 1 of 3 maps"),
        (a / 0, ValueError, "got NaN or infinity in 3 of 3 maps"),
        (a.tolist(), TypeError, r"expected a torch\.Tensor, got list"),
        (a.long(), TypeError, "expected a floating dtype"),
        (a.numpy().astype(int), TypeError, "expected a floating dtype"),
        (a.numpy().astype(object), TypeError, "has dtype object: expected numbers"),
        (a[0, 0], ValueError, r"expected a batch of maps \(B, ...\)"),
        (a[:, :0], ValueError, "the maps have no entries"),
    ):
        with pytest.raises(error, match=match):
            metric(wrong, b)


@pytest.mark.parametrize("metric", [M.topk_overlap, M.topk_dice, map_similarity])
def test_shares_are_checked(metric):
    a, b = two_maps()
    for k, error in ((0, ValueError), (-1, ValueError), (1.1, ValueError), (True, TypeError)):
        with pytest.raises(error, match=f"k={k!r}: expected a"):
            metric(a, b, k)


def test_many_large_maps_are_normalised():
    m = torch.rand(40, 700, 700, generator=torch.Generator().manual_seed(0))  # 2e7 numbers
    found = M.normalize_map(m)
    torch.testing.assert_close(found[33:34], M.normalize_map(m[33:34]), atol=0, rtol=0)
