"""Calls of the public API with arguments that people get wrong, and what became of each.

A row is a public function with arguments that are right. A call changes one or two of them by a
value whose label says what it is; each value is right or wrong for every row that takes the
argument. The outcome is one of four:

- right: a result, of arguments that are right
- clear: one sentence of the package's own, a ValueError or TypeError that names an argument
- raw: any other error, of a library for instance
- silent: a result of an argument that is wrong
"""

import importlib
import inspect
import math
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fastai.learner import Learner
from torch import nn

import advinterp
from advinterp.data import tensor_dls
from tests.test_border import (
    ABSTRACT,
    BINARY,
    FUNCTIONS,
    INSTANCES,
    NET,
    X,
    Y,
    is_adversary_or_penalty,
    quick_arguments,
)

HOME = Path(advinterp.__file__).parent


@dataclass(frozen=True)
class Row:
    """A public function: how it is called, and its arguments."""

    function: object
    arguments: dict
    then: object = None  # what is done with the result, of a class: call it
    names: tuple = field(default=())  # of the parameters that may be changed

    def __call__(self, **changes):
        result = self.function(**self.arguments | changes)
        return result if self.then is None else self.then(result)


# ---------------------------------------------------------------- rows


def _asks_model(name, function):
    "A function of (model, x, y)."
    parameters = inspect.signature(function).parameters
    arguments = quick_arguments(name, parameters, X) | dict(x=X, y=Y)
    if "models" in parameters:
        return Row(function, arguments | dict(models=[NET, NET]), names=tuple(parameters))
    key = "teacher" if "teacher" in parameters else "model"
    return Row(function, arguments | {key: NET}, names=tuple(parameters))


def _on_batch(thing):
    return thing(NET, X, Y)


def _dual_at_x(dual):
    return [dual.h_star(X), dual.delta_star(X)]


_OF_CLASSES = {
    "OneStep": dict(dual="LInfBall(0.1)"),
    "PGD": dict(dual="LInfBall(0.1)", steps=2),
    "Harmonise": dict(eps=0.1, attention=torch.ones(1, 8, 8)),
    "GradNorm": dict(dual="L1(0.1)"),
    "JacobianNorm": dict(),
    "TargetMap": dict(targets=torch.ones(1, 8, 8)),
    "StableIG": dict(eps=0.1, steps=2),
    "WeightNorm": dict(p=1),
    "ScoreMatching": dict(n_samples=1),
}
_DUALS = {
    "LInfBall": dict(eps=0.1),
    "L2Ball": dict(eps=0.1),
    "L1Ball": dict(eps=0.1),
    "GroupBall": dict(eps=0.1, patch=4),
    "ElasticNet": dict(eps1=0.1, eps2=0.1),
    "WeightedL2": dict(eps=0.1, weight=torch.ones(1, 8, 8)),
}
_GENERATORS = {
    "block_toy": dict(n=5, d=4),
    "block_toy_exact": dict(d=4),
    "gaussian_blocks": dict(n=5, strength=[1.0, 0.5]),
    "cells": dict(n=2, size=32),
}
_METRICS = {
    "gini": {},
    "lorenz": {},
    "normalized_entropy": {},
    "share_above": dict(t=0.1),
    "total_variation": {},
    "topk_overlap": dict(a=X, b=1 - X, k=0.1),
    "topk_dice": dict(a=X, b=1 - X, k=0.1),
    "ssim": dict(a=X, b=1 - X, sigma=0.8),
    "connectedness": dict(k=0.2),
}
_THEORY = {
    "adv_loss": dict(eps=0.1),
    "adv_slope": dict(eps=0.1),
    "adv_grad": dict(eps=0.1),
    "expected_update": dict(eps=0.1),
    "stable_ig_risk": dict(eps=0.1),
    "margin": {},
    "feat_trans": {},
    "directed_strength": {},
}


def _spec(arguments):
    from advinterp.spec import from_spec

    return {k: from_spec(v) if k == "dual" else v for k, v in arguments.items()}


def _parameters(function):
    return tuple(inspect.signature(function).parameters)


