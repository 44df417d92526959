"""What a run has left, as facts that can be compared: tensors, pixels, JSON values,
numbers in texts and pages."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from safetensors import safe_open

Value = Any
"""A tensor, an array of pixels, or a JSON value."""

Facts = dict[tuple[str, str, str], Value]
"""(kind, file, field) -> value."""

Found = Iterator[tuple[str, str, Value]]
"""Kind, field and value of the facts of one file."""

KINDS = (
    "tensors",
    "metadata",
    "logs",
    "documents",
    "texts",
    "pages",
    "images",
    "plans",
    "messages",
    "files",
)
"""What is compared. `files`: whether a file is there at all."""

MEASURED = re.compile(
    r"([^/]*/)*([^/]*_s|s_per_it|seconds|time|timestamp|updated|updated_at|started|ended|at|free_bytes|measured_.*)|time/.*"
)
"""Fields that no two runs have in common: times (`_s` ends the name of seconds here)
and the memory that was used."""

TIME_OF_DAY = re.compile(r"(^|/)\d{10,}__")
"""What the names of sample images begin with."""

NOT_COMPARED = re.compile(r"MANIFEST\.json|\.lock|.*\.lock|events\.out\..*|log\.txt")
"""File names: hashes of files that are compared themselves, and what is full of times
and of measured memory. Nor are the results of earlier scans, which are made again where
they cannot be read."""

OF_THIS_MOMENT = re.compile(
    r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d)?)?|\d\d:\d\d(:\d\d)?|[\d.,]+ ?(s|ms|min|h|it/s|s/it|seconds?|minutes?)\b|"
    r"[\d.]+ [kMGT]?B free|(?<=\.html): [\d.]+ kB|\b[0-9a-f]{32,}\b|\b\d{10,}__"
)
"""Parts of texts that no two runs have in common: dates, durations, free disk, hashes
of files with times in them; and the sizes of pages, whose markup may change."""

NAMING = re.compile(r"[\w./%+-]*\d[\w./%+-]*|\w+(?:[./_]\w+)+")
"""Words of a text that are not prose: numbers, paths, file names, keys."""

PLACE = re.compile(r"(\S+:\d+:\d+: )?[^\s:]*[^\s:,.](?=: )")
"""Of a message: line and column, and the key, file or folder."""


def flat(value: Value, path: str = "") -> Iterator[tuple[str, Value]]:
    """The leaves of a JSON value by their paths; empty containers are leaves."""
    if isinstance(value, dict | list) and value:
        for key, inner in (
            value.items() if isinstance(value, dict) else enumerate(value)
        ):
            yield from flat(inner, f"{path}/{key}" if path else str(key))
    else:
        yield path, value


def facts_of(folder: Path, hidden: Mapping[str, str] | None = None) -> Facts:
    """Everything comparable under a folder.

    hidden: texts that differ between two places (their paths) -> what is compared
    instead.
    """
    facts: Facts = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if NOT_COMPARED.fullmatch(path.name) or path.parent.name == "scans":
            continue
        name = TIME_OF_DAY.sub(r"\1", path.relative_to(folder).as_posix())
        facts["files", name, "is there"] = True
        reader = READERS.get(path.suffix)
        for kind, key, value in reader(path) if reader else ():
            if kind in ("tensors", "images") or not MEASURED.fullmatch(
                key.partition(": ")[2] or key
            ):
                facts[kind, name, _without(key, hidden)] = _without(value, hidden)
    return facts


def _without(value: Value, hidden: Mapping[str, str] | None) -> Value:
    if not isinstance(value, str):
        return value
    for text, instead in (hidden or {}).items():
        value = value.replace(text, instead)
    return TIME_OF_DAY.sub(r"\1", value)


# ------------------------------------------------------------ files


def _tensors(path: Path) -> Found:
    with safe_open(path, framework="pt") as file:
        yield from (("tensors", key, file.get_tensor(key)) for key in file.keys())  # noqa: SIM118 - not a dict
        metadata = {key: _parsed(text) for key, text in (file.metadata() or {}).items()}
    yield from (("metadata", key, value) for key, value in flat(metadata) if metadata)


def _parsed(text: str) -> Value:
    """JSON within a text, or the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _lines(path: Path) -> Found:
    """Lines are counted by kind of event: the order of those from different threads is
    left to chance."""
    counts: Counter[str] = Counter()
    for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        kind = line.get("event", "line")
        counts[kind] += 1
        yield from (
            ("logs", f"{kind} {counts[kind]}: {key}", value)
            for key, value in flat(line)
        )


