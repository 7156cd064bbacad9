"""Checkpoints written like the public code's give the logits of a plain computation.

The files are written here from the names and shapes of the public code, not by our trainers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dassl.utils import UserError, convert_checkpoint, load_checkpoint
from tests.plain import plain_logits, text_feature
from tests.trainers.plain_methods import plain_cocoop_logits, plain_hicropl, plain_maple_logits
from tests.trainers.tiny import (
    NAMES,
    bare_trainer,
    build,
    class_ids,
    tiny_clip,
    write_descriptions,
)
from trainers.base import Method
from trainers.cocoop import CoCoOp
from trainers.coop import CoOp
from trainers.hicropl import HiCroPL
from trainers.ivlp import IVLP
from trainers.maple import MaPLe
from trainers.promptsrc import PromptSRC
from trainers.vpt import VPT

D_T, D_V, D = 32, 48, 24  # widths of the tiny CLIP: text, vision, joint
CLIP_MODEL = tiny_clip()
State = dict[str, Tensor]


def random_state(shapes: dict[str, tuple[int, ...]]) -> State:
    torch.manual_seed(3)
    return {name: 0.2 * torch.randn(shape) for name, shape in shapes.items()}


def images() -> Tensor:
    torch.manual_seed(5)
    return torch.randn(2, 3, 16, 16)


def logits_of(texts: list[Tensor], vision: list[Tensor]) -> Tensor:
    """Score the images with vision prompts by layer against text features."""
    return plain_logits(CLIP_MODEL, images(), texts, vision)


def without_scope(s: State) -> State:
    """Drop the prefix of the prompt learner, which some public checkpoints have."""
    return {name.removeprefix("prompt_learner."): t for name, t in s.items()}


# --- the methods: settings, names and shapes of the tensors, and what they mean ----------------


def coop_logits(s: State) -> Tensor:
    ids = class_ids("X X X X {}.")
    return logits_of([text_feature(CLIP_MODEL, i, [1, 2, 3, 4], [s["ctx"]]) for i in ids], [])


def coop_front_logits(s: State) -> Tensor:
    texts = []
    for ids, name, ctx in zip(class_ids("{} X X X X."), NAMES, s["ctx"], strict=True):
        first = 1 + len(name.replace("_", " ").split())
        texts.append(text_feature(CLIP_MODEL, ids, list(range(first, first + 4)), [ctx]))
    return logits_of(texts, [])


def cocoop_logits(s: State) -> Tensor:
    return plain_cocoop_logits(CLIP_MODEL, s, images(), NAMES, "a photo of a")


def maple_logits(s: State) -> Tensor:
    # Two prompts: "of a" stays.
    return plain_maple_logits(CLIP_MODEL, without_scope(s), images(), 3, "a photo of a")


def ivlp_logits(s: State) -> Tensor:
    block = "{}_encoder.transformer.resblocks.{}.VPT_shallow"
    text = [s["prompt_learner.ctx"], s[block.format("text", 1)], s[block.format("text", 2)]]
    vision = [s["image_encoder.VPT"], s[block.format("image", 1)]]
    ids = class_ids("a photo of a {}.")
    return logits_of([text_feature(CLIP_MODEL, i, [1, 2], text) for i in ids], vision)


def vpt_logits(s: State) -> Tensor:
    vision = [s["image_encoder.VPT"], s["image_encoder.transformer.resblocks.1.VPT_shallow"]]
    ids = class_ids("a photo of a {}.")
    return logits_of([text_feature(CLIP_MODEL, i, [], []) for i in ids], vision)


def hicropl_logits(s: State) -> Tensor:
    texts = write_descriptions(Path("/dev/null"))
    labels = torch.tensor([0, 1])
    return plain_hicropl(CLIP_MODEL, without_scope(s), texts, images(), labels, "prompted")[0]


def hicropl_shapes() -> dict[str, tuple[int, ...]]:
    """Return the shapes for depth 4, cross layer 2, 3 tokens."""
    shapes: dict[str, tuple[int, ...]] = {"ctx": (3, D_T)}
    for i in range(4):
        shapes[f"cross_prompts_text.{i}"] = (3, D_T)
        shapes[f"cross_prompts_visual.{i}"] = (3, D_V)
    for net, own, other in (("text2visual_net", D_V, D_T), ("visual2text_net", D_T, D_V)):
        shapes |= attention_shapes(f"{net}.attn", own)
        for name, width in (("q", own), ("k", other), ("v", other)):
            shapes[f"{net}.linear_{name}.weight"] = (own, width)
            shapes[f"{net}.linear_{name}.bias"] = (own,)
        shapes[f"{net}.ffn.c_fc.weight"] = (4 * own, own)
        shapes[f"{net}.ffn.c_fc.bias"] = (4 * own,)
        shapes[f"{net}.ffn.c_proj.weight"] = (own, 4 * own)
        shapes[f"{net}.ffn.c_proj.bias"] = (own,)
        shapes |= norm_shapes(net, own)
    for side, width in (("text", D_T), ("visual", D_V)):
        for i in range(2):
            shapes |= attention_shapes(f"attn_pooling_{side}_nets.{i}.attn", width)
            shapes |= norm_shapes(f"attn_pooling_{side}_nets.{i}", width)
            shapes[f"{side}_proxy_token.{i}"] = (1, width)
    return {f"prompt_learner.{name}": shape for name, shape in shapes.items()}


def attention_shapes(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.in_proj_weight": (3 * width, width),
        f"{name}.in_proj_bias": (3 * width,),
        f"{name}.out_proj.weight": (width, width),
        f"{name}.out_proj.bias": (width,),
    }


def norm_shapes(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.ln_{i}.{kind}": (width,) for i in (1, 2) for kind in ("weight", "bias")}


IVLP_SETTINGS = {
    "N_CTX_TEXT": 2,
    "N_CTX_VISION": 3,
    "PROMPT_DEPTH_TEXT": 3,
    "PROMPT_DEPTH_VISION": 2,
}
VPT_SHAPES = {
    "image_encoder.VPT": (3, D_V),
    "image_encoder.transformer.resblocks.1.VPT_shallow": (3, D_V),
}
IVLP_SHAPES = {
    **VPT_SHAPES,
    "prompt_learner.ctx": (2, D_T),
    "text_encoder.transformer.resblocks.1.VPT_shallow": (2, D_T),
    "text_encoder.transformer.resblocks.2.VPT_shallow": (2, D_T),
}
COCOOP_SHAPES = {
    "ctx": (4, D_T),
    "meta_net.linear1.weight": (D // 16, D),
    "meta_net.linear1.bias": (D // 16,),
    "meta_net.linear2.weight": (D_T, D // 16),
    "meta_net.linear2.bias": (D_T,),
}
MAPLE_SHAPES = {
    "prompt_learner.ctx": (2, D_T),
    "prompt_learner.proj.weight": (D_V, D_T),
    "prompt_learner.proj.bias": (D_V,),
    "prompt_learner.compound_prompts_text.0": (2, D_T),
    "prompt_learner.compound_prompts_text.1": (2, D_T),
    "prompt_learner.compound_prompt_projections.0.weight": (D_V, D_T),
    "prompt_learner.compound_prompt_projections.0.bias": (D_V,),
    "prompt_learner.compound_prompt_projections.1.weight": (D_V, D_T),
    "prompt_learner.compound_prompt_projections.1.bias": (D_V,),
}
COOP_FRONT = {"N_CTX": 4, "CSC": True, "CLASS_TOKEN_POSITION": "front"}
HICROPL_SETTINGS = {"PROMPT_DEPTH": 4, "CROSS_LAYER": 2, "N_CTX": 3}
Shapes = dict[str, tuple[int, ...]]
# method, settings, folder of the public code, its tensors, their meaning
Row = tuple[type[Method], dict[str, Any], str, Shapes, Callable[[State], Tensor]]
METHODS: dict[str, Row] = {
    "CoOp": (CoOp, {"N_CTX": 4}, "prompt_learner", {"ctx": (4, D_T)}, coop_logits),
    "CoOp, CSC, front": (
        CoOp,
        COOP_FRONT,
        "prompt_learner",
        {"ctx": (3, 4, D_T)},
        coop_front_logits,
    ),
    "CoCoOp": (
        CoCoOp,
        {"CTX_INIT": "a photo of a"},
        "prompt_learner",
        COCOOP_SHAPES,
        cocoop_logits,
    ),
    "MaPLe": (MaPLe, {"PROMPT_DEPTH": 3}, "MultiModalPromptLearner", MAPLE_SHAPES, maple_logits),
    "IVLP": (IVLP, IVLP_SETTINGS, "VLPromptLearner", IVLP_SHAPES, ivlp_logits),
    "PromptSRC": (PromptSRC, IVLP_SETTINGS, "VLPromptLearner", IVLP_SHAPES, ivlp_logits),
    "VPT": (
        VPT,
        {"N_CTX_VISION": 3, "PROMPT_DEPTH_VISION": 2},
        "prompt_learner",
        VPT_SHAPES,
        vpt_logits,
    ),
    "HiCroPL": (HiCroPL, HICROPL_SETTINGS, "VLPromptLearner", hicropl_shapes(), hicropl_logits),
    "HiCroPL in place": (
        HiCroPL,
        {**HICROPL_SETTINGS, "MAPPER_UPDATE": "in_place"},
        "VLPromptLearner",
        hicropl_shapes(),
        hicropl_logits,
    ),
}


# --- files as the public code writes them ------------------------------------------------------


def frozen_tensors(method: str, dtype: torch.dtype) -> State:
    """Return what else a public checkpoint contains, for more and other class names."""
    folder = METHODS[method][2]
    buffers = {"token_prefix": torch.randn(7, 1, D_T), "token_suffix": torch.randn(7, 72, D_T)}
    if folder == "prompt_learner" and method != "VPT":
        return {name: t.to(dtype) for name, t in buffers.items()}
    state = {f"prompt_learner.{name}": t for name, t in buffers.items() if method != "VPT"}
    for name, tensor in CLIP_MODEL.state_dict().items():
        if name.startswith("visual."):
            name = name.removeprefix("visual.")
            state[f"image_encoder.{name}"] = torch.randn_like(tensor)
            if method in ("PromptSRC", "HiCroPL", "HiCroPL in place"):
                state[f"prompt_learner.ZS_image_encoder.{name}"] = torch.randn_like(tensor)
        elif name == "logit_scale":
            state[name] = torch.tensor(99.0)
        elif name != "token_embedding.weight":
            state[f"text_encoder.{name}"] = torch.randn_like(tensor)
    return {name: t.to(dtype) for name, t in state.items()}


def write(folder: Path, state: State, epoch: int, legacy: bool = False, **extra: Any) -> Path:
    """Write a checkpoint with states of SGD with momentum and of the public warm-up schedule."""
    parameters = [torch.nn.Parameter(torch.randn(2, 2))]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    parameters[0].sum().backward()
    optimizer.step()
    schedule = {  # that toolbox's state holds the next schedule as an object, and its optimizer
        "successor": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5),
        "warmup_epoch": 1,
        "cons_lr": 1e-5,
        "base_lrs": [0.1],
        "last_epoch": 1,
        "_last_lr": [0.1],
    }
    content = {
        "state_dict": state,
        "epoch": epoch,
        "optimizer": optimizer.state_dict(),
        "scheduler": schedule,
        "val_result": np.float64(81.25),
        **extra,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"model.pth.tar-{epoch}"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def load_into(method: str, directory: Path, tmp_path: Path, epoch: int | None = None) -> Any:
    """Return the method's model after its trainer has loaded the checkpoint in ``directory``."""
    method_class, values, *_ = METHODS[method]
    if method_class is HiCroPL:
        write_descriptions(tmp_path / "texts.json")
        values = {**values, "DESCRIPTIONS": str(tmp_path / "texts.json")}
    model = build(method_class, CLIP_MODEL, **values)
    bare_trainer(model).load_model(str(directory), epoch=epoch)
    return model.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("method", METHODS)
