"""What an autoencoder of diffusers holds, from its arguments alone: the shapes of its weights, and the bytes that a
backward pass needs of each pixel of an image. Imports no torch: a dry run asks.

The networks are walked layer by layer, in diffusers' order (0.39: `models/autoencoders/vae.py`,
`autoencoder_kl_qwenimage.py`, `autoencoder_tiny.py`, `resnet.py`). Each layer keeps what its derivative needs: a
convolution its input in the compute dtype, a norm and an activation their inputs. On CUDA, autocast computes GroupNorm
in float32 and so keeps float32 there; on a CPU it stays in the compute dtype. All are linear in the number of pixels,
attention too, which is fused. tests/toolkit/models/test_autoencoder_sizes.py compares them with what PyTorch saves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

from extensions.from_scratch.autoencoder_config import LEVELS, SPADE_HIDDEN, WITHOUT_NORMS
from extensions.from_scratch.losses_config import patch_widths

Shape = tuple[int, ...]

FLOAT = 4
"""Bytes of a float32 number."""


@dataclass(frozen=True)
class NetworkSizes:
    """One network."""

    shapes: tuple[Shape, ...]
    """Of its weights."""

    kept: float
    """Bytes that a backward pass needs, per pixel of the image."""

    widest: float
    """Bytes of its largest tensor in float32, per pixel of the image."""

    @property
    def weights(self) -> int:
        """Number of weights."""
        return sum(map(prod, self.shapes))


@dataclass(frozen=True)
class AutoencoderSizes:
    """The two halves; a quantising convolution belongs to the half that it follows or precedes."""

    encoder: NetworkSizes
    decoder: NetworkSizes


def autoencoder_sizes(
    arguments: Mapping[str, Any], number: int, spade: bool = False, float_norms: bool = True
) -> AutoencoderSizes:
    """arguments: of a class of diffusers, with its name as `_class_name`. number: bytes of the compute dtype.

    float_norms: whether autocast computes GroupNorm in float32, as on CUDA. Without autocast number is 4.
    """
    kind = arguments["_class_name"]
    norm_number = FLOAT if float_norms else number
    encoder, decoder = Walk(number, norm_number), Walk(number, norm_number)
    if spade and kind not in WITHOUT_NORMS:
        decoder.spade_channels = (
            arguments.get("z_dim", 16) if "QwenImage" in kind else arguments.get("latent_channels", 4)
        )
    _WALKS[kind](arguments, encoder, decoder)
    return AutoencoderSizes(encoder.sizes(), decoder.sizes())


class Walk:
    """Follows a tensor through a network and counts."""

    def __init__(self, number: int, norm_number: int = FLOAT, pixels: float = 1.0) -> None:
        """number, norm_number: bytes of a number that convolutions and norms keep. pixels: of the tensor at the
        beginning, per pixel of the image."""
        self.number, self.norm_number, self.pixels = number, norm_number, pixels
        self.spade_channels = 0
        """Channels of the latents where they modulate the norms; 0: they do not."""

        self._shapes: list[Shape] = []
        self._kept = 0.0
        self._widest = 0.0
        self._is_kept = False  # whether the tensor at this place is kept already, in the compute dtype
        self._resized: set[float] = set()

    def sizes(self) -> NetworkSizes:
        return NetworkSizes(tuple(self._shapes), self._kept, self._widest)

    def keep(self, channels: float, number: int | None = None) -> None:
        """Keeps a tensor at this place. number: bytes of a number of it; by default those of the compute dtype."""
        self._kept += channels * (number or self.number) * self.pixels
        self._widest = max(self._widest, channels * FLOAT * self.pixels)

    def weights(self, *shapes: Shape) -> None:
        """Counts weights that keep nothing."""
        self._shapes += shapes

    def conv(self, inputs: int, outputs: int, kernel: Sequence[int] = (3, 3), bias: bool = True) -> None:
        """A convolution."""
        self.weights((outputs, inputs, *kernel), *([(outputs,)] if bias else []))
        if not self._is_kept:
            self.keep(inputs)
        self._is_kept = False

    def relu(self, channels: int) -> None:
        """ReLU: keeps its output, which is the input of what follows."""
        self.keep(channels)
        self._is_kept = True

    def group_norm(self, channels: int) -> None:
        self.weights((channels,), (channels,))
        self.keep(channels, self.norm_number)

    def rms_norm(self, channels: int) -> None:
        """diffusers' `QwenImageRMS_norm`: keeps its input in float32, and what the weights are multiplied with."""
        self.weights((channels,))
        self.keep(channels, FLOAT)
        self.keep(channels)

    def modulate(self, channels: int, number: int) -> None:
        """SPADE, where the latents modulate the norms. number: bytes of a number that the norm puts out."""
        if not self.spade_channels:
            return
        hidden = min(channels, SPADE_HIDDEN)
        # Norms of one size share the resized latents, but not what autocast of CUDA makes of them.
        if self.pixels not in self._resized or self.number != self.norm_number:
            self._resized.add(self.pixels)
            self.keep(self.spade_channels)
        self.weights((hidden, self.spade_channels, 3, 3), (hidden,), *[(channels, hidden, 3, 3), (channels,)] * 2)
        self.keep(hidden)
        self.keep(channels)
        self.keep(channels, number)

    def scale(self, factor: float) -> None:
        """A tensor of so many times the pixels takes the place of this one."""
        self.pixels *= factor
        self._is_kept = False


