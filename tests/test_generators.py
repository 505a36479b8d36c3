"Generators: distributions against their formulas, truth against pictures."

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from advinterp.generators import block_toy, block_toy_exact, cells, gaussian_blocks, stack_blocks

# ---------------------------------------------------------------- blocks


@settings(max_examples=25)
@given(
    d=st.integers(1, 12),
    share=st.floats(0.1, 1),
    b=st.integers(1, 4),
    u=st.floats(0.1, 3),
)
def test_moments_of_the_enumeration(d, share, b, u):
    m = max(1, int(share * d))
    (x, y, truth), p = block_toy_exact(d, m, b, u)
    assert x.shape == (2 * m, d * b)
    assert len(np.unique(x, axis=0)) == 2 * m
    assert (truth.sum(1) == b).all()
    assert p.sum() == pytest.approx(1)
    s = (2 * y - 1)[:, None]
    signal = np.r_[np.full(m * b, np.float32(u) / m), np.zeros((d - m) * b)]
    assert np.allclose(p @ x, 0)  # E x
    assert np.allclose(p @ (s * x), signal)  # E s x


@settings(max_examples=25)
@given(d=st.integers(1, 12), share=st.floats(0.1, 1), b=st.integers(1, 4), seed=st.integers(0, 50))
def test_every_toy_row_is_a_point_of_the_enumeration(d, share, b, seed):
    m = max(1, int(share * d))
    (x, y, _), _ = block_toy_exact(d, m, b, 1.5)
    points = {(row.tobytes(), label) for row, label in zip(x, y)}
    sample = block_toy(50, d, m, b, 1.5, seed=seed)
    assert {(row.tobytes(), label) for row, label in zip(sample.x, sample.y)} <= points
    assert np.array_equal(sample.truth, sample.x != 0)


def test_toy_noise_is_gaussian_with_its_deviation():
    sample = block_toy(20_000, 5, 2, noise=0.3, seed=1)
    s = (2 * sample.y - 1)[:, None]
    noise = (sample.x - s * sample.truth).ravel()
    assert kstest(noise / 0.3, "norm").pvalue > 1e-3
    assert block_toy(0).x.shape == (0, 10)


def test_gaussian_blocks_are_independent_given_the_label():
    a = np.array([1.0, -0.5, 0.0, 0.3])
    sample = gaussian_blocks(100_000, a, [2, 2], rho=0.9, seed=3)
    for label, s in ((0, -1), (1, 1)):
        rows = sample.x[sample.y == label]
        correlation = np.corrcoef(rows.T)
        assert np.abs(correlation[:2, 2:]).max() < 0.02
        assert correlation[0, 1] == pytest.approx(0.9, abs=0.01)
        assert np.allclose(rows.mean(0), s * a, atol=0.02)
    assert np.abs(np.corrcoef(sample.x.T)[0, 3]) > 0.1  # without the label they are not


@settings(max_examples=10)
@given(h=st.integers(2, 9), w=st.integers(2, 9), null=st.sampled_from(["square", "uniform"]))
def test_stacked_images_hold_the_signal_where_the_truth_is(h, w, null):
    x = np.random.default_rng(0).random((12, 2, h, w), dtype=np.float32)
    out = stack_blocks(x, np.arange(12), null)
    assert out.x.shape == (12, 2, 2 * h, w)
    assert np.array_equal(out.y, np.arange(12))
    for image, truth, signal in zip(out.x, out.truth, x):
        assert np.array_equal(image[:, truth].reshape(signal.shape), signal)
        rest = image[:, ~truth]
        assert set(np.unique(rest)) <= {0, 1} if null == "square" else np.ptp(rest) == 0


# ---------------------------------------------------------------- cells


@pytest.mark.parametrize("c", range(10))
def test_truth_is_where_the_picture_is(c):
    sheet = cells(40, 64, classes=[c], backgrounds=(0,), seed=c)
    assert np.array_equal(sheet.truth > 0, sheet.x.max(1) > 0)  # the cell, and all of it
    assert (sheet.x.max() == 0) == (c == 9)
    for image, truth in zip(sheet.x, sheet.truth):
        for level in np.unique(truth[truth > 0]):  # two colours, one for each level
            assert np.ptp(image[:, truth == level], axis=1).max() < 1e-5


@pytest.mark.parametrize("c", range(10))
def test_the_background_fills_the_rest(c):
    sheet = cells(40, 64, classes=[c], backgrounds=(1,), seed=c)
    assert (sheet.x.max(1) > 0)[sheet.truth == 0].mean() > 0.99


def test_sizes_show_the_same_kind_of_cell():
    small, large = ((cells(60, size, classes=[0], seed=2).truth > 0).mean() for size in (64, 256))
    assert small == pytest.approx(large, rel=0.25)


def test_every_tail_shows():
    tails = cells(30, 64, classes=[6], seed=5).truth > 0.8
    assert tails.mean((1, 2)).min() >= 0.003


@pytest.mark.parametrize("n", [0, 1, 7, 65])
def test_chunks_do_not_change_shapes(n):
    assert cells(n, 64, chunk=3).x.shape == (n, 3, 64, 64)


def test_the_callers_generator_is_untouched():
    state = torch.random.get_rng_state()
    cells(10)
    block_toy(5)
    assert torch.equal(torch.random.get_rng_state(), state)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: block_toy(-1), "n=-1"),
        (lambda: block_toy(3, d=0), "d=0"),
        (lambda: block_toy(3, d=4, n_signal=5), "n_signal=5: expected at most d=4"),
        (lambda: block_toy(3, noise=-1.0), r"noise=-1\.0"),
        (lambda: block_toy(3, noise=float("nan")), "noise=nan"),
        (lambda: block_toy(3, noise=float("inf")), "noise=inf"),
        (lambda: block_toy(3, noise="a"), "noise='a': expected a number"),
        (lambda: block_toy(3, magnitude=float("nan")), "magnitude=nan"),
        (lambda: block_toy_exact(magnitude=float("inf")), "magnitude=inf"),
        (lambda: gaussian_blocks(3, [1.0, float("nan")]), r"strength=\[1\.0, nan\]"),
        (lambda: gaussian_blocks(3, [1.0], sigma=float("inf")), "sigma=inf"),
        (lambda: gaussian_blocks(3, [1.0, 2.0], [3]), "add up to 2"),
        (lambda: gaussian_blocks(3, [1.0], rho=2), "rho=2"),
        (lambda: cells(3, size=2.5), r"size=2\.5"),
        (lambda: cells(3, size=7), "size=7"),
        (lambda: cells(3, chunk=0), "chunk=0"),
        (lambda: cells(3, classes=[]), r"classes=\[\]"),
        (lambda: cells(3, backgrounds=[]), r"backgrounds=\[\]"),
        (lambda: stack_blocks(np.zeros((2, 1, 4, 4)), [0, 1], "x"), "null='x'"),
    ],
)
def test_impossible_arguments(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()
