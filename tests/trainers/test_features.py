"""Features of frozen towers are kept: equal bits, no image read again, and fixed views."""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import train
from clip import CLIP
from dassl.data import data_manager
from dassl.data.datasets import DATASET_REGISTRY
from dassl.data.feature_store import entries_in
from dassl.data.samplers import SeededIndex, view_seed
from dassl.engine import TRAINER_REGISTRY, build_trainer, resume
from tests.trainers import toy
from tests.trainers.tiny import tiny_clip
from trainers import features
from trainers.features import FeatureCache
from trainers.trainer import MethodTrainer

METHODS = [
    name
    for name in TRAINER_REGISTRY.registered_names()
    if issubclass(TRAINER_REGISTRY.get(name), MethodTrainer)
]
SLOW_PREC = [("CoOp", "bf16"), ("HiCroPL", "amp")]
NEED_NO_PIXELS = {
    *("CoOp", "CoCoOp", "KgCoOp", "TCP", "LAMM", "ProDA", "LinearProbe"),
    *("ZeroshotCLIP", "ZeroshotCLIP2", "TipAdapter", "TipAdapterF"),
    *("CLIPAdapter", "TaskRes", "LPpp", "ProGrad"),
}
FAST = ("CoCoOp", "HiCroPL", "LinearProbe", "StandardizedCLIP")
FLAT = ("INPUT.TRANSFORMS", "['normalize']")  # no augmentation


def slow_but(*fast: str):
    """Return a function that marks all other methods' tests as slow."""
    return lambda name: name if name in fast else pytest.param(name, marks=pytest.mark.slow)


@DATASET_REGISTRY.register()
class ColorPatchesTrainAsVal(toy.ColorPatches):
    @property
    def val(self):
        return self.train_x


class Read(AssertionError):
    """An image was read that should not have been."""


@pytest.fixture
def no_images(monkeypatch):
    """Return a function after which to read an image is an error."""

    def forbid():
        def read(*args, **options):
            raise Read

        monkeypatch.setattr(data_manager, "read_image", read)

    return forbid


@pytest.fixture
def make(tmp_path, backbone, capsys):
    """Make a trainer: make(name, KEY, VALUE, ...)."""

    def call(name: str, *pairs: str):
        whose = (name, tmp_path, backbone, tmp_path / "out")
        parser = train.build_parser()
        cfg = train.setup_cfg(parser.parse_args(toy.command_line(*whose, *pairs)))
        torch.manual_seed(1)
        trainer = build_trainer(cfg)
        capsys.readouterr()
        return trainer

    return call


def evaluate(trainer) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits of an evaluation and where it leaves torch's generator."""
    logits = []
    infer = type(trainer).model_inference

    def keep(images):
        logits.append(infer(trainer, images))
        return logits[-1]

    trainer.model_inference = keep
    torch.manual_seed(3)
    trainer.test("test")
    return torch.cat(logits), torch.get_rng_state()


@pytest.mark.parametrize("name", [*map(slow_but(*FAST), METHODS)])
def test_an_evaluation_has_the_same_bits_and_reads_no_image_for_its_features(
    make, monkeypatch, name
):
    trainer = make(name, "DATALOADER.TEST.BATCH_SIZE", "5")
    store = trainer.cache.store
    trainer.cache.store.budget = 0
    expected, state = evaluate(trainer)
    for _ in range(2):  # the features are computed, and then read
        trainer.cache = FeatureCache(trainer.cfg, trainer.model)
        found, left = evaluate(trainer)
        assert torch.equal(found, expected) and torch.equal(left, state)
    read = trainer.test_loader.dataset._images._read
    count = []
    monkeypatch.setattr(
        trainer.test_loader.dataset._images, "_read", lambda path: count.append(path) or read(path)
    )
    trainer.cache = FeatureCache(trainer.cfg, trainer.model)
    assert torch.equal(evaluate(trainer)[0], expected)
    assert len(count) == (0 if name in NEED_NO_PIXELS else 12)
    # one file of features, where any are asked for, and the digest of the images' contents
    kinds = sorted(Path(entry.path).suffix for entry in entries_in(store.folder))
    assert kinds in ([".contents", ".safetensors"], [])
    assert kinds or name not in NEED_NO_PIXELS


