"""Z-Image, a model of text to image, and its Turbo, which is distilled for few steps.

This module has facts; `model` loads and runs the parts. The sizes of the published
models are from their config files. Imports no torch.
"""

from __future__ import annotations

from pathlib import Path

from toolkit.config.sections.model_files import read_model_json
from toolkit.models.families import EncoderSize
from toolkit.models.folder_family import DiffusersFamily, Qwen3Texts
from toolkit.models.recipes import OnHub, Recipe

TURBO = "Z-Image-Turbo"

TURBO_SHIFT = 3.0
"""`shift` of its scheduler; that of Z-Image is 6. Nothing else in the folders differs.
Source: scheduler_config.json of both."""

BLOCK_LISTS = ("noise_refiner", "context_refiner", "layers")

FINAL = "all_final_layer.2-1."

LAYER_NAMES = {
    "x_embedder": ["all_x_embedder.2-1"],
    "final_layer.linear": [f"{FINAL}linear"],
    "final_layer.adaLN_modulation.1": [f"{FINAL}adaLN_modulation.1"],
} | {
    f"{blocks}.*.attention.{name}": [f"{blocks}.*.attention.{part}" for part in parts]
    for blocks in BLOCK_LISTS
    for name, parts in (("qkv", ("to_q", "to_k", "to_v")), ("out", ("to_out.0",)))
}
"""See `ModelFacts`. Source: ComfyUI, comfy/utils.py, `z_image_to_diffusers`."""

RECIPE = Recipe(
    lr=1e-4,
    lr_why="musubi-tuner and ai-toolkit write 1e-4",
    resolution=1024,
    resolution_why="musubi-tuner writes 1024, ai-toolkit 512, 768 and 1024",
    timestep_type="shift",
    levels_why="musubi-tuner shifts the levels by 2.0; ai-toolkit writes `weighted`",
    flow_shift=2.0,
    rank=32,
)

ADAPTER = OnHub(
    "ostris/zimage_turbo_training_adapter/zimage_turbo_training_adapter_v2.safetensors",
    "Apache-2.0",
    "its author calls it good for short trainings of styles, concepts and characters",
)
"""Source: its README."""


class ZImageFamily(Qwen3Texts, DiffusersFamily):
    """See `ModelFamily`.

    >>> FAMILY.of_title("Z-Image-Turbo").sample_steps
    8
    """

    arch = "z_image"
    model_class = f"{__package__}.model:ZImageModel"
    title = "Z-Image"
    pipelines = ("ZImagePipeline",)
    published = {  # noqa: RUF012
        "Tongyi-MAI/Z-Image": "Z-Image",
        f"Tongyi-MAI/{TURBO}": TURBO,
    }
    licence = "Apache-2.0"
    modelspec = ("Z-Image", "https://github.com/Tongyi-MAI/Z-Image")
    classes = {  # noqa: RUF012
        "transformer": "ZImageTransformer2DModel",
        "vae": "AutoencoderKL",
        "text_encoder": "Qwen3Model",
    }
    settings = {"transformer/siglip_feat_dim": None}  # noqa: RUF012
    block_lists = BLOCK_LISTS
    layer_names = LAYER_NAMES
    lora_layers = r"layers\.\d+\.(?:attention|feed_forward)\..*"
    shapes_file = Path(__file__).with_name("shapes.json")
    size_multiple = 16
    latent_channels = 16
    latent_scale = 8
    patch = 2
    text_width_key = "cap_feat_dim"
    text_taps = (-2,)
    thinks = True
    text_tokens = 8
    published_vae = EncoderSize(0, 83_819_683)
    empty_negative = ""
    recipes = {  # noqa: RUF012
        "Z-Image": RECIPE,
        TURBO: RECIPE._replace(
            adapters=(ADAPTER,),
            adapters_why="8 steps no longer suffice after a training",
        ),
    }
    # Its card says 3 to 5, of a scale that counts from 0, and 28 to 50 steps.
    guidance = 5.0
    sample_steps = 28

    def of_folder(self, folder: Path) -> ZImageFamily:
        file = folder / "scheduler" / "scheduler_config.json"
        is_turbo = file.is_file() and read_model_json(file).get("shift") == TURBO_SHIFT
        return self.of_title(TURBO) if is_turbo else self

    def of_title(self, title: str) -> ZImageFamily:
        return TURBO_FAMILY if title == TURBO else self


class TurboFamily(ZImageFamily):
    """Z-Image-Turbo, which is distilled for 8 steps without guidance.

    >>> TURBO_FAMILY.sample_sigmas[-1]
    0.125
    """

    title = TURBO
    guidance = 1.0
    sample_sigmas = tuple(1 - step / 8 for step in range(8))
    sample_steps = len(sample_sigmas)


FAMILY = ZImageFamily()
TURBO_FAMILY = TurboFamily()
