"""The commands that use the results of a run, ready to be pasted into a shell.

`next_commands` names an image of the run's first sample, a grid of its files, and its
report. `lead_on` names the next step after an example job. Imports no torch.

`jobs/process/trainer.py` prints the first one at the end of a run, and a report shows
all. The commands are only written here, never run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from toolkit.commands import command
from toolkit.config.sections.output import SamplePicture
from toolkit.config.sections.trainer import DiffusionSection
from toolkit.data.scan.captions import inject_trigger
from toolkit.files.run_files import final_files, step_files, step_in
from toolkit.files.writing import CONFIG_ROOT

MOST_COLUMNS = 4
"""LoRA files that the command of a grid names: the last ones."""


@runtime_checkable
class HasSamples(Protocol):
    """A section of a training that generates samples.

    >>> isinstance(object(), HasSamples)
    False
    """

    trigger_word: str

    def sample_pictures(self) -> Sequence[SamplePicture]: ...


def next_commands(folder: Path, name: str, section: object) -> list[str]:
    """The commands for the run `name` in its folder: an image of its first sample, a
    grid of its files, its report.

    section: the section of its training. Without samples there is only the report.
    """
    files = final_files(folder, name)
    report = command("report", folder)
    if not files or not isinstance(section, HasSamples):
        return [report]
    shown = list(_flags(section))
    if files[0].is_dir():
        return [command("generate", "--model", files[0], *shown), report]
    # a single file of the transformer
    if isinstance(section, DiffusionSection) and section.network.trains_model:
        model = section.model.name_or_path
        whole = command(
            "generate", "--model", model, "--transformer-path", files[0], *shown
        )
        return [report] if Path(model).expanduser().is_file() else [whole, report]
    by_step = {step: paths[0] for step, paths in step_files(folder, name).items()}
    last = step_in(files[0])
    # the last step has no file of its own
    if by_step and max(by_step) < last < math.inf:
        by_step[int(last)] = files[0]
    saved = [file for _, file in sorted(by_step.items())][-MOST_COLUMNS:]
    compared = saved if len(saved) > 1 else [files[0], "--strength", 0.5, 0.75, 1]
    return [
        command("generate", "--lora", files[0], *shown),
        command("grid", "--lora", *compared, *shown, "--output", folder / "grid"),
        report,
    ]


def lead_on(section: object) -> list[str]:
    """The next step after an example of this program on its small model: the user's own
    images. Empty after a run on the user's own images."""
    if not isinstance(section, DiffusionSection) or not section.model.is_path():
        return []
    images = (Path(dataset.folder_path).resolve() for dataset in section.datasets)
    examples = (CONFIG_ROOT / "examples").resolve()
    if not all(
        folder.is_relative_to(examples) for folder in (section.model.folder(), *images)
    ):
        return []
    new = command("new", "my_char", "datasets/my_char")
    return [f"{new}   # your own images, in that folder: docs/first_character.md"]


def _flags(section: HasSamples) -> Iterator[object]:
    """Prompt and settings of the run's first sample."""
    pictures = (
        section.pictures_alone()
        if isinstance(section, DiffusionSection)
        else section.sample_pictures()
    )
    picture = next(iter(pictures), None)
    if picture is None:
        yield from ("--prompt", section.trigger_word or "a photo")
        return
    yield from (
        "--prompt",
        inject_trigger(picture.prompt, section.trigger_word, add=False),
    )
    yield from ("--width", picture.width, "--height", picture.height)
    if picture.sample_steps is not None:
        yield from ("--steps", picture.sample_steps)
    if picture.guidance_scale is not None:
        yield from ("--cfg", f"{picture.guidance_scale:g}")
    yield from ("--seed", picture.seed)
    if picture.neg.strip():
        yield from (
            "--negative",
            inject_trigger(picture.neg, section.trigger_word, add=False),
        )
    if picture.flow_shift:
        yield from ("--flow-shift", f"{picture.flow_shift:g}")
    if picture.ctrl_img:
        yield from ("--reference", *picture.ctrl_img)
