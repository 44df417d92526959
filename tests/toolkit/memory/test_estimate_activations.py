"""The estimate of activations: levels against each other, kinds, moments of a step, and
what `auto` makes of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from toolkit.config.reading.field_types import AUTO_LEVELS, CHECKPOINTING_LEVELS
from toolkit.contracts.network_kinds import KINDS
from toolkit.memory.estimate import (
    BESIDE_A_CHANGE,
    COMPILED_AGAIN,
    GAPS_AT_MOST,
    GAPS_OF_ALL,
    GAPS_SHARE,
    SAVED_TWICE,
    StepShape,
    activation_bytes,
    fastest_level_that_fits,
    gaps_on_gpu,
    step_peak,
    step_seconds,
)

TOKENS = {0: 4096 + 80, 1: 2 * 4096 + 280, 2: 3 * 4096 + 490, 3: 4 * 4096 + 700}
"""References -> tokens of images and text, at 1024 x 1024."""

GB = 10**9
H200, CARD_24, CARD_16 = 139 * 2**30, 24 * 2**30, 16 * 2**30
BF16, INT8, INT8_WITH_TABLE = 41 * GB, 20.5 * GB, 14.6 * GB
BESIDES = 2.2 * GB
"""A LoRA with Adam's state, and the CUDA context."""

SMALL = StepShape(tokens=7, width=100, blocks=10, number_bytes=2)
UNIT = 7 * 100 * 2


def published(references: int, **changes) -> StepShape:
    """A step of the published model."""
    sizes = {
        "tokens": TOKENS[references],
        "width": 3072,
        "blocks": 60,
        "number_bytes": 2,
        "largest_layer": 4 * 3072**2,
    }
    return StepShape(**sizes | changes)


@pytest.mark.parametrize(
    ("level", "units"),
    [
        ("none", 22.1),
        ("cheap", 11.1),
        ("keep_attention", 2.02),
        ("offload_attention", 1),
        ("full", 1),
        ("full_offload", 0),
    ],
)
def test_blocks_keep_what_the_level_says(level: str, units: float) -> None:
    assert SMALL.kept(level) == pytest.approx(10 * units * UNIT, rel=1e-3)


def test_offloaded_activations_are_on_the_host() -> None:
    # the first and the last stay
    assert SMALL.kept_on_host("full_offload") == 8 / 10 * SMALL.kept("full")
    assert replace(SMALL, blocks=1).kept_on_host("full_offload") == 0
    assert SMALL.kept_on_host("full") == 0
    # the last keeps all
    results = 9 * 1.02 * UNIT
    assert SMALL.kept_on_host("offload_attention") == pytest.approx(results, abs=1)


def test_what_a_block_saves_may_be_on_the_host_too() -> None:
    inputs, saved = 9 * UNIT, SAVED_TWICE * 22.1 * UNIT
    assert SMALL.kept_on_host("block_offload") == pytest.approx(
        inputs + saved, rel=1e-3
    )
    assert SMALL.kept("block_offload") == 0
    assert SMALL.block_backward_bytes("block_offload") == pytest.approx(
        17.3 * UNIT, abs=2
    )
    quantized = replace(SMALL, largest_layer=1000, dequantized_bytes=3)
    assert quantized.block_backward_bytes("block_offload") == pytest.approx(
        17.3 * UNIT + 2 * 1000, abs=2
    )
    dropping = replace(SMALL, dropout=True)
    assert dropping.block_backward_bytes("block_offload") == pytest.approx(
        21.3 * UNIT, abs=2
    )
    assert dropping.kept_on_host("block_offload") == pytest.approx(
        inputs + SAVED_TWICE * 34.1 * UNIT, rel=1e-3
    )
    # The change of a layer of a LoHa, 19 bytes for each weight, beside what is then
    # left of the peak.
    loha = replace(SMALL, kind="loha", largest_layer=10**4)
    more = 19 * 10**4 - BESIDE_A_CHANGE * UNIT
    assert loha.block_backward_bytes("block_offload") == pytest.approx(
        17.5 * UNIT + more, abs=2
    )


def test_the_less_is_kept_the_more_is_computed_again() -> None:
    """What a block keeps, and what it takes in the backward pass, are together the
    same: the last one keeps everything.
    """
    together = {
        level: SMALL.kept(level) / 10 + SMALL.block_backward_bytes(level)
        for level in CHECKPOINTING_LEVELS
    }
    once = together["none"]
    assert [together[level] for level in ("cheap", "keep_attention")] == pytest.approx(
        [once] * 2, abs=3
    )
    # the gradient of what the block gave
    assert together["full"] == pytest.approx(once + UNIT, abs=3)
    # and results of attention of two blocks, on their way
    extra = 1 + 2 * 1.02
    assert together["offload_attention"] == pytest.approx(once + extra * UNIT, abs=3)
    # That, the first block's input, and the next one's on its way back.
    assert together["full_offload"] == pytest.approx(once + 3 * UNIT, abs=3)


