"""`FolderModel`, the base of every `DiffusionModel` that is a folder of diffusers.

It loads parts on first use, moves encoders out of the way with `low_vram`, and runs one
forward pass for all items of a batch that have the same shapes. It does not know VAEs,
prompts or blocks: the families do. Derived from by `qwen_model` and by the model that
is trained from random weights. Trainers see only `DiffusionModel`.

Shape suffixes: B batch, C latent channels, H/W latent height and width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.contracts.data import EncodedPrompt, PromptEmbeds, Size
from toolkit.contracts.model import BlockWrapper, DiffusionModel
from toolkit.errors import RunError, UserError
from toolkit.files.safetensors_io import ALIGNMENT
from toolkit.models.families import ModelFamily, ModelLoadOptions
from toolkit.models.layerwise import LayerwiseEncoder, PromptRecorder
from toolkit.models.loading import named_blocks
from toolkit.system.device import to_device
from toolkit.system.host_memory import malloc_trim
from toolkit.system.torch_version import casts_in_programs

CASTS_IN_PROGRAMS = casts_in_programs()

RunBlock = Callable[..., Any]
"""Runs one block: (index, block, inputs of the family) -> its outputs."""


def call_block(
    block: nn.Module,
    *inputs: Any,
    forward: Callable[..., Any] | None = None,
    **named: Any,
) -> Any:
    """The outputs of a block, by the module's own call, whose hooks gather the weights
    of a sharded block. All adapters of the block are cast at once
    (`Network.cast_by_block`), in a compiled block where PyTorch allows it.

    forward: what runs the block, where its own call has come this far.

    >>> call_block(nn.Linear(4, 2), torch.ones(1, 4)).shape
    torch.Size([1, 2])
    """
    casts: Any = getattr(block, "adapter_casts", None)
    run = forward or block
    if casts is None or (torch.compiler.is_compiling() and not CASTS_IN_PROGRAMS):
        return run(*inputs, **named)
    with casts.of((*inputs, *named.values())):
        return run(*inputs, **named)


class FolderModel(DiffusionModel):
    """A model folder. A subclass defines `load_part`, `compose`, `predict_group` and
    the methods of `DiffusionModel` that depend on its encoders.

    Example::

        model = family.open(options)  # a subclass of FolderModel
        vae = model.part("vae")  # read at the first call
        model.unload_encoders(keep=["vae"])
    """

    family: ModelFamily

    def __init__(self, options: ModelLoadOptions, family: ModelFamily) -> None:
        """family: of the folder in `options`."""
        self.options = options
        self.family = family
        self._parts: dict[str, Any] = {}
        self._recorder: PromptRecorder | None = None
        self.wrap_blocks(())

    # ------------------------------------------------------------ parts

    @abstractmethod
    def load_part(self, name: str) -> object:
        """Reads a part of the model folder. OSError, ValueError, KeyError and UserError
        are reported with the part and the folder."""

    def part(self, name: str) -> Any:
        """A part of the model folder by its name in model_index.json, read at the first
        call. Raises RunError."""
        if name not in self._parts:
            try:
                part: Any = self.load_part(name)
            except (OSError, ValueError, KeyError, UserError) as error:
                raise RunError(
                    f"cannot load {name} of the model in {self.options.folder}: {error}"
                ) from error
            # A CPU may round otherwise in weights that begin elsewhere, as in a mapped
            # file. A GPU gets copies.
            if isinstance(part, nn.Module) and self.options.device.type == "cpu":
                for tensor in chain(part.parameters(), part.buffers()):
                    if tensor.data_ptr() % ALIGNMENT:
                        tensor.data = tensor.data.clone()
            self._parts[name] = part
        return self._parts[name]

    @property
    def network_module(self) -> Any:
        return self.part("transformer")

    def trained_parts(self) -> Collection[str]:
        """Parts other than the transformer that are trained, and never unloaded."""
        return ()

    def on_device(self, name: str) -> Any:
        """An encoder on its device. With `low_vram`, the others are moved to the CPU
        first."""
        if name == "text_encoder" and self._recorder:
            return self._recorder
        self._clear_device(keep=name)
        return self.part(name).to(self.options.device)

    def layerwise_encoder(self) -> LayerwiseEncoder | None:
        """The text encoder for reading layer by layer; None: it is used whole."""
        return None

    def encode_together(
        self,
        encodings: Sequence[Callable[[], EncodedPrompt]],
        progress: Callable[[int, int], None] = lambda done, total: None,
        folder: Path | None = None,
    ) -> Iterator[Callable[[], EncodedPrompt]]:
        """See `DiffusionModel`. A text encoder that is not loaded already is read layer
        by layer."""
        loaded = "text_encoder" in self._parts or "text_encoder" in self.trained_parts()
        encoder = None if loaded or not encodings else self.layerwise_encoder()
        if encoder is None:
            yield from encodings
            return
        for name in self.family.encoder_parts.keys() & self._parts.keys():
            self._parts[name].to("cpu")
        recorder = self._recorder = PromptRecorder(encoder.device)
        try:
            begin = 0
            while begin < len(encodings):
                encoder.wait_in(folder)
                recorded = list[bool]()
                for encode in encodings[begin:]:
                    inputs = recorder.record(encode)
                    recorded.append(bool(inputs))
                    if inputs and not encoder.note(inputs):
                        break
                hidden = encoder.encode(progress)
                for ready, has_inputs in zip(encodings[begin:], recorded, strict=False):
                    recorder.answer = next(hidden) if has_inputs else None
                    yield ready
                hidden.close()
                begin += len(recorded)
        finally:
            self._recorder = None

    def _clear_device(self, keep: str | None = None) -> None:
        """With `low_vram`, moves the encoders to the CPU, except `keep` and trained
        ones."""
        if self.options.low_vram:
            for name in self.family.encoder_parts.keys() & self._parts.keys() - {
                keep,
                *self.trained_parts(),
            }:
                self._parts[name].to("cpu")

    def unload_encoders(self, keep: Iterable[str] = ()) -> None:
        for name in {*chain(*self.family.encoder_parts.values())}.difference(
            keep, self.trained_parts()
        ):
            self._parts.pop(name, None)
        malloc_trim()
        if self.options.device.type == "cuda":
            torch.cuda.empty_cache()

    def to_model(self, tensor: Tensor) -> Tensor:
        """The tensor on the model's device, in its dtype."""
        return to_device(tensor, self.options.device, self.options.dtype)

    # ------------------------------------------------------------ the transformer

    @abstractmethod
    def compose(self, wrappers: Sequence[BlockWrapper]) -> RunBlock:
        """A function that runs a block in these wrappers; the first one is
        innermost."""

    @abstractmethod
    def predict_group(
        self,
        run: RunBlock,
        x_t_BCHW: Tensor,
        t_B: Tensor,
        prompts: PromptEmbeds,
        slots: Sequence[Tensor],
    ) -> Tensor:
        """`predict_velocity` for items of one `text_layout` and one size: a single
        forward pass.

        run: runs each block. slots: for each control image of an item, the latents of
        all items [B, C, H, W], in the model's dtype and on its device.
        """

    def text_layout(self, prompts: PromptEmbeds, row: int) -> Hashable:
        """A value that two prompts must share to be in one forward pass. In a group,
        row 0 stands for all rows."""
        return prompts.lengths[row]

    def predict_velocity(
        self,
        x_t_BCHW: Tensor,
        t_B: Tensor,
        prompts: PromptEmbeds,
        references: Sequence[Sequence[Tensor]],
        guidance_B: Tensor | None = None,
    ) -> Tensor:
        self._clear_device()
        if guidance_B is not None:
            raise ValueError(f"a {self.family.title} has no guidance input")
        most = max(map(len, references), default=0)
        if most > self.family.max_references:
            raise ValueError(
                f"{most} control images, and this model takes at most {self.family.max_references}"
            )
        # Items of different shapes have different positions; texts of different lengths
        # would need an attention mask.
        groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for row, latents in enumerate(references):
            groups[
                self.text_layout(prompts, row),
                *(latent.shape[-2:] for latent in latents),
            ].append(row)
        velocity: dict[int, Tensor] = {}
        for number, rows in enumerate(groups.values(), start=1):
            run = self._run_last_pass if number == len(groups) else self._run_block
            of_group = [references[row] for row in rows]
            slots = [
                self.to_model(torch.stack(slot_B))
                for slot_B in zip(*of_group, strict=True)
            ]
            predicted_BCHW = self.predict_group(
                run, x_t_BCHW[rows], t_B[rows], prompts.select(rows), slots
            )
            dtype = torch.promote_types(predicted_BCHW.dtype, torch.float32)
            velocity |= zip(rows, predicted_BCHW.to(dtype), strict=True)
        return torch.stack([velocity[row] for row in range(len(x_t_BCHW))])

    def wrap_blocks(
        self,
        wrappers: Sequence[BlockWrapper],
        last_block_wrappers: Sequence[BlockWrapper] | None = None,
    ) -> None:
        self._run_block = self.compose(wrappers)
        if last_block_wrappers is None:
            self._run_first_back = self._run_block
        else:
            self._run_first_back = self.compose(last_block_wrappers)

    def _run_last_pass(self, index: int, *arguments: Any, **named: Any) -> Any:
        """Runs a block of the last group. Its last block needs no recomputation,
        because its backward pass comes first."""
        last = index == self._last_block
        run = self._run_first_back if last else self._run_block
        return run(index, *arguments, **named)

    @cached_property
    def _last_block(self) -> int:
        return len(self.blocks()) - 1

    def blocks(self) -> Sequence[nn.Module]:
        blocks = named_blocks(self.network_module, self.family.block_lists)
        return [block for _, block in blocks]

    def lora_targets(self) -> Sequence[str]:
        return list(self.family.adapter_layers(self.options.folder))

    @property
    def head_dim(self) -> int:
        channels: int = self.network_module.config.attention_head_dim
        return channels

    @property
    def hidden_size(self) -> int:
        heads: int = self.network_module.config.num_attention_heads
        return self.head_dim * heads

    def num_tokens(
        self,
        latents_BCHW: Tensor,
        prompts: PromptEmbeds,
        references: Sequence[Sequence[Tensor]],
    ) -> int:
        images = [
            *latents_BCHW,
            *(latent for of_item in references for latent in of_item),
        ]
        return sum(
            self.family.tokens(Size(image.shape[-1], image.shape[-2]))
            for image in images
        ) + sum(prompts.lengths)
