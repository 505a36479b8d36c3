"""The entrance to everything else: losses per example, checks of arguments."""

import copy
import threading

import pytest
import torch
from torch import nn

from advinterp.core import (
    check_choice,
    check_count,
    class_output,
    frozen,
    input_grad,
    predicted,
    task_loss,
    top_count,
    unreduced,
)


def batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 3, generator=generator)
    return logits, torch.arange(6) % 3


class Wrapped(nn.Module):
    """A loss whose `reduction` lives in a part of it."""

    def __init__(self):
        super().__init__()
        self.inner = nn.CrossEntropyLoss()

    @property
    def reduction(self):
        return self.inner.reduction

    @reduction.setter
    def reduction(self, value):
        self.inner.reduction = value

    def forward(self, logits, y):
        return self.inner(logits, y)


class Watched(nn.CrossEntropyLoss):
    """A loss that notes every write to its `reduction` after it was made."""

    def __init__(self):
        super().__init__()
        self.writes = []

    def __setattr__(self, name, value):
        if name == "reduction" and "writes" in vars(self):
            self.writes.append((id(self), value))
        super().__setattr__(name, value)


def flattened():
    return pytest.importorskip("fastai.losses").CrossEntropyLossFlat()


@pytest.mark.parametrize("make", [nn.CrossEntropyLoss, Wrapped, Watched, flattened])
def test_a_loss_is_used_without_its_reduction_and_not_written_to(make):
    loss_func = make()
    before = copy.deepcopy(vars(loss_func))
    logits, y = batch()
    each = unreduced(loss_func)(logits, y).as_subclass(torch.Tensor)
    torch.testing.assert_close(each, task_loss(logits, y))
    assert loss_func.reduction == "mean"
    assert vars(loss_func).keys() == before.keys()
    assert loss_func(logits, y).ndim == 0
    if make is Watched:
        assert id(loss_func) not in [owner for owner, _ in loss_func.writes]


def test_a_compiled_loss():
    loss_func = torch.compile(nn.CrossEntropyLoss(), backend="eager")
    logits, y = batch()
    assert torch.equal(unreduced(loss_func)(logits, y), task_loss(logits, y))
    assert loss_func.reduction == "mean"


def test_a_loss_that_another_thread_uses_keeps_its_reduction():
    """The training loop of another thread sees a mean at every moment of an attack."""
    logits, y = batch()
    inside, seen = threading.Event(), threading.Event()

    class Slow(nn.CrossEntropyLoss):
        def forward(self, logits, y):
            inside.set()
            seen.wait(10)
            return super().forward(logits, y)

    loss_func = Slow()
    attack = threading.Thread(target=lambda: unreduced(loss_func)(logits, y))
    attack.start()
    assert inside.wait(10)
    assert loss_func.reduction == "mean"
    seen.set()
    attack.join()


def test_functions_and_losses_of_their_own_are_called_as_they_are():
    logits, y = batch()
    assert unreduced(None) is task_loss
    doubled = unreduced(lambda logits, y: 2 * task_loss(logits, y)[:, None])
    assert torch.equal(doubled(logits, y), 2 * task_loss(logits, y))

    def mean(logits, y):
        return task_loss(logits, y).mean()

    mean.reduction = "mean"  # a function: only it knows what the word means
    with pytest.raises(ValueError, match="one loss per example"):
        unreduced(mean)(logits, y)
    assert mean.reduction == "mean"


def test_the_parts_of_an_example_are_added():
    logits, y = batch()
    parts = unreduced(lambda logits, y: logits.square())(logits, y)
    torch.testing.assert_close(parts, logits.square().sum(1))


@pytest.mark.parametrize("output", ["logit", "prob", "logprob", "loss"])
def test_one_logit_is_the_log_odds_of_two(output):
    z = torch.tensor([0.3, -0.2, 2.0, -3.0], dtype=torch.double)
    y = torch.tensor([1, 1, 0, 0])
    two = torch.stack([-z / 2, z / 2], 1)
    expected = class_output(two, y, output)
    if output == "logit":
        expected = 2 * expected
    for logits in (z, z[:, None]):
        torch.testing.assert_close(class_output(logits, y, output), expected)
        assert predicted(logits).tolist() == predicted(two).tolist() == [1, 0, 1, 0]


def test_a_share_is_at_least_one_entry():
    rows = torch.tensor([[0.0, 0.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0, 5.0]])
    assert top_count(rows, 0.01).tolist() == [1, 1]
    assert top_count(rows, 0.6).tolist() == [3, 3]
    assert top_count(rows, 0.6, nonzero=True).tolist() == [2, 3]
    assert top_count(torch.zeros(1, 5), 0.6, nonzero=True).tolist() == [1]


def test_flags_and_modes_come_back():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 2))
    model[0].weight.requires_grad_(False)
    model[1].eval()

    def state():
        flags = [parameter.requires_grad for parameter in model.parameters()]
        return flags, [module.training for module in model.modules()]

    before = state()
    with pytest.raises(KeyError), frozen(model, training=False):
        assert state() == ([False] * 4, [False] * 4)
        raise KeyError
    assert state() == before


def test_the_gradient_is_that_of_each_example():
    x, y = batch()
    model = nn.Linear(3, 3)
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))
    together = input_grad(model, x, y, weighted)[0]
    singly = [input_grad(model, x[i : i + 1], y[i : i + 1], weighted)[0] for i in range(6)]
    torch.testing.assert_close(together, torch.cat(singly))


@pytest.mark.parametrize("value, kind", [(0, ValueError), (1.0, TypeError), (True, TypeError)])
def test_counts(value, kind):
    assert check_count("steps", 7) == 7
    with pytest.raises(kind, match=rf"steps={value}: expected a whole number >= 1"):
        check_count("steps", value)


def test_choices():
    assert check_choice("norm", "l2", ("l1", "l2")) == "l2"
    with pytest.raises(
        ValueError, match=r"expected one of 'train' or 'eval'; did you mean 'train'"
    ):
        check_choice("mode", "trian", ("train", "eval"))
    with pytest.raises(ValueError, match=r"norm=3: expected one of 'l1'$"):
        check_choice("norm", 3, ("l1",))
