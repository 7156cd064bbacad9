"""Choose settings of a method by its accuracy on validation images.

    python -m experiments tune --trainer HISF --dataset shapes --seeds 1 2 3 \\
        --set TRAINER.HISF.LAMBDA_LE=0.1 --set TRAINER.HISF.LAMBDA_SA=0.1,1.0,10.0
    python -m experiments tune --trainer CoOp --dataset shapes --seeds 1 2 3 \\
        --trials 20 --set OPTIM.LR=1e-4..1e-1,log --set TRAINER.COOP.N_CTX=4,8,16

Every combination of the values is a run that trains and is then evaluated on validation images;
test images and novel classes are not looked at. With ``--trials`` Optuna's sampler (TPE) takes that
many settings one after another, out of ranges, too: each is chosen by what the former ones have
achieved. All that was tried is kept in tune.json, beside the runs. Finished runs are skipped, so
the same command resumes.

Exit codes: 0 done, 1 a run failed or a result was skipped, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from configs.choice import UNTRAINED
from configs.protocols import BASE2NEW, FEW_SHOT, PROTOCOLS
from dassl.command import Parser, say
from dassl.errors import UserError, shown
from dassl.json_file import read_json
from experiments.cells import Cell, cell
from experiments.run import add_executor_arguments, check_executor, executor_of
from experiments.runs import Job, Run, check_overrides, runs_of
from experiments.scores import Scores
from experiments.sweep import INTERRUPTED, check_folders, sweep
from experiments.table import (
    add_place_arguments,
    add_setting_arguments,
    check_config_files,
    known_datasets,
    known_methods,
    number_above_0,
)
from experiments.writing import brief, render

FILE = "tune.json"
VERSION = 1  # of the file
ON_VALIDATION = ("TEST.SPLIT", "val")
# Commas inside of brackets belong to a value, as in (1, 3).
VALUE = r"(?:[^,()\[\]]|\([^()]*\)|\[[^\[\]]*\])+"
VALUES = re.compile(rf"{VALUE}(?:,{VALUE})*")
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
RANGE = re.compile(rf"({NUMBER})\.\.({NUMBER})(,log)?")

Setting = tuple[str, ...]  # KEY VALUE pairs


class Range(NamedTuple):
    """Numbers to choose from, whole ones if both ends are."""

    low: float
    high: float
    log: bool


class Tried(NamedTuple):
    """A setting, its runs and their accuracies on validation images, of those that have any."""

    setting: Setting
    runs: tuple[Run, ...]
    accuracies: dict[int, float]  # by seed, in percent

    @property
    def cell(self) -> Cell | None:
        """Mean and deviation; None unless all runs have finished."""
        is_complete = len(self.accuracies) == len(self.runs)
        return cell(list(self.accuracies.values())) if is_complete else None


Choices = Mapping[str, Range | tuple[str, ...]]


def choices_of(options: Sequence[str]) -> dict[str, Range | tuple[str, ...]]:
    """Return what each KEY=VALUES of ``--set`` leaves to choose from.

    Raises:
        UserError: one is malformed, or a key is there twice.
    """
    found: dict[str, Range | tuple[str, ...]] = {}
    for option in options:
        key, _, text = option.partition("=")
        if not key or not (VALUES.fullmatch(text)):
            raise UserError(
                f"--set: expected KEY=VALUE,VALUE,... or KEY=LOW..HIGH[,log], got '{option}'"
            )
        if key in found:
            raise UserError(f"--set: expected each key once, got {key} twice")
        numbers = RANGE.fullmatch(text)
        values = tuple(value.strip() for value in re.findall(VALUE, text))
        found[key] = range_of(option, *numbers.groups()) if numbers else values
    return found


def range_of(option: str, low: str, high: str, log: str | None) -> Range:
    """Return the range that an option describes.

    Raises:
        UserError: it is empty, or has numbers without a logarithm.
    """
    is_whole = all(re.fullmatch(r"[-+]?\d+", end) for end in (low, high))
    kind: Any = int if is_whole else float
    found = Range(kind(low), kind(high), log is not None)
    if not found.low < found.high or (found.log and found.low <= 0):
        least = " from above 0" if found.log else ""
        raise UserError(f"--set: expected a LOW{least} that is less than HIGH, got '{option}'")
    return found


def combinations(choices: Mapping[str, tuple[str, ...]]) -> list[Setting]:
    """List every combination of values; the last key changes fastest."""
    return [
        tuple(itertools.chain(*zip(choices, values, strict=True)))
        for values in dict.fromkeys(itertools.product(*choices.values()))
    ]


def extremes(choices: Choices) -> list[Setting]:
    """List settings in which each value, of a range each end, is there once or more."""
    values = {
        k: (str(c.low), str(c.high)) if isinstance(c, Range) else c for k, c in choices.items()
    }
    first = {key: each[0] for key, each in values.items()}
    return [
        tuple(itertools.chain(*{**first, key: value}.items()))
        for key, each in values.items()
        for value in each
    ]


def runs_with(setting: Setting, arguments: argparse.Namespace) -> tuple[Run, ...]:
    """Return the runs of a setting, one for each seed; they are evaluated on validation images.

    Raises:
        UserError: ``runs_of`` raises it.
    """
    runs = [
        runs_of(
            *(PROTOCOLS[arguments.protocol], arguments.trainer, arguments.dataset),
            *(seed, arguments.shots),
            config=arguments.config,
            overrides=(*arguments.overrides, *setting, *ON_VALIDATION),
            backbone=arguments.backbone,
            root=arguments.root,
            output_dir=arguments.output_dir,
        )[0]
        for seed in dict.fromkeys(arguments.seeds)
    ]
    return tuple(runs)


def check_keys(choices: Choices, arguments: argparse.Namespace) -> None:
    """Raise ``UserError`` for a key that is set twice, or that the command sets."""
    fixed = check_overrides(arguments.overrides)[::2]
    check_overrides([text for option in arguments.choices for text in option.split("=", 1)])
    for key in (*fixed, *choices):
        if key == ON_VALIDATION[0]:
            raise UserError(f"{key}: expected none, as tune never looks at test images, got one")
        if key in fixed and key in choices:
            raise UserError(f"--set: expected keys that --overrides does not set, got {key}")


def check_runs(runs: Sequence[Run]) -> None:
    """Check the settings of runs of one dataset, and that there are images to choose by.

    Runs that have finished have been checked.

    Raises:
        UserError: a setting or the dataset is not usable, or validation images are test images.
    """
    import train
    from dassl.data.datasets.build import build_dataset
    from dassl.engine import check_cfg
    from dassl.utils import set_random_seed
    from dassl.utils.logger import errors_alone

    configs = []
    with errors_alone():
        for run in runs:
            args = train.build_parser().parse_args(run.arguments)
            configs.append(train.setup_cfg(args))
            check_cfg(configs[-1])
            train.check_options(args, configs[-1])
        set_random_seed(configs[0].SEED)  # what a run would draw and keep is drawn here
        dataset = build_dataset(configs[0])
    if not (dataset.val and dataset.val_is_disjoint):
        kind = "uses test images as validation images" if dataset.val else "has none"
        raise UserError(
            "--dataset: expected one with validation images that are not test images, as nothing "
            f"is chosen by test images; got {runs[0].dataset}, which {kind}"
        )


def grid(choices: Choices, arguments: argparse.Namespace) -> list[Setting]:
    """List the settings of a search without trials.

    Raises:
        UserError: a range has no values to try in turn.
    """
    values = {key: each for key, each in choices.items() if not isinstance(each, Range)}
    for key in choices.keys() - values.keys():
        raise UserError(f"--set: expected values of {key} to try, got a range without --trials")
    return combinations(values)


class Search:
    """The settings of a command that have been tried, and those of earlier ones.

    Args:
        arguments: of the command.

    Raises:
        UserError: what earlier commands have left is damaged.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.scores = Scores()
        self.tried: dict[Setting, Tried] = {}
        # beside the folders of what is tried, which are named after their settings
        plain = runs_with((), arguments)[0]
        self.path = replace(plain, overrides=tuple(arguments.overrides)).folder.parent / FILE
        self._earlier = earlier(self.path)

    def execute(self, settings: Sequence[Setting]) -> int:
        """Execute the runs of settings, keep what they have achieved, and return the exit code.

        Raises:
            UserError: the executor cannot be had, or the file cannot be written.
        """
        runs = {setting: runs_with(setting, self.arguments) for setting in settings}
        every = [run for own in runs.values() for run in own]
        code = sweep(every, executor_of(self.arguments), self.arguments.retries)
        for setting, own in runs.items():
            found = {run.seed: self.scores.accuracy(run) for run in own}
            accuracies = {seed: each for seed, each in found.items() if each is not None}
            self.tried[setting] = Tried(setting, own, accuracies)
        self._write()
        return code

    @property
    def best(self) -> Tried | None:
        """The setting with the highest mean, of equals the first; None if none is complete."""
        complete = [(one.cell.mean, one) for one in self.tried.values() if one.cell]
        return max(complete, key=lambda pair: pair[0])[1] if complete else None

    def _write(self) -> None:
        from dassl.utils.tools import write_json

        own = {one.setting: one.accuracies for one in self.tried.values() if one.accuracies}
        every = {**self._earlier}
        for setting, accuracies in own.items():
            every[setting] = {**every.get(setting, {}), **accuracies}
        best = self.best
        chosen = best and {"seeds": sorted(best.accuracies), **entry(best.setting, best.accuracies)}
        content = {
            "version": VERSION,
            "images": "validation",
            "trainer": self.arguments.trainer,
            "dataset": self.arguments.dataset,
            "protocol": self.arguments.protocol,
            "shots": self.arguments.shots,
            "overrides": list(self.arguments.overrides),
            "tried": [entry(setting, accuracies) for setting, accuracies in every.items()],
            "chosen": chosen,
        }
        write_json(content, str(self.path))

    def table(self) -> str:
        """Render what was tried, the best first, what is not complete last."""
        ordered = sorted(
            self.tried.values(), key=lambda one: one.cell.mean if one.cell else -1.0, reverse=True
        )
        lines = [(*one.setting[1::2], brief(one.cell)) for one in ordered]
        return render((*ordered[0].setting[::2], "Validation"), lines)


