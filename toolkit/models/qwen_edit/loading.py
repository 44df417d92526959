"""Reads the parts of a Qwen-Image-Edit folder, each when it is needed; every size comes from its config files.

The transformer is built empty and filled block by block straight from the memory-mapped shards, so that at
most one block stands in memory in its stored precision while the rest is already quantized.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.utils import logging as transformers_logging

from toolkit.contracts import DynamicShift
from toolkit.errors import RunError
from toolkit.models.options import AdapterOptions, BlockTransform
from toolkit.models.qwen_edit.prompts import MARKERS
from toolkit.side_imports import without

with without("bitsandbytes"):  # diffusers would import it only to know that it is there
    from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Qwen2Tokenizer
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

transformers_logging.disable_progress_bar()  # a bar per part would tear the status line

WEIGHTS = "diffusion_pytorch_model.safetensors"
BLOCKS = "transformer_blocks"
TABULATED = ("img_mod", "txt_mod")
"""Parts of a block that a table can stand for: of the image stream, of the text stream."""


def load_transformer(options: AdapterOptions) -> QwenImageTransformer2DModel:
    """The transformer of a model folder: frozen, in `weights_dtype`, each block transformed as it is filled.

    Raises RunError when weights are missing, unknown, or of another shape than config.json says.
    """
    part = options.folder / "transformer"
    dtype = options.weights_dtype or options.dtype
    merge = options.merging() if options.merging else None
    with init_empty_weights(include_buffers=False):
        model = QwenImageTransformer2DModel.from_config(QwenImageTransformer2DModel.load_config(part))
    with ExitStack() as stack:
        reader = _ShardReader(part, stack)
        for index, block in enumerate(model.transformer_blocks):
            _fill(block, reader, f"{BLOCKS}.{index}.", dtype)
            if not options.low_vram:  # quantizing is faster there
                block.to(options.device)
            if merge:  # before the weights lose precision
                merge(block, f"{BLOCKS}.{index}")
            if options.transform_block:
                options.transform_block(block, f"{BLOCKS}.{index}")
            for name, child in block.named_children():
                stays = index in options.on_host or (options.modulation_table and name in TABULATED)
                child.to("cpu" if stays else options.device)
        _fill(model, reader, "", dtype, skip=f"{BLOCKS}.")
        if merge:
            merge(model, "")
    if reader.names:
        raise RunError(f"{part}: weights that config.json does not account for: {_some(reader.names)}.")
    for name, child in model.named_children():
        if name != BLOCKS:
            child.to(options.device)
    return model.requires_grad_(False).eval()


class _ShardReader:
    """Tensors of a single or sharded safetensors folder by name; each is read once, straight from the map."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        index = folder / f"{WEIGHTS}.index.json"
        files = (
            sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            if index.is_file()
            else [WEIGHTS]
        )
        missing = [name for name in files if not (folder / name).is_file()]
        if missing:
            raise RunError(f"{folder}: missing weight files: {_some(missing)}. Copy or download the model again.")
        shards = [self._open(name, stack) for name in files]
        self._shard_of = {name: shard for shard in shards for name in shard.keys()}  # noqa: SIM118 - not a dict
        self.names = set(self._shard_of)

    def _open(self, name: str, stack: ExitStack) -> safe_open:
        try:
            return stack.enter_context(safe_open(self.folder / name, framework="pt"))
        except SafetensorError as error:
            raise RunError(f"{self.folder / name}: damaged ({error}). Copy or download the model again.") from error

    def take(self, name: str) -> torch.Tensor:
        self.names.discard(name)
        return self._shard_of[name].get_tensor(name)


def _fill(module: nn.Module, reader: _ShardReader, prefix: str, dtype: torch.dtype, skip: str = "\0") -> None:
    """Gives `module` its weights, copied out of the map in `dtype`; names under `skip` are left alone."""
    wanted = {name: tensor for name, tensor in module.state_dict().items() if not name.startswith(skip)}
    absent = [prefix + name for name in wanted if prefix + name not in reader.names]
    if absent:
        raise RunError(f"{reader.folder}: missing weights: {_some(absent)}. Copy or download the model again.")
    state = {name: reader.take(prefix + name).to(dtype, copy=True) for name in wanted}
    for name, tensor in state.items():
        if tensor.shape != wanted[name].shape:
            shapes = f"is {tuple(tensor.shape)}, config.json says {tuple(wanted[name].shape)}"
            raise RunError(f"{reader.folder}: {prefix}{name} {shapes}.")
    module.load_state_dict(state, strict=False, assign=True)


