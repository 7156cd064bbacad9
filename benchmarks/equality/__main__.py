"""Measure how far methods, towers and schedules are from plain computations of the same.

    python -m benchmarks.equality                 all methods, into docs/equality.md: a minute
    python -m benchmarks.equality --methods CoOp  only print the rows of some

Each method is built around a tiny random CLIP with the paper's settings, and so is the plain
computation. docs/equality.md says what the columns are.
"""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.equality import measure
from benchmarks.equality.plain_steps import STEPS
from dassl.command import Parser, run, say
from dassl.utils.tools import atomic_write
from experiments.writing import filled

PAGE = Path(__file__).parents[2] / "docs" / "equality.md"
COLUMNS = ("logits", "loss", "gradients", "training")
HEADER = (
    "| Method | Compared with | Logits | Loss | Gradients | Weights after training "
    "| The largest in float64 | Tests |\n| --- | --- | --- | --- | --- | --- | --- | --- |"
)
SHARED_HEADER = "| What | Compared with | fp32 | float64 | Tests |\n| --- | --- | --- | --- | --- |"


class Case(NamedTuple):
    """What a method is compared with, and the tests that hold it: modules and functions."""

    source: str
    tests: Mapping[str, Sequence[str]]


PLAIN = "test_logits_and_gradients_equal_the_plain_computation"
PLAIN_LOSSES = "test_logits_losses_and_gradients_equal_the_plain_computation"
PUBLIC = "test_a_public_checkpoint_gives_the_logits_of_the_plain_computation"
INTERCHANGE = {"interchange": ("test_public_checkpoints_give_the_logits_of_the_plain_computation",)}
NAMES = "test_names_shapes_and_start_are_those_of_the_released_code"
CASES: dict[str, Case] = {
    "CoOp": Case("R C", {"coop_zsclip": ["test_coop_equals_the_plain_computation"], **INTERCHANGE}),
    "CoCoOp": Case("R C", {"cocoop": [PLAIN], **INTERCHANGE}),
    "KgCoOp": Case(
        "R C",
        {
            "kgcoop": [
                "test_logits_losses_and_gradient_equal_the_plain_computation",
                "test_reads_public_checkpoints_with_their_unused_tensors",
            ]
        },
    ),
    "ProGrad": Case(
        "R C",
        {"prograd": ["test_a_step_leaves_out_what_conflicts_with_the_frozen_logits", PUBLIC]},
    ),
    "ProDA": Case(
        "P C",
        {
            "proda": [
                "test_losses_and_gradients_equal_those_of_explicit_covariances",
                "test_a_public_checkpoint_gives_the_logits_of_the_mean_of_all_prompts",
            ]
        },
    ),
    "LAMM": Case(
        "R C",
        {
            "lamm": [
                "test_logits_losses_and_gradient_equal_the_plain_computation",
                "test_a_public_checkpoint_of_the_present_classes_gives_the_plain_logits",
            ]
        },
    ),
    "TCP": Case("R C", {"tcp": [PLAIN_LOSSES, PUBLIC, NAMES]}),
    "VPT": Case("R C", {"ivlp": ["test_vpt_equals_the_plain_computation"], **INTERCHANGE}),
    "IVLP": Case("R C", {"ivlp": ["test_ivlp_equals_the_plain_computation"], **INTERCHANGE}),
    "MaPLe": Case("R C", {"maple": ["test_maple_equals_the_plain_computation"], **INTERCHANGE}),
    "MetaPrompt": Case(
        "R C",
        {
            "metaprompt": [
                PLAIN_LOSSES,
                "test_weights_after_steps_equal_those_of_the_plain_computation",
                PUBLIC,
            ]
        },
    ),
    "ProVP": Case("R C", {"provp": [PLAIN_LOSSES, PUBLIC]}),
    "PromptSRC": Case(
        "R C",
        {
            "promptsrc": [
                PLAIN_LOSSES,
                "test_final_model_is_the_weighted_sum_over_the_epochs",
            ],
            **INTERCHANGE,
        },
    ),
    "ProMPT": Case(
        "P", {"promp": ["test_every_iteration_loss_and_gradients_equal_the_plain_computation"]}
    ),
    "CoPrompt": Case("R C", {"coprompt": [PLAIN_LOSSES, PUBLIC]}),
    "HISF": Case("P", {"hisf": ["test_logits_loss_and_gradients_equal_the_plain_computation"]}),
    "HiCroPL": Case(
        "P R C",
        {
            "hicropl": ["test_logits_losses_and_gradients_equal_the_papers_equations"],
            **INTERCHANGE,
        },
    ),
    "MMA": Case("R C", {"mma": [PLAIN, PUBLIC, NAMES]}),
    "MMRL": Case(
        "R C", {"mmrl": [PLAIN_LOSSES, "test_a_checkpoint_decides_by_the_names_that_it_holds"]}
    ),
    "CLIPLoRA": Case(
        "R C",
        {
            "cliplora": [
                PLAIN,
                "test_iterations_count_and_each_steps_the_schedule",
                "test_the_file_of_the_public_code_is_read",
            ]
        },
    ),
    "CLIPAdapter": Case(
        "R C", {"clip_adapter": [PLAIN, "test_a_public_checkpoint_serves_any_classes"]}
    ),
    "TaskRes": Case("R C", {"taskres": [PLAIN, PUBLIC]}),
}
TOWERS = ("test_towers.py", ["test_same_features_as_open_clip_with_the_same_random_weights"])
SCHEDULE = ("test_optim.py", ["test_cosine_after_a_constant_warm_up"])


