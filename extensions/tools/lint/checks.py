"""The checks of a dataset: one function each, with its heading in `checks.toml`.

A check looks at one image and yields messages, or at the whole dataset and yields files
with messages. The images of a `Dataset` are measured already: no check opens a file, and
none changes anything. The thresholds are keys of `LintConfig`.

`process` runs the checks and prints their findings.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import prod, sqrt
from typing import TYPE_CHECKING

import numpy

from extensions.tools.lint.dataset import SMALL_SIDE, SOFT
from extensions.tools.lint.likeness import is_flat, most_like
from extensions.tools.shared.findings import CHECKS
from toolkit.config.sections.dataset import area_of
from toolkit.contracts.data import PLACEHOLDERS
from toolkit.data.pixels.alignment import SAME_SHAPE
from toolkit.data.scan.captions import nearly_placeholders
from toolkit.data.scan.foreign_syntax import lines_of, marks_in
from toolkit.data.scan.found import REGULARISATION, named_as_regularisation, shorten
from toolkit.data.scan.items import bucket_for
from toolkit.data.scan.words import usual_word
from toolkit.errors import Diagnostic

if TYPE_CHECKING:
    from extensions.tools.lint.config import LintConfig
    from extensions.tools.lint.dataset import Dataset, Item

MODES = {
    "1": "black and white without greys",
    "P": "a palette of at most 256 colours",
    "PA": "a palette of at most 256 colours",
    "CMYK": "CMYK, made for print",
    "YCbCr": "YCbCr",
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

Found = Iterable[tuple[str, str]]
"""File and message of each finding."""

# ------------------------------------------------------------ pairs


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
        for index, item in enumerate(items):
            distances = _different(targets[index], references)
            nearest = int(distances.argmin())
            far = int(to_own[index])
            near = int(distances[nearest])
            if (
                far > UNLIKE_BITS
                and 2 * near < far
                and int(to_own[nearest]) > max(UNLIKE_BITS, 2 * near)
            ):
                other = items[nearest].references[slot].path
                own = item.references[slot].path
                yield (
                    item.image,
                    f"shows what {other} shows, and not its own control image {own}",
                )
    yield from _slots(data)


def _slots(data: Dataset) -> Found:
    """Control images whose order differs from the order of most pairs, by the slot that
    resembles the image."""
    near = {}
    for item in data.items:
        if len(item.references) > 1:
            references = _bits([reference.bits for reference in item.references])
            distances = _different(_bits([item.look.bits]), references).tolist()
            first, second = sorted(distances)[:2]
            if second - first >= MARGIN_BITS:
                near[item.image] = distances.index(first)
    counts = Counter(near.values())
    [(usual, count)] = counts.most_common(1) or [(0, 0)]
    if count >= 4 and count >= 0.8 * counts.total():
        others = f"{count} of {counts.total()} images number {usual + 1}"
        for image, slot in near.items():
            if slot != usual:
                yield (
                    image,
                    f"resembles its control image {slot + 1}, and {others}: are they exchanged?",
                )


def pair_shape(data: Dataset, config: LintConfig) -> Found:
    """Looks only at slots whose control images have the shape of their image in most
    pairs: in others a different shape may be intended."""
    by_slot: dict[int, list[float]] = defaultdict(list)
    unlike = []
    for item in data.items:
        width, height = item.sample.size
        for slot, reference in enumerate(item.references):
            ratio = reference.aspect * height / width
            ratio = max(ratio, 1 / ratio)
            by_slot[slot].append(ratio)
            if ratio > 1 + SAME_SHAPE:
                what = f"its control image {reference.path} has another shape, by {ratio - 1:.0%}"
                unlike.append((slot, item.image, what))
    for slot, ratios in by_slot.items():
        alike = sum(ratio <= 1 + SAME_SHAPE for ratio in ratios)
        if alike >= max(3, 0.7 * len(ratios)):
            for at, image, what in unlike:
                if at == slot:
                    yield image, f"{what}: edited areas do not line up"


def pair_shift(item: Item, data: Dataset, config: LintConfig) -> Iterator[str]:
    """Pairs whose control image is displaced, turned or scaled against the image by
    more than `most_drift` pixels at a corner. Only pairs whose alignment was
    measured can be found."""
    for reference in item.references:
        alignment = reference.alignment
        if alignment and alignment.is_off(config.most_drift):
            what = f"is off its control image {reference.path} by up to {alignment.drift:.1f} pixels"
            yield f"{what} ({alignment}): the model learns to move what it edits"


def same_as_reference(item: Item, data: Dataset, config: LintConfig) -> Iterator[str]:
    """Images that differ from their control image by at most
    `reference_difference`."""
    for reference in item.references:
        if reference.difference <= config.reference_difference:
            what = f"is identical to its control image {reference.path}"
            yield f"{what}: this pair teaches the model to leave images unchanged"


# ------------------------------------------------------------ the same image twice


def duplicate(data: Dataset, config: LintConfig) -> Found:
    """Images that show the same as an earlier one, also mirrored, turned or cropped,
    at a likeness of `least_likeness` or more. Trained and held-out images are
    compared among themselves; `leak` compares one with the other."""
    for held_out in (False, True):
        items, pictures = _distinct(data, held_out)
        matches = most_like(pictures, pictures, config.least_likeness, earlier=True)
        for here, other, orientation in matches:
            yield items[here].image, _alike(items[other], orientation)


def leak(data: Dataset, config: LintConfig) -> Found:
    """Held-out images that show the same as a trained one: their loss says nothing
    about new images."""
    yield from data.scan.held_out
    trained, known = _distinct(data, held_out=False)
    held_out, pictures = _distinct(data, held_out=True)
    if trained and held_out:
        matches = most_like(pictures, known, config.least_likeness, earlier=False)
        for here, other, orientation in matches:
            like = _alike(trained[other], orientation)
            yield (
                held_out[here].image,
                f"is in the validation, but trained on: {like}",
            )


def _distinct(data: Dataset, held_out: bool) -> tuple[list[Item], numpy.ndarray]:
    """Each file once, however often and by whatever path it is used, and the small
    images. Images of one colour are left out, because they are all alike."""
    by_path = {
        os.path.realpath(item.image): item
        for item in data.items
        if item.held_out == held_out and not is_flat(item.look.small)
    }
    items = list(by_path.values())
    small = numpy.array([item.look.small for item in items])
    return items, small.reshape(-1, SMALL_SIDE, SMALL_SIDE, 3)


def _alike(other: Item, orientation: str) -> str:
    return f"shows what {other.image} shows{orientation and f', {orientation}'}"


def _bits(hashes: Sequence[tuple[int, int]]) -> numpy.ndarray:
    """[N, 2], 64 bits each."""
    return numpy.array(hashes, dtype=numpy.uint64).reshape(-1, 2)


def _different(a: numpy.ndarray, b: numpy.ndarray) -> numpy.ndarray:
    """How many of the 128 bits differ, as uint8, along the last axis. The number is 64
    at most: an image and its negative differ in 0."""
    differing = numpy.bitwise_count(a ^ b).sum(-1, dtype=numpy.uint8)
    least: numpy.ndarray = numpy.minimum(differing, 128 - differing)
    return least


# ------------------------------------------------------------ pixels


def blurred(item: Item, data: Dataset, config: LintConfig) -> Iterator[str]:
    """Images whose sharpness is below `least_sharpness` and whose finest detail is
    soft, or whose finest detail is below `least_detail`. Images that look enlarged
    are left to `enlarged`."""
    look = item.look
    is_soft = look.sharpness < config.least_sharpness and look.detail < SOFT
    if not look.resampled and (is_soft or look.detail < config.least_detail):
        what = f"sharpness {look.sharpness:.3g}, and {look.detail:.2f} of the finest detail"
        yield f"is blurred: {what}; usual are more than {config.least_sharpness:g} and 0.7"


def enlarged(item: Item, data: Dataset, config: LintConfig) -> Iterator[str]:
    """Images with the periodic traces of resampling. Nothing is reported where
    `least_detail` is 0."""
    if item.look.resampled and config.least_detail:
        yield f"looks enlarged: {item.look.detail:.2f} of the finest detail; usual are 0.7 to 1.4"


def tiny(item: Item, data: Dataset, config: LintConfig) -> Iterator[str]:
    """Images whose side (the root of their area) is less than `least_size` of the
    side of their resolution."""
    wanted = sqrt(area_of(item.resolution))
    share = sqrt(prod(item.sample.size)) / wanted
    if share < config.least_size:
        is_fixed = not isinstance(item.resolution, int)
        outcome = "is enlarged to it" if is_fixed else "is not enlarged"
        yield f"is small: {_by(item.sample.size)}, {share:.0%} of the resolution {wanted:.0f}, and {outcome}"


def aspect(item: Item, data: Dataset, config: LintConfig) -> Iterator[str]:
    """Images that lose more than `most_cut` of their area to their bucket, with the
    next resolution at which they lose half as much, and images that are more than
    `most_aspect` times as long as wide."""
    size = item.sample.size
    crop = item.crops[0]
    cut = 1 - prod(crop.bucket) / prod(crop.scaled)
    ratio = max(size) / min(size)
    if cut > config.most_cut:
        what = f"loses {cut:.0%}: it is {_by(size)}, its bucket {_by(crop.bucket)}"
        yield what + _finer(item, data.multiple, cut)
    elif ratio > config.most_aspect:
        yield f"is {ratio:.1f} times as long as wide: {_by(size)}"


def _by(size: tuple[int, int]) -> str:
    return "{} x {}".format(*size)


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


def transparent(item: Item, data: Dataset, config: LintConfig) -> Iterator[str]:
    """Images with transparent pixels, which are trained on `background`, or on
    white. Left out: transparency that is the mask, and layers that keep it."""
    sample = item.sample
    is_its_mask = sample.mask is not None and sample.mask.alpha
    is_trained = data.keeps_alpha and not sample.background
    if item.look.transparent and not is_its_mask and not is_trained:
        yield (
            f"is transparent at {item.look.transparent:.1%} of its pixels, "
            f"which are trained as {sample.background or 'white'}"
        )


def mode(data: Dataset, config: LintConfig) -> Found:
    """Images that are converted to 8-bit sRGB in a way that changes how they look:
    palettes and CMYK."""
    for item in data.items:
        name = MODES.get(item.look.mode)
        if name:
            yield (
                item.image,
                f"is {name}. Training converts it to 8-bit sRGB; look at the result",
            )
        yield from ((item.image, note) for note in item.look.notes)


# ------------------------------------------------------------ captions


def no_caption(item: Item, data: Dataset, config: LintConfig) -> Iterator[str]:
    """Images whose caption is empty, or is only the trigger word. Regularisation
    images are left out."""
    caption = item.sample.caption
    rest = caption if item.written is None else item.written
    for word in (item.sample.rules.trigger or data.trigger, *PLACEHOLDERS):
        rest = rest.replace(word, "")
    if not item.is_reg and not rest.strip(" .,;:"):
        of_job = "an empty prompt"
        if os.path.isdir(config.path):
            of_job = "the trigger word of the job alone"
        prompt = f"{caption!r} alone" if caption else of_job
        yield f"has no caption: it trains with {prompt}"


def trigger(data: Dataset, config: LintConfig) -> Found:
    """Captions without the trigger word, with the word in different case or inside
    another word, and regularisation images with it. Without `trigger_word`, captions
    that lack the word with which nearly all others begin. Captions with a misspelt
    trigger word."""
    yield from _of_words("trigger", data)
    if not data.trigger:
        yield from _usual_word(data)
        return
    for item in data.items:
        word = item.sample.rules.trigger or data.trigger
        for text in item.texts:
            for message in _of_trigger(item, word, text):
                yield item.image, message


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
        yield f"has {word!r} in different case, and once more in front: {_short(text)}"


def _usual_word(data: Dataset) -> Found:
    """Captions without the word that nearly all others begin with: a trigger word that
    was written by hand."""
    items = (item for item in data.items if item.sample.caption and not item.is_reg)
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
        is_alone = not (item.references or item.held_out)
        if is_alone and item.sample.caption not in ("", item.sample.rules.trigger):
            by_folder[item.sample.folder] += item.sample.texts
    for folder, captions in by_folder.items():
        if len(captions) > 2 and len(set(captions)) == 1:
            yield (
                folder,
                f"all {len(captions)} captions are the same: {_short(captions[0])}",
            )


def garbled(item: Item, data: Dataset, config: LintConfig) -> Iterator[str]:
    """Captions with traces of another encoding, with hardly any letters, or with a
    misspelt placeholder such as `[triger]`."""
    for text in item.texts:
        match = _GARBLED.search(text)
        if match:
            yield f"its caption has {match[0]!r}, which looks like another encoding: {_short(text)}"
        elif 2 * sum(map(str.isalnum, text)) < len("".join(text.split())):
            yield f"its caption has hardly any letters: {_short(text)}"
        for placeholder in nearly_placeholders(text):
            yield f"its caption has {placeholder!r}, which nothing replaces: {_short(text)}"


def syntax(item: Item, data: Dataset, config: LintConfig) -> Iterator[str]:
    """Captions with the syntax of another program, such as weights in brackets or
    `<lora:...>`, which the model would learn as text."""
    for text in item.texts:
        yield from (f"its caption has {line}" for line in lines_of(text))


def several_lines(item: Item, data: Dataset, config: LintConfig) -> Iterator[str]:
    """Captions of several lines, which are trained as one text. `captions:
    lines` takes one line per use."""
    lines = item.sample.caption.count("\n") + 1
    if lines > 1 and not marks_in([item.sample.caption]):  # these `syntax` names
        yield f"has a caption of {lines} lines, which are trained as one: {_short(item.sample.caption)}"


_GARBLED = re.compile(
    "[\ufffd\x00-\x08\x0b-\x1f\x7f-\x9f]"  # replacement and control characters
    "|[\u00c2\u00c3][\u0080-\u00bf\u0152-\u0192]|\u00e2\u20ac."  # UTF-8 that was read as Latin-1 or Windows-1252
    r"|&(?:amp|quot|lt|gt|nbsp|#\d+);|\\u[0-9a-fA-F]{4}|\?{3,}|[A-Za-z]{30,}"
)


def long_caption(item: Item, data: Dataset, config: LintConfig) -> Iterator[str]:
    """Captions that the text encoder would cut off. Where the model is not on the
    disk, the number of tokens is estimated and compared with `most_tokens`."""
    for text in item.sample.texts:
        if data.prompt_error:
            sample = item.sample._replace(caption=text)
            message = data.prompt_error(sample, item.crops[0])
            if message:
                yield f"its caption has {message}"
        elif _tokens(text) > config.most_tokens:
            yield f"its caption has about {_tokens(text)} tokens, more than {config.most_tokens}"


def _tokens(text: str) -> int:
    """About the number of tokens of a byte-pair tokenizer: 4 for 3 words, 1 for each
    sign, 1.5 for each letter of scripts without spaces."""
    if len(text) < 100:
        return len(text) // 3
    wide = sum(ord(letter) >= 0x2E80 for letter in text)
    words = len(re.findall(r"[^\W_]+", text))
    signs = len(re.findall(r"[^\w\s]", text))
    return round(words * 4 / 3 + signs + 1.5 * wide)


def _of_words(check: str, data: Dataset) -> Found:
    """What `word_findings` reports under the name of a check."""
    for found in data.words:
        if found.check == check:
            for place in found.images or (data.place,):
                yield place, found.message


def _captions(items: Iterable[Item]) -> list[tuple[str, str]]:
    """Image and caption, each once."""
    pairs = ((item.image, text) for item in items for text in item.sample.texts)
    return list(dict.fromkeys(pairs))


def regularisation(data: Dataset, config: LintConfig) -> Found:
    """Folders that are named as regularisation images (such as `reg`) and are
    trained without `is_reg`."""
    trained = (item for item in data.items if not (item.is_reg or item.held_out))
    for folder in dict.fromkeys(item.sample.folder for item in trained):
        if named_as_regularisation(folder):
            yield folder, REGULARISATION


def _short(text: str, longest: int = 60) -> str:
    return repr(text if len(text) <= longest else f"{text[:longest]}...")


# ------------------------------------------------------------ all of them

_OF_DATASETS: dict[str, Callable[[Dataset, LintConfig], Found]] = {
    "unusable": lambda data, _: ((one.place, one.message) for one in data.mistakes),
    "unused": lambda data, _: data.scan.unused,
    "unpaired": lambda data, _: data.scan.unpaired,
    "repeats": lambda data, _: data.scan.questions,
    "mask": lambda data, _: data.scan.mask_faults,
    "trigger_word": lambda data, _: _of_words("trigger_word", data),
    "repeated": lambda data, _: _of_words("repeated", data),
    "forms": lambda data, _: _of_words("forms", data),
    "prompts": lambda data, _: _of_words("prompts", data),
} | {
    check.__name__: check
    for check in (
        *(pair_order, pair_shape, duplicate, leak, mode),
        *(trigger, same_caption, regularisation),
    )
}
_OF_IMAGES: dict[str, Callable[[Item, Dataset, LintConfig], Iterator[str]]] = {
    check.__name__: check
    for check in (
        *(pair_shift, same_as_reference, blurred, enlarged, tiny, aspect, transparent),
        *(no_caption, garbled, syntax, several_lines, long_caption),
    )
}


def run_checks(data: Dataset, config: LintConfig) -> Iterator[Diagnostic]:
    """All findings, each once, in the order of `checks.toml`.

    A finding is a warning with the file as its place and the name of the check. Checks
    named in `skip` are left out. Nothing is raised: damaged files are findings as well.
    """
    for name in CHECKS:
        if name not in config.skip:
            for file, message in dict.fromkeys(_found(name, data, config)):
                yield Diagnostic((file,), message, "warning", name)


def _found(name: str, data: Dataset, config: LintConfig) -> Found:
    if name in _OF_DATASETS:
        return _OF_DATASETS[name](data, config)
    check = _OF_IMAGES[name]
    return (
        (item.image, message)
        for item in data.items
        for message in check(item, data, config)
    )


def names_of(findings: Sequence[Diagnostic]) -> str:
    """How many findings each check has, in words, such as "blurred 2, duplicate 1". The
    order is that of the first finding of each check. Empty if there are none."""
    counts = Counter(finding.check for finding in findings)
    return shorten(f"{name} {count}" for name, count in counts.items())
