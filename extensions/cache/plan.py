"""What a `cache` process would do: the same scan as training, and no steps. Imports no torch, writes nothing."""

from __future__ import annotations

from toolkit.config.datasets_job import DatasetsJob
from toolkit.config.process import JobContext
from toolkit.data.held_out import scan_job
from toolkit.data.manifest import Manifest
from toolkit.data.order import count_batches
from toolkit.data.plan import RunPlan, folder_plans
from toolkit.models.families import family_for, yet_to_come


def plan_cache(config: DatasetsJob, job: JobContext) -> RunPlan:
    """The plan of a checked `cache` section."""
    manifest = Manifest.beside(config.training_folder)
    scan, items, held_out = scan_job(config, family_for(config.model), manifest)
    return RunPlan(
        type=config.type,
        name=config.display_name(job),
        datasets=folder_plans(scan.folders, items),
        samples_per_epoch=sum(item.sample.repeats for item in items),
        micro_batches_per_epoch=count_batches(items, config.train.batch_size),
        optimizer_steps=0,
        lines=(*yet_to_come(config.model, job), *scan.notes, *(held_out.notes if held_out else ())),
    )
