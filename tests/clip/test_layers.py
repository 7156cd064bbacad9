"""The hook's five fields, in every combination that matters to the towers, against plain.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from open_clip.transformer import Transformer as OpenTransformer
from torch import Tensor, nn

from clip import CLIP, CLIPConfig, Layer, PromptTokens, tokenize
from clip.blocks import Transformer
from tests.plain import image_parts, text_feature

NAMES = ["red circle", "a very large blue striped square", "dog"]
M = 2
TEXT_WIDTH, VISION_WIDTH, DEPTH = 32, 48, 3


@pytest.fixture(scope="module")
def model() -> CLIP:
    torch.manual_seed(0)
    config = CLIPConfig(
        embed_dim=24,
        image_resolution=16,
        vision_layers=DEPTH,
        vision_width=VISION_WIDTH,
        vision_patch_size=8,
        context_length=77,
        vocab_size=49408,
        text_width=TEXT_WIDTH,
        text_layers=DEPTH,
        head_width=16,
    )
    return CLIP(config).eval().requires_grad_(False)


def adapter(n_in: int, n_out: int) -> nn.Module:
    return nn.Sequential(nn.Linear(n_in, 5), nn.Tanh(), nn.Linear(5, n_out))


def adapters(width: int) -> dict[str, nn.Module]:
    outputs = {"qkv": 3 * width, "out": width, "mlp": width, "block": width}
    return {name: adapter(width, n_out) for name, n_out in outputs.items()}


class Blend(nn.Module):
    """Prompts as a function of the previous layer's output at their positions."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.new = nn.Parameter(torch.randn(shape))

    def forward(self, before: Tensor) -> Tensor:
        return 0.7 * before + self.new


def shape_of(kind: str, width: int) -> tuple[int, ...]:
    """Return the shape of prompts for all classes, for each class, in two variants, or both."""
    return {
        "shared": (M, width),
        "class": (len(NAMES), M, width),
        "variants": (2, 1, M, width),
        "both": (2, len(NAMES), M, width),
    }[kind]


def picked(tensor: Tensor, variant: int, k: int) -> Tensor:
    """Return what one class sees in one variant: (M, width)."""
    tensor = tensor[(None,) * (4 - tensor.dim())]
    v, c = tensor.shape[:2]
    return tensor[variant if v > 1 else 0, k if c > 1 else 0]


def for_one(entry: Any, variant: int, k: int) -> Layer:
    """Return the layer as one class sees it in one variant."""
    if not isinstance(entry, Layer):
        entry = Layer(prompts=entry)
    prompts = entry.prompts
    if isinstance(prompts, Tensor):
        return replace(entry, prompts=picked(prompts, variant, k))
    if isinstance(prompts, Blend):
        return replace(entry, prompts=lambda x: 0.7 * x + picked(prompts.new, variant, k))
    return entry


