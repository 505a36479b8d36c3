"`adv_learner` and the verbs with all that a fastai `Learner` can do, on one process or several."

import contextlib
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.training import GradientClip
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader as FastaiLoader
from fastai.learner import Learner
from fastai.tabular.all import Categorify, FillMissing, TabularDataLoaders, tabular_learner
from fastai.tabular.all import Normalize as TableNormalize
from fastai.torch_core import TensorCategory
from fastai.vision.all import (
    SGD,
    BCEWithLogitsLossFlat,
    CategoryBlock,
    CrossEntropyLossFlat,
    DataBlock,
    GradientAccumulation,
    ImageBlock,
    LabelSmoothingCrossEntropyFlat,
    MixUp,
    Normalize,
    PILImage,
    RandomSplitter,
    SchedLin,
    imagenet_stats,
    load_learner,
    vision_learner,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader as TorchLoader
from torch.utils.data import TensorDataset
from torchvision.models import resnet18

from advinterp import train
from advinterp.adversary import PGD, OneStep
from advinterp.callbacks import (
    AdversarialTraining,
    FreeAdversarialTraining,
    GradientPenalty,
    InputCallback,
    RobustMetrics,
)
from advinterp.core import set_seed, task_loss
from advinterp.data import get_data, load, tensor_dls
from advinterp.duals import L1, ElasticNet, L2Ball, LInfBall
from advinterp.models import one_layer, small_conv
from advinterp.penalty import GradNorm, JacobianNorm, StableIG, WeightNorm
from advinterp.train import FTRL, TaskLoss, adv_learner, default_loss, logits_accuracy

EPS = 8 / 255


@contextlib.contextmanager
def quiet(learn):
    with learn.no_bar(), learn.no_logging():
        yield learn


def digits(bs=32, n=128, **kw):
    return get_data("digits", bs=bs, n_train=n, n_valid=100, device="cpu", **kw)


def params(learn):
    return [p.detach().clone() for p in learn.model.parameters()]


def equal(a, b):
    return all(torch.equal(p, q) for p, q in zip(a, b))


def bare(x):
    "A plain tensor of what a loader delivers."
    return x.as_subclass(torch.Tensor)


class Pixels(Callback):
    "Perturbations and pixels of the training batches, taken from the learner, not the callback."

    order = MixedPrecision.order - 0.5
    run_valid = False

    def __init__(self, mean, std):
        self.mean, self.std = (torch.tensor(stat).view(1, 3, 1, 1) for stat in (mean, std))

    def before_fit(self):
        self.sizes = []
        self.low = []
        self.high = []

    def pixels_now(self):
        return bare(self.learn.xb[0]) * self.std + self.mean

    def before_batch(self):
        pixels = self.pixels_now()
        self.sizes.append(float((pixels - self.at_start).abs().max()))
        self.low.append(float(pixels.min()))
        self.high.append(float(pixels.max()))


class Start(Callback):
    "Takes the batch as the loader delivers it."

    order = -5
    run_valid = False

    def before_batch(self):
        self.pixels.at_start = self.pixels.pixels_now().clone()


def image_dls(x, y, bs=8):
    normalise = Normalize.from_stats(*imagenet_stats, cuda=False)
    return tensor_dls(x, y, x[:bs], y[:bs], bs=bs, device="cpu", after_batch=[normalise])


def image_learner(x, y, bs=8):
    return vision_learner(
        image_dls(x, y, bs),
        resnet18,
        n_out=10,
        pretrained=False,
        weights=None,
        metrics=logits_accuracy,
        cbs=[Start(), Pixels(*imagenet_stats)],
    )


def random_images(n=16):
    set_seed(0)
    return torch.rand(n, 3, 32, 32), torch.arange(n) % 10


# ---------------------------------------------------------------- bodies, images, units


def check_pixels(learn, eps=EPS):
    pixels = learn.pixels
    assert 0.99 * eps < max(pixels.sizes) <= eps + 1e-6
    assert min(pixels.low) >= -1e-6
    assert max(pixels.high) <= 1 + 1e-6


def test_vision_learner_stays_within_raw_pixels():
    learn = image_learner(*random_images()).adversarial(PGD(LInfBall(EPS), 2))
    with quiet(learn):
        learn.fit(1)
    check_pixels(learn)


def test_fine_tune_with_frozen_body_and_discriminative_rates():
    learn = image_learner(*random_images()).adversarial(PGD(LInfBall(EPS), 2))
    learn.freeze()
    before = params(learn)
    trained = [param.requires_grad for param in learn.model.parameters()]
    with quiet(learn):
        learn.fit_one_cycle(1, slice(1e-3))
    changed = [not torch.equal(old, new) for old, new in zip(before, params(learn))]
    n_body = len(list(learn.model[0].parameters()))
    assert not all(trained[:n_body])  # batch norm trains on
    assert all(trained[n_body:])
    assert not any(change for change, train in zip(changed, trained) if not train)
    assert any(changed[n_body:])
    with quiet(learn):
        learn.fine_tune(1, 1e-3)
    check_pixels(learn)
    assert all(param.requires_grad for param in learn.model.parameters())
    assert len({hyper["lr"] for hyper in learn.opt.hypers}) > 1


def test_timm_body():
    pytest.importorskip("timm", reason="timm is not installed")
    x, y = random_images(8)
    cbs = [Start(), Pixels(*imagenet_stats)]
    dls = image_dls(x, y % 2, bs=4)
    learn = vision_learner(dls, "resnet10t", pretrained=False, cbs=cbs)
    learn.adversarial(OneStep(LInfBall(EPS)))
    with quiet(learn):
        learn.fit(1)
    check_pixels(learn)


def test_images_from_files_through_the_data_block(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(12):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        PILImage.create(pixels).save(tmp_path / f"{'ab'[i % 2]}_{i}.png")
    block = DataBlock(
        (ImageBlock, CategoryBlock),
        get_items=lambda folder: sorted(folder.glob("*.png")),
        get_y=lambda file: file.name[0],
        splitter=RandomSplitter(seed=0),
        batch_tfms=[Normalize.from_stats(*imagenet_stats, cuda=False)],
    )
    dls = block.dataloaders(tmp_path, bs=5, device="cpu", num_workers=0)
    set_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    learn = adv_learner(
        dls,
        model,
        adversary=PGD(LInfBall(EPS), 3),
        cbs=[Start(), Pixels(*imagenet_stats), RobustMetrics(OneStep(LInfBall(EPS)))],
        path=tmp_path,
    )
    assert isinstance(learn.loss_func, TaskLoss)
    with quiet(learn):
        learn.fit(1)
    check_pixels(learn)
    assert learn.predict(tmp_path / "a_0.png")[0] in "ab"


def test_real_cifar_images_through_a_resnet():
    if not os.environ.get("ADVINTERP_DATA"):
        pytest.skip("set ADVINTERP_DATA to the folder that holds cifar10")
    cifar = load("cifar10")
    set_seed(0)
    learn = image_learner(torch.tensor(cifar.x[:64]), torch.tensor(cifar.y[:64]), bs=32)
    learn.adversarial(PGD(LInfBall(EPS), 3))
    with quiet(learn):
        learn.fit(2, 1e-3)
    check_pixels(learn)
    assert all(torch.isfinite(p).all() for p in learn.model.parameters())


# ---------------------------------------------------------------- the loss and the metric


def test_task_loss_is_cross_entropy_of_many_logits():
    set_seed(0)
    z, y = torch.randn(9, 4), torch.arange(9) % 4
    loss = TaskLoss()
    assert torch.allclose(loss(z, y), F.cross_entropy(z, y))
    assert torch.equal(loss.decodes(loss.activation(z)), z.argmax(1))
    loss.reduction = "none"
    assert torch.equal(loss(z, y), task_loss(z, y))
    assert TaskLoss()(torch.randn(3, 2).double(), torch.arange(3) % 2).dtype == torch.float32


@pytest.mark.parametrize("shape", [(9, 1), (9,)])
def test_task_loss_is_binary_for_one_logit(shape):
    set_seed(0)
    z, y = torch.randn(shape), torch.arange(9) % 2
    column = z.reshape(9)
    loss = TaskLoss()
    assert torch.allclose(loss(z, y), F.binary_cross_entropy_with_logits(column, y.float()))
    assert torch.equal(loss.decodes(loss.activation(z)), (column > 0).long())
    assert logits_accuracy(z, y) == ((column > 0) == y).float().mean()


@given(seed=st.integers(0, 50))
@settings(max_examples=10)
def test_one_logit_is_judged_like_two(seed):
    set_seed(seed)
    z, y = torch.randn(7, 1), torch.randint(2, (7,))
    two = torch.cat([torch.zeros_like(z), z], 1)
    assert logits_accuracy(z, y) == logits_accuracy(z[:, 0], y) == logits_accuracy(two, y)


LABELS = {
    "(B, 1) of int8": lambda y: y[:, None].to(torch.int8),
    "(B, 1) of floats": lambda y: y[:, None].float(),
    "floats": torch.Tensor.float,
    "bool": torch.Tensor.bool,
    "uint8": torch.Tensor.byte,
    "TensorCategory": TensorCategory,
}
WRONG_LABELS = {
    "-1 and 1": (lambda y: 2 * y - 1, r"\(y \+ 1\) // 2"),
    "1 and 2": (lambda y: y + 1, "y - 1 counts from 0"),
    "ten classes": (lambda y: torch.arange(len(y)) % 10, "labels from 0 to 9"),
    "fractions": (lambda y: y + 0.5, "fractions"),
    "a column a class": (lambda y: torch.eye(2)[y], r"y.argmax\(1\)"),
}


def labelled(form, shuffle=False):
    "Loaders of PyTorch of a table with labels in a form."
    set_seed(0)
    x = torch.randn(80, 5)
    data = TensorDataset(x, form((x[:, 0] > 0).long()))
    return DataLoaders(TorchLoader(data, batch_size=20), TorchLoader(data, batch_size=40))


def one_logit_trained(form, adversarial=True):
    attack = PGD(LInfBall(0.1), 2)
    how = dict(adversary=attack, penalty=GradNorm(L1(0.1)), cbs=RobustMetrics(attack))
    set_seed(0)
    learn = adv_learner(labelled(form), nn.Linear(5, 1), **(how if adversarial else {}), lr=0.1)
    with quiet(learn):
        learn.fit(2)
    return params(learn), [float(value) for value in learn.recorder.values[-1]]


@pytest.mark.parametrize("form", LABELS.values(), ids=LABELS)
def test_labels_in_any_whole_form_train_the_same(form):
    expected, columns = one_logit_trained(lambda y: y)
    ours, own_columns = one_logit_trained(form)
    assert equal(ours, expected)
    assert own_columns == columns
    assert 0 < columns[3] < columns[2] < 1


@pytest.mark.parametrize("adversarial", [True, False], ids=["adversarial", "natural"])
@pytest.mark.parametrize("form, words", WRONG_LABELS.values(), ids=WRONG_LABELS)
def test_labels_that_train_astray_are_refused_at_the_first_batch(form, words, adversarial):
    with pytest.raises(ValueError, match=words):
        one_logit_trained(form, adversarial)
    with pytest.raises(ValueError, match=words):
        logits_accuracy(torch.zeros(80, 1), form(torch.arange(80) % 2))


@pytest.mark.parametrize("adversarial", [True, False], ids=["adversarial", "natural"])
@pytest.mark.parametrize("n_out", [1, 3])
def test_a_label_without_a_class_in_a_later_batch_is_named(n_out, adversarial):
    def one_more(y):
        y[70] = 7
        return y

    learn = adv_learner(
        labelled(one_more), nn.Linear(5, n_out), PGD(LInfBall(0.1), 2) if adversarial else None
    )
    with pytest.raises(ValueError, match="labels from 0 to 7"), quiet(learn):
        learn.fit(1)


@pytest.mark.parametrize("end", [nn.Sigmoid(), nn.Softmax(1)], ids=["sigmoid", "softmax"])
@pytest.mark.parametrize("attack", [None, PGD(LInfBall(0.1), 2)], ids=["natural", "adversarial"])
def test_models_that_end_in_probabilities_are_refused(end, attack):
    n_out = 1 if isinstance(end, nn.Sigmoid) else 2
    learn = adv_learner(labelled(lambda y: y), nn.Sequential(nn.Linear(5, n_out), end), attack)
    with pytest.raises(ValueError, match="outputs are probabilities"), quiet(learn):
        learn.fit(1)


def test_binary_losses_of_torch_with_the_labels_that_they_need():
    attack = PGD(LInfBall(0.1), 2)
    columns = {}
    for name, form in (("whole", lambda y: y), ("column", LABELS["(B, 1) of floats"])):
        set_seed(0)
        loss = None if name == "whole" else nn.BCEWithLogitsLoss()
        learn = adv_learner(
            labelled(form), nn.Linear(5, 1), attack, loss_func=loss, cbs=RobustMetrics(attack)
        )
        with quiet(learn):
            learn.fit(2)
        columns[name] = list(learn.recorder.values[-1])[-2:]
        assert loss is None or loss.reduction == "mean"
    assert columns["whole"] == pytest.approx(columns["column"], abs=1e-6)


def test_accuracy_of_a_diverged_model_is_none():
    z = torch.zeros(4, 3)
    z[1, 2] = float("nan")
    assert logits_accuracy(z, torch.zeros(4).long()).isnan()


# ---------------------------------------------------------------- tables, several targets


@pytest.fixture
def frame():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(3, 2, size=(80, 3)), columns=list("abc"))
    frame["kind"] = rng.choice(["p", "q", "r"], 80)
    frame["label"] = np.where(frame.a + (frame.kind == "p") > 3, "yes", "no")
    return frame


def table_dls(frame, cont_names=("a", "b", "c"), cat_names=("kind",)):
    return TabularDataLoaders.from_df(
        frame,
        procs=[Categorify, FillMissing, TableNormalize],
        cat_names=list(cat_names),
        cont_names=list(cont_names),
        y_names="label",
        y_block=CategoryBlock(),
        valid_idx=range(50, 80),
        bs=16,
        device="cpu",
    )


class TableNet(nn.Module):
    def __init__(self, n_out=2):
        super().__init__()
        set_seed(0)
        self.kinds = nn.Embedding(4, 3)
        self.out = nn.Linear(6, n_out)

    def forward(self, cat, cont):
        return self.out(torch.cat([self.kinds(cat[:, 0]), cont], 1))


ATTACKS = dict(
    pgd=PGD(LInfBall(0.1), 2),
    best=PGD(L2Ball(0.1), 2, restarts=2),
    early=PGD(LInfBall(0.1), 3, early_stop=True),
    fast=PGD(LInfBall(0.1), 2, fast=True),
    price=PGD(ElasticNet(0.1, 0.1), 2),
)


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
@pytest.mark.parametrize("make", ["adv_learner", "tabular_learner", "one logit"])
def test_tables_with_categories(frame, attack, make):
    dls = table_dls(frame)
    judge = RobustMetrics(attack)
    if make == "tabular_learner":
        learn = tabular_learner(dls, layers=[6], cbs=judge).adversarial(attack)
    else:
        learn = adv_learner(dls, TableNet(1 if make == "one logit" else 2), attack, cbs=judge)
    seen = []

    class Look(Callback):
        order = InputCallback.order + 1
        run_valid = False

        def before_batch(self):
            seen.append((self.adversarial_training.raw.xb, self.learn.xb))

    learn.add_cb(Look())
    with quiet(learn):
        learn.fit(2, 1e-2)
    assert len(seen) == 2 * 3
    for (clean_kind, clean), (kind, moved) in seen:
        assert torch.equal(clean_kind, kind)
        if hasattr(attack.dual, "eps"):
            assert attack.dual.norm(moved - clean).max() <= attack.dual.eps + 1e-6
        assert (moved - clean).abs().max() > 0.01
    names = dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[-1]))
    assert 0 <= names["robust_accuracy"] <= 1
    if "accuracy" in names:
        assert names["robust_accuracy"] <= names["accuracy"]


