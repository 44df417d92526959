"""Who watches a run: the hooks of an `sd_trainer` section, in the order they are called."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from extensions.sd_trainer.events import EventLog
from extensions.sd_trainer.export import NetworkWriter
from extensions.sd_trainer.measuring import measuring
from extensions.sd_trainer.merged_lora import MergedLoraWriter
from extensions.sd_trainer.model_folder import ModelFolderWriter
from extensions.sd_trainer.sampling_config import draws_first
from toolkit.config.sample import SampleConfig
from toolkit.contracts import Network
from toolkit.data.plan import RunPlan
from toolkit.log import StatusLine
from toolkit.train.hooks.control import ControlHook, ask_to_stop
from toolkit.train.hooks.intervals import Interval
from toolkit.train.hooks.metrics import MetricsHook
from toolkit.train.hooks.sample import PictureSet, SampleHook
from toolkit.train.hooks.save import SaveHook
from toolkit.train.hooks.status import StatusHook
from toolkit.train.hooks.trackers import TrackerHook
from toolkit.train.hooks.watchdog import WatchdogHook
from toolkit.train.run import Hook
from toolkit.train.sampling import Sampler
from toolkit.train.validation import Validator


def observers(
    section: Any,
    network: Network,
    sampler: Sampler | None,
    validator: Validator | None,
    folder: Path,
    status: StatusLine,
    meta: dict[str, Any],
    plan: RunPlan,
) -> list[Hook]:
    """The hooks of a run. folder: of the run's files. meta: the job's `meta`, unexpanded."""
    tracking = _tracking(section, folder, status)
    event = _to_each([EventLog(folder / "events.jsonl").add, *(hook.event for hook in tracking)])
    saving = _saving(section, network, meta, plan, status, event)
    actions: dict[str, Any] = {"save_now": saving.save_now, "stop": ask_to_stop}
    # Saving comes before sampling: a crash in the less important one loses nothing. What is measured comes before
    # saving: the state of a step knows it.
    hooks: list[Hook] = [MetricsHook(), *measuring(section, network, validator, saving, status), saving]
    if sampler:
        sampling = _sampling(section, network, sampler, status, event)
        actions["sample_now"] = sampling.sample_now
        hooks.append(sampling)
    # The status comes last: "finished" means that every file is there.
    hooks += [ControlHook(actions), *tracking, StatusHook(status, section.logging.log_every), WatchdogHook(status.note)]
    return hooks


def log_of(hooks: Iterable[Hook]) -> Callable[[int, dict[str, float]], None]:
    """What `run.log` does with these hooks."""
    return _to_each([hook.log for hook in hooks if isinstance(hook, TrackerHook)])


def _to_each(listeners: Sequence[Callable[..., None]]) -> Callable[..., None]:
    def tell(*arguments: Any, **details: Any) -> None:
        for listener in listeners:
            listener(*arguments, **details)

    return tell


def _tracking(section: Any, folder: Path, status: StatusLine) -> list[TrackerHook]:
    if not section.logging.trackers():
        return []
    name = f"{folder.parent.name}/{folder.name}" if section.name else folder.name  # `<job>/<process>`, or the job's
    return [TrackerHook(section.logging, name, folder, status.note)]


def _saving(
    section: Any,
    network: Network,
    meta: dict[str, Any],
    plan: RunPlan,
    status: StatusLine,
    event: Callable[..., None],
) -> SaveHook:
    save = section.save
    writer = (ModelFolderWriter if section.network.trains_model else NetworkWriter)(network, section, meta, plan)
    if "merged_lora" in save.also:
        writer = MergedLoraWriter(writer, network, save, status.note, event)
    return SaveHook(
        writer.prepare,
        Interval(*save.interval()),
        save.files_to_keep(),
        save.max_states_to_keep,
        status.note,
        event,
    )


def _sampling(
    section: Any, network: Network, sampler: Sampler, status: StatusLine, event: Callable[..., None]
) -> SampleHook:
    settings = section.sample or SampleConfig()  # there may be a `first_sample` alone
    usual = PictureSet(range(len(settings.samples)), settings.format)
    first = usual
    if section.first_sample:  # its prompts come after the usual ones
        first = PictureSet(range(len(usual.prompts), len(sampler.prompts)), section.first_sample.format)

    def draw(index: int):
        with network.inference():
            return sampler.draw(index)

    return SampleHook(
        draw,
        usual,
        Interval(*settings.interval(), start=settings.sample_start_step),
        first=first if draws_first(section) else None,
        at_each_start=section.train.force_first_sample,
        note=status.note,
        event=event,
    )
