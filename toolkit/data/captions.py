"""Captions: read from the files beside images or from one table; prefix and trigger word added once at the scan;
one of several, dropout and shuffling at each use."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import chain
from pathlib import Path
from posixpath import normpath
from textwrap import shorten
from types import MappingProxyType
from typing import Any, NamedTuple
from unicodedata import normalize

from toolkit.config.dataset import DatasetConfig
from toolkit.config.findings import is_absolute
from toolkit.config.yaml_reader import moved_path
from toolkit.data.directory import DirectoryListing, real_path, split_suffix
from toolkit.data.foreign_syntax import in_words, marks_in
from toolkit.data.threads import thread_map
from toolkit.data.types import PLACEHOLDERS, CaptionRules, Sample
from toolkit.errors import Diagnostic
from toolkit.files.unreadable import GIT_LFS, denied, pointer
from toolkit.files.writing import read_chunks
from toolkit.system import seeding


class CaptionError(ValueError):
    """A caption file that cannot be used: which file, and why."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


LIST = "\0"
"""Between the captions of a list in JSON. No caption file has it."""


def captions_of(text: str) -> list[str]:
    """The captions of a text, with `captions: lines`: its lines that are not empty, and the entries of a list."""
    return [line for part in re.split(f"[{LIST}\n]", text) if (line := part.strip())]


def _listed(value: Any) -> Any:
    """A list of texts as one text with LIST, without empty ones; any other value as it is."""
    is_texts = isinstance(value, list) and value and all(isinstance(each, str) for each in value)
    return LIST.join(filter(None, map(str.strip, value))) if is_texts else value


def caption_files(listing: DirectoryListing, suffixes: Sequence[str], image_suffix: str = "") -> list[list[str]]:
    """For each suffix the files that have it: one name for each of `listing.images`, in their order; '' for none. Of
    `a.jpg` that is `a.txt`, else `a.jpg.txt`; of `a_end.jpg` with the image suffix `_end` also `a.txt`."""
    files, images = listing.files, listing.images
    return [
        [
            files.get(stem + suffix)
            or files.get(names[0] + suffix)
            or files.get(stem.removesuffix(image_suffix) + suffix, "")
            for stem, names in images.items()
        ]
        for suffix in map(str.lower, suffixes)
    ]


def find_captions(listing: DirectoryListing, files: Sequence[list[str]], mistakes: list[Diagnostic]) -> list[str]:
    """The first caption of each image that is not empty, in the order of `listing.images`; '' for none.

    files: as of `caption_files`. None is read that is known already. Those that cannot be used are added to `mistakes`.
    """
    texts, no_files = listing.texts, listing.no_files
    found = [""] * len(listing.images)
    for names in files:
        wanted = [name for name, text in zip(names, found, strict=True) if name and not text and name not in texts]
        mistakes += [Diagnostic((listing.path(name),), no_files[name]) for name in wanted if name in no_files]
        unread = [name for name in wanted if name not in no_files]
        paths = [listing.path(name) for name in unread]
        for name, text in zip(unread, thread_map(_caption_or_error, paths), strict=True):
            if isinstance(text, CaptionError):
                mistakes.append(Diagnostic((str(text.path),), text.reason))
            else:
                texts[name] = text
        found = [text or texts.get(name, "") for name, text in zip(names, found, strict=True)]
    return found


def _caption_or_error(path: str) -> str | CaptionError:
    try:
        return _caption_in(path)
    except CaptionError as error:
        return error


TABLES = (".tsv", ".csv", ".jsonl", ".json")
"""Endings of files with the captions of many images."""

_NAMES = ("file_name", "filename", "image_path", "image", "file", "path", "name", "edited_image", "better")
_CAPTIONS = ("caption", "text", "prompt", "edit_prompt", "description", "tags")
_TAGS = "tags"
"""Behind another caption of the row, after a comma, as in kohya's metadata."""

_REFERENCES = re.compile(
    r"(?:control(?:_path|_images?)?|references?|(?:reference|edit|original|source|conditioning)_images?)(?:_([0-9]+))?"
)
"""Columns of control images; with a number there are several, in its order."""

