#!/bin/sh
# HISF, cross-dataset: train on the source dataset. Arguments: DATASET SEED
# From the environment: DATA, CFG, SHOTS and others, see scripts/common.sh.
TRAINER=HISF
. "$(dirname "$0")/../common.sh"
xd_train vit_b16_ep50_batch4 "$@"
