"""The alarm of catastrophic overfitting: where it happens, where it does not, and no trace left."""

import warnings

import pytest
import torch
from fastai.callback.core import Callback
from torch import nn

from advinterp.adversary import PGD, Harmonise, OneStep
from advinterp.alarm import OverfittingAlarm
from advinterp.callbacks import AdversarialTraining, FreeAdversarialTraining
from advinterp.cheap import TRADES, n_fgsm
from advinterp.core import set_seed
from advinterp.data import get_data
from advinterp.duals import ElasticNet, L2Ball, LInfBall
from advinterp.evaluate import robust_accuracy
from advinterp.study import SkipValidation
from advinterp.train import adv_learner

BALL = LInfBall(0.3)
ONE, MANY = (made(BALL, bounds=(0, 1)) for made in (OneStep, PGD))


def linear():
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Dropout(0.2), nn.Linear(64, 10))


def wide_net():
    layers = [nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()]
    layers += [nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(2048, 10))


def fitted(training, *cbs, epochs=2, net=linear, lr=0.004, fit=None, **data):
    """(learner, what the alarm said)."""
    set_seed(0)
    settings = dict(bs=32, n_train=320, n_valid=64, device="cpu") | data
    learn = adv_learner(get_data("digits", **settings), net(), cbs=[SkipValidation(), *cbs])
    if isinstance(training, Callback):
        learn.add_cb(training)
    elif training is not None:
        learn.adversarial(training)
    with warnings.catch_warnings(record=True) as said, learn.no_bar(), learn.no_logging():
        warnings.simplefilter("always")
        fit(learn) if fit else learn.fit(epochs, lr)
    return learn, [str(one.message) for one in said if "overfitting" in str(one.message)]


def untouched(model, x, y, loss_func=None):
    return x


def wrecking(model, x, y, loss_func=None):
    return torch.zeros_like(x)  # all of one class at most


def state(learn):
    return torch.cat([value.double().flatten() for value in learn.model.state_dict().values()])


def test_it_warns_where_one_step_collapses():
    alarm = OverfittingAlarm()
    data = dict(n_train=256, bs=64, epochs=20, net=wide_net)
    learn, said = fitted(ONE, alarm, **data)
    assert len(said) == 1
    assert "n_fgsm(eps)" in said[0] and repr(ONE) in said[0]
    x, y = learn.dls.train_ds.x, learn.dls.train_ds.y
    learn.model.eval()
    own, many = (float(robust_accuracy(learn.model, x, y, each)) for each in (ONE, MANY))
    assert own - many > 0.3  # measured on all images, not by the alarm
    epochs, own_seen, many_seen = alarm.seen[-1]
    assert epochs < 20 and abs(own_seen - own) < 0.2 and abs(many_seen - many) < 0.2


def test_it_is_silent_where_many_steps_train():
    alarm = OverfittingAlarm()
    assert fitted(PGD(BALL, 5, bounds=(0, 1)), alarm, net=wide_net, bs=64, epochs=6)[1] == []
    assert len(alarm.seen) == 30
    assert all(own - many < 0.15 for _, own, many in alarm.seen)


def test_it_warns_once_at_the_second_look():
    alarm = OverfittingAlarm(wrecking, gap=0.3)
    _, said = fitted(AdversarialTraining(untouched), alarm, epochs=6, lr=0.02)
    assert len(said) == 1
    far = [own - many > 0.3 for _, own, many in alarm.seen]
    first = next(i for i in range(1, len(far)) if far[i] and far[i - 1])
    epoch, batch = divmod(round(alarm.seen[first][0] * 10), 10)
    assert f"epoch {epoch}, batch {batch}:" in said[0]
    assert sum(far) > 2  # and was silent from then on
    again = OverfittingAlarm(wrecking, gap=0.99)
    assert fitted(AdversarialTraining(untouched), again, epochs=6, lr=0.02)[1] == []


