"""Attributions of the MNIST net of Chalasani et al.: this package against hand-written loops, captum and shap.

    OMP_NUM_THREADS=1 python benchmarks/attribution.py [--repeats 5] [--only WORD]

Prints, for each method, the median CPU time of each contender and the median of its ratios to ours, round by round: all contenders run in each round, in an order
drawn anew. Random weights and images. CPU time of one thread hardly depends on what else the machine does, and what dependence there is cancels in a round.
"""

import argparse
import random
import statistics
import time
import warnings
from functools import partial

import torch
from captum.attr import DeepLiftShap, IntegratedGradients
from torch import nn

from advinterp.attribution import deep_shap, integrated_gradients, moreau_grad, smoothgrad


def madry():
    return (
        nn.Sequential(
            nn.Conv2d(1, 32, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(3136, 1024),
            nn.ReLU(),
            nn.Linear(1024, 10),
        )
        .eval()
        .requires_grad_(False)
    )


def hand_ig(net, x, y, steps=50, chunk=128):
    "The floor: scaled inputs in chunks, one forward and one backward each, nothing checked."
    total, per = torch.zeros_like(x), max(1, chunk // len(x))
    alphas = (torch.arange(steps) + 0.5) / steps
    for a in alphas.split(per):
        xs = (a.view(-1, 1, 1, 1, 1) * x).flatten(0, 1).requires_grad_()
        g = torch.autograd.grad(net(xs).gather(1, y.repeat(len(a))[:, None]).sum(), xs)[0]
        total += g.unflatten(0, (len(a), len(x))).sum(0)
    return x * total / steps


def captum_ig(net, x, y, **kw):
    return IntegratedGradients(net).attribute(
        x, target=y, n_steps=50, method="riemann_middle", **kw
    )


def one_by_one(method, *args, **kw):
    "The same method in a loop over images."
    return lambda net, x, y: torch.cat(
        [method(net, x[i : i + 1], y[i : i + 1], *args, batch_size=1, **kw) for i in range(len(x))]
    )


def tasks(shap):
    us = torch.rand(100, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    one = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    sg, mg = dict(n_samples=16), dict(n_samples=4, steps=10, average=5)
    yield (
        "integrated gradients, 50 steps",
        64,
        {
            "advinterp": integrated_gradients,
            **{f"hand-written, chunks of {c}": partial(hand_ig, chunk=c) for c in (64, 128, 256)},
            "captum, chunks of 128": partial(captum_ig, internal_batch_size=128),
            "captum, default": captum_ig,
        },
    )
    yield (
        "integrated gradients of one layer",
        256,
        {
            "advinterp": lambda n, x, y: integrated_gradients(one, x, y),
            "50 steps, chunks of 128": lambda n, x, y: hand_ig(one, x, y),
            "captum, default": lambda n, x, y: captum_ig(one, x, y),
        },
    )
    yield (
        "SmoothGrad, 16 samples",
        32,
        {
            "advinterp": lambda n, x, y: smoothgrad(n, x, y, **sg),
            "image by image, sample by sample": one_by_one(smoothgrad, **sg),
        },
    )
    yield (
        "MoreauGrad, 10 steps of 4 samples",
        16,
        {
            "advinterp": lambda n, x, y: moreau_grad(n, x, y, **mg),
            "image by image, sample by sample": one_by_one(moreau_grad, **mg),
        },
    )
    deep = {
        "advinterp": lambda n, x, y: deep_shap(n, x, y, background=us),
        "captum, one call (not complete here)": lambda n, x, y: DeepLiftShap(n).attribute(
            x, us, target=y
        ),
    }
    if shap:
        deep["shap, the predicted class alone"] = lambda n, x, y: shap.DeepExplainer(
            n, us
        ).shap_values(x, ranked_outputs=1, check_additivity=False)
    yield "DeepSHAP, 100 backgrounds", 4, deep


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help="run the methods whose name has this word")
    args = parser.parse_args()
    try:
        import shap
    except ImportError:
        shap = None
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    net = madry()
    for title, n, found in tasks(shap):
        if args.only not in title:
            continue
        x, times = torch.rand(n, 1, 28, 28), {name: [] for name in found}
        y = net(x).argmax(1)
        for _ in range(args.repeats + 1):  # the first round warms up
            for name in random.sample([*found], len(found)):
                start = time.process_time()
                found[name](net, x, y)
                times[name].append(time.process_time() - start)
        print(f"{title}, {n} images")
        for name, t in times.items():
            print(
                f"  {name:38} {statistics.median(t[1:]):8.3f} s   {statistics.median(a / b for a, b in zip(t[1:], times['advinterp'][1:])):6.3f} x",
                flush=True,
            )


if __name__ == "__main__":
    main()
