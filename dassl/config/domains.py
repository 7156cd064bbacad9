"""What a config key may hold: its default, the values allowed, and one line of help.

Keys are declared with these classes, the toolbox's in ``defaults.py`` and a method's with the
method; the config tree holds plain values. Numbers must be finite everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from dassl.errors import UnknownNameError, UserError, is_control, shown, suggestion

MOST, LEAST = 3.4e38, 1e-45  # size of a number in single precision, if it is not 0
MOST_BITS = 10_000  # of a whole number: Python writes and reads a few more


class Domain:
    """Any value; the base of the others, whose ``str`` says what is expected.

    Args:
        default: the value where nobody sets one; outside the domain if somebody must set one.
        help: what the key means, in one line.
    """

    def __init__(self, default: Any = None, help: str = "") -> None:
        self.default = default
        self.help = help

    def __contains__(self, value: object) -> bool:
        return is_finite(value)

    def __str__(self) -> str:
        return "a finite value"

    def check(self, key: str, value: Any) -> None:
        """Raise ``UserError`` with one line unless the domain contains ``value``."""
        if value not in self:
            raise UserError(f"{key}: expected {self}, got {shown(value)}")


class Bool(Domain):
    def __contains__(self, value: object) -> bool:
        return isinstance(value, bool)

    def __str__(self) -> str:
        return "True or False"


class Text(Domain):
    """Free text in one line: words, a path, a name that only somebody else's code knows."""

    def __contains__(self, value: object) -> bool:
        return isinstance(value, str) and not any(map(is_control, value))

    def __str__(self) -> str:
        return "text in one line"


class Words(Text):
    """Words that prompts start from, or as public files say it: True for the method's own words.

    False, like no words, is a random start.
    """

    def __contains__(self, value: object) -> bool:
        return isinstance(value, bool) or super().__contains__(value)

    def __str__(self) -> str:
        return "text in one line, True or False"


class Int(Domain):
    """A whole number of at most 64 bits.

    Args:
        default, help: as for every domain.
        min, max: bounds that are allowed themselves.
        also: a value outside these bounds that is allowed, too.
        odd: even numbers are not allowed.
    """

    def __init__(
        self,
        default: Any = None,
        *,
        min: int | None = None,
        max: int | None = None,
        also: int | None = None,
        odd: bool = False,
        help: str = "",
    ) -> None:
        super().__init__(default, help)
        self.min, self.max, self.also, self.odd = min, max, also, odd

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, int) or isinstance(value, bool):
            return False
        if abs(value) >= 2**63:  # the libraries take whole numbers of at most 64 bits
            return False
        return value == self.also or (
            (self.min is None or value >= self.min)
            and (self.max is None or value <= self.max)
            and not (self.odd and value % 2 == 0)
        )

    def __str__(self) -> str:
        kind = "an odd number" if self.odd else "a whole number"
        bounds = ""
        if self.min is not None and self.max is not None:
            bounds = f" in {self.min}..{self.max}"
        elif self.min is not None:
            bounds = f" >= {self.min}"
        elif self.max is not None:
            bounds = f" <= {self.max}"
        return kind + bounds + ("" if self.also is None else f", or {self.also}")


