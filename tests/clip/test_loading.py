"""Weights by name, by path and over an unreliable connection."""

from __future__ import annotations

import hashlib
import http.server
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import clip
from clip import CLIPConfig, ClipError, Preprocess
from clip.clip import (
    OPENAI_MODELS,
    ROWS,
    _download,
    _openai_url,
    _read_state_dict,
    build_model,
    from_open_clip,
)
from tests.embedded import BACKBONE, SIZE

CONFIG = CLIPConfig(
    embed_dim=16,
    image_resolution=16,
    vision_layers=2,
    vision_width=64,
    vision_patch_size=8,
    context_length=77,
    vocab_size=49408,
    text_width=64,
    text_layers=1,
)
CLIPA = Preprocess(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear")


@pytest.fixture(scope="module")
def model() -> clip.CLIP:
    torch.manual_seed(0)
    return clip.CLIP(CONFIG).eval()


def same_weights(a: torch.nn.Module, b: torch.nn.Module, tolerance: float = 0.0) -> None:
    other = b.state_dict()
    assert set(a.state_dict()) == set(other)
    for name, tensor in a.state_dict().items():
        assert (tensor - other[name]).abs().max() <= tolerance, name


def test_plain_state_dict_nested_state_dict_and_safetensors(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "plain.pt")
    nested = {"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}, "epoch": 3}
    torch.save(nested, tmp_path / "nested.pt")
    save_file(model.state_dict(), tmp_path / "file.safetensors")
    for name in ("plain.pt", "nested.pt", "file.safetensors"):
        loaded = clip.load_model(str(tmp_path / name))
        assert loaded.config == CONFIG
        same_weights(loaded, model)
        assert_shapes_tell(tmp_path / name, loaded)


def assert_shapes_tell(path: Path, loaded: clip.CLIP) -> None:
    """Check that the preprocessing follows from shapes alone, without reading a tensor's values."""
    assert clip.preprocess_of(str(path)) == loaded.preprocess == Preprocess(16)
    assert {tensor.device.type for tensor in _read_state_dict(path, "meta").values()} == {"meta"}


def test_preprocessing_of_a_file_of_the_old_format_with_heads_of_another_width(model, tmp_path):
    state = {**model.state_dict(), "head_width": torch.tensor(16)}
    path = str(tmp_path / "old.pt")
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert clip.preprocess_of(path) == clip.load_model(path).preprocess == Preprocess(16)


def test_preprocessing_of_a_resnet_file(tmp_path):
    config = replace(
        CONFIG, vision_layers=(1, 1, 1, 1), vision_patch_size=None, image_resolution=64
    )
    torch.save(clip.CLIP(config).state_dict(), tmp_path / "resnet.pt")
    assert clip.preprocess_of(str(tmp_path / "resnet.pt")) == Preprocess(64)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of making one, not of reading it
def test_openai_s_jit_archive_in_fp16(model, tmp_path):
    class Holder(torch.nn.Module):
        """Carries the parameters of ``model`` as OpenAI's archives do: with forward code."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    holder = Holder()
    for name, child in model.named_children():
        holder.add_module(name, child)
    for name, parameter in model.named_parameters(recurse=False):
        holder.register_parameter(name, parameter)
    holder.register_buffer("context_length", torch.tensor(77))
    traced = torch.jit.trace(holder, torch.zeros(1)).half()
    torch.jit.save(traced, tmp_path / "archive.pt")
    loaded = clip.load_model(str(tmp_path / "archive.pt"))
    assert loaded.dtype == torch.float32
    same_weights(loaded, model, tolerance=2e-3)
    assert_shapes_tell(tmp_path / "archive.pt", loaded)


def test_head_width_travels_in_the_state_dict(model):
    state = {**model.state_dict(), "head_width": torch.tensor(16)}
    loaded = build_model(state)
    assert loaded.config.head_width == 16
    assert loaded.transformer.resblocks[0].attn.num_heads == 4


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_tokens_may_share_rows_of_a_smaller_table(model, tmp_path, suffix):
    rows = torch.arange(model.config.vocab_size, dtype=torch.int32) % 100
    table = model.token_embedding.weight.detach()
    state = {**model.state_dict(), "token_embedding.weight": table[:100].clone(), ROWS: rows}
    path = str(tmp_path / f"rows{suffix}")
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    loaded = clip.load_model(path)
    assert loaded.config == model.config and clip.preprocess_of(path) == model.preprocess
    expected = table[:100].repeat(495, 1)[: len(table)]
    assert torch.equal(loaded.token_embedding.weight, expected)
    assert ROWS not in loaded.state_dict()


def test_the_embedded_backbone_loads_and_matches_open_clip():
    mini = clip.load_model(BACKBONE)
    config = mini.config
    assert config.vision_layers == config.text_layers == 12
    vision = {
        "layers": 12,
        "width": config.vision_width,
        "patch_size": config.vision_patch_size,
        "image_size": config.image_resolution,
        "head_width": config.head_width,
    }
    text = {
        "width": config.text_width,
        "layers": 12,
        "heads": config.text_width // config.head_width,
        "vocab_size": config.vocab_size,
        "context_length": config.context_length,
    }
    reference = open_clip.CLIP(config.embed_dim, vision, text, quick_gelu=True).eval()
    reference.load_state_dict(mini.state_dict(), strict=False)  # open_clip adds a mask buffer
    images = torch.randn(2, 3, config.image_resolution, config.image_resolution)
    ids = clip.tokenize(["a photo of a red circle.", "the digit 7"])
    with torch.no_grad():
        for ours, theirs in (
            (mini.encode_image(images), reference.encode_image(images)),
            (mini.encode_text(ids), reference.encode_text(ids)),
        ):
            assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


@pytest.mark.parametrize("damage", ["truncated", "foreign", "missing tensor", "text"])
def test_a_damaged_file_is_named(model, tmp_path, damage):
    path = tmp_path / "weights.pt"
    state = dict(model.state_dict())
    if damage == "foreign":
        state = {"fc.weight": torch.zeros(3)}
    elif damage == "missing tensor":
        del state["ln_final.bias"]
    torch.save(state, path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:5000])
    elif damage == "text":
        path.write_text("not weights")
    with pytest.raises(ClipError, match="weights.pt"):
        clip.load_model(str(path))
    if damage != "missing tensor":  # not one that the shapes of images depend on
        assert clip.preprocess_of(str(path)) is None


def picture(size: tuple[int, int]) -> Image.Image:
    pixels = np.random.RandomState(0).randint(0, 256, (*size, 3))
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.mark.parametrize("size", [(40, 70), (70, 40), (SIZE, SIZE), (20, 90)])
def test_preprocess_is_open_clip_s(size):
    ours = clip.load_model(BACKBONE).preprocess
    theirs = open_clip.image_transform(SIZE, is_train=False)
    assert torch.equal(ours(picture(size)), theirs(picture(size)))


def test_load_keeps_openai_s_contract():
    model, preprocess = clip.load(BACKBONE, device="cpu", jit=False)
    assert model.dtype == torch.float32 and not model.training
    image = preprocess(picture((50, 60)).convert("L")).unsqueeze(0)
    assert image.shape == (1, 3, SIZE, SIZE)
    text = clip.tokenize(["a red circle", "a green square"])
    with torch.no_grad():
        per_image, per_text = model(image, text)
        found = model.similarity(model.encode_image(image), model.encode_text(text))
    assert per_image.shape == (1, 2) and torch.equal(per_text, per_image.t())
    torch.testing.assert_close(found, per_image)
    with pytest.raises(ClipError, match="jit: expected False, got True"):
        clip.load(BACKBONE, jit=True)


def test_an_open_clip_model_brings_its_own_preprocessing():
    reference = open_clip.CLIP(
        16,
        {"layers": 1, "width": 64, "patch_size": 8, "image_size": 16},
        {"width": 64, "layers": 1, "heads": 1, "vocab_size": 49408, "context_length": 77},
        quick_gelu=True,
    )
    assert from_open_clip(reference).preprocess == Preprocess(16)
    open_clip.model.set_model_preprocess_cfg(
        reference,
        {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.1), "interpolation": "bilinear"},
    )
    expected = Preprocess(16, (0.5, 0.4, 0.3), (0.2, 0.2, 0.1), "bilinear")
    assert from_open_clip(reference).preprocess == expected


def test_preprocessing_of_names_is_what_their_models_bring():
    assert clip.preprocess_of(BACKBONE) == clip.load_model(BACKBONE).preprocess
    for name in OPENAI_MODELS:
        key = name.replace("/", "-").replace("@336px", "-336")
        size = open_clip.get_model_config(key)["vision_cfg"]["image_size"]
        assert clip.preprocess_of(name) == Preprocess(size), name


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        ("ViT-B-16/laion2b_s34b_b88k", Preprocess(224)),
        ("ViT-L-14-336/openai", Preprocess(336)),
        ("ViT-L-16-SigLIP-384/webli", Preprocess(384, (0.5,) * 3, (0.5,) * 3)),
        ("ViT-B-32-quickgelu/metaclip_400m", Preprocess(224)),
        ("ViT-L-14-CLIPA/datacomp1b", CLIPA),
    ],
)
def test_preprocessing_of_a_pair_is_open_clip_s_and_loads_nothing(monkeypatch, pair, expected):
    monkeypatch.setattr(open_clip, "create_model", None)
    assert clip.preprocess_of(f"open_clip:{pair}") == expected


@pytest.mark.parametrize("name", ["", "ViT-B/17", ".", "open_clip:ViT-B-16/nothing", "open_clip:x"])
def test_preprocessing_of_what_cannot_be_loaded_is_not_known(name):
    assert clip.preprocess_of(name) is None


def test_unknown_names_say_what_is_known():
    with pytest.raises(ClipError, match=r"unknown backbone 'ViT-B/17'.*ViT-B/16"):
        clip.load_model("ViT-B/17")
    with pytest.raises(ClipError, match=r"unknown open_clip pair 'ViT-B-16/nothing'.*laion2b"):
        clip.load_model("open_clip:ViT-B-16/nothing")


def test_openai_addresses_come_with_hashes():
    for name in OPENAI_MODELS:
        url = _openai_url(name)
        assert url.startswith("https://") and len(url.split("/")[-2]) == 64
    assert clip.clip._MODELS["ViT-B/16"].endswith("ViT-B-16.pt")


class Server(http.server.BaseHTTPRequestHandler):
    """Serves ``content``, with ranges; closes the first connection halfway if told to."""

    content = bytes(range(256)) * 4096
    break_first = False
    ranges: list[str | None] = []

    def do_GET(self) -> None:
        start = 0
        asked = self.headers.get("Range")
        type(self).ranges.append(asked)
        if asked:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if asked else 200)
        body = self.content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if type(self).break_first:
            type(self).break_first = False
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server():
    Server.ranges = []
    Server.break_first = False
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def test_an_interrupted_download_is_resumed_and_verified(server, tmp_path):
    url = f"{server}/{hashlib.sha256(Server.content).hexdigest()}/model.pt"
    Server.break_first = True
    with pytest.raises(ClipError, match="cannot download"):
        _download(url, tmp_path)
    assert not (tmp_path / "model.pt").exists()
    path = _download(url, tmp_path)
    assert Path(path).read_bytes() == Server.content
    half = len(Server.content) // 2
    assert Server.ranges == [None, f"bytes={half}-"]
    assert _download(url, tmp_path) == path  # found in the cache
    assert len(Server.ranges) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]


def test_a_wrong_hash_is_refused_and_removed(server, tmp_path):
    with pytest.raises(ClipError, match="SHA-256"):
        _download(f"{server}/{'0' * 64}/model.pt", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_address_is_named(tmp_path):
    with pytest.raises(ClipError, match=r"cannot download http://127\.0\.0\.1:9/.*place it at"):
        _download(f"http://127.0.0.1:9/{'0' * 64}/model.pt", tmp_path)
