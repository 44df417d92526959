"""What a run will do, in numbers: images, repeats, buckets, batches, optimizer steps. No torch, no pixels."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from math import ceil, prod
from pathlib import Path
from statistics import fmean
from typing import Any

from toolkit.config.sections.train import UNTIL_THE_DATA_ENDS
from toolkit.contracts.data import BucketedSample, ResizeCrop, Size
from toolkit.data.batches.epoch_order import shape_of
from toolkit.data.scan.folder import FolderInfo
from toolkit.data.streams.counts import StreamPlan
from toolkit.errors import UserError
from toolkit.files.writing import free_space, readable_size
from toolkit.plan.memory import MemoryEstimate
from toolkit.plan.outlook import Outlook
from toolkit.plan.step_time import RunTime

WARNING = "warning: "
"""Begins the notes that are printed together at the end of a plan."""

MOST_CUT = 0.15
"""Above this share of an image that its bucket cuts off there is a warning."""


@dataclass(frozen=True)
class BucketCount:
    """Images of one folder that train at one size, mirrored ones counted, repeats not. Pixels."""

    width: int
    height: int
    images: int


@dataclass(frozen=True)
class FolderPlan:
    """One folder of images."""

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
    """What files are converted to sRGB from -> how many, control images and masks among them."""

    is_reg: bool = False
    layers: dict[int, int] = field(default_factory=dict)
    """Number of layers -> images with that number."""

    cut: float = 0.0
    """Share of an image that its bucket cuts off, the mean of all."""

    most_cut: tuple[tuple[str, float], ...] = ()
    """Names of the images of which most is cut off, and their shares."""

    has_default: bool = False
    """Whether images without a caption train with `default_caption`."""

    @property
    def sizes(self) -> int:
        """Distinct training sizes asked for; each image is one sample per size."""
        return sum(bucket.images for bucket in self.buckets) // max(1, self.images * self.flips)

    @property
    def samples(self) -> int:
        """Samples this folder gives to one epoch."""
        return self.repeats * sum(bucket.images for bucket in self.buckets)

    def to_json(self) -> dict[str, Any]:
        return {
            "folder": self.folder,
            "images": self.images,
            "repeats": self.repeats,
            "missing_captions": self.missing_captions,
            "has_default_caption": self.has_default,
            "captions": {str(count): images for count, images in self.captions.items()},
            "references": {str(count): images for count, images in self.references.items()},
            "layers": {str(count): images for count, images in self.layers.items()},
            "masks": self.masks,
            "mask_share": self.mask_share,
            "converted": self.converted,
            "buckets": [asdict(bucket) for bucket in self.buckets],
        }


@dataclass(frozen=True)
class SaveSize:
    """Bytes that a save takes on the disk."""

    file: int
    """Bytes of a file, or folder, of weights."""

    state: int
    """Bytes of a state; 0: none is written."""

    def check(self, folder: Path) -> None:
        """Raises UserError when not even one state and one file would fit on the disk of `folder`."""
        needed, free = self.file + self.state, free_space(folder)
        if free < needed:
            raise UserError(
                f"training_folder: {folder} has {readable_size(free)} free, one save of this job takes "
                f"{readable_size(needed)}. Free some space, or choose a folder on another disk."
            )


@dataclass(frozen=True)
class RunPlan:
    """One process of a job, counted."""

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

    notes: tuple[str, ...] = ()
    """Further lines to print: estimates, notes of the scan."""

    memory: MemoryEstimate | None = None
    """The memory estimate of the run, where there is one."""

    stream: StreamPlan | None = None
    """The stream of shards, where the datasets are one."""

    save_size: SaveSize | None = None
    """What one save takes on the disk, where it is known."""

    time: RunTime | None = None
    """How long it takes, where that is known."""

    against_compiling: str = ""
    """Why `train.compile: auto` compiles nothing: it does not pay in so few steps. Empty: it does."""

    outlook: Outlook | None = None
    """For a dry run: the model, disk, time, and what a start does with what is in the run's folder."""

    @property
    def epochs(self) -> int | float:
        """Passes over the data, rounded to 4 places; an int when whole."""
        if not self.micro_batches_per_epoch:
            return 0
        epochs = round(self.optimizer_steps * self.accumulation / self.micro_batches_per_epoch, 4)
        return int(epochs) if epochs == int(epochs) else epochs

    def to_json(self) -> dict[str, Any]:
        """The process's entry in the object that `--dry-run --json` prints."""
        notes, warnings = self._told()
        return {
            "type": self.type,
            "name": self.name,
            "datasets": [folder.to_json() for folder in self.datasets],
            **({"stream": self.stream.to_json()} if self.stream else {}),
            "samples_per_epoch": self.samples_per_epoch,
            "micro_batches_per_epoch": self.micro_batches_per_epoch,
            "optimizer_steps": None if self.optimizer_steps == UNTIL_THE_DATA_ENDS else self.optimizer_steps,
            "epochs": self.epochs or self.requested_epochs,
            **({"memory": self.memory.to_json()} if self.memory else {}),
            **(self.outlook.to_json() if self.outlook else {}),
            "notes": notes,
            "warnings": [line.removeprefix(WARNING) for line in warnings],
        }

    def render(self) -> str:
        """The plan as it is printed: a block per folder, then the arithmetic of the run."""
        blocks = [f"{self.name} ({self.type})"]
        blocks += [f"  {line}" for line in self.outlook.head()] if self.outlook else []
        blocks += map(_folder_lines, self.datasets)
        if self.stream:
            blocks.append(self.stream.lines())
        if self.datasets or (self.stream and self.micro_batches_per_epoch):
            terms = " + ".join(_product(folder) for folder in self.datasets)
            terms = f"{terms} = " if terms else ""
            per_epoch = self.micro_batches_per_epoch / self.accumulation
            if self.requested_epochs:
                duration = f"{_epochs(self.requested_epochs)} = {_count(self.optimizer_steps, 'step')}"
            else:
                duration = f"{_count(self.optimizer_steps, 'step')} = {_epochs(self.epochs)}"
            steps = f"{_number(per_epoch)} step{'s' * (per_epoch != 1)}"
            if self.accumulation > 1:
                batches = _count(self.micro_batches_per_epoch, "batch", "es")
                steps = f"{batches}, {self.accumulation} for each step: {steps}"
            samples = _count(self.samples_per_epoch, "sample")
            blocks.append(f"  {terms}{samples} per epoch in {steps}; {duration}")
        lines, warnings = self._told()
        if warnings:
            lines += [f"{len(warnings)} warning{'s' * (len(warnings) > 1)}:", *warnings]
        return "\n".join([*blocks, *(f"  {line}" for line in lines)])

    def _told(self) -> tuple[list[str], list[str]]:
        """The lines behind the arithmetic: notes, and warnings."""
        cut = (line for folder in self.datasets if (line := _cut_off(folder)).startswith(WARNING))
        lines = [*self.notes, *(self.outlook.tail() if self.outlook else ())]
        warnings = dict.fromkeys([*cut, *(line for line in lines if line.startswith(WARNING))])
        return [line for line in lines if line not in warnings], [*warnings]


