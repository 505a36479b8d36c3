"""Integrated Gradients of a one-layer model: `linear_ig` beside captum's `IntegratedGradients`, 50 steps, on 4601 rows of 57 features.

Error is the largest difference from a 400-node Gauss-Legendre rule in float64, relative to the largest attribution.
Times are medians of interleaved repeats in this process; `chunk` limits captum's batch to 4601 rows, as its memory option does.
"""
import time, numpy as np, torch
from captum.attr import IntegratedGradients
from advinterp.linear import linear_ig

def data(dtype, n=4601, d=57):
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(n, d, generator=g, dtype=torch.double), torch.randn(d, generator=g, dtype=torch.double)*.5
    return x.to(dtype), w.to(dtype)

def reference(x, w, b, n=400):
    x, w = x.double().numpy(), w.double().numpy()
    nodes, weights = np.polynomial.legendre.leggauss(n)
    p = 1/(1 + np.exp(-((nodes + 1)/2*(x @ w)[:,None] + b)))
    return ((p*(1 - p)) @ (weights/2))[:,None]*x*w

def main(repeats=9, b=.3):
    print(f'torch {torch.__version__}, {torch.get_num_threads()} thread(s)')
    print(f"{'dtype':8} {'method':22} {'median ms':>10} {'times linear_ig':>16} {'largest error':>14}")
    for dtype in (torch.float32, torch.float64):
        x, w = data(dtype)
        ref = reference(x, w, b)
        F, zero = (lambda x: torch.sigmoid(x @ w + b)), torch.zeros_like(x)
        runs = {'linear_ig': lambda: linear_ig(torch.sigmoid, w, x, 0., b),
                'captum, 50 steps': lambda: IntegratedGradients(F).attribute(x, zero, n_steps=50),
                'captum, 50 steps, chunk': lambda: IntegratedGradients(F).attribute(x, zero, n_steps=50, internal_batch_size=len(x))}
        times = {k: [] for k in runs}
        for r in range(repeats + 1):
            for k, f in runs.items():
                t = time.perf_counter(); out = f(); dt = time.perf_counter() - t
                if r: times[k].append(dt)
                err = np.abs(out.double().numpy() - ref).max()/np.abs(ref).max()
                if not r: times[k + ' error'] = err
        base = np.median(times['linear_ig'])
        for k in runs:
            m = np.median(times[k])
            print(f"{str(dtype)[6:]:8} {k:22} {1e3*m:10.2f} {m/base:16.1f} {times[k + ' error']:14.1e}")

if __name__ == '__main__': main()