_WORSE = ("worse", "rejected")
"""Columns of the image that is liked less than that of the row: a path, or a list of paths."""


UNDECIDED = "vote"
"""A line of JSON with this key, and with none of `_NAMES`, is skipped: neither of two images is better, it says why."""


class TableRow(NamedTuple):
    """What a table of captions says of one image."""

    caption: str
    """'' for none."""

    references: tuple[str, ...] = ()
    """Paths of its control images as they are written, relative to the folder of the images or of the table."""

    worse: tuple[str, ...] = ()
    """Paths of the images that are liked less, written likewise."""


NOTHING_MOVED: Mapping[str, str] = MappingProxyType({})
"""No folder of a table lies elsewhere."""


def read_captions_file(
    path: str, mistakes: list[Diagnostic], moved: Mapping[str, str] = NOTHING_MOVED
) -> dict[str, TableRow]:
    """The rows of a table, by name. moved: `DatasetConfig.path_map`.

    `.csv` has a header and `.jsonl` an object per line, with a column of `_NAMES` and one of `_CAPTIONS`, and columns
    of `_REFERENCES` where images have control images; `.json` is a list of such objects, or maps names to them or to
    captions. Any other file has lines `<file name><tab><caption>`, where later tabs are of the caption. Names are paths
    from the folder of the images, as of `image_name`. Blank lines are skipped. A file that cannot be used, and rows
    without a name or of one that is given already, are added to `mistakes` as file:line, of `.json` as file:entry.
    """
    try:
        text = _read_text(os.path.expanduser(path))
    except CaptionError as error:
        mistakes.append(Diagnostic((path,), error.reason))
        return {}
    rows: dict[str, TableRow] = {}
    first: dict[str, int] = {}
    is_there = lru_cache(os.path.isdir)  # one folder has many images
    for number, written, row in _rows(path, text, moved):
        if written is None:
            mistakes.append(Diagnostic((f"{path}:{number}",), row.caption))
            continue
        if os.path.isabs(written) and is_there(os.path.dirname(written)):
            written = os.path.relpath(written, os.path.dirname(os.path.abspath(path)))
        name = image_name(written)
        if name in first and (given := rows[name]).worse and row.worse and given[:2] == row[:2]:
            rows[name] = given._replace(worse=tuple(dict.fromkeys(given.worse + row.worse)))
        elif name in first:
            reason = f"{name!r} has a caption in line {first[name]}. Remove one of them"
            mistakes.append(Diagnostic((f"{path}:{number}",), reason))
        else:
            first[name], rows[name] = number, row
    return rows


def placed(
    table: Mapping[str, TableRow], path: str, folder: str, names: Collection[str]
) -> tuple[dict[str, TableRow], str]:
    """The rows by the names of the images, where there is no doubt which is meant; others as they are written. And the
    folder that was taken off names that lead nowhere else.

    Names may also be paths from the folder of the table or from the working directory, have `\\` between folders, or
    all begin with one folder that is not there. path: of the table. folder: of the images. names: what they are called.
    """
    known = {*names, *(split_suffix(name)[0] for name in names)}
    rows = {name: row for name, row in table.items() if name in known}
    found: dict[str, list[str]] = {}
    begins: dict[str, list[tuple[str, str]]] = {}
    whereabouts = _Whereabouts(folder, (os.path.dirname(path) or ".", "."))
    for name in (name for name in table if name not in rows):
        slashes = image_name(name.replace("\\", "/"))
        places = {each for each in (slashes, *whereabouts.inside(slashes)) if each in known}
        for place in places:
            found.setdefault(place, []).append(name)
        if not places and not whereabouts.is_file(slashes):
            parts = slashes.split("/")
            ends = ("/".join(parts[at:]) for at in range(1, len(parts)))
            if end := next((each for each in ends if each in known), ""):
                begins.setdefault(slashes.removesuffix(end), []).append((end, name))
    begin, guessed = next(iter(begins.items())) if len(begins) == 1 else ("", [])
    for end, name in guessed:
        found.setdefault(end, []).append(name)
    taken = {split_suffix(name)[0] for name in rows}
    sure = {place: written for place, written in found.items() if split_suffix(place)[0] not in taken}
    of_name = {written[0]: place for place, written in sure.items() if len(written) == 1}
    return {of_name.get(name, name): row for name, row in table.items()}, begin


