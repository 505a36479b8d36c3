"""Data of one's own: every kind that people bring, what is refused, another process."""

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.core import DataLoaders
from fastai.data.transforms import Normalize
from fastai.vision.augment import Brightness, Rotate
from fastai.vision.data import ImageDataLoaders
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_wine

from advinterp import bring_data
from advinterp.data import load, tensor_dls
from advinterp.parts import PhotoReader, split_three, store_data

WINE = load_wine(as_frame=True).frame
WINE["strong"] = np.where(WINE.pop("alcohol") > 13, "yes", "no")


def brought(data, *args, **options):
    return bring_data(data, *args, device="cpu", **options)


def all_parts(parts):
    return [t for part in ("train", "valid", "test") for t in parts.examples(part, None)]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(all_parts(one), all_parts(other), strict=True))


def remade(identity):
    """The parts made again from JSON."""
    return brought(**json.loads(json.dumps(identity)))


# ---------------------------------------------------------------- three parts


@given(
    st.lists(st.integers(3, 30), min_size=1, max_size=5),
    st.floats(0.01, 0.49),
    st.floats(0.01, 0.49),
    st.integers(0, 9),
)
def test_split_three(counts, valid, test, seed):
    y = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    cut = split_three(y, seed, valid, test)
    assert np.sort(np.concatenate(cut)).tolist() == list(range(len(y)))
    for c, count in enumerate(counts):
        n_train, n_valid, n_test = (int((y[rows] == c).sum()) for rows in cut)
        assert min(n_train, n_valid, n_test) >= 1
        assert abs(n_valid - count * valid) <= 1
        assert abs(n_test - count * test) <= 1


def test_groups_stay_together():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 300)
    groups = rng.integers(0, 40, 300)
    cut = split_three(y, 0, 0.2, 0.2, groups)
    found = [set(groups[rows]) for rows in cut]
    assert not (found[0] & found[1] or found[0] & found[2] or found[1] & found[2])
    assert np.sort(np.concatenate(cut)).tolist() == list(range(300))
    assert all(abs(len(rows) / 300 - share) < 0.1 for rows, share in zip(cut, (0.6, 0.2, 0.2)))
    with pytest.raises(ValueError, match="lacks a class"):
        split_three(y, 0, 0.2, 0.2, y)


# ---------------------------------------------------------------- tables


def test_table_from_every_side(tmp_path):
    """A frame, its CSV and the stored frame are the same data, and JSON makes them again."""
    parts = brought(WINE, "target", seed=3)
    file = tmp_path / "wine.csv"
    WINE.to_csv(file, index=False)
    of_csv = brought(str(file), "target", seed=3)
    stored = store_data(WINE, tmp_path)
    of_stored = brought(stored, "target", seed=3)
    assert same(parts, of_csv) and same(parts, of_stored)
    assert same(of_csv, remade(of_csv.identity)) and same(parts, remade(of_stored.identity))
    assert parts.identity["sha256"] == of_stored.identity["sha256"]
    assert parts.identity["data"] is None
    assert of_csv.name == "wine"
    assert not same(parts, brought(WINE, "target", seed=4))
    assert parts.class_names == ["0", "1", "2"]
    assert parts.shape == (14,) and parts.bounds is None and parts.kind == "table"
    assert store_data(WINE, tmp_path) == stored


def test_names_of_stored_tables(tmp_path):
    stored = store_data(WINE, tmp_path / "in", name="../out of/here")
    assert [path.parent.name for path in tmp_path.rglob("*.safetensors")] == ["in"]
    assert same(brought(stored, "target"), brought(WINE, "target"))


def test_what_is_in_memory_cannot_be_made_again():
    with pytest.raises(TypeError, match="data: got NoneType"):
        remade(brought(WINE, "target").identity)


def test_changed_content_is_refused(tmp_path):
    file = tmp_path / "wine.csv"
    WINE.to_csv(file, index=False)
    identity = brought(file, "target").identity
    WINE.iloc[1:].to_csv(file, index=False)
    with pytest.raises(ValueError, match="content has changed"):
        remade(identity)


