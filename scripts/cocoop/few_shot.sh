#!/bin/sh
# CoCoOp on all classes, seeds 1 to 3 (or SEED). Arguments: DATASET SHOTS
# From the environment: DATA, CFG, SHOTS and others, see scripts/common.sh.
TRAINER=CoCoOp
. "$(dirname "$0")/../common.sh"
few_shot vit_b16_c4_ep10_batch1_ctxv1 "$@"