def with_slashes(name: str, folder: str) -> str:
    """The path of an image from a folder; one that is written as on Windows, and leads nowhere, with `/`."""
    return (
        name if "\\" not in name or os.path.lexists(os.path.join(folder, name)) else image_name(name.replace("\\", "/"))
    )


class _Whereabouts:
    """Where the paths of a table lead. folder: of the images. bases: the folders that they may begin at."""

    def __init__(self, folder: str, bases: Sequence[str]) -> None:
        self._folder = real_path(folder) + os.sep
        self._bases = [os.path.expanduser(base) for base in bases]
        self._real: dict[str, str] = {}
        """Folder -> its canonical path: one for many files."""

    def inside(self, path: str) -> Iterator[str]:
        """The path from the folder of the images, where it lies in it."""
        folder, name = os.path.split(path)
        for base in self._bases:
            whole = os.path.join(base, folder)
            if whole not in self._real:
                self._real[whole] = real_path(whole)
            real = self._real[whole]
            if (real + os.sep).startswith(self._folder):
                yield os.path.join(real + os.sep, name).removeprefix(self._folder)

    def is_file(self, path: str) -> bool:
        return any(os.path.isfile(os.path.join(base, path)) for base in self._bases)


_Rows = Iterator[tuple[int, str | None, TableRow]]
"""Line, name, what is reported of it; without a name the caption is the error."""


def _rows(path: str, text: str, moved: Mapping[str, str]) -> _Rows:
    readers = {".csv": _csv_rows, ".jsonl": _json_lines, ".json": _json_rows}
    for number, written, row in readers.get(split_suffix(path)[1], _tab_rows)(text):
        references, worse = (tuple(moved_path(path, moved) for path in paths) for paths in row[1:])
        yield number, written and moved_path(written, moved), row._replace(references=references, worse=worse)


def lost_folders(path: str, moved: Mapping[str, str] = NOTHING_MOVED, images: bool = True) -> list[str]:
    """Folders that a table names by absolute paths and that are not on this machine; none of one that cannot be
    read. images: those of the images too, not of what belongs to them alone."""
    try:
        text = _read_text(os.path.expanduser(path))
    except CaptionError:
        return []
    rows = _rows(path, text, moved)
    named = chain.from_iterable(((images and name) or "", *row.references, *row.worse) for _, name, row in rows)
    folders = dict.fromkeys(name.replace("\\", "/").rpartition("/")[0] for name in named if is_absolute(name))
    return [folder for folder in folders if not os.path.isdir(os.path.expanduser(folder))]


def undecided(path: str) -> int:
    """How many lines of a table are skipped, because neither of two images is better."""
    count = 0
    for line in _read_text(os.path.expanduser(path)).split("\n") if split_suffix(path)[1] == ".jsonl" else ():
        with suppress(ValueError, RecursionError):
            count += _is_undecided(json.loads(line))
    return count


def _is_undecided(row: object) -> bool:
    return isinstance(row, dict) and UNDECIDED in row and _first_of(row, _NAMES) is None


def line_naming(path: str, named: str, moved: Mapping[str, str] = NOTHING_MOVED) -> str:
    """The table with the first line in which a file is named so, as file:line."""
    rows = _rows(path, _read_text(os.path.expanduser(path)), moved)
    found = (at for at, name, row in rows if named in (name, image_name(name or ""), *row.references, *row.worse))
    return f"{path}:{number}" if (number := next(found, 0)) else path


def _tab_rows(text: str) -> _Rows:
    for number, line in enumerate(text.split("\n"), 1):
        written, tab, caption = line.partition("\t")
        if tab and written.strip():
            yield number, written.strip(), TableRow(caption.strip())
        elif line.strip():
            what = "no name before the tab" if tab else "no tab"
            reason = f"{line.strip()[:_SHOWN]!r}: {what}. Write the name of the image, a tab, its caption"
            yield number, None, TableRow(reason)


