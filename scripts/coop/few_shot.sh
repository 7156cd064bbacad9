#!/bin/sh
# CoOp on all classes, seeds 1 to 3 (or SEED). Arguments: DATASET SHOTS
# From the environment: DATA, CFG, SHOTS and others, see scripts/common.sh.
TRAINER=CoOp
. "$(dirname "$0")/../common.sh"
# The fewer the shots, the fewer the epochs (as in the paper); ImageNet always 50.
case ${1:-}/${2:-} in
    imagenet/* | */1) paper=vit_b16_ep50 ;;
    */2 | */4) paper=vit_b16_ep100 ;;
    *) paper=vit_b16 ;;
esac
few_shot "$paper" "$@"
