"Studies lose nothing: killed, out of disk, in several processes, on a cluster that loses a worker, started twice, edited."

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from advinterp.jobs import (
    Job,
    check_out,
    job_folder,
    locked,
    read_job,
    read_study,
    run_jobs,
    status,
    table,
    write_study,
)
from advinterp.study import compare

MAIN = [sys.executable, "-c", "import sys; from advinterp.cli import main; sys.exit(main())"]
ENV = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "CUDA_VISIBLE_DEVICES": "",
}
FEW = dict(data="breast_cancer", epochs=1, adv_epochs=1, device="cpu", progress=False)


def command(out, *more, seeds, **env):
    return [
        *MAIN,
        "compare",
        "--data",
        "breast_cancer",
        "--seeds",
        str(seeds),
        "--epochs",
        "1",
        "--device",
        "cpu",
        "--out",
        str(out),
        "--resume",
        *more,
    ], {**ENV, **env}


def finish(out, *more, seeds, **env):
    cmd, env = command(out, *more, seeds=seeds, **env)
    return subprocess.run(cmd, env=env, capture_output=True, text=True, timeout=600)


def finished(out):
    return len(list(Path(out).glob("runs/breast*/seal")))


def begin_until(out, n, *more, seeds, **env):
    "Start a study and return its process as soon as `n` runs are stored."
    cmd, env = command(out, *more, seeds=seeds, **env)
    p = subprocess.Popen(
        cmd,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    end = time.monotonic() + 300
    while finished(out) < n and p.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    assert p.poll() is None, f"ended before {n} runs were stored: {p.stderr.read()[-2000:]}"
    return p


def kill(p):
    os.killpg(p.pid, signal.SIGKILL)
    p.wait()
    p.stderr.close()


def rows(out):
    return pd.read_csv(Path(out) / "results.csv").drop(columns="seconds")


def undisturbed(out, seeds):
    compare(**FEW, seeds=seeds, out=out)
    return rows(out)


def test_same_rows_in_several_processes(tmp_path):
    "The same seeds give the same rows, whatever the number of processes."
    a = undisturbed(tmp_path / "one", 2)
    compare(**FEW, seeds=2, out=tmp_path / "two", n_jobs=2)
    pd.testing.assert_frame_equal(a, rows(tmp_path / "two"))


def test_locked_while_it_runs(tmp_path):
    "A second study in the folder of one that runs is refused, and disturbs nothing; a killed one leaves the folder free and its remains are cleared away."
    p = begin_until(tmp_path, 1, seeds=150)
    second = finish(tmp_path, seeds=6)
    kill(p)
    assert (
        second.returncode == 2
        and "another study is running" in second.stderr
        and second.stderr.count("\n") == 1
    )
    (tmp_path / "runs" / ".left-over.tmp").mkdir()
    with locked(tmp_path):
        pass
    assert not list((tmp_path / "runs").glob(".*"))


def test_failed_runs_are_recorded(tmp_path):
    "A run that fails is named with its error, stops no other, and runs again when the study is resumed."
    with pytest.raises(RuntimeError, match="3 of 6 runs failed"):
        compare(
            ["breast_cancer", "digits"],
            model="small_conv",
            **{k: v for k, v in FEW.items() if k != "data"},
            n_explain=20,
            out=tmp_path,
        )
    s = status(tmp_path)
    assert (
        list(s.state.groupby(s.run.str.split("-").str[0]).first()) == ["failed", "done"]
        and s.error[s.state == "failed"].str.len().min() > 10
    )
    r = subprocess.run(
        [*MAIN, "study", "status", str(tmp_path)], env=ENV, capture_output=True, text=True
    )
    assert r.returncode == 0 and r.stdout.count("failed") == 3
    assert len(table(tmp_path)) == 3 and "digits" in (tmp_path / "report.html").read_text()


def test_edited_results_are_refused(tmp_path):
    "A number that was changed by hand is named, nothing is overwritten."
    compare(**FEW, out=tmp_path)
    f = next((tmp_path / "runs").glob("*-natural-*")) / "result.json"
    f.write_text(f.read_text().replace('"accuracy": 0', '"accuracy": 1'))
    edited = f.read_bytes()
    r = finish(tmp_path, seeds=1)
    assert (
        r.returncode == 2
        and "was changed since it was stored" in r.stderr
        and f.read_bytes() == edited
    )


def test_another_version_is_refused(tmp_path):
    compare(**FEW, out=tmp_path)
    s = json.loads((tmp_path / "study.json").read_text())
    (tmp_path / "study.json").write_text(json.dumps({**s, "version": "99.0"}))
    r = finish(tmp_path, seeds=1)
    assert r.returncode == 2 and "advinterp 99.0" in r.stderr and r.stderr.count("\n") == 1


def test_a_cluster_loses_a_worker(tmp_path):
    "On a Dask cluster of three workers, one of which is killed on the way: the table of an undisturbed study."
    from dask.distributed import LocalCluster

    want = undisturbed(tmp_path / "whole", 12)
    with LocalCluster(
        n_workers=3, threads_per_worker=1, dashboard_address=None, silence_logs=50
    ) as cluster:
        p = begin_until(
            tmp_path / "cluster",
            1,
            "--backend",
            "dask",
            seeds=12,
            DASK_SCHEDULER_ADDRESS=cluster.scheduler_address,
        )
        os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL)
        err = p.communicate(timeout=300)[1]
    assert p.returncode == 0, err
    pd.testing.assert_frame_equal(rows(tmp_path / "cluster"), want)


