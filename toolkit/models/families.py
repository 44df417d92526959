"""Detects the family of a model folder. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from toolkit.config.model_files import (
    INDEX,
    cached_snapshot,
    family_of,
    index_fault,
    local_index,
    looks_like_a_path,
    pipeline_of,
)
from toolkit.config.process import JobContext
from toolkit.errors import UserError, did_you_mean
from toolkit.interfaces import ModelSection
from toolkit.models.family import ModelFamily
from toolkit.registry import FAMILIES


def arch_of(model: ModelSection) -> str | None:
    """The arch that the model's files say it is, of a hub id those in the hub cache; None when they are not here."""
    index = local_index(model.name_or_path, model.revision)
    if index is None:
        return None
    if fault := index_fault(model.name_or_path, index):
        raise UserError(f"model.name_or_path: {fault}")
    family = family_of(pipeline_of(index))
    return family.arch if family else None


def family_for(model: ModelSection) -> ModelFamily:
    """The family of a `model:` section, from the model's own files or from `arch`.

    Raises UserError when the two contradict each other or the family is not supported.
    """
    found = arch_of(model)
    wanted = model.arch
    if found and wanted and found != wanted:
        raise UserError(f"model.arch: {wanted!r}, but the files of {model.name_or_path} are {found!r}. Remove arch.")
    arch = found or wanted or next(iter(FAMILIES))
    if arch not in FAMILIES:
        raise UserError(f"model.arch: {arch!r} is not supported yet. {did_you_mean(arch, FAMILIES)}")
    return FAMILIES.load(arch)


def yet_to_come(model: ModelSection, job: JobContext) -> Iterator[str]:
    """A line for the plan where the model's files are not here, so that a dry run cannot look at them."""
    name, revision = model.name_or_path, model.revision
    if looks_like_a_path(name) or Path(name).is_dir() or Path(name).resolve() in job.earlier_outputs:
        return
    if cached_snapshot(name, revision):
        return
    if local_index(name, revision):
        yield f"{name} is not complete in the hub cache: the run downloads the rest"
    else:
        yield f"{name} is not in the hub cache: the run downloads it once its {INDEX} says that it can be trained"
