"""Speed of the duals, as ratios measured in one run.

    python benchmarks/duals.py [--threads N]

Each contestant runs in turn, round after round, so that a busy machine slows all of them; the table gives the medians.
"""

import argparse
import time

import numpy as np
import torch

from advinterp.duals import L1, L2, ElasticNet, GroupBall, L1Ball, LInf, WeightedL2


def race(rounds=15, **contestants):
    "Median seconds of each contestant"
    times = {k: [] for k in contestants}
    for i in range(rounds + 2):
        for k, f in contestants.items():
            start = time.perf_counter()
            f()
            t = time.perf_counter() - start
            if i > 1:
                times[k].append(t)  # two rounds to warm up
    return {k: float(np.median(v)) for k, v in times.items()}


def numpy_loop(v, eps):
    "The textbook projection on the l1 ball (Duchi et al. 2008), row by row"
    out = np.empty_like(v)
    for i, row in enumerate(v):
        a = np.abs(row)
        if a.sum() <= eps:
            out[i] = row
            continue
        u = np.sort(a)[::-1]
        c = np.cumsum(u) - eps
        k = np.nonzero(u * np.arange(1, len(u) + 1) > c)[0][-1]
        out[i] = np.sign(row) * np.maximum(a - c[k] / (k + 1), 0)
    return out


def l1_projection():
    print(
        "\nProjection on the l1 ball, 256 x 3072 standard normal rows: L1Ball.project against a NumPy loop"
    )
    print(
        f"{'dtype':>8} {'eps':>7} {'loop ms':>8} {'here ms':>8} {'ratio':>6} {'largest difference':>19}"
    )
    for dtype in (torch.float32, torch.float64):
        v = torch.randn(256, 3072, dtype=dtype, generator=torch.Generator().manual_seed(0))
        n = v.numpy()
        for eps in (1.0, 25.0, 250.0, 1200.0):
            ball = L1Ball(eps)
            t = race(loop=lambda: numpy_loop(n, eps), here=lambda: ball.project(v))
            gap = np.abs(ball.project(v).numpy() - numpy_loop(n, eps)).max()
            print(
                f"{str(dtype)[6:]:>8} {eps:7.0f} {t['loop'] * 1e3:8.1f} {t['here'] * 1e3:8.1f} {t['loop'] / t['here']:6.1f} {gap:19.1e}"
            )


def best_moves():
    print("\ndelta_star on 64 x 3 x 224 x 224 float32, in units of one x.clone().mul_(2)")
    x = torch.randn(64, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(224) // 14
    duals = {
        "GroupL21, patch=14": GroupBall(0.1),
        "GroupL21, patch=14, across_channels": GroupBall(0.1, across_channels=True),
        "GroupL21, patch=15 (does not divide)": GroupBall(0.1, patch=15),
        "GroupL21, groups= (the 14-patches)": GroupBall(
            0.1, groups=(16 * labels[:, None] + labels).expand(3, 224, 224)
        ),
        "L1": L1(0.1),
        "L2": L2(0.1),
        "LInf": LInf(0.1),
        "ElasticNet": ElasticNet(0.1, 0.1),
        "WeightedL2": WeightedL2(0.1, torch.ones(3, 224, 224)),
    }
    t = race(
        9,
        unit=lambda: x.clone().mul_(2),
        **{k: (lambda d=d: d.delta_star(x)) for k, d in duals.items()},
    )
    print(f"{'x.clone().mul_(2)':38} {t['unit'] * 1e3:8.1f} ms")
    for k in duals:
        print(f"{k:38} {t[k] * 1e3:8.1f} ms   ratio {t[k] / t['unit']:5.2f}")


if __name__ == "__main__":
    args = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    args.add_argument("--threads", type=int, help="torch threads; default: torch's own choice")
    if n := args.parse_args().threads:
        torch.set_num_threads(n)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    torch.ones(
        8 * 2**20 - 2**18
    )  # freed at once: from now on glibc reuses blocks of this size, as in any training process
    l1_projection()
    best_moves()
