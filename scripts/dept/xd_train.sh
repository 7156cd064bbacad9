#!/bin/sh
# DePT, cross-dataset: train on the source dataset. Arguments: DATASET SEED
# Environment variables (DATA, CFG, SHOTS and others): see experiments/script.py.
CDPATH= cd "$(dirname "$0")/../.." && exec "${PYTHON:-$(PATH=.venv/bin:$PATH; command -v python || command -v python3)}" -m experiments script DePT train_source "$0" "$OLDPWD" "$@"
