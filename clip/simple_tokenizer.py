"""The tokenizer under the name by which trainers written for OpenAI's package import it."""

from typing import Any

from open_clip import tokenizer

__all__ = ["SimpleTokenizer"]


class SimpleTokenizer(tokenizer.SimpleTokenizer):
    """open_clip's tokenizer, which also knows OpenAI's names of the start and end tokens."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, token in (
            ("<|startoftext|>", self.sot_token_id),
            ("<|endoftext|>", self.eot_token_id),
        ):
            self.encoder[name] = token
            self.decoder[token] = name
