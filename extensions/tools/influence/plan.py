"""Plans what `influence` measures: images, saved LoRAs, noise levels, and the cost.

The cost is counted in passes. A pass is one image forward and backward, as in training.
Only the files of the run and the names of its images are read; nothing is loaded.
Imports no torch.

`config` plans for the checks and the plan of a job, and `process` measures what is
planned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from extensions.tools.shared.run_job import loras_by_step, training_section
from toolkit.config.sections.trainer import DiffusionSection
from toolkit.contracts.data import BucketedSample
from toolkit.contracts.network_kinds import KINDS
from toolkit.data.scan.directory import ScanCache
from toolkit.data.scan.fingerprint import compare, fingerprint
from toolkit.data.scan.validation_split import as_measured, scan_and_split
from toolkit.errors import UserError
from toolkit.files.writing import read_object
from toolkit.models.families import family_for
from toolkit.plan.run_plan import WARNING
from toolkit.train.resumption import trained_images
from toolkit.train.run_reader import (
    NetworkFile,
    list_dataset_files,
    read_run,
)

FEWEST = 8
"""Least number of images of a dataset that is measured against itself, and of the
run."""

BEST_PLACE = 0.75
"""Share of the run at which the LoRA that is measured first was saved."""


@dataclass(frozen=True)
class Round:
    """One gradient of each image: at a saved LoRA and a noise level.

    Example::

        for round_ in plan.rounds:
            print(round_.file.path.name, round_.level)
    """

    file: NetworkFile
    level: float


@dataclass(frozen=True)
class Measurement:
    """All that is measured.

    Example::

        plan = plan_measurement(Path("output/my_character"), "auto", 1.0, 3, (0.8, 0.6))
        print("\\n".join(plan.notes()))
    """

    training: DiffusionSection
    images: tuple[BucketedSample, ...]
    """Each training image once, at the first of its sizes. Regularisation images are
    left out."""

    groups: tuple[int, ...]
    """Group of each image, within which images are compared. A group is an entry of
    `datasets`, or all the small ones."""

    validation: tuple[BucketedSample, ...]
    """Empty: each image is measured against the others of its group."""

    rounds: tuple[Round, ...]
    uses: int
    """Passes of an epoch of the run."""

    changed: str
    """How the dataset differs from the one of the run, in words; empty: it does not."""

    @property
    def passes(self) -> int:
        return len(self.rounds) * (len(self.images) + len(self.validation))

    @property
    def against(self) -> str:
        """The images that the training images are measured against, in words."""
        if self.validation:
            return f"the {len(self.validation)} images of the validation"
        return "the other training images of their dataset"

    def notes(self) -> tuple[str, ...]:
        """Lines for the plan."""
        files = Counter(round_.file.path.name for round_ in self.rounds)
        distinct = dict.fromkeys(round_.level for round_ in self.rounds)
        levels = ", ".join(f"{level:g}" for level in distinct)
        lines = [
            f"influence of {len(self.images)} training images on {self.against}",
            f"measured at {', '.join(files)}; noise levels {levels}",
            f"{self.passes:,} passes (one image forward and backward); an epoch of the run has {self.uses:,}",
        ]
        if self.passes > self.uses:
            lines.append(
                f"{WARNING}this is {self.passes / self.uses:.2g} epochs of the run"
            )
        if self.changed:
            lines.append(
                f"{WARNING}the dataset is not the one that was trained on: {self.changed}"
            )
        return tuple(lines)


def plan_measurement(
    folder: Path,
    reference: str,
    epochs: float,
    checkpoints: int,
    levels: Sequence[float],
) -> Measurement:
    """The measurement of the run in a folder. The other arguments are keys of
    `InfluenceConfig`.

    Raises RunError and UserError where the run has no LoRAs or images any more.
    """
    run = read_run(folder)
    training = training_section(run)
    if training.network.trains_model:
        raise UserError(
            f"{run.folder}: trains the model itself. Influence is measured on LoRAs and other adapters."
        )
    if KINDS[training.network.type].library_class:
        raise UserError(
            f"{run.folder}: trained '{training.network.type}', which cannot start from a file of the run."
        )
    if training.streamed:
        raise UserError(
            f"{run.folder}: trained on a stream, whose images are not on this disk."
        )
    files = [file for file in loras_by_step(run.folder) if file.step]
    if not files:
        raise UserError(
            f"{run.folder}: holds no saved LoRA. Set save.save_every, and train it."
        )
    scan, trained, split = scan_and_split(
        training,
        family_for(training.model),
        ScanCache.beside(training.training_folder),
        partial(trained_images, run.folder),
    )
    regular = {folder_.folder for folder_ in scan.folders if folder_.is_reg}
    once = {
        item.sample.image: item
        for item in reversed(trained)
        if item.sample.folder not in regular
    }
    images = tuple(as_measured(item) for item in reversed(once.values()))
    if len(images) < FEWEST:
        raise UserError(
            f"{run.folder}: trained on {len(images)} images. At least {FEWEST} are needed to compare them."
        )
    datasets = [item.sample.dataset for item in images]
    sizes = Counter(datasets)
    groups = tuple(index if sizes[index] >= FEWEST else -1 for index in datasets)
    uses = sum(item.sample.repeats for item in trained)
    held_out = split.items if split else ()
    validation = tuple({item.sample.image: item for item in held_out}.values())
    if reference == "validation" and not validation:
        raise UserError(
            f"{run.folder}: its job has no section 'validation'. Set reference to others."
        )
    most = epochs * uses
    fits = len(images) + len(validation) <= most
    if reference == "others" or (reference == "auto" and not fits):
        validation = ()
    chosen = _spread(files, checkpoints)
    wanted = [Round(file, level) for level in levels for file in chosen]
    rounds = wanted[: max(1, int(most // (len(images) + len(validation))))]
    changed = ""
    records = list_dataset_files(run.folder)
    if records:
        newest = read_object(max(records, key=lambda path: path.stat().st_mtime))
        if newest is not None:
            changed = str(compare(newest, fingerprint(scan.samples)))
    return Measurement(
        training, images, groups, validation, tuple(rounds), uses, changed
    )


def _spread(files: Sequence[NetworkFile], most: int) -> list[NetworkFile]:
    """Files in the order of their use: the first near `BEST_PLACE`, then the last, then
    others, each as far as possible from the files before it."""
    by_step = {file.step or 0: file for file in files}
    last = max(by_step)
    chosen = [min(by_step, key=lambda step: (abs(step - BEST_PLACE * last), step))]

    def distance(step: int) -> tuple[int, int]:
        return min(abs(step - other) for other in chosen), step

    while len(chosen) < min(most, len(by_step)):
        chosen.append(max(by_step.keys() - chosen, key=distance))
    return [by_step[step] for step in chosen]
