"""One thread that runs a model for any number of callers, in batches of what is waiting."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from threading import Thread

import torch
from torch import Tensor

Entry = tuple[Tensor, "Future[Tensor]"]


class Batcher:
    """Computes a row for each picture that is submitted, in the order of submission.

    Nobody waits for a batch to fill: the thread takes what is there when it has finished the one
    before.

    Args:
        compute: returns rows (B, K) for pictures (B, 3, R, R); called from that thread alone.
        size: the largest batch.
    """

    def __init__(self, compute: Callable[[Tensor], Tensor], size: int) -> None:
        self.compute, self.size = compute, size
        self._waiting: SimpleQueue[Entry | None] = SimpleQueue()  # None ends the thread
        self._thread = Thread(target=self._work, name="batches", daemon=True)
        self._thread.start()

    def submit(self, picture: Tensor) -> Future[Tensor]:
        """Return what will be the row (K,) of a picture (3, R, R); cancelled, it is not computed.

        What ``compute`` raises for a batch is raised by each of its futures.
        """
        future: Future[Tensor] = Future()
        self._waiting.put((picture, future))
        return future

    def close(self) -> None:
        """Wait until all that was submitted is computed, and end the thread."""
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        entries: list[Entry | None] = []
        while None not in entries:
            entries = self._taken()
            self._answer([entry for entry in entries if entry is not None])

    def _taken(self) -> list[Entry | None]:
        entries = [self._waiting.get()]
        while len(entries) < self.size:
            try:
                entries.append(self._waiting.get_nowait())
            except Empty:
                break
        return entries

    def _answer(self, batch: list[Entry]) -> None:
        batch = [entry for entry in batch if entry[1].set_running_or_notify_cancel()]
        if not batch:
            return
        try:
            rows = self.compute(torch.stack([picture for picture, _ in batch]))
        except Exception as error:  # the next batch may be a good one
            for _, future in batch:
                future.set_exception(error)
        else:
            for (_, future), row in zip(batch, rows, strict=True):
                future.set_result(row)
