"""experiments/ablations.py, in a checkout whose train.py only writes results."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import ablations
from experiments.paper_rows import Row, Table

REPOSITORY = Path(__file__).parents[2]

# Accuracy is 60 + seed, and 5 less for novel classes.
STUB = """
import json, pathlib

def main(arguments):
    values = dict(zip(arguments, arguments[1:]))
    with open("calls.txt", "a") as file:
        file.write(" ".join(arguments) + "\\n")
    accuracy = 60.0 + int(values["--seed"])
    accuracy -= 5 * (values.get("DATASET.SUBSAMPLE_CLASSES") == "new")
    folder = pathlib.Path(values["--output-dir"])
    folder.mkdir(parents=True, exist_ok=True)
    assert not (folder / "results.json").exists()
    (folder / "results.json").write_text(json.dumps({"accuracy": accuracy}))
    return 0
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    shutil.copytree(REPOSITORY / "experiments", tmp_path / "experiments")
    for folder in ("dassl", "configs"):
        (tmp_path / folder).symlink_to(REPOSITORY / folder)
    (tmp_path / "train.py").write_text(STUB)
    # The real one takes seconds to import, in each worker process.
    (tmp_path / "torch.py").write_text("def set_num_threads(number): pass")
    return tmp_path


def tables(checkout: Path, *names: str) -> list[list[str]]:
    """Return the cells of the printed tables, line by line."""
    command = [
        sys.executable,
        "-m",
        "experiments",
        "ablations",
        "--jobs",
        "1",
        "--tables",
        *names,
    ]
    done = subprocess.run(
        [*command, "--seeds", "1", "3"], cwd=checkout, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def calls(checkout: Path) -> list[str]:
    return (checkout / "calls.txt").read_text().splitlines()


def test_measured_figures_are_printed_next_to_the_papers(checkout):
    lines = tables(checkout, "promp4", "promp5")
    # base 61 and 63, novel 56 and 58
    measured = ["62.0 ± 1.4", "57.0 ± 1.4", "59.4 ± 1.4"]
    assert lines[2] == ["0", *measured, "69.34", "74.77", "71.95"]
    assert [line[0] for line in lines[7:]] == ["ProMPT", "-Iter", "-G_V", "-G_T", "-G", "-F"]
    assert all(line[1:4] == measured for line in lines[7:])
    # Seven settings, of which two are in both tables; one training, which is tested on base
    # classes, and one test on novel ones a seed.
    assert len(calls(checkout)) == 7 * 2 * 2
    trained = [call for call in calls(checkout) if "--eval-only" not in call]
    assert sum("TRAINER.PROMPT.VISION_GENERATOR False" in call for call in trained) == 2 * 2

    assert tables(checkout, "promp4", "promp5") == lines
    assert len(calls(checkout)) == 7 * 2 * 2  # nothing is repeated


def test_other_protocols_print_their_columns_and_start_from_their_source(checkout):
    lines = tables(checkout, "hicropl14", "promp3", "--dataset", "animals")
    shots = [f"{shots}-shot" for shots in (1, 2, 4, 8, 16)]
    assert lines[0] == ["Variant", *shots, *(f"Paper: {each}" for each in shots)]
    assert [line[0] for line in lines[2:8]][:2] == ["Linear probe CLIP", "CoOp"]
    # seeds 1 and 3
    assert lines[7][:2] + lines[7][6:7] == ["HiCroPL", "62.0 ± 1.4", "74.67"]
    targets = ["emoji_v2", "emoji_sketch", "emoji_noise", "emoji_rendition"]
    figures = ["Paper: ImageNet", "Paper: average"]
    assert lines[8] == ["Variant", "emoji", *targets, "Average", *figures]
    assert lines[10] == ["CLIP", *["61.0"] * 6, "66.73", "57.18"]  # once, whatever the seeds
    few_shot = [call for call in calls(checkout) if "animals" in call]
    assert len(few_shot) == 6 * 5 * 2
    assert len(calls(checkout)) - len(few_shot) == 5 + 3 * 5 * 2


def test_figures_without_values_have_no_columns_for_them(checkout):
    lines = tables(checkout, "hisf_readings")
    assert lines[0] == ["Variant", "Base", "Novel", "Harmonic mean"]


def test_a_method_without_a_config_file_is_one_line_before_any_run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    rows = [Row("CoOp", "CoOp"), Row("other", "OtherMethod")]
    monkeypatch.setitem(ablations.TABLES, "hisf1", Table("methods", rows))
    assert ablations.main(["--tables", "hisf1", "--output-dir", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == (
        "error: config: expected a config file, got configs/trainers/OtherMethod/vit_mini.yaml, "
        "which does not exist\n"
    )