PENALTIES = dict(
    grad_norm=GradNorm(L1(0.1)),
    of_logits=GradNorm(L1(0.1), output="logit"),
    jacobian=JacobianNorm(1),
    weights=WeightNorm(2),
    stable=StableIG(0.1, 2),
)


@pytest.mark.parametrize("penalty", PENALTIES.values(), ids=PENALTIES)
def test_penalties_on_tables_with_categories(frame, penalty):
    learns = [
        adv_learner(table_dls(frame), TableNet(), penalty=penalty),
        tabular_learner(table_dls(frame), layers=[6]).penalise(penalty),
        tabular_learner(table_dls(frame, cat_names=()), layers=[6]).penalise(penalty),
    ]
    for learn in learns:
        with quiet(learn):
            learn.fit(1)
        assert all(p.isfinite().all() for p in learn.model.parameters())


def test_what_cannot_be_moved_is_said(frame):
    codes = TensorDataset(torch.randint(9, (8, 7)), torch.arange(8) % 2)
    loader = TorchLoader(codes, batch_size=4)
    text = nn.Sequential(nn.Embedding(9, 2), nn.Flatten(), nn.Linear(14, 2))
    attack = PGD(LInfBall(0.1), 2)
    for kw in (
        dict(adversary=attack),
        dict(adversary=LInfBall(0.1), free_replays=2),
        dict(penalty=GradNorm(L1(0.1))),
        dict(cbs=RobustMetrics(attack)),
    ):
        learn = adv_learner(DataLoaders(loader, loader), text, **kw)
        with pytest.raises(TypeError, match="codes of words and categories"), quiet(learn):
            learn.fit(1)
    learn = tabular_learner(table_dls(frame, cont_names=()), layers=[6]).adversarial(attack)
    with pytest.raises(TypeError, match=r"\(16, 0\) of torch.float32"), quiet(learn):
        learn.fit(1)


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        set_seed(0)
        self.a, self.b = nn.Linear(5, 2), nn.Linear(5, 3)

    def forward(self, x):
        return self.a(x), self.b(x)


