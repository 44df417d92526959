"""The datasets as the page sees them: what is in their folders by the program's own
rules, captions that are replaced with a version, a trash that gives back what it took,
and what lint says.

Nothing is kept but what the folders hold, besides `<output>/.ui/`: how a dataset is
looked at, its findings, and a copy of each caption that was replaced.
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
from pathlib import Path
from threading import Thread
from typing import Any

from starlette.exceptions import HTTPException

from extensions.tools.shared.suspects import FILE, FOLDER, suspects_of_run
from extensions.tools.ui.commands import LATE, run_py
from extensions.tools.ui.state import Ui, inside
from toolkit.config.sections.dataset import CAPTION_SUFFIXES, DatasetConfig
from toolkit.contracts.data import ResizeCrop, Size
from toolkit.data.pixels.images import ImageError, image_size
from toolkit.data.scan.captions import CaptionError, read_caption, with_caption
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
"""Folder below that of the datasets, so that a move is one rename; hidden, so that it
is not a dataset."""

MOST_SHARED = 3
"""Datasets whose images stay in memory: of 5,000 images they take 8 MB."""

MOST_KNOWN = 50_000
"""Images whose size is remembered."""

DEFAULT_VIEW = {
    "references": "",
    "masks": "",
    "resolution": 1024,
    "instruction": "",
    "trigger": "",
}

BEFORE, AFTER = "before", "after"
"""Subfolders of a dataset of pairs that the page makes."""


class Conflict(ValueError):
    """A caption that somebody else has changed since it was read; the text is what it
    is now."""


def below(folder: Path, name: str) -> Path:
    """The visible file or folder that a path with `/` from outside stands for. Raises
    HTTPException 404 as `inside`."""
    for part in name.split("/"):
        folder = inside(folder, "" if part.startswith(".") else part)
    return folder


def shown(text: str) -> str:
    """A text that any page can hold: bytes of a file's name that are not UTF-8 are
    escaped, secrets redacted."""
    return redact_text(text.encode(errors="backslashreplace").decode())


def names(ui: Ui) -> list[str]:
    """The folders that are datasets, by name; a link that leads elsewhere is none."""
    try:
        if ui.datasets.is_dir():
            folders = list_folder(str(ui.datasets)).subfolders
        else:
            folders = ()
    except OSError as error:
        raise HTTPException(403, f"{ui.datasets}: {error.strerror}") from error
    return [name for name in folders if _is_within(ui.datasets, name)]


@dataclass
class Dataset:
    """One folder in its current state."""

    ui: Ui
    name: str
    view: dict[str, Any] = field(default_factory=dict)
    """`references` and `masks`: a folder within that of the datasets, or what names
    have at their end; `resolution`; `instruction`: the caption of pairs without one;
    `trigger`: the word that captions were asked to hold."""

    listings: list[DirectoryListing] = field(default_factory=list)
    """The folder, and its visible subfolders that do not lead elsewhere."""

    partners: list[DirectoryListing] = field(default_factory=list)
    """The folders of references and masks."""

    images: list[FoundImage] = field(default_factory=list)
    faults: dict[str, str] = field(default_factory=dict)
    """Path of a file or folder -> what is wrong with it."""

    notes: list[str] = field(default_factory=list)
    sizes: dict[str, Size | str] = field(default_factory=dict)
    """Path of an image -> its pixels, or why it has none."""

    findings: dict[str, Any] = field(default_factory=dict)
    """As `findings` has them."""

    faults_told: int = 0
    """How many faults of decoding `sizes` knows of (`remember_fault`)."""

    @property
    def folder(self) -> Path:
        return self.ui.datasets / self.name

    @property
    def view_file(self) -> Path:
        return self.ui.own / "datasets" / f"{self.name}.json"

    @cached_property
    def state(self) -> str:
        """A digest of the files in it: another one, when any of them has changed."""
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
        """The repeats that its images have."""
        return sorted({image.repeats for image in self.images})

    @cached_property
    def buckets(self) -> list[tuple[Size, int, int]]:
        """Each bucket, how many images are in it, and how many with their repeats."""
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
        """What is trained of an image of this size."""
        return bucket_for(size, self.view["resolution"], SIZE_MULTIPLE)

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(
            version[0]
            for each in self.listings
            for version in each.versions.values()
            if version
        )

    def id_of(self, path: str) -> str:
        """The name of a file in addresses: its path from the folder, with `/`."""
        within = path.removeprefix(
            self._prefix
        )  # of thousands of images in a tenth of the time of `relpath`
        if within == path:
            within = os.path.relpath(path, self.folder)
        return within.replace(os.sep, "/")

    def partner(self, value: str) -> tuple[str, str]:
        """What `references` or `masks` means: a folder, or a suffix of names. A folder
        may be written with that of the datasets in front."""
        place = os.path.realpath(value)
        root = os.path.realpath(self.ui.datasets)
        for name in (
            value,
            os.path.relpath(place, root) if place.startswith(f"{root}{os.sep}") else "",
        ):
            with suppress(HTTPException):
                if name:
                    folder = below(self.ui.datasets, name)
                    if folder.is_dir():
                        return str(folder), ""
        return "", value

    @cached_property
    def sides(self) -> tuple[str, str] | None:
        """The subfolders with the images before and after the edit; None: the images
        are elsewhere."""
        inside = {}
        for each in self.listings[1:]:
            inside[os.path.basename(each.folder)] = each.images
        if self.view["references"] or self.listings[0].images:
            return None
        images, controls = pair_folders(inside) or (AFTER, BEFORE)
        if {images, controls} <= inside.keys():
            return (controls, images)
        return None

    @cached_property
    def names(self) -> PairNames | None:
        """How the pairs in its own folder are named; None: they are named as single
        ones."""
        if self.view["references"]:
            return None
        return pair_names(self.listings[0].images)

    @property
    def is_pairs(self) -> bool:
        """Whether its images have control images."""
        return bool(
            self.view["references"]
            or self.sides
            or self.names
            or any(each.references for each in self.images)
        )

    @cached_property
    def orphans(self) -> list[str]:
        """Paths of control images without an image, and of what is of no pair in a
        folder of them."""
        if not (self.sides or self.names or self.view["references"]):
            return []
        kept = {image.path for image in self.images}
        kept |= {
            path for image in self.images for path in (*image.references, image.mask)
        }
        places = self.section().get("control_path", (str(self.folder),))
        listings = []
        for each in (*self.listings, *self.partners):
            if each.folder in places:
                listings.append(each)
        found = (
            each.path(name)
            for each in listings
            for names in each.images.values()
            for name in names
        )
        return [path for path in dict.fromkeys(found) if path not in kept]

    @property
    def alone(self) -> int:
        """How many files lack their partner."""
        if self.is_pairs:
            return len(self.orphans) + sum(
                not image.references for image in self.images
            )
        return 0

    def section(self) -> dict[str, Any]:
        """The keys of a job's dataset that are chosen on its page, and those that its
        folders ask for."""
        (references, suffix), (masks, mask_suffix) = map(
            self.partner, (self.view["references"], self.view["masks"])
        )
        keys: dict[str, Any] = {"folder_path": str(self.folder)}
        if self.sides:
            before, after = (str(self.folder / side) for side in self.sides)
            keys |= {"folder_path": after, "control_path": (before,)}
        elif self.names:
            keys |= {
                "image_suffix": self.names.image,
                "control_suffix": self.names.controls,
            }
            keys |= {"control_optional": True} if self.names.optional else {}
        chosen: dict[str, Any] = {
            "control_path": references and (references,),
            "control_suffix": suffix and (suffix,),
        }
        chosen |= {
            "mask_path": masks,
            "mask_suffix": mask_suffix,
            "default_caption": self.view["instruction"],
        }
        return keys | {key: value for key, value in chosen.items() if value}

    def config(self) -> DatasetConfig:
        """The section of a job that trains it."""
        keys = self.section() | {
            "control_optional": True
        }  # what has no partner is shown with what to do
        keys.pop(
            "default_caption", ""
        )  # captions are edited as they are in their files
        return DatasetConfig(
            caption_ext=(
                *CAPTION_SUFFIXES,
                ".json",
            ),  # a job has to name the last one; the page says so
            captions="lines",  # a job has to ask for them; the page says so too
            resolution=(self.view["resolution"],),
            **keys,
        )


def keep_view(data: Dataset, changes: Mapping[str, Any]) -> None:
    """Takes over choices of the page; others stay as they are by now. Raises OSError,
    RunError."""
    with data.ui.locked():
        write_json(
            data.view_file, DEFAULT_VIEW | read_object(data.view_file) | dict(changes)
        )


def open_dataset(ui: Ui, name: str, names_only: bool = False) -> Dataset:
    """A dataset by its name. names_only: it has no versions of files (`list_folder`).
    Raises HTTPException 404 for one that is not there, or leads elsewhere."""
    folder = below(ui.datasets, name)
    data = Dataset(ui, name, dict(DEFAULT_VIEW))
    given = read_object(data.view_file)
    data.view |= {
        key: value
        for key, value in given.items()
        if type(value) is type(DEFAULT_VIEW.get(key))
    }
    try:
        top = list_folder(str(folder), names_only=names_only)
        subfolders = [
            str(folder / sub) for sub in top.subfolders if _is_within(folder, sub)
        ]
        data.listings = [
            top,
            *(
                list_folder(subfolder, names_only=names_only)
                for subfolder in subfolders
            ),
        ]
        partners = [
            place
            for key in ("references", "masks")
            if (place := data.partner(data.view[key])[0])
        ]
        data.partners = [list_folder(place) for place in partners]
    except OSError as error:
        raise HTTPException(
            404, f"{name}: {error.strerror}. It was moved away, or cannot be read."
        ) from error
    return data


def read_dataset(ui: Ui, name: str) -> Dataset:
    """The same with its images, their sizes, and what lint found. It is shared by all
    who ask at the same time, so nobody may change it. Raises HTTPException 404."""
    below(ui.datasets, name)  # before a name that is none takes room in the memory
    shared: SharedLook[Dataset] = ui.recent(
        "datasets", name, lambda: SharedLook(partial(_look, ui, name)), MOST_SHARED
    )
    return shared.now()


def _look(ui: Ui, name: str, before: Dataset | None) -> Dataset:
    """A dataset as it is now. What is in files that have not changed is taken from the
    look before."""
    data = open_dataset(ui, name)
    data.faults_told = ui.memory.get("faults told", 0)
    is_same = before is not None and before.state == data.state
    if before and is_same:
        data.listings = before.listings
        data.partners = before.partners
        data.images = before.images
        data.faults = before.faults
        data.notes = before.notes
        data.sizes = before.sizes
    elif any(
        listing.images
        for listing in data.listings
        if not data.sides or listing.folder.endswith(data.sides[1])
    ):
        _read_captions(data, before)
    if before is None or not is_same or before.faults_told != data.faults_told:
        data.sizes = {image.path: size_of(ui, image.path) for image in data.images}
    data.findings = _findings(data, before)
    return data


def _read_captions(data: Dataset, before: Dataset | None) -> None:
    listings = [*data.listings, *data.partners]
    known = dict[str, DirectoryListing]()
    if before:
        known = {}
        for listing in (*before.listings, *before.partners):
            known[listing.prefix] = listing
    for listing in listings:
        if listing.prefix in known:
            listing.take_texts(known[listing.prefix])
    found, mistakes, notes = find_images(data.config(), listings)
    data.notes = [*map(shown, notes)]
    for mistake in mistakes:
        place = shown(mistake.place)
        data.faults[place] = "; ".join(
            filter(None, [data.faults.get(place), shown(mistake.message)])
        )
    data.images = [each for image in found if (each := _without_links(data, image))]


def _is_within(folder: Path, name: str) -> bool:
    """Whether a name is one that a page can hold, and leads to what is in the
    folder."""
    with suppress(HTTPException, UnicodeEncodeError):
        return bool(name.encode() and below(folder, name))
    return False


def _without_links(data: Dataset, image: FoundImage) -> FoundImage | None:
    """The image without the text of files outside, to which a link leads; None for one
    that is there itself, or that no address can name."""
    folder = os.path.dirname(image.path)
    if (
        folder not in {each.prefix.rstrip(os.sep) for each in data.listings}
        or shown(image.path) != image.path
    ):
        data.faults[shown(image.path)] = (
            "has a name that is not UTF-8, or is in a folder that leads out. Move it"
        )
        return None
    for path in (*image.captions[:1], *filter(None, [image.table])):
        if os.path.islink(path) and not _is_within(
            Path(path).parent, os.path.basename(path)
        ):
            data.faults[image.path] = (
                f"{os.path.basename(path)} is a link that leads out of the folder"
            )
            return image._replace(caption="", captions=(), table=path)
    return image


def size_of(ui: Ui, path: str) -> Size | str:
    """Pixels of an image after EXIF rotation, by its header; or why it has none."""
    known: dict[str, tuple[Any, Size | str]] = ui.memory.setdefault("image sizes", {})
    found: Size | str
    try:
        if stat.S_ISLNK(os.lstat(path).st_mode):
            below(Path(path).parent, os.path.basename(path))
        about = os.stat(path)
        if not stat.S_ISREG(about.st_mode):
            return "is not a file"
        version = version_of(about)
        if path in known and known[path][0] == version:
            return known[path][1]
        found = image_size(path)
    except HTTPException:
        return "is a link that leads out of the folder. Put the file itself there"
    except OSError as error:
        return error.strerror or str(error)
    except ImageError as error:
        found = shown(error.reason)
    if len(known) >= MOST_KNOWN:
        known.clear()
    known[path] = version, found
    return found


def remember_fault(ui: Ui, path: str, reason: str) -> None:
    """Takes what was wrong with an image when it was decoded."""
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
    """A hash of the caption's file; `none` where there is no file."""
    try:
        return hashlib.sha256(read_regular(caption_file(image))).hexdigest()[:16]
    except FileNotFoundError:
        return "none"
    except OSError:
        return "unreadable"


