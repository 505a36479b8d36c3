"The callbacks on fastai's own loop: units, order, protocols, faults."

import contextlib
import copy
import math
import random

import pytest
import torch
import torch.nn.functional as F
from fastai.basics import SGD, CrossEntropyLossFlat, Learner, TensorImage
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.data.transforms import Normalize
from fastai.learner import Recorder
from fastai.losses import BCEWithLogitsLossFlat, LabelSmoothingCrossEntropyFlat
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from advinterp.adversary import PGD, Adversary, OneStep
from advinterp.callbacks import (
    AdversarialTraining,
    FreeAdversarialTraining,
    GradientPenalty,
    InputCallback,
    RawBatch,
    RawUnits,
    Replayed,
    RobustMetrics,
    example_loss,
    hits,
    plain,
    which_input,
)
from advinterp.core import set_seed, task_loss
from advinterp.data import tensor_dls
from advinterp.duals import L1, ElasticNet, GroupBall, L1Ball, L2Ball, LInfBall
from advinterp.penalty import GradNorm, WeightNorm

STATS = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


def images(n=12, bs=4, norm=True, val=4, seed=0, size=4, **kw):
    "Random RGB images in [0, 1]; `norm`: the loader normalises them."
    set_seed(seed)
    x, y = torch.rand(n, 3, size, size), torch.arange(n) % 3
    tfms = dict(after_batch=[Normalize.from_stats(*STATS, cuda=False)]) if norm else {}
    dls = tensor_dls(x, y, x[:val], y[:val], bs=bs, device="cpu", **tfms, **kw)
    for ds in (dls.train_ds, dls.valid_ds):
        assert ds.x.shape[1] == 3
    return dls


def net(n_out=3, seed=1, size=4, **kw):
    set_seed(seed)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3 * size * size, 6), nn.Tanh(), nn.Linear(6, n_out)
    )


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
    "The clean and the perturbed raw inputs of each training batch, after everything that comes before autocast."

    order, run_valid = MixedPrecision.order - 0.5, False

    def before_fit(self):
        self.clean, self.seen, self.types = [], [], []

    def before_batch(self):
        cb = next(
            c
            for c in self.learn.cbs
            if isinstance(c, (AdversarialTraining, FreeAdversarialTraining))
        )
        self.types.append(type(self.learn.xb[0]))
        if cb.raw is None:
            return
        self.clean.append(cb.raw.x)
        self.seen.append(cb.raw.units.decode(self.learn.xb[0]).detach())

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
    u, size = torch.cat(spy.seen), ball.norm(spy.delta)
    assert size.max() <= ball.eps + 1e-5 and size.max() > 0.8 * ball.eps
    assert u.min() >= -1e-6 and u.max() <= 1 + 1e-6
    assert {t for t in spy.types} == {torch.Tensor}
    x = torch.cat(spy.clean)
    assert x.min() >= 0 and x.max() <= 1


def test_the_same_attack_with_the_normalisation_inside_the_model():
    "Raw loaders with a normalising model and normalising loaders train the same parameters."

    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            return self.net(
                (x - torch.tensor(STATS[0]).view(1, 3, 1, 1))
                / torch.tensor(STATS[1]).view(1, 3, 1, 1)
            )

    for cb in (
        lambda: AdversarialTraining(OneStep(L2Ball(0.5), bounds=(0, 1))),
        lambda: FreeAdversarialTraining(L2Ball(0.5), 2, bounds=(0, 1)),
        lambda: GradientPenalty(GradNorm(L1(0.1))),
    ):
        a, b = fit(cb(), n=3), fit(cb(), n=3, dls=images(norm=False), model=Inside())
        assert apart(params(a), params(b)) < 1e-5 < apart(params(a), params(fit(n=3)))


