"""PromptSRC against a plain computation, and its aggregation over epochs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES
from PIL import Image

from clip import tokenize
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import build_trainer, resume
from dassl.utils import UserError, set_random_seed
from tests.plain import (
    assert_same_gradients,
    image_feature,
    plain_logits,
    text_feature,
    unit,
)
from tests.trainers.tiny import NAMES, build, check, class_ids, learned, load_public, settings
from trainers.promptsrc import PromptSRC, epoch_weights
from trainers.trainer import MethodTrainer

SMALL = {"PROMPT_DEPTH_TEXT": 3, "PROMPT_DEPTH_VISION": 2, "N_CTX_TEXT": 3, "N_CTX_VISION": 2}


def ensemble(clip_model, names):
    """Return the mean of CLIP's text features with the first 60 ImageNet templates."""
    rows = []
    for name in names:
        texts = [template(name.replace("_", " ")) for template in OPENAI_IMAGENET_TEMPLATES[:60]]
        rows.append(clip_model.encode_text(tokenize(texts)).mean(0))
    return unit(torch.stack(rows))


def plain_prompted(model, clip_model, images, names):
    """Compute unit features and logits of the prompted towers."""
    p = learned(model)
    text = [p["prompt_learner.ctx"]]
    text += [p[f"text_encoder.transformer.resblocks.{i}.VPT_shallow"] for i in (1, 2)]
    vision = [p["image_encoder.VPT"], p["image_encoder.transformer.resblocks.1.VPT_shallow"]]
    ids = class_ids("a photo of a {}.", names)
    texts = [text_feature(clip_model, i, [1, 2, 3], text) for i in ids]
    v = unit(torch.stack([image_feature(clip_model, image, vision) for image in images]))
    return unit(torch.stack(texts)), v, plain_logits(clip_model, images, texts, vision)


def test_logits_losses_and_gradients_equal_the_plain_computation(clip_model, batch):
    model = build(PromptSRC, clip_model, **SMALL)
    images, labels = batch
    w, v, expected = plain_prompted(model, clip_model, images, NAMES)
    with torch.no_grad():
        w_frozen = ensemble(clip_model, NAMES)
        v_frozen = unit(torch.stack([image_feature(clip_model, i, []) for i in images]))
        frozen = (clip_model.logit_scale.exp() * v_frozen @ w_frozen.t()).softmax(dim=1)
    prompted = expected.softmax(dim=1)
    slow_terms = {
        "loss_ce": F.cross_entropy(expected, labels),
        "loss_scl_text": 25 * (w - w_frozen).abs().mean(),
        "loss_scl_image": 10 * (v - v_frozen).abs().mean(),
        "loss_scl_logits": (frozen * (frozen / prompted).log()).sum() / expected.numel(),
    }
    logits, terms = model(images, labels)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert terms.keys() == slow_terms.keys()
    for name in terms:
        assert slow_terms[name] > 0
        torch.testing.assert_close(terms[name], slow_terms[name], rtol=1e-3, atol=1e-5)
    assert_same_gradients(learned(model), sum(terms.values()), sum(slow_terms.values()))


def test_other_classes_have_a_frozen_ensemble_of_their_own(clip_model, batch):
    model = build(PromptSRC, clip_model, **SMALL)
    first = model.frozen_text
    names = ["small_red bus", "fern"]
    model.set_classes(names)
    with torch.no_grad():
        torch.testing.assert_close(
            model.frozen_text, ensemble(clip_model, names), rtol=1e-4, atol=1e-5
        )
        images, _ = batch
        _, _, expected = plain_prompted(model, clip_model, images, names)
        with model.fixed_classes():
            torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)
    assert len(first) == 3 and len(model.frozen_text) == 2


def test_evaluation_needs_no_frozen_text(clip_model, batch, monkeypatch):
    model = build(PromptSRC, clip_model, **SMALL)
    monkeypatch.setattr(type(model), "ensemble_features", None)
    with model.fixed_classes(), torch.no_grad():
        assert model(batch[0]).shape == (3, 3)


def test_learnable_tensors_have_the_names_and_shapes_of_public_checkpoints(clip_model):
    model = build(PromptSRC, clip_model, **SMALL)
    assert {name: tuple(p.shape) for name, p in learned(model).items()} == {
        "prompt_learner.ctx": (3, 32),
        "text_encoder.transformer.resblocks.1.VPT_shallow": (3, 32),
        "text_encoder.transformer.resblocks.2.VPT_shallow": (3, 32),
        "image_encoder.VPT": (2, 48),
        "image_encoder.transformer.resblocks.1.VPT_shallow": (2, 48),
    }


def test_reads_public_checkpoints_of_the_whole_model(clip_model):
    model = build(PromptSRC, clip_model, **SMALL)
    state = {name: torch.full(p.shape, 0.25).half() for name, p in learned(model).items()}
    frozen = {
        "prompt_learner.token_prefix": (9, 1, 32),
        "prompt_learner.token_suffix": (9, 73, 32),
        "prompt_learner.ZS_image_encoder.conv1.weight": (48, 3, 8, 8),
        "prompt_learner.ZS_image_encoder.transformer.resblocks.1.ln_1.weight": (48,),
        "image_encoder.conv1.weight": (48, 3, 8, 8),
        "text_encoder.transformer.resblocks.1.attn.in_proj_weight": (96, 32),
        "logit_scale": (),
    }
    state |= {name: torch.zeros(shape).half() for name, shape in frozen.items()}
    load_public(model, state, "model.pth.tar-20")
    assert all((p == 0.25).all() for p in learned(model).values())
    state["image_encoder.transformer.resblocks.2.VPT_shallow"] = torch.zeros(2, 48)
    with pytest.raises(UserError, match="resblocks.2.VPT_shallow"):  # of a deeper model
        load_public(model, state, "model.pth.tar-20")


