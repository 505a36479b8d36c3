"""The interpretation attack on the MNIST net of Chalasani et al.: batched, image by image, by hand.

    OMP_NUM_THREADS=1 python benchmarks/map_attack.py [--images 32] [--steps 10] [--repeats 3]

Prints the median CPU time of each contender and its ratio to ours, all from one run and
interleaved. Random weights and images; the net has softplus in place of ReLU, which needs no
stand-in, or ReLU and a softplus stand-in. SmoothGrad and MoreauGrad, a batch at a time against
image by image, are in benchmarks/attribution.py.
"""

import argparse
import statistics
import time

import torch
from torch import nn

from advinterp.map_adversary import map_attack
from advinterp.models import softplus_copy


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


def by_hand(net, x, y, steps, eps=1.0, k=0.4):
    """The floor for a smooth net: the passes of the attack with sign steps, nothing checked.

    One look at each iterate serves as its judgement and as the next gradient.
    """

    def map_of(z, graph):
        logits = net(z).gather(1, y[:, None])
        return torch.autograd.grad(logits.sum(), z, create_graph=graph)[0].abs().flatten(1)

    z = x.clone().requires_grad_()
    top = map_of(z, False).topk(round(k * x[0].numel()), dim=1).indices
    for _ in range(steps):
        v = map_of(z, True)
        share = v.gather(1, top).sum(1) / v.sum(1)
        g = torch.autograd.grad(share.sum(), z)[0]
        delta = z.detach() - eps / 100 * g.sign() - x
        shrink = (eps / delta.flatten(1).norm(dim=1)).clamp(max=1)
        z = (x + delta * shrink[:, None, None, None]).requires_grad_()
    return z


def timed(contenders, repeats):
    """Median CPU seconds of each, interleaved; a first round warms up."""
    times = {name: [] for name in contenders}
    for _ in range(repeats + 1):
        for name, func in contenders.items():
            start = time.process_time()
            func()
            times[name].append(time.process_time() - start)
    return {name: statistics.median(seconds[1:]) for name, seconds in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in dict(images=32, steps=10, repeats=3).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    torch.manual_seed(0)
    relu = madry()
    soft = softplus_copy(relu)
    x = torch.rand(args.images, 1, 28, 28)
    y = relu(x).argmax(1)

    def batched(net, stand_in=None):
        return lambda: map_attack(net, x, y, 1.0, steps=args.steps, attack_model=stand_in)

    def one_by_one(net, stand_in=None):
        def run():
            for pair in zip(x.split(1), y.split(1)):
                map_attack(net, *pair, 1.0, steps=args.steps, attack_model=stand_in)

        return run

    tasks = {
        "softplus": {
            "advinterp, batched": batched(soft),
            "image by image": one_by_one(soft),
            "hand-written, batched": lambda: by_hand(soft, x, y, args.steps),
        },
        "ReLU, softplus stand-in": {
            "advinterp, batched": batched(relu, soft),
            "image by image": one_by_one(relu, soft),
        },
    }
    for title, contenders in tasks.items():
        seconds = timed(contenders, args.repeats)
        print(f"{title}, {args.images} images, {args.steps} steps")
        for name, median in seconds.items():
            print(f"  {name:38} {median:8.3f} s   {median / seconds['advinterp, batched']:6.2f} x")


if __name__ == "__main__":
    main()
