"""A stored result is found again where it is the right one, and only there."""

import json
import os
import shutil
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from advinterp.models import softplus_copy
from advinterp.store import (
    first_name,
    make_key,
    new_entry,
    reached_modules,
    read_entry,
    remember,
)
from tests.running import in_another_process

RESULTS = Path(__file__).resolve().parent.parent / "nbs" / "repro" / "results"
FUNC = "advinterp.metrics:gini"


class Scaled(nn.Module):
    """A network whose attribute decides what it computes."""

    def __init__(self, scale, act=torch.relu):
        super().__init__()
        self.scale = scale
        self.act = act

    def forward(self, x):
        return self.act(self.scale * x.flatten(1))


def identity(**settings):
    return make_key(FUNC, settings).identity


def two_layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 4), nn.ReLU(), nn.Linear(4, 2))


# ---------------------------------------------------------------- identity


def test_the_same_call_has_the_same_identity():
    """Order, container and memory layout of the settings do not matter."""
    x = torch.rand(4, 3, generator=torch.Generator().manual_seed(0))
    same = [
        identity(x=x, n=2, share=[0.5, 1]),
        identity(n=np.int64(2), share=(0.5, 1), x=x.numpy()),
        identity(share=[0.5, 1], x=x.T.contiguous().T, n=2),
    ]
    assert len(set(same)) == 1
    assert identity(net=two_layers()) == identity(net=two_layers())


def test_everything_that_decides_a_result_is_in_the_identity():
    x = torch.arange(4.0)
    one_bit = x.clone()
    one_bit[3] = torch.nextafter(x[3], x[3] + 1)
    net = two_layers()
    moved = two_layers()
    moved[1].bias.data[0] += 1e-7
    values = [
        *(0, 1, 0.5, "0", [0], None),
        *(x, x.double(), x.bfloat16(), x.reshape(2, 2), one_bit, x.tolist()),
        *(net, moved, softplus_copy(net), softplus_copy(net, beta=5.0), two_layers().eval()),
        *(Scaled(1.0), Scaled(2.0), Scaled(1.0, torch.tanh)),
        *(lambda v: v + 1, lambda v: v + 2, torch.sigmoid, nn.ReLU),
    ]
    assert len({identity(value=v) for v in values}) == len(values)
    assert identity(a=1) != identity(b=1)
    assert make_key(FUNC, {}).identity != make_key("advinterp.metrics:ssim", {}).identity


def local(width=8, scale=2.0, kind="a"):
    """A class of a function, in five variants."""

    class Plain:
        size = width

        def power(self, n=scale):
            return n

    class Odd(Plain):
        @property
        def it(self):
            return 1

        @staticmethod
        def other(*, k=kind):
            return k

    class Even(Plain):
        @property
        def it(self):
            return 2

        @staticmethod
        def other(*, k=kind):
            return k

    Even.__qualname__ = Odd.__qualname__
    return Odd, Even


def test_classes_of_functions_are_their_code_defaults_and_values():
    variants = [*local(), local(width=9)[0], local(scale=3.0)[0], local(kind="b")[0]]
    assert len({identity(value=cls) for cls in variants}) == len(variants)
    assert identity(value=local()[0]) == identity(value=local()[0])


def test_what_cannot_be_told_apart_is_refused():
    hooked = nn.Linear(2, 2)
    hooked.register_forward_hook(lambda *args: None)

    def made_by(n):
        return lambda v: v + n

    def class_by(act):
        class Net(nn.Module):
            def forward(self, x):
                return act(x)

        return Net

    unknown = object(), hooked, made_by(1), class_by(torch.relu), class_by(abs)()
    for value in (*unknown, np.array([{}]), {"deep": [object()]}):
        with pytest.raises(TypeError, match="value: cannot tell apart"):
            make_key(FUNC, dict(value=value))


def test_an_object_says_what_decides_its_results():
    class Learner:
        settings = dict(lr=0.1)

    first, second = Learner(), Learner()
    second.settings = dict(lr=0.2)
    assert identity(fit=first) == identity(fit=Learner()) != identity(fit=second)


def test_a_key_read_from_disk_is_the_same(tmp_path):
    """Numbers of every kind come back from JSON as the settings that were asked for."""
    settings = dict(a=0.1, b=1e-300, c=[1, 2.0], d={3: 4, 20: 5}, e=np.float32(0.3), x=np.eye(2))
    key = make_key(FUNC, settings)
    with new_entry(tmp_path / "e", key) as draft:
        draft.row["n"] = 1
    assert read_entry(tmp_path / "e", make_key(FUNC, settings))["row"] == dict(n=1)