def keep_captions(data: Dataset, images: Iterable[FoundImage]) -> None:
    """Writes the captions of images, as they are, into one file of the page's trash,
    before they are replaced: JSON of file name -> text, bytes that are not UTF-8 as
    Python's surrogate escapes. Raises OSError."""
    files = [file for image in images if (file := caption_file(image)).exists()]
    old = {
        data.id_of(str(file)): read_regular(file).decode(errors="surrogateescape")
        for file in files
    }
    if old:
        with atomic_write(
            data.ui.own / "trash" / "captions" / data.name / f"{_moment()}.json"
        ) as temporary:
            temporary.write_text(json.dumps(old, indent=1), encoding="utf-8")


def set_caption(
    data: Dataset, image: FoundImage, text: str, version: str, is_kept: bool = False
) -> str:
    """Replaces a caption whose version is as it was read. Returns the new version.
    Raises Conflict for another version that holds another text, CaptionError for a
    `.json` without a caption and for an image that is gone, OSError.

    is_kept: it is one of many, for which `keep_captions` was called; the disk may write
    them together.
    """
    file = caption_file(image)
    with folder_lock(file.parent):
        if not os.path.exists(image.path):
            raise CaptionError(
                image.path, "its image is gone. It was deleted or moved meanwhile"
            )
        if caption_version(image) != version:
            with suppress(CaptionError):
                theirs = read_caption(file) if file.exists() else ""
                if theirs == text:
                    return caption_version(image)
                raise Conflict(theirs)
            raise Conflict(image.caption)
        content = with_caption(file, text).encode()
        if not is_kept:
            keep_captions(data, [image])
        with atomic_write(file, durable=not is_kept) as temporary:
            temporary.write_bytes(content)
        return caption_version(image._replace(captions=(str(file),)))


