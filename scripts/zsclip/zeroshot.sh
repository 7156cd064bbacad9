#!/bin/sh
# CLIP as it comes, nothing trained. Argument: DATASET
# From the environment: DATA, CFG and PYTHON, see scripts/common.sh; SUB: all, base or new classes.
TRAINER=${TRAINER:-ZeroshotCLIP} # or ZeroshotCLIP2, the template ensemble
. "$(dirname "$0")/../common.sh"
arguments DATASET 1 $#
DATASET=$1
SEED=1 # nothing is drawn at random
SUB=${SUB:-all}
config "$DATASET" vit_b16 vit_mini
dir=output/$TRAINER/$CFG/$DATASET
if [ "$SUB" != all ]; then dir=${dir}_$SUB; fi
run "$dir" --eval-only DATASET.SUBSAMPLE_CLASSES "$SUB"
