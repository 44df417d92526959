"""What a plan advises: the keys that bring the peak below a GPU, or below what is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from extensions.sd_trainer.memory_advice import advice
from extensions.sd_trainer.memory_plan import plan_memory
from tests.extensions.sd_trainer.test_memory_plan import CARD, INT8, grouped, item, plan, section
from toolkit.memory.estimate import GB, Machine
from toolkit.train.planning import shortage


def test_the_next_smaller_card_comes_with_what_it_takes() -> None:
    job, groups = grouped(section())
    words = advice(job, groups, CARD, plan_memory(job, groups, CARD))
    assert words.startswith("for a 24 GB GPU: model.quantize: true with qtype: int8 saves 13.")
    assert float(words.rpartition("then ")[2].split()[0]) <= 24


def test_a_device_that_is_too_small_is_warned_of_and_another_is_not() -> None:
    job, groups = grouped(section(model=INT8))
    found = plan_memory(job, groups, CARD)
    assert advice(job, groups, Machine("cuda", found.device_bytes), found) is None
    words = advice(job, groups, Machine("cuda", 16 * GB), found)
    assert words.startswith("warning: this device has 16.0 GB, which is not enough: model.")


def test_too_little_main_memory_is_warned_of() -> None:
    machine = Machine("cpu", 8 * GB)
    job, groups = grouped(section(model=INT8))
    words = advice(job, groups, machine, plan_memory(job, groups, machine))
    assert words.startswith("warning: 8.0 GB of main memory are free, which is not enough: ")


def test_what_is_advised_brings_the_peak_that_is_named() -> None:
    job, groups = grouped(section(network={"type": "full"}))
    words = advice(job, groups, CARD, plan_memory(job, groups, CARD))
    assert words.startswith("for an 80 GB GPU: train.optimizer: adafactor saves 16")
    frugal = {"optimizer": "adafactor", "full_bf16": True, "fused_backward_pass": True, "max_grad_norm": 0}
    reached = plan(network={"type": "full"}, train=frugal).device_bytes
    assert words.endswith(f"then {reached / GB:.1f} GB")


def test_the_smallest_card_needs_no_advice() -> None:
    frugal = {"quantize": True, "qtype": "int4", "quantize_te": True, "qtype_te": "int4", "blocks_to_swap": 50}
    job, groups = grouped(section(model=frugal, train={"gradient_checkpointing": "full_offload"}), item(256, 0))
    found = plan_memory(job, groups, CARD)
    assert found.card() == 8
    assert advice(job, groups, CARD, found) is None


def test_what_auto_does_by_itself_on_a_card_comes_before_any_change() -> None:
    job, groups = grouped(section(model=INT8, train={"gradient_checkpointing": "auto"}), item(1536, 3))
    found = plan_memory(job, groups, CARD)
    assert found.card() == 48
    words = advice(job, groups, CARD, found)
    offloaded = plan(item(1536, 3), model=INT8, train={"gradient_checkpointing": "full_offload"}).device_bytes
    assert offloaded < 24 * GB < found.device_bytes
    assert words.startswith("for a 24 GB GPU: train.gradient_checkpointing: auto (there full_offload) saves ")
    assert words.endswith(f"GB; then {offloaded / GB:.1f} GB") and "qtype" not in words


def test_large_samples_are_made_smaller_before_the_network_is() -> None:
    sample = {"samples": [{"prompt": "a cup"}], "width": 2048, "height": 2048}
    job, groups = grouped(section(model=INT8 | {"qtype": "int4", "quantize_te": True}, sample=sample), item(768, 0))
    found = plan_memory(job, groups, CARD)
    assert found.device.name == "sampling"
    words = advice(job, groups, CARD, found)
    assert "smaller pictures in sample" in words and "network" not in words


def test_a_large_adapter_keeps_its_rank_where_a_smaller_optimizer_is_enough() -> None:
    small = {"quantize": True, "qtype": "int4", "quantize_te": True, "low_vram": True}
    job, groups = grouped(section(network={"linear": 128}, model=small, train={"gradient_checkpointing": "auto"}))
    words = advice(job, groups, CARD, plan_memory(job, groups, CARD))
    assert "adamw8bit" in words and "network.linear" not in words


@pytest.mark.parametrize(("share", "starts"), [(1.0, True), (0.96, True), (0.94, False)])
def test_a_run_that_is_known_not_to_fit_does_not_start_unless_told_to(
    share: float, starts: bool, tmp_path: Path
) -> None:
    job, groups = grouped(section(model=INT8, training_folder=str(tmp_path)))
    found = plan_memory(job, groups, CARD, "full")
    machine = Machine("cuda", int(share * found.peak_bytes))
    lack = shortage(job, machine, found)
    assert lack.startswith("" if starts else "the run needs 2") and (lack == "") == starts
    assert "memory_check: false" in lack or starts
    told = job.model_copy(update={"memory_check": False})
    assert shortage(told, machine, found) == shortage(job, CARD, found) == ""


def test_what_encoding_needs_does_not_count_where_it_may_be_done(tmp_path: Path) -> None:
    job, groups = grouped(section(model=INT8 | {"qtype": "int2"}, training_folder=str(tmp_path)), item(256, 0))
    found = plan_memory(job, groups, CARD, "full")
    assert found.device.name == "encoding"
    machine = Machine("cuda", int(0.9 * found.peak_bytes))
    assert shortage(job, machine, found)
    (tmp_path / "_cache").mkdir()
    assert shortage(job, machine, found) == ""
