#!/bin/sh
# KgCoOp, cross-dataset: train on the source dataset. Arguments: DATASET SEED
# From the environment: DATA, CFG, SHOTS and others, see scripts/common.sh.
TRAINER=KgCoOp
. "$(dirname "$0")/../common.sh"
xd_train vit_b16_ep100_ctxv1 "$@"
