#!/bin/sh
# PromptSRC on all classes, seeds 1 to 3 (or SEED). Arguments: DATASET SHOTS
# From the environment: DATA, CFG, SHOTS and others, see scripts/common.sh.
TRAINER=PromptSRC
. "$(dirname "$0")/../common.sh"
paper=vit_b16_c2_ep50_batch4_4+4ctx_few_shot
case ${1:-} in
    # These far from CLIP's images take later epochs into the aggregate (as in the public code).
    stanford_cars | oxford_flowers | fgvc_aircraft | dtd | eurosat) paper=${paper}_gpa45 ;;
esac
few_shot "$paper" "$@"
