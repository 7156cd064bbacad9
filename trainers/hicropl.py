"""HiCroPL: Hierarchical Cross-modal Prompt Learning (Zheng et al., ICCV 2025)."""

from __future__ import annotations

import json
import os.path as osp
import re
import unicodedata
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip import CLIP, PromptTokens, tokenize
from clip.model import QuickGELU
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError

from .base import (
    Context,
    PromptedCLIP,
    Prompts,
    PromptTrainer,
    check_range,
    check_vit,
    context_of_few_words,
    load_frozen,
    random_prompts,
    trainer_defaults,
)

HEADS = 8  # of the proxies' and the mappers' attention
CHOICES = {
    "FLOW": ("t2i_i2t", "i2t_t2i", "t2i", "i2t"),
    "MAPPER_SCALE": ("multi", "single", "single_multi", "multi_single"),
    "COMPRESSION": ("lkp", "mean", "mlp", "none"),
    "MAPPER_UPDATE": ("graph", "in_place"),
    "CONS_ANCHOR": ("prompted", "frozen"),
    "CRITERION": ("cosine", "l1", "mse"),
    "FROZEN_TEXT": ("descriptions", "template", "templates"),
}


class KnowledgeProxy(nn.Module):
    """Layer-specific knowledge proxy (LKP), eq. 2: cross-attention of one token over m prompts."""

    def __init__(self, width: int):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, HEADS)
        self.ln_1 = nn.LayerNorm(width)
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, proxy: Tensor, prompts: Tensor) -> Tensor:
        """proxy (1, width), prompts (m, width) -> refined proxy (1, width)."""
        keys = self.ln_1(prompts)
        attended, _ = self.attn(self.ln_1(proxy), keys, keys, need_weights=False)
        return self.ln_2(proxy + attended)


class TokenMLP(nn.Module):
    """Table 7's "mlp": a two-layer MLP over the token axis fuses m prompts into one."""

    def __init__(self, n_prompts: int):
        super().__init__()
        self.c_fc = nn.Linear(n_prompts, n_prompts)
        self.gelu = QuickGELU()
        self.c_proj = nn.Linear(n_prompts, 1)

    def forward(self, prompts: Tensor) -> Tensor:
        """(m, width) -> (1, width)."""
        return self.c_proj(self.gelu(self.c_fc(prompts.t()))).t()


class KnowledgeMapper(nn.Module):
    """Hierarchical knowledge mapper M, eq. 3 and 7-10."""

    def __init__(self, width: int, giving_width: int):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, HEADS)
        self.linear_q = nn.Linear(width, width)
        self.linear_k = nn.Linear(giving_width, width)
        self.linear_v = nn.Linear(giving_width, width)
        self.ln_1 = nn.LayerNorm(width)
        self.ffn = nn.Sequential(
            OrderedDict(
                c_fc=nn.Linear(width, 4 * width),
                gelu=QuickGELU(),
                c_proj=nn.Linear(4 * width, width),
            )
        )
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, prompts: Tensor, knowledge: Tensor, hidden: Tensor | None) -> Tensor:
        """prompts (queries, width), knowledge (keys, giving width) -> refined prompts.

        ``hidden`` (queries, keys) is True where a query must not see a key.
        """
        q = self.linear_q(prompts)
        k, v = self.ln_1(self.linear_k(knowledge)), self.ln_1(self.linear_v(knowledge))
        q = q + self.attn(self.ln_1(q), k, v, need_weights=False, attn_mask=hidden)[0]
        return q + self.ffn(self.ln_2(q))


