"""`DiffusersModel`: a model whose transformer runs by diffusers' own forward pass, with
each block in the trainer's wrappers.

It loads the parts, encodes prompts and images, and replaces the `forward` of each block
by one that hands its inputs to the wrappers as flat tensors. A family adds the call of
its transformer (`forward`). `write_shapes` records the weights of a published
transformer, for plans before the download.

Shape suffixes: B batch, C latent channels, H/W latent height and width, F frames (1), P
pixel channels, L text tokens, D text width.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import torch
import transformers
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from toolkit.contracts.data import EncodedPrompt, PromptEmbeds, Size
from toolkit.contracts.model import BlockForward, BlockWrapper, DynamicShift
from toolkit.models.folder_family import DiffusersFamily, dynamic_shift
from toolkit.models.folder_model import FolderModel, RunBlock, call_block
from toolkit.models.hashes import source_hash, weights_hash
from toolkit.models.loading import (
    NO_CODE,
    STRICTLY,
    check_block_lists,
    check_finite,
    check_loaded,
    load_blockwise,
    load_frozen,
    named_blocks,
    reading,
)
from toolkit.models.single_file import HEAD
from toolkit.models.vae_bands import in_bands
from toolkit.models.vae_files import encoder_hash

if TYPE_CHECKING:
    from PIL import Image

transformers.logging.disable_progress_bar()  # a bar per part would tear the status line

VIDEO = "temperal_downsample"
"""Key in the config of a VAE of videos, whose images are videos of one frame."""


HEADS = ("num_attention_heads", "num_heads", "n_heads")
"""Keys of diffusers' classes for the attention heads of a block."""


