"""The callback that compares the memory of a run with the estimate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from extensions.sd_trainer.memory_inputs import ItemGroup
from extensions.sd_trainer.memory_plan import plan_memory
from toolkit.config.sections import DiffusionSection
from toolkit.memory.estimate import Machine
from toolkit.train.callbacks.watchdog import MemoryEstimateCheck, memory_check

if TYPE_CHECKING:
    import torch


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
    # On the CPU the peak is that of the whole process so far.
    earlier_phases = [
        *([] if on_gpu else ["encoding", "loading"]),
        *(["sampling"] if _samples_before_training(section) else []),
    ]

    def predict(resumed: bool) -> int:
        plan = plan_memory(section, groups, Machine("cuda" if on_gpu else "cpu"), level())
        return plan.allocated("training" if resumed else "first step", *earlier_phases)

    return memory_check(predict, device, event)


def _samples_before_training(section: DiffusionSection) -> bool:
    """Whether sample images are generated before the first step."""
    return bool(section.sample or section.first_sample) and section.draws_first() and not section.train.disable_sampling
