"""Drafts: what was typed into the form of a job, kept until it is saved.

Each form that is opened has one draft, whose file is replaced each time the form is
sent. So the way back, a reload, another tab and a closed browser find the form as it
was. What holds a secret is not kept. Drafts that have got old, or too many, are removed.

The editor for jobs (`extensions.tools.ui.views.new`) calls this module.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from extensions.tools.ui.state import Ui
from toolkit.errors import RunError
from toolkit.files.redact import redact_json
from toolkit.files.writing import read_object, write_json

MOST = 30
KEPT_S = 30 * 24 * 3600
"""At most so many drafts are kept, for so many seconds after the last change."""

_ID = re.compile(r"[\w-]{8,40}", re.ASCII)


def _files(ui: Ui) -> list[Path]:
    """The files of the drafts, the latest first."""
    times = {}
    for path in (ui.own / "drafts").glob("*.json"):
        with suppress(OSError):  # removed meanwhile
            times[path] = path.stat().st_mtime_ns
    return sorted(times, key=lambda path: -times[path])


def _file(ui: Ui, id_: str) -> Path:
    return ui.own / "drafts" / f"{id_}.json"


def keep(ui: Ui, id_: str, values: Mapping[str, Any]) -> bool:
    """Writes a draft. False: it holds a secret, the disk cannot be written, or the id is
    not that of a form."""
    if not _ID.fullmatch(id_) or redact_json(dict(values), by_key=True) != values:
        return False
    try:
        write_json(_file(ui, id_), values, durable=False)
    except RunError:
        return False
    for place, path in enumerate(_files(ui)):
        with suppress(OSError):
            if place >= MOST or time.time() - path.stat().st_mtime > KEPT_S:
                path.unlink()
    return True


def read(ui: Ui, id_: str) -> dict[str, Any]:
    """The values of a draft; empty: there is none."""
    return read_object(_file(ui, id_)) if _ID.fullmatch(id_) else {}


def known(ui: Ui) -> list[tuple[str, dict[str, Any]]]:
    """The drafts that were neither saved nor started: id and values, the latest
    first."""
    drafts = [(path.stem, read(ui, path.stem)) for path in _files(ui)]
    return [
        (id_, values) for id_, values in drafts if values and not values.get("done")
    ]


def drop(ui: Ui, id_: str) -> None:
    """Removes a draft, if it is there."""
    if _ID.fullmatch(id_):
        _file(ui, id_).unlink(missing_ok=True)
