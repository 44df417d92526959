"""PNG files of generated pictures: their names, what is written into them, and how it is read back. Imports no torch.

The settings of an image are a JSON object of our own in the chunk `atelier`; the chunk `parameters` says the same in
the form that AUTOMATIC1111's web UI (modules/infotext_utils.py, `parse_generation_parameters`) and ComfyUI read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin, UnidentifiedImageError

from toolkit.errors import UserError
from toolkit.files.redact import redact_json, redact_text
from toolkit.files.writing import atomic_write, os_error_as_run_error
from toolkit.version import NAME, VERSION

CHUNK = "atelier"
Settings = Mapping[str, Any]
"""All that decides an image, as JSON values: prompt, negative, width, height, seed, cfg, steps, flow_shift, lightning,
reference and lora (lists of path, sha256 and strength), model (the keys of the section), base (a hash of each part),
dtype; levels, where the noise levels are those that the model was published with."""

_BY_CONTENT = ("reference", "lora")
_OF_NO_EFFECT = ("name_or_path", "revision", "low_vram", "text_encoder_cpu", "modulation_table", "blocks_to_swap")
"""Keys of a model that do not decide what it draws: `base` says which it is."""


def picture_key(settings: Settings) -> str:
    """A hash of what decides the picture: files by what is in them, wherever they lie."""
    content = {name: [{**file, "path": ""} for file in settings[name]] for name in _BY_CONTENT}
    model = {key: value for key, value in settings["model"].items() if key not in _OF_NO_EFFECT}
    text = json.dumps({**settings, **content, "model": model}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def picture_name(settings: Settings) -> str:
    """The file's name: words of the prompt, the seed, and `picture_key`, so that other settings are another file.
    Secrets are redacted before the words are cut and changed, for afterwards they could not be recognised."""
    words = re.sub(r"[^a-z0-9]+", "-", redact_text(settings["prompt"]).lower())[:40].strip("-") or "picture"
    return f"{words}_{settings['seed']}_{picture_key(settings)}.png"


def write_picture(path: Path, picture: Image.Image, settings: Settings, metadata: bool = True) -> None:
    """Writes a PNG atomically, secrets redacted. metadata: with its settings. Raises RunError where it cannot."""
    chunks = PngImagePlugin.PngInfo()
    if metadata:
        chunks.add_text("parameters", redact_text(parameters_text(settings)))
        document = {"program": f"{NAME} {VERSION}", **settings}
        chunks.add_itxt(CHUNK, json.dumps(redact_json(document), ensure_ascii=False))
    with os_error_as_run_error(path), atomic_write(path) as temporary:
        picture.save(temporary, "PNG", pnginfo=chunks)


def read_settings(path: Path) -> dict[str, Any]:
    """The settings that `write_picture` left in a file. Raises UserError where there are none."""
    try:
        with Image.open(path) as picture:
            text = str(picture.text.get(CHUNK, "")) if isinstance(picture, PngImagePlugin.PngImageFile) else ""
    except FileNotFoundError:
        raise UserError(f"'{path}' is not a file (working directory: {Path.cwd()}).") from None
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read as an image ({error}).") from None
    remedy = "Give a PNG of this program that was written with its metadata."
    if not text:
        raise UserError(f"'{path}' holds no settings of {NAME}. {remedy}")
    try:
        settings = json.loads(text)
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise UserError(f"the settings in '{path}' are damaged. {remedy}")
    settings.pop("program", None)
    return settings


def parameters_text(settings: Settings) -> str:
    """The settings as AUTOMATIC1111's web UI writes them."""
    loras = [(Path(lora["path"]).stem, lora) for lora in settings["lora"]]
    prompt = " ".join([settings["prompt"], *(f"<lora:{name}:{lora['strength']:g}>" for name, lora in loras)])
    values: dict[str, Any] = {
        "Steps": settings["steps"],
        "Sampler": "Euler",
        "CFG scale": f"{settings['cfg']:g}",
        "Seed": settings["seed"],
        "Size": f"{settings['width']}x{settings['height']}",
        "Model hash": settings["base"].get("transformer", "")[:10],
        "Model": re.split(r"[/\\]", settings["model"]["name_or_path"].rstrip("/\\"))[-1],
    }
    if settings["flow_shift"] is not None:
        values["Shift"] = f"{settings['flow_shift']:g}"
    if loras:
        values["Lora hashes"] = '"' + ", ".join(f"{name}: {lora['sha256'][:12]}" for name, lora in loras) + '"'
    values["Version"] = f"{NAME} {VERSION}"
    # An empty one too: ComfyUI (pnginfo.js, `importA1111`) reads nothing without that line.
    negative = f"Negative prompt: {settings['negative']}"
    return "\n".join([prompt, negative, ", ".join(f"{name}: {value}" for name, value in values.items())])
