"""Parquet files as shards of a stream: each row is a sample. Imports no torch.

The fields of a sample are those that a tar of the same rows would have: the image under
the ending of its kind (`jpg`), all other values under `json`; each value also under the
name of its column, so that `image_key` and `label_key` may be columns. Rows are read in
groups; from a server only the bytes of these groups are requested. `webdataset` reads
its Parquet shards with `read_parquet`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Generator, Sequence
from contextlib import closing
from threading import Event
from typing import Any

from toolkit.config.sections.dataset import ColumnsConfig
from toolkit.contracts.data import ShardSample
from toolkit.data.scan.columns import columns_of
from toolkit.data.streams.shards import PAUSES_S, SeekableShard, Shard
from toolkit.files.parquet import (
    SUFFIX,
    ParquetRows,
    is_parquet,
    picture_of,
    plain,
    suffix_of,
)


def is_parquet_shard(shard: Shard) -> bool:
    """Whether a shard is a Parquet file: by its name, of a file on disk by its first
    bytes too."""
    return shard.name.lower().endswith(SUFFIX) or (
        not shard.is_remote and is_parquet(shard.address)
    )


def read_parquet(
    shard: Shard,
    first: int = 0,
    pauses: Sequence[float] = PAUSES_S,
    stop: Event | None = None,
    wanted: Collection[str] | None = None,
) -> Generator[ShardSample, None, None]:
    """The samples of a Parquet file from a row on; `byte` of a sample is its row.

    wanted: fields that are needed, the others are empty; None: all. Raises ParquetError
    for a file that cannot be read, RunError for a server that cannot be.
    """
    with closing(SeekableShard(shard, pauses, stop)) as file:
        rows = ParquetRows(file)
        for number, row in enumerate(rows.rows(first), first):
            yield ShardSample(str(number), _fields(row, rows.pictures, wanted), number)


def _fields(
    row: dict[str, Any], pictures: Collection[str], wanted: Collection[str] | None
) -> dict[str, bytes]:
    images = {key: picture_of(row[key]) for key in pictures if key in row}
    texts = {key: plain(value) for key, value in row.items() if key not in images}
    fields = {
        key.lower(): text.encode()
        for key, text in texts.items()
        if isinstance(text, str)
    }
    fields["json"] = json.dumps(texts, ensure_ascii=False).encode()
    named = {key: f"x{suffix_of(image)}" for key, image in images.items()}
    known = columns_of([{**texts, **named}], ColumnsConfig()).image
    if not known and len(images) == 1:  # of several nobody knows: `image_key` says it
        known = tuple(images)
    for key, image in images.items():
        fields[key.lower()] = image
        if key in known[:1]:
            fields[suffix_of(image)[1:]] = image
    if wanted is None:
        return fields
    return {name: fields[name] if name in wanted else b"" for name in fields}
