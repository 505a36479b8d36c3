"""Integrated Gradients of a one-layer model: `linear_ig` beside 50-step quadrature.

The table has 4601 rows of 57 features. Beside captum's `IntegratedGradients` stands a plain loop
over 50 mid-points that differentiates the summed output. captum differentiates a list of one scalar
per row and step, which costs the square of their number: all 4601 x 50 in one batch take minutes,
so it gets `internal_batch_size=4601`. Error is the largest difference from a 400-node
Gauss-Legendre rule in float64, relative to the largest attribution. Times are medians of this
process.
"""

import time

import numpy as np
import torch
from captum.attr import IntegratedGradients

from advinterp.linear import linear_ig

BIAS = 0.3
STEPS = 50


def data(dtype, n_rows=4601, n_features=57):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n_rows, n_features, generator=generator, dtype=torch.double)
    w = torch.randn(n_features, generator=generator, dtype=torch.double) * 0.5
    return x.to(dtype), w.to(dtype)


def reference(x, w, n_nodes=400):
    "Attributions by Gauss-Legendre quadrature in float64."
    x, w = x.double().numpy(), w.double().numpy()
    nodes, weights = np.polynomial.legendre.leggauss(n_nodes)
    p = 1 / (1 + np.exp(-((nodes + 1) / 2 * (x @ w)[:, None] + BIAS)))
    return ((p * (1 - p)) @ (weights / 2))[:, None] * x * w


def loop(model, x):
    "Attributions by the mid-point rule."
    total = torch.zeros_like(x)
    for k in range(STEPS):
        point = ((k + 0.5) / STEPS * x).requires_grad_()
        total += torch.autograd.grad(model(point).sum(), point)[0]
    return total / STEPS * x


def methods(x, w):
    "Name, a function that returns the attributions, and how often to time it."

    def model(x):
        return torch.sigmoid(x @ w + BIAS)

    def exact():
        return linear_ig(torch.sigmoid, w, x, 0.0, BIAS)

    def by_loop():
        return loop(model, x)

    def by_captum():
        baseline = torch.zeros_like(x)
        method = IntegratedGradients(model)
        return method.attribute(x, baseline, n_steps=STEPS, internal_batch_size=len(x))

    return [
        ("linear_ig", exact, 15),
        (f"loop, {STEPS} steps", by_loop, 7),
        (f"captum, {STEPS} steps", by_captum, 2),
    ]


def median_time(function, repeats):
    "The last result and the median wall time in seconds."
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - start)
    return result, np.median(times)


def main():
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s)")
    columns = "dtype", "method", "median ms", "times linear_ig", "largest error"
    print("{:8} {:20} {:>10} {:>16} {:>14}".format(*columns), flush=True)
    for dtype in (torch.float32, torch.float64):
        x, w = data(dtype)
        expected = reference(x, w)
        base = None
        for name, function, repeats in methods(x, w):
            maps, seconds = median_time(function, repeats)
            base = base or seconds  # of linear_ig, which comes first
            error = np.abs(maps.double().numpy() - expected).max() / np.abs(expected).max()
            print(
                f"{str(dtype)[6:]:8} {name:20} {1e3 * seconds:10.1f} "
                f"{seconds / base:16.0f} {error:14.1e}",
                flush=True,
            )


if __name__ == "__main__":
    main()
