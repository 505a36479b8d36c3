"""`Learner.explain` and `show_maps` at their border: whatever people bring, or one sentence."""

import io
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.core import DataLoaders
from fastai.data.transforms import Normalize
from fastai.learner import Learner
from fastai.tabular.all import (
    Categorify,
    CategoryBlock,
    FillMissing,
    TabularDataLoaders,
    tabular_learner,
)
from fastai.torch_core import TensorImage
from fastai.vision.all import ImageDataLoaders, PILImage, Resize
from matplotlib import pyplot as plt
from PIL import Image
from torch import nn

from advinterp.attribution import saliency
from advinterp.data import tensor_dls
from advinterp.interpretation import AttributionInterpretation
from advinterp.parts import bring_data
from advinterp.train import adv_learner

assert AttributionInterpretation  # its module gives the verbs to `Learner`
MEAN, STD = [0.4, 0.3, 0.2], [0.2, 0.4, 0.5]


def normalised():
    return Normalize.from_stats(MEAN, STD, cuda=False)


def network(channels=3, classes=4):
    torch.manual_seed(0)
    layers = [nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(36, classes))


def of_tensors(channels=3):
    """A learner of images in memory, and images like its own."""
    torch.manual_seed(1)
    x, y = torch.rand(20, channels, 6, 6), torch.arange(20) % 4
    after = [normalised()] if channels == 3 else None
    dls = tensor_dls(x[:12], y[:12], x[12:], y[12:], bs=6, after_batch=after, device="cpu")
    return adv_learner(dls, network(channels)), x[:3]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of photos of two classes."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name in ("cat", "frog"):
        (folder / name).mkdir()
        for i in range(4):
            pixels = rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def of_photos(photos):
    dls = ImageDataLoaders.from_folder(
        photos, valid_pct=0.5, seed=0, item_tfms=Resize(6), bs=4, device="cpu", num_workers=0,
        batch_tfms=normalised(),
    )  # fmt: skip
    return Learner(dls, network(classes=2), loss_func=nn.CrossEntropyLoss())


def frame_of(n=60):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(3, 2, size=(n, 3)), columns=list("abc"))
    frame["kind"] = rng.choice(["p", "q", "r"], n)
    frame["label"] = rng.choice(["no", "yes"], n)
    return frame


def of_frame(frame):
    from fastai.tabular.core import Normalize as OfColumns

    torch.manual_seed(0)
    dls = TabularDataLoaders.from_df(
        frame, procs=[Categorify, FillMissing, OfColumns], cat_names=["kind"],
        cont_names=list("abc"), y_names="label", y_block=CategoryBlock(),
        valid_idx=range(40, 60), bs=16, device="cpu",
    )  # fmt: skip
    return tabular_learner(dls, layers=[6])


@pytest.fixture(scope="module")
def of_table():
    return of_frame(frame_of())


def in_inference(x):
    with torch.inference_mode():
        return x.clone()


# ---------------------------------------------------------------- tensors and arrays

OF_ONE = {
    "one of a batch": lambda x: x[:1],
    "uint8": lambda x: (x[0] * 255).byte(),
    "array": lambda x: x[0].numpy(),
    "nested lists": lambda x: x[0].tolist(),
    "double": lambda x: x[0].double(),
    "inference": lambda x: in_inference(x[0]),
    "TensorImage": lambda x: TensorImage(x[0]),
    "asks for gradients": lambda x: x[0].clone().requires_grad_(),
    "list": lambda x: [x[0]],
    "generator": lambda x: iter(x[:1]),
}


@pytest.mark.parametrize("form", OF_ONE)
def test_an_image_in_every_form(form):
    learn, x = of_tensors()
    x = (x * 255).round() / 255
    ours = learn.explain(OF_ONE[form](x))
    expected = saliency(learn, x[:1], ours.preds)
    torch.testing.assert_close(ours.inputs, x[:1], atol=3e-3, rtol=0, check_dtype=False)
    torch.testing.assert_close(ours.maps, expected)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_within_a_mode(of_photos, photos, of_table, mode):
    learn, x = of_tensors()
    expected = learn.explain(x).maps
    fresh, _ = of_tensors()  # nothing is known of its model yet
    with mode():
        torch.testing.assert_close(fresh.explain(x.clone()).maps, expected)
        fresh.show_maps(2)
        assert len(of_photos.explain(photos)) == 8
        assert len(of_table.explain(frame_of())) == 60
    plt.close("all")


