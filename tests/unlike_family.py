"""A model family as unlike Qwen-Image-Edit as the contracts allow, with real (tiny)
torch modules.

16 pixels per latent pixel, one latent pixel per token, 6 latent channels, two text
encoders of which the second gives one pooled tensor, a guidance input, no references, a
time shift that depends on the number of steps.

Shape suffixes: B batch, C latent channels, H/W latent height and width, S image tokens,
L text tokens, D width, P pooled.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar

import torch
from accelerate import init_empty_weights
from safetensors.torch import save_file
from torch import Tensor, nn

from toolkit.contracts.data import EMBEDS, PromptEmbeds, Size
from toolkit.contracts.model import (
    BlockForward,
    BlockWrapper,
    DiffusionModel,
    ModelFacts,
)
from toolkit.models.families import (
    EncoderSize,
    ModelFamily,
    ModelLoadOptions,
    ModelSizeInfo,
)
from toolkit.models.loading import WEIGHTS, ShardReader, fill, weights_hash
from toolkit.system.seeding import global_generator

WIDTH, BLOCKS, TEXT_WIDTH, POOLED = 32, 3, 12, 5


class Shift:
    shift_terminal = None

    def mu(self, tokens: int, steps: int) -> float:
        return 0.1 * math.log(tokens) + 1 / steps


class Block(nn.Module):
    """Tokens see their mean and what conditions them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Linear(width, width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x_BSD: Tensor, condition_B1D: Tensor) -> tuple[Tensor]:
        mixed_BSD = x_BSD + self.mix(x_BSD.mean(1, keepdim=True) + condition_B1D)
        return (mixed_BSD + self.down(nn.functional.silu(self.up(mixed_BSD))),)


