"""What decides the memory of a job: the step of one process, and its largest batch and
image."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.processes import several
from tests.toolkit.plan.test_memory_plan import item, section
from toolkit.contracts.data import BucketedSample
from toolkit.contracts.network_kinds import KINDS
from toolkit.memory.estimate import StepShape
from toolkit.models.qwen_image.family import FAMILY
from toolkit.models.qwen_image.layered import FAMILY as LAYERED
from toolkit.plan.memory_inputs import (
    BatchSizes,
    LargestBatch,
    count_trainable_params,
    group_items,
    share_of_rank,
    step_shape,
)

LORA = 147_456_000


def work(**parts: Any) -> StepShape:
    job = section(**parts)
    return step_shape(
        job, FAMILY.footprint(job.model.folder()), count_trainable_params(job), 100
    )


def test_a_lora_is_float32_and_computed_in_the_type_of_the_rest() -> None:
    found = work()
    assert (
        found.tokens,
        found.width,
        found.blocks,
        found.kind,
        found.number_bytes,
    ) == (100, 3072, 60, "lora", 2)
    assert found.largest_layer == 4 * 3072**2  # 6 x 3072^2 see the noise level alone
    assert (found.gradients, found.gradients_wait, found.casts) == (
        4 * LORA,
        False,
        2 * LORA // 60,
    )
    assert work(train={"dtype": "fp32"}).casts == 0


def test_frozen_matrices_of_a_kind_are_in_files_and_checkpoints_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A block's layers have 20 x 3072 inputs and 30 x 3072 outputs; rank 16."""
    kind = replace(KINDS["lora"], frozen_names=frozenset({"lora_A.weight"}))
    monkeypatch.setitem(KINDS, "lora", kind)
    job = section()
    counted = count_trainable_params(job)
    assert counted.frozen == 60 * 16 * 20 * 3072
    assert (counted.weights, counted.written) == (LORA - counted.frozen, LORA)
    state = counted.state_bytes(job.train) - counted.optimizer_bytes(job.train)
    assert state == 4 * LORA


@pytest.mark.parametrize(
    ("qtype", "dtype", "copies"),
    [
        ("int8", "bf16", 2),
        ("int8", "fp16", 4),
        ("int4", "bf16", 3),
        ("uint3", "bf16", 3),
        ("float8", "fp32", 4),
        ("fp8_scaled", "bf16", 6),
    ],
)
def test_a_quantized_layer_has_copies_while_it_is_used(
    qtype: str, dtype: str, copies: int
) -> None:
    quantized = {"quantize": True, "qtype": qtype}
    assert work(model=quantized, train={"dtype": dtype}).dequantized_bytes == copies
    assert work(train={"dtype": dtype}).dequantized_bytes == 0


def test_gradients_wait_where_there_are_several_micro_batches() -> None:
    assert work(train={"gradient_accumulation": 2}).gradients_wait
    fused = {"fused_backward_pass": True, "max_grad_norm": 0, "full_bf16": True}
    whole = {"network": {"type": "full"}}
    # of the largest layer
    assert work(train=fused, **whole).gradients == 2 * 6 * 3072**2
    assert (
        work(train=fused | {"gradient_accumulation": 2}, **whole).gradients > 40 * 10**9
    )
    held = {"blank_prompt_preservation": True}  # a pass of its own
    assert (
        work(train=held).gradients_wait
        and not work(train=held | {f"{next(iter(held))}_multiplier": 0}).gradients_wait
    )


@pytest.mark.parametrize(
    ("processes", "batch", "accumulation", "images", "batches"),
    [
        (1, 4, 1, 4, 1),
        (2, 4, 1, 2, 1),
        (2, 1, 4, 1, 2),
        (4, 2, 2, 1, 1),
        (2, 3, 1, 2, 1),
        (4, 1, 1, 1, 1),
    ],
)
def test_processes_share_the_images_of_a_step(
    monkeypatch: pytest.MonkeyPatch,
    processes: int,
    batch: int,
    accumulation: int,
    images: int,
    batches: int,
) -> None:
    train = section(
        train={"batch_size": batch, "gradient_accumulation": accumulation}
    ).train
    with several(monkeypatch, processes):
        assert share_of_rank(train) == (images, batches)


PIXELS = 1024 * 1024


def sizes(
    *items: BucketedSample, held_out: tuple[BucketedSample, ...] = (), **parts
) -> BatchSizes:
    job = section(**parts)
    return BatchSizes(
        job, FAMILY.footprint(job.model.folder()), group_items(items, held_out)
    )


