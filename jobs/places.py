"""Errors in a dataset, placed at the line of the job that names the dataset.

The scan of `toolkit/data` raises `DataErrors` with paths of files, because it does not
know the job. `places_of_datasets` catches them and puts the line of the job in front,
with one line that counts the files inside a folder.

`jobs/job.py` wraps the run of each process in it, and `jobs/dry_run.py` the plan.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from toolkit.config.reading.process import ProcessEntry
from toolkit.errors import DataErrors, Diagnostic


@contextmanager
def places_of_datasets(entry: ProcessEntry) -> Iterator[None]:
    """Inside the block, DataErrors are raised again with the places (file and line) in
    the job. Other errors pass unchanged."""
    try:
        yield
    except DataErrors as error:
        raise DataErrors(list(_placed(error, entry.places))) from error


def _placed(error: DataErrors, places: Mapping[Path, str]) -> Iterator[Diagnostic]:
    """An error of a folder or file that the job names is at its line. Errors of files
    inside the folder follow that line."""
    by_line: dict[Path | None, list[Diagnostic]] = {}
    for mistake in error.errors:
        path = Path(re.sub(r":\d+$", "", mistake.place))
        by_line.setdefault(
            next((at for at in (path, *path.parents) if at in places), None), []
        ).append(mistake)
    for named, mistakes in by_line.items():
        if named is None:
            yield from mistakes
            continue
        placed = [mistake for mistake in mistakes if Path(mistake.place) == named]
        for mistake in placed:
            yield Diagnostic((places[named],), f"{str(named)!r}: {mistake.message}")
        if others := [mistake for mistake in mistakes if Path(mistake.place) != named]:
            what = (
                "row"
                if all(mistake.place.startswith(f"{named}:") for mistake in others)
                else "file"
            )
            count = f"{len(others)} {what}{'' if len(others) == 1 else 's'}"
            yield Diagnostic(
                (places[named],), f"{count} of {str(named)!r} cannot be used:"
            )
            yield from others