def test_another_version_is_another_result(monkeypatch):
    before = identity()
    monkeypatch.setattr("advinterp.__version__", "99.0")
    assert identity() != before


def test_moved_functions_keep_their_first_name():
    assert first_name("advinterp.jobs:_example") == "advinterp.engine:_example"
    assert first_name("mine.papers.b:run") == "mine.papers.b:run"
    assert first_name("advinterp.train:f") == "advinterp.train:f"


@pytest.mark.parametrize("paper", "ABCD")
def test_committed_rows_keep_their_names(paper):
    """The rows beside the reproductions are found under the names that they were stored by."""
    from advinterp.papers.reproduce import find_items

    jobs = [job for item in find_items(paper) for job in item.jobs("quick", "cpu")]
    rows = json.loads((RESULTS / f"{paper}-quick.json").read_text())["rows"]
    assert rows and {row["run"] for row in rows} <= {job.name for job in jobs}


# ---------------------------------------------------------------- code

FILES = {
    "study_of_mine.py": "import os\nfrom helper_of_mine import rate\n\ndef f(): return rate()\n",
    "helper_of_mine.py": "def rate():\n    from deep_of_mine.inner import part\n    return part\n",
    "deep_of_mine/__init__.py": "",
    "deep_of_mine/inner.py": "from . import other\npart = .1\n",
    "deep_of_mine/other.py": "from advinterp import PGD\n",
    "not_used.py": "part = .2\n",
}


def _report(folder):
    sys.path.insert(0, str(folder))
    return make_key("study_of_mine:f", {}).code, set(reached_modules("study_of_mine:f"))


def code_of_project(folder, changes):
    """Digest and reached modules of a small project, as a process sees it that starts now."""
    for name, text in {**FILES, **changes}.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return in_another_process(_report, folder)


def test_the_code_is_all_that_the_function_imports(tmp_path):
    """A number in a module that is imported two files away counts; prose and layout do not."""
    first, reached = code_of_project(tmp_path, {})
    assert {"study_of_mine", "helper_of_mine", "deep_of_mine.inner"} < reached
    assert {"advinterp.adversary", "advinterp.core"} < reached  # through the lazy name PGD
    assert not reached & {"os", "not_used", "advinterp.study", "advinterp"}
    prose = {
        "study_of_mine.py": f'"""What it is."""\n# Why.\n{FILES["study_of_mine.py"]}',
        "helper_of_mine.py": FILES["helper_of_mine.py"].replace(":\n", ':\n    """A rate."""\n'),
        "not_used.py": "part = .3\n",
    }
    assert code_of_project(tmp_path, prose)[0] == first
    for name, text in {
        "study_of_mine.py": FILES["study_of_mine.py"].replace("rate()\n", "2 * rate()\n"),
        "deep_of_mine/inner.py": FILES["deep_of_mine/inner.py"].replace(".1", ".2"),
        "deep_of_mine/__init__.py": "import not_used\n",
    }.items():
        assert code_of_project(tmp_path, {name: text})[0] != first, name


def test_a_function_of_the_package_reaches_the_modules_that_it_uses():
    reached = set(reached_modules("advinterp.papers.b:run_one"))
    assert {"advinterp.penalty", "advinterp.evaluate", "advinterp.papers.common"} < reached
    assert not reached & {"advinterp.cli", "advinterp._deprecated", "advinterp.estimator"}
    assert reached == set(reached_modules("advinterp.paper_b:run_one"))


