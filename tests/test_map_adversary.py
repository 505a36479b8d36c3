"""Attacks on maps: what people bring, side effects, threads, and what is said of odd gradients."""

import re
import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advinterp.attribution import saliency
from advinterp.map_adversary import map_attack, paper_c_map_attack


def smooth(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 3)).to(dtype)


def data(n=8):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, 12, generator=generator), torch.arange(n) % 3


def share_of_top(model, x0, x, y, k=0.4):
    """The mass of the map at `x` among the largest share `k` of the map at `x0`."""
    own = saliency(model, x0, y, absolute=True)
    top = own >= own.quantile(1 - k, dim=1, keepdim=True)
    moved = saliency(model, x, y, absolute=True)
    return (moved * top).sum(1) / moved.sum(1)


class Outputs(nn.Module):
    def __init__(self, net, how):
        super().__init__()
        self.net, self.how = net, how

    def forward(self, x):
        return self.how(self.net(x))


def learner(net):
    fastai = pytest.importorskip("fastai.learner")
    loaders = pytest.importorskip("fastai.data.core").DataLoaders([], [])
    return fastai.Learner(loaders, net, loss_func=nn.CrossEntropyLoss())


MODELS = {
    "tuple": lambda net: Outputs(net, lambda z: (z, z.sum())),
    "dict": lambda net: Outputs(net, lambda z: {"logits": z, "loss": z.sum()}),
    "in place": lambda net: Outputs(net, lambda z: z.mul_(1.0)),
    "function": lambda net: lambda x: net(x),
    "parallel": nn.DataParallel,
    "compiled": lambda net: torch.compile(net, backend="aot_eager"),
    "learner": learner,
}


@pytest.mark.parametrize("attack", [map_attack, paper_c_map_attack])
@pytest.mark.parametrize("kind", MODELS)
def test_models_that_people_bring(kind, attack):
    net, (x, y) = smooth(), data()
    expected = attack(net, x, y, 0.5)
    assert (share_of_top(net, x, expected, y) < share_of_top(net, x, x, y)).any()
    torch.testing.assert_close(attack(MODELS[kind](net), x, y, 0.5), expected)
    soft = smooth(1)
    expected = attack(net, x, y, 0.5, attack_model=soft)
    found = attack(net, x, y, 0.5, attack_model=MODELS[kind](soft))
    torch.testing.assert_close(found, expected)
    assert all(p.requires_grad and p.grad is None for p in [*net.parameters(), *soft.parameters()])


@pytest.mark.parametrize("around", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_inputs_and_labels_that_people_bring(dtype, around):
    fastai = pytest.importorskip("fastai.torch_core")
    net = smooth()
    for n in (0, 1, 8):
        x, y = (part[:n] for part in data())
        x = x.to(dtype)
        expected = map_attack(net, x.float(), y, 0.5, bounds=(0, 1)).to(dtype)
        with around():
            wide = torch.stack([x, x], -1)[..., 0]
            labels = (y[:, None].float(), fastai.TensorCategory(y), y.numpy(), y.int())
            for given in labels:
                found = map_attack(net, wide, given, 0.5, bounds=(0, 1))
                assert type(found) is torch.Tensor
                assert torch.equal(found, expected)
            image = fastai.TensorImage(wide)
            found = map_attack(net, image, y, 0.5, bounds=(0, 1))
            assert found.dtype == image.dtype
            assert torch.equal(found, expected.to(image.dtype))


def test_attention_has_a_map_that_moves():
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.head = nn.Linear(4, 12), nn.Linear(4, 3)

        def forward(self, x):
            q, k, v = self.qkv(x.unflatten(1, (3, 4))).chunk(3, -1)
            return self.head(F.scaled_dot_product_attention(q, k, v).mean(1))

    torch.manual_seed(0)
    net, (x, y) = Attends(), data()
    moved = map_attack(net, x, y, 0.5)
    assert (share_of_top(net, x, moved, y) < share_of_top(net, x, x, y)).any()


def test_from_four_threads():
    torch.manual_seed(0)
    layers = [nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(), nn.Linear(8, 3)]
    net, (x, y) = nn.Sequential(*layers).train(), data()
    expected = [map_attack(net, x, y, eps) for eps in (0.1, 0.2, 0.3, 0.4)]
    start, differ = threading.Barrier(4), []

    def attack(i):
        start.wait()
        found = [map_attack(net, x, y, 0.1 * (i + 1)) for _ in range(4)]
        differ.extend(not torch.allclose(z, expected[i]) for z in found)

    threads = [threading.Thread(target=attack, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert differ == [False] * 16
    assert all(module.training for module in net.modules())
    assert all(p.requires_grad for p in net.parameters())
    assert net[1].num_batches_tracked == 0


def test_a_gradient_that_is_lost_is_said_to_be():
    net, (x, y) = smooth(), data()

    def kinked(z):
        return net(z) + (0 * z[:, :1]).abs().pow(1.5)  # no second derivative

    with pytest.warns(UserWarning, match="its gradient is NaN or infinite somewhere, in 10 of 10"):
        found = map_attack(kinked, x, y, 0.5)
    assert found.isfinite().all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        map_attack(net, x, y, 0.5)


def test_what_is_refused():
    net, (x, y) = smooth(), data()
    for args, kind, message in (
        ((net, x, y[:3], 0.5), ValueError, "y has shape (3,): expected 8 class indices"),
        ((net, x, y + 5, 0.5), ValueError, "labels from 5 to 7"),
        ((net, x, None, 0.5), TypeError, "y=None: expected 8 class indices"),
        ((net, x.long(), y, 0.5), TypeError, "x.float()"),
        ((nn.Tanh, x, y, 0.5), TypeError, "of this class"),
        ((nn.Sequential(net, nn.Softmax(1)), x, y, 0.5), ValueError, "probabilities"),
        ((nn.Linear(5, 3), x, y, 0.5), ValueError, "x of shape (8, 12)"),
        ((nn.Linear(12, 3), x, y, 0.5), ValueError, "does not change with x"),
    ):
        with pytest.raises(kind, match=re.escape(message)):
            map_attack(*args)
    with pytest.raises(ValueError, match=re.escape("attack_model takes torch.float64")):
        map_attack(net, x, y, 0.5, attack_model=smooth(dtype=torch.double))
