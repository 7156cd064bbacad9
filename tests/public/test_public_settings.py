"""The config files of the public repositories merge, and their values are in the domains.

What those files set is recorded here as facts; the files differ in a few values.
"""

from __future__ import annotations

from ast import literal_eval
from contextlib import suppress

import pytest
import torch
import yaml
from yacs.config import CfgNode

import datasets
import trainers
from dassl.config import check_domains, get_cfg_default, merge_from_file, merge_from_list
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import UserError

assert datasets and trainers  # they register their keys and names

CROP, CENTER = "random_resized_crop", "center_crop"


def coop(backbone, epochs=200, words=None, crop=CROP, batch=32, **test):
    node = {} if words is None else {"CTX_INIT": words}
    return ("COOP", backbone, batch, 100, "sgd", 0.002, epochs, node, {"crop": crop, **test})


def cocoop(n_ctx, words=""):
    node = {"N_CTX": n_ctx, "CTX_INIT": words, "PREC": "fp16"}
    return ("COCOOP", "ViT-B/16", 1, 100, "sgd", 0.002, 10, node, {})


def deep(node, lr, epochs, batch=4, test=100, optimizer="sgd", **settings):
    settings = {"CTX_INIT": "a photo of a", "PREC": "fp16", **settings}
    return (node, "ViT-B/16", batch, test, optimizer, lr, epochs, settings, {})


def both(vision, text, **settings):
    return {"N_CTX_VISION": vision, "N_CTX_TEXT": text, **settings}


