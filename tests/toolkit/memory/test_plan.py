"""The arithmetic of memory plans: the worst moment of a step, the largest phase, the cards it fits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from toolkit.memory.plan import GB, MemoryPlan, Passes, Phase, Saving, backward_peak, remedy

PASSES = Passes(kind="lora", level="full", number_bytes=2, width=100, blocks=10, largest_layer=0, expanded=0, casts=0)


def plan(device: float, host: float = 1.0, on_device: bool = True) -> MemoryPlan:
    """Two phases, of which the second is larger."""
    parts = [Phase("encoding", {"text encoder": GB}, {"program": GB // 2})]
    parts += [Phase("training", {"context": GB // 2, "weights": int((device - 0.5) * GB)}, {"program": int(host * GB)})]
    return MemoryPlan(tuple(parts), on_device)


@pytest.mark.parametrize(("level", "units"), [("none", 27), ("keep_attention", 2), ("full", 1), ("full_offload", 0)])
def test_blocks_keep_what_the_level_says(level: str, units: int) -> None:
    assert replace(PASSES, level=level).kept(tokens=7) == units * 10 * 7 * 100 * 2


def test_offloaded_activations_are_on_the_host() -> None:
    assert PASSES.kept_on_host(7) == 0
    assert replace(PASSES, level="full_offload").kept_on_host(7) == PASSES.kept(7)


def test_the_less_is_kept_the_more_is_computed_again() -> None:
    """What a block keeps, and what it takes again, are together the same at each level."""
    together = {
        level: (passes := replace(PASSES, level=level)).kept(7) // 10 + passes.of_one_block(7)
        for level in ("none", "cheap", "keep_attention", "full", "full_offload")
    }
    assert len(set(together.values())) == 1


def test_a_dequantized_layer_is_in_memory_once_at_a_time() -> None:
    expanded = replace(PASSES, largest_layer=1000, expanded=2)
    assert expanded.forward(7) - PASSES.forward(7) == 2000
    assert expanded.of_one_block(7) - PASSES.of_one_block(7) == 2000


def test_gradients_come_as_activations_go() -> None:
    kept, block = PASSES.kept(7), PASSES.of_one_block(7)
    assert backward_peak(PASSES, 7, 0, waiting=False, slack=1) == (kept + block, 0)
    # Large ones decide at the last block, when all but its own are there, and alone when they dwarf everything.
    large = 2 * kept
    assert backward_peak(PASSES, 7, large, waiting=False, slack=1) == (block + kept // 10, int(0.9 * large))
    assert backward_peak(PASSES, 7, 1000 * block, waiting=False, slack=1) == (0, 1000 * block)


def test_gradients_of_an_earlier_micro_batch_wait() -> None:
    kept, block = PASSES.kept(7), PASSES.of_one_block(7)
    assert backward_peak(PASSES, 7, 5000, waiting=True, slack=1) == (kept + block, 5000)


def test_the_largest_phase_decides_and_the_smallest_card_is_named() -> None:
    assert [plan(size).card() for size in (2, 12, 12.1, 47.9, 80.1)] == [12, 12, 16, 48, None]
    words = plan(21.9).render()
    assert words == (
        "memory: 21.9 GB on the device at the peak (training: weights 21.4, context 0.50): fits a 24 GB card; "
        "1.0 GB of main memory (training)"
    )
    assert "fits none of 12, 16, 24, 48, 80 GB cards" in plan(81).render()


def test_on_the_cpu_there_is_no_card() -> None:
    on_host = MemoryPlan((Phase("training", {}, {"program": GB // 2, "weights": GB}),), on_device=False)
    assert on_host.render() == "memory: 1.5 GB at the peak (training: weights 1.0, program 0.50)"
    assert on_host.card() is None
    assert on_host.to_json().keys() == {"host_bytes", "host_phase", "phases"}


def test_what_tensors_take_is_without_the_context() -> None:
    assert plan(21.9).allocated("training") == int(21.4 * GB)
    assert plan(21.9).allocated("encoding", "training") == int(21.4 * GB)
    assert plan(21.9).allocated("encoding") == GB


def test_the_json_has_all_phases_in_bytes() -> None:
    found = plan(15.5).to_json()
    assert (found["device_bytes"], found["device_phase"], found["fits_cards_gb"]) == (
        15.5 * GB,
        "training",
        [16, 24, 48, 80],
    )
    assert found["phases"]["encoding"] == {"device": {"text encoder": GB}, "host": {"program": GB // 2}}


def test_the_remedy_says_what_each_change_saves_and_what_is_left() -> None:
    savings = [Saving("model.qtype: int4", 6 * GB), Saving("train.batch_size: 1", GB)]
    assert remedy(plan(20), 16 * GB, savings) == (
        "model.qtype: int4 saves 6.0 GB, train.batch_size: 1 saves 1.0 GB; then 13.0 GB"
    )
    assert remedy(plan(30), 16 * GB, savings).startswith("no setting saves enough: with model.qtype: int4")
    assert remedy(plan(30), 16 * GB, []) == "no setting saves enough"
