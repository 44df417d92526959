"""What a run will do, in numbers: images, repeats, buckets, batches, optimizer steps.
No torch, no pixels.

`Planner.plan` makes a `RunPlan` of each process of a job. A run prints it before it
starts; a dry run prints it with an `Outlook`, as text or as JSON.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import ceil, prod
from pathlib import Path
from statistics import fmean
from typing import Any

from toolkit.config.sections.train import UNTIL_THE_DATA_ENDS
from toolkit.contracts.data import BucketedSample, ResizeCrop, Size
from toolkit.data.batches.epoch_order import shape_of
from toolkit.data.scan.folder import FolderInfo
from toolkit.data.scan.found import count_of
from toolkit.data.streams.counts import StreamPlan
from toolkit.errors import UserError
from toolkit.files.writing import free_space, readable_size, short
from toolkit.plan.memory import MemoryEstimate
from toolkit.plan.outlook import Outlook
from toolkit.plan.step_time import RunTime

WARNING = "warning: "
"""Begins the notes that are printed together at the end of a plan."""

MOST_FOLDERS = 3
"""Folders that a summary names."""

MOST_CUT = 0.15
"""Above this share of an image that its bucket cuts off there is a warning."""


@dataclass(frozen=True)
class BucketCount:
    """Images of one folder that train at one size, mirrored ones counted, repeats not.
    Pixels.

    >>> bucket = BucketCount(width=1024, height=768, images=12)
    >>> bucket.images
    12
    """

    width: int
    height: int
    images: int


@dataclass(frozen=True)
class FolderPlan:
    """One folder of images.

    >>> bucket = BucketCount(512, 512, images=10)
    >>> folder = FolderPlan("photos", 10, 2, 0, {1: 10}, {0: 10}, buckets=(bucket,))
    >>> folder.samples
    20
    """

    folder: str
    images: int
    repeats: int
    missing_captions: int
    captions: dict[int, int]
    """Number of captions -> images with that number."""

    references: dict[int, int]
    """Number of control images -> images with that number."""

    buckets: tuple[BucketCount, ...]

    flips: int = 1
    """Number of variants of each image: the original and mirrored ones."""

    masks: int = 0
    """Number of images with a mask."""

    mask_share: float | None = None
    """Share of the area that counts, the mean of the masks; None: none was measured."""

    converted: dict[str, int] = field(default_factory=dict)
    """What files are converted to sRGB from -> how many, control images and masks among
    them."""

    is_reg: bool = False
    layers: dict[int, int] = field(default_factory=dict)
    """Number of layers -> images with that number."""

    cut: float = 0.0
    """Share of an image that its bucket cuts off, the mean of all."""

    most_cut: tuple[tuple[str, float], ...] = ()
    """Names of the images that lose most by cropping, and the shares they lose."""

    has_default: bool = False
    """Whether images without a caption train with `default_caption`."""

    @property
    def sizes(self) -> int:
        """Distinct training sizes asked for; each image is one sample per size."""
        return sum(bucket.images for bucket in self.buckets) // max(
            1, self.images * self.flips
        )

    @property
    def samples(self) -> int:
        """Samples this folder gives to one epoch: its images in all buckets, times
        `repeats`."""
        return self.repeats * sum(bucket.images for bucket in self.buckets)

    def to_json(self) -> dict[str, Any]:
        return {
            "folder": self.folder,
            "images": self.images,
            "repeats": self.repeats,
            "missing_captions": self.missing_captions,
            "has_default_caption": self.has_default,
            "captions": _with_text_keys(self.captions),
            "references": _with_text_keys(self.references),
            "layers": _with_text_keys(self.layers),
            "masks": self.masks,
            "mask_share": self.mask_share,
            "converted": self.converted,
            "buckets": [asdict(bucket) for bucket in self.buckets],
        }


@dataclass(frozen=True)
class SaveSize:
    """Bytes that a save takes on the disk.

    Example::

        SaveSize(file=300_000_000, state=900_000_000).check(section.run_folder(job))
    """

    file: int
    """Bytes of a file, or folder, of weights."""

    state: int
    """Bytes of a state; 0: none is written."""

    def check(self, folder: Path) -> None:
        """Raises UserError when the free space on the disk of `folder` is less than one
        state and one file."""
        needed = self.file + self.state
        free = free_space(folder)
        if free < needed:
            raise UserError(
                f"training_folder: {short(folder)} has {readable_size(free)} free, one save of this job takes "
                f"{readable_size(needed)}. Free some space, or choose a folder on another disk."
            )


@dataclass(frozen=True)
class RunPlan:
    """One process of a job, counted.

    Example::

        plan = planner.plan(planner.scan())
        print(plan.optimizer_steps, plan.render())
    """

    type: str
    name: str
    datasets: tuple[FolderPlan, ...]
    samples_per_epoch: int
    micro_batches_per_epoch: int
    optimizer_steps: int
    accumulation: int = 1
    """Micro-batches per optimizer step."""

    requested_epochs: float = 0
    """`epochs` of the config when it decided, 0 when `steps` did."""

    first_caption: str = ""
    """The first caption as it is trained; empty: there is none, or none is read."""

    fits: str = ""
    """The line on whether the memory is enough."""

    notes: tuple[str, ...] = ()
    """Further lines to print: estimates, notes of the scan."""

    memory: MemoryEstimate | None = None
    """The memory estimate of the run, where there is one."""

    savings: tuple[list[str], ...] = ()
    """What would save memory, in the order in which it is worth trying: the keys of each
    change as `--set` takes them."""

    stream: StreamPlan | None = None
    """The stream of shards, where the datasets are one."""

    save_size: SaveSize | None = None
    """What one save takes on the disk, where it is known."""

    time: RunTime | None = None
    """How long it takes, where that is known."""

    against_compiling: str = ""
    """Why `train.compile: auto` compiles nothing: it does not pay in so few steps.
    Empty: it does."""

    outlook: Outlook | None = None
    """For a dry run: the model, disk, time, and what a start does with what is in the
    run's folder."""

    @property
    def epochs(self) -> int | float:
        """Passes over the data, rounded to 4 places; an int when whole. 0 where the
        micro-batches of an epoch are not known."""
        if not self.micro_batches_per_epoch:
            return 0
        epochs = round(
            self.optimizer_steps * self.accumulation / self.micro_batches_per_epoch, 4
        )
        return int(epochs) if epochs == int(epochs) else epochs

    def to_json(self) -> dict[str, Any]:
        """The process's entry in the object that `--dry-run --json` prints."""
        notes, warnings = self._notes_and_warnings()
        return {
            "type": self.type,
            "name": self.name,
            "datasets": [folder.to_json() for folder in self.datasets],
            **({"stream": self.stream.to_json()} if self.stream else {}),
            "samples_per_epoch": self.samples_per_epoch,
            "micro_batches_per_epoch": self.micro_batches_per_epoch,
            "optimizer_steps": None
            if self.optimizer_steps == UNTIL_THE_DATA_ENDS
            else self.optimizer_steps,
            "epochs": self.epochs or self.requested_epochs,
            **(
                {"memory": self.memory.to_json(), "savings": list(self.savings)}
                if self.memory
                else {}
            ),
            **(self.outlook.to_json() if self.outlook else {}),
            "notes": notes,
            "warnings": [line.removeprefix(WARNING) for line in warnings],
        }

    def render(self) -> str:
        """The plan as it is printed: a block per folder, then the arithmetic of the
        run."""
        blocks = [f"{self.name} ({self.type})"]
        if self.outlook:
            blocks += [f"  {line}" for line in self.outlook.head()]
        blocks += map(_folder_lines, self.datasets)
        if self.stream:
            blocks.append(self.stream.lines())
        if self.datasets or (self.stream and self.micro_batches_per_epoch):
            blocks.append(f"  {self._arithmetic()}")
        notes, warnings = self._notes_and_warnings()
        blocks += [f"  {line}" for line in notes]
        if warnings:
            blocks.append(f"  {count_of(len(warnings), 'warning')}:")
            blocks += [f"  {line}" for line in warnings]
        return "\n".join(blocks)

    def summary(self) -> str:
        """What decides whether to start it, in eight lines and its warnings; of a
        process whose images are not counted the whole plan."""
        if not self.datasets:
            return self.render()
        outlook = self.outlook or Outlook()
        model = f": {outlook.model.name}" if outlook.model else ""
        lines = [
            *self._counted(),
            self.fits,
            *outlook.summary(),
            *self._notes_and_warnings()[1],
        ]
        return "\n".join(
            [
                f"{self.name} ({self.type}){model}",
                *(f"  {line}" for line in lines if line),
            ]
        )

    def _counted(self) -> Iterator[str]:
        """A line each: images and repeats of the first folders, captions, steps."""
        parts = [
            f"{_product(folder)} in {folder.folder}"
            + (" (regularisation)" if folder.is_reg else "")
            for folder in self.datasets[:MOST_FOLDERS]
        ]
        if others := self.datasets[MOST_FOLDERS:]:
            parts.append(count_of(len(others), "more folder"))
        line = f"images: {', '.join(parts)}"
        controls = sum((Counter(one.references) for one in self.datasets), Counter())
        if set(controls) - {0}:
            line += f"; control images: {_counts(dict(sorted(controls.items())))}"
        yield line
        if self.first_caption:
            images = sum(folder.images for folder in self.datasets)
            given = images - sum(folder.missing_captions for folder in self.datasets)
            yield f"captions: {given:,} of {images:,}, the first: {self.first_caption}"
        if self.optimizer_steps:
            epochs = _epochs(self.requested_epochs or self.epochs)
            samples = count_of(self.samples_per_epoch, "sample")
            yield f"steps: {self.optimizer_steps:,} ({epochs} of {samples})"

    def _arithmetic(self) -> str:
        """From the images to the steps of the run."""
        terms = " + ".join(_product(folder) for folder in self.datasets)
        samples = count_of(self.samples_per_epoch, "sample")
        if terms:
            samples = f"{terms} = {samples}"
        per_epoch = self.micro_batches_per_epoch / self.accumulation
        steps = f"{_number(per_epoch)} {'step' if per_epoch == 1 else 'steps'}"
        if self.accumulation > 1:
            batches = count_of(self.micro_batches_per_epoch, "batch", "batches")
            steps = f"{batches}, {self.accumulation} for each step: {steps}"
        all_steps = count_of(self.optimizer_steps, "step")
        duration = (
            f"{_epochs(self.requested_epochs)} = {all_steps}"
            if self.requested_epochs
            else f"{all_steps} = {_epochs(self.epochs)}"
        )
        return f"{samples} per epoch in {steps}; {duration}"

    def _notes_and_warnings(self) -> tuple[list[str], list[str]]:
        """The lines after the arithmetic; a warning that appears twice is listed
        once."""
        lines = list(self.notes)
        if self.outlook:
            lines += self.outlook.tail()
        cut_off = map(_cut_off, self.datasets)
        warnings = [line for line in (*cut_off, *lines) if line.startswith(WARNING)]
        notes = [line for line in lines if not line.startswith(WARNING)]
        return notes, list(dict.fromkeys(warnings))


