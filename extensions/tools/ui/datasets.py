"""Datasets on the page: images, captions, a trash, and the findings of lint.

A folder is read by the same rules as in training. Captions are replaced only if they
are still as the user has seen them. Deleted images are moved to a trash and can be
restored. The page's own files are in `<output>/.ui/`: the view of each dataset, its
findings, and a copy of each caption that was replaced.

Requests are answered in `extensions.tools.ui.views.datasets`, which calls most of this
module. The editor for jobs reads datasets here too (`extensions.tools.ui.views.new`).
New files are handled by `extensions.tools.ui.uploads`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import quote

from starlette.exceptions import HTTPException

from extensions.tools.ui.commands import LATE, run_py
from extensions.tools.ui.state import Ui, inside
from toolkit.config.sections.dataset import DatasetConfig
from toolkit.contracts.data import Focus, ResizeCrop, Size
from toolkit.data.pixels.images import ImageError, image_size
from toolkit.data.scan.captions import (
    FORMATS,
    CaptionError,
    read_caption,
    with_caption,
)
from toolkit.data.scan.crops import SUFFIX as CROP
from toolkit.data.scan.crops import CropError, read_crop
from toolkit.data.scan.directory import DirectoryListing, list_folder
from toolkit.data.scan.fingerprint import version_of
from toolkit.data.scan.folder import FoundImage, find_images
from toolkit.data.scan.items import SIZE_MULTIPLE, bucket_for
from toolkit.data.scan.partners import PairNames, pair_folders, pair_names
from toolkit.errors import RunError
from toolkit.files.redact import redact_text
from toolkit.files.shared_look import SharedLook
from toolkit.files.writing import (
    atomic_write,
    folder_lock,
    link,
    read_object,
    read_regular,
    write_json,
)
from toolkit.train.run_index import is_fresh, mark_of

LINT_S = 900
"""Seconds that a check of a dataset may take."""

TRASH = ".trash"
"""Folder for deleted images, in the folder of the datasets: a move is one rename. It is
hidden, so it is not listed as a dataset."""

MOST_SHARED = 3
"""Number of datasets that stay in memory. One with 5,000 images takes 8 MB."""

MOST_STEPS = 100
"""Changes of the captions of a dataset that can be taken back."""

MOST_KNOWN = 50_000
"""Number of images whose size is remembered."""

DEFAULT_VIEW = {
    "references": "",
    "masks": "",
    "resolution": 1024,
    "instruction": "",
    "trigger": "",
}

BEFORE, AFTER = "before", "after"
"""Subfolders that the page makes for a dataset of pairs."""


class Conflict(ValueError):
    """A caption was changed by somebody else since it was read.

    The text of the exception is the caption as it is now.

    >>> str(Conflict("a black cat"))
    'a black cat'
    """


def below(folder: Path, name: str) -> Path:
    """The file or folder of a path with `/` that comes from outside.

    Raises HTTPException 404 for a hidden name, and as `inside` does.
    """
    for part in name.split("/"):
        folder = inside(folder, "" if part.startswith(".") else part)
    return folder


def shown(text: str) -> str:
    """A text that can be shown on a page.

    Bytes of a file name that are not UTF-8 are escaped, and secrets are redacted.

    >>> shown("caf\\udce9.png")
    'caf\\\\udce9.png'
    """
    return redact_text(text.encode(errors="backslashreplace").decode())


def names(ui: Ui) -> list[str]:
    """Names of the datasets, sorted. A link that leads out of the folder of the datasets
    is left out."""
    try:
        is_there = ui.datasets.is_dir()
        folders = list_folder(str(ui.datasets)).subfolders if is_there else ()
    except OSError as error:
        raise HTTPException(403, f"{ui.datasets}: {error.strerror}") from error
    return [name for name in folders if _is_within(ui.datasets, name)]


@dataclass
class Dataset:
    """The folder of a dataset in its current state, with the choices made on its page.

    Example::

        data = read_dataset(ui, "cat")
        print(len(data.images), data.missing)  # images, and images without a caption
        for path, fault in data.faults.items():
            print(path, fault)
    """

    ui: Ui
    name: str
    view: dict[str, Any] = field(default_factory=dict)
    """Choices made on the page. `references`, `masks`: a folder in the folder of the
    datasets, or the end of the file names. `resolution`: in pixels. `instruction`:
    caption of pairs without one. `trigger`: word that `run.py caption` put into the
    captions."""

    listings: list[DirectoryListing] = field(default_factory=list)
    """The folder, then its visible subfolders. A link that leads out is left out."""

    partners: list[DirectoryListing] = field(default_factory=list)
    """The folders of control images and masks."""

    images: list[FoundImage] = field(default_factory=list)
    faults: dict[str, str] = field(default_factory=dict)
    """Path of a file or folder -> what is wrong with it."""

    notes: list[str] = field(default_factory=list)
    sizes: dict[str, Size | str] = field(default_factory=dict)
    """Path of an image -> its size in pixels, or the reason why it cannot be read."""

    findings: dict[str, Any] = field(default_factory=dict)
    """The findings of lint, as `_findings` returns them."""

    faults_told: int = 0
    """Number of decoding errors that `sizes` contains (`remember_fault`)."""

    @property
    def folder(self) -> Path:
        return self.ui.datasets / self.name

    @property
    def view_file(self) -> Path:
        return self.ui.own / "datasets" / f"{self.name}.json"

    @cached_property
    def state(self) -> str:
        """A digest of the view and of the files' versions. It changes with any file."""
        digest = hashlib.sha256(repr(self.view).encode())
        for listing in (*self.listings, *self.partners):
            digest.update(repr(listing.folder).encode())
            for file in listing.versions.items():  # by name
                digest.update(repr(file).encode())
        return digest.hexdigest()[:16]

    @cached_property
    def _prefix(self) -> str:
        return f"{self.folder}{os.sep}"

    @cached_property
    def missing(self) -> int:
        """Images without a caption."""
        return sum(not image.caption for image in self.images)

    @cached_property
    def repeats(self) -> list[int]:
        """The different numbers of repeats of its images, sorted."""
        return sorted({image.repeats for image in self.images})

    @cached_property
    def tags(self) -> list[tuple[str, int]]:
        """The tags of several captions and the number of these, the most frequent
        first. In capital or small letters a tag is the same."""
        counts = Counter[str]()
        spellings: dict[str, str] = {}
        for image in self.images:
            by_name = {tag.casefold(): tag for tag in tags_of(image.caption)}
            counts.update(by_name.keys())
            for name, tag in by_name.items():
                spellings.setdefault(name, tag)
        return [(spellings[tag], n) for tag, n in counts.most_common() if n > 1]

    @cached_property
    def buckets(self) -> list[tuple[Size, int, int]]:
        """Each bucket, its number of images, and the same number with repeats."""
        alike = Counter(
            (self.sizes[image.path], image.repeats) for image in self.images
        )
        counts = Counter[Size]()
        used = Counter[Size]()
        for (size, repeats), count in alike.items():
            if isinstance(size, Size):
                bucket = self.crop(size).bucket
                counts[bucket] += count
                used[bucket] += count * repeats
        return [
            (bucket, count, used[bucket]) for bucket, count in sorted(counts.items())
        ]

    def crop(self, size: Size) -> ResizeCrop:
        """Scaling and crop of an image of this size, as in training."""
        return bucket_for(size, self.view["resolution"], SIZE_MULTIPLE)

    @property
    def size(self) -> int:
        """Bytes of its files."""
        versions = chain.from_iterable(each.versions.values() for each in self.listings)
        return sum(version[0] for version in versions if version)

    def id_of(self, path: str) -> str:
        """The name of a file in addresses: its path from the folder, with `/`."""
        # Ten times faster than `relpath`, which counts with thousands of images.
        within = path.removeprefix(self._prefix)
        if within == path:
            within = os.path.relpath(path, self.folder)
        return within.replace(os.sep, "/")

    def partner(self, value: str) -> tuple[str, str]:
        """The folder that `references` or `masks` names, and the suffix of names that it
        is otherwise: one of both is empty.

        The folder is relative to the folder of the datasets, or a path that leads into
        it.
        """
        place = os.path.realpath(value)
        root = os.path.realpath(self.ui.datasets)
        within = place.startswith(f"{root}{os.sep}")
        for name in (value, os.path.relpath(place, root) if within else ""):
            with suppress(HTTPException):
                if name and os.path.isdir(below(self.ui.datasets, name)):
                    return str(below(self.ui.datasets, name)), ""
        return "", value

    @cached_property
    def sides(self) -> tuple[str, str] | None:
        """The subfolders with the images before and after the edit. None: the dataset
        has no such subfolders."""
        inside = {
            os.path.basename(listing.folder): listing.images
            for listing in self.listings[1:]
        }
        if self.view["references"] or self.listings[0].images:
            return None
        images, controls = pair_folders(inside) or (AFTER, BEFORE)
        return (controls, images) if {images, controls} <= inside.keys() else None

    @cached_property
    def names(self) -> PairNames | None:
        """How the pairs in its own folder are named. None: the names do not show
        pairs."""
        chosen = self.view["references"]
        return None if chosen else pair_names(self.listings[0].images)

    @property
    def is_pairs(self) -> bool:
        """Whether its images have control images."""
        is_named = self.view["references"] or self.sides or self.names
        return bool(is_named) or any(image.references for image in self.images)

    @cached_property
    def orphans(self) -> list[str]:
        """Paths of the images in the folders of control images that belong to no
        pair."""
        if not (self.sides or self.names or self.view["references"]):
            return []
        used = {
            path
            for image in self.images
            for path in (image.path, *image.references, image.mask)
        }
        places = self.section().get("control_path", (str(self.folder),))
        paths = (
            listing.path(name)
            for listing in (*self.listings, *self.partners)
            if listing.folder in places
            for name in chain.from_iterable(listing.images.values())
        )
        return [*dict.fromkeys(path for path in paths if path not in used)]

    @property
    def alone(self) -> int:
        """Number of images without their partner."""
        if not self.is_pairs:
            return 0
        return len(self.orphans) + sum(not each.references for each in self.images)

    def section(self) -> dict[str, Any]:
        """The `datasets` section of a job for this dataset: its folders, and the choices
        made on its page."""
        references, suffix = self.partner(self.view["references"])
        masks, mask_suffix = self.partner(self.view["masks"])
        keys: dict[str, Any] = {"folder_path": str(self.folder)}
        if self.sides:
            before, after = (str(self.folder / side) for side in self.sides)
            keys |= {"folder_path": after, "control_path": (before,)}
        elif self.names:
            keys["image_suffix"] = self.names.image
            keys["control_suffix"] = self.names.controls
            keys |= {"control_optional": True} if self.names.optional else {}
        chosen: dict[str, Any] = {
            "control_path": references and (references,),
            "control_suffix": suffix and (suffix,),
            "mask_path": masks,
            "mask_suffix": mask_suffix,
            "default_caption": self.view["instruction"],
        }
        return keys | {key: value for key, value in chosen.items() if value}

    def config(self) -> DatasetConfig:
        """The section that reads the dataset for the page.

        It finds more than a job does without further keys: the page says which keys a
        job needs for it.
        """
        keys = self.section()
        keys["control_optional"] = True  # images without a partner are shown too
        keys.pop("default_caption", "")  # the page edits the captions in the files
        return DatasetConfig(
            caption_ext=tuple(FORMATS),
            captions="lines",
            resolution=(self.view["resolution"],),
            **keys,
        )


