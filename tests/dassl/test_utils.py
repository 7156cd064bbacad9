import errno
import io
import json
import math
import os
import random
import shutil
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from dassl.errors import machine_fault
from dassl.utils import (
    AverageMeter,
    Logger,
    LossError,
    MetricMeter,
    Registry,
    UnknownNameError,
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
from dassl.utils.descriptions import read_descriptions
from dassl.utils.tools import TEMPORARY_NAME


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


WORKER = (
    "Caught {0} in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
    '  File "x.py", line 1, in y\n{1}\n'
)


def test_the_message_of_a_user_error_has_an_end():
    assert str(UserError("x" * 10_001)) == "x" * 10_000 + "..."
    assert str(UserError("x" * 10_000)) == "x" * 10_000


def test_user_error_keeps_the_line_out_of_a_workers_traceback():
    text = WORKER.format("UserError", "dassl.errors.UserError: image 'a' is bad")
    assert str(UserError(text)) == "image 'a' is bad"
    text = WORKER.format("NetworkError", "some.package.NetworkError: nobody: is there")
    assert str(UserError(text)) == "nobody: is there"
    # what is not a worker's is shown whole, and nothing reaches a terminal that it would obey
    assert str(UserError("a\nb\r\0\x1b[31m\udcff\u2028é '\n")) == (
        r"a\nb\r\x00\x1b[31m\udcff\u2028é '"
    )
    assert issubclass(LossError, UserError) and issubclass(LossError, FloatingPointError)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("two\nlines", "two\\nlines"),
        ("\x1b[31mred\x1b]0;title\x07", "\\x1b[31mred\\x1b]0;title\\x07"),
        ("\x9b31m\x7f\r\0", "\\x9b31m\\x7f\\r\\x00"),
        ("gpj.\u202eexe\u2066\u200f\u2028", "gpj.\\u202eexe\\u2066\\u200f\\u2028"),
        ("caf\udce9", "caf\\udce9"),
        ("café 猫 C:\\new\\x1b", "café 猫 C:\\new\\x1b"),
    ],
)
def test_a_name_cannot_break_or_color_an_error(name, shown):
    for kind in (UserError, LossError, UnknownNameError):
        error = kind(f"image '{name}' is bad")
        assert str(error) == f"image '{shown}' is bad"
        text = WORKER.format(kind.__name__, f"dassl.errors.{kind.__name__}: {error}")
        assert str(kind(text)) == str(error)


def system_error(number: int, *names: str) -> OSError:
    return OSError(number, os.strerror(number), *names)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (system_error(errno.EMFILE, "a\x1b"), "Too many open files: 'a\\x1b'; raise the limit"),
        (OSError(WORKER.format("OSError", "OSError: [Errno 24] Too many open files: 'a'")), "Too"),
        (system_error(errno.ENOSPC), "No space left on device"),
        (RuntimeError("Too many open files. Communication with"), "too many open files; raise"),
        (RuntimeError("received 0 items of ancdata"), "too many open files; raise"),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
            "DataLoader worker (pid 7) is killed by signal: Killed; is memory short? fewer "
            "DATALOADER.NUM_WORKERS or a smaller DATALOADER.CACHE_MB take less; the same command",
        ),
        (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), "DataLoader worker"),
        (
            RuntimeError(
                "DataLoader worker (pid 7) exited unexpectedly with exit code 1. Details are lost "
                "due to multiprocessing. Rerunning with num_workers=0 may give better error trace."
            ),
            "DataLoader worker (pid 7) exited unexpectedly with exit code 1; is memory short? ",
        ),
        (
            RuntimeError(
                "DataLoader worker (pid 7) exited unexpectedly with exit code "
                f"{errno.EMFILE}. Details are lost due to multiprocessing."
            ),
            "too many open files; raise",
        ),
        (MemoryError(), "out of memory; smaller batches (DATALOADER.TRAIN_X.BATCH_SIZE, "),
        (MemoryError(WORKER.format("MemoryError", "MemoryError")), "out of memory; smaller"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB. GPU 0 has a"),
            "CUDA out of memory. Tried to allocate 2 MiB; smaller batches (",
        ),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors"), "CUDA error: out of mem"),
        (
            RuntimeError("[enforce fail at x.cpp:1] . can't allocate memory: you tried 8 bytes."),
            "out of memory; smaller batches (",
        ),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "out of mem"),
    ],
)
def test_what_the_machine_refuses_is_one_line(error, line):
    assert machine_fault(error).startswith(line) and "\n" not in machine_fault(error)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory", "a"),
        OSError("text"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("[Errno 24] Too many open files"),
        KeyError(),
    ],
)
def test_any_other_error_is_not_the_machines(error):
    assert machine_fault(error) == ""


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


