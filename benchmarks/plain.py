"""Methods computed as their papers and OpenAI's CLIP are written, with nothing saved anywhere.

The reference that ``benchmarks.cost`` compares with: fp32, all tokens of all blocks in both towers,
77 tokens for each class (for CoCoOp and ProMPT: for each class of each image), class features again
in every batch of an evaluation, a teacher's image features again in every batch. Only weights and
token ids come from outside; nothing of ``clip`` or ``trainers`` is used.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Found = dict[str, Tensor]  # features and ``logits`` (B, K)


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """OpenAI's pre-norm block, tokens first: (T, N, width)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        c_fc, c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.mlp = nn.Sequential(OrderedDict(c_fc=c_fc, gelu=QuickGELU(), c_proj=c_proj))
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        h = self.ln_1(x)
        x = x + self.attn(h, h, h, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Tower(nn.Module):
    """The blocks of a tower, under OpenAI's names."""

    def __init__(self, width: int, heads: int, layers: int):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads) for _ in range(layers))


class Vision(nn.Module):
    """The vision tower; prompts (m, d_v) or (B, m, d_v) of the first layers stand behind."""

    def __init__(self, state: Mapping[str, Tensor], heads: int):
        super().__init__()
        width, _, patch, _ = state["conv1.weight"].shape
        self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(state["class_embedding"])
        self.positional_embedding = nn.Parameter(state["positional_embedding"])
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Tower(width, heads, n_layers(state))
        self.proj = nn.Parameter(state["proj"])

    def forward(self, images: Tensor, prompts: Sequence[Tensor] = ()) -> Tensor:
        """Encode images (B, 3, R, R) to (B, d)."""
        x = self.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1)
        x = x + self.positional_embedding
        own = x.shape[1]
        for i, block in enumerate(self.transformer.resblocks):
            if i < len(prompts):
                given = prompts[i].expand(len(images), -1, -1)
                if i == 0:
                    x = torch.cat([x, given], dim=1)
                else:
                    x = torch.cat([x[:own], given.transpose(0, 1)])
            if i == 0:
                x = self.ln_pre(x).transpose(0, 1)
            x = block(x, None)
        return self.ln_post(x.transpose(0, 1))[:, 0] @ self.proj


class CLIP(nn.Module):
    """Both towers with the weights of a state dict that has OpenAI's names, frozen.

    Args:
        state: the weights, in fp32.
        text_heads, vision_heads: attention heads of a block.
    """

    def __init__(self, state: Mapping[str, Tensor], text_heads: int, vision_heads: int):
        super().__init__()
        visual = {k.removeprefix("visual."): v for k, v in state.items() if k.startswith("visual.")}
        text = {k: v for k, v in state.items() if not k.startswith("visual.")}
        self.visual = Vision(visual, vision_heads)
        n_tokens, width = text["token_embedding.weight"].shape
        self.token_embedding = nn.Embedding(n_tokens, width)
        self.positional_embedding = nn.Parameter(text["positional_embedding"])
        self.transformer = Tower(width, text_heads, n_layers(text))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(text["text_projection"])
        self.logit_scale = nn.Parameter(text["logit_scale"])
        self.load_state_dict(dict(state), assign=True)
        self.requires_grad_(False).eval()
        length = self.positional_embedding.shape[0]
        mask = torch.full((length, length), -torch.inf, device=self.logit_scale.device)
        self.register_buffer("mask", mask.triu(1), persistent=False)

    def encode_text(self, ids: Tensor, prompts: Sequence[Tensor] = ()) -> Tensor:
        """Encode token ids (N, 77) to (N, d); prompts (m, d_t) of first layers stand at 1..m."""
        x = self.token_embedding(ids)
        for i, block in enumerate(self.transformer.resblocks):
            if i < len(prompts):
                given, m = prompts[i].expand(len(ids), -1, -1), prompts[i].shape[-2]
                if i == 0:
                    x = torch.cat([x[:, :1], given, x[:, 1 + m :]], dim=1)
                else:
                    x = torch.cat([x[:1], given.transpose(0, 1), x[1 + m :]])
            if i == 0:
                x = (x + self.positional_embedding).transpose(0, 1)
            x = block(x, self.mask)
        x = self.ln_final(x.transpose(0, 1))
        return x[torch.arange(len(x)), ids.argmax(dim=-1)] @ self.text_projection


def n_layers(state: Mapping[str, Tensor]) -> int:
    """Count the blocks of a tower by its tensors' names."""
    return sum(name.endswith("ln_1.weight") for name in state)


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


