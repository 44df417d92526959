"""Drawn mascots: the images of the examples are drawn by it, pretraining leaves out what
is held out, and an edit changes what it says."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from benchmarks.mascots import (
    ALL,
    DATASETS,
    NONE,
    WHERE,
    Casting,
    Lots,
    draw,
    edit,
    edit_of_two,
    is_held_out,
    random_mascot,
)
from tests.conftest import ROOT

HATS = ROOT / "config" / "examples" / "mascots" / "hats"
PIPO = {"body": "star", "colour": "teal", "mark": "stripes", "eyes": "big eyes"}


def test_the_hats_of_the_examples_are_drawn_as_the_model_knows_mascots() -> None:
    """Those that are a hat at the usual rate, too: what the shipped model was trained
    on is drawn to the same pixels."""
    compared = 0
    for index in sorted(int(file.stem) for file in HATS.glob("after/*.png")):
        pair = edit_of_two(0, index, Casting(fixed=PIPO))
        if len(pair.after) == 1:
            drawn = {"after": pair.after, "picture_1": pair.before[:1]}
            for folder, mascots in (drawn | {"picture_2": pair.before[1:]}).items():
                with Image.open(HATS / folder / f"{index:06}.png") as shipped:
                    expected = np.asarray(shipped.convert("RGB"))
                assert np.array_equal(draw(mascots, 128, 128), expected), index
            compared += 1
    assert compared >= 3


def test_pretraining_leaves_out_what_is_held_out() -> None:
    for characters, wanted in (("pretraining", False), ("held_out", True)):
        for index in range(300):
            m = random_mascot(Lots(0, "picture", index), Casting(characters))
            assert is_held_out(m.body, m.colour, m.hat) is wanted


@pytest.mark.parametrize("characters", ["pretraining", "patterned"])
def test_an_edit_changes_what_its_instruction_says_and_nothing_else(characters) -> None:
    seen = set()
    for index in range(300):
        pair = edit(1, index, Casting(characters))
        (before,), (after,) = pair.before, pair.after
        changed = {
            name for name in ALL if getattr(before, name) != getattr(after, name)
        }
        seen |= changed - {"hat_colour"}
        said = pair.instruction
        assert 1 <= len(changed - {"hat_colour"}) <= 1 + said.count(" and ")
        for name in changed & {"colour", "eyes"}:
            assert getattr(after, name) in said
        if "hat" in changed:
            assert ("take its hat off" if after.hat == NONE else after.hat) in said
        if "place" in changed:
            assert f"show it {WHERE[after.place]}" in said
    assert seen == {"hat", "held", "pose", "place", "eyes", "colour"}


def test_the_datasets_are_as_many_as_the_card_of_the_model_says() -> None:
    total = sum(
        each.count + each.edits + each.edits_of_two + each.scribbles
        for each in DATASETS.values()
    )
    card = ROOT / "config" / "examples" / "tiny_mascots" / "README.md"
    assert f"drawing {total:,} pictures and pairs" in card.read_text("utf-8")