def test_raw_units_follow_the_type_as_fastai_does():
    dls = images()
    x = dls.one_batch()[0]
    assert (
        type(x) is TensorImage
        and len(RawUnits(dls.train, x).stats) == 1
        and RawUnits(dls.train, x).bounds == (0.0, 1.0)
    )
    assert (
        RawUnits(dls.train, plain(x)).stats == [] and RawUnits(dls.train, plain(x)).bounds is None
    )
    assert (
        RawUnits(None, TensorImage(torch.randn(9))).bounds is None
    )  # not in [0, 1]: no bounds are invented
    torch_dl = torch.utils.data.DataLoader([torch.zeros(2)])
    assert RawUnits(torch_dl, torch.zeros(2)).stats == []


def test_bounds_of_the_adversary_are_kept():
    spy = Spy()
    fit(AdversarialTraining(PGD(LInfBall(0.3), 2, bounds=(0, 2))), spy)
    assert (
        torch.cat(spy.seen).max() <= 1 + 1e-6 and torch.cat(spy.seen).min() >= -1e-6
    )  # images stay images
    fit(AdversarialTraining(PGD(LInfBall(0.3), 2, bounds=(0, 2))), spy, dls=images(norm=False))
    assert torch.cat(spy.seen).max() > 1.1  # plain tensors have the adversary's bounds only
    adv = PGD(LInfBall(0.3), 2)
    fit(AdversarialTraining(adv), Spy())
    assert adv.bounds is None  # the user's adversary is not touched
    with pytest.raises(ValueError, match="outside the bounds"):
        fit(AdversarialTraining(PGD(LInfBall(0.1), 2, bounds=(0.4, 0.6))))
    with pytest.raises(ValueError, match="outside the bounds"):
        fit(FreeAdversarialTraining(LInfBall(0.1), 2, bounds=(0.4, 0.6)))


def test_several_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            set_seed(0)
            self.emb, self.lin = nn.Embedding(4, 3), nn.Linear(3 + 5, 3)

        def forward(self, cat, cont):
            return self.lin(torch.cat([self.emb(cat), cont], 1))

    set_seed(0)
    cat, cont, y = torch.randint(4, (12,)), torch.rand(12, 5), torch.arange(12) % 3
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader

    items = list(zip(cat, cont, y))

    def dls():
        d = DataLoaders(
            DataLoader(items, bs=4, shuffle=True), DataLoader(items, bs=6), device="cpu"
        )
        d.n_inp = 2
        return d

    seen = []

    class See(Callback):
        order = MixedPrecision.order - 0.5

        def before_batch(self):
            if self.training:
                seen.append((self.adversarial_training.raw.xb, self.learn.xb))

    learn = fit(
        AdversarialTraining(PGD(LInfBall(0.1), 3)),
        GradientPenalty(GradNorm(L1(0.1))),
        RobustMetrics(PGD(LInfBall(0.1), 3)),
        See(),
        dls=dls(),
        model=Two(),
    )
    for (c, u), (c2, u2) in seen:
        assert torch.equal(c, c2) and 0.01 < (u - u2).abs().max() <= 0.1 + 1e-6
    assert len(learn.recorder.values[0]) == 4
    with pytest.raises(ValueError, match="which=0"):
        fit(AdversarialTraining(PGD(LInfBall(0.1), 3), which=0), dls=dls(), model=Two())
    with pytest.raises(TypeError, match="float()"):
        which_input((cat,))
    with pytest.raises(ValueError, match="expected one of"):
        which_input((cont, cont))


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


