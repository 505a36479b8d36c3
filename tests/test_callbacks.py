"The callbacks on fastai's own loop: units, order, protocols, faults."

import contextlib
import copy
import math
import pickle
import random
import warnings

import pytest
import torch
import torch.nn.functional as F
from fastai.basics import SGD, CrossEntropyLossFlat, Learner
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.data.transforms import Normalize
from fastai.learner import Recorder
from fastai.losses import BCEWithLogitsLossFlat, LabelSmoothingCrossEntropyFlat
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from advinterp import callbacks
from advinterp.adversary import PGD, Adversary, OneStep
from advinterp.callbacks import (
    AdversarialTraining,
    FreeAdversarialTraining,
    GradientPenalty,
    RobustMetrics,
)
from advinterp.core import set_seed
from advinterp.data import tensor_dls
from advinterp.duals import L1, ElasticNet, GroupBall, L1Ball, L2Ball, LInfBall
from advinterp.penalty import GradNorm, WeightNorm

STATS = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


def bare(x):
    "A plain tensor of what a loader delivers."
    return x.as_subclass(torch.Tensor)


def images(n=12, bs=4, norm=True, val=4):
    "Random RGB images in [0, 1]; `norm`: the loader normalises them."
    set_seed(0)
    x = torch.rand(n, 3, 4, 4)
    y = torch.arange(n) % 3
    tfms = dict(after_batch=[Normalize.from_stats(*STATS, cuda=False)]) if norm else {}
    return tensor_dls(x, y, x[:val], y[:val], bs=bs, device="cpu", **tfms)


def item_loaders(items, bs=4, val_bs=6, n_inp=1, shuffle=False):
    "fastai's own loaders over a list of tuples, of which the first `n_inp` parts are inputs."
    train = DataLoader(items, bs=bs, shuffle=shuffle)
    dls = DataLoaders(train, DataLoader(items, bs=val_bs), device="cpu")
    dls.n_inp = n_inp
    return dls


def net():
    set_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 6), nn.Tanh(), nn.Linear(6, 3))


@contextlib.contextmanager
def quiet(learn):
    with learn.no_bar(), learn.no_logging():
        yield learn


def learner(*cbs, dls=None, model=None, loss=None, opt=SGD, lr=0.1, **kw):
    return Learner(
        dls or images(),
        model or net(),
        loss_func=loss or CrossEntropyLossFlat(),
        opt_func=opt,
        lr=lr,
        cbs=list(cbs),
        **kw,
    )


def fit(*cbs, n=1, seed=0, **kw):
    learn = learner(*cbs, **kw)
    set_seed(seed)
    with quiet(learn):
        learn.fit(n)
    return learn


def params(learn):
    return [p.detach().clone() for p in learn.model.parameters()]


def equal(a, b):
    return all(torch.equal(p, q) for p, q in zip(a, b))


def apart(a, b):
    return max((p - q).abs().max().item() for p, q in zip(a, b))


class Spy(Callback):
    "The clean and the perturbed raw inputs of each training batch, as autocast finds them."

    order = MixedPrecision.order - 0.5
    run_valid = False

    def before_fit(self):
        self.clean = []
        self.seen = []
        self.types = []

    def before_batch(self):
        kinds = AdversarialTraining, FreeAdversarialTraining
        batch = next(cb.raw for cb in self.learn.cbs if isinstance(cb, kinds))
        self.types.append(type(self.learn.xb[0]))
        if batch is None:
            return
        self.clean.append(batch.x)
        self.seen.append(batch.units.decode(self.learn.xb[0]).detach())

    @property
    def delta(self):
        return torch.cat(self.seen) - torch.cat(self.clean)


# ---------------------------------------------------------------- units

BALLS = LInfBall(8 / 255), L2Ball(0.4), L1Ball(0.8), GroupBall(0.2, patch=2)
PROTOCOLS = [
    lambda b: AdversarialTraining(OneStep(b)),
    lambda b: AdversarialTraining(PGD(b, 3)),
    lambda b: FreeAdversarialTraining(b, 3),
]


