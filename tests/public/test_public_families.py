"""Trainers in the style of the public families run through train.py, and reload what they saved.

Each has its imports, its classes and its own reading of checkpoints as the repositories of its
family have them, and the config comes from a public train.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import dassl.engine
import train
from clip import clip
from clip.tokens import PromptTokens
from tests.embedded import SIZE, draw_small
from tests.public import context_trainer, episodic_trainer, multimodal_trainer, public_train

CONFIGS = Path(train.__file__).parent / "configs"
NAMES = ["one", "forty_two", "seven"]

# What each learns: the ends of the names of its tensors.
LEARNED = {
    "PublicStyle": ("ctx",),
    "PublicMaPLe": ("ctx", "prompts_text.0", "prompts_text.1", "proj.weight", "proj.bias")
    + tuple(f"projections.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")),
    "PublicDePT": ("ctx", "img.scale", "img.bias", "text.scale", "text.bias")
    + ("linear_probe_proj.weight", "linear_probe_proj.bias"),
    "PublicMetaPrompt": ("vision_prompt_learner.ctx", "prompt_learner.ctx"),
    "PublicProMetaR": ("prompt_learner.ctx", "VPT"),
}
SETTINGS = {
    "PublicDePT": ("OPTIM.NAME", "radam", "OPTIM.STAGED_LR", "True", "OPTIM.BASE_LR_MULT", "1.0")
    + ("OPTIM.NEW_LAYERS", "['linear_probe', 'film']", "DATASET.SUBSAMPLE_CLASSES", "base"),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Draw 4 + 4 + 4 images of each of Digits."""
    root = tmp_path_factory.mktemp("data")
    draw_small(root, "Digits", train=4, val=4, test=4)
    return root


@pytest.fixture
def run(root, tmp_path, monkeypatch):
    """Run train.py with a public config: run(trainer, folder, flag, ...).

    Returns results.json, the trainer, and its parameters from before the training.
    """
    built = []
    build_trainer = dassl.engine.build_trainer

    def build_and_keep(cfg):
        trainer = build_trainer(cfg)
        start = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        built.append((trainer, start))
        return trainer

    monkeypatch.setattr(dassl.engine, "build_trainer", build_and_keep)
    monkeypatch.setattr(train, "setup_cfg", public_train.setup_cfg)

    def call(trainer, folder, *flags):
        code = train.main(
            ["--trainer", trainer, "--root", str(root), "--output-dir", str(tmp_path / folder)]
            + ["--dataset-config-file", str(CONFIGS / "datasets/digits.yaml"), "--seed", "1"]
            + ["--config-file", str(CONFIGS / "_base/vit_mini.yaml"), *flags]
            + ["DATASET.NUM_SHOTS", "1", "OPTIM.MAX_EPOCH", "2", "OPTIM.NAME", "sgd"]
            + ["OPTIM.LR", "0.01", "TEST.SPLIT", "val", *SETTINGS.get(trainer, ())]
        )
        assert code == 0
        return json.loads((tmp_path / folder / "results.json").read_text()), *built[-1]

    return call


def learned_and_frozen(name, model):
    """Return two dicts of parameters."""
    params = dict(model.named_parameters())
    learned = {key: p for key, p in params.items() if p.requires_grad}
    assert len(learned) == len(LEARNED[name])
    assert all(any(key.endswith(end) for end in LEARNED[name]) for key in learned)
    return learned, {key: p for key, p in params.items() if key not in learned}


def check_dept(trainer, folder):
    """Check that DePT's own curves and features are there beside ours."""
    assert trainer.num_classes == 5  # the base classes
    for name in ("tensorboard", "dept"):
        assert [path.name for path in (folder / name).iterdir() if "tfevents" in path.name]
    log = (folder / "log.txt").read_text()
    assert "Learning rates: (0.01, 0.065)" in log and "epoch [2/2] batch [1/1] time" in log
    dump = torch.load(folder / "features.pt", weights_only=True)
    assert dump["labels"].tolist() == [*range(5)] * 2 and len(dump["features"]) == 10
    images = torch.stack([item["img"] for item in trainer.train_loader_x.dataset])
    with torch.no_grad():
        expected = trainer.model.image_encoder(images)
    torch.testing.assert_close(dump["features"][:5], expected)
    scale = trainer.model.film_lp_img.scale.detach().clone()
    torch.nn.init.zeros_(trainer.model.film_lp_img.scale)
    trainer.load_model(str(folder), epoch=-1)
    assert torch.equal(trainer.model.film_lp_img.scale, scale)


