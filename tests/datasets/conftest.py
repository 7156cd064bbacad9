from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One root of the embedded datasets, for all tests that only read."""
    return tmp_path_factory.mktemp("datasets") / "root"
