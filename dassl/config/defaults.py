"""Default config keys: those of the public toolbox that concern supervised training, and ours.

Ours are ``DATASET.SUBSAMPLE_CLASSES`` (CoOp's code adds it in its train.py), ``INPUT.UPRIGHT``,
``DATALOADER.ON_ERROR``, ``DATALOADER.CACHE_MB``, ``TEST.METRICS``, ``TEST.RECORD``,
``TEST.SAVE_LOGITS`` and ``OPTIM.EPS``. The keys of a trainer or dataset live in its own file and
arrive here by ``register_defaults``.
"""

from __future__ import annotations

import os
from typing import Any

from yacs.config import CfgNode as CN


def _cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_C = CN()

_C.VERSION = 1
# Folder of log.txt, results.json, the model weights and tensorboard
_C.OUTPUT_DIR = "./output"
# Folder of an interrupted run to go on with ("": OUTPUT_DIR itself)
_C.RESUME = ""
# A negative seed leaves everything random
_C.SEED = -1
_C.USE_CUDA = True
# Print details of dataset, model and training
_C.VERBOSE = True

# ---------------------------------------------------------------------------------------- input
_C.INPUT = CN()
# (height, width) in pixels
_C.INPUT.SIZE = (224, 224)
# bilinear, bicubic or nearest
_C.INPUT.INTERPOLATION = "bilinear"
# Turn images as their EXIF data say; the public toolbox does not
_C.INPUT.UPRIGHT = False
# Names from dassl.data.transforms.CHOICES
_C.INPUT.TRANSFORMS = ()
# Hand out PIL images
_C.INPUT.NO_TRANSFORM = False
# ImageNet's mean and standard deviation, colour values in 0..1
_C.INPUT.PIXEL_MEAN = [0.485, 0.456, 0.406]
_C.INPUT.PIXEL_STD = [0.229, 0.224, 0.225]
# random_crop: padding in pixels
_C.INPUT.CROP_PADDING = 4
# random_resized_crop: range of the share of the image's area
_C.INPUT.RRCROP_SCALE = (0.08, 1.0)
# cutout: number of holes and their side in pixels
_C.INPUT.CUTOUT_N = 1
_C.INPUT.CUTOUT_LEN = 16
# gaussian_noise
_C.INPUT.GN_MEAN = 0.0
_C.INPUT.GN_STD = 0.15
# randaugment: number of operations, magnitude (0 to 30)
_C.INPUT.RANDAUGMENT_N = 2
_C.INPUT.RANDAUGMENT_M = 10
# colorjitter: brightness, contrast, saturation, hue
_C.INPUT.COLORJITTER_B = 0.4
_C.INPUT.COLORJITTER_C = 0.4
_C.INPUT.COLORJITTER_S = 0.4
_C.INPUT.COLORJITTER_H = 0.1
# randomgrayscale: probability
_C.INPUT.RGS_P = 0.2
# gaussian_blur: probability, odd kernel size in pixels
_C.INPUT.GB_P = 0.5
_C.INPUT.GB_K = 21

# -------------------------------------------------------------------------------------- dataset
_C.DATASET = CN()
# Folder that holds the datasets
_C.DATASET.ROOT = ""
_C.DATASET.NAME = ""
# Names of domains, for datasets that have several
_C.DATASET.SOURCE_DOMAINS = ()
_C.DATASET.TARGET_DOMAINS = ()
# Training images per class (-1: all)
_C.DATASET.NUM_SHOTS = -1
# all, base (first half of the sorted labels, rounded up) or new (the other half)
_C.DATASET.SUBSAMPLE_CLASSES = "all"
# Share of the training data that becomes validation data where a dataset has none
_C.DATASET.VAL_PERCENT = 0.1
# CIFAR-10/100-C: corruption and its level
_C.DATASET.CIFAR_C_TYPE = ""
_C.DATASET.CIFAR_C_LEVEL = 1

# ----------------------------------------------------------------------------------- dataloader
_C.DATALOADER = CN()
# Processes that read images (0: none but the main one); one for each core of this process, no
# more than there are batches
_C.DATALOADER.NUM_WORKERS = _cores()
# Megabytes of memory for decoded training images (0: none), which are then read only once
_C.DATALOADER.CACHE_MB = 2048
# At images that cannot be read: stop, or skip (leave them out)
_C.DATALOADER.ON_ERROR = "stop"
# Views of each training image; more than one makes batch["img"] a list
_C.DATALOADER.K_TRANSFORMS = 1
# Also give the image without augmentation, as batch["img0"]
_C.DATALOADER.RETURN_IMG0 = False
_C.DATALOADER.TRAIN_X = CN()
_C.DATALOADER.TRAIN_X.SAMPLER = "RandomSampler"
_C.DATALOADER.TRAIN_X.BATCH_SIZE = 32
# RandomDomainSampler: domains per batch (0 or -1: all)
_C.DATALOADER.TRAIN_X.N_DOMAIN = 0
# RandomClassSampler: images per class in a batch
_C.DATALOADER.TRAIN_X.N_INS = 16
_C.DATALOADER.TEST = CN()
_C.DATALOADER.TEST.SAMPLER = "SequentialSampler"
_C.DATALOADER.TEST.BATCH_SIZE = 32

