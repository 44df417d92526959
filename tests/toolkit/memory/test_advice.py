"""The advice names what would help and is not used yet, most effective first."""

from __future__ import annotations

from extensions.sd_trainer.config import SdTrainerConfig
from toolkit.memory.advice import memory_advice


def section(**changes) -> SdTrainerConfig:
    fields = {"type": "sd_trainer", "model": {"name_or_path": "x/y"}, "datasets": [{"folder_path": "d"}]}
    return SdTrainerConfig.model_validate(fields | changes)


def test_everything_that_would_help_is_named_in_order() -> None:
    found = memory_advice(
        section(
            train={"gradient_checkpointing": False, "batch_size": 4},
            datasets=[{"folder_path": "d", "control_path": ("c",), "resolution": (768, 1024)}],
        )
    )
    order = ["gradient_checkpointing", "qtype: int8", "batch_size: 1", "match_target_res", "low_vram", "1024", "linear"]
    places = [found.index(word) for word in order]
    assert places == sorted(places)


def test_what_is_used_already_is_not_advised() -> None:
    found = memory_advice(
        section(
            model={
                "name_or_path": "x/y",
                "quantize": True,
                "qtype": "int4",
                "low_vram": True,
                "model_kwargs": {"match_target_res": True},
            },
            datasets=[{"folder_path": "d", "control_path": ("c",), "resolution": (512,)}],
            network={"linear": 4},
        )
    )
    assert found == "To save memory, in order of effect: a smaller datasets[].resolution than 512."


def test_a_smaller_number_type_is_the_next_step() -> None:
    assert "qtype: int4" in memory_advice(section(model={"name_or_path": "x/y", "quantize": True}))
