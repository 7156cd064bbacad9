import json
import random
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dassl.utils import (
    AverageMeter,
    LossError,
    MetricMeter,
    Registry,
    UserError,
    atomic_write,
    check_isfile,
    collect_env_info,
    count_num_param,
    listdir_nohidden,
    load_checkpoint,
    load_pretrained_weights,
    log,
    log_only,
    nearest,
    read_image,
    read_json,
    resume_from_checkpoint,
    save_checkpoint,
    set_random_seed,
    setup_logger,
    tolist_if_not,
    write_json,
)


def test_registry_finds_and_suggests():
    registry = Registry("TRAINER")

    @registry.register()
    class CoOp:
        pass

    assert registry.get("CoOp") is CoOp and registry.registered_names() == ["CoOp"]
    with pytest.raises(KeyError, match="already has a 'CoOp'"):
        registry.register(CoOp)
    registry.register(CoOp, force=True)
    with pytest.raises(UserError) as info:
        registry.get("coop")
    assert isinstance(info.value, KeyError)
    assert str(info.value) == "unknown trainer 'coop'; did you mean 'CoOp'? known: CoOp"


def test_registry_takes_another_name():
    registry = Registry("RECORDER")

    @registry.register("logits")
    class LogitsRecorder:
        pass

    assert registry.get("logits") is LogitsRecorder
    assert registry.registered_names() == ["logits"]
    with pytest.raises(KeyError, match="already has a 'logits'"):
        registry.register("logits")(LogitsRecorder)


def test_nearest_without_anything_near():
    assert nearest("zzz", ["abc"]) == "known: abc"
    assert nearest("zzz", []) == "known: none"


def test_user_error_keeps_the_line_out_of_a_workers_traceback():
    text = "Caught UserError in DataLoader worker process 0.\nOriginal Traceback\n  File x\n"
    assert str(UserError(text + "dassl.errors.UserError: image 'a' is bad\n")) == "image 'a' is bad"
    assert issubclass(LossError, UserError) and issubclass(LossError, FloatingPointError)


def test_meters():
    meter = AverageMeter()
    meter.update(1.0, n=3)
    meter.update(torch.tensor(5.0))
    assert meter.val == 5.0 and meter.avg == 2.0 and meter.count == 4
    metrics = MetricMeter()
    metrics.update(None)
    metrics.update({"loss": 1.0, "acc": torch.tensor(50.0)})
    metrics.update({"loss": 2.0})
    assert str(metrics) == "loss 2.0000 (1.5000) acc 50.0000 (50.0000)"
    with pytest.raises(TypeError):
        metrics.update([1.0])  # type: ignore[arg-type]


def test_logger_copies_what_is_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # put back afterwards
    setup_logger(str(tmp_path / "run"))
    print("hello")
    assert (tmp_path / "run" / "log.txt").read_text() == "hello\n"
    assert not sys.stdout.isatty()
    sys.stdout.close()
    print("console only")
    setup_logger(str(tmp_path / "run"))
    print("second")
    sys.stdout.close()
    assert capsys.readouterr().out == "hello\nconsole only\nsecond\n"
    logs = sorted((tmp_path / "run").iterdir())
    assert [log.read_text() for log in logs] == ["hello\n", "second\n"]


