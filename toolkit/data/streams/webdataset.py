"""WebDataset streams: samples of tar shards, in an order that is a function of (seed,
epoch), read on from any cursor. Imports no torch.

Shards are read with the standard library's tarfile, and neither with the `webdataset`
package nor with torchdata. webdataset keeps no state to resume from (its issue 271).
torchdata's `StatefulDataLoader` reads everything before the place again, unless the
dataset keeps its own state, which is the cursor of this module; its readers of tars
were removed with its DataPipes. Here a resume starts at the byte of a sample. tarfile
alone also stops silently at a damaged header; `_StrictHeader` makes it an error.
`stream_dataset` adds captions and sizes to the samples.

Order: shards are sorted by a hash of (seed, epoch, index), and so many of them are read
side by side, a sample of each in turn, since shards are often sorted by subject.
Samples are read in windows, and given out in the order of a hash within each window. So
a cursor is small: where the window starts in each open shard, and the next index in it.
A resume reads that window again, and nothing that lies before it.
"""

from __future__ import annotations

import gzip
import logging
import tarfile
import zlib
from collections.abc import (
    Callable,
    Collection,
    Generator,
    Iterator,
    Sequence,
)
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

from toolkit.contracts.data import Cursor, ShardSample, Size
from toolkit.data.pixels.images import ImageError, image_size
from toolkit.data.scan.columns import Unfit
from toolkit.data.streams.sample_keys import SampleKeys
from toolkit.data.streams.shards import PAUSES_S, Shard, read_ahead
from toolkit.errors import RunError
from toolkit.files.unreadable import LONGEST, cause_of, stand_in
from toolkit.rounding import round_up
from toolkit.system import seeding

logger = logging.getLogger(__name__)

_NAMED = 5
"""So many extensions of a sample are named."""

_LARGEST = 2**36
"""Bytes that one file of a shard may have: tarfile would count to the end of any number
that a damaged header gives."""

_KEYS = "Set image_key, label_key and caption_key"
_ORDER = "pack the files of each sample one after the other and in one folder, as `tar --sort=name` does"

_REPAIR = "Repair it, or remove it from its shard"

_LONGEST = 300
"""Characters of a reason; the name of a key can be any text."""

_DAMAGED = (
    tarfile.TarError,
    EOFError,
    zlib.error,
    gzip.BadGzipFile,
    ValueError,
    OverflowError,
    RecursionError,
)
"""Errors of tarfile and gzip for damaged files, and errors of their parsers."""


class StreamSample(NamedTuple):
    """One image with its caption, not decoded.

    >>> sample = StreamSample("cats.tar/1", b"", "a red cat", Size(512, 512))
    >>> sample.caption
    'a red cat'
    """

    name: str
    """Shard and key, for messages."""

    image: bytes
    """The image file."""

    caption: str
    size: Size
    """Pixels after EXIF rotation, by the header."""


class _Place(NamedTuple):
    """Where a sample stands in the order of an epoch."""

    shard: int = 0
    sample: int = 0
    """Number within the shard, counted from 0."""

    byte: int = 0
    """Negative: the shard has no further sample."""


_Places = tuple[_Place, ...]
"""Where the next samples of the open shards stand; empty at the beginning of an
epoch."""


class _Window(NamedTuple):
    """Samples that were read together, in the order in which they are given out."""

    epoch: int
    start: _Places
    samples: list[StreamSample]
    next_epoch: int
    next: _Places
    """Where the next window begins."""


def unusable(name: str, reason: str, remedy: str = "") -> RunError:
    """The error for a sample that cannot be used, in one line.

    >>> str(unusable("cats.tar/1", "its image is cut off"))
    'cats.tar/1: its image is cut off. Repair it, or remove it from its shard.'
    """
    name, reason = (text.replace("\n", "\\n") for text in (name, reason))
    if len(reason) > _LONGEST:
        reason = f"{reason[:_LONGEST]}..."
    return RunError(f"{name}: {reason}. {remedy or _REPAIR}.")