@pytest.mark.parametrize("ball", BALLS, ids=lambda b: type(b).__name__)
@pytest.mark.parametrize("protocol", PROTOCOLS, ids=["one step", "pgd", "free"])
def test_strengths_are_in_raw_pixels_through_normalize(ball, protocol):
    spy = Spy()
    fit(protocol(ball), spy, n=2, lr=1.0)
    size = ball.norm(spy.delta).max()
    assert 0.8 * ball.eps < size <= ball.eps + 1e-5
    seen = torch.cat(spy.seen)
    assert seen.min() >= -1e-6
    assert seen.max() <= 1 + 1e-6
    assert set(spy.types) == {torch.Tensor}
    clean = torch.cat(spy.clean)
    assert 0 <= clean.min() <= clean.max() <= 1


def test_the_same_attack_with_the_normalisation_inside_the_model():
    "Raw loaders with a normalising model and normalising loaders train the same parameters."

    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            mean, std = (torch.tensor(stat).view(1, 3, 1, 1) for stat in STATS)
            return self.net((x - mean) / std)

    natural = params(fit(n=3))
    for make in (
        lambda: AdversarialTraining(OneStep(L2Ball(0.5), bounds=(0, 1))),
        lambda: FreeAdversarialTraining(L2Ball(0.5), 2, bounds=(0, 1)),
        lambda: GradientPenalty(GradNorm(L1(0.1))),
    ):
        outside = params(fit(make(), n=3))
        inside = params(fit(make(), n=3, dls=images(norm=False), model=Inside()))
        assert apart(outside, inside) < 1e-5 < apart(outside, natural)


def test_bounds_of_the_adversary_are_kept():
    spy = Spy()
    adv = PGD(LInfBall(0.3), 2, bounds=(0, 2))
    fit(AdversarialTraining(adv), spy)  # images stay images
    assert torch.cat(spy.seen).max() <= 1 + 1e-6
    assert torch.cat(spy.seen).min() >= -1e-6
    fit(AdversarialTraining(adv), spy, dls=images(norm=False))
    assert torch.cat(spy.seen).max() > 1.1  # plain tensors have the adversary's bounds only
    adv = PGD(LInfBall(0.3), 2)
    fit(AdversarialTraining(adv), Spy())
    assert adv.bounds is None  # the user's adversary is not touched
    narrow = (0.4, 0.6)
    with pytest.raises(ValueError, match="outside the bounds"):
        fit(AdversarialTraining(PGD(LInfBall(0.1), 2, bounds=narrow)))
    with pytest.raises(ValueError, match="outside the bounds"):
        fit(FreeAdversarialTraining(LInfBall(0.1), 2, bounds=narrow))


class TwoInputs(nn.Module):
    "A model of a category beside numbers."

    def __init__(self):
        super().__init__()
        set_seed(0)
        self.emb = nn.Embedding(4, 3)
        self.lin = nn.Linear(3 + 5, 3)

    def forward(self, cat, cont):
        return self.lin(torch.cat([self.emb(cat), cont], 1))


def test_several_inputs():
    set_seed(0)
    cat, cont = torch.randint(4, (12,)), torch.rand(12, 5)
    y = torch.arange(12) % 3
    seen = []

    class See(Callback):
        order = MixedPrecision.order - 0.5

        def before_batch(self):
            if self.training:
                seen.append((self.adversarial_training.raw.xb, self.learn.xb))

    def loaders(*inputs):
        return item_loaders(list(zip(*inputs, y)), n_inp=len(inputs), shuffle=True)

    adv = PGD(LInfBall(0.1), 3)
    learn = fit(
        AdversarialTraining(adv),
        GradientPenalty(GradNorm(L1(0.1))),
        RobustMetrics(adv),
        See(),
        dls=loaders(cat, cont),
        model=TwoInputs(),
    )
    assert len(seen) == 3
    for (clean_cat, clean_cont), (seen_cat, seen_cont) in seen:
        assert torch.equal(clean_cat, seen_cat)
        assert 0.01 < (clean_cont - seen_cont).abs().max() <= 0.1 + 1e-6
    assert len(learn.recorder.values[0]) == 4
    with pytest.raises(ValueError, match="which=0"):
        fit(AdversarialTraining(adv, which=0), dls=loaders(cat, cont), model=TwoInputs())
    with pytest.raises(TypeError, match=r"float\(\)"):
        fit(AdversarialTraining(adv), dls=loaders(cat, cat))
    with pytest.raises(ValueError, match="expected one of"):
        fit(AdversarialTraining(adv), dls=loaders(cont, cont))


