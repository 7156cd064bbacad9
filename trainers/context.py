"""Where a method's first-layer text prompts are and what they start from."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from clip import CLIP
from clip.tokens import tokenizer
from dassl.utils import UserError, log

MOST_FROM_WORDS = 4  # prompts of MaPLe and the methods after it


class Context(NamedTuple):
    """The words in front of the class name, the first ``n_prompts`` of which are prompts."""

    words: str
    n_prompts: int
    init: Tensor | None  # (n_prompts, text width), or None for a random start

    def key(self, n_ctx: str = "N_CTX") -> str:
        """Name the setting that says how long the context is; ``n_ctx`` where no words do."""
        return n_ctx if self.init is None else "CTX_INIT"

    def start(self, text_width: int, *leading: int) -> Tensor:
        """Return the words' embeddings, or normal(0, 0.02): (*leading, n_prompts, text width)."""
        if self.init is not None:
            return self.init.repeat(*leading, 1, 1)
        return random_prompts(*leading, self.n_prompts, text_width).data


OWN_WORDS = "a photo of a"  # of every method, where CTX_INIT is True


def chosen_words(setting: str | bool) -> str:
    """Return the words of a ``CTX_INIT``, which is text, True for ``OWN_WORDS`` or False for none.

    Public files use True and False as well as text.
    """
    if isinstance(setting, bool):
        return OWN_WORDS if setting else ""
    return setting.replace("_", " ").strip()


def count_tokens(words: str) -> int:
    """Return how many tokens words are."""
    return len(tokenizer().encode(words))


def check_few_words(node: str, setting: str | bool, n_prompts: int) -> None:
    """Check that ``context_of_few_words`` finds a token for each prompt.

    Raises:
        UserError: the words that it uses have fewer tokens.
    """
    words = chosen_words(setting)
    if words and n_prompts <= MOST_FROM_WORDS and (count := count_tokens(words)) < n_prompts:
        raise UserError(
            f"{node}.CTX_INIT: expected '' or words of at least {n_prompts} tokens, one for each "
            f"prompt, got {setting!r} of {count}"
        )


class ContextLearner(nn.Module):
    """Owns the context, under the name that published checkpoints give it."""

    def __init__(self, ctx: Tensor):
        super().__init__()
        self.ctx = nn.Parameter(ctx)


def context_from_words(clip_model: CLIP, words: str, n_prompts: int) -> Context:
    """Start from the first ``n_prompts`` tokens of ``words``; without words "X" placeholders."""
    if not words:
        return Context(" ".join(["X"] * n_prompts), n_prompts, None)
    ids = tokenizer().encode(words)[:n_prompts]
    weight = clip_model.token_embedding.weight
    return Context(words, n_prompts, weight[torch.tensor(ids, device=weight.device)].float())


def context_of_all_words(clip_model: CLIP, setting: str | bool, n_prompts: int) -> Context:
    """Start from the words of a CTX_INIT, with as many prompts as they have (CoOp, CoCoOp)."""
    words = chosen_words(setting)
    if words:
        n_prompts = count_tokens(words)
    return context_from_words(clip_model, words, n_prompts)


def context_of_few_words(clip_model: CLIP, setting: str | bool, n_prompts: int) -> Context:
    """Start from the words of a CTX_INIT, for at most four prompts (MaPLe and later)."""
    words, most = chosen_words(setting), MOST_FROM_WORDS
    if words and n_prompts > most:
        log.info(f'CTX_INIT "{words}" is ignored: {n_prompts} context tokens > {most}, random')
        words = ""
    return context_from_words(clip_model, words, n_prompts)


def random_prompts(*shape: int, std: float = 0.02) -> nn.Parameter:
    """Make learnable prompt tokens, normal(0, std)."""
    return nn.Parameter(torch.randn(*shape) * std)