class DiffusersModel(FolderModel):
    """See `DiffusionModel` for the methods. A subclass defines `forward`, and what its
    pipeline does otherwise.

    Example::

        class ThingModel(DiffusersModel):
            def forward(self, x_t_BCHW, t_B, prompts, slots):
                texts_BLD = torch.stack(self.texts(prompts, len(x_t_BCHW)))
                return self.network_module(x_t_BCHW, t_B, texts_BLD).sample
    """

    family: DiffusersFamily

    # ------------------------------------------------------------ parts

    @cached_property
    def dynamic_shift(self) -> DynamicShift:
        return dynamic_shift(self.options.folder, self.family)

    def cache_keys(self, part: str) -> tuple[str, ...]:
        if part != "vae":
            return (self.cache_key(part),)
        o = self.options
        encoder = encoder_hash(o.folder / part, o.files.get(part))
        return encoder + self._source, self.cache_key(part)

    def cache_key(self, part: str) -> str:
        variant = self.options.text_encoder_cache_tag if part == "text_encoder" else ""
        return self._identities[part] + variant + self._source

    @cached_property
    def _source(self) -> str:
        """Names the code of a family in an extension, which decides what its encoders
        return."""
        kinds = (*type(self).__mro__, *type(self.family).__mro__)
        return source_hash(
            kind
            for kind in kinds
            if issubclass(kind, (DiffusersModel, DiffusersFamily))
        )

    @cached_property
    def _identities(self) -> dict[str, str]:
        o = self.options
        return {
            part: weights_hash(o.folder, parts, o.files)
            for part, parts in self.family.encoder_parts.items()
        }

    def load_part(self, name: str) -> object:
        o, part = self.options, self.options.folder / name
        if name == "tokenizer":
            with reading(part):
                return transformers.AutoTokenizer.from_pretrained(part, **NO_CODE)
        if name == "text_encoder":
            return self.load_text_encoder(part)
        kind = getattr(diffusers, self.family.classes[name])
        if name == self.family.trained_part:
            return self._catch_blocks(
                load_blockwise(o, kind, block_lists=self.family.block_lists)
            )
        return load_frozen(part, kind, o.dtype, o.files.get(name), decoder=o.decoder)

    def load_text_encoder(self, part: Path) -> nn.Module:
        """The layers of the text encoder that are used (`text_taps`), quantized where
        that is asked for, frozen, on the CPU."""
        kind = getattr(transformers, self.family.classes["text_encoder"])
        with reading(part):
            encoder, info = kind.from_pretrained(
                part, dtype=self.options.dtype, **STRICTLY
            )
        check_loaded(part, info, unused=(HEAD,))
        encoder = getattr(encoder, "model", encoder)
        check_finite(part, encoder)
        language = getattr(encoder, "language_model", encoder)
        if -1 not in self.family.text_taps:
            language.norm = nn.Identity()
        if language is not encoder and not self.family.text_sees_references:
            del encoder.visual
        del language.layers[self.family.used_text_layers(len(language.layers)) :]
        for index, layer in enumerate(language.layers):
            if self.options.transform_text_block:
                self.options.transform_text_block(layer, f"layers.{index}")
        frozen: nn.Module = encoder.requires_grad_(False).eval()
        return frozen

    # ------------------------------------------------------------ prompts

    def prompt_text(self, prompt: str) -> str:
        """A prompt with the template of the model around it, by default that of the
        tokenizer for the message of a user."""
        text: str = self.part("tokenizer").apply_chat_template(
            [{"role": "user", "content": prompt}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=self.family.thinks,
        )
        return text

    @torch.no_grad()
    def encode_prompt(
        self, prompt: str, references: Sequence[Image.Image]
    ) -> EncodedPrompt:
        inputs = self.part("tokenizer")(
            self.prompt_text(prompt),
            padding="max_length" if self.family.pads_text else False,
            truncation=True,
            max_length=self.family.text_length,
            return_tensors="pt",
        )
        return self.text_features(inputs)

    def text_features(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The hidden states that `text_taps` names, one beside the other [L, D]. inputs:
        of the text encoder, for one prompt."""
        encoder = self.on_device("text_encoder")
        states = encoder(
            input_ids=inputs["input_ids"].to(self.options.device),
            attention_mask=inputs["attention_mask"].to(self.options.device),
            output_hidden_states=True,
            use_cache=False,
        ).hidden_states
        taps = self.family.text_taps
        # The layers behind the last tap are gone.
        last = len(states) - 1 - max(taps)
        return torch.cat(
            [states[tap if tap >= 0 else last + tap][0] for tap in taps], dim=-1
        )

    # ------------------------------------------------------------ images

    def reference_size(self, image: Size, target: Size) -> Size:
        raise ValueError(f"a {self.family.title} takes no control images")

    @torch.no_grad()
    def encode_images(self, pixels_BPHW: Tensor) -> Tensor:
        vae = self.on_device("vae")
        pixels_BPHW = pixels_BPHW.to(self.options.device, self.options.dtype)
        if VIDEO in vae.config:
            moments_BCFHW = in_bands(vae).encode(pixels_BPHW.unsqueeze(2))
            latents_BCHW = moments_BCFHW.chunk(2, dim=1)[0].squeeze(2)
        else:
            latents_BCHW = vae.encode(pixels_BPHW).latent_dist.mode()
        mean_C11, std_C11 = self._latent_scale(latents_BCHW)
        return (latents_BCHW - mean_C11) / std_C11

    @torch.no_grad()
    def decode_latents(self, latents_BCHW: Tensor) -> Tensor:
        vae = self.on_device("vae")
        latents_BCHW = latents_BCHW.to(self.options.device, self.options.dtype)
        mean_C11, std_C11 = self._latent_scale(latents_BCHW)
        latents_BCHW = latents_BCHW * std_C11 + mean_C11
        if VIDEO in vae.config:
            pixels_BPHW = in_bands(vae).decode(latents_BCHW.unsqueeze(2))[:, :, 0]
        else:
            pixels_BPHW = vae.decode(latents_BCHW).sample
        return pixels_BPHW.float().clamp(-1, 1)

    def _latent_scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and spread of the latents of the VAE [C, 1, 1]."""
        config = self.part("vae").config
        mean = getattr(config, "latents_mean", None) or [config.shift_factor or 0.0]
        std = getattr(config, "latents_std", None) or [1 / config.scaling_factor]
        mean_C11, std_C11 = (like.new_tensor(v).view(-1, 1, 1) for v in (mean, std))
        return mean_C11, std_C11

    # ------------------------------------------------------------ the transformer

    @cached_property
    def hidden_size(self) -> int:
        return self.family.footprint(self.options.folder).width

    @property
    def head_dim(self) -> int:
        config = self.network_module.config
        heads = next(config[key] for key in HEADS if config.get(key))
        channels: int = config.get("attention_head_dim") or self.hidden_size // heads
        return channels

    def sampling_level(self, t_B: Tensor) -> Tensor:
        """1000 t rounded to the compute dtype, and divided there.

        Source: diffusers, pipeline_qwenimage_edit_plus.py, `__call__` (`timestep /
        1000`).
        """
        return ((t_B * 1000).to(self.options.dtype) / 1000).to(t_B.dtype)

    def apply_cfg(self, cond_BCHW: Tensor, uncond_BCHW: Tensor, scale: float) -> Tensor:
        """The guided prediction. Source: Ho & Salimans 2022, arXiv:2207.12598, eq. 6
        with scale = 1 + w."""
        return uncond_BCHW + scale * (cond_BCHW - uncond_BCHW)

    def texts(self, prompts: PromptEmbeds, rows: int) -> list[Tensor]:
        """The text of each row of a batch [L, D], which may have several noise levels
        of a prompt beside each other."""
        return [
            text_LD[:length]
            for text_LD, length in zip(
                self.to_model(prompts.embeds_BLD), prompts.lengths, strict=True
            )
            for _ in range(rows // len(prompts.lengths))
        ]

    def forward(
        self,
        x_t_BCHW: Tensor,
        t_B: Tensor,
        prompts: PromptEmbeds,
        slots: Sequence[Tensor],
    ) -> Tensor:
        """The velocity by diffusers' forward pass; arguments as of `predict_group`."""
        raise NotImplementedError(f"{type(self).__name__} needs forward()")

    def predict_group(
        self,
        run: RunBlock,
        x_t_BCHW: Tensor,
        t_B: Tensor,
        prompts: PromptEmbeds,
        slots: Sequence[Tensor],
    ) -> Tensor:
        self._run = run
        return self.forward(x_t_BCHW, t_B, prompts, slots)

    def compose(self, wrappers: Sequence[BlockWrapper]) -> RunBlock:
        """Blocks of another class, and those that are called with other arguments, are
        other functions, so that a compiled one knows its own."""
        functions: dict[tuple[object, TreeSpec], BlockForward] = {}

        def run(index: int, block: nn.Module, *arguments: Any, **named: Any) -> Any:
            tensors, layout = tree_flatten((arguments, named))
            forward = type(block).forward
            if (forward, layout) not in functions:
                function: BlockForward = partial(_run_block, forward, layout)
                for wrapper in wrappers:
                    function = wrapper(function)
                functions[forward, layout] = function
            outputs = functions[forward, layout](block, *tensors)
            return outputs if len(outputs) > 1 else outputs[0]

        return run

    def _catch_blocks(self, module: nn.Module) -> nn.Module:
        """The module, whose blocks run by the function of the present pass."""
        blocks = named_blocks(module, self.family.block_lists)
        for index, (_, block) in enumerate(blocks):
            block.forward = partial(self._run_caught, index, block)
        return module

    def _run_caught(
        self, index: int, block: nn.Module, *args: Any, **named: Any
    ) -> Any:
        return self._run(index, block, *args, **named)


def _run_block(
    forward: Callable[..., Any],
    layout: TreeSpec,
    block: nn.Module,
    *tensors: Tensor | None,
) -> tuple[Tensor, ...]:
    """The outputs of a block. forward: of its class. layout: of its arguments, of which
    `tensors` are the leaves."""
    arguments, named = tree_unflatten(tensors, layout)
    outputs = call_block(block, *arguments, forward=partial(forward, block), **named)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def write_shapes(
    file: Path, kind: str, block_lists: Sequence[str], **configs: Mapping[str, Any]
) -> None:
    """Writes the weights of published transformers to a `shapes_file`, and keeps what
    else is in it.

    kind: the class in diffusers. configs: size -> the arguments of the class. They are
    made on the meta device, which takes no memory. Raises UserError where `block_lists`
    leaves out a list of blocks.

    Example::

        write_shapes(file, "SanaTransformer2DModel", ["transformer_blocks"], base={})
    """
    content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    content["sizes"] = {}
    for size, config in configs.items():
        with torch.device("meta"):
            module = getattr(diffusers, kind)(**config)
        check_block_lists(module, block_lists)
        blocks = {name: len(module.get_submodule(name)) for name in block_lists}
        weights = {}
        for name, tensor in module.state_dict().items():
            within = next((one for one in blocks if name.startswith(f"{one}.0.")), "")
            if within:
                name = f"{within}.*.{name.removeprefix(f'{within}.0.')}"
            if within or not name.startswith(tuple(f"{one}." for one in blocks)):
                weights[name] = list(tensor.shape)
        content["sizes"][size] = {"blocks": blocks, "weights": weights}
    write_rows(file, content)


def write_rows(file: Path, content: Mapping[str, Any]) -> None:
    """JSON whose lists of numbers stand in a line."""
    rows = re.sub(r"\[[\d.,\s]+\]", _in_a_line, json.dumps(content, indent=1))
    file.write_text(f"{rows}\n", encoding="utf-8")


def _in_a_line(row: re.Match[str]) -> str:
    return " ".join(row[0].split()).replace("[ ", "[").replace(" ]", "]")
