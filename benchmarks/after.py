"""What came after, on digits: makes the rows that the page `nbs/learn/10_after.ipynb` reads.

    python benchmarks/after.py --out FOLDER --rows nbs/learn/after.csv

Each method along its path of strengths, with several seeds, and activations on demand. A second
call with the same folder continues.
"""

import argparse
from pathlib import Path

import pandas as pd

from advinterp import compare
from advinterp.experiments import Method

METHODS = [
    Method("natural"),
    Method("adversarial", "PGD(LInfBall(1.0), steps=5, bounds=(0, 1))", (0.05, 0.1), 0.2),
    Method("gradient norm", "GradNorm(L1(1.0))", (0.03, 0.1)),
    Method("Gini prior", "MapPenalty(saliency, gini)", (0.5, 2.0)),
    Method(
        "gradient stability",
        "GradientStability(LInfBall(0.1), distance='cosine')",
        (0.3, 1.0),
    ),
]
NETWORKS = dict(ReLU="small_conv", SiLU="small_conv_silu")
MEASURES = ["robust_accuracy", "gini_ig", "ros"]


def rows_of(activation: str, out: Path, seeds: int) -> pd.DataFrame:
    """The rows of one network, one for each trained model."""
    found = compare(
        "digits",
        model=NETWORKS[activation],
        methods=METHODS,
        measures=MEASURES,
        seeds=seeds,
        eps=0.1,
        n_test=200,
        out=out / activation,
        device="cpu",
        resume=(out / activation).exists(),
        progress=False,
    )
    return found.frame.assign(activation=activation)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the studies")
    parser.add_argument("--rows", type=Path, required=True, help="the CSV that is written")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--activations", nargs="+", choices=NETWORKS, default=["ReLU"])
    given = parser.parse_args()
    tables = []
    for activation in given.activations:
        tables.append(rows_of(activation, given.out, given.seeds))
        table = pd.concat(tables)
        kept = ["activation", "method", "strength", "seed", "valid_accuracy", "accuracy"]
        table[[*kept, *MEASURES]].round(5).to_csv(given.rows, index=False)


if __name__ == "__main__":
    main()
