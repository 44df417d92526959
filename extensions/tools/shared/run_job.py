"""Finds the training section of a run, and the model that a LoRA file belongs to.

A run's folder holds its job, and a LoRA file has metadata that name its model. Nothing
is loaded or downloaded: only the job, the metadata and the index of a model are read.
Imports no torch.

Tools that work on runs or LoRA files call it (`best`, `doctor`,
`lora_tools`, `publish`, `report`), and so does the page (`ui`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from toolkit.config.reading.loader import load_job
from toolkit.config.reading.process import JobContext
from toolkit.config.sections.model import ModelConfig
from toolkit.config.sections.model_files import INDEX, cached_snapshot
from toolkit.config.sections.trainer import DiffusionSection
from toolkit.errors import RunError, UserError
from toolkit.extension import discover
from toolkit.files.run_files import CONFIG, FOLDER_METADATA
from toolkit.files.safetensors_io import read_metadata
from toolkit.files.writing import read_object
from toolkit.models.families import published_names
from toolkit.train.run_reader import (
    NetworkFile,
    RunInfo,
    list_network_files,
    read_run,
)

BASE_MODEL = "base_model"
"""Key of the metadata: the model as `ModelConfig.public_name` has it, so that no path
of a user is given away."""


def training_section(run: RunInfo, check_files: bool = True) -> DiffusionSection:
    """The training section of a run, from the job that is saved with it. check_files:
    False where the dataset may be gone.

    Raises UserError where there is none, and as `load_job` does.
    """
    if run.config is None:
        raise UserError(
            f"{run.folder}: holds no job ({CONFIG}), so its model and images are not known."
        )
    job = load_job(run.config, discover().find_config, check_files=check_files)
    for entry in job.processes:
        section = entry.section
        if (
            isinstance(section, DiffusionSection)
            and section.display_name(JobContext(job.name)) == run.name
        ):
            return section.with_seed(_seed_of(run.folder))
    raise UserError(f"{run.folder}: this run does not save LoRAs.")


def _seed_of(folder: Path) -> int:
    """The training seed that a run has drawn or was given, from the metadata of its
    files; 0 where they have none."""
    file = last_saved(folder)
    if file and file.is_file():
        return int(read_metadata(file).get("ss_seed", 0))
    return 0


def control_images(run: RunInfo) -> list[list[Path]]:
    """The control images of each sample prompt, from the job that is saved with the
    run; none where the job cannot be read, because it is damaged, or is a job of
    another trainer or version."""
    try:
        section = training_section(run, check_files=False)
    except UserError:
        return []
    return [
        [Path(path).expanduser() for path in item.ctrl_img]
        for item in section.sample_pictures()
    ]


def last_saved(folder: Path) -> Path | None:
    """The file, or folder, of weights that a run has saved last; None: it has saved
    none."""
    saved = _by_step(list_network_files(folder))
    return saved[-1].path if saved else None


def loras_by_step(folder: Path) -> list[NetworkFile]:
    """The LoRA files of a run in the order of their steps, one for each step."""
    saved = list_network_files(folder)
    return _by_step(file for file in saved if file.path.suffix == ".safetensors")


def _by_step(saved: Iterable[NetworkFile]) -> list[NetworkFile]:
    """One file of each step: the final one, else the main one, whose names are the
    shortest. A final file that does not say its step is the last."""
    files = [file for file in saved if file.kind != "best"]
    files.sort(key=lambda file: -len(file.path.name))
    by_step = {math.inf if one.step is None else one.step: one for one in files}
    return [by_step[step] for step in sorted(by_step)]


def validation_every(steps: int) -> int:
    """Steps between validations, so that a run of so many steps has several: advice
    names it as `validation.every`.

    >>> validation_every(400)
    50
    """
    return min(250, max(1, steps // 8))


def model_of(file: Path) -> ModelConfig:
    """The model of a LoRA file, or of a folder with a trained model. In the folder of a
    run the job names it; elsewhere the metadata of the file do, and the model must be
    on this disk or published.

    A relative path, or a folder's name, counts from the working directory, else from
    the file's folder or one above. Raises UserError where the model is unknown or does
    not exist.
    """
    try:
        model = training_section(read_run(file.parent), check_files=False).model
    except (RunError, UserError):
        # The file is not in the folder of a run, or its job cannot be read any more.
        model = _of_metadata(file)
    name = model.name_or_path
    for start in (Path(), *file.resolve().parents):
        folder = start / Path(name).expanduser()
        if (folder / INDEX).is_file():
            return model.model_copy(update={"name_or_path": str(folder)})
    if model.is_path() or not (
        name in published_names() or cached_snapshot(name, model.revision)
    ):
        raise UserError(
            f"{file}: its model {name!r} was not found on this machine. Give a model folder or hub id."
        )
    return model


def decoder_note(file: Path) -> str:
    """A note for the user where the samples of a LoRA's run were decoded with another
    VAE than the one of the run's model; empty: they were not."""
    try:
        decoder = training_section(read_run(file.parent), check_files=False).decoder()
    except (RunError, UserError):
        return ""
    if decoder is None:
        return ""
    remedy = f"To decode as they do, give --model and --vae-path {decoder}"
    return f"images are decoded with the VAE of the model, the samples of this run with another one. {remedy}"


def _of_metadata(file: Path) -> ModelConfig:
    try:
        if file.is_dir():
            name = read_object(file / FOLDER_METADATA)[BASE_MODEL]
        else:
            name = read_metadata(file)[BASE_MODEL]
        return ModelConfig(name_or_path=name)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        reason = (
            f"it is not in the folder of a run ({CONFIG}), and its metadata names none"
        )
        raise UserError(
            f"{file}: its model is unknown: {reason}. Give a model folder or hub id."
        ) from None
