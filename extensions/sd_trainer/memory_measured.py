"""The callback that compares the memory of a run with the estimate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from extensions.sd_trainer.memory_inputs import ItemGroup
from extensions.sd_trainer.memory_plan import plan_memory
from toolkit.config.sections import DiffusionSection
from toolkit.device import peak_memory, reset_peak_memory
from toolkit.memory.estimate import Machine
from toolkit.train.callbacks.watchdog import MemoryEstimateCheck

if TYPE_CHECKING:
    import torch

STATUS = Path("/proc/self/status")


def memory_callback(
    section: DiffusionSection,
    groups: Sequence[ItemGroup],
    level: Callable[[], str],
    device: torch.device,
    event: Callable[..., None],
) -> list[MemoryEstimateCheck]:
    """The callback, where memory can be measured; resets the peak of a GPU.

    level: the checkpointing level, once it is chosen.
    """
    on_gpu = device.type == "cuda"
    if on_gpu:
        reset_peak_memory(device)
    elif not STATUS.exists():
        return []
    # On the CPU the peak is that of the whole process so far.
    earlier_phases = [
        *([] if on_gpu else ["encoding", "loading"]),
        *(["sampling"] if _samples_before_training(section) else []),
    ]

    def predict(resumed: bool) -> int:
        plan = plan_memory(section, groups, Machine("cuda" if on_gpu else "cpu"), level())
        return plan.allocated("training" if resumed else "first step", *earlier_phases)

    def measure() -> int:
        return peak_memory(device) if on_gpu else peak_resident()

    return [MemoryEstimateCheck(predict, measure, on_gpu, event)]


def _samples_before_training(section: DiffusionSection) -> bool:
    """Whether sample images are generated before the first step."""
    return bool(section.sample or section.first_sample) and section.draws_first() and not section.train.disable_sampling


def peak_resident() -> int:
    """Peak resident memory of this process in bytes, mapped files included (Linux)."""
    line = next(line for line in STATUS.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])
