"""Makes the parts of a model folder: a transformer and a text encoder with random
weights, parts of other folders.

The parts are written as diffusers and transformers save them. `start` makes the first
model folder of a run with these functions. `writers` saves the weights that were
trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

from extensions.from_scratch.autoencoder_config import SPADE_FILE, latent_channels
from extensions.from_scratch.latent_flow import text
from extensions.from_scratch.latent_flow.family import (
    PIPELINE,
    PROJECTION,
    TRANSFORMERS,
    encoder_width,
    part_config,
    text_encoder_kind,
    text_width,
)
from extensions.from_scratch.latent_flow.transformers import (
    ARGUMENTS,
    TransformerAdapter,
)
from toolkit.config.sections.model_files import INDEX, read_model_json
from toolkit.errors import RunError
from toolkit.files.safetensors_io import save_file
from toolkit.files.writing import write_json
from toolkit.models.from_config import build, refuse_arguments
from toolkit.models.loading import WEIGHTS
from toolkit.models.parts import place_file
from toolkit.system.seeding import global_generator

TEXT_WEIGHTS = "model.safetensors"


def refuse_transformer(
    class_name: str, arguments: Mapping[str, Any], channels: int, width: int
) -> None:
    """Raises UserError for arguments that the class does not have or cannot be made of;
    nothing is allocated.

    channels: of the latents. width: of the text embeddings.
    """
    adapter: TransformerAdapter = TRANSFORMERS.load(class_name)
    refuse_arguments(
        adapter.model_class,
        {**adapter.fitting(arguments, channels, width), **arguments},
        ARGUMENTS,
    )


def new_transformer(
    folder: Path, arguments: Mapping[str, Any], class_name: str = ""
) -> nn.Module:
    """A transformer with random weights that fits `vae` and `text_encoder` in a folder.
    class_name: of diffusers; by default the class in model_index.json.

    Draws from torch's global generator. Raises UserError for arguments that its class
    refuses.
    """
    adapter: TransformerAdapter = TRANSFORMERS.load(
        class_name or read_model_json(folder / INDEX)["transformer"][1]
    )
    fitting = adapter.fitting(
        arguments, latent_channels(part_config(folder, "vae")), text_width(folder)
    )
    transformer: nn.Module = build(
        adapter.model_class, {**fitting, **arguments}, ARGUMENTS
    )
    return transformer


def write_transformer(
    folder: Path, class_name: str, arguments: Mapping[str, Any], seed: int
) -> None:
    """Writes `transformer/` with random weights of this seed, which fit `vae/` and
    `text_encoder/` in the folder."""
    with global_generator(seed, "transformer"):
        module: Any = new_transformer(folder, arguments, class_name)
    part = folder / "transformer"
    module.save_config(part)
    save_file(module.state_dict(), part / WEIGHTS, {"format": "pt"})


def write_text_encoder(
    folder: Path,
    arguments: Mapping[str, Any],
    captions: Iterable[str],
    max_tokens: int,
    seed: int,
) -> None:
    """Writes `text_encoder/`, a BertModel with random weights of this seed, and
    `tokenizer/` of these captions."""
    tokenizer = text.make_tokenizer(
        captions, max_tokens, arguments.get("vocab_size", text.VOCABULARY)
    )
    tokenizer.save_pretrained(folder / "tokenizer")
    encoder = text.make_encoder(arguments, len(tokenizer), max_tokens, seed)
    part = folder / "text_encoder"
    encoder.config.architectures = [type(encoder).__name__]
    encoder.config.save_pretrained(part)
    save_file(encoder.state_dict(), part / TEXT_WEIGHTS, {"format": "pt"})


def place_text_encoder(folder: Path, encoder: Path, tokenizer: Path) -> None:
    """Writes `text_encoder/` and `tokenizer/` of other folders. Raises UserError or
    RunError where they cannot be used."""
    text_encoder_kind(encoder)
    files = [encoder / "config.json", *sorted(encoder.glob("model*.safetensors*"))]
    if len(files) == 1:
        raise RunError(f"{encoder}: has no weights ({TEXT_WEIGHTS}).")
    for file in [*files, *encoder.glob(PROJECTION)]:
        place_file(file, folder / "text_encoder" / file.name)
    text.any_tokenizer(tokenizer).save_pretrained(folder / "tokenizer")


def write_projection(folder: Path, outputs: int, seed: int) -> None:
    """Puts a random linear layer with `outputs` outputs behind the text encoder of a
    folder. It is orthogonal: it keeps lengths and angles where `outputs` allows."""
    part = folder / "text_encoder"
    with global_generator(seed, "text projection"):
        weight_EH = nn.init.orthogonal_(torch.empty(outputs, encoder_width(part)))
    save_file({"weight": weight_EH}, part / PROJECTION, {"format": "pt"})


def place_autoencoder(folder: Path, source: Path) -> None:
    """Writes `vae/`: an autoencoder's own files and its SPADE, without a discriminator
    next to them."""
    spade = [file for file in [source / SPADE_FILE] if file.is_file()]
    for file in [
        source / "config.json",
        *sorted(source.glob("diffusion_pytorch_model*")),
        *spade,
    ]:
        place_file(file, folder / "vae" / file.name)


def write_scheduler(folder: Path) -> None:
    """Writes `scheduler/`: the noise levels of a sampling run, evenly spaced."""
    diffusers.FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")


def write_index(folder: Path, prediction: str, max_tokens: int) -> None:
    """Writes model_index.json of the parts in a folder."""
    classes = {
        part: part_config(folder, part)["_class_name"]
        for part in ("transformer", "vae")
    }
    write_json(
        folder / INDEX,
        {
            "_class_name": PIPELINE,
            "_diffusers_version": diffusers.__version__,
            "prediction": prediction,
            "max_tokens": max_tokens,
            "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
            "text_encoder": [
                "transformers",
                text_encoder_kind(folder / "text_encoder").class_name,
            ],
            "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
            **{part: ["diffusers", name] for part, name in classes.items()},
        },
    )
