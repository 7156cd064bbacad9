"""The trainers' config files still resolve to what they did when each was self-contained.

After an intended change, store the new values with

    python -c "from tests.configs.test_resolved import store; store()"
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from yacs.config import CfgNode

import train
from dassl.config import set_keys, to_dict
from dassl.config.defaults import declared

REPOSITORY = Path(train.__file__).parent
TRAINERS = REPOSITORY / "configs" / "trainers"
FILES = sorted(str(path.relative_to(TRAINERS)) for path in TRAINERS.rglob("*.yaml"))
SNAPSHOT = Path(__file__).parent / "resolved.json"
# what does not come from the file, and the number of this machine's cores
LEFT_OUT = {"TRAINER.NAME", "DATALOADER.NUM_WORKERS"}


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested keys into dotted ones."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, dict)
        found |= flat(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return found


def config(trainer: str, file: str = "") -> CfgNode:
    """Merge a trainer's file over its defaults."""
    arguments = ["--trainer", trainer]
    if file:
        arguments += ["--config-file", str(TRAINERS / file)]
    return train.setup_cfg(train.build_parser().parse_args(arguments))


@cache
def resolved(trainer: str, file: str = "") -> dict[str, Any]:
    """Return what a file resolves to, with dotted keys; of the trainers' keys, only its own."""
    values = flat(to_dict(config(trainer, file)))  # which registers the trainers
    known = declared(trainer).keys() - LEFT_OUT
    return {key: value for key, value in sorted(values.items()) if key in known}


def store() -> None:
    """Write what the files resolve to: each trainer's defaults, and what each file changes."""
    defaults: dict[str, dict[str, Any]] = {}
    files: dict[str, dict[str, Any]] = {}
    for file in FILES:
        trainer = file.split("/")[0]
        own = resolved(trainer)
        defaults[trainer] = {k: v for k, v in own.items() if k not in declared()}
        defaults["all"] = {k: v for k, v in own.items() if k in declared()}
        files[file] = {k: v for k, v in resolved(trainer, file).items() if v != own[k]}
    lines = [
        f"{json.dumps(name)}: {{\n"
        + ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in group.items())
        + "\n}"
        for name, group in (("defaults", defaults), ("files", files))
    ]
    SNAPSHOT.write_text("{" + ",\n".join(lines) + "}\n", encoding="utf-8")


@pytest.mark.parametrize("file", [file for file in FILES if "/vit_mini" not in file])
def test_a_file_comes_to_what_is_stored(file):
    stored = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    trainer = file.split("/")[0]
    now = resolved(trainer)
    old = stored["defaults"]["all"] | stored["defaults"][trainer]
    # new defaults are allowed, and so are removed ones that no file sets
    expected = now | {k: v for k, v in old.items() if k in now} | stored["files"][file]
    assert resolved(trainer, file) == expected


@pytest.mark.parametrize("file", [file for file in FILES if "best_val" in file])
def test_a_best_val_file_differs_in_the_epoch_that_is_tested(file):
    trainer = file.split("/")[0]
    best = {"TEST.FINAL_MODEL": "best_val", "TEST.BEST_VAL_TIE": "last"}
    assert resolved(trainer, file) == resolved(trainer, file.replace("_best_val", "")) | best


@pytest.mark.parametrize("file", FILES)
def test_a_file_says_what_its_images_are_and_takes_nothing_from_the_backbone(file):
    cfg = config(file.split("/")[0], file)
    keys = ("SIZE", "INTERPOLATION", "PIXEL_MEAN", "PIXEL_STD", "TRANSFORMS")
    assert {"MODEL.BACKBONE.NAME", *(f"INPUT.{key}" for key in keys)} <= set_keys(cfg)


@pytest.mark.parametrize("file", FILES)
def test_a_header_names_commands_that_exist(file):
    header = []
    for line in (TRAINERS / file).read_text(encoding="utf-8").splitlines():
        if not line.startswith("# "):
            break
        header.append(line)
    text = "\n".join(header)
    scripts = re.findall(r"scripts/\S+\.sh", text)
    assert scripts or f"--config-file configs/trainers/{file}" in text
    for script in scripts:
        assert (REPOSITORY / script).is_file()
    for chosen in re.findall(r"CFG=(\S+)", text):
        assert file.endswith(f"/{chosen}.yaml")


def test_no_file_is_another_s_copy_and_together_they_are_short():
    texts = [path.read_text(encoding="utf-8") for path in TRAINERS.rglob("*.yaml")]
    assert len(set(texts)) == len(FILES)
    lines = [line.strip() for text in texts for line in text.splitlines()]
    assert len([line for line in lines if line and not line.startswith("#")]) <= 1050


def test_every_file_is_stored():
    assert sorted(json.loads(SNAPSHOT.read_text(encoding="utf-8"))["files"]) == FILES