def batch_note(items: Iterable[BucketedSample], batch_size: int) -> str:
    """A warning of a batch size that most micro-batches do not reach, as only images of
    one size share one; empty where they are at least half full on average."""
    uses = Counter[tuple[Size, int]]()
    for item in items:
        uses[shape_of(item)] += item.sample.repeats
    batches = sum(ceil(count / batch_size) for count in uses.values())
    mean = uses.total() / max(1, batches)
    if not uses or 2 * mean >= batch_size:
        return ""
    alike = (
        "one size and as many layers"
        if any(layers for _, layers in uses)
        else "one size"
    )
    most = max(uses.values())
    least = min(count % batch_size or batch_size for count in uses.values())
    sizes = f"{least} to {min(most, batch_size)} images, {_number(mean)} on average"
    why = f"only images of {alike} share one, and the largest of {len(uses)} buckets has {most:,} uses per epoch"
    return f"{WARNING}batch_size {batch_size}: batches have {sizes}: {why}. Lower batch_size, or raise the repeats"


def folder_plans(
    folders: Sequence[FolderInfo], items: Iterable[BucketedSample]
) -> tuple[FolderPlan, ...]:
    """Counts per folder; `items` are those made from the folders' samples."""
    crops_by_folder: dict[tuple[int, str], Crops] = {
        (folder.dataset, folder.folder): {} for folder in folders
    }
    for sample, crop in items:
        crops_by_folder[sample.dataset, sample.folder].setdefault(crop, []).append(
            sample.image
        )
    return tuple(
        _folder_plan(folder, crops_by_folder[folder.dataset, folder.folder])
        for folder in folders
    )


