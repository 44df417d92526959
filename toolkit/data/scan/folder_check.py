"""The second stage of a scan of datasets: the images are read, and what is allowed but rarely meant is warned of."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain

from toolkit.config.sections.dataset import area_of
from toolkit.contracts.data import PLACEHOLDERS
from toolkit.data.pixels.images import CLEAR, ImageError, ImageInfo, inspect_header, inspect_image, reference_error
from toolkit.data.scan.captions import add_prefix, nearly_placeholders, usual_word
from toolkit.data.scan.directory import DirectoryListing, ImageFile, split_suffix
from toolkit.data.scan.fingerprint import remember_reading
from toolkit.data.scan.foreign_syntax import in_words, marks_in
from toolkit.data.scan.found import (
    REGULARISATION,
    FoundFolder,
    ScanFindings,
    count_of,
    matched_name,
    named_as_regularisation,
    shorten,
    texts_of,
)
from toolkit.data.scan.masks import faults_of, look_at_masks
from toolkit.data.scan.pairs import Pair, contradictions, pair_mistakes
from toolkit.data.scan.repeats import ask_about, probably_no_repeats
from toolkit.errors import DataErrors, Diagnostic
from toolkit.system.read_ahead import thread_map

READ_WHOLE = 2000
"""Up to so many images that are not known yet are read whole by the scan. Of more, it reads headers and ends; what is
damaged in between is then found, and all of it named, when the images are encoded."""

_FRACTION = re.compile(r"([0-9]+[.,][0-9]+)_")  # repeats of OneTrainer may be fractions
_NEARLY_REPEATS = re.compile(r"([0-9]{1,3})[ .-]+[^\W\d]")  # `40 char`, `40-char`; not the date 2024-05-01


def check_images(
    folders: Sequence[FoundFolder], trigger_word: str | None, forgiven: list[Diagnostic] | None, findings: ScanFindings
) -> None:
    """Reads the facts of every image that is used, then warns of what is allowed but rarely meant.

    Raises DataErrors for all errors so far; with `forgiven` it takes them, and the images that have one are left out.
    """
    _skip_unreadable(folders, _read_facts(folders, findings), findings)
    if pairs := [pair for folder in folders if folder.worse for pair in _pairs(folder)]:
        findings.mistakes += pair_mistakes(pairs)
        findings.notes += contradictions(pairs)
    findings.mistakes += [mistake for folder in folders if folder.layers for mistake in _unlike_layers(folder)]
    if mistakes := list(dict.fromkeys(findings.mistakes)):
        if forgiven is None:
            raise DataErrors(mistakes)
        forgiven += mistakes
        for folder in folders:
            _leave_out(folder, {mistake.place for mistake in mistakes})
    for folder in folders:
        if folder.masks:
            findings.notes += _check_masks(folder)
            findings.notes += _mask_pixels(folder, findings)
        findings.notes += _warnings(folder, trigger_word, findings.read_captions)
    findings.notes += _numbers(folders, findings)
    if findings.read_captions:
        findings.notes += _several_lines(folders)


def _numbers(folders: Sequence[FoundFolder], findings: ScanFindings) -> Iterator[str]:
    """Asks about the repeats of folders beside each other whose numbers are probably none, and keeps the question."""
    beside: dict[str, dict[str, int]] = {}
    for folder in folders:
        name = os.path.basename(os.path.abspath(folder.listing.folder))
        place = os.path.dirname(folder.listing.folder.rstrip("/")) or "."
        is_decided = folder.dataset.num_repeats or folder.dataset.repeats_from_names is not None
        if folder.named_repeats and not is_decided and not named_as_regularisation(name):
            beside.setdefault(place, {})[name] = folder.repeats
    for place, repeats in beside.items():
        if why := probably_no_repeats(repeats):
            question = ask_about(repeats, why)
            findings.questions.append((place, question))
            yield f"warning: {place}: {question}"


def _several_lines(folders: Sequence[FoundFolder]) -> Iterator[str]:
    """Notes captions with line breaks: other programs take one of the lines."""
    whole = [folder for folder in folders if folder.dataset.captions == "one"]
    captions = [
        (name, text) for folder in whole for name, text in zip(folder.image_names(), folder.captions, strict=True)
    ]
    if several := [name for name, text in captions if "\n" in text]:
        are = "has" if len(several) == 1 else "have"
        what = f"{len(several):,} of {count_of(len(captions), 'caption')} {are} several lines"
        how = "trained together, as one caption with line breaks ('captions: lines' draws one at each use)"
        yield f"{what}, which are {how}: {shorten(several)}"


def _read_facts(folders: Sequence[FoundFolder], findings: ScanFindings) -> dict[str, str]:
    """Reads the images, each once: few of them whole, of many the header and the end. Path -> error of those that
    cannot be read."""
    wanted: dict[DirectoryListing, dict[str, None]] = {}
    for folder in folders:
        wanted.setdefault(folder.listing, {}).update(dict.fromkeys(chain(*folder.listing.images.values())))
        for listing, name in chain(
            *folder.controls.values(), *folder.layers.values(), *folder.worse.values(), folder.masks.values()
        ):
            wanted.setdefault(listing, {})[name] = None
    images = [ImageFile(listing, name) for listing, names in wanted.items() for name in names]
    inspect, at_once = inspect_image, 16
    unread = [image for image in images if not (image.facts and image.facts.verified)]
    if len(unread) > READ_WHOLE:
        inspect, at_once = inspect_header, 500
        unread = [image for image in images if not image.facts]

    def look(image: ImageFile) -> ImageInfo | str:
        """Its facts, or the error."""
        try:
            return image.listing.no_files.get(image.name) or inspect(image.path)
        except ImageError as error:
            return error.reason

    unreadable: dict[str, str] = {}
    for image, found in zip(unread, thread_map(look, unread, at_once), strict=True):
        if isinstance(found, str):
            unreadable[image.path] = found
        else:
            image.listing.facts[image.name] = found
            if version := image.listing.versions.get(image.name):
                remember_reading(image.path, version, found.reading)
    for image in chain.from_iterable(chain.from_iterable(folder.controls.values() for folder in folders)):
        if image.facts and (reason := reference_error(image.facts.size)):
            findings.mistake(image.path, reason)
    for listing, names in wanted.items():
        findings.notes += _remarks(listing, sorted(names))
    return unreadable


def _remarks(listing: DirectoryListing, names: Iterable[str]) -> Iterator[str]:
    """What is worth knowing of files that can be used all the same, each remark once."""
    noted: dict[str, list[str]] = {}
    for name in names:
        facts = listing.facts.get(name)
        for note in facts.notes if facts else ():
            noted.setdefault(note, []).append(name)
    for note, those in noted.items():
        if note != CLEAR:
            place = listing.path(those[0]) if len(those) == 1 else f"{listing.folder}: {shorten(those)}"
            yield f"{place}: {note}"


def _skip_unreadable(folders: Sequence[FoundFolder], unreadable: Mapping[str, str], findings: ScanFindings) -> None:
    """Leaves out images that cannot be read, or whose control image or mask cannot, of datasets with
    `skip_unreadable`; those of others are errors."""
    wrong: dict[str, None] = {}
    for folder in folders:
        files = {*map(folder.listing.path, chain(*folder.listing.images.values()))}
        files |= {image.path for _, image in folder.partners()}
        files |= {image.path for image in chain.from_iterable(folder.worse.values())}
        found = [path for path in unreadable if path in files]
        if not folder.dataset.skip_unreadable:
            wrong |= dict.fromkeys(found)
            continue
        before = len(folder.listing.images)
        _leave_out(folder, found)
        if not folder.listing.images:
            wrong |= dict.fromkeys(found)
        elif found:
            what = f"{before - len(folder.listing.images):,} of {count_of(before, 'image')} left out (skip_unreadable)"
            reasons = "; ".join(f"{os.path.basename(path)} {unreadable[path]}" for path in found[:3])
            findings.notes.append(f"warning: {folder.listing.folder}: {what}: {reasons}")
    for path in wrong:
        findings.mistake(path, unreadable[path])


def _leave_out(folder: FoundFolder, places: Collection[str]) -> None:
    """Forgets the images that have an error: in their own file, or in one that belongs to them."""

    def is_good(stem: str, files: tuple[str, ...]) -> bool:
        masks = (folder.masks[stem],) if stem in folder.masks else ()
        partners = (*folder.controls.get(stem, ()), *folder.layers.get(stem, ()), *masks, *folder.worse.get(stem, ()))
        used = (folder.listing.path(files[0]), *(image.path for image in partners))
        return len(files) == 1 and not any(path in places for path in used)

    images = folder.listing.images
    good = {stem: files for stem, files in images.items() if is_good(stem, files)}
    folder.captions = [text for stem, text in zip(images, folder.captions, strict=True) if stem in good]
    folder.masks = {stem: mask for stem, mask in folder.masks.items() if stem in good}
    folder.listing = replace(folder.listing, images=good)


def _pairs(folder: FoundFolder) -> Iterator[Pair]:
    for (stem, image), caption in zip(folder.images(), folder.captions, strict=True):
        yield from (Pair(image, worse, caption) for worse in folder.worse.get(stem, ()))


def _unlike_layers(folder: FoundFolder) -> Iterator[Diagnostic]:
    """Layers that do not have the size of their image."""
    for stem, image in folder.images():
        for layer in folder.layers.get(stem, ()):
            if layer.facts and image.facts and layer.facts.size != image.facts.size:
                has = f"has {layer.facts.size} pixels, and its image {image.name} has {image.facts.size}"
                yield Diagnostic((layer.path,), f"{has}. Export the layer with the whole canvas")


def _opaque_layers(folder: FoundFolder) -> Iterator[str]:
    """Layers that hide all layers behind them."""
    upper = [layer for layers in folder.layers.values() for layer in layers[1:]]
    opaque = [layer.name for layer in upper if layer.facts and not layer.facts.alpha]
    if opaque:
        what = f"{count_of(len(opaque), 'layer')} in front of others without opacity of their own: {shorten(opaque)}"
        yield f"{what}. Such a layer hides those behind it; number layers from back to front, and save them as PNG"


def _check_masks(folder: FoundFolder) -> Iterator[str]:
    """Notes images that have no transparency to be their mask, which then have none, and masks of another shape than
    their image."""
    opaque, stretched = [], []
    for stem, mask in list(folder.masks.items()):
        (name,) = folder.listing.images[stem]
        image, facts = folder.listing.facts[name].size, mask.listing.facts[mask.name]
        if folder.dataset.alpha_mask and not facts.alpha:
            del folder.masks[stem]
            opaque.append(name)
        elif abs(facts.size.width * image.height / (facts.size.height * image.width) - 1) > 0.02:
            stretched.append(name)  # 2 %: more than rounding to pixels explains
    place = folder.listing.folder
    if opaque:
        yield f"{place}: alpha_mask: no transparency, so the whole image counts: {shorten(opaque)}"
    if stretched:
        yield f"{place}: the mask has another shape and is stretched over: {shorten(stretched)}"


def _mask_pixels(folder: FoundFolder, findings: ScanFindings) -> Iterator[str]:
    """Measures the masks; warns of those that are probably not meant as they are read, by kind, and keeps each."""
    folder.mask_looks = look_at_masks(list(folder.trained_masks().values()))
    by_kind: dict[tuple[str, str], list[str]] = {}
    for mask, fault in faults_of(folder.mask_looks):
        name = f"{os.path.basename(mask.file)} ({fault.detail})"
        by_kind.setdefault((fault.kind, fault.remedy), []).append(name)
        findings.mask_faults.append((mask.file, f"is {fault.kind}: {fault.detail}. {fault.remedy}"))
    for (kind, remedy), names in by_kind.items():
        are = "is" if len(names) == 1 else "are"
        what = f"{len(names):,} of {count_of(len(folder.mask_looks), 'mask')} {are} {kind}: {shorten(names)}"
        yield f"warning: {folder.listing.folder}: {what}. {remedy}"


def _warnings(folder: FoundFolder, trigger_word: str | None, read_captions: bool) -> Iterator[str]:
    """Warnings of what is allowed but rarely meant."""
    dataset, listing = folder.dataset, folder.listing
    begin = f"warning: {listing.folder}:"
    is_read = not dataset.num_repeats and dataset.repeats_from_names is not False
    if is_read and (share := matched_name(listing.folder, _FRACTION)):
        what = f"the {share} in its name is not used, as repeats are whole numbers"
        yield f"{begin} {what}: each image is used once per epoch"
    elif is_read and (count := matched_name(listing.folder, _NEARLY_REPEATS)):
        remedy = f"For {count} repeats begin its name with '{count}_', or give 'num_repeats: {count}'"
        yield f"{begin} each image is used once per epoch. {remedy}"
    if not dataset.is_reg and named_as_regularisation(listing.folder):
        yield f"{begin} {REGULARISATION}"
    if read_captions:
        yield from (f"{begin} {what}" for what in _check_captions(folder, dataset.trigger_word or trigger_word or ""))
    yield from (f"{begin} {what}" for what in _opaque_layers(folder))
    facts = {name: listing.facts[name] for (name,) in listing.images.values()}
    clear = [name for name, info in facts.items() if CLEAR in info.notes]
    if clear and not dataset.alpha_mask:
        what = f"{len(clear):,} of {count_of(len(facts), 'image')} {'is' if len(clear) == 1 else 'are'}"
        outcome = f"fully transparent, so that nothing of it is seen: {shorten(clear)}"
        yield f"{begin} {what} {outcome}. Export them once more, or remove them"
    resolution = min(dataset.resolution, key=area_of)
    least = area_of(resolution) / 4
    if small := [(name, info.size) for name, info in facts.items() if info.size.width * info.size.height < least]:
        outcome = "not enlarged" if isinstance(resolution, int) else "enlarged to it"
        what = f"smaller than half of 'resolution: {resolution}', and {outcome}"
        names = shorten(f"{name} ({size.width}x{size.height})" for name, size in small)
        yield f"{begin} {len(small)} of {len(facts)} images are {what}: {names}"


def _check_captions(folder: FoundFolder, trigger: str) -> Iterator[str]:
    """What is rarely meant in the captions of a folder: count, names, remedy."""
    dataset, captions = folder.dataset, folder.captions
    used = [add_prefix(caption or dataset.default_caption or "", dataset.caption_prefix) for caption in captions]
    names = [files[0] for files in folder.listing.images.values()]
    missing = [name for name, text in zip(names, used, strict=True) if not text]
    if missing and not dataset.is_reg and (not trigger or len(missing) < len(used)):
        many = len(missing) > 1
        outcome = f"with {trigger!r} alone" if trigger else "with an empty prompt, as there is no trigger_word"
        share = f"{len(missing):,} of {count_of(len(used), 'image')} {'have' if many else 'has'}"
        first = split_suffix(missing[0])[0] + dataset.caption_ext[0]
        is_there = folder.listing.files.get(first)
        what = f"{first} is empty: write the caption into it" if is_there else f"Write {first}"
        remedy = f"{what}{' etc.' * many}, or give 'default_caption'"
        yield f"{share} no caption ({shorten(missing)}) and {'train' if many else 'trains'} {outcome}. {remedy}"
    together = "\n".join(used)
    literal = [each for each in PLACEHOLDERS if each in together and not trigger]
    for placeholder in (*literal, *nearly_placeholders(together)):
        held = [name for name, text in zip(names, used, strict=True) if placeholder in text]
        remedy = "Give the job a 'trigger_word'" if placeholder in PLACEHOLDERS else f"Write '{PLACEHOLDERS[0]}'"
        what = f"{count_of(len(held), 'caption')} with '{placeholder}', which nothing replaces: {shorten(held)}"
        yield f"{what}. {remedy}"
    if found := marks_in(used):
        count = len(set(chain.from_iterable(marks.texts for marks in found)))
        yield f"{count:,} of {count_of(len(used), 'caption')} with {in_words(found, counted=True)}"
    if not dataset.is_reg:
        yield from _odd_captions(dict(zip(names, used, strict=True)), trigger)
    if not trigger and not dataset.is_reg and not dataset.references[1] and not dataset.caption_prefix:
        texts = [text for caption in captions for text in texts_of(caption, dataset)]
        word, count = usual_word([text for text in texts if text])
        if word and word not in PLACEHOLDERS and word not in nearly_placeholders(word):
            what = f"{count} of {len(texts)} captions begin with {word!r}, and there is no trigger_word"
            yield f"{what}. If it is yours, give 'trigger_word: {word}'"


def _odd_captions(captions: Mapping[str, str], trigger: str) -> Iterator[str]:
    """Captions that are probably written otherwise than they are meant. captions: of each image, with its prefix."""
    if quoted := [
        name for name, text in captions.items() if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
    ]:
        what = f"{count_of(len(quoted), 'caption')} in quotation marks, which are trained as part of it"
        yield f"{what}: {shorten(quoted)}"
    folded = trigger.lower()
    other = [name for name, text in captions.items() if folded in text.lower() and trigger not in text]
    if trigger and other:
        what = (
            f"{count_of(len(other), 'caption')} with {trigger!r} in other letters, so that it is put in front as well"
        )
        yield f"{what}: {shorten(other)}"
