"""The file of the classes' descriptions, which datasets write and methods read."""

from __future__ import annotations

from dassl.errors import UserError
from dassl.utils.tools import read_json


def read_descriptions(path: str) -> dict[str, list[str]]:
    """Read {class name: [sentences]}, without blank sentences.

    Raises:
        UserError: the file cannot be read, or has another form.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"'{path}' is not JSON {{class name: [sentences]}}")
    described = {}
    for name, texts in content.items():
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise UserError(
                f"'{path}' is not {{class name: [sentences]}}: it has no list of sentences for "
                f"'{name}'"
            )
        described[name] = [text.strip() for text in texts if text.strip()]
    return described
