"""The section of `type: generate`: prompts and seeds, or files of latents to decode.

Most keys are those of `PicturesConfig`, which other tools share. Nothing is generated
here: `process` does that with a `PictureMaker`. A job or the command line fills the
section in (`toolkit/config/reading`). Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationError

from extensions.tools.shared.image_files import latents_fault, read_settings
from extensions.tools.shared.picture_config import PicturesConfig, SeedOrList
from toolkit.config.reading.field_types import PathOrList, PathStr, WritePathStr
from toolkit.config.reading.findings import warning
from toolkit.config.reading.process import Diagnostic, JobContext
from toolkit.config.sections.output import SampleItem
from toolkit.errors import UserError
from toolkit.models.families import family_for


class GenerateConfig(PicturesConfig):
    """`type: generate`: generates images with a model and LoRAs, from text and up to 10
    control images."""

    process_types: ClassVar[tuple[str, ...]] = ("generate",)
    example: ClassVar[str] = (
        '--lora output/quickstart/quickstart.safetensors --prompt "a pipo mascot, waving, at the beach"'
    )

    cfg: float | None = Field(default=None, ge=0, le=1000)
    """Scale of classifier-free guidance (true CFG, with the negative prompt); 0 to 1:
    off, half the time. Not given: the model's default, 4 for most."""

    lone_key: ClassVar[str] = "prompt"

    seed: SeedOrList = (42,)
    """Seeds of the noise: one image per prompt and seed. 0 is a valid seed."""

    like: PathStr = ""
    """An image written by `generate`: generate it again with its settings; explicit
    values take precedence."""

    interactive: bool = False
    """Read prompts with flags from standard input, one per line, and keep the model
    loaded, until the end of input."""

    output_type: Literal["images", "latent", "latent_images"] = "images"
    """Output: images, their latents (a safetensors file with the tensor `latent`), or
    both."""

    latent_path: PathOrList = ()
    """Files of latents to decode into `output`; nothing is generated, and only the VAE
    of the model is loaded."""

    output: WritePathStr = "generated"
    """Folder of the images. File names consist of the prompt, the seed and a hash of
    all settings: an existing image with the same settings is not generated again, and
    other settings give another file."""

    def check(self, job: JobContext) -> Iterable[Diagnostic]:
        """Reports files that cannot be read, and a section without a prompt."""
        try:
            section = self.resolved()
        except UserError as error:
            yield Diagnostic(("like",), str(error))
            return
        if self.like and section.model:
            for finding in section.model.check(job):
                yield Diagnostic(("like",), f"its model: {finding.message}")
        yield from section.check_values(job)

    def check_values(self, job: JobContext) -> Iterable[Diagnostic]:
        """Reports mistakes in a section without `like`."""
        yield from super().check(job)
        if self.latent_path:
            yield from self._latents()
        elif not self.interactive:
            yield from self.check_prompt()
        if self.lightning and not self.lora:
            yield warning(
                "lightning",
                "needs a Lightning LoRA for this number of steps. Add it to 'lora' (--lora).",
            )

    def _latents(self) -> Iterable[Diagnostic]:
        unused = {"prompt", "prompts", "interactive", "lora", "output_type"}
        for key in sorted(self.model_fields_set & unused):
            yield warning(
                key, "has no effect: latent_path is decoded, nothing is generated."
            )
        try:
            channels = family_for(self.found_model()).latent_channels
        except UserError:  # `super().check` says it
            return
        stems = [Path(path).stem for path in self.latent_path]
        for stem in sorted({stem for stem in stems if stems.count(stem) > 1}):
            yield Diagnostic(
                ("latent_path",),
                f"two files would become '{stem}.png'. Decode them into two folders.",
            )
        for path in self.latent_path:
            fault = latents_fault(Path(path).expanduser(), channels)
            if fault:
                yield Diagnostic(("latent_path",), fault)

    def resolved(self) -> GenerateConfig:
        """The section with the settings of the `like` image for keys that are not
        given. Raises UserError where they cannot be used."""
        if not self.like:
            return self
        settings = read_settings(Path(self.like).expanduser())
        if settings.get("blocks"):
            raise UserError(
                f"'{self.like}' was generated with a strength for each block, which left in 0.3.0. "
                "Give --lora FILE:STRENGTH instead of --like."
            )
        try:
            values: dict[str, Any] = {key: settings[key] for key in _SAME}
            values["seed"] = (settings["seed"],)
            values["prompt"] = (settings["prompt"],)
            values["reference"] = tuple(file["path"] for file in settings["reference"])
            values["lora"] = tuple(
                f"{file['path']}:{file['strength']!r}" for file in settings["lora"]
            )
            given = self.model_fields_set - {"like", "model"}
            values |= {key: getattr(self, key) for key in given}
            values["type"] = self.type
            model = self.model.model_dump(exclude_unset=True) if self.model else {}
            values["model"] = settings["model"] | model
            return GenerateConfig.model_validate(values)
        except (KeyError, TypeError, ValidationError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"the settings in '{self.like}' cannot be used ({reason})."
            ) from None

    def items(self) -> tuple[SampleItem, ...]:
        """All prompts. The prompt of `like` is taken as it is, without flags."""
        if self.like and not self.model_fields_set & {"prompt", "prompts"}:
            return tuple(SampleItem(prompt=text) for text in self.resolved().prompt)
        return super().items()


_SAME = (
    *("negative", "width", "height", "cfg"),
    *("steps", "flow_shift", "lightning", "dtype"),
)
"""Keys of an image's settings that are keys of the section with the same value."""
