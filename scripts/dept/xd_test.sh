#!/bin/sh
# DePT, cross-dataset: test the model trained on SOURCE on another dataset. Arguments: DATASET SEED
# Environment variables (DATA, CFG, SHOTS and others): see experiments/script.py.
CDPATH= cd "$(dirname "$0")/../.." && exec "${PYTHON:-$(PATH=.venv/bin:$PATH; command -v python || command -v python3)}" -m experiments script DePT test_target "$0" "$OLDPWD" "$@"
