"""What of a section to change so that its job fits: the keys, each with what it saves by the plan. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import prod

from extensions.sd_trainer.memory_inputs import ItemGroup
from extensions.sd_trainer.memory_plan import Machine, plan_memory
from toolkit.config.sections import DiffusionSection
from toolkit.memory.estimate import GB, GPU_SIZES_GB, MemoryEstimate, Saving, gigabytes, suggest
from toolkit.memory.oom_hints import MemorySaving, suggestions

LEAST_SAVING = 0.01
"""Share of the peak below which a change is not worth naming."""


def advice(
    section: DiffusionSection, groups: Sequence[ItemGroup], machine: Machine, plan: MemoryEstimate
) -> str | None:
    """One line of what to change for the machine, or where that is not known for the next smaller GPU.

    None where the plan fits the machine, or the smallest GPU.
    """
    limit = machine.limit
    if limit is None:
        smaller = [card for card in GPU_SIZES_GB if plan.device_bytes > card * GB]
        limit = smaller[-1] * GB if smaller else None
    if limit is None or plan.peak_bytes <= limit:
        return None
    savings = list(_savings(section, groups, machine, plan.peak_bytes, limit))
    if machine.limit is None:
        return f"for a {limit // GB} GB GPU: {suggest(plan, limit, savings)}"
    has = f"this device has {gigabytes(limit)}" if plan.on_device else f"{gigabytes(limit)} of main memory are free"
    return f"warning: {has}, which is not enough: {suggest(plan, limit, savings)}"


def _savings(
    section: DiffusionSection, groups: Sequence[ItemGroup], machine: Machine, peak: int, limit: int
) -> Iterator[Saving]:
    """Changes that together bring the peak below `limit`, each time the one that saves most.

    What changes the images or the network itself comes after all others. Where nothing is left, less is saved.
    """
    chosen: list[MemorySaving] = []
    as_it_is = _changed(section, groups, machine, chosen)
    if as_it_is < (1 - LEAST_SAVING) * peak:  # of an unknown device the plan is that of `full`
        yield Saving("train.gradient_checkpointing: auto (there full_offload)", peak - as_it_is)
        peak = as_it_is
    for is_last_resort in (False, True):
        while peak > limit:
            left = [c for c in suggestions(_applied(section, chosen)) if c.is_last_resort == is_last_resort]
            peaks = [_changed(section, groups, machine, [*chosen, change]) for change in left]
            if min(peaks, default=peak) > (1 - LEAST_SAVING) * peak:
                break
            best = peaks.index(min(peaks))
            yield Saving(left[best].text, peak - peaks[best])
            peak, chosen = peaks[best], [*chosen, left[best]]


def _applied(section: DiffusionSection, chosen: Iterable[MemorySaving]) -> DiffusionSection:
    for change in chosen:
        section = change.applied(section)
    return section


def _changed(
    section: DiffusionSection, groups: Sequence[ItemGroup], machine: Machine, chosen: Sequence[MemorySaving]
) -> int:
    """The peak with these changes."""
    section, area = _applied(section, chosen), prod(change.area for change in chosen)
    level = section.train.checkpointing_level()
    if level == "auto":  # it would fill whatever memory there is
        level = "full_offload" if machine.kind == "cuda" else "full"
    return plan_memory(section, groups, machine, level, area).peak_bytes
