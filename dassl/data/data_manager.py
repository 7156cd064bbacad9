"""Data loaders, and the datasets behind them, from a config."""

from __future__ import annotations

import math
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from yacs.config import CfgNode

from dassl import distributed
from dassl.compat import PublicDataManager, __getattr__  # noqa: F401
from dassl.config import check_domains
from dassl.data.datasets import Datum, build_dataset, check_test_split
from dassl.data.image_cache import ImageCache
from dassl.data.loader import Loader
from dassl.data.samplers import (
    DOMAIN_SAMPLERS,
    SeededIndex,
    SeededSampler,
    SharedBatches,
    build_sampler,
)
from dassl.data.shared_files import may_write
from dassl.data.transforms import build_transform
from dassl.data.transforms.transforms import plain_transform
from dassl.errors import UserError, check_choice
from dassl.utils.logger import log
from dassl.utils.tools import ImageError, read_image, read_json, write_json

# Larger lists are not checked beforehand: that would take many minutes on a network drive. A broken
# image of theirs is reported when it is read.
MAX_CHECKED_IMAGES = 100_000
CHECKED_FILE = ".checked_images.json"
# What this process has decoded: for each path, size and time of the file, and the settings.
_checked: dict[str, str] = {}

ON_ERROR = ("stop", "skip")  # what to do about an image that cannot be read


def build_data_loader(
    cfg: CfgNode,
    sampler_type: str = "SequentialSampler",
    data_source: Sequence[Datum] = (),
    batch_size: int = 64,
    n_domain: int = 0,
    n_ins: int = 2,
    tfm: Any = None,
    is_train: bool = True,
    dataset_wrapper: Callable[..., Dataset[Any]] | None = None,
) -> DataLoader[Any]:
    """Make a loader of the images.

    In training the last batch is left out if it is not full, unless it is the only one or
    ``DATALOADER.TRAIN_X.DROP_LAST`` is False. The batches, augmentation included, are the same with
    any number of workers, and come in the public toolbox's order (with ``NUM_WORKERS`` above 0,
    where its augmentation does not disturb it). Of several processes each loads its share of every
    training batch.
    """
    wrapper = DatasetWrapper if dataset_wrapper is None else dataset_wrapper
    sampler: Any = build_sampler(
        sampler_type,
        cfg=cfg,
        data_source=data_source,
        batch_size=batch_size,
        n_domain=n_domain,
        n_ins=n_ins,
    )
    if is_train:
        sampler = SeededSampler(sampler)
    drops = is_train and cfg.DATALOADER.TRAIN_X.DROP_LAST and len(data_source) >= batch_size
    workers = min(cfg.DATALOADER.NUM_WORKERS, math.ceil(len(data_source) / batch_size))
    batches: dict[str, Any] = {"batch_size": batch_size, "sampler": sampler, "drop_last": drops}
    if is_train and distributed.count() > 1:
        batches = {"batch_sampler": SharedBatches(**batches)}
    loader = Loader(
        wrapper(cfg, data_source, transform=tfm, is_train=is_train),
        **batches,
        num_workers=workers,
        pin_memory=torch.cuda.is_available() and cfg.USE_CUDA,
        # A pass takes one number from the global generator, as in the public toolbox. In training
        # SeededSampler does, since a loader whose workers persist does so only in the first epoch.
        generator=torch.Generator() if is_train else None,
        persistent_workers=is_train and workers > 0,
        # Forked workers share the images in memory; elsewhere fork is missing or not safe.
        multiprocessing_context="fork" if workers > 0 and sys.platform == "linux" else None,
    )
    if len(loader) == 0:
        raise UserError(
            f"DATALOADER.TRAIN_X.BATCH_SIZE: expected a batch that {sampler_type} can fill from "
            f"{len(data_source)} images, got {batch_size}"
        )
    if is_train and len(sampler) < len(data_source):
        log.info(f"Each epoch has {len(sampler)} of {len(data_source)} images ({sampler_type})")
    if drops and len(sampler) % batch_size:
        log.info(
            f"Each epoch leaves out {len(sampler) % batch_size} of {len(sampler)} images, which do "
            f"not fill a batch of {batch_size} (DATALOADER.TRAIN_X.DROP_LAST False uses them)"
        )
    return loader


