"""`DiffusionModel` for the model folders of `flow_trainer`.

The text encoder may be trained along (`train_text_encoder`): prompts are then encoded as token ids, and embedded at
each use by its weights of that moment, with a gradient where one is wanted.

Shape suffixes: B batch, C latent channels, H/W latent height and width, L text tokens, E text width.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from toolkit.config.model_files import read_model_json
from toolkit.data.types import PromptEmbeds, Size
from toolkit.errors import RunError, UserError
from toolkit.models.autoencoders import Autoencoder, load_autoencoder
from toolkit.models.families import ModelLoadOptions
from toolkit.models.interface import BlockWrapper, DiffusionModel, DynamicShift
from toolkit.models.latent_flow import text
from toolkit.models.latent_flow.family import FAMILY, TRANSFORMERS, LatentFlowFamily, part_config
from toolkit.models.latent_flow.transformers import TransformerAdapter
from toolkit.models.loading import BLOCKS, load_blockwise, weights_hash
from toolkit.models.qwen_edit.sizes import size_of_area
from toolkit.models.spade import attach_spade
from toolkit.system.device import to_device
from toolkit.system.host_memory import malloc_trim

if TYPE_CHECKING:
    from PIL import Image

    from toolkit.models.interface import TimeShift


@dataclass(frozen=True)
class ConstantShift:
    """A time shift that is the same for every size: t becomes s t / (1 + (s - 1) t)."""

    shift: float
    shift_terminal: None = None

    def mu(self, tokens: int, steps: int) -> float:
        return math.log(self.shift)


@dataclass(frozen=True)
class TrainedAutoencoder:
    """Arguments of `LatentFlowModel.train_autoencoder`."""

    spade: bool | None
    seed: int


class LatentFlowModel(DiffusionModel):
    """See `DiffusionModel` for the methods."""

    family: LatentFlowFamily

    def __init__(self, options: ModelLoadOptions) -> None:
        self.options = replace(options, modulation_table=False)
        self.family = FAMILY.of_folder(options.folder)
        name = part_config(options.folder, "transformer")["_class_name"]
        self._adapter: TransformerAdapter = TRANSFORMERS.load(name)
        self._parts: dict[str, Any] = {}
        self._trains_text = False
        self._trained_vae: TrainedAutoencoder | None = None
        self.wrap_blocks(())

    # ------------------------------------------------------------ parts, loaded on first use

    @property
    def network_module(self) -> Any:
        return self._part("transformer")

    def _part(self, name: str) -> Any:
        if name not in self._parts:
            self._parts[name] = self._load_part(name)
        return self._parts[name]

    def _load_part(self, name: str) -> object:
        options, folder = self.options, self.options.folder
        try:
            if name == "transformer":
                return load_blockwise(options, self._adapter.model_class)
            if name == "vae":
                return self._load_autoencoder()
            if name == "text_encoder":
                return self._load_text_encoder()
            return text.load_tokenizer(folder / name)
        except (OSError, ValueError, KeyError, UserError) as error:
            raise RunError(f"cannot load {name} of the model in {folder}: {error}") from error

    def _load_autoencoder(self) -> Autoencoder:
        folder, trained = self.options.folder / "vae", self._trained_vae
        if trained is None:
            autoencoder = load_autoencoder(folder)
            # Not diffusers' own `to`, which warns of modules to be kept in float32 where the class has none.
            nn.Module.to(autoencoder.module, self.options.dtype).requires_grad_(False).eval()
            return autoencoder
        autoencoder = load_autoencoder(folder, with_spade=trained.spade is not False)
        if trained.spade and not autoencoder.has_spade():
            attach_spade(autoencoder.module, trained.seed)
        return autoencoder

    def _load_text_encoder(self) -> text.TextEncoder:
        options = self.options
        dtype = (options.weights_dtype or options.dtype) if self._trains_text else options.dtype
        module = text.load_text_encoder(options.folder / "text_encoder", dtype)
        if options.transform_text_block:
            for name, child in module.named_modules():
                if isinstance(child, nn.ModuleList):
                    for index, block in enumerate(child):
                        options.transform_text_block(block, f"{name}.{index}")
                    break
        return module

    def train_text_encoder(self) -> None:
        """From here on prompts are token ids, and `text_encoder` is in `weights_dtype` and stays."""
        self._trains_text = True
        self._parts.pop("text_encoder", None)

    @property
    def text_encoder(self) -> text.TextEncoder:
        """The text encoder, where it runs."""
        stays = self.options.text_encoder_cpu and not self._trains_text
        return self._part("text_encoder").to("cpu" if stays else self.options.device)

    def train_autoencoder(self, spade: bool | None, seed: int) -> None:
        """From here on the autoencoder is in float32 and stays. spade: added or left out; None: as it is. seed: of what
        is added."""
        self._trained_vae = TrainedAutoencoder(spade, seed)
        self._parts.pop("vae", None)

    @property
    def autoencoder(self) -> Autoencoder:
        """The autoencoder, where it runs."""
        autoencoder = self._part("vae")
        autoencoder.module.to(self.options.device)
        return autoencoder

    def unload_encoders(self, keep: Iterable[str] = ()) -> None:
        trained = {"text_encoder", "tokenizer"} if self._trains_text else set()
        trained |= {"vae"} if self._trained_vae else set()
        for name in set(chain(*self.family.encoder_parts.values())) - set(keep) - trained:
            self._parts.pop(name, None)
        malloc_trim()
        if self.options.device.type == "cuda":
            torch.cuda.empty_cache()

    @cached_property
    def dynamic_shift(self) -> TimeShift:
        config = read_model_json(self.options.folder / "scheduler" / "scheduler_config.json")
        if not config.get("use_dynamic_shifting"):
            return ConstantShift(float(config.get("shift") or 1))
        defaults = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
        values = {key: config.get(key, default) for key, default in defaults.items()}
        return DynamicShift(**values, shift_terminal=config.get("shift_terminal"))

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
        return size_of_area(math.prod(target), image.width / image.height, self.family.size_multiple)

    @torch.no_grad()
    def encode_images(self, pixels_BCHW: Tensor) -> Tensor:
        autoencoder = self.autoencoder
        mean_BCHW, _ = autoencoder.encode(pixels_BCHW.to(self.options.device, autoencoder.dtype()))
        return autoencoder.normalised(mean_BCHW)

    @torch.no_grad()
    def decode_latents(self, latents_BCHW: Tensor) -> Tensor:
        autoencoder = self.autoencoder
        latents_BCHW = autoencoder.unnormalised(latents_BCHW.to(self.options.device, autoencoder.dtype()))
        return autoencoder.decode(latents_BCHW).float().clamp(-1, 1)

    # ------------------------------------------------------------ text

    def encode_prompt(self, prompt: str, references: Sequence[Image.Image]) -> Tensor:
        if references:
            raise ValueError(f"the text encoder of a {self.family.title} sees no images")
        ids_L = text.token_ids(self._part("tokenizer"), prompt, self.family.max_tokens)
        if self._trains_text:
            return ids_L
        encoder = self.text_encoder
        return encoder(ids_L[None].to(next(encoder.parameters()).device))[0]

    def count_cut(self, prompts: Iterable[str]) -> int:
        """How many of these prompts have more tokens than are seen."""
        tokenizer, most = self._part("tokenizer"), self.family.max_tokens
        return sum(len(tokenizer(prompt, verbose=False)["input_ids"]) > most for prompt in prompts)

    def _embeds(self, prompts: PromptEmbeds) -> Tensor:
        """Embeddings [B, L, E] of prompts of one length."""
        if self._trains_text:
            return self._part("text_encoder")(to_device(prompts.embeds_BLD, self.options.device)).to(self.options.dtype)
        return to_device(prompts.embeds_BLD, self.options.device, self.options.dtype)

    # ------------------------------------------------------------ the transformer

    def predict_velocity(
        self,
        x_t_BCHW: Tensor,
        t_B: Tensor,
        prompts: PromptEmbeds,
        references: Sequence[Sequence[Tensor]],
        guidance_B: Tensor | None = None,
    ) -> Tensor:
        if guidance_B is not None:
            raise ValueError(f"a {self.family.title} has no guidance input")
        if (most := max(map(len, references), default=0)) > self.family.max_references:
            raise ValueError(f"{most} references, and this model takes at most {self.family.max_references}")
        # Items of unlike sizes have unlike positions; texts of unlike lengths would need an attention mask.
        groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for row, latents in enumerate(references):
            groups[prompts.lengths[row], *(reference_CHW.shape for reference_CHW in latents)].append(row)
        found: dict[int, Tensor] = {}
        for number, rows in enumerate(groups.values(), start=1):
            run = self._run_last_pass if number == len(groups) else self._run_block
            x_BCHW = to_device(x_t_BCHW[rows], self.options.device, self.options.dtype)
            levels_B = to_device(t_B[rows].float(), self.options.device)
            embeds_BLE = self._embeds(prompts.select(rows))
            slots = [
                to_device(torch.stack(slot), self.options.device, self.options.dtype)
                for slot in zip(*(references[row] for row in rows), strict=True)
            ]
            predicted_BCHW = self._adapter.forward(self.network_module, run, x_BCHW, levels_B, embeds_BLE, slots)
            found |= zip(rows, predicted_BCHW.to(torch.promote_types(predicted_BCHW.dtype, torch.float32)), strict=True)
        return torch.stack([found[row] for row in range(len(x_t_BCHW))])

    def apply_cfg(self, cond_BCHW: Tensor, uncond_BCHW: Tensor, scale: float) -> Tensor:
        """Ho & Salimans 2022, arXiv:2207.12598, eq. 6 with scale = 1 + w."""
        return uncond_BCHW + scale * (cond_BCHW - uncond_BCHW)

    @property
    def hidden_size(self) -> int:
        return self.head_dim * self.network_module.config.num_attention_heads

    @property
    def head_dim(self) -> int:
        return self.network_module.config.attention_head_dim

    def num_tokens(self, latents_BCHW: Tensor, prompts: PromptEmbeds, references: Sequence[Sequence[Tensor]]) -> int:
        images = [*latents_BCHW, *(latents for of_item in references for latents in of_item)]
        return sum(self.family.tokens(Size(image.shape[-1], image.shape[-2])) for image in images) + sum(
            prompts.lengths
        )

    def blocks(self) -> Sequence[nn.Module]:
        return list(self.network_module.transformer_blocks)

    def wrap_blocks(
        self, wrappers: Sequence[BlockWrapper], last_block_wrappers: Sequence[BlockWrapper] | None = None
    ) -> None:
        self._run_block = self._adapter.compose(wrappers)
        self._run_first_back = (
            self._run_block if last_block_wrappers is None else self._adapter.compose(last_block_wrappers)
        )

    def _run_last_pass(self, index: int, *arguments: Any) -> tuple[Any, Any]:
        """The last block of the last group needs no recomputation: its backward comes first."""
        last = index == len(self.network_module.transformer_blocks) - 1
        return (self._run_first_back if last else self._run_block)(index, *arguments)

    def lora_targets(self) -> Sequence[str]:
        blocks = enumerate(self.blocks())
        return [
            f"{BLOCKS}.{index}.{name}"
            for index, block in blocks
            for name, module in block.named_modules()
            if isinstance(module, nn.Linear)
        ]
