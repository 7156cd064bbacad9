"""experiments/ablations.py, in a checkout whose train.py only writes results."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import trainers  # noqa: F401
from dassl.config import get_cfg_default, merge_from_list
from experiments import ablations

REPOSITORY = Path(__file__).parents[2]

# Accuracy is 60 + seed, and 5 less for novel classes; lambda_2 = 1 is worth 10 more.
STUB = """
import json, pathlib

def main(arguments):
    values = dict(zip(arguments, arguments[1:]))
    with open("calls.txt", "a") as file:
        file.write(" ".join(arguments) + "\\n")
    accuracy = 60.0 + int(values["--seed"])
    accuracy -= 5 * (values["DATASET.SUBSAMPLE_CLASSES"] == "new")
    accuracy += 10 * (values.get("TRAINER.HISF.LAMBDA_SA") == "1.0")
    folder = pathlib.Path(values["--output-dir"])
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"accuracy": accuracy}))
    return 0
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    shutil.copytree(REPOSITORY / "experiments", tmp_path / "experiments")
    (tmp_path / "dassl").symlink_to(REPOSITORY / "dassl")
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
        "--workers",
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
    measured = ["62.0 ± 1.0", "57.0 ± 1.0", "59.4 ± 1.0"]
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


def test_lambdas_are_chosen_on_validation_images_of_base_classes(checkout):
    lines = tables(checkout, "hisf_lambdas")
    assert lines[0][1:] == ["0.1", "1.0", "10.0"]
    assert lines[2] == ["0.1", "62.0 ± 1.0", "72.0 ± 1.0", "62.0 ± 1.0"]
    assert len(calls(checkout)) == 3 * 2
    for call in calls(checkout):
        assert "TEST.SPLIT val" in call and "DATASET.SUBSAMPLE_CLASSES base" in call


@pytest.mark.parametrize("name", ablations.TABLES)
def test_every_row_sets_keys_that_exist_and_differ_from_the_default(name):
    _, rows = ablations.TABLES[name]
    changed = set()
    for row in rows:
        cfg = get_cfg_default()
        merge_from_list(cfg, list(row.options))
        changed.add((row.method, str(cfg)))
    assert len(changed) == len(rows)
