"""`QwenModel`: the part of a model that all of the Qwen-Image family share in addition
to `FolderModel`. It has the VAE for video with scaled latents, the keys of cached
latents and embeddings, and the time shift by size.

Its subclasses, `qwen_image.model` and `qwen_image21.model`, load the parts and run the
transformer.

Shape suffixes: B batch, C latent channels, H/W latent height and width, F frames (1), P
pixel channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from toolkit.contracts.data import Size
from toolkit.contracts.model import DynamicShift
from toolkit.models.folder_family import FolderFamily, dynamic_shift, reference_size
from toolkit.models.folder_model import FolderModel
from toolkit.models.hashes import weights_hash
from toolkit.models.loading import BLOCKS
from toolkit.models.vae_bands import in_bands
from toolkit.models.vae_files import encoder_hash


class QwenModel(FolderModel):
    """See `DiffusionModel` for the methods.

    Example::

        model = family_for(section.model).open(options)
        latents_BCHW = model.encode_images(pixels_BPHW)
        pixels_BPHW = model.decode_latents(latents_BCHW)
    """

    family: FolderFamily
    fused_projections: Sequence[Sequence[str]]
    """Groups of names of linear layers in a block that read the same input. The forward
    pass gives each group to `project`, in this order."""

    @cached_property
    def dynamic_shift(self) -> DynamicShift:
        return dynamic_shift(self.options.folder, self.family)

    def cache_keys(self, part: str) -> tuple[str, ...]:
        if part != "vae":
            return (self.cache_key(part),)
        o = self.options
        return encoder_hash(o.folder / part, o.files.get(part)), self.cache_key(part)

    def cache_key(self, part: str) -> str:
        variant = self.options.text_encoder_cache_tag if part == "text_encoder" else ""
        return self._identities[part] + variant

    @cached_property
    def _identities(self) -> dict[str, str]:
        o = self.options
        return {
            part: weights_hash(o.folder, parts, o.files)
            for part, parts in self.family.encoder_parts.items()
        }

    def prompt_error(
        self, prompt: str, target: Size, references: Sequence[Size]
    ) -> str | None:
        o = self.options
        return self.family.prompt_fault(
            o.folder, prompt, target, references, o.reference_area
        )

    # ------------------------------------------------------------ images

    @property
    def predicts_composite(self) -> bool:
        return self.options.composite_target

    def reference_size(self, image: Size, target: Size) -> Size:
        if self.family.stacks_layers:
            return target
        return reference_size(image, target, self.options.reference_area)

    @torch.no_grad()
    def encode_images(self, pixels_BPHW: Tensor) -> Tensor:
        pixels_BPFHW = pixels_BPHW.to(
            self.options.device, self.options.dtype
        ).unsqueeze(2)
        moments_BCFHW = in_bands(self.on_device("vae")).encode(pixels_BPFHW)
        latents_BCHW = moments_BCFHW.chunk(2, dim=1)[0].squeeze(2)
        mean_C11, std_C11 = self._latent_scale(latents_BCHW)
        return (latents_BCHW - mean_C11) / std_C11

    @torch.no_grad()
    def decode_latents(self, latents_BCHW: Tensor) -> Tensor:
        latents_BCHW = latents_BCHW.to(self.options.device, self.options.dtype)
        mean_C11, std_C11 = self._latent_scale(latents_BCHW)
        latents_BCFHW = (latents_BCHW * std_C11 + mean_C11).unsqueeze(2)
        pixels_BPFHW = in_bands(self.on_device("vae")).decode(latents_BCFHW)
        return pixels_BPFHW[:, :, 0].float().clamp(-1, 1)

    def _latent_scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        config = self.part("vae").config
        mean_C11, std_C11 = (
            like.new_tensor(v).view(-1, 1, 1)
            for v in (config.latents_mean, config.latents_std)
        )
        return mean_C11, std_C11

    # ------------------------------------------------------------ the transformer

    def sampling_level(self, t_B: Tensor) -> Tensor:
        """1000 t rounded to the compute dtype, and divided there.

        Source: diffusers, pipeline_qwenimage_edit_plus.py, `__call__` (`timestep /
        1000`).
        """
        return ((t_B * 1000).to(self.options.dtype) / 1000).to(t_B.dtype)

    def fused_projection_groups(self) -> Sequence[Sequence[str]]:
        blocks = range(len(self.blocks()))
        return [
            [f"{BLOCKS}.{index}.{name}" for name in group]
            for index in blocks
            for group in self.fused_projections
        ]

    def lora_targets(self) -> Sequence[str]:
        return list(self.family.linear_layers(self.options.folder))
