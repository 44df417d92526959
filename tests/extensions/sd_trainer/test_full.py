"""`network.type: full` in a job file: what it rules out, what it makes meaningless, what it counts."""

from __future__ import annotations

import pytest

from tests.toolkit.config.conftest import faults, load, mistakes, section, trainer  # noqa: F401 - fixtures
from toolkit.config.field_types import PER_PARAMETER_OPTIMIZERS
from toolkit.optim.optimizer_args import OPTIMIZERS

FULL = "network: {type: full}"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            [FULL, "model: {name_or_path: ./model, quantize: true}"],
            "model.quantize: network.type 'full' trains the weights",
        ),
        (
            ["network: {type: fullrank, pretrained_lora_path: job.yaml}"],
            "network.pretrained_lora_path: network.type 'full' has no adapter",
        ),
        (
            [FULL, "train: {full_bf16: true, dtype: fp16}"],
            "train.full_bf16: requires 'dtype: bf16', but dtype is float16.",
        ),
        (
            ["train: {fused_backward_pass: true, dtype: fp16}"],
            "train.fused_backward_pass: does not work with 'dtype:",
        ),
        (["train: {full_bf16: true}"], "train.full_bf16: needs 'network: {type: full}': adapter weights are"),
        (
            [FULL, "train: {full_bf16: true, optimizer: prodigy}"],
            "train.full_bf16: updates one parameter at a time, but p",
        ),
        (
            ["train: {fused_backward_pass: true, optimizer: lion8bit}"],
            "train.fused_backward_pass: updates one parameter",
        ),
        (
            ["train: {fused_backward_pass: true, optimizer: schedulefree_adamw}"],
            "train.fused_backward_pass: updates one parameter at a time, but schedulefree_adamw keeps its own",
        ),
        (
            ["train: {fused_backward_pass: true, optimizer: torch.optim.NAdam}"],
            "train.fused_backward_pass: updates one",
        ),
        ([FULL, "name: state"], "name: 'state' is a folder of every run"),
    ],
)
def test_what_cannot_be_is_said_at_its_place(faults, lines: list[str], message: str) -> None:  # noqa: F811
    (found,) = faults(*lines)
    assert found.startswith(message)


@pytest.mark.parametrize(
    ("lines", "keys"),
    [
        (
            ["network: {type: full, rank: 8, alpha: 0, dropout: 0.1}"],
            ["network.rank", "network.alpha", "network.dropout"],
        ),
        (["save: {mem_eff_save: true}"], ["save.mem_eff_save"]),
        ([FULL, "save: {mem_eff_save: true}", "train: {full_bf16: true, fused_backward_pass: true}"], []),
        (["train: {fused_backward_pass: true}"], []),
    ],
)
def test_what_has_no_effect_is_told(load, lines: list[str], keys: list[str]) -> None:  # noqa: F811
    warnings = load(trainer(*lines)).warnings
    assert [any(f"process[0].{key}: has no effect" in warning for warning in warnings) for key in keys] == [True] * len(
        keys
    )
    assert len(warnings) == len(keys)


def test_a_model_is_saved_in_bf16_and_an_adapter_in_float16_unless_told(section) -> None:  # noqa: F811
    assert section().save.dtype == "float16"
    assert (
        section(FULL).save.dtype
        == section("network: {type: FullRank}", "save: {save_every: 3}").save.dtype
        == "bfloat16"
    )
    assert section(FULL, "save: {dtype: fp32}").save.dtype == "float32"


def test_the_weights_are_float32_where_they_are_trained(section) -> None:  # noqa: F811
    assert section("train: {dtype: bf16}").weights_dtype() == "bfloat16"
    assert section(FULL, "train: {dtype: bf16}").weights_dtype() == "float32"
    assert section(FULL, "train: {dtype: bf16, full_bf16: true}").weights_dtype() == "bfloat16"


def test_optimizers_that_step_one_by_one_are_known() -> None:
    assert set(PER_PARAMETER_OPTIMIZERS) < set(OPTIMIZERS)
