"""What every method has from ``Method`` and its one trainer."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from clip import CLIP
from dassl.engine import TRAINER_REGISTRY
from tests.plain import plain_logits, text_feature, unit
from tests.trainers import toy
from tests.trainers.tiny import (
    NAMES,
    TEMPLATES,
    bare_trainer,
    build,
    class_ids,
    settings,
    tiny_clip,
)
from trainers.base import Method, Towers
from trainers.context import ContextLearner, random_prompts
from trainers.trainer import MethodTrainer, register_method

METHODS = {
    name: TRAINER_REGISTRY.get(name).method
    for name in TRAINER_REGISTRY.registered_names()
    if issubclass(TRAINER_REGISTRY.get(name), MethodTrainer)
}


def register(method: type[Method], node: str, **defaults) -> None:
    if method.__name__ not in TRAINER_REGISTRY.registered_names():
        register_method(node, **defaults)(method)
    else:  # imported before, by another test of this process
        method.config_node = node


@pytest.mark.parametrize("name", METHODS)
def test_the_parts_of_the_frame_are_written_once(name):
    for part in ("forward", "fixed_classes", "encode_text", "encode_image", "saved", "autocast"):
        assert inspect.getattr_static(METHODS[name], part) is Method.__dict__[part], part


@pytest.mark.parametrize("trainer", [n for n in toy.CHECKPOINT if not METHODS[n].conditional])
def test_class_features_are_computed_once_for_an_evaluation(run, monkeypatch, trainer):
    if trainer == "ProMPT":  # conditional by its settings
        monkeypatch.setitem(
            toy.OPTIONS, trainer, [*toy.OPTIONS[trainer], "TRAINER.PROMPT.TEXT_GENERATOR", "False"]
        )
    calls: list[str] = []
    class_features, test = METHODS[trainer].class_features, MethodTrainer.test

    def count(self, towers):
        calls.append("features")
        return class_features(self, towers)

    def begin(self, split=None):
        calls.clear()
        return test(self, split)

    monkeypatch.setattr(METHODS[trainer], "class_features", count)
    monkeypatch.setattr(MethodTrainer, "test", begin)
    code, out = run(trainer, "run", "DATALOADER.TEST.BATCH_SIZE", "2", epochs=1)
    assert code == 0, out
    assert calls == ["features"]


def test_training_leaves_a_frozen_clip_in_evaluation_mode():
    resnet = CLIP(replace(tiny_clip().config, vision_layers=(1, 1, 1, 1), image_resolution=32))
    model = build(
        METHODS["IVLP"], resnet.requires_grad_(False), PROMPT_DEPTH_VISION=0, PROMPT_DEPTH_TEXT=2
    )
    before = {name: buffer.clone() for name, buffer in resnet.named_buffers()}
    bare_trainer(model).set_model_mode("train")
    assert model.training and model.prompt_learner.training and not resnet.visual.bn1.training
    model(torch.randn(4, 3, 32, 32))
    assert all(torch.equal(buffer, before[name]) for name, buffer in resnet.named_buffers())
    bare_trainer(model).set_model_mode("eval")
    assert not model.training and not model.prompt_learner.training


class Counting(Method):
    """Learns nothing by gradients; counts how often each class was seen."""

    checkpoint_name = "counts"

    def build(self, cfg, class_names):
        self.register_buffer("counts", torch.zeros(len(class_names)))

    def fit(self, train, val):
        features, labels = self.frozen_features(train)
        assert val is None and features.shape == (len(labels), self.clip.config.embed_dim)
        self.counts += F.one_hot(labels).sum(dim=0).to(self.device)

    def logits(self, features):
        return self.counts.expand(len(features["image"]), -1)


def test_a_method_that_trains_nothing_has_a_state_to_save(run, tmp_path, monkeypatch):
    register(Counting, "COUNTING")
    code, out = run("Counting", "run")
    assert code == 0, out
    saved = torch.load(tmp_path / "run/counts/model.pth.tar-2", weights_only=True)["state_dict"]
    assert {name: t.tolist() for name, t in saved.items()} == {"counts": [4.0] * 4}
    flags = ["--eval-only", "--model-dir", f"{tmp_path}/run"]
    code, out = run("Counting", "again", flags=flags)
    assert code == 0 and "Load " in out
    code, out = run("Counting", "base", "DATASET.SUBSAMPLE_CLASSES", "base", flags=flags)
    assert code == 2 and "'counts' has shape (4,), this model's has (2,)" in out


class Orthogonal(Method):
    """Keeps the part of one loss's gradient that does not oppose another's (as in ProGrad)."""

    def build(self, cfg, class_names):
        self.prompt_learner = ContextLearner(random_prompts(2, self.clip.config.text_width).data)

    def tokenize_classes(self, class_names):
        return self.prompt_tokens(class_names, "X X", 2)

    def layers(self, condition=None):
        return Towers(text=[self.prompt_learner.ctx])

    def step(self, batch, labels, update):
        logits, terms = self(batch, labels)
        ctx = self.prompt_learner.ctx
        (gradient,) = torch.autograd.grad(terms["loss_ce"], ctx, retain_graph=True)
        (other,) = torch.autograd.grad(ctx.sum(), ctx)
        overlap = (gradient * other).sum() / other.square().sum()
        update((ctx * (gradient - overlap.clamp(max=0) * other)).sum())
        return logits, terms


def test_a_step_of_two_gradients_uses_the_one_optimizer_step(run, tmp_path):
    register(Orthogonal, "ORTHOGONAL")
    options = ["OPTIM.NAME", "sgd", "OPTIM.LR", "0.1", "OPTIM.MOMENTUM", "0.0"]
    options += ["OPTIM.WEIGHT_DECAY", "0.0", "TRAIN.CHECKPOINT_FREQ", "1"]
    code, out = run("Orthogonal", "run", *options)
    assert code == 0, out
    sums = []
    for epoch in (1, 2):
        path = tmp_path / f"run/VLPromptLearner/model.pth.tar-{epoch}"
        sums.append(torch.load(path, weights_only=True)["state_dict"]["prompt_learner.ctx"].sum())
    # a step never raises the second loss, which is the sum itself
    assert sums[1] <= sums[0] + 1e-6


class Positions(Method):
    """Several prompts, with the class name after, between and before them (as in ProDA)."""

    PLACES = {"end": 2, "middle": 1, "front": 1}  # number of prompts with the name there

    def build(self, cfg, class_names):
        width = self.clip.config.text_width
        self.ctx = torch.nn.ParameterList(
            random_prompts(count, 1, 4, width) for count in self.PLACES.values()
        )

    def tokenize_classes(self, class_names):
        return [self.prompt_tokens(class_names, "X X X X", 4, place) for place in self.PLACES]

    def class_features(self, towers):
        pairs = zip(self.ctx, self.tokens, strict=True)
        variants = torch.cat([self.encode_text([ctx], tokens) for ctx, tokens in pairs])
        return {"text": F.normalize(variants.mean(dim=0), dim=-1), "variants": variants}


def test_a_method_may_hold_several_tokenizations(clip_model, batch):
    register(Positions, "POSITIONS")
    model = build(Positions, clip_model)
    rows = []
    for ctx, place in zip(model.ctx, model.PLACES, strict=True):
        for prompt in ctx[:, 0]:
            row = []
            for k, ids in enumerate(
                class_ids(
                    {"end": "X X X X {}.", "middle": "X X {} X X.", "front": "{} X X X X."}[place]
                )
            ):
                n = len(NAMES[k].replace("_", " ").split())
                slots = {
                    "end": [1, 2, 3, 4],
                    "middle": [1, 2, 3 + n, 4 + n],
                    "front": [1 + n, 2 + n, 3 + n, 4 + n],
                }[place]
                row.append(unit(text_feature(clip_model, ids, slots, [prompt])))
            rows.append(torch.stack(row))
    variants = torch.stack(rows)  # (4, K, d)
    torch.testing.assert_close(
        model.class_features(Towers())["variants"], variants, rtol=1e-4, atol=1e-5
    )
    expected = plain_logits(clip_model, batch[0], variants.mean(dim=0))
    torch.testing.assert_close(model(batch[0]), expected, rtol=1e-4, atol=1e-4)


class TwoViews(Method):
    """Learns a scale of the image features, from two views of each image."""

    n_views = 2

    def build(self, cfg, class_names):
        self.scale = torch.nn.Parameter(torch.ones(self.clip.config.embed_dim))

    def image_features(self, batch, towers):
        views = [self.encode_image(view) for view in self.views(batch)]
        return {"image": views[0] * self.scale, "other": views[-1] * self.scale}

    def losses(self, features, logits, labels):
        distance = (features["image"] - features["other"]).square().sum()
        return {**super().losses(features, logits, labels), "loss_views": distance}


def test_a_batch_may_hold_several_views(run, tmp_path):
    register(TwoViews, "TWOVIEWS")
    code, out = run("TwoViews", "run", "DATALOADER.K_TRANSFORMS", "2", epochs=1)
    assert code == 0, out
    (losses,) = {line for line in out.splitlines() if "epoch [1/1] batch [1/4]" in line}
    assert "loss_views 0.0000" not in losses
    for trainer, views, needed in (("TwoViews", "1", 2), ("CoOp", "2", 1)):
        code, out = run(trainer, "wrong", "DATALOADER.K_TRANSFORMS", views)
        assert code == 2
        assert f"DATALOADER.K_TRANSFORMS: expected {needed} for {trainer}, got {views}" in out


def test_plain_texts_are_the_dataset_s_first_template(clip_model, batch):
    class Plain(Method):
        config_node = "ZSCLIP"

    model = Plain(settings(METHODS["ZeroshotCLIP"])[0], clip_model, NAMES, TEMPLATES)
    texts = [text_feature(clip_model, ids, [], []) for ids in class_ids(TEMPLATES[0])]
    expected = plain_logits(clip_model, batch[0], texts)
    torch.testing.assert_close(model(batch[0]), expected, rtol=1e-4, atol=1e-4)
    assert isinstance(model.clip, CLIP) and not model.saved()
