"""An exported network beside the run that it is of: the same pictures, both logits."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from dassl.engine.progress import shows_bar
from dassl.engine.same_run import settings_in
from dassl.errors import UserError
from dassl.evaluation.predictions import PREDICTIONS_FILE, read_predictions
from inference.classifier import Classifier
from inference.classify import pixels
from inference.pictures import decoded, pictures_in

BATCH_SIZE = 32
N_RANDOM = 64


def preprocessing_of(classifier: Classifier) -> dict[str, Any]:
    """Return what ``classify.pixels`` is to do with a picture."""
    settings = classifier.cfg.INPUT
    return {
        "size": classifier.method.clip.preprocess.size,
        "interpolation": settings.INTERPOLATION,
        "upright": settings.UPRIGHT,
    }


class Pictures(NamedTuple):
    """Pictures to compare on.

    Attributes:
        entries: paths, or pixels.
        labels: their classes by number, where these are known.
        what: a description.
    """

    entries: Sequence[Any]
    labels: Sequence[int] | None
    what: str


def pictures_of(folder: str, check: str, classifier: Classifier) -> Pictures:
    """Find the pictures to compare on.

    Args:
        folder: of the run.
        check: a folder of pictures, or "".
        classifier: of the run.

    Raises:
        UserError: there are none in ``check``, or one that cannot be read, or the run's predictions
            are damaged.
    """
    if check:
        paths = [path for path, _ in pictures_in(check)]
        if not paths:
            raise UserError(f"--check: expected a folder with pictures, got '{check}'")
        for path in paths:
            decoded(path, path, classifier.cfg)
        return Pictures(paths, None, f"{len(paths)} pictures in '{check}'")
    file = os.path.join(folder, PREDICTIONS_FILE)
    if os.path.isfile(file):
        found = read_predictions(file)
        root = os.path.expanduser((settings_in(folder) or {}).get("DATASET", {}).get("ROOT", ""))
        paths = [os.path.join(root, path) for path in found.paths.tolist()]
        if paths and all(map(os.path.isfile, paths)):
            is_same = found.class_names.tolist() == classifier.labels
            labels = found.labels.tolist() if is_same else None
            return Pictures(paths, labels, f"all {len(paths)} test pictures")
    size = classifier.method.clip.preprocess.size
    noise = np.random.RandomState(0).randint(0, 256, (N_RANDOM, size, size, 3)).astype(np.uint8)
    what = f"{N_RANDOM} random pictures, as the test pictures are not there (--check names others)"
    return Pictures(list(noise), None, what)


class Comparison(NamedTuple):
    """How networks do on some pictures.

    Attributes:
        difference: for each network, the largest one of its logits from the run's, relative to the
            picture's largest, or to 1.
        same: share of pictures that each network takes for the same class as the run does.
        accuracy: of the run and of each network; None where the classes are not known.
    """

    difference: list[float]
    same: list[float]
    accuracy: list[float] | None


def compare(
    classifier: Classifier, networks: Sequence[Callable[[Any], Any]], pictures: Pictures
) -> Comparison:
    """Compare the logits of networks with those of a classifier; the first batch is one picture.

    Raises:
        UserError: a picture cannot be read.
    """
    about, entries = preprocessing_of(classifier), pictures.entries
    differences = np.zeros(len(networks))
    chosen = []
    with tqdm(total=len(entries), unit="picture", disable=not shows_bar()) as bar:
        for start in (0, *range(1, len(entries), BATCH_SIZE)):
            part = entries[start : start + (BATCH_SIZE if start else 1)]
            # decoded pictures without EXIF data, by which they would be turned again
            images = [
                Image.fromarray(np.asarray(decoded(picture, name, classifier.cfg)))
                for name, picture in pictures_in(part)
            ]
            tensors = torch.stack([classifier.preprocess(image) for image in images])
            expected = classifier.logits(tensors).numpy()
            batch = np.stack([pixels(image, **about) for image in images])
            scale = np.maximum(1, abs(expected).max(axis=1, keepdims=True))
            rows = [expected.argmax(axis=1)]
            for i, network in enumerate(networks):
                found = network(batch)[0]
                differences[i] = np.maximum(differences[i], (abs(found - expected) / scale).max())
                rows.append(found.argmax(axis=1))
            chosen.append(np.stack(rows))
            bar.update(len(part))
    classes = np.concatenate(chosen, axis=1)
    same = (classes[1:] == classes[0]).mean(axis=1).tolist()
    if pictures.labels is None:
        return Comparison(differences.tolist(), same, None)
    accuracy = (classes == np.array(pictures.labels)).mean(axis=1).tolist()
    return Comparison(differences.tolist(), same, accuracy)
