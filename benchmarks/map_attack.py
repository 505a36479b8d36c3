"""The interpretation attack on the MNIST net of Chalasani et al.: a batch at a time against image by image, and against a hand-written loop.

    OMP_NUM_THREADS=1 python benchmarks/map_attack.py [--images 32] [--steps 10] [--repeats 3]

Prints the median CPU time of each contender and its ratio to ours, all from one run and interleaved. Random weights and images; the net has softplus in place of ReLU,
which needs no stand-in, or ReLU and a softplus stand-in. SmoothGrad and MoreauGrad, a batch at a time against image by image, are in benchmarks/attribution.py.
"""

import argparse
import statistics
import time

import torch
from torch import nn

from advinterp.map_adversary import map_attack
from advinterp.models import softplus_copy


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


def by_hand(net, x, y, steps, radius=1.0, k=0.4):
    "The floor for a smooth net: the passes of the attack with sign steps, nothing checked; one look at each iterate serves as its judgement and as the next gradient."

    def grad(z, graph):
        return (
            torch.autograd.grad(net(z).gather(1, y[:, None]).sum(), z, create_graph=graph)[0]
            .abs()
            .flatten(1)
        )

    z = x.clone().requires_grad_()
    top = grad(z, False).topk(round(0.4 * x[0].numel()), dim=1).indices
    for _ in range(steps):
        v = grad(z, True)
        d = (
            z.detach()
            - radius
            / 100
            * torch.autograd.grad((v.gather(1, top).sum(1) / v.sum(1)).sum(), z)[0].sign()
            - x
        )
        z = (
            x + d * (radius / d.flatten(1).norm(dim=1)).clamp(max=1)[:, None, None, None]
        ).requires_grad_()
    return z


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in dict(images=32, steps=10, repeats=3).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    a = parser.parse_args()
    torch.manual_seed(0)
    relu = madry()
    soft = softplus_copy(relu)
    x = torch.rand(a.images, 1, 28, 28)
    y = relu(x).argmax(1)

    def batched(net, stand_in=None):
        return lambda: map_attack(net, x, y, 1.0, steps=a.steps, attack_model=stand_in)

    def one_by_one(net, stand_in=None):
        return lambda: [
            map_attack(net, x[i : i + 1], y[i : i + 1], 1.0, steps=a.steps, attack_model=stand_in)
            for i in range(len(x))
        ]

    tasks = {
        "softplus": {
            "advinterp, batched": batched(soft),
            "image by image": one_by_one(soft),
            "hand-written, batched": lambda: by_hand(soft, x, y, a.steps),
        },
        "ReLU, softplus stand-in": {
            "advinterp, batched": batched(relu, soft),
            "image by image": one_by_one(relu, soft),
        },
    }
    for title, found in tasks.items():
        times = {}
        for _ in range(a.repeats + 1):  # the first round warms up
            for name, f in found.items():
                start = time.process_time()
                f()
                times.setdefault(name, []).append(time.process_time() - start)
        ours = statistics.median(times["advinterp, batched"][1:])
        print(f"{title}, {a.images} images, {a.steps} steps")
        for name, t in times.items():
            print(
                f"  {name:38} {statistics.median(t[1:]):8.3f} s   {statistics.median(t[1:]) / ours:6.2f} x"
            )


if __name__ == "__main__":
    main()
