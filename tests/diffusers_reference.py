"""diffusers' own pipeline over a model folder, and our adapter over the same: what the
parity tests compare."""

from __future__ import annotations

import json
import logging
import math
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageTransformer2DModel,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    BatchFeature,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
)

from toolkit.config.sections.model_files import ModelFolder, family_of
from toolkit.contracts.data import (
    BucketedSample,
    PromptEmbeds,
    ResizeCrop,
    Sample,
    Size,
)
from toolkit.data.batches.latent_cache import CachePair, EncodedDataset, encode_items
from toolkit.files.tensor_cache import TensorCache
from toolkit.models.families import ModelLoadOptions
from toolkit.models.qwen_image.family import FAMILY
from toolkit.models.qwen_image.model import QwenImageModel
from toolkit.models.tiny import TinySpec, write_tiny_model
from toolkit.train.sampling import SamplePrompt

REFERENCE_AREA = 1024 * 1024
"""Pixels of a reference in the pipelines that have one area for all."""

PHOTOS = Path(__file__).resolve().parent.parent / "config" / "examples" / "photos"
TARGET = PHOTOS / "40_photo" / "coffee.jpg"
REFERENCES = (
    PHOTOS / "20_photo_wide" / "chelsea.jpg",
    PHOTOS / "40_photo" / "astronaut_face.jpg",
    PHOTOS / "40_photo" / "astronaut.jpg",
)
"""Wide, tall, square: real photographs, no two of one aspect ratio."""

MEMBERS = {
    "Qwen-Image": TinySpec(arch="qwen_image"),
    "Qwen-Image-Edit": TinySpec(arch="qwen_image_edit"),
    "Qwen-Image-Edit-2509": TinySpec(),
    "Qwen-Image-Edit-2511": TinySpec(zero_cond_t=True),
}
"""A tiny model of each member that shares the 20 B transformer."""

CPU = torch.device("cpu")
PIPELINE_MODULE = "diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus"


class PartsProcessor:
    """What transformers' Qwen2VLProcessor does, without the torchvision it needs:
    tokenizer and image processor."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = Qwen2Tokenizer.from_pretrained(folder / "tokenizer")
        self.image_processor = Qwen2VLImageProcessorPil.from_pretrained(
            folder / "processor"
        )

    def __call__(
        self, text: list[str], images: Any, padding: bool, return_tensors: str
    ) -> BatchFeature:
        vision = (
            self.image_processor(images=images, return_tensors=return_tensors)
            if images is not None
            else {}
        )
        for grid in vision.get("image_grid_thw", ()):
            patches = int(grid.prod()) // self.image_processor.merge_size**2
            text = [
                one.replace("<|image_pad|>", "<|done|>" * patches, 1) for one in text
            ]
        text = [one.replace("<|done|>", "<|image_pad|>") for one in text]
        return BatchFeature(
            {
                **self.tokenizer(text, padding=padding, return_tensors=return_tensors),
                **vision,
            }
        )


def load_without_a_word(
    pipeline: Any, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Loads a LoRA file by the pipeline's own loader, which must not complain."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "peft")]
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.INFO):
        warnings.simplefilter("always")
        for logger in loggers:
            logger.addHandler(caplog.handler)
        try:
            pipeline.load_lora_weights(file)
        finally:
            for logger in loggers:
                logger.removeHandler(caplog.handler)
    said = [record.getMessage() for record in caplog.records]
    said += [str(warning.message) for warning in caught]
    assert not [
        text for text in said if "key" in text.lower() or "lora" in text.lower()
    ], said


def load_pipeline(folder: Path) -> Any:
    """The pipeline that model_index.json names, in float32 on the CPU, every part read
    by the libraries themselves."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    pipeline = getattr(diffusers, index["_class_name"])(
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        vae=AutoencoderKLQwenImage.from_pretrained(folder / "vae"),
        text_encoder=Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder / "text_encoder"
        ),
        tokenizer=Qwen2Tokenizer.from_pretrained(folder / "tokenizer"),
        **({"processor": PartsProcessor(folder)} if "processor" in index else {}),
        transformer=QwenImageTransformer2DModel.from_pretrained(folder / "transformer"),
    )
    pipeline.set_progress_bar_config(disable=True)
    _tell_of_pictures(pipeline.text_encoder)
    return pipeline


