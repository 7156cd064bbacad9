#!/bin/sh
# ProMPT, cross-dataset: train on the source dataset. Arguments: DATASET SEED
# From the environment: DATA, CFG, SHOTS and others, see scripts/common.sh.
TRAINER=ProMPT
. "$(dirname "$0")/../common.sh"
xd_train vit_b16_ep2_batch4_8+5ctx_cross_datasets "$@"
