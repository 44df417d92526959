"""The process of `best`: measures the saved LoRAs of a run and recommends one.

The model is loaded once, and the LoRAs are exchanged on it. Losses, the drift of
neutral prompts, samples and edits are measured as the section asks for; the results are
printed and written as JSON. The run itself is not changed, except for the file of
`link`. The table of tools (`extensions/tools/__init__.py`) names the process.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain
from math import inf, isfinite, nan
from pathlib import Path
from statistics import fmean

import torch
from PIL import Image
from torch import Tensor

from extensions.tools.best.characters import (
    Table,
    images_of,
    lines_of,
    nearest,
    who_appears,
)
from extensions.tools.best.config import BestConfig
from extensions.tools.best.embedding import Embedder, adherence, distance
from extensions.tools.shared.encoded_run import encoded_run
from extensions.tools.shared.run_job import validation_every
from jobs.process import BaseExtensionProcess
from toolkit.config.sections.dataset import LOSS, ValidationConfig
from toolkit.config.sections.trainer import DiffusionSection
from toolkit.contracts.data import BucketedSample, Size
from toolkit.contracts.model import DiffusionModel, ModelFacts
from toolkit.data.batches.latent_cache import (
    CacheEntry,
    CachePair,
    ItemEncoder,
    fill_texts,
)
from toolkit.data.pixels.images import open_image
from toolkit.data.scan.directory import ScanCache
from toolkit.data.scan.validation_split import (
    ValidationSplit,
    as_measured,
    scan_and_split,
)
from toolkit.errors import RunError, UserError
from toolkit.files.log import StatusLine
from toolkit.files.tensor_cache import TensorCache
from toolkit.files.writing import link, write_json
from toolkit.memory.block_runner import BlockRunner
from toolkit.memory.offload import BlockSwap
from toolkit.models.loading import checked_family
from toolkit.networks.applied import AppliedAdapters, Changes
from toolkit.networks.lora_formats import load_adapter_file
from toolkit.train.drift import drift_metrics
from toolkit.train.other_model import load_other_models
from toolkit.train.paired import (
    CONFIDENCE,
    AsGood,
    LossesByImage,
    as_good_as_the_lowest,
)
from toolkit.train.resumption import trained_images
from toolkit.train.run_reader import NetworkFile
from toolkit.train.sampling import (
    SamplePrompt,
    Sampler,
    caption_prompts,
    deployed,
    edit_prompts,
    sample_prompts,
)
from toolkit.train.survival import Features, coarse_pixels, survival
from toolkit.train.validation import Validator

logger = logging.getLogger(__name__)

BASE = "base model"

_CANNOT_TELL = (
    "no images are held out, and the loss of those of the training is lowest where they are known by heart. Look at "
    "the samples, and take the earliest file that shows what you want. To measure it, train with "
    "'validation: {{fraction: 0.1, every: {every}}}'"
)
"""Why no file of a run without validation is recommended."""

AS_GOOD = 0.01
"""Losses that exceed the lowest by less than this share count as equal."""

NEUTRAL_SIDE = 512
"""Width and height of the images that drift is measured on, in pixels; less where the
run trains on smaller ones."""


@dataclass(frozen=True)
class Measured:
    """The numbers of one LoRA, or of the model without any.

    >>> base = Measured("base model", None, loss=0.5, drift=0.0)
    >>> early = Measured("a_100.safetensors", 100, loss=0.4, drift=0.1)
    >>> recommend([early], base)
    (Measured(file='a_100.safetensors', ...), 'the lowest loss, 0.4000; ...0.5000')
    """

    file: str
    step: int | None
    loss: float
    drift: float
    distance: float | None = None
    adherence: float | None = None
    by_image: LossesByImage = field(default_factory=dict)
    edit_drift: float | None = None
    """Pixels: `drift/px` of the edits (`drift_metrics`); None where none is
    measurable."""

    outside_mask: float | None = None
    survival: dict[str, float] = field(default_factory=dict)
    """Way of `sample.also` -> the survival score in it; empty for the base model."""


class BestProcess(BaseExtensionProcess):
    """Prints a table and a recommendation, and writes both as JSON.

    Example::

        python run.py best output/my_character --samples 2
    """

    section: BestConfig

    def run(self) -> None:
        super().run()
        section, training = self.section, self.section.training()
        bench = _Bench(section, training)
        measured = [bench.measure(BASE, None, None)]
        for file in bench.files:
            numbers = bench.measure(file.path.name, file.step, file.path)
            if isfinite(numbers.loss):
                measured.append(numbers)
            else:
                logger.warning(f"{file.path}: its loss is not finite. It is left out")
        if len(measured) == 1:
            raise RunError(
                f"{section.folder()}: no saved LoRA can be measured: see the lines above."
            )
        candidates = that_drift_less(measured[1:], section.most_drift)
        by_image = [candidate.by_image for candidate in candidates]
        compared = as_good_as_the_lowest(dict(enumerate(by_image)))
        chosen: Measured | None = None
        reason = _CANNOT_TELL.format(every=validation_every(measured[-1].step or 0))
        if bench.is_held_out:
            chosen, reason = recommend(candidates, measured[0], compared)
        beyond = (measured[-1].step or 0) - (chosen.step or 0) if chosen else None
        appears = bench.who_appears(section.folder() / (chosen or measured[-1]).file)
        for line in (*table(measured), *(lines_of(appears) if appears else ())):
            logger.info(line)
        differences = []
        if compared and chosen:
            named = ", ".join(candidates[index].file for index in compared.steps)
            logger.info(
                f"not worse than the lowest loss within the {CONFIDENCE:.0%} interval: {named}"
            )
            for index, difference in compared.differences.items():
                name = candidates[index].file
                row = {"file": name, "as_good": index in compared.steps}
                differences.append(row | asdict(difference))
        if chosen:
            logger.info(f"recommended: {chosen.file}: {reason}")
            logger.info(f"optimizer steps spent beyond it: {beyond}")
        else:
            logger.info(f"cannot tell which file is best: {reason}")
        report = {
            "recommended": chosen.file if chosen else None,
            "reason": reason,
            "measured_on": bench.measured_on,
            "prompts": list(section.prompts),
            "embedder": section.embedder,
            "steps_beyond": beyond,
            "who_appears": appears,
            "compared": differences,
            "files": [asdict(numbers) for numbers in measured],
        }
        write_json(section.output_path(), report)
        if section.link and chosen:
            link(section.folder() / chosen.file, section.best_file())
            logger.info(f"{section.best_file()} is {chosen.file}")


class _Bench:
    """The model of the run, with all that is measured on it."""

    def __init__(self, config: BestConfig, training: DiffusionSection) -> None:
        self._config = config
        self._status = StatusLine()
        family = checked_family(training.model)
        cache = ScanCache.beside(training.training_folder)
        trained_before = partial(trained_images, config.folder())
        _, uses, split = scan_and_split(training, family, cache, trained_before)
        items, trained, self.measured_on = _images(uses, split, config.images)
        self.is_held_out = split is not None
        characters = _characters(training, uses, config) if config.embedder else {}
        logger.info(f"measured on {self.measured_on}")
        self._texts: list[Sequence[CacheEntry]] = []
        model, dataset, device, dtype = encoded_run(
            training, items, config.device, self._status.count, self._texts
        )
        settings = training.validation or ValidationConfig(fraction=0.5)
        self._validator = Validator(model, dataset, settings.timesteps, settings.seed)
        side = min(NEUTRAL_SIDE, min(min(item.crop.bucket) for item in trained))
        self._neutral = self._sampler(
            model, list(_neutral(config, family, side, trained))
        )
        ways = training.deployments()
        prompts = []
        if config.embedder or ways:
            prompts = _prompts(training, family, trained, config)
        in_ways = [
            deployed(prompt, key, way)
            for key, way in ways.items()
            for prompt in prompts
        ]
        self._count = len(prompts)
        self._samples = self._sampler(model, [*prompts, *in_ways])
        self._asked: list[str] = []
        """Character of each prompt of `_cast`."""

        asked: list[SamplePrompt] = []
        for name, of_name in characters.items():
            shown = of_name[: config.samples]
            self._asked += [name] * len(shown)
            asked += caption_prompts(shown, family, config.steps, 1.0)
        self._cast = self._sampler(model, asked)
        edits = _edits(training, family, items, trained, config) if config.edits else []
        self._edits = self._sampler(model, edits)
        fill_texts(self._texts, model, self._status.count)
        self._status.finish()
        keep = family.encoder_parts["vae"] if prompts or edits else ()
        model.unload_encoders(keep=keep)
        self._embedder: Embedder | None = None
        if config.embedder:
            self._embedder = Embedder(config.embedder, config.device, device)
            self._photos_ND = self._embedded(trained)
            self._references = {
                name: self._embedded(of_name[: config.images])
                for name, of_name in characters.items()
            }
        self._read = partial(
            load_adapter_file,
            layers=family.every_linear_layer(training.model.files_folder()),
        )
        self._ways: dict[str, tuple[Changes, float]] = {}
        for key, way in ways.items():
            lora = self._read(Path(way.lora).expanduser()) if way.lora else {}
            self._ways[key] = (lora, way.weight)
        self._others = load_other_models(training, model)
        self.files: list[NetworkFile] = []
        """Files that can be read: a run that broke down may have saved others."""
        beside = [changes for changes, _ in self._ways.values()]
        self._adapters = AppliedAdapters(
            model.network_module, chain(beside, self._readable(config)), device
        )
        model.enable_modulation_cache(BlockSwap)
        BlockRunner(model, device, dtype, "none", training.model.blocks_to_swap)
        self._of_base: list[Tensor] = []
        self._base_features: list[Features] = []

    def _readable(self, config: BestConfig) -> Iterator[Changes]:
        """The changes of the files that can be read, which are noted."""
        for file in config.files():
            try:
                changes = self._read(file.path)
            except UserError as error:
                logger.warning(f"{error} It is left out")
                continue
            self.files.append(file)
            yield changes

    def measure(self, name: str, step: int | None, path: Path | None) -> Measured:
        """The numbers of a file. path: None for the model itself, which has to be
        measured first."""
        self._status.update(name)
        changes: list[tuple[Changes, float]] = [(self._read(path), 1.0)] if path else []
        self._adapters.use(changes)
        losses = self._validator.losses()
        assert losses is not None  # nothing asks it to stop
        by_image = {
            image[:12]: fmean(losses_of_image)
            for image, losses_of_image in self._validator.by_image.items()
        }
        latents = list(map(self._neutral.latents, range(len(self._neutral.prompts))))
        if path is None:
            self._of_base = latents
        pairs = zip(latents, self._of_base, strict=True)
        drift = fmean(float((a - b).norm() / b.norm()) for a, b in pairs)
        edits = self._edits
        drifts = {}
        for at in range(len(edits.prompts)):
            drift_of_edit = edits.drift(at, edits.generate(at))
            if drift_of_edit:
                drifts[at] = drift_of_edit
        numbers = drift_metrics(drifts, "")
        drawn = list(map(self._samples.generate, range(self._count)))
        measured = Measured(
            name,
            step,
            losses[LOSS],
            drift,
            by_image=by_image,
            edit_drift=_finite(numbers.get("px")),
            outside_mask=_finite(numbers.get("outside_mask")),
            survival=self._survival(drawn, changes) if self._ways else {},
        )
        if self._embedder:
            drawn_ND = self._embedder.images(drawn)
            measured = replace(measured, distance=distance(drawn_ND, self._photos_ND))
            if self._embedder.reads_text:
                prompts = self._samples.prompts[: self._count]
                texts_ND = self._embedder.texts([prompt.prompt for prompt in prompts])
                measured = replace(measured, adherence=adherence(drawn_ND, texts_ND))
        self._status.finish()
        return measured

    def who_appears(self, path: Path) -> Table | None:
        """The table of characters for a file; None where there are fewer than two
        characters, or no embedder."""
        if self._embedder is None or not self._asked:
            return None
        self._status.update("characters")
        self._adapters.use([(self._read(path), 1.0)])

        def samples(name: str) -> list[Image.Image]:
            asked = enumerate(self._asked)
            return [self._cast.generate(index) for index, of in asked if of == name]

        judge = nearest(self._references, self._embedder.images)
        table = who_appears(list(self._references), samples, judge)
        self._status.finish()
        return table

    def _embedded(self, items: Sequence[BucketedSample]) -> Tensor:
        assert self._embedder is not None
        return self._embedder.images(
            [open_image(item.sample.image, item.sample.background) for item in items]
        )

    def _survival(
        self, in_many: Sequence[Image.Image], changes: Sequence[tuple[Changes, float]]
    ) -> dict[str, float]:
        """Way of `sample.also` -> the score of the file in use, by the embedder where
        there is one.

        in_many: its samples in many steps. changes: the changes of the file; empty for
        the base model, which comes first and has no score.
        """
        features = [self._features(in_many)]
        prompts = self._samples.prompts
        for key, beside in self._ways.items():
            self._adapters.use([*changes, beside])
            with self._others.using(key):
                images = [
                    self._samples.generate(index)
                    for index, prompt in enumerate(prompts)
                    if prompt.beside == key
                ]
                features.append(self._features(images))
        if not changes:
            self._base_features = features
            return {}
        names = dict.fromkeys(one.deployment for one in prompts if one.deployment)
        many, *few = features
        base_many, *base_few = self._base_features
        ways = zip(names, few, base_few, strict=True)
        scores = {name: survival(many, a, base_many, b) for name, a, b in ways}
        return {name: score for name, score in scores.items() if isfinite(score)}

    def _features(self, images: Sequence[Image.Image]) -> Features:
        if self._embedder is None:
            return coarse_pixels(images)
        return self._embedder.images(images).double().numpy()

    def _sampler(
        self, model: DiffusionModel, prompts: Sequence[SamplePrompt]
    ) -> Sampler:
        memory = CachePair(TensorCache(None), TensorCache(None))
        sampler = Sampler(model, prompts, ItemEncoder(model, torch.float32), memory)
        sampler.encode(self._status.count, self._texts)
        return sampler


def _finite(number: float | None) -> float | None:
    return number if number is not None and isfinite(number) else None


def _images(
    trained: Sequence[BucketedSample], split: ValidationSplit | None, most: int
) -> tuple[list[BucketedSample], list[BucketedSample], str]:
    """Images whose loss is measured, images that were trained on, and a description of
    the former. trained: all uses of the training's images."""
    chosen = list({item.sample.image: item for item in trained}.values())[:most]
    if split:
        held_out = list(split.items)[:most]
        return held_out, chosen, f"{len(held_out)} images that were not trained on"
    plain = [as_measured(item) for item in trained if not any(item.sample.flip)][:most]
    of_training = f"{len(plain)} images of the training"
    return plain, chosen, f"{of_training}, for none are held out (section 'validation')"