def changed_caption(text: str, form: dict[str, str]) -> str:
    """What becomes of a caption. form: `op` (replace, add, remove), and what it
    needs."""
    find = form.get("find", "")
    tag = form.get("tag", "").strip(" ,")
    if form.get("op") == "replace" and find:
        flags = 0 if form.get("case") else re.IGNORECASE
        return re.sub(
            re.escape(find), lambda _: form.get("replacement", ""), text, flags=flags
        ).strip()
    has_tag = tag.casefold() in (part.strip().casefold() for part in text.split(","))
    if form.get("op") == "add" and tag and not has_tag:
        return ", ".join(
            filter(
                None,
                [text.rstrip(" ,"), tag] if form.get("where") == "end" else [tag, text],
            )
        )
    if form.get("op") == "remove" and has_tag:
        return ",".join(
            part
            for part in text.split(",")
            if part.strip().casefold() != tag.casefold()
        ).strip(" ,")
    return text


# ---------------------------------------------------------------- trash


def _moment() -> str:
    """A name that sorts by time."""
    return f"{time.strftime('%Y-%m-%d_%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"


def trash(data: Dataset, images: Iterable[FoundImage]) -> tuple[str, int]:
    """Moves images with all that belongs to them into the trash. Returns the entry's
    name, and how many were there to be moved. Raises OSError, RunError."""
    entry = _moment()
    moved = 0
    for image in images:
        with folder_lock(Path(image.path).parent):
            if not os.path.lexists(image.path):
                continue  # by now in another entry, with its caption
            for path in _with_partners(data, image):
                target = data.ui.datasets / TRASH / entry / data.name / data.id_of(path)
                target.parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileNotFoundError):
                    shutil.move(path, target)
            moved += 1
    return entry, moved


