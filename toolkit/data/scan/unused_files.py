"""Files of a dataset that a scan does not use: files next to images, and control images
and masks of no image.

Their owner probably wants them to be used, so each file is noted with the reason and,
if there is one, the remedy. `folder` calls `note_unused_files` when the table of a
folder is known, and `note_unused_partners` when its images are matched. Nothing is
changed or left out here.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from toolkit.config.sections.dataset import DatasetConfig
from toolkit.data.scan.captions import FORMATS
from toolkit.data.scan.directory import DirectoryListing, join, real_path, split_suffix
from toolkit.data.scan.folder_tables import OTHER_TABLE, names_any, tables_in
from toolkit.data.scan.found import ScanFindings, count_of, shorten
from toolkit.data.scan.partners import root_of
from toolkit.data.scan.records import ImageFolder
from toolkit.data.scan.tables import image_name

_UNREAD_IMAGES = frozenset({".jp2", ".psd", ".svg", ".raw", ".dng", ".exr"})
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
    caption_ext: Sequence[str] = ()
    if folder.table is None and dataset.captions != "names":
        caption_ext = dataset.caption_ext
    used = set(chain.from_iterable(folder.caption_files))
    by_reason: dict[tuple[str, str], list[str]] = {}
    for name, written in listing.files.items():
        if written not in used:
            why = _why_ignored(name, listing, caption_ext, dataset, findings)
            by_reason.setdefault(why, []).append(written)
    for (reason, remedy), names in by_reason.items():
        if remedy:
            findings.not_used(listing, names, reason, remedy, findings.unused)
        else:
            findings.notes.append(
                f"{listing.folder}: ignored, {reason}: {shorten(names)}"
            )


def _why_ignored(
    name: str,
    listing: DirectoryListing,
    caption_ext: Sequence[str],
    dataset: DatasetConfig,
    findings: ScanFindings,
) -> tuple[str, str]:
    """The reason, and the remedy, which is empty for files that are not expected to be
    used.

    caption_ext: the suffixes of captions; none where they come from one file.
    """
    stem, suffix = split_suffix(name)
    if suffix in _UNREAD_IMAGES:
        return f"{suffix} is not supported", "Convert them to PNG or JPEG"
    if (
        name.endswith(tuple(map(str.lower, caption_ext)))
        and name.lower() not in _NO_CAPTIONS
    ):
        reason = "caption without an image"
        if stem.casefold() in map(str.casefold, listing.images):
            reason = "caption of an image whose name has other letters"
        return (
            reason,
            "Give image and caption the same name, in upper and lower case too",
        )
    if suffix in FORMATS and name.removesuffix(suffix) in listing.images:
        return _why_no_caption(suffix, caption_ext, dataset)
    if caption_ext:
        names = [image_name(files[0]) for files in listing.images.values()]
        for table in tables_in(listing, dataset, [name], findings):
            if names_any(table, listing.prefix, names):
                return OTHER_TABLE
    return "not an image", ""


def _why_no_caption(
    suffix: str, caption_ext: Sequence[str], dataset: DatasetConfig
) -> tuple[str, str]:
    """The reason and the remedy for a text file that has the name of an image. suffix:
    of the text file."""
    if caption_ext:
        return (
            f"not a caption, because caption_ext is {' '.join(caption_ext)}",
            f"Add {suffix} to caption_ext",
        )
    if dataset.captions == "names":
        return "not a caption, because captions is names", ""
    return "not a caption, because captions_file is given", ""


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
    used = _used_partners([*folders, *others])
    known = {real_path(folder.listing.prefix) for folder in (*folders, *others)}
    for folder in folders:
        for slot in folder.slots:
            for listing in slot.listings:
                place = real_path(listing.prefix)
                if place in known:
                    continue
                known.add(place)
                left = _images_without(listing, used.get(place, set()))
                if left:
                    if slot.key == "control":
                        several = ", with _0, _1 and so on for several"
                    else:
                        several = ""
                    remedy = f"Give it the name of its image{several}"
                    findings.not_used(
                        listing,
                        left,
                        f"{slot.what} without an image",
                        remedy,
                        findings.unpaired,
                    )
                texts = _captions_in(listing)
                if texts:
                    remedy = "Put it beside the image, with its name"
                    findings.not_used(
                        listing,
                        texts,
                        f"caption beside a {slot.what}",
                        remedy,
                        findings.unused,
                    )
    _note_partner_folders(folders, known, findings)
    for folder in folders:
        _note_left_partners(folder, findings)
    for index in dict.fromkeys(folder.index for folder in folders):
        _note_shared_partners(
            [folder for folder in folders if folder.index == index and folder.slots],
            findings,
        )


def _used_partners(folders: Sequence[ImageFolder]) -> dict[str, set[str]]:
    """Folder, by its real path -> the files in it that are control images, layers or
    masks of an image."""
    by_prefix: dict[str, set[str]] = {}
    for folder in folders:
        for _, partner in folder.partners():
            by_prefix.setdefault(partner.listing.prefix, set()).add(partner.name)
    used: dict[str, set[str]] = {}
    # several of one folder, where its path is written differently
    for (
        prefix,
        names,
    ) in by_prefix.items():
        used.setdefault(real_path(prefix), set()).update(names)
    return used


def _images_without(listing: DirectoryListing, used: set[str]) -> list[str]:
    """Names of the image files in a folder that are not in `used`."""
    names = chain.from_iterable(listing.images.values())
    return [name for name in names if name not in used]


def _captions_in(listing: DirectoryListing) -> list[str]:
    """Names of the files of a folder that are captions of its images."""
    stems = {*listing.images, *chain.from_iterable(listing.images.values())}
    split = ((split_suffix(written), name) for written, name in listing.files.items())
    return [
        name for (stem, suffix), name in split if suffix in FORMATS and stem in stems
    ]


def _note_partner_folders(
    folders: Sequence[ImageFolder], known: set[str], findings: ScanFindings
) -> None:
    """Notes subfolders of the folders of control images and masks that no folder of
    images uses. known: those used."""
    partner_paths = (_partner_paths(folder.dataset) for folder in folders)
    for key, path in dict.fromkeys(chain.from_iterable(partner_paths)):
        top = findings.listing(path, key)
        if top is None:
            continue
        filled = []
        for name in top.subfolders:
            place = join(path, name)
            listing = None if real_path(place) in known else findings.listing(place)
            if listing and listing.images:
                filled.append(name)
        if filled:
            findings.notes.append(
                f"{path}: subfolders without a folder of images ignored: {shorten(filled)}"
            )


def _partner_paths(dataset: DatasetConfig) -> list[tuple[str, str]]:
    """The keys of the folders of control images, layers and masks, and the folders."""
    paths = [("control_path", path) for path in dataset.control_path]
    if dataset.layers_path:
        paths.append(("layers_path", dataset.layers_path))
    if dataset.mask_path and not dataset.alpha_mask:
        paths.append(("mask_path", dataset.mask_path))
    return paths


def _note_left_partners(folder: ImageFolder, findings: ScanFindings) -> None:
    """Notes images of a folder that are named like control images or masks of images
    that do not exist."""
    images = folder.listing.images
    affixes = [slot.affix for slot in folder.slots if slot.affix]
    like = []
    for stem in images:
        for affix in affixes:
            if root_of(stem, affix) is not None:
                like.append(stem)
    lone = [images[stem][0] for stem in dict.fromkeys(like)]
    if lone:
        what = f"named like control images or masks, and trained as images: {shorten(lone)}"
        remedy = "Remove them, or add the images that they belong to"
        findings.notes.append(
            f"warning: {folder.listing.folder}: {count_of(len(lone), 'file')} {what}. {remedy}"
        )
    if folder.dataset.image_suffix:
        known = {
            *chain.from_iterable(images.values()),
            *(partner.name for _, partner in folder.partners()),
        }
        others = _images_without(folder.whole, known)
        if others:
            reason = f"without image_suffix {folder.dataset.image_suffix!r}, and control image of no image"
            remedy = "Give it one of the suffixes, or remove it"
            findings.not_used(folder.whole, others, reason, remedy, findings.unpaired)


def _note_shared_partners(
    folders: Sequence[ImageFolder], findings: ScanFindings
) -> None:
    """Notes control images and masks that belong to several images of one dataset by
    their names."""
    images_of: dict[str, dict[str, None]] = {}
    for folder in folders:
        for image, partner in folder.partners():
            if not image.has_controls_in_table:
                images_of.setdefault(partner.path, {})[image.file.path] = None
    shared = [pair for pair in images_of.items() if len(pair[1]) > 1]
    if not shared:
        return
    first, images = shared[0]
    more = f" ({count_of(len(shared) - 1, 'more file')} likewise)"
    if len(shared) == 1:
        more = ""
    what = f"is the one of {len(images)} images: {shorten(images)}{more}"
    remedy = "Where each image has its own, put them into subfolders named as those of the images"
    findings.notes.append(f"warning: {first}: {what}. {remedy}")
