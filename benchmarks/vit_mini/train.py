"""Train ViT-Mini, the CLIP model of the embedded benchmark, on drawn and captioned pictures.

    python -m benchmarks.vit_mini.train --pictures pictures.npz --output clip/weights/ViT-Mini.pt

The pictures are drawn once and stored in the file ``--pictures``; captions are generated anew for
every batch. The loss is CLIP's contrastive cross-entropy for captions that may be true of several
pictures of a batch ("a circle"). To save time, only three in eight pictures of a batch get a
caption of their own; linear heads, discarded after training, also predict color, texture, shape and
character from the image feature. Each worker process has its own batches; gradients are averaged
over the workers.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import random
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed
import torch.multiprocessing
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.vit_mini.captions import ANY, Facts, caption, glyph_facts, shape_facts
from clip import tokenize
from clip.model import CLIP, CLIPConfig
from dassl.command import Parser
from datasets.embedded.drawing import (
    COLORS,
    GLYPHS,
    SHAPES,
    TEXTURES,
    Hand,
    Look,
    Picture,
    draw_glyph,
    draw_shape,
    random_state,
)

CONFIG = CLIPConfig(
    embed_dim=64,
    image_resolution=32,
    vision_layers=12,
    vision_width=96,
    vision_patch_size=8,
    context_length=77,
    vocab_size=49408,
    text_width=64,
    text_layers=12,
    head_width=32,
)
CHARACTER = 4  # column of the facts
HEAD_SIZES = {
    0: len(COLORS),
    1: len(TEXTURES),
    2: len(SHAPES),
    CHARACTER: len(GLYPHS),
}  # column: classes
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)

# (share, look): broader than any single dataset of the benchmark, without its mosaics and prints.
LOOKS = (
    (0.60, Look()),
    (0.10, Look(medium="sketch", wobble=0.02)),
    (0.12, Look(medium="cartoon", wobble=0.03)),
    (0.08, Look(noise=(0.04, 0.14), blur=(0.4, 1.2))),
    (0.10, Look(radius=(6.0, 10.0), clutter=4, background_color=0.6, occlusion=0.3)),
)
HANDS = (
    (0.60, Hand()),
    (
        0.30,
        Hand(
            height=(22, 30),
            thickness=(0.1, 0.26),
            shake=(0.02, 0.08),
            saturation=0.05,
            clutter=0,
            coarse=0.7,
        ),
    ),
    (0.10, Hand(thickness=(0.16, 0.26), serif=0.7, outlined=0.6)),
)


def draw(task: tuple[int, int, float]) -> tuple[Picture, Facts]:
    """Draw picture number ``index`` of the training set; return it and what it shows."""
    seed, index, share_of_shapes = task
    rng = random_state(seed, index)
    choice = rng.uniform()
    if rng.uniform() < share_of_shapes:
        look = LOOKS[int(np.searchsorted(np.cumsum([share for share, _ in LOOKS[:-1]]), choice))][1]
        color, texture, shape = (
            names[rng.randint(len(names))] for names in (list(COLORS), TEXTURES, SHAPES)
        )
        return draw_shape(rng, color, texture, shape, look), shape_facts(
            color, texture, shape, look.medium
        )
    hand = HANDS[int(np.searchsorted(np.cumsum([share for share, _ in HANDS[:-1]]), choice))][1]
    character = GLYPHS[rng.randint(len(GLYPHS))]
    return draw_glyph(rng, character, hand), glyph_facts(character)


def draw_all(
    path: Path, seed: int, number: int, share_of_shapes: float, workers: int
) -> tuple[Tensor, Tensor]:
    """Draw all pictures, or read them from an earlier run's file.

    Returns:
        Pictures (number, 3, 32, 32) uint8 and facts (number, 5).
    """
    if not path.exists():
        with multiprocessing.Pool(workers) as pool:
            drawn = pool.map(
                draw, [(seed, i, share_of_shapes) for i in range(number)], chunksize=500
            )
        pictures = np.stack([picture.transpose(2, 0, 1) for picture, _ in drawn])
        np.savez(path, pictures=pictures, facts=np.array([facts for _, facts in drawn]))
    with np.load(path) as stored:
        return torch.from_numpy(stored["pictures"]), torch.from_numpy(stored["facts"])


def augment(pictures: Tensor, shapes: Tensor) -> Tensor:
    """Vary crop, brightness and contrast at random, and mirror ``shapes``, a mask (B,).

    Pictures are (B, 3, 32, 32), uint8 in and float out.
    """
    n = len(pictures)
    images = pictures.float() / 255
    zoom = torch.empty(n).uniform_(0.72, 1.12)
    near = torch.rand(n) < 0.1
    zoom = torch.where(near, zoom * 0.75, zoom)
    mirror = torch.where(shapes & (torch.rand(n) < 0.4), -1.0, 1.0)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = zoom * mirror * torch.empty(n).uniform_(0.92, 1.08)
    theta[:, 1, 1] = zoom
    theta[:, :, 2] = torch.empty(n, 2).uniform_(-1, 1) * (0.08 + 0.6 * (1 - zoom).abs())[:, None]
    grid = F.affine_grid(theta, [n, 3, 32, 32], align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    gain, shift = (
        torch.empty(n, 1, 1, 1).uniform_(0.75, 1.2),
        torch.empty(n, 1, 1, 1).uniform_(-0.1, 0.1),
    )
    images = (images * gain + shift).clamp(0, 1)
    # Letters stay the same in any color.
    negative = (~shapes & (torch.rand(n) < 0.3)).view(n, 1, 1, 1)
    images = torch.where(negative, 1 - images, images)
    return (images - MEAN) / STD


def encode_captions(model: CLIP, ids: Tensor, chunks: int = 3) -> Tensor:
    """Encode token ids (N, 77) as features (N, d), texts of similar length together."""
    order = ids.argmax(dim=-1).argsort()
    features = torch.cat([model.encode_text(ids[part]) for part in order.chunk(chunks)])
    return features[order.argsort()]


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor, true: Tensor) -> Tensor:
    """Return the cross-entropy in both directions.

    Each true pair is compared only with the false pairs of its row; a row's loss is the mean over
    its true pairs.

    Args:
        images: image features (B, d).
        texts: text features (N, d).
        scale: factor of the cosine similarities.
        true: which captions are true of which pictures, (B, N).
    """
    logits = scale * F.normalize(images.float(), dim=-1) @ F.normalize(texts.float(), dim=-1).T
    total = logits.new_zeros(())
    for scores, right in ((logits, true), (logits.T, true.T)):
        wrong = scores.masked_fill(right, -math.inf).logsumexp(dim=1, keepdim=True)
        per_pair = F.softplus(wrong - scores) * right
        number = right.sum(1)
        total = total + (per_pair.sum(1) / number.clamp(min=1)).sum() / (number > 0).sum()
    return total / 2


def save(model: CLIP, words_seen: Tensor, path: Path) -> None:
    """Write the weights under OpenAI's names, in half precision.

    Embeddings of words never seen in training are zero.
    """
    state = {name: tensor.detach().half() for name, tensor in model.state_dict().items()}
    state["token_embedding.weight"] = state["token_embedding.weight"] * words_seen[:, None]
    state["head_width"] = torch.tensor(CONFIG.head_width)
    state["input_resolution"] = torch.tensor(CONFIG.image_resolution)
    state["context_length"] = torch.tensor(CONFIG.context_length)
    state["vocab_size"] = torch.tensor(CONFIG.vocab_size)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def reduce_gradients(model: nn.Module, workers: int) -> None:
    """Average the gradients over the worker processes."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient) / workers)