@pytest.mark.parametrize("mix", [MixUp, CutMix])
def test_the_adversary_attacks_the_mixed_loss(mix):
    pairs = []

    class Compare(Spy):
        def before_batch(self):
            if not self.training:
                return
            z = self.learn.model(plain(self.learn.xb[0])).detach()
            pairs.append(
                (
                    float(self.learn.loss_func(z, *self.learn.yb)),
                    float(example_loss(self.learn)(z, None).mean()),
                    float(F.cross_entropy(z, plain(self.learn.y))),
                )
            )

    for loss in (CrossEntropyLossFlat(), LabelSmoothingCrossEntropyFlat()):
        learn = fit(AdversarialTraining(PGD(LInfBall(0.1), 2)), mix(0.4), Compare(), n=3, loss=loss)
        assert learn.loss_func is loss and loss.reduction == "mean"
    own, attacked, first = zip(*pairs)
    assert (
        own == pytest.approx(attacked, abs=1e-6)
        and max(abs(a - b) for a, b in zip(own, first)) > 0.01
    )


def test_one_hot_targets_and_losses_without_reduction_attribute():
    x, y = torch.rand(12, 3, 4, 4), torch.eye(3)[torch.arange(12) % 3]
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader

    d = DataLoaders(
        DataLoader(list(zip(x, y)), bs=4), DataLoader(list(zip(x, y)), bs=6), device="cpu"
    )
    a = fit(AdversarialTraining(OneStep(L2Ball(0.3))), dls=d, loss=BCEWithLogitsLossFlat())
    b = fit(
        AdversarialTraining(OneStep(L2Ball(0.3))), dls=d, loss=F.cross_entropy
    )  # a function with an argument `reduction`
    assert a.recorder.losses and b.recorder.losses
    with pytest.raises(TypeError, match="reduction"):
        fit(
            AdversarialTraining(OneStep(L2Ball(0.3))),
            dls=d,
            loss=lambda z, y: F.cross_entropy(z, y),
        )


def test_the_attack_runs_under_the_learners_autocast_and_without_the_scaler():
    dtypes = []

    class Seen(Adversary):
        def __init__(self):
            super().__init__(LInfBall(0.1))

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
        before_batch = after_loss = lambda self: None

    with pytest.warns(UserWarning):
        learn = fit(AdversarialTraining(Seen()), MixedPrecision("bf16"), After())
    assert set(dtypes) == {torch.bfloat16} and not torch.is_autocast_enabled("cpu")


def test_gradient_clip_sees_the_penalised_gradient():
    small, large = (
        fit(GradientPenalty(WeightNorm(2), w), GradientClip(1e-3), lr=1.0) for w in (1.0, 1e4)
    )
    assert (
        apart(params(learner()), params(large)) < 0.01
        and apart(params(small), params(large)) > 1e-5
    )


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
    "Plain gradient descent on `step(model, x, y) -> loss` over the batches that `fit` sees."
    dls, model = images(norm=False), net()
    set_seed(0)
    for _ in range(n):
        for x, y in dls.train:
            for loss in step(model, x, y):
                grads = torch.autograd.grad(loss, list(model.parameters()))
                with torch.no_grad():
                    for p, g in zip(model.parameters(), grads):
                        p -= lr * g
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_the_mix_is_a_convex_combination(alpha):
    adv = OneStep(L2Ball(0.5))

    def step(f, x, y):
        yield (1 - alpha) * F.cross_entropy(f(adv(f, x, y)), y) + alpha * F.cross_entropy(f(x), y)

    learn = fit(AdversarialTraining(adv, alpha=alpha), dls=images(norm=False), lr=0.5, n=2)
    assert apart(params(learn), by_hand(step, n=2)) < 1e-6


def test_free_training_is_the_papers_algorithm():
    ball, state = L2Ball(0.3), dict(delta=torch.zeros(4, 3, 4, 4))

    def step(f, x, y):
        for _ in range(3):
            d = state["delta"].clone().requires_grad_()
            loss = F.cross_entropy(f(x + d), y)
            (g,) = torch.autograd.grad(loss, d, retain_graph=True)
            state["delta"] = ball.project(state["delta"] + ball.delta_star(g))
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
    size = [float((a - b).abs().max()) for a, b in zip(spy.seen, spy.clean)]
    assert (
        len(size) == 4 and size[0] == 0 and size[-1] == pytest.approx(0.05, abs=1e-6)
    )  # half the radius, half the step
    adv.learn.lr_finder = None
    adv.before_fit()
    assert adv.now() is adv.adversary
    del adv.learn.lr_finder