def image_argument(pictures: Sequence[Image.Image]) -> dict[str, Any]:
    """References as an argument of a pipeline. One is not a list: that of the first
    Edit resizes no list."""
    return (
        {"image": pictures[0] if len(pictures) == 1 else list(pictures)}
        if pictures
        else {}
    )


def set_reference_area(
    monkeypatch: pytest.MonkeyPatch, pipeline: Any, area: int
) -> None:
    """References of a pipeline have this area instead of 1024 x 1024; full ones take
    seconds."""
    module = sys.modules[type(pipeline).__module__]
    if hasattr(module, "calculate_dimensions"):
        own = module.calculate_dimensions
        sized = lambda wanted, aspect: own(  # noqa: E731
            area if wanted == REFERENCE_AREA else wanted, aspect
        )
        monkeypatch.setattr(module, "calculate_dimensions", sized)


def drawn_by_pipeline(
    pipeline: Any, prompt: SamplePrompt, **options: str
) -> Image.Image | Tensor:
    """The pipeline's picture for a sample; with `options`, such as `output_type`, all
    that it gives."""
    drawn = pipeline(
        **image_argument(
            [Image.open(path).convert("RGB") for path in prompt.references]
        ),
        prompt=prompt.prompt,
        negative_prompt=prompt.negative or " ",
        true_cfg_scale=prompt.guidance_scale,
        width=prompt.size.width,
        height=prompt.size.height,
        num_inference_steps=prompt.steps,
        generator=torch.Generator("cpu").manual_seed(prompt.seed),
        **options,
    ).images
    return drawn if options else drawn[0]


def _tell_of_pictures(text_encoder: Qwen2_5_VLForConditionalGeneration) -> None:
    """Hands the encoder `mm_token_type_ids`, which the pipeline of diffusers 0.42.1
    does not and transformers needs since 5.3 to give image tokens their
    three-dimensional positions: what diffusers' pull request 14189 changes.
    """
    forward = text_encoder.forward

    def with_ids(input_ids: Tensor, **inputs: Any) -> Any:
        if inputs.get("pixel_values") is not None:
            inputs["mm_token_type_ids"] = (
                input_ids == text_encoder.config.image_token_id
            ).int()
        return forward(input_ids=input_ids, **inputs)

    text_encoder.forward = with_ids


@dataclass(frozen=True)
class Member:
    """A tiny model of unit gain and diffusers' own pipeline over it. Both are read
    only."""

    folder: Path
    pipeline: Any

    def open(
        self, monkeypatch: pytest.MonkeyPatch, area: int | None = None, **options: Any
    ) -> QwenImageModel:
        """Our model. area: pixels of references in both programs; None: their own."""
        model = open_tiny(self.folder, reference_area=area or REFERENCE_AREA, **options)
        if area is not None:
            set_reference_area(monkeypatch, self.pipeline, area)
            template = model.family.template
            if template.condition_area == REFERENCE_AREA:
                monkeypatch.setattr(
                    model.family, "template", template._replace(condition_area=area)
                )
        return model


def write_member(folder: Path, spec: TinySpec) -> Member:
    write_tiny_model(folder / "plain", spec)
    write_unit_gain(folder / "unit_gain", folder / "plain")
    return Member(folder / "unit_gain", load_pipeline(folder / "unit_gain"))


def write_unit_gain(folder: Path, source: Path, seed: int = 0) -> None:
    """Writes a copy of a model folder whose text encoder and transformer have weights
    of unit gain.

    Each weight is normal with variance 1 / inputs, so that attention is far from
    uniform and every input is plainly seen in the output. With the libraries' own
    initialisation (0.02) an error of 70 % shows as one of 3 %.
    """
    shutil.copytree(source, folder)
    _raise_contrast(folder / "vae" / "diffusion_pytorch_model.safetensors")
    generator = torch.Generator().manual_seed(seed)
    for part in ("text_encoder", "transformer"):
        for shard in sorted((folder / part).glob("*.safetensors")):
            weights = load_file(shard)
            for name in sorted(weights):
                shape = weights[name].shape
                if len(shape) > 1:
                    inputs = 1 if "embed_tokens" in name else math.prod(shape[1:])
                    weights[name] = torch.randn(shape, generator=generator) / math.sqrt(
                        inputs
                    )
            save_file(weights, shard, metadata={"format": "pt"})


