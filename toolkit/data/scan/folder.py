"""From folders of images to samples: repeats from folder names; captions, control
images and masks matched by name.

A dataset is one folder of images, or a folder whose direct subfolders hold them. A
leading `<int>_` in the name of the folder that holds the images is how often each is
used per epoch.

`scan_datasets` is the whole scan, stage by stage: the folders of an entry, their
tables, the partners of their images, the images themselves, samples. The items of a job
(`items`), the validation and `lint` call it; `find_images`, which opens no image, is
for the page and the tools.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

from toolkit.config.sections.dataset import DatasetConfig
from toolkit.contracts.data import MIDDLE, Focus, Sample
from toolkit.data.scan.captions import LIST
from toolkit.data.scan.directory import DirectoryListing, ScanCache
from toolkit.data.scan.folder_check import check_images
from toolkit.data.scan.folder_hints import (
    note_layer_names,
    note_pair_folders,
    note_pair_names,
    note_splits,
)
from toolkit.data.scan.folder_tables import (
    with_placed_rows,
    with_table_beside,
    with_tables_above,
)
from toolkit.data.scan.found import ScanFindings, matched_name
from toolkit.data.scan.image_folders import image_folders, note_subfolders
from toolkit.data.scan.matching import match_files
from toolkit.data.scan.records import ImageFolder, MatchedImage
from toolkit.data.scan.repeats import REPEATS
from toolkit.data.scan.samples import ConvertedImage as ConvertedImage
from toolkit.data.scan.samples import FolderInfo as FolderInfo
from toolkit.data.scan.samples import folder_info
from toolkit.data.scan.tables import NO_COLUMNS
from toolkit.data.scan.unused_files import (
    note_unused_files,
    note_unused_partners,
    refuse_lost_captions,
)
from toolkit.errors import Diagnostic
from toolkit.files.archives import as_given


@dataclass(frozen=True)
class DatasetScan:
    """The contents of the datasets of a job, in a fixed order.

    Example::

        scan = scan_datasets(section.datasets, section.trigger_word)
        len(scan.samples), scan.folders[0].repeats
        print(*scan.notes)
    """

    folders: tuple[FolderInfo, ...]
    notes: tuple[str, ...]
    """What the user should know: ignored files and why, overridden repeats, damaged
    colour profiles."""

    unused: tuple[tuple[str, str], ...] = ()
    """Files that are not used though they seem meant to be, and why."""

    unpaired: tuple[tuple[str, str], ...] = ()
    """Control images and masks that belong to no image, and why."""

    held_out: tuple[tuple[str, str], ...] = ()
    """Folders that are trained on, and that their names keep from the training."""

    mask_faults: tuple[tuple[str, str], ...] = ()
    """Masks that are probably not meant as they are read, and why."""

    questions: tuple[tuple[str, str], ...] = ()
    """Folders whose numbers are probably not repeats, and why."""

    scan_cache: ScanCache = field(default_factory=ScanCache, compare=False)
    """Known facts of the files. Only a run saves it: a plan writes nothing."""

    @cached_property
    def samples(self) -> tuple[Sample, ...]:
        """The samples of all folders, in the order of the folders."""
        return tuple(chain.from_iterable(folder.samples for folder in self.folders))

    @property
    def converted(self) -> tuple[ConvertedImage, ...]:
        """The files whose colours are not sRGB, each once, in the order of the folders. The plan counts them."""
        files = chain.from_iterable(folder.converted for folder in self.folders)
        return tuple(dict.fromkeys(files))


def scan_datasets(
    datasets: Sequence[Any],
    trigger_word: str | None,
    scan_cache: ScanCache | None = None,
    forgiven: list[Diagnostic] | None = None,
    read_captions: bool = True,
    also: Sequence[Any] = (),
) -> DatasetScan:
    """Samples of all `datasets` sections, each file read once. Raises DataErrors naming
    every offender.

    scan_cache: results of earlier scans, which is updated; it makes the scan faster and
    does not change its result. forgiven: takes the errors instead, and the images that have one are left
    out. read_captions: whether the training does; otherwise missing ones are not
    reported. also: other sections, whose control images are not left over.

    Example::

        scan = scan_datasets([DatasetConfig(folder_path="photos")], trigger_word="sks")
        scan.samples[0].caption  # "sks a red cat"
    """
    findings = ScanFindings(scan_cache or ScanCache(), read_captions)
    folders = _folders(datasets, findings)
    matched = match_files(folders, findings)
    if any(folder.slots or folder.dataset.image_suffix for folder in matched):
        # What is wrong with other sections, their own scan reports.
        of_others = ScanFindings(findings.scan_cache, read_captions=False)
        others = match_files(_folders(also, of_others), of_others)
        note_unused_partners(matched, others, findings)
    checked = check_images(matched, trigger_word, forgiven, findings)
    infos = [folder_info(folder, trigger_word) for folder in checked]
    notes = [info.note for info in infos if info.note]
    return DatasetScan(
        folders=tuple(infos),
        notes=tuple(map(as_given, (*notes, *findings.notes))),
        unused=tuple(findings.unused),
        unpaired=tuple(findings.unpaired),
        held_out=tuple(findings.held_out),
        mask_faults=tuple(findings.mask_faults),
        questions=tuple(findings.questions),
        scan_cache=findings.scan_cache,
    )


def _folders(
    datasets: Sequence[DatasetConfig], findings: ScanFindings
) -> list[ImageFolder]:
    """The folders of all entries that have images, with their tables."""
    folders = []
    for index, dataset in enumerate(datasets):
        of_entry = _folders_of_entry(dataset, findings)
        folders += [replace(folder, index=index) for folder in of_entry]
    return folders


def _folders_of_entry(
    dataset: DatasetConfig, findings: ScanFindings
) -> list[ImageFolder]:
    """The folders of one entry of `datasets`, with their tables. What their names look
    like is noted."""
    folders: Sequence[ImageFolder] = [
        _with_own_table(folder, findings)
        for folder in image_folders(dataset, findings)
        if not _asks_for_no_repeats(folder, findings)
    ]
    folders = with_tables_above(dataset, folders, findings)
    for folder in folders:
        refuse_lost_captions(folder, findings)
    note_splits(dataset, folders, findings)
    folders = with_placed_rows(dataset, folders, findings)
    if (
        dataset.columns != NO_COLUMNS
        and folders
        and not any(folder.table for folder in folders)
        and not (dataset.columns.prompt and ".json" in dataset.caption_ext)
    ):
        findings.warn(
            dataset.place,
            "'columns' is given, and no table of captions is read. "
            "Give one as 'captions_file', or take 'columns' out",
        )
    note_pair_folders(dataset, folders, findings)
    # A table of pairs may name all images of a folder as control images of others.
    return [
        folder
        for folder in folders
        if folder.listing.images or folder.table.path not in findings.of_pairs
    ]


def _asks_for_no_repeats(folder: ImageFolder, findings: ScanFindings) -> bool:
    """Whether the name of a folder says that its images are used 0 times, which is a
    mistake."""
    dataset = folder.dataset
    path = folder.listing.folder
    is_read = dataset.folder_path and not dataset.num_repeats
    repeats = matched_name(path, REPEATS) if is_read else ""
    if not repeats or int(repeats):
        return False
    findings.mistake(
        path, "its name asks for 0 repeats. Give 1 or more, or take it out"
    )
    return True


def _with_own_table(folder: ImageFolder, findings: ScanFindings) -> ImageFolder:
    """The folder with the table next to its images, if that has their captions. Other
    files in the folder are noted."""
    if not folder.dataset.folder_path:  # what its table does not name is not meant
        return folder
    folder = with_table_beside(folder, findings)
    note_unused_files(folder, findings)
    note_pair_names(folder, findings)
    note_layer_names(folder, findings)
    note_subfolders(folder, findings)
    return folder


# ---------------------------------------------------------------- images by name,
# without opening any


class FoundImage(NamedTuple):
    """An image file, and what belongs to it by the names of files. It was not
    opened.

    Example::

        images, mistakes, notes = find_images(DatasetConfig(folder_path="photos"))
        images[0].caption, images[0].references
    """

    path: str
    repeats: int
    caption: str
    """As its file has it; empty for none."""

    captions: tuple[str, ...]
    """Paths of its caption files: first the one that is read, then others. Empty for
    none."""

    table: str
    """Path of the table with its caption; empty where it has a caption file, or no
    caption."""

    references: tuple[str, ...]
    """Paths of its control images in slot order."""

    mask: str
    """Path of its mask; empty for none."""

    shares_stem: bool
    """Whether another image has the same name but for the suffix, which is an error of
    the dataset."""

    focus: Focus = MIDDLE
    """Which part is kept where it is cut."""


def find_images(
    dataset: DatasetConfig, listings: Iterable[DirectoryListing] = ()
) -> tuple[list[FoundImage], list[Diagnostic], list[str]]:
    """The images of a dataset as a scan finds them, errors, and notes. Only caption
    files are read.

    listings: of its folders that were read already, with known captions; they get the
    others.
    """
    scan_cache = ScanCache()
    for listing in listings:
        scan_cache.take(listing)
    findings = ScanFindings(scan_cache, read_captions=True)
    images = []
    for folder in match_files(_folders([dataset], findings), findings):
        of_images = _caption_files_of_images(folder)
        for image, caption_files in zip(folder.images, of_images, strict=True):
            images += _found_images(folder, image, caption_files)
    return images, list(dict.fromkeys(findings.mistakes)), findings.notes


def _caption_files_of_images(folder: ImageFolder) -> list[list[str]]:
    """For each image of a folder its caption files: first those that are not empty, as
    the first of them is read."""
    texts = folder.listing.texts
    if folder.table or not folder.caption_files:
        return [[] for _ in folder.images]
    return [
        sorted(filter(None, names), key=lambda name: not texts.get(name))
        for names in zip(*folder.caption_files, strict=True)
    ]


def _found_images(
    folder: ImageFolder, image: MatchedImage, caption_files: Sequence[str]
) -> list[FoundImage]:
    """An image once for each of its files."""
    listing = folder.listing
    return [
        FoundImage(
            path=listing.path(name),
            repeats=folder.repeats,
            caption=image.caption.replace(LIST, "\n"),
            captions=tuple(map(listing.path, caption_files)),
            table=folder.table.path,
            references=tuple(control.path for control in image.controls),
            mask=image.mask.path if image.mask else "",
            shares_stem=len(image.names) > 1,
            focus=image.focus,
        )
        for name in image.names
    ]
