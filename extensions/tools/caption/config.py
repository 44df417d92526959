"""The section of `type: caption`: the folder, the model, and the form of the captions.

The section checks its paths and that the model is a captioner. The images are found and
the captions written by `files`; the model is loaded by `captioner`. A job or the
command line fills the section in (`toolkit/config/reading`). Imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from extensions.tools.shared.keys import check_folder
from toolkit.config.reading.field_types import Dtype, PathStr, WritePathStr
from toolkit.config.reading.findings import check_path
from toolkit.config.reading.process import Diagnostic, JobContext
from toolkit.config.reading.tool import ToolConfig
from toolkit.config.sections.model import Qtype
from toolkit.config.sections.model_files import (
    CAPTIONER,
    CAPTIONER_TYPES,
    INDEX,
    looks_like_a_path,
    quantization_fault,
)
from toolkit.config.sections.trainer import Device
from toolkit.files.writing import file_in_the_way, read_object
from toolkit.models.single_file import encoder_file_fault

DESCRIBE = (
    "Write a caption of this image for training an image generator, as one paragraph of plain prose. Say what is seen: "
    "the subject and what it does, its looks, clothes and pose, the surroundings, composition, light, colours and "
    "style. Quote writing in the image word by word. Name only what is visible, guess nothing, and do not begin with "
    "'The image'."
)
"""`prompt` for single images."""

DESCRIBE_CHANGE = (
    "The first image was edited into the second one. Write the instruction that leads from the first to the second, "
    "in one or two sentences, as a request such as 'Change the sky to a sunset'. Name every difference that is "
    "visible, and nothing that stayed the same."
)
"""`prompt` for pairs."""

QUANTIZED = (
    "captioner",
    "Give the bf16 model that it was made from; --quantize int8 quantizes it while it is loaded.",
)
"""For `quantization_fault`: a name for the model, and the remedy."""

TABLES = {"jsonl": "captions.jsonl", "tsv": "captions.tsv"}
"""`format` -> the table in the folder of the images where `output` names none."""


class CaptionConfig(ToolConfig):
    """`type: caption`: captions the images of a folder, or the changes from control
    images to them."""

    process_types: ClassVar[tuple[str, ...]] = ("caption",)
    example: ClassVar[str] = (
        "config/examples/mascots/pipo --format tsv --output output/captions.tsv"
    )
    positional: ClassVar[tuple[str, ...]] = ("folder",)

    folder: PathStr
    """Folder of the images."""

    model: PathStr = CAPTIONER
    """Qwen2.5-VL or Qwen3-VL: hub id, its local folder, or the folder of a model that
    has it as text encoder, such as Qwen-Image-Edit-2509 or Qwen-Image-2.1. A file is
    `text_encoder_path`."""

    text_encoder_path: PathStr | None = None
    """Its weights in one safetensors file, as ComfyUI keeps it, instead of the weights
    of `model`. Only config, tokenizer and image processor of `model` are used then."""

    pairs: PathStr = ""
    """Folder of control images with the same names: captions describe the change from
    them to the images in `folder`."""

    format: Literal["txt", "jsonl", "tsv"] = "txt"
    """txt: a file next to each image. jsonl: a line {"image_path", "caption"} for each
    image, as musubi-tuner reads it. tsv: lines of name, tab, caption, as
    `captions_file` of a dataset reads them."""

    output: WritePathStr = ""
    """File for jsonl and tsv. Empty: `captions.jsonl` or `captions.tsv` in `folder`."""

    prompt: str = ""
    """Prompt for the model. `\\n` is a line break. Empty: asks for one paragraph of
    prose, or with `pairs` for an instruction."""

    prefix: str = ""
    """Prepended to each caption, separated by `. `."""

    trigger_word: str = ""
    """Prepended to captions that do not contain it, and replaces `[trigger]` in
    them."""

    max_size: int = Field(default=1280, ge=56, le=8192)
    """Images of more than `max_size` x `max_size` pixels are scaled down to that area
    for the model."""

    max_tokens: int = Field(default=1024, ge=1, le=32768)
    """Maximum length of a caption, in tokens."""

    batch_size: int = Field(default=1, ge=1)
    """Images per batch."""

    recursive: bool = False
    """Include the images of all subfolders."""

    limit: int = Field(default=0, ge=0)
    """Caption at most this many images, to see how they turn out. 0: all."""

    overwrite: bool = False
    """Also caption images that have a caption. Old captions are moved to
    `.trash/<date>/` in `folder`."""

    temperature: float = Field(default=0.0, ge=0, le=10)
    """0: greedy decoding. Above 0: tokens are sampled at this temperature."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed for sampling; 0 is a valid seed."""

    quantize: Qtype | None = None
    """Quantized type of the language model's weights, as in `model.qtype`. None:
    `dtype`."""

    dtype: Dtype = "bfloat16"
    """Dtype of the computation."""

    device: Device = "auto"
    """Device: auto, cuda, cuda:N, mps or cpu."""

    def folder_path(self) -> Path:
        """`folder` as a path."""
        return Path(self.folder).expanduser()

    def pairs_path(self) -> Path:
        """`pairs` as a path."""
        return Path(self.pairs).expanduser()

    def table(self) -> Path | None:
        """The file of all captions; None: each has its own."""
        if self.format == "txt":
            return None
        if self.output:
            return Path(self.output).expanduser()
        return self.folder_path() / TABLES[self.format]

    def question(self) -> str:
        """The prompt for the model."""
        if self.prompt:
            return self.prompt.replace("\\n", "\n")
        return DESCRIBE_CHANGE if self.pairs else DESCRIBE

    @model_validator(mode="before")
    @classmethod
    def _of_a_file(cls, data: Any) -> Any:
        """Reads a file that is given as `model` as its weights alone."""
        model = data.get("model") if isinstance(data, dict) else None
        if not isinstance(model, str) or data.get("text_encoder_path"):
            return data
        # not of pathlib, which raises for a text that no path can be
        if model.endswith(".safetensors") or os.path.isfile(os.path.expanduser(model)):
            return {**data, "text_encoder_path": model, "model": CAPTIONER}
        return data

    def weights_file(self) -> Path | None:
        """`text_encoder_path` as a path."""
        file = self.text_encoder_path
        return Path(file).expanduser() if file else None

    def outputs_exist(self, job: JobContext) -> bool:
        """False, so that each start looks for images without a caption."""
        return False

    def check(self, job: JobContext) -> Iterable[Diagnostic]:
        """Reports folders that are missing, a model of another kind, and keys that
        exclude each other."""
        for key in ("folder", "pairs"):
            given = getattr(self, key)
            if given:
                yield from check_folder((key,), given, job)
        if self.pairs and self.pairs_path().resolve() == self.folder_path().resolve():
            yield Diagnostic(
                ("pairs",),
                "is the same folder as 'folder'. Give the folder of the control images.",
            )
        if self.output and self.format == "txt":
            yield Diagnostic(
                ("output",),
                "has no effect with format txt, which writes a file beside each image.",
            )
        table = self.table()
        if table and self.output and (table.is_dir() or file_in_the_way(table.parent)):
            yield Diagnostic(
                ("output",), f"'{table}' cannot be a file. Give another place."
            )
        yield from self._check_model(job)
        yield from check_path(
            "text_encoder_path",
            self.text_encoder_path,
            "Give a safetensors file.",
            job,
            file=True,
        )
        file = self.weights_file()
        if file and file.is_file():
            fault = encoder_file_fault(file, "captioner", {})
            if fault:
                yield Diagnostic(("text_encoder_path",), fault)

    def _check_model(self, job: JobContext) -> Iterator[Diagnostic]:
        folder = Path(self.model).expanduser()
        is_id = not folder.is_dir() and not looks_like_a_path(self.model)
        if is_id or job.will_write(folder):
            return
        part = "text_encoder" if (folder / INDEX).is_file() else ""
        config = folder / part / "config.json"
        kind = model_type(config)
        fault = ""
        if not config.is_file():
            remedy = f"Give a hub id such as {CAPTIONER!r}, or a folder of it."
            fault = f"{self.model!r} holds no {config.relative_to(folder)}. {remedy}"
        elif kind not in CAPTIONER_TYPES:
            known = " and ".join(map(repr, CAPTIONER_TYPES))
            fault = f"{self.model!r} is {kind!r}. Only {known} write captions here."
        elif not self.text_encoder_path:
            fault = quantization_fault(config.parent, *QUANTIZED)
        if fault:
            yield Diagnostic(("model",), fault)


def model_type(config: Path) -> str:
    """The kind of model that a `config.json` is of; "unknown" where it says none."""
    return str(read_object(config).get("model_type", "unknown"))
