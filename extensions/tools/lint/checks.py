"""The checks of a dataset: one row of `CHECKS` each.

A check is a generator of files and messages over a `Dataset`, whose images are measured
already. No check opens a file, and none changes anything. The thresholds are keys of
`LintConfig`.

`process` runs the checks and prints their findings. `ignored` and `preview` look up
their names and titles.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod, sqrt
from typing import TYPE_CHECKING

import numpy

from extensions.tools.lint.dataset import SMALL_SIDE, SOFT
from extensions.tools.lint.likeness import is_flat, most_like
from extensions.tools.lint.text_kinds import unlike, without_names
from toolkit.config.sections.dataset import area_of
from toolkit.contracts.data import PLACEHOLDERS
from toolkit.data.pixels.alignment import SAME_SHAPE
from toolkit.data.pixels.colours import TELEVISION
from toolkit.data.scan.captions import nearly_placeholders, usual_word
from toolkit.data.scan.foreign_syntax import lines_of
from toolkit.data.scan.found import REGULARISATION, named_as_regularisation, shorten
from toolkit.data.scan.items import bucket_for
from toolkit.errors import Diagnostic

if TYPE_CHECKING:
    from extensions.tools.lint.config import LintConfig
    from extensions.tools.lint.dataset import Dataset, Item

MODES = {
    "1": "black and white without greys",
    "P": "a palette of at most 256 colours",
    "PA": "a palette of at most 256 colours",
    "CMYK": "CMYK, made for print",
    "LAB": "LAB",
    "YCbCr": "YCbCr",
    "HSV": "HSV",
    "I": "16-bit grey",
    "I;16": "16-bit grey",
    "I;16B": "16-bit grey",
}
"""Pillow's name of an unusual mode -> its own."""

UNLIKE_BITS = 24
"""Images with so many different bits of 128 do not show the same."""

MARGIN_BITS = 16
"""By so many bits one control image must resemble its image more than the next one
does, to tell which slot shows the image."""


Found = Iterator[tuple[str, str]]
"""File and message of each finding."""

Function = Callable[["Dataset", "LintConfig"], Found]


# ------------------------------------------------------------ files and pairs


def unusable(data: Dataset, config: LintConfig) -> Found:
    """Files and folders that the scan refuses: a training would not start with them.
    The messages are those of the training."""
    for mistake in data.mistakes:
        yield mistake.place, mistake.message


def unused(data: Dataset, config: LintConfig) -> Found:
    """Files in the folders that no image, caption, control image or mask is read
    from, with the reason that the scan gives."""
    yield from data.unused


def unpaired(data: Dataset, config: LintConfig) -> Found:
    """Control images and masks whose image is missing. An image without its control
    image is a mistake, which `unusable` reports."""
    yield from data.unpaired


def repeats(data: Dataset, config: LintConfig) -> Found:
    """Folders whose leading number is read as repeats and is probably a date, a size,
    or a count (`toolkit.data.scan.repeats`)."""
    yield from data.questions


def mask(data: Dataset, config: LintConfig) -> Found:
    """Masks that are probably not meant as they are read: black or dark throughout, or
    of several colours (`toolkit.data.scan.masks.mask_fault`). White is trained fully,
    black not at all."""
    yield from data.mask_faults


def pair_order(data: Dataset, config: LintConfig) -> Found:
    """Control images that resemble another image of the dataset far more than
    their own, by hashes of 128 bits, and control images in another order than in
    most pairs. The other image must fit its own control image worse, or the two
    images only resemble each other."""
    by_slot: dict[int, list[Item]] = defaultdict(list)
    for item in data.items:
        for slot in range(len(item.references)):
            by_slot[slot].append(item)
    for slot, items in by_slot.items():
        targets = _bits([item.look.bits for item in items])
        references = _bits([item.references[slot].bits for item in items])
        to_own = _different(targets, references)
        for start, distances in _all_distances(targets, references):
            for row, line in enumerate(distances):
                here = start + row
                nearest = int(line.argmin())
                far = int(to_own[here])
                near = int(line[nearest])
                its = int(to_own[nearest])
                # Where the other reference fits its own image, the two images only
                # resemble each other.
                if (
                    far > UNLIKE_BITS
                    and 2 * near < far
                    and its > max(UNLIKE_BITS, 2 * near)
                ):
                    shown = f"shows what {items[nearest].references[slot].path} shows, and not its own control image"
                    yield (
                        items[here].sample.image,
                        f"{shown} {items[here].references[slot].path}",
                    )
    yield from _slots(data)


