import math
import os
import subprocess
import sys

import pytest
import yaml

from dassl.config import (
    check_domains,
    clean_cfg,
    first_difference,
    get_cfg_default,
    merge_from_file,
    merge_from_list,
    read_yaml,
    register_defaults,
    set_key,
    set_keys,
    to_dict,
)
from dassl.utils import UserError


def merged(tmp_path, text):
    path = tmp_path / "some.yaml"
    path.write_text(text)
    cfg = get_cfg_default()
    merge_from_file(cfg, str(path))
    return cfg


def test_defaults_are_those_of_the_public_toolbox():
    cfg = get_cfg_default()
    assert not cfg.is_frozen()
    assert cfg.OPTIM.LR == 0.0003 and cfg.OPTIM.NAME == "adam" and cfg.OPTIM.WEIGHT_DECAY == 5e-4
    assert cfg.OPTIM.MAX_EPOCH == 10 and cfg.OPTIM.LR_SCHEDULER == "single_step"
    assert cfg.INPUT.SIZE == (224, 224) and cfg.INPUT.RRCROP_SCALE == (0.08, 1.0)
    assert cfg.DATALOADER.TRAIN_X.BATCH_SIZE == 32 and cfg.DATALOADER.NUM_WORKERS >= 1
    assert cfg.TEST.FINAL_MODEL == "last_step" and cfg.SEED == -1
    assert cfg.DATASET.SUBSAMPLE_CLASSES == "all" and cfg.OPTIM.EPS == 1e-8


def test_config_needs_no_torch():
    code = "import sys, dassl.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_each_tree_is_its_own():
    one, other = get_cfg_default(), get_cfg_default()
    one.OPTIM.LR = 1.0
    assert other.OPTIM.LR == 0.0003


def test_registered_defaults_appear_in_new_trees():
    register_defaults("TRAINER.TESTED", {"N_CTX": 16, "PARTS": {"DEPTH": 9}})
    register_defaults("TRAINER.TESTED", {"N_CTX": 16})
    cfg = get_cfg_default()
    assert cfg.TRAINER.TESTED.N_CTX == 16 and cfg.TRAINER.TESTED.PARTS.DEPTH == 9
    with pytest.raises(ValueError, match="TRAINER.TESTED.N_CTX already has the default 16"):
        register_defaults("TRAINER.TESTED", {"N_CTX": 4})
    register_defaults("TRAINER.TESTED2", {"N_CTX": 2})
    cfg = get_cfg_default()
    clean_cfg(cfg, "Tested")
    assert "TESTED" in cfg.TRAINER and "TESTED2" not in cfg.TRAINER


def test_file_sets_values_in_the_type_of_the_default(tmp_path):
    cfg = merged(tmp_path, "OPTIM:\n  LR: 1\n  EPS: 1e-3\nINPUT:\n  SIZE: [32, 32]\n")
    assert cfg.OPTIM.LR == 1.0 and isinstance(cfg.OPTIM.LR, float)
    assert cfg.OPTIM.EPS == 1e-3
    assert cfg.INPUT.SIZE == (32, 32)


