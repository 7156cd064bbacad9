"""The demo page's parts, without a browser."""

from __future__ import annotations

import base64
import io
import json
import re
import socket
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dassl.errors import UserError
from inference import Prediction, demo


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    """Write a wide picture, a broken one and an empty one."""
    pixels = np.random.RandomState(0).randint(0, 256, (16, 24, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    (tmp_path / "broken.jpg").write_text("x")
    (tmp_path / "empty.png").touch()
    return [str(tmp_path / name) for name in ("wide.png", "broken.jpg", "empty.png")]


def opened(uri: str) -> Image.Image:
    assert uri.startswith("data:image/jpeg;base64,")
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_pictures_are_classified_and_broken_ones_have_a_line(classifier, photos):
    wide, *others = demo.look(classifier, photos)
    (expected,) = classifier.predict(photos[0])
    assert wide.prediction == replace(expected, image="wide.png")
    assert opened(wide.picture).size == opened(wide.attention).size == (demo.SIDE, demo.SIDE)
    for found, name in zip(others, ("broken.jpg", "empty.png"), strict=True):
        error = found.prediction.error
        assert error.startswith(f"image '{name}' is unreadable or truncated: its format is none of")
        assert (found.picture, found.attention) == ("", "")


def test_too_many_pictures_are_refused(classifier, photos):
    with pytest.raises(UserError, match="^pictures: expected at most 32 at once, got 33"):
        demo.look(classifier, photos[:1] * 33)


def test_the_square_is_what_the_model_takes(classifier):
    pixels = np.zeros((40, 100, 3), np.uint8)
    pixels[:, 30:70] = 200
    square = np.asarray(demo.middle(Image.fromarray(pixels)))
    assert square.shape == (demo.SIDE, demo.SIDE, 3) and square.min() == 200


def test_names_come_one_in_each_line():
    assert demo.names_in(" cat\n\npolar bear \r\n\t\ndog, or wolf") == (
        *("cat", "polar bear", "dog, or wolf"),
    )
    assert demo.names_in(" \n") == ()


SEEN = demo.Seen(Prediction("a.png", ("cat", "dog"), (0.75, 0.25)), "data:picture")
FAILED = demo.Seen(Prediction("b.png", error="image 'b.png' cannot be read"))


@pytest.mark.parametrize(
    "threshold, label", [(0, "cat"), (0.75, "cat"), (0.76, "none of these"), (1, "none of these")]
)
def test_the_threshold_decides_the_answer(threshold, label):
    text = demo.cards([SEEN], threshold)
    assert re.findall("<h3>(.*?)</h3>", text) == [label]
    assert re.findall("width:([0-9.]+)%", text) == ["75.0", "25.0"]
    assert ('class="card unknown"' in text) == (label == "none of these")
    (record,) = json.loads(demo.as_json([SEEN], threshold))
    assert (record["label"], record["probability"]) == (label, 0.75)
    assert [entry["label"] for entry in record["top"]] == ["cat", "dog"]


def test_errors_are_among_the_results():
    text = demo.cards([SEEN, FAILED], 0)
    assert "image &#x27;b.png&#x27; cannot be read" in text and text.count("<article") == 2
    records = json.loads(demo.as_json([SEEN, FAILED], 0))
    assert [record["error"] for record in records] == [None, "image 'b.png' cannot be read"]
    assert demo.as_json([], 0) == ""


def test_names_are_text_not_html():
    bad = '<img src=x onerror="alert(1)">'
    seen = demo.Seen(Prediction(bad, (bad,), (1.0,)), "data:picture")
    failed = demo.Seen(Prediction(bad, error=bad))
    assert bad not in demo.cards([seen, failed], 0) + demo.problem(bad)


def test_the_page_says_what_it_shows(classifier, monkeypatch):
    text = demo.about(classifier)
    assert "<h1>VPT on ColourPatches</h1>" in text and "ResNet" not in text
    clip = classifier.method.clip
    monkeypatch.setattr(clip, "config", replace(clip.config, vision_layers=(1, 1, 1, 1)))
    assert "It is a ResNet, which has no attention to show." in demo.about(classifier)


@pytest.mark.parametrize("value", ["-1", "65536", "7860.5", "x", "", "٣", "9" * 5000])
def test_a_port_is_a_number_that_there_is(value, capsys):
    assert demo.main(["out", "--port", value]) == 2
    error = capsys.readouterr().err
    assert "argument --port: expected a whole number from 0 to 65535, got" in error
    assert error.count("\n") == 1


def test_a_busy_port_and_a_foreign_host_are_one_line(tmp_path, capsys):
    pytest.importorskip("gradio", reason="the demo page needs gradio")
    with socket.create_server(("127.0.0.1", 0)) as other:
        busy = str(other.getsockname()[1])
        assert demo.main([str(tmp_path), "--port", busy]) == 2
    expected = f"error: --port: expected one that is free on 127.0.0.1, got {busy}: Address already"
    assert capsys.readouterr().err.startswith(expected)
    assert demo.main([str(tmp_path), "--host", ""]) == 2
    assert capsys.readouterr().err.endswith("expected an address of this machine, got ''\n")
    for host in ("192.0.2.1", "no such host", "a" * 70, "::x"):
        assert demo.main([str(tmp_path), "--host", host, "--port", "0"]) == 2
        error = capsys.readouterr().err
        expected = f"error: --host: expected an address of this machine, got '{host}': "
        assert error.startswith(expected) and error.count("\n") == 1


def test_a_missing_folder_or_package_is_one_line(tmp_path, capsys, monkeypatch):
    assert demo.main([str(tmp_path / "none")]) == 2
    expected = f"error: RUN: expected an existing folder, got '{tmp_path / 'none'}'\n"
    assert capsys.readouterr().err == expected
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert demo.main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the page needs gradio: pip install -e '.[demo]'")
    assert error.count("\n") == 1
