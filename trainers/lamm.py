"""LAMM: Label Alignment for Multi-Modal Prompt Learning (Gao et al., AAAI 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip import PromptTokens
from dassl.config.domains import Float, Words
from dassl.utils import UserError, log

from .base import Features, Method, Towers
from .classes import is_near, name_ids, trained_rows
from .context import OWN_WORDS, chosen_words, context_from_words, count_tokens
from .trainer import register_method


class ClassTokens(nn.Module):
    """The learned tokens of each class (K, m, d_t), and those that they started from."""

    fix_token: Tensor

    def __init__(self, start: Tensor):
        super().__init__()
        self.token_classes = nn.Parameter(start.clone())
        self.register_buffer("fix_token", start)


@register_method(
    "LAMM",
    CTX_INIT=Words(OWN_WORDS, help="words in front of the class name, which are not learned"),
    TOKEN_LOSS_WEIGHT=Float(
        1.0, min=0, help="weight of the tokens' squared distance to their start, over the shots"
    ),
    FEATURE_LOSS_WEIGHT=Float(1.0, min=0, help="weight of the distance to the frozen features"),
    LOGIT_LOSS_WEIGHT=Float(0.05, min=0, help="weight of the distance to the frozen logits"),
    T=Float(2.0, above=0, help="temperature of the distance to the frozen logits"),
)
class LAMM(Method):
    """Learned tokens for the class names, behind fixed words; both towers are frozen.

    Each class has m tokens, as many as the shortest class name has. They start from the embeddings
    of the first m tokens of its name, and stand in their place; the rest of a longer name follows
    them.

    What is learned belongs to the names of the classes: a class that was trained has its own tokens
    in any selection and order, and any other is its name in the same words, as in zero-shot CLIP.
    Names are the same if their tokens are, so case and underscores do not matter; of several
    classes of one name, the first has the first one's tokens.

    Left open or odd in the released code, and what is done here:

    - It is called CoOp there, and its settings are options of the command line: ``CTX_INIT`` with
      ``--origin-clip``, the losses with ``--triplet-loss``. Their weights are constants: 1 / shots,
      1 and 0.05. ``--shots``, 1 if it is left out, is DATASET.NUM_SHOTS here; all images (-1) count
      as one shot.
    - It learns the words in front, too, without ``--origin-clip`` (CoOp+LAMM); checkpoints of that
      are refused. ``--random-init`` is left out.
    - Its distillation gets its arguments in the order that makes the learned probabilities the
      target and the frozen ones the prediction. That is what its results come from, and kept.
    - The distance of the features is zero there in a batch of a single class; here it never is.
    - Whether the classes are those of training is decided there by ``SUBSAMPLE_CLASSES``. Its
      checkpoints do not name their classes; those of the dataset are taken for them if all names
      begin with the tokens that training started from, in order, and otherwise none is.
    """

    checkpoint_name = checkpoint_scope = "prompt_learner"
    rows_by_class = True

    def build(self, cfg: Any, class_names: Sequence[str]) -> None:
        self.shots = max(1, cfg.DATASET.NUM_SHOTS)
        self.words = chosen_words(self.settings.CTX_INIT)
        shortest = min(len(name_ids(name)) for name in class_names)
        self.prompt_learner = ClassTokens(self.first_tokens(class_names, shortest))

    def first_tokens(self, class_names: Sequence[str], m: int) -> Tensor:
        """Return the embeddings of the names' first m tokens: (K, m, d_t)."""
        ids = torch.tensor([name_ids(name)[:m] for name in class_names])
        return self.clip.token_embedding(ids.to(self.device)).detach().float()

    # Whose tokens --------------------------------------------------------------------------------

    def set_classes(self, class_names: Sequence[str]) -> None:
        index = trained_rows(class_names, self.trained_names).to(self.device)
        self.trained, self.rows = index.unbind(dim=1)  # classes, and their rows
        super().set_classes(class_names)

    def tokenize_classes(self, class_names: Sequence[str]) -> list[PromptTokens]:
        """Tokenize all classes without places, and those that were trained with theirs."""
        whole = self.prompt_tokens(class_names, self.words, 0, key="CTX_INIT")
        ids = whole.ids[self.trained.cpu()]
        m = self.prompt_learner.token_classes.shape[1]
        places = 1 + count_tokens(self.words) + torch.arange(m)
        own = [PromptTokens.of(ids, places.repeat(len(ids), 1))] if len(ids) else []
        return [whole, *own]

    def prepare_to_load(self, state: Mapping[str, Any], path: str) -> None:
        """Make room for the tokens of the classes that a checkpoint was trained on.

        Raises:
            UserError: its words in front are other ones, or learned; or its classes are not those
                that its tokens started from.
        """
        start = state.get("fix_token")
        if not (isinstance(start, Tensor) and start.dim() == 3):
            return  # loading says so
        if "ctx" in state:
            words = context_from_words(self.clip, self.words, count_tokens(self.words)).init
            if not is_near(state["ctx"], words):
                raise UserError(
                    f"checkpoint '{path}' does not fit: its 'ctx' is not '{self.words}', and LAMM "
                    "does not learn it"
                )
        names = self.trained_names or self.class_names
        if self.begin_with(start, names):
            self.trained_names = names
        elif self.trained_names:
            raise UserError(
                f"checkpoint '{path}' does not fit: 'fix_token' is not how its class names begin"
            )
        else:
            log.warning(f"'{path}' does not name its classes: all have the tokens of their names")
        learner = self.prompt_learner
        if learner.fix_token.shape != start.shape:
            shape = (*start.shape[:2], self.clip.config.text_width)
            learner.token_classes = nn.Parameter(learner.fix_token.new_zeros(shape))
            learner.fix_token = learner.fix_token.new_zeros(shape)
        self.set_classes(self.class_names)

    def begin_with(self, start: Tensor, class_names: Sequence[str]) -> bool:
        """Return whether these are the embeddings (K, m, d_t) that the names begin with."""
        m = start.shape[1]
        long_enough = all(len(name_ids(name)) >= m for name in class_names)
        return long_enough and is_near(start, self.first_tokens(class_names, m))

    # What is computed ----------------------------------------------------------------------------

    @torch.no_grad()
    def compute_frozen_text(self) -> Tensor:
        """Return unit features (K, d) of the class names in the words."""
        return self.encode_text((), self.tokens[0])

    def layers(self, condition: Tensor | None = None) -> Towers:
        return Towers(text=[self.prompt_learner.token_classes[self.rows]])

    def class_features(self, towers: Towers) -> Features:
        if len(self.trained) == 0:
            return {"text": self.frozen_text}
        own = self.encode_text(towers.text, self.tokens[1])
        if len(self.trained) == len(self.class_names):
            return {"text": own}
        return {"text": self.frozen_text.index_copy(0, self.trained, own)}

    def losses(self, features: Features, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return cross-entropy and the distances to what is frozen, in three spaces.

        Tokens: sum of (token_classes - fix_token)^2 / shots. Features: mean over the batch of
        1 - cos(text_y, frozen text_y). Logits: T^2 times the cross-entropy of softmax(frozen
        logits / T) against the target softmax(logits / T).
        """
        settings, learner, frozen = self.settings, self.prompt_learner, self.frozen_text
        tokens = (learner.token_classes - learner.fix_token).square().sum() / self.shots
        cosines = (features["text"] * frozen).sum(dim=-1)
        frozen_logits = self.clip.similarity(features["image"], frozen)
        target = (logits / settings.T).softmax(dim=-1)
        distillation = settings.T**2 * F.cross_entropy(frozen_logits / settings.T, target)
        return {
            **super().losses(features, logits, labels),
            "loss_tokens": settings.TOKEN_LOSS_WEIGHT * tokens,
            "loss_features": settings.FEATURE_LOSS_WEIGHT * (1 - cosines[labels]).mean(),
            "loss_logits": settings.LOGIT_LOSS_WEIGHT * distillation,
        }

    def public_copies(self) -> set[str]:
        return {"ctx", "token_prefix", "token_suffix", "token_suffix_test"}
