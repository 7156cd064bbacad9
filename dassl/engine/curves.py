"""TensorBoard's files, written at once.

TensorBoard's own writer hands the points to a thread, whose errors, as on a full disk, are
tracebacks on the terminal, and whose last points a killed process loses.
"""

from __future__ import annotations

import itertools
import os
import socket
import time
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.writer import FileWriter, SummaryWriter

from dassl.errors import UserError, writing
from dassl.utils.tools import mkdir_if_missing

_numbers = itertools.count()  # of the files that this process opens, as their names differ by it


class _EventFile:
    """Stands in for TensorBoard's ``EventFileWriter``."""

    def __init__(self, folder: str) -> None:
        mkdir_if_missing(folder)
        # TensorBoard reads the files of a folder in the order of their names
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}"
        self.path = os.path.join(folder, f"{name}.{os.getpid()}.{next(_numbers):06d}")
        with writing(f"'{self.path}'"):
            self._file = open(self.path, "wb")
        self._records = RecordWriter(self._file)
        self.add_event(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def get_logdir(self) -> str:
        return os.path.dirname(self.path)

    def add_event(self, event: Event) -> None:
        """Write an event; after an error, which is raised once, do nothing."""
        if self._file.closed:
            return
        try:
            with writing(f"'{self.path}'"):
                self._records.write(event.SerializeToString())
                self._file.flush()
        except UserError:
            self.close()
            raise

    def flush(self) -> None:
        """Do nothing, as every event is written at once."""

    def close(self) -> None:
        try:
            self._file.close()
        except OSError:  # once more what ``add_event`` has raised
            pass


class _FileWriter(FileWriter):
    def __init__(self, folder: str) -> None:
        self.event_writer = _EventFile(folder)


class CurveWriter(SummaryWriter):
    """A ``SummaryWriter`` without a thread; a file that cannot be written is a ``UserError``."""

    file_writer: Any
    all_writers: Any

    def _get_file_writer(self) -> FileWriter:
        if self.file_writer is None:
            self.file_writer = writer = _FileWriter(self.log_dir)
            self.all_writers = {self.log_dir: writer}
            if self.purge_step is not None:
                start = SessionLog(status=SessionLog.START)
                writer.add_event(Event(step=self.purge_step, session_log=start))
                self.purge_step = None
        return self.file_writer
