"""`sample`: images drawn during training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from toolkit.config.base import StrictModel
from toolkit.config.compat.output import SAMPLE, SAMPLE_ITEM
from toolkit.config.control_slots import Slots
from toolkit.config.field_types import literal_with_aliases


def _false_is_empty(value: Any) -> Any:
    return "" if value is False else value


Negative = Annotated[str, BeforeValidator(_false_is_empty)]


class SampleItem(StrictModel):
    """`sample.samples[]`: one image. What it does not give comes from the `sample` section."""

    prompt: str
    """The prompt; `[trigger]` is replaced, nothing is put before it. It may end in flags between spaces: `--w`, `--h`,
    `--d` (seed), `--s` (steps), `--l` (guidance_scale), `--n` (neg), `--fs` (flow_shift), and up to 3 times `--ci`
    (ctrl_img; a path that holds a flag in quotes)."""

    width: int | None = Field(default=None, ge=64)
    """Pixels, at least 64."""

    height: int | None = Field(default=None, ge=64)
    """Pixels, at least 64."""

    neg: Negative | None = None
    """Negative prompt; empty or false: one space."""

    seed: int | None = Field(default=None, ge=0)
    """Seed of the noise; 0 is a valid seed."""

    guidance_scale: float | None = Field(default=None, ge=0)
    """Strength of classifier-free guidance; 0 to 1: off."""

    sample_steps: int | None = Field(default=None, ge=1)
    """Denoising steps."""

    flow_shift: float | None = Field(default=None, gt=0)
    """Shift of the noise levels, 1 is none. Not given: by the image's size, as the model's own sampling. 0 is an
    error: there would be no noise."""

    ctrl_img: Slots = ()
    """Reference image, or list of up to 3 in slot order; none: the image is made from text alone."""

    foreign: ClassVar = SAMPLE_ITEM
    may_be_empty: ClassVar = frozenset({"prompt", "neg"})


class SamplePicture(SampleItem):
    """A `SampleItem` with everything filled in."""

    width: int
    height: int
    neg: str
    seed: int
    guidance_scale: float
    sample_steps: int


class SampleConfig(StrictModel):
    """`sample`: images drawn before, during and after training."""

    sampler: Annotated[
        Literal["flowmatch"],
        *literal_with_aliases("flowmatch"),
    ] = "flowmatch"
    """Sampler; Qwen-Image knows flow matching only."""

    sample_every: int = Field(default=250, ge=0)
    """Optimizer steps between two sets of samples; 0: none at intervals."""

    sample_every_n_epochs: int = Field(default=0, ge=0)
    """Epochs between two sets; above 0 it decides, and `sample_every` does nothing. 0: none at the end of epochs."""

    sample_start_step: int = Field(default=0, ge=0)
    """Optimizer step before which none are drawn at intervals. 0: none is too early."""

    sample_at_first: bool | None = None
    """Draw a set before step 1. Not given: yes, unless `train.skip_first_sample`."""

    samples: tuple[SampleItem, ...] = ()
    """The images of one set."""

    width: int = Field(default=1024, ge=64)
    """Pixels, at least 64."""

    height: int = Field(default=1024, ge=64)
    """Pixels, at least 64."""

    neg: Negative = ""
    """Negative prompt; empty or false: one space."""

    seed: int = Field(default=42, ge=0)
    """Seed of the noise; 0 is a valid seed."""

    walk_seed: bool = False
    """Picture i of a set has the seed `seed` + i."""

    guidance_scale: float = Field(default=4.0, ge=0)
    """Strength of classifier-free guidance; 0 to 1: off."""

    sample_steps: int = Field(default=20, ge=1)
    """Denoising steps."""

    flow_shift: float | None = Field(default=None, gt=0)
    """Shift of the noise levels, 1 is none. Not given: by the image's size, as the model's own sampling."""

    format: Annotated[
        Literal["jpg", "png", "webp"], *literal_with_aliases("jpg", "png", "webp", aliases={"jpeg": "jpg"})
    ] = "jpg"
    """File format."""

    foreign: ClassVar = SAMPLE

    def interval(self) -> tuple[int, int]:
        """(optimizer steps, epochs) between two sets, of which at most one is above 0."""
        if "sample_every_n_epochs" not in self.model_fields_set:
            return self.sample_every, 0
        if self.sample_every_n_epochs or "sample_every" not in self.model_fields_set:
            return 0, self.sample_every_n_epochs
        return self.sample_every, 0

    def unused_keys(self) -> Iterator[tuple[str, str]]:
        """Keys given that the rest of the section makes no use of, and why."""
        epochs = self.interval()[1]
        if epochs and self.sample_every and "sample_every" in self.model_fields_set:
            yield "sample_every", f"has no effect: 'sample_every_n_epochs: {epochs}' decides. Leave one of them out."

    def sample_items(self) -> tuple[SamplePicture, ...]:
        """The items of one set with everything filled in from the section."""
        return tuple(self._picture(index, item) for index, item in enumerate(self.samples))

    def _picture(self, index: int, item: SampleItem) -> SamplePicture:
        shared = {
            "width": self.width,
            "height": self.height,
            "neg": self.neg,
            "seed": self.seed + (index if self.walk_seed else 0),
            "guidance_scale": self.guidance_scale,
            "sample_steps": self.sample_steps,
            "flow_shift": self.flow_shift,
        }
        missing = {key: value for key, value in shared.items() if getattr(item, key) is None}
        return SamplePicture.model_construct(item.model_fields_set | missing.keys(), **{**dict(item), **missing})
