"""Scorecard: directions, verdicts and intervals, on networks whose order is known."""

import pytest
import torch
from torch import nn

from advinterp.adversary import OneStep
from advinterp.duals import LInfBall
from advinterp.evaluate import bootstrap_interval, is_correct, seed_interval
from advinterp.metrics import gini
from advinterp.papers.common import claim_row, mean_and_half, read_published, verdict
from advinterp.papers.scorecard import scorecard


def linear_net(scale, seed):
    """Two classes, told apart by the first feature; the other weights are noise."""
    generator = torch.Generator().manual_seed(seed)
    weight = 0.1 * torch.randn(2, 6, generator=generator)
    weight[:, 0] += torch.tensor([-1.0, 1.0])
    net = nn.Sequential(nn.Linear(6, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(scale * weight)
        net[2].weight.copy_(torch.eye(2))
    return net.eval()


@pytest.fixture(scope="module")
def data():
    x = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))
    return x, (x[:, 0] > 0).long()


@pytest.fixture(scope="module")
def kinds():
    """The second kind has gradients of a tenth of the size."""
    return {
        "steep": [linear_net(1.0, seed) for seed in range(3)],
        "flat": [linear_net(0.1, seed) for seed in range(3, 6)],
    }


def card_of(kinds, data, **how):
    x, y = data
    attack = OneStep(LInfBall(0.2))
    return scorecard(kinds, x, y, attack, eps=0.1, **how).set_index("metric")


@pytest.fixture(scope="module")
def card(kinds, data):
    return card_of(kinds, data)


NORM = "norm of the true logit's gradient"


def test_lower_is_better_for_norms(card):
    """The difference is below zero, which confirms a claim that lower is better."""
    assert card.loc[NORM, "better"] == "lower"
    assert card.loc[NORM, "high"] < 0
    assert card.loc[NORM, "verdict"] == "confirmed"


def test_the_other_way_round_contradicts(card, kinds, data):
    reverse = card_of(dict(reversed(kinds.items())), data)
    assert list(reverse.columns[1:3]) == ["flat", "steep"]
    assert reverse.loc[NORM, "verdict"] == "contradicted"
    opposite = dict(confirmed="contradicted", contradicted="confirmed", open="open")
    # the last row is bootstrapped over the images: resampling need not be symmetric
    for metric in card.index[:-1]:
        assert reverse.loc[metric, "verdict"] == opposite[card.loc[metric, "verdict"]], metric


def test_columns_are_means_of_the_metric(card, kinds, data):
    x, y = data
    attack = OneStep(LInfBall(0.2))
    for kind, models in kinds.items():
        robust = torch.stack([is_correct(net, x, y, attack).double() for net in models])
        assert card.loc["robust accuracy", kind] == pytest.approx(robust.mean().item())


def test_intervals_are_over_seeds(card, kinds, data):
    """Paired by position, of the mean over the examples."""
    x, y = data

    def gini_of(net):
        inputs = x.clone().requires_grad_()
        logits = net(inputs).gather(1, y[:, None]).sum()
        return gini(torch.autograd.grad(logits, inputs)[0]).double().mean().item()

    steep, flat = ([gini_of(net) for net in models] for models in kinds.values())
    low, high = seed_interval([b - a for a, b in zip(steep, flat)])
    assert card.loc["Gini, gradient", ["low", "high"]].tolist() == pytest.approx([low, high])


def test_one_model_of_each_kind_is_bootstrapped(kinds, data):
    x, y = data
    alone = {kind: models[:1] for kind, models in kinds.items()}
    card = card_of(alone, data)
    before, after = (is_correct(models[0], x, y).double() for models in alone.values())
    interval = bootstrap_interval((after - before).numpy())
    assert card.loc["accuracy", ["low", "high"]].tolist() == pytest.approx(list(interval))
    assert "top entries shared between seeds, gradient" not in card.index


@pytest.mark.parametrize("sizes", [(1,), (1, 2), (0, 0), (1, 1, 1)])
def test_kinds_are_checked(sizes, data):
    x, y = data
    kinds = {str(i): [linear_net(1.0, 0)] * n for i, n in enumerate(sizes)}
    with pytest.raises(ValueError, match=r"kinds=.*expected two kinds with the same number"):
        scorecard(kinds, x, y, OneStep(LInfBall(0.2)), 0.1)


def test_radius_is_now_eps(kinds, data):
    x, y = data
    alone = {kind: models[:1] for kind, models in kinds.items()}
    attack = OneStep(LInfBall(0.2))
    with pytest.warns(FutureWarning, match="radius= is now .*eps="):
        card = scorecard(alone, x, y, attack, radius=0.1)
    assert card.equals(scorecard(alone, x, y, attack, eps=0.1))


INTERVALS = [
    (0.1, 0.3, "confirmed", "contradicted"),
    (-0.3, -0.1, "contradicted", "confirmed"),
    (-0.1, 0.3, "open", "open"),
    (0.0, 0.3, "open", "open"),
    (float("nan"), float("nan"), "no interval", "no interval"),
]


@pytest.mark.parametrize("low,high,if_positive,if_negative", INTERVALS)
def test_a_verdict_has_a_side(low, high, if_positive, if_negative):
    assert verdict(low, high) == if_positive
    assert verdict(low, high, published=0.01) == if_positive
    assert verdict(low, high, published=-5) == if_negative


def test_a_claim_holds_where_its_differences_are_positive():
    row = claim_row("a above b", "a - b", [1.0, 1.1, 0.9])
    assert (row["difference"], row["verdict"]) == (pytest.approx(1.0), "confirmed")
    assert (row["low"], row["high"]) == pytest.approx(seed_interval([1.0, 1.1, 0.9]))
    assert claim_row("a above b", "a - b", [-1.0, -1.1, -0.9])["verdict"] == "contradicted"


def test_half_an_interval_stands_beside_the_mean():
    low, high = seed_interval([0.1, 0.2, 0.4])
    assert mean_and_half([0.1, 0.2, 0.4], digits=4) == f"0.2333 ± {(high - low) / 2:.4f}"


def test_published_tables_are_read_to_the_last_digit():
    strengths = read_published("c_table3").eps
    assert strengths.tolist()[1:4] == [0.01, 0.05, 0.1]
    with pytest.raises(ValueError, match="name='c_table7': expected one of 'b_tables'"):
        read_published("c_table7")
