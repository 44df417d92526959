"""How the names of images and of their control images, layers and masks belong
together.

`root_of` and `with_affix` lead from one name to the other, for `matching`. `pair_names`
and `pair_folders` recognise pairs that the job does not declare, for `folder_hints`.
Everything here is about names; no folder is looked into.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping
from itertools import product
from typing import NamedTuple


class PairWords(NamedTuple):
    """Two words, in the names of an image and of its control image.

    >>> PAIRS[0].image, PAIRS[0].control
    ('end', 'start')
    """

    image: str
    control: str
    source: str
    """The program or data set that uses these words."""

    is_letter: bool = False
    """Whether they are single letters, which have many other meanings. They count only
    behind a number, and only where all images are pairs."""


PAIRS = (
    PairWords(
        "end", "start", "fal and Pruna, trainers of edits (ROOT_start, ROOT_end)"
    ),
    PairWords(
        "after",
        "before",
        "Scenario, Building Edit LoRA Training Sets; datasets 5.2.0 (before_file_name)",
    ),
    PairWords(
        "target", "control", "ai-toolkit and musubi-tuner, keys for control images"
    ),
    PairWords("target", "source", "lllyasviel/ControlNet, docs/train.md (fill50k)"),
    PairWords("target", "input", "Restormer, data sets of its tasks"),
    PairWords("output", "input", "osunlp/MagicBrush; BryanW/HumanEdit"),
    PairWords("edited", "original", "diffusers, train_instruct_pix2pix.py"),
    PairWords("tgt", "src", "TIGER-Lab/OmniEdit-Filtered-1.2M (src_img)"),
    PairWords("b", "a", "pix2pix, docs/datasets.md (A to B)", is_letter=True),
)
"""How the names of a pair in one folder differ, whatever stands around the words:
`a_end` and `a_start`, `after_1` and `before_1`. Control images may be numbered:
`a_start2` is a second one."""

_WORDS = tuple(words for words in PAIRS if not words.is_letter)
IMAGES = frozenset({*(words.image for words in _WORDS), "image"})
CONTROLS = frozenset(
    {*(words.control for words in _WORDS), "reference", "conditioning"}
)
"""Names of the folders of a pair, some with an `s`."""

_BEHIND = r"(?P<root>.+)(?P<affix>(?:[-_ .]|(?<=[0-9]))(?i:{word}))"
_BEHIND_NUMBERED = (
    r"(?P<root>.+)(?P<affix>(?:[-_ .]|(?<=[0-9]))(?i:{word})(?P<number>[0-9]+))"
)
_BEFORE = r"(?P<affix>(?P<head>.*[-_ .])?(?i:{word})(?:[-_ .]|(?=[0-9])))(?P<root>.+)"
_BEFORE_NUMBERED = (
    r"(?P<affix>(?P<head>.*[-_ .])?(?i:{word})(?P<number>[0-9]+)[-_ .])(?P<root>.+)"
)
"""A word behind or before what the names of a pair have in common. Without a separator
it stands beside a number."""


class PairNames(NamedTuple):
    """The affixes by which pairs in one folder are recognised, as `root_of` takes
    them.

    >>> pair_names(["cat_start", "cat_end"])
    PairNames(image='_end', controls=('_start',), optional=False, alone=())
    """

    image: str
    controls: tuple[str, ...]
    """In slot order."""

    optional: bool
    """Whether some images lack one of them."""

    alone: tuple[str, ...]
    """Stems that belong to no pair."""


def root_of(stem: str, affix: str) -> str | None:
    """The stem without its affix; None where it does not have the affix. affix: a
    suffix, or a pattern with `*` in the place of the root.

    >>> root_of("a_end", "_end"), root_of("after_1", "after_*"), root_of("a", "_end")
    ('a', '1', None)
    """
    begin, end = _ends(affix)
    is_long_enough = len(stem) >= len(begin) + len(end)
    if is_long_enough and stem.startswith(begin) and stem.endswith(end):
        return stem[len(begin) : len(stem) - len(end)]
    return None


def with_affix(root: str, affix: str) -> str:
    """The stem of a file with this root: the inverse of `root_of`. affix: a suffix, or
    a pattern with `*` in the place of the root.

    >>> with_affix("a", "_end"), with_affix("1", "after_*")
    ('a_end', 'after_1')
    """
    begin, end = _ends(affix)
    return begin + root + end


def _ends(affix: str) -> tuple[str, str]:
    begin, star, end = affix.partition("*")
    return (begin, end) if star else ("", affix)


def pair_names(stems: Collection[str]) -> PairNames | None:
    """The affixes of a folder where at least half of the images are pairs by their
    names; else None. For single letters all images have to be pairs, at least two."""
    text = "\n".join(stems).lower()
    for words in PAIRS:
        if words.image not in text or words.control not in text:
            continue
        pairs = _named_pairs(stems, words, _BEHIND, _BEHIND_NUMBERED)
        if pairs is None and not words.is_letter:
            pairs = _named_pairs(stems, words, _BEFORE, _BEFORE_NUMBERED)
        if pairs is not None:
            return pairs
    return None


def _named_pairs(
    stems: Collection[str], words: PairWords, plain: str, numbered: str
) -> PairNames | None:
    """`pair_names` of two words at one place. plain, numbered: patterns of a stem."""
    patterns = [re.compile(plain.format(word=words.control))]
    if not words.is_letter:
        patterns.append(re.compile(numbered.format(word=words.control)))
    image_pattern = re.compile(plain.format(word=words.image))
    images = [*filter(None, map(image_pattern.fullmatch, stems))]
    if words.is_letter:
        images = [match for match in images if match["root"][-1].isdigit()]
    if not images:
        return None
    affixes = Counter(match["affix"] for match in images)
    image_affix = max(affixes, key=affixes.__getitem__)  # as most of them write it
    of_root = {
        match["root"]: match for match in images if match["affix"] == image_affix
    }
    roots = {root: match[0] for root, match in of_root.items()}
    controls = []
    for stem in stems:
        for match in filter(None, (pattern.fullmatch(stem) for pattern in patterns)):
            if _head(match) == _head(of_root.get(match["root"])):
                controls.append(match)
                break
    paired = {match[0] for match in controls}
    paired |= {roots[match["root"]] for match in controls}
    enough = len(stems) if words.is_letter else len(stems) / 2
    if not controls or len(paired) < enough or (words.is_letter and len(roots) < 2):
        return None
    counts = Counter(match["affix"] for match in controls)
    numbers = {
        match["affix"]: int(match.groupdict().get("number") or -1) for match in controls
    }
    star = "*" if plain == _BEFORE else ""
    return PairNames(
        image_affix + star,
        tuple(affix + star for affix in sorted(counts, key=numbers.__getitem__)),
        min(counts.values()) < len(roots),
        tuple(stem for stem in stems if stem not in paired),
    )


def _head(match: re.Match[str] | None) -> str | None:
    """The text before the word of `_BEFORE`; None for no match."""
    if match is None:
        return None
    return match.groupdict().get("head") or ""


def in_yaml(affix: str) -> str:
    """An affix as a value of YAML: in quotes where it could be read as another type.

    >>> in_yaml("_end"), in_yaml("*_mask")
    ('_end', '"*_mask"')
    """
    is_plain = re.fullmatch(r"[A-Za-z_.]([\w.* -]*[\w.*-])?", affix)
    return affix if is_plain else json.dumps(affix, ensure_ascii=False)


def pair_folders(folders: Mapping[str, Collection[str]]) -> tuple[str, str] | None:
    """The folders of images and of control images among several, if their names say so
    and at least half of the images have a partner; else None. folders: name -> the
    stems of its images."""

    def named(names: Collection[str]) -> list[str]:
        words = {folder: re.sub(r"^[0-9]+_", "", folder.lower()) for folder in folders}
        return [
            folder
            for folder, word in words.items()
            if word in names or word.removesuffix("s") in names
        ]

    for image, control in product(named(IMAGES), named(CONTROLS)):
        both = len({*folders[image]} & {*folders[control]})
        if both and 2 * both >= len(folders[image]):
            return image, control
    return None


LAYER = "_layer"
"""Suffix of the names of layers, in front of their number."""

LAYER_SUFFIXES = (LAYER, "_")
"""Suffixes that people give layers."""
