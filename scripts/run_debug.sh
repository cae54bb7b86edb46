#!/usr/bin/env bash
# Makes the environment if needed, trains a small LLaMA-3 with each method over a few learning
# rates on this machine, and prints one loss table. Arguments go to `python -m slurm submit`.
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
status=0
python -m slurm submit configs/sweeps/quick.toml "$@" || status=$?
python -m slurm table configs/sweeps/quick.toml
exit "$status"
