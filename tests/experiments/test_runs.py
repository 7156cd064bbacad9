"""Protocols and their runs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import datasets  # noqa: F401  (registers the datasets)
import trainers  # noqa: F401
from configs.choice import EMBEDDED, EMBEDDED_SOURCE, MINI, PAPERS, config_of
from configs.protocols import (
    BASE2NEW,
    CROSS_DATASET,
    DOMAIN_GENERALIZATION,
    FEW_SHOT,
    PROTOCOLS,
)
from dassl.config.defaults import declared, trainers_with_keys
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import run_folder
from dassl.errors import UserError
from datasets.embedded import EmbeddedDataset
from experiments import runs
from experiments.runs import Run, runs_of

REPOSITORY = Path(__file__).parents[2]
SETTINGS = {"overrides": ("TRAINER.COOP.N_CTX", "4", "OPTIM.LR", "0.1"), "backbone": "ViT-B/32"}


def folders(*arguments: Any, **settings: Any) -> list[str]:
    return [str(run.folder) for run in runs_of(*arguments, **settings)]


def test_finished_means_what_the_engine_means():
    assert runs.RESULTS_FILE == run_folder.RESULTS_FILE


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_protocols_name_files_that_are_there_and_steps_in_the_order_of_need(protocol):
    for step in protocol.steps:
        assert step.loads is None or step.loads in protocol.steps[: protocol.steps.index(step)]
    for trainer in PAPERS:
        for dataset in protocol.targets or ("imagenet", "shapes", "eurosat"):
            for shots in protocol.shots:
                for run in runs_of(protocol, trainer, dataset, 1, shots):
                    assert (REPOSITORY / run.config_file).is_file()
                    assert (REPOSITORY / f"configs/datasets/{run.target}.yaml").is_file()
                    assert run.arguments[run.arguments.index("--config-file") + 1].endswith(
                        f"/{trainer}/{run.config}.yaml"
                    )


def test_every_trainer_with_a_papers_config_has_a_usual_one():
    papers = REPOSITORY.glob("configs/trainers/[!_]*/vit_b16*.yaml")
    assert {path.parent.name for path in papers} == set(PAPERS)


def test_overrides_and_backbone_add_one_level_below_the_config():
    below = "N_CTX=4,LR=0.1,backbone=ViT-B-32"
    for arguments, expected in (
        (
            (BASE2NEW, "CoOp", "dtd", 2, 4),
            [
                f"output/base2new/{step}/dtd/shots_4/CoOp/vit_b16_ep50_ctxv1/{below}/seed2"
                for step in ("train_base", "test_new")
            ],
        ),
        (
            (FEW_SHOT, "CoOp", "dtd", 2, 16),
            [f"output/dtd/CoOp/vit_b16_16shots/{below}/seed2"],
        ),
        (
            (CROSS_DATASET, "CoOp", "dtd", 2, 16),
            [
                f"output/dtd/CoOp/vit_b16_ep50_ctxv1_16shots/{below}/seed2",
                f"output/evaluation/CoOp/vit_b16_ep50_ctxv1_16shots/{below}/dtd_to_sun397/seed2",
            ],
        ),
        (
            (BASE2NEW, "ZeroshotCLIP", "dtd", 2, 16),
            [f"output/ZeroshotCLIP/vit_b16/{below}/dtd_{part}" for part in ("base", "new")],
        ),
    ):
        assert folders(*arguments, **SETTINGS, targets=["sun397"]) == expected


def test_former_folders_are_those_of_the_former_table():
    options = ("TRAINER.HISF.LAMBDA_LE", "0.1", "TRAINER.HISF.LAMBDA_SA", "1.0")
    where = "shapes/HISF,LAMBDA_LE=0.1,LAMBDA_SA=1.0/seed3"
    train, test = runs_of(BASE2NEW, "HISF", "shapes", 3, overrides=options)
    assert train.old_folders[0] == Path("output", where, "train_base")
    assert test.old_folders == [Path("output", where, "new"), Path("output/table", where, "new")]
    search, _ = runs_of(BASE2NEW, "HISF", "shapes", 3, overrides=(*options, "TEST.SPLIT", "val"))
    assert search.old_folders[0] == Path("output", where, "val")
    (few_shot,) = runs_of(FEW_SHOT, "HISF", "digits", 3)
    assert few_shot.old_folders[0] == Path("output/digits/HISF/seed3/all")
    for other in (
        runs_of(BASE2NEW, "HISF", "shapes", 3, 4),
        runs_of(BASE2NEW, "HISF", "dtd", 3),
        runs_of(CROSS_DATASET, "HISF", "emoji", 3),
    ):
        assert [run.old_folders for run in other] == [[] for _ in other]


def test_overrides_and_backbone_are_given_to_both_steps():
    for run in runs_of(BASE2NEW, "CoOp", "dtd", **SETTINGS):
        assert run.arguments[-4:] == list(SETTINGS["overrides"])
        assert run.arguments[run.arguments.index("--backbone") + 1] == "ViT-B/32"
    assert run.model is not None and run.model.variant == run.variant


def test_no_two_keys_of_a_run_have_the_same_name_in_folders():
    assert len(trainers_with_keys()) > 10
    for trainer in trainers_with_keys():
        names = Counter(
            Run(BASE2NEW.steps[0], "CoOp", "dtd", "dtd", 1, 16, "", (key, "1")).variant
            for key in declared(trainer)
        )
        assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("key", runs.OWN_KEYS)
def test_keys_that_a_run_sets_itself_cannot_be_overridden(key):
    with pytest.raises(UserError, match=f"^{key}: expected to be set by .*, got override 1$"):
        runs_of(BASE2NEW, "CoOp", "dtd", overrides=(key, "1"))


def test_backbone_decides_between_the_papers_config_and_the_miniature():
    for dataset, backbone, config in (
        ("dtd", "", "vit_b16_ep50_ctxv1"),
        ("dtd", MINI, "vit_mini"),
        ("shapes", "", "vit_mini"),
        ("shapes", "ViT-B/32", "vit_b16_ep50_ctxv1"),
    ):
        assert config_of("CoOp", BASE2NEW, dataset, 16, backbone) == config


@pytest.mark.parametrize("shots", [1, 16])
def test_hicropl_trains_on_imagenet_alike_in_both_protocols(shots):
    for protocol in (BASE2NEW, FEW_SHOT):
        config = config_of("HiCroPL", protocol, "imagenet", shots)
        assert config == "vit_b16_c2_ep40_batch128_16ctx"
    config = "vit_b16_c2_ep50_batch32_16ctx_few_shot"
    assert config_of("HiCroPL", FEW_SHOT, "oxford_pets", shots) == config
    transfer = config_of("HiCroPL", CROSS_DATASET, "imagenet", shots)
    assert transfer == "vit_b16_c2_ep5_batch32_2ctx_cross_datasets"


def test_a_method_without_a_usual_config_is_one_line():
    with pytest.raises(UserError, match="no default for Mine"):
        config_of("Mine", BASE2NEW, "dtd", 16)
    assert config_of("Mine", BASE2NEW, "shapes", 16) == "vit_mini"


def test_what_is_not_trained_is_one_run_for_all_seeds_and_shots():
    assert runs_of(FEW_SHOT, "ZeroshotCLIP", "dtd", 3, 4) == runs_of(
        FEW_SHOT, "ZeroshotCLIP", "dtd"
    )


def test_both_transfers_share_the_source():
    first, *targets = runs_of(CROSS_DATASET, "HiCroPL", "imagenet")
    other, *shifted = runs_of(DOMAIN_GENERALIZATION, "HiCroPL", "imagenet")
    assert first == other and len(targets) == 10 and len(shifted) == 4
    assert {run.model for run in (*targets, *shifted)} == {first}
    assert all("DATASET.NUM_SHOTS" not in run.arguments for run in (*targets, *shifted))


def test_transfer_from_emoji_is_tested_on_all_other_embedded_datasets():
    drawn = {
        cls.folder
        for name in DATASET_REGISTRY.registered_names()
        if issubclass(cls := DATASET_REGISTRY.get(name), EmbeddedDataset)
        and cls.__module__.startswith("datasets.")  # not one of a test
    }
    assert {*EMBEDDED} == drawn and len(EMBEDDED) == len(drawn)
    _, *targets = runs_of(CROSS_DATASET, "HiCroPL", EMBEDDED_SOURCE)
    _, *shifted = runs_of(DOMAIN_GENERALIZATION, "HiCroPL", EMBEDDED_SOURCE)
    tested = [run.target for run in (*targets, *shifted)]
    assert sorted(tested) == sorted(drawn - {EMBEDDED_SOURCE}) and len(shifted) == 4
    where = "output/evaluation/HiCroPL/vit_mini_cross_datasets_16shots"
    assert str(targets[0].folder) == f"{where}/{targets[0].target}/seed1"
