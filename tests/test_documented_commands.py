"""Every command that a page shows is understood as far as its command line goes.

Nothing is trained, read or written. What runs the commands of some pages whole are
tests/inference/test_commands.py and the test_docs.py of tests/trainers and tests/datasets.
"""

from __future__ import annotations

import argparse
import ast
import functools
import importlib.util
import inspect
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import setuptools
from torch.distributed.run import get_args_parser

import predict
import train
from dassl.command import Parser
from dassl.config.defaults import declared
from dassl.engine import check_cfg
from experiments import script, tune
from experiments.__main__ import COMMANDS
from experiments.table import read_arguments as read_table_arguments

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS = ("python", "torchrun", "make", "pip", "sh", "bash")
ROOMS = ("benchmarks", "dassl", "datasets", "experiments", "inference")
FILE = re.compile(r"(benchmarks|configs|docs|experiments|scripts|tests)/.*\.\w+")
ASSIGNMENT = re.compile(r"[A-Z_]+=")
IN_A_SENTENCE = re.compile(
    r"`((?:[A-Z_]+=\S+ )*(?:\S*python (?:-m |train|predict)|sh scripts|make\b)[^`]*)`"
)
# A run's own file, and a method that the page's code makes; other tests run them.
ELSEWHERE = ("output/run/onnx/classify.py", "ScaledAdapters")


class Understood(BaseException):
    """A command has read its arguments: the value is what it has made of them."""


class Command(NamedTuple):
    """A command of a page.

    Attributes:
        page: the page's path.
        words: of the command line.
        is_whole: False where "..." or a sentence leaves out arguments.
    """

    page: str
    words: tuple[str, ...]
    is_whole: bool

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)[:100]}"


def shell_lines(text: str) -> Iterator[str]:
    """Yield the lines of a page's shell blocks and indented blocks."""
    fence = None
    for line in text.replace("\\\n", " ").splitlines():
        if found := re.match(r" *```(\w*)", line):
            fence = found[1] if fence is None else None
        elif fence == "bash" or (fence is None and line.startswith("    ")):
            yield line


def split(line: str) -> Iterator[tuple[str, ...]]:
    """Yield the words of each command of a line, without variables set in front of them."""
    if not re.match(rf"\s*({ASSIGNMENT.pattern}|srun|\S*({'|'.join(PROGRAMS)}) )", f"{line} "):
        return
    reader = shlex.shlex(line, posix=True, punctuation_chars=True)
    reader.whitespace_split = True
    words: list[str] = []
    for word in [*reader, ";"]:
        if not re.fullmatch("[();<>|&]+", word):
            words.append(word)
            continue
        if words[:1] == ["srun"]:
            del words[0]
        program = next((w for w in words if not ASSIGNMENT.match(w)), "")
        if Path(program).name in PROGRAMS and not set(ELSEWHERE) & set(words):
            yield tuple(words)
        words = []


def commands() -> list[Command]:
    """List the commands of all pages, each once for a page."""
    found: dict[Command, None] = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.S | re.M)
        for lines, is_shown in ((shell_lines(text), True), (IN_A_SENTENCE.findall(prose), False)):
            for words in (words for line in lines for words in split(line)):
                rest = tuple(word for word in words if word != "...")
                is_whole = is_shown and rest == words
                found[Command(page.relative_to(ROOT).as_posix(), rest, is_whole)] = None
    return list(found)