def test_several_images():
    learn, x = of_tensors()
    expected = learn.explain(x).maps
    for several in (list(x), tuple(x), [one.numpy() for one in x], x.numpy(), iter(x)):
        torch.testing.assert_close(learn.explain(several).maps, expected)


def test_a_grey_image_without_its_channel():
    learn, x = of_tensors(channels=1)
    torch.testing.assert_close(learn.explain(x[0, 0]).maps, learn.explain(x[:1]).maps)


def test_rows_are_numbers_of_any_type():
    x = torch.arange(40.0).reshape(8, 5)
    learn = adv_learner(
        tensor_dls(x, torch.arange(8) % 2, x, torch.arange(8) % 2, device="cpu"), nn.Linear(5, 2)
    )
    expected = learn.explain(x[:2]).inputs
    assert torch.equal(expected, x[:2])
    for form in (x[:2].long(), x[:2].byte(), x[:2].numpy(), x[:2].tolist()):
        assert torch.equal(learn.explain(form).inputs, expected)
    assert torch.equal(learn.explain(x[0].tolist()).inputs, x[:1])


BAD_TENSORS = {
    "grey levels": (lambda x: 255 * x, ValueError, "divide grey levels by 255"),
    "normalised": (lambda x: (x - 0.5) / 0.2, ValueError, "pixels from"),
    "whole numbers": (lambda x: (255 * x).long(), TypeError, "items has dtype torch.int64"),
    "complex": (lambda x: x + 1j, TypeError, "torch.complex64"),
    "meta": (lambda x: x.to("meta"), TypeError, "on meta"),
    "sparse": (lambda x: x.to_sparse(), TypeError, "torch.sparse_coo"),
    "matrix": (lambda x: x[0, 0], ValueError, r"expected \(3, 6, 6\) for one example"),
    "channels last": (lambda x: x.permute(0, 2, 3, 1), ValueError, "movedim"),
    "one channel": (lambda x: x[:, :1], ValueError, r"expected \(3, 6, 6\)"),
    "too many": (lambda x: x[None], ValueError, r"shape \(1, 3, 3, 6, 6\)"),
    "number": (lambda x: x.sum(), ValueError, r"items has shape \(\)"),
    "none": (lambda x: x[:0], ValueError, "at least one example"),
    "NaN": (lambda x: x.masked_fill(x > 0.9, torch.nan), ValueError, "are NaN or infinite"),
    "another size": (lambda x: torch.rand(1, 3, 9, 9), ValueError, "model: it does not take x"),
    "None": (lambda x: None, TypeError, "items: got NoneType"),
    "3": (lambda x: 3, TypeError, "items has dtype torch.int64"),
    "word": (lambda x: "image", TypeError, "items: got str"),
    "frame": (lambda x: pd.DataFrame(x[0, 0].numpy()), TypeError, "items: got DataFrame"),
    "mixed": (lambda x: [x[0], "image"], TypeError, "items: got list"),
    "shapes": (lambda x: [x[0], x[0, 0]], ValueError, r"shapes \(3, 6, 6\) and \(6, 6\)"),
}


@pytest.mark.parametrize("kind", BAD_TENSORS)
def test_bad_tensors(kind):
    change, error, said = BAD_TENSORS[kind]
    learn, x = of_tensors()
    with pytest.raises(error, match=said):
        learn.explain(change(x))


# ---------------------------------------------------------------- photos


def pictures(file):
    """One picture in all the forms that a program holds it in."""
    picture = Image.open(file).convert("RGB")
    stored = io.BytesIO()
    picture.save(stored, "PNG")
    return {
        "file": file,
        "name": str(file),
        "RGB": picture,
        "RGBA": picture.convert("RGBA"),
        "PILImage": PILImage.create(file),
        "array": np.asarray(picture),
        "array with alpha": np.asarray(picture.convert("RGBA")),
        "bytes of a file": stored.getvalue(),
        "generator": (one for one in [file]),
        "list": [picture],
    }


def test_a_photo_in_every_form(of_photos, photos):
    expected = of_photos.explain(photos / "cat" / "0.png")
    for form, picture in pictures(photos / "cat" / "0.png").items():
        ours = of_photos.explain(picture)
        torch.testing.assert_close(ours.maps, expected.maps, msg=form)
        torch.testing.assert_close(ours.inputs, expected.inputs, msg=form)


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "LA"])
def test_pictures_of_other_modes_are_read_as_their_files(of_photos, photos, tmp_path, mode):
    picture = Image.open(photos / "cat" / "0.png").convert(mode)
    file = tmp_path / ("one.tif" if mode == "CMYK" else "one.png")
    picture.save(file)
    ours, expected = of_photos.explain(picture), of_photos.explain(file)
    torch.testing.assert_close(ours.inputs, expected.inputs)
    assert ours.inputs.shape == (1, 3, 6, 6)


