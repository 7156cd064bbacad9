"""The lock files and the version ranges they were made from."""

import re
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parent.parent


def read(name: str) -> list[Requirement]:
    lines = (REPOSITORY / name).read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def check_locked(ranges: Sequence[Requirement], locked: Sequence[Requirement]) -> None:
    for wanted in ranges:
        pins = [pin for pin in locked if pin.name == canonicalize_name(wanted.name)]
        assert pins, f"{wanted.name} is not locked: make lock"
        for pin in pins:
            (exact,) = pin.specifier
            assert exact.operator == "==" and wanted.specifier.contains(exact.version), pin


def test_every_requirement_is_locked_within_its_range():
    check_locked(read("requirements.txt"), read("requirements-lock.txt"))


def test_every_extra_is_locked_within_its_range_for_the_tests_alone(monkeypatch):
    found: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", found.update)
    runpy.run_path(str(REPOSITORY / "setup.py"))
    extras = found["extras_require"]
    assert {"demo", "export", "ray", "serve", "slurm"} <= set(extras)
    tested = list(map(Requirement, extras["test"]))
    check_locked(tested, read("requirements-test-lock.txt"))
    trackers = {"mlflow", "trackio", "wandb"}  # the tests have stand-ins for them
    for name in trackers:
        check_locked(list(map(Requirement, extras[name])), read("requirements-trackers-lock.txt"))
    for name in set(extras) - {"dev", "docs", "test", "vit_mini"} - trackers:
        assert set(extras[name]) <= set(extras["test"]), name
    demo = {pin.name for pin in read("requirements-lock.txt")}
    assert not demo & {"gradio", "ray", "submitit", "fastapi"}


def test_lock_names_packages_only():
    text = (REPOSITORY / "requirements-lock.txt").read_text()
    assert not re.search(r"://|\s@\s|^-|--hash", text, re.MULTILINE)
