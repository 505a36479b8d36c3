"""Certificates by smoothing: bounds, closed forms, and that attacks do not break them."""

import pytest
import torch
from scipy.stats import binomtest, norm
from torch import nn

from advinterp.adversary import PGD
from advinterp.attribution import input_x_grad, saliency
from advinterp.certificates import (
    certified_accuracy,
    certified_pixels,
    certified_radius,
    smoothing_radius,
)
from advinterp.duals import L2Ball
from advinterp.map_adversary import map_attack

torch.manual_seed(0)
PLANE = nn.Linear(6, 1).double()
POINTS = torch.randn(30, 6).double()
SIGNED = (PLANE(POINTS)[:, 0] / PLANE.weight.norm()).detach()
SIDES = (SIGNED > 0).long()
NET = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Softplus(), nn.Linear(12, 3))
X = torch.rand(5, 1, 4, 4)
Y = NET(X).argmax(1)


@pytest.mark.parametrize("n, level", [(10, 0.1), (200, 0.001)])
def test_radius_is_that_of_the_exact_interval(n, level):
    counts = torch.arange(n + 1)
    low = [
        binomtest(k, n, alternative="greater").proportion_ci(1 - level, method="exact").low
        for k in range(n + 1)
    ]
    wanted = torch.tensor([0.7 * max(0.0, norm.ppf(max(p, 0.5))) for p in low])
    found = smoothing_radius(counts, n, 0.7, level)
    torch.testing.assert_close(found, wanted.double(), atol=1e-9, rtol=1e-9)
    assert found[0] == 0 and (found.diff() >= 0).all()


def test_linear_classifier_is_certified_up_to_its_plane_and_never_beyond():
    found = certified_radius(PLANE, POINTS, SIDES, 0.5, n_samples=3000)
    assert (found <= SIGNED.abs()).all()
    near = (SIGNED.abs() > 0.25) & (SIGNED.abs() < 0.8)
    assert near.sum() >= 5 and (SIGNED.abs() - found)[near].max() < 0.12
    assert not certified_radius(PLANE, POINTS, 1 - SIDES, 0.5).any()


def test_certified_accuracy_counts_radii_above_eps():
    radius = certified_radius(PLANE, POINTS, SIDES, 0.5, n_samples=300)
    for eps in (0.0, 0.4):
        share = certified_accuracy(PLANE, POINTS, SIDES, eps, 0.5, n_samples=300)
        assert share == (radius > eps).double().mean()
    assert certified_accuracy(PLANE, POINTS, SIDES, 5.0, 0.5, n_samples=300) == 0


def test_attack_within_the_radius_leaves_the_vote():
    """The plane's own worst case: straight to it, as far as is certified."""
    radius = certified_radius(PLANE, POINTS, SIDES, 0.5, n_samples=1000)
    attacks = [PGD(L2Ball(eps))(PLANE, POINTS, SIDES) for eps in (0.1, 0.3)]
    for eps, moved in zip((0.1, 0.3), attacks):
        again = certified_radius(PLANE, moved, SIDES, 0.5, n_samples=4000, level=0.5, seed=1)
        assert (again[radius > eps] > 0).all()
        assert (again[SIGNED.abs() < 0.9 * eps] == 0).all()


def test_an_example_has_the_same_certificate_in_every_batch():
    whole = certified_radius(PLANE, POINTS, SIDES, 0.5, n_samples=100)
    assert torch.equal(
        certified_radius(PLANE, POINTS[7:9], SIDES[7:9], 0.5, n_samples=100), whole[7:9]
    )
    small = certified_radius(PLANE, POINTS, SIDES, 0.5, n_samples=100, batch_size=4)
    assert torch.equal(small, whole)
    other = certified_radius(PLANE, POINTS, SIDES, 0.5, n_samples=100, seed=1)
    assert not torch.equal(other, whole)


def sides_of_planes(model, x, y):
    """Entry 0 is large on one side of a plane, entry 1 on the other."""
    side = (x[:, 0] > 0).to(x)
    return torch.stack([side, 1 - side, 0 * side, 0 * side], 1)


