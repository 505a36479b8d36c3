"""What users bring: models, inputs, labels and modes of many kinds, each made of a plain case.

`each_kind` calls a function with all of them and demands the result of the plain call, in the
precision of the input. The plain case is a network of four classes on images.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.data.transforms import Normalize
from fastai.learner import Learner
from fastai.torch_core import TensorCategory, TensorImage
from torch import Tensor, nn

MEAN, STD = [0.4, 0.5], [0.2, 0.3]


def itself(value):
    return value


@dataclass(frozen=True)
class Kind:
    """How one kind is made of the plain case, and the plain case that it must agree with."""

    model: Callable = itself
    x: Callable = itself
    y: Callable = itself
    plain_model: Callable = itself
    plain_x: Callable = itself
    plain_y: Callable = itself
    within: Callable = contextlib.nullcontext

    def brought(self, net, x, y):
        return self.model(net), self.x(x), self.y(y)

    def plain(self, net, x, y):
        return self.plain_model(net), self.plain_x(x), self.plain_y(y)


class Wrapped(nn.Module):
    """A model whose output is handed on in another form."""

    def __init__(self, net, form):
        super().__init__()
        self.net, self.form = net, form

    def forward(self, x):
        return self.form(self.net(x))


class Standardised(nn.Module):
    """A model of raw images."""

    def __init__(self, net, in_place=False):
        super().__init__()
        self.net, self.in_place = net, in_place

    def forward(self, x):
        mean, std = (torch.tensor(values).view(1, -1, 1, 1).to(x) for values in (MEAN, STD))
        if not self.in_place:
            return self.net((x - mean) / std)
        x -= mean
        x /= std
        return self.net(x)


def learner(net):
    """A learner whose loaders normalise."""
    images = TensorImage(torch.rand(4, 2, 12, 12))
    pairs = [*zip(images, range(4))]
    normalize = Normalize.from_stats(MEAN, STD, cuda=False)
    loader = DataLoader(pairs, bs=2, after_batch=[normalize], num_workers=0)
    return Learner(DataLoaders(loader, loader), net, loss_func=nn.CrossEntropyLoss())


def with_logits(z):
    return type("Output", (), dict(logits=z))()


def with_features(z):
    return z, z.mean(), z[:, :, None]


def squeezed_rows(z):
    return z.squeeze(0)


def strided(x):
    return x.transpose(-1, -2).contiguous().transpose(-1, -2)


def rounded(dtype):
    return lambda x: x.to(dtype).float()


def column(y):
    return y[:, None]


def of_two(y):
    return (y > 1).long()


def numpy_labels(y):
    return y.numpy().astype(np.int32)


def output_as(form):
    return Kind(model=partial(Wrapped, form=form))


KINDS = {
    "fastai": Kind(x=TensorImage, y=TensorCategory),
    "float16": Kind(x=torch.Tensor.half, plain_x=rounded(torch.float16)),
    "bfloat16": Kind(x=torch.Tensor.bfloat16, plain_x=rounded(torch.bfloat16)),
    "float64": Kind(x=torch.Tensor.double),
    "non-contiguous": Kind(x=strided),
    "asks for gradients": Kind(x=lambda x: x.clone().requires_grad_()),
    "(B, 1)": Kind(y=column),
    "int8": Kind(y=torch.Tensor.char),
    "bool": Kind(y=lambda y: y > 1, plain_y=of_two),
    "float labels": Kind(y=torch.Tensor.float),
    "numpy labels": Kind(y=numpy_labels),
    "list of labels": Kind(y=torch.Tensor.tolist),
    "series of labels": Kind(y=lambda y: pd.Series(y.numpy(), index=range(9, 9 + len(y)))),
    "tuple": output_as(with_features),
    "dict": output_as(lambda z: dict(logits=z, features=z[:, :1])),
    "object": output_as(with_logits),
    "(B, C, 1, 1)": output_as(lambda z: z[:, :, None, None]),
    "in place": Kind(model=partial(Standardised, in_place=True), plain_model=Standardised),
    "function": Kind(model=lambda net: lambda x: net(x)),
    "learner": Kind(model=learner, plain_model=Standardised),
    "inference mode": Kind(within=torch.inference_mode),
    "no grad": Kind(within=torch.no_grad),
    "one, squeezed": Kind(
        model=partial(Wrapped, form=squeezed_rows),
        x=lambda x: x[:1],
        y=lambda y: y[:1],
        plain_x=lambda x: x[:1],
        plain_y=lambda y: y[:1],
    ),
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def tensors_of(result):
    """The numbers in a result: of a tensor, a number, tuples of these."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, (tuple, list)):
        return [tensor for part in result for tensor in tensors_of(part)]
    return [torch.as_tensor(result)] if not isinstance(result, str) else []


def agree(function, kind, net, x, y):
    """Does the function give for a kind what it gives for the plain case, and leave all alone?"""
    model, brought_x, brought_y = kind.brought(net, x, y)
    x_before = brought_x.detach().clone()
    net_before = {name: value.clone() for name, value in net.state_dict().items()}
    with kind.within():
        inside_x = brought_x.clone() if torch.is_inference_mode_enabled() else brought_x
        found = tensors_of(function(model, inside_x, brought_y))
    wanted = tensors_of(function(*kind.plain(net, x, y)))
    assert len(found) == len(wanted)
    for ours, plain in zip(found, wanted):
        assert type(ours) is Tensor
        if plain.shape in (x.shape, x[:1].shape) and plain.is_floating_point():
            assert ours.dtype == brought_x.dtype
        is_half = ours.dtype in (torch.float16, torch.bfloat16)
        tolerance = dict(rtol=2e-2, atol=2e-2) if is_half else dict(rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(ours.double(), plain.double(), equal_nan=True, **tolerance)
    assert torch.equal(brought_x.detach(), x_before)
    assert all(torch.equal(value, net_before[name]) for name, value in net.state_dict().items())
    assert net.training
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
