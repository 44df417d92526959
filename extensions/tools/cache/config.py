"""The section of `type: cache`, and the flags of `run.py cache JOB`.

The command names a job file, and the process type is part of a job. Both check
that no run reads the entries that `prune` deletes. `process` runs with either one.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, Field

from toolkit.config.reading.field_types import PathStr
from toolkit.config.reading.foreign import ForeignName
from toolkit.config.reading.loader import load_job
from toolkit.config.reading.located import ConfigNode, Diagnostics
from toolkit.config.reading.normalise import place_in
from toolkit.config.reading.process import (
    Diagnostic,
    JobConfig,
    JobContext,
    ProcessConfig,
)
from toolkit.config.reading.tool import ToolConfig
from toolkit.config.sections.trainer import DiffusionSection
from toolkit.errors import UserError
from toolkit.extension import discover
from toolkit.files.writing import CACHE_FOLDER, find_config
from toolkit.train.run_reader import RunStatus, list_runs

if TYPE_CHECKING:
    from toolkit.plan.run_plan import RunPlan


class CacheOptions(ProcessConfig):
    """Keys that a job and the command share.

    Example::

        class CacheConfig(CacheOptions, DiffusionSection):
            process_types: ClassVar[tuple[str, ...]] = ("cache",)
    """

    skip_existing: bool = False
    """Trust existing entries instead of verifying all of them and recomputing damaged
    ones."""

    workers: int = Field(default=1, ge=1, le=64)
    """Threads that read images and entries; the encoders process one item at a time."""

    prune: bool = False
    """Delete the latents and text embeddings that the datasets and sample prompts do
    not use, and the quantized models other than the job's (`model.keep_quantized`).
    Other jobs of the same `training_folder` share the cache: entries that only they use
    are recomputed when they need them."""

    keep: bool = False
    """Only count what `prune` would delete."""

    def check_prune(self, folder: Path) -> Iterable[Diagnostic]:
        """A run that may read entries that would be deleted."""
        runs = list_runs(folder) if self.prune and not self.keep else ()
        training = [run for run in runs if run.status is RunStatus.RUNNING]
        for run in training[:1]:
            message = f"{run.folder} is training from this cache. Wait until it has ended, or remove 'prune'."
            yield Diagnostic(("prune",), message)


class CacheConfig(CacheOptions, DiffusionSection):
    """`type: cache`: encodes the datasets and sample prompts of a training job and
    stops.

    It accepts every key of `sd_trainer`; those that only concern training are checked
    but not used.

    Example:
        type: cache
        training_folder: output
        model: {name_or_path: Qwen/Qwen-Image-Edit-2511}
        datasets: [{folder_path: datasets/my_char}]
    """

    process_types: ClassVar[tuple[str, ...]] = ("cache",)

    not_used: ClassVar = frozenset({"train", "logging"})
    other_shapes: ClassVar = {"dtype": ForeignName("converted_to", ("train.dtype",))}

    @classmethod
    def rewrite(
        cls, entries: dict[str, ConfigNode], diagnostics: Diagnostics
    ) -> dict[str, ConfigNode]:
        """Accepts `dtype` in the process itself, so that a cache needs no `train`
        section."""
        dtype = entries.pop("dtype", None)
        if dtype is not None:
            place_in(entries, "train", "dtype", dtype, diagnostics)
        return entries

    def outputs_exist(self, job: JobContext) -> bool:
        """Whether the cache folder exists; training encodes missing entries."""
        return (
            not self.prune
            and (Path(self.training_folder).expanduser() / CACHE_FOLDER).is_dir()
        )

    def check(self, job: JobContext) -> Iterable[Diagnostic]:
        """A run that may read entries that would be deleted."""
        yield from super().check(job)
        yield from self.check_prune(Path(self.training_folder).expanduser())

    def plan(self, job: JobContext) -> RunPlan:
        """The plan: the images that are encoded."""
        from extensions.tools.cache.plan import plan_cache

        return plan_cache(self, job)

    @property
    def dtype(self) -> str:
        """Dtype of the cached tensors."""
        return self.train.dtype


class CacheCommand(CacheOptions, ToolConfig):
    """`run.py cache JOB`: encodes the datasets and sample prompts of a training job, as
    `type: cache` does."""

    positional: ClassVar[tuple[str, ...]] = ("job",)
    example: ClassVar[str] = "config/examples/quickstart.yaml"

    job: PathStr
    """The job: a file, or the name of one in config/."""

    def job_config(self) -> JobConfig:
        """The job. Raises ConfigErrors where it is not valid; what only concerns
        training is not looked at, as with `type: cache`."""
        known = discover()

        def find_model(uid: str) -> type[BaseModel] | None:
            model = known.find_config(uid)
            if model is None or not issubclass(model, DiffusionSection):
                return model

            own: Any = model

            # its own class: an extension of `sd_trainer` has keys of its own
            class Encoded(own):  # type: ignore[misc]
                not_used = own.not_used | CacheConfig.not_used
                check = DiffusionSection.check

            return Encoded

        return load_job(find_config(self.job), find_model)

    def check(self, job: JobContext) -> Iterable[Diagnostic]:
        """The job itself."""
        try:
            entries = [entry.section for entry in self.job_config().processes]
        except UserError as error:
            if type(error) is not UserError:
                raise  # the errors in the job, each with its place
            yield Diagnostic(("job",), str(error))
            return
        sections = [one for one in entries if isinstance(one, DiffusionSection)]
        if not sections:
            yield Diagnostic(
                ("job",),
                f"{self.job!r} has no process whose datasets can be encoded in advance.",
            )
        folders = {Path(section.training_folder).expanduser() for section in sections}
        for folder in folders:
            yield from self.check_prune(folder)
