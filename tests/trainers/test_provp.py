"""ProVP against a plain computation: one image at a time, prompts behind the class token."""

from __future__ import annotations

import pytest
import torch

from clip import CLIP
from dassl.config import check_domains, get_cfg_default
from dassl.utils import UserError
from tests.plain import assert_same_gradients, block, image_feature, norm, text_feature, unit
from tests.trainers.tiny import (
    NAMES,
    TEMPLATES,
    check,
    class_ids,
    learned,
    load_public,
    settings,
)
from trainers.provp import ProVP

M, WEIGHT = 5, 2.0


def make(clip_model, use_ref=True, n_prompts=M):
    cfg, _ = settings(ProVP, N_CTX=n_prompts)
    cfg.OPTIM.USE_REF, cfg.LOSS.LAMBDA = use_ref, WEIGHT
    torch.manual_seed(1)
    return ProVP(cfg, clip_model, NAMES, TEMPLATES)


def prompted_feature(model: CLIP, image, prompts):
    """Encode an image (3, 16, 16) in 8 x 8 patches with prompts (L, m, width) behind [CLS]."""
    state = {k.removeprefix("visual."): v for k, v in model.named_parameters() if "visual" in k}
    kernel, m = state["conv1.weight"].flatten(1), prompts.shape[1]
    tokens = [state["class_embedding"]]
    for row in (0, 8):
        for column in (0, 8):
            piece = image[:, row : row + 8, column : column + 8]
            tokens.append(kernel @ piece.reshape(-1))
    x = norm(state, "ln_pre", torch.stack(tokens) + state["positional_embedding"])
    for i, own in enumerate(prompts):
        if i == 0:
            x = torch.cat([x[:1], own, x[1:]])
        else:
            x = torch.cat([x[:1], 0.01 * x[1 : 1 + m] + 0.99 * own, x[1 + m :]])
        x = block(state, f"transformer.resblocks.{i}", x, 48 // 16, False)
    return norm(state, "ln_post", x[0]) @ state["proj"]


def plain_features(clip_model, prompts, images, names=NAMES):
    image = torch.stack([unit(prompted_feature(clip_model, i, prompts)) for i in images])
    texts = [text_feature(clip_model, ids, [], []) for ids in class_ids(TEMPLATES[0], names)]
    return image, unit(torch.stack(texts))


def plain_cross_entropy(logits, labels):
    each = [row.exp().sum().log() - row[y] for row, y in zip(logits, labels, strict=True)]
    return sum(each) / len(each)


@pytest.mark.parametrize("n_prompts", [M, 2])
def test_logits_losses_and_gradients_equal_the_plain_computation(clip_model, batch, n_prompts):
    model = make(clip_model, n_prompts=n_prompts)
    p = learned(model)
    images, labels = batch
    image, text = plain_features(clip_model, model.prompt_learner.prompt_embeddings, images)
    expected = clip_model.logit_scale.exp() * image @ text.t()
    frozen = torch.stack([unit(image_feature(clip_model, each, [])) for each in images])
    logits, terms = model(images, labels)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    cross_entropy = plain_cross_entropy(expected, labels)
    reformation = WEIGHT * plain_cross_entropy(image @ frozen.t(), [0, 1, 2])
    torch.testing.assert_close(terms["loss_ce"], cross_entropy, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(terms["loss_ref"], reformation, rtol=1e-5, atol=1e-6)
    assert_same_gradients(p, sum(terms.values()), cross_entropy + reformation)


def test_without_the_re_formation_there_is_one_term(clip_model, batch):
    _, terms = make(clip_model, use_ref=False)(*batch)
    assert terms.keys() == {"loss_ce"}


def test_name_shape_and_start_are_those_of_the_released_code(clip_model):
    model = make(clip_model, n_prompts=50)
    (name,) = model.saved()
    tensor = model.prompt_learner.prompt_embeddings
    assert name == "prompt_embeddings" and model.checkpoint_name == "Prompt_learner"
    assert tensor.shape == (4, 50, 48) and list(learned(model)) == [f"prompt_learner.{name}"]
    bound = (6 / (3 * 2 * 2 + 48)) ** 0.5  # 2 x 2 patches
    assert 0.99 * bound < tensor.max() <= bound and -bound <= tensor.min() < -0.99 * bound
    assert tensor.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


def test_a_public_checkpoint_gives_the_logits_of_the_plain_computation(clip_model, batch):
    model = make(clip_model).eval()
    torch.manual_seed(3)
    state = {"prompt_embeddings": torch.randn(4, M, 48).half()}
    image, text = plain_features(clip_model, state["prompt_embeddings"].float(), batch[0])
    load_public(model, state, "model.pth.tar-100")
    with torch.no_grad():
        expected = clip_model.logit_scale.exp() * image @ text.t()
        torch.testing.assert_close(model(batch[0]), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match=r"'prompt_embeddings' has shape \(4, 6, 48\)"):
        load_public(model, {"prompt_embeddings": torch.zeros(4, 6, 48)}, "model.pth.tar-100")


def test_fixed_classes_change_no_logit_and_other_classes_can_be_set(clip_model, batch):
    model, images = make(clip_model).eval(), batch[0]
    names = [NAMES[2], "green_hexagon"]
    with torch.no_grad():
        free = model(images)
        with model.fixed_classes():
            torch.testing.assert_close(model(images), free)
        model.set_classes(names)
        prompts = model.prompt_learner.prompt_embeddings
        image, text = plain_features(clip_model, prompts, images, names)
        expected = clip_model.logit_scale.exp() * image @ text.t()
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)


def test_settings_that_cannot_be(clip_model):
    with pytest.raises(
        UserError, match=r"COOP\.N_CTX: expected a whole number in 1\.\.1000, got 0"
    ):
        check(ProVP, clip_model, N_CTX=0)
    cfg = get_cfg_default("ProVP")
    assert (cfg.OPTIM.USE_REF, cfg.LOSS.LAMBDA, cfg.TRAINER.COOP.N_CTX) == (False, 1.0, 16)
    cfg.LOSS.LAMBDA = -1.0
    with pytest.raises(UserError, match=r"^LOSS\.LAMBDA: expected a number >= 0, got -1\.0$"):
        check_domains(cfg, "ProVP", section="LOSS.")
