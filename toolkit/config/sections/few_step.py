"""LoRA files that are active in addition to the network that is trained.

`train.assistant` is active in training only, the few-step LoRAs of `sample.also` in
samples only.

`train.py` and `output.py` have these sections as fields. `toolkit/train/sampling.py`
uses them; the files are loaded by the trainer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from toolkit.config.reading.base import StrictModel
from toolkit.config.reading.field_types import PathStr
from toolkit.config.reading.findings import (
    Findings,
    JobContext,
    check_path,
    error,
    warning,
)
from toolkit.config.sections.model import ModelConfig
from toolkit.config.sections.model_files import hub_lora, is_offline, lora_file
from toolkit.errors import UserError

MAX_NAME = 40
"""Characters of a name that is part of a file name."""


_ON_THE_HUB = re.compile(r"([\w.-]+)/([\w.-]+)/([\w.-]+\.safetensors)")


def _remedy(path: str) -> str:
    """The remedy for a LoRA file that does not exist: a file of the hub has to be
    downloaded."""
    named = _ON_THE_HUB.fullmatch(path)
    if named is None or Path(named[1]).exists():
        return "Give a LoRA file."
    owner, name, file = named.groups()
    return f"If it is on the hub, run 'hf download {owner}/{name} {file} --local-dir loras' and give loras/{file}."


class AssistantConfig(StrictModel):
    """`train.assistant`: a LoRA file that is added to the frozen model during training
    only.

    Example:
        assistant: {path: owner/training_adapter/adapter.safetensors, multiplier: 1.0}
    """

    path: PathStr
    """A LoRA, DoRA, LoHa, LoKr, OFT, BOFT or GLoRA file (.safetensors), of this or
    another program. Or one of the hub, which is downloaded at the start:
    `owner/repo/file.safetensors`, or `owner/repo` where that has one LoRA."""

    multiplier: float = 1.0
    """Its strength; 0 is an error."""

    # the sha256 that a state records says what is in the file
    on_resume: ClassVar = {"path": "harmless"}

    def file(self) -> str:
        """The file on this disk, also for a LoRA of the hub that is cached. `path`
        itself where the file is not on this disk or not clear."""
        try:
            return lora_file(self.path)
        except UserError:  # `check` says so
            return self.path

    def to_download(self) -> str:
        """The file that a run downloads first, as named on the hub; empty: none."""
        return self.path if hub_lora(self.path)[0] and self.file() == self.path else ""

    def check(self, job: JobContext) -> Findings:
        """A file that is missing, or read for nothing; one of the hub that is not here
        where the hub may not be asked."""
        repository, file = hub_lora(self.path)
        if job.will_write(self.path) or not repository:
            yield from check_path(
                "path",
                self.path,
                "Give a LoRA file, or one of the hub: owner/repo.",
                job,
                file=True,
            )
        else:
            try:
                is_here = lora_file(self.path) != self.path
            except UserError as fault:
                yield error("path", str(fault))
                is_here = True
            if not is_here and is_offline():
                download = " ".join(filter(None, ("hf download", repository, file)))
                yield error(
                    "path",
                    f"{self.path!r} is not in the hub cache, and HF_HUB_OFFLINE forbids to ask the hub. "
                    f"Unset it, or run '{download}' where there is a connection.",
                )
        if self.multiplier == 0:
            yield error(
                "multiplier",
                "0 switches the assistant off. Remove 'train.assistant', or give its strength.",
            )


class FewStepLora(StrictModel):
    """A LoRA file for sampling in few steps, and the sampling settings.

    Example::

        class DeploymentConfig(FewStepLora):
            cfg: float = 1.0
    """

    lora: PathStr
    """The LoRA file, such as Qwen-Image-Lightning, of this or another program."""

    weight: float = 1.0
    """Its strength; 0 is an error."""

    flow_shift: float | None = Field(default=None, ge=0.001, le=1000)
    """Shift of the noise levels, which are then not stretched to the terminal level of
    the model; 3 for Qwen-Image-Lightning. Not given: the model's own. 0 is an error:
    there would be no noise."""

    # the sha256 that a state records says what is in the file
    on_resume: ClassVar = {"lora": "harmless"}

    def check(self, job: JobContext) -> Findings:
        """A file that is missing, or read for nothing."""
        yield from check_path("lora", self.lora, _remedy(self.lora), job, file=True)
        if self.weight == 0:
            yield error(
                "weight",
                "0 switches the LoRA off. Remove this entry, or give its strength.",
            )


class DeploymentConfig(FewStepLora):
    """`sample.also[]`: a deployment of the LoRA. Each sample image is generated with
    these settings too.

    Example:
        also:
          - {lora: lightning.safetensors, steps: 8}
    """

    lora: PathStr = ""
    """The few-step LoRA file, such as Qwen-Image-Lightning, of this or another program.
    Empty: none."""

    model: PathStr = ""
    """Another model of the family (hub id, folder or file), such as
    Qwen/Qwen-Image-2.1-Turbo: its transformer, with the settings of the section
    `model`, stands in the place of the trained one's, and waits in CPU memory
    otherwise. Empty: the model that is trained."""

    levels: tuple[Annotated[float, Field(gt=0, le=1)], ...] = ()
    """Noise levels of the steps, falling, without the 0 at the end; used as they are
    unless `flow_shift` is given. Empty: those of `model` if it is distilled, else
    evenly spaced ones."""

    steps: int | None = Field(default=None, ge=1, le=1000)
    """Denoising steps; another number than there are levels resamples these. Not given:
    one for each level, else 4 with `lora`, or the default of `model`."""

    name: str = Field(default="", max_length=MAX_NAME)
    """Name of its images. Empty: the name of the LoRA file or
    the model."""

    cfg: float = Field(default=1.0, ge=0, le=1000)
    """Strength of classifier-free guidance; 0 to 1: off."""

    lone_key: ClassVar = "lora"

    def key(self, index: int) -> str:
        """The key that messages name. index: its place in `sample.also`, from 0."""
        return f"sample.also.{index}.{'model' if self.model else 'lora'}"

    @property
    def label(self) -> str:
        """The name, else the file name of the model or the LoRA, for the names of
        images: each run of other characters than letters, digits and "-" becomes one
        "-". Never empty."""
        name = self.name or Path(self.model).name or Path(self.lora).stem
        return re.sub(r"[^A-Za-z0-9-]+", "-", name).strip("-")[:MAX_NAME] or "also"

    def check(self, job: JobContext) -> Findings:
        """A file or model that is missing, levels that do not fall, guidance that
        few-step LoRAs are not made for."""
        if self.lora:
            yield from super().check(job)
        if self.model:
            findings = ModelConfig(name_or_path=self.model).check(job)
            yield from (replace(one, key=("model",)) for one in findings)
        if self.lora and self.model:
            yield error(
                "lora",
                "a LoRA beside another model is not supported. Give one of both.",
            )
        elif not (self.lora or self.model or self.levels):
            yield error("lora", "is required. Or give 'model', or 'levels'.")
        if any(below >= level for level, below in pairwise(self.levels)):
            yield error("levels", "have to fall, from at most 1 to above 0.")
        if self.cfg > 1 and self.lora:
            yield warning(
                "cfg",
                f"{self.cfg:g}: few-step LoRAs are made for 1; higher values oversaturate the images.",
            )


def check_labels(also: Iterable[DeploymentConfig]) -> Findings:
    """An error for each entry with the label of an earlier one: their images would have
    the same name."""
    seen: set[str] = set()
    for index, entry in enumerate(also):
        if entry.label in seen:
            yield error(
                f"also.{index}.name",
                f"another entry has the name {entry.label!r} too. Choose another.",
            )
        seen.add(entry.label)
