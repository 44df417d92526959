"""The commands with which the page tries the LoRA files of a run, and their images.

`settings_of` reads the job of a run: its files, samples and control images. From this
`TrySettings` makes the command for new images with one file, and the prompts for the
comparison of all files. `tried_in` reads how existing images were made. No command is
run here, and no image is made: the commands wait in the queue.

The only caller is the lower part of a run's page (`extensions.tools.ui.views.after`).
Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from extensions.tools.shared.image_files import Settings, read_settings
from extensions.tools.shared.run_job import loras_by_step, training_section
from extensions.tools.shared.run_records import modified_at
from toolkit.config.sections.output import SamplePicture
from toolkit.data.scan.captions import inject_trigger
from toolkit.errors import UserError
from toolkit.files.redact import redact_text
from toolkit.files.writing import write_text
from toolkit.models.families import family_for
from toolkit.train.run_reader import RunInfo

TRIED, COMPARED = "tried", "compared"
"""Folders of images in the folder of a run."""

PROMPTS = "prompts.yaml"
"""File with the prompts of the comparison, in the folder COMPARED."""

MOST_PROMPTS = 2
"""Number of prompts of the comparison. Each makes one image per file."""

MOST_IMAGES = 24
"""Number of images that are shown, the latest ones."""


@dataclass(frozen=True)
class TrySettings:
    """Settings for new images with the LoRA files of a run, from its job.

    Example::

        settings = settings_of(run)
        if settings is not None:
            path = settings.write_prompts()  # the prompts of the comparison
            print(settings.files, settings.prompt)
    """

    run: RunInfo
    files: tuple[str, ...]
    """Names of the LoRA files, the latest first."""

    pictures: tuple[SamplePicture, ...]
    trigger_word: str
    least_controls: int
    most_controls: int
    """Minimum and maximum number of control images of the model."""

    @property
    def first(self) -> SamplePicture | None:
        """The first sample of the job. None: the job has none."""
        return self.pictures[0] if self.pictures else None

    @property
    def prompt(self) -> str:
        """The prompt of the first sample, with the trigger word."""
        if self.first is None:
            return self.trigger_word
        return redact_text(
            inject_trigger(self.first.prompt, self.trigger_word, add=False)
        )

    def command(
        self,
        lora: str,
        output: str,
        form: Mapping[str, str],
        seeds: Sequence[str],
        controls: Sequence[Path],
    ) -> list[str]:
        """The words of `run.py generate` for images with one file.

        lora: path of the file and its strength, as `--lora` takes them.
        output: folder for the images.
        form: `prompt`, `width` and `height` as typed. They are checked later, as all
        flags.
        seeds: one image is made per seed.
        controls: control images.
        """
        first = self.first
        optional = {
            "width": form.get("width", "").strip(),
            "height": form.get("height", "").strip(),
            "trigger-word": self.trigger_word,
        }
        if first is not None:
            numbers = {
                "steps": first.sample_steps,
                "cfg": first.guidance_scale,
                "flow-shift": first.flow_shift,
            }
            for name, value in numbers.items():
                optional[name] = "" if value is None else f"{value:g}"
            optional["negative"] = first.neg.strip() and first.neg
        return [
            "generate",
            f"--lora={lora}",
            f"--prompt={form.get('prompt', '').strip()}",
            *(f"--{name}={value}" for name, value in optional.items() if value),
            *(f"--seed={seed}" for seed in seeds),
            *(f"--reference={path}" for path in controls),
            f"--output={output}",
        ]

    def write_prompts(self) -> Path:
        """Writes the prompts of the comparison, and returns their file. Raises RunError
        if it cannot be written."""
        keys = (
            "prompt",
            "width",
            "height",
            "neg",
            "seed",
            "guidance_scale",
            "sample_steps",
            "flow_shift",
            "ctrl_img",
        )
        pictures = {
            picture.prompt + repr(picture.ctrl_img): picture
            for picture in reversed(self.pictures)
        }
        rows = []
        for picture in [*reversed(pictures.values())][:MOST_PROMPTS]:
            values = {key: getattr(picture, key) for key in keys} | {
                "prompt": inject_trigger(picture.prompt, self.trigger_word, add=False),
                "ctrl_img": list(picture.ctrl_img),
            }
            rows.append({k: v for k, v in values.items() if v not in (None, "", [])})
        path = self.run.folder / COMPARED / PROMPTS
        text = yaml.safe_dump({"samples": rows}, allow_unicode=True, sort_keys=False)
        write_text(path, text)
        return path


def settings_of(run: RunInfo) -> TrySettings | None:
    """The settings for new images. None: the run trains no LoRA, has not saved a file,
    or its job cannot be read any more."""
    try:
        section = training_section(run, check_files=False)
        family = family_for(section.model)
    except UserError:
        return None
    saved = [file.path.name for file in reversed(loras_by_step(run.folder))]
    if section.network.trains_model or not saved:
        return None
    return TrySettings(
        run=run,
        files=tuple(saved),
        pictures=tuple(section.pictures_alone()),
        trigger_word=section.trigger_word,
        least_controls=family.min_references,
        most_controls=family.max_references,
    )


@dataclass(frozen=True)
class Tried:
    """An image that a command of the page has made, and how it was made.

    >>> image = Tried("a.png", "a cat", 42, (("cat.safetensors", 0.8),), ())
    >>> image.files[0]
    ('cat.safetensors', 0.8)
    """

    name: str
    prompt: str
    seed: int
    files: tuple[tuple[str, float], ...]
    """Name and strength of each LoRA file. Empty: the model without a LoRA."""

    controls: tuple[str, ...]
    """Paths of its control images."""

    @classmethod
    def of(cls, name: str, settings: Settings) -> Tried:
        """Reads the settings in an image file. Raises UserError if they are of another
        program."""
        try:
            loras = [
                (Path(str(lora["path"])).name, float(lora["strength"]))
                for lora in settings["lora"]
            ]
            return cls(
                name=name,
                prompt=redact_text(str(settings["prompt"])),
                seed=int(settings["seed"]),
                files=tuple(loras),
                controls=tuple(str(one["path"]) for one in settings["reference"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{name}: {error}") from None


def tried_in(folder: Path, most: int = MOST_IMAGES) -> list[Tried]:
    """The images in a folder that contain their settings, the latest first."""
    images: list[Tried] = []
    for path in sorted(folder.glob("*.png"), key=modified_at, reverse=True)[:most]:
        try:
            images.append(Tried.of(path.name, read_settings(path)))
        except UserError:
            continue
    return images
