"""The section of `type: best`: the run, and how its saved LoRAs are measured.

The section finds the files of the run and checks its keys. Nothing is loaded or
measured here: `process` does that. A job or the command line fills the section in
(`toolkit/config/reading`). Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from extensions.tools.shared.keys import RunToolConfig, check_page
from extensions.tools.shared.run_job import loras_by_step, training_section
from toolkit.config.reading.field_types import WritePathStr
from toolkit.config.reading.process import Diagnostic, JobContext
from toolkit.config.sections.trainer import Device, DiffusionSection
from toolkit.errors import RunError, UserError
from toolkit.files.run_files import best_stem
from toolkit.files.safetensors_io import is_own_file
from toolkit.files.writing import read_object, why_not_replaced
from toolkit.train.run_reader import NetworkFile, RunInfo, read_run


class BestConfig(RunToolConfig):
    """`type: best`: measures the saved LoRAs of a run on its held-out images, and says
    which to use."""

    process_types: ClassVar[tuple[str, ...]] = ("best",)
    example: ClassVar[str] = "output/quickstart"
    flags: ClassVar[dict[str, str]] = {"as_json": "--json"}

    images: int = Field(default=16, ge=1)
    """Most images whose loss is measured."""

    device: Device = "auto"
    """Where to compute: auto, cuda, cuda:N, mps or cpu."""

    link: bool = False
    """Name the recommended file `<name>_best.safetensors` too."""

    overwrite: bool = False
    """With `link`: replace another file of that name that this program wrote."""

    output: WritePathStr = ""
    """JSON file for the numbers. Empty: `best.json` in the run's folder."""

    as_json: bool = False
    """Print one JSON object, that of `output`; the lines for people go to standard
    error."""

    def info(self) -> RunInfo:
        """The run. Raises RunError where there is none."""
        return read_run(self.folder())

    def output_path(self) -> Path:
        """`output` as a path."""
        if self.output:
            return Path(self.output).expanduser()
        return self.folder() / "best.json"

    def best_file(self) -> Path:
        """The file that `link` writes."""
        return self.folder() / f"{best_stem(self.info().name)}.safetensors"

    def files(self) -> list[NetworkFile]:
        """The saved LoRAs sorted by step, one for each step."""
        return loras_by_step(self.folder())

    def training(self) -> DiffusionSection:
        """The training section of the run. Raises UserError as `training_section`."""
        return training_section(self.info())

    def outputs(self, job: JobContext) -> frozenset[Path]:
        """The numbers; the file of `link` is in the run's folder."""
        return frozenset({self.output_path().resolve()})

    def check(self, job: JobContext) -> Iterable[Diagnostic]:
        """Reports a folder without a run of LoRAs, and a file in the way of the
        link."""
        if job.will_write(self.folder()):
            return
        try:
            training = self.training()
        except (RunError, UserError) as error:
            yield Diagnostic(("run",), str(error))
            return
        if self.link and not training.validation:
            message = "the run has no section 'validation', so no file can be recommended. Leave it out."
            yield Diagnostic(("link",), message)
        if not self.files():
            yield Diagnostic(("run",), f"{self.run!r} holds no saved LoRA.")
        yield from check_page(self.output_path(), _is_measurement, "best.json")
        if self.link:
            best = self.best_file()
            reason = why_not_replaced(best, is_own_file)
            if best.exists() and not self.overwrite:
                remedy = "Set overwrite (--overwrite), or move it."
                reason = reason or f"{best} is there already. {remedy}"
            if reason:
                yield Diagnostic(("link",), reason)


def _is_measurement(path: Path) -> bool:
    """Whether a file has the numbers that `best` writes."""
    return "recommended" in read_object(path)
