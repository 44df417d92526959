"""Settings that save memory and are not used yet, for out-of-memory messages and the plan."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from toolkit.config.dataset import Rectangle, area_of, sides_of
from toolkit.config.field_types import PER_PARAMETER_OPTIMIZERS
from toolkit.config.process import ProcessConfig
from toolkit.config.sections import DiffusionSection
from toolkit.config.train import TrainConfig
from toolkit.memory.estimate import GB, GPU_SIZES_GB, Machine, MemoryEstimate, Saving, gigabytes, gpu_of, suggest
from toolkit.number_types import QTYPE_BYTES
from toolkit.system.distributed_env import read_distributed_env

SectionT = TypeVar("SectionT", bound=ProcessConfig)

TOLERANCE = 0.05
"""By how much of the memory that is there an estimate may exceed it: the estimate may be off by as much
(docs/memory.md)."""

MIN_SAVING = 0.01
"""Smallest saving, as a share of the peak, that is suggested."""

SINGLE_PROCESS_ONLY = frozenset({"fused_backward_pass"})
"""Keys that are not available with several ranks."""

OF_WHOLE_BLOCKS = SINGLE_PROCESS_ONLY | {"quantize", "qtype", "blocks_to_swap", "optimizer"}
"""Keys that are not available with `train.parallel: fsdp`."""

RESOLUTION_STEP = 0.75
"""Factor on the largest resolution for the suggested one, which is rounded down to 64 pixels."""

EIGHT_BIT = {"adamw": "adamw8bit", "adam": "adam8bit"}
"""Optimizer -> the same one with a quarter of the state."""

DEFAULT_BLOCKS_TO_SWAP = 30
"""Suggested number of swapped blocks: half of the published model's."""


@dataclass(frozen=True)
class MemorySaving:
    """A change of a job that saves memory."""

    text: str
    """As the user has to write it."""

    values: tuple[tuple[str, str, Any], ...] = ()
    """(section, key, value) of each key that changes; with "" for the section, a key of the process itself."""

    area: float = 1.0
    """Factor on the pixels of the images that are trained on."""

    is_last_resort: bool = False
    """Whether it changes what is learned, not only how it is computed."""

    def applied(self, section: SectionT) -> SectionT:
        """A copy of a training section with the change."""
        for part, key, value in self.values:
            changes = {key: value} if not part else {part: getattr(section, part).model_copy(update={key: value})}
            section = section.model_copy(update=changes)
        return section


def applied(section: SectionT, changes: Iterable[MemorySaving]) -> SectionT:
    """A copy of a training section with all these changes."""
    for change in changes:
        section = change.applied(section)
    return section


# ------------------------------------------------------------ of any trainer

Changes = Sequence[MemorySaving]


def advice_line(plan: MemoryEstimate, machine: Machine, savings: Callable[[int], Iterable[Saving]]) -> str | None:
    """One line of suggestions for the machine, or for the next smaller GPU where its memory is not known.

    savings: those that bring the peak below so many bytes. None where the job fits the machine, or the smallest GPU.
    """
    limit = machine.limit
    if limit is None:
        smaller = [size for size in GPU_SIZES_GB if plan.device_bytes > size * GB]
        limit = smaller[-1] * GB if smaller else None
    if limit is None or plan.peak_bytes <= limit:
        return None
    found = list(savings(limit))
    if machine.limit is None:
        return f"for {gpu_of(limit // GB)}: {suggest(plan, limit, found)}"
    has = f"this device has {gigabytes(limit)}" if plan.on_device else f"{gigabytes(limit)} of main memory are free"
    return f"warning: {has}, which is not enough: {suggest(plan, limit, found)}"


def largest_first(
    peak: int,
    limit: int,
    changes_after: Callable[[Changes], Iterable[MemorySaving]],
    peak_with: Callable[[Changes], int],
) -> Iterator[Saving]:
    """Savings that together bring the peak below `limit`, greedily the largest one first; as many as there are.

    Those that change what is learned come last. changes_after: what is left to change after some changes. peak_with:
    the peak in bytes with some.
    """
    chosen: list[MemorySaving] = []
    for is_last_resort in (False, True):
        while peak > limit:
            left = [change for change in changes_after(chosen) if change.is_last_resort == is_last_resort]
            peaks = [peak_with([*chosen, change]) for change in left]
            if min(peaks, default=peak) > (1 - MIN_SAVING) * peak:
                break
            best = peaks.index(min(peaks))
            yield Saving(left[best].text, peak - peaks[best])
            peak, chosen = peaks[best], [*chosen, left[best]]


def shortage_of(plan: MemoryEstimate, machine: Machine, memory_check: bool, without: Set[str] = frozenset()) -> str:
    """Why a run does not start; empty where it may fit, or where `memory_check` is off. without: phases that may not
    come."""
    sums = (
        sum((phase.device if plan.on_device else phase.host).values())
        for phase in plan.phases
        if phase.name not in without
    )
    peak = max(sums)
    if machine.limit is None or not memory_check or peak <= (1 + TOLERANCE) * machine.limit:
        return ""
    limit = gigabytes(machine.limit)
    there = f"the device has {limit}" if plan.on_device else f"{limit} of main memory are free"
    return (
        f"the run needs {gigabytes(peak)}, and {there}. Change what the plan suggests, or write 'memory_check: false' "
        "to start all the same."
    )


