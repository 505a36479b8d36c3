"""The border table: every public function with every kind of model, label and input.

A cell demands the result of the plain call, or one clear sentence that names the argument. The
rows come from `__all__` of the modules, so that a new function is in the table by default.
"""

import dataclasses
import importlib
import inspect
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.torch_core import TensorCategory, TensorImage
from torch import nn

from advinterp.adversary import PGD, Adversary, DualAdversary, Harmonise, OneStep
from advinterp.attribution import saliency
from advinterp.cheap import TRADES, n_fgsm
from advinterp.duals import L1, LInfBall
from advinterp.metrics import gini
from advinterp.penalty import (
    GradNorm,
    JacobianNorm,
    Penalty,
    ScoreMatching,
    StableIG,
    TargetMap,
    WeightNorm,
)
from advinterp.priors import GradientStability, MapPenalty, Masked, RightReasons

MODULES = [
    "core",
    "attribution",
    "adversary",
    "penalty",
    "map_adversary",
    "priors",
    "cheap",
    "evaluate",
    "stability",
    "certificates",
    "fidelity",
]
ATTACK = PGD(LInfBall(0.1), steps=2, random_start=False)
SEEDED_TRADES = TRADES(LInfBall(0.1), steps=2)
SEEDED_TRADES.call_seed = lambda *arguments: 0  # a function has no weights to seed the start

torch.manual_seed(0)
NET = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Softplus(), nn.Linear(8, 3)).eval()
BINARY = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Softplus(), nn.Linear(8, 1)).eval()
X = torch.rand(4, 1, 8, 8)
Y = torch.tensor([0, 1, 2, 0])
Y01 = torch.tensor([0, 1, 1, 0])

# what a function asks for besides (model, x, y), by the name of the parameter
MORE = {
    "map": lambda x: x,
    "background": lambda x: x,
    "x_adv": lambda x: x + 0.01,
    "eps": lambda x: 0.1,
    "eps_grid": lambda x: [0.05, 0.1],
    "adversary": lambda x: ATTACK,
    "adversaries": lambda x: [ATTACK],
    "dual": lambda x: LInfBall(0.1),
    "ball": lambda x: LInfBall(0.1),
}
# small numbers where the default takes long
QUICK = {
    "steps": 3,
    "n_samples": 3,
    "average": 2,
    "batch_size": 3,
    "sigma": 0.8,
    "progress": False,
}
INSTANCES = {
    "OneStep": OneStep(LInfBall(0.1)),
    "PGD": ATTACK,
    "Harmonise": Harmonise(0.1, torch.ones(1, 8, 8)),
    "GradNorm": GradNorm(L1(0.1)),
    "JacobianNorm": JacobianNorm(),
    "TargetMap": TargetMap(torch.ones(1, 8, 8)),
    "StableIG": StableIG(0.1, steps=2),
    "WeightNorm": WeightNorm(1),
    "ScoreMatching": ScoreMatching(),
    "MapPenalty": MapPenalty(saliency, gini),
    "RightReasons": RightReasons(torch.ones(1, 8, 8)),
    "TRADES": SEEDED_TRADES,
    "NoisyStep": n_fgsm(0.1, noise=0.0),  # a function has no weights to seed the noise
    "GradientStability": GradientStability(LInfBall(0.1)),
    "Masked": Masked(ATTACK, torch.ones(1, 8, 8)),
}
ABSTRACT = (Adversary, DualAdversary, Penalty)
# not functions of (model, x, y): what they are
ELSEWHERE = {
    "captum_map": "takes captum's method first; tested with captum",
    "label_randomization": "takes a function that trains",
    "bring": "the entrance itself",
    "compare": "takes data and names of methods, no batch; tested in test_comparison, test_parts",
    "show_maps": "a verb of learners, which takes what `explain` takes; tested in test_explain",
    "feature_visualization": "has no x",
    "AutoAttack": "needs torchattacks",
    "fill_tuned": "trains a copy of a module",
    "TeacherMaps": "has no maps before .against(teacher), which gives a TargetMap",
}


def is_adversary_or_penalty(value) -> bool:
    return inspect.isclass(value) and issubclass(value, (Adversary, Penalty))