# ---------------------------------------------------------------- order among fastai's callbacks


def test_orders_are_relative_to_the_named_neighbours():
    assert (
        MixUp.order
        < GradientPenalty.order
        < AdversarialTraining.order
        < GradientAccumulation.order
        < MixedPrecision.order
    )
    assert (
        AdversarialTraining.order
        == FreeAdversarialTraining.order
        == RobustMetrics.order
        < Recorder.order
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: [AdversarialTraining(OneStep(L2Ball(0.5)), alpha=0.3)],
        lambda: [GradientPenalty(GradNorm(L1(0.1)), 2.0)],
        lambda: [GradientPenalty(WeightNorm(1), 0.01), AdversarialTraining(OneStep(L2Ball(0.5)))],
    ],
    ids=["mix", "penalty", "both"],
)
def test_accumulated_batches_are_the_joint_batch(make):
    whole = fit(*make(), dls=images(n=8, bs=8), lr=0.5)
    parts = fit(*make(), GradientAccumulation(8), dls=images(n=8, bs=2), lr=0.5)
    assert apart(params(whole), params(parts)) < 1e-6
    assert apart(params(whole), params(fit(dls=images(n=8, bs=8), lr=0.5))) > 1e-4


class AttackedLoss(Adversary):
    "Moves nothing; keeps the mean of the loss that it is asked to raise."

    def __init__(self):
        super().__init__()
        self.values = []

    def __call__(self, model, x, y, loss_func=None):
        self.values.append(float(loss_func(model(x), y).detach().mean()))
        return x


@pytest.mark.parametrize("mix", [MixUp, CutMix])
@pytest.mark.parametrize("loss_class", [CrossEntropyLossFlat, LabelSmoothingCrossEntropyFlat])
def test_the_adversary_attacks_the_mixed_loss(mix, loss_class):
    own, first_label = [], []

    class Own(Callback):
        "The learner's loss of the batch, and what it would be against one of the two labels."

        run_valid = False

        def after_pred(self):
            z = self.learn.pred.detach()
            own.append(float(self.learn.loss_func(z, *self.learn.yb)))
            first_label.append(float(F.cross_entropy(z, bare(self.learn.y))))

    adv, loss = AttackedLoss(), loss_class()
    learn = fit(AdversarialTraining(adv), mix(0.4), Own(), n=3, loss=loss)
    assert learn.loss_func is loss
    assert loss.reduction == "mean"
    assert len(own) == 9
    assert own == pytest.approx(adv.values, abs=1e-5)
    assert max(abs(a - b) for a, b in zip(own, first_label)) > 0.01


def test_one_hot_targets_and_losses_without_reduction_attribute():
    x = torch.rand(12, 3, 4, 4)
    y = torch.eye(3)[torch.arange(12) % 3]
    dls = item_loaders(list(zip(x, y)))

    def trained(loss):
        return fit(AdversarialTraining(OneStep(L2Ball(0.3))), dls=dls, loss=loss)

    def knows_no_reduction(logits, y):
        return F.cross_entropy(logits, y)

    for loss in (BCEWithLogitsLossFlat(), F.cross_entropy):  # a function with `reduction`
        assert torch.stack(trained(loss).recorder.losses).isfinite().all()
    assert apart(params(trained(F.cross_entropy)), params(trained(knows_no_reduction))) < 1e-6


def test_the_attack_runs_under_the_learners_autocast_and_without_the_scaler():
    dtypes = []

    class Seen(Adversary):
        def __init__(self):
            super().__init__()

        def __call__(self, model, x, y, loss_func=None):
            dtypes.append(model(x).dtype)
            return x

    class OnCPU(Callback):
        "What `MixedPrecision` does on a GPU, on the CPU."

        order = MixedPrecision.order - 0.1

        def before_fit(self):
            self.learn.mixed_precision.autocast = torch.autocast("cpu", torch.bfloat16)

    class After(OnCPU):
        order = MixedPrecision.order + 0.1

    with pytest.warns(UserWarning):
        fit(AdversarialTraining(Seen()), MixedPrecision("bf16"), After())
    assert set(dtypes) == {torch.bfloat16}
    assert not torch.is_autocast_enabled("cpu")


