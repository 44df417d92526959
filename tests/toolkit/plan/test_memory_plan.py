"""What a section's job is said to take: the published model's figures, what each
setting saves, and what is advised."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from extensions.sd_trainer.config import SdTrainerConfig
from tests.measured import at_most
from tests.processes import several
from toolkit.contracts.data import (
    BucketedSample,
    CaptionRules,
    ResizeCrop,
    Sample,
    Size,
)
from toolkit.errors import RunError
from toolkit.memory.estimate import GB
from toolkit.models import kept as kept_model
from toolkit.plan import job_bytes, memory, memory_plan
from toolkit.plan.memory import (
    GPU_SIZES_GB,
    Machine,
    MemoryEstimate,
    gaps_on_host,
)
from toolkit.plan.memory_inputs import ItemGroup, count_trainable_params, group_items
from toolkit.plan.memory_plan import plan_memory
from toolkit.plan.oom_hints import advice_line, suggestions, why_too_large
from toolkit.system import host_memory

CARD = Machine("cuda")
INT8 = {"quantize": True, "qtype": "int8"}
INT4 = {"quantize": True, "qtype": "int4"}
TABLED = {"modulation_table": True}
FULL = {"type": "full"}
EMA = {"ema_config": {"use_ema": True}}
SHUFFLED = {"rules": CaptionRules(shuffle_tokens=True)}


def section(**parts: Any) -> SdTrainerConfig:
    given = {
        "type": "sd_trainer",
        "datasets": [{"folder_path": "d"}],
        "train": {"gradient_checkpointing": "full"} | parts.pop("train", {}),
        "model": {"name_or_path": "Qwen/Qwen-Image-Edit-2509"} | parts.pop("model", {}),
    }
    return SdTrainerConfig.model_validate(given | parts)


def item(
    side: int = 1024, references: int = 1, repeats: int = 9, **sample: Any
) -> BucketedSample:
    size = Size(side, side)
    controls = ("c.png",) * references
    return BucketedSample(
        Sample("a.png", "a caption", repeats, size, ".", controls, **sample),
        ResizeCrop(size, 0, 0, size),
    )


def plan(
    *items: BucketedSample, machine: Machine = CARD, **parts: Any
) -> MemoryEstimate:
    return plan_memory(section(**parts), group_items(items or (item(),)), machine)


def grouped(
    job: SdTrainerConfig, *items: BucketedSample
) -> tuple[SdTrainerConfig, tuple[ItemGroup, ...]]:
    return job, group_items(items or (item(),))


def test_lora_files_beside_the_network_count_once_each(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file(
            {"x.lora_down.weight": torch.zeros(1000, 1000)},
            tmp_path / f"{name}.safetensors",
        )
    a, b = (str(tmp_path / f"{name}.safetensors") for name in ("a", "b"))
    sample = {
        "samples": [{"prompt": "a"}],
        "lora": {"path": b},
    }
    found = plan(train={"assistant": a}, sample=sample)
    # two files in bfloat16
    assert phase(found, "training").parts["LoRA files beside it"] == 2 * 1_000_000 * 2
    assert "LoRA files beside it" not in phase(plan(), "training").parts


def phase(found: MemoryEstimate, name: str) -> Any:
    return next(phase for phase in found.phases if phase.name == name)


def taken(found: MemoryEstimate, part: str, name: str = "training") -> float:
    """GB on the device."""
    return phase(found, name).parts.get(part, 0) / GB


def kept(found: MemoryEstimate, part: str) -> int:
    """Bytes of main memory."""
    return found.host.get(part, 0)


FUSED = {
    "full_bf16": True,
    "optimizer": "adafactor",
    "fused_backward_pass": True,
    "max_grad_norm": 0,
}
SAMPLES = {"sample": {"samples": [{"prompt": "a"}]}}


def test_more_layers_take_more_memory_and_leaving_the_picture_out_less() -> None:
    """Of Qwen-Image-Layered at 640 x 640, in training and in samples."""

    def peaks(count: int, composite: bool = True) -> list[float]:
        layers = tuple(f"a_layer{index}.png" for index in range(count))
        sample = {
            "samples": [{"prompt": "a", "ctrl_img": "a.png"}],
            "width": 640,
            "height": 640,
            "layers": count,
        }
        model = {
            "name_or_path": "Qwen/Qwen-Image-Layered",
            "model_kwargs": {"composite_target": composite},
        }
        found = plan(item(640, references=0, layers=layers), model=model, sample=sample)
        return [found.allocated(name) / GB for name in ("training", "sampling")]

    taken = [peaks(count) for count in (1, 2, 4, 8)]
    assert taken == sorted(taken) and [row[1] for row in taken] == sorted(
        {row[1] for row in taken}
    )
    assert peaks(4, composite=False) == pytest.approx(peaks(3)), "as many images"
    # Activations grow with the tokens: 3, 6 and 10 images of 1,600 each, beside 40 of
    # the text.
    (one, four, eight) = (peaks(count)[0] for count in (1, 4, 8))
    assert (eight - four) / (four - one) == pytest.approx(4 / 3, rel=0.02)


# ------------------------------------------------------------ the published model


@pytest.mark.parametrize(
    ("part", "gigabytes", "job"),
    [
        # 20.43 B weights, of which the table takes 6.8 B off the device.
        ("weights", 27.3, {}),
        ("weights", 13.7, {"model": INT8}),
        ("weights", 7.3, {"model": INT4}),
        ("weights", 40.9, {"model": {"modulation_table": False}}),
        ("weights", 20.5, {"model": INT8 | {"modulation_table": False}}),
        # Rank 32 on all layers of 60 blocks: 32 (in + out) numbers each, 2 bytes.
        (
            "weights",
            7.3 + 0.59,
            {"model": TABLED | INT4 | {"accuracy_recovery_adapter": "auto"}},
        ),
        # A LoRA of rank 16 on all layers: 147 M weights.
        ("lora weights", 0.59, {}),
        ("optimizer", 1.18, {}),
        ("optimizer", 0.30, {"train": {"optimizer": "adamw8bit"}}),
        ("average", 0.59, {"train": EMA}),
        # The model itself.
        ("weights", 4 * 20.43, {"network": FULL}),
        ("gradients", 4 * 20.43, {"network": FULL}),
        ("optimizer", 8 * 20.43, {"network": FULL}),
        ("weights", 2 * 20.43, {"network": FULL, "train": FUSED}),
        ("gradients", 0, {"network": FULL, "train": FUSED}),
        # Four copies in float32 of the largest weight: six modulations of each block
        # out of the embedded time.
        (
            "optimizer temporaries",
            4 * 4 * 3072 * 6 * 3072 / GB,
            {"network": FULL, "train": FUSED},
        ),
        ("VAE", 0, {}),
        ("VAE", 0.25, SAMPLES),
        ("VAE", 0, SAMPLES | {"model": {"low_vram": True}}),
        # Rows of the table, and two layers of it.
        ("modulation table", 192 * 4.4e-3 + 2 * 0.057, {"model": INT8}),
        ("modulation table", 0, {"network": {"type": "dora"}}),
        ("modulation table", 0, {"network": FULL}),
        ("modulation table", 0, {"network": FULL | {"exclude_patterns": r".*_mod\.1"}}),
        (
            "modulation table",
            1.08,
            {
                "network": {
                    "type": "dora",
                    "exclude_patterns": r".*_mod\.1|time_text_embed.*",
                }
            },
        ),
    ],
)
def test_what_a_part_takes_while_training(
    part: str, gigabytes: float, job: dict
) -> None:
    assert taken(plan(**job), part) == pytest.approx(gigabytes, rel=0.02, abs=0.05)


def test_int8_fits_24_gb_and_int4_16_gb() -> None:
    models = ({}, INT8, INT4 | {"quantize_te": True})
    assert [plan(model=model).card() for model in models] == [48, 24, 16]


def test_the_smallest_card_and_a_device_that_is_large_enough_need_no_advice() -> None:
    keys = {"blocks_to_swap": 59, "low_vram": True, "modulation_table": False}
    levels = {"gradient_checkpointing": "block_offload", "optimizer": "adamw8bit"}
    frugal = {"model": INT4 | keys, "train": levels}
    assert plan(item(256, 0), **frugal).card() == 4
    assert advised(CARD, item(256, 0), **frugal) is None
    assert advised(Machine("cuda", 24 * GB), model=INT8) is None


def test_on_the_cpu_everything_is_in_one_memory() -> None:
    on_card, on_host = plan(model=INT8), plan(model=INT8, machine=Machine("cpu"))
    assert on_host.host == {}
    assert on_host.host_bytes == on_host.peak_bytes > on_card.peak_bytes


@pytest.mark.parametrize(("level", "times"), [("full", 1), ("none", 2)])
@pytest.mark.parametrize(("large", "most"), [(2**20, 0.1 * GB), (2**40, 10 * GB)])
def test_a_cpu_holds_what_a_quantized_block_has_freed_if_its_layers_are_small(
    level: str, times: int, large: int, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """glibc does not return it (docs/memory.md)."""
    monkeypatch.setattr(memory, "LARGE_LAYER", large)
    train = {"gradient_checkpointing": level}
    on_host = plan(model=INT8, machine=Machine("cpu"), train=train)
    freed = phase(on_host, "loading").parts["one block, quantized"]
    parts = phase(on_host, "training").parts
    gaps = gaps_on_host(parts["activations"], level)
    assert parts["gaps"] == pytest.approx(gaps + min(times * freed, most))
    assert phase(on_host, "saving").parts["gaps"] > min(freed, most)


@pytest.mark.parametrize(
    ("level", "activations", "gaps"),
    [
        ("none", 0.2, 0.16),
        ("cheap", 0.1, 0.14),
        ("keep_attention", 0.1, 0.19),
        ("full", 0.1, 0.19),
        ("none", 1.0, 0.6),
        ("full", 1.0, 0.6),
    ],
)
def test_gaps_of_a_cpu_are_larger_where_blocks_are_computed_again(
    level: str, activations: float, gaps: float
) -> None:
    """In GB, as measured (docs/memory.md)."""
    assert gaps_on_host(activations * GB, level) == pytest.approx(gaps * GB)


def test_gradients_leave_gaps_beside_the_copies_of_a_save() -> None:
    small, large = (
        plan(
            item(64, 0),
            network={"linear": rank},
            train={"gradient_checkpointing": "full"},
            machine=Machine("cpu"),
        )
        for rank in (16, 64)
    )
    assert small.step and large.step
    more = large.step.shape.gradients - small.step.shape.gradients
    gaps = [phase(one, "saving").parts["gaps"] for one in (small, large)]
    assert gaps[1] - gaps[0] == pytest.approx(more, rel=0.1)


def test_held_out_images_are_encoded_too() -> None:
    peaks = [
        phase(
            plan_memory(
                section(model=INT8), group_items([item(256, 0)], held_out), CARD
            ),
            "encoding",
        ).total
        for held_out in ([], [item(4096, 0)])
    ]
    assert peaks[1] > 2 * peaks[0]


@pytest.mark.parametrize(
    "name", ["Qwen/Qwen-Image", "Qwen/Qwen-Image-Edit-2509", "Qwen/Qwen-Image-2.1"]
)
@pytest.mark.parametrize(
    "text", [{}, {"quantize_te": True, "qtype_te": "int4"}, {"quantize_te": True}]
)
def test_a_layer_of_the_text_encoder_and_a_prompt_take_at_most_1_gb(
    name: str, text: dict
) -> None:
    """With a long caption and, where the model takes one, a control image of 1024 x
    1024; on the GPU beside CUDA."""
    references = 0 if name == "Qwen/Qwen-Image" else 1
    one = item(references=references)
    long = one._replace(sample=one.sample._replace(caption="word " * 200))
    found = plan(long, model=INT4 | {"name_or_path": name} | text)
    encoding = phase(found, "encoding")
    at_most(
        f"{name}, encoding, GB", (encoding.total - encoding.parts["context"]) / GB, 1.0
    )
    assert found.host_bytes < 9 * GB and "text encoder" not in encoding.parts


def test_what_waits_of_the_captions_counts_up_to_its_limit() -> None:
    def waits(items: int) -> float:
        group = group_items([item()])[0]
        found = plan_memory(
            section(model=INT4 | {"blocks_to_swap": 2}),
            [replace(group, items=items)],
            CARD,
        )
        return sum(found.host.values()) / GB

    assert waits(100_000) - waits(300) < 2.1
    assert waits(100_000) == waits(10_000_000)


def test_the_worked_example_of_the_module_is_the_plan() -> None:
    """The docstring of `memory_plan` explains one GPU in figures."""
    rows = re.findall(
        r"^    ([a-z ]+?) +([0-9.]+)(?: |$)", memory_plan.__doc__ or "", re.MULTILINE
    )
    example = {name: float(gb) for name, gb in rows}
    estimate = plan(
        model=INT8,
        train={"gradient_checkpointing": "auto"},
        machine=Machine("cuda", 24 * GB),
    )
    training = phase(estimate, "training")
    assert {name: round(size / GB, 2) for name, size in training.parts.items()} | {
        "total": round(training.total / GB, 2)
    } == example
    assert (estimate.level, estimate.modulation_table) == ("full", True)


# ------------------------------------------------------------ what decides activations


def test_the_largest_batch_is_the_one_that_counts() -> None:
    """Of a bucket with two uses no batch has more than two images."""
    none = {"gradient_checkpointing": "none"}
    one = taken(plan(item(), train=none), "activations")
    few = item(repeats=2)
    assert taken(
        plan(few, train=none | {"batch_size": 4}), "activations"
    ) == pytest.approx(2 * one, rel=0.02)
    assert taken(plan(item(512), item(), train=none), "activations") == one


def test_each_level_keeps_less_than_the_one_before_and_auto_is_the_fastest_that_fits() -> (
    None
):
    levels = ("none", "cheap", "keep_attention", "full", "full_offload")
    model = TABLED | INT8
    plans = [
        plan(model=model, train={"gradient_checkpointing": level}) for level in levels
    ]
    peaks = [found.peak_bytes for found in plans]
    assert peaks == sorted(peaks, reverse=True) and len(set(peaks)) == 5
    # asked for only: `auto` is faster
    less = plan(model=model, train={"gradient_checkpointing": "block_offload"})
    assert less.peak_bytes < peaks[-1]
    offloaded = plan(
        item(2048), model=model, train={"gradient_checkpointing": "full_offload"}
    )
    assert kept(offloaded, "activations, offloaded") / GB == pytest.approx(
        58 * 20_701 * 3072 * 2 / GB, rel=0.01
    )
    auto = {"gradient_checkpointing": "auto"}
    for peak in peaks:
        assert (
            plan(model=model, train=auto, machine=Machine("cuda", peak)).peak_bytes
            == peak
        )
    assert (
        plan(model=model, train=auto, machine=Machine("cuda", peaks[-1] - 1)).peak_bytes
        == peaks[-1]
    )
    # an unknown GPU: as with the smallest that the job fits
    unknown = plan(model=INT8, train=auto)
    smallest = Machine("cuda", (unknown.card() or 0) * GB)
    assert unknown == plan(model=INT8, train=auto, machine=smallest)
    assert unknown.fitting() == [
        size for size in GPU_SIZES_GB if size * GB >= peaks[-1]
    ]


def test_the_first_step_makes_the_optimizers_state_while_the_gradients_are_there() -> (
    None
):
    found = plan(item(256, 0), network=FULL)
    assert taken(found, "optimizer", "first step") == taken(found, "optimizer") > 160
    assert taken(found, "gradients", "first step") > 80
    # the step of a LoRA is far below its backward pass
    assert taken(plan(), "optimizer", "first step") == 0


def test_the_table_is_filled_in_the_course_of_training() -> None:
    found = plan(train={"batch_size": 2})
    rows = [
        taken(found, "modulation table", name) for name in ("first step", "training")
    ]
    buffers = 2 * 3072 * 6 * 3072 * 2 / GB  # two layers in bf16
    assert rows[1] - buffers == pytest.approx(3 * (rows[0] - buffers), rel=1e-2)


def test_while_a_block_is_quantized_its_copies_are_on_the_device_and_the_rest_is_not_yet() -> (
    None
):
    """Of 3072 squared weights a block has 36, of which the table replaces 12, and its
    largest layer 6; 46 M weights are in no block."""
    found = phase(plan(model=INT8), "loading").parts["one block, quantized"]
    in_bf16, at_rest = 2 * (36 + 4 * 6) * 3072**2, 24 * 3072**2 + 2 * 46e6
    assert found / GB == pytest.approx((in_bf16 - at_rest) / GB, abs=0.01)


def test_on_the_cpu_block_offload_alone_is_another_level() -> None:
    """Nothing can leave the one memory, so it is planned as `full`."""
    levels = ("none", "full", "block_offload")
    none, full, offloaded = (
        phase(
            plan(machine=Machine("cpu"), train={"gradient_checkpointing": level}),
            "training",
        ).parts
        for level in levels
    )
    assert offloaded == full
    # the inputs of 60 blocks at least, and less than half of what `none` keeps
    inputs = 60 * 8_417 * 3072 * 2
    assert inputs < full["activations"] < none["activations"] / 2
    on_card = phase(
        plan(train={"gradient_checkpointing": "block_offload"}), "training"
    ).parts
    assert on_card["activations"] < inputs


# ------------------------------------------------------------ several processes


def test_fsdp_leaves_a_share_of_the_blocks_and_two_whole_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone = taken(
        plan(train={"parallel": "fsdp"}, model={"modulation_table": False}), "weights"
    )
    with several(monkeypatch, 4):
        found = plan(train={"parallel": "fsdp", "gradient_accumulation": 4})
        assert taken(found, "weights") == pytest.approx(alone / 4, abs=0.1)
        assert taken(found, "whole blocks") == pytest.approx(2 * 0.68, abs=0.01)
        assert taken(found, "modulation table") == 0
        assert (
            "figures are per process; each of the 4 processes needs its own main memory"
            in found.notes[0]
        )


@pytest.mark.parametrize(("full_bf16", "together"), [(False, 57), (True, 46)])
def test_fsdp_leaves_a_share_of_what_a_trained_model_needs(
    monkeypatch: pytest.MonkeyPatch, full_bf16: bool, together: int
) -> None:
    """As docs/multi_gpu.md adds up for eight GPUs."""
    train = {
        "gradient_accumulation": 16,
        "full_bf16": full_bf16,
        "ema_config": {"use_ema": True, "ema_decay": 0.9},
    }
    alone = plan(network=FULL, train=train)
    with several(monkeypatch, 8):
        found = plan(network=FULL, train=train | {"parallel": "fsdp"})
        one_file = plan(
            network=FULL,
            train=train | {"parallel": "fsdp"},
            save={"layout": "single_file"},
        )
    left_out = sum(taken(found, part) for part in ("activations", "gaps", "context"))
    assert phase(found, "training").total / GB - left_out == pytest.approx(
        together, abs=0.7
    )
    assert taken(found, "average") == pytest.approx(
        taken(alone, "average") / 8, rel=0.02
    )
    assert kept(found, "copies to be saved") == 0 < kept(one_file, "copies to be saved")


def test_of_what_is_not_trained_fsdp_leaves_a_share_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = {
        "type": "full",
        "network_kwargs": {"only_if_contains": ["transformer_blocks.0."]},
    }
    alone = plan(
        network=few, train={"optimizer": "sgd"}, model={"modulation_table": False}
    )
    with several(monkeypatch, 8):
        found = plan(
            network=few,
            train={"optimizer": "sgd", "parallel": "fsdp", "gradient_accumulation": 8},
        )
    assert taken(found, "weights") == pytest.approx(
        taken(alone, "weights") / 8, abs=0.2
    )


def test_ddp_leaves_everything_in_each_process_but_the_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    none = {"gradient_checkpointing": "none", "batch_size": 2}
    alone = plan(train=none)
    with several(monkeypatch, 2):
        found = plan(train=none)
        gradients = plan(item(64, 0), network=FULL, train={"optimizer": "sgd"})
    assert taken(found, "weights") == taken(alone, "weights")
    assert taken(found, "activations") == pytest.approx(
        taken(alone, "activations") / 2, rel=0.01
    )
    # SGD allocates no temporaries: these are a bucket of gradients that is exchanged.
    assert taken(gradients, "optimizer temporaries") == pytest.approx(
        (64 * 2**20 + 4 * 6 * 3072**2) / GB, abs=1e-3
    )


# ------------------------------------------------------------ where things are


def test_swapped_blocks_and_weights_of_the_table_are_in_the_main_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # as with PyTorch 2.13
    monkeypatch.setattr(host_memory, "pins_exactly", lambda: True)
    not_kept = INT8 | {"keep_quantized": False}
    plain, swapped = plan(model=not_kept), plan(model=not_kept | {"blocks_to_swap": 32})
    moved = taken(plain, "weights") - taken(swapped, "weights")
    # 30 of 60 blocks: two are on the device at a time
    assert moved == pytest.approx(13.6 / 2, abs=0.1)
    # 217 MiB each, rounded as pinned
    assert kept(swapped, "swapped blocks") == 32 * 256 * 2**20
    whole = plan(model=not_kept | {"blocks_to_swap": 55, "modulation_table": False})
    # exact
    assert kept(whole, "swapped blocks") / GB == pytest.approx(20.4 * 55 / 60, abs=0.1)
    # 54 MiB each, rounded as pinned
    assert kept(swapped, "weights of the table") == 120 * 64 * 2**20


def test_weights_that_wait_in_the_kept_model_take_a_window_of_main_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(host_memory, "pins_exactly", lambda: True)
    # not known: a busy machine may have no room for what waits
    monkeypatch.setattr(memory_plan, "free_host_memory", lambda: 0)
    swapped = plan(model=INT8 | {"blocks_to_swap": 32})
    assert (
        kept(swapped, "swapped blocks") == 2 * 256 * 2**20
        and kept(swapped, "weights of the table") == 2 * 64 * 2**20
    )
    (note,) = swapped.notes
    assert note.startswith(
        "14.0 GB of waiting weights are read from the kept model (model.keep_quantized)"
    )
    assert plan(model={"blocks_to_swap": 32}).notes == ()  # not quantized, so not kept
    on_cpu = plan(model=INT4 | {"blocks_to_swap": 32}, machine=Machine("cpu"))
    copied = plan(
        model=INT4 | {"blocks_to_swap": 32, "keep_quantized": False},
        machine=Machine("cpu"),
    )
    assert (copied.peak_bytes - on_cpu.peak_bytes) / GB == pytest.approx(
        10.9 * 32 / 60, abs=0.1
    )


def test_as_many_mapped_blocks_are_pinned_as_main_memory_has_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beside all that the job takes and 2 GB. The disk is read where not all have
    room."""
    monkeypatch.setattr(host_memory, "pins_exactly", lambda: True)
    asked = INT4 | {"blocks_to_swap": 56, "modulation_table": False}

    def with_free(free: int, **model) -> MemoryEstimate:
        monkeypatch.setattr(memory_plan, "free_host_memory", lambda: free)
        return plan(model=asked | model)

    unknown = with_free(0)
    assert (unknown.pinned_blocks, unknown.from_disk) == (0, False)
    block = unknown.mapped // 56
    needed = unknown.host_bytes + 2 * GB
    for room, pinned in (
        (-needed + 1, 0),
        (block - 1, 0),
        (2 * block, 2),
        (56 * block - 1, 55),
        (56 * block, 56),
        (1000 * GB, 56),
    ):
        found = with_free(needed + room)
        assert found.pinned_blocks == pinned, room
        assert found.from_disk == (pinned < 56), room
        assert found.host_bytes == unknown.host_bytes
        said = [note for note in found.notes if "are pinned" in note]
        assert len(said) == (pinned > 0)
    assert said == [
        "56 of 56 waiting blocks are pinned, since there is room: another 10.1 GB of main memory"
    ]
    # rounded up to a power of two
    monkeypatch.setattr(host_memory, "pins_exactly", lambda: False)
    rounded = with_free(needed + 56 * block).notes
    assert [note[:8] for note in rounded if "are pinned" in note] == ["47 of 56"]
    assert with_free(1000 * GB, keep_quantized=False).pinned_blocks == 0
    assert plan(model=asked, machine=Machine("cpu")).pinned_blocks == 0


