"""What breaks around a study: parents that die, disks, clocks, files, half of the runs."""

import contextlib
import gzip
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from importlib.resources import files

import numpy as np
import pandas as pd
import pytest

from advinterp import data
from advinterp.data import DataError, DataNotFound, verify
from advinterp.jobs import (
    Job,
    check_out,
    is_done,
    job_folder,
    locked,
    read_job,
    read_study,
    run_job,
    run_jobs,
    status,
    write_study,
)
from advinterp.papers.common import items_of
from advinterp.papers.reproduce import items
from advinterp.report import Section, write_report
from advinterp.store import make_key, new_entry, read_entry
from advinterp.study import compare_recipes, open_study, plan, recipe
from tests.running import ENV, MAIN, arguments, rows
from tests.stored import store_run

JOBS = """
import os, time
from pathlib import Path

def wait(folder, tick, place, seconds):
    with open(place, "a") as file:
        file.write(f"{os.getpid()}\\n")
    tick(.5)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(.02)
    return dict(n=1)

def full(folder, tick):
    raise Exception("Error while serializing: No space left on device (os error 28)")

def private(folder, tick):
    (folder / "weights").write_text("1")
    (folder / "weights").chmod(0o600)
    return {}
"""
RUN = """
import sys
sys.path.insert(0, sys.argv[1])
from advinterp.jobs import *
out = check_out(sys.argv[2], resume=True)
jobs = [Job("jobs_of_faults:wait", dict(place=sys.argv[3] + str(n), seconds=120), f"job{n}")
        for n in range(2)]
write_study(out, jobs)
with locked(out):
    run_jobs(jobs, out, 2, progress=False)
"""


@pytest.fixture
def job_of(tmp_path, monkeypatch):
    """Jobs of the module above."""
    (tmp_path / "jobs_of_faults.py").write_text(JOBS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "jobs_of_faults", raising=False)

    def job(name, **settings):
        return Job(f"jobs_of_faults:{name}", settings, name)

    return job


def wait_until(condition, seconds=100):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# ---------------------------------------------------------------- parents that die


def killed(tmp_path, with_signal):
    """Kill a study with two workers in the middle of their jobs, and wait for these to end."""
    (tmp_path / "jobs_of_faults.py").write_text(JOBS)
    place = tmp_path / "pid"
    command = [sys.executable, "-c", RUN, *map(str, (tmp_path, tmp_path / "study", place))]
    study = subprocess.Popen(command, env=ENV, start_new_session=True, stderr=subprocess.DEVNULL)
    notes = [tmp_path / f"pid{n}" for n in range(2)]
    try:
        wait_until(lambda: all(note.exists() and note.read_text() for note in notes))
        workers = [int(note.read_text()) for note in notes]
        assert all(map(is_alive, workers)) and study.pid not in workers
        os.kill(study.pid, with_signal)
        study.wait()
        wait_until(lambda: not any(map(is_alive, workers)), 30)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(study.pid, signal.SIGKILL)
    return tmp_path / "study"


@pytest.mark.skipif(not os.path.exists("/proc"), reason="looks into /proc")
def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    out = killed(tmp_path, signal.SIGKILL)
    assert set(status(out).state) == {"started"}
    with locked(out):
        assert not list((out / "runs").iterdir())
        assert not (out / "running").exists()