def _csv_rows(text: str) -> _Rows:
    reader = csv.DictReader(io.StringIO(text))
    try:
        columns = reader.fieldnames or ()
        if not (_first_of(columns, _NAMES) and _first_of(columns, _CAPTIONS)):
            reason = f"{', '.join(columns)[:_SHOWN]!r} is not a header with {_NAMES[0]!r} and {_CAPTIONS[0]!r}"
            yield 1, None, TableRow(f"{reason}. Add one with these names, and commas between them")
            return
        for row in reader:
            yield _named(reader.line_num, row)
    except csv.Error as error:
        yield reader.line_num, None, TableRow(f"cannot be read as CSV: {error}. Fix the line")


def _json_lines(text: str) -> _Rows:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield number, None, TableRow(f"is not valid JSON: {getattr(error, 'msg', error)}. Fix the line")
                continue
            if not _is_undecided(row):
                yield _named(number, row if isinstance(row, dict) else {})


def _json_rows(text: str) -> _Rows:
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = f"is not valid JSON: {getattr(error, 'msg', error)}. Fix it, or write a line for each image"
        yield getattr(error, "lineno", 1), None, TableRow(reason)
        return
    rows = whole if isinstance(whole, list) else [whole]
    if isinstance(whole, dict):
        said = ((name, row if isinstance(row, dict) else {_CAPTIONS[0]: row}) for name, row in whole.items())
        rows = [{_NAMES[0]: name, **row} for name, row in said]
    for number, row in enumerate(rows, 1):
        yield _named(number, row if isinstance(row, dict) else {})


def _named(number: int, row: Mapping[Any, Any]) -> tuple[int, str | None, TableRow]:
    name, caption = (row.get(_first_of(row, keys)) for keys in (_NAMES, _CAPTIONS))
    tags = row.get(_TAGS)
    if isinstance(tags, list) and all(isinstance(tag, str) for tag in tags):
        tags = ", ".join(tags)
    if (key := _first_of(row, _CAPTIONS)) == _TAGS:
        caption = tags
    elif isinstance(caption := _listed(caption), str | None) and key and isinstance(tags, str):
        each_of = (caption or "").split(LIST)
        caption = LIST.join(", ".join(filter(None, (each.strip(), tags.strip()))) for each in each_of)
    if isinstance(name, str) and name.strip() and isinstance(caption, str | None):
        return (
            number,
            name.strip(),
            TableRow((caption or "").strip(), _references(row), _paths([_first_of(row, _WORSE)], row)),
        )
    reason = f"has no {_NAMES[0]!r} and {_CAPTIONS[0]!r} of text. Give both, or remove the line"
    return number, None, TableRow(reason)


def _references(row: Mapping[Any, Any]) -> tuple[str, ...]:
    """The control images of a row, in the order of their numbers."""
    columns = ((key, _REFERENCES.fullmatch(key.strip().lower())) for key in row if isinstance(key, str))
    numbered = sorted((int(match[1] or -1), key) for key, match in columns if match)
    return _paths([key for _, key in numbered], row)


def _paths(keys: Iterable[Any], row: Mapping[Any, Any]) -> tuple[str, ...]:
    """The paths in these columns of a row, each with one or a list."""
    values = chain.from_iterable(value if isinstance(value := row.get(key), list) else [value] for key in keys)
    return tuple(value.strip() for value in values if isinstance(value, str) and value.strip())


def _first_of(keys: Iterable[Any], wanted: Sequence[str]) -> str | None:
    found = {key.strip().lower(): key for key in keys if isinstance(key, str)}
    return next((found[key] for key in wanted if key in found), None)


_SHOWN = 40
"""So many characters of a line are shown."""


def image_name(path: str) -> str:
    """The name of an image in a table of captions: its path from the folder of the images, in Unicode NFC."""
    return normalize("NFC", normpath(path))


def read_caption(path: Path | str) -> str:
    """UTF-8 text without byte order mark and surrounding whitespace, lines ended by \\n; of a `.json` file the
    caption in it, of a list there a line for each.

    Raises CaptionError for any other file.
    """
    return _caption_in(path).replace(LIST, "\n")


