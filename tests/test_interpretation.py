"Interpretation of learners: right maps in raw units for every kind of learner, ranks and tables by brute force, nothing changed, bad input refused."

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.core import DataLoaders
from fastai.data.transforms import Normalize
from fastai.learner import Learner
from fastai.losses import BCEWithLogitsLossFlat
from fastai.tabular.all import (
    Categorify,
    CategoryBlock,
    FillMissing,
    TabularDataLoaders,
    tabular_learner,
)
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from advinterp import attribution as A
from advinterp.data import tensor_dls
from advinterp.interpretation import AttributionInterpretation, compare_maps
from advinterp.metrics import gini
from advinterp.train import adv_learner

new = AttributionInterpretation.from_learner
MEAN, STD = [0.4, 0.3, 0.2], [0.2, 0.4, 0.5]
METHODS = dict(
    saliency=A.saliency,
    input_x_grad=A.input_x_grad,
    ig=partial(A.integrated_gradients, n_steps=5),
    smoothgrad=partial(A.smoothgrad, n_samples=3),
    vargrad=partial(A.vargrad, n_samples=3),
    sparsified=partial(A.sparsified_smoothgrad, n_samples=3),
    moreau=partial(A.moreau_grad, steps=3, average=2, n_samples=2),
    deep_shap=A.deep_shap,
)


def net(channels=3, out=4):
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(36, out),
    )


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.rand(50, 3, 6, 6), torch.randint(4, (50,))


@pytest.fixture
def learn(images):
    x, y = images
    return adv_learner(
        tensor_dls(
            x[:20],
            y[:20],
            x[20:],
            y[20:],
            bs=8,
            val_bs=7,
            after_batch=[Normalize.from_stats(MEAN, STD, cuda=False)],
            device="cpu",
        ),
        net(),
    )


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    df = pd.DataFrame(rng.normal(3, 2, size=(80, 3)), columns=list("abc")).assign(
        kind=rng.choice(["p", "q", "r"], 80), label=rng.choice(["no", "yes"], 80)
    )
    torch.manual_seed(0)
    return tabular_learner(
        TabularDataLoaders.from_df(
            df,
            procs=[Categorify, FillMissing, Normalize],
            cat_names=["kind"],
            cont_names=list("abc"),
            y_names="label",
            y_block=CategoryBlock(),
            valid_idx=range(50, 80),
            bs=16,
            device="cpu",
        ),
        layers=[6],
    )


