#!/bin/sh
# ProMPT, base-to-novel: train on the base classes. Arguments: DATASET SEED
# From the environment: DATA, CFG, SHOTS and others, see scripts/common.sh.
TRAINER=ProMPT
. "$(dirname "$0")/../common.sh"
base2new_train vit_b16_ep5_batch4_8+5ctx "$@"