def _with_partners(data: Dataset, image: FoundImage) -> list[str]:
    """The file of an image, and the files in the dataset that belong to it alone."""
    if image.shares_stem:
        return [image.path]
    others = set()
    for each in data.images:
        if each.path != image.path:
            for path in (*each.references, each.mask):
                others.add(path)
    partners = (
        path
        for path in (*image.references, image.mask)
        if path.startswith(data._prefix)
    )
    captions = image.captions or filter(
        os.path.lexists, [str(caption_file(image))]
    )  # one that came meanwhile
    return [
        *dict.fromkeys(
            (image.path, *captions, *(path for path in partners if path not in others))
        )
    ]


def trashed(ui: Ui) -> list[tuple[str, str, int, str]]:
    """What can be brought back, the latest first: entry, dataset, files, the first of
    their names."""
    found = []
    for entry in sorted((ui.datasets / TRASH).glob("*"), reverse=True):
        files = [path.relative_to(entry) for path in _files(entry)]
        if files:
            found.append(
                (
                    entry.name,
                    files[0].parts[0],
                    len(files),
                    Path(*files[0].parts[1:]).as_posix(),
                )
            )
    return found


def _files(folder: Path) -> Iterator[Path]:
    for top, _, files in os.walk(folder):
        yield from (Path(top, name) for name in sorted(files))


