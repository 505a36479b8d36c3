"""Interpretation of learners: right maps in raw units, ranks by brute force, nothing changed."""

import inspect
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.core import DataLoaders
from fastai.data.transforms import Normalize
from fastai.interpret import Interpretation
from fastai.learner import Learner, load_learner
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat, MSELossFlat
from fastai.tabular.all import (
    Categorify,
    CategoryBlock,
    FillMissing,
    TabularDataLoaders,
    tabular_learner,
)
from fastai.vision.all import (
    ImageDataLoaders,
    MultiCategoryBlock,
    RegressionBlock,
    Resize,
    vision_learner,
)
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torchvision.models import resnet18

from advinterp import attribution
from advinterp.data import tensor_dls
from advinterp.evaluate import accuracy
from advinterp.interpretation import AttributionInterpretation, _Joined, compare_maps
from advinterp.metrics import gini
from advinterp.train import adv_learner, logits_accuracy

interpret = AttributionInterpretation.from_learner
MEAN = [0.4, 0.3, 0.2]
STD = [0.2, 0.4, 0.5]
FIELDS = ("inputs", "targs", "preds", "losses", "maps", "ginis")
METHODS = dict(
    saliency=attribution.saliency,
    input_x_grad=attribution.input_x_grad,
    integrated_gradients=partial(attribution.integrated_gradients, steps=5),
    smoothgrad=partial(attribution.smoothgrad, n_samples=3),
    vargrad=partial(attribution.vargrad, n_samples=3),
    sparsified_smoothgrad=partial(attribution.sparsified_smoothgrad, n_samples=3),
    moreau_grad=partial(attribution.moreau_grad, steps=3, average=2, n_samples=2),
    deep_shap=attribution.deep_shap,
)
each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def small_network(channels=3, classes=4):
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(36, classes),
    )


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.rand(50, 3, 6, 6), torch.randint(4, (50,))


@pytest.fixture
def learn(images):
    x, y = images
    normalize = Normalize.from_stats(MEAN, STD, cuda=False)
    dls = tensor_dls(
        x[:20], y[:20], x[20:], y[20:], bs=8, val_bs=7, after_batch=[normalize], device="cpu"
    )
    return adv_learner(dls, small_network())


@pytest.fixture
def table():
    """A learner of fastai's own for a table with categories."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(3, 2, size=(80, 3)), columns=list("abc"))
    frame["kind"] = rng.choice(["p", "q", "r"], 80)
    frame["label"] = rng.choice(["no", "yes"], 80)
    torch.manual_seed(0)
    dls = TabularDataLoaders.from_df(
        frame,
        procs=[Categorify, FillMissing, Normalize],
        cat_names=["kind"],
        cont_names=list("abc"),
        y_names="label",
        y_block=CategoryBlock(),
        valid_idx=range(50, 80),
        bs=16,
        device="cpu",
    )
    return tabular_learner(dls, layers=[6])


class OfPixels(nn.Module):
    """The model of a learner as a function of pixels, written by hand."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, u):
        mean = torch.tensor(MEAN)[:, None, None]
        std = torch.tensor(STD)[:, None, None]
        return self.model((u - mean) / std)


# ---------------------------------------------------------------- maps


@each_method
def test_maps_are_those_of_the_raw_model(learn, images, method):
    x, y = images[0][20:], images[1][20:]
    ours = interpret(learn, method, output="prob")
    expected = method(OfPixels(learn.model), x, y, output="prob")
    torch.testing.assert_close(ours.inputs, x, atol=1e-6, rtol=0)
    torch.testing.assert_close(ours.maps, expected, atol=1e-4, rtol=1e-3)
    assert len(ours) == 30
    assert torch.equal(ours.targs, y)
    assert torch.equal(ours.idxs, torch.arange(30))


def test_title_is_the_name_of_the_method(learn):
    titles = [interpret(learn, method, n=1).title for method in METHODS.values()]
    assert titles == list(METHODS)
    assert interpret(learn, n=1, title="ours").title == "ours"


def test_the_predicted_class_can_be_explained(learn):
    of_prediction = interpret(learn, explain="predicted")
    of_target = interpret(learn)
    right = of_target.preds == of_target.targs
    assert 0 < right.sum() < len(right)
    same = (of_prediction.maps == of_target.maps).flatten(1).all(1)
    assert torch.equal(same, right)


def test_a_sample_is_part_of_the_whole(learn):
    whole = interpret(learn)
    some = interpret(learn, n=9)
    for field in FIELDS:
        expected = getattr(whole, field)[some.idxs]
        torch.testing.assert_close(getattr(some, field), expected, atol=1e-5, rtol=1e-4)
    assert (some.idxs.diff() > 0).all()
    assert torch.equal(some.idxs, interpret(learn, n=9).idxs)
    assert not torch.equal(some.idxs, interpret(learn, n=9, seed=1).idxs)