def keep_view(data: Dataset, changes: Mapping[str, Any]) -> None:
    """Writes choices made on the page; choices that are not in `changes` stay. Raises
    OSError or RunError."""
    with data.ui.locked():
        view = DEFAULT_VIEW | read_object(data.view_file)
        write_json(data.view_file, view | dict(changes))


def open_dataset(ui: Ui, name: str, names_only: bool = False) -> Dataset:
    """A dataset by its name, with its listings and its view but without its images.

    names_only: the listings have no versions of files (`list_folder`). Raises
    HTTPException 404 for a dataset that does not exist, or is a link that leads out.
    """
    folder = below(ui.datasets, name)
    data = Dataset(ui, name, dict(DEFAULT_VIEW))
    for key, value in read_object(data.view_file).items():
        if type(value) is type(DEFAULT_VIEW.get(key)):
            data.view[key] = value
    try:
        top = list_folder(str(folder), names_only=names_only)
        data.listings = [top]
        for subfolder in top.subfolders:
            if _is_within(folder, subfolder):
                listing = list_folder(str(folder / subfolder), names_only=names_only)
                data.listings.append(listing)
        for key in ("references", "masks"):
            place, _ = data.partner(data.view[key])
            if place:
                data.partners.append(list_folder(place))
    except OSError as error:
        raise HTTPException(
            404, f"{name}: {error.strerror}. It was moved away, or cannot be read."
        ) from error
    return data