def open_tiny(
    folder: Path, dtype: torch.dtype = torch.float32, **options: Any
) -> QwenImageModel:
    """The model in a folder, of the family that its model_index.json names."""
    family = family_of(ModelFolder(folder).pipeline()) or FAMILY
    return family.open(
        ModelLoadOptions(folder=folder, device=CPU, dtype=dtype, **options)
    )


def step_of_photo(folder: Path, levels: Sequence[float]) -> tuple:
    """What `predict_velocity` takes: one photograph with one reference at each of these
    noise levels."""
    model = open_tiny(folder, reference_area=0)
    dataset = encode_photos(model, photo_item(Size(96, 64), REFERENCES[:1]))
    (entries,) = dataset.entries
    x_t_BCHW = torch.randn(
        (len(levels), 16, 8, 12), generator=torch.Generator().manual_seed(0)
    )
    prompts = PromptEmbeds.stack(
        [next(iter(entries.captions.values())).read()] * len(levels)
    )
    references = [tuple(each.read() for each in entries.references)] * len(levels)
    return x_t_BCHW, torch.tensor(levels), prompts, references


def _raise_contrast(vae: Path, factor: float = 10.0) -> None:
    """Increases the contrast of decoded images, so that they use more of the 256
    values; the encoder is unchanged."""
    weights = load_file(vae)
    weights["decoder.conv_out.weight"] *= factor
    save_file(weights, vae, metadata={"format": "pt"})


@dataclass
class Recorded:
    """Calls of a module, as a forward hook saw them."""

    inputs: list[dict[str, Any]] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)


@contextmanager
def recording(module: torch.nn.Module) -> Iterator[Recorded]:
    """Every call of `module` inside the block."""
    seen = Recorded()

    def hook(
        _: object, arguments: tuple, keywords: dict, output: tuple[Tensor]
    ) -> None:
        assert not arguments, "called by keywords on both sides"
        seen.inputs.append(keywords)
        seen.outputs.append(output[0])

    handle = module.register_forward_hook(hook, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def memory_stores() -> CachePair:
    return CachePair(TensorCache(None), TensorCache(None))


def photo_item(
    size: Size,
    references: Sequence[Path] = (),
    caption: str = "a cup of coffee",
    image=TARGET,
) -> BucketedSample:
    """A photograph at a training size: scaled to cover it, cut in the middle."""
    with Image.open(image) as picture:
        full = Size(*picture.size)
    scale = max(size.width / full.width, size.height / full.height)
    scaled = Size(math.ceil(full.width * scale), math.ceil(full.height * scale))
    crop = ResizeCrop(
        scaled,
        (scaled.width - size.width) // 2,
        (scaled.height - size.height) // 2,
        size,
    )
    return BucketedSample(
        Sample(
            str(image),
            caption,
            repeats=1,
            size=full,
            folder="",
            control_images=tuple(map(str, references)),
        ),
        crop,
    )


def encode_photos(
    model: QwenImageModel, *items: BucketedSample, dtype: torch.dtype = torch.float32
) -> EncodedDataset:
    stores = memory_stores()
    return encode_items(items, model, lambda _: stores, dtype)


def pictures_of(item: BucketedSample) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in item.sample.control_images]


def psnr(ours: Image.Image, theirs: Image.Image) -> float:
    """Peak signal-to-noise ratio of two 8-bit images, dB; infinite when they are
    equal."""
    a, b = (np.asarray(picture, dtype=np.float64) for picture in (ours, theirs))
    assert a.shape == b.shape
    error = np.mean((a - b) ** 2)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Norm of the difference over the norm of the reference."""
    ours, theirs = ours.detach().double(), theirs.detach().double()
    return float((ours - theirs).norm() / theirs.norm())


def rewrite_json(path: Path, **changes: Any) -> None:
    """Changes top-level keys of a JSON file."""
    path.write_text(
        json.dumps(json.loads(path.read_text()) | changes), encoding="utf-8"
    )
