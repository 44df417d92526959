"""Which character appears when a character is prompted for: a table of one LoRA.

The functions take samples and a judge, and neither load a model nor generate an image:
`best` does both and prints the table. `benchmarks/figures/characters.py` uses them with
a judge for drawn figures.

Shape suffixes: N images, D width of an embedding.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor

from toolkit.contracts.data import BucketedSample

NOBODY = "none of them"

Judge = Callable[[Sequence[Image.Image]], Sequence[str]]
"""Names the character in each image: one of those that were asked for, or NOBODY."""

Table = dict[str, dict[str, float]]
"""Character that was asked for -> character that was recognised -> share of its
samples, in [0, 1]."""


def who_appears(
    names: Sequence[str], samples: Callable[[str], Sequence[Image.Image]], judge: Judge
) -> Table:
    """The table of these characters. A row has all of them, and NOBODY if the judge
    named it.

    samples: the images generated for a character, at least one. Raises ValueError where
    the judge names another character.

    >>> image = Image.new("RGB", (8, 8))
    >>> who_appears(["ann", "bob"], lambda name: [image], lambda images: ["ann"])
    {'ann': {'ann': 1.0, 'bob': 0.0}, 'bob': {'ann': 1.0, 'bob': 0.0}}
    """
    table: Table = {}
    for name in names:
        counts = Counter(judge(samples(name)))
        strangers = counts.keys() - {*names, NOBODY}
        if strangers:
            raise ValueError(f"{min(strangers)!r} was recognised, but not asked about")
        columns = (*names, NOBODY) if counts[NOBODY] else names
        table[name] = {seen: counts[seen] / counts.total() for seen in columns}
    return table


def nearest(
    references: Mapping[str, Tensor], embed: Callable[[Sequence[Image.Image]], Tensor]
) -> Judge:
    """A judge that names the character whose images are nearest by the mean cosine, and
    never NOBODY. references: name -> [N, D], rows of length 1, as `embed` returns
    them."""
    names = list(references)
    means_ND = torch.stack([references[name].mean(0) for name in names])

    def judge(images: Sequence[Image.Image]) -> list[str]:
        indices = (embed(images) @ means_ND.T).argmax(1).tolist()
        return [names[index] for index in indices]

    return judge


def images_of(
    words: Sequence[str], items: Iterable[BucketedSample]
) -> dict[str, list[BucketedSample]]:
    """Word -> the images whose captions have this word and none of the others; each
    file once."""
    by_word: dict[str, dict[str, BucketedSample]] = {word: {} for word in words}
    patterns = {
        word: re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)
        for word in words
    }
    for item in items:
        text = "\n".join(item.sample.texts)
        named = [word for word in words if patterns[word].search(text)]
        if len(named) == 1:
            by_word[named[0]].setdefault(item.sample.image, item)
    return {word: list(images.values()) for word, images in by_word.items()}


def lines_of(table: Table) -> list[str]:
    """The table as lines: a row for each character that was prompted for, a column for
    each that was recognised."""
    columns = list(dict.fromkeys(seen for row in table.values() for seen in row))
    width = max(8, *map(len, columns))
    first = max(len("asked for"), *map(len, table))
    titles = " ".join(f"{name:>{width}}" for name in columns)
    lines = [f"{'asked for':{first}} {titles}"]
    for asked, row in table.items():
        shares = " ".join(f"{row.get(name, 0):>{width}.0%}" for name in columns)
        lines.append(f"{asked:{first}} {shares}")
    return lines