def test_loss_reported_is_the_task_loss_of_the_batch():
    class Reported(Callback):
        def after_backward(self):
            self.pair = self.learn.loss.item(), self.learn.loss_grad.item()

    learn = fit(
        AdversarialTraining(OneStep(L2Ball(0.5)), alpha=0.5),
        GradientPenalty(WeightNorm(1), 1.0),
        Reported(),
        dls=images(n=4, bs=4),
    )
    assert learn.reported.pair[1] > learn.reported.pair[0] + 0.5


@given(m=st.integers(1, 3), n=st.sampled_from([4, 7, 9]))
@settings(max_examples=5)
def test_free_training_carries_rows_over_uneven_batches(m, n):
    cb, sizes = FreeAdversarialTraining(LInfBall(0.1), m), []

    class Sizes(Spy):
        def before_batch(self):
            sizes.append(
                self.learn.free_adversarial_training.carried.delta.abs().amax((1, 2, 3)).tolist()
            )

    learn = fit(cb, Sizes(), dls=images(n=n, bs=4), n=2)
    assert learn.train_iter == 2 * m * math.ceil(n / 4) and len(sizes) == learn.train_iter
    assert len(sizes[-1]) == 4 and max(max(s) for s in sizes) <= 0.1 + 1e-6
    assert sizes[0] == [0.0] * 4 and max(sizes[-1]) > 0
    again = fit(cb, dls=images(n=n, bs=4), n=2)  # nothing is carried from fit to fit
    assert equal(params(learn), params(again))


def test_replays_are_fresh_copies():
    seen = []
    for (x,) in Replayed([(torch.zeros(2),)], 3):
        seen.append(x.clone())
        x.add_(1)  # as CutMix does, in place
    assert len(seen) == 3 and not torch.stack(seen).any()


def test_robust_metrics_leave_natural_columns_alone_and_work_everywhere():
    cb = RobustMetrics(PGD(LInfBall(0.1), 3, early_stop=True))
    learn, bare = fit(cb, n=2), fit(n=2)
    assert [list(v)[:2] for v in learn.recorder.values] == [
        list(v) for v in bare.recorder.values
    ] and equal(params(learn), params(bare))
    with quiet(learn):
        p, t = learn.get_preds()
        assert list(learn.recorder.metric_names) == ["epoch", "train_loss", "valid_loss", "time"]
        assert learn.get_preds(dl=learn.dls.test_dl(torch.rand(5, 3, 4, 4)))[0].shape == (
            5,
            3,
        )  # no labels
        assert len(learn.validate()) == 3
        learn.recorder.train_metrics = True
        learn.fit(1)
    named = dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[-1]))
    assert (
        math.isnan(named["train_robust_accuracy"])
        and 0 <= named["valid_robust_accuracy"] <= 1
        and not learn.metrics
    )
    learn.model[3].weight.data.fill_(math.nan)
    with quiet(learn):
        assert math.isnan(learn.validate()[-1])


@given(st.integers(0, 50))
@settings(max_examples=10)
def test_hits(seed):
    set_seed(seed)
    z, y = torch.randn(7, 1), torch.randint(2, (7,))
    two = torch.cat([torch.zeros_like(z), z], 1)
    assert torch.equal(hits(z, y), hits(two, y)) and torch.equal(hits(z[:, 0], y), hits(two, y))


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
        (lambda: FreeAdversarialTraining(LInfBall(0.1), 2.0), ValueError, "replays"),
        (lambda: RobustMetrics(L1(0.1)), TypeError, "OneStep"),
    ]:
        with pytest.raises(exc, match=msg):
            make()


