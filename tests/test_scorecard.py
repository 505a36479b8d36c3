"""The scorecard of two kinds of models whose differences are known."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from advinterp.adversary import PGD
from advinterp.duals import LInfBall
from advinterp.evaluate import bootstrap_interval, gradient_norms, robust_accuracy, seed_interval
from advinterp.papers.scorecard import scorecard

NORM = "norm of the true logit's gradient"
GENERATOR = torch.Generator().manual_seed(0)
X = torch.rand(10, 12, generator=GENERATOR)
Y = torch.arange(10) % 3
ATTACK = PGD(LInfBall(0.1), steps=2)


def network(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def steeper(model):
    """The same classes, gradients three times as long."""
    steep = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in steep[2].parameters():
            parameter.mul_(3)
    return steep


def card_of(first, second):
    return scorecard(dict(flat=first, steep=second), X, Y, ATTACK, 0.3).set_index("metric")


def norms(models):
    return np.array([gradient_norms(model, X, Y).true.double().numpy() for model in models])


def test_several_models_are_paired_by_position():
    flat = [network(seed) for seed in range(3)]
    steep = [steeper(model) for model in flat]
    card = card_of(flat, steep)
    row = card.loc[NORM]
    differences = norms(steep) - norms(flat)
    assert row.steep == pytest.approx(3 * row.flat, rel=1e-5)
    assert row.difference == pytest.approx(differences.mean(), rel=1e-5)
    assert (row.low, row.high) == pytest.approx(seed_interval(differences.mean(1)), rel=1e-5)
    assert (row.better, row.verdict) == ("lower", "contradicted")
    assert card_of(steep, flat).loc[NORM].verdict == "confirmed"
    same = card.loc["accuracy"]
    assert (same.better, same.difference, same.verdict) == ("higher", 0, "open")
    assert "top entries shared between seeds, gradient" in card.index


def test_one_model_has_an_interval_over_the_examples():
    flat = [network(5)]
    steep = [steeper(flat[0])]
    row = card_of(flat, steep).loc[NORM]
    expected = bootstrap_interval((norms(steep) - norms(flat))[0])
    assert (row.low, row.high) == pytest.approx(expected, rel=1e-5)


def test_kinds_of_different_sizes_are_refused():
    one, two = [network(0)], [network(0), network(1)]
    with pytest.raises(ValueError, match=r"kinds=\{'flat': 1, 'steep': 2\}: expected two kinds"):
        card_of(one, two)
    with pytest.raises(ValueError, match="expected two kinds"):
        scorecard(dict(only=one), X, Y, ATTACK, 0.3)


def test_every_verdict_turns_with_the_order_of_the_kinds():
    flat = [network(seed) for seed in range(3)]
    steep = [steeper(model) for model in flat]
    card, reverse = card_of(flat, steep), card_of(steep, flat)
    opposite = dict(confirmed="contradicted", contradicted="confirmed", open="open")
    # the last row is bootstrapped over the images: resampling need not be symmetric
    for metric in card.index[:-1]:
        assert reverse.verdict[metric] == opposite[card.verdict[metric]], metric


def test_columns_are_means_over_the_models():
    flat = [network(seed) for seed in range(2)]
    steep = [steeper(model) for model in flat]
    row = card_of(flat, steep).loc["robust accuracy"]
    for kind, models in dict(flat=flat, steep=steep).items():
        of_models = [robust_accuracy(model, X, Y, ATTACK) for model in models]
        assert row[kind] == pytest.approx(np.mean(of_models))


def test_radius_is_now_eps():
    kinds = dict(flat=[network(0)], steep=[steeper(network(0))])
    with pytest.warns(FutureWarning, match=r"radius= is now .*eps="):
        card = scorecard(kinds, X, Y, ATTACK, radius=0.1)
    assert card.equals(scorecard(kinds, X, Y, ATTACK, eps=0.1))
