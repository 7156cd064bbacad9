"""Image features that training cannot change, which are computed once.

A batch's images are ``Images``: their pixels are read when somebody asks for them, and so are the
features of a frozen tower, which come from the store. Whether a method needs pixels shows in what
it asks its first batch for.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import SequentialSampler

import clip
from clip import CLIP
from clip.layer import Layers, as_layers
from dassl.config import to_dict
from dassl.data import transforms
from dassl.data.data_manager import DatasetWrapper, loader_of_batches
from dassl.data.feature_store import FOLDER, FeatureStore, machine_of, tensors_digest
from dassl.data.loader import Loader
from dassl.data.samplers import SeededIndex, view_seed
from dassl.utils import UserError, log, tools

FORMAT = 1  # of the entries; another one where the same key means other features


def _code_digest() -> str:
    """Return a digest of the code that makes features of files."""
    folders = [Path(module.__file__ or "").parent for module in (clip, transforms)]
    files = [path for folder in folders for path in sorted(folder.glob("*.py"))]
    content = [path.read_bytes() for path in (*files, Path(tools.__file__))]
    return hashlib.sha256(b"\0".join(content)).hexdigest()


# Computed on import: a run keeps the code that it imported, even if the files are edited meanwhile.
CODE = _code_digest()


class Images:
    """One view of the images of a batch.

    Args:
        read: returns their pixels (B, 3, R, R), on the device.
        kept: returns unit features (B, d) of a frozen CLIP, on the device.
    """

    def __init__(self, read: Callable[[], Tensor], kept: Callable[[CLIP], Tensor]):
        self._read, self._kept = read, kept

    @cached_property
    def pixels(self) -> Tensor:
        """The preprocessed images (B, 3, R, R), read when they are first asked for."""
        return self._read()

    def features(self, model: CLIP) -> Tensor:
        """Return unit features (B, d) of a CLIP; those of a frozen tower are computed once."""
        if any(parameter.requires_grad for parameter in model.visual.parameters()):
            return unit_features(model, self.pixels)
        return self._kept(model)

    def parts(self, count: int) -> list[Images]:
        """Divide the images as ``Tensor.tensor_split`` does."""

        def part(number: int) -> Images:
            return Images(
                lambda: self.pixels.tensor_split(count)[number],
                lambda model: self._kept(model).tensor_split(count)[number],
            )

        return [part(number) for number in range(count)]


View = Tensor | Images


def pixels_of(images: View) -> Tensor:
    return images.pixels if isinstance(images, Images) else images


def parts_of(images: View, count: int) -> Sequence[View]:
    """Divide the images of a view into so many parts, as ``Tensor.tensor_split`` does."""
    return images.parts(count) if isinstance(images, Images) else images.tensor_split(count)


def unit_features(
    model: CLIP, pixels: Tensor, layers: Layers = (), through_ln_pre: bool = True
) -> Tensor:
    """Return unit image features (B, d), fp32; arguments as for ``CLIP.encode_image``."""
    features = model.encode_image(pixels, layers, through_ln_pre)
    return F.normalize(features.float(), dim=-1)


def is_untouched(layers: Layers) -> bool:
    """Return whether nothing is done to any layer."""
    return all(layer.is_untouched for layer in as_layers(layers, len(layers), "vision"))


class FrozenFeatures:
    """Features (N, views, d) of some images by frozen CLIPs, read from a store or computed once.

    Args:
        store: where they are kept.
        method: says the types to compute in, and the device.
        loader: makes a loader of the images in a fixed order; its last batch may be filled up.
        count: of the images.
        key: returns what the features depend on besides CLIP, types and machine; None where an
            image cannot be read, which loading reports.
        about: what a list of the store's entries is to say of these.
    """

    def __init__(
        self,
        store: FeatureStore,
        method: Any,
        loader: Callable[[], Any],
        count: int,
        key: Callable[[], Mapping[str, Any] | None],
        about: Mapping[str, str],
    ):
        self._store, self._method, self._about = store, method, about
        self._loader, self._count, self._key = loader, count, key
        self._found: dict[CLIP, Tensor] = {}

    def of(self, model: CLIP) -> Tensor:
        """Return the unit features of a frozen CLIP, fp32, on the CPU."""
        if model not in self._found:
            compute = partial(self._compute, model)
            images = self._key() if self._store.budget > 0 else None
            if images is None:
                self._found[model] = compute()
            else:
                key = {**images, **self._key_of(model)}
                about = {**self._about, "type": str(model.dtype).removeprefix("torch.")}
                if model is not self._method.clip:
                    about["backbone"] = "a teacher"
                self._found[model] = self._store.read_or_make(key, about, compute)
        return self._found[model]

    def _key_of(self, model: CLIP) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "code": CODE,
            "model": str(model.config),
            "compiled": [tower.compiled for tower in model.transformers[1:]],  # not of the text
            "weights": tensors_digest(model.visual.state_dict()),
            "autocast": str(self._method.autocast_dtype),
            "machine": machine_of(self._method.device),
        }

    @torch.no_grad()
    def _compute(self, model: CLIP) -> Tensor:
        device, parts = self._method.device, []
        log.info(f"Computing image features, once: {self._about['images']}")
        for batch in self._loader():
            with self._method.autocast():
                rows = [unit_features(model, pixels_of(v)).cpu() for v in views_in(batch, device)]
            parts.append(torch.stack(rows, dim=1))
        return torch.cat(parts)[: self._count]


class LazyBatch(dict[str, Any]):
    """A batch as its loader makes it, but that "img" is read when it is asked for."""

    def __init__(self, facts: Mapping[str, Any], read: Callable[[], Any]):
        super().__init__(facts)
        self._read_images = read

    def __missing__(self, name: str) -> Any:
        if name != "img":
            raise KeyError(name)
        self[name] = images = self._read_images()
        return images


class LoaderWithFeatures:
    """The batches of a loader, with ``images`` (a list of ``Images``, one a view) in each.

    As long as nobody asks for pixels, none are read. From the first batch of which somebody does
    on, the loader's processes read them beforehand, in this pass and in later ones. Random numbers
    are drawn as by the loader itself.

    Args:
        loader: one of ``build_data_loader``.
        n_views: of each image in a batch.
        device: where pixels and features are wanted.

    Attributes:
        reads: whether pixels have been asked for.
        frozen: the features; set before a pass.
    """

    frozen: FrozenFeatures

    def __init__(self, loader: Loader, n_views: int, device: torch.device):
        self.loader, self.n_views, self.device = loader, n_views, device
        self.reads = False

    def __len__(self) -> int:
        return len(self.loader)

    @property
    def batch_sampler(self) -> Any:
        return self.loader.batch_sampler

    def of_this_process(self) -> LoaderWithFeatures:
        """Return a loader of this process's share of the batches, with the same features."""
        own = LoaderWithFeatures(self.loader.of_this_process(), self.n_views, self.device)
        own.frozen, own.reads = self.frozen, self.reads
        return own

    def __iter__(self) -> Iterator[Any]:
        if self.reads:
            yield from map(self._with_images, self.loader)
            return
        # what an iterator of the loader draws
        torch.empty((), dtype=torch.int64).random_(generator=self.loader.generator)
        batches: list[list[int]] = list(self.loader.batch_sampler)  # type: ignore[arg-type]
        for number, indices in enumerate(batches):
            if self.reads:
                rest = loader_of_batches(self.loader, batches[number:])
                yield from map(self._with_images, rest)
                return
            yield self._lazy(indices)

    def _lazy(self, indices: Sequence[int]) -> LazyBatch:
        dataset: Any = self.loader.dataset

        def read() -> Any:
            self.reads = True
            return self.loader.collate_fn([dataset[index] for index in indices])["img"]

        facts = [dataset.without_image(index) for index in indices]
        return self._with_images(LazyBatch(self.loader.collate_fn(facts), read))

    def _with_images(self, batch: Any) -> Any:
        frozen, index = self.frozen, batch["index"]

        def pixels(view: int) -> Tensor:
            images = batch["img"]
            images = images[view] if isinstance(images, list) else images
            return images.to(self.device, non_blocking=True)

        def features(view: int, model: CLIP) -> Tensor:
            return frozen.of(model)[index, view].to(self.device, non_blocking=True)

        batch["images"] = [
            Images(partial(pixels, view), partial(features, view)) for view in range(self.n_views)
        ]
        return batch


