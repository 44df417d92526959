"""Makes a transformer of Qwen-Image-2.1 with random weights that fits the encoders of a
model folder.

It writes nothing and trains nothing: the trainer of new models does. Called by
`QwenImage21Family.new_network`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import QwenImage21Transformer2DModel

from toolkit.config.sections.model_files import read_model_json
from toolkit.errors import UserError
from toolkit.models.from_config import build
from toolkit.models.qwen_image.new import ARGUMENTS, HEAD_DIM, rope_axes, zero_
from toolkit.models.qwen_image21.family import FAMILY


def new_transformer(
    folder: Path, arguments: Mapping[str, Any]
) -> QwenImage21Transformer2DModel:
    """A transformer with these arguments of diffusers. Other arguments are chosen to
    fit the VAE and text encoder in `folder`.

    Draws from torch's global generator. Modulations and the output start at zero, so
    that each block adds nothing and the first prediction is 0
    (https://arxiv.org/abs/2212.09748, section 3.2). Raises UserError for arguments that
    the class does not take, and for an autoencoder of another class.
    """
    vae = read_model_json(folder / "vae" / "config.json")
    class_name = vae.get("_class_name")
    if class_name != FAMILY.classes["vae"]:
        raise UserError(
            f"vae: {class_name!r} is not of this family. Give an {FAMILY.classes['vae']}."
        )
    text = read_model_json(folder / "text_encoder" / "config.json")
    fitting = {
        "in_channels": vae.get("z_dim", FAMILY.latent_channels),
        "out_channels": vae.get("z_dim", FAMILY.latent_channels),
        "context_in_dim": text.get("text_config", text)["hidden_size"],
        "axes_dims_rope": rope_axes(arguments.get("attention_head_dim", HEAD_DIM)),
    }
    transformer = build(
        QwenImage21Transformer2DModel, {**fitting, **arguments}, ARGUMENTS
    )
    zero_(transformer.modulation, transformer.norm_out.linear, transformer.proj_out)
    return transformer