def _rows():
    rows = {}
    for name, function in FUNCTIONS.items():
        if function in ABSTRACT:
            continue
        if is_adversary_or_penalty(function):
            asked = dict(model=NET, x=X, y=Y)
            rows[f"{name}()"] = Row(INSTANCES[name], asked, names=tuple(asked))
            if name in _OF_CLASSES:
                arguments = _spec(_OF_CLASSES[name])
                rows[name] = Row(function, arguments, _on_batch, _parameters(function.__init__))
        else:
            rows[name] = _asks_model(name, function)
    duals = importlib.import_module("advinterp.duals")
    for name, arguments in _DUALS.items():
        function = getattr(duals, name)
        rows[name] = Row(function, arguments, _dual_at_x, _parameters(function.__init__))
    generators = importlib.import_module("advinterp.generators")
    for name, arguments in _GENERATORS.items():
        function = getattr(generators, name)
        rows[name] = Row(function, arguments, names=_parameters(function))
    metrics = importlib.import_module("advinterp.metrics")
    for name, arguments in _METRICS.items():
        function = getattr(metrics, name)
        parameters = _parameters(function)
        own = dict(map=X) if "map" in parameters else {}
        rows[name] = Row(function, own | arguments, names=parameters)
    linear = importlib.import_module("advinterp.linear")
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.normal(size=(6, 3)))
    y = torch.tensor([1.0, -1, 1, 1, -1, -1]).double()
    known = dict(w=x[0], x=x, y=y, loss=linear.Logistic())
    for name, arguments in _THEORY.items():
        function = getattr(linear, name)
        parameters = _parameters(function)
        own = {key: value for key, value in known.items() if key in parameters}
        rows["linear." + name] = Row(function, own | arguments, names=parameters)
    return rows | _of_data()


def _of_data():
    "What takes data, or what a learner is asked."
    tables = importlib.import_module("advinterp.parts")
    importlib.import_module("advinterp.interpretation")  # gives a learner its verbs
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(40, 3)), columns=list("abc"))
    frame["y"] = np.arange(40) % 2
    dls = tensor_dls(X, Y, X, Y, device="cpu")
    learn = Learner(dls, NET, loss_func=nn.CrossEntropyLoss())
    parameters = ("items", "method", "explain", "output", "batch_size")
    return {
        "bring_data": Row(
            tables.bring_data,
            dict(data=frame, target="y", device="cpu"),
            names=_parameters(tables.bring_data),
        ),
        "Learner.explain": Row(learn.explain, dict(items=X), names=parameters),
        "from_learner": Row(
            importlib.import_module(
                "advinterp.interpretation"
            ).AttributionInterpretation.from_learner,
            dict(learn=learn),
            names=("method", "output", "explain", "batch_size", "idxs", "ds_idx", "learn"),
        ),
    }


ROWS = _rows()

# ---------------------------------------------------------------- values

NAN = math.nan
STRENGTHS = {
    "0": (0.0, True),
    "0.3": (0.3, True),
    "-1": (-1.0, False),
    "nan": (NAN, False),
    "inf": (math.inf, False),
    "word": ("a", False),
    "True": (True, False),
    "None": (None, False),
    "list": ([0.1], None),  # one for each row, where a radius may differ
}
COUNTS = {
    "1": (1, True),
    "3": (3, True),
    "0": (0, False),
    "-1": (-1, False),
    "1.5": (1.5, False),
    "2.0": (2.0, False),
    "nan": (NAN, False),
    "word": ("a", False),
    "True": (True, False),
}
SEEDS = {
    "7": (7, True),
    "2**40": (2**40, True),
    "-1": (-1, False),
    "1.5": (1.5, False),
    "word": ("a", False),
    "list": ([1], False),
}
SHARES = {
    "0.2": (0.2, True),
    "1": (1.0, True),
    "-1": (-1.0, False),
    "1.5": (1.5, False),
    "nan": (NAN, False),
    "word": ("a", False),
}
MAPS = {
    "zero": (torch.zeros_like(X), True),
    "one row less": (X[:3], None),  # wrong beside others
    "None": (None, False),
    "word": ("a", False),
    "number": (3, False),
    "list": ([1.0, 2.0], False),
}
PAIRS = MAPS | {"one row less": (X[:3], False), "another shape": (X[:, :, :4], False)}


class ToDense(nn.Module):
    def forward(self, x):
        return x.expand(-1, 3, -1, -1)


class Calls(nn.Module):
    """A network whose output is handed through a function."""

    def __init__(self, net, function):
        super().__init__()
        self.net, self.function = net, function

    def forward(self, x):
        return self.function(self.net(x))


