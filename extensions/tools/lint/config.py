"""The section of `type: lint`: what is checked, and the thresholds of the checks.

The section checks its own paths and keys. The images are examined later, by `process`
and `checks`, which take the thresholds from here. A job or the command line fills the
section in (`toolkit/config/reading`). Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator, BeforeValidator, Field

from extensions.tools.shared.findings import CHECKS
from extensions.tools.shared.html_page import is_page
from extensions.tools.shared.keys import check_folder, check_page
from toolkit.config.reading.field_types import (
    PathOrList,
    PathStr,
    StrOrList,
    WritePathStr,
    as_list,
    near_path,
    schema_of_list,
    value_error,
)
from toolkit.config.reading.process import Diagnostic, JobContext
from toolkit.config.reading.removed import removed_at
from toolkit.config.reading.tool import ToolConfig
from toolkit.errors import UserError, did_you_mean
from toolkit.files.writing import find_config


def _known(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if fault := name_fault(name):
            raise value_error(fault)
    return names


def name_fault(name: str) -> str:
    """Why a name is not that of a check, and the remedy; empty where it is."""
    if name in CHECKS:
        return ""
    if gone := removed_at(f"lint.skip: {name}"):
        return f"{name!r} {gone}"
    return f"{name!r} is not a check. {did_you_mean(name, CHECKS)}"


Checks = Annotated[
    tuple[str, ...],
    BeforeValidator(as_list),
    AfterValidator(_known),
    schema_of_list({"type": "string", "enum": list(CHECKS)}),
]
OF_A_FOLDER = {
    *("control_path", "control_suffix", "image_suffix"),
    *("resolution", "trigger_word", "default_caption"),
}
"""Keys that a job has itself."""


class LintConfig(ToolConfig):
    """`type: lint`: checks the datasets of a job, or one folder of images, and ends
    with exit code 1 where it finds something. Nothing is changed."""

    process_types: ClassVar[tuple[str, ...]] = ("lint",)
    example: ClassVar[str] = "config/examples/quickstart.yaml --preview"
    positional: ClassVar[tuple[str, ...]] = ("path",)
    flags: ClassVar[dict[str, str]] = {"as_json": "--json"}

    path: PathStr
    """A job, of which every dataset is checked as it would be trained, or a folder of
    images."""

    control_path: PathOrList = ()
    """For a folder: the folders of its control images."""

    control_suffix: StrOrList = ()
    """For a folder: the suffixes of its control images, as
    `datasets[].control_suffix`."""

    image_suffix: str = ""
    """For a folder: the suffix of its images, as `datasets[].image_suffix`."""

    resolution: int = Field(default=1024, ge=32)
    """For a folder: the size that it is trained at, as `datasets[].resolution`."""

    trigger_word: str = ""
    """For a folder: the word that each caption is to hold."""

    default_caption: str = ""
    """For a folder: caption for images without one, like
    `datasets[].default_caption`."""

    skip: Checks = ()
    """Checks that are left out."""

    as_json: bool = False
    """Print one JSON object."""

    preview: bool = False
    """Write a page that shows what is trained: each crop with its control images and
    its final caption."""

    output: WritePathStr = "lint.html"
    """File of that page. A page of this program is replaced, any other file is not."""

    least_likeness: float = Field(default=0.97, ge=0, le=1)
    """duplicate, leak: two images show the same if one explains at least this share of
    the other once they are aligned, also mirrored or turned by quarters. Copies that
    were resized, compressed or cut by up to 10 % have 0.985 to 1, other images at most
    0.94. 0: also images that are only similar."""

    least_sharpness: float = Field(default=25.0, ge=0)
    """blurred: below this variance of the Laplacian, of the crop with grey values 0 to
    255, if fine detail is missing too. 0: off."""

    least_detail: float = Field(default=0.35, ge=0)
    """blurred: below this share of the finest detail in the next coarser one. Images as
    they were taken or drawn have 0.7 to 1.4, blurred by 2 pixels 0.25. Traces of an
    enlargement are reported as `enlarged`. 0: off."""

    least_size: float = Field(default=0.5, ge=0)
    """tiny: below this share of `resolution`, as a side of a square. 0: off."""

    most_cut: float = Field(default=0.15, ge=0, le=1)
    """aspect: above this share of the image that its bucket cuts off. 0: anything that
    is cut."""

    most_aspect: float = Field(default=3.0, ge=1)
    """aspect: above this ratio of the sides."""

    reference_difference: int = Field(default=7, ge=0, le=255)
    """same_as_reference: largest difference of a colour (0 to 255) between both at
    64 x 64 pixels, beyond what compressing and resizing change at edges. 0: identical
    images only."""

    most_drift: float = Field(default=0.5, ge=0)
    """pair_shift: more than this many pixels between the corners of an image and of its
    control image, with a long side of at most 1024 pixels. 0: every certain shift."""

    most_tokens: int = Field(default=512, ge=1)
    """long_caption: more than this many tokens, estimated where the model's tokenizer
    is not on the disk."""

    def check(self, job: JobContext) -> Iterable[Diagnostic]:
        """Reports a path that does not exist, keys of the other kind of path, and a
        file in the way."""
        path = Path(self.path).expanduser()
        if not path.is_dir() and not job.will_write(path):
            try:
                find_config(self.path)
            except UserError as error:
                yield Diagnostic(
                    ("path",),
                    f"{self.path!r} is neither a folder of images nor a job. {near_path(self.path)}{error}",
                )
            for key in self.model_fields_set.intersection(OF_A_FOLDER):
                yield Diagnostic(
                    (key,),
                    f"is for a folder of images; the job {self.path!r} says it itself. Leave it out.",
                )
        for slot, folder in enumerate(self.control_path):
            yield from check_folder(("control_path", slot), folder, job)
        if self.preview:
            yield from check_page(Path(self.output).expanduser(), is_page, "lint.html")
        elif "output" in self.model_fields_set:
            yield Diagnostic(
                ("output",),
                "is the page of 'preview: true', which is not given. Add it.",
            )
