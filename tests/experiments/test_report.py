"""The report: what its sections say, what it leaves out, and that names cannot inject anything."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import shlex
import statistics
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import clip
import train
from clip.tokens import tokenizer
from configs.protocols import BASE2NEW, CROSS_DATASET, FEW_SHOT
from dassl.engine.run_folder import open_tensorboard
from dassl.evaluation.predictions import write_predictions
from dassl.metrics import ece
from experiments.found import find
from experiments.report import main
from experiments.report.examples import Judged, mistakes_of, nearest_words, text_context
from experiments.report.origins import command_in
from experiments.report.sections import loss_curve
from experiments.rows import tables_of
from experiments.runs import Run, runs_of
from experiments.writing import full
from tests.experiments.finished import leave_results

NAMES = ("cat", "dog", "emu")
HOSTILE = (
    "<script>alert('name')</script>",
    '"><img src=x onerror=alert(2)>',
    "$\\frac{$ </pre></text>\x1b[31m&amp;",
)
WORDS = ("photo", "red")
N = 12  # test images of a run


def finish(run: Run, wrong: int, root: Path, names: Sequence[str] = NAMES) -> None:
    """Leave what a finished run leaves: wrong about its last images, and surest of the last."""
    labels = np.arange(N) % len(names)
    predicted = np.where(np.arange(N) < N - wrong, labels, (labels + 1) % len(names))
    logits = np.eye(len(names))[predicted] * np.linspace(1, 4, N)[:, None]
    logits = logits.astype(np.float16)
    figures = {
        **{"epoch": 2, "wall_time_s": 61.0 + run.seed, "peak_memory_mb": 1234},
        "ece": ece(torch.tensor(logits).float(), torch.tensor(labels)),
        "versions": {"python": "3.11", "torch": "2.14 <b>"},
    }
    folder = leave_results(run, N - wrong, N, DATASET__ROOT=str(root), **figures)
    paths = [str(root / run.target / f"<b>{i}.png") for i in range(N)]
    with open(folder / "predictions.npz", "wb") as file:
        write_predictions(file, paths, str(root), labels, names, {"logits": logits})
    for i, path in enumerate(paths):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 10), (20 * i, 0, 0)).save(path)
    arguments = vars(train.build_parser().parse_args(run.arguments))
    lines = [f"{key}: {arguments[key]}" for key in sorted(arguments)]
    log = ["** Arguments **", *lines, "** Config **", "</pre><script>alert(3)</script>"]
    (folder / "log.txt").write_text("\n".join(log))
    if run.is_trained and not run.step.loads:
        writer = open_tensorboard(str(folder / "tensorboard"), None)
        for step in range(6):
            writer.add_scalar("train/loss", 6.0 - step, step)
        writer.close()
        rows = [tokenizer().encoder[f"{word}</w>"] for word in WORDS]
        table = clip.load_model("ViT-Mini-2").token_embedding.weight.detach()
        (folder / "prompt_learner").mkdir()
        state = {"state_dict": {"ctx": table[rows] + 0.001}, "epoch": 2, "class_names": list(names)}
        torch.save(state, folder / "prompt_learner" / "model.pth.tar-2")


def runs_for(output: Path, protocol, trainer: str, dataset: str, seed: int, **more) -> list[Run]:
    return runs_of(protocol, trainer, dataset, seed, output_dir=output, **more)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Finish base-to-novel runs of two methods on two datasets, one with hostile names."""
    place = tmp_path_factory.mktemp("report")
    for dataset, names in (("shapes", NAMES), ("food", HOSTILE)):
        for trainer, seeds in (("ZeroshotCLIP", [1]), ("CoOp", [1, 2])):
            for seed in seeds:
                found = runs_for(place / "out", BASE2NEW, trainer, dataset, seed)
                for run, wrong in zip(found, (2, 5) if trainer == "CoOp" else (4, 3), strict=True):
                    finish(run, wrong + seed - 1, place / "data", names)
    return place


@pytest.fixture(scope="module")
def page(place) -> Path:
    path = place / "report.html"
    assert main([str(place / "out"), "--html", str(path)]) == 0
    return path


