"""Noisy steps and TRADES: against loops written out, on nets whose answers are known."""

import copy

import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.optimizer import SGD
from torch import nn

from advinterp.adversary import PGD, OneStep
from advinterp.callbacks import AdversarialTraining
from advinterp.cheap import TRADES, NoisyStep, n_fgsm
from advinterp.core import set_seed
from advinterp.data import get_data
from advinterp.duals import ElasticNet, GroupBall, L1Ball, L2Ball, LInfBall
from advinterp.experiments import method_of
from advinterp.priors import Masked
from advinterp.spec import from_spec, to_spec
from advinterp.study import SkipValidation
from advinterp.train import adv_learner

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


# ---------------------------------------------------------------- TRADES


def kl(net, x, x_adv):
    p, q = net(x).softmax(1), net(x_adv).softmax(1)
    return (p * (p / q).log()).sum(1).detach()


def trades_by_hand(net, x, y, eps, steps, start):
    """The public algorithm with falling steps, from a given start."""
    said = net(x).softmax(1).detach()
    delta = start
    for t in range(steps):
        z = (x + delta).requires_grad_()
        loss = F.kl_div(net(z).log_softmax(1), said, reduction="sum")
        slope = torch.autograd.grad(loss, z)[0]
        delta = (delta + eps * (1 - t / steps) * slope.sign()).clamp(-eps, eps)
    return x + delta


@pytest.mark.parametrize("steps", [1, 4])
def test_the_search_is_the_algorithm(steps):
    net, x = mlp(dtype=torch.double), X.double()
    start = 0.1 * (2 * torch.rand_like(x) - 1)

    class Given(LInfBall):
        def random_point(self, x, generator=None):
            return start

    found = TRADES(Given(0.1), steps)(net, x, Y)
    assert torch.allclose(found, trades_by_hand(net, x, Y, 0.1, steps, start), atol=1e-12)
    assert torch.equal(found, TRADES(Given(0.1), steps)(net, x, (Y + 1) % 3))  # labels: not used
    assert (kl(net, x, found) > kl(net, x, x + start)).float().mean() > 0.9


@pytest.mark.parametrize("shape", ["(B, 1)", "(B,)"])
def test_one_logit_is_two_classes(shape):
    torch.manual_seed(0)
    one = nn.Linear(12, 1)

    class Both(nn.Module):
        def forward(self, x):
            return torch.cat([torch.zeros(len(x), 1), one(x)], 1)

    single = one if shape == "(B, 1)" else nn.Sequential(one, nn.Flatten(0))
    made = TRADES(LInfBall(0.1), 3)
    made.call_seed = lambda *arguments: 0
    assert torch.allclose(made(single, X, Y % 2), made(Both(), X, Y % 2), atol=1e-6)
    expected = kl(Both(), X, X + 0.1)
    assert torch.allclose(made.divergence(single(X), single(X + 0.1)), expected, atol=1e-6)


def test_no_divergence_from_itself_and_none_is_negative():
    a, b = 20 * torch.randn(2, 1000, 5)
    made = TRADES(LInfBall(0.1))
    assert (made.divergence(a, a) == 0).all()
    assert (made.divergence(a, b) > -1e-6).all()
    assert made.divergence(1e4 * a, 1e4 * b).isfinite().all()  # probabilities that round to 0


def conv_net():
    torch.manual_seed(2)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)]
    return nn.Sequential(*layers).double()


def loaders():
    dls = get_data("digits", bs=64, n_train=192, n_valid=64, device="cpu")
    for part in (dls.train_ds, dls.valid_ds):
        part.x = part.x.double()
    return dls


def learned(adversary, *cbs, epochs=1, **settings):
    learn = adv_learner(loaders(), conv_net(), opt_func=SGD, lr=0.1, cbs=[SkipValidation(), *cbs])
    if adversary is not None:
        learn.adversarial(adversary, **settings)
    set_seed(0)
    with learn.no_bar(), learn.no_logging():
        learn.fit(epochs)
    return learn


class SameStart(TRADES):
    """Starts that follow from the bits of the weights would differ after the first rounding."""

    def call_seed(self, digest, model, x):
        return 0


def state(net):
    return torch.cat([v.detach().double().flatten() for v in net.state_dict().values()])