@pytest.mark.parametrize(
    ("name", "prec"),
    [("CoOp", "amp"), *(pytest.param(*each, marks=pytest.mark.slow) for each in SLOW_PREC)],
)
def test_in_low_precision_the_bits_are_the_same_too(make, name, prec):
    trainer = make(name, f"TRAINER.{name.upper()}.PREC", prec, "DATALOADER.TEST.BATCH_SIZE", "5")
    trainer.cache.store.budget = 0
    expected, _ = evaluate(trainer)
    for _ in range(2):
        trainer.cache = FeatureCache(trainer.cfg, trainer.model)
        assert torch.equal(evaluate(trainer)[0], expected)


def test_a_resnet_is_served_too(make, tmp_path):
    torch.manual_seed(2)
    config = replace(tiny_clip().config, vision_layers=(1, 1, 1, 1), image_resolution=32)
    path = tmp_path / "resnet.pt"
    torch.save({**CLIP(config).state_dict(), "head_width": torch.tensor(16)}, path)
    trainer = make("CoOp", "MODEL.BACKBONE.NAME", str(path), "INPUT.SIZE", "(32, 32)")
    trainer.cache.store.budget = 0
    expected, _ = evaluate(trainer)
    for _ in range(2):
        trainer.cache = FeatureCache(trainer.cfg, trainer.model)
        assert torch.equal(evaluate(trainer)[0], expected)
    assert not trainer.cache.of_test(trainer.test_loader, "test").reads


def test_a_linear_probe_is_fitted_to_kept_features(run, tmp_path, no_images):
    assert run("LinearProbe", "first")[0] == 0
    no_images()
    assert run("LinearProbe", "again", "DATALOADER.CACHE_MB", "1")[0] == 0
    first, again = (
        torch.load(tmp_path / name / "linear_probe/model.pth.tar-2", weights_only=True)
        for name in ("first", "again")
    )
    weights = [content["state_dict"]["weight"] for content in (first, again)]
    assert torch.equal(*weights)


def test_a_second_run_of_another_method_and_seed_reads_no_test_image(run, tmp_path, no_images):
    assert run("ZeroshotCLIP", "zero")[0] == 0
    code, out = run("CoOp", "trained", epochs=1)
    assert code == 0 and "Image features are those of " in out
    no_images()
    load = ["--eval-only", "--model-dir", f"{tmp_path}/trained"]
    save = ("TEST.SAVE_LOGITS", "True", "SEED", "7")
    for options in ((), ("DATASET.SUBSAMPLE_CLASSES", "all", "TEST.METRICS", "['ece']")):
        assert run("CoOp", "again", *save, *options, flags=load, epochs=1)[0] == 0
    first, again = (
        json.loads((tmp_path / name / "results.json").read_text()) for name in ("trained", "again")
    )
    assert first["accuracy"] == again["accuracy"] and again["ece"] is not None
    assert (tmp_path / "again/predictions.npz").is_file()
    with pytest.raises(Read):  # other images are other features
        run("CoOp", "base", "DATASET.SUBSAMPLE_CLASSES", "base", flags=load, epochs=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "pairs",
    [
        ("DATALOADER.TEST.BATCH_SIZE", "6"),
        ("INPUT.INTERPOLATION", "nearest"),
        ("INPUT.PIXEL_MEAN", "[0.5, 0.5, 0.5]"),
        ("INPUT.TRANSFORMS", "['instance_norm']"),
        ("INPUT.UPRIGHT", "True"),
        ("TRAINER.ZSCLIP.PREC", "bf16"),
        ("TRAINER.ZSCLIP.PREC", "amp"),
        ("DATASET.SUBSAMPLE_CLASSES", "new"),
        pytest.param(
            ("MODEL.COMPILE", "True"),
            marks=pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler"),
        ),
    ],
)
def test_other_settings_are_another_entry(make, monkeypatch, pairs):
    monkeypatch.setattr(torch, "compile", lambda run: run)  # the setting counts, not the kernels
    evaluate(make("ZeroshotCLIP"))
    trainer = make("ZeroshotCLIP", *pairs)
    evaluate(trainer)
    entries = entries_in(trainer.cache.store.folder)
    assert len([entry for entry in entries if entry.path.endswith(".safetensors")]) == 2


