"""The estimate at the published model's size: 60 blocks of width 3072, 1024 x 1024, see the sums beside the cases."""

from __future__ import annotations

import pytest

from toolkit.config.choices import CHECKPOINTING_LEVELS
from toolkit.memory.activations import UNITS, Work, activation_bytes, roomiest

TOKENS = {0: 4096 + 80, 1: 2 * 4096 + 280, 2: 3 * 4096 + 490, 3: 4 * 4096 + 700}
"""References -> tokens of pictures and text."""

GB = 10**9
H200, CARD_24, CARD_16 = 139 * 2**30, 24 * 2**30, 16 * 2**30
BF16, INT8, INT8_WITH_TABLE = 41 * GB, 20.5 * GB, 13.7 * GB
BESIDES = 2.2 * GB
"""A LoRA with its gradients and Adam, and the CUDA context."""


def work(references: int, **changes) -> Work:
    return Work(**{"tokens": TOKENS[references], "width": 3072, "blocks": 60, "number_bytes": 2, **changes})


@pytest.mark.parametrize(
    ("level", "gigabytes"),
    [
        # one unit is 8472 x 3072 x 2 B = 52 MB; 60 blocks keep 3.12 GB of it; one block at work takes 2.34 GB
        ("full", 60 * 0.0520 + 44 * 0.0520),
        ("full_offload", 45 * 0.0520),
        ("keep_attention", 2 * 3.123 + 43 * 0.0520),
        ("cheap", 11 * 3.123 + 34 * 0.0520),
        ("none", 28 * 3.123 + 17 * 0.0520),
    ],
)
def test_bytes_with_one_reference(level: str, gigabytes: float) -> None:
    assert activation_bytes(level, work(1)) == pytest.approx(gigabytes * GB, rel=2e-3)


def test_each_level_takes_less_than_the_one_before_it() -> None:
    for references in TOKENS:
        sizes = [activation_bytes(level, work(references)) for level in CHECKPOINTING_LEVELS]
        assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes)
    assert UNITS.keys() == set(CHECKPOINTING_LEVELS)


@pytest.mark.parametrize(
    ("card", "weights", "references", "level"),
    [
        (H200, BF16, 0, "none"),
        (H200, BF16, 1, "none"),
        (H200, BF16, 2, "cheap"),
        (H200, INT8, 1, "none"),
        (H200, INT8, 2, "cheap"),  # 132 GB of 126
        (H200, INT8, 3, "cheap"),
        (80 * 2**30, BF16, 1, "cheap"),
        (80 * 2**30, BF16, 3, "keep_attention"),
        (48 * 2**30, BF16, 1, "full"),
        (CARD_24, INT8_WITH_TABLE, 1, "keep_attention"),
        (CARD_24, INT8_WITH_TABLE, 3, "full_offload"),
        (CARD_16, INT8_WITH_TABLE, 1, "full_offload"),
    ],
)
def test_the_fastest_level_that_fits(card: int, weights: float, references: int, level: str) -> None:
    assert roomiest(CHECKPOINTING_LEVELS, int(card - weights - BESIDES), work(references)) == level


def test_dropout_and_float32_take_more() -> None:
    plain = activation_bytes("none", work(1))
    assert activation_bytes("none", work(1, number_bytes=4)) == 2 * plain
    assert activation_bytes("none", work(1, dropout=True)) == pytest.approx(40 / 28 * plain, rel=0.02)
    one_block = 12 * TOKENS[1] * 3072 * 2
    assert activation_bytes("full", work(1, dropout=True)) == activation_bytes("full", work(1)) + one_block


def test_a_network_that_keeps_more_is_told() -> None:
    assert activation_bytes("none", work(1, everything=56)) == pytest.approx(
        2 * activation_bytes("none", work(1)), rel=0.01
    )
    assert activation_bytes("cheap", work(1, everything=56)) > activation_bytes("cheap", work(1))


def test_where_nothing_fits_it_is_the_last() -> None:
    assert roomiest(CHECKPOINTING_LEVELS[:-1], 0, work(1)) == "full"
