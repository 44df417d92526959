"""Attributes: the rule of the held-out mascots, and draws that depend on nothing but
their own index."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations, product

import pytest
from mascots.mascot import (
    ALL,
    BODIES,
    COLOURS,
    HATS,
    MARKS,
    NONE,
    RESERVED_BODIES,
    RESERVED_COLOURS,
    Casting,
    Lots,
    Mascot,
    is_held_out,
    random_mascot,
    scene_of,
)

CHARACTER = {
    "trigger": "pipo",
    "body": "star",
    "colour": "teal",
    "mark": "stripes",
    "eyes": "one eye",
}


def drawn(count: int, casting: Casting, seed: int = 0) -> list[Mascot]:
    return [
        random_mascot(Lots(seed, "picture", index), casting) for index in range(count)
    ]


def test_the_rule_leaves_out_one_colour_of_each_body_and_hat() -> None:
    hats = (NONE, *HATS)
    held_out = [look for look in product(BODIES, COLOURS, hats) if is_held_out(*look)]
    assert len(held_out) == len(BODIES) * len(hats)
    assert len({(body, hat) for body, _, hat in held_out}) == len(held_out)
    assert {colour for _, colour, _ in held_out} == set(COLOURS)
    seen = [look for look in product(BODIES, COLOURS, hats) if not is_held_out(*look)]
    for first, second in combinations(range(3), 2):
        pairs = set(
            product(*[(BODIES, COLOURS, hats)[place] for place in (first, second)])
        )
        assert {(look[first], look[second]) for look in seen} == pairs
    assert is_held_out("star", "red", NONE) and is_held_out("round", "teal", NONE)


def test_2000_draws_keep_the_rule_and_reach_every_value() -> None:
    seen = drawn(2000, Casting())
    assert not any(is_held_out(m.body, m.colour, m.hat) for m in seen)
    assert {m.mark for m in seen} == {NONE}
    assert not {m.body for m in seen} & set(RESERVED_BODIES) and not {
        m.colour for m in seen
    } & set(RESERVED_COLOURS)
    held_out = drawn(2000, Casting("held_out"))
    assert all(is_held_out(m.body, m.colour, m.hat) for m in held_out)
    assert {m.body for m in held_out} == set(BODIES) and {
        m.colour for m in held_out
    } == set(COLOURS)
    reserved = drawn(300, Casting("reserved"))
    assert {(m.body, m.colour, m.mark) for m in reserved} == set(
        product(RESERVED_BODIES, RESERVED_COLOURS, MARKS)
    )
    everything = drawn(2000, Casting("any"))
    for name, values in ALL.items():
        assert {getattr(m, name) for m in everything} == set(values), name


def test_values_come_about_as_often_as_each_other() -> None:
    seen = drawn(4000, Casting())
    for name, share in (
        ("body", 1 / 6),
        ("colour", 1 / 8),
        ("eyes", 1 / 4),
        ("pose", 1 / 5),
        ("place", 1 / 5),
    ):
        counts = Counter(getattr(m, name) for m in seen)
        assert max(abs(count / 4000 - share) for count in counts.values()) < 0.03, name
    assert Counter(m.hat for m in seen)[NONE] / 4000 == pytest.approx(1 / 3, abs=0.03)
    assert Counter(m.held for m in seen)[NONE] / 4000 == pytest.approx(1 / 2, abs=0.03)


def test_a_draw_depends_on_seed_and_index_alone() -> None:
    assert drawn(5, Casting()) == drawn(9, Casting())[:5]
    assert drawn(20, Casting()) != drawn(20, Casting(), seed=1)
    some = Casting(only={"pose": ("waving",)})
    for one, other in zip(drawn(20, Casting()), drawn(20, some), strict=True):
        assert (one.body, one.colour, one.hat, one.held, one.place) == (
            other.body,
            other.colour,
            other.hat,
            other.held,
            other.place,
        )
        assert other.pose == "waving"


def test_jitter_moves_and_scales_and_changes_nothing_else() -> None:
    still, half, full = (
        drawn(300, Casting(jitter=jitter)) for jitter in (0.0, 0.5, 1.0)
    )
    assert {(m.dx, m.dy, m.scale) for m in still} == {(0, 0, 1)}
    assert [replace(m, dx=0, dy=0, scale=1) for m in full] == still
    for values, low, high in (
        ([m.dx for m in full], -4, 4),
        ([m.dx for m in half], -2, 2),
        ([m.dy for m in full], -2, 2),
        ([m.scale for m in full], 0.94, 1.03),
    ):
        assert (min(values), max(values)) == pytest.approx(
            (low, high), abs=(high - low) / 20
        )
        assert low <= min(values) and max(values) <= high


def test_a_character_is_the_same_in_every_pose_and_place_before_one_comes_again() -> (
    None
):
    casting = Casting(
        fixed=CHARACTER,
        only={
            "pose": ("standing", "waving"),
            "place": ("snow", "room"),
            "hat": (NONE,),
        },
    )
    lots = [Lots(3, "picture", index) for index in range(8)]
    seen = [scene_of(random_mascot(each, casting), each, casting) for each in lots]
    assert {(m.trigger, m.body, m.colour, m.mark, m.eyes, m.hat) for m in seen} == {
        (*CHARACTER.values(), NONE)
    }
    scenes = [(m.pose, m.place) for m in seen]
    assert (
        set(scenes[:4]) == set(product(("standing", "waving"), ("snow", "room")))
        and scenes[:4] == scenes[4:]
    )