def two_targets(weight=False):
    set_seed(0)
    x = torch.randn(60, 5)
    second = torch.rand(60) if weight else torch.arange(60) % 3
    loader = FastaiLoader(TensorDataset(x, (x[:, 0] > 0).long(), second), bs=20, n_inp=1)
    dls = DataLoaders(loader, loader)
    dls.n_inp = 1
    return dls


def both_heads(outputs, a, b):
    return F.cross_entropy(outputs[0], a) + F.cross_entropy(outputs[1], b)


def weighted(logits, y, weight):
    return (F.cross_entropy(logits, y, reduction="none") * weight).mean()


def test_several_targets_are_attacked_by_the_loss_of_all():
    "Losses without `reduction`, of outputs in two parts: the step is that of the summed loss."
    seen = []

    class Look(Callback):
        order = InputCallback.order + 1
        run_valid = False

        def before_batch(self):
            seen.append((self.adversarial_training.raw, self.learn.xb[0]))
            x = seen[-1][0].x.clone().requires_grad_()
            (g,) = torch.autograd.grad(both_heads(self.model(x), *self.learn.yb), x)
            assert torch.equal(seen[-1][1], seen[-1][0].x + 0.1 * g.sign())

    learn = Learner(two_targets(), TwoHeads(), loss_func=both_heads, cbs=Look())
    learn.adversarial(OneStep(LInfBall(0.1))).penalise(GradNorm(L1(0.1)))
    with quiet(learn):
        learn.fit(1)
        assert len(seen) == 3
        learn.adversarial(LInfBall(0.1), free_replays=2).remove_cb(Look)
        learn.fit(1)
    judged = Learner(
        two_targets(), TwoHeads(), loss_func=both_heads, cbs=RobustMetrics(PGD(LInfBall(0.1), 2))
    )
    with pytest.raises(ValueError, match="model: its output is a tuple"), quiet(judged):
        judged.fit(1)