def loader_of_batches(loader: DataLoader[Any], batches: Sequence[Sequence[int]]) -> Loader:
    """Make a loader of given batches of another one's images, which draws no random numbers.

    Args:
        loader: one of ``build_data_loader``.
        batches: indices, those of training with a seed (``SeededIndex``).
    """
    workers = min(loader.num_workers, len(batches))
    return Loader(
        loader.dataset,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=loader.pin_memory,
        generator=torch.Generator(),
        multiprocessing_context=loader.multiprocessing_context if workers > 0 else None,
    )


class DataManager(PublicDataManager):
    """The dataset of the config and its loaders.

    Args:
        cfg: the config.
        custom_tfm_train: transform (or list of them) for training instead of the config's.
        custom_tfm_test: the same for validation and test.
        dataset_wrapper: class instead of ``DatasetWrapper``.

    Attributes:
        dataset: the ``DatasetBase``.
        train_loader_x: a loader, or None where the dataset has no training images.
        test_loader: a loader.
        val_loader: a loader, or None where the dataset has no validation images.
    """

    def __init__(
        self,
        cfg: CfgNode,
        custom_tfm_train: Any = None,
        custom_tfm_test: Any = None,
        dataset_wrapper: Callable[..., Dataset[Any]] | None = None,
    ) -> None:
        check_domains(cfg, section="DATALOADER.")
        dataset = build_dataset(cfg)
        check_sampler(cfg, dataset)
        check_test_split(cfg, dataset)
        for name in ("_train_x", "_val", "_test"):
            split = getattr(dataset, name)
            if split:
                setattr(dataset, name, leave_out_broken(split, cfg, dataset.dataset_dir))
        trained = {item.label for item in dataset.train_x}
        for label, classname in dataset.lab2cname.items():
            if trained and label not in trained:
                raise UserError(f"class '{classname}' has no training image that can be read")

        if custom_tfm_train is None:
            tfm_train = build_transform(cfg, is_train=True)
        else:
            log.info("* Using custom transform for training")
            tfm_train = custom_tfm_train
        if custom_tfm_test is None:
            tfm_test = build_transform(cfg, is_train=False)
        else:
            log.info("* Using custom transform for testing")
            tfm_test = custom_tfm_test

        def test_loader(data_source: Sequence[Datum]) -> DataLoader[Any]:
            return build_data_loader(
                cfg,
                sampler_type=cfg.DATALOADER.TEST.SAMPLER,
                data_source=data_source,
                batch_size=cfg.DATALOADER.TEST.BATCH_SIZE,
                tfm=tfm_test,
                is_train=False,
                dataset_wrapper=dataset_wrapper,
            )

        self.dataset = dataset
        self.train_loader_x: Any = None
        if dataset.train_x:
            self.train_loader_x = build_data_loader(
                cfg,
                sampler_type=cfg.DATALOADER.TRAIN_X.SAMPLER,
                data_source=dataset.train_x,
                batch_size=cfg.DATALOADER.TRAIN_X.BATCH_SIZE,
                n_domain=cfg.DATALOADER.TRAIN_X.N_DOMAIN,
                n_ins=cfg.DATALOADER.TRAIN_X.N_INS,
                tfm=tfm_train,
                is_train=True,
                dataset_wrapper=dataset_wrapper,
            )
        self.val_loader = test_loader(dataset.val) if dataset.val else None
        self.test_loader = test_loader(dataset.test)
        self._num_classes: int = dataset.num_classes
        self._num_source_domains = len(cfg.DATASET.SOURCE_DOMAINS)
        self._lab2cname: dict[int, str] = dataset.lab2cname
        if cfg.VERBOSE:
            self.show_dataset_summary(cfg)

    @property
    def num_classes(self) -> int:
        return self._num_classes

    @property
    def lab2cname(self) -> dict[int, str]:
        """Class name by label."""
        return self._lab2cname

    def show_dataset_summary(self, cfg: CfgNode) -> None:
        """Print the sizes of the dataset."""
        rows: list[tuple[str, Any]] = [("Dataset", cfg.DATASET.NAME)]
        if cfg.DATASET.SOURCE_DOMAINS:
            rows.append(("Source", ", ".join(cfg.DATASET.SOURCE_DOMAINS)))
        if cfg.DATASET.TARGET_DOMAINS:
            rows.append(("Target", ", ".join(cfg.DATASET.TARGET_DOMAINS)))
        rows.append(("# classes", f"{self.num_classes:,}"))
        rows.append(("# train_x", f"{len(self.dataset.train_x):,}"))
        if self.dataset.val:
            rows.append(("# val", f"{len(self.dataset.val):,}"))
        rows.append(("# test", f"{len(self.dataset.test):,}"))
        for name, value in rows:
            log.info(f"{name:<9}  {value}")


