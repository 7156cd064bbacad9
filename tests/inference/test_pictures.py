"""Pictures in every form give what their file gives; what is none gets an error of its own."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dassl.errors import UserError
from inference import Classifier


@pytest.fixture
def path(tmp_path: Path) -> Path:
    pixels = np.random.RandomState(2).randint(0, 256, (24, 18, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_every_form_of_a_picture_gives_the_same(classifier: Classifier, path: Path):
    pixels = np.asarray(Image.open(path)).copy()
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    forms = [
        *(str(path), path, path.read_bytes(), Image.open(path), pixels, pixels / 255.0),
        *((pixels / 255.0).astype(np.float32), tensor, tensor / 255, (tensor / 255).double()),
        *(pixels[None], tensor[None], str(path.parent)),
        *(np.dstack([pixels, np.full((24, 18), 255, np.uint8)]), (tensor / 255).requires_grad_()),
    ]
    expected = classifier.predict(str(path))[0]
    for form in forms:  # on its own
        (found,) = classifier.predict(form)
        assert found.labels == expected.labels and found.error == ""
        assert found.probabilities == pytest.approx(expected.probabilities, abs=1e-6)
    together = classifier.predict((form for form in forms), batch_size=4)
    assert len(together) == len(forms)
    for i, found in enumerate(together):
        assert found.probabilities == pytest.approx(expected.probabilities, abs=1e-6)
        assert found.image == (str(path) if i in (0, 1, 12) else f"#{i}")


def test_gray_arrays_are_gray_pictures(classifier: Classifier):
    gray = np.random.RandomState(1).randint(0, 256, (16, 16)).astype(np.uint8)
    expected = classifier.preprocess(np.dstack([gray] * 3))
    for form in (gray, gray[..., None], torch.from_numpy(gray), torch.from_numpy(gray)[None]):
        assert torch.equal(classifier.preprocess(form), expected)


def test_what_is_no_picture_has_an_error_and_the_rest_go_on(classifier: Classifier, path: Path):
    broken = path.parent / "broken.jpg"
    broken.write_bytes(path.read_bytes()[:60])
    bomb = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(bomb, "png")
    narrow = io.BytesIO()
    Image.new("L", (1, 600_000)).save(narrow, "png")
    wrong = {
        "nope.png": "image 'nope.png' does not exist",
        str(broken): "is unreadable or truncated",
        b"": "image '#2' is unreadable or truncated",
        b"text": "is unreadable or truncated",
        bomb.getvalue(): "pixels: more than INPUT.MAX_PIXELS",
        narrow.getvalue(): "is too narrow: 1 x 600000 pixels",
        None: "expected a path, bytes of a file, .* got NoneType",
        7: "got int",
    }
    arrays = {
        "expected one, three or four channels, got": np.zeros((4, 4, 2), np.uint8),
        "got \\(0, 4, 3\\)": np.zeros((0, 4, 3), np.uint8),
        "expected fractions from 0 to 1": np.full((4, 4, 3), 1.5),
        "expected fractions from 0 to 1, got others": np.full((4, 4, 3), np.nan),
        "expected 8 bits or fractions, got int64": np.zeros((4, 4, 3), np.int64),
        "expected 8 bits or fractions, got uint16": np.zeros((4, 4, 3), np.uint16),
        "got \\(5,\\)": torch.zeros(5),
    }
    pictures = [*wrong, *arrays.values(), str(path)]
    found = classifier.predict(pictures)
    assert [bool(each.error) for each in found] == [True] * (len(pictures) - 1) + [False]
    for each, message in zip(found, [*wrong.values(), *arrays], strict=False):
        with pytest.raises(UserError, match=message):
            raise UserError(each.error)
        assert "\n" not in each.error and each.label is each.probability is None
    assert found[-1] == classifier.predict(path)[0]


def test_folders_are_searched_in_the_order_of_names(classifier: Classifier, path: Path):
    for name in ("b/c.JPG", "b/a.webp", "0.bmp", ".hidden/x.png", "b/.y.png", "notes.txt"):
        (path.parent / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (5, 5)).save(path.parent / name, "png")
    found = [each.image for each in classifier.predict(path.parent)]
    assert [Path(each).relative_to(path.parent).as_posix() for each in found] == [
        *("0.bmp", "a.png", "b/a.webp", "b/c.JPG")
    ]


def test_pictures_are_taken_a_batch_at_a_time(classifier: Classifier):
    taken = 0

    def pictures():
        nonlocal taken
        for _ in range(100):
            taken += 1
            yield np.zeros((4, 4, 3), np.uint8)

    stream = classifier.stream(pictures(), batch_size=8)
    assert taken == 0
    next(stream)
    assert taken == 8
    assert len(list(stream)) == 99


def test_photos_are_turned_where_the_run_did(runs, classifier: Classifier, tmp_path: Path):
    pixels = np.random.RandomState(2).randint(0, 256, (16, 16, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    assert torch.equal(
        classifier.preprocess(tmp_path / "turned.png"), classifier.preprocess(pixels)
    )
    classifier.cfg.defrost()
    classifier.cfg.INPUT.UPRIGHT = True
    expected = classifier.preprocess(pixels[::-1, ::-1])
    assert torch.equal(classifier.preprocess(tmp_path / "turned.png"), expected)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"images": 3}, "images: expected a path, .* or several, got int"),
        ({"images": None}, "images: expected a path"),
        ({"images": [], "top": 0}, "top: expected a whole number above 0, got 0"),
        ({"images": [], "batch_size": 2.0}, "batch_size: expected a whole number above 0, got 2.0"),
    ],
)
def test_arguments_that_cannot_be_are_one_line(classifier: Classifier, options, message):
    with pytest.raises(UserError, match=f"^{message}"):
        classifier.predict(**options)


def test_no_picture_gives_nothing(classifier: Classifier, tmp_path: Path):
    assert classifier.predict([]) == classifier.predict(tmp_path) == []
    assert classifier.features([]).shape == (0, 24)
