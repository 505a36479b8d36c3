"""Kept rows of the papers, trained again: one job of each kind, compared number by number.

    nice -n 15 python tools/again.py --seconds 80 --write

takes of every kind of job that the results hold the one that took the shortest time, leaves out
those that took longer, runs the others in a folder of their own, and says which numbers differ.
"""

import argparse
import json
import math
import sys
import tempfile
from datetime import date
from pathlib import Path

import numpy as np

from advinterp.jobs import check_out, read_job, run_job
from advinterp.papers.reproduce import find_items

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "nbs" / "repro" / "results"
RULE = (
    "of every kind of job (function and settings, numbers left out) the quickest, where it took "
    "at most {seconds:g} s, was run again by the code of this commit: rows are equal where every "
    "number is, to one unit in the last place of float32"
)
_NUMBERS = (int, float)


def kind_of(value):
    """Settings without their numbers: jobs of one kind run the same code."""
    if isinstance(value, dict):
        return {name: kind_of(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [kind_of(part) for part in value]
    return 0 if isinstance(value, _NUMBERS) and not isinstance(value, bool) else value


def quickest_of_each_kind(paper, rows, seconds):
    """Pairs of a job and its kept row."""
    jobs = {job.name: job for item in find_items(paper) for job in item.jobs("quick", "cpu")}
    found = {}
    for row in sorted(rows, key=lambda row: row["seconds"]):
        job = jobs[row["run"]]
        kind = json.dumps([job.func, kind_of(job.settings)], sort_keys=True)
        if row["seconds"] <= seconds:
            found.setdefault(kind, (job, row))
    return list(found.values())


def is_equal(ours, kept):
    """Equal, numbers to one unit in the last place of float32, at any depth."""
    if isinstance(ours, dict):
        return ours.keys() == kept.keys() and all(is_equal(ours[k], kept[k]) for k in ours)
    if isinstance(ours, (list, tuple)):
        return len(ours) == len(kept) and all(map(is_equal, ours, kept))
    if isinstance(ours, float) and isinstance(kept, _NUMBERS):
        unit = float(np.spacing(np.float32(max(abs(ours), abs(kept)))))
        return abs(ours - kept) <= max(unit, 1e-10) or (math.isnan(ours) and math.isnan(kept))
    return ours == kept


def differing(ours, kept):
    """The numbers that differ: name -> (ours, kept)."""
    return {
        name: (value, kept.get(name))
        for name, value in ours.items()
        if not is_equal(value, kept.get(name))
    }


def again(paper, preset_file, out, seconds):
    """Run the jobs of a paper again: lines of (name, seconds, what differs)."""
    rows = json.loads(preset_file.read_text(encoding="utf-8"))["rows"]
    lines = []
    for job, row in quickest_of_each_kind(paper, rows, seconds):
        run_job(job, out)
        found = differing(json.loads(json.dumps(read_job(job, out)["row"])), row)
        lines.append((job.name, row["seconds"], found))
        print(f"{job.name:60} {row['seconds']:6.1f} s  {found or 'equal'}", flush=True)
    return lines


def write(preset_file, lines, seconds):
    """Put the rule and the jobs into the results."""
    kept = json.loads(preset_file.read_text(encoding="utf-8"))
    equal = [name for name, _, found in lines if not found]
    kept["about"]["again"] = dict(
        rule=RULE.format(seconds=seconds),
        date=str(date.today()),
        names="the jobs have the names that they had",
        equal=equal,
        differ={name: found for name, _, found in lines if found},
    )
    preset_file.write_text(json.dumps(kept, indent=1), encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("papers", nargs="*", default=["A", "B", "C", "D"])
    parser.add_argument("--seconds", type=float, default=80, help="the longest job to run again")
    parser.add_argument("--out", help="folder of the runs, to go on with; else a temporary one")
    parser.add_argument("--write", action="store_true", help="note the outcome in the results")
    asked = parser.parse_args()
    n_equal = n_all = 0
    with tempfile.TemporaryDirectory() as temporary:
        for paper in asked.papers:
            preset_file = RESULTS / f"{paper}-quick.json"
            out = check_out(Path(asked.out or temporary) / paper, resume=True)
            lines = again(paper, preset_file, out, asked.seconds)
            n_equal += sum(not found for *_, found in lines)
            n_all += len(lines)
            if asked.write:
                write(preset_file, lines, asked.seconds)
    print(f"{n_equal} of {n_all} equal")
    return int(n_equal < n_all)


if __name__ == "__main__":
    sys.exit(main())
