"""Encodes and decodes single images with the VAEs of the Qwen-Image family in bands of
rows: the same pixels, with a fraction of the memory.

Apart from the attention in its middle block such a VAE is local: convolutions over
three rows, norms over channels, nearest upsampling, strided downsampling. So each layer
works on a band of rows as soon as the layer before it has made it, and keeps the one or
two rows that its next band needs. Nothing is computed twice, and there is no seam: a
band meets the same rows around it as in the whole image.

A VAE with other layers is used whole. Scaling and dtypes of latents are not handled
here. Called by `qwen_model`.

Shape suffixes: B batch, C channels, F frames (1), H/W height and width, N positions, D
channels of the attention.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeAlias

import torch
from diffusers.models.autoencoders import autoencoder_kl_qwenimage as qwen
from diffusers.models.autoencoders import autoencoder_kl_qwenimage21 as qwen21
from torch import Tensor
from torch.nn import functional

from toolkit.models.families import BAND_PIXELS

QUERIES = 2048
"""Positions of the middle block's attention that are computed at once."""

ROWS = 3
"""The dimension of the rows in [B, C, F, H, W]."""

_CONVOLUTIONS = (qwen.QwenImageCausalConv3d, qwen21.QwenImage21CausalConv3d)
_NORMS = (qwen.QwenImageRMS_norm, qwen21.QwenImage21RMS_norm)
_RESIDUALS = (qwen.QwenImageResidualBlock, qwen21.QwenImage21ResidualBlock)
_RESAMPLES = (qwen.QwenImageResample, qwen21.QwenImage21Resample)
_ATTENTIONS = (qwen.QwenImageAttentionBlock, qwen21.QwenImage21AttentionBlock)
_UP_BLOCKS = (qwen.QwenImageUpBlock, qwen21.QwenImage21UpBlock)


class Band(NamedTuple):
    """Rows of an image, or of a layer's output.

    >>> image_BCFHW = torch.zeros(1, 3, 1, 8, 4)
    >>> upper, lower = image_BCFHW.split(4, ROWS)
    >>> bands = iter([Band(upper, is_last=False), Band(lower, is_last=True)])
    """

    rows_BCFHW: Tensor
    is_last: bool
    """Whether no rows follow."""


Module: TypeAlias = Any
"""A module of diffusers, whose parts a type checker does not know."""

Bands = Iterator[Band]
Layer = Callable[[Bands], Bands]


class NotLocal(Exception):
    """A layer is not of a kind that is known to be local."""


