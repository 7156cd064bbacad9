"""The one exception that means "the user gave bad input", and what the machine refuses."""

from __future__ import annotations

import difflib
import errno
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

# What a terminal acts on or cannot show: control characters, marks that change the direction of
# text, line separators, and the halves of characters as which Python has bytes that are no UTF-8.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


LONGEST_MESSAGE = 10_000  # characters


def escaped(text: str, kept: str = "") -> str:
    """Write what must not reach a terminal as "\\x1b" or "\\u202e"; characters ``kept`` stay."""

    def code(match: re.Match[str]) -> str:
        return match[0] if match[0] in kept else match[0].encode("unicode_escape").decode()

    return _UNPRINTABLE.sub(code, text)


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
        text = str(message).strip()
        # A DataLoader worker re-raises an error with its whole traceback as the message; the last
        # line of that text is "dassl.errors.UserError: <our line>", and only that is for the user.
        caught = re.match(r"Caught (\w+) in [^\n]+\.\nOriginal ", text)
        if caught:
            text = re.sub(rf"^[\w.]*{caught[1]}: ", "", text.rsplit("\n", 1)[-1])
        if len(text) > LONGEST_MESSAGE:  # such as a name in a damaged file
            text = f"{text[:LONGEST_MESSAGE]}..."
        super().__init__(escaped(text))


class UnknownNameError(UserError, KeyError):
    """A name that no registry or config knows. Also a ``KeyError``, as in the public toolbox."""

    def __str__(self) -> str:  # KeyError would show the message in quotes
        return str(self.args[0])


class LogitsError(UserError, FloatingPointError):
    """Logits that are infinite or not numbers."""


class LossError(UserError, FloatingPointError):
    """A loss that is infinite or not a number."""


def check_regular(path: str | os.PathLike[str]) -> None:
    """Raise ``UserError`` for a folder, pipe or device: reading a pipe may never end."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"cannot read '{path}': it is not a file")


@contextmanager
def writing(place: str) -> Iterator[None]:
    """Turn the system's errors into "cannot write 'run/log.txt': No space left on device".

    Args:
        place: what is written, as the message is to name it.

    Raises:
        UserError: the block raised an ``OSError``.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {place}: {error.strerror or error}") from error


# Errors by which the system says that it lacks something or refuses it.
_SYSTEM = {
    getattr(errno, name)
    for name in (
        *("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO", "EACCES", "EPERM", "ESTALE", "ETIMEDOUT"),
        *("EMFILE", "ENFILE", "ENOMEM", "EAGAIN", "ENOTCONN", "ENODEV", "ENXIO", "EPIPE"),
    )
    if hasattr(errno, name)
}
# what torch, its libraries and the loader of these say when they get no memory
_NO_MEMORY = "can't allocate memory|can't start new thread|create a primitive|failed to map segment"
_LESS_MEMORY = "fewer DATALOADER.NUM_WORKERS or a smaller DATALOADER.CACHE_MB take less"
_SMALLER_BATCH = "smaller batches (DATALOADER.TRAIN_X.BATCH_SIZE, DATALOADER.TEST.BATCH_SIZE)"
_MORE_FILES = "raise the limit (ulimit -n), or use fewer DATALOADER.NUM_WORKERS"
_RESUMES = "the same command resumes"


def machine_fault(error: BaseException) -> str:
    """Say in one line what the machine lacks or refuses; "" where the error is something else.

    An error that a DataLoader worker re-raises has only its text to be recognized by, and so have
    torch's.
    """
    text = str(error).strip()
    found = re.search(r"\[Errno (\d+)\] ([^\n]+)", text)
    if isinstance(error, OSError) and found and int(found[1]) in _SYSTEM:
        is_limit = int(found[1]) in (errno.EMFILE, errno.ENFILE)
        return escaped(found[2]) + (f"; {_MORE_FILES}; {_RESUMES}" if is_limit else "")
    if isinstance(error, RuntimeError):
        # a worker of ours that cannot open a file ends with that error's number
        if re.search(rf"Too many open files|items of ancdata|exit code {errno.EMFILE}\.", text):
            return f"too many open files; {_MORE_FILES}; {_RESUMES}"
        if killed := re.search(r"DataLoader worker \(pid[^\n.]*", text):
            return f"{killed[0].strip()}; is memory short? {_LESS_MEMORY}; {_RESUMES}"
        gpu = r"CUDA out of memory[^\n]*?(?= GPU|\n|$)|CUDA error: out of memory|\w+_ALLOC_FAILED"
        if full := re.search(gpu, text):
            return f"{full[0].rstrip('.')}; {_SMALLER_BATCH} take less; {_RESUMES}"
    is_torchs = isinstance(error, (RuntimeError, ImportError))
    if isinstance(error, MemoryError) or (is_torchs and re.search(_NO_MEMORY, text)):
        return f"out of memory; {_SMALLER_BATCH} take less, and {_LESS_MEMORY}; {_RESUMES}"
    return ""


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