def test_training_loader_is_read_in_its_order(learn, images):
    inputs = interpret(learn, ds_idx=0).inputs
    torch.testing.assert_close(inputs, images[0][:20], atol=1e-6, rtol=0)


@pytest.mark.parametrize("form", ["class indices", "fastai's loss of floats"])
@pytest.mark.parametrize("flattened", [False, True])
def test_one_logit_and_loaders_of_pytorch(flattened, form):
    torch.manual_seed(0)
    x = torch.randn(40, 5)
    y = torch.randint(2, (40,))
    linear = nn.Linear(5, 1)
    model = nn.Sequential(linear, nn.Flatten(0)) if flattened else linear
    targets, loss_func = y, None
    if form != "class indices":
        targets, loss_func = y[:, None].float(), BCEWithLogitsLossFlat()
    loader = DataLoader(TensorDataset(x, targets), batch_size=16)
    dls = DataLoaders(loader, loader)
    learn = Learner(dls, model, loss_func=loss_func) if loss_func else adv_learner(dls, model)
    ours = interpret(learn, attribution.integrated_gradients)
    sign = 2 * y - 1
    logits = linear(x)[:, 0].detach()
    torch.testing.assert_close(ours.maps, sign[:, None] * x * linear.weight.detach())
    torch.testing.assert_close(ours.losses, nn.functional.softplus(-sign * logits))
    assert torch.equal(ours.preds, (logits > 0).long())
    assert torch.equal(ours.targs, y)
    assert ours.names is None
    assert list(ours.per_class_gini().index) == ["0", "1"]


@each_method
def test_tables_with_categories(table, method):
    ours = interpret(table, method, n=12)
    batch = table.dls.valid.new(shuffle=False, drop_last=False, bs=30).one_batch()
    categories, numbers, y = batch
    table.model.eval()
    for row, place in enumerate(ours.idxs):
        one = slice(place, place + 1)

        def model(u, one=one):
            return table.model(categories[one].expand(len(u), -1), u)

        expected = method(model, numbers[one], y[place].long())
        torch.testing.assert_close(ours.maps[row : row + 1], expected, atol=1e-5, rtol=1e-3)
    assert list(ours.names) == ["a", "b", "c"]
    assert list(ours.per_class_gini().index) == ["no", "yes"]


# ---------------------------------------------------------------- the model of the inputs


def test_model_and_learner_are_those_of_the_raw_inputs(learn, images):
    ours = interpret(learn)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        validated = learn.validate()[1]
    for model in (ours.model, learn):
        assert accuracy(model, ours.inputs, ours.targs) == pytest.approx(validated, abs=1e-6)
    expected = OfPixels(learn.model.eval())(images[0][20:])
    torch.testing.assert_close(ours.model(ours.inputs), expected)


def test_learner_of_a_pretrained_kind_is_judged_in_raw_units():
    torch.manual_seed(0)
    x = torch.rand(24, 3, 32, 32)
    y = torch.arange(24) % 3
    normalize = Normalize.from_stats(MEAN, STD, cuda=False)
    dls = tensor_dls(x, y, x, y, bs=12, after_batch=[normalize], device="cpu")
    learn = vision_learner(
        dls, resnet18, n_out=3, pretrained=False, weights=None, metrics=logits_accuracy
    )
    with learn.no_bar(), learn.no_logging():
        learn.fit(2, 1e-3)
        validated = learn.validate()[1]
    ours = interpret(learn)
    learn.model.eval()
    assert accuracy(learn, ours.inputs, ours.targs) == pytest.approx(validated, abs=1e-6)
    assert accuracy(ours.model, ours.inputs, ours.targs) == pytest.approx(validated, abs=1e-6)


def test_model_of_a_table_takes_all_its_examples(table):
    ours = interpret(table, n=12)
    assert accuracy(ours.model, ours.inputs, ours.targs) == pytest.approx(
        (ours.preds == ours.targs).float().mean().item()
    )
    with pytest.raises(ValueError, match="all of them at once, got 3 rows"):
        ours.model(ours.inputs[:3])