def same(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    assert a.shape == b.shape
    assert (a - b).abs().max() <= tolerance * b.abs().max()


def leaves_of(layers: list[Any]) -> list[Tensor]:
    leaves: list[Tensor] = []
    for entry in layers:
        if isinstance(entry, Tensor):
            leaves.append(entry)
        elif entry is not None:
            for field in (entry.prompts, entry.qkv, entry.out, entry.mlp, entry.block):
                if isinstance(field, nn.Module):
                    leaves += field.parameters()
                elif field is not None:
                    leaves.append(field)
    return [leaf.requires_grad_() for leaf in leaves]


def assert_same(fast: Tensor, slow: Tensor, layers: list[Any]) -> None:
    """Compare features and the gradient of everything that is learned."""
    same(fast, slow)
    weight = torch.randn_like(slow)
    leaves = leaves_of(layers)
    found = torch.autograd.grad((fast * weight).sum(), leaves, retain_graph=True, allow_unused=True)
    expected = torch.autograd.grad(
        (slow * weight).sum(), leaves, retain_graph=True, allow_unused=True
    )
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if b is not None:
            same(a, b, 5e-5)


def layer_lists(width: int, kind: str) -> dict[str, Callable[[], list[Any]]]:
    """Return entries of a tower's layers, by what they test."""

    def prompts() -> Tensor:
        return torch.randn(shape_of(kind, width))

    return {
        "all five fields": lambda: [
            Layer(prompts(), **adapters(width)),
            None,
            Layer(prompts(), **adapters(width)),
        ],
        "function": lambda: [prompts(), blend(kind, width), Layer(**adapters(width))],
        "function in the last layer": lambda: [
            Layer(prompts(), **adapters(width)),
            None,
            blend(kind, width),
        ],
        "later start": lambda: [
            Layer(**adapters(width)),
            Layer(prompts(), **adapters(width)),
            prompts(),
        ],
        "start in the last layer": lambda: [None, None, Layer(prompts(), **adapters(width))],
        "later start and function": lambda: [None, prompts(), blend(kind, width)],
    }


def blend(kind: str, width: int) -> Layer:
    return Layer(Blend(shape_of(kind, width)), **adapters(width))


CASES = list(layer_lists(1, "shared"))


# Prompts that begin after the first layer are inserted where the tokens have no places.
PLACES = [
    (case, position)
    for case in CASES
    for position in (["none"] if "start" in case else ["end", "middle", "front"])
]


@pytest.mark.parametrize("kind", ["shared", "class", "variants", "both"])
@pytest.mark.parametrize(("case", "position"), PLACES)
def test_text_features_and_gradients_equal_the_plain_77_tokens(model, case, kind, position):
    torch.manual_seed(2)
    layers = layer_lists(TEXT_WIDTH, kind)[case]()
    leaves_of(layers)
    if position != "none":
        tokens = PromptTokens.from_names(NAMES, "X X of a", M, position)
    else:
        tokens = PromptTokens.plain(tokenize([f"a photo of a {name}." for name in NAMES]))
    fast = model.encode_text(tokens, layers)
    n_variants = 2 if kind in ("variants", "both") else 1
    rows = []
    for variant in range(n_variants):
        for k in range(len(NAMES)):
            ids = torch.zeros(77, dtype=torch.long)
            ids[: tokens.ids.shape[1]] = tokens.ids[k]
            slots = tokens.slots[k].tolist()
            entries = [for_one(entry, variant, k) for entry in layers]
            rows.append(text_feature(model, ids, slots, entries))
    slow = torch.stack(rows).unflatten(0, (n_variants, len(NAMES)))
    assert_same(fast, slow if n_variants > 1 else slow[0], layers)


def test_class_names_can_be_learned_after_fixed_words_that_stay_shared(model):
    """LAMM's places: [SOS] a photo of a [m tokens of each class] ."""
    torch.manual_seed(3)
    ids = tokenize([f"a photo of a {'X ' * M}{end}." for end in ("", "big ", "")])
    slots = torch.tensor([[5, 6]] * 3)
    tokens = PromptTokens.of(ids, slots)
    layers = [torch.randn(3, M, TEXT_WIDTH), Layer(**adapters(TEXT_WIDTH))]
    leaves_of(layers)
    fast = model.encode_text(tokens, layers)
    slow = [text_feature(model, ids[k], [5, 6], [layers[0][k], layers[1]]) for k in range(3)]
    assert_same(fast, torch.stack(slow), layers)
    lengths = lengths_seen(model, lambda: model.encode_text(tokens, layers))
    # the five words once, not per class; of each class nothing behind its end token
    assert lengths == [5 + n_behind(5, tokens.ends)] * DEPTH


def lengths_seen(model: CLIP, call: Callable[[], Any]) -> list[int]:
    """Return the numbers of tokens that the text tower's norms before attention see at a time."""
    lengths: list[int] = []
    hooks = [
        block.ln_1.register_forward_hook(lambda m, args, out: lengths.append(args[0].shape[1]))
        for block in model.transformer.resblocks
    ]
    call()
    for hook in hooks:
        hook.remove()
    return lengths


def n_behind(prefix: int, ends: Iterable[int]) -> int:
    """Return the number of tokens of all classes behind a prefix, up to their end tokens."""
    return sum(end + 1 - prefix for end in ends)


def test_the_prefix_is_shared_without_prompts(model):
    torch.manual_seed(4)
    ids = tokenize([f"a photo of a {name}." for name in NAMES])
    layers = [Layer(**adapters(TEXT_WIDTH))] * DEPTH
    lengths = lengths_seen(model, lambda: model.encode_text(ids, layers))
    assert lengths == [5 + n_behind(5, ids.argmax(-1).tolist())] * DEPTH
    slow = torch.stack([text_feature(model, each, [], layers) for each in ids])
    same(model.encode_text(ids, layers), slow)


@pytest.mark.parametrize("own", [False, True])
def test_some_classes_have_the_features_that_they_have_among_all(model, own):
    """Also where the longest name is left out, so that fewer tokens are computed."""
    torch.manual_seed(6)
    names = ["cat", "snow leopard of the mountains", "golden retriever"]
    tokens = PromptTokens.from_names(names, "X X of a", M)
    prompts = torch.randn(3, M, TEXT_WIDTH) if own else torch.randn(M, TEXT_WIDTH)
    features = model.encode_text(tokens, [prompts])
    for chosen in (torch.tensor([2, 0]), slice(2, 3)):
        some = model.encode_text(tokens.of_classes(chosen), [prompts[chosen] if own else prompts])
        same(some, features[chosen])


def test_class_specific_prompts_of_one_layer_leave_the_layers_below_it_shared(model):
    """TCP's place: context for all classes, tokens of each class at a later layer."""
    torch.manual_seed(5)
    tokens = PromptTokens.from_names(NAMES, "X X of a", M)
    layers = [torch.randn(M, TEXT_WIDTH), None, torch.randn(3, M, TEXT_WIDTH)]
    leaves_of(layers)
    lengths = lengths_seen(model, lambda: model.encode_text(tokens, layers))
    assert lengths == [*[5 + n_behind(5, tokens.ends)] * 2, n_behind(0, tokens.ends)]
    slow = [
        text_feature(model, tokenize([f"X X of a {name}."])[0], [1, 2], [layers[0], None, own])
        for name, own in zip(NAMES, layers[2], strict=True)
    ]
    assert_same(model.encode_text(tokens, layers), torch.stack(slow), layers)


@pytest.mark.parametrize("through_ln_pre", [True, False])
@pytest.mark.parametrize(
    "parts", [("class",), ("class", "prompts"), ("class", "prompts", "patches")]
)
@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_image_parts_and_gradients_equal_the_plain_computation(
    model, case, per_image, parts, through_ln_pre
):
    torch.manual_seed(6)
    images = torch.randn(3, 3, 16, 16)
    layers = layer_lists(VISION_WIDTH, "class" if per_image else "shared")[case]()
    leaves_of(layers)
    fast = model.read_image(images, layers, parts, through_ln_pre)
    assert tuple(fast) == parts
    slow = [
        image_parts(model, image, [for_one(entry, 0, i) for entry in layers], through_ln_pre)
        for i, image in enumerate(images)
    ]
    for part in parts:
        assert_same(fast[part], torch.stack([each[part] for each in slow]), layers)


def test_attention_weights_are_those_that_the_features_come_from(model):
    torch.manual_seed(7)
    images = torch.randn(2, 3, 16, 16)
    layers = [None, torch.randn(M, VISION_WIDTH)]
    read = model.read_image(images, layers, ("class", "attention"))
    same(read["class"], model.encode_image(images, layers))
    weights = read["attention"]
    n_own, heads = (16 // 8) ** 2 + 1, VISION_WIDTH // 16
    assert weights.shape == (2, DEPTH, heads, n_own + M, n_own + M)
    # no prompts in the first layer, and then every row is a distribution
    assert weights[:, 0, :, n_own:].abs().max() == weights[:, 0, :, :, n_own:].abs().max() == 0
    same(weights[:, 0, :, :n_own].sum(-1), torch.ones(2, heads, n_own))
    same(weights[:, 1:].sum(-1), torch.ones(2, DEPTH - 1, heads, n_own + M))
    # against torch's own module in the first layer
    seen = []
    block = model.visual.transformer.resblocks[0]
    hook = block.ln_1.register_forward_hook(lambda m, args, out: seen.append(out))
    model.encode_image(images)
    hook.remove()
    h = seen[0].transpose(0, 1)
    _, expected = block.attn(h, h, h, average_attn_weights=False)
    same(weights[:, 0, :, :n_own, :n_own], expected)


@pytest.mark.parametrize("causal", [True, False])
def test_blocks_that_someone_walks_compute_what_openai_s_compute(causal):
    torch.manual_seed(8)
    ours = Transformer(32, 3, 2, causal=causal).eval()
    theirs = OpenTransformer(32, 3, 2, act_layer=type(ours.resblocks[0].mlp.gelu)).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(7, 5, 32)  # (tokens, batch, width)
    mask = torch.full((7, 7), -math.inf).triu(1) if causal else None
    expected = theirs(x.transpose(0, 1), attn_mask=mask).transpose(0, 1)
    same(ours(x), expected)
    walked = by_parts = x
    for block in ours.resblocks:
        walked = block(walked)
        by_parts = by_parts + block.attention(block.ln_1(by_parts))
        by_parts = by_parts + block.mlp(block.ln_2(by_parts))
    same(walked, expected)
    same(by_parts, expected)
    # the batch is not a sequence: a sequence alone has the same output as among others
    same(ours(x[:, :1]), expected[:, :1])


def test_adapters_compute_in_fp32_in_a_half_precision_tower(model):
    import copy

    from clip import convert_weights

    half = copy.deepcopy(model)
    convert_weights(half, torch.bfloat16)
    seen: list[torch.dtype] = []

    def watch(x: Tensor) -> Tensor:
        seen.append(x.dtype)
        return 0.1 * x

    layers = [Layer(out=watch, mlp=watch, block=watch)]
    ids = tokenize(NAMES)
    with torch.no_grad():
        same(half.encode_text(ids, layers).float(), model.encode_text(ids, layers), 0.05)
        images = torch.randn(2, 3, 16, 16)
        same(half.encode_image(images, layers).float(), model.encode_image(images, layers), 0.05)
    assert set(seen) == {torch.float32}


def test_what_the_hook_refuses(model):
    images = torch.randn(1, 3, 16, 16)
    function = Layer(Blend((M, VISION_WIDTH)))
    with pytest.raises(ValueError, match="layer 0: a function needs prompts in an earlier layer"):
        model.encode_image(images, [function])
    with pytest.raises(ValueError, match="layer 1: a function needs prompts in an earlier layer"):
        model.encode_text(tokenize(NAMES), [None, Layer(Blend((M, TEXT_WIDTH)))])
    with pytest.raises(ValueError, match="2 text prompts for 0 positions"):
        model.encode_text(tokenize(NAMES), [torch.randn(M, TEXT_WIDTH)])
    with pytest.raises(ValueError, match="no vision prompts to read"):
        model.read_image(images, (), ("prompts",))
    with pytest.raises(ValueError, match="expected class, prompts, patches, attention, got 'cls'"):
        model.read_image(images, (), ("cls",))


def test_similarity_is_the_scaled_cosine(model):
    torch.manual_seed(9)
    image, text, own = torch.randn(4, 24), torch.randn(3, 24), torch.randn(4, 3, 24)
    scale = model.logit_scale.exp()
    for k in range(3):
        for b in range(4):
            cosine = torch.cosine_similarity(image[b], text[k], dim=0)
            same(model.similarity(image, text)[b, k], scale * cosine)
            cosine = torch.cosine_similarity(image[b], own[b, k], dim=0)
            same(model.similarity(image, own)[b, k], scale * cosine)


def test_similarity_takes_features_of_any_length_and_unit_ones_to_the_bit(model):
    torch.manual_seed(10)
    image = torch.nn.functional.normalize(torch.randn(50, 24), dim=-1)
    text = torch.nn.functional.normalize(torch.randn(30, 24), dim=-1)
    expected = model.logit_scale.exp() * image @ text.t()
    assert torch.equal(model.similarity(image, text), expected)
    same(model.similarity(3.0 * image, 0.2 * text), expected)
    images, ids = torch.randn(2, 3, 16, 16), tokenize(NAMES)
    logits, _ = model(images, ids)
    same(model.similarity(model.encode_image(images), model.encode_text(ids)), logits)