def _slots(data: Dataset) -> Found:
    """Control images whose order differs from the order of most pairs, by the slot that
    resembles the image."""
    near: dict[str, tuple[int, bool]] = {}
    for item in data.items:
        if len(item.references) > 1:
            bits_of_image = _bits([item.look.bits])
            distances = [
                int(_different(bits_of_image, _bits([reference.bits]))[0])
                for reference in item.references
            ]
            first, second = sorted(distances)[:2]
            near[item.sample.image] = (
                distances.index(first),
                second - first >= MARGIN_BITS,
            )
    counts = Counter(slot for slot, is_clear in near.values() if is_clear)
    if not counts:
        return
    usual, count = counts.most_common(1)[0]
    if count >= 4 and count >= 0.8 * counts.total():
        for image, (slot, is_clear) in near.items():
            if is_clear and slot != usual:
                others = f"{count} of {counts.total()} images number {usual + 1}"
                yield (
                    image,
                    f"resembles its control image {slot + 1}, and {others}: are they exchanged?",
                )


def pair_shape(data: Dataset, config: LintConfig) -> Found:
    """Looks only at slots whose control images have the shape of their image in most
    pairs: in others a different shape may be intended."""
    slots = max((len(item.references) for item in data.items), default=0)
    for slot in range(slots):
        pairs = [
            (item, item.references[slot])
            for item in data.items
            if len(item.references) > slot
        ]
        unlike = []
        for item, reference in pairs:
            ratio = reference.aspect * item.sample.size.height / item.sample.size.width
            if max(ratio, 1 / ratio) > 1 + SAME_SHAPE:
                unlike.append((item, reference, max(ratio, 1 / ratio)))
        if len(pairs) - len(unlike) >= max(3, 0.7 * len(pairs)):
            for item, reference, ratio in unlike:
                what = f"its control image {reference.path} has another shape, by {ratio - 1:.0%}"
                yield item.sample.image, f"{what}: edited areas do not line up"


def pair_shift(data: Dataset, config: LintConfig) -> Found:
    """Pairs whose control image is displaced, turned or scaled against the image by
    more than `most_drift` pixels at a corner. Only pairs whose alignment was
    measured can be found."""
    for item in data.items:
        for reference in item.references:
            alignment = reference.alignment
            if alignment and alignment.is_off(config.most_drift):
                what = f"is off its control image {reference.path} by up to {alignment.drift:.1f} pixels"
                yield (
                    item.sample.image,
                    f"{what} ({alignment}): the model learns to move what it edits",
                )


def same_as_reference(data: Dataset, config: LintConfig) -> Found:
    """Images that differ from their control image by at most
    `reference_difference`."""
    for item in data.items:
        for reference in item.references:
            if reference.difference <= config.reference_difference:
                outcome = "this pair teaches the model to leave images unchanged"
                yield (
                    item.sample.image,
                    f"is identical to its control image {reference.path}: {outcome}",
                )


# ------------------------------------------------------------ the same image twice


def duplicate(data: Dataset, config: LintConfig) -> Found:
    """Images that show the same as an earlier one, also mirrored, turned or cropped,
    at a likeness of `least_likeness` or more. Trained and held-out images are
    compared among themselves; `leak` compares one with the other."""
    for held_out in (False, True):
        of_split = [item for item in data.items if item.held_out == held_out]
        items = _distinct_files(of_split)
        pictures = _pictures(items)
        matches = most_like(pictures, pictures, config.least_likeness, earlier=True)
        for here, other, orientation in matches:
            yield items[here].sample.image, _alike(items[other], orientation)