def test_the_label_stands_first_among_several_targets():
    attack = PGD(LInfBall(0.1), 3, early_stop=True)
    learn = Learner(
        two_targets(weight=True), nn.Linear(5, 2), loss_func=weighted, cbs=RobustMetrics(attack)
    )
    learn.adversarial(attack).penalise(JacobianNorm(1))
    with quiet(learn):
        learn.fit(2)
    assert 0 <= learn.recorder.values[-1][2] <= 1


def test_mixed_batches_and_an_early_stop_do_not_go_together():
    learn = adv_learner(
        labelled(lambda y: y), nn.Linear(5, 2), PGD(LInfBall(0.1), 3, early_stop=True), cbs=MixUp()
    )
    with pytest.raises(ValueError, match="MixUp mixes whole batches"), quiet(learn):
        learn.fit(1)


def test_columns_of_two_judges_have_names_of_their_own():
    weak, strong = (PGD(LInfBall(eps), 2) for eps in (0.01, 1.0))
    judges = [RobustMetrics(weak), RobustMetrics(strong), RobustMetrics(weak, suffix="_weak")]
    learn = adv_learner(labelled(lambda y: y), nn.Linear(5, 1), lr=0.1, cbs=judges)
    with quiet(learn):
        learn.fit(3)
    names = list(learn.recorder.metric_names)
    assert len(set(names)) == len(names)
    assert names[4:-1] == [
        f"{name}{suffix}" for suffix in ("", "_2", "_weak") for name in ("robust_accuracy", "gini")
    ]
    values = dict(zip(names[1:], learn.recorder.values[-1]))
    assert values["robust_accuracy"] > values["robust_accuracy_2"]
    assert values["robust_accuracy"] == values["robust_accuracy_weak"]


