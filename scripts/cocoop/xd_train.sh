#!/bin/sh
# CoCoOp, cross-dataset: train on the source dataset. Arguments: DATASET SEED
# From the environment: DATA, CFG, SHOTS and others, see scripts/common.sh.
TRAINER=CoCoOp
. "$(dirname "$0")/../common.sh"
xd_train vit_b16_c4_ep10_batch1_ctxv1 "$@"
