"""Pictures: every attribute is seen, everything is whole, two are side by side."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, cycle, product

import numpy as np
import pytest
from mascots import drawing
from mascots.drawing import Canvas, draw, scribble
from mascots.mascot import ALL, NONE, Lots, Mascot
from PIL import Image

BASE = Mascot(hat="cap", held="flower", mark="heart")


def pixels(*mascots: Mascot, size: tuple[int, int] = (128, 128)) -> np.ndarray:
    return np.asarray(draw(mascots, *size), dtype=np.int16)


def place_alone(place: str, size: tuple[int, int]) -> np.ndarray:
    canvas = Canvas(*size)
    drawing.PLACES[place](canvas)
    return np.asarray(canvas.finished(), dtype=np.int16)


def test_every_table_has_every_value() -> None:
    tables = {
        "body": drawing.BUILDS,
        "colour": drawing.PAINT,
        "eyes": drawing.FACES,
        "pose": drawing.STANCES,
    }
    for name, table in tables.items():
        assert set(table) == set(ALL[name]), name
    assert set(drawing.PLACES) == set(drawing.SHADOWS) == set(ALL["place"])
    assert set(drawing.HATS) == set(ALL["hat"]) - {NONE}
    assert (
        set(drawing.HELD)
        == set(ALL["held"]) - {NONE}
        == set(drawing.HELD_WIDTHS) - {NONE}
    )


@pytest.mark.parametrize("attribute", ALL)
def test_each_two_values_of_an_attribute_look_unlike(attribute: str) -> None:
    """Already at 64 pixels, in at least 10 of them plainly."""
    pictures = {
        v: pixels(replace(BASE, **{attribute: v}), size=(64, 64))
        for v in ALL[attribute]
    }
    for one, other in combinations(pictures, 2):
        plainly = (np.abs(pictures[one] - pictures[other]).max(2) > 60).sum()
        assert plainly >= 10, (one, other, plainly)


def test_patterns_are_on_the_belly_and_each_is_unlike_the_others() -> None:
    plain = pixels(replace(BASE, mark=NONE, held=NONE))
    seen = [
        pixels(replace(BASE, mark=f"pattern {number}", held=NONE))
        for number in range(16)
    ]
    for picture in seen:
        rows, columns = np.nonzero(np.abs(picture - plain).max(2) > 8)
        assert (
            rows.min() > 75
            and rows.max() < 118
            and columns.min() > 40
            and columns.max() < 88
        )
    for one, other in combinations(seen, 2):
        assert (np.abs(one - other).max(2) > 30).sum() >= 20


def test_the_same_mascot_is_the_same_picture_and_sides_are_those_asked_for() -> None:
    assert np.array_equal(pixels(BASE), pixels(BASE))
    for size in ((64, 64), (96, 128), (192, 96)):
        picture = draw([BASE], *size)
        assert (picture.size, picture.mode) == (size, "RGB")


def test_edges_are_smooth_and_colours_flat() -> None:
    """Most pixels have one of a few colours; those between two are the edges."""
    picture = draw([replace(BASE, place="night")], 128, 128)
    counts = sorted((count for count, _ in picture.getcolors(1 << 16)), reverse=True)
    assert sum(counts[:12]) > 0.75 * 128 * 128 and len(counts) > 100


@pytest.mark.slow
def test_nothing_is_cut_off_whatever_is_together() -> None:
    """At the top every hat with every build and pose, at the sides whatever is held."""
    size = (128, 128)
    empty = place_alone("meadow", size)
    hats, held = cycle(ALL["hat"]), cycle(ALL["held"])
    together = [
        (body, pose, next(held), hat, 4)
        for body, pose, hat in product(ALL["body"], ALL["pose"], ALL["hat"])
    ]
    together += [
        (body, pose, thing, next(hats), dx)
        for body, pose, thing, dx in product(
            ALL["body"], ALL["pose"], ALL["held"], (-4, 4)
        )
    ]
    for body, pose, thing, hat, dx in together:
        m = Mascot(
            body, "blue", pose=pose, held=thing, hat=hat, dx=dx, dy=-2, scale=1.03
        )
        changed = np.abs(pixels(m, size=size) - empty).max(2) > 8
        assert not (
            changed[:2].any() or changed[:, :2].any() or changed[:, -2:].any()
        ), m


@pytest.mark.parametrize("size", [(128, 128), (192, 128), (96, 144), (64, 64)])
def test_two_stand_side_by_side_each_in_its_half(size: tuple[int, int]) -> None:
    left = Mascot("wide", "red", held="flag", pose="jumping", hat="crown", dx=4)
    right = Mascot("cloud", "blue", held="balloon", pose="cheering", dx=-4)
    empty, half = place_alone("meadow", size), size[0] // 2
    changed = np.abs(pixels(left, right, size=size) - empty).max(2) > 8
    assert changed[:, : half - 2].any() and changed[:, half + 2 :].any()
    assert (
        not changed[:, half - 1 : half + 1].any()
        and not changed[:, :1].any()
        and not changed[:, -1:].any()
    )


def test_scribbles_are_of_many_colours_and_their_own_index() -> None:
    pictures = [
        np.asarray(scribble(Lots(0, "scribble", index), 64, 48)) for index in (0, 1, 0)
    ]
    assert np.array_equal(pictures[0], pictures[2]) and not np.array_equal(
        pictures[0], pictures[1]
    )
    assert pictures[0].shape == (48, 64, 3)
    assert len(Image.fromarray(pictures[0]).getcolors(1 << 16)) > 4
