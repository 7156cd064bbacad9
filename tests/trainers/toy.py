"""A toy dataset for runs from the command line, and each method's settings for the tiny CLIP."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from tests.trainers.tiny import tiny_clip

COLORS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "grey": (128,) * 3}


class ColorPatches(DatasetBase):
    """Four classes of colored noise, 16 x 16."""

    templates = ["a photo of a {} patch."]

    def __init__(self, cfg):
        root = Path(cfg.DATASET.ROOT)
        splits = []
        for split, count in (("train", 4), ("test", 3)):
            items = []
            for label, (name, color) in enumerate(COLORS.items()):
                for i in range(count):
                    path = root / split / name / f"{i}.png"
                    if not path.exists():
                        path.parent.mkdir(parents=True, exist_ok=True)
                        noise = np.random.RandomState(100 * label + i).randint(-25, 25, (16, 16, 3))
                        pixels = np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)
                        Image.fromarray(pixels).save(path)
                    items.append(Datum(impath=str(path), label=label, classname=name))
            splits.append(items)
        self.dataset_dir = str(root)
        super().__init__(train_x=splits[0], test=splits[1], cfg=cfg)


# Registered under the British spelling; a test asks for the American one and gets a suggestion.
ColorPatches.__name__ = "ColourPatches"
DATASET_REGISTRY.register(ColorPatches)

HICROPL = ["TRAINER.HICROPL.PROMPT_DEPTH", "4", "TRAINER.HICROPL.CROSS_LAYER", "2"]
HICROPL += ["TRAINER.HICROPL.N_CTX", "2", "TRAINER.HICROPL.FROZEN_TEXT", "dataset_template"]
OPTIONS = {
    "HiCroPL": HICROPL,
    "CoOp": ["TRAINER.COOP.N_CTX", "3"],
    "ProGrad": ["TRAINER.COOP.N_CTX", "7", "TRAINER.COOP.CTX_INIT", "True"],
    "CoPrompt": [
        *("DATALOADER.K_TRANSFORMS", "2", "TRAINER.CoPrompt.PROMPT_DEPTH", "3"),
        *("TRAINER.CoPrompt.DESCRIPTIONS", str(Path(__file__).with_name("toy_descriptions.json"))),
    ],
    "MaPLe": ["TRAINER.MAPLE.PROMPT_DEPTH", "3"],
    "DePT": ["TRAINER.MAPLE.PROMPT_DEPTH", "3"],
    "IVLP": ["TRAINER.IVLP.PROMPT_DEPTH_VISION", "3", "TRAINER.IVLP.PROMPT_DEPTH_TEXT", "3"],
    "ProMPT": ["TRAINER.PROMPT.PROMPT_DEPTH_VISION", "3", "TRAINER.PROMPT.N_CTX_VISION", "2"],
    "HISF": ["TRAINER.HISF.FUSION_LAYERS", "(1, 3)"],
    "TCP": ["TRAINER.COOP.N_CTX", "3", "TRAINER.COOP.CLASS_LAYER", "3"],
    "MMA": [
        *("TRAINER.MMADAPTER.ADAPTER_START", "3", "TRAINER.MMADAPTER.ADAPTER_END", "4"),
        *("TRAINER.MMADAPTER.TEXT_CTX_INIT", "a photo of a"),
    ],
    "MMRL": [
        *("TRAINER.MMRL.REP_LAYERS", "(2, 4)", "TRAINER.MMRL.REP_DIM", "16"),
        *("TRAINER.MMRL.N_REP_TOKENS", "2"),
    ],
    "MetaPrompt": ["TRAINER.META.LAYERS", "3"],
    "ProDA": ["TRAINER.PRODA.N_CTX", "3", "TRAINER.PRODA.N_PROMPT", "6"],
    "CLIPLoRA": ["TRAINER.CLIPLORA.N_ITERS", "1"],  # 2 epochs of the classes of one subset
    "LPpp": ["TRAINER.LPPP.TRAIN_EPOCH", "5"],
    "TipAdapter": ["TRAINER.TIPADAPTER.AUGMENT_EPOCH", "2"],
    "TipAdapterF": ["TRAINER.TIPADAPTER.AUGMENT_EPOCH", "2"],
    "PromptSRC": [
        *("TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION", "3"),
        *("TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT", "2"),
    ],
    "ProVP": ["TRAINER.COOP.N_CTX", "2", "OPTIM.USE_REF", "True"],
}
NODES = {
    "ZeroshotCLIP": "ZSCLIP",
    "ZeroshotCLIP2": "ZSCLIP",
    "StandardizedCLIP": "ZSCLIP",
    "LinearProbe": "LINEAR_PROBE",
    "TaskRes": "TaskRes",
    "TipAdapter": "TIPADAPTER",
    "TipAdapterF": "TIPADAPTER",
    "KgCoOp": "COOP",
    "ProGrad": "COOP",
    "MetaPrompt": "META",
    "TCP": "COOP",
    "MMA": "MMADAPTER",
    "CoPrompt": "CoPrompt",
    "DePT": "MAPLE",
    "ProVP": "COOP",
}  # config nodes with a name other than the trainer's
CHECKPOINT = {
    "CoOp": "prompt_learner",
    "CoCoOp": "prompt_learner",
    "KgCoOp": "prompt_learner",
    "ProGrad": "prompt_learner",
    "TCP": "prompt_learner",
    "LAMM": "prompt_learner",
    "VPT": "prompt_learner",
    "MaPLe": "MultiModalPromptLearner",
    "DePT": "MultiModalPromptLearner",
    "IVLP": "VLPromptLearner",
    "PromptSRC": "VLPromptLearner",
    "HiCroPL": "VLPromptLearner",
    "ProMPT": "VLPromptLearner",
    "HISF": "VLPromptLearner",
    "MetaPrompt": "model",
    "MMA": "adapter_learner",
    "MMRL": "MultiModalRepresentationLearner",
    "ProDA": "prompt_learner",
    "CLIPLoRA": "lora",
    "CLIPAdapter": "clip_adapter",
    "TaskRes": "prompt_learner",
    "CoPrompt": "MultiModalPromptLearner",
    "ProVP": "Prompt_learner",
}


def command_line(
    trainer: str, root: Path, backbone: str, output: Path, *pairs: str, epochs: int = 2
) -> list[str]:
    """Return the arguments of train.py for a run on the colors, with the method's own settings."""
    node = NODES.get(trainer, trainer.upper())
    return [
        *("--trainer", trainer, "--root", str(root), "--seed", "1"),
        *("--backbone", backbone, "--output-dir", str(output)),
        *("DATASET.NAME", "ColourPatches", "INPUT.SIZE", "(16, 16)", "DATALOADER.NUM_WORKERS", "0"),
        *("INPUT.TRANSFORMS", "['random_resized_crop', 'normalize']"),
        *("DATALOADER.TRAIN_X.BATCH_SIZE", "4", "OPTIM.MAX_EPOCH", str(epochs)),
        *("OPTIM.LR_SCHEDULER", "cosine", f"TRAINER.{node}.PREC", "fp32"),
        *(*OPTIONS.get(trainer, []), *pairs),
    ]


def write_backbone(path: Path) -> str:
    """Write the tiny CLIP as a weights file that MODEL.BACKBONE.NAME can name."""
    torch.save({**tiny_clip().state_dict(), "head_width": torch.tensor(16)}, path)
    return str(path)


def checkpoint(folder: Path, trainer: str, epoch: int) -> dict:
    """Read what a run of a trainer has learned by the end of an epoch."""
    path = folder / CHECKPOINT[trainer] / f"model.pth.tar-{epoch}"
    return torch.load(path, weights_only=True)["state_dict"]
