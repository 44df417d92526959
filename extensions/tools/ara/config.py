"""The section of `type: ara`, which is also the flags of `run.py ara`.

It checks the output and the folder of images, and says which model is quantized. It
imports no torch and loads no model: `process` does. The reader of jobs and of flags
(`toolkit.config.reading`) makes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import ClassVar

from pydantic import Field

from extensions.tools.shared.keys import FileToolConfig, check_folder
from toolkit.config.reading.field_types import Dtype, PathStr
from toolkit.config.reading.process import Diagnostic, JobContext
from toolkit.config.sections.model import AUTO_RANK, ModelConfig
from toolkit.config.sections.trainer import Device, DiffusionSection
from toolkit.data.scan.partners import LAYER
from toolkit.errors import UserError
from toolkit.models.families import family_for


class AraConfig(FileToolConfig):
    """`type: ara`: makes an accuracy-recovery adapter: a LoRA that compensates for a
    model's quantization error."""

    process_types: ClassVar[tuple[str, ...]] = ("ara",)
    example: ClassVar[str] = (
        "output/recovery.safetensors --model config/examples/tiny_mascots --qtype int4"
    )
    positional: ClassVar[tuple[str, ...]] = ("output",)
    sections: ClassVar[dict[str, tuple[str, ...]]] = {
        "model": ("name_or_path", "revision", "qtype", "low_vram", "blocks_to_swap")
    }

    model: ModelConfig
    """The model, and the type that its weights are quantized to (`qtype`)."""

    rank: int = Field(default=AUTO_RANK, ge=1)
    """Rank of the adapter: a higher rank leaves a smaller error and takes more
    memory."""

    calibrate: PathStr = ""
    """Folder of images with captions. Their layer inputs determine the importance of
    each weight. Empty: all weights count equally."""

    images: int = Field(default=16, ge=1)
    """Maximum number of images of `calibrate`."""

    resolution: int = Field(default=512, ge=64, le=4096)
    """Size of the images of `calibrate`, in pixels."""

    measure: bool = True
    """Compare an image of the unquantized model with images of the quantized one,
    without and with the adapter. This loads the unquantized model."""

    dtype: Dtype = "bfloat16"
    """Dtype of the computation: the dtype of the training that will use the
    adapter."""

    device: Device = "auto"
    """Device: auto, cuda, cuda:N, mps or cpu."""

    def quantized(self) -> ModelConfig:
        """`model`, quantized and without an adapter."""
        return self.model.model_copy(
            update={"quantize": True, "accuracy_recovery_adapter": None}
        )

    def calibration(self) -> DiffusionSection:
        """The images of `calibrate` as the dataset of a job."""
        dataset = {"folder_path": self.calibrate, "resolution": self.resolution}
        if self._of_layers():
            dataset["layers_suffix"] = LAYER
        return DiffusionSection(
            type=self.type, model=self.quantized(), datasets=(dataset,)
        )

    def _of_layers(self) -> str:
        """The title of a model of layers; empty for other and unknown models."""
        with suppress(UserError):
            family = family_for(self.model)
            return family.title if family.stacks_layers else ""
        return ""

    def check(self, job: JobContext) -> Iterable[Diagnostic]:
        """An output that exists or cannot be written, a folder that is missing."""
        yield from super().check(job)
        title = self._of_layers()
        if self.measure and title:
            message = f"{title} generates no image from text alone, to compare with. Give --measure false."
            yield Diagnostic(("measure",), message)
        if self.calibrate:
            yield from check_folder(("calibrate",), self.calibrate, job)
