"""Counts the weights of a run from its modules on the meta device, which have shapes and
no numbers: what is trained, what an optimizer keeps, what a save takes. Activations are
not counted: they depend on the class and the size of the images.

The planners in `plan` load `step_bytes` by name, so a plan without memory needs no
torch.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from extensions.from_scratch.autoencoder_config import AutoencoderConfig
from extensions.from_scratch.autoencoder_step import trained_parameters
from extensions.from_scratch.autoencoders import KINDS, Autoencoder, make_autoencoder
from extensions.from_scratch.discriminator import PatchDiscriminator
from extensions.from_scratch.flow_config import FLOW, TEXT_ENCODER, FlowTrainerConfig
from extensions.from_scratch.latent_flow import text
from extensions.from_scratch.latent_flow.family import (
    PROJECTION,
    TRANSFORMERS,
    part_config,
    text_encoder_kind,
    text_width,
)
from extensions.from_scratch.losses_config import DISCRIMINATOR, VAE
from extensions.from_scratch.perceptual import PerceptualDistance
from extensions.from_scratch.plan import FLOAT, StepBytes
from extensions.from_scratch.vae_config import VaeTrainerConfig
from toolkit.models.from_config import build
from toolkit.models.loading import NO_CODE
from toolkit.number_types import DTYPE_BYTES
from toolkit.optim.optimizer_args import optimizer_bytes
from toolkit.plan.run_plan import SaveSize
from toolkit.system.device import DTYPES


def step_bytes(section: VaeTrainerConfig | FlowTrainerConfig) -> StepBytes:
    """The memory of the weights. Raises UserError or RunError where a folder cannot be
    read."""
    along = section.trained_autoencoder()
    trained: dict[str, list[Tensor]] = {}
    modules: list[nn.Module] = []
    with torch.device("meta"):
        if isinstance(section, FlowTrainerConfig):
            frozen = section.model.autoencoder()
        else:
            frozen = section.model
        autoencoder = _autoencoder(along.model if along else frozen)
        if along:
            modules.append(autoencoder.module)
            chosen = trained_parameters(autoencoder, along.model.train)
            trained[VAE] = list(chosen.values())
            if gan := along.discriminator:
                modules.append(PatchDiscriminator(gan.channels, gan.layers, 0))
                trained[DISCRIMINATOR] = list(modules[-1].parameters())
            if along.losses.lpips:
                modules.append(PerceptualDistance())
        if isinstance(section, FlowTrainerConfig):
            encoder, width = _text_encoder(section)
            channels = section.model.family().latent_channels
            parts = {FLOW: _transformer(section, channels, width)}
            if section.trains_text() and encoder:
                parts[TEXT_ENCODER] = encoder
            for role, part in parts.items():
                modules.append(nn.Module.to(part, DTYPES[section.weights_dtype()]))
                if role in section.roles():
                    trained[role] = list(part.parameters())
            if section.sample and not along:
                modules.append(
                    nn.Module.to(autoencoder.module, DTYPES[section.train.dtype])
                )
    weights = sum(p.nbytes for module in modules for p in module.parameters())
    return _counted(section, trained, autoencoder, weights)


def _counted(
    section: Any,
    trained: dict[str, list[Tensor]],
    autoencoder: Autoencoder,
    weights: int,
) -> StepBytes:
    """Adds the memory that stays between steps, and the gradients."""
    counts = {
        role: sum(p.numel() for p in parameters) for role, parameters in trained.items()
    }
    state = 0
    for role, parameters in trained.items():
        optimizer = section.role_optimizer(role)
        shapes = [tuple(p.shape) for p in parameters]
        state += optimizer_bytes(
            optimizer.optimizer, optimizer.optimizer_params, shapes
        )
    averaged = sum(count for role, count in counts.items() if role != DISCRIMINATOR)
    average = FLOAT * averaged * section.train.ema_config.use_ema
    masters = sum(p.nbytes for parameters in trained.values() for p in parameters)
    written = counts | (
        {VAE: sum(p.numel() for p in autoencoder.module.parameters())}
        if VAE in trained
        else {}
    )
    size = {
        role: FLOAT if role == DISCRIMINATOR else DTYPE_BYTES[section.save.dtype]
        for role in written
    }
    files = sum(size[role] * count for role, count in written.items())
    states = 0 if section.save.states == "never" else masters + average + state
    return StepBytes(counts, weights, masters, state, average, SaveSize(files, states))


# ------------------------------------------------------------ the modules


def _autoencoder(model: AutoencoderConfig) -> Autoencoder:
    """The autoencoder of a section, without its weights."""
    if not model.name_or_path:
        return make_autoencoder(model, 0, torch.device("meta"))
    arguments = model.arguments()
    kind = KINDS[arguments["_class_name"]]
    autoencoder = kind(kind.model_class.from_config(arguments))
    if model.uses_spade():
        importlib.import_module("extensions.from_scratch.spade").attach_spade(
            autoencoder.module, 0
        )
    return autoencoder


def _transformer(section: FlowTrainerConfig, channels: int, width: int) -> nn.Module:
    """The transformer, without its weights."""
    model = section.model
    if model.name_or_path:
        config = part_config(model.folder(), "transformer")
        model_class = TRANSFORMERS.load(config["_class_name"]).model_class
        transformer: nn.Module = model_class.from_config(config)
    else:
        given = model.transformer.config
        adapter = TRANSFORMERS.load(model.transformer.class_name)
        fitting = adapter.fitting(given, channels, width)
        transformer = build(
            adapter.model_class, {**fitting, **given}, "model.transformer.config"
        )
    return transformer


def _text_encoder(section: FlowTrainerConfig) -> tuple[text.TextEncoder | None, int]:
    """The text encoder, None for one of the hub that is not downloaded; and the width
    of the text embeddings."""
    model, wanted = section.model, section.model.text_encoder
    if model.has_random_text():
        tokens = wanted.config.get("vocab_size", text.VOCABULARY)
        encoder: Any = text.make_encoder(wanted.config, tokens, wanted.max_tokens, 0)
        width = encoder.config.hidden_size
    else:
        given = Path(wanted.name_or_path).expanduser()
        if model.name_or_path:
            places = [model.folder() / "text_encoder"]
        else:
            places = [given, given / "text_encoder"]
        part = next(
            (place for place in places if (place / "config.json").is_file()), None
        )
        if part is None:
            return None, wanted.projection_dim or 768
        kind = text_encoder_kind(part)
        transformers = importlib.import_module("transformers")
        config = transformers.AutoConfig.from_pretrained(part, **NO_CODE)
        config = getattr(config, "text_config", None) or config
        encoder = getattr(transformers, kind.class_name)(config, **kind.arguments)
        width = getattr(config, kind.width)
        if (part / PROJECTION).is_file():
            outputs = text_width(part.parent)
            return text.TextEncoder(
                encoder.eval(), nn.Linear(width, outputs, bias=False)
            ), outputs
    outputs = wanted.projection_dim
    projection = nn.Linear(width, outputs, bias=False) if outputs else None
    return text.TextEncoder(encoder.eval(), projection), outputs or width
