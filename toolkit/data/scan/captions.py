"""Captions of images, from the text of a file to the text of one use.

At the scan, `find_captions` reads the files beside the images, and `trained_caption`
adds prefix and trigger word, once for each image. At each use, `drawn_caption` takes
one of several captions, and `caption_for_use` drops or shuffles it; the random numbers
depend on seed, epoch and position only. Captions in tables are read by `tables`.

`matching` and `samples` call the first half, the batches the second one. `FORMATS` is
the table of caption files. The caption tool, `lint` and the page find, read and write
them with `files_beside`, `read_caption` and `with_caption`. Imports no torch.
"""

from __future__ import annotations

import json
import re
from ast import literal_eval
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

from toolkit.config.sections.dataset import ColumnsConfig, DatasetConfig
from toolkit.contracts.data import PLACEHOLDERS, CaptionRules, Sample
from toolkit.data.scan.columns import (
    JOINED,
    Unfit,
    columns_of,
    first_of,
    in_job,
    is_text,
)
from toolkit.data.scan.directory import DirectoryListing, split_suffix
from toolkit.data.scan.foreign_syntax import in_words, marks_in
from toolkit.data.scan.partners import root_of
from toolkit.errors import Diagnostic
from toolkit.files.unreadable import GIT_LFS, denied, pointer
from toolkit.files.writing import read_chunks
from toolkit.system import seeding
from toolkit.system.read_ahead import map_small_files


