"""Settings and their domains: every key, every method, and the page that lists them."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import datasets
import train
import trainers
from dassl.config import (
    check_domains,
    get_cfg_default,
    merge_from_file,
    merge_from_list,
    register_defaults,
)
from dassl.config.defaults import declared, trainers_with_keys
from dassl.config.domains import Domain, Float, Int, Layers, List, Names, Text, domain_of
from dassl.utils import UserError

assert datasets and trainers  # they register their keys and names
ROOT = Path(__file__).parents[1]
FREE_TEXT = {
    *("OUTPUT_DIR", "RESUME", "DATASET.ROOT", "MODEL.INIT_WEIGHTS"),  # files and folders
    "DATALOADER.FEATURES_DIR",
    *("MODEL.BACKBONE.NAME", "TEACHER_NAME", "DESCRIPTIONS"),  # names, or files
    *("CTX_INIT", "TEXT_CTX_INIT"),  # words
    "BASE",  # a method, which is known once all are registered
    # what only public files read
    *("DATASET.SOURCE_DOMAINS", "DATASET.TARGET_DOMAINS", "DATASET.CIFAR_C_TYPE"),
    *("MODEL.HEAD.NAME", "MODEL.HEAD.ACTIVATION", "OPTIM.NEW_LAYERS"),
}
METHODS = trainers_with_keys()
COMMON = declared()


def own_keys(trainer: str) -> dict[str, Domain]:
    return {key: domain for key, domain in declared(trainer).items() if key not in COMMON}


def put(cfg, key, value):
    *nodes, name = key.split(".")
    for node in nodes:
        cfg = cfg[node]
    cfg[name] = value


def at(cfg, key):
    for name in key.split("."):
        cfg = cfg[name]
    return cfg


def config(trainer: str = "CoOp"):
    cfg = get_cfg_default(trainer)
    cfg.TRAINER.NAME, cfg.DATASET.NAME = trainer, "Shapes"
    return cfg


def wrong_values(default):
    """Return values that are invalid for most keys with such a default, its own type first."""
    if isinstance(default, bool):
        return ["maybe", None, 1]
    if isinstance(default, int):
        return [-(10**12), 0, 10**12, 2**32, 1.5, math.nan, "many"]
    if isinstance(default, float):
        return [-1.0, 0.0, 10.0, math.nan, math.inf, 10**400, "much", True]
    if isinstance(default, str):
        return ["no such name", "two\nlines", "\0", 3, None]
    return [(), ("no such name",), (1, 1, 1, -5), (2, 1), (math.nan,) * 3, (0.0,) * 3, "x", [[]]]


# Every key --------------------------------------------------------------------------------------


@pytest.mark.parametrize("trainer", ["", *METHODS])
def test_every_key_takes_its_default_and_refuses_what_is_outside_its_domain(trainer):
    keys = own_keys(trainer) if trainer else COMMON
    assert keys
    runs = trainer or "CoOp"
    check_domains(config(runs), runs)
    for key, domain in keys.items():
        refused = [value for value in wrong_values(domain.default) if value not in domain]
        assert refused, key
        for value in refused:
            cfg = config(runs)
            put(cfg, key, value)
            with pytest.raises(UserError) as caught:
                check_domains(cfg, "CoOp" if key == "TRAINER.NAME" else runs)
            message = str(caught.value)
            assert message.startswith(f"{key}: expected {domain}, got {value!r}"), message
            assert "\n" not in message


def bad_inputs(domain):
    """Return what a domain refuses of texts, numbers, a section, and lists of them."""
    values = ["\ud800", "\0", "1e400", "no such thing", math.inf, math.nan, 2**64, {"A": 1}]
    length = domain.length or 1 if isinstance(domain, List) else 1
    values += [[[math.inf]], *([value] * length for value in values)]
    return [value for value in values if value not in domain]


@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("trainer", ["", *METHODS])
def test_every_key_refuses_bad_files_and_command_lines_in_one_line(tmp_path, trainer, every):
    path = tmp_path / "bad.yaml"
    runs = trainer or "CoOp"
    cfg = config(runs)
    for key, domain in (own_keys(trainer) if trainer else COMMON).items():
        before, is_text = at(cfg, key), isinstance(domain, Text)
        for value in bad_inputs(domain)[::every]:
            section = value
            for part in reversed(key.split(".")):
                section = {part: section}
            path.write_text(yaml.safe_dump(section))
            for from_file in (True, False):
                if not from_file and is_text and not isinstance(value, str):
                    continue  # on the command line all is text
                with pytest.raises(UserError) as caught:
                    if from_file:
                        merge_from_file(cfg, str(path))
                    else:
                        merge_from_list(cfg, [key, str(value)])
                    check_domains(cfg, runs, section=key)
                message = str(caught.value)
                assert message.startswith(f"{key}: expected "), (value, message)
                assert ", got " in message and message.isprintable(), message
                put(cfg, key, before)


def test_every_fraction_may_be_written_as_a_whole_number():
    for trainer in ["", *METHODS]:
        cfg = config(trainer or "CoOp")
        for key, domain in (own_keys(trainer) if trainer else COMMON).items():
            if isinstance(domain, Float) and 1 in domain:
                merge_from_list(cfg, [key, "1"])
                check_domains(cfg, trainer or "CoOp", section=key)
                assert at(cfg, key) == 1 and not isinstance(at(cfg, key), bool)


def test_free_text_keys_are_few_and_named():
    found = set()
    for trainer in ["", *METHODS]:
        for key, domain in declared(trainer).items():
            kind = domain.each if isinstance(domain, List) else domain
            assert type(kind) is not Domain, f"{key} has no domain"
            if isinstance(kind, Text):
                found.add(key.rsplit(".", 1)[-1] if key not in COMMON else key)
    assert {key for key in found if not key.startswith("TRAINER.TESTED")} == FREE_TEXT


def test_every_key_of_ours_has_a_meaning():
    for trainer in METHODS:
        for key, domain in declared(trainer).items():
            if not key.startswith("TRAINER.TESTED"):
                assert domain.help and "\n" not in domain.help and "|" not in domain.help, key


def test_the_page_of_all_keys_is_current_and_complete():
    # a process of its own: other tests register keys and names
    command = [sys.executable, "-m", "experiments.config_reference"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    for trainer in METHODS:
        for key in own_keys(trainer):
            if not key.startswith("TRAINER.TESTED"):
                assert f"| `{key}` |" in done.stdout


# The faults that were possible -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trainer", "key", "value", "expected"),
    [
        ("CoOp", "OPTIM.LR", "-0.1", "a number >= 0"),
        ("CoOp", "OPTIM.MOMENTUM", "-0.9", "a number in [0, 1]"),
        ("CoOp", "OPTIM.WEIGHT_DECAY", "-1e-4", "a number >= 0"),
        ("CoOp", "OPTIM.ADAM_BETA1", "1.0", "a number in [0, 1)"),
        ("CoOp", "OPTIM.ADAM_BETA2", "-0.1", "a number in [0, 1)"),
        ("CoOp", "OPTIM.EPS", "-1e-8", "a number >= 0"),
        ("CoOp", "OPTIM.STEPSIZE", "()", "a list that is not empty, each a whole number >= -1"),
        ("CoOp", "OPTIM.LR", "1e400", "a number >= 0"),
        ("CoOp", "OPTIM.WEIGHT_DECAY", "1e300", "a number >= 0"),
        ("CoOp", "OPTIM.LR", "1" + 400 * "0", "a number >= 0"),
        ("CoOp", "OPTIM.WEIGHT_DECAY", "-1e400", "a number >= 0"),
        ("CoOp", "SEED", "4294967296", "a whole number <= 4294967295"),
        ("CoOp", "INPUT.SIZE", "('a', 'b')", "2 values, each a whole number in 1..10000"),
        ("CoOp", "INPUT.SIZE", "(1.5, 2.0)", "2 values, each a whole number in 1..10000"),
        ("CoOp", "INPUT.SIZE", "(224,)", "2 values, each a whole number in 1..10000"),
        ("CoOp", "INPUT.PIXEL_MEAN", "[0.5, 0.5]", "3 values, each a number in [0, 1]"),
        ("CoOp", "INPUT.PIXEL_STD", "[0.0, 0.0, 0.0]", "3 values, each a number > 0"),
        ("CoOp", "INPUT.PIXEL_STD", "[1e-320, 1.0, 1.0]", "3 values, each a number > 0"),
        ("CoOp", "INPUT.PIXEL_STD", "[-1.0, 1.0, 1.0]", "3 values, each a number > 0"),
        ("CoOp", "INPUT.PIXEL_STD", "[1e400, 1.0, 1.0]", "3 values, each a number > 0"),
        ("CoOp", "INPUT.RRCROP_SCALE", "(0.0, 1.0)", "2 values, sorted, each a number in (0, 1]"),
        ("CoOp", "INPUT.RRCROP_SCALE", "(0.5, 1.5)", "2 values, sorted, each a number in (0, 1]"),
        ("CoOp", "INPUT.RRCROP_SCALE", "(0.9, 0.1)", "2 values, sorted, each a number in (0, 1]"),
        ("CoOp", "INPUT.RGS_P", "1.5", "a number in [0, 1]"),
        ("CoOp", "INPUT.GB_P", "-0.5", "a number in [0, 1]"),
        ("CoOp", "INPUT.GB_K", "4", "an odd number >= 1"),
        ("CoOp", "INPUT.COLORJITTER_B", "-0.4", "a number >= 0"),
        ("CoOp", "INPUT.COLORJITTER_H", "0.6", "a number in [0, 0.5]"),
        ("CoOp", "INPUT.RANDAUGMENT_M", "31", "a whole number in 0..30"),
        ("CoOp", "INPUT.CUTOUT_LEN", "-16", "a whole number in 1..10000"),
        ("CoOp", "INPUT.GN_STD", "-0.15", "a number >= 0"),
        ("CoOp", "DATALOADER.K_TRANSFORMS", "0", "a whole number in 1..100"),
        ("KgCoOp", "TRAINER.COOP.W", "-8.0", "a number >= 0"),
        ("PromptSRC", "TRAINER.PROMPTSRC.TEXT_LOSS_WEIGHT", "-25.0", "a number >= 0"),
        ("HiCroPL", "TRAINER.HICROPL.LAMBD", "-12", "a number >= 0"),
        ("IVLP", "TRAINER.IVLP.N_CTX_VISION", "100000", "a whole number in 0..1000"),
        ("CoOp", "TRAINER.HICROPL.LAMBD", "1e400", "a finite value"),  # of another method
    ],
)
def test_a_fault_is_one_line_and_exit_code_2_before_anything_is_read(
    tmp_path, capsys, trainer, key, value, expected
):
    command = ["--trainer", trainer, "--output-dir", str(tmp_path / "run"), "--root", "nowhere"]
    assert train.main([*command, "DATASET.NAME", "Shapes", key, value]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(rf"error: {re.escape(f'{key}: expected {expected}, got ')}.*\n", error)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [".nan", ".inf", "-.inf"])
@pytest.mark.parametrize("key", ["GN_MEAN", "PIXEL_MEAN"])
def test_a_file_holds_finite_numbers(tmp_path, capsys, key, number):
    path = tmp_path / "some.yaml"
    path.write_text(
        f"INPUT:\n  {key}: {number if key == 'GN_MEAN' else [0.5, 0.5, number]}\n".replace("'", "")
    )
    arguments = ["--trainer", "CoOp", "--config-file", str(path), "DATASET.NAME", "Shapes"]
    assert train.main(arguments) == 2
    assert f"error: INPUT.{key}: expected " in capsys.readouterr().err


def test_code_sets_finite_numbers_even_where_nothing_is_declared():
    cfg = config()
    cfg.TRAINER.PUBLIC = type(cfg)({"SCALES": [1.0, 2.0]})
    check_domains(cfg, "CoOp")
    cfg.TRAINER.PUBLIC.SCALES[1] = math.inf
    with pytest.raises(UserError, match=r"TRAINER.PUBLIC.SCALES: expected .*, got \[1.0, inf\]"):
        check_domains(cfg, "CoOp")


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["OPTIM.NAME", "sgd", "OPTIM.SGD_NESTEROV", "True", "OPTIM.MOMENTUM", "0.0"], "NESTEROV"),
        (["OPTIM.NAME", "sgd", "OPTIM.SGD_NESTEROV", "True", "OPTIM.SGD_DAMPNING", "0.5"], "NEST"),
        (
            ["INPUT.TRANSFORMS", "('gaussian_blur',)", "INPUT.SIZE", "(8, 8)"],
            r"INPUT.GB_K: .*got 21",
        ),
        (
            ["DATASET.SOURCE_DOMAINS", "('a',)"],
            r"DATASET.SOURCE_DOMAINS: expected \(\) for Shapes, ",
        ),
        (["DATASET.TARGET_DOMAINS", "('a',)"], r"TARGET_DOMAINS: .*has no domains, got \('a',\)"),
        *(
            (
                ["OPTIM.LR_SCHEDULER", "multi_step", "OPTIM.STEPSIZE", steps],
                "OPTIM.STEPSIZE: expected a list that is not empty, sorted, each a whole number",
            )
            for steps in ("(-1,)", "(3, 1)", "(0, 2)")
        ),
    ],
)
def test_what_two_keys_together_exclude_is_refused_before(tmp_path, capsys, pairs, message):
    command = ["--trainer", "CoOp", "--root", str(tmp_path), "DATASET.NAME", "Shapes"]
    assert train.main([*command, *pairs]) == 2
    assert re.search(message, capsys.readouterr().err)


# Keys of a trainer ------------------------------------------------------------------------------


def test_coop_refuses_the_weight_of_kgcoop(tmp_path, capsys):
    assert "W" not in get_cfg_default("CoOp").TRAINER.COOP
    assert get_cfg_default("KgCoOp").TRAINER.COOP.W == get_cfg_default().TRAINER.COOP.W == 1.0
    arguments = ["--root", str(tmp_path), "DATASET.NAME", "Shapes", "TRAINER.COOP.W", "8.0"]
    file = tmp_path / "coop.yaml"
    file.write_text("TRAINER:\n  NAME: CoOp\n")
    for chosen in (
        ["--trainer", "CoOp", *arguments],
        ["--config-file", str(file), *arguments],
        ["--trainer", "KgCoOp", *arguments, "TRAINER.NAME", "CoOp"],
    ):
        assert train.main(chosen) == 2
        assert (
            "error: TRAINER.COOP.W: expected a known key, got an unknown one"
            in capsys.readouterr().err
        )
    cfg = get_cfg_default()
    check_domains(cfg, "CoOp", section="TRAINER.COOP.")
    cfg.TRAINER.COOP.W = 8.0
    check_domains(cfg, "KgCoOp", section="TRAINER.COOP.")
    check_domains(cfg, "MaPLe", section="TRAINER.COOP.")
    with pytest.raises(
        UserError, match="TRAINER.COOP.W: expected no value, as CoOp has no such key, got 8.0"
    ):
        check_domains(cfg, "CoOp", section="TRAINER.COOP.")


def test_trainers_share_a_node_with_other_defaults_and_types():
    node = "TRAINER.TESTED_SHARED"
    words = {"CTX_INIT": Text("a photo"), "N_CTX": Int(16, min=1)}
    register_defaults(node, words, trainer="TestedWords")
    register_defaults(node, {"CTX_INIT": True, "N_CTX": 4, "W": 1.0}, trainer="TestedSwitch")
    union, switch = (get_cfg_default(name).TRAINER.TESTED_SHARED for name in ("", "TestedSwitch"))
    assert dict(union) == {"CTX_INIT": "a photo", "N_CTX": 16, "W": 1.0}
    assert dict(switch) == {"CTX_INIT": True, "N_CTX": 4, "W": 1.0}
    assert dict(get_cfg_default("TestedWords").TRAINER.TESTED_SHARED) == {
        "CTX_INIT": "a photo",
        "N_CTX": 16,
    }
    cfg = get_cfg_default("TestedSwitch")
    merge_from_list(cfg, [f"{node}.CTX_INIT", "False", f"{node}.N_CTX", "0"])
    check_domains(cfg, "TestedSwitch", section=node)
    with pytest.raises(UserError, match="CTX_INIT: expected text in one line, got False"):
        check_domains(cfg, "TestedWords", section=node)
    with pytest.raises(ValueError, match="TESTED_SHARED.N_CTX already has the default 4"):
        register_defaults(node, {"N_CTX": 8}, trainer="TestedSwitch")


def test_values_in_nodes_of_other_trainers_are_merged_and_not_checked():
    cfg = config("CoOp")
    merge_from_list(cfg, ["TRAINER.MAPLE.PROMPT_DEPTH", "-3", "TRAINER.HICROPL.FLOW", "sideways"])
    check_domains(cfg, "CoOp")
    assert cfg.TRAINER.MAPLE.PROMPT_DEPTH == -3
    with pytest.raises(UserError, match="TRAINER.MAPLE.PROMPT_DEPTH: expected a whole number >= 1"):
        check_domains(cfg, "MaPLe")


# Domains ----------------------------------------------------------------------------------------


def test_domains_say_what_they_allow():
    assert str(Int(1, min=1, also=-1)) == "a whole number >= 1, or -1"
    assert str(Float(above=0, max=1)) == "a number in (0, 1]" and str(Float()) == "a finite number"
    assert 1 in Float(min=0) and True not in Float() and True not in Int() and 1.0 not in Int()
    assert 2**63 not in Int() and 2**63 - 1 in Int()
    assert (
        1e300 not in Float()
        and 10**400 not in Float()
        and -math.inf not in Float()
        and math.nan not in Float()
    )
    layers = Layers(max=4)
    assert (1, 4) in layers and [2] in layers
    assert not any(value in layers for value in [(), (0, 1), (2, 2), (3, 1), (5,), 1, (1.0,)])
    assert ("q", "k") in Names((), "q", "k") and () in Names((), "q") and "q" not in Names((), "q")
    with pytest.raises(
        UserError, match="SOME.KEY: expected a list of any of red, blue, got .*; did"
    ):
        Names((), "red", "blue").check("SOME.KEY", ("blu",))


def test_a_plain_default_is_of_its_type():
    for default, right, wrong in [
        (True, False, 1),
        (1, -5, 1.5),
        (1.0, 2, "2"),
        ("a", "b", 1),
        ((1, 2), ["a", 0.5], 3),
        ([1], (), (math.nan,)),
        (None, "anything", math.inf),
    ]:
        domain = domain_of(default)
        assert right in domain and wrong not in domain, default
