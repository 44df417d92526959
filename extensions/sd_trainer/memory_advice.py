"""Suggests changes of a section so that its job fits into memory, with the estimated saving. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import prod
from pathlib import Path

from extensions.sd_trainer.memory_inputs import ItemGroup
from extensions.sd_trainer.memory_plan import Machine, plan_memory
from toolkit.config.sections import DiffusionSection
from toolkit.data.scan_cache import CACHE_FOLDER
from toolkit.memory.estimate import ENCODING, GB, GPU_SIZES_GB, MemoryEstimate, Saving, gigabytes, gpu_of, suggest
from toolkit.memory.oom_hints import MemorySaving, suggestions

TOLERANCE = 0.05
"""By how much of the memory that is there an estimate may exceed it: the estimate may be off by as much
(docs/memory.md)."""

MIN_SAVING = 0.01
"""Smallest saving, as a share of the peak, that is suggested."""


def advice(
    section: DiffusionSection, groups: Sequence[ItemGroup], machine: Machine, plan: MemoryEstimate
) -> str | None:
    """One line of suggestions for the machine, or for the next smaller GPU where its memory is not known.

    None where the job fits the machine, or the smallest GPU.
    """
    limit = machine.limit
    if limit is None:
        smaller = [size for size in GPU_SIZES_GB if plan.device_bytes > size * GB]
        limit = smaller[-1] * GB if smaller else None
    if limit is None or plan.peak_bytes <= limit:
        return None
    savings = list(_savings(section, groups, machine, plan.peak_bytes, limit))
    if machine.limit is None:
        return f"for {gpu_of(limit // GB)}: {suggest(plan, limit, savings)}"
    has = f"this device has {gigabytes(limit)}" if plan.on_device else f"{gigabytes(limit)} of main memory are free"
    return f"warning: {has}, which is not enough: {suggest(plan, limit, savings)}"


def shortage(section: DiffusionSection, machine: Machine, plan: MemoryEstimate) -> str:
    """Why the run does not start; empty where it does: it may fit, or it is told to with `memory_check: false`."""
    encoded = (Path(section.training_folder).expanduser() / CACHE_FOLDER).is_dir()  # then nothing may be left to encode
    sums = (
        sum((phase.device if plan.on_device else phase.host).values())
        for phase in plan.phases
        if not (encoded and phase.name == ENCODING)
    )
    peak = max(sums)
    if machine.limit is None or not section.memory_check or peak <= (1 + TOLERANCE) * machine.limit:
        return ""
    limit = gigabytes(machine.limit)
    there = f"the device has {limit}" if plan.on_device else f"{limit} of main memory are free"
    return (
        f"the run needs {gigabytes(peak)}, and {there}. Change what the plan suggests, or write 'memory_check: false' "
        "to start all the same."
    )


def _savings(
    section: DiffusionSection, groups: Sequence[ItemGroup], machine: Machine, peak: int, limit: int
) -> Iterator[Saving]:
    """Savings that together bring the peak below `limit`, greedily the largest one first; as many as there are.

    Those that change the images or the network come last.
    """
    chosen: list[MemorySaving] = []
    unchanged_peak = _peak_with(section, groups, machine, chosen)
    if unchanged_peak < (1 - MIN_SAVING) * peak:  # for an unknown device the estimate is that of `full`
        yield Saving("train.gradient_checkpointing: auto (there full_offload)", peak - unchanged_peak)
        peak = unchanged_peak
    for is_last_resort in (False, True):
        while peak > limit:
            left = [c for c in suggestions(_applied(section, chosen)) if c.is_last_resort == is_last_resort]
            peaks = [_peak_with(section, groups, machine, [*chosen, change]) for change in left]
            if min(peaks, default=peak) > (1 - MIN_SAVING) * peak:
                break
            best = peaks.index(min(peaks))
            yield Saving(left[best].text, peak - peaks[best])
            peak, chosen = peaks[best], [*chosen, left[best]]


def _applied(section: DiffusionSection, chosen: Iterable[MemorySaving]) -> DiffusionSection:
    for change in chosen:
        section = change.applied(section)
    return section


def _peak_with(
    section: DiffusionSection, groups: Sequence[ItemGroup], machine: Machine, chosen: Sequence[MemorySaving]
) -> int:
    """The peak in bytes with these changes."""
    section, area = _applied(section, chosen), prod(change.area for change in chosen)
    level = section.train.checkpointing_level()
    if level == "auto":  # it would use all available memory
        level = "full_offload" if machine.kind == "cuda" else "full"
    return plan_memory(section, groups, machine, level, area).peak_bytes
