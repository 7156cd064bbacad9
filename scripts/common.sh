# What the sweeps share. A script sets TRAINER, sources this file (plain POSIX sh, so `sh` and
# `bash` both do) and calls one of the protocols below with its config file and its arguments.
#
# From the environment:
#   DATA     folder of the datasets                  (default: data, in the repository)
#   SHOTS    training images for each class          (default: 16)
#   CFG      config file in configs/trainers/<TRAINER>, without .yaml
#            (default: the paper's ViT-B/16 file; for the embedded datasets the ViT-Mini one)
#   LOADEP   epoch to load in the test scripts       (default: the last one)
#   PYTHON   interpreter                             (default: the one of .venv, if there is one)
#
# A finished run, one with a results.json, is left as it is; an unfinished one goes on.

set -eu

if [ -n "${DATA:-}" ]; then
    case $DATA in
        /*) ;;
        *) DATA=$PWD/$DATA ;; # as seen from where the script was called
    esac
fi
SHOTS=${SHOTS:-16}
called=$0

CDPATH= cd "$(dirname "$0")/../.."
DATA=${DATA:-data}

if [ -z "${PYTHON:-}" ]; then
    for PYTHON in .venv/bin/python python python3; do
        if command -v "$PYTHON" > /dev/null; then break; fi
    done
fi

fail() {
    echo "error: $*" >&2
    exit 2
}

# arguments NAMES COUNT GIVEN: stop with a usage line unless as many were given as are wanted.
arguments() {
    [ "$3" -eq "$2" ] || fail "usage: sh $called $1"
}

is_embedded() {
    case $1 in
        shapes* | glyphs | digits) return 0 ;;
    esac
    return 1
}

# config DATASET PAPER MINI: choose CFG, unless the caller has.
config() {
    if [ -n "${CFG:-}" ]; then return; fi
    if is_embedded "$1"; then CFG=$3; else CFG=$2; fi
}

# run DIR ARGUMENT...: train or evaluate into DIR, with further arguments for train.py.
run() {
    run_dir=$1
    shift
    if [ -f "$run_dir/results.json" ]; then
        echo "skipped, finished before: $run_dir"
        return
    fi
    # The embedded datasets are drawn into the default folder; another one has to be there.
    if [ "$DATA" = data ]; then mkdir -p data; fi
    "$PYTHON" train.py \
        --root "$DATA" \
        --seed "$SEED" \
        --trainer "$TRAINER" \
        --dataset-config-file "configs/datasets/$DATASET.yaml" \
        --config-file "configs/trainers/$TRAINER/$CFG.yaml" \
        --output-dir "$run_dir" \
        "$@"
}

# evaluate MODEL_DIR DIR TRAINED_BY ARGUMENT...: test what was trained in MODEL_DIR into DIR.
evaluate() {
    model_dir=$1
    test_dir=$2
    trained_by=$3
    shift 3
    if [ -n "${LOADEP:-}" ]; then
        # One epoch's result must not pass for another's.
        run "${test_dir}_epoch$LOADEP" --model-dir "$model_dir" --load-epoch "$LOADEP" \
            --eval-only "$@"
        return
    fi
    [ -f "$model_dir/results.json" ] \
        || fail "no finished training in $model_dir; run first, with the same settings: sh $trained_by"
    run "$test_dir" --model-dir "$model_dir" --eval-only "$@"
}

# Base-to-novel, first step: base2new_train PAPER_CONFIG DATASET SEED
base2new_train() {
    paper=$1
    shift
    arguments "DATASET SEED" 2 $#
    DATASET=$1 SEED=$2
    config "$DATASET" "$paper" vit_mini
    run "output/base2new/train_base/$DATASET/shots_$SHOTS/$TRAINER/$CFG/seed$SEED" \
        DATASET.NUM_SHOTS "$SHOTS" DATASET.SUBSAMPLE_CLASSES base
}

# Base-to-novel, second step: base2new_test PAPER_CONFIG TRAINING_SCRIPT DATASET SEED
base2new_test() {
    paper=$1 script=$2
    shift 2
    arguments "DATASET SEED" 2 $#
    DATASET=$1 SEED=$2
    config "$DATASET" "$paper" vit_mini
    common=$DATASET/shots_$SHOTS/$TRAINER/$CFG/seed$SEED
    evaluate "output/base2new/train_base/$common" "output/base2new/test_new/$common" \
        "$script $DATASET $SEED" \
        DATASET.NUM_SHOTS "$SHOTS" DATASET.SUBSAMPLE_CLASSES new
}

# All classes, over the seeds 1 2 3 or the one in SEED: few_shot PAPER_CONFIG DATASET SHOTS
few_shot() {
    paper=$1
    shift
    arguments "DATASET SHOTS" 2 $#
    DATASET=$1 SHOTS=$2
    config "$DATASET" "$paper" vit_mini
    for SEED in ${SEED:-1 2 3}; do
        run "output/$DATASET/$TRAINER/${CFG}_${SHOTS}shots/seed$SEED" DATASET.NUM_SHOTS "$SHOTS"
    done
}

# Cross-dataset and domain generalization, on the source: xd_train PAPER_CONFIG DATASET SEED
xd_train() {
    paper=$1
    shift
    arguments "DATASET SEED" 2 $#
    DATASET=$1 SEED=$2
    config "$DATASET" "$paper" vit_mini_cross_datasets
    run "output/$DATASET/$TRAINER/${CFG}_${SHOTS}shots/seed$SEED" DATASET.NUM_SHOTS "$SHOTS"
}

# ... and on a target: xd_test PAPER_CONFIG TRAINING_SCRIPT DATASET SEED. SOURCE, from the
# environment, is the dataset trained on: imagenet, or shapes for an embedded target.
xd_test() {
    paper=$1 script=$2
    shift 2
    arguments "DATASET SEED" 2 $#
    DATASET=$1 SEED=$2
    usual=imagenet
    if is_embedded "$DATASET"; then usual=shapes; fi
    SOURCE=${SOURCE:-$usual}
    config "$SOURCE" "$paper" vit_mini_cross_datasets
    pair=$DATASET
    if [ "$SOURCE" != "$usual" ]; then pair=${SOURCE}_to_$DATASET; fi
    evaluate "output/$SOURCE/$TRAINER/${CFG}_${SHOTS}shots/seed$SEED" \
        "output/evaluation/$TRAINER/${CFG}_${SHOTS}shots/$pair/seed$SEED" \
        "$script $SOURCE $SEED"
}
