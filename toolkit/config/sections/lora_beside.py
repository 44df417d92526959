"""A LoRA file that is active in addition to the network that is trained:
`train.assistant` in training only, `sample.lora` in samples only.

`train.py` and `output.py` have these sections as fields. The trainer loads the files.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import BeforeValidator

from toolkit.config.reading.base import StrictModel
from toolkit.config.reading.field_types import PathStr, path_alone
from toolkit.config.reading.findings import Findings, JobContext, check_path, error
from toolkit.config.sections.model_files import hub_lora, is_offline, lora_file
from toolkit.errors import UserError

ASSISTANT = "train.assistant"
OF_SAMPLES = "sample.lora"
"""The keys that name such a file."""


class LoraBeside(StrictModel):
    """`train.assistant`, `sample.lora`: a LoRA file that is active beside the network,
    in training only or in samples only.

    Example:
        assistant: {path: owner/training_adapter/adapter.safetensors, multiplier: 1.0}
    """

    path: PathStr
    """A LoRA, DoRA, LoHa, LoKr, OFT, BOFT or GLoRA file (.safetensors), of this or
    another program. Or one of the hub, which is downloaded at the start:
    `owner/repo/file.safetensors`, or `owner/repo` where that has one LoRA."""

    multiplier: float = 1.0
    """Its strength; 0 is an error."""

    # the sha256 that a state records says what is in the file
    on_resume: ClassVar = {"path": "harmless"}

    def file(self) -> str:
        """The file on this disk, also for a LoRA of the hub that is cached. `path`
        itself where the file is not on this disk or not clear."""
        try:
            return lora_file(self.path)
        except UserError:  # `check` says so
            return self.path

    def to_download(self) -> str:
        """The file that a run downloads first, as named on the hub; empty: none."""
        return self.path if hub_lora(self.path)[0] and self.file() == self.path else ""

    def check(self, job: JobContext) -> Findings:
        """A file that is missing, or read for nothing; one of the hub that is not here
        where the hub may not be asked."""
        repository, file = hub_lora(self.path)
        if job.will_write(self.path) or not repository:
            yield from check_path(
                "path",
                self.path,
                "Give a LoRA file, or one of the hub: owner/repo.",
                job,
                file=True,
            )
        else:
            try:
                is_here = lora_file(self.path) != self.path
            except UserError as fault:
                yield error("path", str(fault))
                is_here = True
            if not is_here and is_offline():
                download = " ".join(filter(None, ("hf download", repository, file)))
                yield error(
                    "path",
                    f"{self.path!r} is not in the hub cache, and HF_HUB_OFFLINE forbids to ask the hub. "
                    f"Unset it, or run '{download}' where there is a connection.",
                )
        if self.multiplier == 0:
            yield error(
                "multiplier",
                "0 switches the file off. Remove this section, or give its strength.",
            )


PathOrLora = Annotated[
    LoraBeside,
    BeforeValidator(path_alone, json_schema_input_type=str | LoraBeside),
]
"""The section, or the path alone."""
