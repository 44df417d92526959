"""The section of `type: publish`, which is also the flags of `run.py publish`.

It checks that the folder is a run with a saved LoRA, and selects the files to publish.
It does not contact the hub: `process` does. The reader of jobs and of flags
(`toolkit.config.reading`) makes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from extensions.tools.shared.keys import RunToolConfig, check_place
from toolkit.commands import command
from toolkit.config.reading.field_types import WritePathStr
from toolkit.config.reading.process import Diagnostic, JobContext
from toolkit.config.reading.tool import flag_of
from toolkit.errors import RunError
from toolkit.train.run_reader import NetworkFile, list_network_files, read_run


class PublishConfig(RunToolConfig):
    """`type: publish`: uploads the LoRA of a run with a model card, samples and a
    report to the Hugging Face hub.

    The files are listed first, and contain no image or caption of the dataset and no
    path. The token comes from HF_TOKEN or `hf auth login`.
    """

    process_types: ClassVar[tuple[str, ...]] = ("publish",)
    example: ClassVar[str] = "output/quickstart --repo my_lora --preview output/upload"

    repo: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?$",
        max_length=96,
    )
    """Repository: `name` for your own account, or `owner/name`. It is created if it
    does not exist."""

    private: bool = True
    """Create a private repository. The visibility of an existing one is not changed; a
    public one is refused."""

    files: Literal["final", "all"] = "final"
    """final: the final LoRA file, or the last one that was saved. all: also the
    files of the steps and the best one."""

    samples: int = Field(default=6, ge=0, le=100)
    """Maximum number of samples, of the last step. 0: none."""

    full_report: bool = False
    """Upload the `report.html` of the run's folder: with thumbnails of up to 300
    training images, their captions and names, the job, the log, events, and the paths
    in them. false: if the run has one, a report without these."""

    licence: str = ""
    """Licence in the model card, as an identifier of the hub (`apache-2.0`). Empty:
    the licence in the base model's card."""

    attempts: int = Field(default=5, ge=1, le=100)
    """Attempts if the hub cannot be reached, with pauses of 2, 4, 8, ... seconds, at
    most 60."""

    preview: WritePathStr = ""
    """Folder: the files are written here instead of uploaded. Existing files are never
    overwritten."""

    def loras(self) -> list[NetworkFile]:
        """The LoRA files that are published."""
        saved = list_network_files(self.folder())
        files = [file for file in saved if file.path.suffix == ".safetensors"]
        if self.files == "all":
            return files
        final = [file for file in files if file.kind == "final"]
        return final or [file for file in files if file.kind == "step"][-1:]

    def command(self) -> str:
        """The command line that repeats this upload."""
        given = self.model_dump(exclude={"type", "name", "run"}, exclude_defaults=True)
        flags = [(flag_of(type(self), key), _shown(given[key])) for key in given]
        return command("publish", self.run, *chain.from_iterable(flags))

    def check(self, job: JobContext) -> Iterable[Diagnostic]:
        """A folder without a run or without a LoRA."""
        if job.will_write(self.folder()):
            return
        try:
            read_run(self.folder())
        except RunError as error:
            yield Diagnostic(("run",), str(error))
            return
        if not self.loras():
            yield Diagnostic(("run",), f"{self.run!r} holds no saved LoRA.")
        if self.preview:
            yield from check_place(Path(self.preview).expanduser(), "preview")


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
