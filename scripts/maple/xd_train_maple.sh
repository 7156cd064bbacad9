#!/bin/sh
# MaPLe, cross-dataset: train on the source dataset. Arguments: DATASET SEED
# From the environment: DATA, CFG, SHOTS and others, see scripts/common.sh.
TRAINER=MaPLe
. "$(dirname "$0")/../common.sh"
xd_train vit_b16_c2_ep5_batch4_2ctx_cross_datasets "$@"