def leak(data: Dataset, config: LintConfig) -> Found:
    """Held-out images that show the same as a trained one: their loss says nothing
    about new images."""
    yield from data.split_folders
    trained = _distinct_files(item for item in data.items if not item.held_out)
    held_out = _distinct_files(item for item in data.items if item.held_out)
    if trained and held_out:
        matches = most_like(
            _pictures(held_out),
            _pictures(trained),
            config.least_likeness,
            earlier=False,
        )
        for here, other, orientation in matches:
            message = f"is in the validation, but trained on: {_alike(trained[other], orientation)}"
            yield held_out[here].sample.image, message


def _distinct_files(items: Iterable[Item]) -> list[Item]:
    """Each file once, however often and by whatever path it is used. Images of one
    colour are left out, because they are all alike."""
    by_path = {
        os.path.realpath(item.sample.image): item
        for item in items
        if not is_flat(item.look.small)
    }
    return list(by_path.values())


def _pictures(items: Sequence[Item]) -> numpy.ndarray:
    return numpy.array([item.look.small for item in items]).reshape(
        -1, SMALL_SIDE, SMALL_SIDE, 3
    )


def _alike(other: Item, orientation: str) -> str:
    return f"shows what {other.sample.image} shows{orientation and f', {orientation}'}"


def _bits(hashes: Sequence[tuple[int, int]]) -> numpy.ndarray:
    """[N, 2], 64 bits each."""
    return numpy.array(hashes, dtype=numpy.uint64).reshape(-1, 2)


def _different(a: numpy.ndarray, b: numpy.ndarray) -> numpy.ndarray:
    """How many of the 128 bits differ, as uint8, along the last axis. The number is 64
    at most: an image and its negative differ in 0."""
    rows = numpy.bitwise_count(a[..., 0] ^ b[..., 0])
    columns = numpy.bitwise_count(a[..., 1] ^ b[..., 1])
    differing: numpy.ndarray = numpy.minimum(rows + columns, 128 - rows - columns)
    return differing


def _all_distances(
    a: numpy.ndarray, b: numpy.ndarray, at_once: int = 64
) -> Iterator[tuple[int, numpy.ndarray]]:
    """The distances of each of `a` to all of `b`, some rows at a time, with the index
    of the first row."""
    for start in range(0, len(a), at_once):
        yield start, _different(a[start : start + at_once, None], b[None])


# ------------------------------------------------------------ pixels


def blurred(data: Dataset, config: LintConfig) -> Found:
    """Images whose sharpness is below `least_sharpness` and whose finest detail is
    soft, or whose finest detail is below `least_detail`. Images that look enlarged
    are left to `enlarged`."""
    for item in data.items:
        look = item.look
        is_soft = look.sharpness < config.least_sharpness and look.detail < SOFT
        if not look.resampled and (is_soft or look.detail < config.least_detail):
            what = f"sharpness {look.sharpness:.3g}, and {look.detail:.2f} of the finest detail"
            yield (
                item.sample.image,
                f"is blurred: {what}; usual are more than {config.least_sharpness:g} and 0.7",
            )


def enlarged(data: Dataset, config: LintConfig) -> Found:
    """Images with the periodic traces of resampling. Nothing is reported where
    `least_detail` is 0."""
    for item in data.items:
        if item.look.resampled and config.least_detail:
            yield (
                item.sample.image,
                f"looks enlarged: {item.look.detail:.2f} of the finest detail; usual are 0.7 to 1.4",
            )


def tiny(data: Dataset, config: LintConfig) -> Found:
    """Images whose side (the root of their area) is less than `least_size` of the
    side of their resolution."""
    for item in data.items:
        size = item.sample.size
        wanted = sqrt(area_of(item.resolution))
        share = sqrt(prod(size)) / wanted
        if share < config.least_size:
            what = f"{size.width} x {size.height}, {share:.0%} of the resolution {wanted:.0f}"
            if isinstance(item.resolution, int):
                outcome = "is not enlarged"
            else:
                outcome = "is enlarged to it"
            yield item.sample.image, f"is small: {what}, and {outcome}"


