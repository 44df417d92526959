"""Pairs of images of which somebody likes one better: what is wrong with them.

The table of a dataset names the pairs (`train.preference`). `folder_check` calls
`pair_mistakes` and `contradictions` once the headers of all images are read. Images
that cannot be read, and tables with errors, are reported by their own modules.
"""

from __future__ import annotations

import filecmp
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from toolkit.data.scan.directory import ImageFile
from toolkit.errors import Diagnostic


class Pair(NamedTuple):
    """Two images of one prompt.

    >>> from toolkit.data.scan.directory import DirectoryListing
    >>> folder = DirectoryListing("votes", "votes/", looked_at=0)
    >>> image = ImageFile(folder, "a.png")
    >>> [mistake.message for mistake in pair_mistakes([Pair(image, image, "a cat")])]
    ['is the better and the worse image of one pair. Remove the line']
    """

    better: ImageFile
    worse: ImageFile
    caption: str


def pair_mistakes(pairs: Sequence[Pair]) -> Iterator[Diagnostic]:
    """Pairs that nothing can be learned from. Images that cannot be read are reported
    elsewhere."""
    for better, worse, caption in pairs:
        if better.path == worse.path:
            message = "is the better and the worse image of one pair. Remove the line"
        elif not caption:
            message = "has no prompt, which both images of a pair need. Give the line a 'prompt'"
        elif better.facts and worse.facts and better.facts.size != worse.facts.size:
            message = (
                f"is {better.facts.size}, and its worse image {worse.path} {worse.facts.size}: "
                "both images of a pair need one size. Remove the line"
            )
        elif (
            better.facts
            and worse.facts
            and filecmp.cmp(better.path, worse.path, shallow=False)
        ):
            message = f"is the same as its worse image {worse.path}. Remove the line"
        else:
            continue
        yield Diagnostic((better.path,), message)


def contradictions(pairs: Sequence[Pair]) -> Iterator[str]:
    """A warning, at most one, about images of which each is preferred to the other. It
    gives their number and the first two."""
    orders = {(better.path, worse.path) for better, worse, _ in pairs}
    both = sorted(pair for pair in orders if pair[::-1] in orders and pair[0] < pair[1])
    if both:
        shown = " and ".join(both[0])
        yield (
            f"warning: {len(both)} of {len(orders) - len(both)} pairs are preferred both ways, such as {shown}. "
            "They cancel each other: remove one line of each"
        )
