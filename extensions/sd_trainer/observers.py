"""Who watches a run: the hooks of an `sd_trainer` section, in the order they are called."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from extensions.sd_trainer.events import EventLog
from extensions.sd_trainer.export import NetworkWriter
from toolkit.contracts import Network
from toolkit.log import StatusLine
from toolkit.train.hook import Hook
from toolkit.train.hooks.control import ControlHook, ask_to_stop
from toolkit.train.hooks.metrics import MetricsHook
from toolkit.train.hooks.sample import SampleHook
from toolkit.train.hooks.save import SaveHook
from toolkit.train.hooks.status import StatusHook
from toolkit.train.hooks.watchdog import WatchdogHook
from toolkit.train.sampling import Sampler


def observers(
    section: Any, network: Network, sampler: Sampler | None, folder: Path, status: StatusLine, meta: dict[str, Any]
) -> list[Hook]:
    """The hooks of a run. folder: of the run's files. meta: the job's `meta`, unexpanded."""
    event = EventLog(folder / "events.jsonl").add
    saving = _saving(section, network, meta, status, event)
    actions: dict[str, Any] = {"save_now": saving.save_now, "stop": ask_to_stop}
    # Saving comes before sampling: a crash in the less important one loses nothing.
    hooks: list[Hook] = [MetricsHook(), saving]
    if sampler:
        sampling = _sampling(section, network, sampler, status, event)
        actions["sample_now"] = sampling.sample_now
        hooks.append(sampling)
    # The status comes last: "finished" means that every file is there.
    hooks += [ControlHook(actions), StatusHook(status, section.logging.log_every), WatchdogHook(status.note)]
    return hooks


def _saving(
    section: Any, network: Network, meta: dict[str, Any], status: StatusLine, event: Callable[..., None]
) -> SaveHook:
    save = section.save
    return SaveHook(
        NetworkWriter(network, section, meta).prepare,
        save.save_every,
        save.max_step_saves_to_keep,
        save.max_states_to_keep,
        status.note,
        event,
    )


def _sampling(
    section: Any, network: Network, sampler: Sampler, status: StatusLine, event: Callable[..., None]
) -> SampleHook:
    settings = section.sample

    def draw(index: int):
        with network.inference():
            return sampler.draw(index)

    return SampleHook(
        draw,
        count=len(sampler.prompts),
        every=settings.sample_every,
        start=settings.sample_start_step,
        first=not section.train.skip_first_sample,
        picture_format=settings.format,
        note=status.note,
        event=event,
    )
