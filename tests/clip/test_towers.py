"""Both towers against open_clip and against the plain computation of tests/plain.py."""

from __future__ import annotations

from functools import partial

import open_clip
import pytest
import torch
from torch import Tensor

from clip import CLIP, CLIPConfig, PromptTokens, convert_weights, tokenize
from clip.blocks import attend_in_sequences, attend_to_earlier
from clip.clip import from_open_clip
from tests.plain import image_feature, text_feature

NAMES = ["red circle", "a very large blue striped square", "dog"]
M = 3
CONTEXT = "X X X of a"  # three prompts, then two words that stay
VISION = {"layers": 3, "width": 48, "patch_size": 8, "image_size": 32, "head_width": 16}
RESNET = {"layers": (1, 2, 1, 1), "width": 8, "image_size": 64, "head_width": 32}
TEXT = {"width": 32, "layers": 3, "heads": 2, "vocab_size": 49408, "context_length": 77}


@pytest.fixture(scope="module")
def model() -> CLIP:
    torch.manual_seed(0)
    config = CLIPConfig(
        embed_dim=24,
        image_resolution=32,
        vision_layers=3,
        vision_width=48,
        vision_patch_size=8,
        context_length=77,
        vocab_size=49408,
        text_width=32,
        text_layers=3,
        head_width=16,
    )
    return CLIP(config).eval().requires_grad_(False)


