"""Conversion of a checkpoint with pickled objects to its tensors, without running their code.

    python -m dassl.utils.convert_checkpoint OLD_FILE NEW_FILE

The new file holds state_dict, epoch and val_result, and is read like any other checkpoint. It must
not exist: nothing is overwritten.
"""

from __future__ import annotations

import os
import sys
from collections import OrderedDict
from typing import Any

import torch

from dassl.command import run, say
from dassl.errors import UserError
from dassl.utils.data_parallel import strip_module
from dassl.utils.torchtools import (
    NotRead,
    checkpoint_types,
    load_data,
    plain_reason,
    refused_type,
    save_torch_file,
    state_in,
)


class _Items:
    """Takes the place of an object with items, such as a config; torch fills in dictionaries."""

    def __new__(cls, *args: Any) -> Any:
        return OrderedDict()


def _read_without_objects(path: str, stand_in: type) -> Any:
    replaced, names = checkpoint_types(), set()
    while True:
        try:
            return load_data(path, list(replaced))
        except UserError:
            raise
        except Exception as error:  # a damaged file raises errors of many kinds
            name = refused_type(error)
            if not name or name in names:
                raise
            names.add(name)
            replaced.append((NotRead if name.startswith("numpy.") else stand_in, name))


def read_without_objects(path: str) -> Any:
    """Return the content of a file on the CPU, with something inert for each of its objects.

    Raises:
        UserError: the file is missing, corrupt, or names what cannot be replaced.
    """
    if not os.path.isfile(path):
        problem = "is not a file" if os.path.lexists(path) else "does not exist"
        raise UserError(f"checkpoint '{path}' {problem}")
    for stand_in in (NotRead, _Items):
        try:
            return _read_without_objects(path, stand_in)
        except UserError:
            raise
        except Exception as error:
            name = refused_type(error)
            reason = f"it names {name}, which no checkpoint needs" if name else plain_reason(error)
    raise UserError(f"checkpoint '{path}' cannot be converted: {reason}")


def convert(old: str, new: str) -> None:
    """Write what ``old`` holds of state_dict, epoch and val_result to ``new``.

    Raises:
        UserError: ``new`` exists or cannot be written, or there is no state_dict with tensors in
            ``old``.
    """
    if not os.path.basename(new):
        raise UserError(f"NEW_FILE: expected the name of a file, got '{new}'")
    if os.path.lexists(new):
        raise UserError(f"NEW_FILE: expected a file that does not exist, got '{new}'")
    content = read_without_objects(old)
    state = state_in(content) or {}
    tensors = strip_module({k: v for k, v in state.items() if isinstance(v, torch.Tensor)})
    if not tensors:
        raise UserError(f"checkpoint '{old}' cannot be converted: it holds no state_dict")
    numbers = {k: v for k, v in content.items() if k in ("epoch", "val_result")}
    kept = {k: v for k, v in numbers.items() if isinstance(v, int | float)}
    save_torch_file({"epoch": 0, **kept, "state_dict": tensors}, new)
    say(f"Saved {len(tensors)} tensors of {old} to {new}")


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print("usage: python -m dassl.utils.convert_checkpoint OLD_FILE NEW_FILE", file=sys.stderr)
        return 2
    try:
        convert(*arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(run(lambda: main(sys.argv[1:])))
