#!/bin/sh
# VPT, cross-dataset: test what SOURCE taught on another dataset. Arguments: DATASET SEED
# From the environment: DATA, CFG, SHOTS and others, see scripts/common.sh.
TRAINER=VPT
. "$(dirname "$0")/../common.sh"
xd_test vit_b16_c2_ep5_batch4_4 scripts/vpt/xd_train_vpt.sh "$@"
