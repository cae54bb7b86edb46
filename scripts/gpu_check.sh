#!/usr/bin/env bash
# For a machine with a GPU: runs the tests that need one, the benchmark of a training step, and
# short trainings of scales s1 to s3 on the embedded corpus. Prints the tokens per second and MFU of
# these trainings, as torchtitan computes them. Arguments are passed on to each of the three, e.g.
# --training.local_batch_size 16.
#
# MAXP_PYTHON=/path/to/python uses that interpreter and its packages instead of .venv. torchtitan
# 0.3.0 does not support torch 2.11: with it, a sitecustomize.py must add an attribute
# DataParallelMeshDims (any class) to torch.distributed.fsdp, and the loss must be torchtitan's
# plain CrossEntropyLoss, so only scale debug and pytest -m gpu are useful.
set -euo pipefail
if [ -n "${MAXP_PYTHON:-}" ]; then
    cd "$(dirname "${BASH_SOURCE[0]}")/.."
    python() { "$MAXP_PYTHON" "$@"; }
else
    source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
fi

python -c 'import sys, torch; sys.exit(not torch.accelerator.is_available())' || {
    echo "error: torch finds no GPU here; for the tests that need none run scripts/run_tests.sh" >&2
    exit 1
}

failed=0
python -m pytest -m gpu -rs || failed=1
python -m scripts.bench.train --scale s1 || failed=1

runs=$(mktemp -d)
trap 'rm -rf "$runs"' EXIT
for scale in s1 s2 s3; do
    python -m train --scale "$scale" --method maxP --dataset embedded --steps 30 \
        --training.global_batch_size 32 --metrics.log_freq 5 --validator.freq 1000 \
        --checkpoint.no-enable --output-dir "$runs/$scale" "$@" || failed=1
done

python - "$runs" <<'PY' || failed=1
import statistics
import sys
from pathlib import Path

from train.run.folder import load_run

print(f"{'scale':6} {'tokens/s':>10} {'MFU %':>6}")
for scale in ("s1", "s2", "s3"):
    folder = Path(sys.argv[1]) / scale
    metrics = load_run(folder).metrics if folder.exists() else []
    # The first steps compile.
    late = [record for record in metrics if record["step"] > 15 and "loss" in record]
    cells = []
    for name, form in (("tokens_per_second", "10,.0f"), ("mfu", "6.1f")):
        values = [record[name] for record in late if record.get(name) is not None]
        cells.append(format(statistics.median(values), form) if values else "not measured")
    print(f"{scale:6}", *cells)
PY
exit "$failed"