class CrossModalPromptLearner(nn.Module):
    """Prompts of both towers and the knowledge flow between them (section 3.2).

    Names and shapes of the tensors are those of the released code, so that its checkpoints load.

    Args:
        settings: ``TRAINER.HICROPL``.
        context: start of the first text prompts.
        text_width, vision_width: d_t, d_v.
    """

    def __init__(self, settings: Any, context: Context, text_width: int, vision_width: int):
        super().__init__()
        depth, m = settings.PROMPT_DEPTH, settings.N_CTX
        self.in_place = settings.MAPPER_UPDATE == "in_place"
        self.compression = settings.COMPRESSION
        t2i_scale, _, i2t_scale = settings.MAPPER_SCALE.partition("_")
        self.single_scale = {
            "t2i": t2i_scale == "single",
            "i2t": (i2t_scale or t2i_scale) == "single",
        }
        text = [random_prompts(m, text_width) for _ in range(depth)]
        if context.init is not None:
            text[0] = nn.Parameter(context.init.clone())
        self.ctx = text[0]
        self.cross_prompts_text = nn.ParameterList(text)
        self.cross_prompts_visual = nn.ParameterList(
            random_prompts(m, vision_width) for _ in range(depth)
        )
        k = settings.CROSS_LAYER
        first, _, second = settings.FLOW.partition("_")
        # Direction -> the layers whose prompts flow that way (Table 4).
        self.flow = {first: range(k), second: range(k, depth)} if second else {first: range(depth)}
        if "t2i" in self.flow:
            self.text2visual_net = KnowledgeMapper(vision_width, text_width)
            n_layers = len(self.flow["t2i"])
            self.attn_pooling_text_nets = self._compressors(text_width, m, n_layers)
            self.text_proxy_token = self._proxies(text_width, n_layers)
        if "i2t" in self.flow:
            self.visual2text_net = KnowledgeMapper(text_width, vision_width)
            n_layers = len(self.flow["i2t"])
            self.attn_pooling_visual_nets = self._compressors(vision_width, m, n_layers)
            self.visual_proxy_token = self._proxies(vision_width, n_layers)

    def _compressors(self, width: int, m: int, n_layers: int) -> nn.ModuleList:
        if self.compression == "lkp":
            return nn.ModuleList(KnowledgeProxy(width) for _ in range(n_layers))
        if self.compression == "mlp":
            return nn.ModuleList(TokenMLP(m) for _ in range(n_layers))
        return nn.ModuleList()

    def _proxies(self, width: int, n_layers: int) -> nn.ParameterList:
        n_proxies = n_layers if self.compression == "lkp" else 0
        return nn.ParameterList(random_prompts(1, width, std=1.0) for _ in range(n_proxies))

    def _compress(
        self, prompts: Sequence[Tensor], nets: nn.ModuleList, proxies: nn.ParameterList
    ) -> list[Tensor]:
        """What each giving layer's m prompts hand over: (1, width), or all m for "none"."""
        if self.compression == "lkp":
            return [net(q, p) for net, q, p in zip(nets, proxies, prompts, strict=True)]
        if self.compression == "mlp":
            return [net(p) for net, p in zip(nets, prompts, strict=True)]
        if self.compression == "mean":
            return [p.mean(dim=0, keepdim=True) for p in prompts]
        return list(prompts)

    def _map(
        self,
        mapper: KnowledgeMapper,
        receiving: Sequence[Tensor],
        knowledge: list[Tensor],
        single_scale: bool,
    ) -> list[Tensor]:
        """P = M(P, P~, P~) (eq. 3) over all layers of one direction.

        Multi-scale: every prompt sees the knowledge of all giving layers.  Single-scale
        (Table 6): only that of its own layer; all else stays equal.
        """
        m, n_layers = receiving[0].shape[0], len(receiving)
        hidden = None
        if single_scale:
            own = torch.eye(n_layers, dtype=torch.bool, device=receiving[0].device)
            own = own.repeat_interleave(m, 0).repeat_interleave(knowledge[0].shape[0], 1)
            hidden = ~own
        mapped = mapper(torch.cat(list(receiving)), torch.cat(knowledge), hidden)
        return list(mapped.split(m))

    def forward(self) -> Prompts:
        """Prompts of the first layers of both towers after the knowledge flow.

        In "graph" mode the flow is part of the graph and nothing is changed.  In "in_place" mode
        the refined prompts are copied into the parameters, outside the graph, as the released
        code does: mappers, proxies and LKP then get no gradient, and each call changes the
        prompts.
        """
        text, vision = list(self.cross_prompts_text), list(self.cross_prompts_visual)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.in_place):
            for direction, layers in self.flow.items():
                part = slice(layers.start, layers.stop)
                if direction == "t2i":
                    giving, receiving, mapper = text, vision, self.text2visual_net
                    nets, proxies = self.attn_pooling_text_nets, self.text_proxy_token
                else:
                    giving, receiving, mapper = vision, text, self.visual2text_net
                    nets, proxies = self.attn_pooling_visual_nets, self.visual_proxy_token
                knowledge = self._compress(giving[part], nets, proxies)
                single = self.single_scale[direction]
                receiving[part] = self._map(mapper, receiving[part], knowledge, single)
        if not self.in_place:
            return Prompts(text, vision)
        for parameters, refined in (
            (self.cross_prompts_text, text),
            (self.cross_prompts_visual, vision),
        ):
            for parameter, value in zip(parameters, refined, strict=True):
                parameter.data.copy_(value)
        return Prompts(list(self.cross_prompts_text), list(self.cross_prompts_visual))