def train(worker: int, args: argparse.Namespace, meeting: str) -> None:
    """Train in one worker process; worker 0 prints and saves. The workers meet through a file."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", f"file://{meeting}", world_size=args.workers, rank=worker
    )
    pictures, facts = draw_all(
        args.pictures, args.seed, args.number, args.share_of_shapes, args.workers
    )
    torch.manual_seed(args.seed)
    model = nn.ModuleDict(
        {
            "clip": CLIP(CONFIG),
            "heads": nn.ModuleList([nn.Linear(CONFIG.embed_dim, n) for n in HEAD_SIZES.values()]),
        }
    )
    clip_model: CLIP = model["clip"]  # type: ignore[assignment]
    with torch.no_grad():
        clip_model.logit_scale.fill_(math.log(10))
    words_seen = torch.zeros(CONFIG.vocab_size, dtype=torch.bool)
    named = list(model.named_parameters())
    decayed = [p for n, p in named if p.ndim >= 2 and "embedding" not in n]
    others = [p for n, p in named if p.ndim < 2 or "embedding" in n]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, betas=(0.9, 0.98))
    torch.manual_seed(args.seed * 1000 + worker)
    words = random.Random(args.seed * 1000 + worker)
    warm_up = min(150, args.steps // 5 + 1)
    start, recent = time.time(), []
    for step in range(args.steps):
        rate = min(
            (step + 1) / warm_up, 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / args.steps))
        )
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * rate
        chosen = torch.randint(len(pictures), (args.batch_size,))
        shown = facts[chosen]
        captioned = shown[: 3 * args.batch_size // 8].tolist()
        texts, told = zip(*(caption(words, tuple(row)) for row in captioned), strict=True)
        says = torch.tensor(told)
        true = ((says[None] == ANY) | (says[None] == shown[:, None])).all(-1)
        ids = tokenize(texts)
        words_seen[ids.flatten()] = True
        images = augment(pictures[chosen], shown[:, CHARACTER] < 0)
        # The plain kernel, because the fused one's backward pass is several times slower in
        # bfloat16 on a CPU.
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            image_features = clip_model.encode_image(images)
            text_features = encode_captions(clip_model, ids)
        loss = contrastive_loss(image_features, text_features, clip_model.logit_scale.exp(), true)
        extra = torch.zeros(())
        hits = []
        for head, column in zip(model["heads"], HEAD_SIZES, strict=True):  # type: ignore[call-overload]
            has = shown[:, column] >= 0
            scores = head(image_features.float())[has]
            extra = extra + F.cross_entropy(scores, shown[has, column]) / len(HEAD_SIZES)
            hits.append((scores.argmax(1) == shown[has, column]).float().mean().item())
        optimizer.zero_grad()
        (loss + extra).backward()
        reduce_gradients(model, args.workers)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            clip_model.logit_scale.clamp_(0, math.log(100))
        recent.append([loss.item(), extra.item(), *hits])
        if worker == 0 and (step + 1) % 50 == 0:
            mean = np.mean(recent[-50:], axis=0)
            print(
                f"step {step + 1}/{args.steps} loss {mean[0]:.3f} heads {mean[1]:.3f} "
                f"color {mean[2]:.2f} texture {mean[3]:.2f} shape {mean[4]:.2f} "
                f"character {mean[5]:.2f} "
                f"scale {clip_model.logit_scale.exp().item():.1f} {time.time() - start:.0f} s",
                flush=True,
            )
        if worker == 0 and ((step + 1) % 250 == 0 or step + 1 == args.steps):
            save(clip_model, words_seen, args.output)


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pictures", type=Path, required=True, help="file that stores the drawn pictures"
    )
    parser.add_argument("--output", type=Path, required=True, help="file to write the weights to")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--number", type=int, default=70_000, help="number of pictures to draw")
    parser.add_argument("--share-of-shapes", type=float, default=0.6)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--batch-size", type=int, default=256, help="pictures per worker and step")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    print(
        " ".join(
            f"{name}={value}" for name, value in vars(args).items() if not isinstance(value, Path)
        )
    )
    start = time.time()
    draw_all(args.pictures, args.seed, args.number, args.share_of_shapes, args.workers)
    print(f"{args.number} pictures, {time.time() - start:.0f} s", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(train, (args, f"{folder}/workers"), nprocs=args.workers)


if __name__ == "__main__":
    main()
