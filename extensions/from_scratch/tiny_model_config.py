"""The section of `type: tiny_model`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from toolkit.config.field_types import PathOrList, PathStr
from toolkit.config.process import Diagnostic, JobContext, ProcessConfig
from toolkit.errors import UserError
from toolkit.files.writing import file_in_the_way, refusal


class TinyModelConfig(ProcessConfig):
    """`type: tiny_model`: writes a small random model folder in the published layout."""

    process_types: ClassVar[tuple[str, ...]] = ("tiny_model",)

    path: PathStr
    """Folder to write, relative to the working directory."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the random weights; 0 is a valid seed."""

    layers: int = Field(default=2, ge=1)
    """Blocks of the transformer."""

    heads: int = Field(default=2, ge=1)
    """Attention heads of each block."""

    captions: PathOrList = ()
    """Folders of `.txt` files that the tokenizer is trained on, for a model that is to be trained from random weights:
    its text encoder is made to stay frozen. Empty: a built-in text of a few words."""

    overwrite: bool = False
    """Replace what this program wrote there. Off: a complete model with the same settings is kept."""

    def folder(self) -> Path:
        """`path` as an absolute path."""
        return Path(self.path).expanduser().resolve()

    def outputs(self, job: JobContext) -> frozenset[Path]:
        """The model folder."""
        return frozenset({self.folder()})

    def outputs_exist(self, job: JobContext) -> bool:
        """The index is written last."""
        return (self.folder() / "model_index.json").is_file()

    def check(self, job: JobContext) -> Iterable[Diagnostic]:
        """A file or a folder of somebody else in the way of the folder, and captions that are nowhere."""
        if file := file_in_the_way(self.folder()):
            yield Diagnostic(("path",), f"'{file}' is a file. Give a folder to write.")
        elif reason := refusal(self.folder()):
            yield Diagnostic(("path",), reason)
        for index, path in enumerate(self.captions):
            if not Path(path).expanduser().is_dir() and not job.will_write(Path(path)):
                yield Diagnostic(("captions", index), f"{path!r} is no folder. Give one that holds captions.")

    def texts(self) -> tuple[str, ...]:
        """The captions, in the order of their files. Raises UserError where a folder holds none."""
        texts: list[str] = []
        for path in self.captions:
            files = sorted(Path(path).expanduser().rglob("*.txt"))
            if not files:
                raise UserError(f"captions: {path!r} holds no .txt file. Give a folder that holds captions.")
            texts += (file.read_text(encoding="utf-8").strip() for file in files)
        return tuple(texts)