def raw_model(model):
    return lambda u: model(
        (u - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    )


@pytest.mark.parametrize("name", METHODS)
def test_maps_are_those_of_the_raw_model(learn, images, name):
    x, y = images[0][20:], images[1][20:]
    ours = new(learn, METHODS[name], output="prob")
    torch.testing.assert_close(ours.inputs, x, atol=1e-6, rtol=0)
    model = nn.Module()
    model.net = learn.model
    model.forward = raw_model(learn.model)
    torch.testing.assert_close(
        ours.maps, METHODS[name](model, x, y, output="prob"), atol=1e-4, rtol=1e-3
    )
    assert (
        (ours.targs == y).all()
        and (ours.idxs == torch.arange(30)).all()
        and ours.title.strip("_")
        and len(ours) == 30
    )


def test_the_predicted_class_can_be_explained(learn):
    a, b = new(learn, explain="predicted"), new(learn)
    right = a.preds == a.targs
    assert (
        torch.equal(a.maps[right], b.maps[right])
        and (a.maps[~right] != b.maps[~right]).flatten(1).any(1).all()
    )


def test_ranks_and_classes_by_brute_force(learn):
    o = new(learn, n=25)
    assert o.top_losses()[1].tolist() == sorted(
        range(25), key=lambda i: -o.losses[i]
    ) and o.most_concise()[1].tolist() == sorted(range(25), key=lambda i: -o.ginis[i])
    assert (
        o.least_concise(4)[1].tolist() == o.most_concise()[1].flip(0)[:4].tolist()
        and o.top_losses(3, largest=False)[1].tolist() == o.top_losses()[1].flip(0)[:3].tolist()
    )
    df = o.per_class_gini()
    for c in o.targs.unique():
        assert (
            df.gini[str(int(c))]
            == pytest.approx(gini(o.maps)[o.targs == c].mean().item(), abs=1e-6)
            and df.n[str(int(c))] == (o.targs == c).sum()
        )
    assert ((df.low <= df.gini + 1e-9) & (df.gini <= df.high + 1e-9)).all() and df.n.sum() == 25


def test_a_sample_is_part_of_the_whole(learn):
    whole, some, again, other = (
        new(learn),
        new(learn, n=9),
        new(learn, n=9),
        new(learn, n=9, seed=1),
    )
    for f in ("inputs", "targs", "preds", "losses", "maps", "ginis"):
        torch.testing.assert_close(
            getattr(some, f), getattr(whole, f)[some.idxs], atol=1e-5, rtol=1e-4
        )
    assert (
        torch.equal(some.idxs, again.idxs)
        and not torch.equal(some.idxs, other.idxs)
        and (some.idxs.diff() > 0).all()
    )


def test_training_loader_is_read_in_its_order(learn, images):
    torch.testing.assert_close(new(learn, ds_idx=0).inputs, images[0][:20], atol=1e-6, rtol=0)


@pytest.mark.parametrize("squeeze", [False, True])
def test_one_logit_pytorch_loaders_and_fastai_losses(squeeze):
    torch.manual_seed(0)
    x, y = torch.randn(40, 5), torch.randint(2, (40,))
    lin = nn.Linear(5, 1)
    dl = lambda y: DataLoader(TensorDataset(x, y), batch_size=16)
    model = nn.Sequential(lin, nn.Flatten(0)) if squeeze else lin
    ints = adv_learner(DataLoaders(dl(y), dl(y)), model)
    floats = Learner(
        DataLoaders(dl(y[:, None].float()), dl(y[:, None].float())),
        model,
        loss_func=BCEWithLogitsLossFlat(),
    )
    for learn in (ints, floats):
        o = new(learn, A.integrated_gradients)
        s = 2 * y[:, None] - 1
        torch.testing.assert_close(o.maps, s * x * lin.weight.detach())
        assert torch.equal(o.preds, (lin(x)[:, 0] > 0).long()) and torch.equal(o.targs, y)
        torch.testing.assert_close(o.losses, nn.functional.softplus(-s * lin(x))[:, 0].detach())
    assert o.names is None and [o._name(c) for c in (0, 1)] == ["0", "1"]


@pytest.mark.parametrize("name", METHODS)
def test_tables_with_categories(table, name):
    o = new(table, METHODS[name], n=12)
    cat, con, y = table.dls.valid.new(shuffle=False, drop_last=False, bs=30).one_batch()
    table.model.eval()
    for j, i in enumerate(o.idxs):

        def one(u):
            return table.model(cat[i : i + 1].expand(len(u), -1), u)

        torch.testing.assert_close(
            o.maps[j : j + 1], METHODS[name](one, con[i : i + 1], y[i].long()), atol=1e-5, rtol=1e-3
        )
    assert (
        list(o.names) == ["a", "b", "c"]
        and list(o.per_class_gini().index) == ["no", "yes"]
        and isinstance(o.plot_top_losses(2), Figure)
    )


def test_items_are_those_of_the_data_set(table):
    losses, i, items = new(table, n=10).top_losses(3, items=True)
    assert list(items.index) == [50 + j for j in new(table, n=10).idxs[i].tolist()]


def test_learner_is_left_as_it_was(learn):
    learn.model.train()
    learn.model[6].eval()
    learn.model[0].weight.requires_grad_(False)
    learn.fit

    def state():
        return (
            [p.tolist() for p in learn.model.state_dict().values()],
            [m.training for m in learn.model.modules()],
            [p.requires_grad for p in learn.model.parameters()],
            [p.grad for p in learn.model.parameters()],
            learn.loss_func.reduction,
            len(learn.cbs),
            getattr(learn, "xb", 0),
            getattr(learn, "dl", 0),
            torch.random.get_rng_state().tolist(),
            np.random.get_state()[1].tolist(),
        )

    before = state()
    with torch.no_grad():
        new(learn, METHODS["smoothgrad"], n=9)
    with pytest.raises(ValueError, match="labels from"):
        new(learn, lambda model, x, y, **kw: A.saliency(model, x, y + 9, **kw))
    assert state() == before


def test_figures_leave_nothing_behind(learn, table):
    o, t = new(learn), new(table)
    for fig in (
        o.plot_top_losses(2),
        o.plot_top_losses(2, largest=False),
        o.plot_concise(1),
        o.plot([0]),
        o.plot(o.targs == 1),
        t.plot_concise(2),
        compare_maps([learn, learn], n=8, k=2),
        compare_maps({"a": t, "b": t}, idxs=[0]),
    ):
        assert isinstance(fig, Figure)
    assert (
        plt.get_fignums() == [] and len([a for a in o.plot_concise(2).axes if a.get_xlabel()]) == 4
    )


def test_compare_draws_every_learner_on_the_same_examples(learn, images):
    torch.manual_seed(1)
    other = adv_learner(
        tensor_dls(*images, images[0][20:], images[1][20:], device="cpu"), net()
    )  # does not normalise
    a, b = new(learn), new(other)
    assert [x.get_title() for x in compare_maps([learn, a, a]).axes if x.get_title()] == [
        "image",
        "learner",
        "saliency 2",
        "saliency 3",
    ]
    fig = compare_maps({"one": learn, "two": other}, k=3)
    i = a.top_losses(3)[1]
    shown = [x.get_xlabel() for x in fig.axes if x.get_xlabel()]
    assert shown == [f"Gini {o.ginis[j]:.3f}" for j in i for o in (a, b)]
    moved = adv_learner(tensor_dls(*images, images[0][:30], images[1][:30], device="cpu"), net())
    with pytest.raises(ValueError, match="two: its loader delivers other examples"):
        compare_maps({"one": learn, "two": moved})


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda l: new(l, "saliency"), TypeError, "method='saliency'"),
        (lambda l: new(l, ds_idx=7), ValueError, "loaders 0 to 1"),
        (lambda l: new(l, n=0), ValueError, "n=0"),
        (lambda l: new(l, n=31), ValueError, "n=31: the set has 30"),
        (lambda l: new(l, explain="other"), ValueError, "explain='other'"),
        (lambda l: new(l, output="class"), ValueError, "output='class'"),
        (lambda l: new(l, batch_size=0), ValueError, "batch_size=0"),
        (lambda l: new(l, which=1), ValueError, "which=1"),
        (lambda l: new(l, dl=l.dls.test_dl(torch.rand(4, 3, 6, 6))), ValueError, "no targets"),
        (lambda l: new(l, dl=DataLoader(l.dls.valid_ds, shuffle=True)), ValueError, "it shuffles"),
        (
            lambda l: new(l, dl=[(torch.rand(4, 3, 6, 6), torch.zeros(4, 2))]),
            TypeError,
            "expected a loader",
        ),
        (
            lambda l: new(
                l, dl=DataLoader(TensorDataset(torch.rand(4, 3, 6, 6), torch.zeros(4, 2)))
            ),
            ValueError,
            "one class index for each",
        ),
        (
            lambda l: new(l, lambda m, x, y, **kw: x.sum(1)),
            ValueError,
            "expected tensors of one shape",
        ),
        (lambda l: new(l).top_losses(31), ValueError, "k=31"),
        (lambda l: new(l).most_concise(0), ValueError, "k=0"),
        (lambda l: new(l).plot_concise(31), ValueError, "k=31"),
        (lambda l: new(l).top_losses(2, items=True), ValueError, "items=True"),
        (lambda l: compare_maps([]), ValueError, "at least one"),
        (lambda l: compare_maps({}), ValueError, "at least one"),
        (lambda l: compare_maps([l, "net"]), TypeError, "'net'"),
    ],
)
def test_bad_input_is_refused(learn, call, error, words):
    with pytest.raises(error, match=words):
        call(learn)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu(learn, images):
    here = new(learn)
    learn.model.cuda()
    there = new(learn)
    torch.testing.assert_close(here.maps, there.maps, atol=1e-4, rtol=1e-3)
    assert not there.maps.is_cuda
