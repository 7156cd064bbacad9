"""HISF: Hierarchical Interactive Semantic Fusion (Feng and Li, preprint 202511.0717, 2025)."""

from __future__ import annotations

import os.path as osp
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clip import CLIP, PromptTokens
from clip.blocks import QuickGELU
from clip.tokens import tokenizer
from dassl.config import register_defaults
from dassl.config.domains import Bool, Choice, Float, Int, Layers
from dassl.engine.recorders import RECORDER_REGISTRY, Recorder, asked_by
from dassl.utils import UserError, atomic_write, log

from .base import Features, Method, Towers
from .context import random_prompts
from .settings import MOST_PROMPTS, check_unread, deepest_layer
from .trainer import register_method

REDUCTION = 16  # of the bottleneck's hidden layer
ATTENTION_FILE = "attention.npz"

register_defaults(
    "TEST", {"SAVE_ATTENTION": Bool(False, help="as attention in RECORD: save attention.npz")}
)


class SemanticFusion(nn.Module):
    """Label-guided cross-attention and bottleneck of one tower at one layer, eq. 3-8.

    The paper names neither heads nor the MLP's layers: one head as wide as the tower (the d of
    eq. 6), and Linear-QuickGELU-Linear with a sixteenth of its output's width between.

    Args:
        width: of the prompts, d_p.
        label_width: of the label embeddings, d.
    """

    def __init__(self, width: int, label_width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(label_width, width, bias=False)
        self.value = nn.Linear(label_width, width, bias=False)
        hidden = max(1, width // REDUCTION)
        self.mlp = nn.Sequential(
            nn.Linear(width + label_width, hidden), QuickGELU(), nn.Linear(hidden, width)
        )

    def forward(self, prompts: Tensor, labels: Tensor, own: Tensor) -> Tensor:
        """Return P_final of prompts (m, d_p), or (K, m, d_p) where they are class-specific.

        Args:
            labels: E (K, d), what the prompts attend to.
            own: the label joined to each prompt in eq. 8, (1, d), or (K, 1, d) for one of each
                class, which makes the result class-specific.
        """
        fused = prompts + self.attention(prompts, labels) @ self.value(labels)  # eq. 5-7
        shape = torch.broadcast_shapes(fused.shape[:-1], own.shape[:-1])
        joined = torch.cat([fused.expand(*shape, -1), own.expand(*shape, -1)], dim=-1)
        return fused + self.mlp(joined)  # eq. 8

    def attention(self, prompts: Tensor, labels: Tensor) -> Tensor:
        """Return the weights of eq. 6, how much each prompt token takes of each label.

        Prompts (m, d_p) or (K, m, d_p) and labels E (K, d) -> (m, K) or (K, m, K); the last
        dimension sums to 1.
        """
        query = self.query(self.norm(prompts))  # eq. 3
        key = self.key(labels)  # eq. 4
        return (query @ key.t() / key.shape[-1] ** 0.5).softmax(dim=-1)


class FusedPromptLearner(nn.Module):
    """Prompts of both towers and their fusion with the labels.

    With prompt initialization (PI) both towers' prompts are projections of one matrix (eq. 2);
    without it each tower has its own.  All start from normal(0, 0.02).

    What the paper leaves open: P_s is as wide as the label embeddings; each fusion layer has
    modules of its own in each tower; the P of a fusion layer is the P_final of the one before
    ("progressive", section 3.3), that of the first is P_t or P_v.  Without semantic fusion (SF)
    P_final is P.
    """

    def __init__(self, settings: Any, clip_model: CLIP):
        super().__init__()
        config, m = clip_model.config, settings.N_CTX
        width = config.text_width if settings.LABELS == "words" else config.embed_dim
        self.layers: list[int] = list(settings.FUSION_LAYERS)
        self.shared = settings.PROMPT_INIT
        if self.shared:
            self.ctx = random_prompts(m, width)
            self.project_text = nn.Linear(width, config.text_width, bias=False)
            self.project_vision = nn.Linear(width, config.vision_width, bias=False)
        else:
            self.ctx_text = random_prompts(m, config.text_width)
            self.ctx_vision = random_prompts(m, config.vision_width)
        n_fusions = len(self.layers) if settings.SEMANTIC_FUSION else 0
        self.fuse_text = nn.ModuleList(
            SemanticFusion(config.text_width, width) for _ in range(n_fusions)
        )
        self.fuse_vision = nn.ModuleList(
            SemanticFusion(config.vision_width, width) for _ in range(n_fusions)
        )

    def forward(self, labels: Tensor) -> Towers:
        """Make prompts of the first layers of both towers from label embeddings E (K, d).

        Text prompts carry their class's own label and are (K, m, d_t).  An image's class is not
        known, so vision prompts carry the mean of the labels and are (m, d_v) for all images.
        """
        text, vision = self.start()
        mean = labels.mean(dim=0, keepdim=True)
        return Towers(
            self._at_layers(self.fuse_text, text, labels, labels[:, None]),
            self._at_layers(self.fuse_vision, vision, labels, mean),
        )

    def start(self) -> tuple[Tensor, Tensor]:
        """Return P_t (m, d_t) and P_v (m, d_v), eq. 2."""
        if self.shared:
            return self.project_text(self.ctx), self.project_vision(self.ctx)
        return self.ctx_text, self.ctx_vision

    def attention(self, labels: Tensor) -> dict[str, dict[int, Tensor]]:
        """Return ``SemanticFusion.attention`` by tower ("text", "vision") and fusion layer.

        Those of the text tower are (m, K) at the first fusion layer and (K, m, K) after it, where
        each class has prompts of its own; those of the vision tower are (m, K).
        """
        fused = self(labels)
        starts = self.start()
        weights: dict[str, dict[int, Tensor]] = {}
        fusions: Any
        for tower, start, at, fusions in (
            ("text", starts[0], fused.text, self.fuse_text),
            ("vision", starts[1], fused.vision, self.fuse_vision),
        ):
            # each fusion reads the output of the one before it
            prompts = [start, *(at[layer - 1] for layer in self.layers[:-1])]
            weights[tower] = {
                layer: fusion.attention(p, labels)
                for layer, fusion, p in zip(self.layers, fusions, prompts, strict=True)
            }
        return weights

    def _at_layers(
        self, fusions: nn.ModuleList, prompts: Tensor, labels: Tensor, own: Tensor
    ) -> list[Tensor | None]:
        """Place P_final in the fusion layers; before the first of them there are no prompts."""
        at: list[Tensor | None] = [None] * self.layers[-1]
        for i, layer in enumerate(self.layers):
            if len(fusions) > 0:
                prompts = fusions[i](prompts, labels, own)
            at[layer - 1] = prompts
        return at


@register_method(
    "HISF",
    # N_CTX and the layers are not in the paper: MaPLe's 2; from an intermediate layer on, which
    # section 4.5.1 finds better than a low or a deep one.
    N_CTX=Int(2, min=1, max=MOST_PROMPTS, help="L_p: prompts, in each tower"),
    FUSION_LAYERS=Layers((3, 7, 11), help="layers with a fusion; no prompts before the first"),
    PROMPT_INIT=Bool(True, help="PI: prompts of both towers start from shared ones"),
    LABELS=Choice(
        "features", "features", "words", help="E: frozen text features, or word embeddings of names"
    ),
    SEMANTIC_FUSION=Bool(True, help="SF: label-guided fusion at the fusion layers"),
    LOSS_CLS=Bool(True, help="the loss has the cross-entropy"),
    LAMBDA_LE=Float(0.46, min=0, help="lambda_1, weight of the label embedding loss (0: off)"),
    LE_DISTANCE=Choice(
        "norm_of_mean",
        "norm_of_mean",
        "mean_of_norms",
        help="eq. 9: distance of a class's mean prompt token, or mean over its prompt tokens",
    ),
    LAMBDA_SA=Float(4.6, min=0, help="lambda_2, weight of the alignment loss (0: off)"),
    PROMPT_LR_FACTOR=Float(1.0, above=0, help="factor of OPTIM.LR for the prompts"),
    DECAY=Choice("all", "all", "projections", help="what OPTIM.WEIGHT_DECAY acts on"),
)
class HISF(Method):
    """Class-specific text prompts, vision prompts for all images.

    What the paper leaves open:
    - E is an output feature in section 3.4 (E_y in R^d), the class name's input in eq. 11.  LABELS
      features: the frozen text features of the class names in the dataset's first template, of unit
      length, (K, d).  LABELS words: the word embeddings of the names, as LAMM has them; LAMM keeps
      several a class, E_i is one vector, so that it is the mean over the name's tokens, (K, d_t),
      not normalized, for prompts are not either.
    - f(P_final + E_i) of eq. 11 is the text tower over prompts followed by the class name (section
      3.2 appends prompts to the input); no words come before it.
    - Prompts enter at the first fusion layer, "a particular Transformer layer" (section 4.1), after
      [SOS] in the text tower.  Earlier layers see the class name alone.
    - N of eq. 10 and 11 is the batch.  Nothing in eq. 9 depends on an image: its N is the number of
      classes.  P_final has several tokens where E_i is one vector: see ``label_distance``.
    - An image's class is not known, so the E_i that eq. 8 joins to vision prompts is the mean over
      the classes to choose from, and eq. 6 attends to all of those in both towers: other candidate
      classes change the features of an image.
    - Fig. 1 draws image embeddings into the prompts.  No equation has them, nor are they read here.
    - Section 3.5 trains in episodes of a few base classes, section 4.1 in batches of 4 for 50
      epochs: each batch is drawn from all classes of the training.
    - Section 4.2 adapts on images of the novel classes, sections 3.5 and 4.3 do without further
      tuning, as do the methods of Table 1: nothing is adapted, novel classes bring their E alone.
    - Section 4.1 trains with SGD, section 3.5 with AdamW, weight decay on projection matrices only
      and a higher rate for prompts: ``OPTIM.NAME``, ``DECAY``, ``PROMPT_LR_FACTOR``.
    """

    @classmethod
    def check_settings(cls, settings: Any, clip_model: CLIP) -> None:
        node = "TRAINER.HISF"
        layers = Layers(max=deepest_layer(clip_model))
        layers.check(f"{node}.FUSION_LAYERS", settings.FUSION_LAYERS)
        if not (settings.LOSS_CLS or settings.LAMBDA_LE or settings.LAMBDA_SA):
            raise UserError(f"{node}: expected LOSS_CLS, LAMBDA_LE or LAMBDA_SA, got none of them")
        if settings.LAMBDA_LE == 0:
            check_unread(node, settings, "LAMBDA_LE 0", LE_DISTANCE="norm_of_mean")
            if not settings.SEMANTIC_FUSION:
                cause = "SEMANTIC_FUSION False and LAMBDA_LE 0"
                check_unread(node, settings, cause, LABELS="features")

    def build(self, cfg: Any, class_names: Sequence[str]) -> None:
        self.prompt_learner = FusedPromptLearner(self.settings, self.clip)

    def tokenize_classes(self, class_names: Sequence[str]) -> PromptTokens:
        if self.settings.FUSION_LAYERS[0] > 1:  # the text tower inserts the prompts after [SOS]
            return self.plain_tokens(f"{name}." for name in class_names)
        m = self.settings.N_CTX
        return self.prompt_tokens(class_names, " ".join(["X"] * m), m, key="N_CTX")

    def set_classes(self, class_names: Sequence[str]) -> None:
        super().set_classes(class_names)
        words = self.settings.LABELS == "words"
        # E: (K, d_t) or (K, d); novel classes have it, too.
        self.labels = self.word_labels() if words else self.template_features(self.templates[:1])

    def word_labels(self) -> Tensor:
        """Return the mean word embedding of each class name's tokens: (K, d_t), fp32."""
        weight = self.clip.token_embedding.weight
        ids = (tokenizer().encode(name) for name in self.class_names)
        rows = [
            weight[torch.tensor(each, device=weight.device)].float().mean(dim=0) for each in ids
        ]
        return torch.stack(rows)

    def layers(self, condition: Tensor | None = None) -> Towers:
        return self.prompt_learner(self.labels)

    def class_features(self, towers: Towers) -> Features:
        """Add ``final``, the text prompts of the last fusion layer."""
        final = towers.text[-1]
        assert isinstance(final, Tensor)
        return {**super().class_features(towers), "final": final}

    def losses(self, features: Features, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the terms of eq. 12 that are on."""
        settings, terms = self.settings, {}
        if settings.LOSS_CLS:
            terms["loss_cls"] = super().losses(features, logits, labels)["loss_ce"]  # eq. 11
        if settings.LAMBDA_LE > 0:
            terms["loss_le"] = settings.LAMBDA_LE * self.label_distance(features["final"])
        if settings.LAMBDA_SA > 0:
            cosines = (features["image"] * features["text"][labels]).sum(dim=-1)
            terms["loss_sa"] = settings.LAMBDA_SA * (1 - cosines).mean()  # eq. 10
        return terms

    def label_distance(self, prompts: Tensor) -> Tensor:
        """Return eq. 9 for P_final,i (K, m, d_t) of the last fusion layer, or one (m, d_t) for all.

        It is the mean over classes i of || p_i - E_i ||_2, p_i the mean over the class's tokens, or
        with LE_DISTANCE mean_of_norms over classes and their tokens.  Features may be narrower or
        wider than prompts, though not in ViT-B/16: then the frozen text projection takes the
        prompts to their width.
        """
        if prompts.shape[-1] != self.labels.shape[-1]:
            prompts = prompts @ self.clip.text_projection.float()
        if self.settings.LE_DISTANCE == "norm_of_mean":
            prompts = prompts.mean(dim=-2, keepdim=True)
        return (prompts - self.labels[:, None]).norm(dim=-1).mean()

    def param_groups(self, optim_cfg: Any) -> list[dict[str, Any]]:
        """Group prompts, matrices, and vectors: norms and biases, which are not projections."""
        lr, decay = optim_cfg.LR, optim_cfg.WEIGHT_DECAY
        other = decay if self.settings.DECAY == "all" else 0.0
        groups: dict[str, list[nn.Parameter]] = {"prompts": [], "matrices": [], "vectors": []}
        for name, tensor in self.learned().items():
            if name.split(".")[1].startswith("ctx"):
                groups["prompts"].append(tensor)
            else:
                groups["matrices" if tensor.dim() == 2 else "vectors"].append(tensor)
        options: dict[str, dict[str, float]] = {
            "prompts": {"lr": lr * self.settings.PROMPT_LR_FACTOR, "weight_decay": other},
            "matrices": {"lr": lr, "weight_decay": decay},
            "vectors": {"lr": lr, "weight_decay": other},
        }
        return [{"params": group, **options[kind]} for kind, group in groups.items() if group]


@RECORDER_REGISTRY.register("attention")
class AttentionRecorder(Recorder):
    """Keeps how the prompts attend to the labels as attention.npz.

    The array class_names (K) and, for each tower and fusion layer, one such as text.5 or vision.5
    with the weights of ``FusedPromptLearner.attention``.
    """

    trainers = ("HISF",)
    file = ATTENTION_FILE

    @classmethod
    def check(cls, cfg: Any) -> None:
        if not cfg.TRAINER.HISF.SEMANTIC_FUSION:
            raise UserError(
                f"{asked_by(cfg, 'attention')}, but TRAINER.HISF.SEMANTIC_FUSION is False: "
                "without fusion there is no attention"
            )

    def finish(self) -> None:
        method = self.trainer.model
        with torch.no_grad():
            weights = method.prompt_learner.attention(method.labels)
        arrays = {
            f"{tower}.{layer}": values.float().cpu().numpy()
            for tower, layers in weights.items()
            for layer, values in layers.items()
        }
        path = osp.join(self.trainer.output_dir, self.file)
        with atomic_write(path, "wb") as file:
            np.savez_compressed(file, class_names=np.array(method.class_names), **arrays)
        log.info(f"Attention is saved to {path}")
