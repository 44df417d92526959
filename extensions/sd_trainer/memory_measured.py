"""The machine a run is on, and the callback that holds its memory against the plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from extensions.sd_trainer.memory_inputs import group_items
from extensions.sd_trainer.memory_plan import Machine, machine_from_config, plan_memory
from toolkit.config.sections import DiffusionSection
from toolkit.device import peak_memory, pick_device, reset_peak_memory, total_memory
from toolkit.interfaces import BucketedSample
from toolkit.train.callbacks.memory_check import MemoryEstimateCheck

if TYPE_CHECKING:
    import torch

STATUS = Path("/proc/self/status")


def machine_of(section: DiffusionSection) -> Machine:
    """Where a section runs on this computer."""
    device = pick_device(section.device, quiet=True)
    if device.type == "cuda":
        return Machine("cuda", total_memory(device))
    return machine_from_config("cpu")


def memory_callback(
    section: DiffusionSection,
    items: Sequence[BucketedSample],
    level: Callable[[], str],
    device: torch.device,
    event: Callable[..., None],
) -> list[MemoryEstimateCheck]:
    """The callback, where something can be measured; a device's peak counts from now on.

    level: of checkpointing, once it is chosen.
    """
    on_card = device.type == "cuda"
    if on_card:
        reset_peak_memory(device)
    elif not STATUS.exists():
        return []
    # On the host the peak is that of the whole process.
    before = [
        *([] if on_card else ["encoding", "loading"]),
        *(["sampling"] if _samples_before_training(section) else []),
    ]

    def predict(resumed: bool) -> int:
        plan = plan_memory(section, group_items(section, items), Machine("cuda" if on_card else "cpu"), level())
        return plan.allocated("training" if resumed else "first step", *before)

    def measure() -> int:
        return peak_memory(device) if on_card else peak_resident()

    return [MemoryEstimateCheck(predict, measure, on_card, event)]


def _samples_before_training(section: DiffusionSection) -> bool:
    """Whether a set of samples is drawn before the first step."""
    return bool(section.sample or section.first_sample) and section.draws_first() and not section.train.disable_sampling


def peak_resident() -> int:
    """Bytes of CPU memory this process has had at once, those of mapped files included (Linux)."""
    line = next(line for line in STATUS.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])