# ------------------------------------------------------------ the discriminator


def discriminator_sizes(channels: int, layers: int, number: int) -> NetworkSizes:
    """A discriminator (`PatchDiscriminator`) and what one pass keeps: each layer's input, and that of its leaky ReLU.

    number: bytes of the compute dtype.
    """
    walk, widths = Walk(number), patch_widths(channels, layers)
    for index in range(len(widths) - 1):
        walk.conv(widths[index], widths[index + 1], (4, 4))
        walk.scale(1 / 4 if index < layers else 1)
        walk.keep(widths[index + 1])
    return walk.sizes()


# ------------------------------------------------------------ AutoencoderKL


def _kl(arguments: Mapping[str, Any], encoder: Walk, decoder: Walk) -> None:
    widths = list(arguments.get("block_out_channels", [64]))
    layers = arguments.get("layers_per_block", 1)
    latent = arguments.get("latent_channels", 4)
    attends = arguments.get("mid_block_add_attention", True)
    colors_in, colors_out = arguments.get("in_channels", 3), arguments.get("out_channels", 3)
    down, up = (arguments.get(f"{way}_block_types", [""] * len(widths)) for way in ("down", "up"))

    encoder.conv(colors_in, widths[0])
    for index, (before, width) in enumerate(pairwise([widths[0], *widths])):
        for layer in range(layers):
            _resnet(encoder, width if layer else before, width)
            if "Attn" in down[index]:
                _attention(encoder, width)
        if index < len(widths) - 1:
            encoder.conv(width, width)  # padded, at the old size
            encoder.scale(1 / 4)
    _middle(encoder, widths[-1], attends)
    _head(encoder, widths[-1], 2 * latent)
    if arguments.get("use_quant_conv", True):
        encoder.conv(2 * latent, 2 * latent, (1, 1))

    decoder.scale(encoder.pixels)
    if arguments.get("use_post_quant_conv", True):
        decoder.conv(latent, latent, (1, 1))
    decoder.conv(latent, widths[-1])
    _middle(decoder, widths[-1], attends)
    for index, (before, width) in enumerate(pairwise([widths[-1], *reversed(widths)])):
        for layer in range(layers + 1):
            _resnet(decoder, width if layer else before, width)
            if "Attn" in up[index]:
                _attention(decoder, width)
        if index < len(widths) - 1:
            decoder.scale(4)
            decoder.conv(width, width)
    _head(decoder, widths[0], colors_out)


def _normed(walk: Walk, channels: int) -> None:
    """GroupNorm, the modulation, SiLU."""
    walk.group_norm(channels)
    walk.modulate(channels, walk.norm_number)
    walk.keep(channels, walk.norm_number)


def _resnet(walk: Walk, inputs: int, outputs: int) -> None:
    _normed(walk, inputs)
    walk.conv(inputs, outputs)
    _normed(walk, outputs)
    walk.conv(outputs, outputs)
    if inputs != outputs:
        walk.weights((outputs, inputs, 1, 1), (outputs,))
        if walk.number != walk.norm_number:  # else the norm has kept it
            walk.keep(inputs)


def _attention(walk: Walk, channels: int) -> None:
    """Keeps the norm's input, that of three projections, their outputs, and what attention puts out."""
    walk.group_norm(channels)
    walk.weights(*[(channels, channels), (channels,)] * 4)
    walk.keep(7 * channels)


def _middle(walk: Walk, channels: int, attends: bool) -> None:
    _resnet(walk, channels, channels)
    if attends:
        _attention(walk, channels)
    _resnet(walk, channels, channels)


def _head(walk: Walk, inputs: int, outputs: int) -> None:
    _normed(walk, inputs)
    walk.conv(inputs, outputs)


# ------------------------------------------------------------ AutoencoderKLQwenImage


