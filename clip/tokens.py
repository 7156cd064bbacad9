"""From texts to tokens, with open_clip's tokenizer and vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

CONTEXT_LENGTH = 77  # of OpenAI's models; callers that hold a model pass the model's own


@lru_cache
def tokenizer() -> Any:
    """Return the byte-pair tokenizer (imported here because that takes seconds)."""
    from .simple_tokenizer import SimpleTokenizer

    return SimpleTokenizer()


def tokenize(
    texts: str | Sequence[str], context_length: int = CONTEXT_LENGTH, truncate: bool = False
) -> Tensor:
    """Return token ids (N, context_length), zero-padded; each text has a start and an end token.

    Raises:
        ValueError: a text is too long and ``truncate`` is False.
    """
    texts = [texts] if isinstance(texts, str) else texts
    tok = tokenizer()
    ids = torch.zeros(len(texts), context_length, dtype=torch.long)
    for row, text in zip(ids, texts, strict=True):
        tokens = [tok.sot_token_id, *tok.encode(text), tok.eot_token_id]
        if len(tokens) > context_length:
            if not truncate:
                beginning = text if len(text) <= 200 else f"{text[:200]}..."
                raise ValueError(
                    f"'{beginning}' is {len(tokens)} tokens long, but the model takes "
                    f"{context_length}"
                )
            tokens = [*tokens[: context_length - 1], tok.eot_token_id]
        row[: len(tokens)] = torch.tensor(tokens)
    return ids


@dataclass(frozen=True)
class PromptTokens:
    """Tokenized class names with places for prompts.

    Attributes:
        ids: (K, T) token ids, trimmed after the longest end token.
        ends: position of each of the K end tokens; plain numbers, as they say what is computed.
        slots: (K, m) positions of the m prompt tokens, in order, anywhere between start and end.
        prefix: number of leading positions that all classes have in common, prompts included;
            0 where that is only the start token.
        shared_slots: positions of those slots that are in the prefix.
    """

    ids: Tensor
    ends: tuple[int, ...]
    slots: Tensor
    prefix: int
    shared_slots: tuple[int, ...]

    @classmethod
    def of(cls, ids: Tensor, slots: Tensor) -> PromptTokens:
        """Find out what texts have in common.

        Args:
            ids: (K, length) as ``tokenize`` returns them (end token: highest id).
            slots: (K, m) positions of the prompts.
        """
        eot = ids.argmax(dim=-1)
        ids = ids[:, : int(eot.max()) + 1]
        is_slot = torch.zeros_like(ids, dtype=torch.bool).scatter(1, slots, True)
        alike = (ids == ids[0]) & (is_slot == is_slot[0])
        # The end token is read as a query, so it never counts as part of the prefix.
        common = alike.all(dim=0)[: int(eot.min())]
        prefix = int(common.long().cumprod(dim=0).sum())
        prefix = prefix if prefix > 1 else 0
        shared_slots = tuple(slot for slot in slots[0].tolist() if slot < prefix)
        return cls(ids, tuple(eot.tolist()), slots, prefix, shared_slots)

    @classmethod
    def plain(cls, ids: Tensor) -> PromptTokens:
        """Make texts without places for prompts, from ids as ``tokenize`` returns them."""
        return cls.of(ids, ids.new_zeros(len(ids), 0))

    @classmethod
    def from_names(
        cls,
        names: Sequence[str],
        context: str,
        n_prompts: int,
        position: str = "end",
        context_length: int = CONTEXT_LENGTH,
        tail: str = ".",
    ) -> PromptTokens:
        """Tokenize "<context> <name><tail>", the first ``n_prompts`` context tokens being prompts.

        Context words beyond ``n_prompts`` stay where they are (MaPLe: 2 learned tokens, then
        "of a").  ``position`` is that of the class name among the prompts (CoOp): "end",
        "middle" (after the first half of the prompts) or "front"; the tail stays at the end.

        Raises:
            ValueError: too long a text, too few context words, or an unknown position.
        """
        if position not in ("end", "middle", "front"):
            raise ValueError(
                f"class-token position: expected end, middle or front, got '{position}'"
            )
        tok = tokenizer()
        n_context = len(tok.encode(context))
        if n_prompts > n_context:
            raise ValueError(f"{n_prompts} prompts, but '{context}' has {n_context} tokens")
        names = [name.replace("_", " ") for name in names]
        ids = tokenize([f"{context} {name}{tail}" for name in names], context_length)
        before = {"end": n_prompts, "middle": n_prompts // 2, "front": 0}[position]
        slots = torch.arange(1, 1 + n_prompts).repeat(len(names), 1)
        if position != "end":
            for row, slot, name in zip(ids, slots, names, strict=True):
                name_length = len(tok.encode(name))
                start = 1 + n_context  # where the name is
                order = [
                    *range(1 + before),
                    *range(start, start + name_length),
                    *range(1 + before, start),
                ]
                row[: len(order)] = row[order].clone()
                slot[before:] += name_length
        return cls.of(ids, slots)

    def of_classes(self, classes: slice | Tensor) -> PromptTokens:
        """Return the tokens of some classes, which keep what all of them have in common.

        Args:
            classes: a slice of them, or their indices, which are read on the CPU.
        """
        if isinstance(classes, slice):
            ends = self.ends[classes]
        else:
            ends = tuple(self.ends[number] for number in classes.tolist())
        return replace(self, ids=self.ids[classes], ends=ends, slots=self.slots[classes])

    def to(self, device: torch.device | str) -> PromptTokens:
        return replace(
            self,
            ids=self.ids.to(device),
            slots=self.slots.to(device),
        )