@pytest.mark.slow
@pytest.mark.parametrize("with_signal", [signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_a_parent_that_is_stopped(tmp_path, with_signal):
    killed(tmp_path, with_signal)


@pytest.fixture
def elsewhere(tmp_path, job_of):
    """A job that another process is running: the job, its study, the process."""
    job = job_of("wait", place=str(tmp_path / "pids"), seconds=0.5)
    out = check_out(tmp_path / "study")
    child = os.fork()
    if child == 0:
        os._exit(0 if run_job(job, out) == "done" else 1)
    wait_until((tmp_path / "pids").exists)
    return job, out, child


def test_a_job_that_runs_elsewhere_is_waited_for(tmp_path, elsewhere):
    """Two processes, one job: it runs once, and both find it done."""
    job, out, child = elsewhere
    assert run_job(job, out) == "done"
    assert os.waitpid(child, 0)[1] == 0
    assert len((tmp_path / "pids").read_text().split()) == 1


def test_what_another_process_is_making_is_not_swept_away(elsewhere):
    job, out, child = elsewhere
    with locked(out):
        assert list((out / "runs").glob(".wait-*.tmp"))
    assert os.waitpid(child, 0)[1] == 0
    assert is_done(job, out)


def test_the_result_that_is_complete_first_stays(tmp_path, monkeypatch):
    """Another process puts its entry between our two renames: ours is dropped, without an error."""
    key = make_key("advinterp.metrics:gini", dict(a=1))
    entry, other = tmp_path / "entry", tmp_path / "other"
    with new_entry(other, key) as draft:
        draft.row["n"] = 1
    rename = os.replace

    def just_before(source, target):
        if str(target) == str(entry):
            rename(other, entry)
        rename(source, target)

    with monkeypatch.context() as patch, new_entry(entry, key) as draft:
        draft.row["n"] = 2
        patch.setattr("advinterp.store.os.replace", just_before)
    assert read_entry(entry, key)["row"] == dict(n=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["entry"]


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    """SIGKILL of the parent alone, three times, each resumed: the rows of an undisturbed study."""
    compare_recipes(
        "breast_cancer", seeds=6, epochs=2, device="cpu", progress=False, out=tmp_path / "a"
    )
    command = [*MAIN, *arguments(tmp_path / "b", "--jobs", "2", seeds=6, epochs=2)]
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    moments = random.Random()
    for _ in range(3):
        study = subprocess.Popen(command, env=ENV, **quiet)
        time.sleep(moments.uniform(1, 25))
        study.kill()
        study.wait()
    done = subprocess.run(command, env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    settings = ["adv_epochs"]  # that the command changes as well
    first, second = rows(tmp_path / "a"), rows(tmp_path / "b")
    same = ["data", "method", "seed", "accuracy", "gini"]
    natural = first.method != "adversarial"
    pd.testing.assert_frame_equal(first[natural][same], second[natural][same])
    assert set(first) == set(second) > set(settings)


# ---------------------------------------------------------------- disks, clocks, rights


def test_a_full_disk_that_is_no_oserror_stops_the_study(tmp_path, job_of):
    """As safetensors says it: the job is not to blame, and is not noted as failed."""
    job = job_of("full")
    with pytest.raises(OSError, match="No space left on device"):
        run_job(job, check_out(tmp_path / "study"))
    assert not (tmp_path / "study" / "failed").exists()


def test_a_clock_that_is_set_takes_no_year(tmp_path, job_of, monkeypatch):
    years = iter(range(100))
    monkeypatch.setattr("time.time", lambda: 31_536_000.0 * next(years))
    job = job_of("wait", place=str(tmp_path / "pids"), seconds=0.0)
    assert run_job(job, check_out(tmp_path / "study")) == "done"
    assert read_job(job, tmp_path / "study")["seconds"] < 1000


def test_who_may_read_the_folder_may_read_the_weights(tmp_path, job_of):
    job = job_of("private")
    run_job(job, check_out(tmp_path / "study"))
    folder = job_folder(job, tmp_path / "study")
    allowed = folder.stat().st_mode & 0o666
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {allowed}


# ---------------------------------------------------------------- damaged files

SHAPES = ["", "{", "[]", "7", "null", '{"row": 3}', "\x00", "[" * 100_000]


@pytest.mark.parametrize("text", [*SHAPES, '{"version": "0.1.0", "jobs": [{"func": 7}]}'])
def test_a_damaged_table_of_jobs_has_a_remedy_that_works(tmp_path, text):
    jobs = [Job("advinterp.jobs:_example", dict(a=1), "a1")]
    write_study(check_out(tmp_path), jobs)
    run_jobs(jobs, tmp_path, progress=False)
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(ValueError, match=r"study.json: is damaged; start the study again with"):
        read_study(tmp_path)
    write_study(check_out(tmp_path, resume=True), jobs)
    assert list(status(tmp_path).state) == ["done"]


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("text", SHAPES)
def test_a_damaged_result_hides_no_other_one(tmp_path, text, sealed):
    jobs = [Job("advinterp.jobs:_example", dict(a=a), f"a{a}") for a in (1, 2)]
    write_study(check_out(tmp_path), jobs)
    run_jobs(jobs, tmp_path, progress=False)
    folder = job_folder(jobs[0], tmp_path)
    (folder / "result.json").write_text(text)
    if sealed:
        import hashlib

        (folder / "seal").write_text(hashlib.sha256(text.encode()).hexdigest())
    found = status(tmp_path)
    assert list(found.state) == ["damaged", "done"]
    assert f"remove the folder {folder.name}" in found.error[0]
    shutil.rmtree(folder)  # as it says
    assert set(run_jobs(jobs, tmp_path, progress=False).values()) == {"done"}


def test_a_label_is_no_path():
    with pytest.raises(ValueError, match=r"label='\.\./x': expected a name for a folder"):
        Job("advinterp.jobs:_example", dict(a=1), "../x")


# ---------------------------------------------------------------- half of the runs


@pytest.fixture
def half(tmp_path):
    """A study in which a natural run failed, an l1 run is damaged, and the rest is there."""
    runs = plan("breast_cancer", ["l1"], seeds=3)
    out = check_out(tmp_path / "study")
    write_study(out, [run.job() for run in runs], kind="compare")
    for run in runs:
        if (run.method, run.seed) != ("natural", 0):
            store_run(run, out, [0.1 * run.seed, 0.5, 0.6])
    damaged = next(run for run in runs if (run.method, run.seed) == ("l1", 1))
    (job_folder(damaged.job(), out) / "result.json").write_text("")
    return out


def test_a_report_shows_what_is_there_and_says_what_is_missing(half):
    results = open_study(half)
    assert list(zip(results.method, results.seed)) == [
        ("natural", 1),
        ("natural", 2),
        ("l1", 2),
    ]
    page = results.report().read_text()
    assert "Missing: 3 of 6 runs" in page and "result.json: was changed" in page
    assert (half / "breast_cancer_gain.png").exists()


def test_an_item_of_a_paper_leaves_out_what_is_damaged(tmp_path):
    jobs = [Job("advinterp.jobs:_example", dict(a=a), f"a{a}") for a in (1, 2)]
    write_study(check_out(tmp_path), jobs)
    run_jobs(jobs, tmp_path, progress=False)
    (job_folder(jobs[0], tmp_path) / "seal").unlink()
    record = dict(name="X.t", title="t", scaled="", runs=dict(of="all"))
    record["sections"] = [dict(by="count", title="t", text="{n}")]
    draws = dict(count=lambda done: dict(n=len(done.runs)))
    (item,) = items_of([record], dict(all=lambda *_: jobs), draws)
    assert [section.text for section in item.sections(tmp_path)] == ["1"]


def test_resuming_with_other_settings_keeps_the_earlier_rows(tmp_path):
    few = dict(epochs=1, adv_epochs=1, device="cpu", progress=False, out=tmp_path)
    first = compare_recipes("breast_cancer", "l1", lam=0.1, **few)
    both = compare_recipes("breast_cancer", "l1", lam=0.2, resume=True, **few)
    assert list(first.strength) == [0.0, 0.1]
    assert set(both.strength) == {0.0, 0.1, 0.2}
    again = both.frame.set_index("run").loc[first.run, ["accuracy", "gini"]]
    assert again.values.tolist() == first[["accuracy", "gini"]].values.tolist()


def test_natural_models_alone(tmp_path):
    results = compare_recipes(
        "breast_cancer", "natural", epochs=1, adv_epochs=1, device="cpu", progress=False
    )
    assert list(results.method) == ["natural"]


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(n_jobs=0), "n_jobs=0"),
        (dict(backend="slurm"), "backend='slurm'"),
        (dict(seeds=10**12), "seeds=1000000000000: expected how many"),
        (dict(seeds=[2**32]), "expected seeds below"),
        (dict(seeds=-1), "seeds=-1"),
        (dict(eps=[]), "eps=.*at least one"),
        (dict(device="cuda:99"), "device='cuda:99': not available"),
        (dict(adv_epochs=5, clean_epochs=5), "the adversary would never act"),
    ],
    ids=str,
)
def test_a_refused_study_leaves_nothing_behind(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        compare_recipes("breast_cancer", out=tmp_path / "x", progress=False, **wrong)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("epochs, clean", [(1, 0), (2, 1), (3, 2), (30, 2)])
def test_the_adversary_acts_in_a_short_training(epochs, clean):
    assert recipe("breast_cancer", adv_epochs=epochs).clean_epochs == clean


def test_home_is_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert check_out("~/study") == tmp_path / "study"


def test_a_figure_is_no_path(tmp_path):
    section = Section("t", figures={"../x": (None, "")})
    with pytest.raises(ValueError, match=r"'\.\./x' is no file name"):
        write_report(tmp_path / "page", "t", "", [section])


def test_the_list_of_items_is_that_of_the_papers():
    """`reproduce --list` reads a file: write name, title and cost of `items()` into it."""
    with (files("advinterp.papers") / "published" / "items.csv").open() as file:
        listed = pd.read_csv(file)
    assert listed.values.tolist() == [[item.name, item.title, item.cost] for item in items()]


# ---------------------------------------------------------------- data sets


@pytest.fixture
def spam(tmp_path, monkeypatch):
    """A folder for spambase, and its real table."""
    real = data._find(data._REGISTRY["spambase"])
    if real is None:
        pytest.skip("spambase is not here")
    table = pd.read_csv(real.folder / "spambase.csv.gz")
    monkeypatch.setenv("ADVINTERP_DATA", str(tmp_path))
    monkeypatch.setenv("ADVINTERP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "spambase").mkdir()
    return tmp_path / "spambase" / "spambase.csv.gz", table


def test_swapped_columns_are_not_sound(spam):
    file, table = spam
    table.to_csv(file, index=False)
    assert verify("spambase")["rows"] == 4601
    first, second, *others = table.columns
    table.set_axis([second, first, *others], axis=1).to_csv(file, index=False)
    with pytest.raises(DataError, match="names of its features or classes"):
        verify("spambase")


def test_a_file_that_would_fill_the_memory_is_not_unpacked(spam, monkeypatch):
    file, _ = spam
    monkeypatch.setattr("advinterp.data._LARGEST", 2**20)
    file.write_bytes(gzip.compress(bytes(2**21)))
    with pytest.raises(DataError, match="holds more than 1 MB when unpacked"):
        verify("spambase")


def test_nobody_waits_for_a_pipe(spam):
    file, _ = spam
    os.mkfifo(file)
    with pytest.raises(DataNotFound):
        verify("spambase")


def test_what_killed_downloads_left_is_removed(tmp_path):
    left = tmp_path / ".part-1234"
    left.mkdir()
    (left / "half").write_text("1")
    data._clear_parts(tmp_path)
    assert not list(tmp_path.iterdir())


def test_noise_with_the_right_means_is_not_cifar10():
    noise = np.zeros((50_000, 3, 32, 32), np.uint8)
    y = np.arange(50_000) % 10
    raw = dict(x=noise, y=y, x_test=noise[:10_000], y_test=y[:10_000])
    assert "checksum of its first images" in data._full_cifar(raw)
