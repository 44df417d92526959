"""Autoencoders of diffusers as they are trained: made from arguments or read from a
folder, images in, images out, and the mean and standard deviation of their latents.

It does not train and computes no loss. `vae_process`, `start` and `latent_flow.model`
make or load an autoencoder, `autoencoder_step` encodes and decodes with it, and
`writers` saves it.

Shape suffixes: B batch, C latent channels, H/W height and width of the latents, s
pixels along a latent pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from extensions.from_scratch.autoencoder_config import (
    CONFIG,
    DISCRIMINATOR_FILE,
    SPADE,
    SPADE_FILE,
    AutoencoderConfig,
)
from extensions.from_scratch.spade import PREFIX, attach_spade, load_spade
from toolkit.errors import RunError
from toolkit.files.writing import write_json
from toolkit.models.from_config import build
from toolkit.models.imports import without_bitsandbytes
from toolkit.models.loading import (
    STRICTLY,
    WEIGHTS,
    check_finite,
    check_loaded,
    reading,
)
from toolkit.networks.save import write_safetensors_verified
from toolkit.system.seeding import global_generator

with without_bitsandbytes():
    from diffusers import AutoencoderKL, AutoencoderKLQwenImage, AutoencoderTiny
    from diffusers.models.autoencoders.autoencoder_kl_qwenimage import (
        QwenImageCausalConv3d,
    )
    from diffusers.models.modeling_utils import ModelMixin

    from toolkit.models.qwen_image.loading import expect_one_frame


class Autoencoder:
    """One autoencoder; a subclass per class of diffusers says how it is called.

    Example::

        autoencoder = load_autoencoder(folder)
        mean_BCHW, logvar_BCHW = autoencoder.encode(pixels_B3HW)
        pixels_B3HW = autoencoder.decode(mean_BCHW)
    """

    model_class: ClassVar[type[ModelMixin]]

    def __init__(self, module: Any) -> None:
        self.module = module

    # ------------------------------------------------------------ differs between
    # classes

    def encode(self, pixels_B3HW: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean [B, C, H, W] and log variance of the latents, not normalised; None: they
        are not a distribution."""
        raise NotImplementedError

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Pixels [B, 3, sH, sW] of latents as `encode` gives them. Not clamped: a clamp
        has no gradient outside."""
        pixels_B3HW: Tensor = self.module.decode(latents_BCHW).sample
        return pixels_B3HW

    def start(self) -> None:
        """Corrects random weights whose initial variance does not fit images."""

    def logvar_bias(self) -> Tensor | None:
        """The part of a bias that is added to the log variance; None for a class
        without a log variance."""
        return None

    def encoder_parameters(self) -> Iterable[str]:
        """Names of the parameters that the latents depend on."""
        of_encoder = ("encoder.", "quant_conv.")
        return [
            name
            for name, _ in self.module.named_parameters()
            if name.startswith(of_encoder)
        ]

    def last_layer(self) -> Tensor:
        """The weight of the decoder's last layer."""
        weight: Tensor = self.module.decoder.conv_out.weight
        return weight

    def normalisation(self, mean_C: Tensor, std_C: Tensor) -> dict[str, Any]:
        """The entries of config.json that normalise latents of this mean and standard
        deviation to (0, 1): one factor and one shift for all channels, (z -
        shift_factor) * scaling_factor."""
        mean = mean_C.mean()
        variance = (std_C.square() + (mean_C - mean).square()).mean()
        return {"scaling_factor": float(variance.rsqrt()), "shift_factor": float(mean)}

    def latent_statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation in config.json (see `normalisation`), 0-dim or
        [C, 1, 1], of the type of `like`."""
        config = self.module.config
        mean = config.get("shift_factor") or 0.0
        scale = config.get("scaling_factor") or 1.0
        return like.new_tensor(mean), like.new_tensor(1 / scale)

    # ------------------------------------------------------------ shared by all classes

    def to(self, device: torch.device | str) -> Self:
        """The same, with its weights on this device."""
        self.module.to(device)
        return self

    def set_scale(self, scale: Mapping[str, Any]) -> None:
        """Sets these entries of config.json (`normalisation`), which normalise latents
        from now on."""
        self.module.register_to_config(**scale)

    def normalised(self, latents_BCHW: Tensor) -> Tensor:
        """Latents of `encode` as a diffusion model takes them: mean 0, standard
        deviation 1."""
        mean, std = self.latent_statistics(latents_BCHW)
        return (latents_BCHW - mean) / std

    def unnormalised(self, latents_BCHW: Tensor) -> Tensor:
        """The inverse of `normalised`."""
        mean, std = self.latent_statistics(latents_BCHW)
        return latents_BCHW * std + mean

    def sample(
        self, mean_BCHW: Tensor, logvar_BCHW: Tensor | None, noise_BCHW: Tensor
    ) -> Tensor:
        """Latents [B, C, H, W] drawn with this noise; the mean where they are not a
        distribution."""
        if logvar_BCHW is None:
            return mean_BCHW
        return mean_BCHW + noise_BCHW * (0.5 * logvar_BCHW).exp()

    def dtype(self) -> torch.dtype:
        """The dtype of its weights."""
        weight: Tensor = next(self.module.parameters())
        return weight.dtype

    def has_spade(self) -> bool:
        """Whether the latent modulates the decoder's norms."""
        return hasattr(self.module, "spade")

    def config(self) -> dict[str, Any]:
        """The entries of config.json."""
        spade = {SPADE: True} if self.has_spade() else {}
        plain = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in self.module.config.items()
            if key[0] != "_"  # none of the file itself
        }
        return {"_class_name": type(self.module).__name__, **spade, **plain}


