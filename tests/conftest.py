"What every test runs under: one thread, no window, the same examples each time; slow, GPU and network tests when asked for."

import os
import sys

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def close_figures():
    "No test sees the figures of another one."
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")
    parser.addoption("--net", action="store_true", help="also run the tests marked net")


def pytest_collection_modifyitems(config, items):
    reasons = dict(
        slow=None if config.getoption("--slow") else "slow: run with --slow",
        net=None if config.getoption("--net") else "needs the network: run with --net",
        cuda=None if torch.cuda.is_available() else "needs a GPU",
    )
    for item in items:
        for mark, why in reasons.items():
            if why and mark in item.keywords:
                item.add_marker(pytest.mark.skip(reason=why))