def check_sampler(cfg: CfgNode, dataset: Any) -> None:
    """Raise ``UserError`` where the training sampler needs domains and the dataset has none."""
    name = cfg.DATALOADER.TRAIN_X.SAMPLER
    several = dataset.domains or len({item.domain for item in dataset.train_x}) > 1
    if name in DOMAIN_SAMPLERS and dataset.train_x and not several:
        raise UserError(
            f"DATALOADER.TRAIN_X.SAMPLER: expected a sampler without domains for "
            f"{cfg.DATASET.NAME}, which has none, got '{name}'"
        )


def leave_out_broken(items: Sequence[Datum], cfg: CfgNode, folder: str) -> list[Datum]:
    """Return the images that can be decoded; of more than ``MAX_CHECKED_IMAGES`` all, unchecked.

    An image counts as broken where ``read_image`` refuses it. What a decoder accepts is an image,
    whatever it shows: JPEG has no checksums. Each file is decoded once; ``CHECKED_FILE`` in the
    dataset's folder says which, for later runs, or else this process alone remembers.

    Args:
        items: images.
        cfg: the config; where ``DATALOADER.ON_ERROR`` is "skip", the log says which images cannot
            be read, and their number; "stop" raises.
        folder: the dataset's folder, "" where it has none.

    Raises:
        UserError: an image cannot be read, and ``ON_ERROR`` is "stop" or none can be read.
    """
    on_error = cfg.DATALOADER.ON_ERROR
    check_choice("DATALOADER.ON_ERROR", on_error, ON_ERROR)
    if len(items) > MAX_CHECKED_IMAGES:
        return list(items)
    paths = list(dict.fromkeys(item.impath for item in items))
    file = os.path.join(folder, CHECKED_FILE) if os.path.isdir(folder) else ""
    sound, complaints = _check_images(paths, cfg.INPUT.UPRIGHT, cfg.INPUT.MAX_PIXELS, file)
    broken = list(complaints.values())
    if broken and (on_error == "stop" or len(broken) == len(paths)):
        named = "; ".join(broken[:10]) + ("; ..." if len(broken) > 10 else "")
        raise UserError(
            f"{len(broken)} of {len(paths)} images cannot be read: {named}; remove them, or set "
            "DATALOADER.ON_ERROR skip to leave them out"
        )
    known = _read_checked(file)
    if file and may_write() and not sound.items() <= known.items():
        # Whole files replace one another: of several processes that write at once, the last one's
        # stays, and what the others add is decoded again.
        known |= sound
        with suppress(OSError, UserError):  # a read-only folder
            write_json({os.path.relpath(path, folder): known[path] for path in known}, file)
    if broken:
        log.info(f"Left out {len(broken)} of {len(paths)} images, which cannot be read:")
        for text in broken:
            log.info(f"  {text}")
    return [item for item in items if item.impath not in complaints]


def _check_images(
    paths: Sequence[str], upright: bool, max_pixels: int, file: str
) -> tuple[dict[str, str], dict[str, str]]:
    """Return marks of the images that can be read, and what is wrong with the others, by path."""
    _checked.update(_read_checked(file))

    def mark(path: str) -> str:
        try:
            status = os.stat(path)
        except OSError:
            return ""
        turned = " upright" if upright else ""
        return f"{status.st_size} {status.st_mtime_ns} {max_pixels}{turned}"

    def complaint(path: str) -> str:
        try:
            read_image(path, upright, max_pixels)
        except ImageError as error:
            return str(error)
        return ""

    # threads, as the time is spent waiting for the disk, or decoding
    with ThreadPoolExecutor(8) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Pillow warns of is refused, or harmless
        marks = dict(zip(paths, pool.map(mark, paths), strict=True))
        new = [path for path in paths if _checked.get(path) != marks[path]]
        if new:
            log.info(f"Decoding {len(new)} images, to see that they can be read")
        complaints = dict(zip(new, pool.map(complaint, new), strict=True))
    complaints = {path: text for path, text in complaints.items() if text}
    sound = {path: marks[path] for path in paths if path not in complaints}
    _checked.update(sound)
    return sound, complaints