SRC = {"TEXT_LOSS_WEIGHT": 25, "IMAGE_LOSS_WEIGHT": 10, **both(4, 4)}
DEEP9 = {"PROMPT_DEPTH_VISION": 9, "PROMPT_DEPTH_TEXT": 9}
DEEP3 = {"PROMPT_DEPTH_VISION": 3, "PROMPT_DEPTH_TEXT": 3}
HICROPL = {"batch": 32, "test": 500, "optimizer": "adam", "TEACHER_NAME": "ViT-B/16", "LAMBD": 12.0}
FILES = {
    "CoOp/rn50": ("CoOp", coop("RN50")),
    "CoOp/rn50_ep50": ("CoOp", coop("RN50", 50)),
    "CoOp/rn50_ep100": ("CoOp", coop("RN50", 100)),
    "CoOp/rn50_ctxv1": ("CoOp", coop("RN50", words="a photo of a")),
    "CoOp/rn50_ep50_ctxv1": (
        "CoOp",
        coop("RN50", 50, "a photo of a", CENTER, FINAL_MODEL="best_val"),
    ),
    "CoOp/rn50_val": ("CoOp", coop("RN50", batch=200)),
    "CoOp/rn101": ("CoOp", coop("RN101")),
    "CoOp/rn101_ep50": ("CoOp", coop("RN101", 50)),
    "CoOp/vit_b16": ("CoOp", coop("ViT-B/16")),
    "CoOp/vit_b16_ep50": ("CoOp", coop("ViT-B/16", 50)),
    "CoOp/vit_b16_ep100": ("CoOp", coop("ViT-B/16", 100)),
    "CoOp/vit_b16_ctxv1": ("CoOp", coop("ViT-B/16", words="a photo of a")),
    "CoOp/vit_b16_ep50_ctxv1": ("CoOp", coop("ViT-B/16", 50, "a photo of a")),
    "CoOp/vit_b16_ep100_ctxv1": ("CoOp", coop("ViT-B/16", 100, "a photo of a")),
    "CoOp/vit_b32": ("CoOp", coop("ViT-B/32")),
    "CoOp/vit_b32_ep50": ("CoOp", coop("ViT-B/32", 50)),
    "CoCoOp/vit_b16_c4_ep10_batch1": ("CoCoOp", cocoop(4)),
    "CoCoOp/vit_b16_c4_ep10_batch1_ctxv1": ("CoCoOp", cocoop(4, "a photo of a")),
    "CoCoOp/vit_b16_c8_ep10_batch1": ("CoCoOp", cocoop(8)),
    "CoCoOp/vit_b16_c16_ep10_batch1": ("CoCoOp", cocoop(16)),
    "CoCoOp/vit_b16_c16_ep10_batch1_random": ("CoCoOp", cocoop(16, words=False)),
    "KgCoOp/vit_b16_ep100_ctxv1": ("KgCoOp", coop("ViT-B/16", 100, words=True, batch=128)),
    "KgCoOp/rn50_ep100": ("KgCoOp", coop("RN50", 100, words=True, batch=128)),
    "MaPLe/vit_b16_c2_ep5_batch4_2ctx": (
        "MaPLe",
        deep("MAPLE", 0.0035, 5, N_CTX=2, PROMPT_DEPTH=9),
    ),
    "MaPLe/vit_b16_c2_ep5_batch4_2ctx_cross_datasets": (
        "MaPLe",
        deep("MAPLE", 0.0026, 2, N_CTX=2, PROMPT_DEPTH=3),
    ),
    "IVLP/vit_b16_c2_ep5_batch4_2+2ctx": ("IVLP", deep("IVLP", 0.0025, 5, **both(2, 2), **DEEP9)),
    "IVLP/vit_b16_c2_ep5_batch4_4ctx_language_only": (
        "IVLP",
        deep("IVLP", 0.0025, 5, **both(0, 4), PROMPT_DEPTH_VISION=0, PROMPT_DEPTH_TEXT=12),
    ),
    "VPT/vit_b16_c2_ep5_batch4_4": (
        "VPT",
        deep("VPT", 0.0025, 5, N_CTX_VISION=8, PROMPT_DEPTH_VISION=12),
    ),
    "PromptSRC/vit_b16_c2_ep20_batch4_4+4ctx": (
        "PromptSRC",
        deep("PROMPTSRC", 0.0025, 20, **SRC, **DEEP9, GPA_MEAN=15, GPA_STD=1),
    ),
    "PromptSRC/vit_b16_c2_ep20_batch4_4+4ctx_cross_datasets": (
        "PromptSRC",
        deep("PROMPTSRC", 0.0025, 20, **SRC, **DEEP3, GPA_MEAN=6, GPA_STD=10),
    ),
    "PromptSRC/vit_b16_c2_ep50_batch4_4+4ctx_few_shot": (
        "PromptSRC",
        deep("PROMPTSRC", 0.0025, 50, **SRC, **DEEP9, GPA_MEAN=30, GPA_STD=30),
    ),
    "HiCroPL/vit_b16_c2_ep40_batch128_16ctx": (
        "HiCroPL",
        deep(
            "HICROPL",
            0.0025,
            40,
            N_CTX=16,
            PROMPT_DEPTH=12,
            CROSS_LAYER=6,
            **{**HICROPL, "batch": 128},
        ),
    ),
    "HiCroPL/vit_b16_c2_ep50_batch32_16ctx_few_shot": (
        "HiCroPL",
        deep("HICROPL", 0.0025, 50, N_CTX=16, PROMPT_DEPTH=12, CROSS_LAYER=6, **HICROPL),
    ),
    "HiCroPL/vit_b16_c2_ep5_batch32_2ctx_cross_datasets": (
        "HiCroPL",
        deep("HICROPL", 0.0025, 5, N_CTX=2, PROMPT_DEPTH=6, CROSS_LAYER=5, **HICROPL),
    ),
}


def tree(node, backbone, batch, test_batch, optimizer, lr, epochs, settings, rest):
    """Return the tree that such a file contains; YAML reads tuples and exponents as plain words."""
    crop = rest.get("crop", CROP)
    transforms = ["random_flip", "random_translation", CENTER] if crop == CENTER else [CROP]
    optim = {"NAME": optimizer, "LR": lr, "MAX_EPOCH": epochs, "LR_SCHEDULER": "cosine"}
    optim |= {"WARMUP_EPOCH": 1, "WARMUP_TYPE": "constant", "WARMUP_CONS_LR": "1e-5"}
    if optimizer == "adam":
        optim["EPS"] = "1e-3"
    return {
        "DATALOADER": {
            "TRAIN_X": {"BATCH_SIZE": batch},
            "TEST": {"BATCH_SIZE": test_batch},
            "NUM_WORKERS": 8,
        },
        "INPUT": {
            "SIZE": "(224, 224)",
            "INTERPOLATION": "bicubic",
            "PIXEL_MEAN": [0.48145466, 0.4578275, 0.40821073],
            "PIXEL_STD": [0.26862954, 0.26130258, 0.27577711],
            "TRANSFORMS": [*transforms, "random_flip", "normalize"],
        },
        "OPTIM": optim,
        "TRAIN": {"PRINT_FREQ": 20},
        "TEST": {"FINAL_MODEL": rest.get("FINAL_MODEL", "last_step")},
        "MODEL": {"BACKBONE": {"NAME": backbone}},
        "TRAINER": {node: settings} if settings else {},
    }


