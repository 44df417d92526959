"""Files of a dataset that a scan does not use: files next to images, and control images
and masks of no image.

Their owner probably wants them to be used, so each file is noted with the reason and,
if there is one, the remedy. `folder` calls `note_unused_files` and
`note_captions_elsewhere` when the table of a folder is known, and
`note_unused_partners` when its images are matched. Nothing is changed or left out here.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain

from toolkit.data.pixels.unread import kind_of_file
from toolkit.data.scan.captions import FORMATS
from toolkit.data.scan.directory import (
    DirectoryListing,
    join,
    list_folder,
    real_path,
    split_suffix,
)
from toolkit.data.scan.folder_tables import OTHER_TABLE, names_any, tables_in
from toolkit.data.scan.found import ScanFindings, count_of, shorten
from toolkit.data.scan.partners import root_of
from toolkit.data.scan.records import ImageFolder, Slot
from toolkit.data.scan.tables import TABLES, image_name

FEW = 20
"""Up to so many files beside the images are read to see whether they are a table."""

_NO_CAPTIONS = frozenset(
    {"lint_ignore.txt", "readme.txt", "license.txt", "classes.txt"}
)


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
        if written not in used:
            why = _why_ignored(name, folder, caption_ext, findings)
            by_reason.setdefault(why, []).append(written)
    for (reason, remedy), names in by_reason.items():
        if remedy:
            findings.not_used(listing, names, reason, remedy, findings.unused)
        else:
            findings.note(listing.folder, f"ignored, {reason}: {shorten(names)}")


def note_captions_elsewhere(folder: ImageFolder, findings: ScanFindings) -> None:
    """Notes captions of its images in a subfolder, or in a folder beside it that is
    named for captions, where the folder has none."""
    path, images = folder.listing.folder, folder.listing.images
    if folder.has_caption_files or folder.dataset.captions == "names" or not path:
        return
    above = os.path.dirname(path.rstrip("/")) or "."
    with suppress(OSError):
        beside = filter(
            _FOR_CAPTIONS.fullmatch, list_folder(above, "", True).subfolders
        )
        inside = [join(path, name) for name in folder.listing.subfolders]
        for place in (*inside, *(join(above, name) for name in beside)):
            listing = findings.scan_cache.listing(place)
            names = map(split_suffix, () if listing.images else listing.files)
            texts = [
                end
                for stem, end in names
                if end in FORMATS and {stem, split_suffix(stem)[0]} & images.keys()
            ]
            if texts:
                move = f"mv -n {shlex.quote(place)}/*{texts[0]} {shlex.quote(path)}"
                what = f"{count_of(len(texts), 'caption')} in {place!r} are not read"
                findings.warn(path, f"{what}. Put them beside their images: {move}")


_FOR_CAPTIONS = re.compile(r"(?i)(.*[_ -])?(captions?|te?xts?|labels?|prompts?|tags)")
"""The name of a folder beside one of images."""


def _why_ignored(
    name: str, folder: ImageFolder, caption_ext: Sequence[str], findings: ScanFindings
) -> tuple[str, str]:
    """The reason, and the remedy, which is empty for files that are not expected to be
    used.

    caption_ext: the suffixes of captions; none where they come from one file.
    """
    images = folder.listing.images
    stem, suffix = split_suffix(name)
    is_caption = name.endswith(tuple(map(str.lower, caption_ext)))
    if is_caption and name.lower() not in _NO_CAPTIONS:
        if not folder.has_caption_files and len(folder.listing.files) <= FEW:
            table = findings.table(folder.listing.path(name), folder.dataset)
            if names_any(table, folder.listing.prefix, folder.image_names()):
                return (
                    "captions of several images",
                    f"Give 'captions_file: {table.path}'",
                )
            if len(table.mistakes) == len(images) > 1:  # a line for each
                remedy = "Write the name of its image and a tab before each line, and give 'captions_file: {}'"
                return "probably captions of all images", remedy.format(table.path)
        reason = "caption without an image"
        if stem.casefold() in map(str.casefold, images):
            reason = "caption of an image whose name has other letters"
        remedy = "Give image and caption the same name, in upper and lower case too"
        return reason, remedy
    if suffix in FORMATS and name.removesuffix(suffix) in images:
        if caption_ext:
            reason = f"not a caption, because caption_ext is {' '.join(caption_ext)}"
            return reason, f"Add {suffix} to caption_ext"
        are_names = folder.dataset.captions == "names"
        why = "captions is names" if are_names else "captions_file is given"
        return f"not a caption, because {why}", ""
    if caption_ext:
        names = [image_name(files[0]) for files in images.values()]
        for table in tables_in(folder.listing, folder.dataset, [name], findings):
            if names_any(table, folder.listing.prefix, names):
                return OTHER_TABLE
    listing = folder.listing
    if suffix in TABLES or listing.files[name] in listing.no_files:
        return "not an image", ""
    kind, remedy = kind_of_file(listing.path(listing.files[name]))
    return kind or "not an image", remedy


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