class KlAutoencoder(Autoencoder):
    """`AutoencoderKL`.

    >>> autoencoder = KlAutoencoder(AutoencoderKL(block_out_channels=[32]))
    >>> mean_BCHW, logvar_BCHW = autoencoder.encode(torch.zeros(1, 3, 8, 8))
    >>> mean_BCHW.shape
    torch.Size([1, 4, 8, 8])
    """

    model_class = AutoencoderKL

    def encode(self, pixels_B3HW: Tensor) -> tuple[Tensor, Tensor | None]:
        distribution = self.module.encode(pixels_B3HW).latent_dist
        return distribution.mean, distribution.logvar

    def logvar_bias(self) -> Tensor | None:
        layer = self.module.quant_conv or self.module.encoder.conv_out
        bias_C: Tensor = layer.bias[self.module.config.latent_channels :]
        return bias_C


class QwenImageAutoencoder(Autoencoder):
    """`AutoencoderKLQwenImage`: a video autoencoder, whose images are videos of one
    frame.

    Example::

        autoencoder = QwenImageAutoencoder(AutoencoderKLQwenImage(base_dim=32))
        autoencoder.start()  # random weights
        mean_BCHW, logvar_BCHW = autoencoder.encode(pixels_B3HW)
    """

    model_class = AutoencoderKLQwenImage

    def __init__(self, module: Any) -> None:
        super().__init__(expect_one_frame(module))

    @torch.no_grad()
    def start(self) -> None:
        """The initial variance of a convolution counts all taps along time. An image
        uses one of them, so this tap gets the variance of all, and the others are 0."""
        for layer in self.module.modules():
            if isinstance(layer, QwenImageCausalConv3d):
                taps = layer.weight.shape[2]
                if taps > 1:
                    layer.weight[:, :, -1] *= taps**0.5
                    layer.weight[:, :, :-1] = 0

    def encode(self, pixels_B3HW: Tensor) -> tuple[Tensor, Tensor | None]:
        distribution = self.module.encode(pixels_B3HW[:, :, None]).latent_dist
        return distribution.mean[:, :, 0], distribution.logvar[:, :, 0]

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """The parts of diffusers' `_decode` without its clamp; one frame needs no cache
        of features."""
        pixels_B3FHW: Tensor = self.module.decoder(
            self.module.post_quant_conv(latents_BCHW[:, :, None])
        )
        return pixels_B3FHW[:, :, 0]

    def logvar_bias(self) -> Tensor | None:
        bias_C: Tensor = self.module.quant_conv.bias[self.module.config.z_dim :]
        return bias_C

    def normalisation(self, mean_C: Tensor, std_C: Tensor) -> dict[str, Any]:
        """By channel: latents are (z - latents_mean) / latents_std."""
        return {"latents_mean": mean_C.tolist(), "latents_std": std_C.tolist()}

    def latent_statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        config = self.module.config
        mean_C11 = like.new_tensor(config.latents_mean).view(-1, 1, 1)
        std_C11 = like.new_tensor(config.latents_std).view(-1, 1, 1)
        return mean_C11, std_C11


