#!/bin/sh
# CoCoOp, base-to-novel: train on the base classes. Arguments: DATASET SEED
# From the environment: DATA, CFG, SHOTS and others, see scripts/common.sh.
TRAINER=CoCoOp
. "$(dirname "$0")/../common.sh"
base2new_train vit_b16_c4_ep10_batch1_ctxv1 "$@"