def test_groups_of_a_table(tmp_path):
    patients = np.arange(len(WINE)) // 4
    frame = WINE.assign(patient=patients)
    parts = brought(frame, "target", groups="patient")
    assert "patient" not in parts.feature_of_column
    assert same(parts, brought(WINE, "target", groups=patients))
    stored = store_data(WINE, tmp_path, groups=patients)
    assert same(parts, brought(stored, "target"))
    assert not same(parts, brought(WINE, "target"))


def test_rows_and_classes_as_arrays():
    x, y = WINE.drop(columns="target"), WINE.target
    parts = brought(WINE, "target")
    assert same(parts, brought((x, y))) and same(parts, brought((x, y.to_numpy()[:, None])))
    numbers = x.drop(columns="strong").to_numpy()
    as_tensors = brought((torch.tensor(numbers), torch.tensor(y.to_numpy())))
    assert same(as_tensors, brought((numbers, y.tolist())))
    words = brought((numbers, np.array(["a", "b", "c"])[y]))
    assert words.class_names == ["a", "b", "c"]
    assert same(as_tensors, words)


# ---------------------------------------------------------------- images in memory


def test_images_in_memory(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (30, 3, 5, 6), dtype=np.uint8)
    y = np.tile([0, 1], 15)
    parts = brought((x, y))
    assert parts.shape == (3, 5, 6) and parts.bounds == (0.0, 1.0) and parts.kind == "image"
    assert same(parts, brought((x.transpose(0, 2, 3, 1), y)))
    assert same(parts, brought((torch.tensor(x).float() / 255, y)))
    assert same(parts, remade(brought(store_data((x, y), tmp_path)).identity))
    assert brought((x[:, 0], y)).shape == (1, 5, 6)


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (np.full((6, 3, 4, 4), 200.0), "divide them by 255"),
        (np.full((6, 3, 4, 4), -1.0), "scale them to"),
        (np.full((6, 3, 4, 4), np.nan), "expected \\[0, 1\\]"),
        (np.zeros((5, 3, 4, 4)), "for each of 5 rows"),
        (np.zeros(6), "has shape \\(6,\\)"),
        (np.zeros((0, 3)), "has shape \\(0, 3\\)"),
    ],
)
def test_images_that_are_none(x, said):
    with pytest.raises(ValueError, match=said):
        brought((x, [0, 1, 0, 1, 0, 1]))


# ---------------------------------------------------------------- photos


def photo_folder(folder, n=12, size=(20, 16), modes=("RGB",), ending="png"):
    """Photos of two classes: light and dark."""
    rng = np.random.default_rng(0)
    for i in range(n):
        name = "light" if i % 2 else "dark"
        (folder / name).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 128, (*size, 3), dtype=np.uint8) + np.uint8(128 * (i % 2))
        image = Image.fromarray(pixels).convert(modes[i % len(modes)])
        image.save(folder / name / f"{i:02}.{ending}")
    return folder


def test_photos(tmp_path):
    folder = photo_folder(tmp_path / "shades")
    parts = brought(folder)
    assert parts.shape == (3, 20, 16) and parts.bounds == (0.0, 1.0)
    assert parts.sizes == dict(train=8, valid=2, test=2)
    x, y = parts.examples("test")
    assert ((x.mean((1, 2, 3)) > 0.5).long() == y).all()
    assert same(parts, remade(parts.identity))
    assert not same(parts, brought(folder, seed=1))
    assert "kept in memory" in parts.describe()


