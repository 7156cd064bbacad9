"""The order in which images are drawn. All randomness is Python's or torch's global one."""

from __future__ import annotations

import hashlib
import os
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import BatchSampler, RandomSampler, Sampler, SequentialSampler

from dassl import distributed
from dassl.data.datasets import Datum
from dassl.errors import UserError, check_choice
from dassl.utils.tools import keep_random

SAMPLERS = (
    "RandomSampler",
    "SequentialSampler",
    "RandomDomainSampler",
    "SeqDomainSampler",
    "RandomClassSampler",
)


# Those that visit each image exactly once, as a test must.
TEST_SAMPLERS = ("SequentialSampler", "RandomSampler")
DOMAIN_SAMPLERS = ("RandomDomainSampler", "SeqDomainSampler")


class _DrawnSampler(Sampler[int]):
    """Draws whole batches until too few images are left for another one.

    How many batches that takes is a matter of chance. All epochs have as many as a first one, as
    learning rates change after the last batch: a shorter epoch is drawn again, a longer one cut.
    """

    def draw(self) -> list[int]:
        raise NotImplementedError

    def count(self) -> None:
        """Set the length; the draws do not disturb the caller's."""
        with keep_random():
            self.length = len(self.draw())

    def __iter__(self) -> Iterator[int]:
        order = self.draw()
        while len(order) < self.length:
            order = self.draw()
        return iter(order[: self.length])

    def __len__(self) -> int:
        return self.length


class _DomainSampler(_DrawnSampler):
    """Batches of ``n_domain`` domains with the same number of images each, no image twice.

    An epoch ends when a domain that was drawn from has too few images left for another batch.
    """

    def __init__(self, data_source: Sequence[Datum], batch_size: int, n_domain: int) -> None:
        self.domain_dict: dict[int, list[int]] = defaultdict(list)
        for index, item in enumerate(data_source):
            self.domain_dict[item.domain].append(index)
        self.domains = list(self.domain_dict)
        self.n_domain = n_domain if n_domain > 0 else len(self.domains)
        name = type(self).__name__
        if self.n_domain > len(self.domains):
            raise UserError(
                f"DATALOADER.TRAIN_X.N_DOMAIN: expected at most {len(self.domains)}, the number "
                f"of domains, for {name}, got {self.n_domain}"
            )
        if batch_size % self.n_domain:
            raise UserError(
                f"DATALOADER.TRAIN_X.BATCH_SIZE: expected a multiple of {self.n_domain}, the "
                f"number of domains, for {name}, got {batch_size}"
            )
        self.n_img_per_domain = batch_size // self.n_domain
        smallest = min(len(indices) for indices in self.domain_dict.values())
        if smallest < self.n_img_per_domain:
            raise UserError(
                f"DATALOADER.TRAIN_X.BATCH_SIZE: expected at most {smallest * self.n_domain} for "
                f"{name}, as the smallest domain has {smallest} images, got {batch_size}"
            )
        self.count()

    def choose_domains(self) -> list[int]:
        raise NotImplementedError

    def draw(self) -> list[int]:
        left = {domain: list(indices) for domain, indices in self.domain_dict.items()}
        order: list[int] = []
        enough = True
        while enough:
            for domain in self.choose_domains():
                chosen = random.sample(left[domain], self.n_img_per_domain)
                order.extend(chosen)
                taken = set(chosen)
                left[domain] = [index for index in left[domain] if index not in taken]
                enough = enough and len(left[domain]) >= self.n_img_per_domain
        return order


class RandomDomainSampler(_DomainSampler):
    """Each batch holds batch_size / n_domain images of each of ``n_domain`` random domains.

    Args:
        data_source: the images.
        batch_size: images per batch; a multiple of the number of domains.
        n_domain: domains per batch; 0 or less means all.
    """

    def choose_domains(self) -> list[int]:
        return random.sample(self.domains, self.n_domain)


class SeqDomainSampler(_DomainSampler):
    """Each batch holds the same number of random images of every domain, in the domains' order.

    Args:
        data_source: the images.
        batch_size: images per batch; a multiple of the number of domains.
    """

    def __init__(self, data_source: Sequence[Datum], batch_size: int) -> None:
        super().__init__(data_source, batch_size, n_domain=0)

    def choose_domains(self) -> list[int]:
        return sorted(self.domains)