def entry(setting: Setting, accuracies: Mapping[int, float]) -> dict[str, Any]:
    """Return what the file says of a setting."""
    found = cell(list(accuracies.values()))
    assert found is not None  # only what has accuracies is kept
    return {
        "setting": dict(zip(setting[::2], setting[1::2], strict=True)),
        "accuracies": {str(seed): accuracies[seed] for seed in sorted(accuracies)},
        "mean": found.mean,
        "deviation": found.deviation,
    }


def earlier(path: Path) -> dict[Setting, dict[int, float]]:
    """Read the accuracies by seed of each setting that earlier commands have tried.

    Raises:
        UserError: the file is damaged or of a newer version.
    """
    if not path.exists():
        return {}
    content = read_json(str(path))
    try:
        if content["version"] != VERSION:
            raise UserError(f"{path}: expected version {VERSION}, got {shown(content['version'])}")
        return {
            tuple(itertools.chain(*map(_strings, one["setting"].items()))): {
                int(seed): float(accuracy) for seed, accuracy in one["accuracies"].items()
            }
            for one in content["tried"]
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: expected what tune writes, got another form") from error


def _strings(pair: tuple[str, Any]) -> tuple[str, str]:
    key, value = pair
    if not isinstance(value, str):
        raise TypeError(value)
    return key, value


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; report an invalid one in one line and exit with code 2."""
    parser = Parser(
        prog="python -m experiments tune",
        description="Choose settings of a method by its accuracy on validation images.",
        epilog="Finished runs are skipped; the same command resumes what was stopped.",
    )
    add = parser.add_argument
    trained = [name for name in known_methods() if name not in UNTRAINED]
    add("--trainer", required=True, choices=trained, metavar="METHOD")
    add("--dataset", required=True, choices=known_datasets(), metavar="DATASET")
    add(
        "--set",
        dest="choices",
        action="append",
        required=True,
        metavar="KEY=VALUE,...",
        help="a config key and its values; with --trials also KEY=LOW..HIGH or KEY=LOW..HIGH,log",
    )
    add("--trials", type=number_above_0, help="settings that Optuna chooses, not all combinations")
    add("--protocol", default=BASE2NEW.name, choices=(BASE2NEW.name, FEW_SHOT.name))
    add("--seeds", nargs="+", type=int, default=[1], help="of every setting (default: 1)")
    add("--shots", type=number_above_0, default=16, help="images per class (default: 16)")
    add_setting_arguments(parser, transfers=False)
    add_place_arguments(parser)
    add_executor_arguments(parser)
    arguments = parser.parse_args(argv)
    check_executor(parser, arguments)
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = read_arguments(argv)
    try:
        choices = choices_of(arguments.choices)
        check_keys(choices, arguments)
        settings = extremes(choices) if arguments.trials else grid(choices, arguments)
        runs = [run for setting in settings for run in runs_with(setting, arguments)]
        check_config_files([Job(PROTOCOLS[arguments.protocol], tuple(runs))])
        check_folders(arguments.root, arguments.output_dir)
        search = Search(arguments)
        execute = functools.partial(search.execute, settings)
        if arguments.trials:
            from experiments.trials import execute_trials, new_study

            execute = functools.partial(
                execute_trials, new_study(), search, choices, arguments.trials
            )
        if unfinished := [run for run in runs if not run.is_finished]:
            check_runs(unfinished)
        code = execute()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if code == INTERRUPTED:
        return code
    seeds = " ".join(map(str, arguments.seeds))
    caption = [
        "Accuracy in percent on validation images",
        *(arguments.dataset, arguments.trainer, *search.scores.backbones),
        f"seeds {seeds}",
    ]
    say(f"\n{', '.join(caption)}, mean ± standard deviation:\n\n{search.table()}\n")
    code = max(code, search.scores.report())
    best = search.best
    if best is None:
        print("error: nothing to choose from: no setting has finished", file=sys.stderr)
        return 1
    say(f"Tried {len(search.tried)}, recorded in {search.path}. The best one:")
    say(shlex.join(("--overrides", *arguments.overrides, *best.setting)))
    return code
