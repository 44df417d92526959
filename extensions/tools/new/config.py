"""The section of `type: new`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from extensions.tools.shared.examples import WITHOUT_GPU, is_small, written_job
from extensions.tools.shared.keys import check_folder, name_like
from toolkit.commands import command
from toolkit.config.field_types import PathStr, value_error
from toolkit.config.model import ModelConfig
from toolkit.config.model_files import INDEX, near_id
from toolkit.config.process import Diagnostic, JobContext
from toolkit.config.tool import ToolConfig
from toolkit.errors import UserError
from toolkit.files.writing import CONFIG_SUFFIXES, file_in_the_way
from toolkit.models.families import UnknownFamilyError, family_for
from toolkit.system.nvidia import least_memory
from toolkit.version import with_addresses


def _run_name(name: str) -> str:
    if re.fullmatch(r"\w[\w.-]*", name):
        return name
    message = f"{name!r} cannot be the name of a run: letters, digits, '_', '-' and '.' only."
    raise value_error(f"{message} Write {name_like(name, 'my_char')!r}.")


class NewConfig(ToolConfig):
    """`type: new`: writes a job that trains a character or a style on a folder of images, based on the example for this
    GPU, then checks the images (`lint`, with a preview page) and prints the plan."""

    process_types: ClassVar[tuple[str, ...]] = ("new",)
    example: ClassVar[str] = "my_char config/examples/photos --model config/examples/tiny_mascots"
    positional: ClassVar[tuple[str, ...]] = ("job_name", "folder")

    common_words: ClassVar = {
        key: f"It is a key of the job that this command writes: change '{place}' there."
        for key, place in {
            **dict.fromkeys(("rank", "dim"), "network.linear"), "alpha": "network.linear_alpha",
            "batch-size": "train.batch_size", **{key: f"train.{key}" for key in ("steps", "epochs", "lr", "optimizer")},
            "resolution": "datasets[].resolution",
        }.items()
    }  # fmt: skip

    job_name: Annotated[str, AfterValidator(_run_name)] = Field(max_length=100)
    """Name of the run and of its files: letters, digits, `_`, `-` and `.`."""

    folder: PathStr
    """Folder of images, or one whose subfolders are named `<repeats>_<name>`."""

    trigger_word: str = ""
    """Word for the character or style in prompts. Empty: `job_name`."""

    model: PathStr = ""
    """Hub id, local folder, or file of a transformer as ComfyUI keeps it (docs/models.md). Empty: the one of the
    example."""

    gpu: int = Field(default=0, ge=0)
    """Memory of the GPU in GB, such as 24; 8 or more. 0: that of this machine's GPU, or 24 if it has none."""

    output: PathStr = ""
    """File to write. Empty: `config/<job_name>.yaml`."""

    def path(self) -> Path:
        """`output` as a path."""
        return Path(self.output or f"config/{self.job_name}.yaml").expanduser()

    def job_text(self) -> str:
        """The job. Raises UserError where the GPU is too small for the model."""
        trigger = self.trigger_word or self.job_name
        text = written_job(self.job_name, self.folder, trigger, self.model, self.gpu_gb() or WITHOUT_GPU)
        return with_addresses(text)

    def gpu_gb(self) -> int:
        """GB of the GPU that the job is for; 0: there is none."""
        return self.gpu or round(least_memory() / 2**30)

    def assumed_gb(self) -> int:
        """GB of the card that stands for the GPU of the job in its plan; 0: this machine's own counts, or none is
        needed."""
        if self.gpu or (not self.gpu_gb() and not is_small(self.model)):
            return self.gpu or WITHOUT_GPU
        return 0

    def is_as_written(self) -> bool:
        """Whether the file to write is there as this command writes it: an earlier call was interrupted, or found
        mistakes in the images."""
        with suppress(UserError, OSError, UnicodeDecodeError):
            return self.path().read_text(encoding="utf-8") == self.job_text()
        return False

    def preview(self) -> Path:
        """The page of `lint --preview`, beside the job."""
        return self.path().with_suffix(".html")

    def check(self, job: JobContext) -> Iterable[Diagnostic]:
        """A folder that is missing, a job that is there already."""
        path = self.path()
        yield from self._model_findings(job)
        if Path(self.job_name).is_dir() and not Path(self.folder).exists():
            message = f"{self.folder!r} is not a folder, and {self.job_name!r} is one: the name comes first. "
            yield Diagnostic(("folder",), f"{message}Write: {command('new', self.folder, self.job_name)}")
        else:
            yield from check_folder(("folder",), self.folder, job)
        if path.suffix not in CONFIG_SUFFIXES[:2]:
            yield Diagnostic(("output",), f"{str(path)!r} must end in .yaml.")
        elif file := file_in_the_way(path.parent):
            yield Diagnostic(("output",), f"'{file}' is a file. Give another place.")
        elif path.exists() and not self.is_as_written():
            message = f"'{path}' exists, with other contents, and is never replaced. "
            message += f"Run it ({command(path)}), remove it, or give another --output or name."
            yield Diagnostic(("output",), message)

    def _model_findings(self, job: JobContext) -> Iterable[Diagnostic]:
        """What the job would say against the model, and a hub model of which nothing says the family."""
        if not self.model:
            return
        section = ModelConfig(name_or_path=self.model)
        faults = [finding for finding in section.check(job) if finding.severity == "error"]
        yield from (replace(fault, key=("model",)) for fault in faults)
        if not faults:
            try:
                family_for(section)
            except UnknownFamilyError:
                remedy = f"Run 'hf download {self.model} {INDEX}' and repeat the command."
                message = (
                    f"{self.model!r} is not on this disk, so its family is not known. {near_id(self.model)}{remedy}"
                )
                yield Diagnostic(("model",), message)
            except UserError as error:
                yield Diagnostic(("model",), str(error).removeprefix("model.name_or_path: "))