def public_functions() -> dict:
    """name -> the function or class, of all that take a model, inputs and labels."""
    found = {}
    for module_name in MODULES:
        module = importlib.import_module(f"advinterp.{module_name}")
        for name in module.__all__:
            value = getattr(module, name)
            if value in ABSTRACT or name in ELSEWHERE:
                continue
            if is_adversary_or_penalty(value):
                found[name] = value
            elif inspect.isfunction(value):
                names = set(inspect.signature(value).parameters)
                if {"x", "y"} <= names and names & {"model", "models", "teacher"}:
                    found[name] = value
    return found


FUNCTIONS = public_functions()
TAKES_NO_SIGMA = (  # QUICK's is that of a window
    "smoothgrad",
    "vargrad",
    "sparsified_smoothgrad",
    "moreau_grad",
    "smoothgrad_targets",
)


def quick_arguments(name, parameters, x):
    """What a function needs besides model, x and y, small enough to be quick."""
    arguments = {key: value for key, value in QUICK.items() if key in parameters}
    if name in TAKES_NO_SIGMA:
        arguments.pop("sigma")
    for key, parameter in parameters.items():
        if key in MORE and parameter.default is parameter.empty:
            arguments[key] = MORE[key](x)
    return arguments


def call(name, model, x, y):
    """Call a public function with the little that it needs besides model, x and y."""
    torch.manual_seed(0)
    if is_adversary_or_penalty(FUNCTIONS[name]):
        return INSTANCES[name](model, x, y)
    parameters = inspect.signature(FUNCTIONS[name]).parameters
    arguments = quick_arguments(name, parameters, x)
    if "models" in parameters:
        return FUNCTIONS[name]([model, model], x, y, **arguments)
    key = "teacher" if "teacher" in parameters else "model"
    return FUNCTIONS[name](**{key: model}, x=x, y=y, **arguments)


def tensors(result) -> list:
    """The numbers of a result of any form, as tensors."""
    if isinstance(result, torch.Tensor):
        return [result.detach().as_subclass(torch.Tensor)]
    if isinstance(result, (int, float)):
        return [torch.tensor(float(result))]
    if dataclasses.is_dataclass(result):
        fields = dataclasses.fields(result)
        return [part for f in fields for part in tensors(getattr(result, f.name))]
    if isinstance(result, (tuple, list)):
        return [part for value in result for part in tensors(value)]
    return []


def assert_equal(result, expected, tolerance):
    found, wanted = tensors(result), tensors(expected)
    assert len(found) == len(wanted)
    assert found or result is expected or result == expected
    for one, other in zip(found, wanted):
        assert one.shape == other.shape
        close = torch.allclose(
            one.double(), other.double(), rtol=tolerance, atol=tolerance, equal_nan=True
        )
        assert close, (one - other).abs().max()


# ---------------------------------------------------------------- kinds of models


class Returns(nn.Module):
    """A net whose output comes in another form."""

    def __init__(self, net, form):
        super().__init__()
        self.net = net
        self.form = form

    def forward(self, x):
        return self.form(self.net(x))