# ------------------------------------------------------------ of a diffusion trainer


def memory_advice(section: DiffusionSection) -> str:
    """One sentence of the memory savings that a training section does not use yet, in order of their usual effect."""
    return f"To save memory, in order of effect: {'; '.join(change.text for change in suggestions(section))}."


def suggestions(section: DiffusionSection) -> Iterator[MemorySaving]:
    """The memory savings that a section does not use yet, in order of their usual effect."""
    excluded = _excluded(section.train)
    for change in _possible_savings(section):
        if excluded.isdisjoint(key for _, key, _ in change.values):
            yield change


def _excluded(train: TrainConfig) -> frozenset[str]:
    if read_distributed_env().is_single_process:
        return frozenset()
    return OF_WHOLE_BLOCKS if train.parallel == "fsdp" else SINGLE_PROCESS_ONLY


def _possible_savings(section: DiffusionSection) -> Iterator[MemorySaving]:
    """All suggestions that are valid for a single process."""
    model, train = section.model, section.train
    if train.checkpointing_level() not in ("auto", "full", "full_offload"):
        yield _set("train", gradient_checkpointing="auto")
    if section.network.trains_model:
        yield from _full_finetune_savings(train)
    elif not model.quantize:
        yield _set("model", "model.quantize: true with qtype: int8", quantize=True, qtype="int8")
    elif QTYPE_BYTES[model.qtype] > QTYPE_BYTES["uint4"]:
        yield _set("model", qtype="int4")
    if train.batch_size > 1:
        accumulation = train.batch_size * train.gradient_accumulation
        words = f"train.batch_size: 1 with gradient_accumulation: {accumulation}"
        yield _set("train", words, batch_size=1, gradient_accumulation=accumulation)
    if any(dataset.control_path for dataset in section.datasets) and not model.model_kwargs.match_target_res:
        kwargs = model.model_kwargs.model_copy(update={"match_target_res": True})
        yield _set("model", "model.model_kwargs.match_target_res: true", model_kwargs=kwargs)
    if train.checkpointing_level() == "full":
        yield _set("train", gradient_checkpointing="full_offload")
    if not section.network.trains_model and not model.blocks_to_swap:
        yield _set("model", blocks_to_swap=DEFAULT_BLOCKS_TO_SWAP)
    if not section.network.trains_model and train.optimizer in EIGHT_BIT:
        yield _set("train", optimizer=EIGHT_BIT[train.optimizer])
    if train.ema_config.use_ema:
        ema = train.ema_config.model_copy(update={"use_ema": False})
        yield _set("train", "train.ema_config.use_ema: false", ema_config=ema)
    if not model.quantize_te:
        yield _set("model", "model.quantize_te: true with qtype_te: int8", quantize_te=True, qtype_te="int8")
    if not model.low_vram:
        yield _set("model", low_vram=True)
    if not model.text_encoder_cpu:
        yield _set("model", text_encoder_cpu=True)
    if (section.sample or section.first_sample) and not train.disable_sampling:
        yield _set("train", "smaller pictures in sample, or train.disable_sampling: true", disable_sampling=True)
    largest = max((size for dataset in section.datasets for size in dataset.resolution), key=area_of)
    if smaller := smaller_resolution(largest):
        area = area_of(smaller) / area_of(largest)
        yield MemorySaving(f"datasets[].resolution: {smaller}", area=area, is_last_resort=True)
    if section.network.trains_model:
        yield _as_an_adapter(train)
    elif section.network.linear > 8:
        yield replace(_set("network", linear=8), is_last_resort=True)


def smaller_resolution(resolution: int | Rectangle) -> int | Rectangle | None:
    """The one that is suggested instead; None where there is none."""
    width, height = (int(RESOLUTION_STEP * side) // 64 * 64 for side in sides_of(resolution))
    if isinstance(resolution, int) or not (width and height):
        return min(width, height) or None
    return Rectangle(width=width, height=height)


def _full_finetune_savings(train: TrainConfig) -> Iterator[MemorySaving]:
    if train.optimizer not in ("adafactor", "sgd"):
        yield _set("train", optimizer="adafactor", optimizer_params={}, words="train.optimizer: adafactor")
    if not train.full_bf16 and train.optimizer in PER_PARAMETER_OPTIMIZERS:
        yield _set("train", "train.full_bf16: true with dtype: bf16", full_bf16=True, dtype="bfloat16")
    if not train.fused_backward_pass and train.optimizer in PER_PARAMETER_OPTIMIZERS:
        words = "train.fused_backward_pass: true with max_grad_norm: 0 and gradient_accumulation: 1"
        yield _set("train", words, fused_backward_pass=True, max_grad_norm=0.0, gradient_accumulation=1)


def _as_an_adapter(train: TrainConfig) -> MemorySaving:
    """A LoRA instead of the model itself; its weights are always float32."""
    words = "network.type: lora" + (" and train.full_bf16: false" if train.full_bf16 else "")
    return MemorySaving(words, (("network", "type", "lora"), ("train", "full_bf16", False)), is_last_resort=True)


def _set(part: str, words: str = "", **values: Any) -> MemorySaving:
    """words: by default the first key and its value."""
    key, value = next(iter(values.items()))
    shown = str(value).lower() if isinstance(value, bool) else value
    return MemorySaving(words or f"{part}.{key}: {shown}", tuple((part, key, value) for key, value in values.items()))
