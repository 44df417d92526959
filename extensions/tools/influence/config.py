"""The section of `type: influence`: the run, and at which LoRAs and noise levels.

The section plans the measurement (`plan`) and checks that it is possible. Nothing is
loaded or computed here: `process` does that. A job or the command line fills the
section in (`toolkit/config/reading`). Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from extensions.tools.influence.plan import Measurement, plan_measurement
from extensions.tools.shared.keys import RunToolConfig, check_place
from extensions.tools.shared.suspects import FOLDER
from toolkit.config.reading.field_types import (
    OneOf,
    WritePathStr,
    as_list,
    schema_of_list,
)
from toolkit.config.reading.process import Diagnostic, JobContext
from toolkit.config.sections.trainer import Device
from toolkit.errors import RunError, UserError
from toolkit.files.writing import why_not_replaced
from toolkit.plan.run_plan import RunPlan

Levels = Annotated[
    tuple[Annotated[float, Field(gt=0, lt=1)], ...],
    BeforeValidator(as_list),
    Field(min_length=1),
    schema_of_list({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}),
]


class InfluenceConfig(RunToolConfig):
    """`type: influence`: measures how each training image acts on the loss of other
    images, by its gradient at saved LoRAs of a run, and writes a page sorted by it and
    a list of suspects. No image is moved or changed."""

    process_types: ClassVar[tuple[str, ...]] = ("influence",)
    example: ClassVar[str] = "output/quickstart"

    reference: Annotated[Literal["auto", "validation", "others"], OneOf()] = "auto"
    """What an image acts on. validation: the images of the run's validation. others:
    the other training images. auto: the validation where it fits in `epochs`, else the
    others."""

    epochs: float = Field(default=1.0, gt=0)
    """Most passes (one image, forward and backward), in epochs of the run; at least one
    pass for each image is made."""

    checkpoints: int = Field(default=3, ge=1)
    """Most saved LoRAs to measure at, as `epochs` allows: first the one nearest to 3/4
    of the run, where there are gradients left and the LoRA has learned something, then
    the last, then others."""

    levels: Levels = (0.8, 0.6)
    """Noise levels to measure at, 0 to 1, as `epochs` allows, the first one first. At
    high ones the caption decides."""

    threshold: float = Field(default=3.0, gt=0)
    """An image is a suspect if it is at least this many robust standard deviations from
    the others, by influence and length of the gradient together; at most a fifth of the
    images are."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the noise, which is the same for all images; 0 is a valid seed."""

    device: Device = "auto"
    """Where to compute: auto, cuda, cuda:N, mps or cpu."""

    output: WritePathStr = ""
    """Folder for the page, `suspects.txt` and the numbers; one of this program is
    replaced, any other is not. Empty: `influence` in the run's folder."""

    def output_folder(self) -> Path:
        """`output` as a path."""
        if self.output:
            return Path(self.output).expanduser()
        return self.folder() / FOLDER

    def measurement(self) -> Measurement:
        """The planned measurement. Raises RunError and UserError as
        `plan_measurement`."""
        return plan_measurement(
            self.folder(), self.reference, self.epochs, self.checkpoints, self.levels
        )

    def outputs(self, job: JobContext) -> frozenset[Path]:
        """The folder to write."""
        return frozenset({self.output_folder().resolve()})

    def check(self, job: JobContext) -> Iterable[Diagnostic]:
        """Reports a folder without a run of LoRAs or without its images, and a folder
        of another program in the way."""
        if job.will_write(self.folder()):
            return
        try:
            self.measurement()
        except (RunError, UserError) as error:
            yield Diagnostic(("run",), str(error))
        yield from check_place(self.output_folder().parent)
        reason = why_not_replaced(self.output_folder())
        if reason:
            yield Diagnostic(("output",), reason)

    def plan(self, job: JobContext) -> RunPlan | None:
        """The plan of the measurement, with the number of its passes."""
        if job.will_write(self.folder()):
            return None
        notes = self.measurement().notes()
        return RunPlan(self.type, self.display_name(job), (), 0, 0, 0, notes=notes)