def views_in(batch: Mapping[str, Any], device: torch.device) -> list[View]:
    """Return what a batch has of its images, one for each view."""
    if "images" in batch:
        return list(batch["images"])
    images = batch["img"]
    views = images if isinstance(images, list) else [images]
    return [view.to(device, non_blocking=True) for view in views]


def features_dir(cfg: Any) -> str:
    """Return the folder of the features of the config's runs."""
    folder = cfg.DATALOADER.FEATURES_DIR or os.path.join(cfg.DATASET.ROOT, FOLDER)
    return os.path.abspath(os.path.expanduser(folder))


def check_features_dir(cfg: Any) -> None:
    """Raise ``UserError`` where the folder of the features is a file."""
    folder = features_dir(cfg)
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise UserError(f"DATALOADER.FEATURES_DIR: expected a folder, got the file '{folder}'")


class FeatureCache:
    """Gives the loaders of a run the features of its frozen towers.

    Args:
        cfg: the config.
        method: what is trained and evaluated.
    """

    def __init__(self, cfg: Any, method: Any):
        self._cfg, self._method = cfg, method
        self._root = os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))
        self.store = FeatureStore(features_dir(cfg), cfg.DATALOADER.FEATURES_MB * 2**20)
        self._loaders: dict[Any, LoaderWithFeatures] = {}
        self._frozen: dict[Any, FrozenFeatures] = {}
        self._names: list[str] = []  # of the training images

    def of_test(self, loader: Any, split: str) -> Any:
        """Return a loader with features; the loader itself where it can have none.

        That is where nothing is to be kept, the images come in random order, so that each pass has
        other batches, or they are those of a dataset wrapper of one's own.

        Args:
            loader: of the images in the test transform.
            split: what to call them.
        """
        is_plain = type(loader.dataset) is DatasetWrapper
        in_order = is_plain and isinstance(loader.sampler, SequentialSampler)
        if self.store.budget == 0 or not in_order:
            return loader
        found = self._with_features(loader, 1)
        kept = self._method.kept
        found.reads = found.reads or not (kept is None or is_untouched(kept[0].vision))
        if loader not in self._frozen:

            def key() -> dict[str, Any] | None:
                return self._images_key(loader, batch=loader.batch_size)

            batches = partial(loader_of_batches, loader, list(loader.batch_sampler))
            self._frozen[loader] = self._features(batches, key, loader, split)
        found.frozen = self._frozen[loader]
        return found

    def of_view(self, loader: Any, view: int) -> Any:
        """Return the training loader with features, for an epoch that sees this view of the images.

        A view is drawn from SEED, the image's path in DATASET.ROOT and the view's number. Its
        features are computed in batches as large as those of the test, the last one filled up, as
        the bits of a feature may depend on the number of images beside it.
        """
        cfg, items = self._cfg, loader.dataset.data_source
        n_views, size = cfg.DATALOADER.K_TRANSFORMS, cfg.DATALOADER.TEST.BATCH_SIZE
        size = min(size, len(items))
        if len(self._names) != len(items):
            paths = (os.path.relpath(item.impath, self._root) for item in items)
            self._names = [Path(path).as_posix() for path in paths]
        names = self._names

        def seed_of(index: int) -> int:
            return view_seed(cfg.SEED, names[index], view)

        loader.batch_sampler.sampler.seed_of = seed_of
        found = self._with_features(loader, n_views)
        if view not in self._frozen:
            indices = [SeededIndex.of(index, seed_of(index)) for index in range(len(items))]
            indices += indices[: -len(items) % size]
            batches = [indices[start : start + size] for start in range(0, len(indices), size)]

            def key() -> dict[str, Any] | None:
                drawn = {"names": names, "seed": cfg.SEED, "view": view, "views": n_views}
                return self._images_key(loader, batch=size, input=to_dict(cfg.INPUT), **drawn)

            make = partial(loader_of_batches, loader, batches)
            self._frozen[view] = self._features(make, key, loader, f"training, view {view}")
        found.frozen = self._frozen[view]
        return found

    def _with_features(self, loader: Any, n_views: int) -> LoaderWithFeatures:
        if loader not in self._loaders:
            self._loaders[loader] = LoaderWithFeatures(loader, n_views, self._method.device)
        return self._loaders[loader]

    def _features(
        self, batches: Callable[[], Any], key: Callable[[], Any], loader: Any, split: str
    ) -> FrozenFeatures:
        cfg = self._cfg
        about = {
            "images": f"{len(loader.dataset)} of {cfg.DATASET.NAME}, {split}",
            "backbone": cfg.MODEL.BACKBONE.NAME,
        }
        return FrozenFeatures(self.store, self._method, batches, len(loader.dataset), key, about)

    def _images_key(self, loader: Any, **others: Any) -> dict[str, Any] | None:
        dataset = loader.dataset
        files = self.store.contents([item.impath for item in dataset.data_source])
        if files is None:
            return None
        settings = self._cfg.INPUT
        read = {"upright": settings.UPRIGHT, "max_pixels": settings.MAX_PIXELS}
        return {"files": files, "transform": str(dataset.transform), **read, **others}
