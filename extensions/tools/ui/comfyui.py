"""Puts the LoRA of a run into the folder where ComfyUI looks for LoRAs.

The folder is set once on the page of the machine (`extensions.tools.ui.views.system`).
`put` writes there alone, and replaces no file. The page of a run calls it
(`extensions.tools.ui.views.after`).
"""

from __future__ import annotations

import os
import shutil
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from extensions.tools.shared.html_page import texts
from extensions.tools.ui.commands import run_py
from extensions.tools.ui.state import Ui
from toolkit.contracts.model import ROWS_OF
from toolkit.errors import UserError
from toolkit.files.safetensors_io import tensor_shapes
from toolkit.files.writing import (
    atomic_write,
    folder_lock,
    os_error_as_run_error,
    read_object,
    sha256_of,
)

KEY = "comfyui"
"""Key of the settings that are made on the page: the folder."""

LORAS = Path("models", "loras")
"""The folder in the one of ComfyUI."""

CONVERT_S = 300
"""Seconds that writing a file in ComfyUI's spelling may take."""


def loras_folder(given: str) -> Path:
    """The folder of LoRAs: the given one, or LORAS in it where it is ComfyUI's own.
    Raises UserError unless it is the absolute path of a folder."""
    folder = Path(given.strip()).expanduser()
    if not (folder.is_absolute() and folder.is_dir()):
        raise UserError(texts()["system"]["comfyui_wrong"].format(folder=given))
    return folder / LORAS if (folder / LORAS).is_dir() else folder


def kept_folder(ui: Ui) -> str:
    """The folder as it was set. Empty: none is."""
    return str(read_object(ui.settings).get(KEY) or "")


def put(ui: Ui, lora: Path) -> str:
    """Copies a LoRA file into the folder, spelled as ComfyUI reads it, and returns its
    name there: its own, or the first free one like it. A file with the same contents is
    not added again. Raises UserError where the folder is not set or gone, or the file
    cannot be converted, and RunError where it cannot be written.

    Example::

        name = put(ui, Path("output/cat/cat.safetensors"))
    """
    folder = loras_folder(kept_folder(ui))
    with TemporaryDirectory() as made:
        source = lora
        if _has_old_names(lora):
            source = Path(made) / lora.name
            command = ("convert", str(lora), str(source), "--to=comfyui")
            code, _, stderr = run_py(*command, limit_s=CONVERT_S)
            if code:
                raise UserError(stderr[-500:] or texts()["new"]["late"])
        with folder_lock(folder), os_error_as_run_error(folder):
            return _placed(source, folder)


def _placed(source: Path, folder: Path) -> str:
    digest = sha256_of(source)
    for number in count(1):
        end = f"_{number}" if number > 1 else ""
        target = folder / f"{source.stem}{end}{source.suffix}"
        if target.is_file() and sha256_of(target) == digest:
            return target.name
        if not os.path.lexists(target):
            with atomic_write(target) as temporary:
                shutil.copyfile(source, temporary)
            return target.name
    raise AssertionError


def _has_old_names(lora: Path) -> bool:
    """Whether ComfyUI does not find all layers of a file: runs of earlier versions wrote
    the prefix before layers that ComfyUI has joined (docs/use_your_lora.md)."""
    halves = tuple(f".{part}." for parts in ROWS_OF.values() for part in parts)
    keys = tensor_shapes(lora)
    return any(
        key.startswith("diffusion_model.") and any(half in key for half in halves)
        for key in keys
    )
