#!/bin/sh
# HiCroPL, cross-dataset: test what SOURCE taught on another dataset. Arguments: DATASET SEED
# From the environment: DATA, CFG, SHOTS and others, see scripts/common.sh.
TRAINER=HiCroPL
. "$(dirname "$0")/../common.sh"
xd_test vit_b16_c2_ep5_batch32_2ctx_cross_datasets scripts/hicropl/xd_train.sh "$@"
