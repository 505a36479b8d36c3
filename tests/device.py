"""A second device without a GPU: tensors that claim to be on one and hold real values.

Within `standing_in` an operation on tensors of both devices raises `MixedDevicesError`, as on a
GPU, and every wait for the device is counted by the function of the package that asked for it.
Torch's own fake tensors have no values, and on `cuda` they stop in autograd without a driver.
"""

import contextlib
import copy
import sys
from collections import Counter
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

# Autograd runs it without a driver, and no tensor of the package or its tests is there otherwise.
DEVICE = torch.device("meta")
HOST = torch.device("cpu")


class MixedDevicesError(RuntimeError):
    """An operation got tensors, or a generator, of two devices."""


class DeviceTensor(Tensor):
    """A tensor that claims to be on `DEVICE`; its values are in `held`, on the host."""

    is_meta = False  # it has values

    @staticmethod
    def __new__(cls, held):
        return Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=DEVICE,
        )

    def __init__(self, held):
        self.held = held

    def __repr__(self):
        return f"DeviceTensor({self.held!r})"

    def tolist(self):
        return self.detach().to(HOST).tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _carried_out(func, args, kwargs or {}, Counter())


class Watch(TorchDispatchMode):
    """Within it operations with the device are carried out, and waits for it are counted."""

    def __init__(self):
        super().__init__()
        self.waits = Counter()  # by "module.function" of the package, "outside" for all others

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _carried_out(func, args, kwargs or {}, self.waits)


@contextlib.contextmanager
def standing_in():
    """Context in which `DEVICE` can be used like a GPU; gives the `Watch`."""
    with mock.patch.object(torch, "Generator", _Generator), _FromHost(), Watch() as watch:
        yield watch


def on_device(value):
    """A copy on the device: of a tensor, of a module, of all in a structure."""
    return tree_map_only((Tensor, nn.Module), _moved, value)


def _moved(value):
    if isinstance(value, Tensor):
        return DeviceTensor(value.detach().clone())
    net = copy.deepcopy(value)
    for module in net.modules():
        for name, parameter in module.named_parameters(recurse=False):
            held = DeviceTensor(parameter.detach())
            module._parameters[name] = nn.Parameter(held, parameter.requires_grad)
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = DeviceTensor(buffer)
    return net


def values_of(value):
    """The same structure with plain tensors on the host."""
    return tree_map_only(Tensor, _held, value)


def _held(tensor):
    return tensor.held if isinstance(tensor, DeviceTensor) else tensor


class _Generator(torch.Generator):
    """A generator that says to be where it was asked for; its numbers are those of the host."""

    def __new__(cls, device="cpu"):
        asked = torch.device(device)
        self = super().__new__(cls, HOST if asked == DEVICE else asked)
        self._asked = asked
        return self

    def __init__(self, device="cpu"):
        super().__init__()

    @property
    def device(self):
        return self._asked


class _FromHost(TorchFunctionMode):
    """What is made of numbers is made on the host and copied: torch makes no values on `meta`.

    The devices of generators are looked at here, as operations get them without their class.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if kwargs.get("generator") is not None:
            _check_generator(func, args, **kwargs)
        is_new = func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], Tensor)
        if is_new and _is_ours(kwargs.get("device")):
            return func(*args, **dict(kwargs, device=HOST)).to(DEVICE)
        return func(*args, **kwargs)


def _is_ours(device):
    return device is not None and torch.device(device) == DEVICE


def _carried_out(func, args, kwargs, waits):
    """The result of an operation of the dispatcher, on the device where it belongs there."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, DeviceTensor)]
    others = [tensor for tensor in tensors if not isinstance(tensor, DeviceTensor)]
    target = kwargs.get("device")
    if target is None:
        stays = bool(ours)
    else:
        stays = _is_ours(target)
        kwargs = dict(kwargs, device=HOST)
    if not ours and not stays:
        return func(*args, **kwargs)
    is_transfer = _is_transfer(func, ours, others, stays)
    if not is_transfer:
        _check_mixed(func, ours, others)
    if is_transfer or _depends_on_values(func, args):
        waits[_asked_by()] += 1
    out = func(*tree_map_only(Tensor, _held, args), **tree_map_only(Tensor, _held, kwargs))
    if not stays:
        return out
    out = tree_map_only(Tensor, _wrapped, out)
    return return_and_correct_aliasing(func, args, kwargs, out) if ours else out


def _wrapped(tensor):
    return tensor if isinstance(tensor, DeviceTensor) else DeviceTensor(tensor)


def _is_transfer(func, ours, others, stays):
    """Is it a copy from one device to the other?"""
    if func is torch.ops.aten._to_copy.default:
        return bool(ours) != stays
    return func is torch.ops.aten.copy_.default and bool(ours) and bool(others)


def _check_mixed(func, ours, others):
    """Refuse host tensors beside those of the device, but single numbers where a GPU takes them."""
    takes_numbers = torch.Tag.pointwise in func.tags or func is torch.ops.aten.fill_.Tensor
    mixed = [tensor for tensor in others if tensor.ndim or not takes_numbers]
    if ours and mixed:
        shapes = [tuple(tensor.shape) for tensor in mixed]
        raise MixedDevicesError(f"{func}, asked by {_asked_by()}: {shapes} come from the host")


def _check_generator(func, args, generator, device=None, **_):
    """Refuse a generator that is not where the random numbers are to be."""
    if device is None:
        device = args[0].device if isinstance(args[0], Tensor) else HOST
    if generator.device != torch.device(device):
        raise MixedDevicesError(
            f"{func.__name__} on {device}, asked by {_asked_by()}: generator on {generator.device}"
        )


def _depends_on_values(func, args):
    """Does the host have to know values before it can go on?"""
    if func in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default):
        is_filled = len(args) > 2 and args[2].numel() == 1  # a GPU does it in place
        masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
        return bool(masks) and not is_filled
    waiting = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
    return not waiting.isdisjoint(func.tags)


def _asked_by():
    """The innermost function of the package that is at work, as "module.function"."""
    frame = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        name = frame.f_code.co_name
        if module.startswith("advinterp.") and not name.startswith("<"):  # `<genexpr>`
            return f"{module.removeprefix('advinterp.')}.{name}"
        frame = frame.f_back
    return "outside"
