"""The section of `type: align`: the folders of the pairs, and the folder to write.

The section checks that the folders exist and that nothing would be replaced. No image
is opened here: `process` measures and writes them. A job or the command line fills the
section in (`toolkit/config/reading`). Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from extensions.tools.shared.keys import check_folder, check_place
from toolkit.config.reading.field_types import PathOrList, PathStr, WritePathStr
from toolkit.config.reading.process import Diagnostic, JobContext
from toolkit.config.reading.tool import ToolConfig


class AlignConfig(ToolConfig):
    """`type: align`: writes copies of pairs in which each control image lies on its
    image, and a page that shows them. The originals stay as they are."""

    process_types: ClassVar[tuple[str, ...]] = ("align",)
    example: ClassVar[str] = (
        "config/examples/pairs/after --control-path config/examples/pairs/before --output output/aligned"
    )
    positional: ClassVar[tuple[str, ...]] = ("folder",)

    folder: PathStr
    """Folder of the images, as `datasets[].folder_path`."""

    control_path: PathOrList
    """The folders of their control images, as `datasets[].control_path`."""

    mask_path: PathStr = ""
    """Folder of their masks, as `datasets[].mask_path`; images without one are fine.
    They are cut as their images are. Empty: no masks."""

    output: WritePathStr
    """Folder to write, which must not exist yet: `images/`, `references/`
    (`references_2/`, ... for further ones), `masks/` with `mask_path`, and
    `align.html`."""

    most_drift: float = Field(default=0.5, ge=0)
    """Pairs whose corners are off by at most this many pixels, with a long side of at
    most 1024 pixels, are copied unchanged. 0: every pair that is certainly off is
    moved."""

    def outputs(self, job: JobContext) -> frozenset[Path]:
        """The folder to write."""
        return frozenset({Path(self.output).expanduser().resolve()})

    def check(self, job: JobContext) -> Iterable[Diagnostic]:
        """Reports folders that are missing, and an output that exists."""
        yield from super().check(job)
        yield from check_folder(("folder",), self.folder, job)
        if not self.control_path:
            yield Diagnostic(
                ("control_path",),
                "is required: the folder of the control images (--control-path).",
            )
        for slot, folder in enumerate(self.control_path):
            yield from check_folder(("control_path", slot), folder, job)
        if self.mask_path:
            yield from check_folder(("mask_path",), self.mask_path, job)
        output = Path(self.output).expanduser()
        if output.exists() and not job.was_finished:
            yield Diagnostic(
                ("output",),
                f"'{output}' is there already, and nothing is replaced. Give another folder.",
            )
        else:
            yield from check_place(output.parent)
