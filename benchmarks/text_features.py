"""Cost of prompted text features: shared prefix against the plain computation on all tokens.

    python -m benchmarks.text_features

Forward and backward over K classes with the text tower of ViT-B/16 (random weights), both ways in
one run: ratio of the times, ratio of the bytes that autograd keeps, largest difference.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from clip import CLIP, CLIPConfig, PromptTokens, tokenize
from clip.blocks import attend_to_earlier
from dassl.command import Parser

NAMES = ["dog", "golden retriever", "Boeing 737", "annual crop land", "art deco house"]


VIT_B16 = CLIPConfig(
    embed_dim=512,
    image_resolution=224,
    vision_layers=12,
    vision_width=768,
    vision_patch_size=16,
    context_length=77,
    vocab_size=49408,
    text_width=512,
    text_layers=12,
)


def random_model(config: CLIPConfig) -> CLIP:
    """Make a frozen CLIP with random weights."""
    torch.manual_seed(0)
    return CLIP(config).eval().requires_grad_(False)


def plain_features(model: CLIP, ids: Tensor, prompts: list[Tensor]) -> Tensor:
    """Encode every text with all its tokens, as the public codebases do.

    Args:
        ids: (N, context length).
        prompts: prompts of the first layers, (m, d_t) for all texts or (N, m, d_t).
    """
    m = prompts[0].shape[-2]
    x = model.token_embedding(ids)
    for i, block in enumerate(model.transformer.blocks):
        if i < len(prompts):
            prompt = prompts[i].expand(len(ids), -1, -1)
            x = torch.cat([x[:, :1], prompt, x[:, 1 + m :]], dim=1)
        if i == 0:
            x = x + model.positional_embedding
        x = block.run(x, attend_to_earlier)
    x = model.ln_final(x[torch.arange(len(ids)), ids.argmax(dim=-1)])
    return x @ model.text_projection


def measure(model: CLIP, features: Callable[[], Tensor], repeats: int) -> tuple[float, int, Tensor]:
    """Return median seconds of forward and backward, bytes of activations kept, the features."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = features()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        features().square().sum().backward()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), sum(kept.values()), out.detach()


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--depth", type=int, default=12, help="number of layers with prompts")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    # the vision tower, which is not used, is small
    model = random_model(replace(VIT_B16, vision_layers=1, vision_width=64, image_resolution=16))
    width = model.config.text_width
    prompts = [torch.randn(args.prompts, width) * 0.02 for _ in range(args.depth)]
    prompts = [prompt.requires_grad_() for prompt in prompts]
    names = [NAMES[i % len(NAMES)] for i in range(args.classes)]
    context = " ".join(["X"] * args.prompts)
    tokens = PromptTokens.from_names(names, context, args.prompts)
    ids = tokenize([f"{context} {name}." for name in names], model.context_length)
    slow, slow_bytes, expected = measure(
        model, lambda: plain_features(model, ids, prompts), args.repeats
    )
    fast, fast_bytes, found = measure(
        model, lambda: model.encode_text(tokens, prompts), args.repeats
    )
    print(f"{args.classes} classes, {args.prompts} prompts in {args.depth} layers")
    print(f"plain, {ids.shape[1]} tokens: {slow:.3f} s, shared prefix: {fast:.3f} s")
    print(f"times faster: {slow / fast:.1f}")
    print(f"times less memory: {slow_bytes / fast_bytes:.1f}")
    print(f"largest difference: {(expected - found).abs().max():.1e}")


if __name__ == "__main__":
    main()
