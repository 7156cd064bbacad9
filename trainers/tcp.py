"""TCP: Textual-based Class-aware Prompt Tuning for Visual-Language Model (Yao et al.,
CVPR 2024)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from clip import CLIP, PromptTokens
from clip.blocks import QuickGELU
from dassl.config.domains import Bool, Choice, Float, Int

from .base import Towers
from .context import ContextLearner, context_of_all_words, count_tokens
from .coop import SETTINGS
from .kgcoop import KgCoOp
from .settings import check_unread
from .trainer import register_method

# Datasets for which the released code has other templates than the dataset: that of the frozen
# features, and that of the prompts.
RELEASED = {
    "FGVCAircraft": ("a photo of an aircraft {}.", "a photo of a {}, a type of aircraft."),
    "DescribableTextures": ("a photo of a {}, a type of texture.", "{} texture."),
    "EuroSAT": ("a centered satellite photo of {}.", "{}."),
    "StanfordCars": ("a photo of a {}.", "a photo of a {}, a type of car"),
    "Food101": ("a photo of a {}, a type of food.", "a photo of a {}, a type of food."),
}


class ClassAwarePrompts(ContextLearner):
    """CoOp's context, and the network that makes a class's prompts from its frozen feature."""

    def __init__(self, ctx: Tensor, embed_dim: int):
        super().__init__(ctx)
        hidden = embed_dim // 4
        self.meta_net = nn.Sequential(
            OrderedDict(
                linear1=nn.Linear(embed_dim, hidden),
                relu=QuickGELU(),
                linear2=nn.Linear(hidden, ctx.numel()),
            )
        )

    def of_classes(self, features: Tensor) -> Tensor:
        """Make prompts (K, m, d_t) from unit features (K, d)."""
        return self.meta_net(features).unflatten(-1, self.ctx.shape)


@register_method(
    "COOP",
    **{
        **SETTINGS,
        "CSC": Bool(False, help="every class has a context of its own: False, the network does it"),
        "CLASS_TOKEN_POSITION": Choice("end", "end", help="position of the class name"),
    },
    CLASS_LAYER=Int(9, min=2, help="text block, counted from 1, that gets the class's own prompts"),
    W=Float(8.0, min=0, help="weight of the distance to the frozen features"),
)
class TCP(KgCoOp):
    """KgCoOp whose context gives way to prompts made from each class's frozen feature.

    The words behind the class name, and those in front that the context leaves over, are those of
    the dataset's template: "[m prompts] {}, a type of pet."  In front of one text block the class's
    own prompts T_k = W_2 quickgelu(W_1 w_k + b_1) + b_2 replace the context; w_k is the frozen unit
    feature of the class in the template, and T_k has no positional embedding.

    Left open or odd in the released code, and what is done here:

    - The distance's weight is the constant 8 there, and its ``W``, which the scripts set to 8, is
      never read. Here ``W`` is the weight.
    - The block (the ninth), the text width and the number of class-aware tokens (4) are constants
      there. Here they are ``CLASS_LAYER``, the model's width and the length of the context.
    - Templates are listed by dataset there; ``RELEASED`` has those that differ from the dataset's.
    - ``CSC`` fails there, and the class name's position is ignored; here they are refused.
    - Its Adam has an epsilon of 1e-3, by hand; here the config says so.
    """

    prompt_learner: ClassAwarePrompts

    @classmethod
    def check_settings(cls, settings: Any, clip_model: CLIP) -> None:
        check_unread("TRAINER.COOP", settings, "TCP", CSC=False)
        deepest = clip_model.config.text_layers
        Int(min=2, max=deepest).check("TRAINER.COOP.CLASS_LAYER", settings.CLASS_LAYER)

    def build(self, cfg: Any, class_names: Sequence[str]) -> None:
        settings, config = self.settings, self.clip.config
        self.context = context_of_all_words(self.clip, settings.CTX_INIT, settings.N_CTX)
        ctx = self.context.start(config.text_width)
        self.prompt_learner = ClassAwarePrompts(ctx, config.embed_dim)
        own = self.templates[0], self.templates[0]
        frozen, self.template = RELEASED.get(cfg.DATASET.NAME, own)
        self.templates = [frozen]

    def tokenize_classes(self, class_names: Sequence[str]) -> PromptTokens:
        words, _, tail = self.template.partition("{}")
        words, n_prompts = words.strip(), self.context.n_prompts
        if count_tokens(words) < n_prompts:
            words = " ".join(["X"] * n_prompts)
        key = self.context.key()
        return self.prompt_tokens(class_names, words, n_prompts, key=key, tail=tail)

    def layers(self, condition: Tensor | None = None) -> Towers:
        learner = self.prompt_learner
        between = [None] * (self.settings.CLASS_LAYER - 2)
        return Towers(text=[learner.ctx, *between, learner.of_classes(self.frozen_text)])

    def public_copies(self) -> set[str]:
        return {"token_prefix", "token_suffix"}