def test_gradient_clip_sees_the_penalised_gradient():
    def clipped(weight):
        return params(fit(GradientPenalty(WeightNorm(2), weight), GradientClip(1e-3), lr=1.0))

    small, large = clipped(1.0), clipped(1e4)
    assert apart(params(learner()), large) < 0.01
    assert apart(small, large) > 1e-5


# ---------------------------------------------------------------- protocols


@given(alpha=st.sampled_from([0.0, 0.25, 0.5, 1.0]), warmup=st.sampled_from([0, 1, 1.5]))
@settings(max_examples=8)
def test_mix_and_warmup(alpha, warmup):
    spy = Spy()
    learn = fit(AdversarialTraining(OneStep(LInfBall(0.1)), alpha=alpha, warmup=warmup), spy, n=3)
    batches = 0 if alpha == 1 else 9 - math.ceil(3 * warmup)
    assert len(spy.seen) == batches
    if alpha == 1:
        assert equal(params(learn), params(fit(n=3)))


def by_hand(step, n=1, lr=0.5):
    "Plain gradient descent on each loss of `step(model, x, y)`, over the batches that `fit` sees."
    dls = images(norm=False)
    model = net()
    set_seed(0)
    for _ in range(n):
        for x, y in dls.train:
            for loss in step(model, x, y):
                grads = torch.autograd.grad(loss, list(model.parameters()))
                with torch.no_grad():
                    for param, grad in zip(model.parameters(), grads):
                        param -= lr * grad
    return [param.detach() for param in model.parameters()]


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_the_mix_is_a_convex_combination(alpha):
    adv = OneStep(L2Ball(0.5))

    def step(model, x, y):
        attacked = F.cross_entropy(model(adv(model, x, y)), y)
        yield (1 - alpha) * attacked + alpha * F.cross_entropy(model(x), y)

    learn = fit(AdversarialTraining(adv, alpha=alpha), dls=images(norm=False), lr=0.5, n=2)
    assert apart(params(learn), by_hand(step, n=2)) < 1e-6


def test_free_training_is_the_papers_algorithm():
    ball = L2Ball(0.3)
    delta = torch.zeros(4, 3, 4, 4)

    def step(model, x, y):
        for _ in range(3):
            d = delta.clone().requires_grad_()
            loss = F.cross_entropy(model(x + d), y)
            (g,) = torch.autograd.grad(loss, d, retain_graph=True)
            delta.copy_(ball.project(delta + ball.delta_star(g)))
            yield loss

    learn = fit(FreeAdversarialTraining(ball, 3), dls=images(norm=False), lr=0.5, n=2)
    assert apart(params(learn), by_hand(step, n=2)) < 1e-5


def test_schedule_reaches_step_size_and_lr_find_sees_full_strength():
    spy = Spy()
    adv = AdversarialTraining(
        PGD(LInfBall(0.2), 1, step_size=0.1, random_start=False),
        schedule=lambda p: 0.1 * (p >= 0.5),
        warmup=0.5,
    )
    fit(adv, spy, n=2)
    sizes = [float((seen - clean).abs().max()) for seen, clean in zip(spy.seen, spy.clean)]
    assert len(sizes) == 4
    assert sizes[0] == 0
    assert sizes[-1] == pytest.approx(0.05, abs=1e-6)  # half the radius, half the step
    adv.learn.lr_finder = None
    adv.before_fit()
    assert adv.now() is adv.adversary
    del adv.learn.lr_finder


def test_loss_reported_is_the_task_loss_of_the_batch():
    class Reported(Callback):
        def after_backward(self):
            self.task = self.learn.loss.item()
            self.minimised = self.learn.loss_grad.item()

    learn = fit(
        AdversarialTraining(OneStep(L2Ball(0.5)), alpha=0.5),
        GradientPenalty(WeightNorm(1), 1.0),
        Reported(),
        dls=images(n=4, bs=4),
    )
    assert learn.reported.minimised > learn.reported.task + 0.5


