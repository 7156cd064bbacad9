"""The lock file and the version ranges it was made from."""

import re
from pathlib import Path

from packaging.requirements import Requirement

REPOSITORY = Path(__file__).parent.parent


def read(name: str) -> list[Requirement]:
    lines = (REPOSITORY / name).read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def test_every_requirement_is_locked_within_its_range():
    locked = read("requirements-lock.txt")
    for wanted in read("requirements.txt"):
        pins = [pin for pin in locked if pin.name == wanted.name]
        assert pins, f"{wanted.name} is not locked: make lock"
        for pin in pins:
            (exact,) = pin.specifier
            assert exact.operator == "==" and wanted.specifier.contains(exact.version), pin


def test_lock_names_packages_only():
    text = (REPOSITORY / "requirements-lock.txt").read_text()
    assert not re.search(r"://|\s@\s|^-|--hash", text, re.MULTILINE)
