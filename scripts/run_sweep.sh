#!/usr/bin/env bash
# Submits a sweep of configs/sweeps: `scripts/run_sweep.sh s3 --cluster NAME`. Other arguments go to
# `python -m slurm submit` (--dry-run, --lrs, ...); without any, the sweeps are listed.
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
sweeps=$(cd configs/sweeps && printf '%s\n' *.toml | sed 's/\.toml$//' | paste -sd' ')
if [ $# = 0 ]; then
    echo "usage: scripts/run_sweep.sh SWEEP [--cluster NAME] [--dry-run] ...; sweeps: $sweeps"
    exit 0
fi
sweep=$1
shift
if [ ! -f "configs/sweeps/$sweep.toml" ]; then
    echo "error: $sweep: no such sweep in configs/sweeps: choose from $sweeps" >&2
    exit 2
fi
exec python -m slurm submit "configs/sweeps/$sweep.toml" "$@"