@pytest.mark.parametrize("kw", [{}, dict(free_replays=2), dict(penalty=GradNorm(L1(0.05)))])
def test_an_interrupted_training_leaves_a_learner_that_works(kw, tmp_path):
    class Interrupt(Callback):
        order = InputCallback.order + 1

        def before_batch(self):
            if self.epoch == 1:
                raise KeyboardInterrupt

    learn = make(path=tmp_path, cbs=RobustMetrics(PGD(LInfBall(0.1), 2)), **kw)
    learn.add_cb(Interrupt())
    with pytest.raises(KeyboardInterrupt), quiet(learn):
        learn.fit(2)
    pickle.loads(pickle.dumps(learn.dl))
    learn.remove_cb(Interrupt)
    assert learn.model.training
    assert all(p.requires_grad for p in learn.model.parameters())
    with quiet(learn):
        assert len(learn.validate()) == 4
        learn.get_preds()
        learn.export("interrupted.pkl")
        columns = list(learn.recorder.metric_names)
        learn.fit(1)
    assert len(columns) == len(set(columns))
    assert [metric.name for metric in learn.metrics] == ["accuracy"]
    back = load_learner(tmp_path / "interrupted.pkl")
    with quiet(back):
        assert len(back.get_preds(dl=learn.dls.valid)[0]) == 100


def test_columns_of_a_judge_that_was_taken_away_measure_nothing():
    judge = RobustMetrics(PGD(LInfBall(0.1), 2))
    learn = make(cbs=judge)
    with quiet(learn):
        learn.validate()
    learn.metrics = [*learn.metrics, *judge.columns]  # as after an interrupt
    learn.remove_cb(judge)
    with quiet(learn):
        assert np.isnan(learn.validate()[2:]).all()


def test_what_is_no_learner_is_named():
    dls, model, attack = labelled(lambda y: y), nn.Linear(5, 2), PGD(LInfBall(0.1), 2)
    learn = adv_learner(dls, model)
    for call, words in [
        (lambda: adv_learner(dls, resnet18), r"vision_learner\(dls, resnet18\).adversarial"),
        (lambda: adv_learner(dls, "resnet18"), r"vision_learner\(dls, 'resnet18'\)"),
        (lambda: adv_learner(dls, TableNet), "got a class"),
        (lambda: adv_learner(dls, None), "model: expected a module, got NoneType"),
        (lambda: adv_learner(dls, learn), "model: this is a Learner already"),
        (lambda: adv_learner(learn, model), "dls: this is a Learner already"),
        (lambda: adv_learner(model, dls), "the model comes second"),
        (lambda: adv_learner(dls.train, model), r"expected DataLoaders\(train, valid\)"),
        (lambda: adv_learner(dls, model, learn), "adversary=.*expected a callable"),
        (lambda: adv_learner(dls, model, model), r"expected a callable \(model, x, y, loss_func\)"),
        (lambda: adv_learner(dls, model, penalty=model), r"expected a callable \(model, x, y\)"),
        (lambda: RobustMetrics(learn), "expected a callable"),
        (lambda: attack(dls, torch.zeros(2, 5), torch.zeros(2)), "model="),
    ]:
        with pytest.raises(TypeError, match=words):
            call()


