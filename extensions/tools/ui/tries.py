"""The commands of a run's page: images of one of its files, and the comparison of all
of them. Imports no torch.

settings = settings_of(run)
argv = settings.command("cat.safetensors", prompt="a cat", strength=0.8, ...)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from extensions.tools.shared.blocks import BAKED, groups_of
from extensions.tools.shared.image_files import Settings, read_settings
from extensions.tools.shared.run_job import training_section
from toolkit.config.sections.output import SamplePicture
from toolkit.data.scan.captions import inject_trigger
from toolkit.errors import UserError
from toolkit.files.redact import redact_text
from toolkit.files.safetensors_io import tensor_shapes
from toolkit.files.writing import write_text
from toolkit.models.families import family_for
from toolkit.train.run_reader import NetworkFile, RunInfo, list_network_files

TRIED, COMPARED = "tried", "compared"
"""Folders of images in the folder of a run."""

PROMPTS = "prompts.yaml"
"""In COMPARED: the prompts of the comparison."""

MOST_PROMPTS = 2
"""Prompts that all files are compared with: each is an image of each file."""

MOST_IMAGES = 24
"""Images of a run that are shown, the last ones."""


@dataclass(frozen=True)
class TrySettings:
    """What an image with a file of a run begins from: the first sample of the run."""

    run: RunInfo
    files: tuple[str, ...]
    """Names of the LoRA files, the last first, then those with strengths per block."""

    pictures: tuple[SamplePicture, ...]
    trigger_word: str
    least_controls: int
    most_controls: int
    """Control images that the model needs, and takes."""

    @property
    def first(self) -> SamplePicture | None:
        """The first sample; None: the run has none."""
        return self.pictures[0] if self.pictures else None

    @property
    def prompt(self) -> str:
        """Its prompt, with the trigger word."""
        if self.first is None:
            return self.trigger_word
        return redact_text(
            inject_trigger(self.first.prompt, self.trigger_word, add=False)
        )

    def command(
        self,
        file: str,
        output: str,
        prompt: str,
        strength: str,
        sides: tuple[str, str],
        seeds: Sequence[int],
        controls: Sequence[Path],
        blocks: Sequence[str],
    ) -> list[str]:
        """`run.py generate` with one file. sides: width and height, as the form has
        them: the check of the command refuses other texts than numbers. seeds: one
        image each. blocks: strengths of groups of blocks."""
        argv = ["generate", f"--lora={file}:{strength}", f"--prompt={prompt}"]
        for name, side in zip(("width", "height"), sides, strict=True):
            if side:
                argv.append(f"--{name}={side}")
        argv += [f"--seed={seed}" for seed in seeds]
        first = self.first
        if first is not None:
            shared = {
                "steps": first.sample_steps,
                "cfg": first.guidance_scale,
                "flow-shift": first.flow_shift,
            }
            for name, value in shared.items():
                if value is not None:
                    argv.append(f"--{name}={value:g}")
            argv += [f"--negative={first.neg}"] if first.neg.strip() else []
        argv += [f"--trigger-word={self.trigger_word}"] if self.trigger_word else []
        argv += [f"--blocks={entry}" for entry in blocks]
        return [
            *argv,
            *(f"--reference={path}" for path in controls),
            f"--output={output}",
        ]

    def groups(self) -> list[str]:
        """The blocks of its file in groups; empty: they cannot be read, or it has
        none."""
        try:
            return groups_of(tensor_shapes(self.run.folder / self.files[0]))
        except UserError:
            return []

    def write_prompts(self) -> Path:
        """Writes the prompts of the comparison, and returns their file. Raises RunError
        where the disk is full."""
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
        pictures = {}
        for picture in reversed(self.pictures):
            pictures[picture.prompt + repr(picture.ctrl_img)] = picture
        rows = []
        for picture in [*reversed(pictures.values())][:MOST_PROMPTS]:
            values = {key: getattr(picture, key) for key in keys}
            values["prompt"] = inject_trigger(
                picture.prompt, self.trigger_word, add=False
            )
            values["ctrl_img"] = list(picture.ctrl_img)
            rows.append(
                {
                    key: value
                    for key, value in values.items()
                    if value not in (None, "", [])
                }
            )
        path = self.run.folder / COMPARED / PROMPTS
        path.parent.mkdir(exist_ok=True)
        write_text(
            path, yaml.safe_dump({"samples": rows}, allow_unicode=True, sort_keys=False)
        )
        return path


def settings_of(run: RunInfo) -> TrySettings | None:
    """What can be tried. None: the run trains no LoRA, its job cannot be read any more,
    or it has saved nothing."""
    try:
        section = training_section(run, check_files=False)
        family = family_for(section.model)
    except UserError:
        return None
    saved = [file.path.name for file in reversed(compared_files(run.folder))]
    baked = sorted(
        path.name
        for path in run.folder.glob("*.safetensors")
        if BAKED.fullmatch(path.name)
    )
    if section.network.trains_model or not saved:
        return None
    limits = (family.min_references, family.max_references)
    return TrySettings(
        run,
        (*saved, *baked),
        tuple(section.sample_pictures()),
        section.trigger_word,
        *limits,
    )


def compared_files(folder: Path) -> list[NetworkFile]:
    """The LoRA files of a run by their step, one for each."""
    files = [
        file
        for file in list_network_files(folder)
        if file.kind != "best"
        and file.path.suffix == ".safetensors"
        and not file.path.stem.endswith("_raw")
    ]
    return sorted(
        {file.step: file for file in files}.values(),
        key=lambda file: math.inf if file.step is None else file.step,
    )


@dataclass(frozen=True)
class Tried:
    """One image that a command of the page has made."""

    name: str
    prompt: str
    seed: int
    files: tuple[tuple[str, float], ...]
    """Name and strength of each LoRA; none: the model alone."""

    controls: tuple[str, ...]
    """Paths of its control images."""

    @classmethod
    def of(cls, name: str, settings: Settings) -> Tried:
        """Raises UserError for settings of another program."""
        try:
            loras = tuple(
                (Path(str(one["path"])).name, float(one["strength"]))
                for one in settings["lora"]
            )
            controls = tuple(str(one["path"]) for one in settings["reference"])
            return cls(
                name,
                redact_text(str(settings["prompt"])),
                int(settings["seed"]),
                loras,
                controls,
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{name}: {error}") from None


def tried_in(folder: Path, most: int = MOST_IMAGES) -> list[Tried]:
    """The images in a folder that say how they were made, the latest first."""
    images: list[Tried] = []
    for path in sorted(folder.glob("*.png"), key=modified_at, reverse=True)[:most]:
        try:
            images.append(Tried.of(path.name, read_settings(path)))
        except UserError:
            continue
    return images


def modified_at(path: Path) -> float:
    """When a file was written last, in seconds since 1970; 0 for one that has been
    deleted meanwhile."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
