"""The table of who appears when whom is asked for."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from extensions.tools.best.characters import NOBODY, images_of, lines_of, nearest, who_appears
from toolkit.data.types import BucketedSample, ResizeCrop, Sample, Size


def image(colour: str) -> Image.Image:
    return Image.new("RGB", (8, 8), colour)


def embed(images) -> torch.Tensor:
    rows = torch.tensor([each.resize((1, 1)).getpixel((0, 0)) for each in images], dtype=torch.float32)
    return torch.nn.functional.normalize(rows, dim=1)


SAMPLES = {"anna": ["#c01010", "#b02010", "#a01000", "#1010a0"], "ben": ["#0000ff", "#101090"]}


def test_a_sample_counts_for_the_character_whose_images_are_nearest() -> None:
    references = {"anna": embed([image("#ff0000"), image("#ee1100")]), "ben": embed([image("#0000ff")])}
    table = who_appears(["anna", "ben"], lambda name: [image(c) for c in SAMPLES[name]], nearest(references, embed))
    assert table == {"anna": {"anna": 0.75, "ben": 0.25}, "ben": {"anna": 0.0, "ben": 1.0}}
    assert lines_of(table) == [
        "asked for     anna      ben",
        "anna           75%      25%",
        "ben             0%     100%",
    ]


def test_a_judge_may_see_nobody_and_no_stranger() -> None:
    judge = ["anna", NOBODY]
    table = who_appears(["anna"], lambda name: [image("red")] * 2, lambda images: judge)
    assert table == {"anna": {"anna": 0.5, NOBODY: 0.5}}
    with pytest.raises(ValueError, match="'carl' was recognised"):
        who_appears(["anna"], lambda name: [image("red")], lambda images: ["carl"])


def test_images_of_a_character_are_those_that_name_it_alone() -> None:
    crop = ResizeCrop(Size(8, 8), 0, 0, Size(8, 8))
    captions = ["a photo of anna", "Anna at night", "anna and ben", "ben", "annabel", "ben"]
    items = [
        BucketedSample(Sample(f"{index}.png", text, 1, Size(8, 8), "f"), crop) for index, text in enumerate(captions)
    ]
    both = items[3].sample._replace(captions=("ben", "ben with anna"))
    items.append(items[3]._replace(sample=both._replace(image="6.png")))
    found = images_of(["anna", "ben"], [*items, items[0]])
    assert {word: [item.sample.image for item in own] for word, own in found.items()} == {
        "anna": ["0.png", "1.png"],
        "ben": ["3.png", "5.png"],
    }