def test_another_machine_or_other_weights_or_contents_are_another_entry(
    make, monkeypatch, tmp_path
):
    def count(trainer) -> int:
        trainer.cache = FeatureCache(trainer.cfg, trainer.model)
        evaluate(trainer)
        return len(list(Path(trainer.cache.store.folder).glob("*.safetensors")))

    trainer = make("ZeroshotCLIP", "USE_CUDA", "False")
    assert count(trainer) == 1 and count(trainer) == 1
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 64)
        assert count(trainer) == 2
    with monkeypatch.context() as patch:
        patch.setenv("MKL_CBWR", "COMPATIBLE")
        assert count(trainer) == 3
    trainer.model.clip.visual.proj.data[0, 0] += 1e-3
    assert count(trainer) == 4
    (path, *_) = (item.impath for item in trainer.dm.dataset.test)
    Path(path).write_bytes(Path(trainer.dm.dataset.test[-1].impath).read_bytes())
    assert count(trainer) == 5
    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", lambda run: run)  # what it makes has other last bits
        for transformer in trainer.model.clip.transformers:
            transformer.compile_blocks()
    assert count(trainer) == 6
    trainer.model.clip.visual.requires_grad_(True)  # not frozen: nothing is kept
    trainer.model.clip.visual.proj.data[0, 0] += 1e-3
    assert count(trainer) == 6


def test_features_are_of_the_code_that_was_imported(monkeypatch):
    spec = importlib.util.spec_from_file_location("features_again", features.__file__)
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    method = SimpleNamespace(autocast_dtype=None, device=torch.device("cpu"))

    def key(module) -> dict:
        frozen = module.FrozenFeatures(None, method, None, 0, None, {})
        return frozen._key_of(tiny_clip())

    expected = key(features)
    monkeypatch.setattr(Path, "read_bytes", lambda path: b"edited since")
    assert key(again) == expected


@pytest.mark.slow
def test_a_model_chosen_on_validation_images_is_the_same(run, tmp_path):
    chosen = ("DATASET.NAME", "ColorPatchesTrainAsVal", "TEST.FINAL_MODEL", "best_val")
    best = []
    for output, size in (("off", "0"), ("on", "100"), ("again", "100")):
        code, out = run("CoOp", output, *chosen, "DATALOADER.FEATURES_MB", size, epochs=3)
        assert code == 0, out
        best.append(torch.load(tmp_path / output / "prompt_learner/model-best.pth.tar"))
    for other in best[1:]:
        assert other["val_result"] == best[0]["val_result"]
        assert torch.equal(other["state_dict"]["ctx"], best[0]["state_dict"]["ctx"])
    last = [toy.checkpoint(tmp_path / output, "CoOp", 3)["ctx"] for output in ("off", "on")]
    assert torch.equal(*last)


def test_pixels_are_there_for_whoever_asks(make):
    trainer = make("CoOp", "DATALOADER.TEST.BATCH_SIZE", "5")
    for asks in (False, True, False):
        loader = trainer.cache.of_test(trainer.test_loader, "test")
        batches = [
            (batch, batch["img"].clone() if asks and number > 0 else None)
            for number, batch in enumerate(loader)
        ]
        for (batch, pixels), plain in zip(batches, trainer.test_loader, strict=True):
            assert batch["impath"] == plain["impath"]
            for key in ("label", "index", "domain"):
                assert torch.equal(batch[key], plain[key])
            assert pixels is None or torch.equal(pixels, plain["img"])
            assert torch.equal(batch["images"][0].pixels.cpu(), plain["img"])


def test_images_in_random_order_are_read(make):
    trainer = make("CoOp", "DATALOADER.TEST.SAMPLER", "RandomSampler")
    assert trainer.cache.of_test(trainer.test_loader, "test") is trainer.test_loader
    evaluate(trainer)
    assert entries_in(trainer.cache.store.folder) == []


# Fixed views -------------------------------------------------------------------------------------


