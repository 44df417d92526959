"""Suggests changes of a section so that its job fits into memory, with the estimated saving. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from math import prod

from extensions.sd_trainer.memory_inputs import ItemGroup
from extensions.sd_trainer.memory_plan import plan_memory
from toolkit.config.sections import DiffusionSection
from toolkit.memory.estimate import Machine, MemoryEstimate, Saving
from toolkit.memory.oom_hints import (
    MIN_SAVING,
    MemorySaving,
    advice_line,
    applied,
    largest_first,
    suggestions,
)


def advice(
    section: DiffusionSection, groups: Sequence[ItemGroup], machine: Machine, plan: MemoryEstimate
) -> str | None:
    """One line of suggestions for the machine, or for the next smaller GPU where its memory is not known.

    None where the job fits the machine, or the smallest GPU.
    """
    return advice_line(plan, machine, partial(_savings, section, groups, machine, plan.peak_bytes))


def _savings(
    section: DiffusionSection, groups: Sequence[ItemGroup], machine: Machine, peak: int, limit: int
) -> Iterator[Saving]:
    """Savings that together bring the peak below `limit`; as many as there are."""

    def peak_with(chosen: Sequence[MemorySaving]) -> int:
        return _peak_with(section, groups, machine, chosen)

    unchanged_peak = peak_with([])
    if unchanged_peak < (1 - MIN_SAVING) * peak:  # for an unknown device the estimate is that of `full`
        yield Saving("train.gradient_checkpointing: auto (there full_offload)", peak - unchanged_peak)
        peak = unchanged_peak
    yield from largest_first(peak, limit, lambda chosen: suggestions(applied(section, chosen)), peak_with)


def _peak_with(
    section: DiffusionSection, groups: Sequence[ItemGroup], machine: Machine, chosen: Sequence[MemorySaving]
) -> int:
    """The peak in bytes with these changes."""
    section, area = applied(section, chosen), prod(change.area for change in chosen)
    level = section.train.checkpointing_level()
    if level == "auto":  # it would use all available memory
        level = "full_offload" if machine.kind == "cuda" else "full"
    return plan_memory(section, groups, machine, level, area).peak_bytes