class WritesInput(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        x *= 2
        return self.net(x / 2)


def learner_of(net):
    data = torch.utils.data.TensorDataset(X, Y)
    loader = DataLoader(data, bs=2)
    return Learner(DataLoaders(loader, loader), net, loss_func=nn.CrossEntropyLoss())


MODELS = {
    "function": lambda net: lambda x: net(x),
    "tuple": lambda net: Returns(net, lambda z: (z, z.mean())),
    "dict": lambda net: Returns(net, lambda z: dict(logits=z, extra=z.mean())),
    "object": lambda net: Returns(net, lambda z: SimpleNamespace(logits=z)),
    "compiled": lambda net: torch.compile(net, backend="eager"),
    "data parallel": nn.DataParallel,
    "writes its input": WritesInput,
    "Learner": learner_of,
    "trailing ones": lambda net: Returns(net, lambda z: z[:, :, None, None]),
    "tensor subclass": lambda net: Returns(net, TensorImage),
}
# a function has no layers, a jit module no hooks: refused in a sentence, not answered
NEEDS_A_MODULE = {"WeightNorm", "cascading_randomization", "deep_shap"}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_model(name, kind):
    x = 2 * X if kind == "Learner" else X  # in [0, 1] its attacks have bounds, see test_units
    expected = call(name, NET, x, Y)
    model = MODELS[kind](NET)
    try:
        result = call(name, model, x.clone(), Y)
    except (ValueError, TypeError) as error:
        assert name in NEEDS_A_MODULE, error
        assert "model" in str(error)
        return
    assert_equal(result, expected, 1e-5)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_flat_logits(name):
    """One logit as `(B,)`, `(B, 1)` and, for a batch of one, as a number."""
    expected = call(name, BINARY, X, Y01)
    flat = Returns(BINARY, lambda z: z[:, 0])
    squeezed = Returns(BINARY, lambda z: z.squeeze())
    assert_equal(call(name, flat, X, Y01), expected, 1e-5)
    assert_equal(call(name, squeezed, X, Y01), expected, 1e-5)
    one = call(name, BINARY, X[:1], Y01[:1])
    assert_equal(call(name, squeezed, X[:1], Y01[:1]), one, 1e-5)
    three = call(name, NET, X[:1], Y[:1])
    assert_equal(call(name, Returns(NET, torch.squeeze), X[:1], Y[:1]), three, 1e-5)


# ---------------------------------------------------------------- kinds of labels

LABELS = {
    "(B, 1)": lambda y: y[:, None],
    "int8": lambda y: y.to(torch.int8),
    "uint8": lambda y: y.byte(),
    "int32": lambda y: y.int(),
    "whole floats": lambda y: y.float(),
    "half floats (B, 1)": lambda y: y.half()[:, None],
    "TensorCategory": TensorCategory,
    "array": lambda y: y.numpy(),
    "series": lambda y: pd.Series(y.numpy(), index=[7, 5, 3, 1]),
    "list": lambda y: y.tolist(),
}


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_labels(name, kind):
    assert_equal(call(name, NET, X, LABELS[kind](Y)), call(name, NET, X, Y), 0)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_bool_labels(name):
    assert_equal(call(name, BINARY, X, Y01.bool()), call(name, BINARY, X, Y01), 0)


BAD_LABELS = {
    "from 1": (NET, Y + 1, "y - 1"),
    "negative": (NET, Y - 1, "labels from -1"),
    "-1 and 1": (BINARY, 2 * Y01 - 1, "(y + 1) // 2"),
    "1 and 2": (BINARY, Y01 + 1, "y - 1"),
    "fractions": (NET, Y + 0.5, "fractions"),
    "one-hot": (NET, nn.functional.one_hot(Y, 3), "argmax"),
    "too few": (NET, Y[:3], "4 class indices"),
    "words": (NET, ["a", "b", "c", "a"], "number the classes"),
}
# the map of class 1 for every row, a norm of the weights: the model is not asked for these labels
IGNORES_LABELS = {"paper_table_ig", "WeightNorm"}


@pytest.mark.parametrize("kind", BAD_LABELS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_bad_labels(name, kind):
    net, labels, said = BAD_LABELS[kind]
    if name in IGNORES_LABELS:
        return
    with pytest.raises((ValueError, TypeError), match="y") as caught:
        call(name, net, X, labels)
    assert said in str(caught.value)


# ---------------------------------------------------------------- kinds of inputs

INPUTS = {
    "TensorImage": (TensorImage, 0),
    "not contiguous": (lambda x: x.transpose(2, 3).contiguous().transpose(2, 3), 1e-6),
    "float64": (lambda x: x.double(), 1e-6),
    "float16": (lambda x: x.half(), 2e-3),
    "bfloat16": (lambda x: x.bfloat16(), 2e-2),
    "requires grad": (lambda x: x.clone().requires_grad_(), 0),
}


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_inputs(name, kind):
    change, tolerance = INPUTS[kind]
    given = change(X)
    plain = given.detach().as_subclass(torch.Tensor).float().contiguous()
    result = call(name, NET, given, Y)
    assert_equal(result, call(name, NET, plain, Y), tolerance)
    like_x = [part for part in tensors(result) if part.shape == X.shape]
    assert all(part.dtype == given.dtype for part in like_x if part.is_floating_point())


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_mode_around_the_call(name, mode):
    expected = call(name, NET, X, Y)
    with mode():
        assert_equal(call(name, NET, X.clone(), Y.clone()), expected, 1e-6)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_batch_of_one(name):
    assert all(part.isfinite().all() for part in tensors(call(name, NET, X[:1], Y[:1])))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_batch_of_none(name):
    """An empty result, or a sentence about x."""
    try:
        result = call(name, NET, X[:0], Y[:0])
    except ValueError as error:
        assert "x" in str(error)
        return
    assert all(
        len(part) == 0 or part.ndim == 0 or name == "map_robustness" for part in tensors(result)
    )


# ---------------------------------------------------------------- what is refused


class Sized(nn.Module):
    def forward(self, x):
        return nn.functional.pad(x, (1, 1))


BAD_MODELS = {
    "sigmoid": (nn.Sequential(BINARY, nn.Sigmoid()), Y01, "sigmoid"),
    "softmax": (nn.Sequential(NET, nn.Softmax(1)), Y, "softmax"),
    "functional sigmoid": (Returns(BINARY, torch.sigmoid), Y01, "sigmoid"),
    "NaN": (Returns(NET, lambda z: z * math.nan), Y, "NaN"),
    "dense": (Returns(NET, lambda z: z[:, :, None, None].expand(-1, -1, 8, 8)), Y, "3, 8, 8)"),
    "two outputs": (Returns(NET, lambda z: (z, 2 * z)), Y, "lambda x: model(x)[0]"),
    "a class": (nn.Linear, Y, "model"),
    "no model": (3, Y, "model=3"),
    "another size": (nn.Sequential(nn.Flatten(), nn.Linear(5, 3)), Y, "x of shape (4, 1, 8, 8)"),
}


@pytest.mark.parametrize("kind", BAD_MODELS)
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "WeightNorm"])
def test_bad_model(name, kind):
    model, labels, said = BAD_MODELS[kind]
    with pytest.raises((ValueError, TypeError), match="model") as caught:
        call(name, model, X, labels)
    if kind != "another size":  # the batch that a function tries first may be a part of x
        assert said in str(caught.value)