def views_seen(trainer, epoch: int) -> dict[str, torch.Tensor]:
    """Return the pixels that an epoch of training sees, by path."""
    served = trainer.cache.of_view(trainer.train_loader_x, epoch % trainer.cfg.DATALOADER.VIEWS)
    return {
        path: view
        for batch in served
        for path, view in zip(batch["impath"], batch["img"], strict=True)
    }


def test_a_view_depends_on_seed_image_and_number_alone(make, tmp_path):
    pairs = ("DATALOADER.VIEWS", "2")
    epochs = [views_seen(trainer := make("CoOp", *pairs), epoch) for epoch in range(3)]
    dataset = trainer.train_loader_x.dataset
    changed = 0
    for index, item in enumerate(trainer.dm.dataset.train_x):
        name = Path(item.impath).relative_to(tmp_path).as_posix()
        for number, seen in enumerate(epochs):
            seed = view_seed(1, name, number % 2)
            assert torch.equal(seen[item.impath], dataset[SeededIndex.of(index, seed)]["img"])
        changed += not torch.equal(epochs[0][item.impath], epochs[1][item.impath])
    assert changed == 16
    # of other classes, in another order, by worker processes: the same
    other = make(
        *("CoOp", *pairs, "DATASET.SUBSAMPLE_CLASSES", "new", "DATALOADER.NUM_WORKERS", "2")
    )
    seen = views_seen(other, 1)
    assert len(seen) == 8
    assert all(torch.equal(view, epochs[1][path]) for path, view in seen.items())
    third = views_seen(make("CoOp", *pairs, "SEED", "2"), 0)
    assert not any(torch.equal(view, epochs[0][path]) for path, view in third.items())


@pytest.mark.parametrize("name", ["CoOp", "CoPrompt"])
def test_kept_features_of_a_view_are_those_of_its_pixels(make, name):
    trainer = make(name, "DATALOADER.VIEWS", "2", "DATALOADER.TEST.BATCH_SIZE", "5")
    served = trainer.cache.of_view(trainer.train_loader_x, 1)
    seen = 0
    for batch in served:
        for view in batch["images"]:
            expected = torch.nn.functional.normalize(
                trainer.model.clip.encode_image(view.pixels), dim=-1
            )
            assert torch.equal(view.features(trainer.model.clip), expected)
            seen += len(expected)
    assert seen == 16 * (2 if name == "CoPrompt" else 1)


@pytest.mark.parametrize(
    "name", [*map(slow_but("HiCroPL"), ["CoOp", "KgCoOp", "HiCroPL", "PromptSRC", "CoPrompt"])]
)
def test_without_augmentation_views_train_the_same_bits(run, tmp_path, name):
    assert run(name, "plain", *FLAT)[0] == 0
    assert run(name, "views", *FLAT, "DATALOADER.VIEWS", "3")[0] == 0
    plain, views = (toy.checkpoint(tmp_path / folder, name, 2) for folder in ("plain", "views"))
    assert plain.keys() == views.keys()
    assert all(torch.equal(plain[key], views[key]) for key in plain)
    assert (
        json.loads((tmp_path / "views/results.json").read_text())["config"]["DATALOADER"]["VIEWS"]
        == 3
    )


def test_in_smaller_batches_a_feature_differs_by_rounding_alone(make):
    """Matrix products of fewer than four rows have other bits here."""
    trainer = make("CoCoOp", *FLAT, "DATALOADER.VIEWS", "1", "DATALOADER.TRAIN_X.BATCH_SIZE", "1")
    model = trainer.model.clip
    for batch in trainer.cache.of_view(trainer.train_loader_x, 0):
        (view,) = batch["images"]
        expected = torch.nn.functional.normalize(model.encode_image(view.pixels), dim=-1)
        torch.testing.assert_close(view.features(model), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [*map(slow_but("CoOp"), ["CoOp", "PromptSRC"])])
