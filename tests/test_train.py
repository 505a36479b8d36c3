"`adv_learner` and the verbs with what a fastai Learner can do: bodies from the zoo, schedules, precision, saving, several processes, real images."

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
    Adam,
    BCEWithLogitsLossFlat,
    CategoryBlock,
    CrossEntropyLossFlat,
    DataBlock,
    GradientAccumulation,
    ImageBlock,
    LabelSmoothingCrossEntropyFlat,
    Learner,
    MixUp,
    Normalize,
    PILImage,
    RandomSplitter,
    SchedLin,
    TensorImage,
    imagenet_stats,
    load_learner,
    vision_learner,
)
from torch import nn
from torchvision.models import resnet18

from advinterp.adversary import PGD, Adversary, OneStep
from advinterp.callbacks import (
    AdversarialTraining,
    FreeAdversarialTraining,
    GradientPenalty,
    InputCallback,
    RobustMetrics,
    plain,
)
from advinterp.core import set_seed, task_loss
from advinterp.data import get_data, load, tensor_dls
from advinterp.duals import L1, L2Ball, LInfBall
from advinterp.models import madry_cnn, one_layer, small_conv
from advinterp.penalty import GradNorm, WeightNorm
from advinterp.train import TaskLoss, accuracy, adv_learner, default_loss

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


class Pixels(Callback):
    "Clean and perturbed pixels of the training batches, each taken from where the loader or the model has it, not from the callback."

    order, run_valid = MixedPrecision.order - 0.5, False

    def __init__(self, mean, std):
        self.m, self.s = (torch.tensor(o).view(1, 3, 1, 1) for o in (mean, std))

    def before_fit(self):
        self.sizes, self.low, self.high = [], [], []

    def before_batch(self):
        u = plain(self.learn.xb[0]) * self.s + self.m
        self.sizes.append(float((u - self.at_start).abs().max()))
        self.low.append(float(u.min()))
        self.high.append(float(u.max()))


class Start(Callback):
    "Takes the batch as the loader delivers it."

    order, run_valid = -5, False

    def before_batch(self):
        self.pixels.at_start = plain(self.learn.xb[0]).clone() * self.pixels.s + self.pixels.m


def image_learner(x, y, bs=8, n_out=10, **kw):
    stats = imagenet_stats
    dls = tensor_dls(
        x,
        y,
        x[:bs],
        y[:bs],
        bs=bs,
        device="cpu",
        vocab=list(range(n_out)),
        after_batch=[Normalize.from_stats(*stats, cuda=False)],
    )
    return vision_learner(
        dls,
        resnet18,
        pretrained=False,
        weights=None,
        metrics=accuracy,
        cbs=[Start(), Pixels(*stats)],
        **kw,
    )


# ---------------------------------------------------------------- bodies, images, units


def check_pixels(learn, eps=EPS):
    p = learn.pixels
    assert (
        max(p.sizes) <= eps + 1e-6
        and max(p.sizes) > 0.99 * eps
        and min(p.low) >= -1e-6
        and max(p.high) <= 1 + 1e-6
    )


def test_vision_learner_stays_within_raw_pixels():
    set_seed(0)
    learn = image_learner(torch.rand(16, 3, 32, 32), torch.arange(16) % 10).adversarial(
        PGD(LInfBall(EPS), 2)
    )
    with quiet(learn):
        learn.fit(1)
    check_pixels(learn)


def test_fine_tune_with_frozen_body_and_discriminative_rates():
    set_seed(0)
    zoo = image_learner(torch.rand(16, 3, 32, 32), torch.arange(16) % 10).adversarial(
        PGD(LInfBall(EPS), 2)
    )
    zoo.freeze()
    before = params(zoo)
    with quiet(zoo):
        zoo.fit_one_cycle(1, slice(1e-3))
        frozen = [p for p in zoo.model[0].parameters() if not p.requires_grad]
        after = params(zoo)
        n = len(list(zoo.model[0].parameters()))
        still = [
            torch.equal(a, b)
            for a, b, p in zip(before, after, zoo.model.parameters())
            if not p.requires_grad
        ]
        assert (
            frozen
            and all(still)
            and not all(torch.equal(a, b) for a, b in zip(before[n:], after[n:]))
        )
        zoo.fine_tune(1, 1e-3)
    check_pixels(zoo)
    assert (
        all(p.requires_grad for p in zoo.model.parameters())
        and len({h["lr"] for h in zoo.opt.hypers}) > 1
    )