def read_dataset(ui: Ui, name: str) -> Dataset:
    """A dataset with its images, their sizes, and the findings of lint.

    All requests at the same time share one object, so it must not be changed. Raises
    HTTPException 404 as `open_dataset`.

    Example::

        data = read_dataset(ui, "cat")
        chosen = [image for image in data.images if not image.caption]
    """
    below(ui.datasets, name)  # a wrong name must not take room in the memory
    shared: SharedLook[Dataset] = ui.recent(
        "datasets", name, lambda: SharedLook(partial(_look, ui, name)), MOST_SHARED
    )
    return shared.now()


def _look(ui: Ui, name: str, before: Dataset | None) -> Dataset:
    """Reads a dataset; the contents of files that have not changed are taken from
    `before`."""
    data = open_dataset(ui, name)
    data.faults_told = ui.memory.get("faults told", 0)
    is_same = before is not None and before.state == data.state
    if before and is_same:
        for kept in ("listings", "partners", "images", "faults", "notes", "sizes"):
            setattr(data, kept, getattr(before, kept))
    elif _has_images(data):
        _read_captions(data, before)
    if before is None or not is_same or before.faults_told != data.faults_told:
        data.sizes = {image.path: size_of(ui, image.path) for image in data.images}
    data.findings = _findings(data, before)
    return data


