"""The values that a new job has for each published model, with the reasons.

This is a table: it checks no job and changes none. `run.py new`, the page, the examples
and docs/models.md read it, and `toolkit.plan.diffusion` names its training adapters in
the plan. Imports no torch.

The values of other programs were read from their packages and guides of October and
November 2026: SimpleTuner 4.10.1, musubi-tuner's pages of Qwen-Image and
Qwen-Image-2.1, ai-toolkit's page for new jobs, Unsloth 2026.10.9, DiffSynth 2.1.12,
Fizgig 7.2.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from toolkit.contracts.model import ModelFacts


class OnHub(NamedTuple):
    """A file that somebody else publishes for use with a model.

    >>> OnHub("somebody/an-adapter", "Apache-2.0", "rank 16").name
    'somebody/an-adapter'
    """

    name: str
    """The value that the key takes."""

    licence: str
    note: str


class Recipe(NamedTuple):
    """Values of a job by the keys that have them, with their sources for
    docs/models.md.

    >>> recipe = RECIPES["Qwen-Image-Edit-2511"]
    >>> recipe.lr, recipe.resolution, recipe.timestep_type
    (0.0001, 1024, 'qwen_shift')
    """

    lr: float
    """`train.lr`, with AdamW."""

    lr_why: str
    resolution: int
    """`datasets[].resolution`."""

    resolution_why: str
    timestep_type: str
    """`train.timestep_type`."""

    levels_why: str
    flow_shift: float = 0.0
    """`train.discrete_flow_shift`; 0: not given."""

    rank: int = 16
    """`network.linear` and `linear_alpha`."""

    adapters: tuple[OnHub, ...] = ()
    """LoRAs for `train.assistant`. A new job has the first."""

    adapters_why: str = "LoRAs of this model may collapse into texture"
    """What happens without one."""

    decoders: tuple[OnHub, ...] = ()
    """VAEs for `sample.vae_path`; a new job has the first as a comment."""


ADAPTERS_OF_21 = (
    OnHub(
        "ShootTheSound/Fizgig-Qwen-Image-2.1-Training-Adapter/fizgig_qwen_image_2.1_training_adapter.safetensors",
        "none stated there; what is made from this model is under the Qwen Research License",
        "rank 16, attention and feed-forward, 80 MB; its author reports a likeness of 77 with it and 56 without",
    ),
    OnHub(
        "SimpleTuner/Qwen-Image-2.1-training-assistant-v3",
        "Qwen Research License",
        "rank 64, attention alone, 512 to 2048 pixels, 30,000 updates; its author calls the benefit not yet evaluated",
    ),
)

DECODERS_OF_21 = (
    OnHub(
        "madebyollin/texture-fix-vae-for-qwen-image-2.1",
        "Qwen Research License",
        "a decoder against the pattern of two pixels in images of this model, with the model's own encoder; "
        "SimpleTuner takes it by itself, ComfyUI as a VAE",
    ),
)

_RATE_OF_20B = "musubi-tuner and Unsloth write 5e-5, ai-toolkit and DiffSynth 1e-4"
_SIZE_OF_20B = (
    "Unsloth writes 512, ai-toolkit 512, 768 and 1024, DiffSynth up to 1024: no "
    "two agree, and samples have 1024"
)
_RATE_OF_21 = (
    "SimpleTuner, musubi-tuner, ai-toolkit and DiffSynth write 1e-4; Fizgig adapts between 1e-4 and 2e-4 at rank 16, "
    "and reports overtraining above"
)
_SIZE_OF_21 = (
    "Fizgig finds 704 better than 512 and 1024; SimpleTuner writes 512, from 48 GB on 512 and 1024. 768 is near the "
    "first, takes about half the time of 1024, and less memory than `[512, 1024]`, which needs that of 1024"
)

_LEVELS_OF_20B = (
    "Unsloth shifts the levels by the size, as sampling does, musubi-tuner and DiffSynth by 2.2; ai-toolkit writes "
    "`weighted`. On the small model here the scene is right in 97 % with `qwen_shift`, in 93 % with `weighted`"
)
_LEVELS_OF_21 = (
    "SimpleTuner shifts the levels by the size, as sampling does, DiffSynth by 2.2, musubi-tuner by 3.0; ai-toolkit "
    "writes `weighted`. On the small model here the scene is right in 97 % with `qwen_shift`, in 93 % with `weighted`"
)

_OF_20B = Recipe(1e-4, _RATE_OF_20B, 1024, _SIZE_OF_20B, "qwen_shift", _LEVELS_OF_20B)
_OF_21 = Recipe(
    1e-4,
    _RATE_OF_21,
    768,
    _SIZE_OF_21,
    "qwen_shift",
    _LEVELS_OF_21,
    decoders=DECODERS_OF_21,
)
_AS_21 = "as Qwen-Image-2.1"
_OF_2509 = (
    "a guide to characters for this model, of November 2025, after 300 LoRAs by its own count; "
    "musubi-tuner, ai-toolkit and DiffSynth write less"
)

_OF_LAYERED = Recipe(
    lr=1e-4,
    lr_why="DiffSynth writes 1e-4 at rank 32, musubi-tuner 5e-5",
    resolution=640,
    resolution_why=(
        "its pipeline in diffusers 0.42.1 takes 640, or 1024 where it is told to; musubi-tuner says nothing, DiffSynth "
        "writes up to 1024. All layers are in one sequence: time and memory grow with their number"
    ),
    timestep_type="shift",
    levels_why=(
        "musubi-tuner and DiffSynth shift the levels by 2.2; `qwen_shift` is 12 at this size, as in samples. Not "
        "measured here"
    ),
    flow_shift=2.2,
)

RECIPES: Mapping[str, Recipe] = {
    "Qwen-Image-2.1": _OF_21._replace(adapters=ADAPTERS_OF_21),
    "Qwen-Image-2.1-Turbo": _OF_21._replace(
        lr_why=_AS_21, resolution_why=_AS_21, levels_why=_AS_21
    ),
    "Qwen-Image-Edit-2509": _OF_20B._replace(
        lr=2e-4,
        lr_why=_OF_2509,
        timestep_type="weighted",
        levels_why="that guide's program, ai-toolkit, writes it; the others shift the levels",
    ),
    "Qwen-Image-Edit-2511": _OF_20B,
    "Qwen-Image-Edit": _OF_20B,
    "Qwen-Image-2512": _OF_20B,
    "Qwen-Image": _OF_20B,
    "Qwen-Image-Layered": _OF_LAYERED,
}
"""Title of a model, as in `ModelFacts.published` -> its recipe."""


USUAL_RECIPE = Recipe(1e-4, "", 1024, "", "qwen_shift", "")
"""For a model that has none."""


def recipe_of(title: str, family: ModelFacts) -> Recipe | None:
    """The recipe of a published model of this family; None: there is none.

    >>> from toolkit.config.sections.model_files import family_named
    >>> recipe_of("Qwen-Image-2.1", family_named("qwen_image_2")).resolution
    768
    """
    return RECIPES.get(title) or family.recipes.get(title)