def test_units_that_are_said_are_those_that_are_found(learn, images):
    x, y = images
    normalised = (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    loader = DataLoader(TensorDataset(normalised[20:], y[20:]), batch_size=7)
    silent = Learner(DataLoaders(loader, loader), learn.model, loss_func=nn.CrossEntropyLoss())
    with pytest.warns(UserWarning, match=r"normalize=\(mean, std\)"):
        assert not torch.allclose(interpret(silent).inputs, x[20:], atol=1e-3)
    told = interpret(silent, normalize=(MEAN, STD))
    torch.testing.assert_close(told.inputs, x[20:], atol=1e-6, rtol=0)
    torch.testing.assert_close(told.maps, interpret(learn).maps, atol=1e-5, rtol=1e-4)


def test_a_batch_that_leaves_the_range_of_the_others_is_not_cut(learn, images):
    x, y = images
    far = x[20:].clone()
    far[-1, 0, 0, 0] = 5.0
    loader = DataLoader(TensorDataset(far, y[20:]), batch_size=7)
    raw = Learner(DataLoaders(loader, loader), learn.model, loss_func=nn.CrossEntropyLoss())
    with pytest.warns(UserWarning, match="no longer clamped"):
        ours = interpret(raw)
    assert torch.equal(ours.inputs, far)


def test_loaded_learners_say_what_they_need(learn, images, tmp_path):
    ours = interpret(learn)
    learn.path = tmp_path
    learn.export("learner.pkl")
    back = load_learner(tmp_path / "learner.pkl")
    with pytest.raises(ValueError, match=r"dl=learn.dls.test_dl\(items, with_labels=True\)"):
        interpret(back)
    again = interpret(back, dl=learn.dls.valid)
    torch.testing.assert_close(again.maps, ours.maps)
    assert accuracy(back, *images) == accuracy(learn, *images)


def test_targets_beside_the_labels_are_for_others(images):
    x, y = images
    maps = torch.rand(50, 6, 6)
    dls = tensor_dls(
        x[:20], y[:20], x[20:], y[20:], maps=maps[:20], maps_valid=maps[20:], device="cpu"
    )
    for loss_func in (nn.CrossEntropyLoss(), CrossEntropyLossFlat(), None):
        learn = adv_learner(dls, small_network(), loss_func=loss_func)
        ours = interpret(learn)
        logits = learn.model.eval()(x[20:]).detach()
        expected = nn.functional.cross_entropy(logits, y[20:], reduction="none")
        torch.testing.assert_close(ours.losses, expected)


# ---------------------------------------------------------------- ranks


def test_ranks_by_brute_force(learn):
    ours = interpret(learn, n=25)
    by_loss = sorted(range(25), key=lambda i: -ours.losses[i])
    by_gini = sorted(range(25), key=lambda i: -ours.ginis[i])
    assert ours.top_losses()[1].tolist() == by_loss
    assert ours.top_losses(3, largest=False)[1].tolist() == by_loss[::-1][:3]
    assert ours.most_concise()[1].tolist() == by_gini
    assert ours.most_concise(n=4)[1].tolist() == by_gini[:4]
    assert ours.least_concise(4)[1].tolist() == by_gini[::-1][:4]
    values, idxs = ours.most_concise(4)
    assert torch.equal(values, gini(ours.maps)[idxs])


def test_classes_by_brute_force(learn):
    ours = interpret(learn, n=25)
    table = ours.per_class_gini()
    assert list(table.index) == [str(int(label)) for label in ours.targs.unique()]
    for label, row in table.iterrows():
        ginis = gini(ours.maps)[ours.targs == int(label)]
        assert row.n == len(ginis)
        assert row.gini == pytest.approx(ginis.mean().item(), abs=1e-6)
        assert ginis.min() - 1e-6 <= row.low <= row.gini + 1e-9
        assert row.gini - 1e-9 <= row.high <= ginis.max() + 1e-6
    assert table.n.sum() == 25


def test_items_are_those_of_the_data_set(table):
    ours = interpret(table, n=10)
    _, idxs, items = ours.top_losses(3, items=True)
    assert list(items.index) == [50 + place for place in ours.idxs[idxs].tolist()]


@pytest.mark.parametrize("name", ["top_losses", "plot_top_losses"])
def test_verbs_of_fastai_keep_its_signature(name):
    parameters = inspect.signature(getattr(AttributionInterpretation, name)).parameters
    fastai = inspect.signature(getattr(Interpretation, name)).parameters
    assert list(parameters) == list(fastai)
    assert parameters["k"].default == fastai["k"].default


def test_numbers_to_show_were_once_called_k(learn):
    ours = interpret(learn, n=8)
    for name in ("most_concise", "least_concise", "plot_concise"):
        with pytest.warns(FutureWarning, match="k= is now n="):
            getattr(ours, name)(k=2)
    with pytest.warns(FutureWarning, match="k= is now n="):
        fig = compare_maps([ours], k=2)
    assert len(captions(fig)) == 2


# ---------------------------------------------------------------- what stays as it was


def state_of(learn):
    model = learn.model
    return dict(
        weights=[value.tolist() for value in model.state_dict().values()],
        modes=[module.training for module in model.modules()],
        flags=[parameter.requires_grad for parameter in model.parameters()],
        grads=[parameter.grad for parameter in model.parameters()],
        reduction=learn.loss_func.reduction,
        callbacks=len(learn.cbs),
        batch=getattr(learn, "xb", 0),
        loader=getattr(learn, "dl", 0),
        torch_random=torch.random.get_rng_state().tolist(),
        numpy_random=np.random.get_state()[1].tolist(),
    )


def test_learner_is_left_as_it_was(learn):
    learn.model.train()
    learn.model[6].eval()
    learn.model[0].weight.requires_grad_(False)
    before = state_of(learn)
    with torch.no_grad():
        interpret(learn, METHODS["smoothgrad"], n=9)
    assert state_of(learn) == before


def test_learner_is_left_as_it_was_after_an_error(learn):
    def wrong_class(model, x, y, **kwargs):
        return attribution.saliency(model, x, y + 9, **kwargs)

    before = state_of(learn)
    with pytest.raises(ValueError, match="labels from"):
        interpret(learn, wrong_class)
    assert state_of(learn) == before


# ---------------------------------------------------------------- figures


def captions(fig):
    return [ax.get_xlabel() for ax in fig.axes if ax.get_xlabel()]


def titles(fig):
    return [ax.get_title() for ax in fig.axes if ax.get_title()]


def test_figures_are_known_to_pyplot_but_not_in_a_notebook(learn, table, monkeypatch):
    """`plt.show()` shows them; a notebook shows the value of a cell, and would show them twice."""
    ours = interpret(learn)
    of_table = interpret(table)
    plt.close("all")
    figures = [
        ours.plot_top_losses(2),
        ours.plot_top_losses(2, largest=False),
        ours.plot_concise(1),
        ours.plot([0]),
        ours.plot(ours.targs == 1),
        of_table.plot_concise(2),
        of_table.plot_top_losses(2, max_bars=2),
        compare_maps([learn, learn], sample=8, n=2),
        compare_maps([learn, learn], sample=8, n=2, overlay=True),
        compare_maps({"a": of_table, "b": of_table}, idxs=[0]),
        learn.show_maps(2),
        table.show_maps(2),
    ]
    assert all(isinstance(fig, Figure) for fig in figures)
    assert [plt.figure(number) for number in plt.get_fignums()] == figures
    plt.close("all")
    monkeypatch.setattr(plt, "get_backend", lambda: "module://matplotlib_inline.backend_inline")
    assert isinstance(learn.show_maps(2), Figure)
    assert ours._repr_png_().startswith(b"\x89PNG")
    assert plt.get_fignums() == []


def test_figures_show_the_examples_that_they_name(learn):
    ours = interpret(learn)
    worst = ours.top_losses(3)[1]
    assert captions(ours.plot_top_losses(3)) == [f"Gini {ours.ginis[i]:.3f}" for i in worst]
    concise = [*ours.most_concise(2)[1], *ours.least_concise(2)[1].flip(0)]
    assert captions(ours.plot_concise(2)) == [f"Gini {ours.ginis[i]:.3f}" for i in concise]


def test_compare_draws_every_learner_on_the_same_examples(learn, images):
    torch.manual_seed(1)
    x, y = images
    unnormalised = tensor_dls(x, y, x[20:], y[20:], device="cpu")
    other = adv_learner(unnormalised, small_network())
    ours, theirs = interpret(learn), interpret(other)
    fig = compare_maps({"one": learn, "two": other}, n=3)
    worst = ours.top_losses(3)[1]
    expected = [f"Gini {which.ginis[i]:.3f}" for i in worst for which in (ours, theirs)]
    assert captions(fig) == expected
    assert titles(fig) == ["image", "one", "two"]


def test_compare_names_what_has_no_name(learn):
    ours = interpret(learn)
    fig = compare_maps([learn, ours, ours])
    assert titles(fig) == ["image", "learner", "saliency 2", "saliency 3"]


def test_compare_hands_its_arguments_on(learn):
    method = METHODS["integrated_gradients"]
    ours = interpret(learn, method, n=6)
    fig = compare_maps([learn], idxs=[5, 0], sample=6, method=method, plot=dict(shared=False))
    assert captions(fig) == [f"Gini {ours.ginis[i]:.3f}" for i in (5, 0)]
    assert fig.axes[-1].get_ylabel() == "magnitude, own scale"


class Counted:
    """An attribution that counts what it explains."""

    def __init__(self):
        self.n = 0

    def __call__(self, model, x, y, **kwargs):
        self.n += len(x)
        return attribution.saliency(model, x, y, **kwargs)


def test_only_what_is_drawn_is_explained(learn):
    method = Counted()
    compare_maps([learn, learn], n=2, method=method)
    assert method.n == 4
    method.n = 0
    learn.show_maps(3, method=method)
    assert method.n == 3


@pytest.mark.parametrize("overlay", [False, True])
def test_names_of_any_length_leave_the_tiles_as_large(learn, overlay):
    def tile(vocab):
        ours.vocab = vocab
        fig = compare_maps([ours], n=2, overlay=overlay)
        fig.draw_without_rendering()
        return fig.axes[0].get_position().width * fig.get_figwidth() * fig.dpi

    ours = interpret(learn)
    long = ["a name of a class that goes on and on, as those of birds and of diseases do"] * 4
    assert tile(long) > 0.9 * tile(list("abcd"))
    assert tile(long) > 90  # pixels


def test_compare_refuses_other_examples(learn, images):
    x, y = images
    moved = adv_learner(tensor_dls(x, y, x[:30], y[:30], device="cpu"), small_network())
    with pytest.raises(ValueError, match="two: its loader delivers other examples"):
        compare_maps({"one": learn, "two": moved})


# ---------------------------------------------------------------- photos, rows, tensors


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of photos of two classes: other sizes, grey, with transparency."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    kinds = [((9, 12, 3), "RGB"), ((14, 10), "L"), ((10, 10, 4), "RGBA")]
    for label in ("cat", "frog"):
        (folder / label).mkdir()
        for i in range(6):
            shape, mode = kinds[i % 3]
            pixels = rng.integers(0, 255, shape, dtype=np.uint8)
            Image.fromarray(pixels, mode).save(folder / label / f"{i}.png")
    return folder


@pytest.fixture
def of_photos(photos):
    torch.manual_seed(0)
    dls = ImageDataLoaders.from_folder(
        photos, valid_pct=0.5, seed=0, item_tfms=Resize(6), bs=4, num_workers=0, device="cpu",
        batch_tfms=Normalize.from_stats(MEAN, STD, cuda=False),
    )  # fmt: skip
    return Learner(dls, small_network(classes=2), loss_func=CrossEntropyLossFlat())


def test_photos_in_every_form(of_photos, photos):
    """A file, its name, a list, an open photo, and its place in a loader have one map."""
    file = photos / "cat" / "0.png"
    with Image.open(file) as photo:
        forms = [file, str(file), [file], photo.convert("RGB"), [photo.convert("RGB")]]
        found = [of_photos.explain(form) for form in forms]
    loader = of_photos.dls.test_dl([file], with_labels=True)
    expected = interpret(of_photos, dl=loader, explain="predicted")
    for ours in found:
        torch.testing.assert_close(ours.maps, expected.maps)
        assert ours.targs is None
        assert ours.losses is None
        assert "right" not in repr(ours)
        assert ours._repr_png_()
    assert len(of_photos.explain(photos)) == 12
    raw = of_photos.explain(expected.inputs[0])
    torch.testing.assert_close(raw.maps, expected.maps)
    grey_levels = (255 * expected.inputs).to(torch.uint8)
    torch.testing.assert_close(of_photos.explain(grey_levels).inputs, grey_levels / 255)
    plt.close("all")


def test_the_class_that_is_named_is_explained(of_photos, photos):
    frog = of_photos.explain(photos, explain="frog")
    expected = attribution.saliency(of_photos, frog.inputs, torch.ones(12, dtype=torch.long))
    torch.testing.assert_close(frog.maps, expected)
    assert not torch.allclose(frog.maps, of_photos.explain(photos, explain="cat").maps)


def test_photos_of_an_exported_learner(of_photos, photos, tmp_path):
    ours = of_photos.explain(photos)
    of_photos.path = tmp_path
    of_photos.export("learner.pkl")
    back = load_learner(tmp_path / "learner.pkl")
    torch.testing.assert_close(back.explain(photos).maps, ours.maps)
    assert list(back.explain(photos).vocab) == ["cat", "frog"]


def test_photos_with_several_classes_each(photos):
    files = [photos / "cat" / f"{i}.png" for i in range(6)]
    frame = pd.DataFrame(dict(name=files, labels=["a b", "b", "", "c", "a c", "c b"]))
    dls = ImageDataLoaders.from_df(
        frame, path="/", fn_col="name", label_col="labels", label_delim=" ", valid_pct=0.5, seed=0,
        item_tfms=Resize(6), bs=2, num_workers=0, device="cpu", y_block=MultiCategoryBlock(),
    )  # fmt: skip
    torch.manual_seed(0)
    learn = Learner(dls, small_network(classes=3), loss_func=BCEWithLogitsLossFlat())
    ours = interpret(learn, explain="c")
    expected = attribution.saliency(learn, ours.inputs, torch.full((len(ours),), 2))
    torch.testing.assert_close(ours.maps, expected)
    assert ours.targs.shape == (3, 3)
    logits = learn.model.eval()(ours.inputs)
    losses = nn.functional.binary_cross_entropy_with_logits(
        logits, ours.targs.float(), reduction="none"
    )
    torch.testing.assert_close(ours.losses, losses.sum(1).detach())
    assert isinstance(ours.plot_top_losses(2), Figure)
    with pytest.raises(ValueError, match="several classes; pass explain='predicted'"):
        interpret(learn)
    with pytest.raises(ValueError, match="several classes each"):
        ours.per_class_gini()
    plt.close("all")


def test_rows_of_a_table(table):
    frame = table.dls.valid_ds.items.iloc[:3]
    raw = pd.DataFrame(dict(a=[1.0, 2.0], b=[3.0, 4.0], c=[5.0, 0.0], kind=["p", "q"]))
    assert len(table.explain(raw)) == 2
    one = table.explain(raw.iloc[1])
    torch.testing.assert_close(one.maps, table.explain(raw).maps[1:])
    assert len(frame) == 3


def test_large_interpretations_keep_no_maps(learn, monkeypatch):
    ours = interpret(learn)
    monkeypatch.setattr("advinterp.interpretation._KEPT", 5000)
    lean = interpret(learn)
    assert lean.maps is None
    assert lean.inputs is None
    torch.testing.assert_close(lean.ginis, ours.ginis)
    worst = lean.top_losses(3)[1]
    for field, expected in zip(lean[worst], ours[worst]):
        torch.testing.assert_close(field, expected)
    assert captions(lean.plot_top_losses(3)) == captions(ours.plot_top_losses(3))
    with pytest.raises(ValueError, match="maps of 30 examples are too large"):
        lean.plot(range(30))
    plt.close("all")


@pytest.mark.parametrize(
    "items, words",
    [
        ("absent.png", "expected a file or a folder, there is none"),
        ([], "expected at least one"),
        (["absent.png"], "there is none"),
    ],
)
def test_items_that_are_not_there(of_photos, items, words):
    with pytest.raises(ValueError, match=words):
        of_photos.explain(items)


def test_folders_and_classes_that_are_not_there(of_photos, photos, tmp_path):
    with pytest.raises(ValueError, match="a folder without images"):
        of_photos.explain(tmp_path)
    with pytest.raises(ValueError, match=r"explain='frogg'.*did you mean 'frog'"):
        of_photos.explain(photos, explain="frogg")
    with pytest.raises(ValueError, match="no targets to explain; pass explain='predicted'"):
        of_photos.explain(photos, explain="target")
    with pytest.raises(ValueError, match="a tensor comes without targets"):
        of_photos.explain(torch.rand(3, 6, 6), explain="target")
    with pytest.raises(ValueError, match="came without targets"):
        of_photos.explain(photos).top_losses(2)


def test_names_in_a_column_are_files(of_photos, photos):
    """A column of names, a frame of one column, one of its rows."""
    files = [photos / "cat" / "0.png", photos / "frog" / "1.png"]
    frame = pd.DataFrame(dict(name=[str(file) for file in files]))
    expected = of_photos.explain(files)
    for form in (frame, frame["name"], files):
        torch.testing.assert_close(of_photos.explain(form).maps, expected.maps)
    torch.testing.assert_close(of_photos.explain(frame.iloc[1]).maps, expected.maps[1:])
    frame["label"] = ["cat", "frog"]
    for form in (frame, frame.assign(age=3).iloc[0]):
        with pytest.raises(TypeError, match=r"opens files; pass the column .*=frame\['name'\]"):
            of_photos.explain(form)


def test_rows_of_names_and_labels(photos):
    """A learner whose data came from a frame takes its rows, also after export."""
    files = [str(file) for file in sorted(photos.rglob("*.png"))]
    frame = pd.DataFrame(dict(name=files, label=[Path(file).parent.name for file in files]))
    dls = ImageDataLoaders.from_df(
        frame, path="/", fn_col="name", label_col="label", valid_pct=0.5, seed=0,
        item_tfms=Resize(6), bs=4, num_workers=0, device="cpu",
    )  # fmt: skip
    learn = Learner(dls, small_network(classes=2), loss_func=CrossEntropyLossFlat())
    expected = learn.explain(frame).maps
    assert len(expected) == 12
    torch.testing.assert_close(learn.explain(frame.iloc[3]).maps, expected[3:4])


def test_photos_without_labels_are_compared(of_photos, photos, learn):
    """The first ones are drawn, as many as there are."""
    found = of_photos.explain(photos)
    fig = compare_maps([found, found], n=2, overlay=True)
    drawn = [text for text in captions(fig) if text]
    assert drawn == [
        f"as {found._class_name(found.preds[i])}\nGini {found.ginis[i]:.3f}" for i in (0, 0, 1, 1)
    ]
    two = of_photos.explain([photos / "cat" / "0.png", photos / "cat" / "1.png"])
    assert isinstance(compare_maps([two]), Figure)
    some = compare_maps([learn], idxs=slice(2, 4))
    assert captions(some) == captions(compare_maps([learn], idxs=[2, 3]))
    plt.close("all")


def test_classes_may_be_numbers():
    torch.manual_seed(0)
    x, y = torch.rand(12, 3, 6, 6), torch.arange(12) % 4
    dls = tensor_dls(x, y, x, y, vocab=[5, 6, 7, 8], device="cpu")
    learn = adv_learner(dls, small_network())
    expected = attribution.saliency(learn, x, torch.full((12,), 2))
    for name in (7, "7"):
        torch.testing.assert_close(learn.explain(x, explain=name).maps, expected)


@pytest.mark.parametrize(
    "explain, words",
    [
        ("Cat", "did you mean 'cat'"),
        ("rog", "did you mean 'frog'"),
        ("o", "did you mean 'frog'"),
        ("zebra", "the classes are 'cat', 'frog'"),
        (1, "class 1 is 'frog'"),
        (None, "the classes are 'cat', 'frog'"),
    ],
)
def test_classes_that_are_not_there_are_named(of_photos, photos, explain, words):
    with pytest.raises(ValueError, match=words):
        of_photos.explain(photos / "cat" / "0.png", explain=explain)


def test_a_regression_has_no_classes(photos):
    """It says which call gives the gradient of the number, and that call does."""
    frame = pd.DataFrame(dict(name=sorted(photos.rglob("*.png")), age=np.arange(12) / 10))
    dls = ImageDataLoaders.from_df(
        frame, path="/", fn_col="name", label_col="age", valid_pct=0.5, seed=0, bs=4,
        item_tfms=Resize(6), num_workers=0, device="cpu", y_block=RegressionBlock(),
    )  # fmt: skip
    x = torch.rand(5, 3, 6, 6)
    learn = Learner(dls, small_network(classes=1), loss_func=MSELossFlat())
    for call in (partial(learn.explain, x), learn.show_maps, partial(compare_maps, [learn])):
        with pytest.raises(TypeError, match=r"MSELoss.*saliency\(learn, x, torch\.ones"):
            call()
    maps = attribution.saliency(learn, x, torch.ones(len(x)))
    x.requires_grad_()
    learn.model.eval()
    (expected,) = torch.autograd.grad(learn.model(x).sum(), x)
    torch.testing.assert_close(maps, expected)


def test_a_learner_without_validation_set(of_photos):
    alone = Learner(DataLoaders(of_photos.dls.train), of_photos.model, loss_func=nn.MSELoss())
    with pytest.raises(ValueError, match="loaders 0 only, of the training set"):
        alone.show_maps()


def test_files_that_are_no_photos(of_photos, tmp_path):
    (tmp_path / "half.png").write_bytes(b"\x89PNG, and no more")
    with pytest.raises(ValueError, match=r"items: .*half\.png.*verify_images"):
        of_photos.explain(tmp_path)


def test_photos_of_several_sizes_need_one(photos):
    dls = ImageDataLoaders.from_folder(
        photos, valid_pct=0.5, seed=0, bs=1, num_workers=0, device="cpu"
    )
    net = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 2))
    with pytest.raises(ValueError, match=r"dl: .*inputs of shapes .*Resize\(224\)"):
        interpret(Learner(dls, net, loss_func=CrossEntropyLossFlat()))


