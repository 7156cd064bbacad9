#!/bin/sh
# HISF on all classes, seeds 1 to 3 (or SEED). Arguments: DATASET SHOTS
# From the environment: DATA, CFG, SHOTS and others, see scripts/common.sh.
TRAINER=HISF
. "$(dirname "$0")/../common.sh"
few_shot vit_b16_ep50_batch4 "$@"
