"""Reads the datasets that the checks examine: every image as it would be trained.

The pixels of an image are measured once, by a few threads, and only a few numbers per
image are kept, so that memory does not grow with the dataset. This module judges
nothing: `checks` does. Files that a training would refuse become mistakes of the
dataset.

`process` reads the datasets of a job or a folder. `checks` and `preview` take the
items.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy
from PIL import Image

from toolkit.config.reading.loader import load_job
from toolkit.config.sections.dataset import DatasetConfig, Rectangle, area_of
from toolkit.config.sections.trainer import ImageTrainingSection
from toolkit.contracts.data import BucketedSample, ResizeCrop, Sample
from toolkit.data.pixels.alignment import LARGEST, Alignment, measure, same_shape
from toolkit.data.pixels.images import (
    ImageError,
    image_size,
    load_alpha,
    open_image,
    pixel_mode,
    resize_cover_crop,
)
from toolkit.data.scan.captions import inject_trigger
from toolkit.data.scan.directory import ScanCache
from toolkit.data.scan.folder import DatasetScan, find_images, scan_datasets
from toolkit.data.scan.items import SIZE_MULTIPLE, make_items, scan_items
from toolkit.data.scan.validation_split import split_validation
from toolkit.data.scan.words import WordFinding, word_findings
from toolkit.errors import DataErrors, Diagnostic, RunError, UserError
from toolkit.extension import discover
from toolkit.files.archives import archive_in
from toolkit.files.writing import find_config
from toolkit.models.families import ModelFamily, family_for
from toolkit.system.read_ahead import thread_map

if TYPE_CHECKING:
    from extensions.tools.lint.config import LintConfig

COMPARED_SIDE = 64
"""Pixels of a side at which an image is compared with its references."""

AS_SHARP = 1.65
"""Up to this ratio of their sharpness, at four times `COMPARED_SIDE`, one image may be
the other saved again."""

SMALL_SIDE = 32
"""Pixels of a side at which images are compared with each other."""

SOFT = 0.5
"""Below this detail it is asked whether an image was enlarged."""

AT_ONCE = 4
"""Images of a portion that a thread takes."""

PromptError = Callable[[Sample, ResizeCrop], str | None]


class Look(NamedTuple):
    """Measures of the pixels of an image.

    Example::

        measured = look(open_image("a.png"), crop)
        is_soft = measured.detail < SOFT
    """

    mode: str
    """As the file holds them, in Pillow's words."""

    transparent: float
    """Share of the pixels that are not opaque."""

    bits: tuple[int, int]
    """Difference hashes along rows and columns, 64 bits each."""

    sharpness: float
    """Variance of the Laplacian of the crop."""

    detail: float
    """The loss by halving the crop relative to the loss by halving it again, the least
    of three such octaves; infinity for a flat crop."""

    resampled: bool
    """Whether a soft image has the traces of an enlargement."""

    small: numpy.ndarray
    """[S, S, 3] uint8, S = `SMALL_SIDE`: to compare it with others."""

    notes: tuple[str, ...] = ()
    """What `open_image` remarks, such as a colour profile that is not used."""


class Reference(NamedTuple):
    """Measures of a control image against its image.

    Example::

        for reference in item.references:
            if reference.difference <= config.reference_difference:
                print(f"{reference.path} is identical to {item.sample.image}")
    """

    path: str
    aspect: float
    """Width through height."""

    bits: tuple[int, int]
    difference: int
    """Largest difference of a colour to the image, both at `COMPARED_SIDE`, beyond what
    a shift of a pixel explains; 255 where one is much sharper, as in pairs that
    restore."""

    alignment: Alignment | None = None
    """How the image is aligned with the control image: right and down, larger and
    clockwise are positive. None: it was not measured, or the shapes differ."""


@dataclass(frozen=True)
class Item:
    """An image with its crops and control images, and its measures.

    Example::

        names = [item.image for item in data.items if not item.held_out]
    """

    sample: Sample
    crops: tuple[ResizeCrop, ...]
    resolution: int | Rectangle
    """The smallest resolution of its dataset."""

    held_out: bool
    """Whether it is used for the validation only."""

    is_reg: bool
    look: Look
    references: tuple[Reference, ...]
    written: str | None = None
    """The caption before the trigger word is put in front; None where only the final
    caption is known."""

    @property
    def image(self) -> str:
        return self.sample.image

    @property
    def texts(self) -> tuple[str, ...]:
        """The captions as they are written, or as they are trained where only those are
        known."""
        return self.sample.texts if self.written is None else (self.written,)


