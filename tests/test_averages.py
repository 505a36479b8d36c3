"""The average of the weights: what is validated, saved and kept."""

import pytest
import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.tracker import SaveModelCallback
from torch import nn

from advinterp.averages import WeightAverage
from advinterp.data import get_data
from advinterp.train import adv_learner


class Watch(Callback):
    """The first weight after each step, and what validation sees."""

    order = 90

    def __init__(self, stop_at=None):
        self.stop_at = stop_at
        self.steps, self.validated = [], []

    def first(self):
        return next(self.learn.model.parameters()).detach().clone()

    def after_step(self):
        self.steps.append(self.first())
        if len(self.steps) == self.stop_at:
            raise CancelFitException()

    def before_validate(self):
        self.validated.append(self.first())


def learner(tmp_path, *cbs):
    torch.manual_seed(0)
    dls = get_data("digits", bs=512)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    return adv_learner(dls, net, cbs=list(cbs), path=tmp_path)


def averaged(start, steps, decay):
    mean = start
    for value in steps:
        mean = decay * mean + (1 - decay) * value
    return mean


def fitted(tmp_path, epochs, *cbs):
    learn = learner(tmp_path, *cbs)
    start = next(learn.model.parameters()).detach().clone()
    with learn.no_bar(), learn.no_logging():
        learn.fit(epochs, 0.01)
    return learn, start


def test_each_validation_sees_the_average_and_training_goes_on_without_it(tmp_path):
    watch = Watch()
    _, start = fitted(tmp_path, 2, watch, WeightAverage(0.7))
    half = len(watch.steps) // 2
    for n_steps, seen in zip((half, 2 * half), watch.validated):
        assert torch.allclose(seen, averaged(start, watch.steps[:n_steps], 0.7), atol=1e-6)
    alone = Watch()
    fitted(tmp_path, 2, alone)
    assert all(torch.equal(a, b) for a, b in zip(watch.steps, alone.steps))


def test_the_average_is_saved(tmp_path):
    save = SaveModelCallback(every_epoch=True, fname="kept")
    learn, _ = fitted(tmp_path, 1, WeightAverage(0.7), save)
    now = next(learn.model.parameters()).detach().clone()
    learn.load("kept_0")
    assert torch.equal(next(learn.model.parameters()), now)


def test_an_interruption_leaves_the_average(tmp_path):
    watch = Watch(stop_at=2)
    learn, start = fitted(tmp_path, 2, watch, WeightAverage(0.7))
    mean = next(learn.model.parameters())
    assert torch.allclose(mean, averaged(start, watch.steps, 0.7), atol=1e-6)


@pytest.mark.parametrize("decay", [1, 1.5, -0.1])
def test_bad_decay(decay):
    with pytest.raises(ValueError, match="decay="):
        WeightAverage(decay)


def test_frozen_model(tmp_path):
    learn = learner(tmp_path, WeightAverage())
    for parameter in learn.model.parameters():
        parameter.requires_grad_(False)
    callback = learn.cbs[-1]
    with pytest.raises(ValueError, match="nothing to average"):
        callback.before_fit()
