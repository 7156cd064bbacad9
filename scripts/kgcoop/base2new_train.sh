#!/bin/sh
# KgCoOp, base-to-novel: train on the base classes. Arguments: DATASET SEED
# From the environment: DATA, CFG, SHOTS and others, see scripts/common.sh.
TRAINER=KgCoOp
. "$(dirname "$0")/../common.sh"
base2new_train vit_b16_ep100_ctxv1 "$@"