@pytest.mark.parametrize("name", FILES)
def test_a_public_config_file_merges_and_is_in_the_domains(tmp_path, name):
    trainer, facts = FILES[name]
    path = tmp_path / "public.yaml"
    path.write_text(yaml.safe_dump(tree(*facts)))
    for cfg in (get_cfg_default(), get_cfg_default(trainer)):
        cfg.TRAINER.NAME, cfg.DATASET.NAME = trainer, "OxfordPets"
        merge_from_file(cfg, str(path))
        check_domains(cfg, trainer)
        assert cfg.INPUT.SIZE == (224, 224) and cfg.OPTIM.WARMUP_CONS_LR == 1e-5
        node, settings = facts[0], facts[7]
        for key, value in settings.items():
            assert cfg.TRAINER[node][key] == value, key


def test_a_second_optimizer_has_a_node_of_its_own(tmp_path):
    """ProMetaR's, whose node has the keys of the public toolbox alone."""
    cfg = get_cfg_default()
    cfg.OPTIM_VNET = CfgNode({"NAME": "adam", "LR": 0.0003, "MAX_EPOCH": 10, "SGD_DAMPNING": 0})
    cfg.OPTIM_VNET.LR_SCHEDULER, cfg.OPTIM_VNET.WARMUP_EPOCH = "single_step", -1
    cfg.OPTIM_VNET.WARMUP_TYPE, cfg.OPTIM_VNET.WARMUP_CONS_LR = "linear", 1e-5
    path = tmp_path / "public.yaml"
    path.write_text(
        "OPTIM_VNET:\n  NAME: sgd\n  LR: 0.5\n  MAX_EPOCH: 4\n  LR_SCHEDULER: cosine\n"
        "  WARMUP_EPOCH: 1\n  WARMUP_TYPE: constant\n  WARMUP_CONS_LR: 1e-6\n"
    )
    merge_from_file(cfg, str(path))
    merge_from_list(cfg, ["OPTIM_VNET.SGD_DAMPNING", "0.25"])
    check_domains(cfg, "CoOp", section="OPTIM_VNET")
    optimizer = build_optimizer(torch.nn.Linear(1, 1), cfg.OPTIM_VNET)
    schedule = build_lr_scheduler(optimizer, cfg.OPTIM_VNET)
    (group,) = optimizer.param_groups
    assert (group["momentum"], group["dampening"], group["weight_decay"]) == (0.9, 0.25, 5e-4)
    rates = []
    for _ in range(3):
        rates.append(group["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([1e-6, 0.5, 0.5 * (1 + 2**-0.5) / 2])
    assert build_optimizer(torch.nn.Linear(1, 1), CfgNode({"LR": 1})).defaults["eps"] == 1e-8
    with pytest.raises(UserError, match="OPTIM_VNET.LR: expected a finite value, got inf"):
        merge_from_list(cfg, ["OPTIM_VNET.LR", "1e400"])
        check_domains(cfg, "CoOp", section="OPTIM_VNET")


# Methods that are not here: what their train.py adds to the public config, and what their file and
# their scripts then set.
OTHERS = {
    "TCP": (
        {"TRAINER.COOP": {"N_CTX": 16, "CSC": False, "CTX_INIT": True, "W": 8.0, "D": 0.5}},
        {"OPTIM": {"NAME": "adam", "LR": 0.002}, "TRAINER": {"COOP": {"CTX_INIT": False}}},
        {"TRAINER.COOP.W": "1.0", "TRAINER.COOP.N_CTX": "4", "DATASET.NUM_SHOTS": "0"},
    ),
    "DePT": (
        {
            "OPTIM": {"LR_EXP": 6.5, "NEW_LAYERS": ["linear_probe", "film"]},
            "TRAINER": {"NAMES_TO_UPDATE": ["prompt_learner", "linear_probe", "film"]},
            "TRAINER.COOP": {"N_CTX": 4, "ALPHA": 1.0, "W": 8.0},
            "TRAINER.FILM": {"LINEAR_PROBE": True},
            "TRAINER.LINEAR_PROBE": {"TYPE": "similarity", "WEIGHT": 0.3},
        },
        {"TRAINER": {"COOP": {"ALPHA": 1.0, "W": 2.0}}, "OPTIM": {"LR": 0.0035}},
        {"TRAINER.LINEAR_PROBE.WEIGHT": "0.7", "TRAINER.FILM.LINEAR_PROBE": "False"},
    ),
    "MMRLpp": (
        {
            "TRAINER.MMRLpp": {
                **{"ALPHA": 0.7, "BETA": 0.9, "REG_WEIGHT": 1.0, "REP_LAYERS": []},
                **{"N_REP_TOKENS": 5, "RES_LORA_DIM": 4, "PREC": "fp32"},
            },
            "": {"TASK": "B2N"},
        },
        {
            "INPUT": {"RRCROP_SCALE": "(0.5, 1)"},
            "OPTIM": {"NAME": "adamw", "LR": 0.001},
            "TRAINER": {"MMRLpp": {"REP_LAYERS": [6, 7, 8, 9, 10, 11, 12], "PREC": "amp"}},
        },
        {"TASK": "FS", "TRAINER.MMRLpp.BETA": "0.5", "DATASET.NUM_SHOTS": "16"},
    ),
    "ProGrad": (
        {
            "TRAINER.PROGRAD": {"N_CTX": 16, "CSC": False, "CTX_INIT": ""},
            "LOSS": {"GM": False, "NAME": "", "ALPHA": 0.0, "T": 1.0, "LAMBDA": 1.0},
            "TRAINER": {"W": 8.0, "DISTILL": "cosine", "MODAL": "base2novel"},
            "TEST": {"FINAL_MODEL": "best_val"},
        },
        {"OPTIM": {"WARMUP_CONS_LR": "1e-6"}, "TRAINER": {"PROGRAD": {"CTX_INIT": "a photo of a"}}},
        {"LOSS.NAME": "prograd", "LOSS.LAMBDA": "0.8", "LOSS.T": "2.0", "LOSS.GM": "True"},
    ),
    "ProMetaR": (
        {
            "TRAINER.PROMETAR": {"N_CTX_TEXT": 4, "ADAPT_LR": 0.0005, "FAST_ADAPTATION": False},
            "OPTIM_VNET": {"NAME": "adam", "LR": 0.0003, "WARMUP_CONS_LR": 1e-5},
        },
        {"OPTIM_VNET": {"NAME": "sgd", "LR": 0.00025, "WARMUP_CONS_LR": "1e-6"}},
        {"TRAINER.PROMETAR.ADAPT_LR": "5e-4", "OPTIM_VNET.LR": "1e-3"},
    ),
}


def leaves(tree, prefix=""):
    """Yield the keys of a tree and their values, as yacs reads what YAML takes for words."""
    for name, value in tree.items():
        key = f"{prefix}.{name}".strip(".")
        if isinstance(value, dict):
            yield from leaves(value, key)
        else:
            with suppress(ValueError, SyntaxError):
                value = literal_eval(value)
            yield key, value


@pytest.mark.parametrize("name", OTHERS)
def test_the_settings_of_methods_that_are_not_here_merge(tmp_path, name):
    added, in_file, in_script = OTHERS[name]
    cfg = get_cfg_default()

    def node_of(path):
        node = cfg
        for part in filter(None, path.split(".")):
            node = node[part]
        return node

    for path, keys in added.items():
        *above, last = path.split(".")
        if last and last not in node_of(".".join(above)):
            node_of(".".join(above))[last] = CfgNode()
        for key, value in keys.items():
            node_of(path)[key] = value
    file = tmp_path / "public.yaml"
    file.write_text(yaml.safe_dump(in_file))
    cfg.merge_from_file(str(file))
    cfg.merge_from_list([word for pair in in_script.items() for word in pair])
    cfg.freeze()
    for key, value in {**dict(leaves(in_file)), **dict(leaves(in_script))}.items():
        *above, last = key.split(".")
        assert node_of(".".join(above))[last] == value, key
    for section in ("OPTIM.", "INPUT.", "DATASET.NUM_SHOTS", "TEST."):
        check_domains(cfg, name, section=section)
