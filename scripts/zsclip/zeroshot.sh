#!/bin/sh
# CLIP as it comes, nothing trained. Argument: DATASET
# Environment variables (DATA, CFG, TRAINER, PYTHON; SUB: all, base or new): see experiments/script.py.
CDPATH= cd "$(dirname "$0")/../.." && exec "${PYTHON:-$(PATH=.venv/bin:$PATH; command -v python || command -v python3)}" -m experiments script ZeroshotCLIP zeroshot "$0" "$OLDPWD" "$@"