@given(m=st.integers(1, 3), n=st.sampled_from([4, 7, 9]))
@settings(max_examples=5)
def test_free_training_carries_rows_over_uneven_batches(m, n):
    free = FreeAdversarialTraining(LInfBall(0.1), m)
    sizes = []

    class Sizes(Spy):
        def before_batch(self):
            sizes.append(free.carried.delta.abs().amax((1, 2, 3)).tolist())

    learn = fit(free, Sizes(), dls=images(n=n, bs=4), n=2)
    assert learn.train_iter == 2 * m * math.ceil(n / 4)
    assert len(sizes) == learn.train_iter
    assert len(sizes[-1]) == 4
    assert max(max(row) for row in sizes) <= 0.1 + 1e-6
    assert sizes[0] == [0.0] * 4
    assert max(sizes[-1]) > 0
    again = fit(free, dls=images(n=n, bs=4), n=2)  # nothing is carried from fit to fit
    assert equal(params(learn), params(again))


def test_replays_are_fresh_copies_of_a_loader_of_the_same_kind():
    class Spoil(Callback):
        "Writes into the batch, as CutMix does."

        order = FreeAdversarialTraining.order - 1
        run_valid = False

        def before_fit(self):
            self.means = []

        def before_batch(self):
            assert isinstance(self.learn.dl, type(self.learn.dls.train))
            self.means.append(float(self.learn.xb[0].mean()))
            self.learn.xb[0].add_(1)

    spoil = Spoil()
    dls = images(norm=False)
    fit(FreeAdversarialTraining(LInfBall(0.1), 3), spoil, dls=dls)
    assert len(spoil.means) == 3 * len(dls.train)
    for start in range(0, len(spoil.means), 3):
        assert len(set(spoil.means[start : start + 3])) == 1
    assert max(spoil.means) < 1


def test_robust_metrics_leave_natural_columns_alone():
    learn, bare_learn = fit(RobustMetrics(PGD(LInfBall(0.1), 3)), n=2), fit(n=2)
    natural = [list(row)[:2] for row in learn.recorder.values]
    assert natural == [list(row) for row in bare_learn.recorder.values]
    assert equal(params(learn), params(bare_learn))


def test_robust_metrics_work_everywhere():
    learn = fit(RobustMetrics(PGD(LInfBall(0.1), 3, early_stop=True)), n=2)
    with quiet(learn):
        learn.get_preds()
        assert list(learn.recorder.metric_names) == ["epoch", "train_loss", "valid_loss", "time"]
        no_labels = learn.dls.test_dl(torch.rand(5, 3, 4, 4))
        assert learn.get_preds(dl=no_labels)[0].shape == (5, 3)
        assert len(learn.validate()) == 3
        learn.recorder.train_metrics = True
        learn.fit(1)
    named = dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[-1]))
    assert math.isnan(named["train_robust_accuracy"])
    assert 0 <= named["valid_robust_accuracy"] <= 1
    assert not learn.metrics
    learn.model[3].weight.data.fill_(math.nan)
    with quiet(learn):
        assert math.isnan(learn.validate()[-1])


def test_a_callback_can_be_pickled_in_the_middle_of_a_fit():
    "What it keeps for the batch stays out of the file."
    copies = []

    class Pickle(Callback):
        order = MixedPrecision.order
        run_valid = False

        def before_batch(self):
            callback = self.learn.adversarial_training
            assert callback.raw is not None
            callback.learn = None
            copies.append(pickle.loads(pickle.dumps(callback)))
            callback.learn = self.learn

    fit(AdversarialTraining(PGD(LInfBall(0.1), 2), alpha=0.25), Pickle())
    for callback in copies:
        assert callback.raw is None
        assert callback.alpha == 0.25
        assert repr(callback) == repr(AdversarialTraining(PGD(LInfBall(0.1), 2), alpha=0.25))
    assert equal(
        params(fit(copies[0])), params(fit(AdversarialTraining(PGD(LInfBall(0.1), 2), alpha=0.25)))
    )


OLD_NAMES = ["batch_tfms", "which_input", "example_loss", "RawBatch", "check_role"]
OLD_NAMES += ["RawUnits", "RawModel"]


@pytest.mark.parametrize("name", [*OLD_NAMES, "Carried", "Replayed", "hits"])
def test_old_names_work_with_a_warning(name):
    with pytest.warns(FutureWarning, match=f"callbacks.{name} is now"):
        assert callable(getattr(callbacks, name))


# ---------------------------------------------------------------- bad input


