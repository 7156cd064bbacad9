#!/bin/sh
# HiCroPL, base-to-novel: train on the base classes. Arguments: DATASET SEED
# From the environment: DATA, CFG, SHOTS and others, see scripts/common.sh.
TRAINER=HiCroPL
. "$(dirname "$0")/../common.sh"
case ${1:-} in
    imagenet) paper=vit_b16_c2_ep40_batch128_16ctx ;;
    *) paper=vit_b16_c2_ep50_batch32_16ctx ;;
esac
base2new_train "$paper" "$@"
