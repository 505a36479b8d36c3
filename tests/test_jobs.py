"""Studies lose nothing: killed, out of disk, in processes, on a cluster, started twice, edited."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pandas as pd
import pytest
import torch

from advinterp.jobs import (
    Job,
    check_out,
    job_folder,
    locked,
    read_job,
    read_study,
    run_job,
    run_jobs,
    status,
    store_row,
    table,
    write_study,
)
from advinterp.study import compare_recipes
from tests.running import (
    Stopped,
    advinterp,
    arguments,
    in_another_process,
    rows,
)

FEW = dict(epochs=1, adv_epochs=1, device="cpu", progress=False)
CANCER = dict(FEW, data="breast_cancer")


def sums(*values):
    """Jobs that are over at once; they fail where the value is negative."""
    return [Job("advinterp.jobs:_example", dict(a=a), f"a{a}") for a in values]


def draws(*seeds):
    """Jobs that draw from torch's and NumPy's generators."""
    return [Job("advinterp.jobs:_random_example", dict(seed=s), f"seed{s}") for s in seeds]


def run_all(jobs, out, *args, **kwargs):
    """Run jobs in a new folder. Returns the states and the rows of those that are done."""
    write_study(check_out(out), jobs)
    with locked(out):
        states = run_jobs(jobs, out, *args, progress=False, **kwargs)
    done = [job for job in jobs if states[job.name] == "done"]
    return states, [read_job(job, out)["row"] for job in done]


def undisturbed(out, seeds):
    compare_recipes(**CANCER, seeds=seeds, out=out)
    return rows(out)


# ---------------------------------------------------------------- several processes, a cluster


def test_same_rows_in_several_processes(tmp_path):
    """The same seeds give the same rows, whatever the number of processes."""
    one = undisturbed(tmp_path / "one", 2)
    compare_recipes(**CANCER, seeds=2, out=tmp_path / "two", n_jobs=2)
    pd.testing.assert_frame_equal(one, rows(tmp_path / "two"))


def test_jobs_with_random_numbers_do_not_disturb_each_other(tmp_path):
    """Two at a time in processes give the rows of one after the other, in any order."""
    jobs = draws(0, 1, 2, 3)
    _, alone = run_all(jobs, tmp_path / "alone")
    _, together = run_all(jobs, tmp_path / "together", 2)
    _, backwards = run_all(jobs[::-1], tmp_path / "backwards")
    assert together == alone == backwards[::-1]
    assert len({row["sum"] for row in alone}) == 4


def test_threads_are_refused(tmp_path):
    """They would share the generators; one thread alone does not."""
    with pytest.raises(ValueError, match="backend='threading': jobs in threads would share"):
        run_all(draws(0, 1), tmp_path / "two", 2, "threading")
    assert not list((tmp_path / "two" / "runs").iterdir())
    assert run_all(draws(0), tmp_path / "one", 1, "threading") == run_all(
        draws(0), tmp_path / "here"
    )


def test_dask_workers_with_threads_are_refused(tmp_path, monkeypatch):
    distributed = pytest.importorskip("dask.distributed", reason="Dask is not installed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
    ) as cluster:
        monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", cluster.scheduler_address)
        with pytest.raises(ValueError, match="with one thread each"):
            run_all(draws(0, 1), tmp_path, 2, "dask")


def test_a_cluster_loses_a_worker(tmp_path):
    """Three workers, one of which is killed on the way: the table of an undisturbed study."""
    distributed = pytest.importorskip("dask.distributed", reason="Dask is not installed")
    expected = undisturbed(tmp_path / "whole", 6)
    with distributed.LocalCluster(
        n_workers=3, threads_per_worker=1, dashboard_address=None, silence_logs=50
    ) as cluster:
        study = Stopped(
            *("between runs", 1, tmp_path),
            arguments(tmp_path / "cluster", "--backend", "dask", seeds=6),
            DASK_SCHEDULER_ADDRESS=cluster.scheduler_address,
        )
        os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL)
        code, said = study.finish()
    assert code == 0, said
    pd.testing.assert_frame_equal(rows(tmp_path / "cluster"), expected)


def test_ray_gives_the_rows_of_one_process(tmp_path):
    """Two workers on this machine: the same states and rows, a failure included."""
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    ray.init(num_cpus=2, include_dashboard=False, logging_level="error")
    jobs = sums(1, 2, -1, 3)
    try:
        on_ray = run_all(jobs, tmp_path / "ray", 2, "ray")
    finally:
        ray.shutdown()
    here = run_all(jobs, tmp_path / "here")
    assert on_ray == here and list(here[0].values()).count("failed") == 1


# ---------------------------------------------------------------- started twice, failed


def test_locked_while_it_runs(tmp_path):
    """A second study in the folder is refused; a killed one leaves the folder free and clean."""
    out = tmp_path / "study"
    study = Stopped("inside a run", 1, tmp_path, arguments(out, seeds=6))
    second = advinterp(*arguments(out, seeds=6))
    study.kill()
    assert second.returncode == 2
    assert "another study is running" in second.stderr and second.stderr.count("\n") == 1
    states = status(out).state.value_counts().to_dict()
    assert states == dict(done=1, started=1, waiting=16)
    with locked(out):
        pass
    assert not list((out / "runs").glob(".*"))


def test_failed_runs_are_recorded(tmp_path):
    """A run that fails is named with its error, stops no other, and runs again on resume."""
    with pytest.raises(RuntimeError, match="3 of 6 runs failed"):
        compare_recipes(
            ["breast_cancer", "digits"], model="small_conv", **FEW, n_explain=20, out=tmp_path
        )  # a table is no image
    states = status(tmp_path)
    failed = states[states.run.str.startswith("breast_cancer")]
    assert set(failed.state) == {"failed"} and failed.error.str.len().min() > 10
    assert set(states.state.drop(failed.index)) == {"done"}
    said = advinterp("study", "status", tmp_path)
    assert said.returncode == 0 and said.stdout.count("failed") == 3
    assert len(table(tmp_path)) == 3
    assert "digits" in (tmp_path / "report.html").read_text()


def test_a_failed_job_is_tried_again(tmp_path):
    (job,) = sums(-1)
    states, _ = run_all([job], tmp_path)
    assert states == {job.name: "failed"}
    assert status(tmp_path).error[0] == "ArithmeticError: a=-1"
    store_row(job, tmp_path, dict(sum=-1), 0.0)  # as if it had gone well at last
    assert run_job(job, tmp_path) == "done"
    (tmp_path / "failed" / f"{job.name}.json").write_text("{")
    shutil.rmtree(job_folder(job, tmp_path))
    assert "is damaged" in status(tmp_path).error[0]


def test_a_job_that_goes_well_at_last_is_no_failure(tmp_path, monkeypatch):
    """Nothing is left of the error, also where its result is removed later."""
    (job,) = sums(1)
    with monkeypatch.context() as patch:
        patch.setattr("advinterp.jobs._example", None)
        states, _ = run_all([job], tmp_path)
    assert states == {job.name: "failed"} and status(tmp_path).state[0] == "failed"
    assert run_job(job, tmp_path) == "done" and status(tmp_path).state[0] == "done"
    shutil.rmtree(job_folder(job, tmp_path))
    assert status(tmp_path).state[0] == "waiting" and status(tmp_path).error[0] == ""


@pytest.mark.parametrize("value, state", [(1, "done"), (-1, "failed")])
def test_the_caller_keeps_its_threads(tmp_path, value, state):
    (job,) = sums(value)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert run_job(job, check_out(tmp_path), threads=2) == state
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


# ---------------------------------------------------------------- edited, of another version


def test_edited_results_are_refused(tmp_path):
    """A number that was changed by hand is named, and nothing is overwritten."""
    compare_recipes(**CANCER, out=tmp_path)
    file = next((tmp_path / "runs").glob("*-natural-*")) / "result.json"
    file.write_text(file.read_text().replace('"accuracy": 0', '"accuracy": 1'))
    edited = file.read_bytes()
    again = advinterp(*arguments(tmp_path, seeds=1))
    assert again.returncode == 2
    assert "was changed since it was stored" in again.stderr and file.read_bytes() == edited


def test_one_edited_file_does_not_hide_the_other_runs(tmp_path):
    """`status` says what is wrong with the one, and the state of the rest."""
    jobs = sums(1, 2, 3, 4)
    run_all(jobs, tmp_path)
    (job_folder(jobs[1], tmp_path) / "notes.txt").write_text("edited")
    shutil.rmtree(job_folder(jobs[2], tmp_path))
    shutil.copytree(job_folder(jobs[0], tmp_path), job_folder(jobs[2], tmp_path))
    states = status(tmp_path)
    assert list(states.state) == ["done", "damaged", "damaged", "done"]
    assert "notes.txt: was changed" in states.error[1] and "another call" in states.error[2]
    assert list(states.seconds.isna()) == [False, True, True, False]
    with pytest.raises(ValueError, match="was changed"):
        table(tmp_path)


def test_another_version_is_refused(tmp_path):
    compare_recipes(**CANCER, out=tmp_path)
    study = json.loads((tmp_path / "study.json").read_text())
    (tmp_path / "study.json").write_text(json.dumps({**study, "version": "99.0"}))
    again = advinterp(*arguments(tmp_path, seeds=1))
    assert again.returncode == 2
    assert "advinterp 99.0" in again.stderr and again.stderr.count("\n") == 1


@pytest.mark.parametrize("version", ["0.0.9", "99.0"])
def test_a_study_of_an_earlier_or_a_later_version_is_not_continued(tmp_path, version):
    write_study(check_out(tmp_path), sums(1))
    file = tmp_path / "study.json"
    file.write_text(json.dumps(dict(json.loads(file.read_text()), version=version)))
    with pytest.raises(ValueError, match=f"was made by advinterp {version}, this is"):
        check_out(tmp_path, resume=True)


def _with_rate(out, rate, keep_code):
    "Run a job whose source says `rate`, as a process does that starts now."
    (out / "job_of_mine.py").write_text(f"def f(folder, tick, n):\n    return dict(rate={rate})\n")
    sys.path.insert(0, str(out))
    job = Job("job_of_mine:f", dict(n=1), "mine")
    write_study(out, [job])
    before = list(status(out).state)
    states = run_jobs([job], out, progress=False, keep_code=keep_code)
    return before, list(states.values()), list(status(out).state), list(table(out).rate)


@pytest.mark.parametrize(
    "rate, keep_code, expected",
    [
        (2, False, (["other code"], ["done"], ["done"], [2])),
        (2, True, (["other code"], ["other code"], ["other code"], [1])),
        (1, False, (["done"], ["done"], ["done"], [1])),
    ],
)
def test_the_code_of_a_job_counts(tmp_path, rate, keep_code, expected):
    """A result of other code is run again, or kept and said to be so."""
    first = in_another_process(_with_rate, tmp_path, 1, False)
    assert first == (["waiting"], ["done"], ["done"], [1])
    assert in_another_process(_with_rate, tmp_path, rate, keep_code) == expected


def test_a_result_of_other_code_stays_until_the_new_one_is_complete(tmp_path):
    """Where the new code fails, the old numbers are still there."""
    in_another_process(_with_rate, tmp_path, 1, False)
    *_, failed, after, rates = in_another_process(_with_rate, tmp_path, "1 / 0", False)
    assert (failed, after, rates) == (["failed"], ["other code"], [1])


def test_jobs_of_earlier_versions_are_found_by_their_old_names(tmp_path):
    (today,) = sums(1)
    earlier = Job("advinterp.engine:_example", dict(a=1), "a1")
    assert earlier.name == today.name == "a1-" + today.key.identity[:10]
    run_all([today], tmp_path)
    assert read_job(earlier, tmp_path)["row"] == dict(sum=1)


def test_a_study_that_is_no_json_is_refused(tmp_path):
    write_study(check_out(tmp_path), sums(1))
    for text in ("{", '{"jobs": []}', '{"version": "0", "jobs": [1]}', '{"version": "0"}'):
        (tmp_path / "study.json").write_text(text)
        with pytest.raises(ValueError, match="is damaged"):
            read_study(tmp_path)


# ---------------------------------------------------------------- killed, disk full


def _mounted(folder):
    "Mount a small disk; False where we have no right to."
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True).returncode == 0


def _fill(folder, leave):
    free = os.statvfs(folder)
    (folder / "ballast").write_bytes(bytes(free.f_bavail * free.f_frsize - leave))


@pytest.mark.slow
def test_a_hundred_runs_killed_three_times(tmp_path):
    """102 runs, SIGKILL three times: after restarts the table of an undisturbed study."""
    expected = undisturbed(tmp_path / "whole", 34)
    out = tmp_path / "study"
    for runs in (20, 25, 25):
        command = arguments(out, "--jobs", "2", seeds=34)
        Stopped("between runs", runs, tmp_path, command).kill()
    assert 70 <= list(status(out).state).count("done") < 102
    done = advinterp(*arguments(out, "--jobs", "2", seeds=34))
    assert done.returncode == 0, done.stderr
    pd.testing.assert_frame_equal(rows(out), expected)
    assert list(status(out).state) == ["done"] * 102


@pytest.mark.slow
def test_a_full_disk(tmp_path):
    """The study ends with an error that says so, and goes on when there is room again."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if not _mounted(disk):
        pytest.skip("no right to mount a small disk to fill")
    try:
        expected = undisturbed(tmp_path / "whole", 2)
        Stopped("between runs", 2, tmp_path, arguments(disk / "study", seeds=2)).kill()
        _fill(disk, leave=40_000)
        full = advinterp(*arguments(disk / "study", seeds=2))
        assert full.returncode in (1, 2) and "pace" in full.stderr, full.stderr
        (disk / "ballast").unlink()
        assert advinterp(*arguments(disk / "study", seeds=2)).returncode == 0
        pd.testing.assert_frame_equal(rows(disk / "study"), expected)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