WRITERS = {
    "torch": ("wb", lambda file: torch.save({"x": torch.zeros(4000), "y": torch.ones(3)}, file)),
    "numpy": ("wb", lambda file: np.savez_compressed(file, x=noise(9000), y=noise(3))),
    "json": ("w", lambda file: json.dump(list(range(4000)), file)),
    "yaml": ("w", lambda file: yaml.safe_dump(list(range(1000)), file)),
    "copy": ("wb", lambda file: shutil.copyfileobj(io.BytesIO(bytes(9000)), file)),
    "short": ("w", lambda file: file.write("x" * 2500)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_line_whatever_writes(tmp_path, monkeypatch, name):
    resource = pytest.importorskip("resource")
    path = tmp_path / "file"
    path.write_text("old")
    mode, write = WRITERS[name]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(UserError) as error, atomic_write(str(path), mode) as file:
            write(file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(error.value) == f"cannot write '{path}': File too large"
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("operation", ["fsync", "chmod", "replace"])
def test_a_disk_that_fails_is_one_line(tmp_path, monkeypatch, operation):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(*args):
        raise system_error(errno.EIO)

    monkeypatch.setattr(os, operation, fail)
    with pytest.raises(UserError) as error, atomic_write(str(path)) as file:
        file.write("new")
    assert str(error.value) == f"cannot write '{path}': Input/output error"
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_what_the_caller_reads_is_not_what_cannot_be_written(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(FileNotFoundError), atomic_write(str(path)) as file:
        file.write(open(tmp_path / "none").read())
    assert list(tmp_path.iterdir()) == []
    path.mkdir()
    with pytest.raises(UserError, match="cannot write '.*file': Is a directory"):
        write_json([1], str(path))
    assert list(tmp_path.iterdir()) == [path]


def test_half_a_character_is_written_as_json_has_it(tmp_path):
    path = tmp_path / "file.json"
    write_json({"caf\udce9": "é"}, str(path))
    assert path.read_bytes() == b'{\n    "caf\\udce9": "\xc3\xa9"\n}\n'
    assert json.loads(path.read_text()) == {"caf\udce9": "é"}


def test_temporary_files_have_names_that_nobody_else_gives(tmp_path):
    with atomic_write(str(tmp_path / "a.json")):
        (name,) = os.listdir(tmp_path)
    assert TEMPORARY_NAME.fullmatch(name) and name.startswith(".a.json.tmp-")
    for other in (".a.json.original", "a.json.tmp-12345678", ".tmp-12345678", ".a.tmp-1234567"):
        assert not TEMPORARY_NAME.fullmatch(other)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is full")
def test_a_full_log_or_console_is_one_line_once(tmp_path, monkeypatch):
    (tmp_path / "log.txt").symlink_to("/dev/full")
    with Logger(str(tmp_path / "log.txt")) as logger:
        monkeypatch.setattr(sys, "stdout", logger)
        with pytest.raises(UserError) as error:
            log.info("hello")
        assert str(error.value) == f"cannot write '{tmp_path}/log.txt': No space left on device"
        log_only("nobody hears this")
        log.info("console only")
    with open("/dev/full", "wb", buffering=0) as full:
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(full, write_through=True))
        with pytest.raises(UserError, match="cannot write the standard output: No space left on"):
            log.info("hello")


def test_a_console_gets_nothing_that_it_acts_on_or_cannot_show(tmp_path, monkeypatch):
    # pytest keeps what is logged for its report, which half a character cannot be in
    monkeypatch.setattr(log, "handlers", [h for h in log.handlers if "_StdoutHandler" in repr(h)])
    for encoding, shown in (("ascii", "caf\\xe9"), ("utf-8", "café")):
        binary = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(binary, encoding, write_through=True))
        log.info("café\t\x1b[31m\u202e\udce9\nnext")
        setup_logger(str(tmp_path / encoding))
        print("é\udce9")  # from a public trainer
        assert isinstance(sys.stdout, Logger)
        sys.stdout.close()
        first = f"{shown}\t\\x1b[31m\\u202e\\udce9\nnext\n"
        assert binary.getvalue().decode(encoding) == first + shown[3:] + "\\udce9\n"
        assert (tmp_path / encoding / "log.txt").read_text("utf-8") == "é\\udce9\n"


def test_without_a_console_there_is_the_log(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    log.info("nobody hears this")
    with Logger(str(tmp_path / "log.txt")) as logger:
        monkeypatch.setattr(sys, "stdout", logger)
        log.info("hello")
        logger.flush()
    assert (tmp_path / "log.txt").read_text() == "hello\n"


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
    with pytest.warns(UserWarning, match=r'^No file found at ".*/c\\x1b\[31m"$'):
        assert not check_isfile(str(tmp_path / "c\x1b[31m"))
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
    with pytest.raises(UserError, match="weights '.*': nothing in it fits the model"):
        load_pretrained_weights(nn.Conv2d(1, 1, 1), path)


def test_number_of_parameters():
    model = nn.Linear(3, 2)
    assert count_num_param(model) == 8
    assert count_num_param(params=[model.weight]) == 6
    assert count_num_param(params=[{"params": [model.weight]}, {"params": [model.bias]}]) == 8


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1,\n"b": {"c": "a"},\n"a": 2}', "'.*file.json': \"a\" is there twice, .* line 3$"),
        ('[{"a": 1}, {"a": 1, "b": [{}],\n "\\u0061": 2}]', "is there twice, again in line 2$"),
        ('{"a:": {"a": 1}, "a": [1, "a", "a"], "a:": 2}', '"a:" is there twice, again in line 1$'),
        ("[" * 200_000, "is not valid JSON: it is nested too deeply$"),
        ('{"a":' * 200_000, "is not valid JSON: it is nested too deeply$"),
        ("[NaN]", "is not valid JSON: NaN is not a finite number$"),
        ("[-Infinity]", "is not valid JSON: -Infinity is not a finite number$"),
        ("[1e400]", "is not valid JSON: 1e400 is not a finite number$"),
        (f"[{5000 * '9'}]", "is not valid JSON: Exceeds the limit"),
        ('["\\ud800"]', "is not valid JSON: it has half of a character$"),
        ("", "is not valid JSON: Expecting value"),
        ('["a', "is not valid JSON: Unterminated string"),
        ("[1] 2", "is not valid JSON: Extra data: line 1"),
        ('["\1"]', "is not valid JSON: Invalid control character"),
        (b"\xff\xfe[\0", "is not valid JSON: 'utf-8' codec can't decode byte 0xff"),
        (b'["caf\xe9"]', "is not valid JSON: 'utf-8' codec can't decode byte 0xe9"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_a_damaged_json_file_is_one_line_that_names_it(tmp_path, content, message):
    path = tmp_path / "file.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as info:
        read_json(str(path))
    assert str(info.value).startswith(f"'{path}'") and "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not valid JSON"),
        ("[]", "is not JSON {class name: \\[sentences\\]}"),
        ('"cat"', "is not JSON {class name: \\[sentences\\]}"),
        ('{"cat": "A cat."}', "has no list of sentences for 'cat'"),
        ('{"cat": [1]}', "has no list of sentences for 'cat'"),
        ('{"cat": null}', "has no list of sentences for 'cat'"),
        ('{"cat": {"a": []}}', "has no list of sentences for 'cat'"),
        ('{"c\\nat": [["A cat."]]}', r"has no list of sentences for 'c\\nat'"),
        ('{"cat": ["A cat."],\n"cat": []}', '"cat" is there twice, again in line 2'),
        ('{"cat": [NaN]}', "NaN is not a finite number"),
        ('{"cat": ["\\ud800"]}', "it has half of a character"),
        ("[" * 200_000, "it is nested too deeply"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_a_damaged_file_of_descriptions_is_one_line_that_names_it(tmp_path, content, message):
    path = tmp_path / "cats.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as info:
        read_descriptions(str(path))
    assert str(info.value).startswith(f"'{path}'") and str(info.value).isprintable()


def test_json_is_read_from_files_alone(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for name in (tmp_path, tmp_path / "fifo"):
        with pytest.raises(UserError, match=f"^cannot read '{name}': it is not a file$"):
            read_json(str(name))


def test_json_that_is_written_is_valid(tmp_path):
    path = tmp_path / "file.json"
    figures = {"a": math.nan, "b": [1.5, math.inf], "c": {"d": (-math.inf, np.float64("nan"))}}
    write_json(figures, str(path))
    assert json.loads(path.read_text()) == {"a": None, "b": [1.5, None], "c": {"d": [None, None]}}


def test_write_json_is_readable_by_others(tmp_path):
    path = tmp_path / "file.json"
    write_json([1], str(path))
    assert json.loads(path.read_text()) == [1]
    assert path.stat().st_mode & 0o400