def test_bad_input():
    for make, exc, msg in [
        (lambda: AdversarialTraining(LInfBall(0.1)), TypeError, "OneStep"),
        (lambda: AdversarialTraining(WeightNorm(1)), TypeError, "penalty="),
        (lambda: AdversarialTraining(OneStep), TypeError, "callable"),
        (lambda: GradientPenalty(PGD(L1(0.1))), TypeError, "adversary="),
        (lambda: GradientPenalty(L1(0.1)), TypeError, "GradNorm"),
        (lambda: GradientPenalty(WeightNorm(1), -1), ValueError, "weight=-1"),
        (lambda: AdversarialTraining(OneStep(L1(0.1)), alpha=2), ValueError, "alpha"),
        (lambda: AdversarialTraining(OneStep(L1(0.1)), warmup=-1), ValueError, "warmup"),
        (lambda: AdversarialTraining(OneStep(L1(0.1)), schedule=0.1), TypeError, "SchedLin"),
        (lambda: FreeAdversarialTraining(ElasticNet(1.0, 1.0), 2), TypeError, "ball"),
        (lambda: FreeAdversarialTraining(LInfBall(0.1), 2.0), TypeError, r"replays=2\.0"),
        (lambda: FreeAdversarialTraining(LInfBall(0.1), 0), ValueError, "replays=0"),
        (lambda: RobustMetrics(L1(0.1)), TypeError, "OneStep"),
    ]:
        with pytest.raises(exc, match=msg):
            make()


def test_nan_inputs():
    dls = images(norm=False)
    dls.train_ds.x = torch.full((12, 3, 4, 4), math.nan)
    with pytest.raises(ValueError, match="NaN"):
        fit(AdversarialTraining(PGD(LInfBall(0.1))), dls=dls)


def test_integer_inputs():
    dls = item_loaders([(torch.ones(3, 4, 4).long(), torch.tensor(1))] * 4, bs=2)
    with pytest.raises(TypeError, match=r"float\(\)"):
        fit(AdversarialTraining(PGD(LInfBall(0.1))), dls=dls)


def test_missing_targets():
    dls = item_loaders([(torch.ones(3, 4, 4),)] * 4, bs=2)
    with pytest.raises(ValueError, match="no targets"):
        fit(AdversarialTraining(PGD(LInfBall(0.1))), dls=dls)


