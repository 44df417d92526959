"""The section of `type: new`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from extensions.tools.shared.keys import check_folder
from toolkit.config.field_types import PathStr
from toolkit.config.model import ModelConfig
from toolkit.config.process import Diagnostic, JobContext
from toolkit.config.tool import ToolConfig
from toolkit.files.writing import CONFIG_SUFFIXES, file_in_the_way


class NewConfig(ToolConfig):
    """`type: new`: writes a job that trains a character or a style on a folder of images, based on the example for this
    GPU, then checks the images (`lint`, with a preview page) and prints the plan."""

    process_types: ClassVar[tuple[str, ...]] = ("new",)
    positional: ClassVar[tuple[str, ...]] = ("job_name", "folder")

    job_name: str = Field(pattern=r"^\w[\w.-]*$", max_length=100)
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

    def preview(self) -> Path:
        """The page of `lint --preview`, beside the job."""
        return self.path().with_suffix(".html")

    def check(self, job: JobContext) -> Iterable[Diagnostic]:
        """A folder that is missing, a job that is there already."""
        path = self.path()
        if self.model and (fault := ModelConfig(name_or_path=self.model).file_fault):
            yield Diagnostic(("model",), fault)
        yield from check_folder(("folder",), self.folder, job)
        if path.suffix not in CONFIG_SUFFIXES[:2]:
            yield Diagnostic(("output",), f"{str(path)!r} must end in .yaml.")
        elif file := file_in_the_way(path.parent):
            yield Diagnostic(("output",), f"'{file}' is a file. Give another place.")
        elif path.exists():
            yield Diagnostic(("output",), f"'{path}' exists and is never replaced. Give another --output or name.")