def test_photos_read_when_needed(tmp_path, monkeypatch):
    """Above the limit fastai's loaders read them: the same photos, none of them beforehand."""
    folder = photo_folder(tmp_path, size=(20, 17))
    kept = brought(folder, size=(8, 6))
    monkeypatch.setattr("advinterp.parts._IN_MEMORY", 1)
    monkeypatch.setattr("advinterp.parts._n_workers", lambda: 0)
    n_read = []
    monkeypatch.setattr(PhotoReader, "__call__", counted(PhotoReader.__call__, n_read))
    lazy = brought(folder, size=(8, 6))
    assert len(n_read) <= 3  # fastai's setup looks at the first
    assert "read when needed" in lazy.describe()
    assert same(kept, lazy)
    assert lazy.sizes == kept.sizes and list(lazy.dls.vocab) == kept.class_names
    xb, _ = lazy.dls.one_batch()
    assert xb.shape == (8, 3, 8, 6) and 0 <= xb.min() and xb.max() <= 1


def counted(function, calls):
    def call(*args):
        calls.append(args)
        return function(*args)

    return call


def test_modes_of_photos(tmp_path):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    read = PhotoReader()
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert (np.asarray(read(tmp_path / "grey.png")) == grey[..., None]).all()
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert (np.asarray(read(tmp_path / "deep.png")) == grey[..., None]).all()
    clear = Image.new("RGBA", (4, 4), (9, 9, 9, 0))
    clear.save(tmp_path / "clear.png")
    assert (np.asarray(read(tmp_path / "clear.png")) == 255).all()
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(tmp_path / "palette.png")
    assert (np.asarray(read(tmp_path / "palette.png")) == [10, 20, 30]).all()
    turned = Image.fromarray(grey[:8])
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert np.asarray(read(tmp_path / "turned.jpg")).shape == (16, 8, 3)


def test_photos_of_all_modes_and_sizes(tmp_path):
    photo_folder(tmp_path, modes=("RGB", "L", "RGBA", "P", "1", "CMYK"), ending="tif")
    Image.new("RGB", (40, 9)).save(tmp_path / "dark" / "wide.jpg")
    with pytest.raises(ValueError, match="2 sizes, from 9 x 40 to 20 x 16: say size="):
        brought(tmp_path)
    parts = brought(tmp_path, size=8)
    assert parts.shape == (3, 8, 8)
    assert "4 grey photos" in parts.describe() and "2 transparent" in parts.describe()


def test_a_turned_camera(tmp_path):
    """A photo that is stored lying has the size that it has upright."""
    photo_folder(tmp_path, size=(20, 16))
    lying = Image.new("RGB", (20, 16))
    exif = lying.getexif()
    exif[0x0112] = 6
    lying.save(tmp_path / "dark" / "lying.jpg", exif=exif)
    assert brought(tmp_path).shape == (3, 20, 16)
    lying.save(tmp_path / "dark" / "lying.jpg")
    with pytest.raises(ValueError, match="photos of 2 sizes"):
        brought(tmp_path)


def spoil_torn(folder):
    path = folder / "dark" / "torn.jpg"
    Image.new("RGB", (64, 64), "red").save(path)
    path.write_bytes(path.read_bytes()[:400])
    return "torn.jpg is broken"


def spoil_text(folder):
    (folder / "dark" / "text.png").write_text("no photo")
    return "text.png is broken"


def spoil_pipe(folder):
    os.mkfifo(folder / "dark" / "pipe.png")
    return "pipe.png is no regular file"


def spoil_bomb(folder):
    Image.new("1", (20_000, 20_000)).save(folder / "dark" / "bomb.png")
    return "bomb.png has far too many pixels"


def spoil_large(folder):
    Image.new("1", (10_000, 10_000)).save(folder / "dark" / "large.png")
    return "large.png has 10000 x 10000 pixels"


def spoil_float(folder):
    Image.fromarray(np.zeros((4, 4), np.float32)).save(folder / "dark" / "float.tif")
    return "float.tif has fractions"


@pytest.mark.parametrize(
    "spoil", [spoil_torn, spoil_text, spoil_pipe, spoil_bomb, spoil_large, spoil_float]
)
@pytest.mark.filterwarnings("error")
def test_broken_photos(tmp_path, spoil):
    """Refused by name, or left out on request; the rest is as if they had never been there."""
    sound = brought(photo_folder(tmp_path))
    said = spoil(tmp_path)
    with pytest.raises(ValueError, match=said) as caught:
        brought(tmp_path)
    assert "missing='drop'" in str(caught.value)
    parts = brought(tmp_path, missing="drop")
    assert same(parts, sound)
    assert "1 broken photos left out" in parts.describe()
    assert same(parts, remade(parts.identity))