def test_ray_gives_the_rows_of_one_process(tmp_path):
    "On a Ray cluster of two workers on this machine: the same states and rows, a failure included."
    ray = pytest.importorskip(
        "ray", reason="Ray is not installed: the backend is offered for clusters that have it"
    )
    jobs = [Job("advinterp.jobs:_example", dict(a=a), f"a{a}") for a in (1, 2, -1, 3)]
    ray.init(num_cpus=2, include_dashboard=False, logging_level="error")
    try:
        states = {
            b: run_jobs(jobs, check_out(tmp_path / b), 2, b, progress=False)
            for b in ("sequential", "ray")
        }
    finally:
        ray.shutdown()
    assert (
        states["ray"] == states["sequential"] and list(states["ray"].values()).count("failed") == 1
    )
    done = [j for j in jobs if states["ray"][j.name] == "done"]
    assert [read_job(j, tmp_path / "ray")["row"] for j in done] == [
        read_job(j, tmp_path / "sequential")["row"] for j in done
    ]


@pytest.mark.slow
def test_a_hundred_runs_killed_three_times_and_out_of_disk(tmp_path):
    "102 runs, SIGKILL three times, then a disk that is full: after restarts the table of an undisturbed study."
    want, out = undisturbed(tmp_path / "whole", 34), tmp_path / "small_disk" / "study"
    out.parent.mkdir()
    mounted = (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(out.parent)],
            capture_output=True,
        ).returncode
        == 0
    )
    try:
        for n in (20, 45, 70):
            kill(begin_until(out, n, "--jobs", "2", seeds=34))
        if mounted:
            free = os.statvfs(out.parent)
            (out.parent / "ballast").write_bytes(bytes(free.f_bavail * free.f_frsize - 40_000))
            full = finish(out, seeds=34)
            assert full.returncode in (1, 2) and "pace" in full.stderr, full.stderr
            (out.parent / "ballast").unlink()
        done = finish(out, "--jobs", "2", seeds=34)
        assert done.returncode == 0, done.stderr
        pd.testing.assert_frame_equal(rows(out), want)
        assert set(status(out).state) == {"done"} and len(status(out)) == 102
    finally:
        if mounted:
            subprocess.run(["umount", str(out.parent)], check=True)
    if not mounted:
        pytest.skip("killed three times and resumed; no right to mount a small disk to fill")