def test_the_code_of_a_network_counts(tmp_path, monkeypatch):
    """A network of a module of one's own brings that module's code with it."""
    (tmp_path / "net_of_mine.py").write_text("from torch import nn\nclass Net(nn.Linear): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    from net_of_mine import Net

    brought = make_key(FUNC, dict(net=Net(2, 2)))
    assert brought.code != make_key(FUNC, dict(net=nn.Linear(2, 2))).code
    assert make_key(FUNC, {}).code == make_key(FUNC, dict(net=nn.Linear(2, 2))).code


def test_packages_of_another_environment_are_packages(tmp_path, monkeypatch):
    """An environment may see the packages of another one: they are no code of one's own."""
    packages = tmp_path / "lib" / "site-packages"
    packages.mkdir(parents=True)
    (packages / "net_of_theirs.py").write_text("from torch import nn\nclass Net(nn.Linear): pass\n")
    monkeypatch.syspath_prepend(packages)
    from net_of_theirs import Net

    assert make_key(FUNC, dict(net=Net(2, 2))).code == make_key(FUNC, {}).code


# ---------------------------------------------------------------- entries


def stored(folder, key, text="notes"):
    with new_entry(folder, key) as draft:
        (draft.folder / "inner").mkdir()
        (draft.folder / "inner" / "notes.txt").write_text(text)
        draft.row["text"] = text
    return folder


def test_an_entry_is_complete_or_absent(tmp_path):
    key = make_key(FUNC, {})
    folder = tmp_path / "runs" / "entry"
    for _ in range(2):  # in an empty place, then over an entry that is there
        with pytest.raises(KeyboardInterrupt), new_entry(folder, key) as draft:
            (draft.folder / "half.txt").write_text("half")
            raise KeyboardInterrupt
        assert not list(folder.parent.glob(".*"))
        assert not folder.exists() or read_entry(folder, key)["row"] == dict(text="old")
        stored(folder, key, "old")
    stored(folder, key, "new")
    assert read_entry(folder, key)["row"] == dict(text="new")
    assert (folder / "inner" / "notes.txt").read_text() == "new"
    assert [path.name for path in folder.parent.iterdir()] == ["entry"]


def test_the_old_entry_comes_back_where_the_new_one_cannot_be_renamed(tmp_path, monkeypatch):
    key = make_key(FUNC, {})
    folder = stored(tmp_path / "entry", key, "old")
    rename = os.replace

    def no_rename(source, target):
        if source.name.endswith(".tmp") and not source.name.endswith(".old.tmp"):
            raise OSError("no rename")
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", no_rename)
        with pytest.raises(OSError, match="no rename"):
            stored(folder, key, "new")
    assert read_entry(folder, key)["row"] == dict(text="old")


@pytest.mark.parametrize("name", ["inner/notes.txt", "result.json", "seal"])
@pytest.mark.parametrize("damage", ["edited", "truncated", "removed"])
def test_damage_is_noticed(tmp_path, name, damage):
    key = make_key(FUNC, {})
    folder = stored(tmp_path / "entry", key)
    path = folder / name
    if damage == "removed":
        path.unlink()
    else:
        content = path.read_bytes()
        path.write_bytes(content[:-1] if damage == "truncated" else b"0" + content[1:] + b" ")
    expected = "is missing" if damage == "removed" else "was changed since it was stored"
    with pytest.raises(ValueError, match=expected):
        read_entry(folder, key)


def test_a_folder_copied_over_another_is_refused(tmp_path):
    first, second = (make_key(FUNC, dict(eps=eps)) for eps in (0.1, 0.2))
    stored(tmp_path / first.name("e"), first)
    shutil.copytree(tmp_path / first.name("e"), tmp_path / second.name("e"))
    with pytest.raises(ValueError, match="another call"):
        read_entry(tmp_path / second.name("e"), second)


def test_an_entry_without_a_record_of_its_code_is_of_other_code(tmp_path):
    """Entries of the first version say nothing of the code: they are read, and marked."""
    key = make_key(FUNC, {})
    folder = stored(tmp_path / "entry", key)
    assert read_entry(folder, key)["same_code"]
    result = json.loads((folder / "result.json").read_text())
    del result["code"]
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "seal").write_text(sha256((folder / "result.json").read_bytes()).hexdigest())
    assert not read_entry(folder, key)["same_code"]


# ---------------------------------------------------------------- tensors made once


def test_tensors_are_made_once_and_again_where_they_must_be(tmp_path):
    made = []

    def ask(**settings):
        def make():
            made.append(settings)
            return dict(maps=torch.full((2, 2), float(len(made))))

        return remember(tmp_path, FUNC, settings, make)["maps"]

    first = ask(eps=0.1)
    assert torch.equal(ask(eps=0.1), first) and len(made) == 1
    ask(eps=0.2)
    ask(eps=0.1, net=two_layers())
    ask(eps=0.1, net=softplus_copy(two_layers()))
    assert len(made) == 4
    (damaged,) = tmp_path.glob(f"{make_key(FUNC, dict(eps=0.1)).name('gini')}/*.safetensors")
    damaged.write_bytes(b"truncated")
    with pytest.warns(UserWarning, match="was changed since it was stored"):
        again = ask(eps=0.1)
    assert len(made) == 5 and torch.equal(ask(eps=0.1), again)
    assert len(list(tmp_path.iterdir())) == 4
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file, expected a folder"):
        remember(tmp_path / "file", FUNC, {}, dict)


@pytest.mark.parametrize("layer", [nn.RNN, nn.GRU, nn.LSTM])
def test_recurrent_networks_have_a_key(layer):
    """They hold their weights by weak references; other weights are another key."""
    torch.manual_seed(0)
    one, other = layer(3, 4), layer(3, 4)
    key = make_key("advinterp.roar:roar", dict(model=one)).identity
    assert key == make_key("advinterp.roar:roar", dict(model=one)).identity
    assert key != make_key("advinterp.roar:roar", dict(model=other)).identity
