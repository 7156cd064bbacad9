"""A trained run as a classifier of any pictures, for any class names that its method can take."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelHubMixin, hf_hub_download
from torch import Tensor
from tqdm import tqdm

from dassl.data.transforms import build_transform
from dassl.engine.classes_file import read_classes
from dassl.engine.progress import shows_bar
from dassl.engine.same_run import settings_in
from dassl.errors import UserError, writing
from dassl.utils import log
from dassl.utils.tools import ImageError
from inference import fit
from inference.build import build, load_checkpoint_of, part_of, settings_of
from inference.calibration import read_calibration, set_sizes
from inference.card import model_card
from inference.pictures import decoded, pictures_in
from inference.record import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Record,
    checked_names,
    give_learned,
    grouped,
    load_tensors,
    read_record,
    results_of,
    tensors_of,
    write_record,
    write_tensors,
)
from trainers.base import Method

BATCH_SIZE = 64
DECODERS = 8  # threads


@dataclass(frozen=True)
class Prediction:
    """What one picture was taken for.

    Attributes:
        image: its path, or "#0", "#1", ... by its place.
        labels: the most probable classes, the first of them first.
        probabilities: theirs.
        error: why there are none, in one line; "" where there are.
    """

    image: str
    labels: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str = ""

    @property
    def label(self) -> str | None:
        """The most probable class; None after an error."""
        return self.labels[0] if self.labels else None

    @property
    def probability(self) -> float | None:
        """That of ``label``."""
        return self.probabilities[0] if self.probabilities else None


class Classifier(ModelHubMixin):
    """Classifies pictures; made by ``fit``, ``from_run`` or ``from_pretrained``.

    All methods may be called from several threads at once. Each call uses the class names that
    were set when it began.

    Attributes:
        method: the method, in evaluation mode, whose class features are computed.
        record: what else there is to know; ``record.labels`` are the class names.
        cfg: the model's part of the run's config.
    """

    def __init__(self, method: Method, cfg: Any, record: Record) -> None:
        self.cfg = cfg
        self._state = method, record  # replaced as one, for other threads
        self._transform: Any = build_transform(cfg, is_train=False)

    @property
    def method(self) -> Method:
        return self._state[0]

    @property
    def record(self) -> Record:
        return self._state[1]

    @property
    def labels(self) -> list[str]:
        """The class names, in the order of the logits."""
        return list(self.record.labels)

    # Training ----------------------------------------------------------------------------------

    @classmethod
    def fit(
        cls,
        data: str | os.PathLike[str],
        method: str = "CoOp",
        *,
        output_dir: str | os.PathLike[str],
        shots: int = 16,
        seed: int = 1,
        backbone: str | os.PathLike[str] = "",
        root: str | os.PathLike[str] = "data",
        overrides: Mapping[str, Any] | None = None,
    ) -> Classifier:
        """Train a method on all classes and return what ``from_run(output_dir)`` does.

        It is the run that ``train.py`` makes of the method's few-shot config file: it resumes
        where it was stopped, is not repeated where it has finished, prints what that prints, and
        sets the random state of the process.

        Args:
            data: a folder of ``<class>/*``, or the name of a dataset.
            method: one with config files; one that learns nothing is evaluated.
            output_dir: folder of the run.
            shots: training pictures of each class; -1 for all.
            seed: of the run.
            backbone: name or weights file of the CLIP; "" for that of the config file.
            root: folder of the datasets, for a ``data`` that is a name.
            overrides: config keys and their values.

        Raises:
            UserError: an argument, a setting or the data is not usable, or ``output_dir`` has
                another run.
        """
        given = {} if overrides is None else overrides
        fit.run(fit.arguments_for(data, method, output_dir, shots, seed, backbone, root, given))
        return cls.from_run(output_dir)

    # Loading -----------------------------------------------------------------------------------

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        device: str | torch.device | None = None,
        precision: str | None = None,
    ) -> Classifier:
        """Load what a folder holds, a run or a saved classifier; arguments as for ``from_run``."""
        is_saved = os.path.isfile(os.path.join(folder, WEIGHTS_FILE))
        make = cls.from_pretrained if is_saved else cls.from_run
        return make(folder, device=device, precision=precision)

    @classmethod
    def from_run(
        cls,
        folder: str | os.PathLike[str],
        device: str | torch.device | None = None,
        precision: str | None = None,
    ) -> Classifier:
        """Load a finished run, with the class names of its training; no dataset is needed.

        Args:
            folder: of the run: of a training, or of the evaluation of a method that learns nothing.
            device: where to compute; a GPU where there is one by default.
            precision: fp32, bf16, fp16, amp or auto; that of the run by default.

        Raises:
            UserError: the folder is that of no such run, or a file in it or the backbone is
                missing or damaged.
        """
        folder = os.fspath(folder)
        if not os.path.isdir(folder):
            raise UserError(f"run '{folder}': expected an existing folder")
        config = settings_in(folder)
        if config is None:
            raise UserError(f"run '{folder}': expected a folder with config.yaml, got another")
        part = part_of(config, folder)
        classes = read_classes(folder)
        cfg = settings_of(part, folder)
        labels = checked_names(classes.class_names, f"class names of '{folder}'")
        record = Record(part, classes, labels, read_calibration(folder), results_of(folder))
        method = build(cfg, classes, labels, device, precision)
        load_checkpoint_of(method, classes, folder)
        method.keep_classes()
        return cls(method, cfg, record)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, place: str | os.PathLike[str], **options: Any
    ) -> Classifier:
        """Load what ``save_pretrained`` or ``push_to_hub`` left.

        Args:
            place: a folder, or the name of a repository on the Hub.
            options: ``device`` and ``precision`` as for ``from_run``, and those of
                huggingface_hub's ``from_pretrained``, such as ``revision`` and ``token``.

        Raises:
            UserError: as for ``from_run``, or the Hub cannot be reached or refuses.
        """
        place = os.fspath(place)
        if os.path.isdir(place):
            read_record(os.path.join(place, CONFIG_FILE))  # huggingface_hub reads it unchecked
            return super().from_pretrained(place, **options)
        with _one_line(f"cannot load '{place}', which is no folder, from the Hub"):
            return super().from_pretrained(place, **options)

    @classmethod
    def _from_pretrained(  # type: ignore[override]
        cls,
        *,
        model_id: str,
        device: str | torch.device | None = None,
        precision: str | None = None,
        **options: Any,
    ) -> Classifier:
        def path_of(name: str) -> str:
            if os.path.isdir(model_id):
                return os.path.join(model_id, name)
            return hf_hub_download(model_id, name, **options)

        record = read_record(path_of(CONFIG_FILE))
        weights = path_of(WEIGHTS_FILE)
        cfg = settings_of(record.config, model_id)
        method = build(cfg, record.classes, record.labels, device, precision)
        load_tensors(method, weights)
        return cls(method, cfg, record)

    @contextmanager
    def on(
        self, device: str | torch.device | None = None, precision: str | None = None
    ) -> Iterator[Classifier]:
        """Yield this classifier on another device, or in another precision, for a block.

        This one stays as it is, for other threads, too.

        Args:
            device: where to compute; where this one does by default.
            precision: as for ``from_run``.

        Raises:
            UserError: there is no such device or precision.
        """
        method, record = self._state
        place = method.device if device is None else device
        other = build(self.cfg, record.classes, record.labels, place, precision)
        give_learned(other, grouped(tensors_of(method), "classifier"), "classifier")
        other.keep_classes()
        yield Classifier(other, self.cfg, record)

    # Saving ------------------------------------------------------------------------------------

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | Path, **options: Any
    ) -> str | None:
        """Write config.json, model.safetensors and README.md, if there is none yet, to a folder.

        Args:
            save_directory: the folder; made where it is missing.
            options: those of huggingface_hub's ``save_pretrained``; ``model_card_kwargs`` may name
                another ``license`` than "mit".

        Raises:
            UserError: it cannot be written.
        """
        with writing(f"'{save_directory}'"):
            return super().save_pretrained(save_directory, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        method, record = self._state
        write_tensors(tensors_of(method), str(save_directory / WEIGHTS_FILE))
        write_record(record, str(save_directory / CONFIG_FILE))

    def push_to_hub(self, repo_id: str, **options: Any) -> str:  # type: ignore[override]
        """Upload what ``save_pretrained`` writes to a repository; return its address.

        Args:
            repo_id: such as "name/model".
            options: those of huggingface_hub's ``push_to_hub``, such as ``private``.

        Raises:
            UserError: the Hub cannot be reached or refuses.
        """
        card = {"repository": repo_id, **(options.pop("model_card_kwargs", None) or {})}
        with _one_line(f"cannot upload to '{repo_id}'"):
            return super().push_to_hub(repo_id, model_card_kwargs=card, **options)

    def generate_model_card(self, *args: Any, **options: Any) -> ModelCard:
        """Write the model card; ``options`` are those of ``model_card``."""
        return model_card(self.record, self.sets_classes, **options)

    # Classes -----------------------------------------------------------------------------------

    @property
    def sets_classes(self) -> bool:
        """Whether other class names can be set: not where what is learned serves only some."""
        return not self.method.bound_to_classes(self.method.settings)

    def set_classes(
        self, names: Sequence[str], descriptions: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        """Tell these classes apart from now on; their text features are computed here, once.

        A temperature that was fitted stays, though it was fitted to the classes of the training.

        Args:
            names: K of them.
            descriptions: sentences {class name: [sentences]} for a method that compares with some;
                those of the run need not be given again.

        Raises:
            UserError: a name is not usable, has no sentences or does not fit, or the method is
                bound to its classes. Nothing is changed then.
        """
        self._state = self.with_classes(names, descriptions)._state

    def with_classes(
        self, names: Sequence[str], descriptions: Mapping[str, Sequence[str]] | None = None
    ) -> Classifier:
        """Return another classifier for these classes, which shares all tensors but theirs.

        Arguments and errors are those of ``set_classes``.
        """
        labels = checked_names(names, "class names")
        before, record = self._state
        name = type(before).__name__
        if not self.sets_classes and labels != record.labels:
            raise UserError(
                f"class names: expected the {len(record.labels)} that {name} was trained on, as "
                "what it has learned serves only these, got others"
            )
        method = _twin(before)
        given = _checked_descriptions(descriptions)
        method.given, method.described = {**record.classes.descriptions, **given}, {}
        method.set_classes(labels)
        if given and not method.described:
            raise UserError(f"descriptions: expected none, as {name} does not use any, got some")
        method.keep_classes()
        described = record.classes.descriptions
        known = {**described, **method.described}
        classes = record.classes._replace(descriptions=known)
        calibration = record.calibration
        if any(known.get(name) != described.get(name) for name in record.classes.class_names):
            calibration = replace(calibration, thresholds={})  # these were of other features
        record = replace(record, classes=classes, labels=labels, calibration=calibration)
        other = copy.copy(self)
        other._state = method, record
        return other

    # Pictures ----------------------------------------------------------------------------------

    def predict(
        self,
        images: Any,
        top: int = 5,
        batch_size: int = BATCH_SIZE,
        progress: bool | None = None,
        coverage: float | None = None,
    ) -> list[Prediction]:
        """Classify pictures; one that cannot be read has an error in its place.

        Args:
            images: as for ``stream``.
            top: number of classes to return for each.
            batch_size: number of pictures that are computed at once.
            progress: whether to show a bar; by default on a terminal.
            coverage: return as many classes as it takes to have the true one among them with this
                probability, instead of ``top``; one that the run was calibrated for.

        Raises:
            UserError: an argument is not usable.
        """
        stream = self.stream(images, top, batch_size, coverage)
        hidden = not shows_bar() if progress is None else not progress
        bar = tqdm(stream, unit="picture", disable=hidden)
        return list(bar)

    def stream(
        self,
        images: Any,
        top: int = 5,
        batch_size: int = BATCH_SIZE,
        coverage: float | None = None,
    ) -> Iterator[Prediction]:
        """Do what ``predict`` does, a batch at a time: any number of pictures takes no memory.

        Args:
            images: a path of a file or of a folder (whose image files at any depth are taken),
                bytes of a file, a PIL image, an array (H, W), (H, W, C) or (N, H, W, C) or a tensor
                (C, H, W) or (N, C, H, W) of whole numbers of 8 bits or of fractions, or an iterable
                of these.
            top, batch_size, coverage: as for ``predict``.
        """
        for name, value in (("top", top), ("batch_size", batch_size)):
            if type(value) is not int or value < 1:
                raise UserError(f"{name}: expected a whole number above 0, got {value!r}")
        self.record.threshold(coverage)
        return self._stream(images, top, batch_size, coverage)

    def _stream(
        self, images: Any, top: int, batch_size: int, coverage: float | None
    ) -> Iterator[Prediction]:
        method, record = self._state
        least = record.threshold(coverage)
        for names, pictures in self._batches(images, batch_size):
            found = self.probabilities(_forward(method, pictures), record.temperature)
            sizes = None if least is None else iter(set_sizes(found, least).tolist())
            rows = iter(found)
            for name, picture in zip(names, pictures, strict=True):
                if isinstance(picture, Tensor):
                    count = top if sizes is None else next(sizes)
                    yield prediction_of(name, next(rows), record.labels, count)
                else:
                    yield Prediction(name, error=picture)

    def features(self, images: Any, batch_size: int = BATCH_SIZE) -> Tensor:
        """Return unit image features (N, d), fp32, on the CPU.

        The row of a picture that cannot be read is not a number; a warning says why.
        """
        method = self.method
        rows = []
        for _, pictures in self._batches(images, batch_size):
            found = iter(_forward(method, pictures, of="image"))
            for picture in pictures:
                if isinstance(picture, Tensor):
                    rows.append(next(found))
                else:
                    log.warning(picture)
                    rows.append(torch.full((method.clip.config.embed_dim,), torch.nan))
        return torch.stack(rows) if rows else torch.empty(0, method.clip.config.embed_dim)

    def preprocess(self, picture: Any, name: str = "#0") -> Tensor:
        """Return a single picture as the model takes it (3, R, R), as in the run's test.

        Raises:
            ImageError: it cannot be read.
        """
        if isinstance(picture, os.PathLike):
            picture = os.fsdecode(picture)
        return self._transform(decoded(picture, name, self.cfg))

    def logits(self, pictures: Tensor) -> Tensor:
        """Return logits (B, K), fp32, on the CPU, of preprocessed pictures (B, 3, R, R)."""
        return _forward(self.method, list(pictures))

    def probabilities(self, logits: Tensor, temperature: float | None = None) -> Tensor:
        """Return the softmax (B, K) of logits at a temperature, by default the classifier's."""
        temperature = self.record.temperature if temperature is None else temperature
        return (logits.double() / temperature).softmax(dim=1)

    def _batches(
        self, images: Any, batch_size: int
    ) -> Iterator[tuple[list[str], list[Tensor | str]]]:
        """Yield names, and preprocessed pictures or why there is none, a batch at a time."""

        def read(entry: tuple[str, Any]) -> Tensor | str:
            try:
                return self.preprocess(entry[1], entry[0])
            except ImageError as error:
                return str(error)

        entries = pictures_in(images)
        with ThreadPoolExecutor(DECODERS) as pool:
            while batch := list(islice(entries, batch_size)):
                yield [name for name, _ in batch], list(pool.map(read, batch))


def _forward(method: Method, pictures: Sequence[Tensor | str], of: str = "") -> Tensor:
    """Return logits (B, K), or the features ``of``, of those pictures that there are."""
    tensors = [picture for picture in pictures if isinstance(picture, Tensor)]
    if not tensors:
        return torch.empty(0, len(method.class_names))
    batch = torch.stack(tensors).to(method.device)
    with torch.no_grad():
        if not of:
            return method(batch).float().cpu()
        with method.autocast():
            return method.features(batch)[of].float().cpu()


def prediction_of(name: str, row: Tensor, labels: Sequence[str], top: int) -> Prediction:
    """Name the most probable classes of a picture, of equals the first one first."""
    if not row.isfinite().all():
        return Prediction(name, error=f"image '{name}': its logits are not finite")
    order = row.argsort(descending=True, stable=True)[:top].tolist()
    return Prediction(name, tuple(labels[k] for k in order), tuple(row[order].tolist()))


def _twin(method: Method) -> Method:
    """Return a method with the same tensors, whose classes are set for itself alone."""
    twin = copy.copy(method)
    for part in ("_parameters", "_buffers", "_modules"):
        twin.__dict__[part] = dict(method.__dict__[part])
    return twin


def _checked_descriptions(descriptions: Any) -> dict[str, list[str]]:
    """Return descriptions as plain lists; those of another form are a ``UserError``."""
    given = {} if descriptions is None else descriptions
    is_usable = isinstance(given, Mapping) and all(
        isinstance(name, str)
        and isinstance(texts, (list, tuple))
        and all(isinstance(text, str) and text.strip() for text in texts)
        for name, texts in given.items()
    )
    if not is_usable:
        raise UserError("descriptions: expected {class name: [sentences]}, got another form")
    return {name: list(texts) for name, texts in given.items()}


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into a ``UserError``."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError) as error:  # the families of its errors
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{what}: {reason[:500]}") from error
