"""What `adv_learner` costs per batch beyond the adversarial loop that one would write by hand.

    python benchmarks/train_overhead.py [--batches 40] [--repeats 5] [--device cpu]

Every line compares the same work: one epoch over the same batches, the same model, adversary and
Adam. `loop` calls the package's adversary in a plain torch loop, `by hand` has the adversary
written out as well, `Learner` is fastai with no adversary against a natural loop. Times are
processor time of one thread, the minimum over interleaved repeats, so that they hold on a busy
machine; on a GPU they are wall-clock time.
"""

import argparse
import time

import torch
import torch.nn.functional as F
from fastai.callback.progress import ProgressCallback
from torch import nn

from advinterp.adversary import PGD, OneStep
from advinterp.core import set_seed
from advinterp.data import tensor_dls
from advinterp.duals import LInfBall
from advinterp.models import madry_cnn
from advinterp.train import adv_learner

EPS = 0.3
HEADER = (
    f"{'model':12}{'adversary':10}{'batch':>6}{'nat. loop':>11}{'Learner':>9}{'by hand':>9}"
    f"{'loop':>9}{'adv_learner':>12}"
    "   overhead over the loop, by hand, of which fastai (ms per batch)"
)


def tiny():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


def untouched(model, x, y):
    return x


def pgd_by_hand(model, x, y, steps):
    for param in model.parameters():
        param.requires_grad_(False)
    model.eval()
    step_size = 2.5 * EPS / steps
    delta = torch.empty_like(x).uniform_(-EPS, EPS)
    delta = (x + delta).clamp_(0, 1) - x
    for _ in range(steps):
        z = (x + delta).requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(model(z), y, reduction="sum"), z)
        delta = ((x + (delta + step_size * g.sign()).clamp_(-EPS, EPS)).clamp_(0, 1)) - x
    model.train()
    for param in model.parameters():
        param.requires_grad_(True)
    return x + delta


def loop(dls, model, attack):
    "A plain epoch over the loader's tensors, in a random order."
    opt = torch.optim.Adam(model.parameters(), 1e-4)
    train = dls.train_ds
    model.train()
    for rows in torch.randperm(len(train)).split(dls.train.bs):
        x, y = train.x[rows], train.y[rows]
        loss = F.cross_entropy(model(attack(model, x, y)), y)
        opt.zero_grad()
        loss.backward()
        opt.step()


def timed(work, device):
    "Seconds of `work()`."
    on_gpu = device.startswith("cuda")
    clock = time.perf_counter if on_gpu else time.process_time
    if on_gpu:
        torch.cuda.synchronize()
    start = clock()
    work()
    if on_gpu:
        torch.cuda.synchronize()
    return clock() - start


def bare_learner(dls, model, adversary=None):
    "An `adv_learner` that only trains: no bars, no lines, no validation."
    learn = adv_learner(dls, model, lr=1e-4, adversary=adversary).remove_cb(ProgressCallback)
    learn.logger = lambda *args: None
    learn._do_epoch_validate = lambda *args, **kwargs: None
    return learn


def compare(make, bs, steps, batches, repeats, device):
    """Milliseconds per batch of the five ways to train.

    Natural loop, natural Learner, loop by hand, loop with our adversary, adversarial Learner.
    """
    set_seed(0)
    x = torch.rand(bs * batches, 1, 28, 28, device=device)
    y = torch.randint(10, (bs * batches,), device=device)
    dls = tensor_dls(x, y, x[:bs], y[:bs], bs=bs, device=device)
    ball = LInfBall(EPS)
    adversary = PGD(ball, steps, bounds=(0, 1)) if steps > 1 else OneStep(ball, bounds=(0, 1))
    natural = bare_learner(dls, make().to(device))
    adversarial = bare_learner(dls, make().to(device), adversary)
    model = make().to(device)

    def by_hand(model, x, y):
        return pgd_by_hand(model, x, y, steps)

    ways = [
        lambda: loop(dls, model, untouched),
        lambda: natural.fit(1),
        lambda: loop(dls, model, by_hand),
        lambda: loop(dls, model, adversary),
        lambda: adversarial.fit(1),
    ]
    for way in ways:
        way()
    best = [float("inf")] * len(ways)
    for _ in range(repeats):
        times = [timed(way, device) for way in ways]
        best = [min(pair) for pair in zip(best, times)]
    return [1e3 * seconds / batches for seconds in best]


def row(name, steps, bs, times):
    "One line of the table."
    loop_ms, learner, by_hand, adv_loop, adv = times
    attack = "one step" if steps == 1 else f"PGD-{steps}"
    return (
        f"{name:12}{attack:10}{bs:6}"
        f"{loop_ms:11.2f}{learner:9.2f}{by_hand:9.2f}{adv_loop:9.2f}{adv:12.2f}"
        f"   {adv - adv_loop:+.2f} ({100 * (adv / adv_loop - 1):+.1f} %)"
        f"   {adv - by_hand:+.2f} ({100 * (adv / by_hand - 1):+.1f} %)"
        f"   {learner - loop_ms:+.2f}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(HEADER)
    for name, make, steps, batches in (
        ("linear", tiny, 1, 4 * args.batches),
        ("linear", tiny, 10, 2 * args.batches),
        ("MNIST CNN", madry_cnn, 10, max(args.batches // 20, 1)),
    ):
        for bs in (50, 256):
            times = compare(make, bs, steps, batches, args.repeats, args.device)
            print(row(name, steps, bs, times), flush=True)


if __name__ == "__main__":
    main()
