#!/bin/sh
# CoCoOp, cross-dataset: test what SOURCE taught on another dataset. Arguments: DATASET SEED
# From the environment: DATA, CFG, SHOTS and others, see scripts/common.sh.
TRAINER=CoCoOp
. "$(dirname "$0")/../common.sh"
xd_test vit_b16_c4_ep10_batch1_ctxv1 scripts/cocoop/xd_train.sh "$@"
