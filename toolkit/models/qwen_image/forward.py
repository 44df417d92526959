"""The transformer's forward pass with each block run by a function of the caller, so
that memory can be managed around it. It also has layers that do the same with less
work: fewer kernels, and inputs that several layers read are handled once.

It computes diffusers' `QwenImageTransformer2DModel.forward` (transformer_qwenimage.py),
whose own modules do the work; `test_parity.py` compares the two. It encodes nothing and
has no loss. Called by `model`, `modulation_cache`, and the trainer of new models for a
transformer of this class. `loading` puts the layers in, and `qwen_image21.forward` uses
the rotation.

Shape suffixes: B batch, C latent channels, H/W latent height and width, S image tokens
(target and references), P token width (4 C), D model width, L text tokens, H heads, K
channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers import transformer_qwenimage
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from toolkit.contracts.model import BlockForward, BlockWrapper, project
from toolkit.models.folder_model import call_block
from toolkit.models.qwen_image.sizes import PATCH
from toolkit.system.device import to_device

if TYPE_CHECKING:
    from diffusers import QwenImageTransformer2DModel

Module = TypeVar("Module", bound=nn.Module)

ImageShape = tuple[int, int, int]
"""Frames, height and width of an image in tokens."""


@dataclass(frozen=True)
class BlockConditioning:
    """Inputs of every block in addition to the two streams.

    Example::

        conditions = BlockConditioning(temb_BD, rotary, tuple(t.tolist()), which_BS)
        streams = run(index, block, streams, conditions)
    """

    temb_BD: Tensor
    """Timestep embedding. Where control images have their own timestep (`zero_cond_t`),
    it is [2B, D]."""

    rotary: tuple[Tensor, Tensor]
    levels: tuple[float, ...]
    """The timestep of each row of `temb_BD`."""

    modulate_index_BS: Tensor | None = None
    """With `zero_cond_t`: 0 for tokens of the target, 1 for tokens of control
    images."""


ImageTextStreams = tuple[Tensor, Tensor]
"""Image tokens [B, S, D] and text tokens [B, L, D]."""

RunIndexed = Callable[
    [int, nn.Module, ImageTextStreams, BlockConditioning], ImageTextStreams
]
"""Runs one block, given its index."""


def compose_wrappers(wrappers: Sequence[BlockWrapper]) -> RunIndexed:
    """A function that runs a block in these wrappers; the first one is innermost. The
    wrappers get tensors only: no timesteps, no index."""
    run: BlockForward = _on_tensors
    for wrapper in wrappers:
        run = wrapper(run)

    def run_block(
        index: int,
        block: nn.Module,
        streams: ImageTextStreams,
        conditions: BlockConditioning,
    ) -> ImageTextStreams:
        image_BSD, text_BLD = run(
            block,
            *streams,
            conditions.temb_BD,
            *conditions.rotary,
            conditions.modulate_index_BS,
        )
        return image_BSD, text_BLD

    return run_block


def _on_tensors(
    block: nn.Module,
    image_BSD: Tensor,
    text_BLD: Tensor,
    temb_BD: Tensor,
    image_rotary: Tensor,
    text_rotary: Tensor,
    which_BS: Tensor | None,
) -> ImageTextStreams:
    """Calls the block."""
    text_BLD, image_BSD = call_block(
        block,
        hidden_states=image_BSD,
        encoder_hidden_states=text_BLD,
        encoder_hidden_states_mask=None,
        temb=temb_BD,
        image_rotary_emb=(image_rotary, text_rotary),
        modulate_index=which_BS,
    )
    return image_BSD, text_BLD


def forward(
    model: QwenImageTransformer2DModel,
    run: RunIndexed,
    tokens_BSP: Tensor,
    levels: Sequence[float],
    embeds_BLD: Tensor,
    shapes: Sequence[ImageShape],
) -> Tensor:
    """Velocity [B, S, P] of every token.

    levels: noise fraction of each item, in [0, 1]. shapes: of the target and each
    control image, in the order of the tokens; all items of the batch have them. No text
    is padded: an attention mask would rule out the fast kernels.
    """
    image_BSD = model.img_in(tokens_BSP)
    text_BLD = model.txt_in(model.txt_norm(embeds_BLD))
    count = len(levels)
    device = image_BSD.device
    of_image, of_text = model.pos_embed(
        [list(shapes)] * count, max_txt_seq_len=text_BLD.shape[1], device=device
    )
    # A copy, because a program depends on where a view begins.
    rotary = of_image, of_text.clone()
    # With `zero_cond_t` control images have timestep 0. Created on the CPU, where the
    # timesteps are known.
    t = torch.tensor(
        [*levels, *[0.0] * (count * model.zero_cond_t)], dtype=image_BSD.dtype
    )
    temb_BD = timestep_embedding(model, to_device(t, device), image_BSD)
    which_BS = None
    if model.zero_cond_t:
        which_S = (
            torch.arange(image_BSD.shape[1], device=device) >= prod(shapes[0])
        ).int()
        which_BS = which_S.expand(count, -1)
    conditions = BlockConditioning(temb_BD, rotary, tuple(t.tolist()), which_BS)
    streams = image_BSD, text_BLD
    for index, block in enumerate(model.transformer_blocks):
        streams = run(index, block, streams, conditions)
    velocity_BSP: Tensor = model.proj_out(model.norm_out(streams[0], temb_BD[:count]))
    return velocity_BSP


def timestep_embedding(
    model: QwenImageTransformer2DModel, t_B: Tensor, like: Tensor
) -> Tensor:
    """Embeddings [B, D] of noise fractions, in the dtype of `like`. In a model of
    layers they are the embeddings of images with opacity."""
    if not model.time_text_embed.use_additional_t_cond:
        temb_BD: Tensor = model.time_text_embed(t_B, like)
        return temb_BD
    with_opacity_B = torch.zeros(len(t_B), dtype=torch.long, device=t_B.device)
    temb_with_opacity_BD: Tensor = model.time_text_embed(t_B, like, with_opacity_B)
    return temb_with_opacity_BD


# ------------------------------------------------------------ latents as tokens
# Source: diffusers, pipeline_qwenimage_edit_plus.py, `_pack_latents`, `_unpack_latents`
# and `img_shapes`.


def pack(latents_BCHW: Tensor) -> Tensor:
    """[B, C, H, W] to tokens [B, H/2 * W/2, 4 C]: row by row, each token channel-major
    over its 2x2 patch.

    >>> pack(torch.zeros(1, 16, 4, 6)).shape
    torch.Size([1, 6, 64])
    """
    b, c, h, w = latents_BCHW.shape
    patches = latents_BCHW.reshape(b, c, h // PATCH, PATCH, w // PATCH, PATCH)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(
        b, (h // PATCH) * (w // PATCH), c * PATCH * PATCH
    )


def unpack(tokens_BSP: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `pack` for a latent of `height` x `width`.

    >>> unpack(torch.zeros(1, 6, 64), height=4, width=6).shape
    torch.Size([1, 16, 4, 6])
    """
    b, _, p = tokens_BSP.shape
    c = p // (PATCH * PATCH)
    patches = tokens_BSP.reshape(b, height // PATCH, width // PATCH, c, PATCH, PATCH)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(b, c, height, width)


def image_shapes(
    latents: Sequence[Tensor], stacks_layers: bool = False
) -> list[ImageShape]:
    """(frames, rows, columns) in tokens of each latent [..., H, W].

    latents: the target, then the control images. stacks_layers: the target is several
    images below each other, each of the size of the only control image.

    >>> image_shapes([torch.zeros(16, 8, 12)])
    [(1, 4, 6)]
    """
    shapes = [
        (1, latent.shape[-2] // PATCH, latent.shape[-1] // PATCH) for latent in latents
    ]
    if not stacks_layers:
        return shapes
    target, reference = shapes
    return [reference] * (target[1] // reference[1]) + [reference]


# ------------------------------------------------------------ rotary positions
# Compiled blocks can rotate by these.

rotate_complex = transformer_qwenimage.apply_rotary_emb_qwen
"""The rotation of diffusers."""


def use_real_rotation() -> None:
    """After this call compiled blocks rotate in real numbers, because inductor
    generates no code for complex ones."""
    transformer_qwenimage.apply_rotary_emb_qwen = rotate  # the blocks look it up there


def rotate(
    x_BSHK: Tensor, freqs: Any, use_real: bool = True, use_real_unbind_dim: int = -1
) -> Any:
    """`rotate_complex`, or `rotate_real` where it is compiled.

    freqs: complex, [S, K / 2], where `use_real` is False.
    """
    if use_real or not torch.compiler.is_compiling():
        return rotate_complex(x_BSHK, freqs, use_real, use_real_unbind_dim)
    return rotate_real(x_BSHK, freqs)


def rotate_real(x_BSHK: Tensor, freqs: Tensor) -> Tensor:
    """Multiplies pairs of channels (a, b) by the complex numbers (c + di): (ac - bd, ad
    + bc). freqs: complex, [S, K / 2]."""
    c, d = torch.view_as_real(freqs).unsqueeze(1).unbind(-1)
    a, b = x_BSHK.float().unflatten(-1, (-1, 2)).unbind(-1)
    return (
        torch.stack([a * c - b * d, a * d + b * c], dim=-1).flatten(-2).type_as(x_BSHK)
    )


# ------------------------------------------------------------ norms and projections

PROJECTIONS = (("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj"))
"""Projections of the attention of both streams, image and text. The layers of a group
read the same input."""


class FusedRMSNorm(RMSNorm):
    """The norm of diffusers by one kernel of PyTorch, where diffusers' formula takes
    seven.

    The output has the same bits on a CPU; the gradient is rounded once less in half
    precision. Where it is compiled the formula is used, which inductor fuses with the
    operations around it.

    >>> FusedRMSNorm(4, eps=1e-6)(torch.full((1, 4), 2.0)).round(decimals=3).tolist()
    [[1.0, 1.0, 1.0, 1.0]]
    """

    def forward(self, hidden_states: Tensor) -> Tensor:
        if (
            torch.compiler.is_compiling()
            or self.weight is None
            or self.weight.dtype != hidden_states.dtype
        ):
            by_formula: Tensor = super().forward(hidden_states)
            return by_formula
        normed: Tensor = rms_norm(hidden_states, self.dim, None, self.eps) * self.weight
        return normed if self.bias is None else normed + self.bias


def with_fused_norms(model: Module) -> Module:
    """The same model with `FusedRMSNorm`."""
    for layer in model.modules():
        if type(layer) is RMSNorm:
            layer.__class__ = FusedRMSNorm
    return model


class _Projected:
    """Stands in for an attention whose projections are already computed for this call.
    Each output is released when it is used."""

    def __init__(self, attn: nn.Module, outputs: dict[str, Tensor]) -> None:
        self._attn = attn
        self._outputs = outputs

    def __getattr__(self, name: str) -> Any:
        return (
            (lambda x: self._outputs.pop(name))
            if name in self._outputs
            else getattr(self._attn, name)
        )


class SharedProjections(transformer_qwenimage.QwenDoubleStreamAttnProcessor2_0):
    """diffusers' attention with its projections by `project`.

    Example::

        block.attn.processor = SharedProjections()
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Any:
        outputs: dict[str, Tensor] = {}
        for names, x_BSD in zip(
            PROJECTIONS, (hidden_states, encoder_hidden_states), strict=True
        ):
            outputs |= zip(
                names,
                project([getattr(attn, name) for name in names], x_BSD),
                strict=True,
            )
        return super().__call__(
            _Projected(attn, outputs),
            hidden_states,
            encoder_hidden_states,
            encoder_hidden_states_mask,
            attention_mask,
            image_rotary_emb,
        )


def with_shared_projections(model: Any) -> Any:
    """The same transformer with `SharedProjections`."""
    for block in model.transformer_blocks:
        block.attn.processor = SharedProjections()
    return model
