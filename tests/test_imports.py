"""Imports go one way (CONTRIBUTING.md) and never in a circle."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Each folder, and which of the others it may import.
ALLOWED = {
    "dassl": (),
    "configs": ("dassl",),
    "clip": ("dassl.utils",),
    "datasets": ("dassl",),
    "trainers": ("dassl", "clip"),
    "train": ("dassl", "trainers", "datasets"),
    "inference": ("dassl", "clip", "trainers", "datasets", "train", "configs"),
    "predict": ("dassl", "inference"),
    "experiments": ("dassl", "clip", "trainers", "datasets", "train", "configs"),
    "benchmarks": (
        *("dassl", "clip", "trainers", "datasets", "train"),
        *("configs", "experiments", "inference"),
    ),
}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    name_of(path): path
    for room in ALLOWED
    for path in sorted((ROOT / room).rglob("*.py")) or [ROOT / f"{room}.py"]
}


def imports_of(module: str, lazy: bool) -> set[str]:
    """Name the modules of ours that one imports; with ``lazy`` those inside functions, too."""
    path = MODULES[module]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    nodes = ast.walk(tree) if lazy else iter(tree.body)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            source = ".".join([*(base if node.level else []), *filter(None, [node.module])])
            found |= {
                full if (full := f"{source}.{alias.name}") in MODULES else source
                for alias in node.names
            }
    return {name for name in found if name.split(".")[0] in ALLOWED}


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_what_stands_below_it(room):
    wrong = {
        f"{module} imports {name}"
        for module in MODULES
        if module.split(".")[0] == room
        for name in imports_of(module, lazy=True)
        if not any(f"{name}.".startswith(f"{allowed}.") for allowed in (room, *ALLOWED[room]))
    }
    assert wrong == set()


def test_there_is_no_circle_of_imports():
    # A package's __init__ runs before its modules, but what it re-exports is not their dependency.
    graph = {
        module: {
            name
            for name in imports_of(module, lazy=False)
            if name in MODULES and not module.startswith(f"{name}.")
        }
        for module in MODULES
    }
    assert sum(map(len, graph.values())) > 100
    list(TopologicalSorter(graph).static_order())  # raises CycleError
