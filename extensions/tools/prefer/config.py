"""The section of `type: prefer`, which is also the flags of `run.py prefer`.

It resolves the source (a run, a LoRA file or a job) to a model and LoRA files, and
checks the output. It generates nothing: `process` does. The reader of jobs and of flags
(`toolkit.config.reading`) makes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from extensions.tools.shared.candidates import CANDIDATES, read_groups
from extensions.tools.shared.keys import split_strength
from extensions.tools.shared.picture_config import PicturesConfig
from extensions.tools.shared.run_job import last_saved, training_section
from toolkit.config.reading.field_types import PathStr, WritePathStr
from toolkit.config.reading.loader import load_job
from toolkit.config.reading.process import Diagnostic, JobContext
from toolkit.config.sections.model import ModelConfig
from toolkit.config.sections.trainer import DiffusionSection
from toolkit.errors import RunError, UserError
from toolkit.extension import discover
from toolkit.files.writing import CONFIG_SUFFIXES, find_config
from toolkit.train.run_reader import read_run


class PreferConfig(PicturesConfig):
    """`type: prefer`: makes several images of each prompt, which differ in their seed.
    On the page, or in a table, you say which ones are better, and `train.preference`
    learns from that (docs/preferences.md)."""

    process_types: ClassVar[tuple[str, ...]] = ("prefer",)
    positional: ClassVar[tuple[str, ...]] = ("source",)
    example: ClassVar[str] = (
        'output/quickstart --prompt "a pipo mascot, waving" "a pipo mascot, sitting" --count 2'
    )

    source: PathStr
    """Whose images: the folder of a run (its last LoRA), a LoRA file (FILE or
    FILE:STRENGTH), or a job file (its model, with the LoRA that the job starts
    from)."""

    count: int = Field(default=4, ge=2, le=4)
    """Images of each prompt. Four are six pairs to vote on."""

    cfg: float | None = Field(default=None, ge=0, le=1000)
    """Scale of classifier-free guidance; 0 to 1: off. Not given: the model's default, 4
    for most."""

    seed: int = Field(default=42, ge=0, lt=2**62)
    """Seed of the first image of each prompt; the others have the following ones. 0 is
    a valid seed."""

    output: WritePathStr = ""
    """Folder of the images and of the votes on them. Empty: `datasets/<name of the
    source>_votes`. Existing images are kept, and new prompts are added."""

    def folder(self) -> Path:
        """`output` as a path."""
        name = Path(split_strength(self.source)[0]).expanduser().absolute()
        stem = name.name if name.is_dir() else name.stem
        return Path(self.output or f"datasets/{stem}_votes").expanduser()

    def outputs(self, job: JobContext) -> frozenset[Path]:
        """The folder of the images."""
        return frozenset({self.folder().resolve()})

    def check(self, job: JobContext) -> Iterable[Diagnostic]:
        """A source of another kind, no prompt, a folder whose candidates cannot be
        read."""
        yield from self.check_prompt()
        try:
            if (self.folder() / CANDIDATES).exists():
                read_groups(self.folder())
        except UserError as error:
            yield Diagnostic(("output",), str(error))
        if job.will_write(split_strength(self.source)[0]):
            return
        try:
            section = self.resolved()
        except UserError as error:
            yield Diagnostic(("source",), str(error))
        else:
            yield from super(PreferConfig, section).check(job)

    def resolved(self) -> PreferConfig:
        """The section with the folder and the values of the source: its LoRA before the
        files of `lora`, and its model and trigger word where they are not given. Raises
        UserError for a source of another kind."""
        file, _ = split_strength(self.source)
        path = Path(file).expanduser()
        given: dict[str, Any] = {"output": str(self.folder())}
        if path.is_dir():
            try:
                run = read_run(path)
            except RunError as error:
                raise UserError(
                    f"{error} Give the folder of a run, a LoRA file, or a job file."
                ) from None
            saved = last_saved(path)
            if saved is None:
                raise UserError(f"{path}: this run has not saved a file yet.")
            with suppress(UserError):  # its job cannot be read any more
                training = training_section(run, check_files=False)
                given["trigger_word"] = self.trigger_word or training.trigger_word
            if saved.is_dir():
                given["model"] = self.model or ModelConfig(name_or_path=str(saved))
                return self._with(given)
            return self._with(given, str(saved))
        if path.suffix == ".safetensors":
            return self._with(given, self.source)
        if path.suffix in CONFIG_SUFFIXES or not path.suffix:
            config_path = find_config(self.source)
            job = load_job(config_path, discover().find_config, check_files=False)
            for section in (entry.section for entry in job.processes):
                if isinstance(section, DiffusionSection):
                    given["trigger_word"] = self.trigger_word or section.trigger_word
                    given["model"] = self.model or section.model
                    lora = section.network.pretrained_lora_path
                    return self._with(given, *([lora] if lora else []))
            raise UserError(f"{config_path}: this job trains no LoRA.")
        raise UserError(
            f"{self.source!r} is neither the folder of a run, nor a LoRA file, nor a job file."
        )

    def _with(self, given: dict[str, Any], *loras: str) -> PreferConfig:
        return self.model_copy(update={**given, "lora": (*loras, *self.lora)})
