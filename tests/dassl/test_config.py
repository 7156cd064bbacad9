import subprocess
import sys

import pytest

from dassl.config import (
    clean_cfg,
    first_difference,
    get_cfg_default,
    merge_from_file,
    merge_from_list,
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
            "key OPTIM.GAMA in '.*some.yaml'; did you mean 'GAMMA'.*known: ADAM",
        ),
        ("OPTM:\n  LR: 1\n", "unknown config key OPTM .*did you mean 'OPTIM'"),
        ("OPTIM:\n  MAX_EPOCH: many\n", "OPTIM.MAX_EPOCH .* whole number such as 10, got 'many'"),
        ("OPTIM: 3\n", "OPTIM in .*: expected a section of keys, got 3"),
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
    with pytest.raises(UserError, match="USE_CUDA .*got 'maybe'"):
        merge_from_list(cfg, ["USE_CUDA", "maybe"])
    with pytest.raises(UserError, match="OPTIM.LR on the command line: expected a number"):
        merge_from_list(cfg, ["OPTIM.LR.X", "1"])


def test_first_difference_names_the_key():
    old, new = to_dict(get_cfg_default()), to_dict(get_cfg_default())
    assert first_difference(old, new) is None
    new["OUTPUT_DIR"] = "elsewhere"
    assert first_difference(old, new, ("OUTPUT_DIR",)) is None
    new["OPTIM"]["LR"] = 1.0
    assert first_difference(old, new, ("OUTPUT_DIR",)) == ("OPTIM.LR", 0.0003, 1.0)


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
        ("[wrong.yaml]", "unknown config key OPTIM.GAMA in '.*wrong.yaml'"),
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
    with pytest.raises(UserError, match="unknown config key BASE on the command line"):
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
