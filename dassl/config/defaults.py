"""The config keys of the toolbox, with their domains, and what trainers and datasets register.

Ours, besides those of the public toolbox that concern supervised training, are
``DATASET.SUBSAMPLE_CLASSES`` (CoOp's code adds it in its train.py), ``INPUT.UPRIGHT``,
``INPUT.MAX_PIXELS``, ``DATALOADER.ON_ERROR``, ``DATALOADER.CACHE_MB``,
``DATALOADER.VIEWS``, ``DATALOADER.FEATURES_MB``, ``DATALOADER.FEATURES_DIR``,
``DATALOADER.TRAIN_X.DROP_LAST``, ``MODEL.RECOMPUTE``, ``MODEL.COMPILE``, ``MODEL.CUDA_GRAPH``,
``TEST.METRICS``, ``TEST.RECORD``, ``TEST.SAVE_LOGITS``, ``TEST.SUBSAMPLE_CLASSES``, ``OPTIM.EPS``,
``OPTIM.ACCUMULATE``, ``OPTIM.CLIP_NORM`` and ``TRACKER``. The keys of a trainer or dataset are in
its own file and get here by ``register_defaults``. docs/config.md lists all of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from yacs.config import CfgNode as CN

from dassl.config.domains import (
    Bool,
    Choice,
    Domain,
    Float,
    Int,
    List,
    Names,
    Text,
    domain_of,
    is_storable,
)
from dassl.errors import UserError, shown


def _cores() -> int:
    """Count the processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# What concerns every run: dotted keys with their domains.
