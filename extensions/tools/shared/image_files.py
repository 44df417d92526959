"""PNG files of generated images, and files of their latents: names, contents, reading.

The settings of an image are this program's own JSON object in the chunk `atelier`. The
chunk `parameters` has the same settings in the form that AUTOMATIC1111's web UI
(modules/infotext_utils.py, `parse_generation_parameters`) and ComfyUI read. No image is
generated or decoded here. Imports torch only where latents are read and written.

`generation` writes the files. `generate` reads them for `--like` and `--latent-path`,
`candidates` and `ui/tries` read the settings of images in a folder.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, PngImagePlugin, UnidentifiedImageError

from toolkit.errors import UserError
from toolkit.files.redact import redact_json, redact_text
from toolkit.files.safetensors_io import read_metadata, save_file, tensor_shapes
from toolkit.files.writing import atomic_write, os_error_as_run_error
from toolkit.version import NAME, VERSION

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = "atelier"
LATENTS = ".safetensors"
LATENT = "latent"
"""The tensor in a file of latents, [1, C, 1, H, W] as the model makes them, not yet
scaled for the VAE. Source: musubi-tuner, qwen_image_generate_image.py (`--output_type
latent`)."""
Settings = Mapping[str, Any]
"""All that decides an image, as JSON values: prompt, negative, width, height, seed,
cfg, steps, flow_shift, lightning, reference and lora (lists of path, sha256 and
strength), model (the keys of the section), base (a hash of each part), dtype. There is
also `blocks` where LoRAs have a strength per block, and `levels` where the noise levels
are those that the model was published with."""

_BY_CONTENT = ("reference", "lora")
_OF_NO_EFFECT = (
    "name_or_path",
    "revision",
    "low_vram",
    "text_encoder_cpu",
    "modulation_table",
    "blocks_to_swap",
)
"""Keys of a model that do not change its images. `base` identifies the model."""


def picture_key(settings: Settings) -> str:
    """A hash of all that decides the image. Files count by their contents, not by their
    paths."""
    content = {
        name: [{**file, "path": ""} for file in settings[name]] for name in _BY_CONTENT
    }
    model = {k: v for k, v in settings["model"].items() if k not in _OF_NO_EFFECT}
    text = json.dumps({**settings, **content, "model": model}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def picture_name(settings: Settings) -> str:
    """The file's name: words of the prompt, the seed, and `picture_key`, so that other
    settings give another file.

    >>> settings = {"prompt": "A cat!", "seed": 7, "reference": [], "lora": [], "model": {}}
    >>> picture_name(settings)
    'a-cat_7_01ef60bd74.png'
    """
    # Once the words are cut and changed, a secret could not be recognised.
    prompt = redact_text(settings["prompt"]).lower()
    words = re.sub(r"[^a-z0-9]+", "-", prompt)[:40].strip("-") or "picture"
    return f"{words}_{settings['seed']}_{picture_key(settings)}.png"


def write_picture(
    path: Path, picture: Image.Image, settings: Settings, metadata: bool = True
) -> None:
    """Writes a PNG atomically, with secrets redacted. metadata: whether its settings
    are written into it. Raises RunError where it cannot be written."""
    chunks = PngImagePlugin.PngInfo()
    if metadata:
        chunks.add_text("parameters", redact_text(parameters_text(settings)))
        document = {"program": f"{NAME} {VERSION}", **settings}
        chunks.add_itxt(CHUNK, json.dumps(redact_json(document), ensure_ascii=False))
    with os_error_as_run_error(path), atomic_write(path) as temporary:
        picture.save(temporary, "PNG", pnginfo=chunks)


def read_settings(path: Path) -> dict[str, Any]:
    """The settings that `write_picture` wrote into a file. Raises UserError where the
    file has none."""
    try:
        with Image.open(path) as picture:
            text = ""
            if isinstance(picture, PngImagePlugin.PngImageFile):
                text = str(picture.text.get(CHUNK, ""))
    except FileNotFoundError:
        raise UserError(
            f"'{path}' is not a file (working directory: {Path.cwd()})."
        ) from None
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read as an image ({error}).") from None
    remedy = "Give a PNG of this program that was written with its metadata."
    if not text:
        raise UserError(f"'{path}' holds no settings of {NAME}. {remedy}")
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise UserError(f"the settings in '{path}' are damaged. {remedy}")
    settings.pop("program", None)
    return settings


def write_latents(
    path: Path, latents_BCHW: Tensor, settings: Settings, metadata: bool = True
) -> None:
    """Writes latents [1, C, H, W] atomically, with secrets redacted. metadata: whether
    the settings of the image are written too, also under musubi-tuner's names. Raises
    RunError where the file cannot be written."""
    document: dict[str, str] = {}
    if metadata:
        document = {name: str(settings[key]) for name, key in _OF_LATENTS.items()}
        document[CHUNK] = json.dumps(redact_json(dict(settings)))
    redacted = redact_json(document)
    latents_BCTHW = latents_BCHW.float().cpu().unsqueeze(2).contiguous()
    with os_error_as_run_error(path), atomic_write(path) as temporary:
        save_file({LATENT: latents_BCTHW}, temporary, redacted)


_OF_LATENTS = {
    "seeds": "seed",
    "prompt": "prompt",
    "height": "height",
    "width": "width",
    "infer_steps": "steps",
    "guidance_scale": "cfg",
    "negative_prompt": "negative",
}


def latents_fault(path: Path, channels: int) -> str:
    """Why a file cannot be decoded by a VAE of so many channels; empty where it can."""
    remedy = (
        "Give a file that `generate --output-type latent` wrote, or musubi-tuner's."
    )
    if path.suffix.lower() != LATENTS or not path.is_file():
        return f"'{path}' is not a {LATENTS} file (working directory: {Path.cwd()}). {remedy}"
    try:
        shape = tensor_shapes(path).get(LATENT)
    except UserError as error:
        return str(error)
    if shape is None:
        return f"'{path}' has no tensor {LATENT!r}. {remedy}"
    if (
        len(shape) < 3
        or prod(shape) != channels * shape[-2] * shape[-1]
        or not prod(shape)
    ):
        return f"'{path}' has latents {list(shape)}; this model's have {channels} channels. {remedy}"
    return ""


def read_latents(path: Path) -> tuple[Tensor, dict[str, Any]]:
    """Latents [1, C, H, W] of a file without a `latents_fault`, and the settings of its
    image: an empty dict where the file has none."""
    from safetensors.torch import load_file

    latents = load_file(path)[LATENT]
    try:
        settings = json.loads(read_metadata(path).get(CHUNK, "{}"))
    except (ValueError, RecursionError):
        settings = {}
    shaped = latents.reshape(1, -1, *latents.shape[-2:]).float()
    return shaped, settings if isinstance(settings, dict) else {}


def parameters_text(settings: Settings) -> str:
    """The settings as AUTOMATIC1111's web UI writes them."""
    loras = [(Path(lora["path"]).stem, lora) for lora in settings["lora"]]
    tags = [f"<lora:{name}:{lora['strength']:g}>" for name, lora in loras]
    hashes = [f"{name}: {lora['sha256'][:12]}" for name, lora in loras]
    prompt = " ".join([settings["prompt"], *tags])
    model = settings["model"]["name_or_path"].rstrip("/\\")
    values: dict[str, Any] = {
        "Steps": settings["steps"],
        "Sampler": "Euler",
        "CFG scale": f"{settings['cfg']:g}",
        "Seed": settings["seed"],
        "Size": f"{settings['width']}x{settings['height']}",
        "Model hash": settings["base"].get("transformer", "")[:10],
        "Model": re.split(r"[/\\]", model)[-1],
    }
    if settings["flow_shift"] is not None:
        values["Shift"] = f"{settings['flow_shift']:g}"
    if hashes:
        values["Lora hashes"] = f'"{", ".join(hashes)}"'
    values["Version"] = f"{NAME} {VERSION}"
    # The line is written for an empty prompt too: ComfyUI (pnginfo.js, `importA1111`)
    # reads nothing without it.
    negative = f"Negative prompt: {settings['negative']}"
    last = ", ".join(f"{name}: {value}" for name, value in values.items())
    return f"{prompt}\n{negative}\n{last}"
