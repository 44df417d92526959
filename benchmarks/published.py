"""What training the published model takes, simulated without a GPU and as planned.

The program itself loads the model, 60 blocks of width 3072 or fewer, and takes two
steps on fake tensors (`simulation.py`); all bytes that are alive are counted. Beside
them stands the plan of the same job, without the context of CUDA and the allocator's
gaps, which fake tensors do not have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.random_weights import TEXT_TOKENS, write_folder
from benchmarks.simulation import simulate
from benchmarks.synthetic import RANK, ModelSize
from extensions.sd_trainer.config import SdTrainerConfig
from toolkit.contracts.data import BucketedSample, ResizeCrop, Sample, Size
from toolkit.models.qwen_image.family import FAMILY
from toolkit.plan.memory import Machine, MemoryEstimate
from toolkit.plan.memory_inputs import LETTERS_PER_TOKEN, group_items
from toolkit.plan.memory_plan import plan_memory

PHASES = ("loading", "first step", "training")
ON_HOST = ("weights of the table", "swapped blocks", "activations, offloaded")
"""Parts of the CPU memory that a simulation has too."""


@dataclass(frozen=True)
class Row:
    """A job with AdamW and, where nothing else is said, a LoRA on all layers."""

    model: Mapping[str, Any] = field(default_factory=dict)
    """Keys of `model:`."""

    level: str = "full"
    """Of checkpointing."""

    references: int = 1
    swapped: float = 0.0
    """Share of the blocks whose weights wait in the CPU memory."""

    network: Mapping[str, Any] = field(default_factory=dict)
    """Keys of `network:`."""

    train: Mapping[str, Any] = field(default_factory=dict)
    """Keys of `train:`."""


def measured(row: Row, size: ModelSize) -> dict[str, Any]:
    """The bytes of a row, simulated and as planned."""
    size = replace(size, text_tokens=TEXT_TOKENS[row.references])
    with TemporaryDirectory() as folder:
        write_folder(Path(folder), size)
        job = section(Path(folder), row, size)
        plan = plan_of(job, row, size)
        phases = simulate(job, size, row.references)
    simulated = {phase: phases[phase].device for phase in PHASES}
    predicted = {phase: plan.allocated(phase) for phase in PHASES}
    host = sum(plan.host.get(part, 0) for part in ON_HOST)
    return {
        "simulated": simulated,
        "predicted": predicted,
        "host": {"simulated": phases["training"].host, "predicted": host},
    }


UNCOMPILED = {"compile": {"enabled": False}}
"""The simulation compiles nothing."""


def section(folder: Path, row: Row, size: ModelSize) -> SdTrainerConfig:
    """The row as a process of a job. What `auto` would make of CUDA is written out: the
    simulation is on the CPU."""
    return SdTrainerConfig.model_validate(
        {
            "type": "sd_trainer",
            "network": {"type": "lora", "linear": RANK, **row.network},
            "datasets": [{"folder_path": "pictures"}],
            "train": {
                "gradient_checkpointing": row.level,
                "optimizer": "adamw",
                "dtype": "bf16",
                **UNCOMPILED,
                **row.train,
            },
            "model": {
                "name_or_path": str(folder),
                "keep_quantized": False,  # the simulation maps no file
                "model_kwargs": {"match_target_res": True},
                "blocks_to_swap": int(row.swapped * size.layers),
                **row.model,
            },
        }
    )


def plan_of(job: SdTrainerConfig, row: Row, size: ModelSize) -> MemoryEstimate:
    """The plan of the job on a GPU, with images and a caption that have as many tokens
    as the simulated ones."""
    facts = FAMILY.footprint(job.model.folder())
    letters = (
        size.text_tokens
        - facts.text_tokens
        - row.references * facts.text_tokens_per_reference
    )
    side = Size(8 * size.latent_side, 8 * size.latent_side)
    references = ("b.png",) * row.references
    sample = Sample(
        "a.png", "x" * max(0, LETTERS_PER_TOKEN * letters), 1, side, ".", references
    )
    items = [BucketedSample(sample, ResizeCrop(side, 0, 0, side))]
    return plan_memory(job, group_items(items), Machine("cuda"), row.level)