def test_five_looks_an_epoch_or_as_many_as_asked():
    for every, expected in ((None, 10), (1, 20), (3, 6), (11, 2)):
        alarm = OverfittingAlarm(every=every)
        fitted(ONE, alarm)
        assert len(alarm.seen) == expected
    fitted(ONE, alarm := OverfittingAlarm(), bs=160)  # two batches: at each of them
    assert len(alarm.seen) == 4


@pytest.mark.parametrize(
    "training",
    [
        ONE,
        n_fgsm(0.1),
        TRADES(L2Ball(0.5), 2),
        OneStep(ElasticNet(0.1, 0.1)),
        FreeAdversarialTraining(LInfBall(0.1), 2),
    ],
    ids=repr,
)
def test_no_trace(training):
    alarm = OverfittingAlarm()
    with_it, without = fitted(training, alarm)[0], fitted(training)[0]
    assert alarm.seen
    assert torch.equal(state(with_it), state(without))


def test_accuracies_are_those_of_the_batch_in_raw_units():
    """The loader normalises; a look by hand undoes it."""
    mean, std = torch.full((1, 1, 1, 1), 0.3), torch.full((1, 1, 1, 1), 0.5)

    class Hand(Callback):
        order = 90

        def before_fit(self):
            self.seen = []

        def before_batch(self):
            if (self.learn.iter + 1) % 2 == 0:
                net = self.learn.model
                net.eval()
                raw, y = watch.clean, self.learn.yb[0]

                def in_raw_units(u):
                    return net((u - mean) / std)

                x_adv = OneStep(LInfBall(0.1), bounds=(0, 1))(in_raw_units, raw, y)
                self.seen.append((in_raw_units(x_adv).argmax(1) == y).float().mean().item())
                net.train()

    class Watch(Callback):
        order = -50

        def before_batch(self):
            self.clean = self.learn.xb[0] * std + mean

    watch, hand, alarm = Watch(), Hand(), OverfittingAlarm()
    learn_cbs = [watch, hand, alarm]

    def fit(learn):
        for loader in learn.dls.loaders:
            loader.dataset.x = (loader.dataset.x - mean) / std
        learn.normalized_by = (mean, std)
        learn.fit(1, 0.004)

    fitted(OneStep(LInfBall(0.1), bounds=(0, 1)), *learn_cbs, fit=fit)
    assert [own for _, own, _ in alarm.seen] == pytest.approx(hand.seen)


def test_natural_epochs_and_lr_find_are_left_alone():
    alarm = OverfittingAlarm()
    fitted(AdversarialTraining(ONE, warmup=1), alarm)
    assert len(alarm.seen) == 5 and min(epoch for epoch, *_ in alarm.seen) >= 1
    alarm = OverfittingAlarm(wrecking)
    assert fitted(ONE, alarm, fit=lambda learn: learn.lr_find(show_plot=False, num_it=5))[1] == []
    assert alarm.seen == []


def test_it_follows_the_schedule():
    radii = []

    class Note(OneStep):
        def search(self, p, gen):
            radii.append(self.dual.eps)
            return super().search(p, gen)

    training = AdversarialTraining(Note(BALL), schedule=lambda share: 0.3 * share)
    fitted(training, OverfittingAlarm(every=10), epochs=1)
    assert radii[-1] == radii[-2] == pytest.approx(0.27)  # of the look, then of the step


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        (lambda: OverfittingAlarm(gap=0), ValueError, "gap=0: expected a number between 0 and 1"),
        (lambda: OverfittingAlarm(gap=float("nan")), ValueError, "gap=nan"),
        (lambda: OverfittingAlarm(every=0), ValueError, "every=0"),
        (lambda: OverfittingAlarm(BALL), TypeError, "is a dual, not yet"),
        (lambda: fitted(None, OverfittingAlarm()), ValueError, "has no adversary; learn.advers"),
        (
            lambda: fitted(Harmonise(0.1, torch.ones(1, 8, 8)), OverfittingAlarm()),
            ValueError,
            "no ball to look for more in; say with what",
        ),
    ],
)
def test_alarms_that_make_no_sense(wrong, error, message):
    with pytest.raises(error, match=message):
        wrong()