def aspect(data: Dataset, config: LintConfig) -> Found:
    """Images that lose more than `most_cut` of their area to their bucket, with the
    next resolution at which they lose half as much, and images that are more than
    `most_aspect` times as long as wide."""
    for item in data.items:
        size = item.sample.size
        crop = item.crops[0]
        cut = 1 - prod(crop.bucket) / prod(crop.scaled)
        ratio = max(size) / min(size)
        if cut > config.most_cut:
            bucket = f"{crop.bucket.width} x {crop.bucket.height}"
            what = f"loses {cut:.0%}: it is {size.width} x {size.height}, its bucket {bucket}"
            yield item.sample.image, what + _finer(item, data.multiple, cut)
        elif ratio > config.most_aspect:
            yield (
                item.sample.image,
                f"is {ratio:.1f} times as long as wide: {size.width} x {size.height}",
            )


def _finer(item: Item, multiple: int, cut: float) -> str:
    """Names the next resolution that cuts off less than half as much: at a low
    resolution the sizes of buckets are far apart."""
    first = item.resolution if isinstance(item.resolution, int) else 0
    for side in range(first + multiple, 2 * first + 1, multiple):
        crop = bucket_for(item.sample.size, side, multiple)
        share = 1 - prod(crop.bucket) / prod(crop.scaled)
        if share < cut / 2:
            return f"; at 'resolution: {side}' it loses {share:.0%}"
    return ""


def transparent(data: Dataset, config: LintConfig) -> Found:
    """Images with transparent pixels, which are trained on `background`, or on
    white. Left out: transparency that is the mask, and layers that keep it."""
    for item in data.items:
        sample = item.sample
        share = item.look.transparent
        is_its_mask = sample.mask is not None and sample.mask.alpha
        is_trained = data.keeps_alpha and not sample.background
        if share and not is_its_mask and not is_trained:
            colour = sample.background or "white"
            yield (
                sample.image,
                f"is transparent at {share:.1%} of its pixels, which are trained as {colour}",
            )


def mode(data: Dataset, config: LintConfig) -> Found:
    """Images that are converted to 8-bit sRGB in a way that changes how they look:
    palettes, CMYK, HDR, and curves of television."""
    for item in data.items:
        name = MODES.get(item.look.mode)
        if name:
            yield (
                item.sample.image,
                f"is {name}. Training converts it to 8-bit sRGB; look at the result",
            )
        yield from ((item.sample.image, note) for note in item.look.notes)
    for image in data.converted:
        if image.is_hdr:
            outcome = "Training converts it to 8-bit sRGB and clips light above white; look at the result"
            yield image.path, f"is {image.colours}. {outcome}"
        elif image.colours in TELEVISION:
            outcome = (
                "Training makes it brighter, as its curve asks for; look at the result"
            )
            yield (
                image.path,
                f"is {image.colours} by its header, as some programs mark sRGB too. {outcome}",
            )


# ------------------------------------------------------------ captions


def no_caption(data: Dataset, config: LintConfig) -> Found:
    """Images whose caption is empty, or is only the trigger word. Regularisation
    images are left out."""
    for item in data.items:
        text = item.sample.caption if item.written is None else item.written
        without = text.replace(item.sample.rules.trigger or data.trigger, "")
        for placeholder in PLACEHOLDERS:
            without = without.replace(placeholder, "")
        if not item.is_reg and not without.strip(" .,;:"):
            if os.path.isdir(config.path):
                of_job = "the trigger word of the job alone"
            else:
                of_job = "an empty prompt"
            prompt = f"{item.sample.caption!r} alone" if item.sample.caption else of_job
            yield item.sample.image, f"has no caption: it trains with {prompt}"


