"""The one exception that means "the user gave bad input"."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable


def is_control(character: str) -> bool:
    """Return whether it is a control character, a line break or half of a surrogate pair."""
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")


def shown(value: object) -> str:
    """Return the ``repr`` of a value for an error message, cut to 500 characters."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no whole number of more than 4300 digits
        text = "a number of more than 4300 digits"
    return text if len(text) <= 500 else f"{text[:500]}..."


class UserError(ValueError):
    """Bad input by the user: a config value, a command-line argument or a file.

    The message is one line; for a config key it is ``KEY: expected X, got V``. Characters that a
    terminal would obey or that no file could hold are shown as escapes.
    ``train.py`` prints it and exits with code 2; any other exception is a bug of ours.
    """

    def __init__(self, message: str = "") -> None:
        line = str(message).strip()
        # A DataLoader worker re-raises an error with its whole traceback as the message; the last
        # line of that text is "dassl.errors.UserError: <our line>", and only that is for the user.
        if line.startswith("Caught "):
            line = line.rsplit("\n", 1)[-1]
        line = "".join(repr(c)[1:-1] if is_control(c) else c for c in line)
        super().__init__(re.sub(r"^dassl\.[\w.]*Error: ", "", line))


class UnknownNameError(UserError, KeyError):
    """A name that no registry or config knows. Also a ``KeyError``, as in the public toolbox."""

    def __str__(self) -> str:  # KeyError would show the message in quotes
        return str(self.args[0])


class LogitsError(UserError, FloatingPointError):
    """Logits that are infinite or not numbers."""


class LossError(UserError, FloatingPointError):
    """A loss that is infinite or not a number."""


def suggestion(name: str, allowed: Iterable[str]) -> str:
    """Return "did you mean 'CoOp'?" with the ``allowed`` names that are similar, or ""."""
    by_lower = {str(other).lower(): str(other) for other in sorted(map(str, allowed))}
    near = difflib.get_close_matches(str(name).lower(), by_lower, n=3, cutoff=0.5)
    if not near:
        return ""
    return "did you mean " + " or ".join(f"'{by_lower[match]}'" for match in near) + "?"


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Say which of the ``allowed`` names are similar to ``name``, and which there are.

    The result, "did you mean 'CoOp'? known: CoOp, HiCroPL", follows "unknown trainer 'Coop'; ".
    """
    names = sorted(map(str, allowed))
    known = "known: " + (", ".join(names) or "none")
    return f"{suggestion(name, names)} {known}".strip()


def check_choice(key: str, value: str, allowed: Iterable[str]) -> None:
    """Raise ``UnknownNameError`` where the value of the config key ``key`` is not allowed."""
    allowed = list(allowed)
    if value not in allowed:
        hint = suggestion(value, allowed)
        raise UnknownNameError(
            f"{key}: expected one of {', '.join(allowed)}, got {shown(value)}"
            + (f"; {hint}" if hint else "")
        )
