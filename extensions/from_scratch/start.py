"""The folder `start/` of a run: the model as it was before step 1, in the layout of the
folders that the run saves.

The run reads every part from this folder, with the code for any other model folder.
Parts of other folders are linked, not copied. The folder is written once: a resumed run
finds the tokenizer, the autoencoder and the text encoder that it began with.

It trains nothing and has no weights of the run: `writers` saves those. `flow_process`
calls it before the model is loaded.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import torch

from extensions.from_scratch.autoencoder_config import PART
from extensions.from_scratch.autoencoders import make_autoencoder, write_autoencoder
from extensions.from_scratch.flow_config import FlowModelConfig
from extensions.from_scratch.joint import scale_by
from extensions.from_scratch.latent_flow import new
from extensions.from_scratch.latent_flow.family import FAMILY
from extensions.from_scratch.pixels import Picture
from toolkit.errors import RunError, UserError
from toolkit.files.writing import atomic_write_dir, sha256_of
from toolkit.models.hashes import weights_hash
from toolkit.models.hub import download_encoder
from toolkit.models.parts import INDEX, place_parts
from toolkit.system.device import to_cpu_copies

logger = logging.getLogger(__name__)

START = "start"


def write_start(
    model: FlowModelConfig,
    folder: Path,
    captions: Iterable[str],
    seed: int,
    pictures: Iterable[Picture] = (),
    device: torch.device | str = "cpu",
) -> None:
    """Writes the folder; one that exists is replaced. captions: of all images, for a
    tokenizer. pictures: images that measure the scale of the latents of random weights,
    on this device."""
    with atomic_write_dir(folder, known_by=INDEX) as temporary:
        if model.name_or_path:
            place_parts(model.folder(), temporary, without={"vae"} if model.vae else ())
            if model.vae:
                new.place_autoencoder(temporary, model.autoencoder().folder())
            layout = FAMILY.of_folder(model.folder())
            new.write_index(temporary, layout.prediction, layout.max_tokens)
            return
        text = model.text_encoder
        if model.new_vae:
            autoencoder = make_autoencoder(
                model.autoencoder(), seed, torch.device(device)
            )
            (temporary / PART).mkdir()
            weights = to_cpu_copies(autoencoder.module.state_dict(), "float32")
            write_autoencoder(
                temporary / PART,
                weights,
                autoencoder.config() | scale_by(autoencoder, pictures),
            )
        else:
            new.place_autoencoder(temporary, model.autoencoder().folder())
        if text.name_or_path:
            new.place_text_encoder(temporary, *text_folders(model))
        else:
            new.write_text_encoder(
                temporary, text.config, captions, text.max_tokens, seed
            )
        if text.projection_dim:
            new.write_projection(temporary, text.projection_dim, seed)
        new.write_transformer(
            temporary, model.transformer.class_name, model.transformer.config, seed
        )
        new.write_scheduler(temporary)
        new.write_index(temporary, model.prediction, text.max_tokens)
    logger.info(f"wrote the model as it begins to {folder}")


def require_start(folder: Path, checkpoint: Path) -> None:
    """Makes sure that the folder of a resumed run exists. The `start/` of a state
    in another folder is placed here. Raises RunError where there is none."""
    saved_start = checkpoint.resolve().parents[1] / START
    if saved_start != folder.resolve() and saved_start.is_dir():
        with atomic_write_dir(folder, known_by=INDEX) as temporary:
            place_parts(saved_start, temporary, without=())
    else:
        fault = FAMILY.config_error(folder)
        if fault:
            remedy = "Restore the folder, or add --restart to move the old run aside and start over."
            raise RunError(
                f"{fault} The run in {folder.parent} began with the model in {folder}. {remedy}"
            )


def source_hashes(model: FlowModelConfig) -> dict[str, str]:
    """Key of a folder that the model is made of -> its hash."""
    folders = {} if model.new_vae else {"model.vae": model.autoencoder().folder()}
    if model.name_or_path:
        folders["model.name_or_path"] = model.folder()
    elif model.text_encoder.name_or_path:
        encoder, tokenizer = text_folders(model)
        folders |= {
            "model.text_encoder.name_or_path": encoder,
            "model.text_encoder.tokenizer": tokenizer,
        }
    return {key: weights_hash(folder, ["."]) for key, folder in folders.items()}


def start_hashes(folder: Path) -> dict[str, str]:
    """The hashes of the index and of each part of `start/`."""
    index = folder / INDEX
    hashes = {INDEX: sha256_of(index) if index.is_file() else ""}
    hashes |= {part: weights_hash(folder, [part]) for part in FAMILY.parts}
    return {f"{START}/{name}": digest for name, digest in hashes.items()}


def text_folders(model: FlowModelConfig) -> tuple[Path, Path]:
    """The folders of the text encoder and its tokenizer that are given; one of the hub
    is downloaded. Raises UserError where they hold none."""
    text = model.text_encoder
    given = _local(text.name_or_path, "name_or_path")
    encoder = given if (given / "config.json").is_file() else given / "text_encoder"
    if not (encoder / "config.json").is_file():
        raise UserError(
            f"model.text_encoder.name_or_path: {given} holds no config.json. Give a text encoder's folder."
        )
    if text.tokenizer:
        return encoder, _local(text.tokenizer, "tokenizer")
    beside = encoder.parent / "tokenizer"
    return encoder, encoder if encoder == given and not beside.is_dir() else beside


def _local(path: str, key: str) -> Path:
    folder = Path(path).expanduser().resolve()
    if folder.is_dir():
        return folder
    return download_encoder(path, f"model.text_encoder.{key}")