def trigger(data: Dataset, config: LintConfig) -> Found:
    """Captions without the trigger word, with the word in other letters or inside
    another word, and regularisation images with it. Without `trigger_word`, captions
    that lack the word with which nearly all others begin."""
    if not data.trigger:
        yield from _usual_word(data)
        return
    for item in data.items:
        word = item.sample.rules.trigger or data.trigger
        for text in _texts(item):
            for message in _of_trigger(item, word, text):
                yield (item.sample.image, message)


def _of_trigger(item: Item, word: str, text: str) -> Iterator[str]:
    """Mistakes with the trigger word in one caption."""
    whole = re.compile(rf"(?<!\w){re.escape(word)}(?!\w)")
    rest = text.removeprefix(f"{word} ")
    if item.is_reg:
        if whole.search(text):
            yield f"is a regularisation image, and its caption names {word!r}: {_short(text)}"
    elif text and not whole.search(text) and not nearly_placeholders(text):
        # `garbled` reports a text that nearly has a placeholder.
        if word in text:
            yield f"has {word!r} only inside another word, so it is not put in front: {_short(text)}"
        elif item.written is not None:
            other = " in these letters" if word.lower() in text.lower() else ""
            yield f"has no {word!r}{other} in its caption, so it is put in front: {_short(text)}"
    elif rest != text and not whole.search(rest) and word.lower() in rest.lower():
        yield f"has {word!r} in other letters, and once more in front: {_short(text)}"


def _texts(item: Item) -> tuple[str, ...]:
    """The captions as they are written, or as they are trained where only those are
    known."""
    if item.written is None:
        return item.sample.texts
    return (item.written,)


def _usual_word(data: Dataset) -> Found:
    """Captions without the word that nearly all others begin with: a trigger word that
    was written by hand."""
    items = [item for item in data.items if item.sample.caption and not item.is_reg]
    captions = _captions(items)
    word, count = usual_word([text for _, text in captions])
    for image, text in captions:
        if word not in text:
            yield (
                image,
                f"has no {word!r}, with which {count} of {len(captions)} captions begin: {_short(text)}",
            )


def same_caption(data: Dataset, config: LintConfig) -> Found:
    """Folders of more than two images whose captions are all the same. Pairs are
    left out, because one instruction for all of them is common."""
    by_folder: dict[str, list[str]] = defaultdict(list)
    for item in data.items:
        if item.references or item.held_out:
            continue  # one instruction for all pairs is common
        if item.sample.caption not in ("", item.sample.rules.trigger):
            by_folder[item.sample.folder] += item.sample.texts
    for folder, captions in by_folder.items():
        if len(captions) > 2 and len(set(captions)) == 1:
            yield (
                folder,
                f"all {len(captions)} captions are the same: {_short(captions[0])}",
            )


def garbled(data: Dataset, config: LintConfig) -> Found:
    """Captions with traces of another encoding, with hardly any letters, or with a
    misspelt placeholder such as `[triger]`."""
    for item in data.items:
        image = item.sample.image
        for text in _texts(item):
            letters = sum(map(str.isalnum, text))
            match = _GARBLED.search(text)
            if match:
                yield (
                    image,
                    f"its caption has {match[0]!r}, which looks like another encoding: {_short(text)}",
                )
            elif 2 * letters < len("".join(text.split())):
                yield image, f"its caption has hardly any letters: {_short(text)}"
            for placeholder in nearly_placeholders(text):
                yield (
                    image,
                    f"its caption has {placeholder!r}, which nothing replaces: {_short(text)}",
                )


def syntax(data: Dataset, config: LintConfig) -> Found:
    """Captions with the syntax of another program, such as weights in brackets or
    `<lora:...>`, which the model would learn as text."""
    for item in data.items:
        for text in _texts(item):
            for line in lines_of(text):
                yield (item.sample.image, f"its caption has {line}")


def several_lines(data: Dataset, config: LintConfig) -> Found:
    """Captions of several lines, which are trained as one text. `captions:
    lines` takes one line per use."""
    for item in data.items:
        lines = item.sample.caption.count("\n")
        if lines:
            shown = _short(item.sample.caption)
            yield (
                item.sample.image,
                f"has a caption of {lines + 1} lines, which are trained as one: {shown}",
            )


