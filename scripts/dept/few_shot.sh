#!/bin/sh
# DePT on all classes, seeds 1 to 3 (or SEED). Arguments: DATASET SHOTS
# Environment variables (DATA, CFG, SHOTS and others): see experiments/script.py.
CDPATH= cd "$(dirname "$0")/../.." && exec "${PYTHON:-$(PATH=.venv/bin:$PATH; command -v python || command -v python3)}" -m experiments script DePT train_all "$0" "$OLDPWD" "$@"
