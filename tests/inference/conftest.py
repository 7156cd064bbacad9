"""Fixtures of the tests of inference/."""

from __future__ import annotations

import pytest

from inference import Classifier
from tests.inference.runs import Runs


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def classifier(runs: Runs) -> Classifier:
    """Load a run of a quick method that takes other class names."""
    return Classifier.from_run(runs.trained("VPT"))
