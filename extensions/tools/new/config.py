"""The section of `type: new`: the images, the model and the GPU that a job is for.

The section builds the text of the job (`shared/examples`) and checks its arguments:
folders, pairs, layers and the model. `process` writes the file and runs the checks of
the job. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, field_validator

from extensions.tools.shared.effort import EffortName
from extensions.tools.shared.examples import (
    MASCOTS,
    MODELS,
    WITHOUT_GPU,
    all_models,
    is_small,
    layers_in,
    written_job,
)
from extensions.tools.shared.keys import check_folder, check_place
from extensions.tools.shared.pairs import FoundPairs, found_pairs, is_table
from toolkit.commands import command
from toolkit.config.reading.field_types import (
    PathOrList,
    PathStr,
    WritePathStr,
    value_error,
)
from toolkit.config.reading.loader import FILE_ENDING, name_like
from toolkit.config.reading.process import Diagnostic, JobContext
from toolkit.config.reading.tool import ToolConfig
from toolkit.config.sections.model import ModelConfig
from toolkit.config.sections.model_files import INDEX, near_id
from toolkit.errors import UserError
from toolkit.files.writing import CONFIG_SUFFIXES, with_schema
from toolkit.models.families import UnknownFamilyError, family_for, model_bytes
from toolkit.plan.cards import asked_card, card_here
from toolkit.system.nvidia import (
    ask_nvml,
    least_memory,
    why_no_device_here,
)
from toolkit.version import with_addresses

JOB_KEYS = {
    "rank": "network.linear",
    "dim": "network.linear",
    "alpha": "network.linear_alpha",
    "batch-size": "train.batch_size",
    "steps": "train.steps",
    "epochs": "train.epochs",
    "lr": "train.lr",
    "optimizer": "train.optimizer",
    "resolution": "datasets[].resolution",
}
"""Flags that users expect of this command -> the key of the job that it writes."""


class NewConfig(ToolConfig):
    """`type: new`: writes a job that trains a character or a style on a folder of
    images, or an edit on pairs of them, based on the example for this GPU, then checks
    the images (`lint`, with a preview page) and prints the plan."""

    process_types: ClassVar[tuple[str, ...]] = ("new",)
    example: ClassVar[str] = (
        "my_char config/examples/photos --model config/examples/tiny_mascots"
    )
    positional: ClassVar[tuple[str, ...]] = ("job_name", "folder")

    common_words: ClassVar = {
        **{
            word: f"It is a key of the job that this command writes: change '{key}' there."
            for word, key in JOB_KEYS.items()
        },
        "name": "The name is the first word, without a flag: new NAME FOLDER.",
    }

    job_name: str = Field(max_length=100)
    """Name of the run and of its files: letters, digits, `_`, `-` and `.`."""

    folder: PathStr
    """Folder of images, or one whose subfolders are named `<repeats>_<name>`; for pairs
    the images after the edit, or a folder of both, or a table with columns for both
    (CSV, TSV, JSON, JSONL)."""

    control_path: PathOrList = ()
    """For pairs: the folder of the images before the edit, or several, in the order of
    *Picture 1*, *Picture 2*. Not needed where names or a table say what the pairs
    are."""

    default_caption: str = ""
    """Caption of images that have none; of pairs the instruction, such as "turn the
    photo into a drawing"."""

    trigger_word: str = ""
    """Word for the character or style in prompts. Empty: `job_name`; of pairs none."""

    model: PathStr = ""
    """Hub id, local folder, or file of a transformer as ComfyUI keeps it
    (docs/models.md). Empty: the model of the example."""

    gpu: int = Field(default=0, ge=0, le=999)
    """Memory of the GPU in GB, such as 24. The least is 4 for Qwen-Image-2.1, 12 for
    Qwen-Image-Layered, 6 for other Qwen-Image models, and 8 for other families. 0:
    this machine's GPU, or 24."""

    effort: EffortName = "usual"
    """`quick`: a quarter of the usual steps, to see whether it learns. `careful`: twice
    as many. Of more than 50 images each is seen as often."""

    output: WritePathStr = ""
    """File to write. Empty: `config/<job_name>.yaml`."""

    @field_validator("gpu", mode="before")
    @classmethod
    def _is_no_name(cls, value: Any) -> Any:
        """Refuses the name of a card, also one that is a number, such as 4090."""
        with suppress(UserError):
            card = asked_card(str(value), "gpu")
            if re.sub(r"\D", "", str(value)) != str(card.memory_gb):
                raise value_error(
                    f"{value!r} is the name of a card. Write its GB, {card.memory_gb}."
                )
        return value

    def path(self) -> Path:
        """`output` as a path."""
        return Path(self.output or f"config/{self.job_name}.yaml").expanduser()

    def job_text(self) -> str:
        """The text of the job. Raises UserError where the GPU is too small for the
        model."""
        pairs = self.pairs()
        trigger = self.trigger_word or ("" if pairs else self.job_name)
        gpu = self.gpu_gb() or WITHOUT_GPU
        text = written_job(
            self.job_name,
            self.folder,
            trigger,
            self.model,
            gpu,
            pairs,
            self.default_caption,
            self.effort,
            "" if self.gpu else self._card_here(),
        )
        return with_addresses(with_schema(text, self.path()))

    def _card_here(self) -> str:
        """This machine's smallest GPU, as the table of cards names it; empty: it is not
        there, or there is none."""
        smallest = min(ask_nvml()[1], key=lambda gpu: gpu.memory, default=None)
        card = card_here(smallest.name) if smallest else None
        return card.name if card else ""

    def pairs(self) -> FoundPairs | None:
        """The pairs of the folder; None: it has images alone."""
        return found_pairs(self.folder, self.control_path)

    def gpu_gb(self) -> int:
        """GB of the GPU that the job is for; 0: there is none."""
        return self.gpu or round(least_memory() / 2**30)

    def assumed_gb(self) -> int:
        """GB of the card that the plan of the job is made for; 0: the plan uses this
        machine's GPU, or the job needs none."""
        if self.gpu or (not self.gpu_gb() and not is_small(self.model)):
            return self.gpu or WITHOUT_GPU
        return 0

    def may_start_here(self) -> bool:
        """Whether this machine has a device for the job."""
        size = model_bytes(ModelConfig(name_or_path=self.model or MODELS[0].id))
        return not why_no_device_here("cuda:0", size)

    def command_to_try(self) -> str:
        """This command with another name and the small model, which can be trained on
        any machine."""
        flags = ["--model", f"config/examples/{MASCOTS}"]
        if self.control_path:
            flags += ["--control-path", *self.control_path]
        if self.default_caption:
            flags += ["--default-caption", self.default_caption]
        return command("new", f"{self.job_name}_try", self.folder, *flags)

    def is_as_written(self) -> bool:
        """Whether the file to write exists with the same text. Then an earlier call was
        interrupted, or found mistakes in the images."""
        with suppress(UserError, OSError, UnicodeDecodeError):
            return self.path().read_text(encoding="utf-8") == self.job_text()
        return False

    def preview(self) -> Path:
        """The page of `lint --preview`, next to the job."""
        return self.path().with_suffix(".html")

    def check(self, job: JobContext) -> Iterable[Diagnostic]:
        """Reports a folder that is missing, and a job that exists already."""
        path = self.path()
        yield from self._model_findings(job)
        name, folder = Path(self.job_name).expanduser(), Path(self.folder).expanduser()
        if name.is_dir() and not folder.exists():
            message = f"{self.folder!r} is not a folder, and {self.job_name!r} is one: the name comes first."
            right = command("new", name_like(self.folder), self.job_name)
            yield Diagnostic(("folder",), f"{message} Write: {right}")
        elif FILE_ENDING.search(self.job_name) or not re.fullmatch(
            r"\w(?:[\w.-]*\w)?", self.job_name
        ):
            yield Diagnostic(
                ("job_name",),
                f"{self.job_name!r} cannot be the name of a run: letters, digits, '_', '-' and '.' only, "
                f"no ending of a file. Write {name_like(self.job_name)!r}.",
            )
        else:
            findings: list[Diagnostic] = []
            if not is_table(self.folder):
                findings += check_folder(("folder",), self.folder, job)
            for slot, control in enumerate(self.control_path):
                findings += check_folder(("control_path", slot), control, job)
            yield from findings
            if not any(finding.severity == "error" for finding in findings):
                yield from self._layer_findings() if self.model else ()
                yield from self._pair_findings()
        if self.output and path.suffix not in CONFIG_SUFFIXES[:2]:
            yield Diagnostic(("output",), f"{str(path)!r} must end in .yaml.")
        else:
            yield from check_place(path.parent)
            if path.exists() and not self.is_as_written():
                what = f"'{path}' exists, with other contents, and is never replaced"
                remedy = f"Run it ({command(path)}), remove it, or give another --output or name."
                yield Diagnostic(("output",), f"{what}. {remedy}")

    def _pair_findings(self) -> Iterable[Diagnostic]:
        """Control images that belong to no image, or that the model does not take."""
        pairs = self.pairs()
        if pairs is None and self.control_path:
            names = []
            for place in self.control_path:
                files = sorted(Path(place).expanduser().glob("[!.]*"))
                names += [repr(str(file)) for file in files[:1]]
            folders = ", ".join(self.control_path)
            message = f"no image in {self.folder!r} has a control image of its name in {folders}"
            yield Diagnostic(
                ("control_path",),
                f"{message} (there: {', '.join(names)}). Give both files of a pair the same name.",
            )
        with suppress(UserError):  # of the model
            family = family_for(ModelConfig(name_or_path=self.model or MODELS[0].id))
            if (
                pairs
                and not family.stacks_layers
                and pairs.most() > family.max_references
            ):
                message = family.too_many_references(
                    pairs.most(), "the folders of control images"
                )
                edits = " or ".join(
                    model.id for model in all_models() if model.references
                )
                message = f"{pairs.place!r} {message} Models that edit: {edits}."
                yield Diagnostic(
                    ("control_path" if self.control_path else "folder",), message
                )

    def _layer_findings(self) -> Iterable[Diagnostic]:
        """Images without layers, for a model of layers."""
        with suppress(UserError):  # of the model
            family = family_for(ModelConfig(name_or_path=self.model))
            if family.stacks_layers and layers_in(self.folder) is None:
                message = (
                    f"{self.folder!r}: no image has layers, and {family.title} learns them. Save those of a.png, "
                    "each with the whole canvas, as a_layer0.png (the back), a_layer1.png and so on, beside it. "
                    "See docs/datasets.md."
                )
                yield Diagnostic(("folder",), message)

    def _model_findings(self, job: JobContext) -> Iterable[Diagnostic]:
        """Mistakes that the job would report about the model, and a hub model whose
        family is unknown."""
        if not self.model:
            return
        section = ModelConfig(name_or_path=self.model)
        faults = [one for one in section.check(job) if one.severity == "error"]
        for fault in faults:
            yield replace(fault, key=("model",))
        if faults:
            return
        try:
            family_for(section)
        except UnknownFamilyError:
            message = (
                f"{self.model!r} is not on this disk, so its family is not known. {near_id(self.model)}"
                f"Run 'hf download {self.model} {INDEX}' and repeat the command."
            )
            yield Diagnostic(("model",), message)
        except UserError as error:
            message = str(error).removeprefix("model.name_or_path: ")
            yield Diagnostic(("model",), message)
