"""`--dry-run`: what a job would do, as text or JSON. Scans datasets; writes and downloads nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs.job import index_of
from jobs.places import places_of_datasets
from toolkit.config import JobConfig, JobContext, ProcessConfig, ProcessEntry
from toolkit.config.sections import DatasetsSection
from toolkit.errors import InputErrors, UserError
from toolkit.plan.run_plan import RunPlan


@dataclass(frozen=True)
class JobPlan:
    """What the processes of a job would do, in order."""

    job: str
    processes: tuple[RunPlan, ...]

    folders: tuple[Path, ...] = ()
    """The folders of run files that the processes own, in their order."""

    notes: tuple[str, ...] = ()
    """Lines about the file."""

    def to_json(self) -> dict[str, Any]:
        return {
            "job": self.job,
            "folders": [str(folder) for folder in self.folders],
            "processes": [plan.to_json() for plan in self.processes],
            **({"notes": list(self.notes)} if self.notes else {}),
        }

    def render(self) -> str:
        return "\n".join(
            [f"Job {self.job}", *(f"  {note}" for note in self.notes), *(plan.render() for plan in self.processes)]
        )


def plan_job(
    config: JobConfig,
    restart: bool = False,
    allow_change: bool = False,
    restart_from: str | None = None,
    memory: bool = False,
) -> JobPlan:
    """The plans of all processes. Raises UserError with the errors of all of them.

    restart, allow_change, restart_from: the options that the run would be given. memory: `JobContext.measures_memory`.
    """
    first_anew = len(config.processes) if restart_from is None else index_of(config, restart_from)
    plans: list[RunPlan] = []
    folders: list[Path] = []
    errors: list[UserError] = []
    job = JobContext(config.name, restart=restart, allow_change=allow_change, measures_memory=memory)
    for entry in config.processes:
        job = replace(job, begins_anew=entry.index >= first_anew)
        try:
            with places_of_datasets(entry):
                plans.append(_plan_process(entry, job))
        except UserError as error:
            errors.append(error)
        if isinstance(entry.section, ProcessConfig):
            if folder := entry.section.run_folder(job):
                folders.append(folder)
            job = replace(job, earlier_outputs=job.earlier_outputs | entry.section.outputs(job))
    if errors:  # every line once: two processes may use the same dataset
        found = [each for error in errors for each in (error.errors if isinstance(error, InputErrors) else [error])]
        raise UserError("\n".join(dict.fromkeys(map(str, found))))
    return JobPlan(config.name, tuple(plans), tuple(folders), config.notes)


def _plan_process(entry: ProcessEntry, job: JobContext) -> RunPlan:
    """The section's own plan; an empty one for a process without a plan, and for one whose images are yet to come."""
    section, plan = entry.section, None
    notes: tuple[str, ...] = ()
    if isinstance(section, DatasetsSection) and (folders := section.datasets_to_come(job)):
        notes = (f"reads {', '.join(folders)}, which an earlier process of the job writes: counted then",)
    elif isinstance(section, ProcessConfig):
        plan = section.plan(job)
    return plan or RunPlan(
        type=entry.type,
        name=entry.name or job.name,
        datasets=(),
        samples_per_epoch=0,
        micro_batches_per_epoch=0,
        optimizer_steps=0,
        notes=notes,
    )