Crops = dict[ResizeCrop, list[str]]
"""Crop -> the image files that are cropped so."""


def _folder_plan(folder: FolderInfo, crops: Crops) -> FolderPlan:
    images = [sample for sample in folder.samples if not sample.flip]
    buckets = Counter[Size]()
    cut_images = 0.0
    for crop, files in crops.items():
        buckets[crop.bucket] += len(files)
        cut_images += _cut_share(crop) * len(files)
    return FolderPlan(
        folder=folder.folder,
        images=len(images),
        repeats=folder.repeats,
        missing_captions=folder.missing_captions,
        captions=_frequencies(len(sample.texts) for sample in images),
        references=_frequencies(len(sample.control_images) for sample in images),
        buckets=tuple(
            BucketCount(*size, count) for size, count in sorted(buckets.items())
        ),
        flips=len(folder.samples) // max(1, len(images)),
        masks=sum(1 for sample in images if sample.mask is not None),
        mask_share=fmean(mask.share for mask in folder.mask_looks)
        if folder.mask_looks
        else None,
        converted=dict(
            Counter(
                image.colours for image in dict.fromkeys(folder.converted)
            ).most_common()
        ),
        is_reg=folder.is_reg,
        has_default=folder.has_default,
        layers=_frequencies(len(sample.layers) for sample in images if sample.layers),
        cut=cut_images / max(1, buckets.total()),
        most_cut=_most_cut(crops),
    )


