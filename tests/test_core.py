"""The entrance to everything else: losses per example, checks of arguments."""

import copy
import functools
import re
import threading
import time

import numpy as np
import pytest
import torch
from torch import nn

from advinterp.adversary import PGD
from advinterp.core import (
    as_labels,
    bring,
    check_choice,
    check_count,
    class_output,
    differentiable_attention,
    entrance,
    frozen,
    input_grad,
    predicted,
    task_loss,
    top_count,
    unreduced,
)
from advinterp.duals import LInfBall
from advinterp.evaluate import accuracy


def batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 3, generator=generator)
    return logits, torch.arange(6) % 3


class Wrapped(nn.Module):
    """A loss whose `reduction` lives in a part of it."""

    def __init__(self):
        super().__init__()
        self.inner = nn.CrossEntropyLoss()

    @property
    def reduction(self):
        return self.inner.reduction

    @reduction.setter
    def reduction(self, value):
        self.inner.reduction = value

    def forward(self, logits, y):
        return self.inner(logits, y)


class Watched(nn.CrossEntropyLoss):
    """A loss that notes every write to its `reduction` after it was made."""

    def __init__(self):
        super().__init__()
        self.writes = []

    def __setattr__(self, name, value):
        if name == "reduction" and "writes" in vars(self):
            self.writes.append((id(self), value))
        super().__setattr__(name, value)


def flattened():
    return pytest.importorskip("fastai.losses").CrossEntropyLossFlat()


@pytest.mark.parametrize("make", [nn.CrossEntropyLoss, Wrapped, Watched, flattened])
def test_a_loss_is_used_without_its_reduction_and_not_written_to(make):
    loss_func = make()
    before = copy.deepcopy(vars(loss_func))
    logits, y = batch()
    each = unreduced(loss_func)(logits, y).as_subclass(torch.Tensor)
    torch.testing.assert_close(each, task_loss(logits, y))
    assert loss_func.reduction == "mean"
    assert vars(loss_func).keys() == before.keys()
    assert loss_func(logits, y).ndim == 0
    if make is Watched:
        assert id(loss_func) not in [owner for owner, _ in loss_func.writes]


def test_a_compiled_loss():
    loss_func = torch.compile(nn.CrossEntropyLoss(), backend="eager")
    logits, y = batch()
    assert torch.equal(unreduced(loss_func)(logits, y), task_loss(logits, y))
    assert loss_func.reduction == "mean"


def test_a_loss_that_another_thread_uses_keeps_its_reduction():
    """The training loop of another thread sees a mean at every moment of an attack."""
    logits, y = batch()
    inside, seen = threading.Event(), threading.Event()

    class Slow(nn.CrossEntropyLoss):
        def forward(self, logits, y):
            inside.set()
            seen.wait(10)
            return super().forward(logits, y)

    loss_func = Slow()
    attack = threading.Thread(target=lambda: unreduced(loss_func)(logits, y))
    attack.start()
    assert inside.wait(10)
    assert loss_func.reduction == "mean"
    seen.set()
    attack.join()


def test_functions_and_losses_of_their_own_are_called_as_they_are():
    logits, y = batch()
    assert unreduced(None) is task_loss
    doubled = unreduced(lambda logits, y: 2 * task_loss(logits, y)[:, None])
    assert torch.equal(doubled(logits, y), 2 * task_loss(logits, y))

    def mean(logits, y):
        return task_loss(logits, y).mean()

    mean.reduction = "mean"  # a function: only it knows what the word means
    with pytest.raises(ValueError, match="one loss per example"):
        unreduced(mean)(logits, y)
    assert mean.reduction == "mean"


def test_the_parts_of_an_example_are_added():
    logits, y = batch()
    parts = unreduced(lambda logits, y: logits.square())(logits, y)
    torch.testing.assert_close(parts, logits.square().sum(1))


@pytest.mark.parametrize("output", ["logit", "prob", "logprob", "loss"])
def test_one_logit_is_the_log_odds_of_two(output):
    z = torch.tensor([0.3, -0.2, 2.0, -3.0], dtype=torch.double)
    y = torch.tensor([1, 1, 0, 0])
    two = torch.stack([-z / 2, z / 2], 1)
    expected = class_output(two, y, output)
    if output == "logit":
        expected = 2 * expected
    for logits in (z, z[:, None]):
        torch.testing.assert_close(class_output(logits, y, output), expected)
        assert predicted(logits).tolist() == predicted(two).tolist() == [1, 0, 1, 0]