def _count(number: int, what: str, plural: str = "s") -> str:
    return f"{number:,} {what}{plural * (number != 1)}"


def batch_note(items: Iterable[BucketedSample], batch_size: int) -> str:
    """A warning of a batch size that most micro-batches do not reach, as only images of one size share one; empty where
    they are at least half full on average."""
    uses = Counter[tuple[Size, int]]()
    for item in items:
        uses[shape_of(item)] += item.sample.repeats
    batches = sum(ceil(count / batch_size) for count in uses.values())
    mean = uses.total() / max(1, batches)
    if not uses or 2 * mean >= batch_size:
        return ""
    alike = "one size and as many layers" if any(layers for _, layers in uses) else "one size"
    most, least = max(uses.values()), min(count % batch_size or batch_size for count in uses.values())
    sizes = f"{least} to {min(most, batch_size)} images, {_number(mean)} on average"
    why = f"only images of {alike} share one, and the largest of {len(uses)} buckets has {most:,} uses per epoch"
    return f"{WARNING}batch_size {batch_size}: batches have {sizes}: {why}. Lower batch_size, or raise the repeats"


def folder_plans(folders: Sequence[FolderInfo], items: Iterable[BucketedSample]) -> tuple[FolderPlan, ...]:
    """Counts per folder; `items` are those made from the folders' samples."""
    crops: dict[tuple[int, str], dict[ResizeCrop, list[str]]] = {(each.dataset, each.folder): {} for each in folders}
    for sample, crop in items:
        crops[sample.dataset, sample.folder].setdefault(crop, []).append(sample.image)
    plans = []
    for folder in folders:
        own, buckets = crops[folder.dataset, folder.folder], Counter[Size]()
        for crop, names in own.items():
            buckets[crop.bucket] += len(names)
        cut = {crop: 1 - prod(crop.bucket) / prod(crop.scaled) for crop in own}
        worst = sorted(own, key=cut.__getitem__, reverse=True)[:3]
        most = {os.path.basename(name): cut[crop] for crop in worst[::-1] for name in own[crop][:12][::-1]}
        images = [sample for sample in folder.samples if not any(sample.flip)]
        plans.append(
            FolderPlan(
                folder=folder.folder,
                images=len(images),
                repeats=folder.repeats,
                missing_captions=folder.missing_captions,
                captions=dict(sorted(Counter(len(sample.texts) for sample in images).items())),
                references=dict(sorted(Counter(len(sample.control_images) for sample in images).items())),
                buckets=tuple(BucketCount(*size, count) for size, count in sorted(buckets.items())),
                flips=len(folder.samples) // max(1, len(images)),
                masks=sum(sample.mask is not None for sample in images),
                mask_share=fmean(look.share for look in folder.mask_looks) if folder.mask_looks else None,
                converted=dict(Counter(image.colours for image in dict.fromkeys(folder.converted)).most_common()),
                is_reg=folder.is_reg,
                has_default=folder.has_default,
                layers=dict(sorted(Counter(len(sample.layers) for sample in images if sample.layers).items())),
                cut=sum(cut[crop] * len(names) for crop, names in own.items()) / max(1, buckets.total()),
                most_cut=tuple(sorted(most.items(), key=lambda pair: -pair[1])[:3]),
            )
        )
    return tuple(plans)