def test_epoch_weights_are_a_normalized_gaussian():
    weights = epoch_weights(20, 15, 2)
    density = np.exp(-0.5 * ((np.arange(1, 21) - 15) / 2) ** 2)
    np.testing.assert_allclose(weights.numpy(), density / density.sum(), rtol=1e-12)
    assert weights.argmax() == 14
    # This far from its mean, the density itself is 0 in double precision.
    assert epoch_weights(5, 60, 1).sum() == pytest.approx(1)


def test_settings_that_cannot_be(clip_model):
    for values, message in (
        ({"GPA_STD": 0.0}, "TRAINER.PROMPTSRC.GPA_STD: expected a number >= 0.001, got 0.0"),
        (
            {"PROMPT_DEPTH_TEXT": 5},
            "TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT: expected a whole number in 1..4, got 5",
        ),
    ):
        with pytest.raises(UserError, match=message):
            check(PromptSRC, clip_model, **{**SMALL, **values})


# --- training --------------------------------------------------------------------------------


@DATASET_REGISTRY.register()
class GrayLevels(DatasetBase):
    """Two classes of four images each."""

    def __init__(self, cfg):
        items = []
        for label, name in enumerate(["dark", "bright"]):
            for i in range(4):
                path = Path(cfg.DATASET.ROOT) / f"{name}{i}.png"
                pixels = np.full((16, 16, 3), 40 + 140 * label + 10 * i, dtype=np.uint8)
                Image.fromarray(pixels).save(path)
                items.append(Datum(impath=str(path), label=label, classname=name))
        super().__init__(train_x=items, test=items)


@pytest.fixture
def trainer(backbone, tmp_path, monkeypatch):
    """trainer(output folder) -> a PromptSRC for 4 epochs of 2 batches on GrayLevels."""
    monkeypatch.setattr(resume, "SAVE_INTERVAL", 0.0)
    cfg, _ = settings(PromptSRC, **SMALL, GPA_MEAN=3.0, GPA_STD=1.5)
    cfg.merge_from_list(
        ["TRAINER.NAME", "PromptSRC", "MODEL.BACKBONE.NAME", backbone]
        + ["DATASET.NAME", "GrayLevels", "DATASET.ROOT", str(tmp_path), "INPUT.SIZE", (16, 16)]
        + ["INPUT.TRANSFORMS", ("random_flip", "normalize"), "DATALOADER.NUM_WORKERS", 0]
        + ["DATALOADER.TRAIN_X.BATCH_SIZE", 4, "OPTIM.NAME", "sgd", "OPTIM.LR", 0.02]
        + ["OPTIM.MAX_EPOCH", 4, "OPTIM.LR_SCHEDULER", "cosine", "TEST.NO_TEST", True]
    )

    def make(output: str) -> MethodTrainer:
        cfg.OUTPUT_DIR = str(tmp_path / output)
        set_random_seed(1)
        return build_trainer(cfg.clone())

    return make


def weights_of(trainer):
    state = trainer.learned_state_dict("VLPromptLearner")
    return {name: tensor.clone() for name, tensor in state.items()}


def test_final_model_is_the_weighted_sum_over_the_epochs(trainer, tmp_path, monkeypatch):
    epochs = []
    after_epoch = PromptSRC.after_epoch

    def record(self, epoch, n_epochs):
        epochs.append({name: tensor.clone() for name, tensor in self.saved().items()})
        after_epoch(self, epoch, n_epochs)

    monkeypatch.setattr(PromptSRC, "after_epoch", record)
    trainer("run").train()
    path = tmp_path / "run" / "VLPromptLearner" / "model.pth.tar-4"
    final = torch.load(path, weights_only=True)["state_dict"]
    density = [np.exp(-0.5 * ((epoch - 3) / 1.5) ** 2) for epoch in (1, 2, 3, 4)]
    assert len(epochs) == 4
    for name, tensor in final.items():
        expected = sum(d * e[name] for d, e in zip(density, epochs, strict=True)) / sum(density)
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-6)
        assert not torch.equal(tensor, epochs[-1][name]), name


def test_a_stopped_run_ends_with_the_same_aggregate(trainer, monkeypatch):
    whole = trainer("whole")
    whole.train()
    step = MethodTrainer.forward_backward

    def stop_in_the_third_epoch(self, batch):
        if self.epoch == 2 and self.batch_idx == 1:
            raise KeyboardInterrupt
        return step(self, batch)

    stopped = trainer("stopped")
    monkeypatch.setattr(MethodTrainer, "forward_backward", stop_in_the_third_epoch)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    monkeypatch.setattr(MethodTrainer, "forward_backward", step)
    resumed = trainer("stopped")
    resumed.train()
    assert resumed.start_epoch == 2
    expected = weights_of(whole)
    for name, tensor in weights_of(resumed).items():
        assert torch.equal(tensor, expected[name]), name