def _read_checked(file: str) -> dict[str, str]:
    """Return {path: mark} from a ``CHECKED_FILE``; nothing where it is missing or damaged."""
    if not os.path.isfile(file):
        return {}
    try:
        content = read_json(file)
    except UserError:
        return {}
    folder = os.path.dirname(file)
    items = content.items() if isinstance(content, dict) else ()
    return {os.path.join(folder, path): mark for path, mark in items if isinstance(mark, str)}


class DatasetWrapper(Dataset[dict[str, Any]]):
    """Reads and transforms images.

    In training decoded images stay in memory, up to ``DATALOADER.CACHE_MB``, and an index with a
    seed (``SeededIndex``) gives the same augmentation in whichever process it is made.

    An entry is a dict of label (int), domain (int), impath (str), index (int), img (what the
    transform gives; a list of K_TRANSFORMS of them in training where that is above 1; with a list
    of transforms also img2, img3, ...) and, with RETURN_IMG0, img0 without augmentation.

    Args:
        cfg: the config.
        data_source: the images.
        transform: from a PIL image to a tensor, or a list or tuple of such; None gives the PIL
            image itself.
        is_train: whether K_TRANSFORMS applies.
    """

    def __init__(
        self,
        cfg: CfgNode,
        data_source: Sequence[Datum],
        transform: Any = None,
        is_train: bool = False,
    ) -> None:
        self.cfg = cfg
        self.data_source = data_source
        self.transform = transform
        self.is_train = is_train
        self.k_tfm: int = cfg.DATALOADER.K_TRANSFORMS if is_train else 1
        self.return_img0: bool = cfg.DATALOADER.RETURN_IMG0
        if self.k_tfm > 1 and transform is None:
            raise UserError(
                f"DATALOADER.K_TRANSFORMS: expected 1 without a transform, got {self.k_tfm}"
            )
        self.to_tensor = plain_transform(cfg) if self.return_img0 else None
        self._images = ImageCache(
            [item.impath for item in data_source],
            cfg.DATALOADER.CACHE_MB * 2**20 if is_train else 0,
            partial(read_image, upright=cfg.INPUT.UPRIGHT, max_pixels=cfg.INPUT.MAX_PIXELS),
        )

    def __len__(self) -> int:
        return len(self.data_source)

    def without_image(self, idx: int) -> dict[str, Any]:
        """Return what is known of an entry before its image is read."""
        item = self.data_source[idx]
        return {
            "label": item.label,
            "domain": item.domain,
            "impath": item.impath,
            "index": idx,
        }

    def __getitem__(self, idx: int) -> dict[str, Any]:
        output = self.without_image(idx)
        image = self._images[output["impath"]]
        with seeded(idx.seed if isinstance(idx, SeededIndex) else None):
            if isinstance(self.transform, (list, tuple)):
                for number, transform in enumerate(self.transform, start=1):
                    key = "img" if number == 1 else f"img{number}"
                    output[key] = self._transform_image(transform, image)
            elif self.transform is not None:
                output["img"] = self._transform_image(self.transform, image)
            else:
                output["img"] = image
        if self.to_tensor is not None:
            output["img0"] = self.to_tensor(image)
        return output

    def _transform_image(self, transform: Callable[[Any], Any], image: Any) -> Any:
        views = [transform(image) for _ in range(self.k_tfm)]
        return views[0] if len(views) == 1 else views


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Seed Python's, numpy's and torch's generators, and restore their states afterward.

    None leaves them alone.
    """
    if seed is None:
        yield
        return
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # that of the CPU; a worker must not touch CUDA's
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
