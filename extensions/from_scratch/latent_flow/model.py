"""`DiffusionModel` for the model folders of `flow_trainer`.

The text encoder may be trained along (`train_text_encoder`): prompts are then encoded
as token ids. Each use embeds them with the present weights, with a gradient where the
step needs one. The classes of transformers are called in `transformers`; the loop and
the losses are elsewhere.

`flow_process` creates the model for a run, `memory` derives one of fake tensors, and
`toolkit.models.families` creates it for the tools that generate images.

Shape suffixes: B batch, C latent channels, H/W latent height and width, L text tokens,
E text width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from extensions.from_scratch.autoencoders import Autoencoder, load_autoencoder
from extensions.from_scratch.latent_flow import text
from extensions.from_scratch.latent_flow.family import (
    FAMILY,
    TRANSFORMERS,
    LatentFlowFamily,
    part_config,
)
from extensions.from_scratch.latent_flow.transformers import TransformerAdapter
from extensions.from_scratch.spade import attach_spade
from toolkit.contracts.data import PromptEmbeds, Size
from toolkit.contracts.model import BlockWrapper
from toolkit.models.families import ModelLoadOptions
from toolkit.models.folder_family import dynamic_shift, size_of_area
from toolkit.models.folder_model import FolderModel
from toolkit.models.hashes import weights_hash
from toolkit.models.loading import load_blockwise, named_blocks
from toolkit.system.device import to_device

if TYPE_CHECKING:
    from PIL import Image

    from toolkit.contracts.model import DynamicShift


class LatentFlowModel(FolderModel):
    """See `DiffusionModel` for the methods.

    Example::

        options = ModelLoadOptions(folder=start, device=device, dtype=torch.bfloat16)
        model = LatentFlowModel(options)
        latents_BCHW = model.encode_images(pixels_BCHW)
    """

    family: LatentFlowFamily

    def __init__(
        self, options: ModelLoadOptions, family: LatentFlowFamily | None = None
    ) -> None:
        name = part_config(options.folder, "transformer")["_class_name"]
        self._adapter: TransformerAdapter = TRANSFORMERS.load(name)
        self._trains_text = False
        self._trained_vae: tuple[bool | None, int] | None = None
        """Arguments of `train_autoencoder`."""
        super().__init__(
            replace(options, modulation_table=False),
            family or FAMILY.of_folder(options.folder),
        )

    # ------------------------------------------------------------ parts

    def load_part(self, name: str) -> object:
        if name == "transformer":
            return load_blockwise(self.options, self._adapter.model_class)
        if name == "vae":
            spade, seed = self._trained_vae or (None, 0)
            autoencoder = load_autoencoder(
                self.options.folder / name, with_spade=spade is not False
            )
            if self._trained_vae is None:
                # Not diffusers' own `to`, which warns of modules to be kept in float32
                # where the class has none.
                nn.Module.to(autoencoder.module, self.options.dtype).requires_grad_(
                    False
                ).eval()
            elif spade and not autoencoder.has_spade():
                attach_spade(autoencoder.module, seed)
            return autoencoder
        if name == "text_encoder":
            return self._load_text_encoder()
        return text.load_tokenizer(self.options.folder / name)

    def _load_text_encoder(self) -> text.TextEncoder:
        options = self.options
        if self._trains_text:
            dtype = options.weights_dtype or options.dtype
        else:
            dtype = options.dtype
        module = text.load_text_encoder(options.folder / "text_encoder", dtype)
        if options.transform_text_block:
            for name, child in module.named_modules():
                if isinstance(child, nn.ModuleList):
                    for index, block in enumerate(child):
                        options.transform_text_block(block, f"{name}.{index}")
                    break
        return module

    def train_text_encoder(self) -> None:
        """Switches to a trained text encoder: prompts are token ids from now on, and
        `text_encoder` is in `weights_dtype` and stays loaded."""
        self._trains_text = True
        self._parts.pop("text_encoder", None)

    @property
    def text_encoder(self) -> text.TextEncoder:
        """The text encoder, where it runs."""
        encoder: text.TextEncoder = self.on_device("text_encoder")
        return encoder

    def train_autoencoder(self, spade: bool | None, seed: int) -> None:
        """Switches to a trained autoencoder, which is in float32 and stays loaded.
        spade: whether it has SPADE; None: as in the folder. seed: of the weights of an
        added SPADE."""
        self._trained_vae = spade, seed
        self._parts.pop("vae", None)

    @property
    def autoencoder(self) -> Autoencoder:
        """The autoencoder, where it runs."""
        autoencoder: Autoencoder = self.on_device("vae")
        return autoencoder

    def trained_parts(self) -> set[str]:
        text_parts = {"text_encoder", "tokenizer"} if self._trains_text else set()
        return text_parts | ({"vae"} if self._trained_vae else set())

    @cached_property
    def dynamic_shift(self) -> DynamicShift:
        return dynamic_shift(self.options.folder)

    def cache_key(self, part: str) -> str:
        folder = self.options.folder
        if part == "vae":
            return weights_hash(folder, [part])
        parts = ["tokenizer"] if self._trains_text else ["text_encoder", "tokenizer"]
        variant = "" if self._trains_text else self.options.text_encoder_cache_tag
        return f"{weights_hash(folder, parts)} {self.family.max_tokens}{variant}"

    # ------------------------------------------------------------ images

    def reference_size(self, image: Size, target: Size) -> Size:
        """About as many pixels as the target, in the image's own aspect ratio."""
        return size_of_area(
            math.prod(target), image.width / image.height, self.family.size_multiple
        )

    @torch.no_grad()
    def encode_images(self, pixels_BCHW: Tensor) -> Tensor:
        autoencoder = self.autoencoder
        mean_BCHW, _ = autoencoder.encode(
            pixels_BCHW.to(self.options.device, autoencoder.dtype())
        )
        return autoencoder.normalised(mean_BCHW)

    @torch.no_grad()
    def decode_latents(self, latents_BCHW: Tensor) -> Tensor:
        autoencoder = self.autoencoder
        latents_BCHW = autoencoder.unnormalised(
            latents_BCHW.to(self.options.device, autoencoder.dtype())
        )
        return autoencoder.decode(latents_BCHW).float().clamp(-1, 1)

    # ------------------------------------------------------------ text

    def encode_prompt(self, prompt: str, references: Sequence[Image.Image]) -> Tensor:
        if references:
            raise ValueError(
                f"the text encoder of a {self.family.title} sees no images"
            )
        ids_L = text.token_ids(self.part("tokenizer"), prompt, self.family.max_tokens)
        if self._trains_text:
            return ids_L
        encoder = self.text_encoder
        embeds_BLE: Tensor = encoder(ids_L[None].to(next(encoder.parameters()).device))
        return embeds_BLE[0]

    def count_cut(self, prompts: Iterable[str]) -> int:
        """The number of these prompts that have more than `max_tokens` tokens."""
        tokenizer = self.part("tokenizer")
        count = 0
        for prompt in prompts:
            tokens = tokenizer(prompt, verbose=False)["input_ids"]
            count += len(tokens) > self.family.max_tokens
        return count

    def _embeds(self, prompts: PromptEmbeds) -> Tensor:
        """Embeddings [B, L, E] of prompts of one length."""
        if self._trains_text:
            embeds_BLE: Tensor = self.part("text_encoder")(
                to_device(prompts.embeds_BLD, self.options.device)
            )
            return embeds_BLE.to(self.options.dtype)
        return self.to_model(prompts.embeds_BLD)

    # ------------------------------------------------------------ the transformer

    def compose(self, wrappers: Sequence[BlockWrapper]) -> Any:
        return self._adapter.compose(wrappers)

    def predict_group(
        self,
        run: Any,
        x_t_BCHW: Tensor,
        t_B: Tensor,
        prompts: PromptEmbeds,
        slots: Sequence[Tensor],
    ) -> Tensor:
        levels_B = to_device(t_B.float(), self.options.device)
        return self._adapter.forward(
            self.network_module,
            run,
            self.to_model(x_t_BCHW),
            levels_B,
            self._embeds(prompts),
            slots,
        )

    def apply_cfg(self, cond_BCHW: Tensor, uncond_BCHW: Tensor, scale: float) -> Tensor:
        """Ho & Salimans 2022, arXiv:2207.12598, eq. 6 with scale = 1 + w."""
        return uncond_BCHW + scale * (cond_BCHW - uncond_BCHW)

    def lora_targets(self) -> Sequence[str]:
        return [
            f"{path}.{name}"
            for path, block in named_blocks(
                self.network_module, self.family.block_lists
            )
            for name, module in block.named_modules()
            if isinstance(module, nn.Linear)
        ]
