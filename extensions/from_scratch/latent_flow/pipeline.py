"""A pipeline of diffusers for the model folders of Atelier's `flow_trainer`. This file
is copied next to their model_index.json:

    DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)

It generates images from text; only Atelier reads control images. It imports diffusers
and torch, but nothing of Atelier, whose own samples come from `model`.

Shape suffixes: B batch, C latent channels, H/W latent height and width, L text tokens,
E text width.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from safetensors.torch import load_file
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

PATCH = 2
SPEED = {"flow": 1.0, "v": math.pi / 2}
"""dx/dt by the noise fraction t, for a prediction of 1."""


class LatentFlowPipeline(DiffusionPipeline):
    """Generates images from a text, by Euler steps from noise.

    Example::

        pipeline = DiffusionPipeline.from_pretrained(
            folder, custom_pipeline=folder, trust_remote_code=True
        )
        image = pipeline("a red square", height=64, width=64).images[0]
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"

    def __init__(
        self,
        transformer: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        scheduler: Any,
        prediction: str = "flow",
        max_tokens: int = 77,
    ) -> None:
        super().__init__()
        parts = {
            "transformer": transformer,
            "vae": vae,
            "text_encoder": text_encoder,
            "tokenizer": tokenizer,
        }
        self.register_modules(**parts, scheduler=scheduler)
        self.register_to_config(prediction=prediction, max_tokens=max_tokens)
        # the transformer takes the input of the final norm
        if text_encoder.config.model_type == "qwen3":
            text_encoder.norm.register_forward_hook(lambda _, inputs, __: inputs[0])
        if vae.config.get("spade"):
            raise ValueError(
                "This autoencoder was trained with SPADE, which only Atelier decodes with."
            )

    @torch.no_grad()
    def __call__(
        self,
        prompt: str,
        negative_prompt: str = "",
        height: int = 64,
        width: int = 64,
        num_inference_steps: int = 20,
        guidance_scale: float = 3.0,
        generator: torch.Generator | None = None,
    ) -> Any:
        """`ImagePipelineOutput` with one image. height, width: in pixels.
        guidance_scale: up to 1 means none."""
        device = self._execution_device
        dtype = self.transformer.dtype
        positive = self._embeds(prompt)
        negative = self._embeds(negative_prompt) if guidance_scale > 1 else None
        empty = self._encode(
            torch.zeros(1, 3, 64, 64, dtype=self.vae.dtype, device=device)
        )
        channels = empty.shape[1]
        scale = 64 // empty.shape[-1]
        noise = torch.randn(
            (1, channels, height // scale, width // scale), generator=generator
        )
        self.scheduler.set_timesteps(
            sigmas=np.linspace(1, 1 / num_inference_steps, num_inference_steps),
            device=device,
        )
        x_BCHW = noise.to(device)
        for sigma, timestep in zip(
            self.scheduler.sigmas,
            self.progress_bar(self.scheduler.timesteps),
            strict=False,
        ):
            t_B = sigma.to(device).expand(1)
            latents = x_BCHW.to(dtype)
            velocity = self._predict(latents, t_B, positive)
            if negative is not None:
                unguided = self._predict(latents, t_B, negative)
                velocity = unguided + guidance_scale * (velocity - unguided)
            x_BCHW = self.scheduler.step(
                SPEED[self.config.prediction] * velocity, timestep, x_BCHW
            )[0]
        pixels = self._decode(x_BCHW.to(self.vae.dtype)).float()
        images = self.numpy_to_pil(
            (pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
        )
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images)

    def _embeds(self, prompt: str) -> torch.Tensor:
        """[1, L, E]: the last hidden states, behind the text encoder's projection where
        its folder has one."""
        ids = self.tokenizer(
            prompt, truncation=True, max_length=self.config.max_tokens
        )["input_ids"]
        ids = ids or [self.tokenizer.eos_token_id or self.tokenizer.pad_token_id or 0]
        ids_BL = torch.tensor([ids], device=self._execution_device)
        embeds_BLE: torch.Tensor = self.text_encoder(input_ids=ids_BL).last_hidden_state
        file = Path(self.text_encoder.name_or_path) / "projection.safetensors"
        if file.is_file():
            embeds_BLE = embeds_BLE @ load_file(file)["weight"].to(embeds_BLE).T
        return embeds_BLE.to(self.transformer.dtype)

    def _predict(
        self, x_BCHW: torch.Tensor, t_B: torch.Tensor, embeds_BLE: torch.Tensor
    ) -> torch.Tensor:
        """The prediction [B, C, H, W], float32. t_B: noise fraction."""
        if "caption_projection_dim" in self.transformer.config:  # SD3Transformer2DModel
            pooled = embeds_BLE.mean(1)
            velocity: torch.Tensor = self.transformer(
                x_BCHW, embeds_BLE, pooled, 1000 * t_B, return_dict=False
            )[0]
            return velocity.float()
        # QwenImage21Transformer2DModel
        if "causal_condition" in self.transformer.config:
            return self._predict_single_stream(x_BCHW, t_B, embeds_BLE)
        batch, channels, height, width = x_BCHW.shape
        rows = height // PATCH
        columns = width // PATCH
        patches = x_BCHW.reshape(batch, channels, rows, PATCH, columns, PATCH).permute(
            0, 2, 4, 1, 3, 5
        )
        velocity = self.transformer(
            hidden_states=patches.reshape(batch, rows * columns, channels * PATCH**2),
            timestep=t_B.to(x_BCHW.dtype),
            encoder_hidden_states=embeds_BLE,
            img_shapes=[[(1, rows, columns)]] * batch,
            return_dict=False,
        )[0]
        patches = velocity.reshape(
            batch, rows, columns, channels, PATCH, PATCH
        ).permute(0, 3, 1, 4, 2, 5)
        return patches.reshape(batch, channels, height, width).float()

    def _predict_single_stream(
        self, x_BCHW: torch.Tensor, t_B: torch.Tensor, embeds_BLE: torch.Tensor
    ) -> torch.Tensor:
        patch = self.transformer.config.patch_size
        tokens = pixel_unshuffle(x_BCHW, patch)
        rows, columns = tokens.shape[-2:]
        if rows * columns % 4:
            raise ValueError(
                "This transformer has tokens of images in fours. Give sides of an even number of tokens."
            )
        is_image = (
            torch.arange(
                embeds_BLE.shape[1] + rows * columns // 4, device=x_BCHW.device
            )
            >= embeds_BLE.shape[1]
        )
        velocity = self.transformer(
            hidden_states=tokens.flatten(2).transpose(1, 2),
            timestep=t_B.to(x_BCHW.dtype),
            encoder_hidden_states=embeds_BLE,
            img_shapes=[[(1, rows, columns)]] * len(x_BCHW),
            img_mask=is_image.expand(len(x_BCHW), -1),
            return_dict=False,
        )[0][:, -rows * columns :]
        return pixel_shuffle(
            velocity.transpose(1, 2).unflatten(2, (rows, columns)), patch
        ).float()

    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Latents [B, C, H, W] of images, not normalised."""
        if self._is_video:
            mean: torch.Tensor = self.vae.encode(pixels[:, :, None]).latent_dist.mean
            return mean[:, :, 0]
        encoded = self.vae.encode(pixels)
        latents: torch.Tensor
        if hasattr(encoded, "latent_dist"):
            latents = encoded.latent_dist.mean
        else:
            latents = encoded.latents
        return latents

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images in about [-1, 1] of normalised latents [B, C, H, W]."""
        config = self.vae.config
        if self._is_video:
            mean = latents.new_tensor(config.latents_mean).view(-1, 1, 1)
            std = latents.new_tensor(config.latents_std).view(-1, 1, 1)
            frames: torch.Tensor = self.vae.decode(
                (latents * std + mean)[:, :, None]
            ).sample
            return frames[:, :, 0]
        latents = latents / (config.get("scaling_factor") or 1) + (
            config.get("shift_factor") or 0
        )
        images: torch.Tensor = self.vae.decode(latents).sample
        return images

    @property
    def _is_video(self) -> bool:
        """Whether images are videos of one frame: AutoencoderKLQwenImage."""
        return "z_dim" in self.vae.config
