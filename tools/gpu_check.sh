#!/bin/sh
# What needs a GPU, in under ten minutes on one: the tests marked cuda, a short study, the demo's
# first measurement, and the benchmark of attacks. Run in an environment that has the package, its
# tests' tools and a torch that sees the GPU:  sh tools/gpu_check.sh [PYTHON]
cd "$(dirname "$0")/.." || exit 1
PYTHON=${1:-python}
export OMP_WAIT_POLICY=PASSIVE MPLBACKEND=Agg PYTHONPATH=.
$PYTHON -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
    echo "gpu_check: torch sees no GPU here" >&2
    exit 1
}
out=$(mktemp -d) || exit 1
trap 'rm -rf "$out"' EXIT
failed=0
step() {
    name=$1
    shift
    start=$(date +%s)
    if "$@" >"$out/log" 2>&1; then
        echo "$name: ok, $(($(date +%s) - start)) s"
    else
        echo "$name: FAILED after $(($(date +%s) - start)) s"
        failed=1
    fi
    tail -n 40 "$out/log"
}
step "tests marked cuda" $PYTHON -m pytest -q -m cuda -p no:cacheprovider
step "a short study" $PYTHON -m advinterp.cli compare digits --epochs 4 --seeds 1 \
    --device cuda --out "$out/study"
step "attacks against the floor" $PYTHON benchmarks/attacks.py --device cuda
exit $failed
