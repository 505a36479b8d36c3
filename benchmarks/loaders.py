"""Time per batch of the loaders, against a bare index loop and fastai's default, and the rate of the generators, measured in one run.

    python benchmarks/loaders.py [--bs 50] [--device cpu]

Measured on one of two shared cores, torch 2: 0.003 to 0.024 ms a batch of 50 above the bare index (fastai's default 0.26 to 0.55 ms in all); cells of 64 pixels
5,192 a second of CPU time and 3,767 of wall time; of 256 pixels 263 and 179; of 512 pixels 58 and 31; gaze maps of 64 pixels 4,170 and 2,237.
"""

import argparse
import os
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
import numpy as np
import pandas as pd
import torch
from fastai.data.core import TfmdDL
from torch.utils.data import TensorDataset

from advinterp.data import tensor_dls
from advinterp.gaze import gaze_maps
from advinterp.generators import block_toy, cells, stack_blocks


def bare(x, y, bs):
    for i in torch.randperm(len(x)).to(x.device).split(bs):
        yield x[i], y[i]


def ms_per_batch(batches, n, repeats, sync):
    "The fastest of `repeats` epochs, in ms per batch."
    best = float("inf")
    for _ in range(repeats):
        sync()
        t = time.perf_counter()
        for _ in batches():
            pass
        sync()
        best = min(best, time.perf_counter() - t)
    return 1e3 * best / n


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--bs", type=int, default=50)
    p.add_argument("--device", default="cpu")
    p.add_argument("--repeats", type=int, default=7)
    a = p.parse_args()
    torch.set_num_threads(1)
    sync = torch.cuda.synchronize if a.device.startswith("cuda") else (lambda: None)
    print(f"batch {a.bs}, {a.device}; ms per batch, best of {a.repeats} epochs over 200 batches\n")
    print(
        f"{'shape':>14} {'bare index':>11} {'TensorDL':>9} {'overhead':>9} {'fastai':>8} {'fastai / TensorDL':>18}"
    )
    for shape in [(57,), (117,), (1, 8, 8), (1, 28, 28), (3, 32, 32)]:
        n = 200 * a.bs
        x, y = torch.rand(n, *shape), torch.randint(0, 10, (n,))
        dl = tensor_dls(x, y, x[:1], y[:1], bs=a.bs, device=a.device).train
        old = TfmdDL(
            TensorDataset(x, y), bs=a.bs, shuffle=True, num_workers=0, device=torch.device(a.device)
        )
        xd, yd = x.to(a.device), y.to(a.device)
        t0 = ms_per_batch(lambda: bare(xd, yd, a.bs), 200, a.repeats, sync)
        t1 = ms_per_batch(lambda: dl, 200, a.repeats, sync)
        t2 = ms_per_batch(lambda: old, 200, 2, sync)
        print(f"{shape!s:>14} {t0:11.4f} {t1:9.4f} {t1 - t0:9.4f} {t2:8.3f} {t2 / t1:18.1f}")

    print(
        f"\n{'images or rows a second':>23} {'size':>6} {'of CPU time':>12} {'of wall time, one core':>23}"
    )
    rng = np.random.default_rng(0)
    digits = rng.random((2000, 1, 28, 28), dtype=np.float32)
    gaze = pd.DataFrame(
        dict(
            img_id=np.arange(500 * 38) % 500,
            img_w=500,
            img_h=333,
            x=rng.integers(0, 500, 500 * 38),
            y=rng.integers(0, 333, 500 * 38),
            duration_ms=rng.exponential(400, 500 * 38),
        )
    )
    jobs = [
        ("cells", 64, lambda: cells(2000, 64), 2000),
        ("cells", 256, lambda: cells(200, 256), 200),
        ("cells", 512, lambda: cells(50, 512), 50),
        ("block_toy", 10, lambda: block_toy(100_000), 100_000),
        ("stack_blocks", 28, lambda: stack_blocks(digits, np.zeros(2000, int)), 2000),
        ("gaze_maps", 64, lambda: gaze_maps(gaze, 64), 500),
    ]
    for name, size, f, n in jobs:
        cpu, wall = [], []
        for _ in range(a.repeats):
            c, w = time.process_time(), time.perf_counter()
            f()
            cpu.append(n / (time.process_time() - c))
            wall.append(n / (time.perf_counter() - w))
        print(f"{name:>23} {size:6} {max(cpu):12,.0f} {max(wall):23,.0f}")


if __name__ == "__main__":
    main()