def _has_images(data: Dataset) -> bool:
    """Whether a folder that is trained has images, not only a folder of control
    images."""
    return any(
        listing.images and (not data.sides or listing.folder.endswith(data.sides[1]))
        for listing in data.listings
    )


def _read_captions(data: Dataset, before: Dataset | None) -> None:
    """Fills the images, notes and faults. Texts of files that have not changed are taken
    from `before`."""
    listings = [*data.listings, *data.partners]
    old = (*before.listings, *before.partners) if before else ()
    known = {listing.prefix: listing for listing in old}
    for listing in listings:
        if listing.prefix in known:
            listing.take_texts(known[listing.prefix])
    images, mistakes, notes = find_images(data.config(), listings)
    data.notes = [*map(shown, notes)]
    for mistake in mistakes:
        place = shown(mistake.place)
        messages = [data.faults.get(place), shown(mistake.message)]
        data.faults[place] = "; ".join(filter(None, messages))
    data.images = [*filter(None, (_without_links(data, image) for image in images))]


def _is_within(folder: Path, name: str) -> bool:
    """Whether a name can be shown on a page and does not lead out of the folder."""
    with suppress(HTTPException, UnicodeEncodeError):
        return bool(name.encode() and below(folder, name))
    return False


def _without_links(data: Dataset, image: FoundImage) -> FoundImage | None:
    """The image without texts of files outside of the folder, to which links lead.

    None for an image that is itself outside, or whose name no address can hold. The
    reason is added to the faults.
    """
    folder = os.path.dirname(image.path)
    folders = {listing.prefix.rstrip(os.sep) for listing in data.listings}
    if folder not in folders or shown(image.path) != image.path:
        data.faults[shown(image.path)] = (
            "has a name that is not UTF-8, or is in a folder that leads out. Move it"
        )
        return None
    for path in (*image.captions[:1], *filter(None, [image.table])):
        name = os.path.basename(path)
        if os.path.islink(path) and not _is_within(Path(path).parent, name):
            data.faults[image.path] = f"{name} is a link that leads out of the folder"
            return image._replace(caption="", captions=(), table=path)
    return image