def _folder_lines(folder: FolderPlan) -> str:
    references = ", ".join(f"{images} with {count}" for count, images in folder.references.items())
    if set(folder.references) == {0}:
        references = "each image itself" if folder.layers else "none"
    buckets = ", ".join(f"{b.width}x{b.height} ({b.images})" for b in folder.buckets)
    lines = [
        f"  {folder.folder}: {_product(folder)} = {folder.samples:,} samples",
        f"    control images: {references}",
        f"    buckets: {buckets}",
    ]
    if (cut := _cut_off(folder)) and not cut.startswith(WARNING):
        lines.append(f"    {cut}")
    if folder.layers:
        counts = ", ".join(f"{images} with {count}" for count, images in folder.layers.items())
        lines.append(f"    layers: {counts}")
    if max(folder.captions, default=1) > 1:
        several = ", ".join(f"{images} with {count}" for count, images in folder.captions.items())
        lines.append(f"    captions: {several}; one is drawn at each use")
    if folder.masks:
        lines.append(f"    {_masks(folder)}")
    if folder.is_reg:
        lines.insert(1, "    regularisation images")
    if folder.missing_captions:
        count = f"{folder.missing_captions} of {folder.images}"
        told = f"    with 'default_caption': {count}" if folder.has_default else f"    without caption: {count}"
        lines.insert(1, told)
    return "\n".join(lines)


def _masks(folder: FolderPlan) -> str:
    """How many images have a mask, and how much of them counts."""
    line = f"masks: {folder.masks} of {folder.images}"
    if folder.mask_share is None:
        return line
    return f"{line}, {folder.mask_share:.1%} of the area counts on average"


def _cut_off(folder: FolderPlan) -> str:
    """How much the buckets cut off; empty where that is less than 1 % of each image."""
    shares = [f"{name} {share:.0%}" for name, share in folder.most_cut if share >= 0.01]
    if not shares:
        return ""
    line = f"cropped to the buckets: {folder.cut:.1%} of an image on average, most of {', '.join(shares)}"
    if folder.most_cut[0][1] <= MOST_CUT:
        return line
    return f"{WARNING}{folder.folder}: {line}. run.py lint --preview shows the crops and a resolution that cuts less"


def _product(folder: FolderPlan) -> str:
    """`images x repeats`, and the numbers of sizes and flips when there is more than one."""
    sizes = f" x {folder.sizes} sizes" if folder.sizes > 1 else ""
    flips = f" x {folder.flips} flips" if folder.flips > 1 else ""
    return f"{folder.images} x {folder.repeats}{sizes}{flips}"


def _epochs(count: float) -> str:
    """With at most 2 decimals; of less than a hundredth, the first digit that is not 0."""
    number = _number(count) if count >= 0.01 else f"{count:.1g}"
    return f"{number} epoch{'s' * (number != '1')}"


def _number(value: float) -> str:
    """With thousands separators, at most 2 decimals."""
    text = f"{value:,.2f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