class Transformer(nn.Module):
    def __init__(self, width: int, blocks: int, channels: int) -> None:
        super().__init__()
        self.image_in = nn.Linear(channels, width)
        self.text_in = nn.Linear(TEXT_WIDTH, width)
        self.pooled_in = nn.Linear(POOLED, width)
        self.level_in = nn.Linear(2, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.out = nn.Linear(width, channels)


class Vae(nn.Module):
    def __init__(self, scale: int, channels: int) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(4, channels, scale, stride=scale)
        self.decoder = nn.ConvTranspose2d(channels, 4, scale, stride=scale)


class Words(nn.Module):
    """A text encoder: a vector for each byte."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(256, width)

    def forward(self, prompt: str) -> Tensor:
        return self.table(torch.tensor(list(prompt.encode()) or [0]))


class UnlikeFamily(ModelFamily):
    arch = "unlike"
    model_class = "tests.unlike_family:UnlikeAdapter"
    title = "Unlike-1"
    pipelines = ("UnlikePipeline",)
    modelspec = ("Unlike", "https://example.com/unlike")
    size_multiple = 16
    pixel_channels = 4
    latent_channels = 6
    latent_scale = 16
    embeds_guidance = True
    encoder_parts: ClassVar = {
        "vae": ("vae",),
        "text_encoder": ("text_encoder", "text_encoder_2"),
    }
    weight_parts: ClassVar = ("transformer", "vae", "text_encoder", "text_encoder_2")
    parts: ClassVar = dict.fromkeys(
        ("transformer", "vae", "text_encoder", "text_encoder_2"), "config.json"
    )

    def linear_layers(self, folder: Path) -> dict[str, tuple[int, int]]:
        sizes = {
            "mix": (WIDTH, WIDTH),
            "up": (WIDTH, 2 * WIDTH),
            "down": (2 * WIDTH, WIDTH),
        }
        return {
            f"blocks.{index}.{name}": size
            for index in range(BLOCKS)
            for name, size in sizes.items()
        }

    def every_linear_layer(self, folder: Path) -> dict[str, tuple[int, int]]:
        return {
            "image_in": (self.latent_channels, WIDTH),
            "text_in": (TEXT_WIDTH, WIDTH),
            "pooled_in": (POOLED, WIDTH),
            "level_in": (2, WIDTH),
            **self.linear_layers(folder),
            "out": (WIDTH, self.latent_channels),
        }

    def modules(self, folder: Path) -> dict[str, int]:
        return {
            name: (i + 1) * o
            for name, (i, o) in self.every_linear_layer(folder).items()
        }

    def block_count(self, folder: Path) -> int:
        return BLOCKS

    def footprint(self, folder: Path) -> ModelSizeInfo:
        in_blocks = sum(i * o for i, o in self.linear_layers(folder).values())
        return ModelSizeInfo(
            width=WIDTH,
            blocks=BLOCKS,
            linear_params=in_blocks,
            other_params=sum(self.modules(folder).values()) - in_blocks,
            largest_layer=2 * WIDTH**2,
            largest_of_tokens=2 * WIDTH**2,
            modulation_layers=frozenset(),
            tabulated_weights=0,
            table_inputs=frozenset(),
            text=EncoderSize(linear_params=0, other_params=256 * (TEXT_WIDTH + POOLED)),
            vae=EncoderSize(
                linear_params=0,
                other_params=2 * 4 * self.latent_channels * self.latent_scale**2,
            ),
            encode_numbers=8,
            decode_numbers=8,
            text_token_numbers=TEXT_WIDTH,
            text_width=TEXT_WIDTH,
            pixels_per_token=self.token_side**2,
            scales_references=False,
            text_tokens=0,
            text_tokens_per_reference=0,
            bytes_per_weight={None: 2.0, "int8": 1.0},
        )


FAMILY = UnlikeFamily()


class FamilyOfV(UnlikeFamily):
    """One that predicts v instead of the velocity."""

    prediction = "v"


class UnlikeAdapter(DiffusionModel):
    family: ModelFacts = FAMILY
    dynamic_shift = Shift()
    hidden_size = head_dim = WIDTH

    def __init__(self, options: ModelLoadOptions, family: ModelFamily) -> None:
        self.options = options
        self._parts: dict[str, nn.Module] = {}
        self.wrap_blocks(())

    @property
    def network_module(self) -> nn.Module:
        return self._part("transformer")

    def _part(self, name: str) -> nn.Module:
        if name not in self._parts:
            with init_empty_weights():
                module = new_parts()[name]
            with ExitStack() as stack:
                fill(
                    module,
                    ShardReader(self.options.folder / name, stack),
                    "",
                    self.options.dtype,
                )
            self._parts[name] = (
                module.requires_grad_(False).eval().to(self.options.device)
            )
        return self._parts[name]

    def cache_key(self, part: str) -> str:
        return weights_hash(self.options.folder, FAMILY.encoder_parts[part])

    def reference_size(self, image: Size, target: Size) -> Size:
        raise AssertionError("a family without references is asked for the size of one")

    def encode_images(self, pixels_BCHW: Tensor) -> Tensor:
        return self._part("vae").encoder(pixels_BCHW.to(self.options.dtype))

    def decode_latents(self, latents_BCHW: Tensor) -> Tensor:
        return (
            self._part("vae")
            .decoder(latents_BCHW.to(self.options.dtype))
            .float()
            .clamp(-1, 1)
        )

    def encode_prompt(
        self, prompt: str, references: Sequence[object]
    ) -> dict[str, Tensor]:
        pooled_P = self._part("text_encoder_2")(prompt).mean(0)
        return {EMBEDS: self._part("text_encoder")(prompt), "pooled": pooled_P}

    def predict_velocity(
        self,
        x_t_BCHW: Tensor,
        t_B: Tensor,
        prompts: PromptEmbeds,
        references: Sequence[Sequence[Tensor]],
        guidance_B: Tensor | None = None,
    ) -> Tensor:
        if any(references):
            raise ValueError("this family takes no references")
        model, dtype = self.network_module, self.options.dtype
        guidance_B = torch.ones_like(t_B) if guidance_B is None else guidance_B
        text = [
            embeds_LD[:length].mean(0)
            for embeds_LD, length in zip(
                prompts.embeds_BLD, prompts.lengths, strict=True
            )
        ]
        condition_BD = (
            model.text_in(torch.stack(text).to(dtype))
            + model.pooled_in(prompts.extra["pooled"].to(dtype))
            + model.level_in(torch.stack([t_B, guidance_B], dim=1).to(dtype))
        )
        height, width = x_t_BCHW.shape[-2:]
        x_BSD = model.image_in(x_t_BCHW.flatten(2).transpose(1, 2).to(dtype))
        for index, block in enumerate(model.blocks):
            run = self._run_first_back if index == len(model.blocks) - 1 else self._run
            (x_BSD,) = run(block, x_BSD, condition_BD[:, None])
        return model.out(x_BSD).transpose(1, 2).unflatten(2, (height, width)).float()

    def apply_cfg(self, cond_BCHW: Tensor, uncond_BCHW: Tensor, scale: float) -> Tensor:
        return uncond_BCHW + scale * (cond_BCHW - uncond_BCHW)

    def num_tokens(
        self,
        latents_BCHW: Tensor,
        prompts: PromptEmbeds,
        references: Sequence[Sequence[Tensor]],
    ) -> int:
        return latents_BCHW[:, 0].numel() + sum(prompts.lengths)

    def blocks(self) -> Sequence[nn.Module]:
        return list(self.network_module.blocks)

    def wrap_blocks(
        self,
        wrappers: Sequence[BlockWrapper],
        last_block_wrappers: Sequence[BlockWrapper] | None = None,
    ) -> None:
        self._run = _within(wrappers)
        self._run_first_back = (
            self._run if last_block_wrappers is None else _within(last_block_wrappers)
        )

    def lora_targets(self) -> Sequence[str]:
        return list(FAMILY.linear_layers(self.options.folder))

    def unload_encoders(self, keep: Iterable[str] = ()) -> None:
        for name in {
            part for parts in FAMILY.encoder_parts.values() for part in parts
        } - set(keep):
            self._parts.pop(name, None)


def _within(wrappers: Sequence[BlockWrapper]) -> BlockForward:
    def run(block: nn.Module, *tensors: Tensor) -> tuple[Tensor, ...]:
        return block(*tensors)

    for wrapper in wrappers:
        run = wrapper(run)
    return run


def new_parts() -> dict[str, nn.Module]:
    return {
        "transformer": Transformer(WIDTH, BLOCKS, FAMILY.latent_channels),
        "vae": Vae(FAMILY.latent_scale, FAMILY.latent_channels),
        "text_encoder": Words(TEXT_WIDTH),
        "text_encoder_2": Words(POOLED),
    }


def write_unlike_model(folder: Path, seed: int = 0) -> Path:
    """A model folder of random weights."""
    with global_generator(seed, "unlike"):
        parts = new_parts()
    for name, module in parts.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text("{}")
        save_file(module.state_dict(), folder / name / WEIGHTS)
    (folder / "model_index.json").write_text(
        json.dumps({"_class_name": "UnlikePipeline"})
    )
    return folder