def test_timm_body():
    pytest.importorskip("timm", reason="timm is not installed")
    set_seed(0)
    stats = imagenet_stats
    x, y = torch.rand(8, 3, 32, 32), torch.arange(8) % 2
    dls = tensor_dls(
        x, y, x, y, bs=4, device="cpu", after_batch=[Normalize.from_stats(*stats, cuda=False)]
    )
    learn = vision_learner(
        dls, "resnet10t", pretrained=False, cbs=[Start(), Pixels(*stats)]
    ).adversarial(OneStep(LInfBall(EPS)))
    with quiet(learn):
        learn.fit(1)
    check_pixels(learn)


def test_images_from_files_through_the_data_block(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(12):
        PILImage.create(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(
            tmp_path / f"{'ab'[i % 2]}_{i}.png"
        )
    block = DataBlock(
        (ImageBlock, CategoryBlock),
        get_items=lambda p: sorted(p.glob("*.png")),
        get_y=lambda f: f.name[0],
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
    a = load("cifar10")
    set_seed(0)
    learn = image_learner(torch.tensor(a.x[:64]), torch.tensor(a.y[:64]), bs=32)
    learn.adversarial(PGD(LInfBall(EPS), 3))
    with quiet(learn):
        learn.fit(2, 1e-3)
    check_pixels(learn)
    assert all(torch.isfinite(p).all() for p in learn.model.parameters())


# ---------------------------------------------------------------- the loss and the metric


def test_task_loss_is_cross_entropy_for_any_head():
    set_seed(0)
    z, y = torch.randn(9, 4), torch.arange(9) % 4
    lf = TaskLoss()
    assert torch.allclose(lf(z, y), F.cross_entropy(z, y)) and torch.equal(
        lf.decodes(lf.activation(z)), z.argmax(1)
    )
    for z in (torch.randn(9, 1), torch.randn(9)):
        y = torch.arange(9) % 2
        assert torch.allclose(lf(z, y), F.binary_cross_entropy_with_logits(z.reshape(9), y.float()))
        assert (
            torch.equal(lf.decodes(lf.activation(z)), (z.reshape(9) > 0).long())
            and accuracy(z, y) == ((z.reshape(9) > 0) == y).float().mean()
        )
    lf.reduction = "none"
    assert torch.equal(lf(z, y), task_loss(z, y))
    assert TaskLoss()(torch.randn(3, 2).double(), torch.arange(3) % 2).dtype == torch.float32


def test_the_loss_of_the_data_is_kept_where_it_is_special():
    dls = digits()
    assert isinstance(default_loss(dls), TaskLoss)
    for lf in (
        CrossEntropyLossFlat(weight=torch.ones(10)),
        CrossEntropyLossFlat(axis=1),
        BCEWithLogitsLossFlat(),
        LabelSmoothingCrossEntropyFlat(),
    ):
        dls.train_ds.loss_func = lf
        assert default_loss(dls) is lf and adv_learner(dls, small_conv()).loss_func is lf
        assert len(adv_learner(dls, small_conv()).metrics) == 0
    assert [m.name for m in adv_learner(dls, small_conv(), loss_func=TaskLoss()).metrics] == [
        "accuracy"
    ]


def test_one_logit_on_a_real_table():
    set_seed(0)
    learn = adv_learner(
        get_data("breast_cancer", bs=32, device="cpu"),
        one_layer(30),
        adversary=OneStep(LInfBall(0.1)),
        lr=0.02,
        cbs=RobustMetrics(OneStep(LInfBall(0.1))),
    )
    with quiet(learn):
        learn.fit(5)
        p, t = learn.get_preds()
        natural, robust = learn.validate()[1:3]
    w = learn.model.weight.detach()[0]
    x, y = (torch.cat(o) for o in zip(*learn.dls.valid))
    margin = (2 * y - 1) * (
        learn.model(x)[:, 0]
    ).detach() - 0.1 * w.abs().sum()  # Lemma 2 of Chalasani et al.
    assert (
        natural == pytest.approx(((p[:, 0] > 0.5) == t).float().mean().item(), abs=1e-6)
        and natural > 0.9
    )
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
    return adv_learner(
        digits(n=n),
        small_conv(width=4),
        **{"adversary": PGD(LInfBall(0.1), 2, bounds=(0, 1)), "lr": 3e-3, "cbs": cbs, **kw},
    )


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
        runs.append((params(learn), [float(v) for v in learn.recorder.values[-1]]))
    assert (
        equal(runs[0][0], runs[1][0])
        and runs[0][1] == runs[1][1]
        and not equal(runs[0][0], runs[2][0])
    )


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
    assert (
        all(torch.isfinite(p).all() for p in learn.model.parameters())
        and np.isfinite(learn.recorder.values[-1]).all()
    )


def test_lr_find(tmp_path):
    learn = make(path=tmp_path, cbs=RobustMetrics(PGD(LInfBall(0.1), 2)))
    before = params(learn)
    with quiet(learn):
        lr = learn.lr_find(num_it=12, show_plot=False).valley
    assert 0 < lr < 10 and equal(before, params(learn)) and not learn.metrics[1:]


def test_save_load_export(tmp_path):
    learn = make(
        path=tmp_path, cbs=RobustMetrics(PGD(LInfBall(0.1), 2)), penalty=GradNorm(L1(0.05))
    )
    with quiet(learn):
        learn.fit(1)
    learn.save("m")
    other = make(1, path=tmp_path).load("m")
    assert equal(params(learn), params(other))
    with quiet(learn):
        expected = learn.get_preds()[0]
    for l in (learn, make(free_replays=2, path=tmp_path)):
        with quiet(l):
            l.fit(1)
        l.export("m.pkl")
    back = load_learner(tmp_path / "m.pkl")
    assert isinstance(back.free_adversarial_training, FreeAdversarialTraining)
    x = torch.rand(5, 1, 8, 8)
    with quiet(back):
        p = back.get_preds(dl=back.dls.test_dl(x))[0]
    assert torch.allclose(p, back.model(x).softmax(1), atol=1e-6) and expected.shape == (100, 10)


def test_verbs_replace_and_add():
    learn = make(free_replays=3)
    learn.adversarial(
        PGD(LInfBall(0.1)), alpha=0.5, warmup=1, schedule=SchedLin(0.0, 0.1)
    ).penalise(WeightNorm(1), 0.1).penalise(GradNorm(L1(0.1)))
    kinds = [type(cb) for cb in learn.cbs if isinstance(cb, InputCallback)]
    assert kinds == [AdversarialTraining, GradientPenalty, GradientPenalty]
    learn.adversarial(L2Ball(0.5), free_replays=2)
    assert [type(cb) for cb in learn.cbs if isinstance(cb, InputCallback)] == [
        GradientPenalty,
        GradientPenalty,
        FreeAdversarialTraining,
    ]
    learn.remove_cbs([FreeAdversarialTraining, GradientPenalty])
    assert not [cb for cb in learn.cbs if isinstance(cb, InputCallback)]


def test_two_penalties_are_both_added():
    def step(*pens):
        set_seed(0)
        learn = adv_learner(digits(n=32), one_flat(), opt_func=SGD, lr=1.0, cbs=None)
        for p, w in pens:
            learn.penalise(p, w)
        before = params(learn)
        with quiet(learn):
            learn.fit(1)
        return [b - a for a, b in zip(before, params(learn))]

    a, b = (WeightNorm(2), 0.5), (GradNorm(L1(0.05)), 1.0)
    n, pa, pb, both = step(), step(a), step(b), step(a, b)
    assert all(
        torch.allclose(x - w, (y - w) + (z - w), atol=1e-5) for w, x, y, z in zip(n, both, pa, pb)
    )


def one_flat():
    set_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def test_summary_tells_how_it_trains():
    learn = make(adversary=PGD(LInfBall(0.1), 2, fast=True))
    with quiet(learn):
        text = str(learn.summary())
    assert (
        "AdversarialTraining(PGD(LInfBall(eps=0.1)" in text
        and "inner loop in bfloat16" in text
        and "TaskLoss" in text
    )


def test_adversarial_training_buys_robustness_on_real_digits():
    columns = {}
    for k, adv in dict(natural=None, adversarial=PGD(LInfBall(0.1), 3, bounds=(0, 1))).items():
        set_seed(0)
        learn = adv_learner(
            digits(n=None),
            small_conv(width=8),
            adversary=adv,
            lr=0.01,
            cbs=RobustMetrics(PGD(LInfBall(0.1), 5, bounds=(0, 1))),
        )
        with quiet(learn):
            learn.fit(4)
        columns[k] = learn.recorder.values[-1]
    nat, adv = columns["natural"], columns["adversarial"]
    assert adv[3] > nat[3] + 0.1 and adv[2] > 0.8 and nat[2] > 0.8


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
    from advinterp.callbacks import RawUnits

    adversary, penalty = PGD(LInfBall(0.1), 2, bounds=(0, 1)), GradNorm(L1(0.05))
    set_seed(0)
    learn = adv_learner(
        digits(), one_flat(), adversary=adversary, penalty=penalty, opt_func=SGD, lr=0.1
    )
    set_seed(0)
    with quiet(learn):
        learn.fit(1)
    model, dls = one_flat(), digits()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    set_seed(0)
    for x, y in dls.train:
        loss = task_loss(model(adversary(model, x, y)), y).mean() + penalty(model, x, y).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(params(learn), model.parameters()))


# ---------------------------------------------------------------- several processes

launchers = (
    [],
    [
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    ],
)


def test_two_processes_train_what_one_trains_on_the_joint_batch(tmp_path):
    "Under `accelerate launch`: parameters agree to 1e-12, validation columns to 1e-6 (fastai records in single precision)."
    worker, env = (
        str(Path(__file__).parent / "distrib_worker.py"),
        {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
    )
    for launch in launchers:
        r = subprocess.run(
            [sys.executable, *launch, worker, str(tmp_path)],
            env=env,
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert r.returncode == 0, r.stderr[-3000:]
    one, two = (torch.load(tmp_path / f"{n}.pt") for n in (1, 2))
    for k in one:
        assert (
            max((a - b).abs().max() for a, b in zip(one[k]["params"], two[k]["params"])) < 1e-12
        ), k
        assert one[k]["columns"] == pytest.approx(two[k]["columns"], abs=1e-6), k
        if k != "natural":
            assert (
                max((a - b).abs().max() for a, b in zip(one[k]["params"], one["natural"]["params"]))
                > 1e-3
            ), k


# ---------------------------------------------------------------- what only a GPU shows


def on_gpu(n=256, **kw):
    set_seed(0)
    return adv_learner(
        get_data("digits", bs=64, n_train=n, n_valid=100, device="cuda"),
        small_conv(width=8),
        **{"adversary": PGD(LInfBall(0.1), 3, bounds=(0, 1)), "lr": 3e-3, **kw},
    )


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
    assert all(
        torch.isfinite(p).all() and p.dtype == torch.float32 and p.is_cuda
        for p in learn.model.parameters()
    )
    assert learn.recorder.values[-1][0] < learn.recorder.values[0][0]


@pytest.mark.cuda
def test_the_scaler_does_not_reach_the_perturbation():
    sizes = {}
    for name in ("fp32", "fp16"):
        learn = on_gpu(n=64, adversary=OneStep(L2Ball(0.5)))
        if name == "fp16":
            learn.to_fp16(init_scale=2.0**12)
        learn.add_cb(Seen())
        with quiet(learn):
            learn.fit(1)
        sizes[name] = learn.seen.size
    assert sizes["fp32"] == pytest.approx(0.5, abs=1e-4) and sizes["fp16"] == pytest.approx(
        0.5, abs=1e-3
    )


class Seen(Callback):
    order, run_valid = MixedPrecision.order - 0.5, False

    def before_batch(self):
        self.size = (
            (self.learn.xb[0] - self.adversarial_training.raw.x).flatten(1).norm(dim=1).max().item()
        )


@pytest.mark.cuda
def test_a_gpu_seed_gives_one_result():
    a, b = on_gpu(), on_gpu()
    for l in (a, b):
        set_seed(0)
        with quiet(l):
            l.fit(1)
    assert (
        max((p - q).abs().max() for p, q in zip(a.model.parameters(), b.model.parameters())) < 1e-6
    )


@pytest.mark.cuda
def test_data_parallel():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    learn = on_gpu()
    with learn.parallel_ctx(), quiet(learn):
        learn.fit(1)
    assert all(torch.isfinite(p).all() for p in learn.model.parameters())
