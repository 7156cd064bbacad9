"""HiCroPL: Hierarchical Cross-modal Prompt Learning (Zheng et al., ICCV 2025)."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip import CLIP, PromptTokens
from clip.blocks import QuickGELU
from dassl.config.domains import Choice, Float, Int, Text, Words
from dassl.utils import log

from .base import Batch, Features, Method, Towers, unit_means
from .context import Context, check_few_words, context_of_few_words, random_prompts
from .descriptions import DESCRIPTIONS, cut_to_context
from .settings import MOST_PROMPTS, check_unread, deepest_layer
from .trainer import load_frozen, register_method

DESCRIBED = ("descriptions", "random")  # values of FROZEN_TEXT that read DESCRIPTIONS
PHOTO = "a photo of a {}."
HEADS = 8  # of the proxies' and the mappers' attention in the released code; the paper has one


class KnowledgeProxy(nn.Module):
    """Layer-specific knowledge proxy (LKP), eq. 2: cross-attention of one token over m prompts.

    The paper says no more.  Eight heads, the projections of MultiheadAttention, one norm for query,
    keys and values, the residual and the norm behind it are the released code's.
    """

    def __init__(self, width: int):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, HEADS)
        self.ln_1 = nn.LayerNorm(width)
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, proxy: Tensor, prompts: Tensor) -> Tensor:
        """Refine the proxy (1, width) by the prompts (m, width)."""
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
        """Fuse (m, width) into (1, width)."""
        return self.c_proj(self.gelu(self.c_fc(prompts.t()))).t()


class KnowledgeMapper(nn.Module):
    """Hierarchical knowledge mapper M, eq. 3 and 7-10.

    Where it departs from these equations, it follows the released code: MultiheadAttention projects
    the Q, K and V of eq. 7 a second time, and its output; it has eight heads, so that eq. 8 divides
    by the root of a head's width; one norm serves Q, K and V in eq. 9; GELU in eq. 10 is QuickGELU.
    """

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
        """Refine prompts (queries, width) by knowledge (keys, giving width).

        ``hidden`` (queries, keys) is True where a query must not see a key.
        """
        q = self.linear_q(prompts)
        k, v = self.ln_1(self.linear_k(knowledge)), self.ln_1(self.linear_v(knowledge))
        q = q + self.attn(self.ln_1(q), k, v, need_weights=False, attn_mask=hidden)[0]
        return q + self.ffn(self.ln_2(q))


def flow_layers(settings: Any) -> dict[str, range]:
    """Return direction -> the layers, from 0, whose prompts flow that way (Table 4).

    Of two directions, the first has the layers up to k (Table 5), which is CROSS_LAYER but leaves
    the second direction at least one.  A single layer has the first direction alone.
    """
    depth = settings.PROMPT_DEPTH
    if settings.FLOW == "none":
        return {}
    first, _, second = settings.FLOW.partition("_")
    if not second:
        return {first: range(depth)}
    k = max(1, min(settings.CROSS_LAYER, depth - 1))
    flow = {first: range(k)}
    if k < depth:
        flow[second] = range(k, depth)
    if k < settings.CROSS_LAYER or k == depth:
        parts = [f"{name} in layers {part.start + 1} to {part.stop}" for name, part in flow.items()]
        log.info(f"CROSS_LAYER {settings.CROSS_LAYER}, PROMPT_DEPTH {depth}: {', '.join(parts)}")
    return flow


class CrossModalPromptLearner(nn.Module):
    """Prompts of both towers and the knowledge flow between them (section 3.2).

    Names and shapes of the tensors are those of the released code, so that its checkpoints load.
    With "in_place" they also start as there on a GPU: all vision prompts are copies of one tensor,
    and so are the proxies and the LKPs of a direction.  (On a CPU, that code's copies share their
    memory.)  With "graph" each has a start of its own.

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
            self._several(lambda: random_prompts(m, vision_width), depth)
        )
        self.flow = flow_layers(settings)
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

    def _several(self, make: Callable[[], Any], count: int) -> list[Any]:
        """Make tensors or modules: with "in_place" copies of one."""
        if not self.in_place:
            return [make() for _ in range(count)]
        one = make()
        return [copy.deepcopy(one) for _ in range(count)]

    def _compressors(self, width: int, m: int, n_layers: int) -> nn.ModuleList:
        if self.compression == "lkp":
            return nn.ModuleList(self._several(lambda: KnowledgeProxy(width), n_layers))
        if self.compression == "mlp":
            return nn.ModuleList(self._several(lambda: TokenMLP(m), n_layers))
        return nn.ModuleList()

    def _proxies(self, width: int, n_layers: int) -> nn.ParameterList:
        n_proxies = n_layers if self.compression == "lkp" else 0
        return nn.ParameterList(self._several(lambda: random_prompts(1, width, std=1.0), n_proxies))

    def _compress(
        self, prompts: Sequence[Tensor], nets: nn.ModuleList, proxies: nn.ParameterList
    ) -> list[Tensor]:
        """Return what each giving layer hands over: (1, width), or all m prompts for "none"."""
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
        """Compute P = M(P, P~, P~) (eq. 3) over all layers of one direction.

        Multi-scale: every prompt sees the knowledge of all giving layers.  Single-scale
        (Table 6): only that of its own layer; all else is the same.
        """
        m, n_layers = receiving[0].shape[0], len(receiving)
        hidden = None
        if single_scale:
            own = torch.eye(n_layers, dtype=torch.bool, device=receiving[0].device)
            own = own.repeat_interleave(m, 0).repeat_interleave(knowledge[0].shape[0], 1)
            hidden = ~own
        mapped = mapper(torch.cat(list(receiving)), torch.cat(knowledge), hidden)
        return list(mapped.split(m))

    def forward(self) -> Towers:
        """Return the prompts of the first layers of both towers after the knowledge flow.

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
            return Towers(text, vision)
        for parameters, refined in (
            (self.cross_prompts_text, text),
            (self.cross_prompts_visual, vision),
        ):
            for parameter, value in zip(parameters, refined, strict=True):
                parameter.data.copy_(value)
        return Towers(list(self.cross_prompts_text), list(self.cross_prompts_visual))


@register_method(
    "HICROPL",
    N_CTX=Int(16, min=1, max=MOST_PROMPTS, help="prompts of a layer, in each tower"),
    PROMPT_DEPTH=Int(12, min=1, help="first layers that have prompts"),
    CROSS_LAYER=Int(
        6, min=1, help="k, end of the first direction (Table 5); read as min(k, PROMPT_DEPTH - 1)"
    ),
    CTX_INIT=Words("a photo of a", help="words that the text prompts start from where N_CTX <= 4"),
    LAMBD=Float(12.0, min=0, help="weight of the consistency loss"),
    TEACHER_NAME=Text("", help='CLIP of the frozen image features ("": the backbone itself)'),
    FLOW=Choice(
        "t2i_i2t",
        *("t2i_i2t", "i2t_t2i", "t2i", "i2t", "none"),
        help="directions of the flow (Table 4); none: prompts as they are (Table 11)",
    ),
    MAPPER_SCALE=Choice(
        "multi",
        *("multi", "single", "single_multi", "multi_single"),
        help="layers that a mapper sees; single_multi: t2i single, i2t multi (Table 6)",
    ),
    COMPRESSION=Choice(
        "lkp", "lkp", "mean", "mlp", "none", help="what a layer's prompts become (Table 7)"
    ),
    MAPPER_UPDATE=Choice(
        "graph",
        *("graph", "in_place"),
        help="in_place: the mappers learn nothing, and layers start alike, as released",
    ),
    CONS_ANCHOR=Choice(
        "prompted",
        *("prompted", "frozen"),
        help="features that the fused ones are held near; the same but for CRITERION l1",
    ),
    CRITERION=Choice("cosine", "cosine", "l1", "mse", help="distance of features (Table 13)"),
    FROZEN_TEXT=Choice(
        "descriptions",
        *("descriptions", "random", "imagenet_templates", "photo"),
        *("dataset_template", "dataset_templates"),
        help="texts of the frozen features (Table 12): all of DESCRIPTIONS, a random one a step, "
        "60 ImageNet templates, a photo of a {}., or the dataset's first template, or all of them",
    ),
    DESCRIPTIONS=Text(DESCRIPTIONS, help="JSON file {class name: [sentences]}"),
)
class HiCroPL(Method):
    """Prompts that flow between the towers, held near the frozen CLIP.

    Prediction by the renormalized sum of unit prompted and unit frozen features is the released
    code's; eq. 4 has V and W.  That code holds the sum near the frozen features (CONS_ANCHOR
    frozen), eq. 5 near the prompted ones.  The sum of two unit vectors bisects their angle, so its
    cosine, and its squared distance, is the same to both: with CRITERION cosine and mse loss and
    gradients are equal, with l1 they are not.

    FROZEN_TEXT random draws one index a step for all classes, as CoPrompt's public code does, from
    torch's generator; a class with fewer sentences than the others begins again.  The paper does
    not say what its row predicts with: here evaluation takes the mean of all, as with descriptions.

    For the depths of Fig. 4 the paper does not give k: see ``flow_layers``.
    """

    @classmethod
    def check_settings(cls, settings: Any, clip_model: CLIP) -> None:
        node, depth = "TRAINER.HICROPL", settings.PROMPT_DEPTH
        Int(min=1, max=deepest_layer(clip_model)).check(f"{node}.PROMPT_DEPTH", depth)
        check_few_words(node, settings.CTX_INIT, settings.N_CTX)
        if settings.FLOW == "none":
            usual_flow = {"MAPPER_SCALE": "multi", "COMPRESSION": "lkp", "MAPPER_UPDATE": "graph"}
            check_unread(node, settings, "FLOW none", **usual_flow)
        if settings.FROZEN_TEXT not in DESCRIBED:
            usual = DESCRIPTIONS if settings.DESCRIPTIONS == DESCRIPTIONS else ""
            check_unread(node, settings, f"FROZEN_TEXT {settings.FROZEN_TEXT}", DESCRIPTIONS=usual)
        if settings.LAMBD == 0:
            check_unread(node, settings, "LAMBD 0", CONS_ANCHOR="prompted", CRITERION="cosine")

    def build(self, cfg: Any, class_names: Sequence[str]) -> None:
        settings, config = self.settings, self.clip.config
        self.context = context_of_few_words(self.clip, settings.CTX_INIT, settings.N_CTX)
        self.prompt_learner = CrossModalPromptLearner(
            settings, self.context, config.text_width, config.vision_width
        )
        # The in-place flow changes the prompts from one batch to the next, also in evaluation.
        self.fixable = self.layers_suffice = settings.MAPPER_UPDATE != "in_place"
        self.description_file = settings.DESCRIPTIONS.replace("{dataset}", cfg.DATASET.NAME)
        self.teacher = self.clip
        if settings.TEACHER_NAME not in ("", cfg.MODEL.BACKBONE.NAME):
            self.teacher = load_frozen("TRAINER.HICROPL.TEACHER_NAME", settings.TEACHER_NAME)
            self.teacher.to(self.device, self.clip.dtype)

    def tokenize_classes(self, class_names: Sequence[str]) -> PromptTokens:
        words, n_prompts, _ = self.context
        return self.prompt_tokens(class_names, words, n_prompts, key=self.context.key())

    def set_classes(self, class_names: Sequence[str]) -> None:
        super().set_classes(class_names)
        kind = self.settings.FROZEN_TEXT
        if kind in DESCRIBED:
            self.set_described()
        elif kind == "imagenet_templates":
            self.frozen_text = self.ensemble_features()
        else:
            templates = [PHOTO] if kind == "photo" else self.templates
            count = None if kind == "dataset_templates" else 1
            self.frozen_text = self.template_features(templates[:count])

    def set_described(self) -> None:
        """Set the features of the classes' sentences: their means, and for random each of them."""
        texts = self.sentences(
            self.description_file,
            key="TRAINER.HICROPL.DESCRIPTIONS",
            other="choose TRAINER.HICROPL.FROZEN_TEXT dataset_template or dataset_templates",
        )
        texts = cut_to_context(texts, self.clip.context_length)
        counts = [len(sentences) for sentences in texts]
        features = self.unit_text_features([text for each in texts for text in each])
        self.frozen_text = unit_means(features, counts)
        if self.settings.FROZEN_TEXT == "random":
            self.sentence_features, self.most_sentences = features, max(counts)
            self.n_sentences = torch.tensor(counts, device=self.device)
            self.first_sentence = self.n_sentences.cumsum(0) - self.n_sentences

    def step_text(self) -> Tensor:
        """Return the frozen text features (K, d) of this step, or those of an evaluation."""
        if self.settings.FROZEN_TEXT != "random" or not self.training:
            return self.frozen_text
        index = torch.randint(self.most_sentences, ()).to(self.device)
        return self.sentence_features[self.first_sentence + index % self.n_sentences]

    def layers(self, condition: Tensor | None = None) -> Towers:
        return self.prompt_learner()

    def class_features(self, towers: Towers) -> Features:
        prompted, frozen = self.encode_text(towers.text), self.step_text()
        fused = F.normalize(prompted + frozen, dim=-1)
        return {"text": fused, "prompted_text": prompted, "frozen_text": frozen}

    def image_features(self, batch: Batch, towers: Towers) -> Features:
        """Fuse prompted features with V, the features of plain CLIP on the same view."""
        images = self.views(batch)[0]
        with torch.no_grad():
            frozen = self.frozen_image(images, self.teacher)
        prompted = self.encode_image(images, towers.vision)
        fused = F.normalize(prompted + frozen, dim=-1)
        return {"image": fused, "prompted_image": prompted, "frozen_image": frozen}

    def losses(self, features: Features, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return L_ce (eq. 4) and lambda * L_cons (eq. 5, 6)."""
        terms = super().losses(features, logits, labels)
        if self.settings.LAMBD > 0:
            if self.settings.CONS_ANCHOR == "prompted":
                image, text = features["prompted_image"], features["prompted_text"]
            else:
                image, text = features["frozen_image"], features["frozen_text"]
            consistency = self.distance(features["image"], image)
            consistency = consistency + self.distance(features["text"], text)
            terms["loss_cons"] = self.settings.LAMBD * consistency
        return terms

    def distance(self, features: Tensor, anchor: Tensor) -> Tensor:
        """Return the mean distance of unit features (N, d) by the criterion of Table 13."""
        if self.settings.CRITERION == "cosine":
            return 1 - (features * anchor).sum(dim=-1).mean()
        if self.settings.CRITERION == "l1":
            return F.l1_loss(features, anchor)
        return F.mse_loss(features, anchor)

    def public_copies(self) -> set[str]:
        buffers = {"prompt_learner.token_prefix", "prompt_learner.token_suffix"}
        return buffers | self.copies_of_clip() | self.copies_of_teacher()