_GARBLED = re.compile(
    "[\ufffd\x00-\x08\x0b-\x1f\x7f-\x9f]"  # replacement and control characters
    "|[\u00c2\u00c3][\u0080-\u00bf\u0152-\u0192]|\u00e2\u20ac."  # UTF-8 that was read as Latin-1 or Windows-1252
    r"|&(?:amp|quot|lt|gt|nbsp|#\d+);|\\u[0-9a-fA-F]{4}|\?{3,}|[A-Za-z]{30,}"
)


def long_caption(data: Dataset, config: LintConfig) -> Found:
    """Captions that the text encoder would cut off. Where the model is not on the
    disk, the number of tokens is estimated and compared with `most_tokens`."""
    for item in data.items:
        for text in item.sample.texts:
            if data.prompt_error:
                message = data.prompt_error(
                    item.sample._replace(caption=text), item.crops[0]
                )
                if message:
                    yield item.sample.image, f"its caption has {message}"
            else:
                count = _tokens(text)
                if count > config.most_tokens:
                    yield (
                        item.sample.image,
                        f"its caption has about {count} tokens, more than {config.most_tokens}",
                    )


def _tokens(text: str) -> int:
    """About the number of tokens of a byte-pair tokenizer: 4 for 3 words, 1 for each
    sign, 1.5 for each letter of scripts without spaces."""
    if len(text) < 100:
        return len(text) // 3
    wide = sum(ord(letter) >= 0x2E80 for letter in text)
    words = len(re.findall(r"[^\W_]+", text))
    signs = len(re.findall(r"[^\w\s]", text))
    return round(words * 4 / 3 + signs + 1.5 * wide)


def prompts(data: Dataset, config: LintConfig) -> Found:
    """Sample prompts that differ from the captions in kind, such as lists of tags and
    sentences, or in length. One finding for the whole dataset."""
    items = [item for item in data.items if not (item.is_reg or item.held_out)]
    triggers = [item.sample.rules.trigger or "" for item in items]
    names = list(dict.fromkeys([data.trigger, *triggers]))
    captions = [without_names(text, names) for _, text in _captions(items)]
    asked = [without_names(prompt, names) for prompt in data.prompts]
    for message in unlike(captions, asked):
        yield items[0].sample.folder, message


def _captions(items: Iterable[Item]) -> list[tuple[str, str]]:
    """Image and caption, each once."""
    captions: dict[tuple[str, str], None] = {}
    for item in items:
        for text in item.sample.texts:
            captions[item.sample.image, text] = None
    return list(captions)


def suspect(data: Dataset, config: LintConfig) -> Found:
    """Images that act against the others, by the reports of `run.py influence` that
    the configuration names or finds next to the run."""
    for item in data.items:
        why = data.suspects.get(os.path.realpath(item.sample.image))
        if why:
            yield (
                item.sample.image,
                f"acts against the other images of a training: {why}",
            )


def regularisation(data: Dataset, config: LintConfig) -> Found:
    """Folders that are named as regularisation images (such as `reg`) and are
    trained without `is_reg`."""
    trained = [item for item in data.items if not (item.is_reg or item.held_out)]
    for folder in dict.fromkeys(item.sample.folder for item in trained):
        if named_as_regularisation(folder):
            yield folder, REGULARISATION


def from_base(data: Dataset, config: LintConfig) -> Found:
    """Faults in the prompts of `datasets[].from_base`, from which the base model
    draws regularisation images."""
    yield from data.prompt_faults


def _short(text: str, longest: int = 60) -> str:
    return repr(text if len(text) <= longest else f"{text[:longest]}...")


# ------------------------------------------------------------ the table


@dataclass(frozen=True)
class Check:
    """A check: its function, the heading of its findings, and what to do about them.

    >>> CHECKS["blurred"].title, CHECKS["blurred"].remedy
    ('blurred images', 'Take a sharper one.')
    """

    function: Function
    title: str
    remedy: str


