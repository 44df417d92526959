"""The plan beside what a GPU was measured to take: one H100, torch 2.11, see
docs/memory.md."""

from __future__ import annotations

from typing import Any

import pytest

from extensions.sd_trainer.config import SdTrainerConfig
from toolkit.contracts.data import BucketedSample, ResizeCrop, Sample, Size
from toolkit.memory.estimate import GB
from toolkit.models.families import LOOKAHEAD_BATCHES, MOST_ROWS
from toolkit.models.qwen_image.family import FAMILY
from toolkit.plan.memory import Machine
from toolkit.plan.memory_inputs import LETTERS_PER_TOKEN, group_items
from toolkit.plan.memory_plan import plan_memory

TEXT_TOKENS = {0: 80, 1: 280}
"""References -> text tokens of the measured batch."""

OWN_TABLE = {"modulation_table": True}
INT4 = OWN_TABLE | {"quantize": True, "qtype": "int4"}
INT8 = OWN_TABLE | {"quantize": True, "qtype": "int8"}

MEASURED = {
    "bf16, full, eager": ({"modulation_table": False}, "full", 1, False, 48.1),
    "bf16, full": ({"modulation_table": False}, "full", 1, True, 47.9),
    "bf16, table, cheap": (OWN_TABLE, "cheap", 1, True, 65.1),
    "bf16, table, none, no reference": (OWN_TABLE, "none", 0, True, 59.7),
    "int8, table, full": (INT8, "full", 1, True, 21.36),
    "int4, table, full": (INT4, "full", 1, True, 14.73),
    "int4, table, full_offload, a third swapped": (
        INT4 | {"blocks_to_swap": 20},
        "full_offload",
        1,
        True,
        9.59,
    ),
}
"""Job -> keys of `model`, level, references, whether compiled, GB that PyTorch had
allocated at most."""


def job(model: dict[str, Any], level: str) -> SdTrainerConfig:
    """As the rows were measured: rank 16, AdamW, two micro-batches of one image."""
    return SdTrainerConfig.model_validate(
        {
            "type": "sd_trainer",
            "network": {"type": "lora", "linear": 16},
            "datasets": [{"folder_path": "pictures"}],
            "train": {
                "optimizer": "adamw",
                "gradient_checkpointing": level,
                "gradient_accumulation": 2,
            },
            "model": {
                "name_or_path": "Qwen/Qwen-Image-Edit-2509",
                "model_kwargs": {"match_target_res": True},
                **model,
            },
        }
    )


@pytest.mark.parametrize("name", MEASURED)
def test_the_plan_is_within_3_percent_of_what_was_measured(name: str) -> None:
    model, level, references, compiled, measured = MEASURED[name]
    side = Size(1024, 1024)
    facts = FAMILY.footprint(job(model, level).model.folder())
    letters = (
        TEXT_TOKENS[references]
        - facts.text_tokens
        - references * facts.text_tokens_per_reference
    )
    sample = Sample(
        "a.png",
        "x" * LETTERS_PER_TOKEN * letters,
        1,
        side,
        ".",
        ("b.png",) * references,
    )
    items = group_items([BucketedSample(sample, ResizeCrop(side, 0, 0, side))])
    plan = plan_memory(job(model, level), items, Machine("cuda"), compiled=compiled)
    # A long run fills the table; these few steps had the rows of one look ahead.
    empty = (
        (MOST_ROWS - LOOKAHEAD_BATCHES)
        * facts.row_numbers
        * 2
        * bool(model["modulation_table"])
    )
    assert plan.allocated("training") - empty == pytest.approx(measured * GB, rel=0.03)


@pytest.mark.parametrize(
    ("name", "reserved"),
    [("int4, table, full", 0.3), ("bf16, table, none, no reference", 1.2)],
)
def test_gaps_are_what_the_allocator_reserved_beyond_the_tensors(
    name: str, reserved: float
) -> None:
    model, level, references, compiled, _ = MEASURED[name]
    side = Size(1024, 1024)
    sample = Sample("a.png", "a caption", 1, side, ".", ("b.png",) * references)
    items = group_items([BucketedSample(sample, ResizeCrop(side, 0, 0, side))])
    plan = plan_memory(job(model, level), items, Machine("cuda"), compiled=compiled)
    training = next(phase for phase in plan.phases if phase.name == "training")
    assert training.parts["gaps"] == pytest.approx(reserved * GB, abs=0.05 * GB)
