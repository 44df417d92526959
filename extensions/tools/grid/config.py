"""The section of `type: grid`, which is also the flags of `run.py grid`.

It adds the LoRA files, strengths and seeds of a grid to `PicturesConfig` and checks
them. It generates nothing: `process` does. The reader of jobs and of flags
(`toolkit.config.reading`) makes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import BeforeValidator, Field

from extensions.tools.shared.html_page import is_page
from extensions.tools.shared.keys import check_loras, check_origins
from extensions.tools.shared.picture_config import PicturesConfig, SeedOrList
from toolkit.config.reading.field_types import (
    PathOrList,
    WritePathStr,
    as_list,
    schema_of_list,
)
from toolkit.config.reading.process import Diagnostic, JobContext
from toolkit.files.writing import why_not_replaced

NumberOrList = Annotated[
    tuple[Annotated[float, Field(ge=-100, le=1000)], ...],
    BeforeValidator(as_list),
    Field(min_length=1),
    schema_of_list({"type": "number", "minimum": -100, "maximum": 1000}),
]
"""One number or a list of numbers."""

INDEX = "index.html"


class GridConfig(PicturesConfig):
    """`type: grid`: generates images with each LoRA file and strength, for each prompt,
    cfg and seed, and shows them on one page for a browser."""

    process_types: ClassVar[tuple[str, ...]] = ("grid",)
    example: ClassVar[str] = (
        '--lora output/quickstart/quickstart.safetensors --strength 0.5 1 --prompt "a pipo mascot, waving"'
    )
    saved_weights: ClassVar[tuple[str, ...]] = ("lora", "also")

    lora: PathOrList
    """LoRA files, such as the files of a run. The first column is the base model alone,
    then one column per file, in this order. FILE:STRENGTH sets the strength of one
    file."""

    strength: NumberOrList = (1.0,)
    """Strengths of the files, one column each. 0: no effect; negative: the opposite
    effect."""

    cfg: NumberOrList | None = None
    """Scales of classifier-free guidance, one row each; 0 to 1: off. Not given: the
    model's default, 4 for most."""

    lone_key: ClassVar[str] = "lora"

    seed: SeedOrList = (42,)
    """Seeds of the noise, one row each. 0 is a valid seed."""

    also: PathOrList = ()
    """LoRA files, as in `lora`, that are applied to all images, including the first
    column, such as a Lightning LoRA."""

    output: WritePathStr = "grid"
    """Folder of the images and of `index.html`, which shows them. A second run
    generates the missing ones."""

    def check(self, job: JobContext) -> Iterable[Diagnostic]:
        """Files that cannot be read, no prompt, a page of something else."""
        yield from super().check(job)
        yield from check_loras("also", self.also, job)
        yield from check_origins("also", self.also, self.found_model)
        if not self.lora:
            yield Diagnostic(("lora",), "is required: the files to compare.")
        yield from self.check_prompt()
        index = Path(self.output).expanduser() / INDEX
        reason = why_not_replaced(index, is_page)
        if reason:
            yield Diagnostic(("output",), reason)
