"""Reads TensorBoard event files as TensorBoard does."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event, SessionLog


def events(folder: Path) -> Iterator[Event]:
    """All events of a run's folder, file by file in the order they were begun."""
    for path in sorted(
        folder.glob("*tfevents*"), key=lambda path: int(path.suffix[1:])
    ):
        data = path.read_bytes()
        while data:
            # A record: its length, a checksum of that, the event, a checksum of it.
            (length,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + length])
            data = data[12 + length + 4 :]


def curves(folder: Path) -> dict[str, dict[int, float | str]]:
    """Name -> step -> number (of an image: `image`). A session mark drops what is at
    its step or later.

    The rule is that of tensorboard/backend/event_processing/event_accumulator.py,
    `_CheckForRestartAndMaybePurge`.
    """
    found: dict[str, dict[int, float | str]] = defaultdict(dict)
    for event in events(folder):
        if event.session_log.status == SessionLog.START:
            for name in list(found):
                found[name] = {
                    step: value
                    for step, value in found[name].items()
                    if step < event.step
                }
        for value in event.summary.value:
            kind = value.WhichOneof("value")
            if kind in ("simple_value", "image"):
                assert event.step not in found[value.tag], (
                    f"{value.tag} has step {event.step} twice"
                )
                found[value.tag][event.step] = (
                    value.simple_value if kind == "simple_value" else "image"
                )
    return {name: values for name, values in found.items() if values}
