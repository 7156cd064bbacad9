"""Files written for the public toolbox train and evaluate here as they are."""

from __future__ import annotations

import json

import torch
import torch.nn.functional as F
from yacs.config import CfgNode as CN

import tests.public.context_trainer
import tests.public.patches_dataset
import tests.public.shifted_dataset
from dassl.config import get_cfg_default
from dassl.data import DataManager
from dassl.data.datasets import build_dataset
from dassl.engine import build_trainer
from dassl.utils import set_random_seed
from tests.embedded import BACKBONE, SIZE

# they register themselves
assert tests.public.context_trainer and tests.public.patches_dataset
assert tests.public.shifted_dataset


def config(root, output):
    cfg = get_cfg_default()
    cfg.TRAINER.PUBLICSTYLE = CN()
    cfg.TRAINER.PUBLICSTYLE.N_CTX = 4
    cfg.TRAINER.PUBLICSTYLE.PREC = "fp32"
    cfg.TRAINER.NAME = "PublicStyle"
    cfg.DATASET.NAME = "PublicPatches"
    cfg.DATASET.ROOT = str(root)
    cfg.DATASET.NUM_SHOTS = 8
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 6
    cfg.MODEL.BACKBONE.NAME = BACKBONE
    cfg.INPUT.SIZE = (SIZE, SIZE)
    cfg.INPUT.TRANSFORMS = ["random_flip", "normalize"]
    cfg.OPTIM.NAME = "sgd"
    cfg.OPTIM.LR = 0.01
    cfg.OPTIM.MAX_EPOCH = 20
    cfg.OPTIM.LR_SCHEDULER = "cosine"
    cfg.OUTPUT_DIR = str(output)
    cfg.freeze()
    return cfg


@torch.no_grad()
def training_loss(trainer):
    trainer.set_model_mode("eval")
    losses = []
    for batch in trainer.train_loader_x:
        image, label = trainer.parse_batch_train(batch)
        losses.append(F.cross_entropy(trainer.model(image), label).item())
    return sum(losses) / len(losses)


def test_a_public_trainer_and_dataset_train_save_reload_and_evaluate(tmp_path, capsys):
    cfg = config(tmp_path, tmp_path / "run")
    set_random_seed(1)
    trainer = build_trainer(cfg)
    before = training_loss(trainer)
    frozen = {n: p.clone() for n, p in trainer.model.image_encoder.named_parameters()}
    trainer.train()
    assert training_loss(trainer) < before
    accuracy = json.loads((tmp_path / "run/results.json").read_text())["accuracy"]
    assert "* accuracy: " in capsys.readouterr().out
    for name, parameter in trainer.model.image_encoder.named_parameters():
        assert torch.equal(parameter, frozen[name])
    trainer.close_writer()

    again = build_trainer(config(tmp_path, tmp_path / "again"))
    again.load_model(str(tmp_path / "run"), epoch=20)
    assert again.test() == accuracy


def test_a_public_test_set_gives_its_images_for_training_too(tmp_path):
    cfg = config(tmp_path, tmp_path / "run")
    build_dataset(cfg)  # paints the images
    cfg.defrost()
    cfg.DATASET.NAME = "PublicPatchesShifted"
    for subset, names in (("all", ["orange", "red", "yellow"]), ("new", ["yellow"])):
        cfg.DATASET.SUBSAMPLE_CLASSES = subset
        data = DataManager(cfg)
        assert data.dataset.classnames == data.dataset.test_classnames == names
        assert len(data.dataset.train_x) == len(data.dataset.test) == 20 * len(names)
        assert data.train_loader_x is not None and data.val_loader is None
