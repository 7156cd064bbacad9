#!/bin/sh
# MaPLe, cross-dataset: test what SOURCE taught on another dataset. Arguments: DATASET SEED
# From the environment: DATA, CFG, SHOTS and others, see scripts/common.sh.
TRAINER=MaPLe
. "$(dirname "$0")/../common.sh"
xd_test vit_b16_c2_ep5_batch4_2ctx_cross_datasets scripts/maple/xd_train_maple.sh "$@"
