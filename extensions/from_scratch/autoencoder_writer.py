"""Files of an autoencoder that is trained: its folder, as diffusers reads it, and the discriminator beside it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from extensions.from_scratch.autoencoder_config import CONFIG, SPADE_FILE
from extensions.from_scratch.discriminator import PatchDiscriminator
from extensions.from_scratch.spade import PREFIX
from toolkit.errors import UserError
from toolkit.files.writing import write_json
from toolkit.models.loading import WEIGHTS
from toolkit.networks.save import write_safetensors_verified

logger = logging.getLogger(__name__)

DISCRIMINATOR_FILE = "discriminator.safetensors"
"""Beside the autoencoder's files: a further run that starts from the folder continues it."""


def write_autoencoder(
    folder: Path,
    weights: Mapping[str, Tensor],
    config: Mapping[str, Any],
    discriminator: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes what `from_pretrained` of diffusers reads into an existing folder, and SPADE and the discriminator beside
    it. weights: the state dict, on the CPU. config: the entries of config.json."""
    of_spade = {name.removeprefix(PREFIX): tensor for name, tensor in weights.items() if name.startswith(PREFIX)}
    own = {name: tensor for name, tensor in weights.items() if not name.startswith(PREFIX)}
    write_safetensors_verified(folder / WEIGHTS, own, None)
    if of_spade:
        write_safetensors_verified(folder / SPADE_FILE, of_spade, None)
    write_json(folder / CONFIG, dict(config))
    if discriminator:
        write_safetensors_verified(folder / DISCRIMINATOR_FILE, discriminator, None)


def continue_discriminator(network: PatchDiscriminator, folder: Path) -> None:
    """Loads the discriminator that a run saved in the folder of its autoencoder, if there is one. Raises UserError for
    one of another size, and for a damaged file."""
    file = folder / DISCRIMINATOR_FILE
    if not file.is_file():
        return
    try:
        weights = load_file(file)
    except (OSError, SafetensorError) as error:
        remedy = "Copy it again, or move it away to begin with a new one."
        raise UserError(f"{file}: damaged discriminator ({error}). {remedy}") from error
    if {name: t.shape for name, t in weights.items()} != {n: t.shape for n, t in network.state_dict().items()}:
        raise UserError(
            f"{file} is a discriminator of another size. Restore discriminator.channels and layers, or move the "
            "file away to begin with a new one."
        )
    network.load_state_dict(weights)
    logger.info(f"discriminator: continued from {file}")