def test_a_share_is_at_least_one_entry():
    rows = torch.tensor([[0.0, 0.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0, 5.0]])
    assert top_count(rows, 0.01).tolist() == [1, 1]
    assert top_count(rows, 0.6).tolist() == [3, 3]
    assert top_count(rows, 0.6, nonzero=True).tolist() == [2, 3]
    assert top_count(torch.zeros(1, 5), 0.6, nonzero=True).tolist() == [1]


def test_flags_and_modes_come_back():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 2))
    model[0].weight.requires_grad_(False)
    model[1].eval()

    def state():
        flags = [parameter.requires_grad for parameter in model.parameters()]
        return flags, [module.training for module in model.modules()]

    before = state()
    with pytest.raises(KeyError), frozen(model, training=False):
        assert state() == ([False] * 4, [False] * 4)
        raise KeyError
    assert state() == before


def test_the_gradient_is_that_of_each_example():
    x, y = batch()
    model = nn.Linear(3, 3)
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))
    together = input_grad(model, x, y, weighted)[0]
    singly = [input_grad(model, x[i : i + 1], y[i : i + 1], weighted)[0] for i in range(6)]
    torch.testing.assert_close(together, torch.cat(singly))


class InPlace(nn.Linear):
    """Writes into its input and returns a tuple."""

    def forward(self, x):
        x -= 0.5
        return super().forward(x), x.sum()


def brought_in_other_forms(x, y):
    """The same batch and labels, as people have them: `(x, y)` by name."""
    fastai = pytest.importorskip("fastai.torch_core")
    wide = torch.stack([x, x], -1)
    return {
        "plain": (x, y),
        "subclass": (fastai.TensorImage(x), fastai.TensorCategory(y)),
        "not contiguous": (wide[..., 0], y),
        "leaf": (x.clone().requires_grad_(), y),
        "double": (x.double(), y.int()),
        "column": (x, y[:, None].to(torch.int8)),
        "floats": (x, y.float()),
        "array": (x, y.numpy()),
        "list": (x, y.tolist()),
    }


