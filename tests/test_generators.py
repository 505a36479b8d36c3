"Generators: distributions against their formulas, truth against pictures."

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advinterp.generators import block_toy, block_toy_exact, cells, gaussian_blocks, stack_blocks


@settings(deadline=None, max_examples=25)
@given(
    d=st.integers(1, 12),
    frac=st.floats(0.1, 1),
    b=st.integers(1, 4),
    u=st.floats(0.1, 3),
    seed=st.integers(0, 50),
)
def test_every_toy_row_is_a_point_of_the_enumeration(d, frac, b, u, seed):
    m = max(1, int(frac * d))
    (x, y, truth), p = block_toy_exact(d, m, b, u)
    assert (
        x.shape == (2 * m, d * b)
        and p.sum() == pytest.approx(1)
        and len(np.unique(x, axis=0)) == 2 * m
        and (truth.sum(1) == b).all()
    )
    assert np.allclose(p @ x, 0) and np.allclose(
        p @ ((2 * y - 1)[:, None] * x),
        np.r_[np.full(m * b, np.float32(u) / m), np.zeros((d - m) * b)],
    )  # E x, E s x
    s = block_toy(50, d, m, b, u, seed=seed)
    points = {(r.tobytes(), c) for r, c in zip(x, y)}
    assert all((r.tobytes(), c) in points for r, c in zip(s.x, s.y)) and np.array_equal(
        s.truth, s.x != 0
    )


def test_toy_noise_is_gaussian_with_its_deviation():
    from scipy.stats import kstest

    s = block_toy(20_000, 5, 2, noise=0.3, seed=1)
    r = (s.x - (2 * s.y - 1)[:, None] * s.truth).ravel()
    assert kstest(r / 0.3, "norm").pvalue > 1e-3 and block_toy(0).x.shape == (0, 10)


def test_gaussian_blocks_are_independent_given_the_label():
    a = np.array([1.0, -0.5, 0.0, 0.3])
    g = gaussian_blocks(100_000, a, [2, 2], rho=0.9, seed=3)
    for c, s in ((0, -1), (1, 1)):
        r = g.x[g.y == c]
        k = np.corrcoef(r.T)
        assert (
            np.abs(k[:2, 2:]).max() < 0.02
            and k[0, 1] == pytest.approx(0.9, abs=0.01)
            and np.allclose(r.mean(0), s * a, atol=0.02)
        )
    assert np.abs(np.corrcoef(g.x.T)[0, 3]) > 0.1  # without the label they are not


@pytest.mark.parametrize("c", range(10))
def test_truth_is_where_the_picture_is(c):
    k = cells(40, 64, classes=[c], backgrounds=(0,), seed=c)
    assert np.array_equal(k.truth > 0, k.x.max(1) > 0)  # nothing but the cell, and all of it
    if c == 9:
        assert k.x.max() == 0
    else:
        for x, t in zip(k.x, k.truth):  # two colours, one for each level
            for level in np.unique(t[t > 0]):
                assert np.ptp(x[:, t == level], axis=1).max() < 1e-5
    with_bg = cells(40, 64, classes=[c], backgrounds=(1,), seed=c)
    assert (with_bg.x.max(1) > 0)[with_bg.truth == 0].mean() > 0.99  # the background fills the rest


def test_sizes_show_the_same_kind_of_cell():
    area = [(cells(60, s, classes=[0], seed=2).truth > 0).mean() for s in (64, 256)]
    assert area[0] == pytest.approx(area[1], rel=0.25)
    assert (cells(30, 64, classes=[6], seed=5).truth > 0.8).mean((1, 2)).min() >= 0.003


def test_chunks_and_threads_do_not_change_shapes_or_ranges():
    for n in (0, 1, 7, 65):
        assert cells(n, 64, chunk=3).x.shape == (n, 3, 64, 64)
    state = torch.random.get_rng_state()
    cells(10)
    block_toy(5)
    assert torch.equal(torch.random.get_rng_state(), state)  # the caller's generator is untouched


@pytest.mark.parametrize(
    "f",
    [
        lambda: block_toy(-1),
        lambda: block_toy(3, d=0),
        lambda: block_toy(3, noise=-1.0),
        lambda: block_toy(3, noise=float("nan")),
        lambda: gaussian_blocks(3, [1.0, 2.0], [3]),
        lambda: gaussian_blocks(3, [1.0], rho=2),
        lambda: cells(3, size=2.5),
        lambda: cells(3, classes=[]),
        lambda: stack_blocks(np.zeros((2, 1, 4, 4)), [0, 1], "x"),
    ],
)
def test_impossible_arguments(f):
    with pytest.raises(ValueError):
        f()
