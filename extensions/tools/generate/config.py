"""The section of `type: generate`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, ValidationError

from extensions.tools.shared.image_files import read_settings
from extensions.tools.shared.picture_config import PicturesConfig, SeedOrList
from toolkit.config.field_types import PathStr
from toolkit.config.findings import warning
from toolkit.config.output import SampleItem
from toolkit.config.process import Diagnostic, JobContext
from toolkit.errors import UserError


class GenerateConfig(PicturesConfig):
    """`type: generate`: generates images with a model and LoRAs, from text and up to 10 references."""

    process_types: ClassVar[tuple[str, ...]] = ("generate",)

    cfg: float | None = Field(default=None, ge=0, le=1000)
    """Strength of classifier-free guidance (true CFG, with the negative prompt); 0 to 1: off, half the time. Not given:
    what the model is made for, 4 for most."""

    seed: SeedOrList = (42,)
    """Seeds of the noise: an image of each prompt for each. 0 is a valid seed."""

    like: PathStr = ""
    """An image that `generate` made: the same again, with all its settings; what is given goes before."""

    interactive: bool = False
    """Read prompts with flags from standard input, a line each, and keep the model loaded. The end of input ends it."""

    output: PathStr = "generated"
    """Folder of the images. Each is named after its prompt, its seed and a hash of all that decides it: what is there
    with the same settings is not made again, other settings are another file."""

    def check(self, job: JobContext) -> Iterable[Diagnostic]:
        """Files that cannot be read, nothing to draw."""
        if self.like:
            try:
                section = self.resolved()
            except UserError as error:
                yield Diagnostic(("like",), str(error))
                return
            assert section.model is not None  # an image's settings have one
            yield from (Diagnostic(("like",), f"its model: {found.message}") for found in section.model.check(job))
            yield from section.check_values(job)
            return
        yield from self.check_values(job)

    def check_values(self, job: JobContext) -> Iterable[Diagnostic]:
        """`check` of a section without `like`."""
        yield from super().check(job)
        if not (self.prompt or self.prompts or self.interactive):
            yield Diagnostic(("prompt",), "is required: what the image shows. Or 'prompts', a file of several.")
        if self.lightning and not self.lora:
            yield warning("lightning", "needs a Lightning LoRA of as many steps. Give it by 'lora' (--lora).")

    def resolved(self) -> GenerateConfig:
        """The section with what the image of `like` says in the place of what is not given. Raises UserError."""
        if not self.like:
            return self
        settings = read_settings(Path(self.like).expanduser())
        try:
            values: dict[str, Any] = {key: settings[key] for key in _SAME}
            values["seed"] = (settings["seed"],)
            values["steps"] = None if settings.get("levels") else settings["steps"]
            values["prompt"] = (settings["prompt"],)
            values["reference"] = tuple(file["path"] for file in settings["reference"])
            values["lora"] = tuple(f"{file['path']}:{file['strength']!r}" for file in settings["lora"])
            given = {key: getattr(self, key) for key in self.model_fields_set - {"like", "model"}}
            model = settings["model"] | (self.model.model_dump(exclude_unset=True) if self.model else {})
            return GenerateConfig.model_validate({**values, **given, "type": self.type, "model": model})
        except (KeyError, TypeError, ValidationError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"the settings in '{self.like}' cannot be used ({reason}).") from None

    def items(self) -> tuple[SampleItem, ...]:
        """All prompts; that of `like` as it stands there, without flags."""
        if self.like and not self.model_fields_set & {"prompt", "prompts"}:
            return tuple(SampleItem(prompt=text) for text in self.resolved().prompt)
        return super().items()


_SAME = ("negative", "width", "height", "cfg", "flow_shift", "lightning", "dtype")
"""Keys of an image's settings that are keys of the section with the same value."""
