"""Attributions of the MNIST net of Chalasani et al.: ours, hand-written loops, captum and shap.

    OMP_NUM_THREADS=1 python benchmarks/attribution.py [--repeats 5] [--only WORD]

Prints, for each method, the median CPU time of each contender and the median of its ratios to ours,
round by round: all contenders run in each round, in an order drawn anew. Random weights and images.
CPU time of one thread hardly depends on what else the machine does, and what dependence there is
cancels in a round.
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
    layers = [
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
    ]
    return nn.Sequential(*layers).eval().requires_grad_(False)


def hand_ig(net, x, y, steps=50, chunk=128):
    """The floor: scaled inputs in chunks, one forward and one backward each, nothing checked."""
    total = torch.zeros_like(x)
    alphas = (torch.arange(steps) + 0.5) / steps
    for a in alphas.split(max(1, chunk // len(x))):
        xs = (a.view(-1, 1, 1, 1, 1) * x).flatten(0, 1).requires_grad_()
        logits = net(xs).gather(1, y.repeat(len(a))[:, None])
        g = torch.autograd.grad(logits.sum(), xs)[0]
        total += g.unflatten(0, (len(a), len(x))).sum(0)
    return x * total / steps


def captum_ig(net, x, y, **kwargs):
    settings = dict(target=y, n_steps=50, method="riemann_middle")
    return IntegratedGradients(net).attribute(x, **settings, **kwargs)


def one_by_one(method, **settings):
    """The same method in a loop over images."""

    def run(net, x, y):
        pairs = zip(x.split(1), y.split(1))
        return torch.cat([method(net, *pair, batch_size=1, **settings) for pair in pairs])

    return run


def with_model(method, model):
    """The method on another model than the net of the benchmark."""
    return lambda net, x, y: method(model, x, y)


def integrated():
    by_hand = {f"hand-written, chunks of {n}": partial(hand_ig, chunk=n) for n in (64, 128, 256)}
    return {
        "advinterp": integrated_gradients,
        **by_hand,
        "captum, chunks of 128": partial(captum_ig, internal_batch_size=128),
        "captum, default": captum_ig,
    }


def integrated_of_one_layer():
    one = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    return {
        "advinterp": with_model(integrated_gradients, one),
        "50 steps, chunks of 128": with_model(hand_ig, one),
        "captum, default": with_model(captum_ig, one),
    }


def in_batches_or_not(method, **settings):
    return {
        "advinterp": partial(method, **settings),
        "image by image, sample by sample": one_by_one(method, **settings),
    }


def deep():
    us = torch.rand(100, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    found = {
        "advinterp": partial(deep_shap, background=us),
        "captum, one call (not complete here)": lambda net, x, y: DeepLiftShap(net).attribute(
            x, us, target=y
        ),
    }
    try:
        import shap
    except ImportError as error:
        print(f"shap left out: {error}")
        return found

    def by_shap(net, x, y):
        explainer = shap.DeepExplainer(net, us)
        return explainer.shap_values(x, ranked_outputs=1, check_additivity=False)

    found["shap, the predicted class alone"] = by_shap
    return found


def tasks():
    """Triples: title, number of images, contenders by name."""
    moreau = dict(n_samples=4, steps=10, average=5)
    return [
        ("integrated gradients, 50 steps", 64, integrated()),
        ("integrated gradients of one layer", 256, integrated_of_one_layer()),
        ("SmoothGrad, 16 samples", 32, in_batches_or_not(smoothgrad, n_samples=16)),
        ("MoreauGrad, 10 steps of 4 samples", 16, in_batches_or_not(moreau_grad, **moreau)),
        ("DeepSHAP, 100 backgrounds", 4, deep()),
    ]


def timed(contenders, net, x, y, repeats):
    """CPU seconds of each contender in each round; a first round warms up."""
    times = {name: [] for name in contenders}
    for _ in range(repeats + 1):
        for name in random.sample([*contenders], len(contenders)):
            start = time.process_time()
            contenders[name](net, x, y)
            times[name].append(time.process_time() - start)
    return {name: seconds[1:] for name, seconds in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help="run the methods whose name has this word")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    net = madry()
    for title, n_images, contenders in tasks():
        if args.only not in title:
            continue
        x = torch.rand(n_images, 1, 28, 28)
        times = timed(contenders, net, x, net(x).argmax(1), args.repeats)
        print(f"{title}, {n_images} images")
        for name, seconds in times.items():
            ratios = [theirs / ours for theirs, ours in zip(seconds, times["advinterp"])]
            median, ratio = statistics.median(seconds), statistics.median(ratios)
            print(f"  {name:38} {median:8.3f} s   {ratio:6.3f} x", flush=True)


if __name__ == "__main__":
    main()