def load_vae(folder: Path, dtype: torch.dtype) -> AutoencoderKLQwenImage:
    """The VAE, frozen, on the CPU."""
    vae = AutoencoderKLQwenImage.from_pretrained(folder / "vae", torch_dtype=dtype, local_files_only=True)
    return vae.requires_grad_(False).eval()


def load_text_model(folder: Path, dtype: torch.dtype, transform_block: BlockTransform | None = None) -> PreTrainedModel:
    """The text encoder with its vision tower and without its language-model head, frozen, on the CPU."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    part = folder / "text_encoder"
    encoder = Qwen2_5_VLForConditionalGeneration.from_pretrained(part, dtype=dtype, local_files_only=True)
    model = encoder.model
    if transform_block:
        for index, block in enumerate(model.language_model.layers):
            transform_block(block, f"language_model.layers.{index}")
    return model.requires_grad_(False).eval()


def load_tokenizer(folder: Path) -> Qwen2Tokenizer:
    """The tokenizer, from tokenizer.json or from vocab.json and merges.txt.

    Raises RunError when it does not know the markers of the prompt template.
    """
    from transformers import Qwen2Tokenizer

    tokenizer = Qwen2Tokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    split_up = [marker for marker in MARKERS if len(tokenizer.encode(marker)) != 1]
    absent = [marker for marker in split_up if marker not in tokenizer.get_vocab()]
    if absent:
        raise RunError(
            f"{folder / 'tokenizer'}: {', '.join(absent)} are not in the vocabulary. Copy added_tokens.json and "
            "tokenizer_config.json of the model as well."
        )
    if split_up:  # in vocab.json, but no other file says that they are special
        tokenizer.add_special_tokens({"additional_special_tokens": split_up})
    return tokenizer


def load_image_processor(folder: Path) -> Qwen2VLImageProcessorPil:
    """The preprocessing of pictures for the text encoder's vision tower."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil.from_pretrained(folder / "processor", local_files_only=True)


def load_dynamic_shift(folder: Path) -> DynamicShift:
    """The sampler's time shift from scheduler/scheduler_config.json, with diffusers' defaults for absent keys."""
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    return DynamicShift(
        base_image_seq_len=config.get("base_image_seq_len", 256),
        max_image_seq_len=config.get("max_image_seq_len", 4096),
        base_shift=config.get("base_shift", 0.5),
        max_shift=config.get("max_shift", 1.15),
        shift_terminal=config.get("shift_terminal"),
    )


FULL_HASH_BYTES = 512 * 2**20
SAMPLE_BYTES = 2**16
SAMPLES = 256


def part_identity(folder: Path, parts: list[str]) -> str:
    """A hash of the named subfolders' files: what decides the numbers that a part computes.

    Files over 512 MiB are represented by their size, their safetensors header and 256 evenly spaced
    64 KiB samples: reading 16 GB at each start would cost more than it protects from.
    """
    digest = hashlib.sha256()
    for part in parts:
        for path in sorted(p for p in (folder / part).rglob("*") if p.is_file()):
            digest.update(f"{part}/{path.relative_to(folder / part).as_posix()}:{path.stat().st_size};".encode())
            for piece in _pieces(path):
                digest.update(piece)
    return digest.hexdigest()


def _pieces(path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= FULL_HASH_BYTES:
            while chunk := file.read(2**20):
                yield chunk
            return
        yield file.read(2**20)
        for index in range(SAMPLES):
            file.seek((size - SAMPLE_BYTES) * index // (SAMPLES - 1))
            yield file.read(SAMPLE_BYTES)


def _some(names: Iterable[str], most: int = 5) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(ordered[:most]) + more
