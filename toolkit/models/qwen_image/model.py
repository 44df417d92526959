"""`DiffusionModel` for the members of `family.py`, which share the 20 B transformer.

Parts are loaded when they are first used and dropped when training no longer needs
them. The work is done in `loading`, `prompts`, `forward` and `modulation_cache`; this
module connects them with `FolderModel` and `QwenModel`. Made by `QwenImageFamily.open`.

Shape suffixes: B batch, C latent channels, H/W latent height and width (pixels / 8), F
frames (1), S tokens, P token width, L text tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch

from toolkit.contracts.data import PromptEmbeds
from toolkit.contracts.model import WeightStreaming
from toolkit.models import vl_prompts
from toolkit.models.families import ModelLoadOptions
from toolkit.models.layerwise import LayerwiseEncoder
from toolkit.models.qwen_image import loading, prompts
from toolkit.models.qwen_image.family import QwenImageFamily
from toolkit.models.qwen_image.forward import (
    RunIndexed,
    compose_wrappers,
    forward,
    image_shapes,
    pack,
    unpack,
    use_real_rotation,
)
from toolkit.models.qwen_image.modulation_cache import (
    ModulationCache,
    ModulationCacheUnsupportedError,
)
from toolkit.models.qwen_model import QwenModel

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor


class QwenImageModel(QwenModel):
    """A model folder; see `DiffusionModel` for the methods.

    Example::

        model = family_for(section.model).open(options)
        embeds_LD = model.encode_prompt("a cat", references=())
        latents_BCHW = model.encode_images(pixels_BPHW)
    """

    family: QwenImageFamily
    fused_projections = (
        ("attn.to_q", "attn.to_k", "attn.to_v"),
        ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    )

    def __init__(self, options: ModelLoadOptions, family: QwenImageFamily) -> None:
        super().__init__(options, family)
        self.modulation_cache: ModulationCache | None = None

    # ------------------------------------------------------------ parts

    def load_part(self, name: str) -> object:
        o = self.options
        part = self.options.folder / name
        if name == "transformer":
            return loading.load_transformer(o)
        if name == "vae":
            return loading.load_vae(part, o.dtype, o.files.get(name), o.decoder)
        if name == "text_encoder":
            kind = loading.TEXT_ENCODER
            file = o.files.get(name)
            return vl_prompts.load_text_model(
                part, kind, o.dtype, o.transform_text_block, file, o.keeps_text_codes
            )
        if name == "tokenizer":
            return vl_prompts.load_tokenizer(part)
        return vl_prompts.load_image_processor(part)

    def layerwise_encoder(self) -> LayerwiseEncoder | None:
        return LayerwiseEncoder(self.options, loading.TEXT_ENCODER)

    def encode_prompt(self, prompt: str, references: Sequence[Image.Image]) -> Tensor:
        if not self.family.text_sees_references:
            references = ()
        processor = self.part("processor") if references else None
        template = self.family.template
        inputs = prompts.encoder_inputs(
            prompt, references, self.part("tokenizer"), processor, template
        )
        embeds_LD = prompts.prompt_embedding(
            inputs, self.on_device("text_encoder"), template.dropped_tokens
        )
        return embeds_LD[: template.most_tokens]

    # ------------------------------------------------------------ the transformer

    compose = staticmethod(compose_wrappers)

    def predict_group(
        self,
        run: RunIndexed,
        x_t_BCHW: Tensor,
        t_B: Tensor,
        prompts: PromptEmbeds,
        slots: Sequence[Tensor],
    ) -> Tensor:
        height, width = x_t_BCHW.shape[-2:]
        target_BSP = pack(self.to_model(x_t_BCHW))
        velocity_BSP = forward(
            self.network_module,
            self.modulation_cache.wrap(run) if self.modulation_cache else run,
            torch.cat([target_BSP, *map(pack, slots)], dim=1),
            t_B.tolist(),
            self.to_model(prompts.embeds_BLD),
            image_shapes([x_t_BCHW, *slots], self.family.stacks_layers),
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

    def apply_cfg(self, cond_BCHW: Tensor, uncond_BCHW: Tensor, scale: float) -> Tensor:
        """The guided prediction. Most members restore each token to the length that it
        has in the conditional prediction; a token of length 0 stays 0.

        Source: diffusers, pipeline_qwenimage_edit_plus.py, `__call__` (`comb_pred`,
        `cond_norm`). There a token of length 0 becomes NaN by 0 / 0: a transformer that
        is not trained yet predicts zeros.
        """
        if not self.family.keeps_length:
            return super().apply_cfg(cond_BCHW, uncond_BCHW, scale)
        height, width = cond_BCHW.shape[-2:]
        cond_BSP = pack(cond_BCHW)
        uncond_BSP = pack(uncond_BCHW)
        guided_BSP = uncond_BSP + scale * (cond_BSP - uncond_BSP)
        shortest = torch.finfo(guided_BSP.dtype).tiny
        length_BS1 = cond_BSP.norm(dim=-1, keepdim=True) / guided_BSP.norm(
            dim=-1, keepdim=True
        ).clamp(min=shortest)
        return unpack(guided_BSP * length_BS1, height, width)

    def prepare_compiling(self) -> None:
        use_real_rotation()
