"""Studies in processes of their own, that stop where a test wants them to, and are killed there.

Nothing here races: a process says by a file that it has come to the place, and waits in it.
"""

import os
import signal
import subprocess
import sys
import time
import traceback
from multiprocessing import get_context
from pathlib import Path

import pandas as pd

MAIN = [sys.executable, "-c", "import sys; from advinterp.cli import main; sys.exit(main())"]
ENV = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "CUDA_VISIBLE_DEVICES": "",
}

# Arguments: where to stop, after how many runs, the files to write and to wait for, the command.
STOPPING = """
import itertools, sys, time
from functools import partial
from pathlib import Path

from advinterp import study
from advinterp.cli import main

where, n, reached, go_on, *command = sys.argv[1:]
count = itertools.count(1)


def stop():
    Path(reached).touch()
    while not Path(go_on).exists():
        time.sleep(.01)


def after():
    if next(count) == int(n):
        stop()


def measure(*args, measure=study.measure):
    if next(count) == int(n) + 1:
        stop()
    return measure(*args)


if where == "inside a run":  # of this process: the run after the n-th is trained, and not stored
    study.measure = measure
else:  # 'between runs': n are stored; those of other processes go on
    study.run_jobs = partial(study.run_jobs, after=after)
sys.exit(main(command))
"""


def arguments(out, *more, seeds, epochs=1):
    """The arguments of a small study on the breast-cancer table."""
    what = ["compare", "--data", "breast_cancer", "--seeds", seeds, "--epochs", epochs]
    return [str(a) for a in [*what, "--device", "cpu", "--out", out, "--resume", *more]]


def advinterp(*args, **env):
    """The command, run to its end."""
    return subprocess.run(
        [*MAIN, *map(str, args)],
        env={**ENV, **env},
        capture_output=True,
        text=True,
        timeout=600,
    )


class Stopped:
    """A study in its own process, which has come to the place where it waits."""

    def __init__(self, where, after_runs, signs, command, **env):
        self.reached = Path(signs) / "reached"
        self.go_on = Path(signs) / "go-on"
        for sign in (self.reached, self.go_on):
            sign.unlink(missing_ok=True)
        script = [sys.executable, "-c", STOPPING, where, str(after_runs)]
        self.process = subprocess.Popen(
            [*script, str(self.reached), str(self.go_on), *command],
            env={**ENV, **env},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._wait()

    def _wait(self, seconds=300):
        deadline = time.monotonic() + seconds
        while not self.reached.exists():
            if self.process.poll() is not None:
                raise AssertionError(f"ended before it stopped: {self.process.stderr.read()}")
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"did not come to its place in {seconds} seconds")
            time.sleep(0.01)

    def kill(self):
        """SIGKILL, also for the processes that it started."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stderr.close()

    def finish(self):
        """Let it go on to its end. Returns the exit code and what it said."""
        self.go_on.touch()
        said = self.process.communicate(timeout=300)[1]
        return self.process.returncode, said


def rows(out):
    """The table that a study wrote, without the times."""
    return pd.read_csv(Path(out) / "results.csv").drop(columns="seconds")


def stored(out):
    """When each of the stored runs was written, by its file."""
    return {path: path.stat().st_mtime_ns for path in Path(out).glob("runs/breast*/result.json")}


def _answer(connection, function, args):
    try:
        connection.send((True, function(*args)))
    except BaseException:
        connection.send((False, traceback.format_exc()))


def in_another_process(function, *args):
    """What a function returns in a copy of this process: what it imports is not seen here."""
    mine, other = get_context("fork").Pipe()
    process = get_context("fork").Process(target=_answer, args=(other, function, args))
    process.start()
    done, answer = mine.recv()
    process.join()
    assert done, answer
    return answer
