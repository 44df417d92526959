"""Files of a dataset that a scan does not use: files next to images, and control images
and masks of no image.

Their owner probably wants them to be used, so each file is noted with the reason and,
if there is one, the remedy. `folder` calls `note_unused_files` when
the table of a folder is known, `refuse_lost_captions` after that, and
`note_unused_partners` when its images are matched. Nothing is changed or left out here.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from glob import iglob
from itertools import chain, islice

from toolkit.config.sections.dataset import DatasetConfig
from toolkit.data.pixels.unread import kind_of_file
from toolkit.data.scan.captions import (
    FORMATS,
    WRITE_ONE,
    CaptionError,
    NoCaptionError,
    caption_in,
    read_text,
)
from toolkit.data.scan.crops import SUFFIX as CROP
from toolkit.data.scan.directory import DirectoryListing, join, real_path, split_suffix
from toolkit.data.scan.folder_tables import (
    NO_CAPTIONS,
    OTHER_TABLE,
    names_any,
    tables_in,
)
from toolkit.data.scan.found import ScanFindings, count_of, shorten
from toolkit.data.scan.partners import root_of
from toolkit.data.scan.records import ImageFolder, Slot
from toolkit.data.scan.tables import TABLES, image_name
from toolkit.files.archives import archive_in

# ---------------------------------------------------------------- files beside the
# images of a folder


def note_unused_files(folder: ImageFolder, findings: ScanFindings) -> None:
    """Notes the files of a folder that are neither images nor captions, by their
    reasons."""
    listing = folder.listing
    dataset = folder.dataset
    reads_files = not folder.table and dataset.captions != "names"
    caption_ext = dataset.caption_ext if reads_files else ()
    used = set(chain.from_iterable(folder.caption_files))
    by_reason: dict[tuple[str, str], list[str]] = {}
    for name, written in listing.files.items():
        stem, suffix = split_suffix(name)
        is_crop = suffix == CROP and stem in folder.whole.images
        if written not in used and not is_crop:
            why = _why_ignored(name, folder, caption_ext, findings)
            by_reason.setdefault(why, []).append(written)
    for (reason, remedy), names in by_reason.items():
        if remedy in FORMATS:  # the first of them says it
            remedy = _way_of(listing.path(names[0]), caption_ext)
        if remedy:
            findings.not_used(listing, names, reason, remedy, findings.unused)
        else:
            findings.note(listing.folder, f"ignored, {reason}: {shorten(names)}")


def _why_ignored(
    name: str,
    folder: ImageFolder,
    caption_ext: Sequence[str],
    findings: ScanFindings,
) -> tuple[str, str]:
    """The reason, and the remedy, which is empty for files that are not expected to be
    used, or a suffix: `_way_of` finds that of its files.

    caption_ext: the suffixes of captions; none where they come from one file.
    """
    listing = folder.listing
    images = listing.images
    stem, suffix = split_suffix(name)
    stems = {*images, *chain.from_iterable(images.values())}
    is_caption = name.endswith(tuple(map(str.lower, caption_ext)))
    if is_caption and name.lower() not in NO_CAPTIONS:
        reason = "caption without an image"
        remedy = "Give image and caption the same name, in upper and lower case too"
        if stem in stems:
            return "second caption of an image", "Put the text of both into one"
        if stem.casefold() in map(str.casefold, images):
            reason = "caption of an image whose name differs in case"
        elif not folder.has_caption_files:
            remedy += "; a file for all images has the name of each, a tab, its caption"
        return reason, remedy
    if suffix == CROP:
        return "crop without an image", "Give both the same name"
    if suffix in FORMATS and name.removesuffix(suffix) in stems:
        if caption_ext:
            reason = f"not a caption, because caption_ext is {' '.join(caption_ext)}"
            return reason, "" if folder.has_caption_files else suffix  # chosen
        are_names = folder.dataset.captions == "names"
        why = "captions is names" if are_names else "captions_file is given"
        return f"not a caption, because {why}", ""
    if caption_ext:
        names = [image_name(files[0]) for files in images.values()]
        for table in tables_in(folder.listing, folder.dataset, [name], findings):
            if names_any(table, folder.listing.prefix, names):
                return OTHER_TABLE
    if suffix in TABLES or listing.files[name] in listing.no_files:
        return "not an image", ""
    kind, remedy = kind_of_file(listing.path(listing.files[name]))
    return kind or "not an image", remedy


def _way_of(path: str, caption_ext: Sequence[str]) -> str:
    """How a file with the name of an image becomes its caption; empty for one that
    holds none."""
    way = f"Give 'caption_ext: [{', '.join((*caption_ext, split_suffix(path)[1]))}]'"
    try:
        return way if caption_in(path, read_text(path)) else ""
    except NoCaptionError as error:
        _, _, remedy = error.reason.partition(". ")
        return "" if remedy == WRITE_ONE else f"{way}. {remedy}"
    except CaptionError:  # told when it is read
        return way


# ---------------------------------------------------------------- captions that lie
# elsewhere

_STEMS = 20
"""So many images are looked for in other folders."""

_FOLDERS = 100
"""So many folders are looked into in each of these."""

_SURE = 3
"""So many texts have the names of the images not by chance, whatever their folder is
called."""

_CALLED = {
    *("captions", "caption", "labels", "label", "texts", "text", "txt", "tags"),
    *("metadata", "prompts"),
}
"""Folders of captions, and tables of them."""


def refuse_lost_captions(folder: ImageFolder, findings: ScanFindings) -> None:
    """A mistake where no image of a folder has a caption, and another folder has
    them."""
    dataset = folder.dataset
    is_told = dataset.default_caption or dataset.is_reg or dataset.captions == "names"
    has_captions = folder.table or folder.has_caption_files
    if not findings.read_captions or is_told or has_captions:
        return
    if lost := captions_elsewhere(folder.listing, dataset, findings):
        told = f"no image has a caption. {lost}, or give 'default_caption' where none is meant"
        findings.mistake(folder.listing.folder, told)


def captions_elsewhere(
    listing: DirectoryListing, dataset: DatasetConfig, findings: ScanFindings
) -> str:
    """The folder in this one, or near it, or the table above it, that has the captions
    of its images, and how they are read; empty for none. A folder with such images has
    its own."""
    stems = list(listing.images)[:_STEMS]
    names = [listing.images[stem][0] for stem in stems]
    folder = listing.folder.rstrip("/")
    above = os.path.dirname(folder) or "."
    with suppress(OSError):
        beside = findings.scan_cache.listing(above)
        called = [name for name in beside.files if split_suffix(name)[0] in _CALLED]
        for table in tables_in(beside, dataset, called, findings):
            if names_any(table, listing.prefix, names):
                return f"{table.path} has captions of the images. Give 'captions_file: {table.path}'"
    for place, prefix, is_sure in _folders_near(folder, above, findings):
        for suffix in FORMATS:
            found = sum(_is_caption(f"{prefix}{stem}{suffix}") for stem in stems)
            if 2 * found >= max(
                len(stems), 1 if is_sure else 2 * _SURE
            ) and findings.scan_cache.listing(place).images.keys().isdisjoint(stems):
                way = (
                    "Unpack the archive, and put them beside the images"
                    if archive_in(place)
                    else f"Copy them beside the images ('cp {shlex.quote(place)}/*{suffix} {shlex.quote(folder)}')"
                )
                return f"{place} has texts with the names of the images. {way}"
    return ""


def _folders_near(
    folder: str, above: str, findings: ScanFindings
) -> Iterator[tuple[str, str, bool]]:
    """Folders that may have the captions of the images in `folder`: how they are named,
    their prefix, and whether they are in it or called for captions. Of the latter, and
    of those in it, also the folders inside."""
    for top in (folder, above, os.path.dirname(above) or ".."):
        with suppress(OSError):
            listing = findings.scan_cache.listing(top)
            for name in listing.subfolders:
                is_sure = top == folder or name.lower() in _CALLED
                below = iglob("**/", root_dir=listing.path(name), recursive=True)
                deeper = islice(below, _FOLDERS if is_sure else 0)
                for inside in (name, *(f"{name}/{one[:-1]}" for one in deeper)):
                    if is_sure or top == above:
                        yield join(top, inside), f"{listing.path(inside)}/", is_sure


def _is_caption(path: str) -> bool:
    """Whether a file has a text of words: annotations are numbers."""
    with suppress(CaptionError):
        text = caption_in(path, read_text(path)) if os.path.isfile(path) else ""
        return bool(re.search(r"[^\W\d_]{2}|[^\0-\x7f]", text))
    return False


# ---------------------------------------------------------------- control images and
# masks


def note_unused_partners(
    folders: Sequence[ImageFolder],
    others: Sequence[ImageFolder],
    findings: ScanFindings,
) -> None:
    """Notes control images and masks that belong to no image, and those that several
    images share by their name.

    others: folders that are not trained on, whose images use such files.
    """
    by_prefix: dict[str, set[str]] = {}
    for folder in (*folders, *others):
        for _, partner in folder.partners():
            by_prefix.setdefault(partner.listing.prefix, set()).add(partner.name)
    used: dict[str, set[str]] = {}
    for prefix, names in by_prefix.items():  # paths of one folder may be several
        used.setdefault(real_path(prefix), set()).update(names)
    known = {real_path(folder.listing.prefix) for folder in (*folders, *others)}
    slots = [
        (slot, listing)
        for f in folders
        for slot in f.slots
        for listing in slot.listings
    ]
    for slot, listing in slots:
        place = real_path(listing.prefix)
        if place not in known:
            known.add(place)
            _note_unused_in(slot, listing, used.get(place, set()), findings)
    _note_partner_folders(folders, known, findings)
    for folder in folders:
        _note_left_partners(folder, findings)
    for index in dict.fromkeys(folder.index for folder in folders):
        _note_shared_partners([f for f in folders if f.index == index], findings)


def _note_unused_in(
    slot: Slot, listing: DirectoryListing, used: set[str], findings: ScanFindings
) -> None:
    """Notes images of no image, and captions, in a folder of control images or
    masks."""
    left = _images_without(listing, used)
    if left:
        is_control = slot.key == "control"
        several = ", with _0, _1 and so on for several" if is_control else ""
        reason = f"{slot.what} without an image"
        remedy = f"Give it the name of its image{several}"
        findings.not_used(listing, left, reason, remedy, findings.unpaired)
    stems = {*listing.images, *chain.from_iterable(listing.images.values())}
    split = ((split_suffix(written), name) for written, name in listing.files.items())
    texts = [
        name for (stem, suffix), name in split if suffix in FORMATS and stem in stems
    ]
    if texts:
        reason = f"caption beside a {slot.what}"
        remedy = "Put it beside the image, with its name"
        findings.not_used(listing, texts, reason, remedy, findings.unused)


def _images_without(listing: DirectoryListing, used: set[str]) -> list[str]:
    """Names of the image files in a folder that are not in `used`."""
    names = chain.from_iterable(listing.images.values())
    return [name for name in names if name not in used]


def _note_partner_folders(
    folders: Sequence[ImageFolder], known: set[str], findings: ScanFindings
) -> None:
    """Notes subfolders of the folders of control images and masks that no folder of
    images uses. known: those used."""
    paths = dict[str, str]()
    for dataset in (folder.dataset for folder in folders):
        paths |= dict.fromkeys(dataset.control_path, "control_path")
        if not dataset.alpha_mask:
            paths[dataset.mask_path or ""] = "mask_path"
    for path, key in paths.items():
        top = findings.listing(path, key) if path else None
        filled = []
        for name in top.subfolders if top else ():
            place = join(path, name)
            listing = None if real_path(place) in known else findings.listing(place)
            if listing and listing.images:
                filled.append(name)
        if filled:
            findings.note(
                path,
                f"subfolders without a folder of images ignored: {shorten(filled)}",
            )


def _note_left_partners(folder: ImageFolder, findings: ScanFindings) -> None:
    """Notes images of a folder that are named like control images or masks of images
    that do not exist."""
    images = folder.listing.images
    affixes = [slot.affix for slot in folder.slots if slot.affix]
    lone = [
        names[0]
        for stem, names in images.items()
        if any(root_of(stem, affix) is not None for affix in affixes)
    ]
    if lone:
        findings.warn(
            folder.listing.folder,
            f"{count_of(len(lone), 'file')} named like control images or masks, and trained as images: "
            f"{shorten(lone)}. Remove them, or add the images that they belong to",
        )
    suffix = folder.dataset.image_suffix
    if suffix:
        used = {partner.name for _, partner in folder.partners()}
        others = _images_without(
            folder.whole, used.union(chain.from_iterable(images.values()))
        )
        reason = f"without image_suffix {suffix!r}, and control image of no image"
        remedy = "Give it one of the suffixes, or remove it"
        if others:
            findings.not_used(folder.whole, others, reason, remedy, findings.unpaired)


def _note_shared_partners(
    folders: Sequence[ImageFolder], findings: ScanFindings
) -> None:
    """Notes control images and masks that belong to several images of one dataset by
    their names."""
    images_of: dict[str, dict[str, None]] = {}
    for folder in folders:
        for image, partner in folder.partners() if folder.slots else ():
            if not image.has_controls_in_table:
                images_of.setdefault(partner.path, {})[image.file.path] = None
    shared = [pair for pair in images_of.items() if len(pair[1]) > 1]
    if not shared:
        return
    (first, images), *rest = shared
    more = f" ({count_of(len(rest), 'more file')} likewise)" if rest else ""
    findings.warn(
        first,
        f"is the one of {len(images)} images: {shorten(images)}{more}. "
        "Where each image has its own, put them into subfolders named as those of the images",
    )