class RandomClassSampler(_DrawnSampler):
    """Each batch holds ``n_ins`` images of each of batch_size / n_ins random classes.

    A class with fewer images than that repeats some. An epoch ends when too few classes are left.

    Args:
        data_source: the images.
        batch_size: images per batch.
        n_ins: images per class in a batch.
    """

    def __init__(self, data_source: Sequence[Datum], batch_size: int, n_ins: int) -> None:
        if not 1 <= n_ins <= batch_size:
            raise UserError(
                f"DATALOADER.TRAIN_X.N_INS: expected 1 to BATCH_SIZE {batch_size} for "
                f"RandomClassSampler, got {n_ins}"
            )
        if batch_size % n_ins:
            raise UserError(
                f"DATALOADER.TRAIN_X.BATCH_SIZE: expected a multiple of N_INS {n_ins} for "
                f"RandomClassSampler, got {batch_size}"
            )
        self.n_ins = n_ins
        self.ncls_per_batch = batch_size // n_ins
        self.index_dic: dict[int, list[int]] = defaultdict(list)
        for index, item in enumerate(data_source):
            self.index_dic[item.label].append(index)
        self.labels = list(self.index_dic)
        if len(self.labels) < self.ncls_per_batch:
            raise UserError(
                f"DATALOADER.TRAIN_X.BATCH_SIZE: expected at most {len(self.labels)} classes of "
                f"N_INS {n_ins} images each for RandomClassSampler, got {batch_size}"
            )
        self.count()

    def draw(self) -> list[int]:
        groups: dict[int, list[list[int]]] = {}
        for label, indices in self.index_dic.items():
            indices = list(indices)
            if len(indices) < self.n_ins:
                indices = random.choices(indices, k=self.n_ins)
            random.shuffle(indices)
            last = len(indices) - self.n_ins
            groups[label] = [
                indices[start : start + self.n_ins] for start in range(0, last + 1, self.n_ins)
            ]
        left = list(self.labels)
        order: list[int] = []
        while len(left) >= self.ncls_per_batch:
            for label in random.sample(left, self.ncls_per_batch):
                order.extend(groups[label].pop(0))
                if not groups[label]:
                    left.remove(label)
        return order


class SeededIndex(int):
    """An index that carries the seed of what is drawn for its image."""

    seed: int

    @classmethod
    def of(cls, number: int, seed: int) -> SeededIndex:
        """Make an index with a seed of 32 bits."""
        index = cls(number)
        index.seed = seed
        return index


def view_seed(seed: int, name: str, view: int) -> int:
    """Return the seed of an image's fixed view, which depends on nothing else: 32 bits.

    Args:
        seed: of the run.
        name: of the image, the same on all machines.
        view: its number, from 0.
    """
    digest = hashlib.sha256(f"{seed} {view} ".encode() + os.fsencode(name))
    return int.from_bytes(digest.digest()[:4], "big")


class SeededSampler(Sampler[int]):
    """The indices of a sampler as ``SeededIndex``, in the order of the public toolbox.

    There a torch ``DataLoader`` takes one number from torch's global generator when a pass begins,
    and its sampler the next one. Here the first of these gives the augmentation's seeds. Both are
    drawn before the first image, so that nothing depends on how far worker processes read ahead.

    Attributes:
        seed_of: gives the seed of an index in place of the one that is drawn all the same; None
            where the drawn ones count.
    """

    seed_of: Callable[[int], int] | None = None

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        indices = list(self.sampler)
        # numpy takes seeds of 32 bits
        seeds = torch.randint(2**32, (len(indices),), generator=generator).tolist()
        if self.seed_of is not None:
            seeds = [self.seed_of(index) for index in indices]
        for number, seed in zip(indices, seeds, strict=True):
            yield SeededIndex.of(number, seed)

    def __len__(self) -> int:
        return len(self.sampler)


class SharedBatches(BatchSampler):
    """Batches of which each of several processes has its share (``distributed.shares``)."""

    def __iter__(self) -> Iterator[list[int]]:
        return map(distributed.shares, super().__iter__())

    def size(self, number: int) -> int:
        """Return how many images all processes together have of a batch, counted from 0."""
        return min(self.batch_size, len(self.sampler) - number * self.batch_size)  # type: ignore[arg-type]


def build_sampler(
    sampler_type: str,
    cfg: Any = None,
    data_source: Sequence[Datum] = (),
    batch_size: int = 32,
    n_domain: int = 0,
    n_ins: int = 16,
) -> Sampler[int]:
    """Make the sampler of that name; ``cfg`` is there for the public call, and unused.

    Raises:
        UserError: the name is unknown, or the batch cannot be filled as the sampler promises.
    """
    check_choice("sampler", sampler_type, SAMPLERS)
    if sampler_type == "RandomSampler":
        return RandomSampler(data_source)  # type: ignore[arg-type]
    if sampler_type == "SequentialSampler":
        return SequentialSampler(data_source)  # type: ignore[arg-type]
    if sampler_type == "RandomDomainSampler":
        return RandomDomainSampler(data_source, batch_size, n_domain)
    if sampler_type == "SeqDomainSampler":
        return SeqDomainSampler(data_source, batch_size)
    return RandomClassSampler(data_source, batch_size, n_ins)
