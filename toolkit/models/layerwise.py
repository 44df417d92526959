"""Runs the text encoder one layer at a time: all prompts pass through a layer before
the next one is read from its file.

The device holds one layer and the hidden states of one prompt. Tensors that wait are in
main memory, and above a limit in a file. The forward pass of transformers is repeated
once for each layer. Layers that ran before return the same tensors again, and the pass
ends behind the layer whose turn it is. So each prompt sees the operations of a whole
encoder, in the same shapes: the embeddings have the same bits.

This module does not know the words around a prompt, and caches nothing between runs.
`folder_model` uses it to encode many prompts; each model makes its `LayerwiseEncoder`.

Shape suffixes: B batch (1), L tokens, D embedding width.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from torch import Tensor, nn

from toolkit.errors import RunError
from toolkit.files.writing import free_space
from toolkit.models.families import TEXTS_IN_MEMORY, ModelLoadOptions
from toolkit.models.loading import ShardReader, check_finite, check_names, fill, reading
from toolkit.models.single_file import HEAD, text_encoder_name

MOST_WAITING = 64 * 10**9
"""Bytes of pixels and hidden states that wait at once, in memory and on disk. On the
disk they take at most half of the free space. Where prompts need more, the layers are
read again for the rest of them."""

TABLE = "language_model.embed_tokens"
LAYERS = "language_model.layers."
PIXELS = "pixel_values"
PATCHES = "visual.patch_embed"
VISION_BLOCKS = "visual.blocks."
DEEPSTACK = "visual.deepstack_merger_list."
MERGER = "visual.merger"


class _Reached(Exception):
    """The layer whose turn it is has run."""


class _Recorded(Exception):
    """The inputs of the encoder are known."""


class WaitingTensors:
    """Tensors by key, in main memory up to a number of bytes, above it in a file that
    has no name.

    Such a file disappears with the process, however that ends. Places in it are used
    again.

    >>> waiting = WaitingTensors()
    >>> waiting.put((0, "visual.merger"), torch.ones(2, 3))
    >>> waiting.get((0, "visual.merger")).shape, waiting.held
    (torch.Size([2, 3]), 24)
    """

    def __init__(
        self, folder: Path | None = None, limit: int = TEXTS_IN_MEMORY
    ) -> None:
        """folder: of the file; None: the system's folder for temporary files. limit:
        bytes in main memory."""
        self.folder = folder or Path(tempfile.gettempdir())
        self.limit = limit
        self.held = 0
        self.on_disk = 0
        """Bytes of the file."""
        self._tensors: dict[tuple[int, str], Tensor] = {}
        self._places: dict[tuple[int, str], tuple[int, torch.Size, torch.dtype]] = {}
        self._free: dict[int, list[int]] = {}
        self._file: Any = None

    def put(self, key: tuple[int, str], tensor: Tensor) -> None:
        """Stores a tensor. Raises RunError where the disk has no room."""
        tensor = tensor.detach().to("cpu")
        if self.held + tensor.nbytes <= self.limit:
            self._tensors[key] = tensor
            self.held += tensor.nbytes
            return
        free = self._free.get(tensor.nbytes)
        place = free.pop() if free else self.on_disk
        try:
            if self._file is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115 - open as long as this
            self._file.seek(place)
            self._file.write(tensor.contiguous().flatten().view(torch.uint8).numpy())
            self._file.flush()
        except OSError as error:
            reason = error.strerror or error
            raise RunError(
                f"{self.folder}: what the text encoder has of the prompts cannot be written: {reason}."
            ) from error
        self.on_disk = max(self.on_disk, place + tensor.nbytes)
        self._places[key] = place, tensor.shape, tensor.dtype

    def get(self, key: tuple[int, str]) -> Tensor | None:
        if key not in self._places:
            return self._tensors.get(key)
        place, shape, dtype = self._places[key]
        self._file.seek(place)
        tensor = torch.empty(shape, dtype=dtype)
        self._file.readinto(tensor.flatten().view(torch.uint8).numpy())
        return tensor

    def drop(self, key: tuple[int, str]) -> None:
        if key in self._tensors:
            self.held -= self._tensors.pop(key).nbytes
        if key in self._places:
            place, shape, dtype = self._places.pop(key)
            self._free.setdefault(shape.numel() * dtype.itemsize, []).append(place)

    def close(self) -> None:
        """Deletes the file."""
        if self._file is not None:
            self._file.close()


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
    """A text encoder whose layers are read one after the other, each once for all
    prompts that were noted.

    A layer is copied out of the mapped file to CPU memory, and then to the device,
    which waits for it. At 3 GB/s, all layers of the published models take about 5 s.
    This was not measured on a GPU.

    Example::

        encoder = LayerwiseEncoder(options, "Qwen2_5_VLForConditionalGeneration")
        has_room = [encoder.note(inputs) for inputs in inputs_of_prompts]
        hidden_states = list(encoder.encode())  # one [B, L, D] for each prompt
    """

    def __init__(
        self, options: ModelLoadOptions, kind: str, final_norm: bool = True
    ) -> None:
        """kind: its class in transformers. final_norm: whether the features are taken
        behind the final norm or in front of it."""
        self.options = options
        self.device = options.device
        self.part = options.folder / "text_encoder"
        of_kind = getattr(transformers, kind)
        with reading(self.part), init_empty_weights(include_buffers=False):
            self.model = of_kind(
                of_kind.config_class.from_json_file(self.part / "config.json")
            ).model
        if not final_norm:
            self.model.language_model.norm = nn.Identity()
        # The vision tower casts its pixels to the dtype of the parameters.
        for parameter in self.model.parameters():
            parameter.data = parameter.data.to(options.dtype)
        self.model.requires_grad_(False).eval()
        self.names = self._layer_names()
        self._order = {name: index for index, name in enumerate(self.names)}
        self._empty = {
            name: copy.deepcopy(self.model.get_submodule(name)) for name in self.names
        }
        for name in self.names:
            self.model.get_submodule(name).forward = self._stand_in(name)
        self._place_buffers()
        self._turn = ""
        self._prompt = 0
        self._layer: Callable[..., Tensor] | None = None
        self.wait_in(None)

    def _place_buffers(self) -> None:
        """Moves the tables of rotary positions to the device. They are buffers, which
        the file does not have."""
        for module in self.model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(self.device))

    def _layer_names(self) -> list[str]:
        """The parts with weights, in the order in which the forward pass calls them."""
        names = [TABLE, PATCHES]
        visual = self.model.visual
        if hasattr(visual, "pos_embed"):
            names.append("visual.pos_embed")
        deepstack = list(getattr(visual, "deepstack_visual_indexes", ()))
        for index in range(len(visual.blocks)):
            names.append(f"{VISION_BLOCKS}{index}")
            if index in deepstack:
                names.append(f"{DEEPSTACK}{deepstack.index(index)}")
        names.append(MERGER)
        names += [
            f"{LAYERS}{index}" for index in range(len(self.model.language_model.layers))
        ]
        if list(self.model.language_model.norm.parameters()):
            names.append("language_model.norm")
        return names

    def _stand_in(self, name: str) -> Callable[..., Tensor]:
        def forward(*args: Any, **named: Any) -> Tensor:
            key = (self._prompt, name)
            waiting = self._waiting.get(key)
            if waiting is not None:
                return waiting.to(self.device)
            # No later layer depends on its values.
            if key in self._shapes:
                return self._placeholder(self._shapes[key])
            if name == self._turn and self._layer is not None:
                output = self._layer(*args, **named)
                self._shapes[key] = output.shape
                self._waiting.put(key, output)
                self._drop_needless(name)
            raise _Reached

        return forward

    def _drop_needless(self, name: str) -> None:
        """Drops the tensors that no later layer of this prompt reads, once `name` has
        run."""
        if name == PATCHES:
            self._waiting.drop((self._prompt, PIXELS))
        for earlier in self.names[: self._order[name]]:
            if self._is_needless(earlier, name):
                self._waiting.drop((self._prompt, earlier))

    def _is_needless(self, earlier: str, name: str) -> bool:
        if name.startswith(LAYERS):
            # Features of images are added behind the layer of the same number, so they
            # are needed until the next one runs.
            coming = earlier.startswith(DEEPSTACK) and _number(earlier) >= _number(name)
            return not coming
        if name.startswith(VISION_BLOCKS):
            return earlier.startswith((VISION_BLOCKS, PATCHES, "visual.pos_embed"))
        if name == MERGER:
            return earlier.startswith(VISION_BLOCKS)
        return name == "language_model.norm"

    def wait_in(self, folder: Path | None) -> None:
        """Forgets the prompts. Tensors of the next ones wait in memory, and in a file
        in this folder where memory is full."""
        self._waiting = WaitingTensors(folder)
        self._room = min(
            MOST_WAITING, self._waiting.limit + free_space(self._waiting.folder) // 2
        )
        self._inputs: list[dict[str, Tensor]] = []
        self._shapes: dict[tuple[int, str], torch.Size] = {}

    def note(self, inputs: Mapping[str, Tensor]) -> bool:
        """Takes the inputs of the encoder's forward pass for one prompt. Returns False
        where no further prompt has room until these are encoded."""
        noted = dict(inputs)
        # Only the first layer reads the pixels, in the dtype of its weights.
        if PIXELS in noted:
            pixels_NV = noted[PIXELS].to(self.options.dtype)
            self._waiting.put((len(self._inputs), PIXELS), pixels_NV)
            noted[PIXELS] = pixels_NV.new_zeros(()).expand(pixels_NV.shape)
        self._inputs.append(noted)
        self._room -= self._numbers_of(noted) * self.options.dtype.itemsize
        return self._room > 0

    def _numbers_of(self, inputs: Mapping[str, Tensor]) -> int:
        """The largest number of elements of a prompt that wait at a time."""
        config = self.model.config
        hidden: int = inputs["input_ids"].numel() * config.text_config.hidden_size
        if PIXELS not in inputs:
            return hidden
        patches, width = inputs[PIXELS].shape
        hidden += patches * max(width, config.vision_config.hidden_size)
        deepstack = len(getattr(self.model.visual, "deepstack_visual_indexes", ()))
        hidden += (
            deepstack
            * int(inputs["mm_token_type_ids"].sum())
            * config.text_config.hidden_size
        )
        return hidden

    @torch.no_grad()
    def encode(
        self, progress: Callable[[int, int], None] = lambda done, total: None
    ) -> Generator[Tensor, None, None]:
        """The last hidden states [B, L, D] of each prompt that was noted, on the
        device, in order.

        progress: called with (layers done, layers). Raises RunError when weights are
        missing, not finite, or of another shape than config.json says.
        """
        try:
            with self._reader() as weights:
                self._check_names(weights)
            with_images = any(PIXELS in one for one in self._inputs)
            for done, name in enumerate(self.names, start=1):
                if with_images or not name.startswith("visual."):
                    self._run_layer(name)
                progress(done, len(self.names))
            self._turn = ""
            for prompt in range(len(self._inputs)):
                yield self._forward(prompt)
        finally:
            self._waiting.close()

    @contextmanager
    def _reader(self) -> Iterator[_Weights]:
        """The files, mapped for the duration of the block only: pages that were read
        would count as memory in use."""
        with ExitStack() as stack:
            yield _Weights(self.part, stack, self.options.files.get("text_encoder"))

    def _check_names(self, weights: _Weights) -> None:
        expected = {
            f"{name}.{key}"
            for name in self.names
            for key in self._empty[name].state_dict()
        }
        more = weights.names - expected - {HEAD, "language_model.norm.weight"}
        check_names(weights.folder, expected - weights.names, more)

    def _run_layer(self, name: str) -> None:
        self._turn, self._layer = name, self._read(name)
        for prompt, inputs in enumerate(self._inputs):
            if PIXELS in inputs or not name.startswith("visual."):
                with suppress(_Reached):
                    self._forward(prompt)
        self._layer = None

    def _forward(self, prompt: int) -> Tensor:
        self._prompt = prompt
        inputs = self._inputs[prompt]
        on_device = {
            name: value.to(self.device)
            for name, value in inputs.items()
            if name != PIXELS
        }
        if PIXELS in inputs:
            pixels_NV = (
                self._waiting.get((prompt, PIXELS)) if self._turn == PATCHES else None
            )
            on_device[PIXELS] = (
                self._placeholder(inputs[PIXELS].shape)
                if pixels_NV is None
                else pixels_NV.to(self.device)
            )
        hidden_BLD: Tensor = self.model(**on_device, use_cache=False).last_hidden_state
        return hidden_BLD

    def _placeholder(self, shape: torch.Size) -> Tensor:
        """A tensor of this shape whose values are not read any more."""
        return torch.zeros((), dtype=self.options.dtype, device=self.device).expand(
            shape
        )

    def _read(self, name: str) -> Callable[..., Tensor]:
        """A layer on the device. The token table stays in the mapped file, and only the
        rows of the tokens are read."""
        with self._reader() as weights:
            if name == TABLE and f"{TABLE}.weight" in weights.names:
                table_VD = weights.take(f"{TABLE}.weight")
                return lambda ids_BL: table_VD[ids_BL.to("cpu")].to(
                    self.device, self.options.dtype
                )
            layer = copy.deepcopy(self._empty[name])
            is_layer = name.startswith(LAYERS)
            codes = self.options.keeps_text_codes if is_layer else ""
            fill(layer, weights, f"{name}.", self.options.dtype, codes=codes)
        check_finite(self.part, layer, f"{name}.")
        if is_layer and self.options.transform_text_block:
            self.options.transform_text_block(layer, name)
        on_device: Callable[..., Tensor] = (
            layer.requires_grad_(False).eval().to(self.device)
        )
        return on_device


def _number(name: str) -> int:
    return int(name.rpartition(".")[2])


class PromptRecorder:
    """Stands in for a text encoder twice: first it records the inputs of a prompt, then
    it returns the hidden states.

    >>> recorder = PromptRecorder(torch.device("cpu"))
    >>> recorder.record(lambda: recorder(input_ids=torch.tensor([[7, 8]])))
    {'input_ids': tensor([[7, 8]])}
    >>> recorder.answer = torch.zeros(1, 2, 64)
    >>> recorder().last_hidden_state.shape
    torch.Size([1, 2, 64])
    """

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
        """The inputs that `encode` passes to the text encoder. Empty where an image
        cannot be read: the second call of `encode` reports it."""
        self.answer = None
        try:
            encode()
        except _Recorded:
            return self.inputs
        except (ValueError, OSError, RunError):
            return {}
        raise ValueError("nothing was handed to the text encoder")
