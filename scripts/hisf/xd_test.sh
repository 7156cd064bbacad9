#!/bin/sh
# HISF, cross-dataset: test what SOURCE taught on another dataset. Arguments: DATASET SEED
# From the environment: DATA, CFG, SHOTS and others, see scripts/common.sh.
TRAINER=HISF
. "$(dirname "$0")/../common.sh"
xd_test vit_b16_ep50_batch4 scripts/hisf/xd_train.sh "$@"
