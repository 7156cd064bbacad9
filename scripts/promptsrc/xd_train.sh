#!/bin/sh
# PromptSRC, cross-dataset: train on the source dataset. Arguments: DATASET SEED
# From the environment: DATA, CFG, SHOTS and others, see scripts/common.sh.
TRAINER=PromptSRC
. "$(dirname "$0")/../common.sh"
xd_train vit_b16_c2_ep20_batch4_4+4ctx_cross_datasets "$@"
