"""TensorBoard: event files, written with tensorboardX (without TensorFlow, and without
its writer thread).

It writes files only; the user starts TensorBoard. The registry in `tracker` imports
this module when a job has `logging.logging_dir` or `log_with: tensorboard`.
"""

from __future__ import annotations

import io
import os
import time
from pathlib import Path

from PIL import Image
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from toolkit.data.pixels.images import over_white
from toolkit.train.trackers.tracker import RunInfo, Tracker

FLUSH_EVERY_S = 5.0


class TensorBoardTracker(Tracker):
    """One event file for each start of the run, all in
    `<logging_dir>/<log_prefix><name>[/<log_tracker_name>]/`.

    A file begins with a session log at its first step: TensorBoard discards values of
    earlier files from that step on, so that repeated steps have one value (tensorboard:
    event_accumulator, `_Purge`).

    Example::

        tracker = TensorBoardTracker(RunInfo("maya", folder, 0, section.logging))
        tracker.scalars(1, {"loss/current": 0.12})
        tracker.close()
    """

    def __init__(self, run: RunInfo) -> None:
        super().__init__(run)
        folder = folder_of(run)
        folder.mkdir(parents=True, exist_ok=True)
        # The library's name has whole seconds only: two quick starts must not write to
        # one file.
        self._writer = EventsWriter(
            str(folder / "events"), filename_suffix=f".{os.getpid()}.{time.time_ns()}"
        )
        # Samples may be generated before step 1, as step 0.
        first = run.step + 1 if run.step else 0
        self._write(first, session_log=SessionLog(status=SessionLog.START))
        self._writer.flush()
        self._flushed = time.monotonic()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        entries = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in values.items()
        ]
        self._write(step, summary=Summary(value=entries))
        if time.monotonic() - self._flushed >= FLUSH_EVERY_S:
            self._writer.flush()
            self._flushed = time.monotonic()

    def image(self, step: int, name: str, path: Path) -> None:
        encoded = io.BytesIO()
        with Image.open(path) as source:
            over_white(source).save(encoded, format="JPEG", quality=90)
            width, height = source.size
        image = Summary.Image(
            height=height,
            width=width,
            colorspace=3,
            encoded_image_string=encoded.getvalue(),
        )
        self._write(step, summary=Summary(value=[Summary.Value(tag=name, image=image)]))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _write(self, step: int, **what: object) -> None:
        self._writer.write_event(Event(wall_time=time.time(), step=step, **what))


def folder_of(run: RunInfo) -> Path:
    """Folder of a run's event files."""
    options = run.options
    return Path(
        f"{options.logging_dir}/{options.log_prefix}{run.name}",
        options.log_tracker_name,
    ).expanduser()
