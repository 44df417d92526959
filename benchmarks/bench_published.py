"""What training the published model takes, simulated and predicted: `python
benchmarks/bench_published.py`, no GPU.

The program itself loads the model, 60 blocks of width 3072, and takes two steps on fake
tensors (`simulation.py`); all bytes that are alive are counted. Beside them stands the
plan of the same job (`--dry-run`), without the context of CUDA and the allocator's
gaps, which fake tensors do not have. It takes no memory to speak of, and about a minute
per row.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks import report  # noqa: E402
from benchmarks.random_weights import DRAWN_SIZES, TEXT_TOKENS, write_folder  # noqa: E402
from benchmarks.simulation import simulate  # noqa: E402
from benchmarks.synthetic import RANK, ModelSize  # noqa: E402
from extensions.sd_trainer.config import SdTrainerConfig  # noqa: E402
from toolkit.contracts.data import BucketedSample, ResizeCrop, Sample, Size  # noqa: E402
from toolkit.memory.estimate import GB  # noqa: E402
from toolkit.models.qwen_image.family import FAMILY  # noqa: E402
from toolkit.plan.memory import Machine, MemoryEstimate  # noqa: E402
from toolkit.plan.memory_inputs import LETTERS_PER_TOKEN, group_items  # noqa: E402
from toolkit.plan.memory_plan import plan_memory  # noqa: E402

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

    goal_gb: float | None = None
    """That training is meant to stay below."""


def _quantized(qtype: str) -> dict[str, Any]:
    return {"quantize": True, "qtype": qtype, "modulation_table": True}


ROWS = {
    "bf16, no table, full": Row({"modulation_table": False}, goal_gb=50),
    "int8, table, full": Row(_quantized("int8"), goal_gb=22.5),
    "int4, table, full": Row(_quantized("int4"), goal_gb=15.5),
    "int4, table, full_offload, a third swapped": Row(
        _quantized("int4"), "full_offload", swapped=1 / 3, goal_gb=11
    ),
    "int4, table, block_offload, all swapped": Row(
        _quantized("int4"), "block_offload", swapped=59 / 60, goal_gb=5.6
    ),
    **{
        f"bf16, table, {level}, {references} references": Row(
            {"modulation_table": True}, level, references
        )
        for level in ("none", "cheap", "keep_attention")
        for references in (0, 1, 2)
    },
}


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    size = DRAWN_SIZES[asked.size]
    report.card(
        "published",
        f"fake tensors, {size.layers} blocks of width {size.heads * size.head_dim}",
    )
    print(
        f"LoRA rank {RANK}, AdamW, bf16, batch 1, target and references of {8 * size.latent_side} pixels; GB = 10^9 B"
    )
    print(f"{'':<44} {'training':^24} {'main memory':^15} {'loading':^15}")
    print(
        f"{'':<44} {'goal':>6} {'simul.':>8} {'plan':>7} "
        + 2 * f"{'simul.':>8} {'plan':>6} "
    )
    found = {
        name: measured(name, ROWS[name], size, asked.size == "published")
        for name in asked.rows or ROWS
    }
    report.finish("published", size=asked.size, rows=found)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=DRAWN_SIZES, default="published")
    parser.add_argument("--rows", nargs="+", choices=ROWS, help="default: all")
    return parser.parse_args(argv)


def measured(name: str, row: Row, size: ModelSize, has_goal: bool) -> dict[str, Any]:
    """Prints a row; its bytes."""
    size = replace(size, text_tokens=TEXT_TOKENS[row.references])
    with TemporaryDirectory() as folder:
        write_folder(Path(folder), size)
        job = section(Path(folder), row, size)
        plan = plan_of(job, row, size)
        phases = simulate(job, size, row.references)
    simulated = {phase: phases[phase].device for phase in PHASES}
    predicted = {phase: plan.allocated(phase) for phase in PHASES}
    host = sum(plan.host.get(part, 0) for part in ON_HOST)
    pairs = [
        (simulated["training"], predicted["training"]),
        (phases["training"].host, host),
        (simulated["loading"], predicted["loading"]),
    ]
    goal = f"{row.goal_gb:>6}" if row.goal_gb and has_goal else " " * 6
    print(
        f"{name:<44} {goal} "
        + " ".join(f"{a / GB:>8.2f} {b / GB:>6.2f}" for a, b in pairs),
        flush=True,
    )
    return {
        "simulated": simulated,
        "predicted": predicted,
        "host": {"simulated": phases["training"].host, "predicted": host},
        "at_peak": phases["training"].operation,
        "goal_gb": row.goal_gb,
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


if __name__ == "__main__":
    main()
