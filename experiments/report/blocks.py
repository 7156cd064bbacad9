"""What a section of the page is made of; page.html says how each looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from markupsafe import Markup


@dataclass(frozen=True)
class Table:
    """A table of texts."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Figures:
    """Small figures with one legend, which gives a color by name."""

    svgs: Sequence[Markup]
    legend: Mapping[str, str]
    caption: str
    kind: ClassVar[str] = "figures"


@dataclass(frozen=True)
class Card:
    """Pictures, as data addresses, and lines of text below them."""

    pictures: Sequence[str]
    lines: Sequence[str]


@dataclass(frozen=True)
class Cards:
    """Cards under a heading."""

    title: str
    cards: Sequence[Card]
    kind: ClassVar[str] = "cards"


@dataclass(frozen=True)
class Listing:
    """Lines that are folded away."""

    title: str
    lines: Sequence[str]
    kind: ClassVar[str] = "listing"


Block = Table | Figures | Cards | Listing


@dataclass(frozen=True)
class Section:
    """A section of the page; ``notes`` say what it lacks."""

    title: str
    text: str
    blocks: Sequence[Block]
    notes: Sequence[str] = ()
