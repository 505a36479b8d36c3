"""F-Fidelity: closed forms, the size of what is removed, and a truth that is known."""

import pytest
import torch
from torch import nn

from advinterp.core import set_seed, task_loss
from advinterp.fidelity import f_fidelity, fill_tuned
from advinterp.generators import block_toy

set_seed(0)
LINEAR = nn.Linear(12, 1).double()
X = torch.randn(5, 12).double()
Y = torch.ones(5).long()
MAP = torch.rand(5, 12).double()
ALL = dict(alpha=1.0, beta=1.0, output="logit")


@pytest.mark.parametrize("fill", [0.0, 0.7])
def test_all_that_is_named_and_all_the_rest(fill):
    contribution = LINEAR.weight[0].detach() * (X - fill)
    named = MAP >= MAP.topk(3, dim=1).values[:, -1:]
    found = f_fidelity(LINEAR, X, Y, MAP, k=0.25, fill=fill, n_samples=2, **ALL)
    torch.testing.assert_close(found.named, (contribution * named).sum(1))
    torch.testing.assert_close(found.rest, (contribution * ~named).sum(1))


def test_a_share_takes_its_share_in_the_mean():
    contribution = LINEAR.weight[0].detach() * X
    named = MAP >= MAP.topk(6, dim=1).values[:, -1:]
    how = dict(ALL, alpha=0.5, k=0.5, n_samples=3000)
    found = f_fidelity(LINEAR, X, Y, MAP, **how)
    assert (found.named - (contribution * named).sum(1) / 2).abs().max() < 0.08


@pytest.mark.parametrize("k, alpha, beta, most", [(0.5, 1.0, 0.25, 3), (0.25, 0.34, 1.0, 1)])
def test_size_of_the_holes(k, alpha, beta, most):
    sizes = []

    def watched(x):
        sizes.append((x == 9.0).sum(1))
        return LINEAR(x)

    f_fidelity(watched, X, Y, MAP, k=k, alpha=alpha, beta=beta, fill=9.0, n_samples=3)
    with_holes = [size for size in sizes if len(size) == 5 and size.any()]  # not its first looks
    of_named = torch.stack(with_holes)[:3]
    assert (of_named == most).all()


def test_only_the_order_of_magnitudes_counts():
    one = f_fidelity(LINEAR, X, Y, MAP)
    other = f_fidelity(LINEAR, X, Y, -(MAP**3))
    assert torch.equal(one.named, other.named) and torch.equal(one.rest, other.rest)


def test_true_explanation_is_best_of_all():
    data = block_toy(1200, block_dim=2, noise=0.3)
    x, y = torch.tensor(data.x), torch.tensor(data.y)
    truth = torch.tensor(data.truth).float()
    set_seed(0)
    net = nn.Sequential(nn.Linear(20, 32), nn.Softplus(), nn.Linear(32, 2))
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(6):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            task_loss(net(x[batch]), y[batch]).mean().backward()
            optimizer.step()
    tuned = fill_tuned(net, x, y, epochs=3)
    maps = dict(true=truth, random=torch.rand(truth.shape), inverted=1 - truth)
    found = {name: f_fidelity(tuned, x, y, map, k=0.1) for name, map in maps.items()}
    named = {name: each.named.mean() for name, each in found.items()}
    rest = {name: each.rest.mean() for name, each in found.items()}
    assert named["true"] > named["random"] + 0.05 > named["inverted"] + 0.05
    assert rest["true"] < rest["random"] and rest["true"] < rest["inverted"]


def test_tuning_leaves_the_model_and_the_random_stream_alone():
    net = nn.Sequential(nn.Linear(12, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    tuned = fill_tuned(net, X.float(), Y, epochs=2)
    again = fill_tuned(net, X.float(), Y, epochs=2)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(tuned[0].weight, again[0].weight)
    assert not torch.equal(tuned[0].weight, net[0].weight) and not tuned.training


def test_refusals():
    with pytest.raises(ValueError, match="expected tensors of one shape"):
        f_fidelity(LINEAR, X, Y, MAP[:, :5])
    for name, value in dict(k=0.0, alpha=1.5, beta=0.0).items():
        with pytest.raises(ValueError, match=rf"{name}={value}"):
            f_fidelity(LINEAR, X, Y, MAP, **{name: value})
    with pytest.raises(TypeError, match=r"expected an nn\.Module to train on"):
        fill_tuned(lambda x: x, X, Y)
    with pytest.raises(ValueError, match=r"beta=2\.0"):
        fill_tuned(LINEAR, X, Y, beta=2.0)


@pytest.mark.parametrize(
    "settings, said",
    [
        (dict(lr=0.0), "lr=0.0: expected a number > 0"),
        (dict(lr=float("inf")), "lr=inf"),
        (dict(batch_size=0), "batch_size=0"),
        (dict(y=torch.full((5,), 50)), "labels from 50 to 50"),
        (dict(x=torch.full((5, 12), float("nan")).double()), "x: has NaN"),
    ],
)
def test_what_would_spoil_the_weights_is_refused(settings, said):
    given = dict(x=X, y=torch.zeros(5, dtype=torch.long)) | settings
    with pytest.raises(ValueError, match=said):
        fill_tuned(nn.Linear(12, 2).double(), **given)
