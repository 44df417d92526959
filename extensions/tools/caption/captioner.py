"""Qwen2.5-VL or Qwen3-VL as a function from images to captions.

Tokenizer and image processor are used separately, without transformers' processor,
which needs torchvision. No file of captions is read or written here (`files`). The
process of `caption` loads a `Captioner` and asks it for each batch.

Shape suffixes: B images or pairs at once, L tokens of the longest question, N vision
patches, V patch width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate import init_empty_weights
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from extensions.tools.caption.config import QUANTIZED, CaptionConfig, model_type
from toolkit.config.sections.model_files import (
    CAPTIONER,
    CAPTIONER_TYPES,
    INDEX,
    cached_snapshot,
    quantization_fault,
)
from toolkit.errors import RunError, UserError
from toolkit.memory.quantization import quantizer
from toolkit.models.hub import download_encoder
from toolkit.models.loading import (
    STRICTLY,
    check_finite,
    check_loaded,
    fill_from_file,
    reading,
)
from toolkit.models.single_file import HEAD, shards_of, text_encoder_name
from toolkit.models.template import IMAGE_PAD, SUFFIX
from toolkit.system import seeding
from toolkit.system.device import (
    DTYPES,
    check_device,
    is_out_of_memory,
    pick_device,
    use_device,
)

ENCODER, TOKENIZER, PROCESSOR = "text_encoder", "tokenizer", "processor"
"""Subfolders of a captioner's parts in a diffusers folder; a transformers folder has no
subfolders."""

END = "<|im_end|>"
PAD = "<|endoftext|>"
MARKERS = ("<|im_start|>", END, "<|vision_start|>", "<|vision_end|>", IMAGE_PAD, PAD)

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
USER = "<|im_start|>user\n"
CHATS = {
    "qwen2_5_vl": ("Qwen2_5_VL", SYSTEM + USER),
    "qwen3_vl": ("Qwen3VL", USER),
}
"""Kind of model -> the beginning of the names of its classes, and of its chat."""

PICTURE = f"<|vision_start|>{IMAGE_PAD}<|vision_end|>"


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

        captioner = Captioner(section)
        captions = captioner.captions([[image]], ["07.png"])
        print(captions[0].text)
    """

    def __init__(self, section: CaptionConfig) -> None:
        """Loads the model. Raises RunError for files that cannot be used, and UserError
        as `captioner_folder`."""
        import transformers
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
            Qwen2VLImageProcessorPil,
        )

        self.section = section
        file = section.weights_file()
        folder = captioner_folder(section.model, weights=file is None)
        encoder = part_folder(folder, ENCODER)
        kind = model_type(encoder / "config.json")
        prefix, self.before = CHATS.get(kind, CHATS[CAPTIONER_TYPES[0]])
        configs = getattr(transformers, f"{prefix}Config")
        models = getattr(transformers, f"{prefix}ForConditionalGeneration")
        files = shards_of(file) if file else encoder.glob("*.safetensors")
        check_device(section.device, sum(each.stat().st_size for each in files))
        self.device = use_device(pick_device(section.device))
        dtype = DTYPES[section.dtype]
        tokenizer = part_folder(folder, TOKENIZER)
        if not tokenizer.is_dir():  # Qwen-Image-2.1 has it beside the image processor
            tokenizer = part_folder(folder, PROCESSOR)
        with reading(tokenizer):
            self.tokenizer = transformers.Qwen2Tokenizer.from_pretrained(
                tokenizer, local_files_only=True, padding_side="left"
            )
        known = self.tokenizer.get_vocab()
        absent = [marker for marker in MARKERS if marker not in known]
        if absent:
            raise RunError(
                f"{tokenizer}: {', '.join(absent)} are not in the vocabulary. Copy the model again."
            )
        self.ids = {marker: known[marker] for marker in MARKERS}
        processor = part_folder(folder, PROCESSOR)
        with reading(processor):
            self.processor = Qwen2VLImageProcessorPil.from_pretrained(
                processor, local_files_only=True
            )
        if file:
            with reading(encoder), init_empty_weights(include_buffers=False):
                config = configs.from_json_file(encoder / "config.json")
                model = models(config)
            model = fill_from_file(model, file, dtype, _name_in_model)
        else:
            with reading(encoder):
                model, info = models.from_pretrained(encoder, dtype=dtype, **STRICTLY)
            check_loaded(encoder, info)
            check_finite(encoder, model)
        if section.quantize:
            quantize = quantizer(section.quantize)
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
        section = self.section
        stops = [self.ids[END], self.ids[PAD]]
        inputs_BL = self._inputs(shown)
        is_drawn = section.temperature > 0
        with seeding.global_generator(section.seed, "caption", *names):
            tokens_BL = self.model.generate(
                **inputs_BL,
                max_new_tokens=section.max_tokens,
                eos_token_id=stops,
                pad_token_id=self.ids[PAD],
                do_sample=is_drawn,
                temperature=section.temperature if is_drawn else None,
                top_p=1.0 if is_drawn else None,
                top_k=0 if is_drawn else None,
            )
        answers = tokens_BL[:, inputs_BL["input_ids"].shape[1] :].tolist()
        return [
            Caption(
                self.tokenizer.decode(ids, skip_special_tokens=True).strip(),
                cut=not set(stops) & set(ids),
            )
            for ids in answers
        ]

    def _inputs(self, shown: Sequence[Sequence[Image.Image]]) -> dict[str, Tensor]:
        """The inputs of the model: input_ids_BL and attention_mask_BL, padded on the
        left, mm_token_type_ids_BL (1: of an image), pixel_values_NV and image_grid_thw
        [images, 3] of all images in order."""
        most = self.section.max_size**2
        least = min(dict(self.processor.size)["shortest_edge"], most)
        size = {"shortest_edge": least, "longest_edge": most}
        images = [image for entry in shown for image in entry]
        vision = dict(self.processor(images=images, size=size, return_tensors="pt"))
        patches = vision["image_grid_thw"].prod(1)
        tokens = patches.floor_divide(self.processor.merge_size**2).tolist()
        counts = iter(tokens)
        question = self._encode(self.section.question(), plain=True)
        after = self._encode(SUFFIX)
        rows = []
        for entry in shown:
            pads = (IMAGE_PAD * next(counts) for _ in entry)
            pictures = "".join(PICTURE.replace(IMAGE_PAD, pad) for pad in pads)
            before = self._encode(self.before + pictures)
            rows.append(torch.tensor([*before, *question, *after]))
        pad_left = partial(pad_sequence, batch_first=True, padding_side="left")
        ids_BL = pad_left(rows, padding_value=self.ids[PAD])
        mask_BL = pad_left([torch.ones_like(row) for row in rows])
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
