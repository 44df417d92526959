"""`sample`: pictures drawn during training."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from toolkit.config.base import StrictModel
from toolkit.config.choices import one_of
from toolkit.config.node import Node
from toolkit.config.report import Report
from toolkit.config.slots import Slots, gather_slots, slot_names


def _false_is_empty(value: Any) -> Any:
    return "" if value is False else value


Negative = Annotated[str, BeforeValidator(_false_is_empty)]

_ITEM_UNSUPPORTED = {
    "network_multiplier": (1,),
    "guidance_rescale": (0,),
    "num_frames": (1,),
    "do_cfg_norm": (False,),
}


class SampleItem(StrictModel):
    """`sample.samples[]`: one picture. What it does not give comes from the `sample` section."""

    prompt: str
    """The prompt; `[trigger]` is replaced, nothing is put before it."""

    width: int | None = Field(default=None, ge=64)
    """Pixels, at least 64."""

    height: int | None = Field(default=None, ge=64)
    """Pixels, at least 64."""

    neg: Negative | None = None
    """Negative prompt; empty or false: one space."""

    seed: int | None = Field(default=None, ge=0)
    """Seed of the noise."""

    guidance_scale: float | None = Field(default=None, ge=0)
    """Strength of classifier-free guidance; 1 or less: off."""

    sample_steps: int | None = Field(default=None, ge=1)
    """Denoising steps."""

    ctrl_img: Slots = ()
    """Reference image, or list of up to 3 in slot order; none: the picture is made from text alone."""

    shapes: ClassVar = dict.fromkeys(slot_names("ctrl_img"), "ctrl_img")
    may_be_empty: ClassVar = frozenset({"prompt", "neg"})
    no_effect: ClassVar = {"fps": "it concerns videos"}
    unsupported: ClassVar = {**_ITEM_UNSUPPORTED, "ctrl_idx": (0,)}

    @classmethod
    def reshape(cls, entries: dict[str, Node], report: Report) -> dict[str, Node]:
        """`ctrl_img_1..3` become one list."""
        gather_slots(entries, "ctrl_img", report)
        return entries


class SampleConfig(StrictModel):
    """`sample`: pictures drawn before, during and after training."""

    sampler: Annotated[
        Literal["flowmatch"],
        *one_of(
            "flowmatch",
            later="ddpm ddim euler euler_a lms pndm dpm dpmsolver++ custom_lcm lcm",
            refusal="cannot sample Qwen-Image",
        ),
    ] = "flowmatch"
    """Sampler; Qwen-Image knows flow matching only."""

    sample_every: int = Field(default=250, ge=0)
    """Optimizer steps between two sets of samples; 0: none at intervals."""

    sample_start_step: int = Field(default=0, ge=0)
    """No samples at intervals before this step."""

    samples: tuple[SampleItem, ...] = ()
    """The pictures of one set."""

    width: int = Field(default=1024, ge=64)
    """Pixels, at least 64."""

    height: int = Field(default=1024, ge=64)
    """Pixels, at least 64."""

    neg: Negative = ""
    """Negative prompt; empty or false: one space."""

    seed: int = Field(default=42, ge=0)
    """Seed of the noise."""

    walk_seed: bool = False
    """Picture i of a set has the seed `seed` + i."""

    guidance_scale: float = Field(default=4.0, ge=0)
    """Strength of classifier-free guidance; 1 or less: off."""

    sample_steps: int = Field(default=20, ge=1)
    """Denoising steps."""

    format: Annotated[Literal["jpg", "png", "webp"], *one_of("jpg", "png", "webp", spellings={"jpeg": "jpg"})] = "jpg"
    """File format."""

    aliases: ClassVar = {"sample_every_n_steps": "sample_every"}
    shapes: ClassVar = {"prompts": "samples, as a list of prompts"}
    no_effect: ClassVar = {"fps": "it concerns videos"}
    unsupported: ClassVar = {**_ITEM_UNSUPPORTED, "sample_every_n_epochs": (0,), "sample_at_first": (True,)}

    @classmethod
    def reshape(cls, entries: dict[str, Node], report: Report) -> dict[str, Node]:
        """`prompts` become `samples`."""
        prompts = entries.pop("prompts", None)
        if prompts is None:
            return entries
        if "samples" in entries and entries["samples"].data() != []:
            report.mistake(prompts, "'samples' is given as well. Keep one.", at_key=True)
            return entries
        if not isinstance(prompts.value, list):
            report.mistake(prompts, "is not a list. Write one prompt per line, each after '- '.")
            return entries
        items = [replace(item, value={"prompt": item}) for item in prompts.value]
        entries["samples"] = replace(prompts, value=items)
        return entries

    def pictures(self) -> tuple[SampleItem, ...]:
        """The items of one set with everything filled in from the section."""
        return tuple(self._picture(index, item) for index, item in enumerate(self.samples))

    def _picture(self, index: int, item: SampleItem) -> SampleItem:
        shared = {
            "width": self.width,
            "height": self.height,
            "neg": self.neg,
            "seed": self.seed + (index if self.walk_seed else 0),
            "guidance_scale": self.guidance_scale,
            "sample_steps": self.sample_steps,
        }
        missing = {key: value for key, value in shared.items() if getattr(item, key) is None}
        return item.model_copy(update=missing)