def same(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    assert a.shape == b.shape
    assert (a - b).abs().max() <= tolerance * b.abs().max()


@pytest.mark.parametrize("vision", [VISION, RESNET], ids=["vit", "resnet"])
@pytest.mark.parametrize("quick_gelu", [True, False])
def test_same_features_as_open_clip_with_the_same_random_weights(vision, quick_gelu):
    torch.manual_seed(1)
    reference = open_clip.CLIP(24, vision, TEXT, quick_gelu=quick_gelu).eval()
    for module in reference.modules():  # random statistics: fresh ones would hide a wrong order
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    ours = from_open_clip(reference)
    images = torch.randn(2, 3, vision["image_size"], vision["image_size"])
    ids = open_clip.tokenize(["a photo of a dog.", "a red circle", "x"])
    with torch.no_grad():
        same(ours.encode_image(images), reference.encode_image(images))
        same(ours.encode_text(ids), reference.encode_text(ids))
        logits, logits_t = ours(images, ids)
        features = [reference.encode_image(images, True), reference.encode_text(ids, True)]
        same(logits, reference.logit_scale.exp() * features[0] @ features[1].t())
        same(logits_t, logits.t())


def test_the_layout_in_which_openai_s_transformer_is_called(model):
    x = torch.randn(2, 77, 32)
    called = model.transformer(x.transpose(0, 1)).transpose(0, 1)
    for block in model.transformer.resblocks:
        x = block.run(x, partial(attend_in_sequences, attend_to_earlier))
    same(called, x)


def shapes(kind: str) -> tuple[int, ...]:
    return {"shared": (M, 32), "class": (3, M, 32), "image": (2, 1, M, 32)}[kind]


@pytest.mark.parametrize("context", ["X X X", CONTEXT], ids=["prompts", "left-over words"])
@pytest.mark.parametrize("layers", [[0], [0, 1, 2], [0, 2], [1]], ids=str)
@pytest.mark.parametrize("kinds", [["shared"], ["class"], ["image"], ["shared", "image"]], ids=str)
def test_text_features_and_gradients_equal_the_plain_77_tokens(model, kinds, layers, context):
    torch.manual_seed(2)
    prompts: list[Tensor | None] = [None] * (max(layers) + 1)
    for i, layer in enumerate(layers):
        prompts[layer] = torch.randn(*shapes(kinds[i % len(kinds)])).requires_grad_()
    leaves = [p for p in prompts if p is not None]
    tokens = PromptTokens.from_names(NAMES, context, M)
    features = model.encode_text(tokens, prompts)

    ids = tokenize([f"{context} {name}." for name in NAMES])
    per_image = any(p.dim() == 4 for p in leaves)
    expected = []
    for image in range(2 if per_image else 1):
        for k in range(len(NAMES)):
            chosen: list[Tensor | None] = []
            for p in prompts:
                if p is not None and p.dim() == 4:
                    p = p[image, 0]
                elif p is not None and p.dim() == 3:
                    p = p[k]
                chosen.append(p)
            expected.append(text_feature(model, ids[k], [1, 2, 3], chosen))
    plain = torch.stack(expected).unflatten(0, (-1, len(NAMES)))
    plain = plain if per_image else plain[0]
    same(features, plain)

    weight = torch.randn_like(plain)
    fast = torch.autograd.grad((features * weight).sum(), leaves)
    slow = torch.autograd.grad((plain * weight).sum(), leaves)
    for a, b in zip(fast, slow, strict=True):
        same(a, b)


@pytest.mark.parametrize("tail", [".", ", a type of pet", ""])
@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("kind", ["shared", "class"])
def test_class_token_positions_and_what_follows(model, position, kind, tail):
    torch.manual_seed(3)
    prompt = torch.randn(*shapes(kind))
    tokens = PromptTokens.from_names(NAMES, "X X X", M, position, tail=tail)
    features = model.encode_text(tokens, [prompt])
    for k, name in enumerate(NAMES):
        text = {"end": f"X X X {name}", "middle": f"X {name} X X", "front": f"{name} X X X"}
        ids = tokenize([text[position] + tail])[0]
        n = len(name.split())
        slots = {"end": [1, 2, 3], "middle": [1, 2 + n, 3 + n], "front": [1 + n, 2 + n, 3 + n]}
        same(
            features[k],
            text_feature(model, ids, slots[position], [prompt if kind == "shared" else prompt[k]]),
        )


def test_one_class_alone_has_the_features_it_has_among_others(model):
    prompts = [torch.randn(M, 32), torch.randn(M, 32)]
    together = model.encode_text(PromptTokens.from_names(NAMES, CONTEXT, M), prompts)
    for k, name in enumerate(NAMES):
        alone = model.encode_text(PromptTokens.from_names([name], CONTEXT, M), prompts)
        same(alone[0], together[k])


def test_the_prefix_is_what_all_classes_have_in_common():
    assert PromptTokens.from_names(NAMES, "X X X", M).prefix == 4
    assert PromptTokens.from_names(NAMES, CONTEXT, M).prefix == 6
    same_start = PromptTokens.from_names(["big red dog", "big red cat"], "X X X", M)
    assert same_start.prefix == 6
    assert PromptTokens.from_names(NAMES, "X X X", M, "front").prefix == 0


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("layers", [[], [0], [0, 1, 2], [0, 2]], ids=str)
def test_image_features_and_gradients_equal_the_plain_computation(model, layers, per_image):
    torch.manual_seed(4)
    images = torch.randn(2, 3, 32, 32)
    prompts: list[Tensor | None] = [None] * (max(layers, default=-1) + 1)
    for layer in layers:
        shape = (2, M, 48) if per_image else (M, 48)
        prompts[layer] = torch.randn(*shape).requires_grad_()
    features = model.encode_image(images, prompts)
    plain = torch.stack(
        [
            image_feature(
                model,
                image,
                [p[i] if p is not None and per_image else p for p in prompts],
            )
            for i, image in enumerate(images)
        ]
    )
    same(features, plain)
    leaves = [p for p in prompts if p is not None]
    if leaves:
        fast = torch.autograd.grad(features.sin().sum(), leaves)
        slow = torch.autograd.grad(plain.sin().sum(), leaves)
        for a, b in zip(fast, slow, strict=True):
            same(a, b, 2e-5)


def test_what_the_hook_refuses(model):
    tokens = PromptTokens.from_names(NAMES, "X X X", M)
    four = [torch.randn(M, 32)] * 4
    with pytest.raises(ValueError, match="4 layers, but the text tower has 3"):
        model.encode_text(tokens, four)
    with pytest.raises(ValueError, match="2 text prompts for 3 positions"):
        model.encode_text(tokens, [torch.randn(2, 32)])
    images = torch.randn(1, 3, 32, 32)
    with pytest.raises(ValueError, match="4 layers, but the vision tower has 3"):
        model.encode_image(images, [torch.randn(M, 48)] * 4)
    with pytest.raises(ValueError, match="5 vision prompts to replace the 3"):
        model.encode_image(images, [torch.randn(M, 48), torch.randn(5, 48)])
    resnet = from_open_clip(open_clip.CLIP(24, RESNET, TEXT, quick_gelu=True))
    with pytest.raises(ValueError, match="ResNet takes no vision prompts"):
        resnet.encode_image(torch.randn(1, 3, 64, 64), [torch.randn(M, 8)])
    with pytest.raises(ValueError, match="tokens long, but the model takes 77"):
        PromptTokens.from_names(["word " * 80], "X X X", M)
    with pytest.raises(ValueError, match="2 tokens"):
        PromptTokens.from_names(NAMES, "X X", M)
    with pytest.raises(ValueError, match="end, middle or front"):
        PromptTokens.from_names(NAMES, "X X X", M, "behind")


def test_half_precision_stays_near_and_keeps_norms_in_fp32(model):
    import copy

    half = copy.deepcopy(model)
    convert_weights(half, torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert half.ln_final.weight.dtype == half.logit_scale.dtype == torch.float32
    prompt = torch.randn(M, 32)
    tokens = PromptTokens.from_names(NAMES, CONTEXT, M)
    same(half.encode_text(tokens, [prompt]).float(), model.encode_text(tokens, [prompt]), 0.05)
    images = torch.randn(2, 3, 32, 32)
    same(half.encode_image(images).float(), model.encode_image(images), 0.05)


def test_tokens_are_open_clip_s():
    texts = ["a photo of a dog.", "Ünïcode & punctuation!", ""]
    assert torch.equal(tokenize(texts), open_clip.tokenize(texts))
    assert torch.equal(tokenize("word " * 100, truncate=True)[0, -1], torch.tensor(49407))
