"""experiments/figures.py on handwritten files; what trainers write is tested in tests/trainers."""

import json
import os
import pickle
import zipfile

import numpy as np
import pytest
from PIL import Image

from experiments import figures

NAMES = ["red circle", "very_large_dog", "blue square"]


def record(path, label, *steps):
    """Make a record; steps are (predicted label, its probability, that of the own class)."""
    return {
        "path": str(path),
        "label": label,
        "class_name": NAMES[label],
        "steps": [{"top": [[k, NAMES[k], p]], "true": true} for k, p, true in steps],
    }


def write(folder, records):
    lines = "".join(json.dumps(r) + "\n" for r in records)
    (folder / "evolution.jsonl").write_text(lines, encoding="utf-8")


@pytest.fixture
def run_dir(tmp_path):
    """Two corrected, two confirmed and no spoiled images, and one that is wrong at both ends."""
    for i in range(5):
        Image.new("RGB", (40, 30), (50 * i, 90, 90)).save(tmp_path / f"{i}.png")
    write(
        tmp_path,
        [
            record(tmp_path / "0.png", 0, (1, 0.5, 0.3), (1, 0.4, 0.3), (0, 0.5, 0.5)),
            record(tmp_path / "1.png", 1, (1, 0.5, 0.5), (0, 0.9, 0.1), (1, 0.6, 0.6)),
            record(tmp_path / "2.png", 2, (1, 0.8, 0.1), (2, 0.7, 0.7), (2, 0.9, 0.9)),
            record(tmp_path / "3.png", 0, (1, 0.5, 0.2), (0, 0.5, 0.5), (2, 0.5, 0.4)),
            record(tmp_path / "4.png", 1, (1, 0.5, 0.5), (1, 0.7, 0.7), (1, 0.9, 0.9)),
        ],
    )
    return tmp_path


def texts(figure):
    return [text.get_text() for text in figure.texts]


def test_groups_and_which_images_come_first(run_dir):
    images = figures.read_evolution(run_dir / "evolution.jsonl")
    corrected, confirmed, spoiled = figures.groups_of(images)
    shown = [[int(i.path[-5]) for i in group.images] for group in (corrected, confirmed, spoiled)]
    assert shown == [[2, 0], [4, 1], []]


def test_spoiled_images_begin_with_the_largest_fall(run_dir):
    falls = [(0, 0.5, 0.4), (0, 0.9, 0.0), (0, 0.6, 0.2), (0, 0.6, 0.2)]
    records = [
        record(run_dir / f"{i}.png", label, (0, p, p), (1, 1 - q, q))
        for i, (label, p, q) in enumerate(falls)
    ]
    write(run_dir, records)
    spoiled = figures.groups_of(figures.read_evolution(run_dir / "evolution.jsonl"))[2]
    assert [int(image.path[-5]) for image in spoiled.images] == [1, 2, 3, 0]


def test_contact_sheet_gives_counts_steps_and_confidence(run_dir):
    images = figures.read_evolution(run_dir / "evolution.jsonl")
    figure = figures.draw_evolution(images, 1)
    words = texts(figure)
    assert "40.0% right at initialization, 80.0% right after 2 iterations; 1 wrong" in words[0]
    assert any(word.startswith("Corrected") and "2 (40.0%)" in word for word in words)
    assert any(word.startswith("Confirmed") and "2 (40.0%)" in word for word in words)
    assert any(word.startswith("Spoiled") and "0 (0.0%)" in word for word in words)
    assert words.count("No image") == 1
    cards = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left") for axes in cards] == ["blue square", "very large dog"]
    assert [text.get_text() for text in cards[0].texts] == [
        *("✘ very large dog", "80.0%"),
        *("✔ blue square", "70.0%"),
        *("✔ blue square", "90.0%"),
    ]


@pytest.mark.parametrize("n_images", ["1", "6"])
def test_evolution_command_writes_a_png(run_dir, capsys, n_images):
    output = run_dir / "new" / "sheet.png"
    arguments = ["evolution", str(run_dir), "--images", n_images, "--output", str(output)]
    assert figures.main(arguments) == 0
    assert capsys.readouterr().out.strip() == str(output)
    with Image.open(output) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert picture.width == 2025 and 300 < picture.height < 1500


def test_one_step_is_enough(run_dir):
    write(run_dir, [record(run_dir / "0.png", 0, (0, 0.5, 0.5))])
    figure = figures.draw_evolution(figures.read_evolution(run_dir / "evolution.jsonl"), 6)
    assert texts(figure).count("No image") == 2


def attention(n_classes, m=2):
    """Weights of fusion layers 1 and 5 that sum to 1, with one large weight."""
    generator = np.random.default_rng(0)
    arrays = {}
    for key, shape in (
        ("text.1", (m, n_classes)),
        ("text.5", (n_classes, m, n_classes)),
        ("vision.1", (m, n_classes)),
        ("vision.5", (m, n_classes)),
    ):
        weights = generator.random(shape) + 0.5
        weights[..., 0, 1] += 3
        arrays[key] = weights / weights.sum(-1, keepdims=True)
    return {"class_names": np.array([f"thing_{i}" for i in range(n_classes)]), **arrays}


