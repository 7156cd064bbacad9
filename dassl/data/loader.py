"""A ``DataLoader`` that says in one line that too many files are open."""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from multiprocessing import util
from multiprocessing.queues import Queue
from typing import Any

from torch.utils.data import DataLoader, Sampler
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from dassl import distributed
from dassl.errors import UserError

# How the end of the files shows in the process that loads: what workers put out are open files, and
# one that does not arrive has many names.
_SIGNS = ("Too many open files", "items of ancdata", f"exit code {errno.EMFILE}.")


class _Batches(_MultiProcessingDataLoaderIter):
    """torch's iterator, which ends its workers without a traceback in whatever state it is.

    It may have been made in part, and a worker may fail while all of them are told to end.
    """

    # what torch's own ``__init__`` sets, after what may fail
    _shutdown = True
    _workers_done_event: Any = threading.Event()
    _workers: Any = ()
    _index_queues: Any = ()

    def __init__(self, loader: Loader) -> None:
        self._workers_status = [True] * loader.num_workers
        super().__init__(loader)

    def _shutdown_workers(self) -> None:
        with suppress(OSError, RuntimeError):  # the loading process knows, or has what it needs
            super()._shutdown_workers()


class _EveryNth(Sampler[Any]):
    """Every n-th batch of another sampler, from one of them on."""

    def __init__(self, batches: Any, first: int, n: int) -> None:
        self.batches, self.first, self.n = batches, first, n

    def __iter__(self) -> Iterator[Any]:
        return islice(self.batches, self.first, None, self.n)

    def __len__(self) -> int:
        return len(range(self.first, len(self.batches), self.n))


class Loader(DataLoader[Any]):
    """A ``DataLoader`` that raises ``UserError`` where it or a worker has too many files open."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.worker_init_fn = _end_without_files

    def of_this_process(self) -> Loader:
        """Return a loader of every n-th batch, from the one of this process's number on."""
        n, first = distributed.count(), distributed.rank()
        return Loader(
            self.dataset,
            batch_sampler=_EveryNth(self.batch_sampler, first, n),
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            multiprocessing_context=self.multiprocessing_context,
        )

    def _get_iterator(self) -> Any:
        return _Batches(self) if self.num_workers > 0 else super()._get_iterator()

    def check_worker_number_rationality(self) -> None:
        """Leave out torch's warning where there are fewer cores; it would come in each epoch."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches: Any = None
        try:
            batches = super().__iter__()
            yield from batches
            return
        except (OSError, EOFError, RuntimeError) as error:
            if not _tells_of_files(error) and not _lost(error, getattr(batches, "_workers", ())):
                raise
        # Raised without the other error, which would keep the workers.
        self._iterator = batches = None
        raise UserError(
            "DATALOADER.NUM_WORKERS: expected no more than the limit of open files (ulimit -n) "
            f"allows, got {self.num_workers}"
        )


def _lost(error: Exception, workers: Sequence[Any]) -> bool:
    """Return whether a batch did not arrive because a worker has too many files open.

    Raises:
        RuntimeError: torch's, if a worker was killed.
    """
    if not isinstance(error, (ConnectionError, EOFError, FileNotFoundError)):
        return False
    try:
        for worker in workers:
            worker.join(1)  # as one ends, torch raises an error with its exit code
    except RuntimeError as ended:
        if not _tells_of_files(ended):
            raise
        return True
    ends = [worker.exitcode for worker in workers]
    return errno.EMFILE in ends or isinstance(error, EOFError)


def _tells_of_files(error: BaseException) -> bool:
    return any(sign in f"{error} {error.__cause__}" for sign in _SIGNS)


def _end_without_files(number: int) -> None:
    """Let a worker end where a thread of its own cannot open a file.

    Such a thread would print the same traceback for good, or drop a batch that is then waited for.
    """
    others, feeder = sys.excepthook, Queue._on_queue_feeder_error  # type: ignore[attr-defined]
    remove = util._remove_temp_dir  # type: ignore[attr-defined]

    def uncaught(kind: Any, error: Any, traceback: Any) -> None:
        if _tells_of_files(error):
            os._exit(errno.EMFILE)
        if not isinstance(error, ConnectionError):  # the loading process has given up, and says so
            others(kind, error, traceback)

    def unsent(error: Exception, batch: Any) -> None:
        if _tells_of_files(error):
            os._exit(errno.EMFILE)
        feeder(error, batch)

    def leave(*folder: Any) -> None:
        with suppress(OSError):  # to look into the folder takes an open file, too
            remove(*folder)

    util._remove_temp_dir = leave  # type: ignore[attr-defined]
    sys.excepthook = uncaught
    Queue._on_queue_feeder_error = staticmethod(unsent)  # type: ignore[attr-defined]
