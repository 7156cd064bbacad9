#!/bin/sh
# IVLP, cross-dataset: test what SOURCE taught on another dataset. Arguments: DATASET SEED
# From the environment: DATA, CFG, SHOTS and others, see scripts/common.sh.
TRAINER=IVLP
. "$(dirname "$0")/../common.sh"
xd_test vit_b16_c2_ep5_batch4_2+2ctx scripts/ivlp/xd_train_ivlp.sh "$@"
