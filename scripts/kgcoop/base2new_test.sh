#!/bin/sh
# KgCoOp, base-to-novel: test on the novel classes. Arguments: DATASET SEED
# From the environment: DATA, CFG, SHOTS and others, see scripts/common.sh.
TRAINER=KgCoOp
. "$(dirname "$0")/../common.sh"
base2new_test vit_b16_ep100_ctxv1 scripts/kgcoop/base2new_train.sh "$@"