@dataclass
class Dataset:
    """The images of one process of a job, or of a folder.

    Example::

        for data in read_datasets(config, progress):
            for finding in run_checks(data, config):
                print(finding.place, finding.message)
    """

    name: str
    multiple: int = SIZE_MULTIPLE
    """Pixels of which the sides of its buckets are multiples."""

    items: list[Item] = field(default_factory=list)
    mistakes: list[Diagnostic] = field(default_factory=list)
    """Files that a training would refuse."""

    scan: DatasetScan = field(default_factory=lambda: DatasetScan((), ()))
    """The findings of the scan, which `checks` reports as they are."""

    trigger: str = ""
    prompts: tuple[str, ...] = ()
    """The sample prompts of the job."""

    keeps_alpha: bool = False
    """Whether the model has transparency, and is trained on it."""

    prompt_error: PromptError | None = None
    """Why a model has no room for a caption; None where no model is known."""

    measures_shift: bool = True
    """Whether `Reference.alignment` is measured, which takes most of the time of a
    pair."""

    @property
    def place(self) -> str:
        """The folder of the first image, for findings that concern all captions."""
        return self.items[0].sample.folder if self.items else self.name

    @cached_property
    def words(self) -> tuple[WordFinding, ...]:
        """What the words of captions and prompts would teach wrongly."""
        items = (item for item in self.items if not (item.is_reg or item.held_out))
        samples = [item.sample for item in items]
        return tuple(word_findings(samples, self.prompts, self.trigger))


def read_datasets(
    config: LintConfig, progress: Callable[[int, int], None]
) -> Iterator[Dataset]:
    """The datasets of a job, or of a folder. Datasets that several processes share are
    read once. progress: called with the number of images that are done and their total.
    Raises UserError where there are none."""
    measures_shift = "pair_shift" not in config.skip
    if Path(config.path).expanduser().is_dir():
        data = Dataset(config.path, trigger=config.trigger_word)
        data.measures_shift = measures_shift
        _of_folder(config, data, progress)
        yield data
        return
    job = load_job(find_config(config.path), discover().find_config)
    sections = [
        entry.section
        for entry in job.processes
        if isinstance(entry.section, ImageTrainingSection)
    ]
    if not sections:
        raise UserError(
            f"{config.path}: no process of this job has datasets. Give a training job, or a folder."
        )
    seen: list[tuple[Any, int | None]] = []
    for section in sections:
        what = (section.datasets, section.validation, section.trigger_word)
        multiple = _size_multiple(section)
        if any(what == other and multiple in (size, None) for other, size in seen):
            continue
        seen.append((what, multiple))
        if section.streamed:
            raise UserError(
                f"{config.path}: datasets[0].url: a stream has no files to check. Give folders."
            )
        data = Dataset(section.name or job.name, measures_shift=measures_shift)
        _of_section(section, data, progress)
        yield data


def _of_folder(
    config: LintConfig, data: Dataset, progress: Callable[[int, int], None]
) -> None:
    """Fills `data`."""
    settings = DatasetConfig(
        folder_path=config.path,
        control_path=config.control_path,
        control_suffix=config.control_suffix,
        image_suffix=config.image_suffix,
        resolution=(config.resolution,),
        default_caption=config.default_caption,
    )
    trigger = config.trigger_word
    data.scan = scan_datasets([settings], trigger or None, forgiven=data.mistakes)
    items = make_items(data.scan.samples, lambda _: settings.resolution, SIZE_MULTIPLE)
    _fill(data, items, (), lambda _: settings, progress)
    if not data.items and not data.scan.folders:
        raise DataErrors(data.mistakes)
    if trigger:
        captions = {image.path: image.caption for image in find_images(settings)[0]}
        for index, item in enumerate(data.items):
            caption = captions[item.image] or config.default_caption
            if len(item.sample.texts) > 1:
                caption = caption.splitlines()[0]
            written = inject_trigger(caption, trigger, add=False).strip()
            data.items[index] = replace(item, written=written)


