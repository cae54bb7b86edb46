#!/usr/bin/env bash
# Makes the environment if needed, trains a small LLaMA-3 with each method over a few learning
# rates on this machine, and prints one loss table. Arguments go to `python -m slurm submit`.
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
place=()  # the table is of the folder that the runs went to
for ((i = 1; i <= $#; i++)); do
    case ${!i} in
        --runs-dir | --runs_dir) place=("${@:i:2}") ;;
        --runs-dir=* | --runs_dir=*) place=("${!i}") ;;
    esac
done
sweep=configs/sweeps/${DEBUG_SWEEP:-quick}.toml
status=0
python -m slurm submit "$sweep" "$@" || status=$?
python -m slurm table "$sweep" "${place[@]}"
exit "$status"
