"""Keep the tables at equal accuracy of finished studies in one file, which a page reads.

for data in digits mushroom breast_cancer spambase; do
    advinterp compare $data --seeds 5 --device cpu --jobs 1 --out results/five/$data
done
python tools/equal_accuracy.py results/five/*
"""

import json
import sys
from pathlib import Path

KEPT = Path(__file__).parent.parent / "nbs/repro/results/equal-accuracy.json"
FIELDS = ["data", "described", "model", "methods", "training", "eps", "tolerance", "seeds"]


def main(folders):
    "Write settings, table and verdict of the study in each of `folders`."
    kept = []
    for folder in map(Path, folders):
        results = json.loads((folder / "results.json").read_text())
        study = {name: results[name] for name in [*FIELDS, "matched", "verdict"]}
        kept.append(
            {**study, "version": json.loads((folder / "study.json").read_text())["version"]}
        )
    KEPT.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
