#!/bin/sh
# PromptSRC, base-to-novel: test on the novel classes. Arguments: DATASET SEED
# From the environment: DATA, CFG, SHOTS and others, see scripts/common.sh.
TRAINER=PromptSRC
. "$(dirname "$0")/../common.sh"
base2new_test vit_b16_c2_ep20_batch4_4+4ctx scripts/promptsrc/base2new_train.sh "$@"
