"""The commands of README and docs/inference.md, from a folder of photos on, as they are written."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import predict
import train
from tests.inference.runs import Runs
from tests.trainers import toy

REPOSITORY = Path(__file__).parents[2]
COLORS = {"cat": (200, 60, 60), "dog": (60, 200, 60), "polar bear": (60, 60, 200)}
SERVERS = ("inference.demo", "inference.serve")  # which run until they are stopped


def commands(path: str, heading: str = "") -> list[list[str]]:
    """Return the Python commands of a page's shell blocks, or a section's, split into words."""
    text = (REPOSITORY / path).read_text(encoding="utf-8")
    if heading:
        text = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    split = [shlex.split(line.split(" > ")[0], comments=True) for line in lines]
    return [words[1:] for words in split if words[:1] == ["python"]]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a working folder with the configs, pictures, and the runs that the pages speak of."""
    monkeypatch.chdir(tmp_path)
    Path("configs").symlink_to(REPOSITORY / "configs")
    random = np.random.RandomState(0)
    for name, color in COLORS.items():
        for number in range(40):
            picture = Path("photos", name, f"{number}.png")
            picture.parent.mkdir(parents=True, exist_ok=True)
            noise = random.randint(-50, 50, (16, 16, 3)) + np.array(color)
            Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8)).save(picture)
    for folder in ("holiday", "new_photos"):
        Path(folder).symlink_to("photos")
    Image.new("RGB", (20, 16), "red").save("photo.jpg")
    return tmp_path


def run(words: list[str], backbone: str) -> None:
    """Run a command; one that trains with the small CLIP for an epoch, a server not at all."""
    if words[0] == "-m":
        module = importlib.import_module(words[1])
        arguments = words[2:]
        if words[1] in SERVERS:  # other tests start them
            module.build_parser().parse_args(arguments)
            return
        assert module.main(arguments) == 0
    elif words[0] == "train.py":
        small = ["INPUT.SIZE", "(16, 16)", "OPTIM.MAX_EPOCH", "1", "TRAINER.HICROPL.PREC", "fp32"]
        arguments = [*words[1:], *toy.OPTIONS["HiCroPL"], *small]
        assert train.main(["--backbone", backbone, *arguments]) == 0
    elif words[0] == "predict.py":
        assert predict.main(words[1:]) == 0
    else:
        subprocess.run([sys.executable, *words], check=True, capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/inference.md"])
def test_each_command_runs(place: Path, runs: Runs, page: str):
    pytest.importorskip("onnxscript", reason="the extra [export] is not installed")
    of_photos = commands("README.md", "From a folder of photos to a served classifier")
    steps = of_photos
    with contextlib.redirect_stdout(io.StringIO()):
        if page != "README.md":
            run(of_photos[0], runs.backbone)
            Path("output/run").symlink_to("photos")
            steps = commands(page)
        assert len(steps) >= 7
        for words in steps:
            run(words, runs.backbone)
