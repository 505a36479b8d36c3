"""Gini index of 1000 maps of 28x28: this package against a loop over maps, torch's sort, and Quantus where it is installed.

    OMP_NUM_THREADS=1 python benchmarks/gini.py [--repeats 7]

Prints the median time of each and its ratio to ours, all from one run, after checking that the values agree.
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
        v = np.sort(np.abs(m.ravel())); d = len(v)
        out.append(np.sum((2*np.arange(1, d+1) - d - 1)*v)/(d*np.sum(v)))
    return np.array(out)

def torch_sort(maps):
    "Batched, with torch's sort."
    v = torch.from_numpy(maps).flatten(1).abs().sort(1).values; d = v.shape[1]
    return (v @ torch.arange(1-d, d, 2, dtype=v.dtype) / (d*v.sum(1))).numpy()

def sort_alone(maps):
    "The floor: NumPy's sort of all maps and nothing else."
    np.sort(np.abs(maps.reshape(len(maps), -1)), axis=1)

def contenders():
    found = {'advinterp.gini': lambda m: gini(m).numpy(), 'NumPy sort alone': sort_alone, 'batched torch sort': torch_sort, 'loop over maps': loop}
    try:
        from quantus import Sparseness
        found['Quantus Sparseness'] = lambda m: np.array(Sparseness(disable_warnings=True).evaluate_batch(x_batch=m, a_batch=m.copy()))
    except ImportError as e: print(f'Quantus left out: {e}')
    return found

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0]); parser.add_argument('--repeats', type=int, default=7)
    maps = np.random.default_rng(0).normal(size=(1000, 1, 28, 28)).astype(np.float32)
    todo, times, want = contenders(), {}, gini(maps.astype(float)).numpy()
    for name, f in todo.items():                                      # also warms up
        got = f(maps)
        if got is not None: np.testing.assert_allclose(got, want, atol=1e-5)
    for _ in range(parser.parse_args().repeats):                      # interleaved, so that a busy moment hits all
        for name, f in todo.items():
            start = time.perf_counter(); f(maps); times.setdefault(name, []).append(time.perf_counter() - start)
    ours = statistics.median(times['advinterp.gini'])
    for name, t in times.items(): print(f'{name:20} {1000*statistics.median(t):8.1f} ms   {statistics.median(t)/ours:6.1f} x')

if __name__ == '__main__': main()