def test_each_level_takes_less_than_the_one_before_it() -> None:
    for kind in KINDS:
        for references in TOKENS:
            levels = [
                *CHECKPOINTING_LEVELS[:-1],
                *(["block_offload"] if KINDS[kind].units.offloaded else []),
            ]
            sizes = [
                activation_bytes(level, published(references, kind=kind))
                for level in levels
            ]
            assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(
                sizes
            )


def test_a_dequantized_layer_is_in_memory_once_at_a_time() -> None:
    """It counts where it is more than the gradients it stands in place of."""
    large, small = (
        replace(SMALL, largest_layer=weights, dequantized_bytes=2)
        for weights in (10**6, 10)
    )
    assert large.block_backward_bytes("full") - SMALL.block_backward_bytes(
        "full"
    ) == pytest.approx(2 * 10**6 - 4.4 * UNIT, abs=2)
    assert large.forward() - SMALL.forward() == pytest.approx(
        2 * 10**6 - 3 * UNIT, abs=2
    )
    assert (
        small.block_backward_bytes("full") == SMALL.block_backward_bytes("full")
        and small.forward() == SMALL.forward()
    )


def test_the_change_of_a_modulation_layer_may_be_the_peak() -> None:
    """It is made once the block's activations are gone: 56 bytes per weight of a BOFT,
    in half precision."""
    boft = replace(SMALL, kind="boft")
    large = replace(boft, largest_change=10**4)
    alone = 56 * 10**4 - 22.1 * UNIT
    assert alone > boft.block_backward_bytes("none")
    assert large.block_backward_bytes("none") == pytest.approx(alone, abs=2)
    # and the gradient beside it
    assert large.block_backward_bytes("full") == pytest.approx(56 * 10**4, abs=2)
    assert large.forward() == 12 * 10**4
    assert replace(SMALL, largest_change=10**4).block_backward_bytes(
        "none"
    ) == SMALL.block_backward_bytes("none")


def test_the_weight_that_a_change_is_made_of_is_dequantized_once() -> None:
    of_kind = {
        kind: replace(SMALL, kind=kind, largest_layer=10**6)
        for kind in ("boft", "loha")
    }
    for dequantized, more in ((2, 0), (60, 4)):  # 56 bytes per weight of a BOFT
        more_of = {
            kind: replace(one, dequantized_bytes=dequantized).block_backward_bytes(
                "full"
            )
            - one.block_backward_bytes("full")
            for kind, one in of_kind.items()
        }
        assert more_of == {"boft": more * 10**6, "loha": dequantized * 10**6}


def test_gradients_come_as_activations_go() -> None:
    kept, block = SMALL.kept("full"), SMALL.block_backward_bytes("full")
    assert step_peak(SMALL, "full") == (kept + block, 0)
    # Large ones decide at the last block, when all but its own are there, and alone
    # when they dwarf everything.
    large = 2 * kept
    assert step_peak(
        replace(SMALL, gradients=large), "full", gaps=lambda activations: 0
    ) == (
        block + kept // 10,
        int(0.9 * large),
    )
    assert step_peak(replace(SMALL, gradients=1000 * block), "full") == (
        0,
        1000 * block,
    )


def test_gradients_of_an_earlier_micro_batch_wait() -> None:
    waiting = replace(SMALL, gradients=5000, gradients_wait=True)
    assert step_peak(waiting, "full") == (
        SMALL.kept("full") + SMALL.block_backward_bytes("full"),
        5000,
    )


def test_what_has_to_be_free_is_activations_with_gaps_and_gradients() -> None:
    waiting = replace(SMALL, gradients=5000, gradients_wait=True)
    needed = sum(step_peak(SMALL, "full"))
    assert activation_bytes("full", waiting) == needed + int(GAPS_SHARE * needed) + 5000


def test_gaps_of_large_steps_are_no_more_but_where_all_is_kept() -> None:
    assert gaps_on_gpu(GB) == GAPS_SHARE * GB
    assert gaps_on_gpu(40 * GB) == gaps_on_gpu(80 * GB, "cheap") == GAPS_AT_MOST
    assert gaps_on_gpu(30 * GB, "none") == GAPS_OF_ALL * 30 * GB
    assert gaps_on_gpu(GB, "none") == gaps_on_gpu(GB)


