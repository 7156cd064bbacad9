"""The datasets; importing this registers them all."""

from . import digits, glyphs, shapes, shapes_shifted