def test_alike_items_are_one_group() -> None:
    """However many images there are, a plan looks at each once."""
    items = [*[item(repeats=3) for _ in range(50)], item(512), item(references=2)]
    groups = group_items(items, held_out=[item()])
    assert [
        (group.bucket, group.references, group.held_out, group.uses) for group in groups
    ] == [
        ((1024, 1024), 1, False, 150),
        ((512, 512), 1, False, 9),
        ((1024, 1024), 2, False, 9),
        ((1024, 1024), 1, True, 9),
    ]


def test_tokens_are_those_of_all_images_and_texts() -> None:
    references = {"references": 2, "reference_pixels": PIXELS // 4}
    largest = LargestBatch(
        images=2, pixels=PIXELS, **references, text_tokens=100, pixels_per_token=256
    )
    assert largest.tokens == 2 * (4096 + 2 * 1024 + 100)


def sizes_of_layers(
    *items: BucketedSample, held_out: tuple[BucketedSample, ...] = (), **parts: Any
) -> BatchSizes:
    job = section(
        model={"name_or_path": "Qwen/Qwen-Image-Layered"} | parts.pop("model", {}),
        **parts,
    )
    return BatchSizes(
        job, LAYERED.footprint(job.model.folder()), group_items(items, held_out)
    )


def layered(count: int, side: int = 640) -> BucketedSample:
    return item(
        side,
        references=0,
        layers=tuple(f"a_layer{index}.png" for index in range(count)),
    )


def test_a_picture_with_layers_is_one_target_of_all_and_its_own_reference() -> None:
    """1,600 tokens of each image of 640 x 640: the picture as target, its layers, the
    picture as reference."""
    (text,) = {sizes_of_layers(layered(count)).batch(1).text_tokens for count in (1, 4)}
    for count in (1, 4):
        assert (
            sizes_of_layers(layered(count)).batch(1).tokens == (count + 2) * 1600 + text
        )
        alone = sizes_of_layers(
            layered(count), model={"model_kwargs": {"composite_target": False}}
        )
        assert alone.batch(1).tokens == (count + 1) * 1600 + text


def test_a_batch_has_images_of_as_many_layers() -> None:
    groups = group_items([layered(1), layered(1), layered(3)])
    assert [
        (group.layers, group.references, group.uses, group.items) for group in groups
    ] == [
        (1, 1, 18, 2),
        (3, 1, 9, 1),
    ]
    found = sizes_of_layers(layered(1), layered(1), layered(3)).batch(12)
    assert (found.stacked, found.images) == (4, 9), "the other 18 uses never join them"


def test_samples_of_layers_are_planned_with_all_of_them() -> None:
    sample = {
        "samples": [
            {"prompt": "a", "ctrl_img": "a.png"},
            {"prompt": "a", "ctrl_img": "a.png", "layers": 7},
        ]
    }
    sample |= {"width": 640, "height": 640, "layers": 2}
    found = sizes_of_layers(layered(1), sample=sample).samples()
    assert [(one.stacked, one.references, one.pixels) for one in found] == [
        (3, 1, 640 * 640),
        (8, 1, 640 * 640),
    ]
    assert {one.stacked for one in sizes(item(), sample=sample).samples()} == {1}, (
        "another model has no layers"
    )


def test_a_batch_has_no_more_images_than_its_bucket_has_uses_and_none_that_is_held_out() -> (
    None
):
    found = sizes(item(references=0, repeats=2), item(512, references=0, repeats=9))
    assert [found.batch(most).images for most in (1, 2)] == [1, 2]
    # two of the large ones are more than four of the small ones
    assert found.batch(4).images == 2
    assert found.batch(9).images == 9
    assert sizes(item(512), held_out=(item(), item(256))).batch(1).pixels == 512 * 512
    assert sizes(item(repeats=1), held_out=(item(),)).batch(4).images == 1


def test_references_follow_their_target_where_they_should() -> None:
    follows, small = (
        {"model_kwargs": given}
        for given in ({"match_target_res": True}, {"control_resolution": 256})
    )
    assert sizes(item(512)).batch(1).reference_pixels == PIXELS
    assert sizes(item(512), model=small).batch(1).reference_pixels == 256 * 256
    assert sizes(item(512), model=follows).batch(1).reference_pixels == 512 * 512


@pytest.mark.parametrize(("disabled", "count"), [(False, 2), (True, 0)])
def test_samples_are_generated_one_at_a_time(disabled: bool, count: int) -> None:
    sample = {
        "samples": [{"prompt": "a"}, {"prompt": "b" * 300, "width": 512}],
        "width": 1024,
        "height": 1024,
    }
    found = sizes(item(), sample=sample, train={"disable_sampling": disabled}).samples()
    assert [(one.images, one.pixels) for one in found] == [
        (1, PIXELS),
        (1, PIXELS // 2),
    ][:count]
    # nothing of them is encoded
    assert [one.reference_pixels for one in found] == [0, 0][:count]
    assert not found or found[1].text_tokens - found[0].text_tokens == 99
