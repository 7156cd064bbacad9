"""Train ViT-Mini-2, the CLIP model of the embedded benchmark, on drawn and captioned pictures.

    python -m benchmarks.vit_mini.train --work WORK --output clip/weights/ViT-Mini-2.pt

All that is fetched, rendered and drawn is kept in the folder WORK, and so is the state of the
training, from which the same command resumes. The pictures are drawn once; captions are made anew
for every batch. The loss is CLIP's contrastive cross-entropy for captions that may be true of
several pictures of a batch ("a bird"). To save time, only half of the pictures of a batch get a
caption of their own; a linear head, discarded after training, also predicts from the image feature
which thing is shown. Each worker process has its own batches; gradients are averaged over the
workers.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import random
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
import torch.multiprocessing
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.vit_mini.captions import Captions
from benchmarks.vit_mini.collect import (
    FONTS,
    concepts,
    render_fonts,
    render_style,
    word_vectors,
)
from benchmarks.vit_mini.words import token_vectors
from clip import tokenize
from clip.clip import ROWS
from clip.model import CLIP, OPENAI_MEAN, OPENAI_STD, CLIPConfig
from clip.tokens import tokenizer
from dassl.command import Parser
from datasets.embedded.drawing import Look, Picture, paint, random_state
from datasets.embedded.figures import glyph_sprite, shape_sprite

CONFIG = CLIPConfig(
    embed_dim=128,
    image_resolution=32,
    vision_layers=12,
    vision_width=128,
    vision_patch_size=8,
    context_length=77,
    vocab_size=49408,
    text_width=128,
    text_layers=12,
    head_width=32,
)
MEAN = torch.tensor(OPENAI_MEAN).view(3, 1, 1)
STD = torch.tensor(OPENAI_STD).view(3, 1, 1)

# What the model sees; the other styles are kept for the benchmark's sets.
SEEN_STYLES = ("noto", "noto_v1", "twemoji", "emojione", "emojione_v1", "fxemoji")
SHARES = {"concept": 0.74, "shape": 0.13, "glyph": 0.13}
# (share, look): gentler than those of the benchmark's sets.
LOOKS = (
    (0.75, Look(size=(23.0, 31.0), background_color=0.25, clutter=1, occlusion=0.0)),
    (0.15, Look(size=(18.0, 28.0), clutter=3, noise=(0.0, 0.06), blur=(0.0, 0.8))),
    (0.10, Look(size=(16.0, 26.0), clutter=4, occlusion=0.2, cast=(0.0, 0.5))),
)
ADAM_RATE = 2e-3  # highest learning rate of what is no matrix of a block
WARM_UP = 100  # steps


class Sources:
    """All sprites that are seen, and the words, rendered once into the folder ``work``."""

    def __init__(self, work: Path):
        packages = work / "packages"
        everything = concepts(packages)
        self.n_concepts = len(everything)
        stored = work / "sprites.npz"
        if not stored.exists():
            styles = [render_style(style, packages, everything) for style in SEEN_STYLES]
            save_arrays(
                stored,
                sprites=np.concatenate([sprites for sprites, _ in styles]),
                indices=np.concatenate([indices for _, indices in styles]),
                glyphs=render_fonts(FONTS, packages),
            )
        with np.load(stored) as arrays:
            self.sprites, self.indices = arrays["sprites"], arrays["indices"]
            self.glyphs = arrays["glyphs"]
        self.captions = Captions(list(everything.values()))
        stored = work / "tokens.npy"
        if not stored.exists():
            tok = tokenizer()
            vocabulary = [tok.decoder[token] for token in range(CONFIG.vocab_size)]
            save_arrays(stored, token_vectors(vocabulary, *word_vectors(packages)))
        self.token_vectors = torch.from_numpy(np.load(stored))

    def draw(self, seed: int, index: int) -> tuple[Picture, int]:
        """Draw picture number ``index`` of the training set; return it and the thing it shows."""
        rng = random_state(seed, index)
        shares = np.cumsum([share for share, _ in LOOKS])
        look = LOOKS[int(np.searchsorted(shares[:-1], rng.uniform()))][1]
        kind = rng.choice(list(SHARES), p=list(SHARES.values()))
        n, things = self.n_concepts, self.captions.things
        if kind == "concept":  # every concept as often, in whichever styles it was drawn
            thing = rng.randint(n)
            while not len(drawn := np.flatnonzero(self.indices == thing)):
                thing = rng.randint(n)
            return paint(rng, self.sprites[drawn[rng.randint(len(drawn))]], look), thing
        if kind == "shape":
            thing = n + rng.randint(len(things) - n - self.glyphs.shape[1])
            color, texture, shape = things[thing]  # type: ignore[misc]
            return paint(rng, shape_sprite(rng, color, texture, shape), look), thing
        glyph = rng.randint(self.glyphs.shape[1])
        shown = glyph_sprite(rng, self.glyphs[:, glyph])
        return paint(rng, shown, look), len(things) - len(self.glyphs[0]) + glyph


def save_arrays(path: Path, array: np.ndarray | None = None, **arrays: np.ndarray) -> None:
    """Write one array (.npy) or several (.npz) such that an interruption leaves no file."""
    partial = path.with_name(f"partial-{path.name}")
    if array is not None:
        np.save(partial, array)
    else:
        np.savez(partial, **arrays)  # type: ignore[arg-type]
    partial.replace(path)


_sources: Sources


def _open_sources(work: Path) -> None:
    global _sources
    _sources = Sources(work)


def _draw(task: tuple[int, int]) -> tuple[Picture, int]:
    return _sources.draw(*task)


def draw_all(work: Path, seed: int, number: int, workers: int) -> tuple[Tensor, Tensor]:
    """Draw all pictures, or read them from the folder ``work``.

    Returns:
        Pictures (number, 3, 32, 32) uint8, shared by all processes, and things (number,).
    """
    pictures, things = (work / f"{name}_{seed}_{number}.npy" for name in ("pictures", "things"))
    if not things.exists():
        with multiprocessing.Pool(workers, _open_sources, (work,)) as pool:
            drawn = pool.map(_draw, [(seed, i) for i in range(number)], chunksize=500)
        save_arrays(pictures, np.stack([picture.transpose(2, 0, 1) for picture, _ in drawn]))
        save_arrays(things, np.array([thing for _, thing in drawn]))
    return (
        torch.from_numpy(np.load(pictures, mmap_mode="c")),
        torch.from_numpy(np.load(things)),
    )


def augment(pictures: Tensor, mirrored: Tensor) -> Tensor:
    """Vary crop, brightness and contrast at random, and mirror some of ``mirrored``, a mask (B,).

    Pictures are (B, 3, 32, 32), uint8 in and float out.
    """
    n = len(pictures)
    images = pictures.float() / 255
    zoom = torch.empty(n).uniform_(0.9, 1.1)
    mirror = torch.where(mirrored & (torch.rand(n) < 0.4), -1.0, 1.0)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = zoom * mirror * torch.empty(n).uniform_(0.92, 1.08)
    theta[:, 1, 1] = zoom
    theta[:, :, 2] = torch.empty(n, 2).uniform_(-1, 1) * (0.06 + 0.5 * (1 - zoom).abs())[:, None]
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    gain, shift = (
        torch.empty(n, 1, 1, 1).uniform_(0.8, 1.2),
        torch.empty(n, 1, 1, 1).uniform_(-0.1, 0.1),
    )
    return ((images * gain + shift).clamp(0, 1) - MEAN) / STD


class WordEmbedding(nn.Module):
    """Token embeddings (…, d) that are a linear function of fixed vectors (vocabulary, width)."""

    vectors: Tensor

    def __init__(self, vectors: Tensor, width: int):
        super().__init__()
        self.register_buffer("vectors", vectors, persistent=False)
        self.map = nn.Linear(vectors.shape[1], width, bias=False)
        # unit vectors, and entries of the deviation with which CLIP's embeddings begin
        nn.init.normal_(self.map.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(self.vectors[ids], self.map.weight)


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


def share_rows(weight: Tensor, vectors: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Keep the embeddings of the tokens seen in training; the text tower knows no others.

    Args:
        weight: embeddings of all tokens (vocabulary, d).
        vectors: their unit vectors (vocabulary, width).
        seen: which tokens were seen, (vocabulary,).

    Returns:
        The embeddings kept, and for each token the row of its own or, by the vectors' cosine, of
        the nearest token seen.
    """
    rows = torch.cat([(part @ vectors[seen].T).argmax(1) for part in vectors.split(4096)])
    rows[seen] = torch.arange(int(seen.sum()))
    return weight[seen], rows


