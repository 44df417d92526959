"""The sections of `type: new_model` and `type: tiny_model`.

Both name the folder that is written. They check its arguments without torch and write
nothing: `new_model_process` makes the parts. The reader of jobs
(`toolkit.config.reading`) makes the sections.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from extensions.from_scratch.arguments import PUBLISHED, SOURCES, faults
from toolkit.config.reading.field_types import PathOrList, PathStr, WritePathStr
from toolkit.config.reading.process import Diagnostic, JobContext, ProcessConfig
from toolkit.config.sections.model_files import (
    INDEX,
    ORIGINAL_MODEL,
    quantization_fault,
    read_model_json,
)
from toolkit.errors import UserError
from toolkit.files.writing import file_in_the_way, why_not_replaced


class ModelFolderConfig(ProcessConfig):
    """A process that writes a model folder with random weights.

    Example::

        class TinyModelConfig(ModelFolderConfig):
            process_types: ClassVar[tuple[str, ...]] = ("tiny_model",)
    """

    path: WritePathStr
    """Folder to write, relative to the working directory."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the random weights; 0 is a valid seed."""

    overwrite: bool = False
    """Replace the files that this program wrote in the folder. Off: a complete model
    with the same settings is kept."""

    def folder(self) -> Path:
        """`path` as an absolute path."""
        return Path(self.path).expanduser().resolve()

    def outputs(self, job: JobContext) -> frozenset[Path]:
        """The model folder."""
        return frozenset({self.folder()})

    def outputs_exist(self, job: JobContext) -> bool:
        """Whether the folder is complete: it exists only then."""
        return (self.folder() / INDEX).is_file()

    def check(self, job: JobContext) -> Iterable[Diagnostic]:
        """A file or somebody else's folder where the folder belongs."""
        file = file_in_the_way(self.folder())
        if file:
            yield Diagnostic(("path",), f"'{file}' is a file. Give a folder to write.")
        else:
            reason = why_not_replaced(self.folder())
            if reason:
                yield Diagnostic(("path",), reason)


class NewModelConfig(ModelFolderConfig):
    """`type: new_model`: writes a model folder whose transformer has random weights.

    Example:
        type: new_model
        path: output/new_model
        base: config/examples/tiny_mascots
        transformer: {num_layers: 6, num_attention_heads: 4, attention_head_dim: 32}
    """

    process_types: ClassVar[tuple[str, ...]] = ("new_model",)

    base: PathStr
    """Model folder that the text encoder, tokenizer, processor and scheduler are taken
    from; and the autoencoder, without `vae`. Large files are linked, not copied."""

    vae: PathStr = ""
    """Folder of another autoencoder, such as one of a `vae_trainer`. Empty: the
    autoencoder of `base`."""

    transformer: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the transformer's class in diffusers, such as num_layers,
    num_attention_heads and attention_head_dim. Those that fit it to the autoencoder and
    the text encoder are filled in; other arguments have the values of the published
    model."""

    def check(self, job: JobContext) -> Iterable[Diagnostic]:
        """Folders that are missing, and a file or somebody else's folder where the
        folder belongs."""
        yield from super().check(job)
        for key, message in self.missing():
            if not job.will_write(getattr(self, key)):
                yield Diagnostic((key,), message)
        argument_faults = faults(self._class_name(), self.transformer)
        yield from (
            Diagnostic(("transformer", *at), message) for at, message in argument_faults
        )

    def _class_name(self) -> str:
        """The class of the transformer in `base`; the class of the published model
        where `base` does not exist yet."""
        index = Path(self.base).expanduser() / INDEX
        entry = read_model_json(index).get("transformer") if index.is_file() else None
        name = entry[-1] if isinstance(entry, list) and entry else None
        return name if name in SOURCES else PUBLISHED

    def missing(self) -> Iterator[tuple[str, str]]:
        """Keys whose folder holds no model, or one that another program has quantized,
        each with a message."""
        for key, needed in (("base", INDEX), ("vae", "config.json")):
            path = getattr(self, key)
            folder = Path(path).expanduser()
            if path and not (folder / needed).is_file():
                yield key, f"{path!r} holds no {needed}. Give the folder of a model."
                continue
            for part in self._parts_from(key):
                fault = quantization_fault(folder / part, part or "vae", ORIGINAL_MODEL)
                if fault:
                    yield key, fault

    def _parts_from(self, key: str) -> tuple[str, ...]:
        """Subfolders of `base` or `vae` whose weights become part of the model; "" is
        the folder itself."""
        if key == "vae":
            return ("",) if self.vae else ()
        if self.vae:
            return ("text_encoder",)
        return ("text_encoder", "vae")


class TinyModelConfig(ModelFolderConfig):
    """`type: tiny_model`: writes a small random model folder in the published
    layout.

    Example:
        type: tiny_model
        path: output/tiny_model
        arch: qwen_image
    """

    process_types: ClassVar[tuple[str, ...]] = ("tiny_model",)

    layers: int = Field(default=2, ge=1)
    """Blocks of the transformer."""

    heads: int = Field(default=2, ge=1)
    """Attention heads of each block."""

    arch: Literal[
        "qwen_image", "qwen_image_edit", "qwen_image_edit_plus", "qwen_image_2"
    ] = "qwen_image_edit_plus"
    """Family of the model."""

    zero_cond_t: bool = False
    """Control images are modulated at t = 0, as in Qwen-Image-Edit-2511; for `arch:
    qwen_image_edit_plus`."""

    captions: PathOrList = ()
    """Folders of `.txt` files that the tokenizer is trained on, for a model that is to
    be trained from random weights: its text encoder is made to stay frozen. Empty: a
    built-in text of a few words."""

    def check(self, job: JobContext) -> Iterable[Diagnostic]:
        """A file or a folder of somebody else in the way of the folder, and folders of
        captions that do not exist."""
        yield from super().check(job)
        if self.zero_cond_t and self.arch != type(self).model_fields["arch"].default:
            yield Diagnostic(
                ("zero_cond_t",),
                f"a model of {self.arch} has no such setting. Remove it.",
            )
        for index, path in enumerate(self.captions):
            if not Path(path).expanduser().is_dir() and not job.will_write(Path(path)):
                yield Diagnostic(
                    ("captions", index),
                    f"{path!r} is not a folder. Give one that holds captions.",
                )

    def texts(self) -> tuple[str, ...]:
        """The captions, in the order of their files. Raises UserError where a folder
        holds none."""
        texts: list[str] = []
        for path in self.captions:
            files = sorted(Path(path).expanduser().rglob("*.txt"))
            if not files:
                raise UserError(
                    f"captions: {path!r} holds no .txt file. Give a folder that holds captions."
                )
            texts += (file.read_text(encoding="utf-8").strip() for file in files)
        return tuple(texts)
