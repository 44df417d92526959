"""What a scan of datasets has found so far: the folders of images with what belongs to each, errors and notes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from toolkit.config.sections.dataset import DatasetConfig
from toolkit.contracts.data import Mask
from toolkit.data.scan.captions import caption_files, captions_of
from toolkit.data.scan.directory import DirectoryListing, ImageFile, ScanCache, real_path, split_suffix
from toolkit.data.scan.masks import MaskLook
from toolkit.data.scan.partners import Slot
from toolkit.data.scan.repeats import REPEATS
from toolkit.data.scan.tables import Table, TableRow, image_name, read_table
from toolkit.errors import Diagnostic
from toolkit.files.unreadable import denied

REGULARISATION = (
    "its name says that these are regularisation images, and they are trained as what is to be learned, with the "
    "trigger word. If they are, give the folder as a dataset with 'is_reg: true'"
)
"""Message for a folder that `named_as_regularisation` knows and its dataset does not."""

LOOKED_INTO = 1000
"""Folders below one without images that are looked into."""

_LISTED_NAMES = 20


@dataclass
class ScanFindings:
    """What the stages of a scan share: errors, notes and unused files of all datasets, so that they come at once."""

    scan_cache: ScanCache
    read_captions: bool
    mistakes: list[Diagnostic] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unused: list[tuple[str, str]] = field(default_factory=list)
    unpaired: list[tuple[str, str]] = field(default_factory=list)
    held_out: list[tuple[str, str]] = field(default_factory=list)
    of_pairs: set[str] = field(default_factory=set)
    """Tables whose control images and masks are not trained where they have no row."""
    mask_faults: list[tuple[str, str]] = field(default_factory=list)
    questions: list[tuple[str, str]] = field(default_factory=list)
    """Folders whose numbers are probably no repeats, and why."""

    tables: dict[tuple[str, int], Table] = field(default_factory=dict)
    """What was read of a file for an entry of `datasets`."""

    def table(self, path: str, dataset: DatasetConfig, called: str = "") -> Table:
        """The table of captions in a file, as an entry of `datasets` has it; each is read once. called: as of
        `read_table`."""
        key = (path, id(dataset))
        if key not in self.tables:
            several = dataset.captions == "lines"
            self.tables[key] = read_table(path, dataset.path_map, dataset.columns, called, several)
        return self.tables[key]

    def mistake(self, place: str, message: str) -> None:
        self.mistakes.append(Diagnostic((place,), message))

    def not_used(
        self,
        listing: DirectoryListing,
        names: Sequence[str],
        reason: str,
        remedy: str,
        kept: list[tuple[str, str]],
    ) -> None:
        """Notes files that are not used though they seem meant to be, and keeps them among others."""
        note = f"{listing.folder}: {count_of(len(names), 'file')} not used, {reason}: {shorten(names)}. {remedy}"
        self.notes.append(f"warning: {note}")
        kept += [(listing.path(name), f"{reason}. {remedy}") for name in names]

    def listing(self, folder: str, key: str = "") -> DirectoryListing | None:
        """The folder, or None where it cannot be read. key: of its path in the config, for the message."""
        try:
            return self.scan_cache.listing(folder)
        except PermissionError:
            cause = denied(Path(folder).expanduser())
            message = f"{key and f'{key} '}cannot be read as a folder: {cause.what}. {cause.remedy}"
            self.mistake(folder, message)
            return None
        except OSError as error:
            self.mistake(folder, f"{key and f'{key} '}cannot be read as a folder: {error.strerror or error}")
            return None


@dataclass
class FoundFolder:
    """One folder of images, with what belongs to each image."""

    index: int
    """Index of its entry in `datasets`."""

    dataset: DatasetConfig
    listing: DirectoryListing
    subfolder: str | None
    """Its name within the folder of the dataset; None: it is that folder."""

    table: dict[str, TableRow] | None
    """The rows of one file by `image_name`; None: captions are in files beside the images."""

    table_path: str | None
    whole: DirectoryListing
    """`listing` with the control images and masks that are named by a suffix."""

    captions: list[str] = field(default_factory=list)
    """Caption of each image, in their order; '' for none."""

    controls: dict[str, tuple[ImageFile, ...]] = field(default_factory=dict)
    """By the stem of their image, as the masks."""

    masks: dict[str, ImageFile] = field(default_factory=dict)
    """Mask images; the image itself where its own opacity is the mask."""

    mask_looks: list[tuple[Mask, MaskLook]] = field(default_factory=list)
    """The masks that were measured, with what their pixels tell."""

    worse: dict[str, tuple[ImageFile, ...]] = field(default_factory=dict)
    """Images that are liked less, by the stem of their better one."""

    layers: dict[str, tuple[ImageFile, ...]] = field(default_factory=dict)
    """Layers from back to front, by the stem of their image."""

    weights: dict[str, float] = field(default_factory=dict)
    """Factors on the loss that the table gives, by the stem of their image."""

    slots: list[Slot] = field(default_factory=list)
    """Where control images and masks are looked for."""

    named: set[str] = field(default_factory=set)
    """Stems of the images whose control images the table names."""

    def images(self) -> Iterator[tuple[str, ImageFile]]:
        """Each image with its stem."""
        return ((stem, ImageFile(self.listing, files[0])) for stem, files in self.listing.images.items())

    def partners(self) -> Iterator[tuple[str, ImageFile]]:
        """Stems of images, each with a control image, a layer or the mask."""
        yield from ((stem, image) for each in (self.controls, self.layers) for stem in each for image in each[stem])
        yield from self.masks.items()

    def caption_files(self) -> list[list[str]]:
        """The files of the folder that are read for captions: for each suffix those of the images, or the one table."""
        if self.dataset.captions == "names":
            return []
        if self.table_path is None:
            return caption_files(self.listing, self.dataset.caption_ext, self.dataset.image_suffix)
        place, name = os.path.split(self.table_path)
        return [[name]] if real_path(place or ".") == real_path(self.listing.folder) else []

    def trained_masks(self) -> dict[str, Mask]:
        """The masks by the stem of their image, with what the dataset says of them."""
        dataset = self.dataset
        return {
            stem: Mask(image.path, dataset.alpha_mask, dataset.mask_min_value, dataset.invert_mask)
            for stem, image in self.masks.items()
        }

    def places(self) -> Iterator[tuple[Slot, DirectoryListing]]:
        """Each slot with each folder that is looked through for it."""
        return ((slot, listing) for slot in self.slots for listing in slot.listings)

    def partner_paths(self) -> Iterator[tuple[str, str]]:
        """The keys of folders of control images, layers and masks, and the folders."""
        yield from (("control_path", path) for path in self.dataset.control_path)
        if self.dataset.layers_path:
            yield "layers_path", self.dataset.layers_path
        if self.dataset.mask_path and not self.dataset.alpha_mask:
            yield "mask_path", self.dataset.mask_path

    @property
    def repeats(self) -> int:
        """How often each of its images is used per epoch."""
        return self.dataset.num_repeats or self.named_repeats or 1

    @property
    def named_repeats(self) -> int:
        """The repeats that its name says; 0 where it says none, or the dataset that its number is none."""
        return 0 if self.dataset.repeats_from_names is False else repeats_of(self.listing.folder)

    def image_names(self) -> list[str]:
        """The paths of the images from the folder of the dataset."""
        inside = f"{self.subfolder}/" if self.subfolder else ""
        return [image_name(inside + files[0]) for files in self.listing.images.values()]

    def table_names(self) -> list[str]:
        """What the images are called in a table of captions: with their suffix, or as in the table without it."""
        table, names = self.table or {}, self.image_names()
        return [name if name in table or (stem := split_suffix(name)[0]) not in table else stem for name in names]


_REGULARISATION = re.compile(
    r"(?:.*[_\W])?(?:regs?|regulari[sz]ation(?:s|_?images)?)(?:[_\W].*)?|class(?:es|_?images)?", re.IGNORECASE
)


def named_as_regularisation(folder: str) -> bool:
    """Whether the name of a folder says that its images are regularisation images, as kohya's users have it: `1_reg`,
    `reg_dog`, `regularization`, `class`."""
    name = os.path.basename(os.path.abspath(folder))
    return bool(_REGULARISATION.fullmatch(REPEATS.sub("", name, count=1) if REPEATS.match(name) else name))


SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""What the names of folders say of the use of their images. Source: datasets 5.2.0, `SPLIT_KEYWORDS`."""