def test_parts_of_ones_own(tmp_path):
    for part, n in dict(train=10, val=4, test=6).items():
        photo_folder(tmp_path / part, n)
    assert brought(tmp_path).sizes == dict(train=10, valid=4, test=6)
    (tmp_path / "val").rename(tmp_path / "more")
    with pytest.raises(ValueError, match="no photos in"):
        (tmp_path / "more" / "empty").mkdir()
        brought(tmp_path / "more")
    for path in sorted((tmp_path / "more").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (tmp_path / "more").rmdir()
    assert brought(tmp_path).sizes == dict(train=8, valid=2, test=6)
    (tmp_path / "test" / "dark").rename(tmp_path / "test" / "dusk")
    with pytest.raises(ValueError, match="dark, dusk are not both in train and in test"):
        brought(tmp_path)


def test_folders_that_are_none(tmp_path):
    with pytest.raises(ValueError, match="has no sub-folder"):
        brought(tmp_path)
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="has 1 photos and no sub-folder"):
        brought(tmp_path)
    photo_folder(tmp_path)
    assert brought(tmp_path).sizes["train"] == 8
    (tmp_path / "notes").mkdir()
    with pytest.raises(ValueError, match="no photos in notes"):
        brought(tmp_path)
    Image.new("L", (16, 20)).save(tmp_path / "notes" / "a.png")
    with pytest.raises(ValueError, match=r"'notes' \(1\) have fewer than 3"):
        brought(tmp_path)


def test_links_out_of_the_folder(tmp_path):
    folder = photo_folder(tmp_path / "in")
    away = photo_folder(tmp_path / "away")
    within = folder / "dark" / "again.png"
    within.symlink_to(folder / "dark" / "00.png")
    assert sum(brought(folder).sizes.values()) == 13
    for link, target in [("dark/x.png", "dark/00.png"), ("dark/more", "dark"), ("all", "light")]:
        (folder / link).symlink_to(away / target)
        with pytest.raises(ValueError, match="is a link out of the folder"):
            brought(folder)
        (folder / link).unlink()
    (tmp_path / "link").symlink_to(folder)
    assert same(brought(tmp_path / "link"), brought(folder))


# ---------------------------------------------------------------- registered sets, loaders


def test_registered_sets():
    digits = brought("digits")
    assert digits.shape == (1, 8, 8) and sum(digits.sizes.values()) == 1797
    assert same(digits, remade(digits.identity))
    cancer = brought("breast_cancer")
    x, _ = cancer.examples("train", None)
    assert x.std(0, correction=0).sub(1).abs().max() < 1e-4
    toy = brought("block_toy")
    assert toy.sizes == dict(train=8000, valid=2000, test=1000)
    assert np.array_equal(toy.examples("test", None)[0].numpy(), load("block_toy").x_test)
    assert same(brought(load("digits")), digits)
    again, other = brought("block_toy"), brought("block_toy", seed=1)
    assert same(toy, again) and not same(toy, other)
    for name in ("osie_gaze", "cub_gha"):
        with pytest.raises(ValueError, match=r"gaze|classes|not found"):
            brought(name)


def test_loaders():
    x = torch.rand(20, 3, 4, 4)
    y = torch.arange(20) % 2
    normalise = Normalize.from_stats([0.5] * 3, [0.25] * 3, cuda=False)
    dls = tensor_dls(
        x, y, x[:6], y[:6], vocab=["even", "odd"], after_batch=[normalise], device="cpu"
    )
    parts = brought(dls)
    assert parts.dls is dls and parts.identity is None
    assert parts.class_names == ["even", "odd"] and parts.bounds == (0.0, 1.0)
    assert torch.allclose(parts.examples("train", 5)[0], x[:5], atol=1e-6)
    assert "validation serves as the test" in parts.describe()
    with pytest.raises(TypeError, match="cannot be handed to another process"):
        store_data(dls, ".")


