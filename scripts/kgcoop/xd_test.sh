#!/bin/sh
# KgCoOp, cross-dataset: test what SOURCE taught on another dataset. Arguments: DATASET SEED
# From the environment: DATA, CFG, SHOTS and others, see scripts/common.sh.
TRAINER=KgCoOp
. "$(dirname "$0")/../common.sh"
xd_test vit_b16_ep100_ctxv1 scripts/kgcoop/xd_train.sh "$@"