def _with_text_keys(frequencies: Mapping[int, int]) -> dict[str, int]:
    """The frequencies for JSON, whose keys are text."""
    return {str(number): count for number, count in frequencies.items()}


def _counts(images: Mapping[int, int]) -> str:
    """`3 with 0, 12 with 1`, of {0: 3, 1: 12}."""
    return ", ".join(f"{count} with {number}" for number, count in images.items())


def _frequencies(numbers: Iterable[int]) -> dict[int, int]:
    """Number -> how often it appears, in the order of the numbers."""
    return dict(sorted(Counter(numbers).items()))


def _cut_share(crop: ResizeCrop) -> float:
    """The share of an image that its bucket cuts off."""
    return 1 - prod(crop.bucket) / prod(crop.scaled)


def _most_cut(crops: Crops) -> tuple[tuple[str, float], ...]:
    """(name, share) of the three images whose buckets cut off most; of files with the
    same name the most cut one."""
    worst = sorted(crops, key=_cut_share, reverse=True)[:3]
    shares = {
        os.path.basename(file): _cut_share(crop)
        for crop in reversed(worst)
        for file in reversed(crops[crop][:12])
    }
    return tuple(sorted(shares.items(), key=lambda pair: -pair[1])[:3])


def _folder_lines(folder: FolderPlan) -> str:
    references = _counts(folder.references)
    if set(folder.references) == {0}:
        references = "each image itself" if folder.layers else "none"
    buckets = ", ".join(
        f"{bucket.width}x{bucket.height} ({bucket.images})" for bucket in folder.buckets
    )
    lines = [
        f"  {folder.folder}: {_product(folder)} = {folder.samples:,} samples",
        f"    control images: {references}",
        f"    buckets: {buckets}",
    ]
    cut = _cut_off(folder)
    if cut and not cut.startswith(WARNING):
        lines.append(f"    {cut}")
    if folder.layers:
        lines.append(f"    layers: {_counts(folder.layers)}")
    if max(folder.captions, default=1) > 1:
        several = _counts(folder.captions)
        lines.append(f"    captions: {several}; one is drawn at each use")
    if folder.masks:
        lines.append(f"    {_masks(folder)}")
    if folder.is_reg:
        lines.insert(1, "    regularisation images")
    if folder.missing_captions:
        counted = f"{folder.missing_captions} of {folder.images}"
        without = f"without caption: {counted}"
        if folder.has_default:
            without = f"with 'default_caption': {counted}"
        lines.insert(1, f"    {without}")
    return "\n".join(lines)


def _masks(folder: FolderPlan) -> str:
    """How many images have a mask, and how much of them counts."""
    line = f"masks: {folder.masks} of {folder.images}"
    if folder.mask_share is None:
        return line
    return f"{line}, {folder.mask_share:.1%} of the area counts on average"


def _cut_off(folder: FolderPlan) -> str:
    """A line on how much the buckets cut off; empty where that is less than 1 % of each
    image."""
    shares = [f"{name} {share:.0%}" for name, share in folder.most_cut if share >= 0.01]
    if not shares:
        return ""
    line = f"cropped to the buckets: {folder.cut:.1%} of an image on average, most of {', '.join(shares)}"
    if folder.most_cut[0][1] <= MOST_CUT:
        return line
    return f"{WARNING}{folder.folder}: {line}. run.py lint --preview shows the crops and a resolution that cuts less"


def _product(folder: FolderPlan) -> str:
    """`images x repeats`, and the numbers of sizes and flips when there is more than
    one."""
    sizes = f" x {folder.sizes} sizes" if folder.sizes > 1 else ""
    flips = f" x {folder.flips} flips" if folder.flips > 1 else ""
    return f"{folder.images} x {folder.repeats}{sizes}{flips}"


def _epochs(count: float) -> str:
    """With at most 2 decimals; below a hundredth, the first digit that is not 0."""
    number = _number(count) if count >= 0.01 else f"{count:.1g}"
    return "1 epoch" if number == "1" else f"{number} epochs"


def _number(value: float) -> str:
    """With thousands separators, at most 2 decimals."""
    return f"{value:,.2f}".rstrip("0").rstrip(".")
