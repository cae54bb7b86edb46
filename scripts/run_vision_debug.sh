#!/usr/bin/env bash
# Makes the environment if needed, trains a small ViT and a small MLP on handwritten digits with each
# method, and prints the loss tables. Arguments go to `python -m slurm submit`.
DEBUG_SWEEP=vision_debug exec bash "$(dirname "${BASH_SOURCE[0]}")/run_debug.sh" "$@"