def test_a_stopped_run_with_views_ends_with_the_same_bits(run, tmp_path, monkeypatch, name):
    views = ("DATALOADER.VIEWS", "2")
    assert run(name, "whole", *views, epochs=3)[0] == 0
    monkeypatch.setattr(resume, "SAVE_INTERVAL", 0.0)
    step = MethodTrainer.forward_backward

    def stop(self, batch):
        if self.epoch == 1 and self.batch_idx == 2:
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(MethodTrainer, "forward_backward", stop)
    assert run(name, "stopped", *views, epochs=3)[0] == 130
    monkeypatch.setattr(MethodTrainer, "forward_backward", step)
    # on another machine nothing may be kept
    code, out = run(name, "stopped", *views, "DATALOADER.FEATURES_MB", "0", epochs=3)
    assert code == 0 and "1 epochs are done" in out
    whole, stopped = (toy.checkpoint(tmp_path / d, name, 3) for d in ("whole", "stopped"))
    assert all(torch.equal(whole[key], stopped[key]) for key in whole)
    code, out = run(name, "stopped", "DATALOADER.VIEWS", "4", epochs=3)
    assert code == 2 and "DATALOADER.VIEWS: expected 2, as in the run in " in out


@pytest.mark.slow
def test_methods_share_their_views(run, tmp_path, no_images):
    views = ("DATALOADER.VIEWS", "2", "SEED", "3")
    assert run("CoOp", "one", *views)[0] == 0
    whole = toy.checkpoint(tmp_path / "one", "CoOp", 2)
    no_images()
    for name in ("CoOp", "KgCoOp", "TCP", "CoCoOp"):
        code, out = run(name, f"other-{name}", *views)
        assert code == 0, out
    again = toy.checkpoint(tmp_path / "other-CoOp", "CoOp", 2)
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    with pytest.raises(Read):  # a third view
        run("CoOp", "more", "DATALOADER.VIEWS", "3", "SEED", "3", epochs=3)


@pytest.mark.slow
def test_another_teacher_has_entries_of_its_own(run, tmp_path, monkeypatch):
    torch.manual_seed(9)
    other = {name: t + 0.01 * torch.randn_like(t) for name, t in tiny_clip().state_dict().items()}
    torch.save({**other, "head_width": torch.tensor(16)}, tmp_path / "teacher.pt")
    teacher = ("TRAINER.HICROPL.TEACHER_NAME", f"{tmp_path}/teacher.pt")
    folder = tmp_path / ".features"
    counts = []
    for output, pairs in (("own", ()), ("other", teacher), ("again", teacher)):
        assert run("HiCroPL", output, *FLAT, *pairs, "DATALOADER.VIEWS", "1", epochs=1)[0] == 0
        counts.append(len(list(folder.glob("*.safetensors"))))
    assert counts == [2, 4, 4]  # of the view and of the test images
    assert run("HiCroPL", "plain", *FLAT, *teacher, epochs=1)[0] == 0
    plain, again = (toy.checkpoint(tmp_path / d, "HiCroPL", 1) for d in ("plain", "again"))
    assert all(torch.equal(plain[key], again[key]) for key in plain)


@pytest.mark.slow
def test_the_frozen_tower_runs_once_for_each_view(run, monkeypatch):
    counts = []
    encode = CLIP.encode_image

    def count(self, images, layers=(), *others):
        if not len(layers):
            counts.append(len(images))
        return encode(self, images, layers, *others)

    monkeypatch.setattr(CLIP, "encode_image", count)
    size = ("DATALOADER.TEST.BATCH_SIZE", "16")
    assert run("PromptSRC", "run", "DATALOADER.VIEWS", "2", *size, epochs=5)[0] == 0
    assert counts == [16, 16]


@pytest.mark.parametrize(
    ("name", "pairs", "message"),
    [
        ("CoOp", ("SEED", "-1"), "SEED: expected a seed >= 0, from which the 2 DATALOADER.VIEWS"),
        ("LinearProbe", (), "DATALOADER.VIEWS: expected 0 for LinearProbe, whose training has no"),
        ("CoOp", ("DATALOADER.VIEWS", "-1"), "DATALOADER.VIEWS: expected a whole number in 0.."),
        ("CoOp", ("DATALOADER.FEATURES_DIR", __file__), "DATALOADER.FEATURES_DIR: expected a fold"),
    ],
)
def test_what_cannot_be_is_refused(run, name, pairs, message):
    code, out = run(name, "out", "DATALOADER.VIEWS", "2", *pairs)
    (error,) = [line for line in out.splitlines() if line.startswith("error: ")]
    assert code == 2 and message in error
