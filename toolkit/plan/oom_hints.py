"""Settings that save memory and that a job does not use yet.

`suggestions` lists the settings of a diffusion job, first those that cost least, and
`memory_advice` puts them in one sentence. `advice_line` takes changes until a job fits
a machine. `why_too_large` is the reason why a run does not start. Imports no torch.

The planners call them, and a trainer whose memory ran out. The estimate itself is made
in `memory_plan.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.config.reading.field_types import (
    OFFLOADING_LEVELS,
    PER_PARAMETER_OPTIMIZERS,
)
from toolkit.config.sections.dataset import Rectangle, area_of, sides_of
from toolkit.config.sections.model import FEWEST_SWAPPED
from toolkit.config.sections.trainer import DiffusionSection, TrainerConfig
from toolkit.contracts.network_kinds import KINDS
from toolkit.files.writing import CACHE_FOLDER
from toolkit.memory.estimate import GB, gigabytes
from toolkit.models.families import family_for
from toolkit.number_types import QTYPE_BYTES
from toolkit.plan.memory import (
    ENCODING,
    GPU_SIZES_GB,
    Machine,
    MemoryEstimate,
    fit,
    gpu_of,
)
from toolkit.system.distributed_env import read_distributed_env

SINGLE_PROCESS_ONLY = frozenset({"fused_backward_pass"})
"""Keys that are not available with several ranks."""

OF_WHOLE_BLOCKS = SINGLE_PROCESS_ONLY | {
    "quantize",
    "qtype",
    "blocks_to_swap",
    "optimizer",
}
"""Keys that are not available with `train.parallel: fsdp`."""

EIGHT_BIT = {"adamw": "adamw8bit", "adam": "adam8bit"}
"""Optimizer -> the same one with a quarter of the state."""


@dataclass(frozen=True)
class MemorySaving:
    """A change of a job that saves memory.

    >>> saving = MemorySaving("train.batch_size: 1", (("train", "batch_size", 1),))
    >>> saving.text
    'train.batch_size: 1'
    """

    text: str
    """As the user has to write it."""

    values: tuple[tuple[str, str, Any], ...] = ()
    """(section, key, value) of each key that changes; with "" for the section, a key of
    the process itself."""

    @property
    def changes(self) -> list[str]:
        """The keys as `--set` takes them. Empty where one is of no simple value.

        >>> MemorySaving("", (("model", "low_vram", True),)).changes
        ['model.low_vram=true']
        """
        if not all(
            isinstance(value, bool | int | float | str) for *_, value in self.values
        ):
            return []
        return [
            f"{part}.{key}={json.dumps(value).strip(chr(34))}".lstrip(".")
            for part, key, value in self.values
        ]


# ------------------------------------------------------------ of any trainer


def advice_line(
    plan: MemoryEstimate, machine: Machine, changes: Callable[[], Iterable[str]]
) -> str | None:
    """The changes, in this order, until the job fits the machine, or the next smaller
    GPU where its memory is not known; None where it fits the machine, or the smallest
    GPU."""
    limit = machine.limit
    if limit is None and plan.on_device:
        limit = max(
            (size * GB for size in GPU_SIZES_GB if size not in plan.fitting()),
            default=None,
        )
    if limit is None or (machine.limit and plan.peak_bytes <= limit):
        return None
    there = (
        f"for {gpu_of(limit // GB)}"
        if machine.limit is None
        else f"warning: {_has(plan, machine)}: not enough"
    )
    if named := "; ".join(changes()):
        return f"{there}; in this order until it fits: {named}"
    return f"{there}, and no setting is left to change"


def _has(plan: MemoryEstimate, machine: Machine) -> str:
    """The memory of a machine, which is known."""
    assert machine.limit is not None
    if plan.on_device:
        return f"{machine.asked or 'this device'} has {gigabytes(machine.limit)}"
    return f"{gigabytes(machine.limit)} of main memory are free"


def why_too_large(
    section: TrainerConfig, machine: Machine, plan: MemoryEstimate
) -> str:
    """Why a run does not start: its peak is above the machine's memory by more than
    `TOLERANCE`. Empty where it may fit, where the machine's memory is not known, or
    where `memory_check` is off.

    The phase `ENCODING` is left out where the run's folder has a cache already.
    """
    # then nothing may be left to encode
    encoded = (Path(section.training_folder).expanduser() / CACHE_FOLDER).is_dir()
    phases = plan.phases
    if encoded:
        phases = tuple(phase for phase in phases if phase.name != ENCODING)
    peak = max(phase.total for phase in phases)
    if not section.memory_check or fit(peak, machine.limit) != "does not fit":
        return ""
    return (
        f"the run needs {gigabytes(peak)}, and {_has(plan, machine)}. Change what the plan suggests, or write "
        "'memory_check: false' to start all the same."
    )


def smaller_resolution(resolution: int | Rectangle) -> int | Rectangle | None:
    """The resolution that is suggested instead: 3/4 of each side, rounded down to a
    multiple of 64. None where a side would be 0.

    >>> smaller_resolution(1024), smaller_resolution(64)
    (768, None)
    """
    width, height = (int(0.75 * side) // 64 * 64 for side in sides_of(resolution))
    if isinstance(resolution, int) or not (width and height):
        return min(width, height) or None
    return Rectangle(width=width, height=height)


# ------------------------------------------------------------ of a diffusion trainer


def memory_advice(section: DiffusionSection) -> str:
    """One sentence of the memory savings that a training section does not use yet, in
    order of their usual effect."""
    return f"To save memory, in order of effect: {'; '.join(change.text for change in suggestions(section))}."


def suggestions(section: DiffusionSection) -> Iterator[MemorySaving]:
    """The memory savings that a section does not use yet, in the order of
    docs/memory.md: first what costs least."""
    excluded: frozenset[str] = frozenset()
    if not read_distributed_env().is_single_process:
        excluded = (
            OF_WHOLE_BLOCKS if section.train.parallel == "fsdp" else SINGLE_PROCESS_ONLY
        )
    for change in _possible_savings(section):
        if excluded.isdisjoint(key for _, key, _ in change.values):
            yield change


def _possible_savings(section: DiffusionSection) -> Iterator[MemorySaving]:
    """All suggestions that are valid for a single process.

    One `if` for each, in the order in which they are suggested. The function is long
    because this order is what it decides.
    """
    model = section.model
    train = section.train
    whole = section.network.trains_model
    if train.checkpointing_level() not in ("auto", "full", *OFFLOADING_LEVELS):
        yield _set("train", gradient_checkpointing="auto")
    if whole and train.optimizer not in ("adafactor", "sgd"):
        yield _set(
            "train",
            "train.optimizer: adafactor",
            optimizer="adafactor",
            optimizer_params={},
        )
    if whole and train.optimizer in PER_PARAMETER_OPTIMIZERS and not train.full_bf16:
        yield _set(
            "train",
            "train.full_bf16: true with dtype: bf16",
            full_bf16=True,
            dtype="bfloat16",
        )
    if (
        whole
        and train.optimizer in PER_PARAMETER_OPTIMIZERS
        and not train.fused_backward_pass
    ):
        words = "train.fused_backward_pass: true with max_grad_norm: 0 and gradient_accumulation: 1"
        yield _set(
            "train",
            words,
            fused_backward_pass=True,
            max_grad_norm=0.0,
            gradient_accumulation=1,
        )
    if not whole and not model.quantize:
        yield _set(
            "model",
            "model.quantize: true with qtype: int8",
            quantize=True,
            qtype="int8",
        )
    if not whole and (
        not model.quantize or QTYPE_BYTES[model.qtype] > QTYPE_BYTES["uint4"]
    ):
        yield _set("model", qtype="int4")
    encodes_always = any(
        dataset.shuffle_tokens or dataset.url for dataset in section.datasets
    )
    if not model.quantize_te and encodes_always:
        yield _set(
            "model",
            "model.quantize_te: true with qtype_te: int8",
            quantize_te=True,
            qtype_te="int8",
        )
    if not model.low_vram:
        yield _set("model", low_vram=True)
    if train.batch_size > 1:
        accumulation = train.batch_size * train.gradient_accumulation
        words = f"train.batch_size: 1 with gradient_accumulation: {accumulation}"
        yield _set("train", words, batch_size=1, gradient_accumulation=accumulation)
    if (
        any(dataset.references[1] for dataset in section.datasets)
        and not model.model_kwargs.match_target_res
    ):
        kwargs = model.model_kwargs.model_copy(update={"match_target_res": True})
        yield _set(
            "model", "model.model_kwargs.match_target_res: true", model_kwargs=kwargs
        )
    if not whole and train.optimizer in EIGHT_BIT:
        yield _set("train", optimizer=EIGHT_BIT[train.optimizer])
    half = family_for(model).block_count(model.files_folder()) // 2
    if (not model.blocks_to_swap and half >= FEWEST_SWAPPED) and (
        not whole or (train.fused_backward_pass and train.gradient_accumulation == 1)
    ):
        yield _set("model", blocks_to_swap=half)
    if train.checkpointing_level() not in OFFLOADING_LEVELS:
        yield _set("train", gradient_checkpointing="full_offload")
    can_offload = (
        KINDS[section.network.type].units.offloaded
        and train.compile.enabled is not True
    )
    if (
        train.checkpointing_level() != "block_offload"
        and can_offload
        and train.parallel != "fsdp"
    ):
        yield _set("train", gradient_checkpointing="block_offload")
    if section.sample and not train.disable_sampling:
        yield _set(
            "train",
            "smaller images in sample, or train.disable_sampling: true",
            disable_sampling=True,
        )
    largest = max(
        (size for dataset in section.datasets for size in dataset.resolution),
        key=area_of,
    )
    if smaller := smaller_resolution(largest):
        yield MemorySaving(f"datasets[].resolution: {smaller}")


def _set(part: str, words: str = "", **values: Any) -> MemorySaving:
    """words: by default the first key and its value."""
    key, value = next(iter(values.items()))
    shown = str(value).lower() if isinstance(value, bool) else value
    return MemorySaving(
        words or f"{part}.{key}: {shown}",
        tuple((part, key, value) for key, value in values.items()),
    )
