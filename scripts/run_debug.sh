#!/usr/bin/env bash
# Makes the environment if needed, trains a small LLaMA-3 with each method over a few learning
# rates, and prints one loss table. Arguments go to scripts/debug_table.py (--lrs, --steps, ...).
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
exec python -m scripts.debug_table "$@"