@dataclass(frozen=True)
class ShardStream:
    """The samples of all shards, epoch after epoch: `read` is what a `StreamSource`
    reads, `epoch_of` its epochs.

    Example::

        stream = ShardStream(expand_shards(["shards/{00..09}.tar"]), seed=42)
        for sample, cursor in stream.read(None):
            print(sample.name)  # `read(cursor)` continues behind this sample
    """

    shards: tuple[Shard, ...]
    seed: int
    keys: SampleKeys = field(default_factory=SampleKeys)
    window: int = 256
    """Samples that are read and shuffled together; two windows are in memory. 1: the
    order of the shards."""

    batch_size: int = 1
    """Neighbours in a window are brought together by aspect ratio in groups of so
    many."""

    epochs: int | None = None
    """None: without end."""

    pauses: Sequence[float] = PAUSES_S
    """Seconds before each new attempt at a broken connection."""

    stopping: Callable[[], bool] = lambda: False
    """Whether a stop is requested: `read` then waits for no server, but raises
    RunError."""

    open_shards: int = 8
    """Shards that are read side by side; with `window: 1` one after the other."""

    def order(self, epoch: int) -> list[Shard]:
        """The shards in the order of an epoch: a function of (seed, epoch) and their
        number, so that they may be moved."""
        numbers = sorted(
            range(len(self.shards)),
            key=lambda at: seeding.key(self.seed, "shards", epoch, at),
        )
        return [self.shards[at] for at in numbers]

    def epoch_of(self, cursor: Cursor) -> int:
        """The epoch of the next sample, counted from 0. cursor: None is the
        beginning."""
        return cursor["epoch"] if cursor else 0

    def read(self, cursor: Cursor) -> Iterator[tuple[StreamSample, Cursor]]:
        """The samples from a cursor on (None: all), each with the cursor behind it.
        Network and tar are read by a thread, one window ahead.

        A cursor is a JSON object: epoch; places, of each open shard its index in the
        epoch's order, the sample's number in it and byte, where the window starts;
        index, the next sample of the window; list, which shards and sizes it is for.
        With another list the stream begins with the next epoch. A cursor from before
        shards were read side by side has shard, sample and byte instead of places, and
        the stream continues in its order.

        Raises RunError when a shard cannot be reached, and for the first sample or
        shard that cannot be used.
        """
        epoch = 0
        index = 0
        shards = self._digest()
        places: _Places = ()
        abreast = 1 if self.window == 1 else self.open_shards
        if cursor and cursor["list"] != shards:
            epoch = cursor["epoch"] + 1
            logger.warning(
                "the shards of the stream, its window or the batch size have changed since the checkpoint: "
                f"it goes on with epoch {epoch + 1}"
            )
        elif cursor:
            epoch = cursor["epoch"]
            index = cursor["index"]
            if "places" in cursor:
                places = tuple(_Place(*place) for place in cursor["places"])
            else:
                abreast = 1
                places = (_Place(cursor["shard"], cursor["sample"], cursor["byte"]),)
        stop = Event()
        is_old = bool(cursor) and cursor["list"] == shards and "places" not in cursor
        with closing(
            read_ahead(
                self._windows(epoch, places, abreast, stop), stop.set, self.stopping
            )
        ) as windows:
            for window in windows:
                count = len(window.samples)
                for done in range(index + 1, count + 1):
                    epoch, places = window.next_epoch, window.next
                    if done < count:
                        epoch, places = window.epoch, window.start
                    if is_old:
                        at = (places or (_Place(),))[0]._asdict()
                    else:
                        at = {"places": [list(place) for place in places]}
                    yield (
                        window.samples[done - 1],
                        {"epoch": epoch, **at, "index": done % count, "list": shards},
                    )
                index = 0

    def first(self, count: int) -> tuple[StreamSample, ...]:
        """The first samples in the order in which the shards are given, always the same
        ones; fewer where there are fewer. Reads no further than these. Raises RunError
        as `read`."""
        with closing(self._samples(self.shards, _Place(), Event())) as stream:
            return tuple(sample for _, sample in islice(stream, count))

    def _digest(self) -> str:
        """Digest of the settings that a cursor depends on, and of the file names and the
        order of the shards."""
        names = [shard.name.rpartition("/")[2] for shard in self.shards]
        # 0 and 1 are in the cursors of all runs
        what: list[int | str] = [self._window, self.batch_size, 0, 1, *names]
        return f"{seeding.key(self.seed, 'stream', *what):016x}"

    @property
    def _window(self) -> int:
        """A multiple of the batch size, so that groups and batches begin together."""
        return round_up(self.window, self.batch_size)

    def _windows(
        self, epoch: int, start: _Places, abreast: int, stop: Event
    ) -> Iterator[_Window]:
        # once stopped, epochs have no samples: without this they would follow for ever
        while not stop.is_set() and (self.epochs is None or epoch < self.epochs):
            window: list[tuple[_Place, StreamSample]] = []
            begins = start
            for places, place, sample in self._side_by_side(
                self.order(epoch), start, abreast, stop
            ):
                if len(window) == self._window:
                    yield _Window(
                        epoch, begins, self._shuffled(epoch, window), epoch, places
                    )
                    window = []
                if not window:
                    begins = places
                window.append((place, sample))
            if window:
                yield _Window(
                    epoch, begins, self._shuffled(epoch, window), epoch + 1, ()
                )
            epoch = epoch + 1
            start = ()

    def _side_by_side(
        self, order: Sequence[Shard], start: _Places, abreast: int, stop: Event
    ) -> Iterator[tuple[_Places, _Place, StreamSample]]:
        """The samples of groups of `abreast` shards, each from the shard of which
        fewest were read: the places to go on from at this sample, its own place, and
        the sample."""
        first = start[0].shard if start else 0
        for group in range(first, len(order), abreast):
            end = min(group + abreast, len(order))
            places = list(start) or [_Place(at) for at in range(group, end)]
            start = ()
            readers: list[Iterator[tuple[_Place, StreamSample]]] = [
                self._samples(order[: at.shard + 1], at, stop)
                if at.byte >= 0
                else iter(())
                for at in places
            ]
            heads = [next(reader, None) for reader in readers]
            while True:
                waiting = []
                for number, head in enumerate(heads):
                    if head:
                        places[number] = head[0]
                        waiting.append((head[0].sample, number))
                    else:
                        places[number] = places[number]._replace(byte=-1)
                if not waiting:
                    break
                number = min(waiting)[1]
                head = heads[number]
                assert head is not None  # it waits
                yield tuple(places), *head
                heads[number] = next(readers[number], None)

    def _shuffled(
        self, epoch: int, window: list[tuple[_Place, StreamSample]]
    ) -> list[StreamSample]:
        if len(window) == 1:
            return [window[0][1]]

        def drawn(purpose: str, place: _Place) -> int:
            return seeding.key(self.seed, purpose, epoch, 0, place.shard, place.sample)

        window = sorted(window, key=lambda entry: drawn("window", entry[0]))
        if self.batch_size > 1:
            window.sort(key=lambda entry: entry[1].size.width / entry[1].size.height)
            size = self.batch_size
            groups = [window[at : at + size] for at in range(0, len(window), size)]
            groups.sort(
                key=lambda group: (len(group) < size, drawn("group", group[0][0]))
            )
            window = [entry for group in groups for entry in group]
        return [sample for _, sample in window]

    # ------------------------------------------------------------ reading

    def _samples(
        self, shards: Sequence[Shard], start: _Place, stop: Event
    ) -> Generator[tuple[_Place, StreamSample], None, None]:
        """The samples of these shards, one after the other, from a place on."""
        for at, shard in enumerate(shards[start.shard :], start=start.shard):
            first = start if at == start.shard else _Place(at)
            number = first.sample - 1
            reason = ""
            try:
                found_samples = read_tar(
                    shard,
                    first.byte,
                    self.pauses,
                    stop,
                    {*self.keys.image, self.keys.label},
                )
                for number, shard_sample in enumerate(
                    found_samples, start=first.sample
                ):
                    if stop.is_set():
                        return
                    sample = self._sample(shard, shard_sample)
                    yield _Place(at, number, shard_sample.byte), sample
            except _DAMAGED as error:
                reason = f"is damaged behind sample {number + 1:,} of it ({error})"
            except OSError as error:
                cause = (
                    None if shard.is_remote else cause_of(Path(shard.address), error)
                )
                why = error.strerror or str(error)
                if cause:
                    why = f"{cause.what}. {cause.remedy}"
                raise RunError(f"{shard.name}: cannot be read: {why}.") from error
            if not stop.is_set() and (reason or number < 0):
                raise self._damage(shard, reason or "holds no sample", number < 0, stop)

    def _damage(
        self, shard: Shard, reason: str, is_whole: bool, stop: Event
    ) -> RunError:
        """The error for a shard that cannot be read, or its rest. is_whole: not one
        sample of it was read."""
        remedy = "Download or rebuild it"
        if is_whole:
            with closing(shard.open(0, self.pauses, stop)) as file:
                cause = stand_in(file.read(LONGEST + 1))
            if cause:
                reason = cause.what.removeprefix("it ")
                remedy = cause.remedy
        return RunError(
            f"{shard.name}: {reason}. {remedy}, or remove it from the list."
        )

    def _sample(self, shard: Shard, shard_sample: ShardSample) -> StreamSample:
        """Raises RunError for a sample that cannot be used."""
        name = f"{shard.name}/{shard_sample.key}"
        remedy = ""
        try:
            image = self.keys.image_of(shard_sample.fields)
            caption = self.keys.caption_of(shard_sample.fields)
            return StreamSample(name, image, caption, image_size(name, image))
        except LookupError as error:
            reason = f"it has no {error.args[0]}, only {_listed(shard_sample.fields)}"
            remedy = self.keys.remedy(shard_sample.key, shard_sample.fields)
            remedy = remedy or f"{_KEYS}, or {_ORDER}"
        except ImageError as error:
            reason = f"its image {error.reason}"
        except UnicodeDecodeError as error:
            reason = f"its {self.keys.label} is not UTF-8 text: byte 0x{error.object[error.start]:02x}"
            reason += f" at offset {error.start}"
            remedy = "Save it as UTF-8"
        except Unfit as error:
            reason, _, remedy = f"its {self.keys.label} {error}".partition(". ")
        except (ValueError, RecursionError) as error:
            reason = f"its {self.keys.label} cannot be read: {error}"
        raise unusable(name, reason, remedy)