def test_folders_in_a_list_are_read_whole(of_photos, photos):
    assert len(of_photos.explain([photos / "cat", photos / "frog" / "0.png"])) == 5


def test_pictures_of_a_reader_of_our_own(photos):
    parts = bring_data(photos, size=6, device="cpu")
    learn = adv_learner(parts.dls, network(classes=2))
    picture = photos / "cat" / "0.png"
    if hasattr(parts.dls.train.dataset, "tls"):
        expected = learn.explain(picture)
        torch.testing.assert_close(learn.explain(Image.open(picture)).maps, expected.maps)


BAD_PHOTOS = {
    "None": (lambda file: None, TypeError, "items: got NoneType, expected an image file"),
    "number": (lambda file: 3, TypeError, "items: got int"),
    "dictionary": (lambda file: {"a": 1}, TypeError, "items: got dict"),
    "mixed": (lambda file: [file, torch.rand(3, 6, 6)], TypeError, "items: got Tensor"),
    "floats": (lambda file: np.random.rand(6, 6, 3), ValueError, "movedim"),
    "pictures": (lambda file: np.zeros((2, 6, 6, 3), np.uint8), ValueError, "height, width"),
    "two channels": (lambda file: np.zeros((6, 6, 2, 1), np.uint8), ValueError, "items"),
    "no picture": (lambda file: b"abc", ValueError, "cannot be read"),
    "no image file": (lambda file: __file__, ValueError, "cannot be read"),
    "no name": (lambda file: "", ValueError, "items=''"),
    "none": (lambda file: iter([]), ValueError, "expected at least one"),
    "frame": (lambda file: frame_of(), TypeError, "items: rows of a table"),
    "a matrix": (lambda file: torch.rand(6, 6), ValueError, "items has shape"),
    "grey levels": (lambda file: 255 * torch.rand(3, 6, 6), ValueError, "divide grey levels"),
}


@pytest.mark.parametrize("kind", BAD_PHOTOS)
def test_bad_photos(of_photos, photos, kind):
    change, error, said = BAD_PHOTOS[kind]
    with pytest.raises(error, match=said):
        of_photos.explain(change(photos / "cat" / "0.png"))


# ---------------------------------------------------------------- rows of tables

ROWS = {
    "row": lambda frame: frame.iloc[2],
    "rows": lambda frame: frame.iloc[2:3],
    "dictionary": lambda frame: frame.iloc[2].to_dict(),
    "list of dictionaries": lambda frame: [frame.iloc[2].to_dict()],
    "list of rows": lambda frame: [frame.iloc[2]],
    "of iterrows": lambda frame: [*frame.iterrows()][2],
    "of itertuples": lambda frame: [*frame.itertuples()][2],
    "generator": lambda frame: (row for _, row in frame.iloc[2:3].iterrows()),
    "another order": lambda frame: frame.iloc[2:3, ::-1],
    "words": lambda frame: frame.iloc[2:3].astype(dict(a=str)),
    "more columns": lambda frame: frame.iloc[2:3].assign(more=np.nan, date="2020"),
    "no label": lambda frame: frame.iloc[2:3].drop(columns="label"),
    "unknown label": lambda frame: frame.iloc[2:3].assign(label="perhaps"),
}


@pytest.mark.parametrize("form", ROWS)
def test_a_row_in_every_form(of_table, form):
    expected = of_table.explain(frame_of())
    ours = of_table.explain(ROWS[form](frame_of()))
    torch.testing.assert_close(ours.maps, expected.maps[2:3])
    has_label = form not in ("no label", "unknown label")
    assert (ours.targs is not None) == has_label
    assert not has_label or torch.equal(ours.targs, expected.targs[2:3])


