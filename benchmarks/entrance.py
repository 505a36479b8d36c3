"""What the entrance costs a call, in milliseconds: `python benchmarks/entrance.py`."""

from statistics import median
from time import process_time

import torch
from torch import nn

from advinterp.core import entrance

CALLS, ROUNDS = 3000, 5


@entrance
def logits(model, x, y):
    return model(x)


def milliseconds(function, *args):
    """Of CPU time, per call."""
    start = process_time()
    for _ in range(CALLS):
        function(*args)
    return 1000 * (process_time() - start) / CALLS


if __name__ == "__main__":
    torch.set_num_threads(1)
    net, x, y = nn.Linear(8, 4), torch.rand(16, 8), torch.arange(16) % 4
    milliseconds(logits, net, x, y)  # warm
    extra = [milliseconds(logits, net, x, y) - milliseconds(net, x) for _ in range(ROUNDS)]
    print(f"{median(extra):.3f} ms, from {min(extra):.3f} to {max(extra):.3f}")