def test_nothing_is_in_memory_twice(monkeypatch):
    """An interpretation takes the bytes that it keeps and a batch, not its batches and their sum.

    Where maps are too large to be kept it takes a batch, however many examples there are.
    """
    x, y = torch.rand(96, 3, 64, 64), torch.zeros(96, dtype=torch.long)
    dls = tensor_dls(x[:1], y[:1], x, y, val_bs=8, device="cpu")
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    learn = Learner(dls, net, loss_func=CrossEntropyLossFlat())
    made = []
    real = _Joined._room_for

    def counted(self, part):
        room = real(self, part)
        made.append(0 if room is None else room.untyped_storage().nbytes())
        return room

    monkeypatch.setattr(_Joined, "_room_for", counted)
    kept = interpret(learn)
    assert kept.maps.untyped_storage().nbytes() == kept.inputs.untyped_storage().nbytes()
    of_photos = 2 * x.numel() * 4
    assert of_photos <= sum(made) < 1.01 * of_photos
    made.clear()
    monkeypatch.setattr("advinterp.interpretation._KEPT", of_photos - 1)
    assert interpret(learn).maps is None
    assert sum(made) < 50 * len(x)  # numbers of each example, no pixels


# ---------------------------------------------------------------- bad input


def maps_of_another_shape(model, x, y, **kwargs):
    return x.sum(1)


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        (dict(method="saliency"), TypeError, "method='saliency'"),
        (dict(method=gini), TypeError, r"method=gini: it takes .*\(model, x, y, output="),
        (dict(method=maps_of_another_shape), ValueError, "expected tensors of one shape"),
        (dict(ds_idx=7), ValueError, "loaders 0 to 1"),
        (dict(n=0), ValueError, "n=0"),
        (dict(n=2.0), TypeError, "n=2.0"),
        (dict(n=31), ValueError, "n=31: the set has 30"),
        (dict(explain="targets"), ValueError, "explain='targets'.*did you mean 'target'"),
        (dict(output="class"), ValueError, "output='class'"),
        (dict(batch_size=0), ValueError, "batch_size=0"),
        (dict(which=1), ValueError, "which=1"),
    ],
)
def test_bad_arguments_are_refused(learn, arguments, error, words):
    with pytest.raises(error, match=words):
        interpret(learn, **arguments)