BAD_INPUTS = {
    "integers": (lambda: (255 * X).byte(), "x"),
    "array": (lambda: X.numpy(), "x"),
    "number": (lambda: X.sum(), "x"),
}


@pytest.mark.parametrize("kind", BAD_INPUTS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_bad_inputs(name, kind):
    make, said = BAD_INPUTS[kind]
    with pytest.raises((ValueError, TypeError), match=said):
        call(name, NET, make(), Y)


# ---------------------------------------------------------------- what stays as it was


class Counted(nn.Module):
    """A net with everything that a call could disturb."""

    def __init__(self):
        super().__init__()
        self.flatten = nn.Flatten()
        self.first = nn.Linear(64, 8)
        self.norm = nn.BatchNorm1d(8)
        self.act = nn.Softplus()
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.drop(self.act(self.norm(self.first(self.flatten(x))))))


def state_of(net, x, y) -> list:
    parameters = [(p.detach().clone(), p.requires_grad, p.grad) for p in net.parameters()]
    buffers = [buffer.clone() for buffer in net.buffers()]
    modes = [module.training for module in net.modules()]
    streams = [torch.get_rng_state(), np.random.get_state()[1].copy()]
    return [parameters, buffers, modes, streams, x.clone(), y.clone(), x.requires_grad]


def same(one, other) -> bool:
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return bool((one == other).all())
    return one == other


class Fails(Counted):
    def forward(self, x):
        self.norm(self.first(self.flatten(x)))
        raise ArithmeticError("the model's own error")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make", [Counted, Fails])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_nothing_is_disturbed(name, make, training):
    if make is Fails and name == "WeightNorm":
        return  # it does not call the model
    torch.manual_seed(0)
    net = make().train(training)
    x, y = X.clone(), Y.clone()
    torch.manual_seed(0)
    is_penalty = is_adversary_or_penalty(FUNCTIONS[name]) and issubclass(FUNCTIONS[name], Penalty)
    if is_penalty and training:
        return  # a penalty is part of training: it runs in the model's mode
    if name in ("ScoreMatching", "GradientStability"):
        return  # they draw from torch's generator, as dropout does
    if name == "input_grad" and training:
        return  # it calls the model as it is, in its mode, like `model(x)`
    before = state_of(net, x, y)
    if make is Fails:
        with pytest.raises(ArithmeticError):
            call(name, net, x, y)
    else:
        call(name, net, x, y)
    assert same(state_of(net, x, y), before)


# ---------------------------------------------------------------- the table itself


def test_every_class_has_an_instance():
    classes = {name for name, value in FUNCTIONS.items() if inspect.isclass(value)}
    assert classes == set(INSTANCES)


def test_the_table_is_large():
    """Functions times kinds; what stands elsewhere is named with its reason."""
    kinds = [MODELS, LABELS, BAD_LABELS, INPUTS, BAD_MODELS, BAD_INPUTS]
    assert len(FUNCTIONS) >= 30
    assert sum(map(len, kinds)) >= 40
    assert all(ELSEWHERE.values())
