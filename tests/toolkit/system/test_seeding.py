"""Draws that depend on what they are for, and on nothing else."""

import itertools

import pytest
import torch

from toolkit.system import seeding

KEY_OF_NOISE = 6366128830201523007
"""key(42, "noise", 0, 1): a stored number, because a resumed run may be on another
machine or version."""


def test_the_key_is_the_same_on_every_machine() -> None:
    assert seeding.key(42, "noise", 0, 1) == KEY_OF_NOISE
    assert 0 <= KEY_OF_NOISE < 2**63


def test_every_argument_matters() -> None:
    arguments = [
        (1, "a"),
        (2, "a"),
        (1, "b"),
        (1, "a", 0),
        (1, "a", 0, 0),
        (1, "a", 1, 0),
        (1, "a", 10),
    ]
    keys = [seeding.key(*each) for each in arguments]
    assert len(set(keys)) == len(keys)


def test_uniform_covers_the_unit_interval() -> None:
    draws = [seeding.uniform(0, "caption", position) for position in range(2000)]
    assert all(0 <= draw < 1 for draw in draws)
    assert sum(draws) / len(draws) == pytest.approx(0.5, abs=0.03)
    assert sum(draw < 0.05 for draw in draws) / len(draws) == pytest.approx(
        0.05, abs=0.02
    )


def test_generators_are_independent_of_the_order_of_use() -> None:
    purposes = [(7, "noise", position) for position in range(3)]
    draws = {
        each: torch.randn(4, generator=seeding.generator(*each)) for each in purposes
    }
    for each in reversed(purposes):
        torch.testing.assert_close(
            torch.randn(4, generator=seeding.generator(*each)), draws[each]
        )
    for one, other in itertools.combinations(purposes, 2):
        assert not torch.equal(draws[one], draws[other])


def test_the_global_generator_is_seeded_inside_and_untouched_outside() -> None:
    torch.manual_seed(0)
    expected = torch.randn(2)
    torch.manual_seed(0)
    with seeding.global_generator(3, "dropout", 0):
        inside = torch.randn(2)
    torch.testing.assert_close(torch.randn(2), expected)
    with seeding.global_generator(3, "dropout", 0):
        torch.testing.assert_close(torch.randn(2), inside)
