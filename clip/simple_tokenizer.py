"""The tokenizer under the name by which trainers written for OpenAI's package import it."""

from open_clip.tokenizer import SimpleTokenizer

__all__ = ["SimpleTokenizer"]