_C: dict[str, Domain] = {
    "VERSION": Int(1, min=1, help="version of the config format"),
    "OUTPUT_DIR": Text(
        "./output", help="folder of log.txt, results.json, the model weights and tensorboard"
    ),
    "RESUME": Text("", help='folder of an interrupted run to resume ("": OUTPUT_DIR itself)'),
    "SEED": Int(-1, max=2**32 - 1, help="random seed; a negative one leaves everything random"),
    "USE_CUDA": Bool(True, help="compute on the GPU, if there is one"),
    "VERBOSE": Bool(True, help="print details of dataset, model and training"),
    "TRACKER": Choice(
        "",
        *("", "wandb", "trackio", "mlflow"),
        help='what gets the curves besides TensorBoard ("": nothing)',
    ),
    # -------------------------------------------------------------------------------------- trainer
    "TRAINER.NAME": Choice("", source="dassl.engine:TRAINER_REGISTRY", help="the method"),
    # ---------------------------------------------------------------------------------------- input
    "INPUT.SIZE": List(
        (224, 224),
        Int(min=1, max=10000),
        length=2,
        help="height and width of the images, in pixels",
    ),
    "INPUT.INTERPOLATION": Choice(
        "bilinear",
        source="dassl.data.transforms:INTERPOLATION_NAMES",
        help="how images are resized",
    ),
    "INPUT.UPRIGHT": Bool(
        False, help="turn images as their EXIF data say; the public toolbox does not"
    ),
    "INPUT.MAX_PIXELS": Int(
        89_478_485,
        min=1,
        help="images with more pixels count as broken (default: Pillow's own limit)",
    ),
    "INPUT.TRANSFORMS": Names(
        (),
        source="dassl.data.transforms:CHOICES",
        help="what is done to the images, in a fixed order",
    ),
    "INPUT.NO_TRANSFORM": Bool(False, help="leave images as PIL images"),
    "INPUT.PIXEL_MEAN": List(
        [0.485, 0.456, 0.406],
        Float(min=0, max=1),
        length=3,
        help="normalize: mean of each color, as a value in 0..1 (default: ImageNet's)",
    ),
    "INPUT.PIXEL_STD": List(
        [0.229, 0.224, 0.225],
        Float(above=0),
        length=3,
        help="normalize: standard deviation of each color (default: ImageNet's)",
    ),
    "INPUT.CROP_PADDING": Int(4, min=0, max=1000, help="random_crop: padding in pixels"),
    "INPUT.RRCROP_SCALE": List(
        (0.08, 1.0),
        Float(above=0, max=1),
        length=2,
        rising=True,
        help="random_resized_crop: smallest and largest share of the image's area",
    ),
    "INPUT.CUTOUT_N": Int(1, min=0, max=1000, help="cutout: number of holes"),
    "INPUT.CUTOUT_LEN": Int(16, min=1, max=10000, help="cutout: side of a hole in pixels"),
    "INPUT.GN_MEAN": Float(0.0, help="gaussian_noise: mean"),
    "INPUT.GN_STD": Float(0.15, min=0, help="gaussian_noise: standard deviation"),
    "INPUT.RANDAUGMENT_N": Int(2, min=0, max=100, help="randaugment: number of operations"),
    "INPUT.RANDAUGMENT_M": Int(10, min=0, max=30, help="randaugment: magnitude"),
    "INPUT.COLORJITTER_B": Float(0.4, min=0, help="colorjitter: brightness"),
    "INPUT.COLORJITTER_C": Float(0.4, min=0, help="colorjitter: contrast"),
    "INPUT.COLORJITTER_S": Float(0.4, min=0, help="colorjitter: saturation"),
    "INPUT.COLORJITTER_H": Float(0.1, min=0, max=0.5, help="colorjitter: hue"),
    "INPUT.RGS_P": Float(0.2, min=0, max=1, help="randomgrayscale: probability"),
    "INPUT.GB_P": Float(0.5, min=0, max=1, help="gaussian_blur: probability"),
    "INPUT.GB_K": Int(21, min=1, odd=True, help="gaussian_blur: size of the kernel in pixels"),
    # -------------------------------------------------------------------------------------- dataset
    "DATASET.ROOT": Text("", help="folder that holds the datasets"),
    "DATASET.NAME": Choice("", source="dassl.data.datasets:DATASET_REGISTRY", help="the dataset"),
    "DATASET.SOURCE_DOMAINS": List(
        (), Text(), help="names of training domains, for datasets that have several"
    ),
    "DATASET.TARGET_DOMAINS": List(
        (), Text(), help="names of test domains, for datasets that have several"
    ),
    "DATASET.NUM_SHOTS": Int(-1, min=-1, help="training images of each class (0 or -1: all)"),
    "DATASET.SUBSAMPLE_CLASSES": Choice(
        "all",
        *("all", "base", "new"),
        help="base: the first half of the sorted labels, rounded up; new: the other half",
    ),
    "DATASET.VAL_PERCENT": Float(
        0.1,
        min=0,
        below=1,
        help="share of the training images that becomes validation images where a dataset has none",
    ),
    "DATASET.CIFAR_C_TYPE": Text("", help="CIFAR-10-C and CIFAR-100-C: the corruption"),
    "DATASET.CIFAR_C_LEVEL": Int(1, min=1, max=5, help="CIFAR-10-C and CIFAR-100-C: its level"),
    # ----------------------------------------------------------------------------------- dataloader
    "DATALOADER.NUM_WORKERS": Int(
        _cores(),
        min=0,
        max=1024,
        help="processes that read images, at most one a batch (0: the main process reads them)",
    ),
    "DATALOADER.CACHE_MB": Int(
        2048,
        min=0,
        help="megabytes of memory for decoded training images, which are then read once (0: none)",
    ),
    "DATALOADER.VIEWS": Int(
        0,
        min=0,
        max=10000,
        help="augmented views of each training image, one an epoch in turn, whose frozen features "
        "are computed once (0: new ones in every epoch, as published)",
    ),
    "DATALOADER.FEATURES_MB": Int(
        2048,
        min=0,
        help="megabytes on disk for image features that training cannot change, which all runs "
        "share (0: none are kept)",
    ),
    "DATALOADER.FEATURES_DIR": Text(
        "", help='folder of these features ("": .features in DATASET.ROOT)'
    ),
    "DATALOADER.ON_ERROR": Choice(
        "stop",
        source="dassl.data.data_manager:ON_ERROR",
        help="what to do at an image that cannot be read; skip: leave it out",
    ),
    "DATALOADER.K_TRANSFORMS": Int(
        1, min=1, max=100, help='views of each training image; several make batch["img"] a list'
    ),
    "DATALOADER.RETURN_IMG0": Bool(
        False, help='give the image without augmentation, too, as batch["img0"]'
    ),
    "DATALOADER.TRAIN_X.SAMPLER": Choice(
        "RandomSampler", source="dassl.data.samplers:SAMPLERS", help="order of the training images"
    ),
    "DATALOADER.TRAIN_X.BATCH_SIZE": Int(
        32, min=1, help="training images in a batch, of all processes together"
    ),
    "DATALOADER.TRAIN_X.DROP_LAST": Bool(
        True, help="leave out each epoch's last batch where it is not full, as the public toolbox"
    ),
    "DATALOADER.TRAIN_X.N_DOMAIN": Int(
        0, min=-1, help="RandomDomainSampler: domains in a batch (0 or -1: all)"
    ),
    "DATALOADER.TRAIN_X.N_INS": Int(
        16, min=1, help="RandomClassSampler: images of each class in a batch (divides BATCH_SIZE)"
    ),
    "DATALOADER.TEST.SAMPLER": Choice(
        "SequentialSampler",
        source="dassl.data.samplers:TEST_SAMPLERS",
        help="order of the validation and test images",
    ),
    "DATALOADER.TEST.BATCH_SIZE": Int(32, min=1, help="validation or test images in a batch"),
    # ---------------------------------------------------------------------------------------- model
    "MODEL.INIT_WEIGHTS": Text("", help="weights file to start from"),
    "MODEL.RECOMPUTE": Choice(
        "auto",
        *("auto", "never", "always"),
        help="compute blocks a second time for their gradients instead of keeping all that these "
        "need; auto: where that is more than a third of the free memory (the results are the same)",
    ),
    "MODEL.COMPILE": Bool(False, help="let torch.compile fuse what the towers' blocks compute"),
    "MODEL.CUDA_GRAPH": Bool(
        False, help="record a training step on the GPU and launch it as one; nothing is recomputed"
    ),
    "MODEL.BACKBONE.NAME": Text("", help="name of the CLIP, or its weights file"),
    "MODEL.BACKBONE.PRETRAINED": Bool(
        True, help="for public trainers; ours always load CLIP's weights"
    ),
    "MODEL.HEAD.NAME": Text("", help="for public trainers: the head"),
    "MODEL.HEAD.HIDDEN_LAYERS": List((), Int(min=1), help="for public trainers: the head's widths"),
    "MODEL.HEAD.ACTIVATION": Text("relu", help="for public trainers: the head's activation"),
    "MODEL.HEAD.BN": Bool(True, help="for public trainers: the head has batch normalization"),
    "MODEL.HEAD.DROPOUT": Float(0.0, min=0, max=1, help="for public trainers: the head's dropout"),
    # --------------------------------------------------------------------------------- optimization
    "OPTIM.NAME": Choice("adam", source="dassl.optim:OPTIMIZERS", help="the optimizer"),
    "OPTIM.LR": Float(0.0003, min=0, help="learning rate"),
    "OPTIM.WEIGHT_DECAY": Float(5e-4, min=0, help="weight decay"),
    "OPTIM.MOMENTUM": Float(0.9, min=0, max=1, help="sgd and rmsprop: momentum"),
    "OPTIM.SGD_DAMPNING": Float(0, min=0, max=1, help="sgd: dampening of the momentum"),
    "OPTIM.SGD_NESTEROV": Bool(
        False, help="sgd: Nesterov momentum, which needs MOMENTUM and no SGD_DAMPNING"
    ),
    "OPTIM.RMSPROP_ALPHA": Float(0.99, min=0, max=1, help="rmsprop: smoothing"),
    "OPTIM.EPS": Float(1e-8, min=0, help="the adam family: epsilon"),
    "OPTIM.ADAM_BETA1": Float(0.9, min=0, below=1, help="the adam family: first beta"),
    "OPTIM.ADAM_BETA2": Float(0.999, min=0, below=1, help="the adam family: second beta"),
    "OPTIM.STAGED_LR": Bool(
        False, help="layers that are not in NEW_LAYERS get LR * BASE_LR_MULT (public trainers)"
    ),
    "OPTIM.NEW_LAYERS": List((), Text(), help="STAGED_LR: names of the model's layers"),
    "OPTIM.BASE_LR_MULT": Float(0.1, min=0, help="STAGED_LR: factor of the other layers"),
    "OPTIM.LR_SCHEDULER": Choice(
        "single_step", source="dassl.optim:SCHEDULERS", help="the learning-rate schedule"
    ),
    "OPTIM.STEPSIZE": List(
        (-1,),
        Int(min=-1),
        some=True,
        help="epochs of a step; single_step takes the last (-1 or 0: MAX_EPOCH)",
    ),
    "OPTIM.GAMMA": Float(0.1, min=0, help="single_step and multi_step: factor of a step"),
    "OPTIM.MAX_EPOCH": Int(10, min=1, help="number of epochs"),
    "OPTIM.ACCUMULATE": Int(
        1,
        min=1,
        help="parts that a batch is computed in, one after the other; their gradients add up",
    ),
    "OPTIM.CLIP_NORM": Float(
        0.0, min=0, help="largest norm of a step's gradient, which is scaled down to it (0: any)"
    ),
    "OPTIM.WARMUP_EPOCH": Int(-1, min=-1, help="warm-up epochs (-1 or 0: none)"),
    "OPTIM.WARMUP_TYPE": Choice("linear", source="dassl.optim:WARMUPS", help="kind of warm-up"),
    "OPTIM.WARMUP_CONS_LR": Float(1e-5, min=0, help="constant warm-up: its learning rate"),
    "OPTIM.WARMUP_MIN_LR": Float(1e-5, min=0, help="linear warm-up: rate of the first epoch"),
    "OPTIM.WARMUP_RECOUNT": Bool(
        True, help="begin the schedule after the warm-up; False: at its epoch WARMUP_EPOCH"
    ),
    # ------------------------------------------------------------------------------- train and test
    "TRAIN.CHECKPOINT_FREQ": Int(
        0, min=-1, help="keep a model every so many epochs (0 or -1: only the last)"
    ),
    "TRAIN.PRINT_FREQ": Int(10, min=1, help="log a line every so many batches"),
    "TEST.EVALUATOR": Choice(
        "Classification", source="dassl.evaluation:EVALUATOR_REGISTRY", help="the evaluator"
    ),
    "TEST.PER_CLASS_RESULT": Bool(False, help="log the accuracy of each class"),
    "TEST.COMPUTE_CMAT": Bool(False, help="save the confusion matrix as OUTPUT_DIR/cmat.pt"),
    "TEST.METRICS": Names(
        (),
        source="dassl.metrics:METRIC_REGISTRY",
        help="further metrics for results.json and the log",
    ),
    "TEST.RECORD": Names(
        (),
        source="dassl.engine.recorders:RECORDER_REGISTRY",
        help="recorders: what the final test keeps besides its figures",
    ),
    "TEST.SAVE_LOGITS": Bool(
        False,
        help="as logits in RECORD: save OUTPUT_DIR/logits.npz with logits, labels and impaths",
    ),
    "TEST.NO_TEST": Bool(
        False, help="no test after training, and nothing that only a test can give"
    ),
    "TEST.SPLIT": Choice(
        "test", "test", "val", help="images of the final test; val must have no test images"
    ),
    "TEST.SUBSAMPLE_CLASSES": Choice(
        "",
        *("", "all", "base", "new"),
        help='classes of the test images ("": as DATASET.SUBSAMPLE_CLASSES)',
    ),
    "TEST.FINAL_MODEL": Choice(
        "last_step",
        *("last_step", "best_val"),
        help="best_val: val, which must have no test images, is evaluated after every epoch",
    ),
    "TEST.BEST_VAL_TIE": Choice(
        "first",
        *("first", "last"),
        help="best_val: which of several epochs with the best result stays",
    ),
}