def test_the_old_name_of_the_metric_works_with_a_warning():
    with pytest.warns(FutureWarning, match="train.accuracy is now"):
        assert train.accuracy is logits_accuracy


def test_the_loss_of_the_data_is_kept_where_it_is_special():
    dls = digits()
    assert isinstance(default_loss(dls), TaskLoss)
    for loss in (
        CrossEntropyLossFlat(weight=torch.ones(10)),
        CrossEntropyLossFlat(axis=1),
        BCEWithLogitsLossFlat(),
        LabelSmoothingCrossEntropyFlat(),
    ):
        dls.train_ds.loss_func = loss
        learn = adv_learner(dls, small_conv())
        assert default_loss(dls) is loss
        assert learn.loss_func is loss
        assert len(learn.metrics) == 0
    learn = adv_learner(dls, small_conv(), loss_func=TaskLoss())
    assert [metric.name for metric in learn.metrics] == ["accuracy"]


def test_one_logit_on_a_real_table():
    set_seed(0)
    adv = OneStep(LInfBall(0.1))
    dls = get_data("breast_cancer", bs=32, device="cpu")
    learn = adv_learner(dls, one_layer(30), adversary=adv, lr=0.02, cbs=RobustMetrics(adv))
    with quiet(learn):
        learn.fit(5)
        preds, targets = learn.get_preds()
        natural, robust = learn.validate()[1:3]
    right = (preds[:, 0] > 0.5) == targets
    assert natural == pytest.approx(right.float().mean().item(), abs=1e-6)
    assert natural > 0.9
    w = learn.model.weight.detach()[0]
    x, y = (torch.cat(parts) for parts in zip(*learn.dls.valid))
    logits = learn.model(x)[:, 0].detach()
    margin = (2 * y - 1) * logits - 0.1 * w.abs().sum()  # Lemma 2 of Chalasani et al.
    assert robust == pytest.approx((margin > 0).float().mean().item(), abs=1e-6)


def test_double_precision_models_train():
    dls = digits()
    for ds in (dls.train_ds, dls.valid_ds):
        ds.x = ds.x.double()
    learn = adv_learner(
        dls, small_conv().double(), adversary=OneStep(LInfBall(0.1)), penalty=GradNorm(L1(0.01))
    )
    with quiet(learn):
        learn.fit(1)
    assert {p.dtype for p in learn.model.parameters()} == {torch.float64}


# ---------------------------------------------------------------- what a Learner can do


def make(seed=0, cbs=None, n=128, **kw):
    set_seed(seed)
    kw.setdefault("adversary", PGD(LInfBall(0.1), 2, bounds=(0, 1)))
    return adv_learner(digits(n=n), small_conv(width=4), lr=3e-3, cbs=cbs, **kw)


@pytest.mark.parametrize(
    "kw",
    [
        {},
        dict(penalty=GradNorm(L1(0.05))),
        dict(free_replays=2),
        dict(adversary=PGD(L2Ball(0.5), 2, restarts=2)),
    ],
    ids=["pgd", "penalty", "free", "restarts"],
)
def test_one_seed_one_result(kw):
    runs = []
    for seed in (0, 0, 1):
        learn = make(seed, cbs=RobustMetrics(PGD(LInfBall(0.1), 2)), **kw)
        with quiet(learn):
            learn.fit(1)
        runs.append((params(learn), [float(value) for value in learn.recorder.values[-1]]))
    first, again, other = runs
    assert equal(first[0], again[0])
    assert first[1] == again[1]
    assert not equal(first[0], other[0])


@pytest.mark.parametrize(
    "cbs",
    [
        MixUp,
        lambda: GradientAccumulation(64),
        lambda: GradientClip(0.1),
        lambda: MixedPrecision("bf16"),
        MixedPrecision,
    ],
    ids=["mixup", "accumulation", "clip", "bf16", "fp16"],
)
@pytest.mark.parametrize(
    "kw",
    [{}, dict(free_replays=2), dict(penalty=GradNorm(L1(0.05)))],
    ids=["pgd", "free", "penalty"],
)
@pytest.mark.filterwarnings("ignore")
def test_fastais_callbacks_compose(cbs, kw):
    learn = make(cbs=cbs(), **kw)
    with quiet(learn):
        learn.fit(1)
    assert all(param.isfinite().all() for param in learn.model.parameters())
    assert np.isfinite(learn.recorder.values[-1]).all()


def test_lr_find(tmp_path):
    learn = make(path=tmp_path, cbs=RobustMetrics(PGD(LInfBall(0.1), 2)))
    before = params(learn)
    with quiet(learn):
        lr = learn.lr_find(num_it=12, show_plot=False).valley
    assert 0 < lr < 10
    assert equal(before, params(learn))
    assert [metric.name for metric in learn.metrics] == ["accuracy"]


def kinds_of_callbacks(learn):
    return [type(cb) for cb in learn.cbs if isinstance(cb, InputCallback)]


