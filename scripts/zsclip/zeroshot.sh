#!/bin/sh
# CLIP as it comes, nothing trained. Argument: DATASET
# From the environment: DATA, CFG, TRAINER and PYTHON, see experiments/script.py; SUB: all, base or new classes.
CDPATH= cd "$(dirname "$0")/../.." && exec "${PYTHON:-$(PATH=.venv/bin:$PATH; command -v python || command -v python3)}" -m experiments script ZeroshotCLIP zeroshot "$0" "$OLDPWD" "$@"
