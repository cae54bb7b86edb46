#!/usr/bin/env bash
# Measures alignment with the runs of configs/sweeps/alignment.toml on this machine, and writes the
# table for method maxP-frozen: `scripts/freeze_alignment.sh alignment.json`. Other arguments go to
# `python -m train.alignment_table`.
file=${1:?usage: scripts/freeze_alignment.sh FILE [--statistic mean] ...}
file=$(realpath -m "$file")
shift
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
python -m slurm submit configs/sweeps/alignment.toml
exec python -m train.alignment_table runs/alignment --to "$file" "$@"
