"""CTX_INIT as text, True and False, and contexts that the model has no room for."""

from __future__ import annotations

import re

import pytest
import torch
import yaml

from clip import tokenize
from dassl.config import check_domains, get_cfg_default, merge_from_file, merge_from_list
from dassl.utils import UserError
from tests.trainers.tiny import NAMES, build, check, settings
from trainers.cocoop import CoCoOp
from trainers.coop import CoOp
from trainers.hicropl import HiCroPL
from trainers.hisf import HISF
from trainers.ivlp import IVLP
from trainers.kgcoop import KgCoOp
from trainers.linear_probe import LinearProbe
from trainers.maple import MaPLe
from trainers.mma import MMA
from trainers.promp import ProMPT
from trainers.promptsrc import PromptSRC
from trainers.vpt import VPT
from trainers.zsclip import ZeroshotCLIP, ZeroshotCLIP2

pytestmark = pytest.mark.tiny(layers=2)
SHALLOW = {"PROMPT_DEPTH_TEXT": 1, "PROMPT_DEPTH_VISION": 1}
HICROPL = {"PROMPT_DEPTH": 2, "CROSS_LAYER": 1, "FROZEN_TEXT": "dataset_template"}
# each method with words: the key of the number of its prompts, and settings for two layers
METHODS = {
    CoOp: ("N_CTX", {}),
    KgCoOp: ("N_CTX", {}),
    CoCoOp: ("N_CTX", {}),
    MaPLe: ("N_CTX", {"PROMPT_DEPTH": 1}),
    IVLP: ("N_CTX_TEXT", SHALLOW),
    PromptSRC: ("N_CTX_TEXT", SHALLOW),
    HiCroPL: ("N_CTX", HICROPL),
    ProMPT: ("N_CTX_TEXT", {"PROMPT_DEPTH_VISION": 1}),
}
LEARNED = list(METHODS)


@pytest.mark.parametrize("method", LEARNED)
def test_true_is_the_methods_words_and_false_a_random_start(clip_model, method):
    number, values = METHODS[method]
    words = clip_model.token_embedding(tokenize(["a photo of a"])[0, 1:5])
    for setting in (True, "a photo of a", "a_photo_of_a "):
        model = build(method, clip_model, CTX_INIT=setting, **{number: 4}, **values)
        assert torch.equal(model.prompt_learner.ctx, words), setting
    starts = [
        build(method, clip_model, CTX_INIT=setting, **{number: 3}, **values).prompt_learner.ctx
        for setting in (False, "", " ")
    ]
    assert starts[0].shape == (3, 32) and 0.01 < starts[0].std() < 0.03
    assert all(torch.equal(start, starts[0]) for start in starts)


def test_the_frozen_text_of_vpt_has_the_words_or_none(clip_model):
    def text(setting):
        return build(VPT, clip_model, CTX_INIT=setting, PROMPT_DEPTH_VISION=1).tokens.ids

    ids = tokenize([f"a photo of a {name.replace('_', ' ')}." for name in NAMES])
    assert torch.equal(text(True), ids[:, : text(True).shape[1]])
    assert torch.equal(text(True), text("a photo of a"))
    ids = tokenize([f"{name.replace('_', ' ')}." for name in NAMES])
    assert torch.equal(text(False), ids[:, : text(False).shape[1]])


@pytest.mark.parametrize("method", [*LEARNED, VPT])
def test_files_and_the_command_line_may_say_true_or_false(tmp_path, method):
    name, node = method.__name__, method.config_node
    key = f"TRAINER.{node}.CTX_INIT"
    path = tmp_path / "some.yaml"
    for cfg in (get_cfg_default(), get_cfg_default(name)):
        for value in (True, False, "a photo", True):
            path.write_text(yaml.safe_dump({"TRAINER": {node: {"CTX_INIT": value}}}))
            merge_from_file(cfg, str(path))
            assert cfg.TRAINER[node].CTX_INIT is value or cfg.TRAINER[node].CTX_INIT == value
            check_domains(cfg, name, section=key)
        for word, value in (
            ("False", False),
            ("a photo", "a photo"),
            ("True", True),
            ("7", "7"),
            ("'True'", "True"),
            ("", ""),
        ):
            merge_from_list(cfg, [key, word])
            assert cfg.TRAINER[node].CTX_INIT == value
            assert type(cfg.TRAINER[node].CTX_INIT) is type(value)
            check_domains(cfg, name, section=key)
        path.write_text(f"TRAINER: {{{node}: {{CTX_INIT: 3}}}}")
        with pytest.raises(
            UserError, match=f"^{key}: expected text in one line, True or False, got 3 in "
        ):
            merge_from_file(cfg, str(path))


