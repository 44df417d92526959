"""`train.preference`: of pairs of images the network learns to make the better one rather than the worse one."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from toolkit.config.base import StrictModel
from toolkit.config.field_types import PathStr
from toolkit.config.findings import Findings, JobContext, check_path

MARGIN, RIGHT, DISTANCE = "preference/margin", "preference/right", "preference/distance"
"""Metrics of the pairs of a step: the mean argument of the sigmoid; the share of pairs of which the network prefers the
better image; the mean squared difference between its velocity and that of the reference."""

HELD_OUT_RIGHT, HELD_OUT_MARGIN = f"validation/{RIGHT}", f"validation/{MARGIN}"
"""Metrics of the pairs of the validation."""

FEW_PAIRS = 10
"""Below so many pairs a run learns these images rather than what they have in common."""


class PreferenceConfig(StrictModel):
    """`train.preference`: Diffusion-DPO on the pairs of the datasets: images whose table has a column `worse`
    (docs/preferences.md). Images without one are trained as usual. With `validation`, its loss is that of held-out
    pairs."""

    beta: float = Field(default=350.0, gt=0, le=1e7)
    """How closely the network stays to the reference: the higher, the less it departs from it. 0 is an error."""

    share: float = Field(default=1.0, gt=0, le=1)
    """Fraction of the micro-batches in which pairs are compared, chosen at random by the seed; in the others the better
    images are trained as usual. 0 is an error: omit the section."""

    sft_weight: float = Field(default=0.0, ge=0, le=1e6)
    """Factor on the ordinary loss of the better image, which is added. 0: none."""

    reference: PathStr = ""
    """A LoRA file that the reference has beside the model: the one that `network.pretrained_lora_path` starts from,
    say. Empty: the model alone."""

    on_resume: ClassVar = {"reference": "harmless"}  # the sha256 that a state records says what is in the file

    def check(self, job: JobContext) -> Findings:
        """A file that is missing."""
        yield from check_path("reference", self.reference or None, "Give a LoRA file.", job, file=True)
