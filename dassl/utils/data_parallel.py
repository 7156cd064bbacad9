"""Names of tensors in checkpoints that DataParallel wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PREFIX = "module."


def strip_module(state: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return a state dict without the "module." that DataParallel puts before every name.

    Where only some names begin with it, a module is really called that, and they stay.
    """
    state = dict(state)
    while state and all(isinstance(name, str) and name.startswith(PREFIX) for name in state):
        state = {name.removeprefix(PREFIX): value for name, value in state.items()}
    return state