def test_save_and_load(tmp_path):
    judge = RobustMetrics(PGD(LInfBall(0.1), 2))
    learn = make(path=tmp_path, cbs=judge, penalty=GradNorm(L1(0.05)))
    with quiet(learn):
        learn.fit(1)
    learn.save("m")
    other = make(1, path=tmp_path).load("m")
    assert equal(params(learn), params(other))


@pytest.mark.parametrize(
    "kw",
    [dict(penalty=GradNorm(L1(0.05))), dict(free_replays=2)],
    ids=["penalty", "free"],
)
def test_export(tmp_path, kw):
    learn = make(path=tmp_path, cbs=RobustMetrics(PGD(LInfBall(0.1), 2)), **kw)
    with quiet(learn):
        learn.fit(1)
    learn.export("m.pkl")
    back = load_learner(tmp_path / "m.pkl")
    assert kinds_of_callbacks(back) == kinds_of_callbacks(learn)
    x = torch.rand(5, 1, 8, 8)
    with quiet(back):
        preds = back.get_preds(dl=back.dls.test_dl(x))[0]
    assert torch.allclose(preds, learn.model(x).softmax(1), atol=1e-6)


def test_verbs_replace_and_add():
    learn = make(free_replays=3)
    learn.adversarial(PGD(LInfBall(0.1)), alpha=0.5, warmup=1, schedule=SchedLin(0.0, 0.1))
    learn.penalise(WeightNorm(1), 0.1).penalise(GradNorm(L1(0.1)))
    two_penalties = [GradientPenalty, GradientPenalty]
    assert kinds_of_callbacks(learn) == [AdversarialTraining, *two_penalties]
    learn.adversarial(L2Ball(0.5), free_replays=2)
    assert kinds_of_callbacks(learn) == [*two_penalties, FreeAdversarialTraining]
    learn.remove_cbs([FreeAdversarialTraining, GradientPenalty])
    assert kinds_of_callbacks(learn) == []


def flat_linear():
    set_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def test_two_penalties_are_both_added():
    def step(*penalties):
        "What one step of descent adds to the parameters."
        set_seed(0)
        learn = adv_learner(digits(n=32), flat_linear(), opt_func=SGD, lr=1.0)
        for penalty, weight in penalties:
            learn.penalise(penalty, weight)
        before = params(learn)
        with quiet(learn):
            learn.fit(1)
        return [new - old for old, new in zip(before, params(learn))]

    first, second = (WeightNorm(2), 0.5), (GradNorm(L1(0.05)), 1.0)
    steps = zip(step(), step(first), step(second), step(first, second))
    for natural, with_first, with_second, with_both in steps:
        added = (with_first - natural) + (with_second - natural)
        assert torch.allclose(with_both - natural, added, atol=1e-5)
        assert added.abs().max() > 1e-3


def test_summary_tells_how_it_trains():
    learn = make(adversary=PGD(LInfBall(0.1), 2, fast=True))
    with quiet(learn):
        text = str(learn.summary())
    assert "AdversarialTraining(PGD(LInfBall(0.1)" in text
    assert "inner loop in bfloat16" in text
    assert "TaskLoss" in text


def test_adversarial_training_buys_robustness_on_real_digits():
    def trained(adversary):
        "Accuracy and robust accuracy."
        set_seed(0)
        judge = RobustMetrics(PGD(LInfBall(0.1), 5, bounds=(0, 1)))
        learn = adv_learner(
            digits(n=None), small_conv(width=8), adversary=adversary, lr=0.01, cbs=judge
        )
        with quiet(learn):
            learn.fit(4)
        return learn.recorder.values[-1][2:4]

    natural = trained(None)
    adversarial = trained(PGD(LInfBall(0.1), 3, bounds=(0, 1)))
    assert adversarial[1] > natural[1] + 0.1
    assert min(natural[0], adversarial[0]) > 0.8


def test_bad_input():
    dls = digits()
    for kw, exc, msg in [
        (dict(adversary=LInfBall(0.1)), TypeError, "OneStep"),
        (dict(adversary=WeightNorm(1)), TypeError, "penalty="),
        (dict(penalty=PGD(LInfBall(0.1))), TypeError, "adversary="),
        (dict(penalty=L1(0.1)), TypeError, "GradNorm"),
        (dict(free_replays=2), ValueError, "free_replays=2"),
        (dict(adversary=len, free_replays=2), TypeError, "ball"),
        (dict(adversary=PGD(LInfBall(0.1)), free_replays=0), ValueError, "replays=0"),
        (dict(penalty=WeightNorm(1), pen_weight=float("nan")), ValueError, "pen_weight"),
        (dict(adversary=3), TypeError, "adversary=3"),
    ]:
        with pytest.raises(exc, match=msg):
            adv_learner(dls, small_conv(), **kw)


# ---------------------------------------------------------------- without fastai


def test_the_plain_loop_of_the_tutorial_trains_what_the_learner_trains():
    adversary, penalty = PGD(LInfBall(0.1), 2, bounds=(0, 1)), GradNorm(L1(0.05))
    set_seed(0)
    learn = adv_learner(
        digits(), flat_linear(), adversary=adversary, penalty=penalty, opt_func=SGD, lr=0.1
    )
    set_seed(0)
    with quiet(learn):
        learn.fit(1)
    model, dls = flat_linear(), digits()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    set_seed(0)
    for x, y in dls.train:
        loss = task_loss(model(adversary(model, x, y)), y).mean() + penalty(model, x, y).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(params(learn), model.parameters()))


