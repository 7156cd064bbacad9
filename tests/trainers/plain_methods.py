"""Methods computed plainly from their learned tensors, shared by several test modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from clip import CLIP, tokenize
from tests.plain import image_feature, plain_logits, text_feature, unit
from tests.trainers.tiny import NAMES, class_ids


def plain_cocoop_logits(
    model: CLIP, p: Mapping[str, Tensor], images: Tensor, names: Sequence[str], words: str
) -> Tensor:
    """Score each image with a context that its own feature has shifted: (B, K)."""
    slots = list(range(1, 1 + len(p["ctx"])))
    rows = []
    for image in images:
        v = unit(image_feature(model, image, []))
        hidden = p["meta_net.linear1.weight"] @ v + p["meta_net.linear1.bias"]
        shift = p["meta_net.linear2.weight"] @ hidden.clamp(min=0) + p["meta_net.linear2.bias"]
        context = torch.stack([token + shift for token in p["ctx"]])
        ids = class_ids(words + " {}.", names)
        texts = [text_feature(model, i, slots, [context]) for i in ids]
        rows.append(plain_logits(model, image[None], texts)[0])
    return torch.stack(rows)


def plain_maple_logits(
    model: CLIP, p: Mapping[str, Tensor], images: Tensor, depth: int, context: str
) -> Tensor:
    """Score images with text prompts and their projections to vision prompts: (B, K)."""
    text = [p["ctx"]] + [p[f"compound_prompts_text.{i}"] for i in range(depth - 1)]
    layers = ["proj"] + [f"compound_prompt_projections.{i}" for i in range(depth - 1)]
    vision = [t @ p[f"{n}.weight"].t() + p[f"{n}.bias"] for t, n in zip(text, layers, strict=True)]
    slots = list(range(1, 1 + len(p["ctx"])))
    texts = [text_feature(model, i, slots, text) for i in class_ids(context + " {}.")]
    return plain_logits(model, images, texts, vision)


# --- HiCroPL: the paper's equations, one query and one head at a time --------------------------

DEPTH, K, M, LAMBD = 4, 2, 3, 12.0  # layers with prompts, of them text to image, tokens, weight


def layer_norm(p: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"])


def attention(
    p: Mapping[str, Tensor], name: str, queries: Tensor, keys: Tensor, values: Tensor
) -> Tensor:
    """Compute eq. 8 with 8 heads and the projections of a multi-head attention module."""
    width, heads = queries.shape[1], 8
    weights = p[f"{name}.in_proj_weight"].split(width)
    biases = p[f"{name}.in_proj_bias"].split(width)
    q, k, v = (
        x @ w.t() + b for x, w, b in zip((queries, keys, values), weights, biases, strict=True)
    )
    rows = []
    for row in q:
        parts = []
        for head in range(heads):
            part = slice(head * width // heads, (head + 1) * width // heads)
            score = k[:, part] @ row[part] / (width // heads) ** 0.5
            parts.append(score.softmax(0) @ v[:, part])
        rows.append(torch.cat(parts))
    return torch.stack(rows) @ p[f"{name}.out_proj.weight"].t() + p[f"{name}.out_proj.bias"]


def proxy(p: Mapping[str, Tensor], nets: str, tokens: str, i: int, prompts: Tensor) -> Tensor:
    """Compute eq. 2 with residual and layer norms."""
    query, name = p[f"{tokens}.{i}"], f"{nets}.{i}"
    normed = [layer_norm(p, f"{name}.ln_1", x) for x in (query, prompts, prompts)]
    return layer_norm(p, f"{name}.ln_2", query + attention(p, f"{name}.attn", *normed))


def mapper(p: Mapping[str, Tensor], net: str, prompts: Tensor, knowledge: Tensor) -> Tensor:
    """Compute eq. 7, 9 and 10."""

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ p[f"{net}.{name}.weight"].t() + p[f"{net}.{name}.bias"]

    q, k, v = (
        linear("linear_q", prompts),
        linear("linear_k", knowledge),
        linear("linear_v", knowledge),
    )
    normed = [layer_norm(p, f"{net}.ln_1", x) for x in (q, k, v)]
    q = q + attention(p, f"{net}.attn", *normed)
    h = linear("ffn.c_fc", layer_norm(p, f"{net}.ln_2", q))
    return q + linear("ffn.c_proj", h * torch.sigmoid(1.702 * h))


def plain_prompts(p: Mapping[str, Tensor], depth: int, k: int) -> tuple[list[Tensor], list[Tensor]]:
    """Refine the prompts of ``depth`` layers, the first k from text to image; k = 0: none."""
    text = [p["ctx"]] + [p[f"cross_prompts_text.{i}"] for i in range(1, depth)]
    vision = [p[f"cross_prompts_visual.{i}"] for i in range(depth)]
    if k == 0:
        return text, vision
    given = [proxy(p, "attn_pooling_text_nets", "text_proxy_token", i, text[i]) for i in range(k)]
    refined = mapper(p, "text2visual_net", torch.cat(vision[:k]), torch.cat(given))
    vision[:k] = [refined[i * M : (i + 1) * M] for i in range(k)]
    if k == depth:
        return text, vision
    given = [
        proxy(p, "attn_pooling_visual_nets", "visual_proxy_token", i, vision[k + i])
        for i in range(depth - k)
    ]
    refined = mapper(p, "visual2text_net", torch.cat(text[k:]), torch.cat(given))
    text[k:] = [refined[i * M : (i + 1) * M] for i in range(depth - k)]
    return text, vision


def plain_hicropl(
    model: CLIP,
    p: Mapping[str, Tensor],
    texts: Mapping[str, Sequence[str]],
    images: Tensor,
    labels: Tensor,
    anchor: str,
    depth: int = DEPTH,
    k: int = K,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the logits, the cross entropy and the weighted consistency of the learner's ``p``."""
    text_prompts, vision_prompts = plain_prompts(p, depth, k)
    frozen_text, prompted_text, frozen_image, prompted_image = [], [], [], []
    for name in NAMES:
        name = name.replace("_", " ")
        each = [unit(text_feature(model, tokenize([t])[0], [], [])) for t in texts[name]]
        frozen_text.append(unit(torch.stack(each).mean(0)))
        ids = tokenize([f"a photo of a {name}."])[0]  # three prompts stand for "a photo of"
        prompted_text.append(unit(text_feature(model, ids, [1, 2, 3], text_prompts)))
    for image in images:
        frozen_image.append(unit(image_feature(model, image, [])))
        prompted_image.append(unit(image_feature(model, image, vision_prompts)))
    w, w_p = torch.stack(frozen_text), torch.stack(prompted_text)
    v, v_p = torch.stack(frozen_image), torch.stack(prompted_image)
    logits = model.logit_scale.exp() * unit(v + v_p) @ unit(w + w_p).t()
    log_probabilities = logits.log_softmax(dim=1)
    cross_entropy = -sum(log_probabilities[i, y] for i, y in enumerate(labels)) / len(labels)
    cos = torch.nn.CosineSimilarity(dim=1)
    image_anchor, text_anchor = (v_p, w_p) if anchor == "prompted" else (v, w)
    consistency = 2 - cos(v + v_p, image_anchor).mean() - cos(w + w_p, text_anchor).mean()
    return logits, cross_entropy, LAMBD * consistency
