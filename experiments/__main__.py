"""Everything above one run: ``python -m experiments COMMAND``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from dassl.command import run, say
from dassl.errors import UserError

COMMANDS = {
    "plan": "say what memory and time a training run will take",
    "run": "execute the runs of protocols for methods, datasets, seeds and shots",
    "tune": "choose settings of a method by its accuracy on validation images",
    "table": "print tables of finished runs, or train and test methods first",
    "compare": "compare methods on the same test images: differences, intervals, tests",
    "verify": "check a result card against finished runs, run it again, or write one",
    "evidence": "run what docs/results.md shows, keep the results as cards, write its tables",
    "ablations": "repeat the tables of the HiCroPL, HISF and ProMPT papers",
    "views": "compare trainings on fixed views of the images with the published recipe",
    "features": "list the image features that runs keep on disk, or remove them",
    "report": "write one HTML page about finished runs",
    "figures": "draw what ProMPT and HISF record in an evaluation",
    "script": "run by the shell scripts in scripts/",
}
USAGE = "usage: python -m experiments COMMAND [OPTION...]; see COMMAND --help"


def main(argv: Sequence[str]) -> int:
    """Run the command named first; return its exit code.

    Raises:
        UserError: there is no such command, or what it raises.
    """
    if argv[:1] and argv[0] in ("-h", "--help"):
        say("\n".join([USAGE, *(f"  {name:10} {text}" for name, text in COMMANDS.items())]))
        return 0
    if not argv or argv[0] not in COMMANDS:
        got = f"'{argv[0]}'" if argv else "none"
        raise UserError(f"COMMAND: expected {', '.join(COMMANDS)}, got {got}")
    code: int = importlib.import_module(f"experiments.{argv[0]}").main(argv[1:])
    return code


if __name__ == "__main__":
    sys.exit(run(lambda: main(sys.argv[1:]), "stopped; the same command resumes from here"))
