"""The survival score: the share of a LoRA's effect that is left when the model is
sampled in few steps. Imports no torch.

Of each prompt and seed there are four images: with many and with few steps, each with
the LoRA and without it. With their features f, the change in many steps is D = f(many,
LoRA) - f(many), the change in few steps d = f(few, LoRA) - f(few), and the score is
sum(d . D) / sum(D . D) over all prompts: the share of D that is found in d. 1: the LoRA
does in few steps what it does in many; 0: nothing of it. It may be above 1, where few
steps exaggerate, and below 0. The changes by the few-step LoRA itself are in both
images of a pair, and do not count.

Shape suffixes: N prompts, F features.

`callbacks.sample` scores each set of a run; tools compare files by the score.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Features = NDArray[np.float64]

SIDE = 32
"""Pixels along a side of what is compared without an embedder: colours and shapes, no
texture."""


def coarse_pixels(images: Sequence[Image.Image]) -> Features:
    """Features of images without an embedder [N, 3 SIDE SIDE], float64: RGB in [0, 1],
    averaged down to SIDE x SIDE. Raises ValueError without an image.

    >>> coarse_pixels([Image.new("RGB", (64, 64), "white")]).shape
    (1, 3072)
    """
    small = [
        image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
        for image in images
    ]
    return np.stack(
        [np.asarray(image, dtype=np.float64).ravel() / 255 for image in small]
    )


def survival(
    many_NF: Features, few_NF: Features, base_many_NF: Features, base_few_NF: Features
) -> float:
    """The score of features [N, F] with the LoRA in many and in few steps, and of the
    same without it; NaN where the LoRA changes nothing in many steps.

    It is the projection of the change in few steps on the change in many: 1 where they
    are equal, 0 where nothing of it is left. It can be below 0 and above 1.

    >>> base_NF = np.zeros((1, 2))
    >>> survival(np.ones((1, 2)), np.full((1, 2), 0.5), base_NF, base_NF)
    0.5
    """
    change_NF = many_NF - base_many_NF
    left_NF = few_NF - base_few_NF
    whole = float((change_NF * change_NF).sum())
    return float((left_NF * change_NF).sum()) / whole if whole else math.nan


class SurvivalScores:
    """The scores of a run's sample images, one for each deployment.

    >>> base = Image.new("RGB", (64, 64), "black")
    >>> with_lora = Image.new("RGB", (64, 64), "red")
    >>> scores = SurvivalScores({"8 steps": [(0, 1)]}, draw_base=lambda index: base)
    >>> scores.measure({0: with_lora, 1: with_lora})
    {'8 steps': 1.0}
    """

    def __init__(
        self,
        pairs: Mapping[str, Sequence[tuple[int, int]]],
        draw_base: Callable[[int], Image.Image],
    ) -> None:
        """pairs: deployment -> indices of the sampler's prompts, in many steps and in
        few. draw_base: generates the image of a prompt without the network; called once
        for each."""
        self._pairs = pairs
        self._draw_base = draw_base
        self._base: dict[int, Image.Image] = {}

    def measure(self, images: Mapping[int, Image.Image]) -> dict[str, float]:
        """Deployment -> its score; one whose score is NaN is left out. images: by the
        index of the prompt. Raises KeyError when one is missing.

        The first call generates the images without the network.
        """
        for pairs in self._pairs.values():
            for index in chain.from_iterable(pairs):
                if index not in self._base:
                    self._base[index] = self._draw_base(index)
        scores = {}
        for name, pairs in self._pairs.items():
            many, few = zip(*pairs, strict=True)
            features = [
                coarse_pixels([of[i] for i in part])
                for of in (images, self._base)
                for part in (many, few)
            ]
            scores[name] = survival(*features)
        return {name: score for name, score in scores.items() if math.isfinite(score)}
