"""Time per batch of the loaders, against a bare index loop and fastai's default; generators' rate.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/loaders.py [--bs 50] [--device cpu]

Measured on one of two shared cores, torch 2: 0.003 to 0.024 ms a batch of 50 above the bare index
(fastai's default 0.26 to 0.55 ms in all); cells of 64 pixels 5,192 a second of CPU time and 3,767
of wall time; of 256 pixels 263 and 179; of 512 pixels 58 and 31; gaze maps of 64 pixels 4,170 and
2,237.
"""

import argparse
import time
from functools import partial

import numpy as np
import pandas as pd
import torch
from fastai.data.core import TfmdDL
from torch.utils.data import TensorDataset

from advinterp.data import tensor_dls
from advinterp.gaze import gaze_maps
from advinterp.generators import block_toy, cells, stack_blocks

N_BATCHES = 200
SHAPES = [(57,), (117,), (1, 8, 8), (1, 28, 28), (3, 32, 32)]


class BareIndex:
    "What no loader can do without: a random order, and one indexing operation a batch."

    def __init__(self, x, y, bs):
        self.x = x
        self.y = y
        self.bs = bs

    def __iter__(self):
        for rows in torch.randperm(len(self.x)).to(self.x.device).split(self.bs):
            yield self.x[rows], self.y[rows]


def ms_per_batch(batches, repeats, device):
    "The fastest of `repeats` epochs, in ms per batch."
    best = float("inf")
    for _ in range(repeats):
        synchronise(device)
        start = time.perf_counter()
        for _ in batches:
            pass
        synchronise(device)
        best = min(best, time.perf_counter() - start)
    return 1e3 * best / N_BATCHES


def synchronise(device):
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def compare_loaders(bs, device, repeats):
    print(
        f"batch {bs}, {device}; ms per batch, best of {repeats} epochs over {N_BATCHES} batches\n"
    )
    print(
        f"{'shape':>14} {'bare index':>11} {'TensorDL':>9} {'overhead':>9} {'fastai':>8} "
        f"{'fastai / TensorDL':>18}"
    )
    for shape in SHAPES:
        x = torch.rand(N_BATCHES * bs, *shape)
        y = torch.randint(0, 10, (len(x),))
        bare = BareIndex(x.to(device), y.to(device), bs)
        ours = tensor_dls(x, y, x[:1], y[:1], bs=bs, device=device).train
        fastais = TfmdDL(
            TensorDataset(x, y), bs=bs, shuffle=True, num_workers=0, device=torch.device(device)
        )
        bare_ms = ms_per_batch(bare, repeats, device)
        our_ms = ms_per_batch(ours, repeats, device)
        fastai_ms = ms_per_batch(fastais, 2, device)
        print(
            f"{shape!s:>14} {bare_ms:11.4f} {our_ms:9.4f} {our_ms - bare_ms:9.4f} "
            f"{fastai_ms:8.3f} {fastai_ms / our_ms:18.1f}"
        )


def some_fixations(rng, n_photos=500, per_photo=38):
    n = n_photos * per_photo
    return pd.DataFrame(
        dict(
            img_id=np.arange(n) % n_photos,
            img_w=500,
            img_h=333,
            x=rng.integers(0, 500, n),
            y=rng.integers(0, 333, n),
            duration_ms=rng.exponential(400, n),
        )
    )


def rate_generators(repeats):
    print(
        f"\n{'images or rows a second':>23} {'size':>6} {'of CPU time':>12} "
        f"{'of wall time, one core':>23}"
    )
    rng = np.random.default_rng(0)
    digits = rng.random((2000, 1, 28, 28), dtype=np.float32)
    fixations = some_fixations(rng)
    jobs = [
        ("cells", 64, partial(cells, 2000, 64), 2000),
        ("cells", 256, partial(cells, 200, 256), 200),
        ("cells", 512, partial(cells, 50, 512), 50),
        ("block_toy", 10, partial(block_toy, 100_000), 100_000),
        ("stack_blocks", 28, partial(stack_blocks, digits, np.zeros(2000, int)), 2000),
        ("gaze_maps", 64, partial(gaze_maps, fixations, 64), 500),
    ]
    for name, size, job, n in jobs:
        cpu_rates = []
        wall_rates = []
        for _ in range(repeats):
            cpu, wall = time.process_time(), time.perf_counter()
            job()
            cpu_rates.append(n / (time.process_time() - cpu))
            wall_rates.append(n / (time.perf_counter() - wall))
        print(f"{name:>23} {size:6} {max(cpu_rates):12,.0f} {max(wall_rates):23,.0f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bs", type=int, default=50)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    compare_loaders(args.bs, args.device, args.repeats)
    rate_generators(args.repeats)


if __name__ == "__main__":
    main()
