"""The pages docs/methods/<file>.md: what in them can be generated.

python -m experiments.method_pages

A page is for the methods of one file of trainers/. Its text is written by hand; what stands between
the markers <!-- tensors --> and <!-- /tensors -->, and those of the other ``PARTS``, is rewritten.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import datasets
import trainers
from clip import CLIP, CLIPConfig, PromptTokens
from configs.choice import CONFIGS, config_of
from configs.protocols import BASE2NEW, PROTOCOLS
from dassl.command import run
from dassl.config import get_cfg_default, merge_from_file
from dassl.config.defaults import declared
from dassl.engine import TRAINER_REGISTRY
from dassl.errors import UserError
from dassl.json_file import read_json
from dassl.utils.tools import atomic_write
from experiments.cells import AVERAGE
from experiments.config_reference import table as table_of_keys
from experiments.published import ABSENT, printed
from experiments.writing import filled
from trainers.base import Method
from trainers.trainer import MethodTrainer

assert datasets and trainers  # they register their keys and names

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "methods"
RESULTS = ROOT / "docs" / "results.md"
COSTS = (
    ROOT / "benchmarks" / "results" / "cost.json",
    ROOT / "benchmarks" / "results" / "cost-gpu.json",
)
AVERAGE_OF_TARGETS = "Average"  # column of the protocols that transfer
COST_CLASSES = 50
GIB = 2**30
VIT_B16 = CLIPConfig(
    embed_dim=512,
    image_resolution=224,
    vision_layers=12,
    vision_width=768,
    vision_patch_size=16,
    context_length=77,
    vocab_size=49408,
    text_width=512,
    text_layers=12,
)
K = 37  # classes of what is built; no width and no number of prompts, so that it shows in shapes


def pages() -> dict[Path, list[str]]:
    """Return the registered methods of each page."""
    found: dict[Path, list[str]] = {}
    for name in TRAINER_REGISTRY.registered_names():
        if issubclass(kind := TRAINER_REGISTRY.get(name), MethodTrainer):
            folder, _, file = kind.method.__module__.rpartition(".")
            if folder == trainers.__name__:
                found.setdefault(PAGES / f"{file}.md", []).append(name)
    return found


def rows_as_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def of_each(names: Sequence[str], text: Callable[[str], str]) -> str:
    """Return the text of each method, once for those that have the same, under their names."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(text(name), []).append(name)
    if len(found) == 1:
        return next(iter(found))
    return "\n\n".join(
        f"{', '.join(f'`{name}`' for name in own)}: {content}" for content, own in found.items()
    )


# Tensors -----------------------------------------------------------------------------------------


class Sizes(CLIP):
    """A CLIP that has sizes and no weights: all of its text features are zero."""

    def encode_text(self, tokens: Tensor | PromptTokens, layers: Any = ()) -> Tensor:
        ids = tokens if isinstance(tokens, Tensor) else tokens.ids
        return torch.zeros(len(ids), self.config.embed_dim)


@functools.cache
def backbone() -> CLIP:
    with torch.device("meta"):
        model = Sizes(VIT_B16)
    return model.to_empty(device="cpu").eval().requires_grad_(False)


def build(name: str) -> Method:
    """Build a method for ViT-B/16 and K classes, with its paper's base-to-novel settings."""
    class_names = [str(k) for k in range(K)]
    sentences = {each: [f"A photo of a {each}."] for each in class_names}
    method = TRAINER_REGISTRY.get(name).method
    return method(config(name), backbone(), class_names, ["a photo of a {}."], sentences)


def config_file(name: str) -> Path:
    return ROOT / CONFIGS / "trainers" / name / f"{config_of(name, BASE2NEW, '', 16)}.yaml"


def config(name: str) -> Any:
    cfg = get_cfg_default(name)
    merge_from_file(cfg, str(config_file(name)))
    return cfg


def tensors(name: str) -> str:
    """Return a table of the tensors of a checkpoint, those of the same shape in one row."""
    method = build(name)
    scope = method.get_submodule(method.checkpoint_scope)
    learned = dict(scope.named_parameters(remove_duplicate=False))
    saved = method.saved()
    if not saved:
        return "Nothing is learned, and nothing is saved."
    groups: dict[tuple[str, tuple[int, ...], bool], list[tuple[str, ...]]] = {}
    for key, tensor in saved.items():
        pattern = re.sub(r"\d+", "{}", key)
        group = (pattern, tuple(tensor.shape), key in learned)
        groups.setdefault(group, []).append(tuple(re.findall(r"\d+", key)))
    rows = []
    for (pattern, shape, is_learned), numbers in groups.items():
        written = pattern.format(*(in_short(each) for each in zip(*numbers, strict=True)))
        rows.append((f"`{written}`", shown(shape), "learned" if is_learned else "saved"))
    file = config_file(name).relative_to(ROOT).as_posix()
    return (
        f"{count(method)}With `{file}`, ViT-B/16 and K classes, the checkpoint in "
        f"`{method.checkpoint_name}/` holds\n\n" + rows_as_table(("Tensor", "Shape", ""), rows)
    )


def in_short(numbers: Sequence[str]) -> str:
    """Write the numbers of one place in a name: "3", or "{0..8}"."""
    values = sorted(set(map(int, numbers)))
    if len(values) == 1:
        return str(values[0])
    whole = values == list(range(values[0], values[-1] + 1))
    return f"{{{values[0]}..{values[-1]}}}" if whole else f"{{{','.join(map(str, values))}}}"


def shown(shape: Sequence[int]) -> str:
    """Write a shape; what has no size yet is given one by the N training images."""
    if not shape:
        return "a number"
    sizes = [{K: "K", 0: "N"}.get(size, str(size)) for size in shape]
    return f"({', '.join(sizes)}{',' * (len(sizes) == 1)})"


