"""The section of `type: download`, which is also the flags of `run.py download`.

It checks the name. It does not contact the hub: `process` does. The reader of jobs and
of flags (`toolkit.config.reading`) makes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from toolkit.config.reading.process import Diagnostic, JobContext
from toolkit.config.reading.tool import ToolConfig
from toolkit.config.sections.model_files import path_fault


class DownloadConfig(ToolConfig):
    """`type: download`: downloads a model, a text encoder or a LoRA of the hub to
    HF_HOME, as a job would when it starts.

    The size is printed first, and has to fit on the disk. What was interrupted goes
    on.
    """

    process_types: ClassVar[tuple[str, ...]] = ("download",)
    positional: ClassVar[tuple[str, ...]] = ("model",)
    example: ClassVar[str] = "owner/name"

    model: str
    """Hub id, `owner/name`, or one file of the hub, `owner/name/path/of/file`."""

    revision: str = ""
    """Branch, tag or commit of a model. Empty: `main`."""

    def is_here(self) -> bool:
        """Whether the model is a path on this disk."""
        return Path(self.model).expanduser().exists()

    def check(self, job: JobContext) -> Iterable[Diagnostic]:
        """A name without its owner, or an address, unless it is a path on this disk."""
        is_id = "/" in self.model.strip("/") and "://" not in self.model
        if not (is_id or self.is_here()):
            yield Diagnostic(("model",), path_fault(self.model))
