#!/bin/sh
# MaPLe, base-to-novel: test on the novel classes. Arguments: DATASET SEED
# From the environment: DATA, CFG, SHOTS and others, see scripts/common.sh.
TRAINER=MaPLe
. "$(dirname "$0")/../common.sh"
base2new_test vit_b16_c2_ep5_batch4_2ctx scripts/maple/base2new_train_maple.sh "$@"
