"""The one exception that means "the user gave bad input"."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input by the user: a config value, a command-line argument or a file.

    The message is one line that names the key or file, the value and what is allowed.
    ``train.py`` prints it and exits with code 2; any other exception is a bug of ours.
    """

    def __init__(self, message: str = "") -> None:
        # A DataLoader worker re-raises an error with its whole traceback as the message; the last
        # line of that text is "dassl.errors.UserError: <our line>", and only that is for the user.
        line = str(message).strip().rsplit("\n", 1)[-1]
        super().__init__(re.sub(r"^dassl\.[\w.]*Error: ", "", line))


class UnknownNameError(UserError, KeyError):
    """A name that no registry or config knows. Also a ``KeyError``, as in the public toolbox."""

    def __str__(self) -> str:  # KeyError would show the message in quotes
        return str(self.args[0])


class LogitsError(UserError, FloatingPointError):
    """Logits that are infinite or not numbers."""


class LossError(UserError, FloatingPointError):
    """A loss that is infinite or not a number."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Says which of the ``allowed`` names come near to ``name``, and what is known.

    Returns "did you mean 'CoOp'? known: CoOp, HiCroPL", to stand behind "unknown trainer 'Coop'; ".
    """
    names = sorted(str(other) for other in allowed)
    by_lower = {other.lower(): other for other in names}
    close = [
        by_lower[match]
        for match in difflib.get_close_matches(str(name).lower(), by_lower, n=3, cutoff=0.5)
    ]
    known = "known: " + (", ".join(names) if names else "none")
    if not close:
        return known
    return "did you mean " + " or ".join(f"'{match}'" for match in close) + f"? {known}"


def check_choice(key: str, value: str, allowed: Iterable[str]) -> None:
    """Raises ``UnknownNameError`` where the value of the config key ``key`` is not allowed."""
    allowed = list(allowed)
    if value not in allowed:
        raise UnknownNameError(f"unknown {key} '{value}'; {nearest(value, allowed)}")