def test_attention_command_writes_a_png(tmp_path, capsys):
    np.savez_compressed(tmp_path / "attention.npz", **attention(5))
    assert figures.main(["attention", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "attention.png")
    with Image.open(tmp_path / "attention.png") as picture:
        picture.load()
        assert picture.format == "PNG" and picture.width > 900 and picture.height > 500


@pytest.mark.parametrize("n_classes", [5, 60])
def test_heat_maps_show_the_weights_as_multiples_of_indifference(tmp_path, n_classes):
    arrays = attention(n_classes)
    np.savez_compressed(tmp_path / "attention.npz", **arrays)
    figure = figures.draw_attention(figures.read_attention(tmp_path / "attention.npz"))
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert list(panels) == [
        *("text tower, layer 1", "text tower, layer 5"),
        *("vision tower, layer 1", "vision tower, layer 5"),
    ]
    for title, axes in panels.items():
        tower, _, _, layer = title.split()
        expected = arrays[f"{tower}.{layer}"].reshape(-1, n_classes) * n_classes
        np.testing.assert_allclose(axes.images[0].get_array(), expected)
    rows = [label.get_text() for label in panels["text tower, layer 5"].get_yticklabels()]
    columns = [label.get_text() for label in panels["vision tower, layer 1"].get_xticklabels()]
    names = [f"thing {i}" for i in range(n_classes)]
    assert rows == columns == (names if n_classes == 5 else [])  # no names where they would clash


def error_of(capsys, *arguments):
    assert figures.main([*map(str, arguments)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


def test_missing_files_say_what_leaves_them(tmp_path, capsys):
    assert "TEST.RECORD \"('evolution',)\"" in error_of(capsys, "evolution", tmp_path)
    assert "TEST.RECORD \"('attention',)\"" in error_of(capsys, "attention", tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: [lines[0], lines[1][:40]], "line 2 of"),
        (lambda lines: [lines[0], "[1, 2]"], "line 2 of"),
        (lambda lines: [lines[0], "[" * 200_000], "line 2 of"),
        (lambda lines: [lines[0], lines[1].replace('"true"', '"true": 1, "true"')], "twice"),
        (
            lambda lines: [lines[0], lines[1].replace('"label": ', '"label": 1e400, "x": ')],
            "line 2",
        ),
        (lambda lines: [lines[0], lines[1].replace('"true"', '"own"')], "line 2 of"),
        (lambda lines: [lines[0], json.dumps(record("0.png", 0))], "line 2 of"),
        (
            lambda lines: [lines[0], json.dumps(record("0.png", 0, (0, 1, 1)))],
            "1 steps but line 1 has 3",
        ),
        (lambda lines: [], "is empty"),
    ],
)
def test_damaged_lines_are_named(run_dir, capsys, damage, message):
    path = run_dir / "evolution.jsonl"
    path.write_text("\n".join(damage(path.read_text().splitlines())))
    assert message in error_of(capsys, "evolution", run_dir)
    assert not (run_dir / "evolution.png").exists()


def test_an_image_that_is_gone_is_named(run_dir, capsys):
    (run_dir / "2.png").unlink()
    assert "2.png" in error_of(capsys, "evolution", run_dir)


@pytest.mark.parametrize(
    ("figure", "name"), [("evolution", "evolution.jsonl"), ("attention", "attention.npz")]
)
def test_what_is_no_file_is_not_waited_for(tmp_path, capsys, figure, name):
    os.mkfifo(tmp_path / name)
    assert figures.main([figure, str(tmp_path)]) == 2
    line = f"error: cannot read '{tmp_path / name}': it is not a file\n"
    assert capsys.readouterr().err == line


def test_numpys_advice_to_unpickle_is_left_out(tmp_path, capsys):
    path = tmp_path / "attention.npz"
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({20_000 * '1,'}), }}".encode()
    for content, reason in (
        (b"\x93NUMPY\x02\x00" + len(header).to_bytes(4, "little") + header, "is too long"),
        (pickle.dumps([1]), "it holds pickled objects, which are refused"),
    ):
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("class_names.npy", content)
        if content[:1] != b"\x93":
            path.write_bytes(content)
        assert figures.main(["attention", str(tmp_path)]) == 2
        line = capsys.readouterr().err
        assert line.endswith(f"{reason}\n") and "allow_pickle" not in line and str(path) in line


def test_attention_files_that_do_not_fit_are_refused(tmp_path, capsys):
    path = tmp_path / "attention.npz"
    path.write_bytes(b"no archive")
    assert "damaged" in error_of(capsys, "attention", tmp_path)
    arrays = attention(5)
    np.savez(path, **{key: value for key, value in arrays.items() if key != "vision.5"})
    assert "same fusion layers for both towers" in error_of(capsys, "attention", tmp_path)
    np.savez(path, **{**arrays, "text.1": np.ones((2, 4))})
    assert "text.1 has shape (2, 4)" in error_of(capsys, "attention", tmp_path)
    for wrong in (np.full((2, 3), np.nan), np.full((2, 3), "a")):
        np.savez(path, **{**arrays, "text.1": wrong})
        assert "text.1 must hold finite numbers" in error_of(capsys, "attention", tmp_path)
    np.savez_compressed(path, **arrays)
    content = bytearray(path.read_bytes())
    content[60:90] = bytes(30)
    path.write_bytes(content)
    assert "damaged" in error_of(capsys, "attention", tmp_path)


@pytest.mark.parametrize("options", [["--images", "0"], ["--output", "sheet.pdf"]])
def test_bad_options_end_with_code_2(tmp_path, options):
    with pytest.raises(SystemExit) as stop:
        figures.main(["evolution", str(tmp_path), *options])
    assert stop.value.code == 2
