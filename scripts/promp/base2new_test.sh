#!/bin/sh
# ProMPT, base-to-novel: test on the novel classes. Arguments: DATASET SEED
# From the environment: DATA, CFG, SHOTS and others, see scripts/common.sh.
TRAINER=ProMPT
. "$(dirname "$0")/../common.sh"
base2new_test vit_b16_ep5_batch4_8+5ctx scripts/promp/base2new_train.sh "$@"