def _neutral(
    config: BestConfig, family: ModelFacts, side: int, trained: Sequence[BucketedSample]
) -> Iterator[SamplePrompt]:
    """Prompts that are not related to the training. A model of layers takes the first
    training image apart, because it needs one."""
    size = family.drawable(Size(side, side))
    like = SamplePrompt("", "", size, seed=0, guidance_scale=1.0, steps=config.steps)
    if family.stacks_layers:
        like = caption_prompts(trained[:1], family, config.steps, 1.0)[0]
    for prompt in config.prompts:
        yield replace(like, prompt=prompt)


def _prompts(
    training: DiffusionSection,
    family: ModelFacts,
    trained: Sequence[BucketedSample],
    config: BestConfig,
) -> list[SamplePrompt]:
    """The run's own prompts, or captions with their control images."""
    pictures = training.sample_pictures()
    if pictures:
        return sample_prompts(pictures[: config.samples], training.trigger_word, family)
    return caption_prompts(trained[: config.samples], family, config.steps, 1.0)


def _characters(
    training: DiffusionSection, trained: Sequence[BucketedSample], config: BestConfig
) -> dict[str, list[BucketedSample]]:
    """Name -> its training images; empty where there are fewer than two names. Raises
    UserError for a name of `characters` without images."""
    words = config.characters
    if not words:
        triggers = training.trigger_words()
        words = tuple(word for word in triggers if word != training.trigger_word)
    by_word = images_of(words, trained)
    shown = {word: items for word, items in by_word.items() if items}
    missing = [word for word in by_word if word not in shown]
    if len(config.characters) > 1 and missing:
        raise UserError(
            f"characters: no training image's caption has {missing[0]!r} and none of the others."
        )
    return shown if len(shown) > 1 else {}