_KEYS: dict[str, dict[str, Domain]] = {"": _C}  # by trainer; without one: of every run


def register_defaults(node: str, defaults: dict[str, Any], trainer: str = "") -> None:
    """Add the config keys of a trainer or dataset; called when its file is imported.

    Args:
        node: dotted place in the tree, such as "TRAINER.COOP"; made where it is missing.
        defaults: domains of the keys, or plain defaults, whose type is then the domain; nested
            dicts for nodes below.
        trainer: name of the one that the keys belong to. Several may share a node, each with keys,
            defaults and domains of its own. Keys of no trainer concern every run.

    Raises:
        ValueError: a key already exists with another default.
    """
    for name, value in defaults.items():
        key = f"{node}.{name}"
        if isinstance(value, dict):
            register_defaults(key, value, trainer)
            continue
        domain, known = domain_of(value), declared(trainer).get(key)
        if known is not None and known.default != domain.default:
            raise ValueError(f"{key} already has the default {known.default!r}, not {value!r}")
        _KEYS.setdefault(trainer, {})[key] = domain


def trainers_with_keys() -> list[str]:
    """Name the trainers that keys belong to, in alphabetical order."""
    return sorted(filter(None, _KEYS))


def declared(trainer: str = "") -> dict[str, Domain]:
    """Return the domains of the keys of every run and of those of ``trainer``, by dotted key."""
    return {**_C, **_KEYS.get(trainer, {})}