def save(model: CLIP, embedding: WordEmbedding, seen: Tensor, path: Path) -> None:
    """Write the weights under OpenAI's names, in half precision."""
    state = {
        name: tensor.detach().half()
        for name, tensor in model.state_dict().items()
        if not name.startswith("token_embedding.")
    }
    weight = F.linear(embedding.vectors, embedding.map.weight.detach())
    kept, rows = share_rows(weight, embedding.vectors, seen)
    state["token_embedding.weight"] = kept.half()
    state[ROWS] = rows.to(torch.int32)
    state["head_width"] = torch.tensor(CONFIG.head_width)
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


def rate_at(step: int, n_steps: int) -> float:
    """Return the learning rate at a step, as a share of the highest: a warm-up, then a cosine."""
    return min((step + 1) / WARM_UP, 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / n_steps)))


def train(worker: int, args: argparse.Namespace, meeting: str) -> None:
    """Train in one worker process; worker 0 prints and saves. The workers meet through a file."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", f"file://{meeting}", world_size=args.workers, rank=worker
    )
    sources = Sources(args.work)
    pictures, things = draw_all(args.work, args.seed, args.number, args.workers)
    true_facts = torch.from_numpy(sources.captions.true)
    # characters and arrows are not what they are when mirrored
    may_mirror = torch.tensor([not isinstance(thing, str) for thing in sources.captions.things])
    torch.manual_seed(args.seed)
    clip_model = CLIP(replace(CONFIG, vocab_size=1))
    embedding = WordEmbedding(sources.token_vectors, CONFIG.text_width)
    clip_model.token_embedding = embedding  # type: ignore[assignment]
    head = nn.Linear(CONFIG.embed_dim, len(may_mirror))
    model = nn.ModuleDict({"clip": clip_model, "head": head})
    with torch.no_grad():
        clip_model.logit_scale.fill_(math.log(10))
    seen = torch.zeros(CONFIG.vocab_size, dtype=torch.bool)
    # The matrices of the blocks learn about twice as fast with Muon as with AdamW.
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "resblocks" in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "resblocks" not in n]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(
            matrices, lr=args.learning_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=ADAM_RATE, weight_decay=0.0, betas=(0.9, 0.98)),
    ]
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, partial(rate_at, n_steps=args.steps))
        for optimizer in optimizers
    ]
    learning: list[Any] = [*optimizers, *schedulers]
    first, checkpoint = 0, args.work / f"checkpoint_{args.seed}.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for part, values in zip(learning, state["optimizers"], strict=True):
            part.load_state_dict(values)
        seen, first = state["seen"], state["step"]
    start, recent = time.time(), []
    for step in range(first, args.steps):
        # a batch depends on the step alone, so that a resumed training has the same ones
        number = (args.seed * args.workers + worker) * args.steps + step
        torch.manual_seed(number)
        words = random.Random(number)
        chosen = torch.randint(len(pictures), (args.batch_size,))
        shown = things[chosen]
        captioned = shown[: args.batch_size // 2].tolist()
        texts, facts = zip(
            *(sources.captions.caption(words, thing) for thing in captioned), strict=True
        )
        true = true_facts[list(facts)][:, shown].T
        ids = tokenize(texts)
        seen[ids.flatten()] = True
        images = augment(pictures[chosen], may_mirror[shown])
        # The plain kernel, because the fused one's backward pass is several times slower in
        # bfloat16 on a CPU.
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            image_features = clip_model.encode_image(images)
            text_features = encode_captions(clip_model, ids)
        loss = contrastive_loss(image_features, text_features, clip_model.logit_scale.exp(), true)
        scores = head(image_features.float())
        extra = F.cross_entropy(scores, shown)
        for optimizer in optimizers:
            optimizer.zero_grad()
        (loss + 0.5 * extra).backward()
        reduce_gradients(model, args.workers)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for part in learning:
            part.step()
        with torch.no_grad():
            clip_model.logit_scale.clamp_(0, math.log(100))
        hits = (scores.argmax(1) == shown).float().mean()
        recent.append([loss.item(), extra.item(), hits.item()])
        last = step + 1 == args.steps
        if worker == 0 and ((step + 1) % 50 == 0 or last):
            mean = np.mean(recent[-50:], axis=0)
            print(
                f"step {step + 1}/{args.steps} loss {mean[0]:.3f} head {mean[1]:.3f} "
                f"accuracy {mean[2]:.2f} scale {clip_model.logit_scale.exp().item():.1f} "
                f"{time.time() - start:.0f} s",
                flush=True,
            )
        if (step + 1) % 250 == 0 or last:
            torch.distributed.all_reduce(seen, torch.distributed.ReduceOp.MAX)
            if worker == 0:
                save(clip_model, embedding, seen, args.output)
                state = {
                    "model": model.state_dict(),
                    "optimizers": [part.state_dict() for part in learning],
                    "seen": seen,
                    "step": step + 1,
                }
                torch.save(state, checkpoint.with_suffix(".partial"))
                checkpoint.with_suffix(".partial").replace(checkpoint)


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for all that is kept")
    parser.add_argument("--output", type=Path, required=True, help="file to write the weights to")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--number", type=int, default=200_000, help="number of pictures to draw")
    parser.add_argument("--steps", type=int, default=2800)
    parser.add_argument("--batch-size", type=int, default=256, help="pictures per worker and step")
    parser.add_argument("--learning-rate", type=float, default=6e-3)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    print(
        " ".join(
            f"{name}={value}" for name, value in vars(args).items() if not isinstance(value, Path)
        ),
        flush=True,
    )
    args.work.mkdir(parents=True, exist_ok=True)
    start = time.time()
    Sources(args.work)
    print(f"fetched and rendered, {time.time() - start:.0f} s", flush=True)
    draw_all(args.work, args.seed, args.number, args.workers)
    print(f"{args.number} pictures, {time.time() - start:.0f} s", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(train, (args, f"{folder}/workers"), nprocs=args.workers)


if __name__ == "__main__":
    main()