def _of_section(
    section: ImageTrainingSection, data: Dataset, progress: Callable[[int, int], None]
) -> None:
    """Fills `data`."""
    for dataset in section.datasets:
        folder = dataset.folder_path
        is_there = Path(folder).expanduser().is_dir() or archive_in(folder)
        if not is_there:
            raise UserError(
                f"{folder}: is not there yet. Run the process that writes it first, and check that folder."
            )
    multiple = data.multiple = _size_multiple(section) or SIZE_MULTIPLE
    cache = ScanCache.beside(section.training_folder)
    family = _family(section)
    data.scan, items, split = split_validation(
        section,
        *scan_items(section, multiple, cache, data.mistakes),
        multiple,
        lambda count, _: f"{count} images",
        data.mistakes,
    )
    held_out = None
    if split and not split.from_training and section.validation:
        held_out = section.validation.dataset(section.datasets)
    data.trigger = section.trigger_word
    # An autoencoder has no prompts.
    pictures: Any = getattr(section, "sample_pictures", tuple)()
    data.prompts = tuple(item.prompt for item in pictures)
    data.keeps_alpha = family is not None and family.pixel_channels == 4
    data.prompt_error = _prompt_error(section, family)
    _fill(
        data,
        items,
        split.items if split else (),
        lambda sample: section.datasets[sample.dataset],
        progress,
        held_out,
    )


def _size_multiple(section: ImageTrainingSection) -> int | None:
    """Multiple of the sides of a bucket, in pixels. None: an earlier process of the job
    writes the model, so it is not known."""
    model: Any = getattr(section, "model", None)
    if not hasattr(model, "latent_scale"):
        family = _family(section)
        return family.size_multiple if family else None
    with suppress(UserError, RunError):
        return int(model.latent_scale())  # an autoencoder
    return None


def _family(section: ImageTrainingSection) -> ModelFamily | None:
    """The family of the section's model. None for an autoencoder, and for a model that
    an earlier process of the job writes."""
    model: Any = getattr(section, "model", None)
    if not hasattr(model, "latent_scale"):
        with suppress(UserError, RunError, AttributeError):
            return model.family() if hasattr(model, "family") else family_for(model)
    return None


def _prompt_error(
    section: ImageTrainingSection, family: ModelFamily | None
) -> PromptError | None:
    """The check of captions by the model's tokenizer. None where the model's folder is
    not on this disk."""
    model: Any = getattr(section, "model", None)
    if family is None or not model.files_folder().is_dir():
        return None

    def error(sample: Sample, crop: ResizeCrop) -> str | None:
        if len(sample.caption) <= family.sure_prompt:
            return None
        sizes = [image_size(path) for path in sample.control_images]
        return family.prompt_error(model, sample.caption, crop.bucket, sizes)

    return error


def _fill(
    data: Dataset,
    trained: Sequence[BucketedSample],
    held_out: Sequence[BucketedSample],
    settings: Callable[[Sample], DatasetConfig],
    progress: Callable[[int, int], None],
    held_out_settings: DatasetConfig | None = None,
) -> None:
    """Measures the images. settings: gives the dataset of a sample. held_out_settings:
    the dataset of held-out images that have a separate folder."""
    crops: dict[tuple[str, bool], tuple[Sample, list[ResizeCrop]]] = {}
    for is_held_out, bucketed in ((False, trained), (True, held_out)):
        for sample, crop in bucketed:
            # Mirrored samples are the same files.
            if not sample.flip:
                key = (sample.image, is_held_out)
                crops.setdefault(key, (sample, []))[1].append(crop)
    work = [(*use, is_held_out) for (_, is_held_out), use in crops.items()]
    regularisation = {folder.folder for folder in data.scan.folders if folder.is_reg}
    progress(0, len(work))
    measured = thread_map(
        lambda task: _measured(task[0], task[1][0], data.measures_shift), work, AT_ONCE
    )
    for done, ((sample, sizes, is_held_out), result) in enumerate(
        zip(work, measured, strict=True), 1
    ):
        progress(done, len(work))
        if isinstance(result, ImageError):
            data.mistakes.append(Diagnostic((sample.image,), result.reason))
            continue
        of = (
            held_out_settings if held_out_settings and is_held_out else settings(sample)
        )
        smallest = min(of.resolution, key=area_of)
        is_reg = not is_held_out and sample.folder in regularisation
        crops_of_image = tuple(sizes)
        data.items.append(
            Item(sample, crops_of_image, smallest, is_held_out, is_reg, *result)
        )