def test_a_model_without_gradient_to_its_input():
    class Blind(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            return self.net(x.detach())

    with pytest.raises(ValueError, match=r"does not depend|no gradient"):
        fit(AdversarialTraining(PGD(LInfBall(0.1))), model=Blind())


# ---------------------------------------------------------------- faults


class Fragile(nn.Module):
    "A model that fails at the forward pass number `at`."

    def __init__(self):
        super().__init__()
        self.net = net()
        self.bn = nn.BatchNorm1d(3)
        self.at = None
        self.what = None  # an exception class; None: NaN logits
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        z = self.bn(self.net(x))
        if self.calls != self.at:
            return z
        if self.what is None:
            return z * math.nan
        raise self.what("injected")


SETUPS = dict(
    pgd=lambda: [AdversarialTraining(PGD(LInfBall(0.1), 2))],
    mixed=lambda: [AdversarialTraining(OneStep(L2Ball(0.5)), alpha=0.5)],
    free=lambda: [FreeAdversarialTraining(LInfBall(0.1), 2)],
    penalty=lambda: [GradientPenalty(GradNorm(L1(0.1)))],
    both=lambda: [
        AdversarialTraining(PGD(LInfBall(0.1), 2, restarts=2)),
        GradientPenalty(GradNorm(L1(0.1))),
    ],
    measured=lambda: [
        AdversarialTraining(OneStep(LInfBall(0.1))),
        RobustMetrics(PGD(LInfBall(0.1), 2)),
    ],
)


def _flags(learn):
    return (
        [p.requires_grad for p in learn.model.parameters()],
        learn.loss_func.reduction,
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
    )


def fit_from(learn, state, at=None, what=None):
    "One epoch from given parameters, with a fault at forward pass number `at`."
    learn.model.load_state_dict(state)
    learn.model.calls = 0
    learn.model.at = at
    learn.model.what = what
    with quiet(learn):
        learn.fit(1, reset_opt=True)


@contextlib.contextmanager
def injected(what):
    "An error arrives, as it is or as the model's; NaN logits pass, or are refused by name."
    if what is not None:
        with pytest.raises((what, ValueError), match="injected"):
            yield
        return
    try:
        yield
    except ValueError as error:
        assert "NaN" in str(error)


@pytest.mark.parametrize("setup", SETUPS)
def test_random_faults_leave_nothing_behind(setup):
    """34 faults in each of six set-ups, at any forward pass, in attacks too.

    Errors, interrupts and NaN losses. Afterwards the learner trains as if there had been none.
    """
    rng = random.Random(setup)
    kinds = RuntimeError, KeyboardInterrupt, None
    learn = learner(*SETUPS[setup](), dls=images(n=8), model=Fragile())
    state = copy.deepcopy(learn.model.state_dict())
    set_seed(0)
    fit_from(learn, state)
    good = params(learn)
    columns = list(learn.recorder.values[-1])
    calls = learn.model.calls
    flags = _flags(learn)
    for i in range(34):
        what = kinds[i % 3]
        with injected(what):
            fit_from(learn, state, rng.randint(1, calls), what)
        assert _flags(learn) == flags
        modes = {module.training for module in learn.model.modules()}
        assert len(modes) == 1, "a fault left the model in mixed modes"
        if i % 5 and what is not None:
            continue
        set_seed(0)
        fit_from(learn, state)
        assert equal(params(learn), good)
        assert list(learn.recorder.values[-1]) == columns
        assert not learn.metrics


def test_adversarial_steps_leave_no_trace_but_the_step():
    "The attack leaves gradients, the optimiser and torch's stream of random numbers alone."

    class Watch(Callback):
        order = AdversarialTraining.order - 0.5
        run_valid = False

        def before_batch(self):
            self.rng = torch.get_rng_state()
            self.grads = [param.grad for param in self.model.parameters()]
            self.optimiser = copy.deepcopy(self.opt.state_dict())

    class Check(Callback):
        order = AdversarialTraining.order + 0.5
        run_valid = False

        def before_batch(self):
            assert torch.equal(self.watch.rng, torch.get_rng_state())
            for grad, param in zip(self.watch.grads, self.model.parameters()):
                assert grad is param.grad
                assert param.requires_grad
            assert str(self.watch.optimiser) == str(self.opt.state_dict())
            assert self.model.training

    model = nn.Sequential(net(), nn.BatchNorm1d(3), nn.Dropout(0.2))
    fit(AdversarialTraining(PGD(LInfBall(0.1), 2)), Watch(), Check(), model=model, n=2)


def test_a_training_without_a_batch_is_refused():
    """fastai leaves out a last batch that is not full; of a small folder it is the only one."""
    x, y = torch.rand(10, 3), torch.arange(10) % 2
    items = list(zip(x, y))

    def learner(bs):
        loaders = [DataLoader(items, bs=bs, drop_last=True), DataLoader(items, bs=4)]
        loss = CrossEntropyLossFlat()
        return Learner(DataLoaders(*loaders), nn.Linear(3, 2), loss_func=loss, cbs=attack())

    def attack():
        return callbacks.AdversarialTraining(OneStep(LInfBall(0.1)))

    learn = learner(11)
    said = "no batch, 10 examples are fewer than bs=11"
    with learn.no_bar(), learn.no_logging(), pytest.raises(ValueError, match=said):
        learn.fit(1)
    learn = learner(10)
    before = learn.model.weight.clone()
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
    assert not torch.equal(learn.model.weight, before)


def test_an_adversary_that_never_acts_is_told():
    x, y = torch.rand(8, 3), torch.arange(8) % 2
    items = list(zip(x, y))
    loaders = DataLoaders(DataLoader(items, bs=4), DataLoader(items, bs=4))
    learn = Learner(loaders, nn.Linear(3, 2), loss_func=CrossEntropyLossFlat())
    learn.add_cb(callbacks.AdversarialTraining(OneStep(LInfBall(0.1)), warmup=2))
    with learn.no_bar(), learn.no_logging():
        with pytest.warns(UserWarning, match="warmup=2 epochs of 2, so the adversary never acts"):
            learn.fit(2)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            learn.fit(3)