def count(method: Method) -> str:
    """Say how many values the optimizer of a run changes, if there are any."""
    shapes = [tuple(tensor.shape) for tensor in method.learned().values()]
    fixed = sum(torch.Size(shape).numel() for shape in shapes if K not in shape)
    per_class = sum(torch.Size(shape).numel() // K for shape in shapes if K in shape)
    parts = [f"{fixed:,}"] * bool(fixed) + [f"{per_class:,} × K"] * bool(per_class)
    return f"{' + '.join(parts)} learned values. " if parts else ""


# Figures -----------------------------------------------------------------------------------------


def published(names: Sequence[str]) -> str:
    """Return what papers print over all datasets, by protocol, once for all that print the same."""
    parts = []
    for protocol in PROTOCOLS.values():
        rows: dict[tuple[str, ...], list[str]] = {}
        header: list[str] = []
        for one in printed().values():
            if one.protocol != protocol.name or one.about:
                continue
            for (place, row), figures in one.figures.items():
                if row in names and (place == AVERAGE or AVERAGE_OF_TARGETS in figures):
                    shown_here = over_all(figures)
                    header = list(shown_here)
                    rows.setdefault((f"`{row}`", *shown_here.values()), []).append(one.source)
        if rows:
            lines = [(*row, "; ".join(sources)) for row, sources in rows.items()]
            title = protocol.title.capitalize()
            parts.append(f"{title}:\n\n{rows_as_table(['Method', *header, 'Printed in'], lines)}")
    return "\n\n".join(parts) or "The tables in `experiments/data/` have no averages of it."


def over_all(figures: Mapping[str, str]) -> Mapping[str, str]:
    """Return averages alone: of the targets of a transfer, beside the source's own figure."""
    if AVERAGE_OF_TARGETS not in figures:
        return figures
    source = next(iter(figures))
    return {column: figures[column] for column in (source, AVERAGE_OF_TARGETS)}


def measured(names: Sequence[str]) -> str:
    """Return the method's rows of the averages from base to novel in docs/results.md."""
    _, _, shown = RESULTS.read_text(encoding="utf-8").partition("<!-- evidence:base2new -->")
    lines = shown.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("|"))
    last = next(i for i in range(first, len(lines)) if not lines[i].startswith("|"))
    rows = [line for line in lines[first + 2 : last] if line.split("|")[1].strip() in names]
    if not rows:
        return "Not measured yet on the embedded benchmark."
    about = (
        "Averages over three sets of the embedded benchmark, ViT-Mini-2, 16 shots; "
        "[results.md](../results.md) explains them and has the figures of each set."
    )
    return "\n".join([about, "", *lines[first : first + 2], *rows])


def cost(names: Sequence[str]) -> str:
    """Return what was measured with ``COST_CLASSES`` classes and the paper's batch."""
    rows = []
    for path in COSTS:
        results = read_json(str(path))
        for record in results["records"]:
            if record["cell"]["method"] in names and is_as_published(record["cell"]):
                rows.append(cost_row(record, results["machine"]))
    if not rows:
        page = "[performance.md](../performance.md)"
        return f"Not measured yet; `python -m benchmarks.cost` does it ({page})."
    header = ("Method", "On", "Computes in", "Batch", "Step, s", "GiB beside the model", "GFLOP")
    about = (
        f"A training step at ViT-B/16 with {COST_CLASSES} classes; "
        "[performance.md](../performance.md) explains the columns."
    )
    return f"{about}\n\n{rows_as_table(header, rows)}"


def is_as_published(cell: Mapping[str, Any]) -> bool:
    """Return whether a measurement is of the cost table, of the paper's config file as it is."""
    plain = {"classes": COST_CLASSES, "path": "ours", "batch": 0, "prompts": 0}
    plain |= {"views": False, "row": 0}
    return not cell["options"] and all(cell[key] == value for key, value in plain.items())


def cost_row(record: Any, machine: Any) -> tuple[str, ...]:
    device = machine["cpu"] if machine["device"] == "cpu" else machine["device"]
    head = (f"`{record['cell']['method']}`", device, record.get("computes_in", ABSENT))
    if "step" not in record:
        return (*head, ABSENT, record["failed"] or record.get("no_step") or ABSENT, ABSENT, ABSENT)
    step = record["step"]
    figures = f"{step['seconds']:.3g}", f"{step['peak'] / GIB:.2f}", f"{step['flops'] / 1e9:,.0f}"
    return (*head, str(record["batch"]), *figures)


# Pages -------------------------------------------------------------------------------------------


def settings(name: str) -> str:
    """Return a table of a method's own config keys."""
    return table_of_keys({k: v for k, v in declared(name).items() if k not in declared()})


PARTS: dict[str, Callable[[Sequence[str]], str]] = {
    "tensors": lambda names: of_each(names, tensors),
    "settings": lambda names: of_each(names, settings),
    "published": published,
    "measured": measured,
    "cost": cost,
}


def generated(text: str, names: Sequence[str]) -> str:
    """Return a page's text with its generated parts made anew.

    Raises:
        ValueError: a part has not one place in it.
    """
    for part, make in PARTS.items():
        text = filled(text, part, make(names))
    return text


def main() -> int:
    """Rewrite the pages; return the exit code.

    Raises:
        UserError: a page is missing, or has no place for a part.
    """
    for path, names in pages().items():
        try:
            text = path.read_text(encoding="utf-8")
            new = generated(text, names)
        except (OSError, ValueError) as error:
            place = path.relative_to(ROOT).as_posix()
            raise UserError(f"{place}, the page of {', '.join(names)}: {error}") from error
        if new != text:
            with atomic_write(str(path)) as file:
                file.write(new)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