# ------------------------------------------------------------ pixels


def _measured(
    sample: Sample, crop: ResizeCrop, shift: bool
) -> tuple[Look, tuple[Reference, ...]] | ImageError:
    try:
        notes = list[str]()
        image = open_image(sample.image, sample.background, notes.append)
        references = tuple(
            _reference(path, sample.background, image, shift)
            for path in sample.control_images
        )
        mode, can_be_clear = pixel_mode(sample.image)
        clear = 0.0
        if can_be_clear:
            clear = float((numpy.asarray(load_alpha(sample.image)) < 255).mean())
        return look(image, crop, mode, clear, tuple(notes)), references
    except ImageError as error:
        return error


def look(
    image: Image.Image,
    crop: ResizeCrop,
    mode: str = "RGB",
    transparent: float = 0.0,
    notes: tuple[str, ...] = (),
) -> Look:
    """Measures a decoded image, of which `crop` is trained."""
    grey = resize_cover_crop(image, crop).convert("L")
    fine = detail(grey)
    return Look(
        mode,
        transparent,
        difference_hash(image),
        sharpness(grey),
        fine,
        resampled=fine < SOFT and is_resampled(image.convert("L")),
        small=_resized(image, SMALL_SIDE),
        notes=notes,
    )


def _reference(
    path: str, background: str, target: Image.Image, shift: bool
) -> Reference:
    image = open_image(
        path, background, at_least=LARGEST if shift else 4 * COMPARED_SIDE
    )
    a, b = (_resized(picture, COMPARED_SIDE) for picture in (image, target))
    beyond = (
        numpy.abs(a.astype(numpy.int16) - b)
        - numpy.maximum(_spread(a), _spread(b)) // 3
    )
    ratio_of_sharpness = _fine_sharpness(image) / _fine_sharpness(target)
    is_as_sharp = 1 / AS_SHARP < ratio_of_sharpness < AS_SHARP
    alignment = None
    if shift and same_shape(target.size, image.size):
        alignment = measure(target, image).inverse()
    return Reference(
        path,
        image.width / image.height,
        difference_hash(image),
        max(0, int(beyond.max())) if is_as_sharp else 255,
        alignment,
    )


def _fine_sharpness(image: Image.Image) -> float:
    grey = _resized(image.convert("L"), 4 * COMPARED_SIDE)
    return sharpness(Image.fromarray(grey)) + 1


def _resized(image: Image.Image, side: int) -> numpy.ndarray:
    return numpy.asarray(image.resize((side, side), Image.Resampling.BOX))


def _spread(small: numpy.ndarray) -> numpy.ndarray:
    """Largest less smallest value of the 3 x 3 pixels around each, as int16."""
    padded = numpy.pad(small.astype(numpy.int16), ((1, 1), (1, 1), (0, 0)), "edge")
    around = numpy.lib.stride_tricks.sliding_window_view(padded, (3, 3), (0, 1))
    spread: numpy.ndarray = around.max((-2, -1)) - around.min((-2, -1))
    return spread


def difference_hash(image: Image.Image) -> tuple[int, int]:
    """128 bits that stay the same when an image is resized, compressed or made a little
    brighter. They say whether each of 8 x 8 averages is darker than the next one of its
    row, and of its column.

    Source: the dHash of N. Krawetz, "Kind of Like That" (hackerfactor.com, 2013), along
    both axes.

    >>> difference_hash(Image.new("L", (64, 64), 128))
    (0, 0)
    """
    grey = image.convert("L")
    rows = numpy.asarray(grey.resize((9, 8), Image.Resampling.BOX), dtype=numpy.int16)
    columns = numpy.asarray(
        grey.resize((8, 9), Image.Resampling.BOX), dtype=numpy.int16
    )
    return (
        _as_number(rows[:, 1:] > rows[:, :-1]),
        _as_number(columns[1:] > columns[:-1]),
    )


def _as_number(bits: numpy.ndarray) -> int:
    return int.from_bytes(numpy.packbits(bits).tobytes(), "big")


