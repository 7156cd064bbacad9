"""Settings that Optuna's sampler chooses, each by what the former ones have achieved."""

from __future__ import annotations

from typing import Any

from dassl.errors import UserError
from experiments.sweep import INTERRUPTED
from experiments.tune import Choices, Range, Search, Setting

SEED = 1  # of the sampler: the same command chooses the same settings
DIGITS = 4  # of a number out of a range, which names a folder and has to be typed


def new_study() -> Any:
    """Return an Optuna study without trials.

    Raises:
        UserError: Optuna is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise UserError(
            "--trials: expected the package optuna; pip install -e '.[tune]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=SEED)
    return optuna.create_study(direction="maximize", sampler=sampler)


def execute_trials(study: Any, search: Search, choices: Choices, count: int) -> int:
    """Execute ``count`` settings one after another; return the exit code.

    Raises:
        UserError: ``Search.execute`` raises it.
    """
    import optuna

    code = 0
    for _ in range(count):
        trial = study.ask()
        setting = chosen(trial, choices)
        code = max(code, search.execute([setting]))
        if code == INTERRUPTED:
            break
        cell = search.tried[setting].cell
        if cell is None:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(trial, cell.mean)
    return code


def chosen(trial: Any, choices: Choices) -> Setting:
    """Return the setting of an Optuna trial."""
    pairs: list[str] = []
    for key, each in choices.items():
        if not isinstance(each, Range):
            value = trial.suggest_categorical(key, each)
        elif isinstance(each.low, int) and isinstance(each.high, int):
            value = trial.suggest_int(key, each.low, each.high, log=each.log)
        else:
            exact = trial.suggest_float(key, each.low, each.high, log=each.log)
            value = min(max(float(f"{exact:.{DIGITS}g}"), each.low), each.high)
        pairs += [key, str(value)]
    return tuple(pairs)