def size_of(ui: Ui, path: str) -> Size | str:
    """Size of an image in pixels after EXIF rotation, from its header; or the reason why
    it cannot be read."""
    known: dict[str, tuple[Any, Size | str]] = ui.memory.setdefault("image sizes", {})
    size: Size | str
    try:
        if stat.S_ISLNK(os.lstat(path).st_mode):
            below(Path(path).parent, os.path.basename(path))
        about = os.stat(path)
        if not stat.S_ISREG(about.st_mode):
            return "is not a file"
        version = version_of(about)
        if path in known and known[path][0] == version:
            return known[path][1]
        size = image_size(path)
    except HTTPException:
        return "is a link that leads out of the folder. Put the file itself there"
    except OSError as error:
        return error.strerror or str(error)
    except ImageError as error:
        size = shown(error.reason)
    if len(known) >= MOST_KNOWN:
        known.clear()
    known[path] = version, size
    return size


def remember_fault(ui: Ui, path: str, reason: str) -> None:
    """Remembers why an image could not be decoded, until its file changes."""
    known = ui.memory.setdefault("image sizes", {})
    with suppress(OSError):
        fault = version_of(os.stat(path)), shown(reason)
        if known.get(path) != fault:
            known[path] = fault
            ui.memory["faults told"] = ui.memory.get("faults told", 0) + 1


# ---------------------------------------------------------------- captions


def caption_file(image: FoundImage) -> Path:
    """The caption file of an image, whether it exists or not."""
    if image.captions:
        return Path(image.captions[0])
    return Path(image.path).with_suffix(".txt")


def caption_version(image: FoundImage) -> str:
    """A hash of the caption file: `none` if there is no file, `unreadable` if it cannot
    be read."""
    try:
        return hashlib.sha256(read_regular(caption_file(image))).hexdigest()[:16]
    except FileNotFoundError:
        return "none"
    except OSError:
        return "unreadable"


def version_with(image: FoundImage, text: str) -> str:
    """The version of a caption file that has this text. Empty: it has another text."""
    # The version is read before the text, so a change in between is a conflict.
    version = caption_version(image)
    with suppress(CaptionError):
        if _text_of(caption_file(image)) == text:
            return version
    return ""


def _text_of(file: Path) -> str:
    return read_caption(file) if file.exists() else ""


def keep_captions(data: Dataset, images: Iterable[FoundImage]) -> None:
    """Copies the captions of images into one file of the page's trash, before they are
    replaced.

    The file is JSON: file name -> text. Bytes that are not UTF-8 are written as Python's
    surrogate escapes. Raises OSError.
    """
    old = {}
    for file in map(caption_file, images):
        if file.exists():
            text = read_regular(file).decode(errors="surrogateescape")
            old[data.id_of(str(file))] = text
    if old:
        folder = data.ui.own / "trash" / "captions" / data.name
        with atomic_write(folder / f"{moment_name()}.json") as temporary:
            temporary.write_text(json.dumps(old, indent=1), encoding="utf-8")


def steps(data: Dataset) -> list[Path]:
    """The files of the changes of captions that can be taken back, the latest last."""
    return sorted((data.ui.own / "undo" / data.name).glob("*.json"))


def keep_step(data: Dataset, changes: Iterable[tuple[FoundImage, str]]) -> None:
    """Keeps what `undo` needs, before captions are replaced by these texts: one file for
    all of them, name of the image -> the caption as it was and as it becomes. Raises
    OSError."""
    both = {data.id_of(image.path): [image.caption, text] for image, text in changes}
    path = data.ui.own / "undo" / data.name / f"{time.time_ns():020}.json"
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(both), encoding="utf-8")
    for old in steps(data)[:-MOST_STEPS]:
        old.unlink(missing_ok=True)


