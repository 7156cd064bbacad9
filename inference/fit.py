"""Training from Python: the run of ``train.py``, whose bad input is an exception."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import train
from configs.choice import CONFIGS, PAPERS, UNTRAINED, config_of
from configs.protocols import FEW_SHOT
from dassl.errors import UserError, check_choice, shown

HERE = Path(__file__).parents[1] / CONFIGS  # a notebook may be anywhere
FOLDER = "image_folder"  # dataset of any folder
# Keys that arguments set, under whose names their errors are raised.
ARGUMENTS = {
    "DATASET.NAME": "data",
    "TRAINER.NAME": "method",
    "DATASET.NUM_SHOTS": "shots",
    "MODEL.BACKBONE.NAME": "backbone",
    "OUTPUT_DIR": "output_dir",
    "SEED": "seed",
    "DATASET.ROOT": "root",
}


def run(args: Namespace) -> None:
    """Do what ``train.py`` does, in this process, which is left as it was but for random states.

    Raises:
        UserError: bad input, under the name of the argument of ``Classifier.fit`` that it is of.
    """
    try:
        with ExitStack() as held, train.process_state():
            train.run(args, held)
            sys.stdout.flush()
    except UserError as error:
        key, colon, rest = str(error).partition(":")
        if key not in ARGUMENTS:
            raise
        is_folder = Path(args.dataset_config_file).stem == FOLDER
        name = "data" if key == "DATASET.ROOT" and is_folder else ARGUMENTS[key]
        raise UserError(f"{name}{colon}{rest}") from error


def arguments_for(
    data: Any,
    method: Any,
    output_dir: Any,
    shots: Any,
    seed: Any,
    backbone: Any,
    root: Any,
    overrides: Any,
) -> Namespace:
    """Return the arguments of ``train.py`` for those of ``Classifier.fit``.

    Raises:
        UserError: one is not usable.
    """
    places = {"data": data, "output_dir": output_dir, "backbone": backbone, "root": root}
    for name, value in places.items():
        if not isinstance(value, (str, os.PathLike)) or (name != "backbone" and not str(value)):
            raise UserError(f"{name}: expected a path or a name, got {shown(value)}")
    for name, value in (("shots", shots), ("seed", seed)):
        if type(value) is not int:
            raise UserError(f"{name}: expected a whole number, got {shown(value)}")
    check_choice("method", method, PAPERS)
    backbone = os.fspath(backbone)
    dataset = dataset_of(data)
    config = config_of(method, FEW_SHOT, dataset, shots, backbone)

    args = train.build_parser().parse_args([])
    args.trainer, args.seed, args.backbone = method, seed, backbone
    args.output_dir = os.fspath(output_dir)
    args.root = os.fspath(data if dataset == FOLDER else root)
    args.dataset_config_file = str(HERE / "datasets" / f"{dataset}.yaml")
    args.config_file = str(HERE / "trainers" / method / f"{config}.yaml")
    args.skip_finished = True
    if method in UNTRAINED:
        args.eval_only = True
    else:
        args.opts = ["DATASET.NUM_SHOTS", str(shots)]
    args.opts += pairs(overrides)
    return args


def dataset_of(data: str | os.PathLike[str]) -> str:
    """Name the config file of a dataset: that of its name, or ``FOLDER`` for a folder.

    Raises:
        UserError: it is neither.
    """
    known = {path.stem for path in HERE.glob("datasets/[!_]*.yaml")} - {FOLDER}
    if isinstance(data, str) and data in known:
        return data
    if not os.path.isdir(os.path.expanduser(data)):
        names = ", ".join(sorted(known))
        raise UserError(
            f"data: expected an existing folder, or a name among {names}, got {shown(data)}"
        )
    return FOLDER


def pairs(overrides: Any) -> list[str]:
    """Return {key: value} as KEY VALUE pairs of a command line.

    Raises:
        UserError: it has another form, or a key that an argument sets.
    """
    if not isinstance(overrides, Mapping) or not all(isinstance(key, str) for key in overrides):
        raise UserError(f"overrides: expected {{key: value}}, got {shown(overrides)}")
    for key in overrides:
        if key in ARGUMENTS:
            raise UserError(f"overrides: expected {key} to be set by {ARGUMENTS[key]}, got it here")
    return [text for key, value in overrides.items() for text in (key, str(value))]