def last(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function that reads a command line be the last thing that the command does."""

    def call(*args: Any) -> Any:
        raise Understood(function(*args))

    return call


def lenient(parse: Callable[..., Any]) -> Callable[..., Any]:
    """Let a parser's method accept a command line that lacks what is required."""

    def call(parser: Any, *args: Any) -> Any:
        for action in (*parser._actions, *parser._mutually_exclusive_groups):
            action.required = False
        return parse(parser, *args)

    return call


def read(name: str, argv: list[str], is_whole: bool, patch: pytest.MonkeyPatch) -> Any:
    """Return what the command of a module makes of its arguments; None if there are none."""
    module: Any = importlib.import_module(name)
    if not hasattr(module, "main") and hasattr(module, "__path__"):
        module = importlib.import_module(f"{name}.__main__")
    main = getattr(module, "main", None)
    has_argv = main is not None and bool(inspect.signature(main).parameters)
    if not has_argv and not hasattr(module, "Parser"):
        assert not argv
        return None
    module = sys.modules[main.__module__]  # a former name has its command from elsewhere
    if is_whole and hasattr(module, "read_arguments"):
        patch.setattr(module, "read_arguments", last(module.read_arguments))
    else:
        patch.setattr(Parser, "parse_args", last(Parser.parse_args))
    if not is_whole:
        patch.setattr(Parser, "parse_known_args", lenient(Parser.parse_known_args))
    patch.setattr(sys, "argv", [name, *argv])
    with pytest.raises(Understood) as stopped:
        main(argv) if has_argv else main()
    return stopped.value.args[0]


def check_training(arguments: Sequence[str], is_whole: bool = True) -> None:
    """Check a command line of ``train.py``: its options, and each key with its value."""
    args = train.build_parser().parse_args(arguments)
    cfg = train.setup_cfg(args)
    if not is_whole:
        for key in args.opts[::2]:
            declared(args.trainer)[key].check(key, functools.reduce(getattr, key.split("."), cfg))
        return
    for folder in filter(None, (cfg.DATASET.ROOT, cfg.RESUME, args.model_dir)):
        Path(folder).mkdir(parents=True, exist_ok=True)
    check_cfg(cfg)
    train.check_options(args, cfg)


def check_sweep(arguments: argparse.Namespace) -> None:
    """Check the settings that a command of ``experiments`` gives its methods."""
    said = vars(arguments)
    named = said.get("trainer") or said.get("methods") or []
    settings = tune.extremes(tune.choices_of(said["choices"])) if "choices" in said else [()]
    for method in [named] if isinstance(named, str) else named:
        for setting in settings:
            pairs = [*(said.get("overrides") or ()), *setting]
            if pairs:
                check_training(["--trainer", method, *pairs], is_whole=False)


def check_module(name: str, argv: list[str], is_whole: bool, patch: pytest.MonkeyPatch) -> None:
    """Check a command line behind ``python -m``."""
    if name == "experiments" and (argv or is_whole):
        assert argv[0] in COMMANDS
        name, argv = f"experiments.{argv[0]}", argv[1:]
    if name.partition(".")[0] not in ROOMS or not (argv or is_whole):
        assert importlib.util.find_spec(name) is not None
        return
    found = read(name, argv, is_whole, patch)
    if isinstance(found, tuple):  # of verify, with a command line of table
        read_table_arguments(found[1])
    elif name.startswith("experiments.") and is_whole and found is not None:
        check_sweep(found)


def check_script(words: Sequence[str], patch: pytest.MonkeyPatch) -> None:
    """Check a command line of a shell script: its arguments, and the settings of its runs."""
    path, *arguments = words
    called = re.search(r"-m experiments script (\w+) (\w+) ", (ROOT / path).read_text())
    assert called is not None
    runs: list[Any] = []
    patch.setattr(script, "do_here", lambda found, first: runs.extend(found) or 0)
    assert script.main([*called.groups(), path, "", *arguments]) == 0
    for run in runs:
        check_training(run.arguments)


def check_target(words: Sequence[str]) -> None:
    """Check that the Makefile has the targets, and reads the variables."""
    text = (ROOT / "Makefile").read_text()
    for word in words:
        name, is_variable, _ = word.partition("=")
        assert re.search(rf"^{name} [?:]=" if is_variable else rf"^{name}:", text, re.M)


@pytest.mark.parametrize("command", commands(), ids=str)
def test_a_documented_command_is_understood(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    words = list(command.words)
    while ASSIGNMENT.match(words[0]):
        monkeypatch.setenv(*words.pop(0).split("=", 1))
    if "--write" not in words:
        for word in filter(FILE.match, words):
            assert (ROOT / word).is_file()
    program, *words = words
    if program == "torchrun":
        known = get_args_parser().parse_args(words)
        program, words = "python", [known.training_script, *known.training_script_args]
    if program == "make":
        check_target(words)
    elif program in ("sh", "bash"):
        check_script(words, monkeypatch)
    elif program == "pip":
        assert words[:2] == ["install", "-e"]  # the next test has the extras
    elif words[0] == "-c":
        for node in ast.walk(ast.parse(words[1])):
            if isinstance(node, ast.Import | ast.ImportFrom):
                exec(ast.unparse(node), {})
    elif words[0] == "-m":
        check_module(words[1], words[2:], command.is_whole, monkeypatch)
    elif words[0] == "train.py":
        check_training(words[1:], command.is_whole)
    else:
        assert words[0] == "predict.py"
        predict.build_parser().parse_intermixed_args(words[1:])


def test_the_extras_that_pages_install_are_there(monkeypatch):
    found: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", found.update)
    runpy.run_path(str(ROOT / "setup.py"))
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = re.findall(r"pip install -e ['\"]?\.\[([\w,]+)\]", text)
    assert len(named) > 5
    assert {name for names in named for name in names.split(",")} <= found["extras_require"].keys()


def test_commands_are_found_in_blocks_and_sentences():
    found = commands()
    assert len(found) > 100
    assert len({command.page for command in found}) > 20