class CaptionError(ValueError):
    """A caption file that cannot be used: which file, and why."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class NoCaptionError(CaptionError):
    """A file that can be read and is not a caption file, such as a `.json` file of
    another program."""


LIST = "\0"
"""Between the captions of a list in JSON. No caption file has it."""


def captions_of(text: str) -> list[str]:
    """The captions of a text, with `captions: lines`: its lines that are not empty, and
    the entries of a list."""
    return [*filter(None, map(str.strip, re.split(f"[{LIST}\n]", text)))]


def listed(value: Any) -> Any:
    """A list of texts as one text with LIST between them, without empty ones; any other
    value unchanged."""
    is_list = isinstance(value, list) and bool(value)
    if not is_list or not all(isinstance(text, str) for text in value):
        return value
    return LIST.join(filter(None, map(str.strip, value)))


HALF = "has half a character"
SENTENCES = "the model is trained on sentences"
"""Parts of the messages about a text that is meant as a caption."""


def half_in(text: str) -> str:
    """Why a text cannot be trained that has half a character, as of an emoji that a
    program cut; empty for any other text. JSON can hold one, and names of files.

    >>> half_in("a cat"), half_in("a cat" + chr(0xD83D))[:20]
    ('', 'has half a character')
    """
    if text.isascii():
        return ""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        return f"{HALF} ({half!r}), as of an emoji that was cut. Remove it"
    return ""


def caption_files(
    listing: DirectoryListing, suffixes: Sequence[str], image_suffix: str = ""
) -> list[list[str]]:
    """For each suffix the caption files of the images: a name for each of
    `listing.images`, in their order; '' for none. For `a.jpg` this is `a.txt`, else
    `a.jpg.txt`; for `a_end.jpg` with the image suffix `_end` also `a.txt`."""
    files = listing.files
    return [
        [
            files.get(stem + suffix)
            or files.get(names[0] + suffix)
            or files.get((root_of(stem, image_suffix) or stem) + suffix, "")
            for stem, names in listing.images.items()
        ]
        for suffix in map(str.lower, suffixes)
    ]


def find_captions(
    listing: DirectoryListing,
    files: Sequence[Sequence[str]],
    mistakes: list[Diagnostic],
    keys: Sequence[str] = (),
) -> list[str]:
    """The first caption of each image that is not empty, in the order of
    `listing.images`; '' for none.

    files: the result of `caption_files`. Files with a known text are not read again.
    Errors of files are added to `mistakes`. keys: as of `caption_in`.
    """
    texts = {} if keys else listing.texts

    def read(name: str) -> str | CaptionError:
        path = listing.path(name)
        if name in listing.no_files:
            return CaptionError(path, listing.no_files[name])
        try:
            return caption_in(path, read_text(path), keys)
        except CaptionError as error:
            return error

    captions = [""] * len(listing.images)
    for names in files:
        wanted = zip(names, captions, strict=True)
        unread = [
            name for name, text in wanted if name and not text and name not in texts
        ]
        for name, caption in zip(unread, map_small_files(read, unread), strict=True):
            if isinstance(caption, CaptionError):
                mistakes.append(Diagnostic((str(caption.path),), caption.reason))
            else:
                texts[name] = caption
        for index, name in enumerate(names):
            captions[index] = captions[index] or texts.get(name, "")
    return captions


def caption_of_name(stem: str) -> str:
    """The name of an image as its caption: with spaces for `_`, and without the number
    that file managers put behind equal names.

    >>> caption_of_name("a_red_cat (2)")
    'a red cat'
    """
    return re.sub(r"\s*\([0-9]+\)$", "", stem.replace("_", " ")).strip()


class CaptionFormat(NamedTuple):
    """One kind of caption file.

    >>> FORMATS[".json"].read('{"caption": "a red cat", "rating": 5}', ())
    'a red cat'
    """

    read: Callable[[str, Sequence[str]], str]
    """From the text of a file, and the keys that the job gives for captions in JSON, to
    its caption, with LIST between several. ValueError: the file holds none."""

    write: Callable[[str, str], str]
    """From the text of a file and a new caption to the new text."""


OF_A_DOCUMENT = "high_level_description"
"""The sentence of a caption that is a JSON document, as Ideogram 4 is trained on."""

NO_TEXT = "holds no 'caption' of text"
WRITE_ONE = "Write one, or take .json out of caption_ext"
"""What to do with a `.json` file without any text."""

_BEGINS = re.compile(
    r"""(?:json\s*)?\{\s*(?:(["'])[^"'\n]*\1\s*[:,}]|\w+\s*:\s*["'\[{])|b(["']).*\2$"""
    r"""|\[\s*\{?\s*(["'])[^"'\n]*\3\s*[,:\]"']|array\(\["""
)
"""Begins an object, or a list of texts."""

_DOCUMENT = f"is a JSON document, and {{}}: {SENTENCES}. Write the sentence alone, or as its 'caption'"

_NO_LITERAL = (ValueError, SyntaxError, TypeError, RecursionError, MemoryError)


def _unpacked(text: str) -> Any:
    """The object or the list that a text is, in JSON or as Python writes it; any other
    text unchanged."""
    text = text.strip()
    for read in (json.loads, literal_eval) if text.startswith(tuple("{[(")) else ():
        with suppress(*_NO_LITERAL):
            value = read(text)
            is_joined = read is literal_eval and JOINED.search(text)
            if isinstance(value, dict | list | tuple) and not is_joined:
                return [*value] if isinstance(value, tuple) else value
    if _BEGINS.match(text):
        raise Unfit(_DOCUMENT.format("is cut or damaged"))
    return text


def caption_of(value: Any, keys: Sequence[str] = ()) -> str:
    """The caption in the text of a file or a cell, or in a value of JSON, with LIST
    between several. keys: of objects, which go before those that are known.

    Raises Unfit for a value without one.

    >>> caption_of(" a cat "), caption_of('{"caption": "a red cat", "rating": 5}')
    ('a cat', 'a red cat')
    """
    if isinstance(value, str):
        value = _unpacked(value)
    if isinstance(value, dict):
        key = _key_in(value, keys)
        together = ", " if key == "tags" else LIST
        return caption_of(value.get(key), keys).replace(LIST, together)
    text = listed(value)
    if not isinstance(text, str):
        raise Unfit(_DOCUMENT.format(NO_TEXT))
    return text.strip()


def _key_in(row: Mapping[str, Any], keys: Sequence[str] = ()) -> str | None:
    """The key of the caption in an object of JSON."""
    return first_of(
        row, (*keys, *columns_of([row], ColumnsConfig()).prompt, OF_A_DOCUMENT)
    )


def _key_to_give(text: str) -> str:
    """The remedy for a `.json` file of which no key is known as the caption; empty where
    it has no text."""
    keys = []
    with suppress(ValueError, RecursionError, AttributeError):
        texts = ((key, listed(value)) for key, value in json.loads(text).items())
        keys = [key for key, text in texts if isinstance(text, str) and is_text(text)]
    if len(keys) < 2:
        return f"Give {in_job({'prompt': keys})}" if keys else ""
    return f"Fill in {in_job({'prompt': ['...']})} with one of {', '.join(keys)}"


def _write_json(text: str, caption: str) -> str:
    """Other keys stay, and a list stays a list."""
    row = json.loads(text)
    key = _key_in(row) if isinstance(row, dict) else None
    is_list = isinstance(row[key] if key else row, list)
    new = captions_of(caption) if is_list else caption
    row = row | {key: new} if key else new
    return json.dumps(row, indent=2, ensure_ascii=False) + "\n"


_TEXT = CaptionFormat(
    lambda text, _: caption_of(text), lambda _, caption: caption and f"{caption}\n"
)

FORMATS = {
    ".txt": _TEXT,
    ".caption": _TEXT,
    ".cap": _TEXT,
    ".json": CaptionFormat(
        lambda text, keys: caption_of(json.loads(text), keys), _write_json
    ),
}
"""Suffix -> how such a caption file is read and written; `caption_ext` may name others,
which are text. Where nothing says which suffix counts, the first one does."""


def files_beside(image: Path) -> list[Path]:
    """The paths at which an image may have its caption, in the order of `FORMATS`: for
    each suffix `a.txt`, then `a.jpg.txt`.

    >>> [path.name for path in files_beside(Path("photos/a.jpg"))][:3]
    ['a.txt', 'a.jpg.txt', 'a.caption']
    """
    return [
        image.with_name(stem + suffix)
        for suffix in FORMATS
        for stem in (image.stem, image.name)
    ]


def read_caption(path: Path | str) -> str:
    """The text of a caption file without byte order mark and surrounding whitespace,
    lines ended by \\n. For a `.json` file it is the caption in it, for a list there one
    line for each caption.

    Raises CaptionError for any other file.
    """
    return caption_in(path, read_text(path)).replace(LIST, "\n")


def caption_in(path: Path | str, text: str, keys: Sequence[str] = ()) -> str:
    """The caption in the text of the caption file `path`, with LIST between several.
    keys: of captions in JSON, which go before those that are known. Raises
    NoCaptionError, or CaptionError for half a character."""
    suffix = split_suffix(str(path))[1]
    try:
        caption = FORMATS.get(suffix, _TEXT).read(text, keys)
    except (ValueError, RecursionError) as error:
        if suffix != ".json":
            raise NoCaptionError(path, str(error)) from error
        reason = f"{NO_TEXT}. {_key_to_give(text) or WRITE_ONE}"
        raise NoCaptionError(path, reason) from error
    half = half_in(caption)
    if half:
        raise CaptionError(path, half)
    return caption


def with_caption(path: Path | str, caption: str) -> str:
    """The text of a caption file with another caption in it. Other keys of a `.json`
    file stay, and a list stays a list.

    Raises CaptionError for a `.json` file that holds none.
    """
    caption_format = FORMATS.get(split_suffix(str(path))[1], _TEXT)
    if caption_format is _TEXT:
        return _TEXT.write("", caption)
    text = read_text(path)
    caption_in(path, text)
    return caption_format.write(text, caption)


def read_text(path: Path | str, utf16: bool = False) -> str:
    """The text of a UTF-8 file, lines ended by \\n; with `utf16` also of one that
    begins with the mark of UTF-16.

    Raises CaptionError for any other file.
    """
    try:
        raw = b"".join(read_chunks(path))
    except PermissionError as error:
        cause = denied(Path(path))
        raise CaptionError(
            path, f"cannot be read: {cause.what}. {cause.remedy}"
        ) from error
    except OSError as error:
        raise CaptionError(
            path, f"cannot be read: {error.strerror or error}"
        ) from error
    elsewhere = pointer(raw)
    if elsewhere is not None:
        raise CaptionError(path, f"is {GIT_LFS}. {elsewhere.remedy}")
    if raw.startswith(b"PK\3\4"):
        what = "is a spreadsheet or another zip file, not text"
        raise CaptionError(path, f"{what}. Export the table as CSV, in UTF-8")
    # "Unicode text" of a spreadsheet
    is_utf16 = utf16 and raw.startswith((BOM_UTF16_LE, BOM_UTF16_BE))
    try:
        text = raw.decode("utf-16" if is_utf16 else "utf-8")
    except UnicodeDecodeError as error:
        what = (
            f"is not UTF-8 text: byte 0x{raw[error.start]:02x} at offset {error.start}"
        )
        if is_utf16:
            what = f"is not UTF-16 text, as its first bytes say: {error.reason} at offset {error.start}"
        raise CaptionError(path, f"{what}. Save it as UTF-8") from error
    if "\0" in text and not is_utf16:
        what = f"is not UTF-8 text: a zero byte at offset {raw.index(0)}"
        raise CaptionError(path, f"{what}. Save it as UTF-8")
    text = text.removeprefix("\ufeff")  # the mark of UTF-8
    return text.replace("\r\n", "\n").replace("\r", "\n")


def add_prefix(caption: str, prefix: str) -> str:
    """`<prefix>. <caption>`; one of them alone where the other is empty.

    >>> add_prefix("on a beach", "maya"), add_prefix("", "maya")
    ('maya. on a beach', 'maya')
    """
    if prefix and caption:
        return f"{prefix}. {caption}"
    return prefix or caption


def inject_trigger(caption: str, trigger: str | None, add: bool = True) -> str:
    """Replaces `[trigger]` and `[name]` by the trigger word; with `add`, also puts it in
    front of a caption without it.

    Same strings as ai-toolkit's `toolkit/prompt_utils.py:inject_trigger_into_prompt`.

    >>> inject_trigger("[trigger] on a horse", "sks"), inject_trigger("a horse", "sks")
    ('sks on a horse', 'sks a horse')
    """
    trigger = trigger or ""
    for placeholder in PLACEHOLDERS:
        caption = caption.replace(placeholder, trigger)
    if add and trigger and trigger not in caption:
        return f"{trigger} {caption}"
    return caption


def caption_rules(dataset: DatasetConfig, trigger_word: str | None) -> CaptionRules:
    """What happens to the captions of an entry of `datasets`. trigger_word: of the
    job."""
    trigger = dataset.trigger_word or trigger_word or ""
    prefix = inject_trigger(dataset.caption_prefix, trigger, add=False).strip()
    return CaptionRules(
        dataset.caption_dropout_rate,
        dataset.shuffle_tokens,
        dataset.keep_tokens,
        trigger,
        prefix,
    )


def trained_caption(
    caption: str, dataset: DatasetConfig, rules: CaptionRules, add_trigger: bool = True
) -> str:
    """A caption of the dataset as it is trained: the default for an empty one, with
    prefix and trigger word."""
    whole = add_prefix(caption or dataset.default_caption or "", rules.prefix)
    return inject_trigger(whole, rules.trigger, add_trigger).strip()


_NEARLY_PLACEHOLDER = re.compile(
    r"[\[{<(]\s*(?:trigger|name)(?:[ _]?word)?\s*[\]}>)]", re.IGNORECASE
)


def nearly_placeholders(text: str) -> list[str]:
    """Placeholders such as `{trigger}` and `[Trigger]`, which were probably intended as
    `[trigger]` but are not replaced: each once, in order.

    >>> nearly_placeholders("{trigger} on a beach")
    ['{trigger}']
    """
    # In 100,000 captions this search is much faster than the pattern.
    if not any(opening in text for opening in "[{<("):
        return []
    near = dict.fromkeys(_NEARLY_PLACEHOLDER.findall(text))
    return [placeholder for placeholder in near if placeholder not in PLACEHOLDERS]


def unreplaced(texts: Iterable[str], has_trigger: bool) -> dict[str, str]:
    """The placeholders in some texts that nothing replaces -> what to do.

    >>> unreplaced(["[trigger] on a beach", "a {Name}"], has_trigger=True)
    {'{Name}': "Write '[trigger]'"}
    """
    together = "\n".join(texts)
    literal = [written for written in PLACEHOLDERS if written in together]
    remedies = dict.fromkeys(
        nearly_placeholders(together), f"Write '{PLACEHOLDERS[0]}'"
    )
    if has_trigger:
        return remedies
    return dict.fromkeys(literal, "Give the job a 'trigger_word'") | remedies


def prompt_warnings(prompts: Sequence[str], triggers: Collection[str]) -> Iterator[str]:
    """Warnings for prompts of samples: placeholders that are not replaced, and prompts
    without any of the trigger words."""
    for placeholder, remedy in unreplaced(prompts, bool(triggers)).items():
        count = sum(placeholder in prompt for prompt in prompts)
        yield (
            f"warning: sample: {count} of {len(prompts)} prompts with '{placeholder}', which nothing replaces. "
            f"{remedy}"
        )
    marks = marks_in(prompts)
    if marks:
        yield f"warning: sample: prompts with {in_words(marks)}"
    words = (*triggers, *PLACEHOLDERS)
    without = [
        prompt for prompt in prompts if not any(word in prompt for word in words)
    ]
    if triggers and without:
        shown = ", ".join(repr(shorten(prompt, 40)) for prompt in without[:3])
        named = " or ".join(map(repr, triggers))
        yield (
            f"warning: sample: {len(without)} of {len(prompts)} prompts without the trigger word {named}: "
            f"{shown}. Write '{PLACEHOLDERS[0]}' into those that are to show what is trained"
        )


def drawn_caption(sample: Sample, seed: int, epoch: int, position: int) -> str:
    """One of the captions of a sample, for one use: each with equal probability, keyed
    as in `caption_for_use`."""
    if not sample.captions:
        return sample.caption
    share = seeding.uniform(seed, "caption", epoch, position)
    return sample.captions[int(share * len(sample.captions))]


def caption_for_use(
    caption: str, rules: CaptionRules, seed: int, epoch: int, position: int
) -> str:
    """The caption of one use: empty (the trigger too) when dropped, else its
    comma-separated tags shuffled as the rules say; kept tags, the trigger and the
    prefix stay in place.

    All random numbers are keyed by (seed, epoch, position), so no other setting changes
    them.
    """
    if seeding.uniform(seed, "caption_dropout", epoch, position) < rules.dropout_rate:
        return ""
    if not rules.shuffle_tokens:
        return caption
    # Not shuffled: the prefix, which may begin with the trigger word, and the trigger
    # word in front of it or the tags.
    trigger = f"{rules.trigger} " if rules.trigger else ""
    begins = [trigger + rules.prefix, rules.prefix] if rules.prefix else [trigger]
    begin = next((text for text in begins if caption.startswith(text)), "")
    if rules.prefix and caption.startswith(begin + ". "):
        begin += ". "
    tags = map(str.strip, caption.removeprefix(begin).split(","))
    parts = [*filter(None, tags)]
    free = [
        index
        for index, part in enumerate(parts)
        if index >= rules.keep_tokens and not (rules.trigger and rules.trigger in part)
    ]
    drawn = sorted(
        free,
        key=lambda part: seeding.key(seed, "shuffle_tokens", epoch, position, part),
    )
    shuffled = list(parts)
    for place, source in zip(free, drawn, strict=True):
        shuffled[place] = parts[source]
    return begin + ", ".join(shuffled)
