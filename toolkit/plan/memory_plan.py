"""The memory estimate of a job: the peak of each phase, at the checkpointing level that
fits. Imports no torch.

`plan_memory` reads the job once (`job_bytes.py`), then adds its bytes up for each level
that it tries (`memory_phases.py`). The plan of a run calls it, and so does the run when
it chooses a level. With several ranks the estimate is for rank 0, which needs most.

Example: a LoRA of rank 16 for Qwen-Image-Edit-2509 in int8, images and control images
of 1024 x 1024, on a 24 GB GPU. `full` with the modulation cache is the fastest level
that fits. GB while training:

    context            0.70   CUDA itself
    weights           13.68   20.4 B weights, of which a third waits in main memory: the cache replaces it
    modulation table   0.96   192 rows of the cache, and two buffers
    lora weights       0.59   147 M weights in float32
    optimizer          1.18   two moments for each
    activations        4.79   60 block inputs, and one block that is computed again
    gaps               0.30   between tensors
    total             22.20
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import product

from toolkit.config.reading.field_types import (
    AUTO_LEVELS,
    OFFLOADING_LEVELS,
    UNCOMPILED_LEVELS,
)
from toolkit.config.sections.trainer import DiffusionSection
from toolkit.memory.estimate import GB, gigabytes
from toolkit.number_types import FP8_QTYPES
from toolkit.plan.job_bytes import JobBytes, read_job
from toolkit.plan.memory import (
    CUDA_CONTEXT,
    GPU_SIZES_GB,
    PROCESS_BASELINE,
    Bytes,
    LargestStep,
    Machine,
    MemoryEstimate,
    Part,
    Phase,
    positive,
)
from toolkit.plan.memory_inputs import ItemGroup, num_shards
from toolkit.plan.memory_phases import (
    Choice,
    choose,
    host,
    mapped,
    phases,
)
from toolkit.system.host_memory import free_host_memory, pinned_bytes

__all__ = ["compiles_blocks", "plan_memory"]

WITHOUT_TABLE = 0.9
"""Share of the memory that a job without the modulation cache may take, where `auto`
decides: the estimate is accurate to about 10 %, and the cache costs about 2 % of the
time."""

LEFT_FREE = 2 * GB
"""Bytes of main memory that pinned blocks leave to the system and other programs."""


def plan_memory(
    section: DiffusionSection,
    groups: Sequence[ItemGroup],
    machine: Machine,
    level: str | None = None,
    compiled: bool | None = None,
) -> MemoryEstimate:
    """The estimate at a checkpointing level; by default at the level of the section.

    compiled: whether the blocks are compiled; None: as the section says, on this
    machine.

    If level and modulation cache are both `auto`: the fastest level that fits the
    machine, and the modulation cache where that level does not fit without it. If the
    memory of a GPU is not known: those for the smallest size that the job fits.
    """
    if compiled is None:
        compiled = compiles_blocks(section, machine)
    by_inductor = compiled and section.train.compile.backend == "inductor"
    job = read_job(section, groups, machine.kind == "cuda", by_inductor)
    levels = _levels(level or section.train.checkpointing_level(), machine)
    wanted = section.model.modulation_table
    choices = list(product(levels, _tables(wanted, machine)))
    estimate = cache(partial(_estimate, job))

    def on(limit: int) -> MemoryEstimate:
        """The fastest that fits, or the last."""
        for choice in choices:
            room = (
                int(limit * WITHOUT_TABLE)
                if (wanted, choice[1]) == ("auto", False)
                else limit
            )
            if estimate(*choice).peak_bytes <= room:
                break
        return estimate(*choice)

    if machine.kind != "cuda":
        return on(machine.limit) if machine.limit else estimate(*choices[-1])
    sizes = [size for size in GPU_SIZES_GB if on(size * GB).peak_bytes <= size * GB]
    limit = machine.limit or (sizes or GPU_SIZES_GB)[0 if sizes else -1] * GB
    return replace(on(limit), sizes_gb=tuple(sizes))


def _levels(level: str, machine: Machine) -> Sequence[str]:
    """The levels to try, the fastest first."""
    if level != "auto":
        return [level]
    if machine.kind == "cuda":
        return AUTO_LEVELS
    if machine.limit is None:
        return ["full"]
    return [name for name in AUTO_LEVELS if name not in OFFLOADING_LEVELS]


def _tables(modulation_table: bool | str, machine: Machine) -> Sequence[bool]:
    """Whether the modulation cache is wanted: the values to try, the faster first."""
    if isinstance(modulation_table, bool):
        return [modulation_table]
    return [False, True] if machine.kind == "cuda" else [False]


def compiles_blocks(section: DiffusionSection, machine: Machine) -> bool:
    """Whether the blocks are compiled on a machine, where that is known without
    torch."""
    train = section.train
    model = section.model
    if train.checkpointing_level() in UNCOMPILED_LEVELS:
        return False
    if train.compile.enabled != "auto" or machine.kind != "cuda":
        return train.compile.enabled is True
    if num_shards(train) > 1:
        return False
    # With compute capability 8 only 8.9 compiles blocks in fp8; the minor number is not
    # known here.
    is_fp8 = model.quantize and model.qtype in FP8_QTYPES
    is_old = machine.capability is not None and machine.capability < 9
    return not (is_fp8 and is_old)


def _estimate(job: JobBytes, level: str, table: bool) -> MemoryEstimate:
    """The estimate at one level. table: whether the modulation cache is wanted.

    Weights that wait on a disk of `unsure_disk` are counted in main memory where it has
    room for them."""
    if job.model.is_mapped and job.model.unsure_disk:
        in_memory = replace(job, model=replace(job.model, is_mapped=False))
        estimate = _estimate(in_memory, level, table)
        if estimate.host_bytes * job.processes < (free_host_memory() or sys.maxsize):
            return estimate
    choice = choose(job, level, table)
    if job.on_gpu:
        always: Bytes = {Part.CONTEXT: CUDA_CONTEXT}
        in_main_memory = host(job, choice)
    else:
        always = {Part.PROCESS: PROCESS_BASELINE}
        in_main_memory = {}
    beside = (
        job.training.fused_temporaries
        + job.model.whole_blocks
        + job.training.block_gradients
    )
    listed = [
        Phase(name, positive(always | parts))
        for name, parts in phases(job, choice).items()
    ]
    waiting = mapped(job, choice)
    free = free_host_memory() if waiting else 0  # 0: not known
    room = free - job.processes * sum(in_main_memory.values()) - LEFT_FREE
    pinned = 0
    # several processes would have to share the room
    if waiting and job.on_gpu and job.processes == 1:
        pinned = blocks_to_pin(room, job.model.swapped_blocks, choice.block)
    # what is pinned is not needed in the system's cache too
    room += pinned * choice.block - pinned_bytes(pinned * choice.block)
    all_pinned = 0 < pinned == job.model.swapped_blocks
    from_disk = free > 0 and room < waiting and not all_pinned
    return MemoryEstimate(
        phases=tuple(listed),
        on_device=job.on_gpu,
        host=in_main_memory,
        mapped=waiting,
        pinned_blocks=pinned,
        from_disk=from_disk,
        notes=tuple(_notes(job, choice, waiting, pinned, from_disk)),
        modulation_table=table,
        step=LargestStep(job.step, job.training.optimizer, beside),
        level=level,
    )


def blocks_to_pin(room: int, count: int, block: int) -> int:
    """How many of `count` waiting blocks of so many bytes are pinned together.

    room: bytes of main memory that nothing else of the job takes.

    >>> blocks_to_pin(room=7 * GB, count=59, block=GB // 5)
    35
    """
    most = min(count, max(0, room) // block)
    fitting = (n for n in range(most, 0, -1) if pinned_bytes(n * block) <= room)
    return next(fitting, 0)


def _notes(
    job: JobBytes, choice: Choice, waiting: int, pinned: int, from_disk: bool
) -> Iterator[str]:
    """Lines for the user about what the numbers include."""
    if job.processes > 1:
        yield f"figures are per process; each of the {job.processes} processes needs its own main memory"
    if job.encoders.text_stays:
        yield (
            f"the whole text encoder ({gigabytes(job.encoders.text)}) stays in memory, because shuffled captions and "
            "captions of a stream are encoded at each use"
        )
    if waiting:
        yield (
            f"{gigabytes(waiting)} of waiting weights are read from the kept model (model.keep_quantized): in main "
            "memory they are only in the system's file cache, which the system frees when it needs to"
        )
    if pinned:
        size = gigabytes(pinned_bytes(pinned * choice.block))
        yield (
            f"{pinned} of {job.model.swapped_blocks} waiting blocks are pinned, since there is room: another {size} of "
            "main memory"
        )
    if job.model.unsure_disk and (choice.tabulated or job.model.swapped_blocks):
        where = f"the kept model is on a disk of type {job.model.unsure_disk}"
        if waiting:
            yield f"{where}, and main memory has no room for what waits: the run ends if that disk cannot be read"
        else:
            yield f"{where}: what waits is in main memory, since a run ends where a mapped file cannot be read"
    if from_disk:
        yield (
            "main memory has no room for all of them, so each pass reads from the disk what is not pinned, which may "
            "decide how long a step takes: close other programs, or swap fewer blocks (model.blocks_to_swap)"
        )
