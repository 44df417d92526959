"""The text encoder one layer at a time: all prompts pass through a layer before the next one is read from its file.

The device holds one layer and the hidden states of one prompt. What waits stands in main memory, above a limit in
files. The forward pass of transformers is repeated once for each layer. Layers that ran before give back what they gave
then, and the pass ends behind the layer whose turn it is. So each prompt sees the operations, in the shapes, of a whole
encoder: the embeddings are the same bits.

Shape suffixes: B batch (1), L tokens, D embedding width.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from toolkit.errors import RunError
from toolkit.models.families import ModelLoadOptions
from toolkit.models.loading import ShardReader, check_finite, fill, reading, some
from toolkit.models.single_file import HEAD, text_encoder_name

MEMORY_LIMIT = 4 * 10**9
"""Bytes of hidden states in main memory; what is above waits in files of the folder for temporary files."""

MOST_PIXELS = 2 * 10**9
MOST_HIDDEN = 32 * 10**9
"""Bytes of pixels in main memory and of hidden states, in all, of prompts that are encoded together. Where there is
more, the layers are read again for the rest: a bound on memory and disk, and what was encoded before is kept."""

TABLE = "language_model.embed_tokens"
LAYERS = "language_model.layers."
VISION_BLOCKS = "visual.blocks."
DEEPSTACK = "visual.deepstack_merger_list."
MERGER = "visual.merger"


class _Reached(Exception):
    """The layer whose turn it is has run."""


class _Recorded(Exception):
    """The inputs of the encoder are known."""


class WaitingTensors:
    """Tensors by key, in main memory up to a number of bytes, in files above it."""

    def __init__(self, folder: Path, limit: int = MEMORY_LIMIT) -> None:
        self.folder, self.limit = folder, limit
        self.held = 0
        self._tensors: dict[tuple[int, str], Tensor] = {}
        self._files: dict[tuple[int, str], Path] = {}
        self._written = 0

    def put(self, key: tuple[int, str], tensor: Tensor) -> None:
        tensor = tensor.detach().to("cpu")
        if self.held + tensor.nbytes <= self.limit:
            self._tensors[key] = tensor
            self.held += tensor.nbytes
            return
        path = self.folder / f"{self._written}.safetensors"
        self._written += 1
        save_file({"tensor": tensor.contiguous()}, path)
        self._files[key] = path

    def get(self, key: tuple[int, str]) -> Tensor | None:
        if key in self._files:
            return load_file(self._files[key])["tensor"]
        return self._tensors.get(key)

    def drop(self, key: tuple[int, str]) -> None:
        if key in self._tensors:
            self.held -= self._tensors.pop(key).nbytes
        if key in self._files:
            self._files.pop(key).unlink()


class _Weights(ShardReader):
    """The weights of a text encoder by their names in the module without its head."""

    def __init__(self, folder: Path, stack: ExitStack, file: Path | None) -> None:
        super().__init__(folder, stack, file, text_encoder_name)
        self._in_files = {text_encoder_name(name): name for name in self.names}
        self.names = set(self._in_files)

    def take(self, name: str) -> Tensor:
        self.names.discard(name)
        return super().take(self._in_files[name])

    def stored_codes(self, name: str, kind: str) -> tuple[Tensor, Tensor, int] | None:
        return super().stored_codes(self._in_files[name], kind)


class LayerwiseEncoder:
    """A text encoder whose layers are read one after the other, each once for all prompts.

    kind: its class in transformers. final_norm: whether the features are those behind the final norm.
    """

    def __init__(
        self,
        options: ModelLoadOptions,
        kind: str,
        device: torch.device,
        final_norm: bool = True,
        limit: int = MEMORY_LIMIT,
    ) -> None:
        self.options, self.device, self.limit = options, device, limit
        self.part = options.folder / "text_encoder"
        of_kind = getattr(transformers, kind)
        with reading(self.part), init_empty_weights(include_buffers=False):
            self.model = of_kind(of_kind.config_class.from_json_file(self.part / "config.json")).model
        if not final_norm:
            self.model.language_model.norm = nn.Identity()
        for parameter in self.model.parameters():  # the vision tower casts its pixels to their dtype
            parameter.data = parameter.data.to(options.dtype)
        self.model.requires_grad_(False).eval()
        self.names = self._layer_names()
        self._order = {name: index for index, name in enumerate(self.names)}
        self._empty = {name: copy.deepcopy(self.model.get_submodule(name)) for name in self.names}
        for name in self.names:
            self.model.get_submodule(name).forward = self._stand_in(name)
        self._place_buffers()
        self._turn, self._prompt = "", 0
        self._layer: Callable[..., Tensor] | None = None
        self._shapes: dict[tuple[int, str], torch.Size] = {}

    def _place_buffers(self) -> None:
        """The tables of rotary positions on the device: buffers, which the file does not hold."""
        for module in self.model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(self.device))

    def _layer_names(self) -> list[str]:
        """The parts with weights, in the order in which the forward pass calls them."""
        names, visual = [TABLE, "visual.patch_embed"], self.model.visual
        if hasattr(visual, "pos_embed"):
            names.append("visual.pos_embed")
        deepstack = list(getattr(visual, "deepstack_visual_indexes", ()))
        for index in range(len(visual.blocks)):
            names.append(f"{VISION_BLOCKS}{index}")
            if index in deepstack:
                names.append(f"{DEEPSTACK}{deepstack.index(index)}")
        names.append(MERGER)
        names += [f"{LAYERS}{index}" for index in range(len(self.model.language_model.layers))]
        if list(self.model.language_model.norm.parameters()):
            names.append("language_model.norm")
        return names

    def _stand_in(self, name: str) -> Callable[..., Tensor]:
        def forward(*args: Any, **named: Any) -> Tensor:
            key = (self._prompt, name)
            if (kept := self._waiting.get(key)) is not None:
                return kept.to(self.device)
            if key in self._shapes:  # nothing that is still to come depends on its values
                return torch.zeros((), dtype=self.options.dtype, device=self.device).expand(self._shapes[key])
            if name == self._turn and self._layer is not None:
                output = self._layer(*args, **named)
                self._shapes[key] = output.shape
                self._waiting.put(key, output)
                self._drop_needless(name)
            raise _Reached

        return forward

    def _drop_needless(self, name: str) -> None:
        """Drops what no later layer of this prompt reads, once `name` has run."""
        for earlier in self.names[: self._order[name]]:
            if self._is_needless(earlier, name):
                self._waiting.drop((self._prompt, earlier))

    def _is_needless(self, earlier: str, name: str) -> bool:
        if name.startswith(LAYERS):
            # Features of images are added behind the layer of the same number, so when the next one runs.
            coming = earlier.startswith(DEEPSTACK) and _number(earlier) >= _number(name)
            return not coming
        if name.startswith(VISION_BLOCKS):
            return earlier.startswith((VISION_BLOCKS, "visual.patch_embed", "visual.pos_embed"))
        if name == MERGER:
            return earlier.startswith(VISION_BLOCKS)
        return name == "language_model.norm"

    def is_full(self, inputs: Sequence[Mapping[str, Tensor]]) -> bool:
        """Whether so many prompts are to be encoded before more are noted."""
        pixels = sum(one["pixel_values"].nbytes for one in inputs if "pixel_values" in one)
        width = self.model.config.text_config.hidden_size * self.options.dtype.itemsize
        hidden = sum(one["input_ids"].numel() * width for one in inputs if one)
        return pixels > MOST_PIXELS or hidden > MOST_HIDDEN

    @torch.no_grad()
    def encode(
        self, inputs: Sequence[Mapping[str, Tensor]], progress: Callable[[int, int], None] = lambda done, total: None
    ) -> Generator[Tensor, None, None]:
        """The last hidden states [B, L, D] of each prompt, on the device, in order.

        inputs: of the encoder's forward pass, one prompt each. progress: called with (layers done, layers).
        Raises RunError when weights are missing, not finite, or of another shape than config.json says.
        """
        with tempfile.TemporaryDirectory(prefix="hidden-states-") as folder, ExitStack() as stack:
            self._waiting = WaitingTensors(Path(folder), self.limit)
            self._shapes = {}
            file = self.options.files.get("text_encoder")
            weights = _Weights(self.part, stack, file)
            self._check_names(weights)
            with_images = any("pixel_values" in one for one in inputs)
            for done, name in enumerate(self.names, start=1):
                if with_images or not name.startswith("visual."):
                    self._run_layer(name, inputs, weights)
                progress(done, len(self.names))
            self._turn = ""
            for self._prompt, one in enumerate(inputs):
                yield self._forward(one)

    def _check_names(self, weights: _Weights) -> None:
        expected = {f"{name}.{key}" for name in self.names for key in self._empty[name].state_dict()}
        missing = expected - weights.names
        if missing:
            raise RunError(f"{weights.folder}: missing weights: {some(missing)}. Copy or download the model again.")
        more = weights.names - expected - {HEAD, "language_model.norm.weight"}
        if more:
            raise RunError(f"{weights.folder}: weights that config.json does not account for: {some(more)}.")

    def _run_layer(self, name: str, inputs: Sequence[Mapping[str, Tensor]], weights: _Weights) -> None:
        self._turn, self._layer = name, self._read(name, weights)
        for self._prompt, one in enumerate(inputs):
            if "pixel_values" in one or not name.startswith("visual."):
                try:
                    self._forward(one)
                except _Reached:
                    continue
        self._layer = None

    def _forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        on_device = {name: value.to(self.device) for name, value in inputs.items()}
        return self.model(**on_device, use_cache=False).last_hidden_state

    def _read(self, name: str, weights: _Weights) -> Callable[..., Tensor]:
        """A layer on the device; of the token table the rows that are asked for, straight from the mapped file."""
        if name == TABLE and f"{TABLE}.weight" in weights.names:
            table_VD = weights.take(f"{TABLE}.weight")
            return lambda ids_BL: table_VD[ids_BL.to("cpu")].to(self.device, self.options.dtype)
        layer = copy.deepcopy(self._empty[name])
        is_layer = name.startswith(LAYERS)
        fill(layer, weights, f"{name}.", self.options.dtype, codes=self.options.keeps_text_codes if is_layer else "")
        check_finite(self.part, layer, f"{name}.")
        if is_layer and self.options.transform_text_block:
            self.options.transform_text_block(layer, name)
        return layer.requires_grad_(False).eval().to(self.device)


def _number(name: str) -> int:
    return int(name.rpartition(".")[2])


class PromptRecorder:
    """Stands for a text encoder twice: first it notes the inputs of a prompt, then it gives its hidden states."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.inputs: dict[str, Tensor] = {}
        self.answer: Tensor | None = None

    def __call__(self, use_cache: bool = False, **inputs: Tensor) -> SimpleNamespace:
        if self.answer is None:
            self.inputs = {name: value.to("cpu") for name, value in inputs.items()}
            raise _Recorded
        return SimpleNamespace(last_hidden_state=self.answer)

    def record(self, encode: Callable[[], object]) -> dict[str, Tensor]:
        """The inputs that `encode` hands to the text encoder; none where an image cannot be read, which the second
        call of `encode` reports."""
        self.answer = None
        try:
            encode()
        except _Recorded:
            return self.inputs
        except (ValueError, OSError, RunError):
            return {}
        raise ValueError("nothing was handed to the text encoder")