def test_public_checkpoints_give_the_logits_of_the_plain_computation(
    method, dtype, tmp_path, capsys
):
    _, _, folder, shapes, plain = METHODS[method]
    learned = {name: t.to(dtype) for name, t in random_state(shapes).items()}
    if "prompt_learner.cross_prompts_text.0" in learned:  # one tensor under two names
        learned["prompt_learner.ctx"] = learned["prompt_learner.cross_prompts_text.0"]
    expected = plain({name: t.float() for name, t in learned.items()}).detach()
    write(tmp_path / "lean" / folder, learned, epoch=5)
    write(tmp_path / "full" / folder, {**frozen_tensors(method, dtype), **learned}, epoch=5)
    write(tmp_path / "old" / folder, learned, epoch=5, legacy=True)
    logits = {}
    for directory in ("lean", "full", "old"):
        model = load_into(method, tmp_path / directory, tmp_path, epoch=5)
        with torch.no_grad():
            logits[directory] = model(images())
        assert "(epoch=5, val_result=81.2)" in capsys.readouterr().out
    assert expected.std() > 0.01
    torch.testing.assert_close(logits["lean"], expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits["lean"], logits["full"])
    assert torch.equal(logits["lean"], logits["old"])


def test_the_schedule_of_the_public_toolbox_needs_unpickling_and_none_of_its_code_runs(tmp_path):
    path = write(tmp_path, {"ctx": torch.zeros(2)}, epoch=1)
    with pytest.raises(Exception, match="Unsupported global"):
        with torch.serialization.safe_globals([]):
            torch.load(path, weights_only=True)
    successor = load_checkpoint(str(path))["scheduler"]["successor"]
    assert not isinstance(successor, torch.optim.lr_scheduler.LRScheduler)
    assert vars(successor) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("prompt_learner.proj.bias"), r"no tensor 'prompt_learner\.proj\.bias'"),
        (
            lambda s: s.update({"prompt_learner.ctx": torch.zeros(2, 512)}),
            r"'prompt_learner\.ctx' has shape \(2, 512\), this model's has \(2, 32\)",
        ),
        (
            lambda s: s.update({"prompt_learner.compound_prompts_text.2": torch.zeros(2, D_T)}),
            r"this model has no tensor 'prompt_learner\.compound_prompts_text\.2'",
        ),
        (
            lambda s: s.update({"image_encoder.VPT": torch.zeros(2, D_V)}),
            r"this model has no tensor 'image_encoder\.VPT'",
        ),
    ],
)
def test_checkpoints_of_other_settings_are_refused(change, message, tmp_path):
    state = random_state(MAPLE_SHAPES)
    change(state)
    write(tmp_path / "MultiModalPromptLearner", state, epoch=2)
    with pytest.raises(UserError, match=message):
        load_into("MaPLe", tmp_path, tmp_path)


