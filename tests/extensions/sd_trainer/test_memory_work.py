"""What a section's settings make of a step: types, gradients, the share of one of several processes."""

from __future__ import annotations

from typing import Any

import pytest

from extensions.sd_trainer.counted import count_trained
from extensions.sd_trainer.memory_work import images_at_once, micro_batches, work_of
from tests.extensions.sd_trainer.test_memory_plan import section
from tests.extensions.sd_trainer.test_parallel_config import several
from toolkit.memory.activations import Work
from toolkit.models.qwen_edit.footprint import footprint

LORA = 147_456_000


def work(on_card: bool = True, **parts: Any) -> Work:
    job = section(**parts)
    return work_of(job, footprint(job.model.folder()), count_trained(job), 100, on_card)


def test_a_lora_is_float32_and_computed_in_the_type_of_the_rest() -> None:
    found = work()
    assert (found.tokens, found.width, found.blocks, found.kind, found.number_bytes) == (100, 3072, 60, "lora", 2)
    assert found.largest_layer == 4 * 3072**2  # 6 x 3072^2 see the noise level alone
    assert (found.gradients, found.gradients_wait, found.casts) == (4 * LORA, False, 2 * LORA // 60)
    assert work(train={"dtype": "fp32"}).casts == 0


@pytest.mark.parametrize(
    ("qtype", "dtype", "copies"),
    [("int8", "bf16", 2), ("int8", "fp16", 4), ("int4", "bf16", 3), ("float8", "fp32", 4), ("fp8_scaled", "bf16", 6)],
)
def test_a_quantized_layer_has_copies_while_it_is_used(qtype: str, dtype: str, copies: int) -> None:
    quantized = {"quantize": True, "qtype": qtype, "int8_matmul": False}
    assert work(model=quantized, train={"dtype": dtype}).expanded == copies
    assert work(train={"dtype": dtype}).expanded == 0


def test_int8_products_need_no_copy_of_the_weight() -> None:
    int8 = {"quantize": True, "qtype": "int8"}
    assert [work(on_card, model=int8).int8_products for on_card in (True, False)] == [False, True]
    assert work(model=int8 | {"int8_matmul": True}).int8_products
    assert work(False, model=int8).expanded == 0
    assert not work(False, model=int8 | {"qtype": "int4"}).int8_products


def test_gradients_wait_where_there_are_several_micro_batches() -> None:
    assert work(train={"gradient_accumulation": 2}).gradients_wait
    fused = {"fused_backward_pass": True, "max_grad_norm": 0, "full_bf16": True}
    whole = {"network": {"type": "full"}}
    assert work(train=fused, **whole).gradients == 2 * 6 * 3072**2  # of the largest layer
    assert work(train=fused | {"gradient_accumulation": 2}, **whole).gradients > 40 * 10**9


@pytest.mark.parametrize(
    ("processes", "batch", "accumulation", "images", "batches"),
    [(1, 4, 1, 4, 1), (2, 4, 1, 2, 1), (2, 1, 4, 1, 2), (4, 2, 2, 1, 1), (2, 3, 1, 2, 1), (4, 1, 1, 1, 1)],
)
def test_processes_share_the_images_of_a_step(
    monkeypatch: pytest.MonkeyPatch, processes: int, batch: int, accumulation: int, images: int, batches: int
) -> None:
    train = section(train={"batch_size": batch, "gradient_accumulation": accumulation}).train
    with several(monkeypatch, processes):
        assert (images_at_once(train), micro_batches(train)) == (images, batches)
