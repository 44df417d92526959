"""`train.lr_groups` and what belongs to it: its fields, and the errors that are found before anything is loaded."""

from __future__ import annotations

import pytest


def test_an_entry_gives_a_rate_or_a_factor_or_both(section) -> None:
    entries = "[{match: a, lr: 0.5}, {pattern: b, lr_scale: 3, name: c}, {match: d, lr: 2, lr_scale: 3}, {match: e}]"
    groups = section(f"train: {{lr_groups: {entries}}}").train.lr_groups
    rates = {"a": 0.5, "c": pytest.approx(0.3), "d": 6, "e": 0.1}
    assert {group.label(): group.rate(0.1) for group in groups} == rates


def test_the_transformers_rate_is_the_rate(section) -> None:
    assert section("train: {unet_lr: 0.25}").train.lr == 0.25


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train: {lr_groups: [{lr: 1}]}", "train.lr_groups[0].match: "),
        (
            "train: {lr_groups: [{match: '(', lr: 1}]}",
            "train.lr_groups[0].match: '(' is not a valid regular expression",
        ),
        ("train: {lr_groups: [{match: a, lr: -1}]}", "train.lr_groups[0].lr: -1 is out of range"),
        ("train: {lr_groups: [{match: a, lr: x}]}", "train.lr_groups[0].lr: 'x' is not a number."),
        ("train: {lr_groups: [{match: a, rate: 1}]}", "train.lr_groups[0].rate: unknown key."),
        (
            "train: {lr_groups: [{match: a, lr: 1}, {match: a, lr: 2}]}",
            "train.lr_groups[1]: 'a' is the name of another",
        ),
        ("train: {lr_groups: [{match: a, lr: 1, name: base}]}", "train.lr_groups[0]: 'base' is the name of another"),
        ("train: {lr_groups: [{match: a, lr: 1, name: a up}]}", "train.lr_groups[0]: 'a up' is the name of another"),
        ("train: {unet_lr: 0.1, lr: 0.2}", "train.unet_lr: 'unet_lr' and 'lr' mean the same"),
        (
            "train: {optimizer: prodigy, lr: 1, lr_groups: [{match: a, lr_scale: 2}]}",
            "train.lr_groups: optimizer 'prodigy' finds a single rate for all weights.",
        ),
    ],
)
def test_what_is_wrong_is_said_at_its_place(faults, line: str, message: str) -> None:
    (found,) = faults(line)
    assert found.startswith(message)


def test_prodigy_can_leave_layers_untrained(section) -> None:
    section("train: {optimizer: prodigy, lr: 1, lr_groups: [{match: a, lr: 0}]}")