def test_pixels_in_closed_form():
    x = torch.tensor([[0.4, 0, 0, 0], [-0.6, 0, 0, 0], [0.001, 0, 0, 0]])
    how = dict(k=0.25, n_samples=4000)
    found = certified_pixels(nn.Linear(4, 2), x, torch.zeros(3), 0.5, sides_of_planes, **how)
    assert found.shown[:2].tolist() == [[True, False, False, False], [False, True, False, False]]
    distance = x[:2, :1].abs()
    assert (found.radius[:2, :2] < distance).all()
    assert (found.radius[:2, :2] > distance - 0.1).all()
    assert not found.radius[2, :2].any()  # nothing is certain at the plane
    assert (found.radius[:, 2:] > 1).all() and not found.shown[:, 2:].any()


@pytest.mark.parametrize("attribution", [saliency, input_x_grad])
def test_no_certified_pixel_flips(attribution):
    found = certified_pixels(NET, X, Y, 0.5, attribution, n_samples=300)
    moved = map_attack(NET, X, Y, 0.2, k=0.2, steps=10)
    there = certified_pixels(NET, moved, Y, 0.5, attribution, n_samples=300, seed=1)
    sure = found.radius > 0.2
    assert sure.any() and not (sure & (found.shown != there.shown)).any()


def test_more_entries_make_each_certificate_harder():
    """The level is shared by all entries of a map."""
    votes = torch.tensor([400])
    alone = smoothing_radius(votes, 500, 0.5, 0.01)
    assert smoothing_radius(votes, 500, 0.5, 0.01 / 1000) < alone


@pytest.mark.parametrize("function", [certified_radius, certified_pixels])
def test_refusals(function):
    with pytest.raises(ValueError, match=r"sigma=0.0: expected a number > 0.*without noise"):
        function(NET, X, Y, 0.0)
    with pytest.raises(ValueError, match=r"sigma=-1\.0"):
        function(NET, X, Y, -1.0)
    with pytest.raises(ValueError, match=r"level=1\.0"):
        function(NET, X, Y, 0.5, level=1.0)
    with pytest.raises(ValueError, match="n_samples=0"):
        function(NET, X, Y, 0.5, n_samples=0)


def test_pixels_refuse():
    with pytest.raises(TypeError, match="attribution='saliency': expected a function"):
        certified_pixels(NET, X, Y, 0.5, "saliency")
    with pytest.raises(ValueError, match="k="):
        certified_pixels(NET, X, Y, 0.5, k=0.0)


@pytest.mark.parametrize("votes", [[41], [-1], [10.5], [float("nan")]])
def test_votes_are_counts(votes):
    with pytest.raises(ValueError, match="votes: expected whole numbers from 0 to n_samples=40"):
        smoothing_radius(torch.tensor(votes), 40, 0.5)


@pytest.mark.parametrize(
    "attribution, error, said",
    [
        (lambda model, x, y: x * float("nan"), ValueError, "its map has NaN"),
        (lambda model, x, y: x[:, :2], ValueError, "expected a map of shape"),
        (lambda model, x, y: None, TypeError, "expected a tensor like x, got NoneType"),
    ],
)
def test_what_is_no_map_has_no_certificate(attribution, error, said):
    with pytest.raises(error, match=said):
        certified_pixels(PLANE, POINTS[:2], SIDES[:2], 0.5, attribution, n_samples=10)


def test_what_is_zero_is_never_among_the_largest():
    nothing = certified_pixels(
        PLANE, POINTS[:2], SIDES[:2], 0.5, lambda model, x, y: 0 * x, n_samples=40
    )
    assert not nothing.shown.any()


def test_the_pixels_of_a_map_share_the_error():
    """Of a map that noise does not change all votes agree; two bounds for each of its 6 entries."""
    found = certified_pixels(PLANE, POINTS[:2], SIDES[:2], 0.5, k=0.5, n_samples=40, level=0.05)
    alone = smoothing_radius(torch.tensor(40), 40, 0.5, 0.05 / 12)
    torch.testing.assert_close(found.radius, alone.expand(2, 6))
