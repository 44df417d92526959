"""`DiffusionModel` for Qwen-Image-Edit-2509 (and 2511, which differs only in its config files).

Parts are loaded when they are first used and dropped when training no longer needs them.

Shape suffixes: B batch, C latent channels, H/W latent height and width (pixels / 8), F frames (1),
S tokens, P token width, L text tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from toolkit.data.types import PromptEmbeds, Size
from toolkit.models.families import ModelLoadOptions
from toolkit.models.folder_model import FolderModel
from toolkit.models.interface import BlockWrapper, WeightStreaming
from toolkit.models.loading import BLOCKS, weights_hash
from toolkit.models.qwen_image import loading, prompts, sizes
from toolkit.models.qwen_image.family import FAMILY
from toolkit.models.qwen_image.forward import (
    RunIndexed,
    compose_wrappers,
    forward,
    image_shapes,
    pack,
    unpack,
    use_real_rotation,
)
from toolkit.models.qwen_image.modulation_cache import ModulationCache, ModulationCacheUnsupportedError
from toolkit.models.qwen_image.prompt_length import prompt_fault
from toolkit.models.qwen_image.sizes import block_linears

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from toolkit.models.interface import TimeShift


class QwenImageModel(FolderModel):
    """A Qwen-Image-Edit model folder; see `DiffusionModel` for the methods."""

    family = FAMILY

    def __init__(self, options: ModelLoadOptions) -> None:
        super().__init__(options)
        self.modulation_cache: ModulationCache | None = None

    # ------------------------------------------------------------ parts

    def load_part(self, name: str) -> object:
        o = self.options
        if name == "transformer":
            return loading.load_transformer(o)
        if name == "vae":
            return loading.load_vae(o.folder, o.dtype)
        if name == "text_encoder":
            return loading.load_text_model(o.folder, o.dtype, o.transform_text_block)
        return loading.load_tokenizer(o.folder) if name == "tokenizer" else loading.load_image_processor(o.folder)

    def _on_device(self, name: str) -> Any:
        """An encoder where it runs; with `low_vram` the others are moved to the CPU first."""
        self._clear_device(keep=name)
        stays = name == "text_encoder" and self.options.text_encoder_cpu
        return self.part(name).to("cpu" if stays else self.options.device)

    def _clear_device(self, keep: str | None = None) -> None:
        """With `low_vram`, moves the encoders except `keep` to the CPU."""
        if self.options.low_vram:
            for name in self.family.encoder_parts.keys() & self._parts.keys() - {keep}:
                self._parts[name].to("cpu")

    @cached_property
    def dynamic_shift(self) -> TimeShift:
        return sizes.dynamic_shift(self.options.folder)

    def cache_key(self, part: str) -> str:
        variant = self.options.text_encoder_cache_tag if part == "text_encoder" else ""
        return self._identities[part] + variant

    @cached_property
    def _identities(self) -> dict[str, str]:
        return {part: weights_hash(self.options.folder, files) for part, files in self.family.encoder_parts.items()}

    # ------------------------------------------------------------ images

    def reference_size(self, image: Size, target: Size) -> Size:
        return sizes.reference_size(image, target, self.options.match_target_res)

    @torch.no_grad()
    def encode_images(self, pixels_BCHW: Tensor) -> Tensor:
        pixels_BCFHW = pixels_BCHW.to(self.options.device, self.options.dtype).unsqueeze(2)
        latents_BCHW = self._on_device("vae").encode(pixels_BCFHW).latent_dist.mode().squeeze(2)
        mean_C11, std_C11 = self._latent_scale(latents_BCHW)
        return (latents_BCHW - mean_C11) / std_C11

    @torch.no_grad()
    def decode_latents(self, latents_BCHW: Tensor) -> Tensor:
        latents_BCHW = latents_BCHW.to(self.options.device, self.options.dtype)
        mean_C11, std_C11 = self._latent_scale(latents_BCHW)
        latents_BCFHW = (latents_BCHW * std_C11 + mean_C11).unsqueeze(2)
        pixels_BCFHW = self._on_device("vae").decode(latents_BCFHW, return_dict=False)[0]
        return pixels_BCFHW[:, :, 0].float().clamp(-1, 1)

    def _latent_scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        config = self.part("vae").config
        mean_C11, std_C11 = (like.new_tensor(v).view(-1, 1, 1) for v in (config.latents_mean, config.latents_std))
        return mean_C11, std_C11

    # ------------------------------------------------------------ text

    def prompt_error(self, prompt: str, target: Size, references: Sequence[Size]) -> str | None:
        return prompt_fault(self.options.folder, prompt, target, references, self.options.match_target_res)

    def encode_prompt(self, prompt: str, references: Sequence[Image.Image]) -> Tensor:
        processor = self.part("processor") if references else None
        inputs = prompts.encoder_inputs(prompt, references, self.part("tokenizer"), processor)
        return prompts.prompt_embedding(inputs, self._on_device("text_encoder"))

    # ------------------------------------------------------------ the transformer

    def compose(self, wrappers: Sequence[BlockWrapper]) -> RunIndexed:
        return compose_wrappers(wrappers)

    def predict_velocity(self, x_t_BCHW: Tensor, *inputs: Any, **named: Any) -> Tensor:
        self._clear_device()
        return super().predict_velocity(x_t_BCHW, *inputs, **named)

    def predict_group(
        self, run: RunIndexed, x_t_BCHW: Tensor, t_B: Tensor, prompts: PromptEmbeds, slots: Sequence[Tensor]
    ) -> Tensor:
        height, width = x_t_BCHW.shape[-2:]
        target_BSP = pack(self.to_model(x_t_BCHW))
        velocity_BSP = forward(
            self.network_module,
            self.modulation_cache.wrap(run) if self.modulation_cache else run,
            torch.cat([target_BSP, *map(pack, slots)], dim=1),
            t_B.tolist(),
            self.to_model(prompts.embeds_BLD),
            image_shapes([x_t_BCHW, *slots]),
        )
        return unpack(velocity_BSP[:, : target_BSP.shape[1]], height, width)

    def enable_modulation_cache(self, streaming: WeightStreaming) -> str | None:
        if not self.options.modulation_table:
            return None
        try:
            self.modulation_cache = ModulationCache(
                self.network_module, self.options.device, self.options.dtype, streaming
            )
        except ModulationCacheUnsupportedError as reason:
            for index, block in enumerate(self.blocks()):
                if index not in self.options.cpu_blocks:
                    block.to(self.options.device)
            return str(reason)
        return None

    def prefetch_timesteps(self, levels: Iterable[float]) -> None:
        if self.modulation_cache:
            self.modulation_cache.prefetch_timesteps(levels)

    def sampling_level(self, t_B: Tensor) -> Tensor:
        """1000 t rounded to the compute dtype, and divided there.

        Source: diffusers, pipeline_qwenimage_edit_plus.py, `__call__` (`timestep / 1000`).
        """
        return ((t_B * 1000).to(self.options.dtype) / 1000).to(t_B.dtype)

    def apply_cfg(self, cond_BCHW: Tensor, uncond_BCHW: Tensor, scale: float) -> Tensor:
        """Guidance with each token's length restored to the conditional one's; a token of length 0 stays 0.

        Source: diffusers, pipeline_qwenimage_edit_plus.py, `__call__` (`comb_pred`, `cond_norm`), where 0 / 0 makes
        NaN of it: a transformer that `new_model` made predicts zeros.
        """
        height, width = cond_BCHW.shape[-2:]
        cond_BSP, uncond_BSP = pack(cond_BCHW), pack(uncond_BCHW)
        guided_BSP = uncond_BSP + scale * (cond_BSP - uncond_BSP)
        shortest = torch.finfo(guided_BSP.dtype).tiny
        length_BS1 = cond_BSP.norm(dim=-1, keepdim=True) / guided_BSP.norm(dim=-1, keepdim=True).clamp(min=shortest)
        return unpack(guided_BSP * length_BS1, height, width)

    def prepare_compiling(self) -> None:
        use_real_rotation()

    def fused_projection_groups(self) -> Sequence[Sequence[str]]:
        groups = [["to_q", "to_k", "to_v"], ["add_q_proj", "add_k_proj", "add_v_proj"]]
        blocks = range(len(self.blocks()))
        return [[f"{BLOCKS}.{index}.attn.{name}" for name in group] for index in blocks for group in groups]

    def lora_targets(self) -> Sequence[str]:
        names = block_linears(dim=1)
        return [f"{BLOCKS}.{index}.{name}" for index in range(len(self.blocks())) for name in names]