def test_compiled_blocks_keep_less_where_all_is_kept() -> None:
    eager, compiled = SMALL, replace(SMALL, compiled=True)
    assert compiled.kept("none") == pytest.approx(10 * 19.2 * UNIT, rel=1e-3)
    for level in ("cheap", "keep_attention", "full", "full_offload"):
        assert compiled.kept(level) == eager.kept(level)
        more = step_peak(compiled, level)[0] - step_peak(eager, level)[0]
        # of the one block that is computed again
        assert more == pytest.approx(COMPILED_AGAIN * UNIT, abs=1)
    # What a block takes in its backward pass is the same beside it.
    assert compiled.block_backward_bytes("none") == eager.block_backward_bytes("none")


def test_dropout_float32_and_casts_take_more() -> None:
    plain = published(1)
    assert published(1, dropout=True).kept("none") == pytest.approx(
        34.1 / 22.1 * plain.kept("none"), rel=1e-6
    )
    assert published(1, dropout=True).kept("full") == plain.kept("full")
    assert published(1, number_bytes=4).kept("none") == pytest.approx(
        2 * 22.1 / 22.1 * plain.kept("none"), rel=1e-6
    )
    assert published(1, casts=1000).kept("none") == plain.kept("none") + 60_000
    assert published(1, kind="loha", casts=1000).kept("none") == published(
        1, kind="loha"
    ).kept("none")


@pytest.mark.parametrize(
    ("card", "weights", "references", "level"),
    [
        (H200, BF16, 0, "none"),
        (H200, BF16, 1, "none"),
        (H200, BF16, 2, "cheap"),
        (H200, INT8, 1, "none"),
        (H200, INT8, 2, "none"),
        (H200, INT8, 3, "cheap"),
        (80 * 2**30, BF16, 1, "cheap"),
        (80 * 2**30, BF16, 3, "keep_attention"),
        (48 * 2**30, BF16, 1, "keep_attention"),
        (44 * 2**30, BF16, 1, "full_offload"),
        (CARD_24, INT8_WITH_TABLE, 1, "keep_attention"),
        (CARD_24, INT8_WITH_TABLE, 3, "full_offload"),
        (CARD_16, INT8_WITH_TABLE, 1, "full_offload"),
    ],
)
def test_the_fastest_level_that_fits(
    card: int, weights: float, references: int, level: str
) -> None:
    assert (
        fastest_level_that_fits(
            AUTO_LEVELS, int(card - weights - BESIDES), published(references)
        )
        == level
    )


H100, RTX_4090 = 132 * 0.4 * 4096 * 1.7e9, 128 * 0.4 * 512 * 1.7e9


@pytest.mark.parametrize(
    ("tokens", "flops", "most", "level"),
    [
        (
            2328,
            H100,
            "cheap",
            "full",
        ),  # 512 x 512 with a reference: the host is busy for 0.42 s, the GPU for 0.25 s
        (2328, H100, "none", "none"),
        (8472, H100, "cheap", "cheap"),  # 1024 x 1024
        (2328, RTX_4090, "cheap", "cheap"),
        (8472, H100, "keep_attention", "keep_attention"),
        (500, H100, "keep_attention", "full"),
        (500, H100, "full_offload", "full_offload"),
    ],
)
def test_launching_kernels_may_take_longer_than_computing_again(
    tokens: int, flops: float, most: str, level: str
) -> None:
    """most: the first level that fits."""
    work = replace(published(1), tokens=tokens)
    free = activation_bytes(most, work)
    assert fastest_level_that_fits(AUTO_LEVELS, free, work, flops) == level
    assert fastest_level_that_fits(AUTO_LEVELS, free, work) == most


def test_seconds_are_those_of_the_gpu_or_of_the_host() -> None:
    """60 blocks: 24 x 3072^2 operations for a token, three times with `full`; 353
    kernels of 8 us."""
    work = replace(published(1), tokens=10_000)
    assert step_seconds("full", work, 1e14) == pytest.approx(
        60 * 3 * 24 * 3072**2 * 10_000 / 1e14
    )
    assert step_seconds("full", work, 1e18) == pytest.approx(60 * 353 * 8e-6)
    assert step_seconds("none", work, 1e14) == pytest.approx(
        2 / 3 * step_seconds("full", work, 1e14)
    )


def test_where_nothing_fits_it_is_the_last() -> None:
    assert fastest_level_that_fits(AUTO_LEVELS[:-1], 0, published(1)) == "full"
