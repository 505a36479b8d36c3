"""Noisy steps and TRADES: against loops written out, on nets whose answers are known."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advinterp.adversary import OneStep
from advinterp.cheap import NoisyStep, n_fgsm
from advinterp.duals import ElasticNet, GroupBall, L1Ball, L2Ball, LInfBall
from advinterp.spec import from_spec, to_spec

torch.manual_seed(0)
X = torch.rand(24, 12)
Y = torch.arange(24) % 3


def mlp(n_out=3, dtype=torch.float):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, n_out)).to(dtype)


# ---------------------------------------------------------------- one noisy step


@pytest.mark.parametrize("k", [0.5, 2.0, 3.0])
def test_noise_is_uniform_and_the_step_is_eps(k):
    """On a linear model the signs are known, so what is left is the noise: uniform."""
    torch.manual_seed(0)
    line = nn.Linear(400, 1)
    x, y = torch.full((100, 400), 0.5), torch.arange(100) % 2
    step = torch.where(y[:, None] == 1, -1.0, 1.0) * line.weight.detach().sign()
    noise = ((n_fgsm(0.01, noise=k)(line, x, y) - x - 0.01 * step) / (0.01 * k)).flatten()
    assert noise.abs().max() <= 1 + 1e-3
    grid = torch.linspace(-1, 1, 41)
    reached = (noise[:, None] <= grid).float().mean(0)
    assert (reached - (grid + 1) / 2).abs().max() < 1.63 / len(noise) ** 0.5  # Kolmogorov, 1 %


def test_the_gradient_is_taken_at_the_noise():
    """A kink lies between the input and the noise: only a look at the noise sees its slope."""

    class Tent(nn.Module):
        def forward(self, x):
            return x.abs()  # of one logit; label 0 wants it small

    x, y = torch.full((2000, 1), 0.001), torch.zeros(2000).long()
    moved = n_fgsm(0.1, noise=2.0)(Tent(), x, y)
    noise_was_positive = (moved > 0).float().mean()
    assert 0.45 < noise_was_positive < 0.55  # from x itself every step would go up
    assert (moved.abs() >= 0.1 - 1e-6).all()  # away from the kink, on both sides
    assert (OneStep(LInfBall(0.1))(Tent(), x, y) > 0).all()


@pytest.mark.parametrize("ball", [LInfBall, L1Ball, L2Ball, lambda e: GroupBall(e, patch=2)])
def test_it_stays_within_the_larger_ball_and_the_bounds(ball):
    x = X.reshape(24, 1, 3, 4)
    net = nn.Sequential(nn.Flatten(), mlp())
    made = ball(0.2)
    delta = NoisyStep(made)(net, x, Y) - x
    assert (made.norm(delta) <= 0.6 + 1e-5).all()
    assert (made.norm(delta) > 0.2 + 1e-5).any()
    inside = NoisyStep(made, bounds=(0, 1))(net, x, Y)
    assert 0 <= inside.min() and inside.max() <= 1


def test_noise_stays_in_the_bounds_where_the_gradient_is_taken():
    seen = []
    net = mlp()

    def watched(x):
        seen.append(x.detach())
        return net(x)

    n_fgsm(0.3, bounds=(0, 1))(watched, X, Y)
    assert all(0 <= z.min() and z.max() <= 1 for z in seen)


def test_no_noise_is_one_step_and_strength_0_moves_nothing():
    net = mlp()
    for ball in (LInfBall(0.1), L2Ball(0.3)):
        found, expected = NoisyStep(ball, noise=0.0)(net, X, Y), OneStep(ball)(net, X, Y)
        assert torch.allclose(found, expected, atol=1e-6)
    assert torch.equal(n_fgsm(0.0)(net, X, Y), X)


def test_targets_radii_and_strengths():
    net = mlp()
    goal = (Y + 1) % 3
    towards = n_fgsm(0.05, targeted=True, noise=0.5)(net, X, goal)
    assert (F.cross_entropy(net(towards), goal) < F.cross_entropy(net(X), goal)).item()
    radii = torch.full((24, 12), 0.1)
    radii[:, 3:] = 0
    delta = n_fgsm(radii)(net, X, Y) - X
    assert (delta[:, 3:] == 0).all() and (delta[:, :3] != 0).all()
    assert n_fgsm(0.1).with_eps(0.3) == n_fgsm(0.3)
    assert n_fgsm(0.1, noise=1.0).scaled(2.0) == n_fgsm(0.2, noise=1.0)


def test_nothing_of_the_caller_is_touched():
    net = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    net.train()
    before = copy.deepcopy(net.state_dict())
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = n_fgsm(0.1)(net, X, Y)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert net.training and all(p.grad is None and p.requires_grad for p in net.parameters())
    torch.manual_seed(4)
    assert torch.equal(n_fgsm(0.1)(net, X, Y), first)
    assert not torch.equal(n_fgsm(0.1, seed=1)(net, X, Y), first)


def test_specs_of_noisy_steps():
    made = n_fgsm(8 / 255, noise=1.5, bounds=(0, 1), training=True)
    assert from_spec(to_spec(made)) == made
    assert from_spec("n_fgsm(8/255, noise=1.5, bounds=(0, 1), training=True)") == made
    assert isinstance(made, NoisyStep)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda: NoisyStep(ElasticNet(0.1, 0.1)), "expected a ball, such as LInfBall"),
        (lambda: n_fgsm(-1.0), "eps=-1.0"),
        (lambda: n_fgsm(float("nan")), "eps=nan"),
        (lambda: n_fgsm(0.1, noise=-1.0), "noise=-1.0"),
        (lambda: n_fgsm(torch.tensor([0.1, -0.1])), "expected finite radii >= 0"),
        (lambda: n_fgsm(torch.ones(5))(mlp(), X, Y), "eps has shape"),
    ],
)
def test_noisy_steps_that_make_no_sense(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
