"""Gini index of 1000 maps of 28x28: this package against a loop over maps, torch's sort, and Quantus where it is installed.

    OMP_NUM_THREADS=1 python benchmarks/gini.py [--repeats 7]

Prints the median CPU time of each and its ratio to ours, all from one run and interleaved, after checking that the values agree. CPU time of one thread
hardly depends on what else the machine does.
"""

import argparse
import statistics
import time

import numpy as np
import torch

from advinterp.metrics import gini


def loop(maps):
    "One map at a time, as metric libraries do: sort, ranks, sum."
    out = []
    for m in maps:
        v = np.sort(np.abs(m.ravel()))
        d = len(v)
        out.append(np.sum((2 * np.arange(1, d + 1) - d - 1) * v) / (d * np.sum(v)))
    return np.array(out)


def torch_sort(maps):
    "Batched, with torch's sort."
    v = torch.from_numpy(maps).flatten(1).abs().sort(1).values
    d = v.shape[1]
    return (v @ torch.arange(1 - d, d, 2, dtype=v.dtype) / (d * v.sum(1))).numpy()


def sort_alone(maps):
    "The floor: NumPy's sort of all maps and nothing else."
    np.sort(np.abs(maps.reshape(len(maps), -1)), axis=1)


def contenders():
    found = {
        "advinterp.gini": lambda m: gini(m).numpy(),
        "NumPy sort alone": sort_alone,
        "batched torch sort": torch_sort,
        "loop over maps": loop,
    }
    try:
        from quantus import Sparseness

        quantus, net, y = (
            Sparseness(disable_warnings=True),
            torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10)),
            np.zeros(1000, int),
        )
        found["Quantus Sparseness, as it is called"] = lambda m: np.array(
            quantus(model=net, x_batch=m, y_batch=y, a_batch=m.copy(), device="cpu")
        )
        found["Quantus Sparseness, formula alone"] = lambda m: np.array(
            quantus.evaluate_batch(x_batch=m, a_batch=m.copy())
        )
    except ImportError as e:
        print(f"Quantus left out: {e}")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    maps = (
        np.random.default_rng(0).exponential(size=(1000, 1, 28, 28)).astype(np.float32)
    )  # Quantus takes magnitudes
    todo, times, want = contenders(), {}, gini(maps.astype(float)).numpy()
    for name, f in todo.items():  # also warms up
        got = f(maps)
        if got is not None:
            np.testing.assert_allclose(got, want, atol=1e-5)
    for _ in range(parser.parse_args().repeats):  # interleaved, so that a busy moment hits all
        for name, f in todo.items():
            start = time.process_time()
            f(maps)
            times.setdefault(name, []).append(time.process_time() - start)
    ours = statistics.median(times["advinterp.gini"])
    for name, t in times.items():
        print(
            f"{name:36} {1000 * statistics.median(t):8.1f} ms   {statistics.median(t) / ours:6.1f} x"
        )


if __name__ == "__main__":
    main()