class HierarchicalCLIP(PromptedCLIP):
    """Predicts with the renormalised sum of unit prompted and unit frozen features."""

    def build(self, cfg: Any, class_names: Sequence[str]) -> None:
        settings, config = self.settings, self.clip.config
        self.context = context_of_few_words(self.clip, settings.CTX_INIT, settings.N_CTX)
        self.prompt_learner = CrossModalPromptLearner(
            settings, self.context, config.text_width, config.vision_width
        )
        # The in-place flow changes the prompts from one batch to the next, in evaluation too.
        self.text_depends_on_image = settings.MAPPER_UPDATE == "in_place"
        self.descriptions = settings.DESCRIPTIONS.replace("{dataset}", cfg.DATASET.NAME)
        self.teacher = self.clip
        if settings.TEACHER_NAME not in ("", cfg.MODEL.BACKBONE.NAME):
            self.teacher = load_frozen("TRAINER.HICROPL.TEACHER_NAME", settings.TEACHER_NAME)
            self.teacher.to(self.device, self.clip.dtype)

    def tokenize_classes(self, class_names: Sequence[str]) -> PromptTokens:
        return self.prompt_tokens(class_names, self.context.words, self.context.n_prompts)

    def set_classes(self, class_names: Sequence[str]) -> None:
        super().set_classes(class_names)
        kind = self.settings.FROZEN_TEXT
        if kind == "descriptions":
            texts = read_descriptions(self.descriptions, self.class_names)
            self.frozen_text = self.frozen_text_features(
                cut_to_context(texts, self.clip.context_length)
            )
        else:
            count = 1 if kind == "template" else None
            self.frozen_text = self.template_features(self.templates[:count])

    def prompts(self) -> Prompts:
        return self.prompt_learner()

    @torch.no_grad()
    def frozen_image_features(self, images: Tensor) -> Tensor:
        """V, the unit features of plain CLIP on the same view: (B, d)."""
        return F.normalize(self.teacher.encode_image(images).float(), dim=-1)

    def forward(
        self, images: Tensor, labels: Tensor | None = None
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Logits (B, K); with labels also L_ce (eq. 4) and lambda * L_cons (eq. 5, 6)."""
        prompts, prompted_text = self.class_features()
        text = F.normalize(prompted_text + self.frozen_text, dim=-1)
        frozen = self.frozen_image_features(images)
        prompted = self.image_features(images, prompts)
        image = F.normalize(prompted + frozen, dim=-1)
        logits = self.clip.logit_scale.exp().float() * image @ text.t()
        if labels is None:
            return logits
        terms = {"loss_ce": F.cross_entropy(logits, labels)}
        if self.settings.LAMBD > 0:
            if self.settings.CONS_ANCHOR == "prompted":
                anchors = (prompted, prompted_text)
            else:
                anchors = (frozen, self.frozen_text)
            consistency = self.distance(image, anchors[0]) + self.distance(text, anchors[1])
            terms["loss_cons"] = self.settings.LAMBD * consistency
        return logits, terms

    def distance(self, features: Tensor, anchor: Tensor) -> Tensor:
        """Mean distance of unit features (N, d) by the criterion of Table 13."""
        if self.settings.CRITERION == "cosine":
            return 1 - (features * anchor).sum(dim=-1).mean()
        if self.settings.CRITERION == "l1":
            return F.l1_loss(features, anchor)
        return F.mse_loss(features, anchor)


def read_descriptions(path: str, class_names: Sequence[str]) -> list[list[str]]:
    """The sentences of each class from a JSON file {class name: [sentences]}.

    A class has the sentences of its own name; where the file has not that very name, those of the
    one name that differs in nothing but case, underscores, hyphens, spaces and accents.

    Raises:
        UserError: no such file, not such a file, or classes without sentences or with several
            names to choose from, all of which the line names.
    """
    key = "TRAINER.HICROPL.DESCRIPTIONS"
    other = "choose TRAINER.HICROPL.FROZEN_TEXT template or templates"
    if not osp.isfile(path):
        raise UserError(
            f"{key}: no file '{path}'; fetch the public ones with `python -m datasets.prepare "
            f"descriptions`, write {{class name: [sentences]}} there, or {other}"
        )
    try:
        with open(path, encoding="utf-8") as file:
            sentences = dict(json.load(file).items())
    except (ValueError, AttributeError) as error:
        raise UserError(f"{key}: '{path}' is not JSON {{class name: [sentences]}}") from error
    for name, texts in sentences.items():
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise UserError(f"{key}: '{path}' has no list of sentences for '{name}'")
    by_spelling: dict[str, list[str]] = {}
    for name, texts in sentences.items():
        if texts:
            by_spelling.setdefault(plain_spelling(name), []).append(name)
    chosen, missing, several = [], [], []
    for class_name in class_names:
        names = by_spelling.get(plain_spelling(class_name), [])
        exact = [name for name in names if name.replace("_", " ") == class_name.replace("_", " ")]
        names = exact or names
        if len(names) == 1:
            chosen.append(sentences[names[0]])
        elif names:
            several.append(f"{class_name!r} ({' or '.join(map(repr, names))})")
        else:
            missing.append(repr(class_name))
    problems = [f"has no sentences for {', '.join(missing)}"] if missing else []
    problems += [f"has several names for {', '.join(several)}"] if several else []
    if problems:
        raise UserError(f"{key}: '{path}' {' and '.join(problems)}; correct it or {other}")
    return chosen


def plain_spelling(name: str) -> str:
    """The name without case, accents, and kinds of blanks: "Gâteau_au-Riz" is "gateau au riz"."""
    letters = unicodedata.normalize("NFKD", name).casefold()
    letters = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return " ".join(re.split(r"[\s_-]+", letters)).strip()


def cut_to_context(texts: Sequence[Sequence[str]], context_length: int) -> list[list[str]]:
    """The texts, without the last words of those that are longer than the context.

    A few of the public descriptions ramble on, which should not end a run; a line counts them.
    """
    cut = 0

    def fitting(text: str) -> str:
        nonlocal cut
        words = text.split()
        while len(words) > 1:
            try:
                tokenize(" ".join(words), context_length)
                break
            except ValueError:
                words.pop()
        cut += len(words) < len(text.split())
        return " ".join(words)

    short = [[fitting(text) for text in class_texts] for class_texts in texts]
    if cut:
        print(f"Descriptions cut to the {context_length} tokens that the model takes: {cut}")
    return short


@TRAINER_REGISTRY.register()
class HiCroPL(PromptTrainer):
    model_class = HierarchicalCLIP
    config_node = trainer_defaults(
        "HICROPL",
        N_CTX=16,
        PROMPT_DEPTH=12,
        CROSS_LAYER=6,  # k, the layer boundary of Table 5
        CTX_INIT="a photo of a",  # used where N_CTX <= 4
        LAMBD=12.0,
        TEACHER_NAME="",  # CLIP of the frozen image features; "" is the backbone itself
        FLOW="t2i_i2t",
        MAPPER_SCALE="multi",  # of both directions, or single_multi: t2i single, i2t multi
        COMPRESSION="lkp",
        MAPPER_UPDATE="graph",
        CONS_ANCHOR="prompted",
        CRITERION="cosine",
        FROZEN_TEXT="descriptions",
        DESCRIPTIONS="datasets/descriptions/{dataset}.json",
    )

    def check_settings(self, settings: Any, clip_model: CLIP) -> None:
        node = "TRAINER.HICROPL"
        for key, allowed in CHOICES.items():
            if settings[key] not in allowed:
                raise UserError(f"{node}.{key} is '{settings[key]}', allowed: {', '.join(allowed)}")
        deepest = min(check_vit(clip_model), clip_model.config.text_layers)
        check_range(f"{node}.PROMPT_DEPTH", settings.PROMPT_DEPTH, 1, deepest)
        if "_" in settings.FLOW:  # both directions
            check_range(f"{node}.CROSS_LAYER", settings.CROSS_LAYER, 1, settings.PROMPT_DEPTH - 1)
        check_range(f"{node}.N_CTX", settings.N_CTX, 1)