class Method(nn.Module):
    """What the references share: towers, learned tensors, one training step.

    Args:
        clip: the towers.
        learned: tensors by the names of the public code; copies of them are trained.
        ids: token ids (K, 77) of the class names behind their context.
        frozen_text: unit features (K, d) of the classes, which public code computes at its start.
        settings: the method's own.
    """

    def __init__(
        self,
        clip: CLIP,
        learned: Mapping[str, Tensor],
        ids: Tensor,
        frozen_text: Tensor | None = None,
        settings: Any = None,
    ):
        super().__init__()
        self.clip, self.ids, self.settings = clip, ids, settings
        self.frozen_text: Any = frozen_text
        self.p = {name: nn.Parameter(tensor.detach().clone()) for name, tensor in learned.items()}

    def image(self, images: Tensor, prompts: Sequence[Tensor] = ()) -> Tensor:
        return unit(self.clip.visual(images, prompts))

    def text(self, prompts: Sequence[Tensor] = ()) -> Tensor:
        return unit(self.clip.encode_text(self.ids, prompts))

    def scores(self, image: Tensor, text: Tensor) -> Tensor:
        return self.clip.logit_scale.exp() * image @ text.t()

    def layers(self, name: str) -> list[Tensor]:
        """Return the learned tensors whose names are ``name`` with a number in place of "#"."""
        before, _, after = name.partition("#")
        numbers = [
            int(number)
            for key in self.p
            if key.startswith(before) and key.endswith(after)
            if (number := key[len(before) : len(key) - len(after)]).isdigit()
        ]
        return [self.p[f"{before}{number}{after}"] for number in sorted(numbers)]

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.p[f"{name}.weight"], self.p[f"{name}.bias"])

    def forward(self, images: Tensor) -> Found:
        """Compute ``logits`` (B, K) of images (B, 3, R, R), and features for the loss."""
        raise NotImplementedError

    def loss(self, found: Found, labels: Tensor) -> Tensor:
        return F.cross_entropy(found["logits"], labels)

    def step(self, images: Tensor, labels: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Take one step of training."""
        loss = self.loss(self(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


class CoOp(Method):
    def forward(self, images: Tensor) -> Found:
        image, text = self.image(images), self.text([self.p["prompt_learner.ctx"]])
        return {"image": image, "text": text, "logits": self.scores(image, text)}


class KgCoOp(CoOp):
    def loss(self, found: Found, labels: Tensor) -> Tensor:
        distance = 1 - F.cosine_similarity(found["text"], self.frozen_text).mean()
        return super().loss(found, labels) + self.settings.W * distance


class CoCoOp(Method):
    def forward(self, images: Tensor) -> Found:
        """Encode all classes for one image after the other, as the public code does."""
        image = self.image(images)
        net = "prompt_learner.meta_net.linear"
        shifts = self.linear(f"{net}2", self.linear(f"{net}1", image).relu())
        logits = [
            self.scores(own, self.text([self.p["prompt_learner.ctx"] + shift]))
            for own, shift in zip(image, shifts, strict=True)
        ]
        return {"logits": torch.stack(logits)}


class MaPLe(Method):
    def forward(self, images: Tensor) -> Found:
        p = "prompt_learner."
        text = [self.p[f"{p}ctx"], *self.layers(f"{p}compound_prompts_text.#")]
        depth = len(text) - 1
        names = ["proj", *(f"compound_prompt_projections.{i}" for i in range(depth))]
        vision = [self.linear(p + name, t) for name, t in zip(names, text, strict=True)]
        return {"logits": self.scores(self.image(images, vision), self.text(text))}


class IVLP(Method):
    def forward(self, images: Tensor) -> Found:
        deeper = "transformer.resblocks.#.VPT_shallow"
        text = [self.p["prompt_learner.ctx"], *self.layers(f"text_encoder.{deeper}")]
        vision = [self.p["image_encoder.VPT"], *self.layers(f"image_encoder.{deeper}")]
        image, w = self.image(images, vision), self.text(text)
        return {"image": image, "text": w, "logits": self.scores(image, w)}


class PromptSRC(IVLP):
    def forward(self, images: Tensor) -> Found:
        found = super().forward(images)
        if self.training:
            with torch.no_grad():
                found["frozen_image"] = self.image(images)
                found["frozen_logits"] = self.scores(found["frozen_image"], self.frozen_text)
        return found

    def loss(self, found: Found, labels: Tensor) -> Tensor:
        logits, target = (found[k].log_softmax(dim=1) for k in ("logits", "frozen_logits"))
        divergence = F.kl_div(logits, target, reduction="sum", log_target=True) / logits.numel()
        text = F.l1_loss(found["text"], self.frozen_text)
        image = F.l1_loss(found["image"], found["frozen_image"])
        weights = self.settings.TEXT_LOSS_WEIGHT, self.settings.IMAGE_LOSS_WEIGHT
        return super().loss(found, labels) + weights[0] * text + weights[1] * image + divergence


class ProMPT(Method):
    """Sections 3.3 to 3.5 of the paper, whose code is not public."""

    def generate(self, name: str, x: Tensor) -> list[Tensor]:
        net = f"prompt_learner.{name}_generator."
        biases = zip(self.p[f"{net}bias1"], self.p[f"{net}bias2"], strict=True)
        hidden = F.linear(x, self.p[f"{net}weight1"])
        return [F.linear((hidden + b1).relu(), self.p[f"{net}weight2"], b2) for b1, b2 in biases]

    def forward(self, images: Tensor) -> Found:
        text = self.frozen_text.expand(len(images), -1, -1)
        logits = self.scores(self.image(images), self.frozen_text)
        context = self.p["prompt_learner.ctx"].expand(len(images), -1, -1)
        vision: list[Tensor] = []
        steps = []
        for _ in range(self.settings.ITERATIONS):
            top = logits.topk(min(self.settings.N_CTX_VISION, logits.shape[1]), dim=1).indices
            made = self.generate(
                "vision", text.gather(1, top[:, :, None].expand(-1, -1, text.shape[-1]))
            )
            vision = [a + b for a, b in zip(made, vision, strict=True)] if vision else made
            image = self.image(images, vision)
            context = context + self.generate("text", image)[0][:, None]
            text = torch.stack([self.text([own]) for own in context])
            logits = torch.stack([self.scores(x, w) for x, w in zip(image, text, strict=True)])
            steps.append(logits)
        return {"logits": logits, "steps": torch.stack(steps)}

    def loss(self, found: Found, labels: Tensor) -> Tensor:
        last = len(found["steps"]) - 1
        terms = [
            self.settings.LAMBD ** (last - n) * F.cross_entropy(logits, labels)
            for n, logits in enumerate(found["steps"])
        ]
        return torch.stack(terms).sum()


class HiCroPL(Method):
    """Section 3.2 with the released code's norms and heads; the flow is part of the graph."""

    heads = 8

    def norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.p[f"{name}.weight"], self.p[f"{name}.bias"])

    def attend(self, name: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.multi_head_attention_forward(
            *(q, k, v, q.shape[-1], self.heads),
            in_proj_weight=self.p[f"{name}.in_proj_weight"],
            in_proj_bias=self.p[f"{name}.in_proj_bias"],
            bias_k=None,
            bias_v=None,
            add_zero_attn=False,
            dropout_p=0.0,
            out_proj_weight=self.p[f"{name}.out_proj.weight"],
            out_proj_bias=self.p[f"{name}.out_proj.bias"],
            need_weights=False,
        )[0]

    def compress(self, side: str, layers: Sequence[Tensor]) -> Tensor:
        """Refine the proxy token of each giving layer by its prompts (eq. 2)."""
        given = []
        for i, prompts in enumerate(layers):
            net = f"prompt_learner.attn_pooling_{side}_nets.{i}"
            token = self.p[f"prompt_learner.{side}_proxy_token.{i}"]
            keys = self.norm(f"{net}.ln_1", prompts)
            found = self.attend(f"{net}.attn", self.norm(f"{net}.ln_1", token), keys, keys)
            given.append(self.norm(f"{net}.ln_2", token + found))
        return torch.cat(given)

    def receive(self, net: str, layers: Sequence[Tensor], knowledge: Tensor) -> list[Tensor]:
        """Refine the prompts of the receiving layers (eq. 3, 7-10)."""
        net = f"prompt_learner.{net}"
        q = self.linear(f"{net}.linear_q", torch.cat(list(layers)))
        k, v = (self.norm(f"{net}.ln_1", self.linear(f"{net}.linear_{x}", knowledge)) for x in "kv")
        q = q + self.attend(f"{net}.attn", self.norm(f"{net}.ln_1", q), k, v)
        h = self.linear(f"{net}.ffn.c_fc", self.norm(f"{net}.ln_2", q))
        q = q + self.linear(f"{net}.ffn.c_proj", h * torch.sigmoid(1.702 * h))
        return list(q.chunk(len(layers)))

    def forward(self, images: Tensor) -> Found:
        text = self.layers("prompt_learner.cross_prompts_text.#")
        text[:0] = [self.p["prompt_learner.ctx"]] * (len(text) < self.settings.PROMPT_DEPTH)
        vision = self.layers("prompt_learner.cross_prompts_visual.#")
        k = self.settings.CROSS_LAYER
        vision[:k] = self.receive("text2visual_net", vision[:k], self.compress("text", text[:k]))
        text[k:] = self.receive("visual2text_net", text[k:], self.compress("visual", vision[k:]))
        with torch.no_grad():
            frozen = self.image(images)
        prompted, w = self.image(images, vision), self.text(text)
        image, fused = unit(prompted + frozen), unit(w + self.frozen_text)
        logits = self.scores(image, fused)
        return {"image": image, "fused": fused, "v": prompted, "w": w, "logits": logits}

    def loss(self, found: Found, labels: Tensor) -> Tensor:
        image = F.cosine_similarity(found["image"], found["v"]).mean()
        text = F.cosine_similarity(found["fused"], found["w"]).mean()
        return super().loss(found, labels) + self.settings.LAMBD * (2 - image - text)


METHODS: dict[str, type[Method]] = {
    kind.__name__: kind for kind in (CoOp, KgCoOp, CoCoOp, MaPLe, IVLP, PromptSRC, ProMPT, HiCroPL)
}
