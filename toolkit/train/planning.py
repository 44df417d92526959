"""What every trainer's plan says, and every trainer's start refuses: too little memory, too little disk, a folder in
which the job cannot continue. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from toolkit.config.model import ModelConfig
from toolkit.config.process import JobContext
from toolkit.config.sections import ImageTrainingSection, TrainerConfig
from toolkit.data.fingerprint import DatasetHashes
from toolkit.data.run_plan import RunPlan, optimizer_steps
from toolkit.data.scan_cache import CACHE_FOLDER
from toolkit.errors import UserError
from toolkit.memory.estimate import ENCODING, Machine, MemoryEstimate
from toolkit.memory.oom_hints import shortage_of
from toolkit.train.outlook import run_outlook
from toolkit.train.resumption import Corrections


def shortage(section: TrainerConfig, machine: Machine, plan: MemoryEstimate) -> str:
    """Why the run does not start; empty where it does: it may fit, or `memory_check: false` starts it all the same."""
    encoded = (Path(section.training_folder).expanduser() / CACHE_FOLDER).is_dir()  # then nothing may be left to encode
    return shortage_of(plan, machine, section.memory_check, without={ENCODING} if encoded else frozenset())


def refusals(section: TrainerConfig, folder: Path, plan: RunPlan, machine: Machine) -> Iterator[str]:
    """Why a run of this plan does not start, most important first. folder: of the run."""
    if isinstance(plan.memory, MemoryEstimate) and (lack := shortage(section, machine, plan.memory)):
        yield f"memory: {lack}"
    try:
        if plan.save_size:
            plan.save_size.check(folder)
    except UserError as error:
        yield str(error)


def disk_bytes(section: TrainerConfig, plan: RunPlan) -> int | None:
    """Bytes of all states and files that are there at once; None: not known."""
    if plan.save_size is None or (isinstance(section, ImageTrainingSection) and section.unknown_steps()):
        return None
    save, steps, train = section.save, plan.optimizer_steps, section.train
    every = optimizer_steps(*save.interval(), plan.micro_batches_per_epoch, train.gradient_accumulation)
    saves = steps // every if every else 0
    files = min(saves, save.files_to_keep() or saves) + 1 + (section.validation is not None)
    # A state is written before an older one goes.
    states = saves + bool(not every or steps % every) if save.states == "always" else save.states == "at_end"
    states = min(states, save.max_states_to_keep + 1) if save.max_states_to_keep else states
    raw = 2 if "raw" in getattr(save, "also", ()) and train.ema_config.use_ema else 1
    return files * raw * plan.save_size.file + states * plan.save_size.state


def with_outlook(
    section: TrainerConfig,
    job: JobContext,
    plan: RunPlan,
    machine: Machine,
    found: Callable[[], DatasetHashes],
    corrections: Corrections = lambda revision: [],
    model: ModelConfig | None = None,
) -> RunPlan:
    """The plan of a dry run, with what a start of it would do. found, corrections, model: as of `run_outlook`."""
    # The section of a plan's line says it; `memory: ` is for an error.
    refused = (reason.removeprefix("memory: ") for reason in refusals(section, section.run_folder(job), plan, machine))
    needed = disk_bytes(section, plan)
    outlook = run_outlook(
        section, job, plan.optimizer_steps, found, corrections, needed, model, tuple(refused), plan.step_work
    )
    return replace(plan, outlook=outlook)