class Float(Domain):
    """A finite number of single precision, which models and optimizers compute in.

    Args:
        default, help: as for every domain.
        min, max: bounds that are allowed themselves.
        above, below: bounds that are not.
    """

    def __init__(
        self,
        default: Any = None,
        *,
        min: float | None = None,
        max: float | None = None,
        above: float | None = None,
        below: float | None = None,
        help: str = "",
    ) -> None:
        super().__init__(default, help)
        self.min, self.max, self.above, self.below = min, max, above, below

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            return False
        return (
            # compared, not converted: a whole number may be too large for a float
            -MOST <= value <= MOST
            and (self.min is None or value >= self.min)
            and (self.max is None or value <= self.max)
            and (self.above is None or value > self.above + LEAST)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        low = f"[{self.min}" if self.min is not None else f"({self.above}"
        high = f"{self.max}]" if self.max is not None else f"{self.below})"
        if "None" not in low + high:
            return f"a number in {low}, {high}"
        for sign, bound in ((">=", self.min), (">", self.above), ("<=", self.max)):
            if bound is not None:
                return f"a number {sign} {bound}"
        return "a finite number"


class _Named(Domain):
    """What consists of known names.

    Args:
        default: as for every domain.
        names: those that are known.
        source: where they are if they cannot be listed: "module:NAME", a registry or a tuple. It is
            imported when the names are asked for, so that a declaration needs nothing.
        help: as for every domain.
    """

    def __init__(self, default: Any, *names: str, source: str = "", help: str = "") -> None:
        super().__init__(default, help)
        self._names = names
        self._source = source

    @property
    def names(self) -> tuple[str, ...]:
        if not self._source:
            return self._names
        module, _, name = self._source.partition(":")
        found = getattr(import_module(module), name)
        return tuple(found if isinstance(found, tuple) else found.registered_names())

    def check(self, key: str, value: Any) -> None:
        if value not in self:
            strange = [value] if isinstance(value, str) else value
            strange = strange if isinstance(strange, Sequence) else []
            names = (name for name in strange if isinstance(name, str) and name not in self.names)
            hint = suggestion(next(names, ""), self.names)
            raise UnknownNameError(
                f"{key}: expected {self}, got {shown(value)}" + (f"; {hint}" if hint else "")
            )


class Choice(_Named):
    """One of several names."""

    def __contains__(self, value: object) -> bool:
        return isinstance(value, str) and value in self.names

    def __str__(self) -> str:
        return "one of " + ", ".join(name or "''" for name in self.names)


class Names(_Named):
    """A list of names; with ``some`` it must not be empty."""

    def __init__(
        self, default: Any, *names: str, source: str = "", some: bool = False, help: str = ""
    ) -> None:
        super().__init__(default, *names, source=source, help=help)
        self.some = some

    def __contains__(self, value: object) -> bool:
        return (
            isinstance(value, (list, tuple))
            and (len(value) > 0 or not self.some)
            and all(isinstance(name, str) and name in self.names for name in value)
        )

    def __str__(self) -> str:
        return f"a list of {'some' if self.some else 'any'} of " + ", ".join(self.names)


class List(Domain):
    """A list of values of one kind.

    Args:
        default: as for every domain.
        each: the domain of its values.
        length: number of values (None: any number).
        some: it must not be empty.
        rising: no value is smaller than the one before.
        help: as for every domain.
    """

    def __init__(
        self,
        default: Any,
        each: Domain,
        *,
        length: int | None = None,
        some: bool = False,
        rising: bool = False,
        help: str = "",
    ) -> None:
        super().__init__(default, help)
        self.each, self.length, self.some, self.rising = each, length, some, rising

    def __contains__(self, value: object) -> bool:
        return (
            isinstance(value, (list, tuple))
            and (self.length is None or len(value) == self.length)
            and (len(value) > 0 or not self.some)
            and all(item in self.each for item in value)
            and not (self.rising and list(value) != sorted(value))
        )

    def __str__(self) -> str:
        count = "a list" if self.length is None else f"{self.length} values"
        count = "a list that is not empty" if self.some else count
        return f"{count}{', sorted' if self.rising else ''}, each {self.each}"


class Layers(Domain):
    """Numbers of layers, counted from 1, each greater than the one before.

    Args:
        default, help: as for every domain.
        max: the last layer that there is, where that is known.
    """

    def __init__(self, default: Any = None, *, max: int | None = None, help: str = "") -> None:
        super().__init__(default, help)
        self.each = Int(min=1, max=max)

    def __contains__(self, value: object) -> bool:
        return (
            isinstance(value, (list, tuple))
            and len(value) > 0
            and all(layer in self.each for layer in value)
            and list(value) == sorted(set(value))
        )

    def __str__(self) -> str:
        return f"layers in ascending order, each {self.each}"


def domain_of(value: Any) -> Domain:
    """Return ``value`` if it is a domain, or else the domain of the type of a plain default."""
    if isinstance(value, Domain):
        return value
    if isinstance(value, bool):
        return Bool(value)
    if isinstance(value, int):
        return Int(value)
    if isinstance(value, float):
        return Float(value)
    if isinstance(value, str):
        return Text(value)
    if isinstance(value, (list, tuple)):
        return List(value, Domain())
    return Domain(value)


def is_storable(value: object) -> bool:
    """Return whether config.yaml and results.json can hold a value and give it back."""
    if isinstance(value, (list, tuple)):
        return all(map(is_storable, value))
    if isinstance(value, str):
        return not any("\ud800" <= c <= "\udfff" for c in value)  # no half of a surrogate pair
    if isinstance(value, int):
        return value.bit_length() <= MOST_BITS
    return value is None or isinstance(value, float)


def is_finite(value: object) -> bool:
    """Return whether no number in ``value``, a list or not, is infinite or not a number."""
    if isinstance(value, (list, tuple)):
        return all(map(is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)
