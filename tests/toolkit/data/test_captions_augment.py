import re
from dataclasses import replace

import pytest

from tests.golden_tables import golden
from toolkit.data.captions import add_prefix, caption_for_use, inject_trigger
from toolkit.data.types import CaptionRules

# `to_replace_list` is an option of the peer that jobs here do not have.
INJECT = [case for case in golden("captions", table="inject") if not case["to_replace_list"]]


@pytest.mark.parametrize("case", INJECT, ids=lambda case: repr(case["prompt"]))
def test_golden_injection(case: dict) -> None:
    assert inject_trigger(case["prompt"], case["trigger"], case["add_if_not_present"]) == case["result"]


@pytest.mark.parametrize("case", golden("captions", table="caption"), ids=lambda c: f"{c['raw']}-{c['is_reg']}")
def test_golden_captions_but_for_the_spaces_around_commas(case: dict) -> None:
    """The peer splits at commas and joins with another space, which jobs here do not get (tests/golden/README.md)."""
    caption = inject_trigger(case["raw"], case["trigger_word"], add=not case["is_reg"])
    assert re.sub(r" *, *", ",", caption) == re.sub(r" *, *", ",", case["result"])


def uses(caption: str, rules: CaptionRules, count: int = 400, seed: int = 1) -> list[str]:
    return [caption_for_use(caption, rules, seed, 0, position) for position in range(count)]


def test_a_caption_without_rules_is_left_as_written() -> None:
    assert set(uses("a,b ,, c", CaptionRules(trigger="sks"))) == {"a,b ,, c"}


@pytest.mark.parametrize("case", golden("captions", table="dropout_rate"), ids=lambda c: c["caption_dropout_rate"])
def test_dropout_rate_is_a_probability_per_use(case: dict) -> None:
    rate = case["caption_dropout_rate"]
    captions = uses("sks a cat", CaptionRules(dropout_rate=rate, trigger="sks"), case["draws"])
    assert set(captions) == {"", "sks a cat"}
    found = captions.count("") / len(captions)
    assert found == pytest.approx(rate, abs=0.01) and found == pytest.approx(case["dropped_fraction"], abs=0.01)


def test_dropout_at_both_ends() -> None:
    assert set(uses("a", CaptionRules(dropout_rate=1.0))) == {""}
    assert set(uses("a", CaptionRules(dropout_rate=0.0))) == {"a"}


def test_draws_depend_on_seed_epoch_and_position_and_repeat() -> None:
    rules = CaptionRules(dropout_rate=0.5)
    first = uses("a", rules)
    assert first == uses("a", rules)
    assert first != uses("a", rules, seed=2)
    assert first != [caption_for_use("a", rules, 1, 1, position) for position in range(400)]


def test_shuffling_reaches_every_order_and_loses_nothing() -> None:
    captions = set(uses("red hat,blue coat , green shoe", CaptionRules(shuffle_tokens=True)))
    assert len(captions) == 6
    assert all(sorted(caption.split(", ")) == ["blue coat", "green shoe", "red hat"] for caption in captions)


def test_keep_tokens_stay_in_front_and_the_prepended_trigger_is_no_part() -> None:
    rules = CaptionRules(shuffle_tokens=True, keep_tokens=1, trigger="zxq man")
    captions = set(uses("zxq man a, b, c, d", rules))
    assert len(captions) == 6
    assert all(caption.startswith("zxq man a, ") for caption in captions)


def test_trigger_is_never_moved_wherever_it_stands() -> None:
    rules = CaptionRules(shuffle_tokens=True, trigger="sks")
    assert all(caption.startswith("sks ") for caption in uses("sks a, b, c", rules))
    assert {caption.split(", ")[1] for caption in uses("a, photo of sks, b, c", rules)} == {"photo of sks"}
    assert {caption.split(", ")[0] for caption in uses("sks, a, b", rules)} == {"sks"}


def test_keep_tokens_beyond_the_caption() -> None:
    assert set(uses("a, b", CaptionRules(shuffle_tokens=True, keep_tokens=9))) == {"a, b"}


@pytest.mark.parametrize(
    ("caption", "prefix", "expected"),
    [("a girl", "drawn", "drawn. a girl"), ("", "drawn", "drawn"), ("a girl", "", "a girl"), ("", "", "")],
)
def test_a_prefix_stands_before_the_caption(caption: str, prefix: str, expected: str) -> None:
    assert add_prefix(caption, prefix) == expected


@pytest.mark.parametrize(
    ("trigger", "prefix", "begin"),
    [
        ("", "flat, drawn", "flat, drawn. "),
        ("sks", "flat, drawn", "sks flat, drawn. "),
        ("sks", "sks art, drawn", "sks art, drawn. "),
        ("sks", "by sks, drawn", "by sks, drawn. "),
    ],
)
def test_shuffling_neither_moves_nor_tears_a_prefix(trigger: str, prefix: str, begin: str) -> None:
    rules = CaptionRules(0.1, shuffle_tokens=True, trigger=trigger, prefix=prefix)
    assert set(uses(inject_trigger(add_prefix("a, b", prefix), trigger), rules)) == {"", f"{begin}a, b", f"{begin}b, a"}
    assert set(uses(inject_trigger(prefix, trigger), rules)) == {"", begin.removesuffix(". ")}
    captions = set(uses(inject_trigger(add_prefix("a, b, c", prefix), trigger), replace(rules, keep_tokens=1)))
    assert captions == {"", f"{begin}a, b, c", f"{begin}a, c, b"}
