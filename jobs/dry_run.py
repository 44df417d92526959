"""The plan of a job before it runs: `--dry-run`, as text or as JSON.

`plan_job` asks the section of each process for its `RunPlan`, in order, and tells each
one what the processes before it will write. It scans datasets and reads the headers of
model files. It leaves nothing behind, downloads nothing, and does not import torch.

`check_job` makes the same plan of a job that has to wait for another one, so that its
errors appear before anything trains. `claim_folders` refuses a job that would write the
run of another job of the same command. `run.py` calls all three. The numbers themselves
come from `toolkit/plan`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs.job import index_of
from jobs.places import places_of_datasets
from toolkit.commands import command
from toolkit.config import JobConfig, JobContext, ProcessConfig, ProcessEntry
from toolkit.config.reading.process import job_state_file
from toolkit.config.sections.trainer import DatasetsSection
from toolkit.errors import InputErrors, UserError
from toolkit.files.archives import leaving_nothing
from toolkit.plan.run_plan import RunPlan


@dataclass(frozen=True)
class JobPlan:
    """What the processes of a job would do, in order.

    Example::

        plan = plan_job(config)
        print("\n".join(plan.refusals()) or plan.render())
    """

    job: str
    processes: tuple[RunPlan, ...]

    folders: tuple[Path, ...] = ()
    """The folders of run files that the processes own, in their order."""

    notes: tuple[str, ...] = ()
    """Lines about the file."""

    outputs: frozenset[Path] = frozenset()
    """Resolved folders that the job and the jobs before it write."""

    def refusals(self) -> list[str]:
        """The reasons why processes of the job would not start. Empty where all
        would."""
        outlooks = [plan.outlook for plan in self.processes if plan.outlook]
        return [reason for outlook in outlooks for reason in outlook.will_not_start]

    def to_json(self) -> dict[str, Any]:
        """The plan as plain data, as `--dry-run --json` prints it. `notes` is left out
        where it is empty."""
        return {
            "job": self.job,
            "folders": [str(folder) for folder in self.folders],
            "processes": [plan.to_json() for plan in self.processes],
            **({"notes": list(self.notes)} if self.notes else {}),
        }

    def summary(self) -> str:
        """The plan as `--dry-run` prints it: the notes on the file, then each process
        in a few lines."""
        several = [f"Job {self.job}"] if self.notes or len(self.processes) > 1 else []
        notes = [f"  {note}" for note in self.notes]
        return "\n".join([*several, *notes, *(p.summary() for p in self.processes)])

    def render(self) -> str:
        """All of the plan, as `--dry-run -v` prints it: the job, its notes, then each
        process."""
        return "\n".join(
            [
                f"Job {self.job}",
                *(f"  {note}" for note in self.notes),
                *(plan.render() for plan in self.processes),
            ]
        )


@leaving_nothing()
def plan_job(
    config: JobConfig,
    restart: bool = False,
    allow_change: bool = False,
    restart_from: str | None = None,
    memory: bool = False,
    earlier_outputs: frozenset[Path] = frozenset(),
    card: str = "",
) -> JobPlan:
    """The plans of all processes. Raises UserError with the errors of all of them.

    restart, allow_change, restart_from: the options that the run would be given.
    memory: `JobContext.measures_memory`. earlier_outputs: what jobs that run before
    this one will have written. card: `JobContext.card`.
    """
    first_anew = (
        len(config.processes)
        if restart_from is None
        else index_of(config, restart_from)
    )
    plans: list[RunPlan] = []
    folders: list[Path] = []
    errors: list[UserError] = []
    job = JobContext(
        config.name,
        earlier_outputs,
        restart,
        allow_change,
        measures_memory=memory,
        card=card,
    )
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
            job = replace(
                job, earlier_outputs=job.earlier_outputs | entry.section.outputs(job)
            )
    if errors:  # every line once: two processes may use the same dataset
        faults: list[object] = []
        for fault in errors:
            faults += fault.errors if isinstance(fault, InputErrors) else [fault]
        raise UserError("\n".join(dict.fromkeys(map(str, faults))))
    return JobPlan(
        config.name, tuple(plans), tuple(folders), config.notes, job.earlier_outputs
    )


def check_job(
    config: JobConfig,
    restart: bool = False,
    allow_change: bool = False,
    restart_from: str | None = None,
    earlier_outputs: frozenset[Path] = frozenset(),
) -> frozenset[Path]:
    """Plans a job before it, or a job in front of it, trains. Returns the
    `JobPlan.outputs`. Arguments: `plan_job`'s.

    Raises UserError, whose text begins with the file, where the plan has an error or a
    process would not start.
    """
    try:
        plan = plan_job(
            config, restart, allow_change, restart_from, earlier_outputs=earlier_outputs
        )
    except UserError as error:
        if str(error).startswith(f"{config.path}:"):
            raise
        raise UserError(f"{config.path}: {error}") from error
    if reasons := plan.refusals():
        lines = [f"{config.path}: this will not start: {reason}" for reason in reasons]
        raise UserError("\n".join(lines))
    return plan.outputs


def claim_folders(config: JobConfig, owners: dict[Path, Path]) -> None:
    """Adds the folders in which a job keeps its runs to `owners`: folder -> job file.

    Raises UserError where an earlier job of the command has one of them.
    """
    job = JobContext(config.name)
    folders = [
        entry.section.run_folder(job)
        for entry in config.processes
        if isinstance(entry.section, ProcessConfig)
    ]
    if len(config.processes) > 1:
        folders.append(job_state_file(config.name, config.processes).parent)
    for folder in filter(None, folders):
        # unlike `resolve`, it takes links in a circle
        first = owners.setdefault(Path(os.path.realpath(folder)), config.path)
        if first != config.path:
            raise UserError(
                f"{config.path}: writes '{folder}', as {first} does. Give it another 'name', "
                f"or run it alone: {command(config.path, '-n', config.name + '_2')}"
            )


def _plan_process(entry: ProcessEntry, job: JobContext) -> RunPlan:
    """The section's own plan; an empty one for a process without a plan, and for one
    whose images are yet to come."""
    section = entry.section
    plan = None
    notes: tuple[str, ...] = ()
    folders = (
        section.datasets_to_come(job) if isinstance(section, DatasetsSection) else ()
    )
    if folders:
        notes = (
            f"reads {', '.join(folders)}, which an earlier process of the job writes: counted then",
        )
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