def without_labels(learn):
    return learn.dls.test_dl(torch.rand(4, 3, 6, 6))


def shuffled(learn):
    return DataLoader(learn.dls.valid_ds, shuffle=True)


def no_loader(learn):
    return [(torch.rand(4, 3, 6, 6), torch.zeros(4, 2))]


class Stream(IterableDataset):
    """Examples without an end."""

    def __iter__(self):
        yield torch.rand(3, 6, 6), 0


def without_length(learn):
    return DataLoader(Stream())


def of_two_targets(learn):
    return DataLoader(TensorDataset(torch.rand(4, 3, 6, 6), torch.zeros(4, 2)))


@pytest.mark.parametrize(
    "make, error, words",
    [
        (without_labels, ValueError, "no targets to explain"),
        (shuffled, ValueError, "it shuffles"),
        (no_loader, TypeError, "expected a loader"),
        (of_two_targets, ValueError, "a column for each class"),
        (without_length, TypeError, "no length"),
    ],
)
def test_bad_loaders_are_refused(learn, make, error, words):
    with pytest.raises(error, match=words):
        interpret(learn, dl=make(learn))


@pytest.mark.parametrize(
    "verb, arguments, words",
    [
        ("top_losses", dict(k=31), "k=31"),
        ("most_concise", dict(n=0), "n=0"),
        ("plot_concise", dict(n=31), "n=31"),
        ("top_losses", dict(k=2, items=True), "items=True"),
    ],
)
def test_bad_numbers_are_refused(learn, verb, arguments, words):
    with pytest.raises(ValueError, match=words):
        getattr(interpret(learn), verb)(**arguments)


