"""Speed of the duals, as ratios measured in one run.

    python benchmarks/duals.py [--threads N]

Each contestant runs in turn, round after round, so that a busy machine slows all of them; the table
gives the medians.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from advinterp.duals import L1, L2, ElasticNet, GroupBall, L1Ball, LInf, WeightedL2


def race(rounds: int = 15, **contestants: Callable) -> dict[str, float]:
    "Median seconds of each contestant"
    times = {name: [] for name in contestants}
    for round_ in range(rounds + 2):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            seconds = time.perf_counter() - start
            if round_ > 1:  # two rounds to warm up
                times[name].append(seconds)
    return {name: float(np.median(seconds)) for name, seconds in times.items()}


def numpy_loop(v: np.ndarray, eps: float) -> np.ndarray:
    "The textbook projection on the l1 ball (Duchi et al. 2008), row by row"
    out = np.empty_like(v)
    for i, row in enumerate(v):
        size = np.abs(row)
        if size.sum() <= eps:
            out[i] = row
            continue
        u = np.sort(size)[::-1]
        c = np.cumsum(u) - eps
        k = np.nonzero(u * np.arange(1, len(u) + 1) > c)[0][-1]
        out[i] = np.sign(row) * np.maximum(size - c[k] / (k + 1), 0)
    return out


def l1_projection() -> None:
    print("\nProjection on the l1 ball, 256 x 3072 standard normal rows:")
    print("L1Ball.project against a NumPy loop")
    print(f"{'dtype':>8} {'eps':>7} {'loop ms':>8} {'here ms':>8} {'ratio':>6} {'difference':>11}")
    for dtype in (torch.float32, torch.float64):
        v = torch.randn(256, 3072, dtype=dtype, generator=torch.Generator().manual_seed(0))
        for eps in (1.0, 25.0, 250.0, 1200.0):
            loop = partial(numpy_loop, v.numpy(), eps)
            here = partial(L1Ball(eps).project, v)
            seconds = race(loop=loop, here=here)
            gap = np.abs(here().numpy() - loop()).max()
            ratio = seconds["loop"] / seconds["here"]
            times = f"{seconds['loop'] * 1e3:8.1f} {seconds['here'] * 1e3:8.1f}"
            print(f"{str(dtype)[6:]:>8} {eps:7.0f} {times} {ratio:6.1f} {gap:11.1e}")


def best_moves() -> None:
    print("\ndelta_star on 64 x 3 x 224 x 224 float32, in units of one x.clone().mul_(2)")
    x = torch.randn(64, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    band = torch.arange(224) // 14
    patches = (16 * band[:, None] + band).expand(3, 224, 224)
    duals = {
        "GroupL21, patch=14": GroupBall(0.1),
        "GroupL21, patch=14, across_channels": GroupBall(0.1, across_channels=True),
        "GroupL21, patch=15 (does not divide)": GroupBall(0.1, patch=15),
        "GroupL21, groups= (the 14-patches)": GroupBall(0.1, groups=patches),
        "L1": L1(0.1),
        "L2": L2(0.1),
        "LInf": LInf(0.1),
        "ElasticNet": ElasticNet(0.1, 0.1),
        "WeightedL2": WeightedL2(0.1, torch.ones(3, 224, 224)),
    }
    moves = {name: partial(dual.delta_star, x) for name, dual in duals.items()}
    seconds = race(9, unit=lambda: x.clone().mul_(2), **moves)
    unit = seconds.pop("unit")
    print(f"{'x.clone().mul_(2)':38} {unit * 1e3:8.1f} ms")
    for name, move in seconds.items():
        print(f"{name:38} {move * 1e3:8.1f} ms   ratio {move / unit:5.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, help="torch threads; default: torch's own choice")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    # Freed at once: from now on glibc reuses blocks of this size, as in any training process.
    torch.ones(8 * 2**20 - 2**18)
    l1_projection()
    best_moves()


if __name__ == "__main__":
    main()
