"""The file classes.json of a run: what else than a config a model needs to know of its dataset."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from dassl.distributed import by_first
from dassl.engine.run_folder import CLASSES_FILE
from dassl.errors import UserError, shown
from dassl.utils.tools import read_json, write_json

FORMAT = 1


class Classes(NamedTuple):
    """What format 1 holds, next to its number as ``format``.

    Attributes:
        class_names: those of training, by label.
        templates: of the dataset, with "{}" for the class name.
        descriptions: the sentences that a method compared with, by class name; those of test
            classes are among them.
    """

    class_names: list[str]
    templates: list[str]
    descriptions: dict[str, list[str]]


def content_of(classes: Classes) -> dict[str, Any]:
    """Return what JSON holds of them, which ``classes_in`` reads."""
    return {"format": FORMAT, **classes._asdict()}


@by_first
def write_classes(classes: Classes, folder: str) -> None:
    """Write the file into the folder of a run."""
    write_json(content_of(classes), os.path.join(folder, CLASSES_FILE))


def read_classes(folder: str) -> Classes:
    """Read the file in the folder of a run.

    Raises:
        UserError: there is none, or it is damaged or of a newer format.
    """
    path = os.path.join(folder, CLASSES_FILE)
    if not os.path.lexists(path):
        raise UserError(
            f"'{folder}' has no {CLASSES_FILE}: the run is not finished, or is one of an older "
            "version; the command that began it finishes it, or adds the file to a finished one"
        )
    return classes_in(read_json(path), path)


def classes_in(content: Any, path: str) -> Classes:
    """Return what JSON of any format says.

    Args:
        content: of the file.
        path: of the file, for error messages.

    Raises:
        UserError: it is damaged, or of a newer format.
    """
    if not isinstance(content, dict):
        raise UserError(f"'{path}': expected an object, got {shown(content)}")
    version = content.get("format")
    if type(version) is not int or not 1 <= version <= FORMAT:
        raise UserError(f"'{path}': expected format {FORMAT} or less, got {shown(version)}")
    for name in ("class_names", "templates"):
        if not _is_texts(content.get(name)) or not content[name]:
            got = shown(content.get(name))
            raise UserError(f"'{path}': {name}: expected a list of texts, got {got}")
    descriptions = content.get("descriptions")
    if not isinstance(descriptions, dict) or not all(map(_is_texts, descriptions.values())):
        got = shown(descriptions)
        raise UserError(f"'{path}': descriptions: expected {{class name: [sentences]}}, got {got}")
    return Classes(*(content[name] for name in Classes._fields))


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
