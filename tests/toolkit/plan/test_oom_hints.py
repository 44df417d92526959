"""The advice names what would help and is not used yet, most effective first."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from extensions.sd_trainer.config import SdTrainerConfig
from tests.processes import several
from toolkit.config.reading.base import all_findings
from toolkit.config.reading.process import JobContext
from toolkit.plan.oom_hints import MemorySaving, memory_advice, suggestions

FRUGAL = {
    "name_or_path": "Qwen/Qwen-Image-Edit-2509",
    "quantize": True,
    "qtype": "int4",
    "quantize_te": True,
    "low_vram": True,
    "blocks_to_swap": 30,
    "model_kwargs": {"match_target_res": True},
}


def errors(section: SdTrainerConfig) -> list[str]:
    """What a check refuses, but for the folder of images, which is not there."""
    found = all_findings(section, JobContext("job"))
    return [
        each.message
        for each in found
        if each.severity == "error" and "does not exist" not in each.message
    ]


def section(**fields) -> SdTrainerConfig:
    given = {
        "type": "sd_trainer",
        "model": {"name_or_path": "Qwen/Qwen-Image-Edit-2509"},
        "datasets": [{"folder_path": "d"}],
    }
    return SdTrainerConfig.model_validate(given | fields)


def applied(job: SdTrainerConfig, changes: Iterable[MemorySaving]) -> SdTrainerConfig:
    """The job with these changes."""
    for part, key, value in (value for change in changes for value in change.values):
        job = job.model_copy(
            update={part: getattr(job, part).model_copy(update={key: value})}
        )
    return job


def test_everything_that_would_help_is_named_in_order() -> None:
    found = memory_advice(
        section(
            train={
                "gradient_checkpointing": False,
                "batch_size": 4,
                "optimizer": "adamw",
            },
            datasets=[
                {"folder_path": "d", "control_path": ("c",), "resolution": (768, 1024)},
                {"folder_path": "e", "shuffle_tokens": True},
            ],
            sample={"samples": [{"prompt": "a cup"}]},
        )
    )
    order = [
        "train.gradient_checkpointing: auto",
        "qtype: int8",
        "qtype: int4",
        "quantize_te: true",
        "low_vram",
        "batch_size: 1 with gradient_accumulation: 4",
        "match_target_res",
        "adamw8bit",
        "blocks_to_swap: 30",
        "gradient_checkpointing: full_offload",
        "gradient_checkpointing: block_offload",
        "smaller images in sample",
        "resolution: 768",
    ]
    places = [found.index(word) for word in order]
    assert places == sorted(places) and found.count("; ") == len(order) - 1


def test_what_is_used_already_is_not_advised() -> None:
    found = memory_advice(
        section(
            model=FRUGAL,
            train={
                "gradient_checkpointing": "block_offload",
                "optimizer": "adamw8bit",
                "disable_sampling": True,
            },
            datasets=[
                {"folder_path": "d", "control_path": ("c",), "resolution": (512,)}
            ],
            sample={"samples": [{"prompt": "a cup"}]},
            network={"linear": 4},
        )
    )
    assert found == "To save memory, in order of effect: datasets[].resolution: 384."


@pytest.mark.parametrize(
    ("train", "kind"),
    [
        ({"compile": {"enabled": True}}, "lora"),
        ({"parallel": "fsdp"}, "lora"),
        ({}, "boft"),
    ],
    ids=str,
)
def test_a_level_that_would_be_refused_is_not_advised(train: dict, kind: str) -> None:
    assert "block_offload" in memory_advice(section())
    assert "block_offload" not in memory_advice(
        section(train=train, network={"type": kind, "linear": 18})
    )


def test_a_rectangle_shrinks_as_a_rectangle() -> None:
    rectangle = {"width": 960, "height": 544}
    (change,) = (
        change
        for change in suggestions(
            section(datasets=[{"folder_path": "d", "resolution": [rectangle]}])
        )
        if change.text.startswith("datasets[]")
    )
    assert change.text == "datasets[].resolution: {width: 704, height: 384}"


def test_a_model_that_is_trained_itself_has_other_remedies() -> None:
    full = {
        "network": {"type": "full"},
        "model": {"name_or_path": "Qwen/Qwen-Image-Edit-2509", "low_vram": True},
    }
    found = memory_advice(section(**full))
    order = [
        "optimizer: adafactor",
        "full_bf16: true",
        "fused_backward_pass: true",
        "768",
    ]
    places = [found.index(word) for word in order]
    assert places == sorted(places)
    assert (
        "quantize: true with" not in found
        and "linear" not in found
        and "swap" not in found
    )
    used = {"optimizer": "adafactor", "full_bf16": True, "fused_backward_pass": True}
    more = memory_advice(section(**full, train=used))
    # and full_offload
    assert more.count("train.") == 1 and "blocks_to_swap: 30" in more
    assert "swap" not in memory_advice(
        section(**full, train={**used, "gradient_accumulation": 2})
    )


@pytest.mark.parametrize(
    "optimizer", ["adamw", "adamw8bit", "prodigy", "sgd", "schedulefree_adamw"]
)
@pytest.mark.parametrize("full_bf16", [False, True])
def test_no_single_change_of_a_model_that_is_trained_itself_is_refused(
    optimizer: str, full_bf16: bool
) -> None:
    if full_bf16 and optimizer not in ("adamw", "sgd"):
        return
    job = section(
        network={"type": "full"}, train={"optimizer": optimizer, "full_bf16": full_bf16}
    )
    for change in suggestions(job):
        assert not errors(applied(job, [change])), change.text


def test_a_section_with_every_change_has_no_advice_left_but_a_smaller_resolution() -> (
    None
):
    """Each change is what its words say: once applied it is not advised again."""
    changed = section(
        train={"gradient_checkpointing": False, "batch_size": 2, "optimizer": "adamw"}
    )
    for _ in range(20):
        left = [change for change in suggestions(changed) if change.values]
        if not left:
            break
        changed = applied(changed, left[:1])
    assert not left
    assert (
        changed.model.qtype,
        changed.model.blocks_to_swap,
        changed.train.batch_size,
    ) == ("int4", 30, 1)
    assert changed.train.gradient_checkpointing == "block_offload"
    assert changed.train.gradient_accumulation == 2


@pytest.mark.parametrize("network", ["lora", "full"])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_several_processes_are_advised_nothing_that_is_refused_then(
    monkeypatch, parallel: str, network: str
) -> None:
    job = section(
        network={"type": network},
        train={"parallel": parallel, "gradient_accumulation": 8},
    )
    with several(monkeypatch, 8):
        found = list(suggestions(job))
        assert found
        assert not any(errors(applied(job, [change])) for change in found)


@pytest.mark.parametrize(
    ("model", "half"), [("Qwen/Qwen-Image-Edit-2509", 30), ("Qwen/Qwen-Image-2.1", 16)]
)
def test_half_of_the_models_own_blocks_are_advised_to_wait(
    model: str, half: int
) -> None:
    (saving,) = (
        change
        for change in suggestions(section(model={"name_or_path": model}))
        if "blocks_to_swap" in change.text
    )
    assert saving.values == (("model", "blocks_to_swap", half),)