# ---------------------------------------------------------------- several processes

LAUNCH = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"


def apart(first, second):
    return max((a - b).abs().max() for a, b in zip(first, second))


def test_two_processes_train_what_one_trains_on_the_joint_batch(tmp_path):
    "Under `accelerate launch`: fastai records in single precision, parameters are in double."
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    worker = str(Path(__file__).parent / "distrib_worker.py")
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    two_processes = ["-m", "accelerate.commands.launch", *LAUNCH.split()]
    for launcher in ([], two_processes):
        command = [sys.executable, *launcher, worker, str(tmp_path)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (torch.load(tmp_path / f"{n}.pt") for n in (1, 2))
    assert len(one) == len(two) == 5
    natural = one["natural"]["params"]
    for name, alone in one.items():
        assert apart(alone["params"], two[name]["params"]) < 1e-12, name
        assert alone["columns"] == pytest.approx(two[name]["columns"], abs=1e-6), name
        if name != "natural":
            assert apart(alone["params"], natural) > 1e-3, name


# ---------------------------------------------------------------- what only a GPU shows


def on_gpu(n=256, **kw):
    set_seed(0)
    kw.setdefault("adversary", PGD(LInfBall(0.1), 3, bounds=(0, 1)))
    dls = get_data("digits", bs=64, n_train=n, n_valid=100, device="cuda")
    return adv_learner(dls, small_conv(width=8), lr=3e-3, **kw)


@pytest.mark.cuda
@pytest.mark.parametrize("verb", ["to_fp16", "to_bf16", "to_channelslast"])
@pytest.mark.parametrize(
    "kw",
    [{}, dict(free_replays=2), dict(penalty=GradNorm(L1(0.05)))],
    ids=["pgd", "free", "penalty"],
)
def test_mixed_precision_on_a_gpu(verb, kw):
    learn = on_gpu(**kw)
    getattr(learn, verb)()
    with quiet(learn):
        learn.fit(3)
    for param in learn.model.parameters():
        assert param.isfinite().all()
        assert param.dtype == torch.float32
        assert param.is_cuda
    assert learn.recorder.values[-1][0] < learn.recorder.values[0][0]


class Seen(Callback):
    "The size of the last perturbation."

    order = MixedPrecision.order - 0.5
    run_valid = False

    def before_batch(self):
        delta = self.learn.xb[0] - self.adversarial_training.raw.x
        self.size = delta.flatten(1).norm(dim=1).max().item()


@pytest.mark.cuda
def test_the_scaler_does_not_reach_the_perturbation():
    def size(half):
        learn = on_gpu(n=64, adversary=OneStep(L2Ball(0.5)))
        if half:
            learn.to_fp16(init_scale=2.0**12)
        learn.add_cb(Seen())
        with quiet(learn):
            learn.fit(1)
        return learn.seen.size

    assert size(half=False) == pytest.approx(0.5, abs=1e-4)
    assert size(half=True) == pytest.approx(0.5, abs=1e-3)


def test_ftrl_by_hand():
    """z += g - (sqrt(n) - sqrt(n_before)) / lr * w and w = -lr * z / sqrt(n), number by number."""
    lr, n0 = 0.3, 0.5
    target = np.array([1.0, -2.0, 0.5])
    w, z, n = np.zeros(3), np.zeros(3), np.full(3, n0)
    weights = nn.Parameter(torch.zeros(3, dtype=torch.double))
    optimiser = FTRL([weights], lr=lr, n0=n0)
    for _ in range(4):
        slope = 2 * (w - target)
        n_before, n = n, n + slope**2
        z = z + slope - (np.sqrt(n) - np.sqrt(n_before)) / lr * w
        w = -lr * z / np.sqrt(n)
        optimiser.zero_grad()
        (weights - torch.tensor(target)).square().sum().backward()
        optimiser.step()
        np.testing.assert_allclose(weights.detach(), w, atol=1e-12)
    assert (np.abs(w) > 0.3).all()


@pytest.mark.cuda
def test_a_gpu_seed_gives_one_result():
    first, second = on_gpu(), on_gpu()
    for learn in (first, second):
        set_seed(0)
        with quiet(learn):
            learn.fit(1)
    assert apart(params(first), params(second)) < 1e-6


@pytest.mark.cuda
def test_data_parallel():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    learn = on_gpu()
    with learn.parallel_ctx(), quiet(learn):
        learn.fit(1)
    assert all(param.isfinite().all() for param in learn.model.parameters())


def test_verbs_of_fastai_need_no_other_import():
    """`from advinterp import adv_learner` alone, in a process of its own."""
    code = "from advinterp import adv_learner; from fastai.learner import Learner; " + (
        "assert all(hasattr(Learner, v) for v in ('fit_one_cycle', 'fine_tune', 'lr_find'))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