def _caption_in(path: Path | str) -> str:
    """`read_caption`, a list as LIST has it."""
    text = _read_text(path)
    if split_suffix(str(path))[1] != ".json":
        return text.strip()
    try:
        row = json.loads(text)
        caption = row[_first_of(row, _CAPTIONS)] if isinstance(row, dict) else row
        return _listed(caption).strip()
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        reason = f"holds no {_CAPTIONS[0]!r} of text. Write one, or take .json out of caption_ext"
        raise CaptionError(path, reason) from error


def with_caption(path: Path | str, caption: str) -> str:
    """The text of a caption file with another caption in it; what else a `.json` file says stays, and a list one.

    Raises CaptionError for a `.json` file that holds none.
    """
    if split_suffix(str(path))[1] != ".json":
        return caption + "\n" if caption else ""
    read_caption(path)
    row = json.loads(_read_text(path))
    key = _first_of(row, _CAPTIONS) if isinstance(row, dict) else None
    new = captions_of(caption) if isinstance(row[key] if key else row, list) else caption
    row = row | {key: new} if key else new
    return json.dumps(row, indent=2, ensure_ascii=False) + "\n"


def _read_text(path: Path | str) -> str:
    try:
        raw = b"".join(read_chunks(path))
    except PermissionError as error:
        cause = denied(Path(path))
        raise CaptionError(path, f"cannot be read: {cause.what}. {cause.remedy}") from error
    except OSError as error:
        raise CaptionError(path, f"cannot be read: {error.strerror or error}") from error
    if (found := pointer(raw)) is not None:
        raise CaptionError(path, f"is {GIT_LFS}. {found.remedy}")
    text_bytes = raw.removeprefix(BOM_UTF8)
    try:
        text = text_bytes.decode("utf-8")
    except UnicodeDecodeError as error:
        offset = error.start + len(raw) - len(text_bytes)
        reason = f"is not UTF-8 text: byte 0x{raw[offset]:02x} at offset {offset}. Save it as UTF-8"
        raise CaptionError(path, reason) from error
    if "\0" in text:
        offset = raw.index(0)
        raise CaptionError(path, f"is not UTF-8 text: a zero byte at offset {offset}. Save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def add_prefix(caption: str, prefix: str) -> str:
    """`<prefix>. <caption>`; one of them alone where the other is empty."""
    return f"{prefix}. {caption}" if prefix and caption else prefix or caption


def inject_trigger(caption: str, trigger: str | None, add: bool = True) -> str:
    """Puts the trigger word for `[trigger]` and `[name]`; with `add`, in front of a caption without it.

    Same strings as ai-toolkit's `toolkit/prompt_utils.py:inject_trigger_into_prompt`.
    """
    trigger = trigger or ""
    for placeholder in PLACEHOLDERS:
        caption = caption.replace(placeholder, trigger)
    if add and trigger and trigger not in caption:
        return f"{trigger} {caption}"
    return caption


def caption_rules(dataset: DatasetConfig, trigger_word: str | None) -> CaptionRules:
    """What happens to the captions of an entry of `datasets`. trigger_word: of the job."""
    trigger = dataset.trigger_word or trigger_word or ""
    prefix = inject_trigger(dataset.caption_prefix, trigger, add=False).strip()
    return CaptionRules(dataset.caption_dropout_rate, dataset.shuffle_tokens, dataset.keep_tokens, trigger, prefix)


def trained_caption(caption: str, dataset: DatasetConfig, rules: CaptionRules, add_trigger: bool = True) -> str:
    """A caption of the dataset as it is trained: the default for an empty one, with prefix and trigger word."""
    whole = add_prefix(caption or dataset.default_caption or "", rules.prefix)
    return inject_trigger(whole, rules.trigger, add_trigger).strip()


_NEARLY_PLACEHOLDER = re.compile(r"[\[{<(]\s*(?:trigger|name)(?:[ _]?word)?\s*[\]}>)]", re.IGNORECASE)


def nearly_placeholders(text: str) -> list[str]:
    """What is meant as `[trigger]` but is not replaced, such as `{trigger}` and `[Trigger]`: each once, in order."""
    has_any = any(opening in text for opening in "[{<(")  # of 100,000 captions much faster than the pattern
    found = dict.fromkeys(_NEARLY_PLACEHOLDER.findall(text) if has_any else ())
    return [each for each in found if each not in PLACEHOLDERS]


def prompt_warnings(prompts: Sequence[str], triggers: Collection[str]) -> Iterator[str]:
    """Warnings of prompts of samples: what nothing replaces, and those without any of the trigger words."""
    together = "\n".join(prompts)
    literal = [each for each in PLACEHOLDERS if each in together and not triggers]
    for placeholder in (*literal, *nearly_placeholders(together)):
        remedy = "Give the job a 'trigger_word'" if placeholder in PLACEHOLDERS else f"Write '{PLACEHOLDERS[0]}'"
        count = sum(placeholder in prompt for prompt in prompts)
        what = f"{count} of {len(prompts)} prompts with '{placeholder}', which nothing replaces"
        yield f"warning: sample: {what}. {remedy}"
    if found := marks_in(prompts):
        yield f"warning: sample: prompts with {in_words(found)}"
    without = [prompt for prompt in prompts if not any(each in prompt for each in (*triggers, *PLACEHOLDERS))]
    if triggers and without:
        shown = ", ".join(repr(shorten(prompt, 40)) for prompt in without[:3])
        what = f"{len(without)} of {len(prompts)} prompts without the trigger word {' or '.join(map(repr, triggers))}"
        yield f"warning: sample: {what}: {shown}. Write '{PLACEHOLDERS[0]}' into those that are to show what is trained"


_COMMON_WORDS = (
    "a an the this that these there two three some one in on at with of his her its he she it no 1girl 1boy "
    "photo photograph picture image portrait close close-up closeup shot view selfie screenshot painting drawing "
    "illustration sketch cartoon anime man woman girl boy person people child cat dog full upper side front back wide "
    "medium low high black white young old small large smiling standing sitting walking looking"
)
"""Lower-case words with which captions begin that are not trigger words."""


def usual_word(captions: Sequence[str]) -> tuple[str, int]:
    """The word with which at least four of five captions begin, and how many: a trigger word that was written by hand.
    Empty without one, and of less than five captions."""
    if len(captions) < 5:
        return "", 0
    begins = Counter(re.split(r"[\s,.;:]", text, maxsplit=1)[0] for text in captions[:1000])
    word = begins.most_common(1)[0][0]
    count = sum(text.startswith(word) for text in captions)
    is_one = count >= 0.8 * len(captions) and word and word.lower() not in _COMMON_WORDS.split()
    return (word, count) if is_one else ("", 0)


def drawn_caption(sample: Sample, seed: int, epoch: int, position: int) -> str:
    """The caption of one use out of those of the sample: any with equal probability, keyed as `caption_for_use`."""
    if not sample.captions:
        return sample.caption
    return sample.captions[int(seeding.uniform(seed, "caption", epoch, position) * len(sample.captions))]


def caption_for_use(caption: str, rules: CaptionRules, seed: int, epoch: int, position: int) -> str:
    """The caption of one use: empty (the trigger too) when dropped, else its comma-separated tags shuffled as the rules
    say; kept tags, the trigger and the prefix stay in place.

    All random numbers are keyed by (seed, epoch, position), so no other setting changes them.
    """
    if seeding.uniform(seed, "caption_dropout", epoch, position) < rules.dropout_rate:
        return ""
    if not rules.shuffle_tokens:
        return caption
    # Not shuffled: the prefix, which may begin with the trigger word, and the trigger word in front of it or the tags.
    trigger = f"{rules.trigger} " if rules.trigger else ""
    begins = [trigger + rules.prefix, rules.prefix] if rules.prefix else [trigger]
    begin = next((text for text in begins if caption.startswith(text)), "")
    if rules.prefix and caption.startswith(begin + ". "):
        begin += ". "
    parts = [part for part in map(str.strip, caption.removeprefix(begin).split(",")) if part]
    free = [
        index
        for index, part in enumerate(parts)
        if index >= rules.keep_tokens and not (rules.trigger and rules.trigger in part)
    ]
    drawn = sorted(free, key=lambda part: seeding.key(seed, "shuffle_tokens", epoch, position, part))
    shuffled = list(parts)
    for place, source in zip(free, drawn, strict=True):
        shuffled[place] = parts[source]
    return begin + ", ".join(shuffled)