def _listed(fields: Collection[str]) -> str:
    """The extensions of a sample, not too many."""
    listed = ", ".join(sorted(fields)[:_NAMED])
    more = len(fields) - _NAMED
    return f"{listed} and {more} more" if more > 0 else listed


class _StrictHeader(tarfile.TarInfo):
    """tarfile takes a damaged header for the end of the archive: an error instead."""

    @classmethod
    def frombuf(
        cls, buf: bytes | bytearray, encoding: str, errors: str
    ) -> _StrictHeader:
        try:
            return super().frombuf(buf, encoding, errors)
        except (tarfile.EmptyHeaderError, tarfile.EOFHeaderError):  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


def read_tar(
    shard: Shard,
    byte: int = 0,
    pauses: Sequence[float] = PAUSES_S,
    stop: Event | None = None,
    wanted: Collection[str] | None = None,
) -> Generator[ShardSample, None, None]:
    """The samples of a shard from `byte` of its tar on, where a sample begins.

    Neighbouring files of one key are a sample (the convention of WebDataset). wanted:
    extensions of the files that are read, the others are empty; None: all. Of a plain
    tar nothing before `byte` is read; `.tar.gz` and `.tgz` are unpacked from their
    beginning. A link or device has no content: its extension says so. Raises what
    tarfile and gzip raise for damaged files, tarfile.ReadError where the end-of-archive
    block is missing or is not the end, OSError for a file that cannot be read, and
    RunError for a server that cannot be.
    """
    packed = shard.name.endswith((".tar.gz", ".tgz"))
    key = ""
    fields = dict[str, bytes]()
    start = byte
    with shard.open(0 if packed else byte, pauses, stop) as file:
        source: Any = gzip.GzipFile(fileobj=file) if packed else file
        if packed:
            source.seek(byte)
        with tarfile.open(
            fileobj=source, mode="r|", tarinfo=_StrictHeader, errors="replace"
        ) as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep the header of each
                if tar.offset - member.offset_data > _LARGEST:
                    raise tarfile.ReadError(f"a file of {member.size:,} bytes")
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                if member.isdir() or not (stem and extension):
                    continue
                plain = member.isreg() and not member.issparse()
                extension = extension.lower() + ("" if plain else " (not a file)")
                member_key = f"{folder}/{stem}" if folder else stem
                if fields and (member_key != key or extension in fields):
                    yield ShardSample(key, fields, start)
                    fields = {}
                if not fields:
                    key = member_key
                    start = byte + member.offset
                is_read = plain and (wanted is None or extension in wanted)
                content = tar.extractfile(member) if is_read else None
                fields[extension] = content.read() if content else b""
            if fields:
                yield ShardSample(key, fields, start)
            _check_end(tar, stop)


def _check_end(tar: tarfile.TarFile, stop: Event | None) -> None:
    """Raises tarfile.ReadError unless nothing but zeros follows the last file: tarfile
    itself stops at the first block of zeros, and takes the end of the bytes for the end
    of the archive."""
    rest: Any = tar.fileobj
    if rest.tell() == tar.offset:
        raise tarfile.ReadError("its end-of-archive block is missing: it was cut off")
    while (block := rest.read(1 << 20)) and not (stop and stop.is_set()):
        if block.strip(b"\0"):
            raise tarfile.ReadError(
                "data follows its end-of-archive block, as after `cat a.tar b.tar`"
            )
