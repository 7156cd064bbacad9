"""Fetch the public descriptions of the classes, and report which are present."""

from __future__ import annotations

import os
import tempfile

from dassl.command import say
from dassl.errors import UserError, escaped
from dassl.table import print_table
from dassl.utils import listdir_nohidden, read_json, write_json
from dassl.utils.descriptions import read_descriptions
from dassl.utils.download import download

from .sources import DESCRIPTIONS, DESCRIPTIONS_URL

HERE = os.path.dirname(os.path.abspath(__file__))
DESCRIPTIONS_DIR = os.path.join(os.path.dirname(HERE), "descriptions")


def prepare_descriptions(name: str, fetched: list[str]) -> None:
    """Fetch the descriptions of one dataset as {class name: [sentences]}.

    Args:
        name: name of the dataset's class.
        fetched: receives the path of the file if it was downloaded.

    Raises:
        UserError: the address cannot be reached, or its content has another format.
    """
    path = os.path.join(DESCRIPTIONS_DIR, f"{name}.json")
    if os.path.exists(path):
        say(f"{escaped(path)} exists")
        return
    url = DESCRIPTIONS_URL.format(DESCRIPTIONS[name])
    with tempfile.TemporaryDirectory() as temporary:
        file = os.path.join(temporary, f"{name}.json")
        try:
            download(url, file)
            texts = read_json(file)
            if isinstance(texts, dict):  # a class may have a single sentence instead of a list
                texts = {name: [t] if isinstance(t, str) else t for name, t in texts.items()}
            write_json(texts, file)
            content = read_descriptions(file)
        except UserError as error:
            raise type(error)(
                f"{str(error).replace(file, url)}; write {{class name: [sentences]}} at '{path}', "
                "or choose TRAINER.HICROPL.FROZEN_TEXT dataset_template or dataset_templates"
            ) from error
    write_json(content, path)
    fetched.append(path)
    say(f"Saved {escaped(path)}")


def report_descriptions() -> bool:
    """Print a table of the descriptions; return whether all public ones are present."""
    names = listdir_nohidden(DESCRIPTIONS_DIR) if os.path.isdir(DESCRIPTIONS_DIR) else []
    files = {name.removesuffix(".json") for name in names if name.endswith(".json")}
    rows, complete = [], True
    for name in sorted({*DESCRIPTIONS, *files}):
        row = (escaped(name), "-", "-", "absent")
        if name in files:
            try:
                content = read_descriptions(os.path.join(DESCRIPTIONS_DIR, f"{name}.json"))
                sentences = sum(map(len, content.values()))
                row = (escaped(name), f"{len(content):,}", f"{sentences:,}", "present")
            except UserError as error:
                row = (escaped(name), "-", "-", str(error))
        complete = complete and row[-1] == "present"
        rows.append(row)
    print_table(("descriptions", "classes", "sentences", "file"), rows)
    return complete
