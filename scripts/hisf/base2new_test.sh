#!/bin/sh
# HISF, base-to-novel: test on the novel classes. Arguments: DATASET SEED
# From the environment: DATA, CFG, SHOTS and others, see scripts/common.sh.
TRAINER=HISF
. "$(dirname "$0")/../common.sh"
base2new_test vit_b16_ep50_batch4 scripts/hisf/base2new_train.sh "$@"
