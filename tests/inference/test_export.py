"""Exported networks: the run's logits without the library, and what cannot be exported."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from inference import Classifier, export
from inference.classify import network, pixels
from inference.network import linear, merge_adapters
from inference.pictures import decoded
from tests.inference.runs import methods
from trainers.adapters import LowRank, bottleneck

METHODS = methods("HiCroPL", "CoCoOp")
onnx_needed = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in export.PACKAGES),
    reason="needs the extra [export]",
)


def random_pixels(count: int, size: int = 16) -> np.ndarray:
    return np.random.RandomState(7).randint(0, 256, (count, size, size, 3)).astype(np.uint8)


def logits_of(classifier: Classifier, batch: np.ndarray) -> torch.Tensor:
    return classifier.logits(torch.stack([classifier.preprocess(each) for each in batch]))


def assert_same(path: Path, classifier: Classifier) -> None:
    """Compare logits and probabilities for one picture and for five."""
    run = network(str(path))
    for count in (1, 5):
        batch = random_pixels(count)
        expected = logits_of(classifier, batch)
        logits, probabilities = map(torch.from_numpy, run(batch))
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
        wanted = classifier.probabilities(expected).float()
        torch.testing.assert_close(probabilities, wanted, rtol=0, atol=1e-4)


@onnx_needed
@pytest.mark.parametrize("trainer", METHODS)
def test_a_network_gives_the_logits_of_the_run(runs, tmp_path, trainer):
    classifier = Classifier.from_run(runs.trained(trainer), "cpu", "fp32")
    (name,) = export.export(classifier, str(tmp_path), "onnx", int8=False)
    assert_same(tmp_path / name, classifier)


@pytest.mark.parametrize("trainer", ["VPT", pytest.param("ProMPT", marks=pytest.mark.slow)])
def test_torch_gets_a_network_without_the_tower_that_it_does_not_need(runs, tmp_path, trainer):
    classifier = Classifier.from_run(runs.trained(trainer), "cpu", "fp32")
    (name,) = export.export(classifier, str(tmp_path), "torch", int8=False)
    assert_same(tmp_path / name, classifier)
    program = torch.export.load(tmp_path / name)
    has_text = any("token_embedding" in each for each in program.state_dict)
    assert has_text == classifier.method.conditional


@onnx_needed
def test_the_command_compares_and_its_example_needs_no_torch(runs, tmp_path, capsys):
    import onnx

    run, output = tmp_path / "run", tmp_path / "out"
    shutil.copytree(runs.trained("CLIPLoRA"), run)
    (run / "calibration.json").write_text('{"temperature": 0.5}')
    argv = [str(run), "--output", str(output), "--int8"]
    capsys.readouterr()
    assert export.main(argv) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == (
        f"Exported to '{output}'; compared with the run in fp32 on all 6 test pictures."
    )
    share = f"{json.loads((run / 'results.json').read_text())['accuracy']:.1f}%"
    assert said[3].split() == ["the", "run", share]
    assert said[4].split()[0] == "model.onnx" and said[4].split()[-2:] == ["100.0%", share]
    assert said[5].startswith("model-int8.onnx")
    files = {path.name: path.stat().st_size for path in output.iterdir()}
    assert set(files) == {"model.onnx", "model-int8.onnx", "model.json", "classify.py"}
    assert files["model-int8.onnx"] < files["model.onnx"] < 1_000_000  # CLIP's weights are 6 MB
    found = {each.key: each.value for each in onnx.load(output / "model.onnx").metadata_props}
    assert json.loads(found["labels"]) == ["red", "green"] and found["method"] == "CLIPLoRA"

    paths = [str(runs.data / "test" / name / "0.png") for name in ("red", "green")]
    guard = (
        "import runpy, sys; del sys.argv[0]\n"
        "sys.modules |= dict.fromkeys(('torch', 'torchvision', 'dassl', 'inference'))\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", guard, str(output / "classify.py"), str(output / "model.onnx")]
    answer = subprocess.run([*command, *paths], capture_output=True, text=True, cwd=tmp_path)
    expected = [
        f"{each.image} {each.label} {each.probability:.3f}"
        for each in Classifier.from_run(run).predict(paths)
    ]
    assert answer.stdout.splitlines() == expected, answer.stderr


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1", "CMYK"])
@pytest.mark.parametrize("shape", [(16, 16), (40, 23), (9, 31), (301, 200)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest"])
def test_the_example_makes_the_pixels_of_the_run(classifier, mode, shape, interpolation):
    noise = np.random.RandomState(1).randint(0, 256, (shape[1], shape[0], 4)).astype(np.uint8)
    picture = Image.fromarray(noise)
    picture = (picture if mode in ("RGBA", "LA") else picture.convert("RGB")).convert(mode)
    cfg = classifier.cfg.clone()
    cfg.defrost()
    cfg.INPUT.INTERPOLATION = interpolation
    other = Classifier(classifier.method, cfg, classifier.record)
    found = torch.from_numpy(pixels(picture, 16, interpolation, upright=False)).permute(2, 0, 1)
    mean, std = (torch.tensor(cfg.INPUT[f"PIXEL_{name}"]) for name in ("MEAN", "STD"))
    found = (found / 255 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(found, other.preprocess(picture))


@pytest.mark.parametrize("upright", [False, True])
def test_the_example_turns_photographs_as_the_run_does(classifier, tmp_path, upright):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "photo.png"
    Image.fromarray(random_pixels(1, 30)[0, :, :20]).save(path, exif=exif)
    cfg = classifier.cfg.clone()
    cfg.defrost()
    cfg.INPUT.UPRIGHT = upright
    found = pixels(Image.open(path), 16, "bicubic", upright)
    expected = pixels(decoded(str(path), "", cfg), 16, "bicubic", False)
    assert np.array_equal(found, expected)


def test_linear_adapters_go_into_the_weights_and_others_stay(runs):
    torch.manual_seed(0)
    low_rank = LowRank(8, 2, 1.0, dropout=0.5).eval()
    torch.nn.init.normal_(low_rank.w_lora_B)
    weight, bias = linear(low_rank, 8)
    torch.testing.assert_close(weight, low_rank.w_lora_B @ low_rank.w_lora_A / 2**0.5)
    assert not bias.any()
    assert linear(bottleneck(8, 4), 8) is None

    method = Classifier.from_run(runs.trained("CLIPLoRA"), "cpu", "fp32").method
    batch = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        before = method(batch)
        merge_adapters(method)
        assert all(layer.is_untouched for layer in method.kept[0].vision)
        torch.testing.assert_close(method(batch), before, rtol=0, atol=1e-5)


def test_a_network_that_differs_is_not_kept(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    output = tmp_path / "out"
    assert (
        export.main([str(runs.trained("VPT")), "--format", "torch", "--output", str(output)]) == 2
    )
    error = capsys.readouterr().err
    assert error.startswith(f"error: '{output}' is not written: on all 6 test pictures, logits")
    assert error.count("\n") == 1 and list(tmp_path.iterdir()) == []


def test_other_pictures_where_those_of_the_test_are_gone(runs, tmp_path, capsys):
    run = tmp_path / "saved"
    Classifier.from_run(runs.trained("VPT")).save_pretrained(run)
    capsys.readouterr()
    assert export.main([str(run), "--format", "torch"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == (
        f"Exported to '{run}/torch'; compared with the run in fp32 on 64 random pictures, as the "
        "test pictures are not there (--check names others)."
    )
    assert "accuracy" not in said[1] and said[3].split()[-1] == "100.0%"


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--format", "tflite"], "argument --format: invalid choice: 'tflite'"),
        (["--format", "torch", "--int8"], "--int8: expected --format onnx, got --format torch"),
        (["--output", "{tmp}"], "--output: expected a new folder, got '{tmp}', which is there"),
        (["--output", "{tmp}/file/x", "--format", "torch"], "cannot make the folder '{tmp}/file'"),
        (["--check", "{tmp}/none"], "--check: expected an existing folder, got '{tmp}/none'"),
        (["--format", "torch", "--check", "{tmp}/empty"], "expected a folder with pictures, got"),
        (["--format", "torch", "--check", "{tmp}/bad"], "bad/a.png' is unreadable or truncated"),
    ],
)
def test_bad_arguments_are_one_line(runs, tmp_path, capsys, argv, message):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_text("no picture")
    argv = [str(runs.trained("VPT")), *(each.format(tmp=tmp_path) for each in argv)]
    if "--output" not in argv:
        argv += ["--output", str(tmp_path / "out")]
    capsys.readouterr()
    assert export.main(argv) == 2
    error = capsys.readouterr().err
    assert message.format(tmp=tmp_path) in error and error.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"file", "empty", "bad"}


def test_runs_and_packages_that_are_missing_are_one_line(tmp_path, monkeypatch, capsys):
    assert export.main([str(tmp_path / "none")]) == 2
    expected = f"error: RUN: expected an existing folder, got '{tmp_path / 'none'}'\n"
    assert capsys.readouterr().err == expected
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert export.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        "error: --format onnx needs onnx, onnxruntime, onnxscript: pip install -e '.[export]', or "
        "take --format torch\n"
    )