@pytest.mark.parametrize("method", [MaPLe, IVLP, PromptSRC, HiCroPL])
def test_fewer_words_than_prompts_are_refused(clip_model, method):
    number, values = METHODS[method]
    key = f"TRAINER.{method.config_node}.CTX_INIT"
    check(method, clip_model, CTX_INIT="zzz", **{number: 1}, **values)
    check(method, clip_model, CTX_INIT="zzz", **{number: 5}, **values)  # they are not used
    with pytest.raises(
        UserError, match=f"^{key}: expected '' or words of at least 2 tokens, .* got 'zzz' of 1$"
    ):
        check(method, clip_model, CTX_INIT="zzz", **{number: 2}, **values)


@pytest.mark.parametrize(
    ("method", "key", "values"),
    [
        *((method, METHODS[method][0], {METHODS[method][0]: 74}) for method in LEARNED),
        *((method, "CTX_INIT", {"CTX_INIT": "photo " * 74}) for method in [*LEARNED, VPT]),
        (MMA, "TEXT_CTX_INIT", {"TEXT_CTX_INIT": "photo " * 74, "ADAPTER_START": 1}),
        (HISF, "N_CTX", {"N_CTX": 74, "FUSION_LAYERS": (1,)}),
    ],
)
def test_a_context_that_leaves_no_room_names_its_key_and_the_class(clip_model, method, key, values):
    number, small = METHODS.get(method, ("N_CTX", {}))
    if method is MMA:
        small = {"ADAPTER_END": 2}
    if method is VPT:
        small = {"PROMPT_DEPTH_VISION": 1}
    if method not in (VPT, MMA, HISF):
        values = {"CTX_INIT": False, number: 2, **values}
    with pytest.raises(
        UserError,
        match=rf"^TRAINER.{method.config_node}.{key}: expected a context that leaves room for "
        r"'very large dog', got 80 tokens with it, but the model takes 77$",
    ):
        build(method, clip_model, **small, **values)


@pytest.mark.parametrize("template", ["a photo " * 60 + "of a {}.", "{}" + " x" * 3000])
@pytest.mark.parametrize("method", [ZeroshotCLIP, ZeroshotCLIP2, LinearProbe, HiCroPL])
def test_a_template_that_leaves_no_room_is_shown_with_its_place(clip_model, method, template):
    values = {**HICROPL, "CTX_INIT": ""} if method is HiCroPL else {}
    cfg, _ = settings(method, **values)
    with pytest.raises(UserError, match=r"template \(of an ImageFolder: templates.txt\)") as caught:
        method(cfg, clip_model, NAMES, [template])
    line = str(caught.value)
    assert (
        re.search(r"\.\.\.' is \d+ tokens long, but the model takes 77$", line) and len(line) < 400
    )


# Settings that would do nothing -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "values", "message"),
    [
        (
            HiCroPL,
            {"DESCRIPTIONS": "mine.json", **HICROPL},
            "DESCRIPTIONS: expected '' with FROZEN_TEXT dataset_template, got 'mine.json'",
        ),
        (
            HiCroPL,
            {"DESCRIPTIONS": "mine.json", **HICROPL, "FROZEN_TEXT": "photo"},
            "DESCRIPTIONS: expected '' with FROZEN_TEXT photo, got 'mine.json'",
        ),
        (
            HiCroPL,
            {"FLOW": "none", "MAPPER_SCALE": "single", **HICROPL},
            "MAPPER_SCALE: expected 'multi' with FLOW none, got 'single'",
        ),
        (
            HiCroPL,
            {"FLOW": "none", "COMPRESSION": "mean", **HICROPL},
            "COMPRESSION: expected 'lkp' with FLOW none, got 'mean'",
        ),
        (
            HiCroPL,
            {"FLOW": "none", "MAPPER_UPDATE": "in_place", **HICROPL},
            "MAPPER_UPDATE: expected 'graph' with FLOW none, got 'in_place'",
        ),
        (
            HiCroPL,
            {"LAMBD": 0.0, "CRITERION": "l1", **HICROPL},
            "CRITERION: expected 'cosine' with LAMBD 0, got 'l1'",
        ),
        (
            HiCroPL,
            {"LAMBD": 0.0, "CONS_ANCHOR": "frozen", **HICROPL},
            "CONS_ANCHOR: expected 'prompted' with LAMBD 0, got 'frozen'",
        ),
        (
            ProMPT,
            {"VISION_GENERATOR": False, "FEATURE_FILTER": False, "PROMPT_DEPTH_VISION": 1},
            "FEATURE_FILTER: expected True with VISION_GENERATOR False, got False",
        ),
        (
            ProMPT,
            {"ITERATIONS": 0, "TEXT_GENERATOR": False, "PROMPT_DEPTH_VISION": 1},
            "TEXT_GENERATOR: expected True with ITERATIONS 0, got False",
        ),
    ],
)
def test_a_key_that_another_leaves_unread_is_refused(clip_model, method, values, message):
    with pytest.raises(UserError, match=rf"^TRAINER.{method.config_node}.{message}$"):
        check(method, clip_model, **values)
    key = message.partition(":")[0]
    check(method, clip_model, **{name: value for name, value in values.items() if name != key})


def test_no_descriptions_may_be_written_as_an_empty_text(clip_model):
    check(HiCroPL, clip_model, DESCRIPTIONS="", **HICROPL)