def listed(module: str, functions: Sequence[str]) -> str:
    """Name tests of a module in the cell of a table."""
    return "<br>".join(f"`{module}::{function}`" for function in functions)


def number(value: float) -> str:
    """Round a difference up, so that it stays a bound; without any it is 0."""
    if value == 0:
        return "0"
    mantissa, exponent = f"{value * 1.05:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def method_row(name: str) -> str:
    """Measure a method and return its row."""
    case = CASES[name]
    single, double = (measure.method_differences(name, precision) for precision in measure.DTYPES)
    tests = "<br>".join(
        listed(f"test_{module}.py", functions) for module, functions in case.tests.items()
    )
    cells = [number(single[column]) for column in COLUMNS]
    cells.append(number(max(double.values())))
    return f"| `{name}` | {case.source} | {' | '.join(cells)} | {tests} |"


def shared_rows() -> list[str]:
    """Measure towers and schedules."""
    rows = []
    for name in measure.TOWERS:
        found = [number(measure.tower_differences(name, p)) for p in measure.DTYPES]
        what = f"{name} and text tower: features and logits"
        rows.append(
            f"| {what} | open_clip, same weights | {' | '.join(found)} | {listed(*TOWERS)} |"
        )
    rate = number(measure.schedule_difference())
    what = "Learning rates, cosine with warm-up, 1 to 200 epochs"
    rows.append(f"| {what} | its closed form | – | {rate} | {listed(*SCHEDULE)} |")
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m benchmarks.equality", description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=list(STEPS), help="print only these rows")
    chosen = parser.parse_args(argv).methods
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = []
    for name in chosen or CASES:
        with contextlib.redirect_stdout(io.StringIO()):  # the log of its training
            rows.append(method_row(name))
        say(rows[-1])
    if not chosen:
        with contextlib.redirect_stdout(io.StringIO()):
            shared = shared_rows()
        page = PAGE.read_text(encoding="utf-8")
        page = filled(page, "equality:methods", "\n".join([HEADER, *rows]))
        page = filled(page, "equality:shared", "\n".join([SHARED_HEADER, *shared]))
        with atomic_write(str(PAGE)) as file:
            file.write(page)
        say(f"Written to {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