def looped(beta, adversary, epochs=1):
    net = conv_net()
    opt = torch.optim.SGD(net.parameters(), 0.1)
    set_seed(0)
    dls = loaders()
    for _ in range(epochs):
        for x, y in dls.train:
            net.eval()
            x_adv = adversary(net, x, y)
            net.train()
            clean = net(x)
            moved = net(x_adv)
            term = F.kl_div(moved.log_softmax(1), clean.softmax(1), reduction="batchmean")
            opt.zero_grad()
            (F.cross_entropy(clean, y) + beta * term).backward()
            opt.step()
    return state(net)


def test_training_is_the_loop_with_batch_norm():
    made = SameStart(LInfBall(0.1), 3, beta=4.0, bounds=(0, 1))
    weights = state(learned(made, epochs=2).model)
    assert torch.allclose(weights, looped(4.0, made, epochs=2), atol=1e-9)
    assert (weights - looped(3.0, made, epochs=2)).abs().max() > 1e-3


def test_beta_0_is_natural_training_statistics_included():
    natural = state(learned(None).model)
    assert torch.equal(state(learned(TRADES(LInfBall(0.1), 3, beta=0.0)).model), natural)
    assert not torch.equal(state(learned(TRADES(LInfBall(0.1), 3)).model), natural)


def test_the_clean_loss_is_reported_and_the_batch_stays_clean():
    class Watch(Callback):
        order = 90

        def after_loss(self):
            self.pairs.append((self.learn.loss.item(), self.learn.loss_grad.item()))
            clean = F.cross_entropy(self.learn.model(self.learn.xb[0]), self.learn.yb[0]).item()
            assert self.learn.loss.item() == pytest.approx(clean)
            assert self.learn.xb[0].ndim == 4

        def before_fit(self):
            self.pairs = []

    watch = Watch()
    learned(TRADES(LInfBall(0.1), 2), watch)
    assert all(total > reported for reported, total in watch.pairs)
    learned(TRADES(LInfBall(0.1), 2), watch, warmup=1)
    assert all(total == reported for reported, total in watch.pairs)


class SameMasked(Masked):
    """As `SameStart`."""

    def call_seed(self, digest, model, x):
        return 0


def test_within_masks_it_is_added_too():
    """A mask of ones changes nothing; half of one is neither that nor a masked PGD."""
    made = SameStart(LInfBall(0.1), 3, bounds=(0, 1))
    whole = state(learned(SameMasked(made, torch.ones(1, 8, 8))).model)
    assert torch.allclose(whole, state(learned(made).model), atol=1e-9)
    half = torch.ones(1, 8, 8)
    half[:, :, :4] = 0
    within = state(learned(SameMasked(made, half)).model)
    other = state(learned(SameMasked(PGD(LInfBall(0.1), 3, bounds=(0, 1)), half)).model)
    assert min((within - whole).abs().max(), (within - other).abs().max()) > 1e-4


def test_free_training_has_no_divergence():
    with pytest.raises(ValueError, match="free_replays=4: free training moves with the slope"):
        adv_learner(loaders(), conv_net(), TRADES(LInfBall(0.1)), free_replays=4)


def test_schedules_and_accumulation():
    made = TRADES(LInfBall(0.1), 2, bounds=(0, 1))
    whole = state(learned(made, schedule=lambda share: 0.1).model)
    assert torch.equal(whole, state(learned(made).model))
    weak = state(learned(made, schedule=lambda share: 0.01).model)
    assert not torch.allclose(weak, whole, atol=1e-4)


def test_it_is_a_method_of_studies():
    method = method_of("TRADES(LInfBall(0.05), steps=2, beta=3)", "image")
    assert from_spec(method.spec).beta == 3
    made = TRADES(LInfBall(8 / 255), 7, beta=3.0, training=True, seed=2)
    assert from_spec(to_spec(made)) == made
    assert made.with_eps(0.1).beta == made.scaled(0.5).beta == 3.0


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda: TRADES(LInfBall(0.1), beta=-1.0), "beta=-1.0: expected a finite number >= 0"),
        (lambda: TRADES(LInfBall(0.1), beta=float("nan")), "beta=nan"),
        (lambda: TRADES(LInfBall(0.1), targeted=True), "targeted=True"),
        (lambda: TRADES(ElasticNet(0.1, 0.1)), "expected a ball"),
        (lambda: TRADES(LInfBall(0.1), steps=0), "steps=0"),
        (lambda: AdversarialTraining(TRADES(LInfBall(0.1)), alpha=0.5), "weighted by its beta"),
    ],
)
def test_trades_that_make_no_sense(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
