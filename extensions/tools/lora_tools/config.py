"""The sections of the tools for LoRA files.

The sections check that files and folders exist, that a LoRA belongs to the model, and
that keys fit together. Weights are read by the processes (`process`, `extract`,
`inspect`, `merge`), which take the sections from here. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from extensions.tools.shared.keys import (
    FileToolConfig,
    check_loras,
    check_model_folder,
    check_origins,
    check_safetensors,
)
from extensions.tools.shared.run_job import model_of
from toolkit.config.reading.field_types import (
    Dtype,
    OneOf,
    PathOrList,
    PathStr,
    WritePathStr,
)
from toolkit.config.reading.process import Diagnostic, JobContext
from toolkit.config.reading.tool import ToolConfig
from toolkit.config.sections.model import ModelConfig
from toolkit.config.sections.model_files import ORIGINAL_MODEL, quantization_fault
from toolkit.contracts.model import ModelFacts
from toolkit.errors import UserError
from toolkit.models.beside import transformer_fault


def _model(folder: str) -> ModelConfig:
    return ModelConfig(name_or_path=folder)


class LoraToolConfig(ToolConfig):
    """Keys of the tools that read LoRA files.

    Example::

        class InspectConfig(LoraToolConfig):
            reads: ClassVar[str] = "file"
            file: PathStr
    """

    reads: ClassVar[str] = ""
    """Key of the file that is read; empty: the tool checks its files itself."""

    model: PathStr = ""
    """Model folder that the files belong to. Empty: the published models, or the model
    of the run that contains the file."""

    def check(self, job: JobContext) -> Iterable[Diagnostic]:
        """Reports files that are missing or are not safetensors files, and outputs that
        exist."""
        yield from super().check(job)
        if self.model:
            yield from check_model_folder(("model",), self.model, job)
        if self.reads:
            yield from check_safetensors((self.reads,), getattr(self, self.reads), job)
            if self.model:
                yield from check_origins(
                    self.reads, [getattr(self, self.reads)], partial(_model, self.model)
                )

    def model_folder(self) -> Path | None:
        """`model` as a path; None where it is not given."""
        return Path(self.model).expanduser() if self.model else None


class WritingToolConfig(LoraToolConfig, FileToolConfig):
    """Keys of the tools that write a LoRA file.

    Example::

        class PostHocEmaConfig(WritingToolConfig):
            files: PathOrList
    """


class OneFileConfig(WritingToolConfig):
    """Keys of the tools that make another file from one.

    Example::

        class ConvertConfig(OneFileConfig):
            process_types: ClassVar[tuple[str, ...]] = ("convert",)
    """

    saved_weights: ClassVar[tuple[str, ...]] = ("input",)
    reads: ClassVar[str] = "input"
    positional: ClassVar[tuple[str, ...]] = ("input", "output")

    input: PathStr
    """LoRA file, of any program."""


class InspectConfig(LoraToolConfig):
    """`type: inspect`: prints the contents of a LoRA file."""

    process_types: ClassVar[tuple[str, ...]] = ("inspect",)
    example: ClassVar[str] = "output/quickstart/quickstart.safetensors"
    saved_weights: ClassVar[tuple[str, ...]] = ("file",)
    reads: ClassVar[str] = "file"
    positional: ClassVar[tuple[str, ...]] = ("file",)
    flags: ClassVar[dict[str, str]] = {"as_json": "--json"}

    file: PathStr
    """LoRA file."""

    as_json: bool = False
    """Print one JSON object."""


class ConvertConfig(OneFileConfig):
    """`type: convert`: converts a LoRA file for another program."""

    process_types: ClassVar[tuple[str, ...]] = ("convert",)
    example: ClassVar[str] = (
        "output/quickstart/quickstart.safetensors output/for_kohya.safetensors --to kohya"
    )

    to: Annotated[
        Literal["comfyui", "comfyui-fused", "diffusers", "kohya", "musubi", "aitk"],
        OneOf(spellings={"ai-toolkit": "aitk"}),
    ]
    """Target program: comfyui, diffusers, kohya, musubi or aitk; comfyui-fused:
    versions of ComfyUI that know the layers of Qwen-Image-2.1's `img_mlp.gate_up` only
    as one."""


class RankConfig(WritingToolConfig):
    """Keys of the tools that choose a rank by singular values.

    Example::

        class ExtractConfig(RankConfig):
            tuned: PathStr
    """

    rank: int = Field(default=0, ge=0, le=65536)
    """Maximum rank of a layer. 0: determined by `share`."""

    share: float = Field(default=0.0, ge=0, le=1)
    """Share of each layer's squared Frobenius norm to keep; each layer gets the lowest
    rank that does. 0: all of `rank`."""

    dtype: Dtype | None = None
    """Dtype of the file. None: the dtype of the input."""

    def check(self, job: JobContext) -> Iterable[Diagnostic]:
        """Reports a rank that is not given."""
        yield from super().check(job)
        if not self.rank and not self.share:
            yield Diagnostic(
                ("rank",), "give the maximum rank of a layer, or 'share' (--share)."
            )


class ResizeConfig(OneFileConfig, RankConfig):
    """`type: resize`: makes the nearest LoRA of a rank from a LoRA, LoHa or LoKr
    file."""

    process_types: ClassVar[tuple[str, ...]] = ("resize",)
    example: ClassVar[str] = (
        "output/quickstart/quickstart.safetensors output/rank_4.safetensors --rank 4"
    )


class ExtractConfig(RankConfig):
    """`type: extract`: makes the nearest LoRA of a rank from the difference of two
    models."""

    process_types: ClassVar[tuple[str, ...]] = ("extract",)
    example: ClassVar[str] = (
        "output/extracted.safetensors --base config/examples/tiny_mascots --tuned output/merged --rank 4"
    )
    saved_weights: ClassVar[tuple[str, ...]] = ("base", "tuned")
    positional: ClassVar[tuple[str, ...]] = ("output",)

    base: PathStr = ""
    """Model folder that the tuned one was trained from. Empty: the base model of the
    run of `tuned`."""

    tuned: PathStr
    """Fine-tuned model folder."""

    def check(self, job: JobContext) -> Iterable[Diagnostic]:
        """Reports folders without a model."""
        yield from super().check(job)
        faults = list(_check_model("tuned", self.tuned, job))
        yield from faults
        if self.base:
            yield from _check_model("base", self.base, job)
        elif not faults and not job.will_write(Path(self.tuned).expanduser().parent):
            try:
                self.base_folder()
            except UserError as error:
                yield Diagnostic(("base",), f"is required. {error}")

    def base_folder(self) -> Path:
        """`base`, or the model of the run where it is not given. Raises UserError as
        `model_of` does."""
        if self.base:
            return Path(self.base).expanduser()
        return model_of(Path(self.tuned).expanduser()).files_folder()


def _check_model(key: str, path: str, job: JobContext) -> Iterator[Diagnostic]:
    yield from check_model_folder((key,), path, job)
    part = Path(path).expanduser() / ModelFacts.trained_part
    fault = quantization_fault(part, remedy=ORIGINAL_MODEL)
    if fault:
        yield Diagnostic((key,), fault)


class MergeConfig(WritingToolConfig):
    """`type: merge`: merges LoRAs into a model folder, or several into one file."""

    process_types: ClassVar[tuple[str, ...]] = ("merge",)
    example: ClassVar[str] = (
        "--base config/examples/tiny_mascots --lora output/quickstart/quickstart.safetensors --output output/merged"
    )
    saved_weights: ClassVar[tuple[str, ...]] = ("base", "lora")

    base: PathStr = ""
    """Model folder that the LoRAs are merged into, or the file of a transformer as
    ComfyUI keeps it. Empty: they are merged into one file."""

    lora: PathOrList
    """LoRA files, each as FILE or FILE:STRENGTH."""

    output: WritePathStr
    """Folder to write, or file without `base`. With `base`, a name that ends in
    `.safetensors` writes the merged transformer alone as ComfyUI loads it; from an fp8
    base it is bfloat16."""

    layout: Annotated[Literal["diffusers", "single_file"], OneOf()] | None = None
    """With `base`: `diffusers` writes a model folder, `single_file` the merged
    transformer. None: as `output` ends."""

    rank: int = Field(default=0, ge=0, le=65536)
    """Without `base`: the maximum rank of a layer, by SVD. 0: the ranks are added. The
    log reports the error."""

    dtype: Dtype | None = None
    """Dtype of the output. None: the dtype of the model, or of the files if all have
    the same."""

    def check(self, job: JobContext) -> Iterable[Diagnostic]:
        """Reports files and folders that cannot be read or written."""
        if self.base:
            if Path(self.base).expanduser().is_file():
                fault = transformer_fault(self.base)
                if fault:
                    yield Diagnostic(("base",), fault)
                if self.writes_folder():
                    yield Diagnostic(
                        ("output",),
                        f"{self.output!r} must end in .safetensors, because 'base' is a file.",
                    )
            else:
                yield from _check_model("base", self.base, job)
            if self.layout and self.writes_folder() != (self.layout == "diffusers"):
                ending = "not end" if self.layout == "diffusers" else "end"
                yield Diagnostic(
                    ("output",),
                    f"{self.output!r} must {ending} in .safetensors with {self.layout}.",
                )
            if self.output_path().resolve() == Path(self.base).expanduser().resolve():
                yield Diagnostic(("output",), "is 'base' itself. Give another folder.")
            if self.rank:
                yield Diagnostic(("rank",), "has no effect with 'base'. Remove it.")
            if self.model:
                yield Diagnostic(
                    ("model",),
                    "has no effect with 'base', which has the layers. Remove it.",
                )
        yield from super().check(job)
        yield from check_loras("lora", self.lora, job)
        model = self.base or self.model
        if model and not Path(model).expanduser().is_file():
            yield from check_origins("lora", self.lora, partial(_model, model))

    def writes_folder(self) -> bool:
        """Whether `output` is a model folder."""
        return bool(self.base) and self.output_path().suffix != ".safetensors"


class PostHocEmaConfig(WritingToolConfig):
    """`type: post_hoc_ema`: averages the files of a run, with a width that is chosen
    after the training."""

    process_types: ClassVar[tuple[str, ...]] = ("post_hoc_ema",)
    example: ClassVar[str] = (
        "output/quickstart/quickstart_0*.safetensors --output output/average.safetensors"
    )
    saved_weights: ClassVar[tuple[str, ...]] = ("files",)
    positional: ClassVar[tuple[str, ...]] = ("files",)

    files: PathOrList
    """Files of one run, which are sorted by step."""

    sigma_rel: float = Field(default=0.0, ge=0, le=1)
    """Width of a power function over the steps, relative to their number: 0.1 to 0.25,
    at most 0.2887. 0: `beta`."""

    beta: float = Field(default=0.95, ge=0, lt=1)
    """Share of the average that is kept at each further file. 0: the last file is the
    result."""

    beta2: float | None = Field(default=None, ge=0, lt=1)
    """`beta` at the last file, interpolated linearly from the first. 0: only the last
    file counts. Not given: `beta` is constant."""

    def check(self, job: JobContext) -> Iterable[Diagnostic]:
        """Reports files that cannot be read, and a width that no power function has."""
        yield from super().check(job)
        if self.sigma_rel > 0.2887:
            message = f"{self.sigma_rel:g} is out of range: the uniform mean over all steps has 0.2887, the maximum."
            yield Diagnostic(("sigma_rel",), message)
        faults = [
            fault
            for index, file in enumerate(self.files)
            for fault in check_safetensors(("files", index), file, job)
        ]
        if len(self.files) == 1 and "*" in self.files[0]:
            yield Diagnostic(
                ("files",),
                f"{self.files[0]!r} matches no file (working directory: {Path.cwd()}).",
            )
        elif len(self.files) < 2 and not faults:
            yield Diagnostic(("files",), "give at least two files of a run.")
        yield from faults
        if self.sigma_rel and self.model_fields_set & {"beta", "beta2"}:
            yield Diagnostic(
                ("sigma_rel",), "and 'beta' are both given. Keep one of them."
            )