def restore(ui: Ui, entry: str) -> tuple[int, int]:
    """Moves the files of an entry back to where they were. Returns how many, and how
    many stay because their place is taken. Raises HTTPException 404 for an entry that
    is none, RunError for the disk."""
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
                continue  # it has been brought back meanwhile
            if os.path.lexists(target):
                stay += 1
                continue
            link(path, target)
            path.unlink()
        back += 1
    for top, _, _ in os.walk(place, topdown=False):
        with suppress(OSError):  # one that still holds a file
            os.rmdir(top)
    return back, stay


# ---------------------------------------------------------------- lint


def lint(data: Dataset) -> None:
    """Starts the check of a dataset, unless it is under way."""
    key = ("lint", data.name)
    state = data.state
    with data.ui.locked():
        if data.ui.memory.get(key) == "running":
            return
        data.ui.memory[key] = "running"
    section = data.section()
    flags = [
        section["folder_path"],
        "--json",
        f"--resolution={data.view['resolution']}",
    ]
    for flag in ("control_path", "control_suffix", "image_suffix", "default_caption"):
        values = section.get(flag, ())
        given = [values] if isinstance(values, str) else values
        flags += [f"--{flag.replace('_', '-')}={value}" for value in given]
    if data.view["trigger"]:
        flags.append(f"--trigger-word={data.view['trigger']}")

    def check() -> None:
        fault = "it has ended"
        try:
            code, out, told = run_py("lint", *flags, limit_s=LINT_S, is_idle=True)
            if code == LATE:
                raise ValueError(f"it took longer than {LINT_S} s")
            if not out:
                raise ValueError(told.strip()[-500:] or f"exit code {code}")
            write_json(_lint_file(data), {"state": state, **json.loads(out)})
            fault = ""
        except (OSError, ValueError, TypeError, RunError) as error:
            fault = shown(str(error))
        finally:
            data.ui.memory[key] = fault

    Thread(target=check, daemon=True).start()


