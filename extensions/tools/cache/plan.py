"""The plan of a `cache` process: the same scan as in training, and no steps.

It imports no torch, encodes nothing and writes no cache. `CacheConfig.plan` in `config`
calls it for the plan of a job and for `--dry-run`.
"""

from __future__ import annotations

from toolkit.config.reading.process import JobContext
from toolkit.config.sections.trainer import DiffusionSection
from toolkit.data.batches.epoch_order import count_batches
from toolkit.data.scan.directory import ScanCache
from toolkit.data.scan.validation_split import scan_and_split
from toolkit.models.families import family_for, unknown_family, yet_to_come
from toolkit.plan.outlook import ModelOutlook, Outlook
from toolkit.plan.run_plan import RunPlan, folder_plans


def plan_cache(config: DiffusionSection, job: JobContext) -> RunPlan:
    """The plan of a checked `cache` section."""
    model = ModelOutlook.of(config.model, job)
    lines = tuple(unknown_family(config.model))
    if lines:
        name, outlook = config.display_name(job), Outlook(model)
        return RunPlan(config.type, name, (), 0, 0, 0, notes=lines, outlook=outlook)
    scan_cache = ScanCache.beside(config.training_folder)
    scan, items, validation_split = scan_and_split(
        config, family_for(config.model), scan_cache
    )
    return RunPlan(
        type=config.type,
        name=config.display_name(job),
        datasets=folder_plans(scan.folders, items),
        samples_per_epoch=sum(item.sample.repeats for item in items),
        micro_batches_per_epoch=count_batches(items, config.train.batch_size),
        optimizer_steps=0,
        notes=(
            *yet_to_come(config.model, job),
            *scan.notes,
            *(validation_split.notes if validation_split else ()),
        ),
        outlook=Outlook(
            model,
            will_not_start=tuple(model.why_not_loaded(config.device, config.model)),
        ),
    )