@pytest.mark.parametrize("name", brought_in_other_forms(torch.rand(1, 3), torch.tensor([0])))
@pytest.mark.parametrize("around", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_the_gradient_of_what_people_bring(name, around):
    x, y = batch()
    torch.manual_seed(0)
    model = InPlace(3, 3)
    linear = nn.Linear(3, 3)
    linear.load_state_dict(model.state_dict())
    expected = input_grad(lambda x: linear(x - 0.5), x, y)
    with around():
        given, labels = brought_in_other_forms(x, y)[name]
        kept = given.clone()
        grad, loss = input_grad(model, given, labels)
    torch.testing.assert_close(grad, expected[0].to(given.dtype), check_dtype=True)
    torch.testing.assert_close(loss, expected[1])
    assert type(grad) is torch.Tensor
    assert torch.equal(given, kept)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_gradient_has_the_precision_of_the_input(dtype):
    x, y = batch()
    model = nn.Linear(3, 3)
    grad, loss = input_grad(model, x.to(dtype), y)
    assert grad.dtype == dtype
    assert loss.dtype == torch.float32
    assert torch.equal(grad, input_grad(model, x.to(dtype).float(), y)[0].to(dtype))
    assert input_grad(model, x[:0].to(dtype), y[:0])[0].shape == (0, 3)
    assert input_grad(model, x[:1].to(dtype), y[:1])[0].shape == (1, 3)


def test_what_the_gradient_refuses():
    x, y = batch()
    model = nn.Linear(3, 3)
    for args, kind, message in (
        ((model, x, None), TypeError, "y=None: expected 6 class indices"),
        ((model, x, y[:3]), ValueError, "y has shape (3,): expected 6 class indices"),
        ((model, x, y + 1), ValueError, "y - 1 counts from 0"),
        ((model, x, torch.eye(6)[:, :3]), ValueError, "y.argmax(1)"),
        ((nn.Linear, x, y), TypeError, "of this class"),
        ((model, (x, x), y), TypeError, "x: expected a torch.Tensor, got tuple"),
        ((nn.Sequential(model, nn.Softmax(1)), x, y), ValueError, "probabilities"),
        ((nn.Linear(4, 3), x, y), ValueError, "x of shape (6, 3)"),
    ):
        with pytest.raises(kind, match=re.escape(message)):
            input_grad(*args)


def test_a_loss_of_class_indices_gets_them_in_its_form():
    x, y = batch()
    model = nn.Linear(3, 3)
    expected = input_grad(model, x, y)[0]
    assert torch.equal(input_grad(model, x, y[:, None].float(), task_loss)[0], expected)
    seen = []

    def own(logits, targets):
        seen.append(targets)
        return task_loss(logits, targets[0])

    grad = input_grad(model, x, (y, "as it is"), own)[0]
    assert torch.equal(grad, expected)
    assert seen == [(y, "as it is")]


def test_labels_are_asked_for_where_the_function_needs_them():
    x, y = batch()
    model = nn.Linear(3, 3)

    @entrance
    def with_labels(model, x, y):
        return y

    @entrance
    def without(model, x, y=None):
        return y

    assert torch.equal(with_labels(model, x, y.tolist()), y)
    assert without(model, x) is None
    with pytest.raises(TypeError, match="y=None: expected 6 class indices"):
        with_labels(model, x)
    assert bring(model, x)[2] is None
    assert as_labels([[1], [0]], 2).tolist() == [1, 0]


class Moody(nn.Sequential):
    """Says in its output in which mode it is and whether its parameters take gradients."""

    def forward(self, x):
        time.sleep(0.001)  # the others have their turn
        frozen = not any(p.requires_grad for p in self.parameters())
        return super().forward(x) + 10 * self.training + 100 * frozen


def in_threads(*tasks):
    """What the tasks return, each in a thread of its own, started together."""
    start, results = threading.Barrier(len(tasks)), {}

    def work(i, task):
        start.wait()
        results[i] = task()

    threads = [threading.Thread(target=work, args=item) for item in enumerate(tasks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[i] for i in range(len(tasks))]


def test_threads_that_freeze_one_model():
    x, _ = batch()
    model = Moody(nn.Linear(3, 3), nn.Dropout(0.0)).train()
    model[0].bias.requires_grad_(False)
    plain = model[0](x)

    def look(training):
        outputs = []
        for _ in range(10):
            with frozen(model, training), frozen(model):  # again, in the same thread
                outputs.append(model(x))
        return torch.stack(outputs)

    results = in_threads(*[lambda i=i: look(i % 2 == 0) for i in range(4)])
    for i, outputs in enumerate(results):
        expected = plain + 10 * (i % 2 == 0) + 100
        assert torch.equal(outputs, expected.expand_as(outputs))
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == [True, False]


def test_the_model_of_a_learner_is_frozen():
    fastai = pytest.importorskip("fastai.learner")
    loaders = pytest.importorskip("fastai.data.core").DataLoaders([], [])
    learn = fastai.Learner(loaders, nn.Linear(3, 3), loss_func=nn.CrossEntropyLoss())
    with frozen(learn, training=False) as given:
        assert given is learn
        assert not learn.model.training
        assert not any(p.requires_grad for p in learn.model.parameters())
    assert learn.model.training
    assert all(p.requires_grad for p in learn.model.parameters())


def test_attention_has_a_second_derivative_in_every_thread():
    q = torch.randn(1, 1, 4, 8, requires_grad=True)

    def curvature():
        total = 0.0
        for _ in range(20):
            with differentiable_attention():
                time.sleep(0.0005)  # the others have their turn
                out = nn.functional.scaled_dot_product_attention(q, q, q)
            (g,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
            total += torch.autograd.grad(g.square().sum(), q)[0].abs().sum().item()
        return total

    assert len(set(in_threads(*[curvature] * 4))) == 1


@pytest.mark.parametrize("value, kind", [(0, ValueError), (1.0, TypeError), (True, TypeError)])
def test_counts(value, kind):
    assert check_count("steps", 7) == 7
    with pytest.raises(kind, match=rf"steps={value}: expected a whole number >= 1"):
        check_count("steps", value)


def test_choices():
    assert check_choice("norm", "l2", ("l1", "l2")) == "l2"
    with pytest.raises(
        ValueError, match=r"expected one of 'train' or 'eval'; did you mean 'train'"
    ):
        check_choice("mode", "trian", ("train", "eval"))
    with pytest.raises(ValueError, match=r"norm=3: expected one of 'l1'$"):
        check_choice("norm", 3, ("l1",))


# ---------------------------------------------------------------- probabilities, and what is not


class OneLogit(nn.Module):
    """A linear logit `x @ WEIGHTS` with something done to it."""

    WEIGHTS = torch.tensor([[1.0, -2.0, 0.5]])

    def __init__(self, ends_in):
        super().__init__()
        self.linear = nn.Linear(3, 1, bias=False)
        self.linear.weight.data = self.WEIGHTS.clone()
        self.ends_in = ends_in

    def forward(self, x):
        return self.ends_in(self.linear(x))


def labelled_points():
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    return x, (x @ OneLogit.WEIGHTS[0] > 0).long()


PROBABLE = dict(
    clamped=lambda z: z.sigmoid().clamp(1e-6, 1 - 1e-6),
    hard=nn.functional.hardsigmoid,
    joined=lambda z: torch.cat([z.sigmoid()], 1),
    written_out=lambda z: 1 / (1 + (-z).exp()),
    averaged=lambda z: torch.stack([z.sigmoid(), (2 * z).sigmoid()]).mean(0),
)
LOGITS = dict(
    plain=lambda z: z,
    gated=lambda z: z * z.sigmoid(),
    bounded=lambda z: 10 * z.sigmoid() - 5,
)


@pytest.mark.parametrize("ends_in", PROBABLE.values(), ids=PROBABLE)
def test_a_logit_that_is_a_probability_is_refused(ends_in):
    with pytest.raises(ValueError, match="outputs are probabilities"):
        accuracy(OneLogit(ends_in), *labelled_points())


def test_a_compiled_probability_is_refused():
    compiled = torch.compile(OneLogit(torch.sigmoid), backend="aot_eager")
    with pytest.raises(ValueError, match="outputs are probabilities"):
        accuracy(compiled, *labelled_points())


@pytest.mark.parametrize("ends_in", LOGITS.values(), ids=LOGITS)
def test_a_logit_that_has_met_a_sigmoid_is_one(ends_in):
    assert accuracy(OneLogit(ends_in), *labelled_points()) == 1


def test_what_is_known_of_a_model_is_known_of_its_mode():
    model = OneLogit(None)
    model.ends_in = lambda z: z if model.training else z.sigmoid()
    x, y = labelled_points()
    bring(model.train(), x, y)[0](x)  # logits
    with pytest.raises(ValueError, match="outputs are probabilities"):
        accuracy(model, x, y)


def test_logits_of_one_dimension_beside_features_are_ambiguous():
    def pair(x):
        return x @ OneLogit.WEIGHTS[0], x[:, :2]

    with pytest.raises(ValueError, match="2 tensors could be the logits"):
        accuracy(pair, *labelled_points())


def test_forms_of_labels_that_are_no_dense_arrays():
    y = torch.tensor([0, 1, 1])
    assert torch.equal(as_labels(np.array([0, 1, 1], dtype=object), 3), y)
    masked = np.ma.masked_array([0, 1, 1], mask=[False, True, False])
    for wrong in (y.to_sparse(), masked):
        with pytest.raises(TypeError, match="y: expected"):
            as_labels(wrong, 3)
    with pytest.raises(ValueError, match="infinities"):
        as_labels(torch.tensor([0.0, 1.0, torch.inf]), 3)


def test_one_example_for_a_batch_norm_in_training_mode():
    x, y = torch.randn(1, 3, 4), torch.tensor([0])
    normed = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 2)).train()
    with pytest.raises(ValueError, match="needs more than one example"):
        PGD(LInfBall(0.1), training=True)(normed, x, y)


def test_a_function_that_makes_a_network_is_not_one():
    """`resnet18` is named with its remedy; a function whose weights are bound is a model."""
    from torchvision.models import resnet18

    x = torch.rand(2, 3, 8, 8)
    with pytest.raises(TypeError, match=r"model=resnet18: .* makes a network.*resnet18\(\)"):
        input_grad(resnet18, x, torch.tensor([0, 1]))

    def of_weights(weights, x):
        return x.flatten(1) @ weights

    weights = torch.rand(192, 3)
    grad, _ = input_grad(functools.partial(of_weights, weights), x, torch.tensor([0, 1]))
    assert grad.shape == x.shape
