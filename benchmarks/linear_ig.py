"""Integrated Gradients of a one-layer model: `linear_ig` beside 50-step quadrature, on 4601 rows of 57 features.

Beside captum's `IntegratedGradients` stands a plain loop over 50 mid-points that differentiates the summed output. captum differentiates a list of
one scalar per row and step, which costs the square of their number: all 4601 x 50 in one batch take minutes, so it gets `internal_batch_size=4601`.
Error is the largest difference from a 400-node Gauss-Legendre rule in float64, relative to the largest attribution. Times are medians of this process.
"""

import time

import numpy as np
import torch
from captum.attr import IntegratedGradients

from advinterp.linear import linear_ig


def data(dtype, n=4601, d=57):
    g = torch.Generator().manual_seed(0)
    x, w = (
        torch.randn(n, d, generator=g, dtype=torch.double),
        torch.randn(d, generator=g, dtype=torch.double) * 0.5,
    )
    return x.to(dtype), w.to(dtype)


def reference(x, w, b, n=400):
    x, w = x.double().numpy(), w.double().numpy()
    nodes, weights = np.polynomial.legendre.leggauss(n)
    p = 1 / (1 + np.exp(-((nodes + 1) / 2 * (x @ w)[:, None] + b)))
    return ((p * (1 - p)) @ (weights / 2))[:, None] * x * w


def loop(F, x, steps=50):
    total = torch.zeros_like(x)
    for k in range(steps):
        z = ((k + 0.5) / steps * x).requires_grad_()
        total += torch.autograd.grad(F(z).sum(), z)[0]
    return total / steps * x


def main(b=0.3):
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s)")
    print(
        f"{'dtype':8} {'method':20} {'median ms':>10} {'times linear_ig':>16} {'largest error':>14}",
        flush=True,
    )
    for dtype in (torch.float32, torch.float64):
        x, w = data(dtype)
        ref, F, base = reference(x, w, b), (lambda x: torch.sigmoid(x @ w + b)), None
        captum = lambda: IntegratedGradients(F).attribute(
            x, torch.zeros_like(x), n_steps=50, internal_batch_size=len(x)
        )
        for name, f, repeats in (
            ("linear_ig", lambda: linear_ig(torch.sigmoid, w, x, 0.0, b), 15),
            ("loop, 50 steps", lambda: loop(F, x), 7),
            ("captum, 50 steps", captum, 2),
        ):
            times = []
            for _ in range(repeats):
                t = time.perf_counter()
                out = f()
                times.append(time.perf_counter() - t)
            m = np.median(times)
            base = base or m
            print(
                f"{str(dtype)[6:]:8} {name:20} {1e3 * m:10.1f} {m / base:16.0f} {np.abs(out.double().numpy() - ref).max() / np.abs(ref).max():14.1e}",
                flush=True,
            )


if __name__ == "__main__":
    main()
