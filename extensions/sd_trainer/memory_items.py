"""What a job's pictures and texts are to its memory: the batch, or picture, that the model sees most of.

Imports no torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

from toolkit.contracts import Item, Size
from toolkit.models.footprint import Footprint

LETTERS_PER_TOKEN = 3
"""Of captions; a cautious average."""


@dataclass(frozen=True)
class Group:
    """Items that take the same memory, counted."""

    bucket: Size
    references: int
    keeps_latents: bool
    """Whether their cached latents are in the main memory, because no file holds them."""

    keeps_text: bool
    """The same of their text embeddings."""

    shuffled: bool
    """Whether their captions are encoded at each use."""

    held_out: bool
    """Whether they are measured, and not trained on."""

    count: int
    uses: int
    """In an epoch."""

    longest: int
    """Letters of a caption."""


def group_items(section: Any, items: Iterable[Item], held_out: Iterable[Item] = ()) -> tuple[Group, ...]:
    """The items of a section, alike ones together: there may be very many, and a plan looks at them often.

    held_out: those of its validation.
    """
    keeps = [
        (not (dataset.cache_latents and dataset.cache_latents_to_disk), section.asked_text_cache(dataset) is False)
        for dataset in section.datasets
    ]
    found: dict[tuple, list[int]] = {}
    for item, is_held_out in [*((item, False) for item in items), *((item, True) for item in held_out)]:
        sample = item.sample
        kept = (False, False) if is_held_out else keeps[sample.dataset]
        key = item.crop.bucket, len(sample.controls), *kept, sample.rules.shuffle_tokens, is_held_out
        numbers = found.setdefault(key, [0, 0, 0])
        numbers[0] += 1
        numbers[1] += sample.repeats
        numbers[2] = max(numbers[2], len(sample.caption))
    return tuple(Group(*key, *numbers) for key, numbers in found.items())


@dataclass(frozen=True)
class Largest:
    """A batch, or picture, that the transformer has most tokens of."""

    images: int
    pixels: int
    """Of the target."""

    references: int
    reference_pixels: int
    text_tokens: int


class Sizes:
    """Pixels and tokens of what a job trains on, measures and draws."""

    def __init__(self, section: Any, facts: Footprint, groups: Sequence[Group], area: float = 1.0) -> None:
        """area: factor on the pixels of all targets."""
        self._section, self._facts, self._groups, self._area = section, facts, groups, area
        self._follows_target = section.model.model_kwargs.match_target_res

    def tokens(self, largest: Largest) -> int:
        """That the transformer sees."""
        pixels = largest.pixels + largest.references * largest.reference_pixels
        return largest.images * (pixels // self._facts.pixels_per_token + largest.text_tokens)

    def text_tokens(self, references: int, letters: int) -> int:
        """Of a caption with so many references and letters, the words around it included."""
        of_references = self._facts.text_tokens_per_reference * references
        return self._facts.text_tokens + of_references + ceil(letters / LETTERS_PER_TOKEN)

    def reference_pixels(self, group: Group) -> int:
        """Of each reference of the group's items."""
        return int(self._area * prod(group.bucket)) if self._follows_target else self._facts.reference_pixels

    def batch(self, most: int) -> Largest:
        """The batch of the most tokens that the buckets can give to one process. most: images of a batch there."""
        groups = [group for group in self._groups if not group.held_out]
        uses = Counter[Size]()
        for group in groups:
            uses[group.bucket] += group.uses
        return max((self._of(group, min(most, uses[group.bucket])) for group in groups), key=self.tokens)

    def held_out(self) -> Largest | None:
        """The largest picture of the validation, which measures one at a time."""
        pictures = (self._of(group, 1) for group in self._groups if group.held_out)
        return max(pictures, key=self.tokens, default=None)

    def samples(self) -> list[Largest]:
        """The samples that are drawn, one at a time; guidance is a second pass, not a larger one."""
        if self._section.train.disable_sampling:
            return []
        given = [part for part in (self._section.sample, self._section.first_sample) if part]
        return [self._drawn(item) for part in given for item in part.pictures()]

    def _of(self, group: Group, images: int) -> Largest:
        return Largest(
            images=images,
            pixels=int(self._area * prod(group.bucket)),
            references=group.references,
            reference_pixels=self.reference_pixels(group) if group.references else 0,
            text_tokens=self.text_tokens(group.references, group.longest),
        )

    def _drawn(self, item: Any) -> Largest:
        pixels, references = item.width * item.height, len(item.ctrl_img)
        reference = pixels if self._follows_target else self._facts.reference_pixels
        return Largest(
            1, pixels, references, reference if references else 0, self.text_tokens(references, len(item.prompt))
        )
