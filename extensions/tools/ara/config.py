"""The section of `type: ara`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from pydantic import Field

from extensions.tools.shared.keys import FileToolConfig, check_folder
from toolkit.config.field_types import Dtype, PathStr
from toolkit.config.model import AUTO_RANK, ModelConfig
from toolkit.config.process import Diagnostic, JobContext
from toolkit.config.sections import Device, DiffusionSection


class AraConfig(FileToolConfig):
    """`type: ara`: makes an accuracy-recovery adapter: a LoRA that makes up for what quantizing a model loses."""

    process_types: ClassVar[tuple[str, ...]] = ("ara",)
    positional: ClassVar[tuple[str, ...]] = ("output",)
    sections: ClassVar[dict[str, tuple[str, ...]]] = {
        "model": ("name_or_path", "revision", "qtype", "low_vram", "blocks_to_swap")
    }

    model: ModelConfig
    """The model, and the number type that its weights are to have (`qtype`)."""

    rank: int = Field(default=AUTO_RANK, ge=1)
    """Rank of the adapter: the higher, the less is lost, and the more memory it takes."""

    calibrate: PathStr = ""
    """Folder of images with captions. The inputs that layers have for them say which weights matter. Empty: all do."""

    images: int = Field(default=16, ge=1)
    """Most images of `calibrate`."""

    resolution: int = Field(default=512, ge=64, le=4096)
    """Size of the images of `calibrate`, in pixels."""

    measure: bool = True
    """Compare an image of the whole model with those of the quantized one, without and with the adapter. The model is
    loaded whole for it."""

    dtype: Dtype = "bfloat16"
    """Number type that is computed in: that of the training the adapter is for."""

    device: Device = "auto"
    """Where to compute: auto, cuda, cuda:N, mps or cpu."""

    def quantized(self) -> ModelConfig:
        """`model`, quantized and without an adapter."""
        return self.model.model_copy(update={"quantize": True, "accuracy_recovery_adapter": None})

    def calibration(self) -> DiffusionSection:
        """The images of `calibrate` as the dataset of a job."""
        dataset = {"folder_path": self.calibrate, "resolution": self.resolution}
        return DiffusionSection(type=self.type, model=self.quantized(), datasets=(dataset,))

    def check(self, job: JobContext) -> Iterable[Diagnostic]:
        """An output that is there or cannot be written, a folder that is missing."""
        yield from super().check(job)
        if self.calibrate:
            yield from check_folder(("calibrate",), self.calibrate, job)