def test_weights_are_not_mapped_where_the_disk_has_no_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = INT4 | {"blocks_to_swap": 56}
    copied = kept(plan(model=asked | {"keep_quantized": False}), "swapped blocks")
    assert kept(plan(model=asked), "swapped blocks") < copied / 20
    monkeypatch.setattr(kept_model, "LEAST_FREE", 10**18)
    assert kept(plan(model=asked), "swapped blocks") == copied


def test_weights_are_mapped_from_a_network_disk_only_if_main_memory_is_too_small(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The plan says which, and a job without weights that wait is told nothing."""
    asked = INT4 | {"blocks_to_swap": 56}
    mapped = plan(model=asked)
    copied = kept(plan(model=asked | {"keep_quantized": False}), "swapped blocks")
    monkeypatch.setattr(job_bytes, "unsure_disk", lambda _: "nfs4")
    for free, is_mapped in ((1000 * GB, False), (0, False), (1 * GB, True)):
        monkeypatch.setattr(memory_plan, "free_host_memory", lambda free=free: free)
        found = plan(model=asked)
        assert bool(found.mapped) == is_mapped, free
        assert kept(found, "swapped blocks") == (
            kept(mapped, "swapped blocks") if is_mapped else copied
        )
        (note,) = [note for note in found.notes if "nfs4" in note]
        assert ("main memory has no room" in note) == is_mapped
    here = plan(model=INT4 | {"modulation_table": False})
    assert not [note for note in here.notes if "nfs4" in note]


@pytest.mark.parametrize(
    ("name", "most"), [("Qwen/Qwen-Image-2.1", 10), ("Qwen/Qwen-Image-Edit-2509", 15)]
)
def test_the_smallest_jobs_need_little_main_memory(name: str, most: float) -> None:
    """With 4 bits and all blocks but four that wait."""
    blocks = {"Qwen/Qwen-Image-2.1": 30, "Qwen/Qwen-Image-Edit-2509": 56}[name]
    found = plan(
        model=INT4 | {"name_or_path": name, "low_vram": True, "blocks_to_swap": blocks},
        train=EMA,
        **SAMPLES,
    )
    assert found.host_bytes <= most * GB


def test_a_save_copies_everything_to_the_main_memory() -> None:
    """Float32 weights, average and moments of 147 M weights, and the file in
    float16."""
    assert kept(plan(train=EMA), "copies to be saved") == (4 + 4 + 8 + 2) * 147_456_000


@pytest.mark.parametrize(("every", "early"), [(0, False), (10, True)])
def test_on_a_cpu_the_last_save_copies_it_beside_all_that_stays(
    every: int, early: bool
) -> None:
    """A rank so large that the copies outgrow the activations of a small image."""
    found = plan(
        item(64, references=0),
        machine=Machine("cpu"),
        train=EMA | {"steps": 20},
        network={"type": "lora", "linear": 512},
        save={"save_every": every},
    )
    copies = phase(found, "saving").parts["copies to be saved"]
    of_training = phase(found, "training").parts.get("copies to be saved", 0)
    assert copies > 10 * GB and of_training == (copies if early else 0)
    assert early or found.peak.name == "saving"


def test_shuffled_captions_keep_the_whole_text_encoder_on_the_device_or_beside_it() -> (
    None
):
    there, here = (
        plan(item(**SHUFFLED), model=INT8),
        plan(item(**SHUFFLED), model=INT8 | {"low_vram": True}),
    )
    assert taken(there, "text encoder") == pytest.approx(15.5, abs=0.1)
    # it is first read into main memory
    assert there.host_bytes / GB - 2.5 == pytest.approx(16.6, abs=0.2)
    assert taken(here, "text encoder") == 0 and kept(
        here, "text encoder"
    ) / GB == pytest.approx(15.5, abs=0.1)
    assert taken(plan(), "text encoder") == 0 and plan().notes == ()
    assert plan(item(**SHUFFLED), model=INT8 | {"keep_quantized": False}).notes == (
        "the whole text encoder (15.5 GB) stays in memory, because shuffled captions and captions of a stream are "
        "encoded at each use",
    )


def test_sampling_larger_than_training_decides() -> None:
    large = {"sample": SAMPLES["sample"] | {"width": 4096, "height": 4096}}
    assert plan(item(256, 0), model=INT8, **large).peak.name == "sampling"
    off = plan(item(256, 0), train={"disable_sampling": True}, **large)
    assert "sampling" not in [phase.name for phase in off.phases]


@pytest.mark.parametrize(
    ("compile", "model", "machine", "compiled"),
    [
        ({}, {}, CARD, True),
        ({"enabled": False}, {}, CARD, False),
        ({"backend": "aot_eager"}, {}, CARD, False),  # divides a program otherwise
        (
            {},
            {"quantize": True, "qtype": "float8"},
            Machine("cuda", capability=8),
            False,
        ),
        (
            {},
            {"quantize": True, "qtype": "float8"},
            Machine("cuda", capability=9),
            True,
        ),
        ({}, {}, Machine("cpu"), False),
        ({"enabled": True}, {}, Machine("cpu"), True),
    ],
)
def test_what_is_kept_is_that_of_compiled_blocks_where_they_are(
    compile: dict, model: dict, machine: Machine, compiled: bool
) -> None:
    def activations(**train: Any) -> float:
        train |= {"gradient_checkpointing": "none"}
        return phase(plan(train=train, model=model, machine=machine), "training").parts[
            "activations"
        ]

    eager = activations(compile={"enabled": False})
    assert (activations(compile=compile) != eager) is compiled


def test_sharded_blocks_are_planned_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    with several(monkeypatch, 2):
        train = {
            "parallel": "fsdp",
            "gradient_checkpointing": "none",
            "gradient_accumulation": 2,
        }
        peaks = {
            plan(train=train | {"compile": {"enabled": asked}}).peak_bytes
            for asked in ("auto", False)
        }
    assert len(peaks) == 1


def test_the_state_on_disk_is_weights_average_and_what_the_optimizer_keeps() -> None:
    adafactor = section(train={"optimizer": "adafactor"} | EMA)
    counted = count_trainable_params(adafactor)
    rows_and_columns = sum(4 * sum(shape) for shape in counted.shapes)
    assert counted.state_bytes(adafactor.train) == 8 * 147_456_000 + rows_and_columns


def test_a_model_folder_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "transformer").mkdir()

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(
        RunError, match=rf"{tmp_path}/transformer: cannot be read: Input/output error"
    ):
        plan(machine=Machine("cpu"), model={"name_or_path": str(tmp_path)})


@pytest.mark.parametrize(
    ("gb", "table", "level"),
    [
        (130, "auto", "auto"),
        (80, "auto", "full"),
        (45, "auto", "full"),
        (80, False, "full"),
        (80, True, "full"),
    ],
)
def test_the_table_is_used_where_the_job_does_not_fit_without_it(
    gb: int, table: bool | str, level: str
) -> None:
    """41 GB of weights with `full` checkpointing, 27 GB with the table; without it a
    tenth of the GPU stays free."""
    found = plan(
        machine=Machine("cuda", gb * GB),
        model={"modulation_table": table},
        train={"gradient_checkpointing": level},
    )
    assert found.modulation_table is (gb == 45 if table == "auto" else table)


# ------------------------------------------------------------ what is advised


def advised(machine: Machine, *items: BucketedSample, **parts: Any) -> str | None:
    job, groups = grouped(section(**parts), *items)
    found = plan_memory(job, groups, CARD if machine.kind == "cuda" else machine)
    return advice_line(
        found, machine, lambda: [change.text for change in suggestions(job)]
    )


@pytest.mark.parametrize(
    ("machine", "job", "begins"),
    [
        (
            CARD,
            {},
            "for a 24 GB GPU; in this order until it fits: model.quantize: true with qtype: int8; model.q",
        ),
        (
            Machine("cuda", 16 * GB),
            {"model": INT8},
            "warning: this device has 16.0 GB: not enough; in this order until it fits: model.qtype: int4; ",
        ),
        (
            Machine("cpu", 8 * GB),
            {"model": INT8},
            "warning: 8.0 GB of main memory are free: not enough; ",
        ),
        (
            CARD,
            {"network": FULL},
            "for an 80 GB GPU; in this order until it fits: train.optimizer: adafactor; train.",
        ),
    ],
)
def test_where_it_does_not_fit_the_changes_are_listed_in_their_order(
    machine: Machine, job: dict, begins: str
) -> None:
    words = advised(machine, **job)
    assert words and words.startswith(begins)


@pytest.mark.parametrize(
    ("share", "starts"), [(1.0, True), (0.96, True), (0.94, False)]
)
def test_a_run_that_is_known_not_to_fit_does_not_start_unless_told_to(
    share: float, starts: bool, tmp_path: Path
) -> None:
    job, groups = grouped(section(model=INT8, training_folder=str(tmp_path)))
    found = plan_memory(job, groups, CARD, "full")
    machine = Machine("cuda", int(share * found.peak_bytes))
    lack = why_too_large(job, machine, found)
    assert (
        lack.startswith("" if starts else "the run needs 2") and (lack == "") == starts
    )
    assert "memory_check: false" in lack or starts
    told = job.model_copy(update={"memory_check": False})
    assert why_too_large(told, machine, found) == why_too_large(job, CARD, found) == ""


def test_what_encoding_needs_does_not_count_where_it_may_be_done(
    tmp_path: Path,
) -> None:
    model = INT4 | {"blocks_to_swap": 59}
    job, groups = grouped(
        section(model=model, training_folder=str(tmp_path)), item(256, 0), item(8192, 0)
    )
    found = plan_memory(
        job, [groups[0], replace(groups[1], held_out=True)], CARD, "full_offload"
    )
    assert found.peak.name == "encoding"
    machine = Machine("cuda", int(0.9 * found.peak_bytes))
    assert why_too_large(job, machine, found)
    (tmp_path / "_cache").mkdir()
    assert why_too_large(job, machine, found) == ""
