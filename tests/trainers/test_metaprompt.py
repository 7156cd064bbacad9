"""MetaPrompt against a plain computation: logits, losses, and the weights after whole steps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dassl.engine.optimize import Update
from dassl.utils import UserError
from tests.plain import assert_same_gradients, image_feature, text_feature, unit
from tests.trainers.tiny import NAMES, build, check, class_ids, learned, load_public, settings
from trainers.metaprompt import MetaPrompt

SMALL = {"N_CTX": 2, "N_PRO": 3, "LAYERS": 3}
FOUR = [*NAMES, "green_hexagon"]
LR, MOMENTUM, DECAY, META_STEP = 0.1, 0.8, 0.01, 0.3

pytestmark = pytest.mark.tiny(layers=3, images=4)


def plain_texts(clip_model, ctx, names, pattern="X X {}."):
    slots = [1, 2] if "X" in pattern else []
    texts = [text_feature(clip_model, ids, slots, list(ctx)) for ids in class_ids(pattern, names)]
    return unit(torch.stack(texts))


def plain_images(clip_model, images, ctx=()):
    return unit(torch.stack([image_feature(clip_model, image, list(ctx)) for image in images]))


def plain_losses(clip_model, text_ctx, vision_ctx, images, labels, names=NAMES):
    """Return the mean logits and the three cross-entropies."""
    frozen = plain_texts(clip_model, [], names, "a photo of a {}")
    scale = clip_model.logit_scale.exp()
    first = scale * plain_images(clip_model, images, vision_ctx) @ frozen.t()
    second = scale * plain_images(clip_model, images) @ plain_texts(clip_model, text_ctx, names).t()
    logits = 0.5 * (first + second)
    return logits, [F.cross_entropy(each, labels) for each in (logits, first, second)]


def test_logits_losses_and_gradients_equal_the_plain_computation(clip_model, batch):
    model = build(MetaPrompt, clip_model, **SMALL)
    p = learned(model)
    expected, losses = plain_losses(clip_model, *p.values(), *batch)
    logits, terms = model(*batch)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert list(terms) == ["loss_ce", "loss_image", "loss_text"]
    for loss, plain in zip(terms.values(), losses, strict=True):
        torch.testing.assert_close(loss, plain, rtol=1e-5, atol=1e-5)
    assert_same_gradients(p, sum(terms.values()), sum(losses))


class PlainSGD:
    """SGD with momentum and weight decay, tensor by tensor."""

    def __init__(self):
        self.buffers = {}

    def step(self, name, tensor, gradient):
        gradient = gradient + DECAY * tensor
        buffer = self.buffers.get(name)
        self.buffers[name] = gradient if buffer is None else MOMENTUM * buffer + gradient
        return tensor - LR * self.buffers[name]


def plain_step(clip_model, sgd, text, vision, images, labels, order):
    """Return both prompts after one training step, the classes being split in this order."""
    text, vision = (t.detach().clone().requires_grad_() for t in (text, vision))
    loss = sum(plain_losses(clip_model, text, vision, images, labels, FOUR)[1])
    gradients = torch.autograd.grad(loss, (text, vision))
    vision = sgd.step("vision", vision.detach(), gradients[1])
    text = sgd.step("text", text.detach(), gradients[0])

    def gradient_on(ctx, half):
        ctx = ctx.detach().clone().requires_grad_()
        mine = [i for i, label in enumerate(labels.tolist()) if label in half]
        rows = plain_images(clip_model, images[mine])
        texts = plain_texts(clip_model, ctx, [FOUR[k] for k in half])
        targets = torch.tensor([half.index(labels[i].item()) for i in mine])
        loss = F.cross_entropy(clip_model.logit_scale.exp() * rows @ texts.t(), targets)
        return torch.autograd.grad(loss, ctx)[0]

    total, start = torch.zeros_like(text), text
    halves = order[:2], order[2:]
    if all(any(label in half for label in labels.tolist()) for half in halves):
        for here, there in (halves[::-1], halves):
            near = sgd.step("text", start, gradient_on(start, here))
            total = total + gradient_on(near, there)
    return start - LR * META_STEP * total, vision


@pytest.mark.parametrize("scaled", [False, True])
def test_weights_after_steps_equal_those_of_the_plain_computation(clip_model, scaled):
    model = build(MetaPrompt, clip_model, META_STEP=META_STEP, **SMALL)
    model.set_classes(FOUR)
    p = learned(model)
    optimizer = torch.optim.SGD(p.values(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    update = Update(optimizer, torch.amp.GradScaler("cpu", init_scale=8.0) if scaled else None)
    text, vision, sgd = *(t.detach().clone() for t in p.values()), PlainSGD()
    torch.manual_seed(7)
    one_sided = []
    for step in range(4):
        images, labels = torch.randn(3, 3, 16, 16), torch.tensor([[0, 2, 1], [3, 3, 3]][step % 2])
        state = torch.get_rng_state()
        order = torch.randperm(4).tolist()
        torch.set_rng_state(state)
        one_sided.append(len({label in order[:2] for label in labels.tolist()}) == 1)
        text, vision = plain_step(clip_model, sgd, text, vision, images, labels, order)
        model.step(images, labels, update)
        torch.testing.assert_close(model.prompt_learner.ctx.detach(), text, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(
            model.vision_prompt_learner.ctx.detach(), vision, rtol=1e-4, atol=1e-6
        )
    assert set(one_sided) == {False, True}


def test_a_half_of_one_class_gives_no_gradient_and_two_classes_none_at_all(clip_model):
    images = torch.randn(3, 3, 16, 16)
    for names, steps in ((NAMES[:1], 1), (NAMES[:2], 1), (NAMES, 2)):
        model = build(MetaPrompt, clip_model, **SMALL)
        model.set_classes(names)
        calls = []

        class Counting(Update):
            def __call__(self, loss):
                calls.append(loss.item())  # noqa: B023
                super().__call__(loss)

        update = Counting(torch.optim.SGD(learned(model).values(), lr=0.1))
        model.step(images, torch.arange(3) % len(names), update)
        assert len(calls) == steps, names


def test_an_overflow_leaves_the_prompts_where_they_are(clip_model, batch):
    model = build(MetaPrompt, clip_model, **SMALL)
    model.set_classes(FOUR)
    before = {name: t.detach().clone() for name, t in learned(model).items()}
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=0.999)
    images, labels = torch.randn(4, 3, 16, 16), torch.arange(4)
    model.step(images, labels, Update(torch.optim.SGD(learned(model).values(), lr=0.1), scaler))
    for name, tensor in learned(model).items():
        assert torch.equal(tensor, before[name]), name


def test_names_shapes_and_start_are_those_of_the_released_code(clip_model):
    model = build(MetaPrompt, clip_model, N_CTX=20, N_PRO=30, LAYERS=3)
    assert {name: tuple(t.shape) for name, t in model.saved().items()} == {
        "prompt_learner.ctx": (3, 20, 32),
        "vision_prompt_learner.ctx": (3, 30, 48),
    }
    for tensor in learned(model).values():
        assert tensor.std().item() == pytest.approx(0.02, rel=0.05)


def public_state(clip_model):
    """Return what the released code saves: both prompts, and every frozen tensor several times."""
    torch.manual_seed(3)
    state = {"prompt_learner.ctx": 0.2 * torch.randn(3, 2, 32)}
    state["vision_prompt_learner.ctx"] = 0.2 * torch.randn(3, 3, 48)
    zero = torch.zeros(1)
    for part in ("conv1.weight", "class_embedding", "positional_embedding"):
        state[f"vision_prompt_learner.{part}"] = zero
    block = [f"{n}.{k}" for n in ("ln_1", "ln_2") for k in ("weight", "bias")]
    block += ["attn.in_proj_weight", "attn.out_proj.bias", "mlp.c_fc.weight", "mlp.c_proj.bias"]
    for name in block:
        for i in range(3):
            state[f"image_encoder.transformer.{i}.{name}"] = zero
            state[f"text_encoder.transformer.{i}.{name}"] = zero
            state[f"model.transformer.resblocks.{i}.{name}"] = zero
            visual = f"visual.transformer.resblocks.{i}.{name}"
            state |= {f"vision_prompt_learner.{visual}": zero, f"model.{visual}": zero}
    names = ["image_encoder.ln_pre.weight", "image_encoder.ln_post.bias", "image_encoder.proj"]
    names += ["text_encoder.positional_embedding", "text_encoder.ln_final.weight", "logit_scale"]
    names += ["text_encoder.text_projection", "model.token_embedding.weight", "model.logit_scale"]
    return state | dict.fromkeys(names, zero)


def test_a_public_checkpoint_gives_the_logits_of_the_plain_computation(clip_model, batch):
    model = build(MetaPrompt, clip_model, **SMALL).eval()
    state = public_state(clip_model)
    load_public(model, {n: t.half() for n, t in state.items()}, "model.pth.tar-8")
    images, labels = batch
    ctx = [t.half().float() for t in list(state.values())[:2]]
    for names in (NAMES, [NAMES[2], "green_hexagon", "cat"]):
        model.set_classes(names)
        expected, _ = plain_losses(clip_model, *ctx, images, labels, names)
        with torch.no_grad():
            torch.testing.assert_close(model(images), expected, rtol=1e-5, atol=1e-5)
            with model.fixed_classes():
                torch.testing.assert_close(model(images), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match=r"this model has no tensor 'token_prefix'"):
        load_public(model, {**state, "token_prefix": torch.zeros(1)}, "model.pth.tar-8")


def test_the_frozen_texts_of_imagenet_are_in_eight_templates(clip_model):
    cfg, _ = settings(MetaPrompt, **SMALL)
    cfg.DATASET.NAME = "ImageNetSketch"
    model = MetaPrompt(cfg, clip_model, NAMES, ["a photo of a {}.", "another {}."])
    templates = ["a photo of a {}", "itap of a {}", "a bad photo of the {}", "a origami {}"]
    templates += ["a photo of the large {}", "a {} in a video game", "art of the {}"]
    templates += ["a photo of the small {}"]
    texts = torch.stack([plain_texts(clip_model, [], NAMES, each) for each in templates])
    torch.testing.assert_close(model.frozen_text, unit(texts.mean(0)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"LAYERS": 4}, r"LAYERS: expected a whole number in 1\.\.3, got 4"),
        ({"LAYERS": 0}, r"LAYERS: expected a whole number >= 1, got 0"),
        ({"N_CTX": 0}, r"N_CTX: expected a whole number in 1\.\.1000, got 0"),
        ({"N_PRO": 0}, r"N_PRO: expected a whole number in 1\.\.1000, got 0"),
        ({"META_STEP": 0.0}, r"META_STEP: expected a number > 0, got 0\.0"),
    ],
)
def test_settings_that_cannot_be(clip_model, values, message):
    with pytest.raises(UserError, match=message):
        check(MetaPrompt, clip_model, **{**SMALL, **values})


def test_prompts_that_leave_no_room_for_the_class_name(clip_model):
    with pytest.raises(
        UserError, match=r"^TRAINER\.META\.N_CTX: .* leaves room for 'very large dog'"
    ):
        build(MetaPrompt, clip_model, **{**SMALL, "N_CTX": 73})