def _qwen_image(arguments: Mapping[str, Any], encoder: Walk, decoder: Walk) -> None:
    base, latent = arguments.get("base_dim", 96), arguments.get("z_dim", 16)
    layers = arguments.get("num_res_blocks", 2)
    widths = [base * factor for factor in arguments.get("dim_mult", [1, 2, 4, 4])]
    in_time = list(arguments.get("temperal_downsample", [False, True, True]))
    scales = arguments.get("attn_scales", [])
    colors = arguments.get("input_channels", 3)

    side = 1.0
    _causal(encoder, colors, base)
    for index, (before, width) in enumerate(pairwise([base, *widths])):
        for layer in range(layers):
            _video_resnet(encoder, width if layer else before, width)
            if side in scales:
                _video_attention(encoder, width)
        if index < len(widths) - 1:
            encoder.conv(width, width)
            if in_time[index]:
                encoder.weights((width, width, 3, 1, 1), (width,))
            encoder.scale(1 / 4)
            side /= 2
    _video_middle(encoder, widths[-1])
    _video_head(encoder, widths[-1], 2 * latent)
    encoder.conv(2 * latent, 2 * latent, (1, 1, 1))

    decoder.scale(encoder.pixels)
    decoder.conv(latent, latent, (1, 1, 1))
    _causal(decoder, latent, widths[-1])
    _video_middle(decoder, widths[-1])
    before = widths[-1]
    for index, width in enumerate(reversed(widths)):
        for layer in range(layers + 1):
            _video_resnet(decoder, width if layer else before, width)
        if index < len(widths) - 1:
            decoder.scale(4)
            decoder.conv(width, width // 2)
            if in_time[-1 - index]:
                decoder.weights((2 * width, width, 3, 1, 1), (2 * width,))
        before = width // 2
    _video_head(decoder, widths[0], colors)


def _causal(walk: Walk, inputs: int, outputs: int) -> None:
    walk.conv(inputs, outputs, (3, 3, 3))  # of one frame: without the two of padding (`OneFrameConv3d`)


def _video_normed(walk: Walk, channels: int) -> None:
    """RMS norm, the modulation, SiLU; behind weights in float32 all is float32."""
    walk.rms_norm(channels)
    walk.modulate(channels, FLOAT)
    walk.keep(channels, FLOAT)


def _video_resnet(walk: Walk, inputs: int, outputs: int) -> None:
    _video_normed(walk, inputs)
    _causal(walk, inputs, outputs)
    _video_normed(walk, outputs)
    _causal(walk, outputs, outputs)
    if inputs != outputs:
        walk.weights((outputs, inputs, 1, 1, 1), (outputs,))
        if walk.number != FLOAT:  # else the norm has kept it
            walk.keep(inputs)


def _video_attention(walk: Walk, channels: int) -> None:
    walk.rms_norm(channels)
    walk.weights((3 * channels, channels, 1, 1), (3 * channels,), (channels, channels, 1, 1), (channels,))
    walk.keep(5 * channels)


def _video_middle(walk: Walk, channels: int) -> None:
    _video_resnet(walk, channels, channels)
    _video_attention(walk, channels)
    _video_resnet(walk, channels, channels)


def _video_head(walk: Walk, inputs: int, outputs: int) -> None:
    _video_normed(walk, inputs)
    _causal(walk, inputs, outputs)


# ------------------------------------------------------------ AutoencoderTiny


def _tiny(arguments: Mapping[str, Any], encoder: Walk, decoder: Walk) -> None:
    default = [64, 64, 64, 64]
    latent = arguments.get("latent_channels", 4)
    colors_in, colors_out = arguments.get("in_channels", 3), arguments.get("out_channels", 3)

    widths = arguments.get("encoder_block_out_channels", default)
    for index, (width, blocks) in enumerate(
        zip(widths, arguments.get("num_encoder_blocks", (1, 3, 3, 3)), strict=True)
    ):
        encoder.conv(width if index else colors_in, width, bias=not index)
        encoder.scale(1 / 4 if index else 1)
        _tiny_blocks(encoder, width, blocks)
    encoder.conv(widths[-1], latent)

    decoder.scale(encoder.pixels)
    widths = arguments.get("decoder_block_out_channels", default)
    blocks_of = arguments.get("num_decoder_blocks", (3, 3, 3, 1))
    factor = arguments.get("upsampling_scaling_factor", 2)
    decoder.keep(latent)
    decoder.conv(latent, widths[0])
    decoder.relu(widths[0])
    for index, (width, blocks) in enumerate(zip(widths, blocks_of, strict=True)):
        is_last = index == len(widths) - 1
        _tiny_blocks(decoder, width, blocks)
        if not is_last:
            decoder.scale(factor**2)
        decoder.conv(width, colors_out if is_last else width, bias=is_last)


def _tiny_blocks(walk: Walk, channels: int, count: int) -> None:
    for _ in range(count):
        for _ in range(3):
            walk.conv(channels, channels)
            walk.relu(channels)


_WALKS: dict[str, Callable[[Mapping[str, Any], Walk, Walk], None]] = dict(
    zip(LEVELS, (_kl, _qwen_image, _tiny), strict=True)
)