def test_integer_inputs_nan_inputs_and_missing_targets():
    dls = images(norm=False)
    for x, msg in [(torch.full((12, 3, 4, 4), math.nan), "NaN")]:
        dls.train_ds.x = x
        with pytest.raises(ValueError, match=msg):
            fit(AdversarialTraining(PGD(LInfBall(0.1))), dls=dls)
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader

    whole = DataLoaders(
        DataLoader([(torch.ones(3, 4, 4).long(), torch.tensor(1))] * 4, bs=2), device="cpu"
    )
    with pytest.raises(TypeError, match="float()"):
        fit(AdversarialTraining(PGD(LInfBall(0.1))), dls=whole)


def test_a_model_without_gradient_to_its_input():
    class Blind(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            return self.net(x.detach())

    with pytest.raises(ValueError, match="does not depend|no gradient"):
        fit(AdversarialTraining(PGD(LInfBall(0.1))), model=Blind())


# ---------------------------------------------------------------- faults


class Fragile(nn.Module):
    "A model that fails at the forward pass number `at`."

    def __init__(self):
        super().__init__()
        self.net, self.bn, self.at, self.what, self.calls = net(), nn.BatchNorm1d(3), None, None, 0

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


@pytest.mark.parametrize("setup", SETUPS)
def test_random_faults_leave_nothing_behind(setup):
    "34 faults in each of six set-ups: errors, interrupts and NaN losses at any forward pass, in attacks too. Afterwards the learner trains to the same bits as an untouched one."
    rng, kinds = random.Random(setup), (RuntimeError, KeyboardInterrupt, None)

    def fresh():
        return learner(*SETUPS[setup](), dls=images(n=8), model=Fragile())

    def start(learn, state):
        learn.model.load_state_dict(state)
        learn.model.calls, learn.model.at = 0, None
        set_seed(0)
        with quiet(learn):
            learn.fit(1, reset_opt=True)

    learn = fresh()
    state = copy.deepcopy(learn.model.state_dict())
    start(learn, state)
    good, calls, flags, columns = (
        params(learn),
        learn.model.calls,
        _flags(learn),
        list(learn.recorder.values[-1]),
    )
    for i in range(34):
        learn.model.load_state_dict(state)
        learn.model.calls = 0
        learn.model.at, learn.model.what = rng.randint(1, calls), kinds[i % 3]
        seen = (
            contextlib.nullcontext()
            if learn.model.what is None
            else pytest.raises(learn.model.what)
        )
        with seen, quiet(learn):
            learn.fit(1, reset_opt=True)
        assert _flags(learn) == flags
        modes = {m.training for m in learn.model.modules()}
        assert len(modes) == 1, "a fault left the model in mixed modes"
        if i % 5 == 0 or learn.model.what is None:
            start(learn, state)
            assert (
                equal(params(learn), good)
                and list(learn.recorder.values[-1]) == columns
                and not learn.metrics
            )


def test_adversarial_steps_leave_no_trace_but_the_step():
    "The attack leaves parameters' gradients, the optimiser and torch's stream of random numbers alone."

    class Watch(Callback):
        order, run_valid = AdversarialTraining.order - 0.5, False

        def before_batch(self):
            self.state = (
                torch.get_rng_state(),
                [p.grad for p in self.model.parameters()],
                copy.deepcopy(self.opt.state_dict()),
            )

    class Check(Callback):
        order, run_valid = AdversarialTraining.order + 0.5, False

        def before_batch(self):
            rng, grads, opt = self.watch.state
            assert torch.equal(rng, torch.get_rng_state()) and all(
                a is b.grad for a, b in zip(grads, self.model.parameters())
            )
            assert (
                str(opt) == str(self.opt.state_dict())
                and all(p.requires_grad for p in self.model.parameters())
                and self.model.training
            )

    model = nn.Sequential(net(), nn.BatchNorm1d(3), nn.Dropout(0.2))
    fit(AdversarialTraining(PGD(LInfBall(0.1), 2)), Watch(), Check(), model=model, n=2)