# --- files that would run code -----------------------------------------------------------------


class Runs:
    """An attack: unpickling calls a function."""

    def __reduce__(self) -> Any:
        return print, ("this must not run",)


class Settings(dict):
    """A config as some public trainers store it: a dictionary with attributes."""


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("intruder", "name"),
    [(Runs(), "builtins.print"), (Settings(lr=0.1), "Settings"), (np.zeros(3), "_reconstruct")],
    ids=["call", "config", "array"],
)
def test_a_file_with_objects_is_refused_in_one_line_and_can_be_converted(
    intruder, name, legacy, tmp_path, capsys
):
    learned = random_state(MAPLE_SHAPES)
    folder = tmp_path / "of others" / "MultiModalPromptLearner"
    path = write(folder, learned, epoch=3, legacy=legacy, intruder=intruder)
    with pytest.raises(UserError) as info:
        load_into("MaPLe", tmp_path / "of others", tmp_path)
    message = str(info.value)
    assert "\n" not in message and name in message and str(path) in message
    assert "unpickling objects can run any code" in message
    assert f"python -m dassl.utils.convert_checkpoint '{path}' " in message
    target = tmp_path / "MultiModalPromptLearner" / path.name
    target.parent.mkdir()
    assert convert_checkpoint.main([str(path), str(target)]) == 0
    model = load_into("MaPLe", tmp_path, tmp_path)
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(parameter, learned[key]), key
    out = capsys.readouterr().out
    assert "this must not run" not in out and "(epoch=3, val_result=81.2)" in out


def test_what_cannot_be_converted_says_so(tmp_path, capsys):
    target = str(tmp_path / "new")
    torch.save({"weights": Runs()}, tmp_path / "no_state")
    (tmp_path / "text").write_text("text")
    for arguments, message in (
        ([str(tmp_path / "no_state"), target], "holds no state_dict"),
        ([str(tmp_path / "text"), target], "cannot be converted"),
        ([str(tmp_path / "none"), target], "does not exist"),
        ([target], "usage: "),
    ):
        assert convert_checkpoint.main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not Path(target).exists()
