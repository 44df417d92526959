"""The validation split: the images of a separate folder, or some of the training
images, which are then not trained on.

`scan_and_split` scans a job and splits it; `toolkit.plan` and the tools that encode the
images of a job (`cache`, `best`) call it. Which images are held out depends on their names,
not on the order of the datasets; a run that has begun keeps its split when files are
renamed. Losses are measured elsewhere, in `toolkit.train`.

Imports no torch: a dry run counts the images too.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

from toolkit.config.sections.dataset import ValidationConfig
from toolkit.config.sections.trainer import DiffusionSection, ImageTrainingSection
from toolkit.contracts.data import BucketedSample, CaptionRules, Sample
from toolkit.contracts.model import ModelFacts
from toolkit.data.scan.directory import ScanCache
from toolkit.data.scan.fingerprint import DatasetHashes, fingerprint, name_of
from toolkit.data.scan.folder import DatasetScan, scan_datasets
from toolkit.data.scan.found import count_of
from toolkit.data.scan.items import (
    make_items,
    refuse_large,
    refuse_long_captions,
    refuse_references,
    scan_items,
)
from toolkit.errors import Diagnostic, UserError
from toolkit.system import seeding

_LISTED = 5

Cost = Callable[[int, ValidationConfig], str]
"""From a number of items to the cost of measuring them, in words."""


@dataclass(frozen=True)
class ValidationSplit:
    """The images of the validation, which are not trained on.

    Example::

        scan, items, split = scan_and_split(section, family)
        measured = split.items if split else ()
    """

    items: tuple[BucketedSample, ...]
    """Each image at each size, without augmentation: captions are neither dropped nor
    shuffled, nothing is mirrored."""

    from_training: bool
    """True: they are split off the `datasets`; False: from a separate folder."""

    notes: tuple[str, ...]
    """Lines for the plan."""


def scan_and_split(
    section: DiffusionSection,
    family: ModelFacts,
    scan_cache: ScanCache | None = None,
    trained_on: Callable[[], DatasetHashes] = dict,
) -> tuple[DatasetScan, tuple[BucketedSample, ...], ValidationSplit | None]:
    """The result of `scan_items`, split by `section.validation`.

    trained_on: as of `split_validation`. Raises what both raise, and DataErrors naming
    every image that has more references than the family takes, is too large for it, or
    has a caption that is too long for the model, as far as that is known already.
    """
    multiple = family.size_multiple
    scanned = scan_items(section, multiple, scan_cache)
    (scan, items), validation_split = scanned, None
    if section.validation:
        scan, items, validation_split = split_validation(
            section, *scanned, multiple, forward_passes, trained_on=trained_on
        )
    everything = (*items, *(validation_split.items if validation_split else ()))
    refuse_references(everything, family)
    refuse_large(everything, family)
    refuse_long_captions(
        everything, partial(family.prompt_error, section.model), family.sure_prompt
    )
    return scan, items, validation_split


def split_validation(
    section: ImageTrainingSection,
    scan: DatasetScan,
    items: tuple[BucketedSample, ...],
    size_multiple: int,
    cost: Cost,
    forgiven: list[Diagnostic] | None = None,
    trained_on: Callable[[], DatasetHashes] = dict,
) -> tuple[DatasetScan, tuple[BucketedSample, ...], ValidationSplit | None]:
    """The images that are left to train on, and the validation split; None without
    `section.validation`.

    section, scan, items, size_multiple, forgiven: as of `scan_items`. cost: describes
    the cost of a validation of so many items. trained_on: the hashes of the images that
    the run has trained on, if it has begun. Raises UserError when nothing would be left,
    DataErrors naming every offending file of the validation's folder.
    """
    settings = section.validation
    if settings is None:
        return scan, items, None
    if settings.folder_path is not None:
        dataset = settings.dataset(section.datasets)
        also = [] if section.streamed else section.datasets
        validation_scan = scan_datasets(
            [dataset], section.trigger_word, scan.scan_cache, forgiven, also=also
        )
        samples = validation_scan.samples
        measured = make_items(samples, lambda _: dataset.resolution, size_multiple)
        missing = sum(folder.missing_captions for folder in validation_scan.folders)
        note = f"validation: {dataset.folder_path}, {count_of(len(samples), 'image')}"
        what = (
            "with 'default_caption'" if dataset.default_caption else "without caption"
        )
        note += f", {missing} {what}" if missing else ""
        note += f"; {cost(len(measured), settings)} each time"
        notes = (note, *validation_scan.notes)
        split = ValidationSplit(tuple(map(as_measured, measured)), False, notes)
        return scan, items, split
    samples = tuple(
        s for folder in scan.folders if not folder.is_reg for s in folder.samples
    )
    chosen = _as_before(scan.samples, _held_out(samples, settings), trained_on())
    shown = chosen & set(map(_place, samples))
    measured = tuple(
        as_measured(bucketed)
        for bucketed in items
        if _place(bucketed.sample) in shown and not bucketed.sample.flip
    )
    names = sorted(f"{path.parent.name}/{path.name}" for path in map(Path, shown))
    listed = ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
    note = f"validation: {count_of(len(shown), 'image')} held out, not trained on ({listed})"
    note += f"; {cost(len(measured), settings)} each time"
    split = ValidationSplit(measured, True, (note,))
    left = []  # of the folders; one that is held out whole is left out with its images
    for folder in scan.folders:
        rest = [sample for sample in folder.samples if _place(sample) not in chosen]
        if rest:
            # Which images had no caption file is not known any more; there are not more
            # of them than images.
            missing = min(folder.missing_captions, len(rest))
            left.append(replace(folder, samples=tuple(rest), missing_captions=missing))
    trained = tuple(item for item in items if _place(item.sample) not in chosen)
    return replace(scan, folders=tuple(left)), trained, split


def _held_out(samples: Iterable[Sample], settings: ValidationConfig) -> set[str]:
    """The images that `settings.fraction` holds out, by absolute path; a file that is
    used twice counts once.

    Drawn by the names of file and folder: neither the order of the datasets nor where
    they lie matters.
    """
    places = set(map(_place, samples))
    assert settings.fraction is not None  # a validation has a folder or a fraction
    count = max(1, round(settings.fraction * len(places)))

    def key(place: str) -> tuple[int, str]:
        folder, name = os.path.split(place)
        parts = ("held out", os.path.basename(folder), name)
        return seeding.key(0, *parts), place

    chosen = set(sorted(places, key=key)[:count])
    if places <= chosen:
        raise UserError(
            "validation.fraction: "
            f"of {count_of(len(places), 'image')} none would be left to train on. "
            "Add images, or give validation.folder_path."
        )
    return chosen


def _as_before(
    samples: Sequence[Sample], chosen: set[str], trained: DatasetHashes
) -> set[str]:
    """The images that the run holds out, by absolute path. If images were renamed, their
    new names would choose others. So the images that the run has trained on stay in the
    training, and the others are held out.

    samples: all of them. chosen: the images that their names choose. trained: hashes of
    the images that the run has trained on; empty for a new run.
    """
    if not trained:
        return chosen
    left = Counter(trained.values())
    expected = chosen & set(map(_place, samples))
    rest = set[str]()
    hashes = fingerprint(samples)
    for sample in samples:
        digest = hashes.pop(name_of(sample), None)
        if digest and left[digest]:
            left[digest] -= 1
        elif digest:  # not another use of the same image
            rest.add(_place(sample))
    is_same_dataset = left.total() == 0 and len(rest) == len(expected)
    return rest if is_same_dataset else chosen


def forward_passes(items: int, settings: ValidationConfig) -> str:
    """The cost of one validation, for the plan. items: images that are held out."""
    return count_of(settings.timesteps * items, "forward pass", "forward passes")


def as_measured(item: BucketedSample) -> BucketedSample:
    """The item as it is measured: always with its caption (the first of several), and
    no sample counts more than another."""
    rules = CaptionRules(trigger=item.sample.rules.trigger)
    sample = item.sample._replace(rules=rules, repeats=1, loss_weight=1.0, captions=())
    return item._replace(sample=sample)


def _place(sample: Sample) -> str:
    """The real path of an image, however its path was written."""
    folder, name = os.path.split(os.path.abspath(sample.image))
    path = os.path.join(_real_folder(folder), name)
    return os.path.realpath(path) if os.path.islink(path) else path


@lru_cache(maxsize=64)
def _real_folder(folder: str) -> str:
    """Links followed; once for all images of a folder, because that looks at each
    folder above it."""
    return os.path.realpath(folder)
