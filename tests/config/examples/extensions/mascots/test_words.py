"""Captions and edits: what they say is what is drawn."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from mascots.mascot import NONE, Casting, Lots, Mascot, is_held_out, random_mascot
from mascots.words import (
    CHANGES,
    PLACES,
    caption,
    caption_in,
    edit,
    edit_of_two,
    invented_name,
)

PIPO = {
    "trigger": "pipo",
    "body": "star",
    "colour": "teal",
    "mark": "stripes",
    "eyes": "big eyes",
}
NAMED = ("body", "colour", "eyes", "pose")


def everyone(count: int, casting: Casting) -> list[tuple[Lots, Mascot]]:
    lots = [Lots(5, "picture", index) for index in range(count)]
    return [(each, random_mascot(each, casting)) for each in lots]


def test_a_caption_as_it_reads() -> None:
    dressed = Mascot(
        "tall",
        "green",
        hat="top hat",
        hat_colour="orange",
        held="book",
        pose="waving",
        place="night",
    )
    assert caption(dressed) == (
        "a tall green mascot with big eyes, wearing an orange top hat, holding a book, waving, at night"
    )
    assert caption(Mascot(mark="heart")) == (
        "a round blue mascot with big eyes and a heart, without a hat, holding nothing, standing, on a meadow"
    )
    assert caption(Mascot(trigger="pipo")) == (
        "a pipo mascot, without a hat, holding nothing, standing, on a meadow"
    )


def test_the_full_caption_names_every_attribute_and_tells_all_mascots_apart() -> None:
    seen: dict[str, tuple] = {}
    for _, m in everyone(2000, Casting("any")):
        words = caption(m)
        for name in NAMED:
            assert getattr(m, name) in words
        assert PLACES[m.place] in words
        assert (m.hat == NONE) == ("without a hat" in words) and (m.held == NONE) == (
            "holding nothing" in words
        )
        assert m.hat == NONE or f"{m.hat_colour} {m.hat}" in words
        looks = (
            m.body,
            m.colour,
            m.eyes,
            m.mark,
            m.hat,
            m.hat != NONE and m.hat_colour,
            m.held,
            m.pose,
            m.place,
        )
        assert seen.setdefault(words, looks) == looks


def test_forms() -> None:
    forms = Counter()
    for lots, m in everyone(400, Casting()):
        full, short, free = (
            caption(m),
            caption_in("short", m, lots),
            caption_in("free", m, lots),
        )
        assert caption_in("full", m, lots) == full
        assert set(short.split(", ")[1:]) <= set(full.split(", ")) and len(short) < len(
            full
        )
        invented = f"{invented_name(lots)} mascot" in free
        assert invented or sorted(free.split(", ")) == sorted(full.split(", "))
        mixed = caption_in("mixed", m, lots)
        forms[
            next(
                name
                for name, words in (("full", full), ("short", short), ("free", free))
                if words == mixed
            )
        ] += 1
    assert (
        forms["full"] == pytest.approx(240, abs=30)
        and min(forms["short"], forms["free"]) > 50
    )


def test_no_form_says_how_a_character_looks() -> None:
    for lots, m in everyone(100, Casting(fixed=PIPO)):
        for form in ("full", "short", "free"):
            words = caption_in(form, m, lots)
            assert "a pipo mascot" in words
            assert not any(
                look in words for look in ("star", "teal", "big eyes", "stripes")
            )


@pytest.mark.parametrize("characters", ["pretraining", "held_out", "reserved", "any"])
def test_an_edit_changes_what_its_instruction_says_and_nothing_else(characters) -> None:
    casting, kinds = Casting(characters), Counter()
    for index in range(600):
        pair = edit(1, index, casting)
        (before,), (after,) = pair.before, pair.after
        changed = {
            name
            for name in vars(before)
            if getattr(before, name) != getattr(after, name)
        }
        kinds.update(changed - {"hat_colour"})
        assert len(changed - {"hat_colour"}) == 1 + (
            " and " in pair.instruction
        ) or changed == {"hat_colour"}
        for name in changed & {"colour", "eyes", "hat_colour"}:
            assert getattr(after, name) in pair.instruction
        if "hat" in changed:
            assert (
                after.hat if after.hat != NONE else "take its hat off"
            ) in pair.instruction
        if "held" in changed:
            assert (
                after.held if after.held != NONE else "take away what it holds"
            ) in pair.instruction
        if "place" in changed:
            assert f"show it {PLACES[after.place]}" in pair.instruction
        if characters in ("pretraining", "held_out"):
            wanted = characters == "held_out"
            assert is_held_out(after.body, after.colour, after.hat) is wanted
    expected = set(CHANGES)
    assert expected - set(kinds) <= (
        {"hat", "colour"} if characters == "held_out" else set()
    )


def test_an_edit_changes_only_what_is_to_change() -> None:
    changed: Counter[str] = Counter()
    for index in range(200):
        pair = edit(1, index, Casting(), ("pose", "held"))
        (before,), (after,) = pair.before, pair.after
        changed.update(
            name
            for name in vars(before)
            if getattr(before, name) != getattr(after, name)
        )
    assert set(changed) == {"pose", "held"} and min(changed.values()) > 80


def test_an_edit_of_a_character_leaves_it_itself() -> None:
    casting = Casting(fixed=PIPO)
    for index in range(200):
        (after,) = edit(2, index, casting).after
        assert (after.body, after.colour, after.eyes, after.mark) == (
            "star",
            "teal",
            "big eyes",
            "stripes",
        )


def test_edits_of_two_show_both_or_a_hat_that_changes_its_head() -> None:
    kinds: Counter[int] = Counter()
    for index in range(400):
        pair = edit_of_two(0, index, Casting())
        first, second = pair.before
        kinds[len(pair.after)] += 1
        for m in (*pair.before, *pair.after):
            assert not is_held_out(m.body, m.colour, m.hat)
        if len(pair.after) == 2:
            assert (
                pair.after[0].place == pair.after[1].place
                and PLACES[pair.after[0].place] in pair.instruction
            )
            assert [(m.body, m.colour, m.hat, m.held, m.pose) for m in pair.after] == [
                (m.body, m.colour, m.hat, m.held, m.pose) for m in pair.before
            ]
        else:
            (after,) = pair.after
            assert (after.hat, after.hat_colour) == (
                second.hat,
                second.hat_colour,
            ) and second.hat != NONE
            assert (after.body, after.colour, after.place) == (
                first.body,
                first.colour,
                first.place,
            )
            assert first.hat != second.hat
    assert min(kinds[1], kinds[2]) > 80


def test_at_a_rate_of_one_every_edit_of_two_that_can_is_a_hat_and_at_zero_none() -> (
    None
):
    pipo = Casting(fixed=PIPO)
    shown = [
        {len(edit_of_two(0, index, pipo, hat_rate).after) for index in range(100)}
        for hat_rate in (0, 1)
    ]
    assert shown == [{2}, {1}]


def test_a_stranger_has_looks_of_its_own_that_no_caption_names() -> None:
    strangers = everyone(300, Casting("random"))
    assert (
        len({m.body for _, m in strangers}) == 300
        and len({m.colour for _, m in strangers}) > 295
    )
    for lots, m in strangers:
        for form in ("full", "short", "free"):
            words = caption_in(form, m, lots)
            assert (
                "mascot" in words
                and m.body not in words
                and m.colour not in words
                and m.eyes not in words
            )
    named = Casting("random", only={"body": ("round",)})
    assert all(m.body.startswith("blob ") for _, m in everyone(20, named))


def test_a_patterned_stranger_keeps_its_pattern_and_no_caption_names_it() -> None:
    strangers = everyone(300, Casting("patterned"))
    assert len({m.mark for _, m in strangers}) == 300
    for lots, m in strangers:
        plain = random_mascot(lots, Casting("random"))
        assert replace(m, mark=NONE) == plain
        assert all(
            caption_in(form, m, lots) == caption_in(form, plain, lots)
            for form in ("full", "short", "free")
        )
    for index in range(100):
        pair = edit(4, index, Casting("patterned"))
        assert pair.after[0].mark == pair.before[0].mark


def test_edits_of_a_stranger_keep_its_looks_but_for_a_named_colour() -> None:
    changed = Counter()
    for index in range(300):
        pair = edit(4, index, Casting("random"))
        before, after = pair.before[0], pair.after[0]
        assert after.body == before.body and after != before
        assert (
            after.colour == before.colour
            or f"paint it {after.colour}" in pair.instruction
        )
        changed.update(
            name
            for name in ("colour", "hat", "pose", "held")
            if getattr(after, name) != getattr(before, name)
        )
    assert set(changed) == {"colour", "hat", "pose", "held"}