def test_photo_loaders_of_fastai(tmp_path):
    """The examples are the photos as they are, whatever training does to them."""
    folder = photo_folder(tmp_path, size=(16, 16))
    dls = ImageDataLoaders.from_folder(
        folder,
        valid_pct=0.3,
        seed=0,
        bs=4,
        num_workers=0,
        device="cpu",
        batch_tfms=[
            Rotate(180, p=1.0),
            Brightness(0.9, p=1.0),
            Normalize.from_stats([0.5] * 3, [0.2] * 3, cuda=False),
        ],
    )
    parts = brought(dls)
    assert parts.class_names == ["dark", "light"] and parts.bounds == (0.0, 1.0)
    for part, data in (("train", dls.train_ds), ("valid", dls.valid_ds)):
        x, y = parts.examples(part, None)
        expected = [torch.tensor(np.asarray(image)).permute(2, 0, 1) / 255 for image, _ in data]
        assert torch.allclose(x, torch.stack(expected), atol=1e-5)
        assert y.tolist() == [int(label) for _, label in data]


def test_batches_that_are_no_pairs():
    rows = [dict(x=torch.zeros(3), y=0)] * 4
    loader = torch.utils.data.DataLoader(rows, batch_size=2)
    with pytest.raises(TypeError, match="a batch is a dict, expected"):
        brought((loader, loader))


def test_torch_loaders():
    x = torch.rand(20, 5)
    y = torch.arange(20) % 3
    data = torch.utils.data.TensorDataset(x, y)
    train = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True)
    valid = torch.utils.data.DataLoader(torch.utils.data.Subset(data, range(7)), batch_size=4)
    parts = brought((train, valid, train))
    assert isinstance(parts.dls, DataLoaders) and parts.dls.train is train and parts.test is train
    assert parts.sizes == dict(train=20, valid=7, test=20)
    assert parts.class_names == ["0", "1", "2"] and parts.kind == "table" and parts.bounds is None
    state = torch.get_rng_state()
    assert torch.equal(parts.examples("train", None)[0], x)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="size=8: does not apply to loaders"):
        brought((train, valid), size=8)


# ---------------------------------------------------------------- functions, other processes

