"""The config of a train.py as public repositories have it; the keys are those of its trainers."""

from yacs.config import CfgNode as CN

import datasets
from dassl.config import get_cfg_default
from tests.public import (
    context_trainer,
    decoupled_trainer,
    episodic_trainer,
    meta_gradient_trainer,
    multimodal_trainer,
)

# they register themselves
assert datasets and context_trainer and decoupled_trainer and episodic_trainer
assert meta_gradient_trainer and multimodal_trainer


def reset_cfg(cfg, args):
    if args.root:
        cfg.DATASET.ROOT = args.root
    if args.output_dir:
        cfg.OUTPUT_DIR = args.output_dir
    if args.resume:
        cfg.RESUME = args.resume
    if args.seed:
        cfg.SEED = args.seed
    if args.transforms:
        cfg.INPUT.TRANSFORMS = args.transforms
    if args.trainer:
        cfg.TRAINER.NAME = args.trainer
    if args.backbone:
        cfg.MODEL.BACKBONE.NAME = args.backbone


def extend_cfg(cfg):
    cfg.TRAINER.PUBLICSTYLE = CN()
    cfg.TRAINER.PUBLICSTYLE.N_CTX = 4
    cfg.TRAINER.PUBLICSTYLE.PREC = "fp32"

    cfg.TRAINER.MAPLE = CN()
    cfg.TRAINER.MAPLE.N_CTX = 2
    cfg.TRAINER.MAPLE.CTX_INIT = "a photo of a"
    cfg.TRAINER.MAPLE.PREC = "fp32"
    cfg.TRAINER.MAPLE.PROMPT_DEPTH = 3

    cfg.OPTIM.LR_EXP = 6.5
    cfg.TRAINER.NAMES_TO_UPDATE = ["prompt_learner", "linear_probe", "film"]
    cfg.TRAINER.LINEAR_PROBE = CN()
    cfg.TRAINER.LINEAR_PROBE.WEIGHT = 0.7
    cfg.TRAINER.LINEAR_PROBE.TEST_TIME_FUSION = True
    cfg.TRAINER.FILM = CN()
    cfg.TRAINER.FILM.LINEAR_PROBE = True

    cfg.TRAINER.META = CN()
    cfg.TRAINER.META.N_CTX = 2
    cfg.TRAINER.META.N_PRO = 2
    cfg.TRAINER.META.LAYERS = 3
    cfg.TRAINER.META.META_STEP = 0.5
    cfg.TRAINER.META.PREC = "fp32"

    cfg.TRAINER.PROMETAR = CN()
    cfg.TRAINER.PROMETAR.N_CTX_VISION = 2
    cfg.TRAINER.PROMETAR.N_CTX_TEXT = 2
    cfg.TRAINER.PROMETAR.PREC = "fp32"
    cfg.TRAINER.PROMETAR.ADAPT_LR = 0.05
    cfg.TRAINER.PROMETAR.DIM_RATE = 8

    # a second optimizer: the keys of the public cfg.OPTIM, and no others
    cfg.OPTIM_VNET = CN()
    cfg.OPTIM_VNET.NAME = "adam"
    cfg.OPTIM_VNET.LR = 0.0003
    cfg.OPTIM_VNET.WEIGHT_DECAY = 5e-4
    cfg.OPTIM_VNET.MOMENTUM = 0.9
    cfg.OPTIM_VNET.SGD_DAMPNING = 0
    cfg.OPTIM_VNET.SGD_NESTEROV = False
    cfg.OPTIM_VNET.RMSPROP_ALPHA = 0.99
    cfg.OPTIM_VNET.ADAM_BETA1 = 0.9
    cfg.OPTIM_VNET.ADAM_BETA2 = 0.999
    cfg.OPTIM_VNET.STAGED_LR = False
    cfg.OPTIM_VNET.NEW_LAYERS = ()
    cfg.OPTIM_VNET.BASE_LR_MULT = 0.1
    cfg.OPTIM_VNET.LR_SCHEDULER = "single_step"
    cfg.OPTIM_VNET.STEPSIZE = (-1,)
    cfg.OPTIM_VNET.GAMMA = 0.1
    cfg.OPTIM_VNET.MAX_EPOCH = 10
    cfg.OPTIM_VNET.WARMUP_EPOCH = -1
    cfg.OPTIM_VNET.WARMUP_TYPE = "linear"
    cfg.OPTIM_VNET.WARMUP_CONS_LR = 1e-5
    cfg.OPTIM_VNET.WARMUP_MIN_LR = 1e-5
    cfg.OPTIM_VNET.WARMUP_RECOUNT = True

    cfg.DATASET.SUBSAMPLE_CLASSES = "all"


def setup_cfg(args):
    cfg = get_cfg_default()
    extend_cfg(cfg)
    if args.dataset_config_file:
        cfg.merge_from_file(args.dataset_config_file)
    if args.config_file:
        cfg.merge_from_file(args.config_file)
    reset_cfg(cfg, args)
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    return cfg
