"""The section of `type: doctor`: the file, and the model it is used with.

The section checks that the file is a safetensors file and that the model exists. The
tensors are examined by `process`. A job or the command line fills the section in
(`toolkit/config/reading`). Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from extensions.tools.shared.keys import check_model_folder, check_safetensors
from toolkit.config.reading.field_types import PathStr
from toolkit.config.reading.process import Diagnostic, JobContext
from toolkit.config.reading.tool import ToolConfig


class DoctorConfig(ToolConfig):
    """`type: doctor`: says what is wrong with a LoRA file, where, and what to do, and
    ends with exit code 1 where something is. Nothing is changed."""

    process_types: ClassVar[tuple[str, ...]] = ("doctor",)
    example: ClassVar[str] = "output/quickstart/quickstart.safetensors"
    positional: ClassVar[tuple[str, ...]] = ("file",)
    flags: ClassVar[dict[str, str]] = {"as_json": "--json"}

    file: PathStr
    """LoRA file, of any program."""

    model: PathStr = ""
    """Model folder that it is to be used with. Empty: the model that the run or the
    metadata name, if it is on this disk, else the published models, of which only names
    and sizes of layers are known."""

    as_json: bool = False
    """Print one JSON object."""

    def check(self, job: JobContext) -> Iterable[Diagnostic]:
        """Reports a file that is missing or is not a safetensors file, and a folder
        without a model."""
        yield from super().check(job)
        yield from check_safetensors(("file",), self.file, job)
        if self.model:
            yield from check_model_folder(("model",), self.model, job)