BAD_ROWS = {
    "a column": (lambda f: f.drop(columns="b"), ValueError, "no column 'b'; expected the columns"),
    "a typo": (lambda f: f.rename(columns=dict(kind="kinds")), ValueError, "did you mean 'kinds'"),
    "no category": (lambda f: f.iloc[0].drop("kind"), ValueError, "no column 'kind'"),
    "no rows": (lambda f: f[:0], ValueError, "a table without rows"),
    "nothing": (lambda f: pd.DataFrame(), ValueError, "no column"),
    "an empty cell": (lambda f: f.assign(a=np.nan), ValueError, "'a' has empty cells"),
    "infinity": (lambda f: f.assign(b=np.inf), ValueError, "'b' has infinite values"),
    "words": (lambda f: f.assign(c="x"), ValueError, "'c' holds 'x', expected numbers"),
    "dates": (lambda f: f.assign(c=pd.Timestamp(0)), ValueError, "expected numbers"),
    "array": (lambda f: f[list("abc")].to_numpy(), TypeError, "items: got ndarray"),
    "tensor": (lambda f: torch.rand(2, 3), TypeError, "items: got Tensor"),
    "None": (lambda f: None, TypeError, "items: got NoneType"),
    "name": (lambda f: "table.csv", TypeError, "items: got str"),
    "columns": (lambda f: f.to_dict("list"), ValueError, "expected numbers there"),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_bad_rows(of_table, kind):
    change, error, said = BAD_ROWS[kind]
    with pytest.raises(error, match=said):
        of_table.explain(change(frame_of()))


def test_empty_cells_are_filled_where_the_training_data_had_some():
    frame = frame_of()
    frame.loc[::7, "a"] = np.nan
    learn = of_frame(frame)
    with pytest.raises(ValueError, match="'b' has empty cells"):
        learn.explain(frame.assign(b=np.nan))
    if learn.dls.train_ds.conts.isna().any(axis=None):
        pytest.skip("with this pandas fastai fills no cells")
    filled = frame.assign(a=frame.a.fillna(frame.a[:40].median()))
    ours = learn.explain(frame[1:8])
    torch.testing.assert_close(ours.inputs[:6], learn.explain(filled[1:7]).inputs)
    torch.testing.assert_close(
        ours.inputs[6], learn.explain(filled[7:8]).inputs[0], atol=1e-5, rtol=0
    )


def test_a_category_that_is_new_is_said(of_table):
    frame = frame_of()[:3]
    with pytest.warns(UserWarning, match="'kind' has 'z', which the training data had not"):
        ours = of_table.explain(frame.assign(kind="z"))
    torch.testing.assert_close(ours.maps, of_table.explain(frame.assign(kind=None)).maps)


# ---------------------------------------------------------------- arguments


def test_bad_arguments(of_photos, photos, of_table):
    learn, x = of_tensors()
    calls = [partial(learn.explain, x), partial(of_photos.explain, photos), learn.show_maps]
    for call in (*calls, partial(of_table.explain, frame_of())):
        with pytest.raises(TypeError, match="method='saliency': expected an attribution"):
            call(method="saliency")
        with pytest.raises(ValueError, match="explain='foo'"):
            call(explain="foo")
        with pytest.raises(ValueError, match="expected tensors of one shape"):
            call(method=lambda model, x, y, **settings: x[:, 0])
    for seed, error in ((-1, ValueError), ("a", TypeError), (0.5, TypeError)):
        with pytest.raises(error, match=f"seed={seed!r}: expected a whole number"):
            learn.show_maps(2, seed=seed)


def test_data_that_cannot_be_read_are_named(photos, tmp_path):
    learn, _ = of_tensors()
    learn.dls.valid.dataset.x[3] = torch.nan
    with pytest.raises(ValueError, match="dl: 108 of 864 numbers are NaN"):
        learn.show_maps()
    for name in ("cat", "frog"):
        (tmp_path / name).mkdir()
        Image.open(photos / name / "0.png").save(tmp_path / name / "0.png")
    dls = ImageDataLoaders.from_folder(
        tmp_path, valid_pct=0.5, seed=0, bs=1, device="cpu", num_workers=0
    )
    of_broken = Learner(dls, network(classes=2), loss_func=nn.CrossEntropyLoss())
    for name in ("cat", "frog"):
        (tmp_path / name / "0.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"dl: an example cannot be read \(UnidentifiedImageError"):
        of_broken.show_maps()


def test_a_learner_without_data_says_so():
    learn = Learner(DataLoaders(), nn.Linear(4, 3), loss_func=nn.CrossEntropyLoss())
    for ask in (lambda: learn.explain("0.png"), learn.show_maps):
        with pytest.raises(ValueError, match="learn: has no data to read"):
            ask()