MODULE = """
import numpy as np
import pandas as pd

def frame():
    rng = np.random.default_rng(0)
    return pd.DataFrame({"a": rng.random(30), "b": np.tile([0, 1], 15)})

def restless():
    return frame().assign(a=np.random.default_rng().random(30))

def none():
    return 3

number = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_own_data.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_own_data", raising=False)
    return "my_own_data"


def test_functions(module):
    parts = brought(f"{module}:frame", "b")
    assert same(parts, remade(parts.identity))
    assert store_data(f"{module}:frame", ".") == f"{module}:frame"
    with pytest.raises(ValueError, match="content has changed"):
        remade(brought(f"{module}:restless", "b").identity)
    for name, said in [
        (f"{module}:none", "data: got int"),
        (f"{module}:number", "is a int, expected a function"),
        (f"{module}:nowhere", "cannot be imported"),
        ("no_such_module:f", "cannot be imported"),
    ]:
        with pytest.raises((ValueError, TypeError), match=said):
            brought(name, "b")


def test_another_process(tmp_path):
    identity = brought(store_data(WINE, tmp_path), "target", seed=5).identity
    code = (
        "import json, sys, torch; from advinterp import bring_data\n"
        "parts = bring_data(**json.loads(sys.argv[1]), device='cpu')\n"
        "print(repr(parts.examples('test', None)[0].double().sum().item()))"
    )
    argv = [sys.executable, "-c", code, json.dumps(identity)]
    result = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=tmp_path)
    here = remade(identity).examples("test", None)[0].double().sum().item()
    assert float(result.stdout) == here


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("data", "options", "said"),
    [
        ("digitz", {}, "no file, folder or registered name.*did you mean 'digits'"),
        ("nowhere/my.csv", {}, "no file, folder"),
        ("", {}, "data='': no file"),
        (3, {}, "data: got int"),
        (WINE, dict(target="targte"), "did you mean 'target'"),
        (WINE, dict(target=["target"]), "target=\\['target'\\]: expected the name of one column"),
        (WINE, dict(target=WINE.target), "target=Series: expected the name of one column"),
        (WINE, dict(target=True), "target=bool"),
        (WINE, dict(target=4), "target='4': no such column"),
        (WINE, dict(target="target", drop=None), "drop=None: expected names of columns"),
        (WINE, dict(target="target", drop=[None]), "drop=NoneType: expected the name"),
        (WINE, dict(target="target", name=3), "name=3: expected a str"),
        (WINE, dict(target="target", sha256=3), "sha256=3: expected a str"),
        ((torch.eye(3).to_sparse(), [0, 1, 0]), {}, "x: a tensor of torch.sparse_coo"),
        ((torch.eye(3).to("meta"), [0, 1, 0]), {}, "x: a tensor of torch.strided on meta"),
        (WINE, dict(target="target", size=3), "size=3: does not apply to a table"),
        (WINE, dict(target="target", valid=0.5, test=0.5), "no rows are left"),
        (WINE, dict(target="target", test=0), "test=0: expected a share"),
        (WINE, dict(target="target", valid=1), "valid=1: expected a share"),
        (WINE, dict(target="target", seed=-1), "seed=-1"),
        (WINE, dict(target="target", batch_size=0), "batch_size=0"),
        (WINE, dict(target="target", groups=[1, 2]), "groups has shape \\(2,\\)"),
        ("digits", dict(target="x"), "target='x': does not apply to digits"),
        ("digits", dict(size=8), "size=8: does not apply to digits"),
        ((np.eye(3), ["a", "b", "c"]), {}, "fewer than 3"),
        (([[1, 2], [3]], [0, 1]), {}, "different lengths"),
        ((np.array([["a"]]), [0]), {}, "a table of words is a DataFrame"),
    ],
)
def test_refused(data, options, said):
    with pytest.raises((ValueError, TypeError), match=said) as caught:
        brought(data, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("device", ["cudaa", "", "cuda:99", "meta", 3.5])
def test_devices_that_are_not_there(device):
    with pytest.raises(ValueError, match=f"device={device!r}: not available here; there is cpu"):
        bring_data(WINE, "target", device=device)


def test_columns_without_names_are_called_by_their_numbers():
    frame = WINE.rename(columns={name: i for i, name in enumerate(WINE.columns)})
    last = len(WINE.columns) - 1
    expected = brought(frame, str(last), groups="0", drop=["1", "2"])
    assert same(brought(frame, last, groups=0, drop=[1, np.int64(2)]), expected)
    assert same(brought(frame, np.int64(last), drop=3), brought(frame, str(last), drop="3"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_tensors_of_any_precision(dtype):
    x = torch.arange(120.0).reshape(40, 3) % 7
    y = torch.arange(40) % 2
    assert same(brought((x.to(dtype), y.to(dtype))), brought((x, y)))
    with torch.inference_mode():
        made = x.clone(), y.clone()
        assert same(brought(made), brought((x, y)))
    images = torch.rand(20, 3, 4, 4).to(dtype)
    assert same(brought((images, y[:20])), brought((images.float(), y[:20])))


def test_paths_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(ValueError, match="is neither a file nor a folder"):
        brought(tmp_path / "pipe.csv", "a")
    (tmp_path / "gone.csv").symlink_to(tmp_path / "nothing")
    with pytest.raises(ValueError, match="is neither a file nor a folder"):
        brought(tmp_path / "gone.csv", "a")


def test_nothing_half_written(tmp_path):
    with pytest.raises(TypeError, match="has cells"):
        store_data(pd.DataFrame({"a": [[1], [2]]}), tmp_path / "new")
    assert not (tmp_path / "new").exists()
