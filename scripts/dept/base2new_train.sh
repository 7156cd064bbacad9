#!/bin/sh
# DePT, base-to-novel: train on the base classes. Arguments: DATASET SEED
# Environment variables (DATA, CFG, SHOTS and others): see experiments/script.py.
CDPATH= cd "$(dirname "$0")/../.." && exec "${PYTHON:-$(PATH=.venv/bin:$PATH; command -v python || command -v python3)}" -m experiments script DePT train_base "$0" "$OLDPWD" "$@"