@pytest.mark.parametrize(
    "learns, error, words",
    [
        ([], ValueError, "at least one"),
        ({}, ValueError, "at least one"),
        (["net"], TypeError, "net"),
        ([nn.Linear(2, 2)], TypeError, r"Learner\(dls, model, loss_func\)"),
        (nn.Sequential(nn.Linear(2, 2)), TypeError, "got one Sequential, expected a dictionary"),
    ],
)
def test_compare_needs_learners(learns, error, words):
    with pytest.raises(error, match=words):
        compare_maps(learns)


def test_compare_says_what_one_learner_and_arguments_of_figures_are_for(learn):
    with pytest.raises(TypeError, match=r"one Learner.*learn\.show_maps\(\)"):
        compare_maps(learn)
    with pytest.raises(TypeError, match=r"plot=dict\(alpha=0\.5\)"):
        compare_maps([learn], overlay=True, alpha=0.5)
    with pytest.raises(TypeError, match="'methd'; did you mean 'method'"):
        compare_maps([learn], methd=attribution.saliency)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu(learn):
    here = interpret(learn)
    learn.model.cuda()
    there = interpret(learn)
    torch.testing.assert_close(here.maps, there.maps, atol=1e-4, rtol=1e-3)
    assert not there.maps.is_cuda