def _lint_file(data: Dataset) -> Path:
    return data.ui.own / "lint" / f"{data.name}.json"


def _findings(data: Dataset, before: Dataset | None) -> dict[str, Any]:
    """What the last check found, and the suspects of all runs: `status` (running,
    empty, or why it failed), `is_old`, `images`, `by_file` (path -> rows of check and
    message), `count`; `lint`: what is in the file of the check."""
    if before:
        lint = before.findings["lint"]
    else:
        lint = ((), {}, None, None)
    file = _lint_file(data)
    mark = mark_of(str(file.parent), file.name)
    if lint[0] != mark or is_fresh(mark):
        lint = mark, *_in_lint_file(file)
    _, rows, state, images = lint
    suspects = _suspects(data)
    for image, why in suspects.items():
        row = {
            "check": "suspect",
            "message": shown(f"acts against the other images of a training: {why}"),
        }
        suspects[image] = [*rows.get(image, ()), row]
    rows = rows | suspects
    told = {
        "status": data.ui.memory.get(("lint", data.name), ""),
        "lint": lint,
        "images": images,
    }
    told["is_old"] = images is not None and state != data.state
    return {"by_file": rows, "count": sum(map(len, rows.values())), **told}


def _in_lint_file(
    file: Path,
) -> tuple[dict[str, list[dict[str, str]]], str, int | None]:
    """Path -> rows of check and message, the state of the dataset that was checked, and
    how many images; None: there is no such file, or it is damaged."""
    rows: dict[str, list[dict[str, str]]] = {}
    known = read_object(file)
    try:
        for row in known["findings"]:
            rows.setdefault(row["file"], []).append(
                {"check": str(row["check"]), "message": str(row["message"])}
            )
        return rows, str(known["state"]), int(known["images"])
    except (ValueError, LookupError, TypeError):
        return rows, "", None


def _suspects(data: Dataset) -> dict[str, Any]:
    """Image of the dataset -> why `influence` suspects it."""
    found = {}
    folder = os.path.realpath(data.folder)
    for run in data.ui.runs():
        if not os.path.exists(os.path.join(run.folder, FOLDER, FILE)):
            continue  # of most: an error for each costs more
        for image, why in suspects_of_run(run.folder).items():
            if image.startswith(folder + os.sep):
                found[str(data.folder / os.path.relpath(image, folder))] = (
                    f"{run.name}, {why}"
                )
    return found


def summary(ui: Ui, name: str) -> dict[str, Any]:
    """A dataset in the list of all: its images are looked at again when a file has
    changed."""
    found: dict[str, Any] = ui.memory.setdefault(
        ("summary", name), SharedLook(partial(_summary, ui, name))
    ).now()
    return found


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
        "first": [data.id_of(image.path) for image in data.images[:4]],
        "size": data.size,
    }
