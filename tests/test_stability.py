"""Relative stability of explanations: values, laws, and what is refused."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from advinterp.attribution import input_x_grad, saliency
from advinterp.duals import ElasticNet, L2Ball, LInfBall
from advinterp.measures import Setting, measure_all, measures_of
from advinterp.stability import output_stability

torch.manual_seed(0)
NET = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Softplus(), nn.Linear(8, 3)).double()
X = torch.rand(6, 1, 6, 6).double() + 0.1
Y = torch.tensor([0, 1, 2, 0, 1, 2])
BALL = LInfBall(0.1)


def points(n: int, x=X) -> list:
    """The points that seed 0 draws."""
    generator = torch.Generator().manual_seed(0)
    return [x + BALL.random_point(x, generator) for _ in range(n)]


def rows(tensor) -> np.ndarray:
    return tensor.detach().flatten(1).numpy()


def by_hand(attribution, logits, counts) -> tuple:
    """Equation (1) in NumPy; `counts(x')` says which examples a point counts for."""
    best = np.full((2, len(X)), -np.inf)
    here = rows(attribution(NET, X, Y))
    for point in points(5):
        change = np.linalg.norm((here - rows(attribution(NET, point, Y))) / here, axis=1)
        inputs = np.linalg.norm(rows((X - point) / X), axis=1)
        outputs = np.linalg.norm(rows(logits(X) - logits(point)), axis=1)
        found = np.where(counts(point), np.stack([change / inputs, change / outputs]), -np.inf)
        best = np.maximum(best, found)
    return tuple(best)


@pytest.mark.parametrize("attribution", [saliency, input_x_grad])
def test_formula(attribution):
    def counts(point):
        return (NET(point).argmax(1) == NET(X).argmax(1)).numpy()

    found = output_stability(NET, X, Y, BALL, attribution, n_samples=5)
    wanted = by_hand(attribution, NET, counts)
    for value, right in zip(found, wanted):
        np.testing.assert_allclose(value.numpy(), np.where(right < 0, np.nan, right), rtol=1e-9)
    every = output_stability(NET, X, Y, BALL, attribution, n_samples=5, same_class=False)
    np.testing.assert_allclose(every.output, by_hand(attribution, NET, lambda _: True)[1], 1e-9)


def test_quantus_agrees():
    quantus = pytest.importorskip("quantus")
    names = dict(input="RelativeInputStability", output="RelativeOutputStability")
    net, x = copy.deepcopy(NET).float().eval(), X.float()  # the precision that it computes in
    found = output_stability(net, x, Y, BALL, n_samples=5, same_class=False)
    for field, name in names.items():
        waiting = iter(points(5, x))
        measure = getattr(quantus, name)(
            nr_samples=5,
            perturb_func=lambda arr, **_: next(waiting).numpy().reshape(arr.shape),
            return_nan_when_prediction_changes=False,
            disable_warnings=True,
        )
        values = measure(
            model=net,
            x_batch=x.numpy(),
            y_batch=Y.numpy(),
            explain_func=lambda model, inputs, targets, **_: saliency(
                model, torch.as_tensor(inputs), torch.as_tensor(targets)
            ).numpy(),
        )
        np.testing.assert_allclose(getattr(found, field).numpy(), values, rtol=1e-3)


def test_linear_logits_are_perfectly_stable_and_scale_moves_the_output_measure_alone():
    affine = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).double()
    assert not any(value.any() for value in output_stability(affine, X, Y, L2Ball(0.2)))
    how = dict(n_samples=4, same_class=False)
    one = output_stability(NET, X, Y, BALL, **how)
    four = output_stability(lambda x: 4 * NET(x), X, Y, BALL, **how)
    assert torch.allclose(four.input, one.input) and torch.allclose(four.output, one.output / 4)


def test_more_points_are_never_better_and_seeds_decide_alone():
    few, many = (output_stability(NET, X, Y, BALL, n_samples=n).output for n in (3, 9))
    assert (many.nan_to_num() >= few.nan_to_num()).all()
    torch.manual_seed(1)
    assert torch.equal(few, output_stability(NET, X, Y, BALL, n_samples=3).output)
    other = output_stability(NET, X, Y, BALL, n_samples=3, seed=1).output
    assert not torch.equal(few, other)


def test_points_keep_to_the_bounds():
    seen = []

    def watched(model, x, y):
        seen.append(x)
        return saliency(model, x, y)

    output_stability(NET, X, Y, LInfBall(2.0), watched, n_samples=2, bounds=(0, 1.1))
    assert all(0 <= x.min() and x.max() <= 1.1 for x in seen)


@pytest.mark.parametrize(
    "settings, error, message",
    [
        (dict(ball=ElasticNet(0.1, 0.1)), TypeError, "expected a ball such as LInfBall"),
        (dict(ball=LInfBall(0.0)), ValueError, "nothing moves"),
        (dict(ball=BALL, n_samples=0), ValueError, "n_samples=0"),
        (dict(ball=BALL, floor=0.0), ValueError, "floor=0.0: expected a number > 0"),
    ],
)
def test_refusals(settings, error, message):
    with pytest.raises(error, match=message):
        output_stability(NET, X, Y, **settings)


def test_measure_of_a_study():
    setting = Setting(eps=0.1)
    (_, ros) = measures_of("ros")
    found = measure_all(NET, X, Y, setting, [ros])["ros"]
    wanted = output_stability(NET, X, Y, LInfBall(0.1), same_class=False).output
    assert torch.allclose(found, torch.log(1 + wanted))
    assert found.isfinite().all() and ros.direction == "lower"


class OnlyHere(nn.Module):
    """Class 0 at the origin alone."""

    def forward(self, x):
        away = 10 * x.abs().sum(1) - 1e-3
        return torch.stack([torch.zeros_like(away), away], 1)


def test_points_of_another_class_do_not_count():
    x, y = torch.zeros(2, 4), torch.tensor([0, 0])
    assert torch.stack(output_stability(OnlyHere(), x, y, BALL)).isnan().all()
    everywhere = torch.stack(output_stability(OnlyHere(), x, y, BALL, same_class=False))
    assert everywhere.isfinite().all()


@pytest.mark.parametrize("bounds", [(1, 0), (0.9, 1.0)])
def test_inputs_lie_within_the_bounds(bounds):
    with pytest.raises(ValueError, match=r"bounds=.*x has entries outside"):
        output_stability(NET, X, Y, BALL, bounds=bounds)


def test_a_map_with_nan_is_refused():
    with pytest.raises(ValueError, match="its map has NaN"):
        output_stability(NET, X, Y, BALL, lambda model, x, y: x * float("nan"))
