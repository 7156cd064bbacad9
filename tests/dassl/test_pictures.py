"""Pictures: damaged ones are one line that names the file, odd ones are read as they look."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from dassl.utils.tools import ImageError, read_image

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's, of what is damaged
PIXELS = np.random.default_rng(0).integers(256, size=(40, 50, 4), dtype=np.uint8)
LIMIT = 10**6  # pixels
FORMATS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "png": ("PNG", "RGB", {}),
    "palette.png": ("PNG", "P", {}),
    "jpg": ("JPEG", "RGB", {}),
    "progressive.jpeg": ("JPEG", "RGB", {"progressive": True}),
    "cmyk.jpg": ("JPEG", "CMYK", {}),
    "tif": ("TIFF", "RGB", {}),
    "deflate.tiff": ("TIFF", "RGB", {"compression": "tiff_adobe_deflate"}),
    "lzw.tiff": ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    "webp": ("WEBP", "RGB", {}),
    "lossless.webp": ("WEBP", "RGBA", {"lossless": True}),
    "bmp": ("BMP", "RGB", {}),
}


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@cache
def picture(name: str) -> bytes:
    kind, mode, options = FORMATS[name]
    return encoded(Image.fromarray(PIXELS).convert(mode), kind, **options)


def at(data: bytes, place: int, new: bytes) -> bytes:
    return data[:place] + new + data[place + len(new) :]


# None of these is a picture any more, whatever the format.
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "one byte": lambda data: data[:1],
    "signature alone": lambda data: data[:8],
    "beginning": lambda data: data[:40],
    "quarter": lambda data: data[: len(data) // 4],
    "half": lambda data: data[: len(data) // 2],
    "nine tenths": lambda data: data[: len(data) * 9 // 10],
    "no beginning": lambda data: data[20:],
    "zeros": lambda data: bytes(len(data)),
    "other signature": lambda data: at(data, 0, b"\0\0\0\0"),
    "text": lambda data: b"a picture\n" * 100,
    "web page": lambda data: b"<!DOCTYPE html><html><body>404</body></html>",
    "line ends": lambda data: data.replace(b"\n", b"\r\n")[:-30].replace(data[:4], b"\r\r\r\r"),
}


def refused(path: Path, upright: bool = False) -> str:
    with pytest.raises(ImageError) as caught:
        read_image(str(path), upright, LIMIT)
    line = str(caught.value)
    assert line.startswith(f"image '{path}' ") and line.isprintable() and len(line) < 900
    return line


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_picture_is_one_line_that_names_it(tmp_path, name):
    path = tmp_path / f"a.{name}"
    for damage in DAMAGES.values():
        path.write_bytes(damage(picture(name)))
        assert "is unreadable or truncated" in refused(path)


def changed(data: bytes, draw: random.Random) -> bytes:
    """Damage some bits or bytes anywhere, or in the header, or a number of four bytes."""
    new = bytearray(data)
    kind = draw.randrange(4)
    if kind == 3:
        place = draw.randrange(len(new) - 4)
        new[place : place + 4] = struct.pack("<I", draw.choice((0, 2**32 - 1, 2**31 - 1, 60000)))
    for _ in range(draw.choice((1, 1, 4, 30)) if kind < 3 else 0):
        place = draw.randrange(len(new) if kind < 2 else 100)
        new[place] = draw.randrange(256) if kind else new[place] ^ (1 << draw.randrange(8))
    return bytes(new)


@pytest.mark.parametrize("trials", [20, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FORMATS)
def test_random_damage_is_a_picture_or_one_line(tmp_path, name, trials):
    path = tmp_path / f"a.{name}"
    expected = np.asarray(Image.open(io.BytesIO(picture(name))).convert("RGB"))
    for trial in range(trials):
        path.write_bytes(changed(picture(name), random.Random(trial)))
        try:
            image = read_image(str(path), trial % 2 == 1, LIMIT)
        except ImageError:
            refused(path, trial % 2 == 1)
            continue
        assert image.mode == "RGB" and image.width * image.height <= LIMIT
        if name == "png":  # it has checksums
            assert (np.asarray(image) == expected).all()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def huge_png(width: int, height: int) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + chunk(b"IDAT", zlib.compress(bytes(99)))
        + chunk(b"IEND", b"")
    )


def huge_jpeg() -> bytes:
    data = picture("jpg")
    return at(data, data.index(b"\xff\xc0") + 5, struct.pack(">HH", 65500, 65500))


def huge_tiff(width: int, height: int) -> bytes:
    data = picture("tif")
    entries = {struct.pack("<HHI", tag, 4, 1): size for tag, size in ((256, width), (257, height))}
    for entry, size in entries.items():
        data = at(data, data.index(entry), entry + struct.pack("<I", size))
    return data


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.png", huge_png(1001, 1000)),
        ("a.png", huge_png(100_000, 100_000)),
        ("a.png", huge_png(2**31 - 1, 2**31 - 1)),
        ("a.jpg", huge_jpeg()),
        ("a.bmp", at(picture("bmp"), 18, struct.pack("<ii", 2**31 - 1, 2**31 - 1))),
        ("a.bmp", at(picture("bmp"), 18, struct.pack("<ii", 50_000, 50_000))),
        ("a.tif", huge_tiff(100_000, 100_000)),
        ("a.tif", huge_tiff(2**32 - 1, 2**32 - 1)),
        ("a.webp", encoded(Image.new("L", (1, 16383)).resize((16383, 70)), "WEBP", lossless=True)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_header_of_a_huge_picture_is_refused_unread(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    assert " pixels: more than INPUT.MAX_PIXELS 1000000" in refused(path)


@pytest.mark.parametrize("name", FORMATS)
def test_the_content_decides_and_not_the_suffix(tmp_path, name):
    (tmp_path / "right").write_bytes(picture(name))
    for suffix in ("png", "jpg", "webp", "bmp", "tif"):
        path = tmp_path / f"a.{suffix}"
        path.write_bytes(picture(name))
        assert read_image(str(path)) == read_image(str(tmp_path / "right"))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_of_several_pictures_in_one_file_the_first_is_read(tmp_path, kind):
    frames = [Image.new("RGB", (9, 8), color) for color in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    more = {"lossless": True} if kind == "WEBP" else {}
    path = tmp_path / "a"
    path.write_bytes(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **more))
    assert Image.open(path).n_frames == 3
    assert (np.asarray(read_image(str(path))) == (200, 0, 0)).all()


def test_cmyk_is_converted(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG"))
    pixel = np.asarray(read_image(str(path)), int).reshape(-1, 3).mean(0)
    assert np.abs(pixel - (0, 255, 255)).max() < 5  # cyan


EXIF_DAMAGES = {
    "other byte order": (0, b"XX"),
    "other number": (2, b"\xff\xff"),
    "offset behind the end": (4, b"\xff\xff\xff\xf0"),
    "offset of itself": (4, b"\0\0\0\0"),
    "no entries": (8, b"\0\0"),
    "other type": (12, b"\xff\xff"),
    "orientation as text": (12, b"\0\x02"),
    "many values": (14, b"\xff\xff\xff\xff"),
    "no value": (14, b"\0\0\0\0"),
    "orientation 9": (18, b"\0\x09"),
    "orientation 65535": (18, b"\xff\xff"),
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_data_turn_a_picture_and_say_nothing_if_damaged(tmp_path, kind):
    exif, path = Image.Exif(), tmp_path / "a"
    image = Image.fromarray(PIXELS[..., :3])
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        path.write_bytes(encoded(image, kind, exif=exif))
        expected = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        found = read_image(str(path), upright=True)
        assert (found.size, found.tobytes()) == (expected.size, expected.tobytes()), orientation
    assert kind == "TIFF" or expected.size == (40, 50)
    content = exif.tobytes()[6:]
    for damage, (place, new) in EXIF_DAMAGES.items() if kind != "TIFF" else ():
        path.write_bytes(encoded(image, kind, exif=b"Exif\0\0" + at(content, place, new)))
        plain = read_image(str(path))
        assert read_image(str(path), upright=True) == plain and plain.size == (50, 40), damage


def test_a_truncated_picture_is_refused_with_exif_data_too(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(picture("jpg")[:800])
    assert "is unreadable or truncated" in refused(path, upright=True)