def sharpness(grey: Image.Image) -> float:
    """Variance of the Laplacian, of grey values 0 to 255. Source: Pech-Pacheco et al.,
    "Diatom autofocusing in brightfield microscopy", ICPR 2000, LAPV."""
    x = numpy.asarray(grey, dtype=numpy.float32)
    if min(x.shape) < 3:
        return 0.0
    laplacian = (
        x[:-2, 1:-1] + x[2:, 1:-1] + x[1:-1, :-2] + x[1:-1, 2:] - 4 * x[1:-1, 1:-1]
    )
    return float(laplacian.var())


def detail(grey: Image.Image) -> float:
    """The detail of an octave relative to the next coarser one: `Look.detail`."""
    losses = []
    for _ in range(4):
        lost, grey = _lost_by_shrinking(grey, 2)
        losses.append(lost)
    pairs = itertools.pairwise(losses)
    ratios = (finer / coarser for finer, coarser in pairs if coarser > 0.25)
    return min(ratios, default=math.inf)


def _lost_by_shrinking(grey: Image.Image, factor: float) -> tuple[float, Image.Image]:
    """Root mean square of the loss, in grey values, and the smaller image."""
    size = max(1, round(grey.width / factor)), max(1, round(grey.height / factor))
    small = grey.resize(size, Image.Resampling.LANCZOS)
    back = small.resize(grey.size, Image.Resampling.LANCZOS)
    lost = numpy.asarray(grey, dtype=numpy.float32) - numpy.asarray(
        back, dtype=numpy.float32
    )
    return float(numpy.sqrt((lost * lost).mean())), small


def is_resampled(grey: Image.Image) -> bool:
    """Whether an image was enlarged, rather than blurred. An enlargement leaves one of
    two traces:

    - Interpolated pixels are smoother between the old pixels than on them, with the
      period of the old grid. Source: Gallagher, "Detection of linear and cubic
      interpolation in JPEG compressed images", CRV 2005.
    - Where the factor is a whole number, which leaves no such period for 2, shrinking
      by it loses less than by factors around it.
    """
    width, height = (min(768, side) for side in grey.size)
    left, top = (grey.width - width) // 2, (grey.height - height) // 2
    grey = grey.crop((left, top, left + width, top + height))
    if min(grey.size) < 64:
        return False
    pixels = numpy.asarray(grey, dtype=numpy.float32)
    if max(_period(pixels), _period(pixels.T)) > 10:
        return True
    lost = {factor: _lost_at(grey, factor) for factor in (1.75, 2, 2.5, 3, 3.5, 4, 5)}
    dips = [
        (lost[below] + lost[above]) / 2 - lost[at]
        for below, at, above in ((1.75, 2, 2.5), (2.5, 3, 3.5), (3.5, 4, 5))
    ]
    return max(dips) > 0.2


def _lost_at(grey: Image.Image, factor: float) -> float:
    """Logarithm of the loss by shrinking by a factor, relative to the detail in the
    next half of an octave."""
    lost, small = _lost_by_shrinking(grey, factor)
    return math.log((lost + 0.3) / (_lost_by_shrinking(small, 1.5)[0] + 0.3))


def _period(pixels: numpy.ndarray) -> float:
    """How far the strongest period of the columns' second differences stands out. The
    periods of JPEG's blocks are left out."""
    count = (pixels.shape[1] - 2) // 8 * 8
    curved = numpy.abs(2 * pixels[:, 1:-1] - pixels[:, :-2] - pixels[:, 2:])[:, :count]
    columns = numpy.log(curved.mean(0) + 0.05)
    columns -= numpy.convolve(numpy.pad(columns, 3, "edge"), numpy.ones(7) / 7, "valid")
    strength = numpy.abs(numpy.fft.rfft(columns * numpy.hanning(count)))
    first = round(0.15 * count)
    eighth = count // 8  # below are shapes of the image
    usual = numpy.median(strength[first:]) + 1e-9
    blocks = max(
        strength[eighth - 1 : eighth + 2].max(),
        strength[3 * eighth - 1 : 3 * eighth + 2].max(),
    )
    # At the multiples 2 and 4 an enlargement is stronger than the blocks are at 1 and 3.
    for multiple in (1, 2, 3, 4):
        near = slice(max(0, multiple * eighth - 2), multiple * eighth + 3)
        if multiple % 2:
            strength[near] = 0
        else:
            strength[near] = numpy.maximum(0, strength[near] - 1.5 * blocks)
    return float(strength[first:].max() / usual)