def domains_of(key: str) -> list[Domain]:
    """Return the domains that a key has, one for each declaration."""
    return [keys[key] for keys in _KEYS.values() if key in keys]


def _foreign(trainer: str) -> dict[str, Domain]:
    """Return the keys that other trainers declare and ``trainer`` does not; the first counts."""
    others = {key: domain for keys in reversed(_KEYS.values()) for key, domain in keys.items()}
    return {key: domain for key, domain in others.items() if key not in declared(trainer)}


def _shared(key: str, trainer: str) -> bool:
    """Return whether ``trainer`` declares keys in the node of ``key``."""
    node = key.rpartition(".")[0]
    return any(own.rpartition(".")[0] == node for own in _KEYS.get(trainer, ()))


def get_cfg_default(trainer: str = "") -> CN:
    """Return a new config tree, not frozen, with the defaults of everything registered so far.

    Args:
        trainer: name of the one whose keys and defaults its nodes have. Without a name, a node
            that several trainers share has the keys of all of them, with the first one's defaults.
    """
    foreign = _foreign(trainer).items()
    others = {key: domain for key, domain in foreign if not _shared(key, trainer)}
    cfg = CN()
    for key, domain in {**declared(trainer), **others}.items():
        *nodes, name = key.split(".")
        node = cfg
        for part in nodes:
            node = node.setdefault(part, CN())
        node[name] = deepcopy(domain.default)
    return cfg


def check_domains(cfg: CN, trainer: str = "", section: str = "") -> None:
    """Refuse what lies outside the domain of its key, and numbers that are not finite anywhere.

    Values in nodes of other trainers need only be finite: nobody reads them. Nothing is read or
    loaded.

    Args:
        cfg: the config.
        trainer: name of the one that is going to run.
        section: a node to check on its own, such as "DATASET".

    Raises:
        UserError: one line, ``KEY: expected X, got V``.
    """
    known, foreign = declared(trainer), _foreign(trainer)
    for key, value in _leaves(cfg):
        if not key.startswith(section):
            continue
        if not is_storable(value):
            kinds = "text in Unicode, a number, True, False, None or a list of them"
            raise UserError(f"{key}: expected {kinds}, got {shown(value)}")
        known.get(key, Domain()).check(key, value)
        if key in foreign and _shared(key, trainer) and value != foreign[key].default:
            raise UserError(
                f"{key}: expected no value, as {trainer} has no such key, got {shown(value)}"
            )


def _leaves(tree: CN, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys of a tree with their values."""
    for name, value in tree.items():
        if isinstance(value, CN):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