def undo(data: Dataset, step: str) -> tuple[dict[str, str], int]:
    """Takes a change of captions back, all of it.

    step: name of its file without the suffix. One that was taken back is gone, and
    changes nothing.

    Returns the name and the version of each caption that is as it was, and how many were
    changed by somebody else since and are kept. Raises OSError, and HTTPException 404 as
    `inside` does.
    """
    path = inside(data.ui.own / "undo" / data.name, f"{step}.json")
    known = read_object(path)
    images = {data.id_of(image.path): image for image in data.images}
    keep_captions(data, (images[name] for name in known if name in images))
    versions = {}
    for name, (before, after) in known.items():
        with suppress(Conflict, CaptionError, LookupError):
            image = images[name]
            version = version_with(image, after)
            versions[name] = set_caption(data, image, before, version, is_kept=True)
    path.unlink(missing_ok=True)  # at the end: after a kill it is pressed again
    return versions, len(known) - len(versions)


def set_caption(
    data: Dataset, image: FoundImage, text: str, version: str, is_kept: bool = False
) -> str:
    """Replaces a caption that still has the version that was read.

    version: `caption_version` at the time of reading.
    is_kept: the caption is one of many that `keep_captions` has copied, and is not a step
    for `undo`; the disk may write them together.

    Returns the new version. Raises Conflict if the file has another version and another
    text, CaptionError for a `.json` without a caption or an image that is gone, and
    OSError.
    """
    file = caption_file(image)
    with folder_lock(file.parent):
        if not os.path.exists(image.path):
            raise CaptionError(
                image.path, "its image is gone. It was deleted or moved meanwhile"
            )
        if caption_version(image) != version:
            with suppress(CaptionError):
                theirs = _text_of(file)
                if theirs == text:
                    return caption_version(image)
                raise Conflict(theirs)
            raise Conflict(image.caption)
        content = with_caption(file, text).encode()
        if not is_kept:
            keep_captions(data, [image])
            keep_step(data, [(image, text)])
        with atomic_write(file, durable=not is_kept) as temporary:
            temporary.write_bytes(content)
        return caption_version(image._replace(captions=(str(file),)))


def thumbs(data: Dataset, image: FoundImage) -> list[str]:
    """The addresses of small images of an image and, before it, of its control
    images."""
    places = [
        os.path.relpath(path, data.ui.datasets).split(os.sep, 1)
        for path in (*image.references, image.path)
    ]
    return [
        "/datasets/{}/thumbs/{}".format(*(quote(part, safe="") for part in place))
        for place in places
        if place[0] != os.pardir and len(place) == 2
    ]


def tags_of(caption: str) -> list[str]:
    """The parts of a caption between commas.

    >>> tags_of("cat, sitting ,")
    ['cat', 'sitting']
    """
    return list(filter(None, map(str.strip, caption.split(","))))


def changed_caption(text: str, form: dict[str, str]) -> str:
    """A caption after a change of many captions.

    form: `op` is `replace` (with `find`, `replacement` and `case`), `add` (with `tag`
    and `where`) or `remove` (with `tag`).

    >>> changed_caption("cat, sitting", {"op": "add", "tag": "photo", "where": "end"})
    'cat, sitting, photo'
    >>> changed_caption("cat, sitting", {"op": "remove", "tag": "Cat"})
    'sitting'
    """
    find = form.get("find", "")
    tag = form.get("tag", "").strip(" ,")
    if form.get("op") == "replace" and find:
        flags = 0 if form.get("case") else re.IGNORECASE
        replacement = form.get("replacement", "")
        text = re.sub(re.escape(find), lambda _: replacement, text, flags=flags)
        return text.strip()
    parts = text.split(",")
    others = [p for p in parts if p.strip().casefold() != tag.casefold()]
    has_tag = len(others) < len(parts)
    if form.get("op") == "add" and tag and not has_tag:
        is_last = form.get("where") == "end"
        both = [text.rstrip(" ,"), tag] if is_last else [tag, text]
        return ", ".join(filter(None, both))
    if form.get("op") == "remove" and has_tag:
        return ",".join(others).strip(" ,")
    return text


# ---------------------------------------------------------------- crops


def crop_file(image: FoundImage) -> Path:
    """The file that says which part of an image is trained, whether it exists or
    not."""
    return Path(image.path).with_suffix(CROP)


