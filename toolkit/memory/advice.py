"""What a user can change when memory runs out, most effective first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def memory_advice(section: Any) -> str:
    """One sentence of the settings of a training section that would save memory and are not used yet."""
    return f"To save memory, in order of effect: {'; '.join(_options(section))}."


def _options(section: Any) -> Iterator[str]:
    model, train = section.model, section.train
    if train.gradient_checkpointing is False:
        yield "train.gradient_checkpointing: true"
    if not model.quantize:
        yield "model.quantize: true with qtype: int8"
    elif model.qtype != "int4":
        yield "model.qtype: int4"
    if train.batch_size > 1:
        yield "train.batch_size: 1 with gradient_accumulation in its place"
    if any(dataset.control_path for dataset in section.datasets) and not model.model_kwargs.match_target_res:
        yield "model.model_kwargs.match_target_res: true"
    if not model.low_vram:
        yield "model.low_vram: true"
    largest = max(size for dataset in section.datasets for size in dataset.resolution)
    yield f"a smaller datasets[].resolution than {largest}"
    if section.network.linear > 8:
        yield "a smaller network.linear"