VALUES = {
    "model": {
        "function": (lambda x: NET(x), None),  # some need a module
        "None": (None, False),
        "number": (3, False),
        "word": ("resnet", False),
        "class": (nn.Linear, False),
        "softmax": (nn.Sequential(NET, nn.Softmax(1)), False),
        "sigmoid": (nn.Sequential(BINARY, nn.Sigmoid()), False),
        "NaN": (Calls(NET, lambda z: z * NAN), False),
        "pixels": (ToDense(), False),
        "tuple": (Calls(NET, lambda z: (z, z)), False),
        "returns None": (Calls(NET, lambda z: None), False),
        "another size": (nn.Linear(5, 3), False),
        "detached": (Calls(NET, torch.detach), None),  # an accuracy needs no gradient
    },
    "x": {
        "double": (X.double(), True),
        "half": (X.half(), True),
        "whole": ((255 * X).byte(), False),
        "array": (X.numpy(), False),
        "list": (X.tolist(), False),
        "pair": ((X, X), False),
        "None": (None, False),
        "word": ("a", False),
        "scalar": (X.sum(), False),
        "rows": (X.flatten(1), None),  # the network flattens its input
        "another size": (torch.rand(4, 1, 5, 5), False),
        "none": (X[:0], None),  # an empty result, or a sentence
        "complex": (X + 1j, False),
        "NaN": (X.masked_fill(X > 0.9, NAN), False),
    },
    "y": {
        "int8": (Y.to(torch.int8), True),
        "column": (Y[:, None], True),
        "list": (Y.tolist(), True),
        "floats": (Y.float(), True),
        "fractions": (Y + 0.5, False),
        "negative": (Y - 1, False),
        "from 1": (Y + 1, False),
        "too few": (Y[:3], False),
        "one-hot": (nn.functional.one_hot(Y, 3), False),
        "words": (["a", "b", "c", "a"], False),
        "NaN": (Y * NAN, False),
        "complex": (Y + 0j, False),
        "word": ("a", False),
        "number": (1, False),
        "dictionary": ({"y": 1}, False),
    },
    "output": {
        "prob": ("prob", True),
        "logprob": ("logprob", True),
        "typo": ("probs", False),
        "number": (3, False),
        "None": (None, False),
    },
    "bounds": {
        "wide": ((-9, 9), True),
        "turned": ((1, 0), False),
        "one": ((0,), False),
        "words": (("a", "b"), False),
        "number": (3, False),
        "NaN": ((NAN, 1), False),
        "narrow": ((0.4, 0.6), False),
    },
    "dual": {
        "None": (None, False),
        "number": (0.1, False),
        "word": ("linf", False),
        "class": (nn.Linear, False),
    },
    "adversary": {"number": (0.1, False), "word": ("pgd", False)},
    "adversaries": {"number": (0.1, False), "none": ([], False), "words": (["pgd"], False)},
    "patch": {
        "4": (4, True),
        "-1": (-1, False),
        "0": (0, False),
        "1.5": (1.5, False),
        "word": ("a", False),
    },
    "level": {"0.9": (0.9, True), "0": (0.0, False), "1.5": (1.5, False), "word": ("a", False)},
    "a": PAIRS,
    "b": PAIRS,
    "map": MAPS,
    "targets": {
        "one row": (torch.ones(1, 8, 8), True),
        "another shape": (torch.ones(3, 3), False),
        "word": ("a", False),
        "NaN": (torch.full((1, 8, 8), NAN), False),
    },
    "weight": {
        "negative": (-torch.ones(1, 8, 8), False),
        "NaN": (torch.full((1, 8, 8), NAN), False),
        "another shape": (torch.ones(3, 3), False),
        "word": ("a", False),
    },
    "strength": {"none": ([], False), "word": ("a", False), "NaN": ([NAN], False)},
    "p_pos": SHARES | {"1": (1.0, None)},
    "momentum": STRENGTHS,
    "noise": STRENGTHS,
    "eps1": STRENGTHS,
    "eps2": STRENGTHS,
    "eps": STRENGTHS,
    "step_size": {k: v for k, v in STRENGTHS.items() if k not in ("0", "None")},
    "seed": SEEDS,
    "k": SHARES,
    "fraction": SHARES,
    "training": {"True": (True, None)},
    "fast": {"word": ("fast", False), "number": (3, False)},
    "loss": {"word": ("logistic", False), "None": (None, False), "number": (3, False)},
    "w": {"word": ("a", False), "None": (None, False), "too long": (torch.ones(7), False)},
}
for _name in ("steps", "n_samples", "batch_size", "restarts", "average", "n_resamples"):
    VALUES[_name] = COUNTS
for _name in ("n", "d", "size", "chunk", "block_dim", "n_proj"):
    VALUES[_name] = {k: v for k, v in COUNTS.items() if k not in ("1", "3")}
