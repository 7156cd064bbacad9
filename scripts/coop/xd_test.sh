#!/bin/sh
# CoOp, cross-dataset: test what SOURCE taught on another dataset. Arguments: DATASET SEED
# From the environment: DATA, CFG, SHOTS and others, see scripts/common.sh.
TRAINER=CoOp
. "$(dirname "$0")/../common.sh"
xd_test vit_b16_ep50_ctxv1 scripts/coop/xd_train.sh "$@"
