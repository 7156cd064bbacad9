#!/bin/sh
# PromptSRC, base-to-novel: train on the base classes. Arguments: DATASET SEED
# From the environment: DATA, CFG, SHOTS and others, see scripts/common.sh.
TRAINER=PromptSRC
. "$(dirname "$0")/../common.sh"
base2new_train vit_b16_c2_ep20_batch4_4+4ctx "$@"