def split_of(name: str) -> str:
    """`train`, `validation` or `test`, where the name of a folder says so, with any number around it; else ''."""
    word = re.sub(r"^[\W_0-9]+|[\W_0-9]+$", "", name.lower())
    return next((split for split, words in SPLITS.items() if word in words), "")


def held_out_folders(names: Iterable[str]) -> list[str]:
    """The folders beside each other that their names keep from the training, such as `validation` and `test`; none
    where no other is named as the one to train on."""
    splits = {name: split_of(name) for name in names}
    return [name for name, split in splits.items() if split not in ("", "train") and "train" in splits.values()]


def repeats_of(folder: str) -> int:
    """How often the name of a folder says that its images are used per epoch; 0 where it does not say it."""
    return int(matched_name(folder, REPEATS) or 0)


def matched_name(folder: str, pattern: re.Pattern[str]) -> str:
    # abspath, not resolve: "." gets its name, a symlink keeps the one the user gave it.
    match = pattern.match(os.path.basename(os.path.abspath(folder)))
    return match[1] if match else ""


def texts_of(text: str, dataset: DatasetConfig) -> list[str]:
    """The captions of an image by the text of its file or row: one, empty for none, or several."""
    return (captions_of(text) or [""]) if dataset.captions == "lines" else [text]


# ---------------------------------------------------------------- words of messages


def count_of(number: int, what: str, several: str = "") -> str:
    return f"{number:,} {what if number == 1 else several or f'{what}s'}"


def shorten(names: Iterable[str]) -> str:
    """A list that stays readable for thousands of files."""
    names = list(names)
    more = f" and {len(names) - _LISTED_NAMES} more" if len(names) > _LISTED_NAMES else ""
    return ", ".join(names[:_LISTED_NAMES]) + more