# ---------------------------------------------------------------------------------------- model
_C.MODEL = CN()
# Weights file to start from
_C.MODEL.INIT_WEIGHTS = ""
_C.MODEL.BACKBONE = CN()
_C.MODEL.BACKBONE.NAME = ""
_C.MODEL.BACKBONE.PRETRAINED = True
_C.MODEL.HEAD = CN()
_C.MODEL.HEAD.NAME = ""
_C.MODEL.HEAD.HIDDEN_LAYERS = ()
_C.MODEL.HEAD.ACTIVATION = "relu"
_C.MODEL.HEAD.BN = True
_C.MODEL.HEAD.DROPOUT = 0.0

# --------------------------------------------------------------------------------- optimisation
_C.OPTIM = CN()
# adam, amsgrad, sgd, rmsprop, radam or adamw
_C.OPTIM.NAME = "adam"
_C.OPTIM.LR = 0.0003
_C.OPTIM.WEIGHT_DECAY = 5e-4
_C.OPTIM.MOMENTUM = 0.9
_C.OPTIM.SGD_DAMPNING = 0.0
_C.OPTIM.SGD_NESTEROV = False
_C.OPTIM.RMSPROP_ALPHA = 0.99
# The adam family: epsilon and betas
_C.OPTIM.EPS = 1e-8
_C.OPTIM.ADAM_BETA1 = 0.9
_C.OPTIM.ADAM_BETA2 = 0.999
# Layers that are not in NEW_LAYERS get LR * BASE_LR_MULT
_C.OPTIM.STAGED_LR = False
_C.OPTIM.NEW_LAYERS = ()
_C.OPTIM.BASE_LR_MULT = 0.1
# single_step, multi_step or cosine
_C.OPTIM.LR_SCHEDULER = "single_step"
# single_step: -1 or 0 means MAX_EPOCH
_C.OPTIM.STEPSIZE = (-1,)
_C.OPTIM.GAMMA = 0.1
_C.OPTIM.MAX_EPOCH = 10
# -1 or 0: no warm-up
_C.OPTIM.WARMUP_EPOCH = -1
# linear or constant
_C.OPTIM.WARMUP_TYPE = "linear"
_C.OPTIM.WARMUP_CONS_LR = 1e-5
_C.OPTIM.WARMUP_MIN_LR = 1e-5
# True: the schedule starts at its beginning after the warm-up; False: at epoch WARMUP_EPOCH
_C.OPTIM.WARMUP_RECOUNT = True

# ------------------------------------------------------------------------------- train and test
_C.TRAIN = CN()
# Keep a model every so many epochs (0 or less: only the last)
_C.TRAIN.CHECKPOINT_FREQ = 0
# Log a line every so many batches
_C.TRAIN.PRINT_FREQ = 10

_C.TEST = CN()
_C.TEST.EVALUATOR = "Classification"
_C.TEST.PER_CLASS_RESULT = False
# Save the confusion matrix as OUTPUT_DIR/cmat.pt
_C.TEST.COMPUTE_CMAT = False
# Names of further metrics (METRIC_REGISTRY of dassl.metrics) for results.json and the log
_C.TEST.METRICS = ()
# Names of recorders: what the final test keeps besides its figures, such as "logits"
_C.TEST.RECORD = ()
# The same as "logits" in RECORD: save OUTPUT_DIR/logits.npz with logits, labels, impaths
_C.TEST.SAVE_LOGITS = False
_C.TEST.NO_TEST = False
# Split of the final test: test or val
_C.TEST.SPLIT = "test"
# Classes of the test images: all, base or new ("": as DATASET.SUBSAMPLE_CLASSES)
_C.TEST.SUBSAMPLE_CLASSES = ""
# last_step or best_val (val is evaluated after every epoch; it must have no test images)
_C.TEST.FINAL_MODEL = "last_step"

# -------------------------------------------------------------------------------------- trainer
_C.TRAINER = CN()
_C.TRAINER.NAME = ""


def register_defaults(node: str, defaults: dict[str, Any]) -> None:
    """Adds the default config keys of a trainer or dataset; called when its file is imported.

    Args:
        node: dotted place in the tree, such as "TRAINER.COOP"; made where it is missing.
        defaults: the keys, with nested dicts for nodes below.

    Raises:
        ValueError: a key is there already with another default.
    """
    target = _C
    for part in node.split("."):
        if part not in target:
            target[part] = CN()
        target = target[part]
    for key, value in defaults.items():
        if isinstance(value, dict):
            register_defaults(f"{node}.{key}", value)
        elif key in target and target[key] != value:
            raise ValueError(f"{node}.{key} has the default {target[key]!r} already, not {value!r}")
        else:
            target[key] = value


def get_cfg_default() -> CN:
    """A new config tree, not frozen, with the defaults of everything registered so far."""
    return _C.clone()
