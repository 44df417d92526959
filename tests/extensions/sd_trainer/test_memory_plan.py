"""What a section's job is said to take: the published model's figures, and that each setting saves what it should."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from extensions.sd_trainer.config import SdTrainerConfig
from extensions.sd_trainer.memory_inputs import ItemGroup, count_trainable_params, group_items
from extensions.sd_trainer.memory_plan import plan_memory
from tests.extensions.sd_trainer.test_parallel import several
from toolkit.data.types import BucketedSample, CaptionRules, ResizeCrop, Sample, Size
from toolkit.errors import RunError
from toolkit.memory.estimate import GB, Machine, MemoryEstimate

CARD = Machine("cuda")
INT8 = {"quantize": True, "qtype": "int8"}


def section(**parts: Any) -> SdTrainerConfig:
    given = {
        "type": "sd_trainer",
        "datasets": [{"folder_path": "d"}],
        "train": {"gradient_checkpointing": "full"} | parts.pop("train", {}),
        "model": {"name_or_path": "Qwen/Qwen-Image-Edit-2509"} | parts.pop("model", {}),
    }
    return SdTrainerConfig.model_validate(given | parts)


def item(side: int = 1024, references: int = 1, repeats: int = 9, **sample: Any) -> BucketedSample:
    size = Size(side, side)
    controls = ("c.png",) * references
    return BucketedSample(
        Sample("a.png", "a caption", repeats, size, ".", controls, **sample), ResizeCrop(size, 0, 0, size)
    )


def plan(*items: BucketedSample, machine: Machine = CARD, **parts: Any) -> MemoryEstimate:
    job = section(**parts)
    return plan_memory(job, group_items(job, items or (item(),)), machine)


def grouped(job: SdTrainerConfig, *items: BucketedSample) -> tuple[SdTrainerConfig, tuple[ItemGroup, ...]]:
    return job, group_items(job, items or (item(),))


def phase(found: MemoryEstimate, name: str) -> Any:
    return next(phase for phase in found.phases if phase.name == name)


def taken(found: MemoryEstimate, part: str, name: str = "training") -> float:
    """GB on the device."""
    return phase(found, name).device.get(part, 0) / GB


# ------------------------------------------------------------ the published model


@pytest.mark.parametrize(
    ("model", "weights"),
    [
        ({}, 27.3),
        (INT8, 13.7),
        ({"quantize": True, "qtype": "int4"}, 7.3),
        ({"modulation_table": False}, 40.9),
        (INT8 | {"modulation_table": False}, 20.5),
    ],
)
def test_the_weights_are_those_of_the_published_model(model: dict, weights: float) -> None:
    """20.43 B weights, of which the table takes 6.8 B off the device."""
    assert taken(plan(model=model), "weights") == pytest.approx(weights, abs=0.1)


def test_a_lora_of_rank_16_on_all_layers_takes_1_8_gb_with_adamw() -> None:
    found = plan(model=INT8)
    assert (taken(found, "lora weights"), taken(found, "optimizer")) == pytest.approx((0.59, 1.18), abs=0.01)
    assert taken(plan(model=INT8, train={"optimizer": "adamw8bit"}), "optimizer") == pytest.approx(0.30, abs=0.01)
    assert taken(plan(model=INT8, train={"ema_config": {"use_ema": True}}), "average") == pytest.approx(0.59, abs=0.01)


def test_int8_fits_24_gb_and_int4_16_gb() -> None:
    assert plan(model=INT8).card() == 24
    small = {"quantize": True, "qtype": "int4", "quantize_te": True}
    assert plan(model=small).card() == 16
    assert plan().card() == 48


def test_a_recovery_adapter_that_is_made_counts() -> None:
    """Rank 32 on all layers of 60 blocks: 32 (in + out) numbers each, 2 bytes."""
    model = {"quantize": True, "qtype": "int4"}
    more = taken(plan(model={**model, "accuracy_recovery_adapter": "auto"}), "weights") - taken(
        plan(model=model), "weights"
    )
    of_a_stream = 4 * 2 * 3072 + 2 * (3072 + 12288) + (3072 + 6 * 3072)  # attention, MLP, modulation
    assert more == pytest.approx(60 * 2 * of_a_stream * 32 * 2 / GB, rel=1e-3)


def test_the_text_encoder_is_what_encoding_takes() -> None:
    found = plan(model=INT8)
    assert taken(found, "text encoder", "encoding") == pytest.approx(15.5, abs=0.1)
    assert phase(found, "encoding").host["text encoder, read"] / GB == pytest.approx(16.6, abs=0.1)
    quantized = plan(model=INT8 | {"quantize_te": True})
    assert taken(quantized, "text encoder", "encoding") == pytest.approx(9.0, abs=0.1)


def test_a_model_that_is_trained_itself_takes_its_weights_gradients_and_moments() -> None:
    found = plan(network={"type": "full"}, model={})
    assert taken(found, "weights") == pytest.approx(4 * 20.43, abs=0.1)
    assert taken(found, "gradients") == pytest.approx(4 * 20.43, rel=0.02)
    assert taken(found, "optimizer") == pytest.approx(8 * 20.43, abs=0.2)
    frugal = {"full_bf16": True, "optimizer": "adafactor", "fused_backward_pass": True, "max_grad_norm": 0}
    small = plan(network={"type": "full"}, train=frugal)
    assert taken(small, "gradients") < 0.2 and taken(small, "optimizer") < 0.2
    assert taken(small, "weights") == pytest.approx(2 * 20.43, abs=0.1)


def test_a_step_within_the_backward_pass_has_its_copies_beside_the_activations() -> None:
    frugal = {"full_bf16": True, "optimizer": "adafactor", "max_grad_norm": 0, "gradient_checkpointing": "none"}
    within = plan(network={"type": "full"}, train=frugal | {"fused_backward_pass": True})
    # Four of the largest weight in float32: what makes six modulations of each block out of the embedded time.
    assert taken(within, "optimizer temporaries") == pytest.approx(4 * 4 * 3072 * 6 * 3072 / GB, rel=0.01)
    assert taken(within, "activations") > 30
    assert taken(plan(network={"type": "full"}, train=frugal), "optimizer temporaries") == 0


# ------------------------------------------------------------ what decides activations


def test_tokens_of_references_count() -> None:
    none, one, three = (
        taken(plan(item(references=count), train={"gradient_checkpointing": "none"}), "activations")
        for count in (0, 1, 3)
    )
    # 4096 tokens of the target and 12 of the words around the caption; 4096 and 206 of each reference.
    assert one / none == pytest.approx((8192 + 206 + 15) / (4096 + 15), rel=0.02)
    assert three / none == pytest.approx((4 * 4096 + 3 * 206 + 15) / (4096 + 15), rel=0.02)


def test_references_may_follow_their_target() -> None:
    at_512 = [plan(item(512), model={"model_kwargs": {"match_target_res": match}}) for match in (False, True)]
    assert taken(at_512[0], "activations") > 2 * taken(at_512[1], "activations")


def test_the_largest_batch_is_the_one_that_counts() -> None:
    """Of a bucket with two uses no batch has more than two images."""
    kept = {"gradient_checkpointing": "none"}
    one = taken(plan(item(), train=kept), "activations")
    few = item(repeats=2)
    assert taken(plan(few, train=kept | {"batch_size": 4}), "activations") == pytest.approx(2 * one, rel=0.02)
    assert taken(plan(item(512), item(), train=kept), "activations") == one


def test_each_level_keeps_less_than_the_one_before() -> None:
    levels = ("none", "cheap", "keep_attention", "full", "full_offload")
    peaks = [plan(train={"gradient_checkpointing": level}).device_bytes for level in levels]
    assert peaks == sorted(peaks, reverse=True) and len(set(peaks)) == 5
    host = [phase(plan(train={"gradient_checkpointing": level}), "training").host for level in levels]
    assert ["activations, offloaded" in parts for parts in host] == [False] * 4 + [True]


def test_auto_is_the_fastest_level_that_fits() -> None:
    auto = {"gradient_checkpointing": "auto"}
    peaks = [
        plan(model=INT8, train={"gradient_checkpointing": level}).device_bytes
        for level in ("none", "cheap", "keep_attention", "full", "full_offload")
    ]
    for peak in peaks:
        assert plan(model=INT8, train=auto, machine=Machine("cuda", peak)).device_bytes == peak
    assert plan(model=INT8, train=auto, machine=Machine("cuda", peaks[-1] - 1)).device_bytes == peaks[-1]
    assert plan(model=INT8, train=auto).device_bytes == peaks[3]  # an unknown GPU: as with `full`


# ------------------------------------------------------------ several processes, validation, what is not known


def test_fsdp_leaves_a_share_of_the_blocks_and_two_whole_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = taken(plan(train={"parallel": "fsdp"}, model={"modulation_table": False}), "weights")
    with several(monkeypatch, 4):
        found = plan(train={"parallel": "fsdp", "gradient_accumulation": 4})
        assert taken(found, "weights") == pytest.approx(alone / 4, abs=0.1)
        assert taken(found, "whole blocks") == pytest.approx(2 * 0.68, abs=0.01)
        assert taken(found, "modulation table") == 0
        assert "of each of 4 processes" in found.notes[0]


@pytest.mark.parametrize(("full_bf16", "together"), [(False, 57), (True, 46)])
def test_fsdp_leaves_a_share_of_what_a_trained_model_needs(
    monkeypatch: pytest.MonkeyPatch, full_bf16: bool, together: int
) -> None:
    """As docs/multi_gpu.md adds up for eight GPUs; the first process copies what is saved of all."""
    train = {"gradient_accumulation": 16, "full_bf16": full_bf16, "ema_config": {"use_ema": True, "ema_decay": 0.9}}
    alone = plan(network={"type": "full"}, train=train)
    with several(monkeypatch, 8):
        found = plan(network={"type": "full"}, train=train | {"parallel": "fsdp"})
    left_out = sum(taken(found, part) for part in ("activations", "gaps", "context"))
    assert sum(phase(found, "training").device.values()) / GB - left_out == pytest.approx(together, abs=0.7)
    assert taken(found, "average") == pytest.approx(taken(alone, "average") / 8, rel=0.02)
    copies = [phase(each, "saving").host["copies to be saved"] for each in (alone, found)]
    assert copies[0] == copies[1]


def test_of_what_is_not_trained_fsdp_leaves_a_share_too(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"type": "full", "network_kwargs": {"only_if_contains": ["transformer_blocks.0."]}}
    alone = plan(network=few, train={"optimizer": "sgd"}, model={"modulation_table": False})
    with several(monkeypatch, 8):
        found = plan(network=few, train={"optimizer": "sgd", "parallel": "fsdp", "gradient_accumulation": 8})
    assert taken(found, "weights") == pytest.approx(taken(alone, "weights") / 8, abs=0.2)


def test_ddp_leaves_everything_in_each_process_but_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {"gradient_checkpointing": "none", "batch_size": 2}
    alone = plan(train=kept)
    with several(monkeypatch, 2):
        found = plan(train=kept)
    assert taken(found, "weights") == taken(alone, "weights")
    assert taken(found, "activations") == pytest.approx(taken(alone, "activations") / 2, rel=0.01)


def test_gradients_are_exchanged_a_bucket_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """SGD allocates no temporaries; with so small an image the peak is where all gradients exist."""
    job = {"network": {"type": "full"}, "train": {"optimizer": "sgd"}}
    assert taken(plan(item(64, 0), **job), "optimizer temporaries") == 0
    with several(monkeypatch, 2):
        found = taken(plan(item(64, 0), **job), "optimizer temporaries")
    assert found == pytest.approx((64 * 2**20 + 4 * 6 * 3072**2) / GB, abs=1e-3)


def test_the_first_step_makes_the_optimizers_state_while_the_gradients_are_there() -> None:
    found = plan(item(256, 0), network={"type": "full"})
    assert taken(found, "optimizer", "first step") == taken(found, "optimizer") > 160
    assert taken(found, "gradients", "first step") > 80
    assert taken(plan(), "optimizer", "first step") == 0  # the step of a LoRA is far below its backward pass


def test_validation_is_a_pass_without_gradients_on_the_largest_held_out_picture() -> None:
    job = section(model=INT8)
    groups = group_items(job, [item(256, 0)], held_out=[item(2048, 0), item(256, 0)])
    found = plan_memory(job, groups, CARD)
    assert found.device.name == "validation"
    assert taken(found, "activations", "validation") == pytest.approx(
        16 * (2048**2 / 256 + 15) * 3072 * 2 / GB, rel=0.01
    )
    assert "validation" not in [phase.name for phase in plan(model=INT8).phases]


def test_held_out_pictures_are_encoded_too() -> None:
    job = section(model=INT8 | {"quantize_te": True, "qtype_te": "int4"})
    small = group_items(job, [item(256, 0)])
    large = group_items(job, [item(256, 0)], held_out=[item(4096, 0)])
    peaks = [sum(phase(plan_memory(job, groups, CARD), "encoding").device.values()) for groups in (small, large)]
    assert peaks[1] > 2 * peaks[0]


def test_what_compiling_takes_is_said_not_to_be_known() -> None:
    assert plan().notes == ()
    [note] = plan(train={"compile": {"enabled": True}}).notes
    assert note.startswith("train.compile: ")


def test_the_table_is_filled_in_the_course_of_training() -> None:
    found = plan(train={"batch_size": 2})
    rows = [taken(found, "modulation table", name) for name in ("first step", "training")]
    buffers = 2 * 3072 * 6 * 3072 * 2 / GB  # two layers in bf16
    assert rows[1] - buffers == pytest.approx(3 * (rows[0] - buffers), rel=1e-2)


# ------------------------------------------------------------ where things are


def test_swapped_blocks_are_on_the_host_but_for_two() -> None:
    plain, swapped = plan(model=INT8), plan(model=INT8 | {"blocks_to_swap": 32})
    moved = taken(plain, "weights") - taken(swapped, "weights")
    assert moved == pytest.approx(13.6 / 2, abs=0.1)  # 30 of 60 blocks
    assert phase(swapped, "training").host["swapped blocks"] == 32 * 256 * 2**20  # 217 MiB each, rounded as pinned
    whole = plan(model=INT8 | {"blocks_to_swap": 32, "modulation_table": False})
    assert phase(whole, "training").host["swapped blocks"] / GB == pytest.approx(20.4 * 32 / 60, abs=0.1)  # exact


def test_the_table_takes_a_third_of_the_weights_to_the_host() -> None:
    found = plan(model=INT8)
    assert phase(found, "training").host["weights of the table"] == 120 * 64 * 2**20  # 54 MiB each, rounded as pinned
    assert taken(found, "modulation table") == pytest.approx(192 * 4.4e-3 + 2 * 0.057, abs=0.01)  # rows, two layers


@pytest.mark.parametrize("network", [{"type": "dora"}, {"type": "full"}])
def test_kinds_that_need_the_weights_have_no_table(network: dict) -> None:
    assert taken(plan(network=network), "modulation table") == 0
    spared = network | {"exclude_patterns": r".*_mod\.1|time_text_embed.*"}
    assert taken(plan(network=spared), "modulation table") > 0


def test_a_trained_embedding_of_the_noise_level_leaves_no_table() -> None:
    network = {"type": "full", "exclude_patterns": r".*_mod\.1"}
    assert taken(plan(network=network), "modulation table") == 0


def test_low_vram_keeps_the_vae_off_the_device_while_training() -> None:
    sample = {"samples": [{"prompt": "a"}]}
    assert taken(plan(sample=sample), "VAE") > 0.2
    assert taken(plan(sample=sample, model={"low_vram": True}), "VAE") == 0
    assert taken(plan(), "VAE") == 0


def test_shuffled_captions_keep_the_text_encoder() -> None:
    shuffled = item(rules=CaptionRules(shuffle_tokens=True))
    assert taken(plan(shuffled), "text encoder") == pytest.approx(15.5, abs=0.1)


def test_a_text_encoder_on_the_cpu_takes_nothing_of_the_device() -> None:
    shuffled = item(rules=CaptionRules(shuffle_tokens=True))
    there, here = plan(shuffled), plan(shuffled, model={"text_encoder_cpu": True})
    for name in ("encoding", "training"):
        assert phase(there, name).device["text encoder"] == phase(here, name).host["text encoder"] > 0
        assert "text encoder" not in phase(here, name).device
    assert phase(here, "encoding").device["VAE"] > 0


def test_a_save_copies_everything_to_the_host() -> None:
    """Float32 weights, average and moments of 147 M weights, and the file in float16."""
    found = plan(train={"ema_config": {"use_ema": True}})
    assert phase(found, "saving").host["copies to be saved"] == (4 + 4 + 8 + 2) * 147_456_000


def test_a_cache_that_no_file_holds_is_in_memory() -> None:
    datasets = [{"folder_path": "d", "cache_latents_to_disk": False}]
    found = plan(*[item() for _ in range(10)], datasets=datasets)
    assert phase(found, "training").host["cached data"] == 10 * 2 * (1024 * 1024 // 4) * 2


def test_sampling_larger_than_training_decides() -> None:
    sample = {"samples": [{"prompt": "a"}], "width": 4096, "height": 4096}
    assert plan(item(256, 0), model=INT8, sample=sample).device.name == "sampling"
    off = {"disable_sampling": True}
    assert "sampling" not in [p.name for p in plan(item(256, 0), sample=sample, train=off).phases]


def test_on_the_cpu_everything_is_in_one_memory() -> None:
    on_card, on_host = plan(model=INT8), plan(model=INT8, machine=Machine("cpu"))
    assert not any(phase.device for phase in on_host.phases)
    assert on_host.host_bytes > on_card.device_bytes


def test_the_state_on_disk_is_weights_average_and_what_the_optimizer_keeps() -> None:
    adafactor = section(train={"optimizer": "adafactor", "ema_config": {"use_ema": True}})
    counted = count_trainable_params(adafactor)
    rows_and_columns = sum(4 * sum(shape) for shape in counted.shapes)
    assert counted.state_bytes(adafactor.train) == 8 * 147_456_000 + rows_and_columns


def test_a_model_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "transformer").mkdir()

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(RunError, match=rf"{tmp_path}/transformer: cannot be read: Input/output error"):
        plan(machine=Machine("cpu"), model={"name_or_path": str(tmp_path)})


@pytest.mark.parametrize(
    ("gb", "table", "level"),
    [(100, "auto", "auto"), (80, "auto", "full"), (45, "auto", "full"), (80, False, "full"), (80, True, "full")],
)
def test_the_table_is_used_where_the_job_does_not_fit_without_it(gb: int, table: bool | str, level: str) -> None:
    """41 GB of weights with `full` checkpointing, 27 GB with the table; without it a tenth of the GPU stays free."""
    found = plan(
        machine=Machine("cuda", gb * GB), model={"modulation_table": table}, train={"gradient_checkpointing": level}
    )
    assert found.modulation_table is (gb == 45 if table == "auto" else table)