class TinyAutoencoder(Autoencoder):
    """`AutoencoderTiny`, whose latents are not a distribution.

    Example::

        latents_BCHW, none = TinyAutoencoder(AutoencoderTiny()).encode(pixels_B3HW)
    """

    model_class = AutoencoderTiny

    def encode(self, pixels_B3HW: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.module.encode(pixels_B3HW).latents, None

    def last_layer(self) -> Tensor:
        weight: Tensor = self.module.decoder.layers[-1].weight
        return weight


ARGUMENTS = "model.config"
"""Key of the arguments."""

KINDS: dict[str, type[Autoencoder]] = {
    kind.model_class.__name__: kind
    for kind in (KlAutoencoder, QwenImageAutoencoder, TinyAutoencoder)
}


def make_autoencoder(
    model: AutoencoderConfig, seed: int, device: torch.device
) -> Autoencoder:
    """The autoencoder of a `model` section in float32, from its folder or with random
    weights of this seed.

    SPADE is added or left out as the section says.

    Raises UserError for arguments that its class refuses, RunError for a damaged
    folder.
    """
    if model.name_or_path:
        autoencoder = load_autoencoder(
            model.folder(), with_spade=model.spade is not False
        )
    else:
        kind = KINDS[model.class_name]
        with global_generator(seed, "autoencoder"):
            autoencoder = kind(build(kind.model_class, model.config, ARGUMENTS))
        autoencoder.start()
        bias = autoencoder.logvar_bias()
        if bias is not None:
            nn.init.constant_(bias.detach(), model.initial_logvar)
    if model.spade and not autoencoder.has_spade():
        attach_spade(autoencoder.module, seed)
    autoencoder.module.to(device)
    return autoencoder


def load_autoencoder(folder: Path, with_spade: bool = True) -> Autoencoder:
    """The autoencoder of a folder or of its `vae/`, with SPADE where it has it;
    float32, on the CPU.

    with_spade: False leaves it out. Raises RunError for a folder that is damaged or
    holds something else.
    """
    section = AutoencoderConfig(name_or_path=str(folder))
    folder = section.folder()
    arguments = section.arguments()
    name = arguments["_class_name"]
    if name not in KINDS:
        raise RunError(f"{folder} is a {name}. What can be read: {', '.join(KINDS)}.")
    kind = KINDS[name]
    with reading(folder):
        module, info = kind.model_class.from_pretrained(
            folder, torch_dtype=torch.float32, **STRICTLY
        )
    check_loaded(folder, info)
    check_finite(folder, module)
    if with_spade and arguments.get(SPADE):
        load_spade(module, folder)
    return kind(module)


@torch.no_grad()
def measure_latents(
    encode: Callable[[Tensor], tuple[Tensor, Tensor | None]], images: Iterable[Tensor]
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [C] of sampled latents over all pixels of the images,
    in float64 on the CPU.

    encode: `Autoencoder.encode`. The variance of the means and the variance of the
    posterior are added. Rombach et al. (High-Resolution Image Synthesis with Latent
    Diffusion Models, D.1) measure the same on samples. A channel that the autoencoder
    does not use thus has the deviation of its noise and is not scaled up to 1.
    Raises RunError where the latents are constant or not finite.
    """
    count = 0
    total_C = torch.zeros(())
    squares_C = torch.zeros(())
    for pixels_B3HW in images:
        mean_BCHW, logvar_BCHW = encode(pixels_B3HW)
        squares_BCHW = mean_BCHW.double().square()
        if logvar_BCHW is not None:
            squares_BCHW = squares_BCHW + logvar_BCHW.double().exp()
        count += mean_BCHW[:, 0].numel()
        total_C = total_C + mean_BCHW.double().sum((0, 2, 3)).cpu()
        squares_C = squares_C + squares_BCHW.sum((0, 2, 3)).cpu()
    mean_C = total_C / count
    std_C = (squares_C / count - mean_C.square()).clamp_min(0).sqrt()
    if not bool((std_C > 0).all() and torch.isfinite(std_C).all()):
        raise RunError(
            "a channel of the latents is constant or not finite: training has collapsed."
        )
    return mean_C, std_C


def write_autoencoder(
    folder: Path,
    weights: Mapping[str, Tensor],
    config: Mapping[str, Any],
    discriminator: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes the files that `from_pretrained` of diffusers reads into an existing
    folder, with SPADE and the discriminator next to them. weights: the state dict, on
    the CPU. config: the entries of config.json."""
    of_spade = {
        name.removeprefix(PREFIX): tensor
        for name, tensor in weights.items()
        if name.startswith(PREFIX)
    }
    tensors = {
        name: tensor for name, tensor in weights.items() if not name.startswith(PREFIX)
    }
    write_safetensors_verified(folder / WEIGHTS, tensors, None)
    if of_spade:
        write_safetensors_verified(folder / SPADE_FILE, of_spade, None)
    write_json(folder / CONFIG, dict(config))
    if discriminator:
        write_safetensors_verified(folder / DISCRIMINATOR_FILE, discriminator, None)
