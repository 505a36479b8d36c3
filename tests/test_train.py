"`adv_learner` and the verbs with all that a fastai `Learner` can do, on one process or several."

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.training import GradientClip
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
from advinterp.duals import L1, L2Ball, LInfBall
from advinterp.models import one_layer, small_conv
from advinterp.penalty import GradNorm, WeightNorm
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
    assert "AdversarialTraining(PGD(LInfBall(eps=0.1)" in text
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