def _edits(
    training: DiffusionSection,
    family: ModelFacts,
    measured: Sequence[BucketedSample],
    trained: Sequence[BucketedSample],
    config: BestConfig,
) -> list[SamplePrompt]:
    """The run's own prompts with control images, else captions of the images whose loss
    is measured, or that were trained on."""
    drawn = sample_prompts(training.sample_pictures(), training.trigger_word, family)
    with_control = [one for one in drawn if one.references and not one.layers]
    edits = with_control[: config.edits] or edit_prompts(
        (*measured, *trained), config.edits, family, config.steps, 1.0
    )
    if not edits:
        logger.warning(
            "edits: the run has neither prompts nor images with control images: no drift is measured"
        )
    return edits


def that_drift_less(
    measured: Sequence[Measured], most_drift: float | None
) -> Sequence[Measured]:
    """The files whose edits drift by at most so many pixels; all files where none is
    left, or no limit is given."""
    if most_drift is None:
        return measured
    steady = [one for one in measured if (one.edit_drift or 0.0) <= most_drift]
    return steady or measured


def recommend(
    measured: Sequence[Measured], base: Measured, compared: AsGood | None = None
) -> tuple[Measured, str]:
    """The LoRA to use, and the reason: the earliest one whose loss is not worse than
    the lowest within the interval.

    compared: the comparison of `measured` by index; None: there are too few images for
    it. Then, of the LoRAs whose loss is about as low as the lowest, the one is taken
    whose samples are nearest to the training images, where that was measured, else the
    one that changes other images least.
    """
    lowest = min(measured, key=lambda numbers: numbers.loss)
    most = lowest.loss * (1 + AS_GOOD)
    as_good = [numbers for numbers in measured if numbers.loss <= most]
    of_these = (
        f" among the {len(as_good)} whose loss is within {AS_GOOD:.0%} of the lowest"
    )
    if compared and len(compared.steps) > 1:
        best = measured[compared.earliest]
        difference = compared.differences[compared.earliest]
        reason = (
            f"the earliest of the {len(compared.steps)} whose loss is not worse than the lowest within the interval "
            f"({difference.mean:+.4f}, of which up to {difference.half:.4f} may be chance, {CONFIDENCE:.0%} confidence)"
        )
    elif compared or len(as_good) == 1:
        best = lowest
        reason = f"the lowest loss, {lowest.loss:.4f}"
    elif lowest.distance is not None:
        best = min(as_good, key=lambda numbers: numbers.distance or 0.0)
        nearest = f"samples nearest to the training images ({best.distance:.3f})"
        reason = nearest + of_these
    elif lowest.survival:
        best = max(
            as_good, key=lambda numbers: fmean(numbers.survival.values() or [-inf])
        )
        reason = f"most of it is left in {' and '.join(lowest.survival)}{of_these}"
    else:
        best = min(as_good, key=lambda numbers: numbers.drift)
        reason = f"the least drift ({best.drift:.3f}){of_these}"
    against = f"the base model has {base.loss:.4f}"
    if best.loss >= base.loss:
        against = f"but {against}: on these images no LoRA of the run is better"
    return best, f"{reason}; {against}"


def table(measured: Sequence[Measured]) -> list[str]:
    """The numbers as lines of columns. Columns without a number are left out."""
    titles = ("loss", "drift", "distance", "adherence", "edit_drift", "outside_mask")
    columns = {title: [getattr(row, title) for row in measured] for title in titles}
    columns = {
        title: [_cell(value, 4) for value in values]
        for title, values in columns.items()
        if any(value is not None for value in values)
    }
    for way in dict.fromkeys(chain.from_iterable(row.survival for row in measured)):
        scores = (row.survival.get(way, nan) for row in measured)
        columns[f"left in {way}"] = [_cell(score, 2) for score in scores]
    width = max(len(row.file) for row in measured)
    lines = [f"{'file':{width}} {'step':>8}"]
    lines += [f"{row.file:{width}} {_cell(row.step, 0):>8}" for row in measured]
    for title, cells in columns.items():
        for index, cell in enumerate((title, *cells)):
            lines[index] += f" {cell:>{max(9, len(title))}}"
    return lines


def _cell(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
