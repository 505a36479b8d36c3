"""What `adv_learner` costs per batch beyond the adversarial loop that one would write by hand.

    python benchmarks/train_overhead.py [--batches 40] [--repeats 5] [--device cpu]

Every line compares the same work: one epoch over the same batches, the same model, adversary and Adam. `loop` calls the package's adversary in a plain torch loop,
`by hand` has the adversary written out as well, `Learner` is fastai with no adversary against a natural loop. Times are processor time of one thread, the
minimum over interleaved repeats, so that they hold on a busy machine; on a GPU they are wall-clock time.
"""

import argparse
import contextlib
import time

import torch
import torch.nn.functional as F
from fastai.callback.progress import ProgressCallback
from torch import nn

from advinterp.adversary import PGD, OneStep
from advinterp.core import set_seed, task_loss
from advinterp.data import tensor_dls
from advinterp.duals import LInfBall
from advinterp.models import madry_cnn
from advinterp.train import adv_learner

EPS = 0.3


def tiny():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


def pgd_by_hand(model, x, y, steps):
    for p in model.parameters():
        p.requires_grad_(False)
    model.eval()
    delta, step = torch.empty_like(x).uniform_(-EPS, EPS), 2.5 * EPS / steps
    delta = (x + delta).clamp_(0, 1) - x
    for _ in range(steps):
        z = (x + delta).requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(model(z), y, reduction="sum"), z)
        delta = ((x + (delta + step * g.sign()).clamp_(-EPS, EPS)).clamp_(0, 1)) - x
    model.train()
    for p in model.parameters():
        p.requires_grad_(True)
    return x + delta


def loop(dls, model, attack):
    "A plain epoch over the loader's tensors, in a random order."
    opt, ds, bs = torch.optim.Adam(model.parameters(), 1e-4), dls.train_ds, dls.train.bs
    model.train()
    for i in torch.randperm(len(ds)).split(bs):
        x, y = ds.x[i], ds.y[i]
        loss = F.cross_entropy(model(attack(model, x, y)), y)
        opt.zero_grad()
        loss.backward()
        opt.step()


def timed(f, device):
    clock = time.perf_counter if device == "cuda" else time.process_time
    if device == "cuda":
        torch.cuda.synchronize()
    t = clock()
    f()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - t


def compare(make, bs, steps, batches, repeats, device):
    "Seconds per batch: natural loop, natural Learner, loop by hand, loop with our adversary, adversarial Learner."
    set_seed(0)
    x, y = torch.rand(bs * batches, 1, 28, 28), torch.randint(10, (bs * batches,))
    dls = tensor_dls(x, y, x[:bs], y[:bs], bs=bs, device=device)
    dls.train_ds.to(torch.device(device))
    adversary = (
        PGD(LInfBall(EPS), steps, bounds=(0, 1))
        if steps > 1
        else OneStep(LInfBall(EPS), bounds=(0, 1))
    )

    def learner(**kw):
        learn = adv_learner(dls, make().to(device), lr=1e-4, **kw).remove_cb(ProgressCallback)
        learn.logger, learn._do_epoch_validate = (lambda *a: None), (lambda *a, **k: None)
        return learn

    nat, adv = learner(), learner(adversary=adversary)
    model = make().to(device)
    work = [
        lambda: loop(dls, model, lambda m, x, y: x),
        lambda: nat.fit(1),
        lambda: loop(dls, model, lambda m, x, y: pgd_by_hand(m, x, y, steps)),
        lambda: loop(dls, model, adversary),
        lambda: adv.fit(1),
    ]
    for f in work:
        f()
    return [
        min(ts) / batches for ts in zip(*[[timed(f, device) for f in work] for _ in range(repeats)])
    ]


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--batches", type=int, default=40)
    ap.add_argument("--repeats", type=int, default=5)
    ap.add_argument("--device", default="cpu")
    a = ap.parse_args()
    torch.set_num_threads(1)
    print(
        f"{'model':12}{'adversary':10}{'batch':>6}{'nat. loop':>11}{'Learner':>9}{'by hand':>9}{'loop':>9}{'adv_learner':>12}   overhead over the loop, by hand, of which fastai (ms per batch)"
    )
    for name, make, steps, n in (
        ("linear", tiny, 1, 4 * a.batches),
        ("linear", tiny, 10, 2 * a.batches),
        ("MNIST CNN", madry_cnn, 10, max(a.batches // 20, 1)),
    ):
        for bs in (50, 256):
            t = [1e3 * o for o in compare(make, bs, steps, n, a.repeats, a.device)]
            print(
                f"{name:12}{'one step' if steps == 1 else f'PGD-{steps}':10}{bs:6}"
                + "".join(f"{o:{w}.2f}" for o, w in zip(t, (11, 9, 9, 9, 12)))
                + f"   {t[4] - t[3]:+.2f} ({100 * (t[4] / t[3] - 1):+.1f} %)   {t[4] - t[2]:+.2f} ({100 * (t[4] / t[2] - 1):+.1f} %)   {t[1] - t[0]:+.2f}",
                flush=True,
            )