def test_empty_file_changes_nothing(tmp_path):
    assert merged(tmp_path, "# nothing\n") == get_cfg_default()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "OPTIM:\n  GAMA: 1\n",
            "OPTIM.GAMA: .* unknown one in '.*some.yaml'; did you mean 'GAMMA'.*known: ACCUMULATE",
        ),
        (
            "OPTM:\n  LR: 1\n",
            "^OPTM: expected a known key, got an unknown one .*did you mean 'OPTIM'",
        ),
        ("OPTIM:\n  MAX_EPOCH: many\n", "OPTIM.MAX_EPOCH: .* whole number such as 10, got 'many'"),
        ("OPTIM: 3\n", "OPTIM: expected a section of keys, got 3 in .*some.yaml"),
        ("- a\n", "mapping of keys"),
        ("OPTIM: [\n", "cannot be read"),
    ],
)
def test_bad_file_is_a_user_error(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as info:
        merged(tmp_path, text)
    assert "\n" not in str(info.value)


def test_options_are_literals_or_words():
    cfg = get_cfg_default()
    options = ["OPTIM.LR", "0.1", "INPUT.TRANSFORMS", "['normalize']", "DATASET.NAME", "7"]
    merge_from_list(cfg, options)
    assert cfg.OPTIM.LR == 0.1 and cfg.INPUT.TRANSFORMS == ("normalize",)
    assert cfg.DATASET.NAME == "7"
    with pytest.raises(UserError, match="^USE_CUDA: expected True or False, got 'maybe'"):
        merge_from_list(cfg, ["USE_CUDA", "maybe"])
    with pytest.raises(UserError, match="OPTIM.LR: expected a number .* on the command line"):
        merge_from_list(cfg, ["OPTIM.LR.X", "1"])


def test_first_difference_names_the_key():
    old, new = to_dict(get_cfg_default()), to_dict(get_cfg_default())
    assert first_difference(old, new) is None
    new["OUTPUT_DIR"] = "elsewhere"
    assert first_difference(old, new, ("OUTPUT_DIR",)) is None
    new["OPTIM"]["LR"] = 1.0
    assert first_difference(old, new, ("OUTPUT_DIR",)) == ("OPTIM.LR", 0.0003, 1.0)


# Damaged files ----------------------------------------------------------------------------------


def bomb(value):
    """Return nine levels of aliases, each nine times the level above, in an anchor's ``value``."""
    levels = [f"a: &a {value.format('1, 2')}"]
    for above, name in zip("abcdefgh", "bcdefghi", strict=True):
        repeated = ", ".join([f"*{above}"] * 9)
        levels.append(f"{name}: &{name} {value.format(repeated)}")
    return "\n".join(levels) + "\n"


OPTIM = "OPTIM:\n  LR: 1.0\n"
DAMAGES = {
    "a section twice": (
        f"{OPTIM}SEED: 1\n{OPTIM}",
        "OPTIM: .* as in line 1, got it again in line 4",
    ),
    "a key twice": (f"{OPTIM}  LR: 2.0\n", "OPTIM.LR: .* as in line 2, got it again in line 3"),
    "a key twice in another file": ("BASE: [base.yaml]\n", "SEED: .* again in line 2 of '.*base"),
    "two merge keys": ("A: &a {}\nB:\n  <<: *a\n  <<: *a\n", "B.<<: .* line 3, .* in line 4"),
    "alias bomb": (bomb("[{}]"), "f: expected at most 100,000 values, got .* in line 6"),
    "bomb of merged sections": (bomb("{{<<: [{}]}}"), "at most 100,000 values"),
    "alias of itself": ("A: &a [*a]\n", "A: expected at most 50 levels of nesting, got more"),
    "deep list": (f"A: {20_000 * '['}", "cannot be read: it is nested too deeply"),
    "deep sequence": (f"{200_000 * '- '}x", "cannot be read: it is nested too deeply"),
    "deep sections": (200_000 * "{A: ", "cannot be read: it is nested too deeply"),
    "51 levels": (f"A: {51 * '['}{51 * ']'}\n", "A: expected at most 50 levels"),
    "Python tag": ("A: !!python/object/apply:os.getcwd []\n", "A: .*got !!python/.*in line 1"),
    "own tag": ("A: !mine 3\n", "A: expected text, .*mine in line 1"),
    "tab": ("OPTIM:\n\tLR: 1\n", "cannot be read: .* line 2"),
    "binary": (b"\0\1\xff\xfe", "cannot be read"),
    "Latin-1": ("OUTPUT_DIR: Übung\n".encode("latin-1"), "cannot be read: .*x00dc"),
    "huge number": (f"SEED: {5000 * '9'}\n", "SEED: expected a value of type int, got '999"),
    "huge hexadecimal": (
        f"SEED: 0x{5000 * 'f'}\n",
        "SEED: expected a whole number of at most 10,000 bits",
    ),
    "half a number": ("SEED: !!int ''\n", "SEED: expected a value of type int, got ''"),
    "date": ("OUTPUT_DIR: 2024-01-01\n", "OUTPUT_DIR: expected text, .* got !!timestamp in line 1"),
    "no date": ("OUTPUT_DIR: 2024-13-45\n", "OUTPUT_DIR: .* got !!timestamp"),
    "set": ("OPTIM: !!set {LR}\n", "OPTIM: .* got !!set"),
    "bytes": ("OUTPUT_DIR: !!binary aGk=\n", "OUTPUT_DIR: .* got !!binary"),
    "number as key": ("OPTIM:\n  1: x\n", "OPTIM: expected text as a key, got '1' in line 2"),
    "truth as key": ("true: x\n", "expected text as a key, got 'true' in line 1"),
    "null as key": ("null: x\n", "expected text as a key, got 'null'"),
    "list as key": ("[a]: x\n", "expected text as a key, got a list or section"),
    "two documents": (f"{OPTIM}---\n{OPTIM}", "cannot be read: expected a single document"),
    "unknown alias": ("A: *a\n", "cannot be read: found undefined alias"),
    "merged number": ("A:\n  <<: 3\n", "cannot be read: .*for merging"),
}


SLOW = {"deep list"}  # 1 s


@pytest.mark.parametrize(
    "damage", [pytest.param(d, marks=pytest.mark.slow) if d in SLOW else d for d in DAMAGES]
)
def test_a_damaged_file_is_one_line_that_names_it(tmp_path, damage):
    content, message = DAMAGES[damage]
    path = tmp_path / "some.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "base.yaml").write_text("SEED: 1\nSEED: 2\n")
    with pytest.raises(UserError, match=message) as info:
        merge_from_file(get_cfg_default(), str(path))
    assert "\n" not in str(info.value) and ".yaml'" in str(info.value)
    assert len(str(info.value)) < 1000


def test_what_is_no_file_is_named(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for name, message in (
        ("", "/' is not a file"),
        ("fifo", "/fifo' is not a file"),
        ("none.yaml", "/none.yaml' does not exist"),
        ("nul\0.yaml", r"/nul\\x00.yaml' does not exist"),
        ("\udcff.yaml", r"/\\udcff.yaml': expected a name in Unicode"),
    ):
        with pytest.raises(UserError, match=rf"^config file '.*{message}$"):
            merge_from_file(get_cfg_default(), f"{tmp_path}/{name}")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_unicode_files_are_read(tmp_path, encoding):
    path = tmp_path / "some.yaml"
    path.write_bytes("OUTPUT_DIR: Übung\n".encode(encoding))
    assert read_yaml(str(path)) == {"OUTPUT_DIR": "Übung"}


def test_aliases_and_merged_sections_are_read(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text("A: &a {LR: 1, EPS: 2}\nB:\n  <<: *a\n  LR: 3\nC: [*a, *a]\n")
    first = {"LR": 1, "EPS": 2}
    assert read_yaml(str(path)) == {"A": first, "B": {"LR": 3, "EPS": 2}, "C": [first, first]}
    for text in ("", "# nothing\n", "---\n", "null\n"):
        path.write_text(text)
        assert read_yaml(str(path)) == {}
    path.write_text("LR: .inf\n")  # for the domain of the key to refuse
    assert read_yaml(str(path)) == {"LR": math.inf}


@pytest.mark.parametrize(
    "text", ["\udcff", "\0", "a\nb", "\x1b[31m", "{[]}", "[" * 300, f"0x{5000 * 'f'}"]
)
def test_strange_words_on_the_command_line_are_shown_as_escapes(text):
    for key, value in (("OPTIM.LR", text), (f"OPTIM.{text}", "1"), (text, "1")):
        with pytest.raises(UserError) as info:
            cfg = get_cfg_default()
            merge_from_list(cfg, [key, value])
            check_domains(cfg, section=key)
        message = str(info.value)
        assert message.startswith(repr(key)[1:-1] + ": expected ") and message.isprintable()
        assert message.startswith(f"{key}: expected ") == key.isprintable()


# Values in another type -------------------------------------------------------------------------


def test_a_fraction_may_be_a_whole_number_and_the_other_way_round(tmp_path):
    cfg = merged(tmp_path, "OPTIM:\n  SGD_DAMPNING: 0\n  MOMENTUM: 1\n")
    assert cfg.OPTIM.SGD_DAMPNING == 0 and cfg.OPTIM.MOMENTUM == 1.0
    merge_from_list(cfg, ["OPTIM.SGD_DAMPNING", "0.5"])
    assert cfg.OPTIM.SGD_DAMPNING == 0.5
    merge_from_list(cfg, ["OPTIM.SGD_DAMPNING", "0"])
    assert cfg.OPTIM.SGD_DAMPNING == 0
    # as public files add keys, which nobody declares
    cfg.TRAINER.PUBLIC = type(cfg)({"W": 8, "V": 8.0, "DEPTH": 9})
    merge_from_list(cfg, ["TRAINER.PUBLIC.W", "0.5", "TRAINER.PUBLIC.V", "2"])
    assert (cfg.TRAINER.PUBLIC.W, cfg.TRAINER.PUBLIC.V) == (0.5, 2.0)
    with pytest.raises(UserError, match="TRAINER.PUBLIC.W: expected a number such as 0.5, got 'x'"):
        merge_from_list(cfg, ["TRAINER.PUBLIC.W", "x"])
    with pytest.raises(UserError, match="OPTIM.MAX_EPOCH: expected a whole number .* got 1.5"):
        merge_from_list(cfg, ["OPTIM.MAX_EPOCH", "1.5"])


def test_what_no_file_could_hold_is_refused_where_nothing_is_declared():
    cfg = get_cfg_default()
    cfg.TRAINER.PUBLIC = type(cfg)({"ANY": None, "PAIRS": [(1, 2)]})
    for word in ("{1, 2}", "{'a': 1}", "1j", "b'a'", "['a', {1}]", f"0x{5000 * 'f'}", "'\\ud800'"):
        cfg.TRAINER.PUBLIC.ANY = None
        merge_from_list(cfg, ["TRAINER.PUBLIC.ANY", word])
        with pytest.raises(UserError, match=r"^TRAINER.PUBLIC.ANY: expected text in .*, got ") as e:
            check_domains(cfg, section="TRAINER.PUBLIC")
        assert str(e.value).isprintable()
    cfg.TRAINER.PUBLIC.ANY = None
    merge_from_list(cfg, ["TRAINER.PUBLIC.ANY", "[(1, 2.5), ('a', None, True)]"])
    check_domains(cfg, section="TRAINER.PUBLIC")
    plain = to_dict(cfg)["TRAINER"]["PUBLIC"]
    assert plain == {"ANY": [[1, 2.5], ["a", None, True]], "PAIRS": [[1, 2]]}
    assert yaml.safe_load(yaml.safe_dump(plain)) == plain


# Files that share parts -------------------------------------------------------------------------


def write(folder, **texts):
    for name, text in texts.items():
        path = folder / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return get_cfg_default()


def test_later_bases_win_and_the_file_wins_over_all(tmp_path):
    cfg = write(
        tmp_path,
        parts__deepest="OPTIM:\n  LR: 1\n  GAMMA: 1\n  MOMENTUM: 1\n  EPS: 1\n",
        parts__one="BASE: [deepest.yaml]\nOPTIM:\n  LR: 2\n  GAMMA: 2\n  MOMENTUM: 2\n",
        other="OPTIM:\n  LR: 3\n  GAMMA: 3\n",
        file="OPTIM:\n  LR: 4\nBASE: [parts/one.yaml, other.yaml]\n",
    )
    merge_from_file(cfg, str(tmp_path / "file.yaml"))
    assert (cfg.OPTIM.LR, cfg.OPTIM.GAMMA, cfg.OPTIM.MOMENTUM, cfg.OPTIM.EPS) == (4, 3, 2, 1)
    assert "BASE" not in cfg


def test_two_files_may_share_a_base_and_paths_may_go_up(tmp_path, monkeypatch):
    cfg = write(
        tmp_path,
        base="OPTIM:\n  GAMMA: 0.5\n",
        a__one="BASE: [../base.yaml]\n",
        a__two="BASE: [../base.yaml]\n",
        file="BASE: [a/one.yaml, a/two.yaml]\n",
    )
    monkeypatch.chdir(tmp_path)
    merge_from_file(cfg, "file.yaml")
    assert cfg.OPTIM.GAMMA == 0.5


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("[none.yaml]", "BASE in '.*file.yaml': expected an existing file, got 'none.yaml'"),
        ("['']", "BASE in '.*file.yaml': expected an existing file, got ''"),
        ("one.yaml", "BASE in '.*file.yaml': expected a list of file names, got 'one.yaml'"),
        ("[3]", r"BASE in '.*file.yaml': expected a list of file names, got \[3\]"),
        ("{a: b}", "BASE in '.*file.yaml': expected a list of file names, got "),
        ("", "BASE in '.*file.yaml': expected a list of file names, got None"),
        ("[file.yaml]", "BASE in '.*file.yaml': expected no cycle of files, got 'file.yaml'"),
        ("[a.yaml]", "BASE in '.*b.yaml': expected no cycle of files, got './a.yaml'"),
        ("[wrong.yaml]", "OPTIM.GAMA: expected a known key, got an unknown one in '.*wrong.yaml'"),
        ("[list.yaml]", "config file '.*list.yaml': expected a mapping"),
    ],
)
def test_bad_base_is_one_line_that_names_the_file(tmp_path, base, message):
    cfg = write(
        tmp_path,
        file=f"BASE: {base}\n",
        one="",
        a="BASE: [b.yaml]\n",
        b="BASE: [./a.yaml]\n",
        wrong="OPTIM:\n  GAMA: 1\n",
        list="- a\n",
    )
    with pytest.raises(UserError, match=message) as info:
        merge_from_file(cfg, str(tmp_path / "file.yaml"))
    assert "\n" not in str(info.value)


def test_base_is_a_key_of_files_alone():
    with pytest.raises(
        UserError, match="BASE: expected a known key, got an unknown one on the command line"
    ):
        merge_from_list(get_cfg_default(), ["BASE", "['a.yaml']"])


# Which keys were set ----------------------------------------------------------------------------


def test_keys_of_files_pairs_and_options_are_recorded(tmp_path):
    cfg = write(
        tmp_path,
        base="OPTIM:\n  GAMMA: 0.5\n",
        # a key that is set to its default is set
        file="BASE: [base.yaml]\nINPUT:\n  SIZE: [224, 224]\n",
    )
    assert set_keys(cfg) == set()
    merge_from_file(cfg, str(tmp_path / "file.yaml"))
    merge_from_list(cfg, ["DATALOADER.TEST.BATCH_SIZE", "8"])
    set_key(cfg, "SEED", 3)
    cfg.OPTIM.LR = 0.1
    expected = {"OPTIM.GAMMA", "INPUT.SIZE", "DATALOADER.TEST.BATCH_SIZE", "SEED"}
    assert set_keys(cfg) == expected and cfg.SEED == 3
    assert set_keys(cfg.clone()) == expected
    assert set_keys(get_cfg_default()) == set()


def test_the_record_is_not_part_of_the_tree():
    plain, cfg = get_cfg_default(), get_cfg_default()
    merge_from_list(cfg, ["OPTIM.LR", str(cfg.OPTIM.LR)])
    assert cfg == plain and list(cfg) == list(plain)
    assert str(cfg) == str(plain) and cfg.dump() == plain.dump() and to_dict(cfg) == to_dict(plain)
    cfg.freeze()
    assert set_keys(cfg) == {"OPTIM.LR"}