def set_crop(image: FoundImage, focus: Focus) -> None:
    """Keeps which part of an image is trained. Raises CropError for a file that is not
    one of crops and for an image that is gone, and OSError."""
    file = crop_file(image)
    with folder_lock(file.parent):
        if not os.path.exists(image.path):
            raise CropError("is not written: its image was deleted or moved meanwhile")
        if os.path.lexists(file):
            read_crop(file)
        with atomic_write(file) as temporary:
            temporary.write_text(f"{focus.across:g} {focus.down:g}\n", "utf-8")


# ---------------------------------------------------------------- trash


def moment_name() -> str:
    """A name that sorts by time."""
    return f"{time.strftime('%Y-%m-%d_%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"


def trash(data: Dataset, images: Iterable[FoundImage]) -> tuple[str, int]:
    """Moves images into the trash, with the files that belong to them alone.

    Returns the name of the trash entry, and the number of images that were moved. Raises
    OSError or RunError.
    """
    entry = moment_name()
    moved = 0
    for image in images:
        with folder_lock(Path(image.path).parent):
            if not os.path.lexists(image.path):
                continue  # already moved into another entry, with its caption
            for path in _with_partners(data, image):
                target = data.ui.datasets / TRASH / entry / data.name / data.id_of(path)
                target.parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileNotFoundError):
                    shutil.move(path, target)
            moved += 1
    return entry, moved


def _with_partners(data: Dataset, image: FoundImage) -> list[str]:
    """The file of an image, and the files in the dataset that belong to it alone: its
    captions, crop, control images and mask."""
    if image.shares_stem:
        return [image.path]
    used_by_others = {
        path
        for other in data.images
        if other.path != image.path
        for path in (*other.references, other.mask)
    }
    paths = [image.path, *image.captions]
    if not image.captions and os.path.lexists(caption_file(image)):
        paths.append(str(caption_file(image)))  # written since the dataset was read
    paths += [str(crop_file(image))] if crop_file(image).is_file() else []
    partners = {*image.references, image.mask} - used_by_others
    paths += [path for path in partners if path.startswith(data._prefix)]
    return [*dict.fromkeys(paths)]


def trashed(ui: Ui) -> list[tuple[str, str, int, str]]:
    """The entries of the trash, the latest first: name of the entry, name of the
    dataset, number of files, and name of the first file."""
    entries = []
    for entry in sorted((ui.datasets / TRASH).glob("*"), reverse=True):
        files = [path.relative_to(entry) for path in _files(entry)]
        if files:
            dataset, *parts = files[0].parts
            first = Path(*parts).as_posix()
            entries.append((entry.name, dataset, len(files), first))
    return entries


def _files(folder: Path) -> Iterator[Path]:
    for top, _, files in os.walk(folder):
        yield from (Path(top, name) for name in sorted(files))


def restore(ui: Ui, entry: str) -> tuple[int, int]:
    """Moves the files of a trash entry back to their folders.

    Returns the number of files that were moved, and the number of files that stay
    because another file has their name. Raises HTTPException 404 for an unknown entry,
    and RunError if the disk cannot be written.
    """
    place = inside(ui.datasets / TRASH, entry)
    root = ui.datasets.resolve()
    back = 0
    stay = 0
    for path in list(_files(place)):
        target = ui.datasets / path.relative_to(place)
        if not target.resolve().is_relative_to(root):
            raise HTTPException(404, "no such dataset")
        target.parent.mkdir(parents=True, exist_ok=True)
        with folder_lock(target.parent):
            if not os.path.lexists(path):
                continue  # another request has moved it back
            if os.path.lexists(target):
                stay += 1
                continue
            link(path, target)
            path.unlink()
        back += 1
    for top, _, _ in os.walk(place, topdown=False):
        with suppress(OSError):  # the folder still holds a file
            os.rmdir(top)
    return back, stay


# ---------------------------------------------------------------- lint