CHECKS: dict[str, Check] = {
    "unusable": Check(unusable, "files that a training refuses", "Fix or remove them."),
    "unused": Check(
        unused,
        "files that are not used",
        "Give them the names and the format that are read.",
    ),
    "unpaired": Check(
        unpaired,
        "control images and masks without an image",
        "Give them the name of their image.",
    ),
    "repeats": Check(
        repeats, "folders whose numbers are probably no repeats", "Say what they are."
    ),
    "mask": Check(
        mask, "masks that are probably not meant as they are read", "Correct them."
    ),
    "pair_order": Check(
        pair_order, "control images that belong to another image", "Rename them."
    ),
    "pair_shape": Check(
        pair_shape,
        "control images of another shape than their image",
        "Crop both alike.",
    ),
    "pair_shift": Check(
        pair_shift, "pairs that do not lie on each other", "Align them (run.py align)."
    ),
    "same_as_reference": Check(
        same_as_reference, "images equal to their control image", "Remove the pair."
    ),
    "duplicate": Check(
        duplicate,
        "duplicate images",
        "Keep the better one, or use its folder's repeats.",
    ),
    "leak": Check(
        leak,
        "images of a validation or test that are trained on",
        "Keep them from the training.",
    ),
    "blurred": Check(blurred, "blurred images", "Take a sharper one."),
    "enlarged": Check(
        enlarged,
        "images enlarged from smaller ones",
        "Take the original, at a lower resolution.",
    ),
    "tiny": Check(
        tiny,
        "images much smaller than the resolution",
        "Lower the resolution, or remove them.",
    ),
    "aspect": Check(
        aspect,
        "shapes that are cut off, or very long",
        "Crop them, or take a resolution that is named.",
    ),
    "transparent": Check(
        transparent, "transparent images", "Give datasets[].background, or alpha_mask."
    ),
    "mode": Check(mode, "unusual kinds of pixels", "Save them as 8-bit RGB."),
    "no_caption": Check(
        no_caption, "images without a caption", "Write one (run.py caption does)."
    ),
    "trigger": Check(
        trigger,
        "captions without the trigger word",
        "Write the word as the job has it.",
    ),
    "garbled": Check(
        garbled,
        "captions with garbled text",
        "Save them as UTF-8, and write [trigger].",
    ),
    "syntax": Check(
        syntax, "captions with the syntax of other programs", "Write what is meant."
    ),
    "several_lines": Check(
        several_lines,
        "captions of several lines",
        "For one of them per use, 'captions: lines'.",
    ),
    "same_caption": Check(
        same_caption, "folders with one caption for all", "Say what differs."
    ),
    "long_caption": Check(
        long_caption, "captions over the model's limit", "Shorten them."
    ),
    "prompts": Check(
        prompts,
        "sample prompts unlike the captions",
        "Word both as you will ask for images.",
    ),
    "regularisation": Check(
        regularisation,
        "folders named as regularisation images",
        "Give them is_reg: true.",
    ),
    "from_base": Check(
        from_base, "prompts of images that the base model makes", "Write what is meant."
    ),
    "suspect": Check(
        suspect,
        "images that 'influence' suspects",
        "Look at image and caption; correct or remove it.",
    ),
}
"""Name -> the check, in the order of the report."""


def run_checks(data: Dataset, config: LintConfig) -> Iterator[Diagnostic]:
    """All findings, each once, in the order of the table.

    A finding is a warning with the file as its place and the name of the check. Checks
    named in `skip` are left out. Nothing is raised: damaged files are findings as well.
    """
    for name, check in CHECKS.items():
        if name not in config.skip:
            for file, message in dict.fromkeys(check.function(data, config)):
                yield Diagnostic((file,), message, "warning", name)


def names_of(findings: Sequence[Diagnostic]) -> str:
    """How many findings each check has, in words, such as "blurred 2, duplicate 1". The
    order is that of the first finding of each check. Empty if there are none."""
    counts = Counter(finding.check for finding in findings)
    return shorten(f"{name} {count}" for name, count in counts.items())
