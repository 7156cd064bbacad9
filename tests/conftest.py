"""Settings for all tests."""

import random

import numpy as np
import pytest
import torch

# The models here are tiny: a second thread costs more than it saves, and much more on a busy
# machine.
torch.set_num_threads(1)

SEED = 0


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Seed every test, so that none depends on which tests its process ran before."""
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)