def lint(data: Dataset) -> None:
    """Starts `run.py lint` for a dataset in a thread, unless it is running already."""
    key = ("lint", data.name)
    state = data.state
    with data.ui.locked():
        if data.ui.memory.get(key) == "running":
            return
        data.ui.memory[key] = "running"
    section = data.section()
    flags = [section["folder_path"], "--json"]
    flags.append(f"--resolution={data.view['resolution']}")
    for flag in ("control_path", "control_suffix", "image_suffix", "default_caption"):
        values = section.get(flag, ())
        given = [values] if isinstance(values, str) else values
        flags += [f"--{flag.replace('_', '-')}={value}" for value in given]
    if data.view["trigger"]:
        flags.append(f"--trigger-word={data.view['trigger']}")

    def check() -> None:
        fault = "it has ended"
        try:
            code, stdout, stderr = run_py("lint", *flags, limit_s=LINT_S, is_idle=True)
            if code == LATE:
                raise ValueError(f"it took longer than {LINT_S} s")
            if not stdout:
                raise ValueError(stderr.strip()[-500:] or f"exit code {code}")
            write_json(lint_file(data), {"state": state, **json.loads(stdout)})
            fault = ""
        except (OSError, ValueError, TypeError, RunError) as error:
            fault = shown(str(error))
        finally:
            data.ui.memory[key] = fault

    Thread(target=check, daemon=True).start()


def lint_file(data: Dataset) -> Path:
    """The findings of the last check of a dataset."""
    return data.ui.own / "lint" / f"{data.name}.json"


def _findings(data: Dataset, before: Dataset | None) -> dict[str, Any]:
    """The findings of the last check.

    Keys: `status` (`running`, empty, or why the check failed), `is_old` (whether files
    have changed since), `images` (number of images that were checked; None: not checked
    yet), `by_file` (path -> rows of check and message), `count` (number of rows), and
    `lint` (the contents of the file of the check).
    """
    lint = before.findings["lint"] if before else ((), {}, None, None)
    file = lint_file(data)
    mark = mark_of(str(file.parent), file.name)
    if lint[0] != mark or is_fresh(mark):
        lint = mark, *_in_lint_file(file)
    _, rows, state, images = lint
    return {
        "status": data.ui.memory.get(("lint", data.name), ""),
        "is_old": images is not None and state != data.state,
        "images": images,
        "by_file": rows,
        "count": sum(map(len, rows.values())),
        "lint": lint,
    }


def _in_lint_file(
    file: Path,
) -> tuple[dict[str, list[dict[str, str]]], str, int | None]:
    """Path -> rows of check and message; the state of the dataset that was checked; and
    its number of images. The number is None if the file is missing or damaged."""
    rows: dict[str, list[dict[str, str]]] = {}
    known = read_object(file)
    try:
        for finding in known["findings"]:
            row = {"check": str(finding["check"]), "message": str(finding["message"])}
            rows.setdefault(finding["file"], []).append(row)
        return rows, str(known["state"]), int(known["images"])
    except (ValueError, LookupError, TypeError):
        return rows, "", None


MOST_COVER = 5
"""Images on the cover of a dataset."""

MOST_PAIRS = 1
"""Pairs on it."""


def summary(ui: Ui, name: str) -> dict[str, Any]:
    """A dataset as the list of all datasets shows it. It is read again when a file has
    changed."""
    values: dict[str, Any] = ui.memory.setdefault(
        ("summary", name), SharedLook(partial(_summary, ui, name))
    ).now()
    return values


def _summary(ui: Ui, name: str, before: dict[str, Any] | None) -> dict[str, Any]:
    state = open_dataset(ui, name).state
    if before and before["state"] == state:
        return before
    data = read_dataset(ui, name)
    return {
        "name": name,
        "state": data.state,
        "images": len(data.images),
        "pairs": data.is_pairs and sum(bool(image.references) for image in data.images),
        "alone": data.alone,
        "repeats": data.repeats,
        "missing": data.missing,
        "has_instruction": bool(data.is_pairs and data.view["instruction"]),
        "first": [
            thumbs(data, image)
            for image in data.images[: MOST_PAIRS if data.is_pairs else MOST_COVER]
        ],
        "size": data.size,
    }
