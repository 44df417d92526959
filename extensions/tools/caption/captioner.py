"""Qwen2.5-VL as a function from images to captions.

Tokenizer and image processor are used separately, without transformers' processor,
which needs torchvision. No file of captions is read or written here (`files`). The
process of `caption` loads a `Captioner` and asks it for each batch.

Shape suffixes: B images or pairs at once, L tokens of the longest question, N vision
patches, V patch width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from PIL import Image
from torch import Tensor, nn

from extensions.tools.caption.config import QUANTIZED
from toolkit.config.sections.model_files import (
    CAPTIONER,
    INDEX,
    cached_snapshot,
    quantization_fault,
)
from toolkit.errors import RunError, UserError
from toolkit.models.hub import download_encoder
from toolkit.models.loading import (
    STRICTLY,
    check_finite,
    check_loaded,
    fill_from_file,
    reading,
)
from toolkit.models.single_file import HEAD, text_encoder_name
from toolkit.system import seeding
from toolkit.system.device import is_out_of_memory

ENCODER, TOKENIZER, PROCESSOR = "text_encoder", "tokenizer", "processor"
"""Subfolders of a captioner's parts in a diffusers folder; a transformers folder has no
subfolders."""

IMAGE_PAD = "<|image_pad|>"
END = "<|im_end|>"
PAD = "<|endoftext|>"
MARKERS = ("<|im_start|>", END, "<|vision_start|>", "<|vision_end|>", IMAGE_PAD, PAD)

BEFORE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
)
PICTURE = f"<|vision_start|>{IMAGE_PAD}<|vision_end|>"
AFTER = "<|im_end|>\n<|im_start|>assistant\n"
"""One turn of the chat that Qwen2.5-VL was trained on: `chat_template` of its
tokenizer_config.json."""


@dataclass(frozen=True)
class CaptionSettings:
    """How captions are generated.

    >>> CaptionSettings("What is seen?", max_tokens=64, max_size=1024).temperature
    0.0
    """

    question: str
    """The prompt for the model."""

    max_tokens: int
    """Length of the longest caption."""

    max_size: int
    """Images of more than `max_size`^2 pixels are scaled down to that area."""

    temperature: float = 0.0
    """0: greedy decoding."""

    seed: int = 0
    """Seed of sampled captions."""


@dataclass(frozen=True)
class Caption:
    """The model's answer for an image.

    >>> Caption("a cat on a", cut=True).cut
    True
    """

    text: str
    cut: bool
    """Whether it was not finished at `max_tokens`."""


class Captioner:
    """Captions images, or the change between pairs of them.

    Example::

        captioner = Captioner(folder, settings, torch.device("cuda"), torch.bfloat16)
        captions = captioner.captions([[image]], ["07.png"])
        print(captions[0].text)
    """

    def __init__(
        self,
        folder: Path,
        settings: CaptionSettings,
        device: torch.device,
        dtype: torch.dtype,
        quantize: Callable[[nn.Module, str], None] | None = None,
        file: Path | None = None,
    ) -> None:
        """Loads the model of a folder (`captioner_folder`). quantize: called with each
        block of the language model. file: weights to load instead of the folder's.

        Raises RunError for files that cannot be used.
        """
        from transformers import (
            Qwen2_5_VLConfig,
            Qwen2_5_VLForConditionalGeneration,
            Qwen2Tokenizer,
        )
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
            Qwen2VLImageProcessorPil,
        )

        self.settings = settings
        self.device = device
        encoder = part_folder(folder, ENCODER)
        tokenizer = part_folder(folder, TOKENIZER)
        processor = part_folder(folder, PROCESSOR)
        with reading(tokenizer):
            self.tokenizer = Qwen2Tokenizer.from_pretrained(
                tokenizer, local_files_only=True, padding_side="left"
            )
        known = self.tokenizer.get_vocab()
        absent = [marker for marker in MARKERS if marker not in known]
        if absent:
            raise RunError(
                f"{tokenizer}: {', '.join(absent)} are not in the vocabulary. Copy the model again."
            )
        self.ids = {marker: known[marker] for marker in MARKERS}
        with reading(processor):
            self.processor = Qwen2VLImageProcessorPil.from_pretrained(
                processor, local_files_only=True
            )
        if file:
            with reading(encoder), init_empty_weights(include_buffers=False):
                config = Qwen2_5_VLConfig.from_json_file(encoder / "config.json")
                model = Qwen2_5_VLForConditionalGeneration(config)
            model = fill_from_file(model, file, dtype, _name_in_model)
        else:
            with reading(encoder):
                model, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(
                    encoder, dtype=dtype, **STRICTLY
                )
            check_loaded(encoder, info)
            check_finite(encoder, model)
        if quantize:
            for index, block in enumerate(model.model.language_model.layers):
                quantize(block, f"language_model.layers.{index}")
        self.model = model.requires_grad_(False).eval().to(self.device)

    def captions(
        self, shown: Sequence[Sequence[Image.Image]], names: Sequence[str]
    ) -> list[Caption]:
        """The caption of each entry: one image, or a control image and its edited
        image.

        names: names of the entries; sampled captions depend on them. Raises RunError
        where memory is short for one entry.
        """
        try:
            return self._captions(shown, names)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(shown) == 1:
                remedy = "Set a smaller max_size (--max-size), quantize (--quantize int8), or another device."
                raise RunError(f"memory is short for one image. {remedy}") from error
        half = len(shown) // 2
        return [
            *self.captions(shown[:half], names[:half]),
            *self.captions(shown[half:], names[half:]),
        ]

    @torch.inference_mode()
    def _captions(
        self, shown: Sequence[Sequence[Image.Image]], names: Sequence[str]
    ) -> list[Caption]:
        settings = self.settings
        end = self.ids[END]
        pad = self.ids[PAD]
        inputs_BL = self._inputs(shown)
        drawn: dict[str, Any] = {
            "do_sample": False,
            "temperature": None,
            "top_p": None,
            "top_k": None,
        }
        if settings.temperature:
            drawn = {
                "do_sample": True,
                "temperature": settings.temperature,
                "top_p": 1.0,
                "top_k": 0,
            }
        with seeding.global_generator(settings.seed, "caption", *names):
            tokens_BL = self.model.generate(
                **inputs_BL,
                max_new_tokens=settings.max_tokens,
                eos_token_id=[end, pad],
                pad_token_id=pad,
                **drawn,
            )
        answers = tokens_BL[:, inputs_BL["input_ids"].shape[1] :].tolist()
        captions = []
        for ids in answers:
            text = self.tokenizer.decode(ids, skip_special_tokens=True).strip()
            captions.append(Caption(text, cut=not {end, pad} & set(ids)))
        return captions

    def _inputs(self, shown: Sequence[Sequence[Image.Image]]) -> dict[str, Tensor]:
        """The inputs of the model: input_ids_BL and attention_mask_BL, padded on the
        left, mm_token_type_ids_BL (1: of an image), pixel_values_NV and image_grid_thw
        [images, 3] of all images in order."""
        least = dict(self.processor.size)["shortest_edge"]
        size = {
            "shortest_edge": min(least, self.settings.max_size**2),
            "longest_edge": self.settings.max_size**2,
        }
        images = [image for entry in shown for image in entry]
        vision = dict(self.processor(images=images, size=size, return_tensors="pt"))
        patches = vision["image_grid_thw"].prod(1)
        tokens = patches.floor_divide(self.processor.merge_size**2).tolist()
        counts = iter(tokens)
        question = self._encode(self.settings.question, plain=True)
        rows = []
        for entry in shown:
            pictures = ""
            for _ in entry:
                pictures += PICTURE.replace(IMAGE_PAD, IMAGE_PAD * next(counts))
            before = self._encode(BEFORE + pictures)
            rows.append([*before, *question, *self._encode(AFTER)])
        longest = max(map(len, rows))
        pad = self.ids[PAD]
        padded = []
        mask = []
        for row in rows:
            missing = longest - len(row)
            padded.append([pad] * missing + row)
            mask.append([0] * missing + [1] * len(row))
        ids_BL = torch.tensor(padded)
        mask_BL = torch.tensor(mask)
        is_image_BL = (ids_BL == self.ids[IMAGE_PAD]).int()
        inputs = {
            "input_ids": ids_BL,
            "attention_mask": mask_BL,
            "mm_token_type_ids": is_image_BL,
            **vision,
        }
        return {name: tensor.to(self.device) for name, tensor in inputs.items()}

    def _encode(self, text: str, plain: bool = False) -> list[int]:
        """The token ids of a text. plain: markers in it are encoded as text."""
        ids: list[int] = self.tokenizer(
            text, split_special_tokens=plain, verbose=False
        )["input_ids"]
        return ids


def _name_in_model(name: str) -> str:
    """The name in the module, with its head, for a weight of a single file."""
    if name == HEAD:
        return name
    return f"model.{text_encoder_name(name)}"


def captioner_folder(model: str, weights: bool) -> Path:
    """The folder of a captioner, for a hub id or a local folder. The folder has the
    layout of transformers, or of diffusers with the model as a part.

    weights: whether the weights are needed. Raises UserError as `download_encoder`
    does, for a repository that holds something else, and for weights that another
    program has quantized.
    """
    folder = _folder_of(model, weights)
    if weights:
        fault = quantization_fault(part_folder(folder, ENCODER), *QUANTIZED)
    else:
        fault = ""
    if fault:
        raise UserError(f"model: {fault}")
    return folder


def _folder_of(model: str, weights: bool) -> Path:
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    whole = cached_snapshot(model, None)
    if whole and (whole / INDEX).is_file():
        return whole
    folder = download_encoder(model, "model", weights)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"model: {model} holds no config.json. Give {CAPTIONER}, or a downloaded model that has it."
        )
    return folder


def part_folder(folder: Path, part: str) -> Path:
    """The folder of a part of a captioner."""
    return folder / part if (folder / INDEX).is_file() else folder


def weights_bytes(folder: Path) -> int:
    """Bytes of the captioner's weights on the disk."""
    files = part_folder(folder, ENCODER).glob("*.safetensors")
    return sum(file.stat().st_size for file in files)
