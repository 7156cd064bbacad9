#!/bin/sh
# HISF, base-to-novel: train on the base classes. Arguments: DATASET SEED
# From the environment: DATA, CFG, SHOTS and others, see scripts/common.sh.
TRAINER=HISF
. "$(dirname "$0")/../common.sh"
base2new_train vit_b16_ep50_batch4 "$@"