def _document(path: Path) -> Found:
    """JSON is YAML too, but far faster to read as JSON."""
    text = path.read_text(encoding="utf-8")
    value = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    yield from (("documents", key, value) for key, value in flat(value))


def _text(path: Path) -> Found:
    yield "texts", "text", path.read_text(encoding="utf-8")


def _prose(path: Path) -> Found:
    yield from (
        ("texts", key, value) for key, value in naming(path.read_text(encoding="utf-8"))
    )


def _pixels(path: Path) -> Found:
    with Image.open(path) as image:
        yield "images", "pixels", np.asarray(image)
        texts = {
            key: _parsed(text)
            for key, text in image.info.items()
            if isinstance(text, str)
        }
        yield from (("metadata", key, value) for key, value in flat(texts) if texts)


class _Page(HTMLParser):
    """Collects what a page shows, not how: texts, addresses of pictures and links, JSON
    for its script."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[str] = []
        self.data: list[Value] = []
        self._inside = ""

    def handle_starttag(
        self, tag: str, attributes: list[tuple[str, str | None]]
    ) -> None:
        given = dict(attributes)
        self._inside = (
            "data"
            if tag == "script" and given.get("type") == "application/json"
            else tag
        )
        self.shown += [
            text
            for key in ("src", "href", "alt", "title", "value")
            if (text := given.get(key))
        ]

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "data":
            self.data.append(json.loads(data))
        elif self._inside not in ("script", "style"):
            self.shown.append(data)


def _page(path: Path) -> Found:
    """Numbers, names and words by how often they are shown; pictures within the page
    count as such words."""
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    embedded = [text for text in page.shown if text.startswith("data:")]
    yield from (
        ("pages", f"picture {text[-40:]}", count)
        for text, count in Counter(embedded).items()
    )
    shown = "\n".join(text for text in page.shown if not text.startswith("data:"))
    yield from (("pages", key, value) for key, value in naming(shown))
    yield from (
        ("pages", f"word {word}", True)
        for word in set(re.findall(r"[a-z]{3,}", shown.lower()))
    )
    yield from (("pages", f"data {key}", value) for key, value in flat(page.data))


READERS: dict[str, Callable[[Path], Found]] = {
    ".safetensors": _tensors,
    ".jsonl": _lines,
    ".json": _document,
    ".yaml": _document,
    ".png": _pixels,
    ".jpg": _pixels,
    ".txt": _text,
    ".tsv": _text,
    ".csv": _text,
    ".md": _prose,
    ".html": _page,
}


# ------------------------------------------------------------ what is printed


def naming(text: str) -> Iterator[tuple[str, int]]:
    """How often each number, path, file name and key is in a text; its prose may
    change."""
    plain = OF_THIS_MOMENT.sub(" ", text)
    yield from Counter(word.strip(".") for word in NAMING.findall(plain)).items()


def printed(
    name: str, code: int, output: str, errors: str, hidden: Mapping[str, str]
) -> Facts:
    """What a command says: exit code; of what went to stderr severity and place; of
    each other line what it names."""
    counts: Counter[str] = Counter()
    for line in _without(errors, hidden).splitlines():
        severity, _, message = (
            line.partition(": ")
            if line.startswith("warning: ")
            else ("error", "", line)
        )
        place = PLACE.match(message)
        counts[f"{severity} at {place[0] if place else '-'}"] += 1
    for line in _without(output, hidden).splitlines():
        words = " ".join(
            word.strip(".") for word in NAMING.findall(OF_THIS_MOMENT.sub(" ", line))
        )
        counts[
            f"{'warning' if line.lstrip().startswith('warning:') else 'line'} with {words or 'words alone'}"
        ] += 1
    facts: Facts = {("messages", name, "exit code"): code}
    return facts | {("messages", name, key): count for key, count in counts.items()}
