"""Gini index of 1000 maps of 28x28: this package, a loop over maps, torch's sort, and Quantus.

    OMP_NUM_THREADS=1 python benchmarks/gini.py [--repeats 7]

Prints the median CPU time of each and its ratio to ours, all from one run and interleaved, after
checking that the values agree. CPU time of one thread hardly depends on what else the machine does.
Quantus takes part where it is installed.
"""

import argparse
import statistics
import time

import numpy as np
import torch

from advinterp.metrics import gini


def loop(maps):
    """One map at a time, as metric libraries do: sort, ranks, sum."""
    values = []
    for map in maps:
        v = np.sort(np.abs(map.ravel()))
        d = len(v)
        values.append(np.sum((2 * np.arange(1, d + 1) - d - 1) * v) / (d * np.sum(v)))
    return np.array(values)


def torch_sort(maps):
    """Batched, with torch's sort."""
    v = torch.from_numpy(maps).flatten(1).abs().sort(1).values
    d = v.shape[1]
    return (v @ torch.arange(1 - d, d, 2, dtype=v.dtype) / (d * v.sum(1))).numpy()


def sort_alone(maps):
    """The floor: NumPy's sort of all maps and nothing else."""
    np.sort(np.abs(maps.reshape(len(maps), -1)), axis=1)


def quantus_contenders():
    """Quantus, called as its users do and by its formula alone; none where it is missing."""
    try:
        from quantus import Sparseness
    except ImportError as error:
        print(f"Quantus left out: {error}")
        return {}
    sparseness = Sparseness(disable_warnings=True)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    y = np.zeros(1000, int)

    def as_it_is_called(maps):
        found = sparseness(model=net, x_batch=maps, y_batch=y, a_batch=maps.copy(), device="cpu")
        return np.array(found)

    def formula_alone(maps):
        return np.array(sparseness.evaluate_batch(x_batch=maps, a_batch=maps.copy()))

    return {
        "Quantus Sparseness, as it is called": as_it_is_called,
        "Quantus Sparseness, formula alone": formula_alone,
    }


def contenders():
    """All of them by name, ours first."""
    return {
        "advinterp.gini": lambda maps: gini(maps).numpy(),
        "NumPy sort alone": sort_alone,
        "batched torch sort": torch_sort,
        "loop over maps": loop,
        **quantus_contenders(),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    maps = rng.exponential(size=(1000, 1, 28, 28)).astype(np.float32)  # Quantus takes magnitudes
    want = gini(maps.astype(float)).numpy()
    found = contenders()
    for func in found.values():  # also warms up
        got = func(maps)
        if got is not None:
            np.testing.assert_allclose(got, want, atol=1e-5)
    times = {name: [] for name in found}
    for _ in range(args.repeats):  # interleaved, so that a busy moment hits all
        for name, func in found.items():
            start = time.process_time()
            func(maps)
            times[name].append(time.process_time() - start)
    ours = statistics.median(times["advinterp.gini"])
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(f"{name:36} {1000 * median:8.1f} ms   {median / ours:6.1f} x")


if __name__ == "__main__":
    main()
