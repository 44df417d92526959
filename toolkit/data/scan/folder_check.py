"""The fourth stage of a scan: images are read, and warnings are given for what is
allowed but rarely intended.

`folder` calls `check_images` with all folders. The folders that it returns contain only
usable images. Errors of the earlier stages are raised here too, so that one run names
every file that has to be fixed. Few images are read whole; of many, the headers are
read, and the encoder finds the rest of the damage.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence, Sized
from dataclasses import replace
from itertools import chain
from unicodedata import normalize

from toolkit.config.sections.dataset import area_of
from toolkit.contracts.data import PLACEHOLDERS
from toolkit.data.pixels.images import (
    CLEAR,
    ImageError,
    ImageInfo,
    inspect_header,
    inspect_image,
    reference_error,
)
from toolkit.data.scan.captions import add_prefix, nearly_placeholders, unreplaced
from toolkit.data.scan.directory import DirectoryListing, ImageFile, split_suffix
from toolkit.data.scan.fingerprint import remember_reading
from toolkit.data.scan.foreign_syntax import in_words, marks_in
from toolkit.data.scan.found import (
    REGULARISATION,
    ScanFindings,
    count_of,
    matched_name,
    named_as_regularisation,
    repeats_of,
    shorten,
    texts_of,
)
from toolkit.data.scan.masks import look_at_masks, mask_fault
from toolkit.data.scan.records import ImageFolder
from toolkit.data.scan.repeats import REPEATS, ask_about, probably_no_repeats
from toolkit.data.scan.words import usual_word
from toolkit.errors import DataErrors, Diagnostic
from toolkit.files.archives import as_given
from toolkit.system.read_ahead import map_small_files, thread_map

READ_WHOLE = 500
"""The scan reads up to this number of new images whole. Of more images it reads headers
and ends; damage in between is then found, and reported for all of them, when the images
are encoded. `ScanCache.reads_whole`: all are read whole."""

_FRACTION = re.compile(r"([0-9]+[.,][0-9]+)_")  # repeats of OneTrainer may be fractions
# `40-char`, `_40_char`, `x40_char`, `4O_char`; not the date 2024-05-01
_NEARLY_REPEATS = re.compile(r"[\s_.x×-]*([0-9][0-9OolI]{0,2})[x×]?[\s_.-]+[^\W\d]")
_LAST_REPEATS = re.compile(r".*[^\W\d](?:_|[\s_-]x)([1-9][05]|100)x?$")
"""`char_40`, `char x40`: a round number as people give repeats; not the second `char_2`."""

_NUMBER = str.maketrans("OolI", "0011")


def check_images(
    folders: Sequence[ImageFolder],
    trigger_word: str | None,
    forgiven: list[Diagnostic] | None,
    findings: ScanFindings,
) -> list[ImageFolder]:
    """Reads the facts of every image that is used, then warns of what is allowed but
    rarely intended.

    Raises DataErrors for all errors so far; with `forgiven` it takes them, and the
    images that have one are left out.
    """
    for path, reason in _read_facts(folders, findings).items():
        findings.mistake(path, reason)
    findings.mistakes.extend(chain.from_iterable(map(_unlike_layers, folders)))
    mistakes = list(dict.fromkeys(findings.mistakes))
    if mistakes and forgiven is None:
        raise DataErrors(
            [
                replace(
                    each,
                    key=tuple(
                        as_given(part) if isinstance(part, str) else part
                        for part in each.key
                    ),
                )
                for each in mistakes
            ]
        )
    if mistakes and forgiven is not None:
        forgiven += mistakes
        places = {mistake.place for mistake in mistakes}
        folders = [_without_images(folder, places) for folder in folders]
    checked = []
    for folder in folders:
        folder = _with_looks(_without_void_masks(folder, findings), findings)
        for what in _warnings(folder, trigger_word, findings.read_captions):
            findings.warn(folder.listing.folder, what)
        _note_second_captions(folder, findings)
        checked.append(folder)
    findings.notes.extend(_numbers(checked, findings))
    if findings.read_captions:
        findings.notes.extend(_several_lines(checked))
    return checked


# ---------------------------------------------------------------- reading the images


def _read_facts(
    folders: Sequence[ImageFolder], findings: ScanFindings
) -> dict[str, str]:
    """Reads the images, each once: few of them whole, of many the header and the end.
    Path -> error of those that cannot be read."""
    wanted: dict[DirectoryListing, dict[str, None]] = {}
    for folder in folders:
        own = chain.from_iterable(image.names for image in folder.images)
        wanted.setdefault(folder.listing, {}).update(dict.fromkeys(own))
        for image in folder.images:
            for listing, name in image.partners:
                wanted.setdefault(listing, {})[name] = None
    images = [
        ImageFile(listing, name) for listing, names in wanted.items() for name in names
    ]
    unreadable: dict[str, str] = {}
    for file, looked in _looked_at(images, findings.scan_cache.reads_whole):
        if isinstance(looked, str):
            unreadable[file.path] = looked
            continue
        file.listing.facts[file.name] = looked
        version = file.listing.versions.get(file.name)
        if version:
            remember_reading(file.path, version, looked.reading)
    controls = (
        control
        for folder in folders
        for image in folder.images
        for control in image.controls
    )
    for control in controls:
        reason = reference_error(control.facts.size) if control.facts else None
        if reason:
            findings.mistake(control.path, reason)
    for listing, names in wanted.items():
        _note_remarks(listing, sorted(names), findings)
    return unreadable


def _looked_at(
    images: Sequence[ImageFile], reads_whole: bool
) -> Iterator[tuple[ImageFile, ImageInfo | str]]:
    """Each image that is not known yet, with its facts or its error. Up to READ_WHOLE
    are read whole; reads_whole: all."""
    unread = [image for image in images if not (image.facts and image.facts.verified)]
    are_many = len(unread) > READ_WHOLE and not reads_whole
    if are_many:
        unread = [image for image in images if not image.facts]
    inspect = inspect_header if are_many else inspect_image

    def look(image: ImageFile) -> ImageInfo | str:
        try:
            return image.listing.no_files.get(image.name) or inspect(image.path)
        except ImageError as error:
            return error.reason

    looks = (
        map_small_files(look, unread)
        if are_many
        else thread_map(look, unread, at_once=16)
    )
    return zip(unread, looks, strict=True)


def _note_remarks(
    listing: DirectoryListing, names: Sequence[str], findings: ScanFindings
) -> None:
    """Notes remarks on files that can be used, each remark once."""
    with_remark: dict[str, list[str]] = {}
    for facts, name in ((listing.facts.get(name), name) for name in names):
        for remark in facts.notes if facts else ():
            if remark != CLEAR:
                with_remark.setdefault(remark, []).append(name)
    for remark, files in with_remark.items():
        place = f"{listing.folder}: {shorten(files)}"
        if len(files) == 1:
            place = listing.path(files[0])
        findings.note(place, remark)


# ---------------------------------------------------------------- images that are left
# out


def _without_images(folder: ImageFolder, places: Collection[str]) -> ImageFolder:
    """The folder without the images that have an error in their own file or in the file
    of a partner. places: of the errors."""
    good = [
        image
        for image in folder.images
        if len(image.names) == 1
        and not any(file.path in places for file in (image.file, *image.partners))
    ]
    return replace(folder, images=tuple(good))


# ---------------------------------------------------------------- layers


def _unlike_layers(folder: ImageFolder) -> Iterator[Diagnostic]:
    """Layers that do not have the size of their image."""
    for image in folder.images:
        facts = image.file.facts
        for layer in image.layers:
            if layer.facts and facts and layer.facts.size != facts.size:
                yield Diagnostic(
                    (layer.path,),
                    f"has {layer.facts.size} pixels, and its image {image.file.name} has {facts.size}. "
                    "Export the layer with the whole canvas",
                )


def _opaque_layers(folder: ImageFolder) -> Iterator[str]:
    """Layers that hide all layers behind them."""
    upper = [layer for image in folder.images for layer in image.layers[1:]]
    opaque = [layer.name for layer in upper if layer.facts and not layer.facts.alpha]
    if opaque:
        yield (
            f"{count_of(len(opaque), 'layer')} in front of others without opacity of their own: {shorten(opaque)}. "
            "Such a layer hides those behind it; number layers from back to front, and save them as PNG"
        )


# ---------------------------------------------------------------- masks


def _without_void_masks(folder: ImageFolder, findings: ScanFindings) -> ImageFolder:
    """The folder without masks of images that have no transparency to be their mask.
    Notes these images, and masks of another shape than their image."""
    opaque = list[str]()
    stretched = list[str]()
    images = []
    for image in folder.images:
        facts = image.mask and image.mask.listing.facts[image.mask.name]
        if facts and folder.dataset.alpha_mask and not facts.alpha:
            opaque.append(image.file.name)
            image = image._replace(mask=None)
        elif facts and _has_other_shape(facts, folder.listing.facts[image.file.name]):
            stretched.append(image.file.name)
        images.append(image)
    for names, what in (
        (opaque, "alpha_mask: no transparency, so the whole image counts"),
        (stretched, "the mask has another shape and is stretched over"),
    ):
        if names:
            findings.note(folder.listing.folder, f"{what}: {shorten(names)}")
    return replace(folder, images=tuple(images))


def _has_other_shape(mask: ImageInfo, image: ImageInfo) -> bool:
    """Whether the sides of a mask differ from those of its image by more than rounding
    to pixels explains: 2 %."""
    width, height = image.size
    return abs(mask.size.width * height / (mask.size.height * width) - 1) > 0.02


def _with_looks(folder: ImageFolder, findings: ScanFindings) -> ImageFolder:
    """The folder with the measurements of its masks. Masks that are probably intended
    otherwise than they are read are noted, by kind."""
    looks = look_at_masks([*filter(None, map(folder.trained_mask, folder.images))])
    by_kind: dict[tuple[str, str], list[str]] = {}
    for mask, look in looks:
        fault = mask_fault(mask, look)
        if fault:
            by_kind.setdefault((fault.kind, fault.remedy), []).append(
                f"{os.path.basename(mask.file)} ({fault.detail})"
            )
            findings.mask_faults.append(
                (mask.file, f"is {fault.kind}: {fault.detail}. {fault.remedy}")
            )
    for (kind, remedy), names in by_kind.items():
        findings.warn(
            folder.listing.folder,
            f"{_share(names, looks, 'mask', 'is', 'are')} {kind}: {shorten(names)}. {remedy}",
        )
    return replace(folder, mask_looks=tuple(look for _, look in looks))


# ---------------------------------------------------------------- what is allowed and
# rarely meant


def _warnings(
    folder: ImageFolder, trigger_word: str | None, read_captions: bool
) -> Iterator[str]:
    """Warnings of one folder, without its path."""
    yield from _odd_repeats(folder)
    if not folder.dataset.is_reg and named_as_regularisation(folder.listing.folder):
        yield REGULARISATION
    if read_captions:
        yield from _check_captions(
            folder, folder.dataset.trigger_word or trigger_word or ""
        )
    yield from _opaque_layers(folder)
    yield from _clear_images(folder)
    yield from _small_images(folder)


def _odd_repeats(folder: ImageFolder) -> Iterator[str]:
    """A number in the name of a folder that is not read as repeats but was probably
    intended as repeats."""
    if folder.dataset.num_repeats:
        return
    share = matched_name(folder.listing.folder, _FRACTION)
    name = os.path.basename(os.path.abspath(folder.listing.folder))
    plain = normalize("NFKC", name)  # digits of full width
    nearly = _NEARLY_REPEATS.match(plain) or _LAST_REPEATS.match(plain)
    count = int(nearly[1].translate(_NUMBER)) if nearly else 0
    if share:
        yield (
            f"the {share} in its name is not used, as repeats are whole numbers: "
            "each image is used once per epoch"
        )
    elif count > 1 and not REPEATS.match(name):
        yield (
            "each image is used once per epoch. "
            f"For {count} repeats begin its name with '{count}_', or give 'num_repeats: {count}'"
        )


def _clear_images(folder: ImageFolder) -> Iterator[str]:
    """Images that are fully transparent."""
    facts = folder.listing.facts
    names = [image.file.name for image in folder.images]
    clear = [name for name in names if CLEAR in facts[name].notes]
    if clear and not folder.dataset.alpha_mask:
        share = _share(clear, names, "image", "is", "are")
        yield (
            f"{share} fully transparent, so that nothing of it is seen: {shorten(clear)}. "
            "Export them once more, or remove them"
        )


def _share(part: Sized, whole: Sized, what: str, one: str, many: str) -> str:
    """How many of the whole, with a verb: `1 of 2 images is`."""
    verb = one if len(part) == 1 else many
    return f"{len(part):,} of {count_of(len(whole), what)} {verb}"


def _small_images(folder: ImageFolder) -> Iterator[str]:
    """Images that are much smaller than the resolution that they are trained at."""
    facts = folder.listing.facts
    resolution = min(folder.dataset.resolution, key=area_of)
    least = area_of(resolution) / 4
    sizes = ((image.file.name, facts[image.file.name].size) for image in folder.images)
    small = [(name, size) for name, size in sizes if size.width * size.height < least]
    if small:
        outcome = "not enlarged" if isinstance(resolution, int) else "enlarged to it"
        what = f"smaller than half of 'resolution: {resolution}', and {outcome}"
        names = shorten(f"{name} ({size.width}x{size.height})" for name, size in small)
        yield f"{len(small)} of {len(folder.images)} images are {what}: {names}"


def _numbers(folders: Sequence[ImageFolder], findings: ScanFindings) -> Iterator[str]:
    """Asks about neighbouring folders whose numbers are probably not repeats, and keeps
    the question."""
    beside: dict[str, dict[str, int]] = {}
    for folder in folders:
        path = folder.listing.folder
        name = os.path.basename(os.path.abspath(path))
        is_read = not folder.dataset.num_repeats and repeats_of(path)
        if is_read and not named_as_regularisation(name):
            place = os.path.dirname(path.rstrip("/")) or "."
            beside.setdefault(place, {})[name] = folder.repeats
    for place, repeats in beside.items():
        why = probably_no_repeats(repeats)
        if why:
            question = ask_about(repeats, why)
            findings.questions.append((place, question))
            yield f"warning: {place}: {question}"


# ---------------------------------------------------------------- captions


def _several_lines(folders: Sequence[ImageFolder]) -> Iterator[str]:
    """Notes captions with line breaks: other programs take one of the lines."""
    images = [
        (folder, image)
        for folder in folders
        for image in folder.images
        if folder.dataset.captions == "one"
    ]
    several = {
        folder.inside(image.file.name): image.caption
        for folder, image in images
        if "\n" in image.caption
    }
    if several:
        # a line of an answer, or of a list, is no caption of its own
        marks = marks_in([*several.values()])
        hint = "" if marks else " ('captions: lines' draws one at each use)"
        yield (
            f"{_share(several, images, 'caption', 'has', 'have')} several lines, which are "
            f"trained together, as one caption with line breaks{hint}: {shorten(several)}"
        )


def _check_captions(folder: ImageFolder, trigger: str) -> Iterator[str]:
    """Warnings for the captions of a folder: count, names, remedy."""
    dataset = folder.dataset
    default, prefix = dataset.default_caption, dataset.caption_prefix
    used = {
        image.file.name: add_prefix(image.caption or default, prefix)
        for image in folder.images
    }
    yield from _missing_captions(folder, used, trigger)
    yield from _left_placeholders(used, trigger)
    marks = marks_in([*used.values()])
    if marks:
        places = {place for kind in marks for place in kind.texts}
        names = shorten(name for at, name in enumerate(used) if at in places)
        yield f"{len(places):,} of {count_of(len(used), 'caption')} ({names}) with {in_words(marks, counted=True)}"
    if dataset.is_reg:
        return
    yield from _odd_captions(used, trigger)
    if not (trigger or dataset.references[1] or prefix):
        yield from _trigger_by_hand(folder)


def _missing_captions(
    folder: ImageFolder, captions: Mapping[str, str], trigger: str
) -> Iterator[str]:
    """Images without a caption. captions: of each image, with its prefix."""
    missing = [name for name, text in captions.items() if not text]
    # where no other file lies beside the images the trigger word alone is meant
    trains_trigger = (
        trigger and len(missing) == len(captions) and not folder.listing.files
    )
    if not missing or folder.dataset.is_reg or trains_trigger:
        return
    share = _share(missing, captions, "image", "has", "have")
    outcome = "with an empty prompt, as there is no trigger_word"
    if trigger:
        outcome = f"with {trigger!r} alone"
    first = split_suffix(missing[0])[0] + folder.dataset.caption_ext[0]
    is_empty = folder.listing.files.get(first)
    remedy = (
        f"{first} is empty: write the caption into it" if is_empty else f"Write {first}"
    )
    train, more = ("trains", "") if len(missing) == 1 else ("train", " etc.")
    yield f"{share} no caption ({shorten(missing)}) and {train} {outcome}. {remedy}{more}, or give 'default_caption'"


def _note_second_captions(folder: ImageFolder, findings: ScanFindings) -> None:
    """Notes caption files behind the one that is read of their image."""
    texts = folder.listing.texts
    second = []
    for names in () if folder.table else zip(*folder.caption_files, strict=True):
        found = [*dict.fromkeys(filter(None, names))]
        used = next((at for at, name in enumerate(found) if texts.get(name)), 0)
        second += found[used + 1 :]
    if second:
        findings.not_used(
            folder.listing,
            second,
            f"as the first of caption_ext ({' '.join(folder.dataset.caption_ext)}) is read",
            f"For these give 'caption_ext: {split_suffix(second[0])[1]}'",
            findings.unused,
        )


def _left_placeholders(captions: Mapping[str, str], trigger: str) -> Iterator[str]:
    """Placeholders for the trigger word that are trained as they are written. captions:
    of each image, with its prefix."""
    for placeholder, remedy in unreplaced(captions.values(), bool(trigger)).items():
        names = [name for name, text in captions.items() if placeholder in text]
        yield (
            f"{count_of(len(names), 'caption')} with '{placeholder}', which nothing replaces: {shorten(names)}. "
            f"{remedy}"
        )


def _trigger_by_hand(folder: ImageFolder) -> Iterator[str]:
    """A word with which almost all captions begin, where the job has no trigger
    word."""
    dataset = folder.dataset
    texts = [
        text for image in folder.images for text in texts_of(image.caption, dataset)
    ]
    word, count = usual_word([text for text in texts if text])
    if word and word not in PLACEHOLDERS and word not in nearly_placeholders(word):
        yield (
            f"{count} of {len(texts)} captions begin with {word!r}, and there is no trigger_word. "
            f"If it is yours, give 'trigger_word: {word}'"
        )


def _odd_captions(captions: Mapping[str, str], trigger: str) -> Iterator[str]:
    """Captions that are probably not written as intended. captions: of each image, with
    its prefix."""
    quoted = [
        name
        for name, text in captions.items()
        if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
    ]
    if quoted:
        yield (
            f"{count_of(len(quoted), 'caption')} in quotation marks, which are trained as part of it: "
            f"{shorten(quoted)}"
        )
    if not trigger:
        return
    folded = trigger.lower()
    other = [
        name
        for name, text in captions.items()
        if folded in text.lower() and trigger not in text
    ]
    if other:
        yield (
            f"{count_of(len(other), 'caption')} with {trigger!r} in different case, "
            f"so that it is put in front as well: {shorten(other)}"
        )
