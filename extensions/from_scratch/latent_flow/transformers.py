"""The transformers of the family: the arguments that fit them to latents and text, and
their forward passes. A function of this program runs each block, so memory can be
managed around it (`DiffusionModel.wrap_blocks`).

The results are equal to the results of diffusers' own classes, whose modules do the
work. No weights are loaded here. `family.TRANSFORMERS` names the adapters; `model`,
`new` and `memory` load them by the class of the transformer.

Shape suffixes: B batch, C latent channels, H/W latent height and width, S image tokens,
D model width, L text tokens, E text width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from toolkit.contracts.model import BlockForward, BlockWrapper
from toolkit.errors import UserError
from toolkit.models.imports import without_bitsandbytes
from toolkit.models.qwen_image.sizes import PATCH

with without_bitsandbytes():
    from diffusers import (
        QwenImage21Transformer2DModel,
        QwenImageTransformer2DModel,
        SD3Transformer2DModel,
    )

    from toolkit.models.qwen_image import forward as qwen
    from toolkit.models.qwen_image.new import rope_axes
    from toolkit.models.qwen_image21 import forward as qwen21

ARGUMENTS = "transformer.config"
"""Key of the arguments, for messages."""

RunBlock = Callable[..., Any]
"""Runs one block: (index, block, (image [B, S, D], text [B, L, D]), further inputs of
its class) -> the same two."""


class TransformerAdapter(ABC):
    """How one class of diffusers is made and called. It has its blocks in
    `transformer_blocks`.

    Example::

        adapter = TRANSFORMERS.load("SD3Transformer2DModel")
        fitting = adapter.fitting(arguments, channels=16, text_width=768)
        transformer = build(adapter.model_class, {**fitting, **arguments}, ARGUMENTS)
    """

    model_class: ClassVar[Any]

    @staticmethod
    @abstractmethod
    def fitting(
        arguments: Mapping[str, Any], channels: int, text_width: int
    ) -> dict[str, Any]:
        """The arguments that follow from the latents' channels and the width of the
        text embeddings.

        arguments: the others, as given. Raises UserError where these cannot be.
        """

    @staticmethod
    @abstractmethod
    def compose(wrappers: Sequence[BlockWrapper]) -> RunBlock:
        """Runs a block within these wrappers, the first one innermost."""

    @staticmethod
    @abstractmethod
    def forward(
        module: Any,
        run: RunBlock,
        x_BCHW: Tensor,
        t_B: Tensor,
        embeds_BLE: Tensor,
        references: Sequence[Tensor] = (),
    ) -> Tensor:
        """The prediction [B, C, H, W] for texts without padding.

        t_B: noise fraction in [0, 1], float32. references: latents [B, C, h, w] of each
        control image in slot order, of any size; only where `family.REFERENCES` has the
        class.
        """


class Sd3Transformer(TransformerAdapter):
    """`SD3Transformer2DModel`. Its pooled text is the mean over the tokens.

    >>> Sd3Transformer.fitting({}, channels=16, text_width=768)["joint_attention_dim"]
    768
    """

    model_class = SD3Transformer2DModel

    @staticmethod
    def fitting(
        arguments: Mapping[str, Any], channels: int, text_width: int
    ) -> dict[str, Any]:
        heads = arguments.get("num_attention_heads", 18)
        head_dim = arguments.get("attention_head_dim", 64)
        whole = isinstance(heads, int) and isinstance(head_dim, int)
        return {
            "in_channels": channels,
            "out_channels": channels,
            "joint_attention_dim": text_width,
            "pooled_projection_dim": text_width,
            **({"caption_projection_dim": heads * head_dim} if whole else {}),
        }

    @staticmethod
    def compose(wrappers: Sequence[BlockWrapper]) -> RunBlock:
        def call(
            block: nn.Module, image_BSD: Tensor, text_BLD: Tensor, temb_BD: Tensor
        ) -> tuple[Tensor, Tensor]:
            """The last block gives no text."""
            text_BLD, image_BSD = block(
                hidden_states=image_BSD, encoder_hidden_states=text_BLD, temb=temb_BD
            )
            return image_BSD, text_BLD

        run: BlockForward = call
        for wrapper in wrappers:
            run = wrapper(run)

        def run_block(
            index: int,
            block: nn.Module,
            streams: tuple[Tensor, Tensor],
            temb_BD: Tensor,
        ) -> tuple[Any, Any]:
            image_BSD, text_BLD = run(block, *streams, temb_BD)
            return image_BSD, text_BLD

        return run_block

    @staticmethod
    def forward(
        module: Any,
        run: RunBlock,
        x_BCHW: Tensor,
        t_B: Tensor,
        embeds_BLE: Tensor,
        references: Sequence[Tensor] = (),
    ) -> Tensor:
        """Source: diffusers, transformer_sd3.py, `SD3Transformer2DModel.forward`; t in
        thousandths, as in pipelines."""
        (height, width), patch = x_BCHW.shape[-2:], module.config.patch_size
        temb_BD = module.time_text_embed(1000 * t_B, embeds_BLE.mean(1))
        streams = (
            module.pos_embed(x_BCHW).contiguous(),
            module.context_embedder(embeds_BLE),
        )
        for index, block in enumerate(module.transformer_blocks):
            streams = run(index, block, streams, temb_BD)
        patches_BSP = module.proj_out(module.norm_out(streams[0], temb_BD))
        rows = height // patch
        columns = width // patch
        channels = module.config.out_channels
        patches: Tensor = patches_BSP.unflatten(2, (patch, patch, channels)).unflatten(
            1, (rows, columns)
        )
        return patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


class QwenImageTransformer(TransformerAdapter):
    """`QwenImageTransformer2DModel`. The tokens of references follow the tokens of the
    target, as in Qwen-Image-Edit-2509.

    >>> QwenImageTransformer.fitting({}, channels=16, text_width=768)["in_channels"]
    64
    """

    model_class = QwenImageTransformer2DModel

    @staticmethod
    def fitting(
        arguments: Mapping[str, Any], channels: int, text_width: int
    ) -> dict[str, Any]:
        if arguments.get("patch_size", PATCH) != PATCH:
            raise UserError(
                f"{ARGUMENTS}.patch_size: {arguments['patch_size']!r}: this class has {PATCH} only."
            )
        return {
            "in_channels": channels * PATCH**2,
            "out_channels": channels,
            "joint_attention_dim": text_width,
            "axes_dims_rope": rope_axes(arguments.get("attention_head_dim", 128)),
        }

    compose = staticmethod(qwen.compose_wrappers)

    @staticmethod
    def forward(
        module: Any,
        run: RunBlock,
        x_BCHW: Tensor,
        t_B: Tensor,
        embeds_BLE: Tensor,
        references: Sequence[Tensor] = (),
    ) -> Tensor:
        images = [x_BCHW, *references]
        packed = list(map(qwen.pack, images))
        shapes = qwen.image_shapes(images)
        target_tokens = packed[0].shape[1]
        tokens_BSP = qwen.forward(
            module, run, torch.cat(packed, dim=1), t_B.tolist(), embeds_BLE, shapes
        )
        return qwen.unpack(tokens_BSP[:, :target_tokens], *x_BCHW.shape[-2:])


class QwenImage21Transformer(TransformerAdapter):
    """`QwenImage21Transformer2DModel`. References are in front of the text, which sees
    them, as in Qwen-Image-2.1.

    >>> QwenImage21Transformer.fitting({}, channels=16, text_width=768)["in_channels"]
    16
    """

    model_class = QwenImage21Transformer2DModel

    @staticmethod
    def fitting(
        arguments: Mapping[str, Any], channels: int, text_width: int
    ) -> dict[str, Any]:
        return {
            "in_channels": channels,
            "out_channels": channels,
            "context_in_dim": text_width,
            "axes_dims_rope": rope_axes(arguments.get("attention_head_dim", 128)),
        }

    compose = staticmethod(qwen21.compose_wrappers)

    @staticmethod
    def forward(
        module: Any,
        run: RunBlock,
        x_BCHW: Tensor,
        t_B: Tensor,
        embeds_BLE: Tensor,
        references: Sequence[Tensor] = (),
    ) -> Tensor:
        height, width = x_BCHW.shape[-2:]
        patch = module.config.patch_size
        before = [_tokens(reference, patch) for reference in references]
        x_BSP = _tokens(x_BCHW, patch)
        shapes = [
            (1, image.shape[-2] // patch, image.shape[-1] // patch)
            for image in (*references, x_BCHW)
        ]
        slots = [0] * len(references)
        prediction = qwen21.forward(
            module, run, x_BSP, t_B, embeds_BLE, slots, before, shapes
        )
        return pixel_shuffle(
            prediction.transpose(1, 2).unflatten(2, (height // patch, width // patch)),
            patch,
        )


def _tokens(image_BCHW: Tensor, patch: int) -> Tensor:
    """Tokens [B, S, C * patch * patch] of latents."""
    return pixel_unshuffle(image_BCHW, patch).flatten(2).transpose(1, 2)