class BandedVae:
    """A VAE that works in bands.

    Example::

        banded = BandedVae(vae)
        moments_BCFHW = banded.encode(pixels_BPFHW)
        pixels_BPFHW = banded.decode(latents_BCFHW)
    """

    def __init__(self, vae: Module) -> None:
        """vae: AutoencoderKLQwenImage or AutoencoderKLQwenImage21. Raises NotLocal for
        one with other layers."""
        self.vae = vae
        if (vae.config.get("patch_size") or 1) != 1:
            raise NotLocal("patch_size")
        encoder = vae.encoder
        decoder = vae.decoder
        self._down = [
            _convolution(encoder.conv_in),
            *(_layer(block) for block in encoder.down_blocks),
        ]
        self._up = [*(_layer(block) for block in decoder.up_blocks), *_head(decoder)]
        for part in (encoder, decoder):
            _check(part.mid_block)
        _head(encoder)

    def encode(self, pixels_BPFHW: Tensor) -> Tensor:
        """Mean and logarithm of the variance [B, 2 C, 1, H, W] of images [B, P, 1, sH,
        sW] in [-1, 1]. They are the `parameters` of the distribution that `vae.encode`
        returns."""
        encoder = self.vae.encoder
        rows = max(1, BAND_PIXELS // pixels_BPFHW.shape[-1])
        hidden_BCFHW = _joined(_chain(_cut(pixels_BPFHW, rows), self._down))
        hidden_BCFHW = _middle(encoder.mid_block, hidden_BCFHW)
        hidden_BCFHW = encoder.conv_out(
            encoder.nonlinearity(encoder.norm_out(hidden_BCFHW))
        )
        moments_BCFHW: Tensor = self.vae.quant_conv(hidden_BCFHW)
        return moments_BCFHW

    def decode(self, latents_BCFHW: Tensor) -> Tensor:
        """The images [B, P, 1, sH, sW] in [-1, 1] that `vae.decode` returns for latents
        [B, C, 1, H, W]."""
        decoder = self.vae.decoder
        hidden_BCFHW = decoder.conv_in(self.vae.post_quant_conv(latents_BCFHW))
        hidden_BCFHW = _middle(decoder.mid_block, hidden_BCFHW)
        scale = 2 ** (len(decoder.up_blocks) - 1)
        rows = max(1, BAND_PIXELS // (hidden_BCFHW.shape[-1] * scale * scale))
        return _joined(_chain(_cut(hidden_BCFHW, rows), self._up)).clamp(-1, 1)


class WholeVae:
    """A VAE that works on whole images, with the methods of `BandedVae`.

    Example::

        whole = WholeVae(vae)
        moments_BCFHW = whole.encode(pixels_BPFHW)
    """

    def __init__(self, vae: Module) -> None:
        self.vae = vae

    def encode(self, pixels_BPFHW: Tensor) -> Tensor:
        moments_BCFHW: Tensor = self.vae.encode(pixels_BPFHW).latent_dist.parameters
        return moments_BCFHW

    def decode(self, latents_BCFHW: Tensor) -> Tensor:
        pixels_BPFHW: Tensor = self.vae.decode(latents_BCFHW, return_dict=False)[0]
        return pixels_BPFHW


def in_bands(vae: Module) -> BandedVae | WholeVae:
    """The VAE in bands where all its layers are known to be local, else whole. A VAE
    with patches is used whole."""
    try:
        return BandedVae(vae)
    except NotLocal:
        return WholeVae(vae)


# ---------------------------------------------------------------- bands


def _cut(whole_BCFHW: Tensor, rows: int) -> Bands:
    bands = whole_BCFHW.split(rows, ROWS)
    for index, band_BCFHW in enumerate(bands):
        yield Band(band_BCFHW, index == len(bands) - 1)


def _joined(bands: Bands) -> Tensor:
    return torch.cat([band.rows_BCFHW for band in bands], ROWS)


def _chain(bands: Bands, layers: Iterable[Layer]) -> Bands:
    for layer in layers:
        bands = layer(bands)
    return bands


# While a generator waits it has only the rows that its next band needs: no variable
# refers to the rows that it yields.


def _each(bands: Bands, compute: Callable[[Tensor], Tensor]) -> Bands:
    """A layer in which each row depends on itself alone."""
    for rows_BCFHW, is_last in bands:
        held = [compute(rows_BCFHW)]
        del rows_BCFHW
        yield Band(held.pop(), is_last)


def _windows(bands: Bands, size: int, stride: int, above: int, below: int) -> Bands:
    """The bands, each extended by the rows that its first and last results need.

    size, stride: of the window of rows that makes one row. above, below: rows of zeros
    around the image.
    """
    kept_BCFHW: Tensor | None = None
    for rows_BCFHW, is_last in bands:
        if kept_BCFHW is None:
            kept_BCFHW = _zeros(rows_BCFHW, above)
        # The zeros below make a separate window. Otherwise the last band would grow
        # with each layer.
        if is_last and below:
            parts = [rows_BCFHW, _zeros(rows_BCFHW, below)]
        else:
            parts = [rows_BCFHW]
        del rows_BCFHW
        while parts:
            window_BCFHW = torch.cat([kept_BCFHW, parts.pop(0)], ROWS)
            count = max(0, (window_BCFHW.shape[ROWS] - size) // stride + 1)
            kept_BCFHW = window_BCFHW[:, :, :, count * stride :].clone()
            held = [window_BCFHW[:, :, :, : (count - 1) * stride + size]]
            del window_BCFHW
            # An odd row at the end of an image is in no window, also with the zeros
            # below it.
            follows = bool(parts) and kept_BCFHW.shape[ROWS] + below >= size
            if count:
                yield Band(held.pop(), is_last and not follows)


def _zeros(like_BCFHW: Tensor, rows: int) -> Tensor:
    return like_BCFHW.new_zeros((*like_BCFHW.shape[:ROWS], rows, like_BCFHW.shape[-1]))


def _sum(
    bands: Bands, one: Callable[[Bands], Bands], other: Callable[[Bands], Bands]
) -> Bands:
    """The sum of the outputs of two branches for the same rows. one: the branch that
    needs more rows for its next output; it leads."""
    # `itertools.tee` would keep up to 57 bands that both branches are done with.
    queue = deque[Band]()
    waiting = other(_taken(queue))
    left_BCFHW: Tensor | None = None
    for rows_BCFHW, is_last in one(_noted(bands, queue)):
        parts = [] if left_BCFHW is None else [left_BCFHW]
        count = sum(part.shape[ROWS] for part in parts)
        while count < rows_BCFHW.shape[ROWS]:
            parts.append(next(waiting).rows_BCFHW)
            count += parts[-1].shape[ROWS]
        beside_BCFHW = torch.cat(parts, ROWS) if len(parts) > 1 else parts[0]
        del parts
        here = rows_BCFHW.shape[ROWS]
        left_BCFHW = beside_BCFHW[:, :, :, here:].clone() if count > here else None
        held = [rows_BCFHW + beside_BCFHW[:, :, :, :here]]
        del rows_BCFHW, beside_BCFHW
        yield Band(held.pop(), is_last)


def _noted(bands: Bands, queue: deque[Band]) -> Bands:
    for band in bands:
        queue.append(band)
        held = [band]
        del band
        yield held.pop()


def _taken(queue: deque[Band]) -> Bands:
    while True:
        yield queue.popleft()


# ---------------------------------------------------------------- layers


def _layer(module: Module) -> Layer:
    """A layer in bands. Raises NotLocal."""
    kind = type(module)
    if kind in _RESIDUALS:
        return _residual(module)
    if kind in _RESAMPLES:
        return _resample(module)
    if kind in _UP_BLOCKS:
        return _sequence([*module.resnets, *(module.upsamplers or ())])
    if kind is qwen21.QwenImage21ResidualDownBlock:
        return _with_shortcut(module, module.downsampler)
    if kind is qwen21.QwenImage21ResidualUpBlock:
        return _with_shortcut(module, module.upsampler)
    raise NotLocal(kind.__name__)


def _sequence(modules: Iterable[Module]) -> Layer:
    layers = [_layer(module) for module in modules]
    return lambda bands: _chain(bands, layers)


def _convolution(module: Module) -> Layer:
    """A convolution of one frame over three rows, or over one."""
    if not isinstance(module, _CONVOLUTIONS):
        raise NotLocal(type(module).__name__)
    rows, columns = module.kernel_size[-2:]
    if (rows, columns) == (1, 1):
        return lambda bands: _each(bands, module)

    def convolve(window_BCFHW: Tensor) -> Tensor:
        # Only the last of the taps along time of a three-dimensional kernel meets the
        # frame.
        weight = module.weight if module.weight.ndim == 4 else module.weight[:, :, -1]
        padding = (0, columns // 2)
        return functional.conv2d(
            window_BCFHW[:, :, 0], weight, module.bias, padding=padding
        )[:, :, None]

    above = rows // 2
    return lambda bands: _each(_windows(bands, rows, 1, above, above), convolve)


def _activated(norm: Module, activation: Module) -> Layer:
    if type(norm) not in _NORMS:
        raise NotLocal(type(norm).__name__)
    return lambda bands: _each(bands, lambda rows_BCFHW: activation(norm(rows_BCFHW)))


def _residual(block: Module) -> Layer:
    layers = [
        _activated(block.norm1, block.nonlinearity),
        _convolution(block.conv1),
        _activated(block.norm2, block.nonlinearity),
        _convolution(block.conv2),
    ]
    shortcut = block.conv_shortcut
    return lambda bands: _sum(
        bands, lambda rows: _chain(rows, layers), lambda rows: _each(rows, shortcut)
    )


def _resample(module: Module) -> Layer:
    """Spatial resampling; a single frame is not resampled along time."""
    first, convolution = module.resample
    weight = convolution.weight
    bias = convolution.bias
    if module.mode.startswith("upsample"):

        def enlarge(rows_BCFHW: Tensor) -> Tensor:
            enlarged_BCHW: Tensor = first(rows_BCFHW[:, :, 0])
            return enlarged_BCHW[:, :, None]

        def convolve(window_BCFHW: Tensor) -> Tensor:
            return functional.conv2d(
                window_BCFHW[:, :, 0], weight, bias, padding=(0, 1)
            )[:, :, None]

        return lambda bands: _each(
            _windows(_each(bands, enlarge), 3, 1, 1, 1), convolve
        )

    def shrink(window_BCFHW: Tensor) -> Tensor:
        padded_BCHW = functional.pad(window_BCFHW[:, :, 0], (0, 1))
        return functional.conv2d(padded_BCHW, weight, bias, stride=2)[:, :, None]

    return lambda bands: _each(_windows(bands, 3, 2, 0, 1), shrink)


def _with_shortcut(block: Module, resampler: Module | None) -> Layer:
    """A block of Qwen-Image-2.1, to whose output a shortcut is added: a mean of
    neighbours, or a copy to them."""
    layers = _sequence(
        [*block.resnets, *([resampler] if resampler is not None else [])]
    )
    shortcut = block.avg_shortcut
    if shortcut is None:
        return layers
    if isinstance(shortcut, qwen21.QwenImage21DupUp3D):
        return lambda bands: _sum(
            bands,
            layers,
            lambda branch: _each(branch, lambda rows: shortcut(rows, first_chunk=True)),
        )
    pair = shortcut.factor_s
    return lambda bands: _sum(
        bands,
        layers,
        lambda branch: _each(_windows(branch, pair, pair, 0, 0), shortcut),
    )


def _head(part: Module) -> list[Layer]:
    return [_activated(part.norm_out, part.nonlinearity), _convolution(part.conv_out)]


# ---------------------------------------------------------------- the middle block


def _check(middle: Module) -> None:
    """Raises NotLocal for a middle block with other layers."""
    for module in (*middle.resnets, *middle.attentions):
        if module is not None and type(module) not in (*_RESIDUALS, *_ATTENTIONS):
            raise NotLocal(type(module).__name__)


def _middle(middle: Module, hidden_BCFHW: Tensor) -> Tensor:
    """The output of the middle block, whose attention sees the whole image at its
    smallest size."""
    hidden_BCFHW = middle.resnets[0](hidden_BCFHW)
    for attention, resnet in zip(middle.attentions, middle.resnets[1:], strict=True):
        if attention is not None:
            hidden_BCFHW = (
                hidden_BCFHW + _attended(attention, hidden_BCFHW[:, :, 0])[:, :, None]
            )
        hidden_BCFHW = resnet(hidden_BCFHW)
    return hidden_BCFHW


def _attended(attention: Module, hidden_BCHW: Tensor) -> Tensor:
    """The output of the attention, computed for `QUERIES` positions at a time."""
    batch, channels, height, width = hidden_BCHW.shape
    qkv_BCHW = attention.to_qkv(attention.norm(hidden_BCHW))
    qkv_B1ND = qkv_BCHW.view(batch, 1, 3 * channels, -1).transpose(2, 3)
    query_B1ND, key_B1ND, value_B1ND = (
        part.contiguous() for part in qkv_B1ND.chunk(3, dim=-1)
    )
    outputs = [
        functional.scaled_dot_product_attention(some_B1ND, key_B1ND, value_B1ND)
        for some_B1ND in query_B1ND.split(QUERIES, 2)
    ]
    found_BDN = torch.cat(outputs, 2).squeeze(1).transpose(1, 2)
    added_BCHW: Tensor = attention.proj(
        found_BDN.reshape(batch, channels, height, width)
    )
    return added_BCHW
