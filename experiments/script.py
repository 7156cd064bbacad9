"""Run what the shell scripts in scripts/ ask for, by their arguments and the environment.

    python -m experiments script TRAINER STEP CALLED FOLDER ARGUMENT...

CALLED is the path by which the script was called, FOLDER the folder it was called from. Environment
variables:

    DATA     folder of the datasets                  (default: data, in the repository)
    SHOTS    training images per class               (default: 16)
    CFG      config file in configs/trainers/<TRAINER>, without .yaml
             (default: the paper's ViT-B/16 file; for the embedded datasets ViT-Mini-2's)
    LOADEP   epoch to load in the test scripts       (default: the last one)
    SEED     one or more seeds for few_shot.sh       (default: 1 2 3)
    SOURCE   dataset trained on, for xd_test.sh      (default: imagenet; for embedded ones emoji)
    SUB      classes of zeroshot.sh                  (default: all; or base, new)
    TRAINER  method of zeroshot.sh                   (default: ZeroshotCLIP; or ZeroshotCLIP2)
    PYTHON   interpreter, read by the scripts        (default: .venv's, python or python3)

A finished run, one with a results.json, is skipped; an unfinished one is resumed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from configs.choice import EMBEDDED_SOURCE, is_embedded
from configs.protocols import BASE2NEW, CROSS_DATASET, FEW_SHOT, Protocol
from dassl.command import say
from dassl.errors import UserError, escaped
from experiments.runs import Run, runs_of

ZEROSHOT = "zeroshot"
PROTOCOL_OF = {s.name: p for p in (BASE2NEW, FEW_SHOT, CROSS_DATASET) for s in p.steps}
# For zero-shot methods: the protocol's step that tests these classes.
ZEROSHOT_STEPS = {"all": "train_all", "base": "train_base", "new": "test_new"}


def setting(name: str, default: str = "") -> str:
    """Return an environment variable; an empty one counts as not set."""
    return os.environ.get(name) or default


def number(name: str, text: str) -> int:
    """Parse a whole number.

    Raises:
        UserError: ``text`` is not one.
    """
    try:
        return int(text)
    except ValueError:
        raise UserError(f"{name}: expected a whole number, got '{text}'") from None


def runs_for(trainer: str, step: str, folder: str, arguments: Sequence[str]) -> list[Run]:
    """List the runs that a script's arguments and the environment ask for."""
    target, shots, seeds = arguments[0], setting("SHOTS", "16"), ["1"]
    if step == ZEROSHOT:
        trainer, classes = setting("TRAINER", trainer), setting("SUB", "all")
        if classes not in ZEROSHOT_STEPS:
            raise UserError(f"SUB: expected {', '.join(ZEROSHOT_STEPS)}, got '{classes}'")
        step = ZEROSHOT_STEPS[classes]
    elif step == "train_all":
        shots, seeds = arguments[1], setting("SEED", "1 2 3").split()
    else:
        seeds = [arguments[1]]
    protocol: Protocol = PROTOCOL_OF[step]
    source = target
    if step == "test_target":
        source = setting("SOURCE", EMBEDDED_SOURCE if is_embedded(target) else "imagenet")
    runs = []
    for seed in seeds:
        for run in runs_of(
            *(protocol, trainer, source, number("SEED", seed), number("SHOTS", shots)),
            config=setting("CFG"),
            targets=[target],
            # relative to the folder the script was called from
            root=os.path.join(folder, setting("DATA")) if setting("DATA") else "data",
        ):
            if run.step.name == step:
                epoch = setting("LOADEP") if run.model else ""
                runs.append(replace(run, load_epoch=epoch))
    return runs


def do_here(runs: Sequence[Run], first: str) -> int:
    """Execute runs in this process, one after another; return the exit code of the last one.

    Args:
        runs: finished ones are reported and skipped; the first failure stops the rest.
        first: command that trains what the runs test, for the message if that is missing.

    Raises:
        UserError: a model to test is missing.
    """
    for run in runs:
        if run.is_finished:
            say(f"skipped, finished before: {run.place}")
            continue
        run.check_model(first)
        make_root(run.root)
        import train  # imports torch

        code = train.main(run.arguments)
        if code != 0:
            return code
    return 0


def make_root(root: str) -> None:
    """Create the default root of the datasets, into which the embedded ones are drawn.

    Any other root must exist, because its name may be misspelled.
    """
    if root == "data":
        Path(root).mkdir(exist_ok=True)


def training_script(called: str, folder: str, run: Run) -> str:
    """Return the command that trains what a test script tests."""
    script = Path(folder, called).resolve()
    name = script.name.replace("_test", "_train", 1)
    return f"sh scripts/{script.parent.name}/{name} {run.dataset} {run.seed}"


def main(argv: Sequence[str]) -> int:
    """Run a script's command line and return its exit code."""
    if len(argv) < 4 or argv[1] not in (ZEROSHOT, *PROTOCOL_OF):
        print("error: script: expected to be called by the files in scripts/", file=sys.stderr)
        return 2
    trainer, step, called, folder, *arguments = argv
    names = {ZEROSHOT: ["DATASET"], "train_all": ["DATASET", "SHOTS"]}.get(step)
    names = names or ["DATASET", "SEED"]
    if len(arguments) != len(names):
        print(f"error: usage: sh {escaped(called)} {' '.join(names)}", file=sys.stderr)
        return 2
    try:
        runs = runs_for(trainer, step, folder, arguments)
        return do_here(runs, training_script(called, folder, runs[0]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
