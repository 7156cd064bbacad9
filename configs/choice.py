"""Which config file a method runs with: its paper's, or that for the embedded datasets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from configs.protocols import CROSS_DATASET, Protocol
from dassl.errors import UserError

CONFIGS = Path("configs")
MINI = "ViT-Mini-2"
EMBEDDED = (
    *("emoji", "emoji_v2", "emoji_sketch", "emoji_noise", "emoji_rendition"),
    *("animals", "food", "faces", "shapes", "glyphs", "digits"),
)
EMBEDDED_SOURCE = "emoji"  # what ImageNet is to the public datasets
UNTRAINED = ("ZeroshotCLIP", "ZeroshotCLIP2")
# Can predict only the classes that they were trained on.
CLOSED_SET = ("LinearProbe", "TipAdapter", "TipAdapterF", "LPpp")
TRANSDUCTIVE: tuple[str, ...] = ()  # learn from images of the test set, too, without their labels


class Rule(NamedTuple):
    """A config file and when it is used: a method's first matching rule applies.

    Args:
        config: name of the file, without .yaml.
        protocols: protocols it is for; empty for all.
        datasets: training datasets it is for; empty for all.
        shots: numbers of shots it is for; empty for all.
    """

    config: str
    protocols: Sequence[str] = ()
    datasets: Sequence[str] = ()
    shots: Sequence[int] = ()

    def fits(self, *case: object) -> bool:
        """Tell whether the rule applies to protocol, dataset and shots."""
        return all(not known or value in known for known, value in zip(self[1:], case, strict=True))


TRANSFER = ("cross_dataset", "domain_generalization")
FEW_SHOT = ("few_shot",)
IMAGENET = ("imagenet",)
OF_CROSS_DATASET = CROSS_DATASET.targets["imagenet"]
PUBLIC = (*IMAGENET, *OF_CROSS_DATASET)
# Far from CLIP's images, later epochs enter the aggregate (as in the public code).
LATE_AGGREGATE = ("stanford_cars", "oxford_flowers", "fgvc_aircraft", "dtd", "eurosat")

PAPERS: dict[str, tuple[Rule, ...]] = {
    "ZeroshotCLIP": (Rule("vit_b16"),),
    "ZeroshotCLIP2": (Rule("vit_b16"),),
    "StandardizedCLIP": (Rule("vit_b16"),),
    "LinearProbe": (Rule("vit_b16"),),
    "LPpp": (Rule("vit_b16"),),
    "CLIPAdapter": (Rule("vit_b16"),),
    "TaskRes": (
        Rule("adam_lr2e-4_B256_ep200_ViT16", datasets=IMAGENET),
        Rule("vit_b16_ep100", FEW_SHOT, shots=(1, 2, 4)),
        Rule("vit_b16"),
    ),
    "TipAdapter": (Rule("vit_b16"),),
    "TipAdapterF": (Rule("vit_b16"),),
    "CoOp": (
        # Fewer shots, fewer epochs (as in the paper); ImageNet always has 50.
        Rule("vit_b16_ep50", FEW_SHOT, IMAGENET),
        Rule("vit_b16_ep50", FEW_SHOT, shots=(1,)),
        Rule("vit_b16_ep100", FEW_SHOT, shots=(2, 4)),
        Rule("vit_b16", FEW_SHOT),
        Rule("vit_b16_ep50_ctxv1"),
    ),
    "CoCoOp": (Rule("vit_b16_c4_ep10_batch1_ctxv1"),),
    "KgCoOp": (Rule("vit_b16_ep100_ctxv1"),),
    "ProGrad": (
        Rule("vit_b16_ep50", datasets=IMAGENET),
        Rule("vit_b16_ep50", FEW_SHOT, shots=(1,)),
        Rule("vit_b16", FEW_SHOT, shots=(8, 16)),
        Rule("vit_b16_ep100"),
    ),
    "LAMM": (Rule("vit_b16_ep50_ctxv1"),),
    "VPT": (Rule("vit_b16_c2_ep5_batch4_4"),),
    "IVLP": (Rule("vit_b16_c2_ep5_batch4_2+2ctx"),),
    "MaPLe": (
        Rule("vit_b16_c2_ep5_batch4_2ctx_cross_datasets", TRANSFER),
        Rule("vit_b16_c2_ep5_batch4_2ctx"),
    ),
    "PromptSRC": (
        Rule("vit_b16_c2_ep50_batch4_4+4ctx_few_shot_gpa45", FEW_SHOT, LATE_AGGREGATE),
        Rule("vit_b16_c2_ep50_batch4_4+4ctx_few_shot", FEW_SHOT),
        Rule("vit_b16_c2_ep20_batch4_4+4ctx_cross_datasets", TRANSFER),
        Rule("vit_b16_c2_ep20_batch4_4+4ctx"),
    ),
    "ProMPT": (
        Rule("vit_b16_ep2_batch4_8+5ctx_cross_datasets", TRANSFER),
        Rule("vit_b16_ep5_batch4_8+5ctx"),
    ),
    "HISF": (Rule("vit_b16_ep50_batch4"),),
    "HiCroPL": (
        Rule("vit_b16_c2_ep5_batch32_2ctx_cross_datasets", TRANSFER),
        Rule("vit_b16_c2_ep40_batch128_16ctx", datasets=IMAGENET),
        Rule("vit_b16_c2_ep50_batch32_16ctx_few_shot", FEW_SHOT),
        Rule("vit_b16_c2_ep50_batch32_16ctx"),
    ),
    "MetaPrompt": (Rule("vit_b16"),),
    "ProDA": (Rule("vit_b16_ep100_batch20"),),
    "MMA": (Rule("vit_b16_ep5_imnet", datasets=IMAGENET), Rule("vit_b16_ep5")),
    "MMRL": (
        Rule("vit_b16_cross_datasets", TRANSFER),
        Rule("vit_b16_imagenet", datasets=IMAGENET),
        *(Rule(f"vit_b16_few_shot_{name}", FEW_SHOT, (name,)) for name in OF_CROSS_DATASET),
        *(Rule(f"vit_b16_{name}", datasets=(name,)) for name in OF_CROSS_DATASET),
        Rule("vit_b16_few_shot", FEW_SHOT),
        Rule("vit_b16"),
    ),
    "CLIPLoRA": (Rule("vit_b16"),),
    "DePT": (Rule("vit_b16_c2_ep10_batch4_2ctx"),),
    "CoPrompt": (
        *(Rule(f"vit_b16_randaug_{dataset}", datasets=(dataset,)) for dataset in PUBLIC),
        Rule("vit_b16_c2_ep5_batch4_2ctx_randaug"),
    ),
    "ProVP": (
        Rule("vit_b16_ref_ep50", FEW_SHOT, shots=(1,)),
        Rule("vit_b16_ref_ep100", FEW_SHOT),
        Rule("vit_b16_b2n_ep100"),
    ),
    "TCP": (
        Rule("vit_b16_ep25_ctxv1", datasets=("imagenet", "sun397")),
        Rule("vit_b16_ep100_ctxv1"),
    ),
}
MINIATURE: tuple[Rule, ...] = (Rule("vit_mini"),)
# Methods with a file of their own for transfer.
MINIATURES: dict[str, tuple[Rule, ...]] = dict.fromkeys(
    (
        *("CoOp", "CoCoOp", "KgCoOp", "VPT", "IVLP", "MaPLe"),
        *("PromptSRC", "ProMPT", "HISF", "HiCroPL"),
    ),
    (Rule("vit_mini_cross_datasets", TRANSFER), *MINIATURE),
)


def is_embedded(dataset: str) -> bool:
    """Tell whether a dataset is one of the embedded benchmark, drawn on first use."""
    return dataset in EMBEDDED


def config_of(
    trainer: str, protocol: Protocol, dataset: str, shots: int, backbone: str = ""
) -> str:
    """Name the config file of a method trained on ``dataset``, without folder and .yaml.

    It is ViT-Mini-2's if that is the backbone, which is the default for the embedded datasets.

    Raises:
        UserError: no rule of the method applies.
    """
    is_mini = backbone == MINI or (is_embedded(dataset) and not backbone)
    for rule in MINIATURES.get(trainer, MINIATURE) if is_mini else PAPERS.get(trainer, ()):
        if rule.fits(protocol.name, dataset, shots):
            return rule.config
    raise UserError(
        f"config: expected a name (--config, CFG) from {CONFIGS / 'trainers' / trainer}, got none; "
        f"configs/choice.py has no default for {trainer}"
    )
