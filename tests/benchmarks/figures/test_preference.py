"""The bench of preferences: its samples, and what it votes for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mascots.mascot import Mascot, Pair
from PIL import Image

from benchmarks import mascot_model
from benchmarks.figures.preference import (
    decided,
    drawn,
    judged,
    without_colour,
    write_votes,
)
from benchmarks.mascot_classifier import MascotClassifier
from benchmarks.mascot_model import TinyModel, load


@pytest.mark.slow
@pytest.mark.parametrize(("references", "guidance"), [(0, 2.0), (1, 1.0)])
def test_many_samples_in_a_pass_are_those_of_one_each(
    tiny_model: Path, guidance: float, references: int
) -> None:
    tiny = TinyModel(load(str(tiny_model)), MascotClassifier(), 2, guidance)
    pictures = [
        Image.new("RGB", (128, 128), colour) for colour in ("teal", "pink")
    ] * references
    of_each = [[picture] for picture in pictures]
    together = drawn(
        tiny, ["a round mascot", "a cat"], pictures, first=mascot_model.SEED
    )
    for ours, theirs in zip(
        together, tiny.samples(["a round mascot", "a cat"], of_each), strict=True
    ):
        assert np.abs(np.asarray(ours, int) - np.asarray(theirs, int)).max() <= 1


def test_a_pair_of_which_one_is_liked_is_decided(tmp_path: Path) -> None:
    red, blue = (Image.new("RGB", (1, 1), colour) for colour in ("red", "blue"))
    assert decided(tmp_path, "x", [red, blue], [False, True]) == (
        "x_better.png",
        "x_worse.png",
    )
    assert Image.open(tmp_path / "x_better.png").getpixel((0, 0)) == (0, 0, 255)
    assert (
        decided(tmp_path, "x", [red, blue], [True, True])
        is decided(tmp_path, "x", [red, blue], [False] * 2)
        is None
    )


def test_votes_are_exchanged_in_the_other_table(tmp_path: Path) -> None:
    write_votes(
        iter([("a", "b", "p", ""), ("c", "d", "q", "e"), ("f", "g", "r", "")]),
        tmp_path,
        2,
    )
    votes, exchanged = (
        [
            json.loads(line)
            for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()
        ]
        for name in ("votes", "exchanged")
    )
    assert votes == [
        {"better": "a", "worse": "b", "prompt": "p"},
        {"better": "c", "worse": "d", "prompt": "q", "control": "e"},
    ]
    assert [(row["better"], row["worse"]) for row in exchanged] == [
        ("b", "a"),
        ("d", "c"),
    ]


def test_an_edit_keeps_the_looks_that_it_does_not_change() -> None:
    before = Mascot(body="round", colour="red", hat="cap")
    after = replace(before, colour="blue", pose="waving")
    pair = Pair((before,), "paint it blue", (after,))
    assert judged(pair, vars(after)) == (True, True)
    assert judged(pair, vars(replace(after, mark="spots"))) == (False, True)
    assert judged(pair, vars(replace(after, colour="red"))) == (True, False)


def test_the_colour_of_the_body_is_left_open() -> None:
    mascot = Mascot(body="round", colour="red", hat="cap", hat_colour="red")
    assert without_colour(mascot).startswith(
        "a round mascot with"
    ) and "a red cap" in without_colour(mascot)
