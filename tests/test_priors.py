"""Penalties on maps: values, derivatives, and what is refused."""

import pytest
import torch
from torch import nn

from advinterp.adversary import PGD, OneStep
from advinterp.attribution import (
    expected_gradients,
    input_x_grad,
    integrated_gradients,
    saliency,
    smoothgrad,
)
from advinterp.duals import L1, LInfBall
from advinterp.metrics import connectedness, gini, pointing_game, total_variation
from advinterp.penalty import Targets
from advinterp.priors import MapPenalty, Masked, RightReasons
from advinterp.spec import Call, from_spec

torch.manual_seed(0)
NET = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Softplus(), nn.Linear(6, 3)).double()
X = torch.rand(4, 1, 8, 8).double()
Y = torch.tensor([0, 1, 2, 0])


def test_direction_decides_what_is_minimised():
    map = saliency(NET, X, Y)
    assert torch.allclose(MapPenalty(saliency, gini)(NET, X, Y), 1 - gini(map))
    rough = MapPenalty(saliency, total_variation)(NET, X, Y)
    assert torch.allclose(rough, total_variation(map))
    assert torch.allclose(MapPenalty(saliency, L1(2.0))(NET, X, Y), 2 * map.abs().sum((1, 2, 3)))


def test_minimising_it_does_what_it_says():
    """Some steps of gradient descent on the penalty alone raise the Gini index."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Softplus(), nn.Linear(6, 3))
    x, y = X.float(), Y
    before = gini(saliency(net, x, y)).mean()
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(30):
        optimizer.zero_grad()
        MapPenalty(saliency, gini)(net, x, y).mean().backward()
        optimizer.step()
    assert gini(saliency(net, x, y)).mean() > before + 0.05


@pytest.mark.parametrize(
    "attribution",
    [
        saliency,
        input_x_grad,
        Call(integrated_gradients, steps=2),
        Call(smoothgrad, n_samples=2),
        Call(expected_gradients, background=X, n_samples=2),
    ],
)
def test_maps_with_a_graph_have_the_values_of_those_without(attribution):
    with_graph = attribution(NET, X, Y, create_graph=True)
    assert with_graph.requires_grad
    assert torch.allclose(with_graph.detach(), attribution(NET, X, Y))
    assert all(p.requires_grad and p.grad is None for p in NET.parameters())


def test_draws_of_training_differ_and_those_of_reading_do_not():
    free = Call(expected_gradients, background=X, n_samples=1, seed=None)
    assert not torch.equal(free(NET, X, Y), free(NET, X, Y))
    read = Call(expected_gradients, background=X, n_samples=3)
    assert torch.equal(read(NET, X, Y), read(NET, X, Y))


@pytest.mark.parametrize("metric", [connectedness, Call(pointing_game, mask=torch.ones(4, 8, 8))])
def test_measures_without_gradient_are_named(metric):
    with pytest.raises(ValueError, match=r"metric=.*has no gradient.*gini"):
        MapPenalty(saliency, metric)(NET, X, Y)


def test_spec():
    prior = MapPenalty(Call(integrated_gradients, steps=4), gini)
    assert from_spec(repr(prior)) == prior


def test_masks_of_the_examples_of_a_batch():
    """A callable of masks is asked with the batch at hand, whatever its order."""
    masks = torch.arange(64).reshape(1, 8, 8) % torch.tensor([2, 3, 4, 5])[:, None, None] == 0
    of_content = Targets(X, masks[:, None].double())
    order = torch.tensor([2, 0, 3, 1])
    shuffled = RightReasons(of_content)(NET, X[order], Y[order])
    assert torch.allclose(shuffled, RightReasons(masks[:, None].double())(NET, X, Y)[order])
    moved = Masked(OneStep(LInfBall(0.1)), of_content)(NET, X[order], Y[order]) - X[order]
    assert not moved[~masks[order][:, None]].any()
    assert moved.abs().amax() > 0.09


def test_worst_point_nearby_is_no_better_than_the_example():
    mask = torch.ones(1, 8, 8).double()
    assert (RightReasons(mask, eps=0.3)(NET, X, Y) >= RightReasons(mask)(NET, X, Y)).all()


@pytest.mark.parametrize("early_stop", [False, True])
def test_pgd_in_a_box_with_radii_per_example(early_stop):
    eps = torch.tensor([0.0, 0.1, 0.2, 0.3]).double().reshape(4, 1, 1, 1)
    attack = PGD(LInfBall(eps), steps=4, bounds=(0, 1), early_stop=early_stop)
    size = (attack(NET, X, Y) - X).abs().amax((1, 2, 3))
    assert (size <= eps.flatten() + 1e-12).all()
    assert size[0] == 0 and size.max() > 0
    whole = PGD(LInfBall(0.2), steps=4, random_start=False)(NET, X, Y)
    boxed = PGD(LInfBall(torch.full((1, 8, 8), 0.2).double()), steps=4, random_start=False)
    assert torch.allclose(boxed(NET, X, Y), whole)


def test_box_of_radii_keeps_its_shape():
    ball = LInfBall(torch.tensor([0.0, 0.5]))
    assert from_spec(repr(ball)) == ball
    assert torch.equal((2 * ball).eps, torch.tensor([0.0, 1.0]))
    assert LInfBall(torch.zeros(3)).is_zero() and not ball.is_zero()
    with pytest.raises(TypeError, match="a radius for each entry"):
        OneStep(ball).with_eps(0.1)
    with pytest.raises(ValueError, match=r"eps has shape \(2,\)"):
        ball.project(torch.ones(3, 5))