def test_library_lines_go_where_stdout_goes_now(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # put back afterwards
    log.info("before, 100%")
    setup_logger(str(tmp_path / "run"))
    log.info("hello\nworld")
    print("from a public trainer")
    log_only("not on the console")
    log.debug("details")
    sys.stdout.close()
    assert capsys.readouterr().out == "before, 100%\nhello\nworld\nfrom a public trainer\n"
    lines = (tmp_path / "run" / "log.txt").read_text().splitlines()
    assert lines == ["hello", "world", "from a public trainer", "not on the console"]


def test_atomic_write_keeps_the_old_file_when_it_fails(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(str(path)) as file:
        file.write("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with atomic_write(str(path)) as file:
        file.write("new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_json_files(tmp_path):
    path = str(tmp_path / "folder" / "file.json")
    write_json({"name": "café", "values": [1, 2]}, path)
    assert read_json(path) == {"name": "café", "values": [1, 2]}
    marked = tmp_path / "marked.json"
    marked.write_text('{"a": 1}', encoding="utf-8-sig")
    assert read_json(str(marked)) == {"a": 1}
    with open(path, "w") as file:
        file.write("{")
    with pytest.raises(UserError, match="file.json' is not valid JSON"):
        read_json(path)
    with pytest.raises(UserError, match="none.json"):
        read_json(str(tmp_path / "none.json"))


def test_small_tools(tmp_path):
    (tmp_path / "b").touch()
    (tmp_path / "a").touch()
    (tmp_path / ".hidden").touch()
    assert listdir_nohidden(str(tmp_path), sort=True) == ["a", "b"]
    assert tolist_if_not(1) == [1] and tolist_if_not([1]) == [1]
    assert check_isfile(str(tmp_path / "a"))
    with pytest.warns(UserWarning, match="No file found"):
        assert not check_isfile(str(tmp_path / "c"))
    assert f"torch: {torch.__version__.split('+')[0]}" in collect_env_info()


def test_seed_covers_all_generators():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    set_random_seed(3)
    first = draw()
    assert draw() != first
    set_random_seed(3)
    assert draw() == first


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
def test_images_are_read_as_rgb_and_broken_ones_named(tmp_path, suffix):
    path = tmp_path / f"image{suffix}"
    Image.fromarray(noise(20, 30)).save(path)
    assert read_image(str(path)).mode == "RGB" and read_image(str(path)).size == (30, 20)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=f"image{suffix}' is unreadable or truncated"):
        read_image(str(path))
    path.unlink()
    with pytest.raises(UserError, match="does not exist"):
        read_image(str(path))


@pytest.mark.parametrize("name", ["a.png", "a.tiff", "a.webp", "gray.png"])
def test_what_is_transparent_lies_on_white(tmp_path, name):
    pixels = noise(20, 30, 2 if name == "gray.png" else 4)
    pixels[:5, :, -1], pixels[5:10, :, -1] = 0, 255
    # "exact" keeps the hidden colors in a WebP, too
    Image.fromarray(pixels).save(tmp_path / name, lossless=True, exact=True)
    found = np.asarray(read_image(str(tmp_path / name))).astype(float)
    alpha = pixels[:, :, -1:] / 255
    expected = np.broadcast_to(alpha * pixels[:, :, :-1] + (1 - alpha) * 255, found.shape)
    assert np.abs(found - expected).max() <= 1
    assert (found[:5] == 255).all() and (found[5:10] == expected[5:10]).all()


def test_a_transparent_color_of_a_palette_or_key_is_white(tmp_path):
    indices = noise(20, 30) % 3
    colors = np.array([[200, 0, 0], [0, 100, 0], [0, 0, 50]], np.uint8)
    palette = Image.fromarray(indices)
    palette.putpalette(colors.tobytes())
    gray, rgb = Image.fromarray(100 * indices), Image.fromarray(colors[indices])
    shown = {"p": colors, "gray": np.repeat([[0], [100], [200]], 3, axis=1), "rgb": colors}
    palette.save(tmp_path / "p.png", transparency=bytes([255, 0, 255]))
    gray.save(tmp_path / "gray.png", transparency=100)
    rgb.save(tmp_path / "rgb.png", transparency=(0, 100, 0))
    for name, row in shown.items():
        expected = row.copy()
        expected[1] = 255
        found = np.asarray(read_image(str(tmp_path / f"{name}.png")))
        assert (found == expected[indices]).all(), name


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "CMYK", "L", "RGB"])
def test_opaque_images_are_what_pillow_converts(tmp_path, mode):
    options = {"transparency": bytes([255] * 256)} if mode == "P" else {}
    path = tmp_path / ("image.tiff" if mode == "CMYK" else "image.png")
    image = Image.fromarray(noise(20, 30, 3)).convert(mode)
    image.save(path, **options)
    assert read_image(str(path)).tobytes() == image.convert("RGB").tobytes()


def test_jpeg_with_bytes_after_its_end_is_valid(tmp_path):
    path = tmp_path / "image.jpg"
    Image.new("RGB", (8, 8)).save(path)
    path.write_bytes(path.read_bytes() + b"trailing bytes")
    assert read_image(str(path)).size == (8, 8)


def test_checkpoint_round_trip(tmp_path):
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    optim = torch.optim.SGD(model.parameters(), lr=0.5)
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    save_checkpoint(
        {"state_dict": state, "epoch": 4, "optimizer": optim.state_dict()},
        str(tmp_path),
        is_best=True,
    )
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["checkpoint", "model-best.pth.tar", "model.pth.tar-4"]
    other_optim = torch.optim.SGD(other.parameters(), lr=0.1)
    assert resume_from_checkpoint(str(tmp_path), other, other_optim) == 4
    assert torch.equal(model.weight, other.weight) and other_optim.param_groups[0]["lr"] == 0.5
    with pytest.raises(UserError, match="does not fit"):
        resume_from_checkpoint(str(tmp_path), nn.Linear(4, 2))
    with pytest.raises(UserError, match="no checkpoint to resume"):
        resume_from_checkpoint(str(tmp_path / "none"), other)


def test_checkpoint_with_a_numpy_number_is_read(tmp_path):
    path = str(tmp_path / "model.pth.tar-1")
    torch.save({"val_result": np.float64(81.5), "epoch": 1}, path)
    assert float(load_checkpoint(path)["val_result"]) == 81.5


class Unsafe:
    def __reduce__(self):
        return print, ("this must not run",)


def test_bad_checkpoints_are_named_and_never_executed(tmp_path, capsys):
    path = tmp_path / "model.pth.tar-1"
    torch.save({"x": Unsafe()}, path)
    with pytest.raises(
        UserError, match=r"model.pth.tar-1' holds a pickled object \(builtins.print\)"
    ):
        load_checkpoint(str(path))
    assert capsys.readouterr().out == ""
    path.write_text("text")
    with pytest.raises(UserError, match="corrupt") as info:
        load_checkpoint(str(path))
    assert "\n" not in str(info.value)
    with pytest.raises(UserError, match="does not exist"):
        load_checkpoint(str(tmp_path / "none"))


def test_pretrained_weights_that_fit_are_loaded(tmp_path, capsys):
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    path = str(tmp_path / "weights.pth")
    state = {"module.weight": source.weight, "bias": torch.zeros(5)}
    torch.save({"state_dict": state}, path)
    before = target.bias.clone()
    load_pretrained_weights(target, path)
    assert torch.equal(target.weight, source.weight) and torch.equal(target.bias, before)
    assert "discarded, as their names or sizes do not match: ['bias']" in capsys.readouterr().out
    with pytest.warns(UserWarning, match="Nothing in"):
        load_pretrained_weights(nn.Conv2d(1, 1, 1), path)


def test_number_of_parameters():
    model = nn.Linear(3, 2)
    assert count_num_param(model) == 8
    assert count_num_param(params=[model.weight]) == 6
    assert count_num_param(params=[{"params": [model.weight]}, {"params": [model.bias]}]) == 8


def test_write_json_is_readable_by_others(tmp_path):
    path = tmp_path / "file.json"
    write_json([1], str(path))
    assert json.loads(path.read_text()) == [1]
    assert path.stat().st_mode & 0o400
