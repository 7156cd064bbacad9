"""Where the time of a training step goes on a CPU, at the size of ViT-B/16 with random weights.

    python -m benchmarks.cost.profile             all steps of the table of ratios
    python -m benchmarks.cost.profile --rows 4 6

Each of our steps, in fp32 and in the device's own choice, is computed once under torch's profiler
after two without it; the shares are of the time that the processor spends in operations of a kind.
What was measured is kept as benchmarks/results/profile.json, which docs/performance.md shows;
rows that are not named keep what they have.
"""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.cost import cells, report
from benchmarks.cost.__main__ import code_version, low_precision
from benchmarks.cost.cells import Cell
from dassl.command import Parser, run, say

ROOT = Path(__file__).parents[2]
WARM_UPS = 2
STEPS = [
    i
    for i, row in enumerate(cells.ROWS, 1)
    if row.cell.phases == ("step",) and row.quantity == "seconds"
]
# Operations of the processor by kind; those of none are the rest.
KINDS = {
    "matrix products": (
        *("aten::addmm", "aten::mm", "aten::bmm", "aten::baddbmm", "aten::mkldnn_convolution"),
        *("aten::convolution_backward", "aten::dot", "aten::mv", "aten::addmv"),
    ),
    "attention": (
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
        *("aten::_softmax", "aten::_softmax_backward_data"),
    ),
    "LayerNorm": ("aten::native_layer_norm", "aten::native_layer_norm_backward"),
    "copies": (
        *("aten::copy_", "aten::cat", "aten::index", "aten::index_copy", "aten::index_select"),
        *("aten::index_add_", "aten::fill_", "aten::embedding", "aten::index_copy_"),
    ),
}
REST = "the rest"


def profile(cell: Cell) -> dict[str, Any]:
    """Measure a step: its share of time by kind, FLOPs, and the machine's matrix rate."""
    import torch
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity

    import trainers.base
    from benchmarks.cost.measure import Subject

    # Templates of frozen features, computed once: how many costs no step.
    one_template = mock.patch.object(trainers.base, "N_TEMPLATES", 1)
    with one_template, tempfile.TemporaryDirectory() as folder:
        subject = Subject(cell, Path(folder))
        about = subject.about()
        warm_ups = [subject.act("step") for _ in range(WARM_UPS)]
        with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as profiler:
            subject.act("step")
    kinds = {name: kind for kind, names in KINDS.items() for name in names}
    spent: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        if event.device_type == DeviceType.CPU:
            spent[kinds.get(event.key, REST)] += event.self_cpu_time_total
    total = sum(spent.values())
    return {
        "seconds": warm_ups[-1]["seconds"],
        "flops": warm_ups[0]["flops"],
        "rate": about["rate"],
        "shares": {kind: spent[kind] / total for kind in (*KINDS, REST)},
    }


def read_arguments(argv: Sequence[str] | None) -> Any:
    parser = Parser(
        prog="python -m benchmarks.cost.profile",
        description="Measure where the time of the steps in the table of ratios goes.",
    )
    add = parser.add_argument
    add("--rows", nargs="+", type=int, choices=STEPS, default=STEPS, help="of that table, from 1")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    options = read_arguments(argv)
    precisions = dict.fromkeys(("fp32", low_precision()))
    found = {(r["step"], r["precision"]): r for r in report.kept(ROOT, "profile")}
    for number in options.rows:
        row = cells.ROWS[number - 1]
        for precision in precisions:
            measured = profile(row.ours(precision))
            record = {"step": row.title, "precision": precision, "code": code_version()}
            record |= measured
            found[row.title, precision] = record
            say(report.profile_table([record]))
    titles = [row.title for row in cells.ROWS]
    records = sorted(found.values(), key=lambda record: titles.index(record["step"]))
    report.keep(ROOT, "profile", records)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