class Reader(HTMLParser):
    """Takes a page apart: elements with their attributes, and the text of each kind."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self._open[-1] if self._open else "", data.strip()))

    def of(self, tag: str) -> list[str]:
        return [text for kind, text in self.texts if kind == tag]


def test_tables_say_what_experiments_table_says(place, page):
    runs, _, _ = find([str(place / "out")])
    (found,), _ = tables_of(runs)
    cells = Reader(page).of("td")
    for head, values in found.table.rows:
        row = [*head, *map(full, values)]
        assert any(cells[i : i + len(row)] == row for i in range(len(cells))), row
    assert f"{found.title}: gain over ZeroshotCLIP" in Reader(page).of("h2")


def test_gains_are_differences_on_the_same_images(page):
    cells = Reader(page).of("td")
    # base: 2 and 3 wrong where zero-shot has 4 of 12; novel: 5 and 6 where it has 3
    at = [i for i, cell in enumerate(cells) if cell == "CoOp" and cells[i + 1].startswith("+")]
    (row,) = [cells[i : i + 5] for i in at]
    assert row[1].startswith(f"{100 * 1.5 / 12:+.2f} [")
    assert row[2].startswith(f"{-100 * 2.5 / 12:+.2f} [")
    assert row[4] == "0 / 2 / 0"


def test_calibration_is_the_mean_of_the_runs_errors(place, page):
    runs, _, _ = find([str(place / "out")])
    errors = [r.results()["ece"] for r in runs if r.trainer == "CoOp" and r.column == "Novel"]
    cells = Reader(page).of("td")
    rows = [cells[i : i + 3] for i, cell in enumerate(cells) if cell == "CoOp"]
    assert len(errors) == 4
    assert f"{statistics.fmean(errors):.3f}" in [row[2] for row in rows]


def test_mistakes_have_their_pictures_and_counts(page):
    read = Reader(page)
    sources = [attributes["src"] for tag, attributes in read.elements if tag == "img"]
    assert len(sources) > 10
    for source in sources:
        kind, _, data = source.partition(",")
        assert kind == "data:image/jpeg;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (20, 10)
    start = read.texts.index(("h2", "Mistakes on shapes"))
    section = [text for _, text in read.texts[start : start + 200]]
    # zero-shot is best there by mean accuracy: 4 and 3 wrong
    assert "ZeroshotCLIP, Base to novel, 16 shots, seed 1: of these methods the best" in section[1]
    confident = section[section.index("Most confident mistakes") :]
    # the last image is the most confident one: number 11 is an emu, and its score is 4
    share = np.exp(4) / (np.exp(4) + 2)
    assert confident[1:4] == ["emu", "taken for cat", f"confidence {100 * share:.0f}%"]


def test_words_cost_commands_and_versions(place, page):
    cells = Reader(page).of("td")
    words = [cell for cell in cells if cell.startswith("photo (")]
    assert words == ["photo (0.01) red (0.01)"] * 2
    at = cells.index("1,234 (1,234 to 1,234)")
    assert cells[at - 4 : at + 2] == [
        *("CoOp", "Base to novel, 16 shots", "4", "62 (62 to 63)"),
        *("1,234 (1,234 to 1,234)", "256"),
    ]
    assert "python 3.11, torch 2.14 <b>" in cells
    (commands,) = Reader(page).of("pre")
    run = runs_for(place / "out", BASE2NEW, "CoOp", "food", 2)[0]
    command = command_in(run.folder / "log.txt")
    assert command in commands
    again = train.build_parser().parse_args(shlex.split(command)[2:])
    assert again == train.build_parser().parse_args(run.arguments)


def test_names_cannot_inject_anything(page):
    read, text = Reader(page), page.read_text(encoding="utf-8")
    assert len([tag for tag, _ in read.elements if tag == "script"]) == 1
    for tag, attributes in read.elements:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert tag not in ("iframe", "object", "embed", "link", "base", "form")
        for name in ("src", "href", "xlink:href"):
            assert re.match(r"#|data:image/|$", attributes.get(name) or ""), (tag, attributes)
    shown = [text for _, text in read.texts]
    assert HOSTILE[0] in shown and f"taken for {HOSTILE[1]}" in shown
    assert "\x1b" not in text
    (policy,) = [a["content"] for tag, a in read.elements if "http-equiv" in a]
    script = re.search(r"<script>(.*)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy and "default-src 'none'" in policy
    assert "http://" not in re.sub(r'xmlns(:xlink)?="[^"]+"', "", text) and "url(http" not in text


@pytest.mark.slow
def test_few_shot_and_transfer_have_sections_of_their_own(tmp_path):
    out = tmp_path / "out"
    few = [runs_for(out, FEW_SHOT, "CoOp", "shapes", 1, shots=shots)[0] for shots in (1, 4)]
    transfer = runs_for(out, CROSS_DATASET, "CoOp", "emoji", 1, targets=["food", "digits"])
    zero = runs_for(out, CROSS_DATASET, "ZeroshotCLIP", "emoji", 1, targets=["food", "digits"])
    for number, run in enumerate([*few, *runs_for(out, FEW_SHOT, "ZeroshotCLIP", "shapes", 1)]):
        finish(run, number + 1, tmp_path)
    for run in [*transfer, *zero]:
        finish(run, 3, tmp_path)
    path = tmp_path / "page.html"
    assert main([str(out), "--html", str(path)]) == 0
    read = Reader(path)
    headings = read.of("h2")
    for title in (
        *("Few-shot", "Few-shot: gain over ZeroshotCLIP", "Few-shot: calibration"),
        *("Cross-dataset, trained on emoji, 16 shots", "Mistakes on digits"),
        "Cross-dataset, trained on emoji, 16 shots: gain over ZeroshotCLIP",
    ):
        assert title in headings
    labels = [a["aria-label"] for tag, a in read.elements if tag == "svg"]
    assert "shapes: accuracy by number of shots" in labels
    assert "food: gain over zero-shot by method" in labels
    ticks = [text for tag, text in read.texts if tag == "text"]
    assert "4" in ticks and "shots" in ticks


def test_what_is_missing_is_left_out_and_said(tmp_path):
    out = tmp_path / "out"
    runs = runs_for(out, BASE2NEW, "CoOp", "shapes", 1)
    for run in runs:
        leave_results(run, 7, 10, MODEL=None, versions=None)
    for run in runs_for(out, FEW_SHOT, "ZeroshotCLIP", "digits", 1):
        leave_results(run, 7, 10)
    leave_results(runs_for(out, FEW_SHOT, "CoOp", "digits", 1)[0], 7, 10)
    path = tmp_path / "page.html"
    assert main([str(out), "--html", str(path)]) == 0
    said = Reader(path).of("p")
    for line in (
        "There is no finished zero-shot run to compare with.",
        "No run has predictions to compare.",
        "Runs without predictions that can be read: 2.",
        "Runs without curves: 1.",
        "Runs without a learned context in the place of words: 2.",
        "Runs without a log that names their command: 4.",
    ):
        assert line in said
    assert "-" in Reader(path).of("td")
    finish_again = runs[0].folder / "predictions.npz"
    finish_again.write_bytes(b"PK damaged")
    (runs[0].folder / "tensorboard").mkdir()
    (runs[0].folder / "tensorboard" / "events.out.1").write_bytes(b"damaged")
    (runs[0].folder / "model").mkdir()
    (runs[0].folder / "model" / "model.pth.tar-2").write_bytes(b"damaged")
    assert main([str(out), "--html", str(path)]) == 0
    assert [line for line in Reader(path).of("p") if line.endswith(".")] == [
        line for line in said if line.endswith(".")
    ]


def test_pictures_that_are_not_there_are_said_to_be_missing(tmp_path):
    for run in runs_for(tmp_path / "out", BASE2NEW, "CoOp", "shapes", 1):
        finish(run, 3, tmp_path / "data")
    path, nowhere = tmp_path / "page.html", tmp_path / "nowhere"
    assert main([str(tmp_path / "out"), "--html", str(path), "--root", str(nowhere)]) == 0
    read = Reader(path)
    assert f"The pictures are not below '{nowhere}'; --root names another folder." in read.of("p")
    assert "taken for cat" in read.of("span")
    assert "img" not in [tag for tag, _ in read.elements]


def test_damaged_results_are_named_and_bad_input_is_one_line(tmp_path, capsys):
    path, out = tmp_path / "page.html", tmp_path / "out"
    assert main([str(out), "--html", str(path)]) == 2
    assert capsys.readouterr().err == f"error: OUTPUT: expected a folder of runs, got '{out}'\n"
    out.mkdir()
    assert main([str(out), "--html", str(path)]) == 2
    assert (
        capsys.readouterr().err == f"error: OUTPUT: expected finished runs, got none in '{out}'\n"
    )
    with pytest.raises(SystemExit) as stop:
        main([str(out), "--html", "page.txt"])
    assert stop.value.code == 2 and "expected a name that ends in .html" in capsys.readouterr().err
    first, second = runs_for(out, BASE2NEW, "CoOp", "shapes", 1)
    leave_results(first, 7, 10)
    leave_results(second, 7, 10)
    (second.folder / "results.json").write_text("{")
    assert main([str(out), "--html", str(path)]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("skipped: ") and str(second.folder) in captured.err
    assert captured.out == f"{path}\n"
    assert str(second.folder) in "".join(Reader(path).of("pre"))
    for name in ("page.html/x.html", "nowhere/x.html"):
        with pytest.raises(SystemExit):
            main([str(out), "--html", str(tmp_path / name)])
        assert "expected a file that can be written" in capsys.readouterr().err


def test_losses_are_those_of_epochs_resumed_and_cut_short(tmp_path):
    first = open_tensorboard(str(tmp_path), None)
    for step in range(5):  # of 2 batches an epoch; the third epoch is interrupted
        first.add_scalar("train/loss", float(step), step)
        first.add_scalar("train/lr", 0.1, step)
    first.close()
    second = open_tensorboard(str(tmp_path), 4)
    for step in range(4, 8):
        second.add_scalar("train/loss", 10.0 + step, step)
    second.close()
    assert loss_curve(tmp_path, 4) == [(1, 1.0), (2, 3.0), (3, 15.0), (4, 17.0)]
    last = sorted(tmp_path.iterdir())[-1]
    last.write_bytes(last.read_bytes()[:-10])
    assert loss_curve(tmp_path, 4)[:2] == [(1, 1.0), (2, 3.0)]
    assert loss_curve(tmp_path / "none", 4) == loss_curve(tmp_path, None) == []


def test_context_is_what_stands_in_the_place_of_words():
    ctx, weight = torch.ones(2, 4), torch.ones(4, 4)
    assert torch.equal(text_context({"a.proj.weight": weight, "a.ctx": ctx}), ctx)
    assert torch.equal(text_context({"ctx": ctx}), ctx)
    assert text_context({"a.ctx": ctx, "a.project_text.weight": weight}) is None  # HISF's
    assert text_context({"ctx": ctx, "project_text.weight": weight}) is None
    assert text_context({"ctx": torch.ones(3, 2, 4)}) is None  # one for each class
    assert text_context({"image_encoder.VPT": ctx}) is None
    for backbone in ("ViT-Mini-2", "ViT-B/16", "", __file__):  # other, not here, none, damaged
        assert nearest_words(ctx, backbone) == []


def test_a_model_that_would_be_downloaded_is_not_here(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_CACHE", str(tmp_path))
    assert clip.is_here("ViT-Mini-2") and clip.is_here(__file__)
    assert not clip.is_here("ViT-B/16") and not clip.is_here("open_clip:ViT-B-16/openai")
    assert not clip.is_here("")


def test_pictures_outside_of_the_data_folder_are_not_shown(tmp_path):
    """What a foreign predictions.npz names may be anything on this machine."""
    (tmp_path / "data").mkdir()
    for name in ("data/in.png", "out.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "data" / "text.png").write_text("no picture")
    paths = ["in.png", "../out.png", str(tmp_path / "out.png"), "text.png", ".", "a\0b"]
    images = [Judged(path, "a", "b", 0.9, False) for path in paths]
    cards = mistakes_of(images, str(tmp_path / "data"))
    assert [len(card.pictures) for card in cards] == [1, 0, 0, 0, 0, 0]