VALUES["models"] = {"none": ([], False), "words": (["a", "b"], False), "number": (3, False)}
VALUES |= {
    "items": {
        "one": (X[0], True),
        "array": (X.numpy(), True),
        "lists": (X.tolist(), True),
        "list": (list(X), True),
        "grey without its channel": (X[0, 0], True),
        "bytes": ((255 * X).byte(), True),
        "grey levels": (255 * X, False),
        "None": (None, False),
        "word": ("photo", False),
        "dictionary": ({"x": 1}, False),
        "mixed": ([X[0], "photo"], False),
        "three channels": (torch.rand(2, 3, 8, 8), False),
        "rows": (torch.rand(2, 5), False),
        "NaN": (X * NAN, False),
        "complex": (X + 1j, False),
        "none": (X[:0], False),
        "frame": (pd.DataFrame(np.eye(8)), False),
    },
    "method": {"word": ("saliency", False), "None": (None, False), "number": (3, False)},
    "explain": {
        "2": ("2", True),
        "typo": ("two", False),
        "number": (2, False),
        "None": (None, False),
    },
    "idxs": {
        "some": ([0, 2], True),
        "beyond": ([9], False),
        "negative": ([-1], False),
        "none": ([], False),
        "word": ("a", False),
    },
    "ds_idx": {"0": (0, None), "5": (5, False), "-1": (-1, False), "word": ("a", False)},
    "learn": {"network": (NET, False), "None": (None, False), "word": ("learn", False)},
    "data": {
        "None": (None, False),
        "number": (3, False),
        "name": ("nothing like this", False),
        "empty": (pd.DataFrame(), False),
        "array": (np.eye(5), False),
        "dictionary": ({"a": [1]}, False),
        "a pair": ((np.eye(4), [0, 1, 0]), False),
    },
    "target": {
        "typo": ("Y", False),
        "list": (["y"], False),
        "number": (3, False),
        "series": (pd.Series([0, 1]), False),
        "None": (None, False),
    },
    "device": {"typo": ("cudaa", False), "number": (1.5, False), "meta": ("meta", False)},
    "missing": {"drop": ("drop", True), "mean": ("mean", False), "list": (["drop"], False)},
    "drop": {
        "one": ("a", True),
        "typo": ("A", False),
        "target": ("y", False),
        "number": (1.5, False),
        "None": (None, False),
    },
    "groups": {"one": ("a", None), "typo": ("A", False), "few": ([1, 2], False)},
    "name": {"number": (3, False)},
    "sha256": {"number": (3, False), "another": ("abc", False)},
}
for _name in ("valid", "test"):
    VALUES[_name] = SHARES | {"1": (1.0, False), "0": (0, False)}
VALUES["teacher"] = VALUES["model"]

# rows whose arguments of that name mean something else than elsewhere
OTHERWISE = {
    *(("linear." + name, key) for name in _THEORY for key in ("x", "y", "b")),
    *((name, "n") for name in _GENERATORS),
    *((name, "groups") for name in ("GroupBall",)),
    ("bring_data", "size"),
    *(("WeightNorm()", key) for key in ("model", "x", "y")),  # of the weights alone
}


def changes_of(name):
    """What may be changed in a row: parameter -> labels of values."""
    found = {}
    for parameter in ROWS[name].names:
        if parameter in VALUES and (name, parameter) not in OTHERWISE:
            found[parameter] = list(VALUES[parameter])
    return found


# ---------------------------------------------------------------- outcomes


def outcome(name, changes):
    """(outcome, what was said) of a call with `changes`: pairs (parameter, label)."""
    values = {parameter: VALUES[parameter][label] for parameter, label in changes}
    labels = dict(changes)
    fit_each_other = "a" in labels and labels["a"] == labels.get("b")
    is_wrong = any(right is False for _, right in values.values()) and not fit_each_other
    torch.manual_seed(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ROWS[name](**{parameter: value for parameter, (value, _) in values.items()})
    except Exception as error:  # every kind is judged
        return judged(error, values)
    return ("silent", "") if is_wrong else ("right", "")


def judged(error, values):
    """Is it one sentence of the package's own that names an argument?"""
    said = f"{type(error).__name__}: {error}"
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    is_own = Path(last).is_relative_to(HOME)
    of_python = isinstance(error, TypeError) and "argument" in str(error) and "required" in said
    text = str(error)
    is_sentence = bool(text) and "\n" not in text and len(text) < 500
    names = [*values, "model", "x", "y", "map", "dual", "bounds", "strength"]
    names_one = any(parameter in text for parameter in names)
    is_clear = isinstance(error, (ValueError, TypeError)) and (is_own or of_python)
    return ("clear" if is_clear and is_sentence and names_one else "raw"), said[:300]
