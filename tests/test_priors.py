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
from advinterp.penalty import GradNorm, Targets
from advinterp.priors import GradientStability, MapPenalty, Masked, RightReasons
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


def gradient_by_hand(x):
    x = x.clone().requires_grad_()
    loss = nn.functional.cross_entropy(NET(x), Y, reduction="sum")
    return torch.autograd.grad(loss, x)[0].flatten(1)


def test_stability_is_the_published_formulas():
    """CURE at its step h, GradAlign at the point that both draw."""
    here = gradient_by_hand(X)
    step = here.sign() / here.sign().norm(dim=1, keepdim=True)
    there = gradient_by_hand(X + 1.5 * step.reshape(X.shape))
    cure = GradientStability(LInfBall(1.5 / 8), point="steepest")
    assert torch.allclose(cure(NET, X, Y), (there - here).square().sum(1), rtol=1e-10)
    torch.manual_seed(1)
    there = gradient_by_hand(X + 0.4 * (torch.rand_like(X) - 0.5))
    torch.manual_seed(1)
    align = GradientStability(LInfBall(0.2), distance="cosine")
    cosine = torch.cosine_similarity(there, here)
    assert torch.allclose(align(NET, X, Y), 1 - cosine, atol=1e-12)


def test_stability_asks_for_another_thing_than_a_small_gradient():
    """Zero for a linear logit however steep, and scale-free by the angle."""
    steep = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double()
    with torch.no_grad():
        steep[1].weight.mul_(100)
    of_logit = GradientStability(LInfBall(0.3), output="logit")
    assert (of_logit(steep, X, Y) < 1e-20).all()
    assert (GradNorm(L1(1.0), output="logit")(steep, X, Y) > 100).all()
    by_angle = GradientStability(LInfBall(0.3), distance="cosine", output="logit")
    torch.manual_seed(2)
    plain = by_angle(NET, X, Y)
    torch.manual_seed(2)
    tiny = by_angle(lambda x: 1e-9 * NET(x), X, Y)
    assert plain.min() > 1e-6 and torch.allclose(plain, tiny, rtol=1e-8)


def test_stability_without_a_radius_or_a_gradient_is_zero_with_finite_slopes():
    blank = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double()
    nn.init.zeros_(blank[1].weight)
    for distance in ("l2", "cosine"):
        assert (GradientStability(LInfBall(0.0), distance)(NET, X, Y) < 1e-12).all()
        value = GradientStability(LInfBall(0.1), distance)(blank, X, Y)
        assert not value.any()
        (slope,) = torch.autograd.grad(value.sum(), blank[1].weight)
        assert slope.isfinite().all()


def test_minimising_it_turns_gradients_less():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Softplus(), nn.Linear(6, 3))
    x, prior = X.float(), GradientStability(LInfBall(0.5), distance="cosine")
    before = prior(net, x, Y).mean()
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(40):
        optimizer.zero_grad()
        prior(net, x, Y).mean().backward()
        optimizer.step()
    assert prior(net, x, Y).mean() < 0.5 * before


def test_stability_refuses():
    with pytest.raises(TypeError, match="ball='small': expected a ball such as LInfBall"):
        GradientStability("small")
    with pytest.raises(ValueError, match=r"distance='l1': expected one of 'l2' or 'cosine'"):
        GradientStability(LInfBall(0.1), "l1")
    with pytest.raises(ValueError, match=r"point='worst': expected one of"):
        GradientStability(LInfBall(0.1), point="worst")
    spec = "GradientStability(L2Ball(0.5), distance='cosine', point='steepest', output='logit')"
    assert repr(from_spec(spec)) == spec


@pytest.mark.parametrize("wrong", [float("nan"), -1.0])
def test_masks_of_a_function_are_checked_as_those_of_a_tensor(wrong):
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    x, y = torch.rand(2, 4), torch.tensor([0, 1])
    reasons = RightReasons(lambda x, y: torch.full_like(x, wrong))
    with pytest.raises(ValueError, match="masks: expected finite values >= 0"):
        reasons(net, x, y)