def check_prometar(trainer, folder):
    """Check that a step changes the second network, and starts from the prompts before the task."""
    vnet = {name: p.detach().clone() for name, p in trainer.vnet.named_parameters()}
    ctx = trainer.model.prompt_learner.ctx
    start, rate = ctx.detach().clone(), trainer.get_current_lr()
    trainer.set_model_mode("train")
    trainer.forward_backward(next(iter(trainer.train_loader_x)))
    assert all(not torch.equal(p, vnet[name]) for name, p in trainer.vnet.named_parameters())
    momentum = trainer.optim.state[ctx]["momentum_buffer"]
    torch.testing.assert_close(ctx.detach(), start - rate * momentum)


CHECKS = {"PublicDePT": check_dept, "PublicProMetaR": check_prometar}


@pytest.mark.parametrize("name", LEARNED)
def test_a_trainer_of_a_public_family_trains_and_reloads(run, tmp_path, name):
    results, trainer, start = run(name, "run")
    learned, frozen = learned_and_frozen(name, trainer.model)
    assert [key for key, p in learned.items() if torch.equal(p, start[key])] == []
    assert [key for key, p in frozen.items() if not torch.equal(p, start[key])] == []
    assert results["trainer"] == name and results["epoch"] == 2

    flags = ("--eval-only", "--model-dir", str(tmp_path / "run"), "--load-epoch", "2")
    again, reloaded, _ = run(name, "eval", *flags)
    figures = ("accuracy", "total", "nll")
    assert [again[figure] for figure in figures] == [results[figure] for figure in figures]
    for key, parameter in reloaded.model.named_parameters():
        assert torch.equal(parameter, dict(trainer.model.named_parameters())[key]), key
    if name in CHECKS:
        CHECKS[name](trainer, tmp_path / "run")


# Blocks that a trainer calls itself ---------------------------------------------------------------


@pytest.fixture
def cfg(root):
    args = ["--root", str(root), "--config-file", str(CONFIGS / "_base/vit_mini.yaml")]
    return public_train.setup_cfg(train.build_parser().parse_args(args))


@torch.no_grad()
def test_maples_text_blocks_are_the_hook_of_clip(cfg):
    clip_model = context_trainer.fetch_clip(cfg)
    model = multimodal_trainer.CustomCLIP(cfg, NAMES, clip_model).eval()
    prompts, shared, deep_text, deep_vision = model.prompt_learner()
    ours = clip_model.encode_text(
        PromptTokens.from_names(NAMES, "a photo of a", 2), [model.prompt_learner.ctx, *deep_text]
    )
    theirs = model.text_encoder(prompts, model.prompt_learner.ids, deep_text)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
    images = torch.randn(2, 3, SIZE, SIZE)
    features = clip_model.encode_image(images, [shared, *deep_vision])
    torch.testing.assert_close(model(images), clip_model.similarity(features, ours))


@torch.no_grad()
def test_metaprompts_blocks_are_the_hook_of_clip(cfg):
    clip_model = context_trainer.fetch_clip(cfg)
    model = episodic_trainer.CustomCLIP(cfg, NAMES, clip_model).eval()
    images = torch.randn(2, 3, SIZE, SIZE)
    text = clip_model.encode_text(
        PromptTokens.from_names(NAMES, "X X", 2), list(model.prompt_learner.ctx)
    )
    image = clip_model.encode_image(images, list(model.vision_prompt_learner.ctx))
    plain_text = clip_model.encode_text(clip.tokenize([f"a photo of a {name}" for name in NAMES]))
    plain_image = clip_model.encode_image(images)
    prompts, ctx_t = model.prompt_learner()
    theirs = model.text_encoder(prompts, model.prompt_learner.ids, ctx_t)
    torch.testing.assert_close(F.normalize(theirs), F.normalize(text), rtol=1e-4, atol=1e-5)
    logits_i = clip_model.similarity(image, plain_text)
    logits_t = clip_model.similarity(plain_image, text)
    torch.testing.assert_close(model(images), (logits_i + logits_t) / 2, rtol=1e-4, atol=1e-4)
    # a half of the classes has their columns
    torch.testing.assert_close(model(images, [2, 0]), model(images)[:, [2, 0]])
