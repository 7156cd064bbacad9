#!/bin/sh
# HiCroPL on all classes, seeds 1 to 3 (or SEED). Arguments: DATASET SHOTS
# From the environment: DATA, CFG, SHOTS and others, see scripts/common.sh.
TRAINER=HiCroPL
. "$(dirname "$0")/../common.sh"
few_shot vit_b16_c2_ep50_batch32_16ctx_few_shot "$@"
