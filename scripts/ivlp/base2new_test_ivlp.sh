#!/bin/sh
# IVLP, base-to-novel: test on the novel classes. Arguments: DATASET SEED
# From the environment: DATA, CFG, SHOTS and others, see scripts/common.sh.
TRAINER=IVLP
. "$(dirname "$0")/../common.sh"
base2new_test vit_b16_c2_ep5_batch4_2+2ctx scripts/ivlp/base2new_train_ivlp.sh "$@"
