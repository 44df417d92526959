"""The end of docs/config.md: what the options of other programs are here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from pydantic import BaseModel

from extensions.compat.keys import OPTIONS
from extensions.compat.names import NAMES, PLACES
from toolkit.config.foreign import NO_DEFAULT, ForeignName, foreign_keys
from toolkit.config.reference import Models, distinct_sections, dotted, keys

_MUSUBI_HEAD = """
## Options of musubi-tuner

What the options of musubi-tuner, of the program that writes its files, and of its dataset file are in a job. "As
written": the section in which the name itself is accepted; elsewhere it is an unknown key, and the message says its
name and place here.

| there | here | as written | remark |
|---|---|---|---|
"""

_AI_TOOLKIT_HEAD = """
## Keys of ai-toolkit

Those whose name or meaning differs most.

| there | here | as written | remark |
|---|---|---|---|
"""

_SAME_NAME = {
    "network.linear_alpha": "honoured; there always `linear`",
    "datasets[].resolution": "equal sizes count once; two unlike ones: a note",
    "train.ema_config.use_num_updates": "on unless switched off",
}
"""Keys of ai-toolkit that are called the same here -> what differs."""


def tables(models: Models) -> Iterator[str]:
    """The two tables. models: of the sections, by their process types."""
    sections, known = list(distinct_sections(models)), keys(models)
    yield _MUSUBI_HEAD
    for key, row in OPTIONS.items():
        yield _row(key, row, [_standing(key, path, section, row) for path, section in sections], known)
    yield _AI_TOOLKIT_HEAD
    for place, remark in _SAME_NAME.items():
        yield f"| `{place}` | `{place}` | `{place.rpartition('.')[0]}` | {remark} |\n"
    for (program, group), rows in NAMES.items():
        for key, row in rows.items() if program == "ai-toolkit" else ():
            if row.ours or (row.how == "refused" and row.says):
                at = PLACES[group]
                standing = [_standing(key, path, section, row) for path, section in sections if path == at]
                yield _row(dotted(at, key), row, standing, known)


def _standing(key: str, path: str, section: type[BaseModel], row: ForeignName) -> str:
    """What becomes of another program's key where it is written in this section; empty: it is unknown there."""
    where, read = f"`{path}`" if path else "the process", foreign_keys().rows(section).get(key)
    if read is None:
        return where if key in section.model_fields and dotted(path, key) in row.ours else ""
    told = {"idle": f", no effect{', refused unless false' if read.on else ''}", "refused": ", not supported yet"}
    return f"{where}{told.get(read.how, '')}"


def _row(name: str, row: ForeignName, standing: list[str], known: Mapping[str, bool]) -> str:
    here = [f"`{key}`{'' if known[key] else ' (not supported yet)'}" for key in row.ours]
    here += [f"`run.py {row.tool}`"] if row.tool else []
    theirs = "" if row.default is NO_DEFAULT else f"left out, there: `{json.dumps(row.default)}`"
    remark = "; ".join(filter(None, (row.says, theirs))).replace("|", "\\|")
    return f"| `{name}` | {', '.join(here)} | {'; '.join(dict.fromkeys(filter(None, standing)))} | {remark} |\n"
