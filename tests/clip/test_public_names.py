"""What code written for OpenAI's package finds under its names, and how it drives the model."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer as OpenTokenizer
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import CenterCrop, Normalize, Resize

import clip
import clip.model
from clip import ClipError, Layer, Preprocess, PromptTokens
from clip.clip import OF_DRAWINGS, _tokenizer, _transform
from clip.simple_tokenizer import SimpleTokenizer as _Tokenizer
from tests.clip.weights_files import TINY, tiny_clip
from tests.embedded import BACKBONE, SIZE

NAMES = ["red apple", "leaf", "deep blue sky"]


def test_an_adapter_script_starts():
    """Follow the first lines of scripts that keep features of a whole dataset."""
    assert {"RN50", "ViT-B/16", "ViT-L/14@336px"} <= set(clip.available_models())
    model, preprocess = clip.load(BACKBONE, device="cpu")
    assert preprocess == _transform(SIZE) == Preprocess(SIZE)
    texts = clip.tokenize([f"a photo of a {name}." for name in NAMES], truncate=True)
    with torch.no_grad():
        weights = F.normalize(model.encode_text(texts), dim=-1).t()
        features = F.normalize(model.encode_image(torch.randn(2, 3, SIZE, SIZE)), dim=-1)
    assert (features @ weights).shape == (2, 3)
    with pytest.raises(ValueError, match="tokens long"):
        clip.tokenize("a " * 100)
    assert clip.tokenize("a " * 100, truncate=True)[0, -1] == 49407


def test_scripts_find_what_they_ask_of_a_model_and_its_transform():
    model, preprocess = clip.load(name="ViT-Mini", device="cpu", jit=False)
    assert model.visual.input_resolution == 32 and model.dtype == torch.float32
    assert model.logit_scale.exp().item() == pytest.approx(21.7176, abs=1e-4)
    resize, crop, to_rgb, to_tensor, normalize = preprocess.transforms
    assert isinstance(resize, Resize) and isinstance(crop, CenterCrop)
    assert isinstance(normalize, Normalize) and normalize.mean == preprocess.mean
    noise = torch.rand(1, 40, 50, 4, generator=torch.Generator().manual_seed(0)) * 255
    image = Image.fromarray(noise[0].byte().numpy(), "RGBA")
    plain = to_tensor(to_rgb(crop(resize(image))))
    assert plain.shape == (3, 32, 32) and 0 <= plain.min() < plain.max() <= 1
    mean, std = (
        torch.tensor(values)[:, None, None] for values in (preprocess.mean, preprocess.std)
    )
    torch.testing.assert_close(preprocess(image), (plain - mean) / std)


def test_modules_have_openai_s_contents(tmp_path):
    from clip import clip as package

    assert package.load is clip.load and package._download(str(tmp_path)) == str(tmp_path)
    assert package._MODELS["RN50"].startswith("https://") and {*OF_DRAWINGS} < {*package._MODELS}
    block = tiny_clip().transformer.resblocks[0]
    assert isinstance(block, clip.model.ResidualAttentionBlock)
    assert isinstance(block.mlp.gelu, clip.model.QuickGELU)
    resnet = clip.CLIP(replace(TINY, image_resolution=32, vision_layers=(1, 1, 1, 1))).visual
    assert isinstance(resnet.attnpool, clip.model.AttentionPool2d)
    assert isinstance(resnet.layer1[0], clip.model.Bottleneck)
    assert clip.model.build_model is clip.build_model
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        clip.model.nothing  # noqa: B018


def test_the_tokenizer_has_openai_s_names():
    assert isinstance(_tokenizer, _Tokenizer) and clip.clip._tokenizer is _tokenizer
    assert _tokenizer.encoder["<|startoftext|>"] == 49406
    assert _tokenizer.encoder["<|endoftext|>"] == 49407
    assert _tokenizer.decoder[49407] == "<|endoftext|>"
    assert _tokenizer.decode(_tokenizer.encode("A red apple.")) == "a red apple . "
    assert len(_tokenizer.decoder) == _tokenizer.vocab_size == 49408
    theirs = OpenTokenizer()
    for text in ("naïve café", "it's 12:30", "<start_of_text> x", "日本", ""):
        assert _tokenizer.encode(text) == theirs.encode(text)


@pytest.mark.parametrize(
    "details",
    [{"trainer": "MaPLe", "vision_depth": 0, "language_depth": 0, "maple_length": 2}, 224],
)
def test_design_details_are_refused_in_a_sentence(details):
    with pytest.raises(ClipError) as info:
        clip.build_model(tiny_clip().state_dict(), details)
    line = str(info.value)
    assert "design details are not used here" in line and "clip.Layer" in line
    assert "\n" not in line


class Walks(nn.Module):
    """Drives the pieces of a CLIP by hand: prompts appended to patches, or put behind [SOS].

    Tokens come first in the blocks, (T, N, width), and from the second layer on the prompts
    before are replaced.
    """

    def __init__(self, model: clip.CLIP, names: list[str], text: Tensor, vision: Tensor):
        super().__init__()
        self.visual, self.text_blocks = model.visual, model.transformer.resblocks
        self.model, self.text, self.vision = model, text, vision
        n = text.shape[1]
        self.ids = torch.cat([tiny_tokens(" ".join(["X"] * n) + f" {name}.") for name in names])
        self.embedded = model.token_embedding(self.ids)

    def image(self, x: Tensor) -> Tensor:
        visual = self.visual
        x = visual.conv1(x).flatten(2).permute(0, 2, 1)
        start = visual.class_embedding + torch.zeros(len(x), 1, x.shape[-1])
        x = torch.cat([start, x], dim=1) + visual.positional_embedding
        x = torch.cat([x, self.vision[0].expand(len(x), -1, -1)], dim=1)
        x = visual.ln_pre(x).permute(1, 0, 2)
        for i, block in enumerate(visual.transformer.resblocks):
            if 0 < i < len(self.vision):
                own = self.vision[i][:, None].expand(-1, x.shape[1], -1)
                x = torch.cat([x[: -len(own)], own])
            x = block(x)
        return visual.ln_post(x[0]) @ visual.proj

    def texts(self) -> Tensor:
        n = self.text.shape[1]
        first = self.text[0].expand(len(self.ids), -1, -1)
        x = torch.cat([self.embedded[:, :1], first, self.embedded[:, 1 + n :]], dim=1)
        x = (x + self.model.positional_embedding).permute(1, 0, 2)
        for i, block in enumerate(self.text_blocks):
            if 0 < i < len(self.text):
                own = self.text[i][:, None].expand(-1, x.shape[1], -1)
                x = torch.cat([x[:1], own, x[1 + n :]])
            x = block(x)
        x = self.model.ln_final(x.permute(1, 0, 2))
        return x[torch.arange(len(x)), self.ids.argmax(-1)] @ self.model.text_projection

    def forward(self, images: Tensor) -> Tensor:
        image, text = F.normalize(self.image(images), dim=-1), F.normalize(self.texts(), dim=-1)
        return self.model.logit_scale.exp() * image @ text.t()


def tiny_tokens(text: str) -> Tensor:
    """Tokenize for the vocabulary of 100: the start is 98, the end 99."""
    ids = clip.tokenize(text, context_length=12)
    words = torch.where(ids >= 49406, ids - 49406 + 98, ids % 98)
    return words.where(ids > 0, 0)


@pytest.fixture
def model() -> clip.CLIP:
    torch.manual_seed(0)
    return clip.CLIP(replace(TINY, context_length=12, text_layers=3, vision_layers=3)).eval()


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_a_trainer_that_walks_the_blocks_gets_the_logits_of_the_forward_call(model, n_layers):
    text, vision = torch.randn(n_layers, 2, 64), torch.randn(n_layers, 4, 64)
    images = torch.randn(5, 3, 16, 16)
    with torch.no_grad():
        walker = Walks(model, NAMES, text, vision)
        slots = torch.arange(1, 3).repeat(len(NAMES), 1)
        expected = model.similarity(
            model.encode_image(images, [Layer(prompts) for prompts in vision]),
            model.encode_text(
                PromptTokens.of(walker.ids, slots), [Layer(prompts) for prompts in text]
            ),
        )
        torch.testing.assert_close(walker(images), expected, rtol=0, atol=1e-5)


def test_a_trainer_that_walks_the_blocks_without_prompts_gets_the_plain_logits(model):
    images = torch.randn(5, 3, 16, 16)
    with torch.no_grad():
        walker = Walks(model, NAMES, torch.zeros(1, 0, 64), torch.zeros(1, 0, 64))
        plain, _ = model(images, walker.ids)
        torch.testing.assert_close(walker(images), plain, rtol=0, atol=1e-5)


class WithLoRA(nn.Module):
    """A foreign attention in the place of a block's, called as OpenAI's block calls it."""

    def __init__(self, attn: nn.MultiheadAttention):
        super().__init__()
        self.attn = nn.MultiheadAttention(attn.embed_dim, attn.num_heads)
        self.attn.load_state_dict(attn.state_dict())
        self.up = nn.Parameter(torch.zeros(3 * attn.embed_dim, 2))
        self.down = nn.Parameter(torch.randn(2, attn.embed_dim))

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **options: object) -> tuple:
        assert query.shape == key.shape == value.shape and set(options) == {
            "need_weights",
            "attn_mask",
        }
        plain = self.attn.in_proj_weight
        changed = {
            **dict(self.attn.named_parameters()),
            "in_proj_weight": plain + self.up @ self.down,
        }
        return torch.func.functional_call(self.attn, changed, (query, key, value), options)


@pytest.mark.parametrize("which", [[0], [1, 2], [0, 1, 2]])
def test_a_foreign_attention_takes_the_place_of_a_block_s(model, which):
    images, texts = torch.randn(2, 3, 16, 16), torch.cat([tiny_tokens(f"a {n}") for n in NAMES])
    prompts = [Layer(torch.randn(2, 64)), Layer(torch.randn(2, 64))]
    tokens = PromptTokens.of(texts, torch.arange(1, 3).repeat(3, 1))
    own = copy.deepcopy(model)
    for tower in (model.transformer, model.visual.transformer):
        for i in which:
            tower.resblocks[i].attn = WithLoRA(tower.resblocks[i].attn)

    def features(of: clip.CLIP) -> list[Tensor]:
        plain = [of.encode_image(images), of.encode_text(texts)]
        return [*plain, of.encode_image(images, prompts), of.encode_text(tokens, prompts)]

    for found, expected in zip(features(model), features(own), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    up = model.transformer.resblocks[which[0]].attn.up
    features(model)[1].sum().backward()
    assert up.grad is not None and up.grad.abs().sum() > 0
    added = torch.nn.Linear(64, 192)
    adapters = [None] * which[0] + [Layer(qkv=added)]
    with pytest.raises(ValueError, match="no adapters in an attention of type WithLoRA"):
        model.encode_text(texts, adapters)
