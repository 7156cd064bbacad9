"""Reading JSON: the one place that parses it, without torch, which tables do not need."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from dassl.errors import UserError, check_regular


def read_json(path: str) -> Any:
    """Return the contents of a JSON file; a byte-order mark, as Windows writes it, is skipped.

    Raises:
        UserError: the file is missing or not JSON, gives a name twice in one object, or holds a
            number that is not finite or text that is not Unicode.
    """
    try:
        check_regular(path)
        with open(path, encoding="utf-8-sig") as file:
            text = file.read()
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"'{path}' is not valid JSON: {error}") from error
    return parse_json(text, f"'{path}'")


def parse_json(text: str, source: str) -> Any:
    """Return what JSON text says, as ``read_json`` does; ``source`` names it in errors.

    Raises:
        UserError: as ``read_json``.
    """
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_float=_finite, parse_constant=_finite
        )
        if "\\ud" in text.lower():  # half of a surrogate pair, which no file could hold again
            json.dumps(value, ensure_ascii=False).encode()
    except _RepeatedNameError as error:
        line, name = _repeated_name(text)
        raise UserError(f"{source}: {name} is there twice, again in line {line}") from error
    except RecursionError as error:
        raise UserError(f"{source} is not valid JSON: it is nested too deeply") from error
    except UnicodeEncodeError as error:
        raise UserError(f"{source} is not valid JSON: it has half of a character") from error
    except ValueError as error:
        reason = str(error).partition("; use sys.")[0]  # Python's advice on numbers without end
        raise UserError(f"{source} is not valid JSON: {reason}") from error
    return value


class _RepeatedNameError(ValueError):
    """An object has a name twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _RepeatedNameError
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


def _repeated_name(text: str) -> tuple[int, str]:
    """Return the line of the first name that its object already has, and the name as written."""
    objects: list[set[str]] = []  # those that are open, with their names so far
    for token in re.finditer(r'("(?:[^"\\]|\\.)*")(\s*:)?|[{}]', text):
        name, colon = token.groups()
        if name is None:
            objects = objects[:-1] if token.group() == "}" else [*objects, set()]
        elif colon:
            if json.loads(name) in objects[-1]:
                return text.count("\n", 0, token.start()) + 1, name
            objects[-1].add(json.loads(name))
    raise AssertionError("no name is there twice")
