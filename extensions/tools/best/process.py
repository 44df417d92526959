"""Measures the saved LoRAs of a run: the model is loaded once, and the LoRAs are exchanged on it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from extensions.tools.best.config import BestConfig
from extensions.tools.best.embedding import Embedder, adherence, distance
from extensions.tools.shared.applied import AppliedAdapters
from jobs.process import BaseExtensionProcess
from toolkit.config.dataset import LOSS, ValidationConfig
from toolkit.config.sections import DiffusionSection
from toolkit.data.cache import TensorCache
from toolkit.data.images import open_image
from toolkit.data.latent_cache import CachePair, CacheStores, ItemEncoder, encode_items
from toolkit.data.scan_cache import ScanCache
from toolkit.data.types import BucketedSample, Size
from toolkit.data.validation_split import as_measured, scan_and_split
from toolkit.files.log import StatusLine
from toolkit.files.writing import link, write_json
from toolkit.memory.block_runner import BlockRunner
from toolkit.memory.offload import BlockSwap
from toolkit.models.families import model_bytes
from toolkit.models.interface import DiffusionModel, ModelFacts
from toolkit.models.loading import checked_family
from toolkit.networks.lora_formats import load_adapter_file
from toolkit.system.device import DTYPES, check_device, pick_device, use_device
from toolkit.train.base_model import load_base_model
from toolkit.train.sampling import SamplePrompt, Sampler, sample_prompts
from toolkit.train.validation import Validator

logger = logging.getLogger(__name__)

BASE = "base model"

AS_GOOD = 0.01
"""Losses that are higher than the lowest by less than this share are taken for equal."""

NEUTRAL_SIDE = 512
"""Width and height of the images that drift is measured on, in pixels; less where the run trains on smaller ones."""


@dataclass(frozen=True)
class Measured:
    """The numbers of one LoRA, or of the model without any."""

    file: str
    step: int | None
    loss: float
    drift: float
    distance: float | None = None
    adherence: float | None = None


class BestProcess(BaseExtensionProcess):
    """Prints a table and a recommendation, and writes both as JSON."""

    section: BestConfig

    def run(self) -> None:
        super().run()
        section, training = self.section, self.section.training()
        bench = _Bench(section, training)
        measured = [bench.measure(BASE, None, None)]
        for file in section.files():
            measured.append(bench.measure(file.path.name, file.step, file.path))
        best, reason = recommend(measured[1:], measured[0])
        for line in table(measured):
            logger.info(line)
        logger.info(f"recommended: {best.file}: {reason}")
        report = {
            "recommended": best.file,
            "reason": reason,
            "measured_on": bench.measured_on,
            "prompts": list(section.prompts),
            "embedder": section.embedder,
            "files": [asdict(each) for each in measured],
        }
        write_json(section.output_path(), report)
        if section.link:
            link(section.folder() / best.file, section.best_file())
            logger.info(f"{section.best_file()} is {best.file}")


class _Bench:
    """The model of the run, with all that is measured on it."""

    def __init__(self, config: BestConfig, training: DiffusionSection) -> None:
        self._config, self._status = config, StatusLine()
        family = checked_family(training.model)
        check_device(config.device, model_bytes(training.model))
        device, dtype = use_device(pick_device(config.device)), DTYPES[training.train.dtype]
        items, trained, self.measured_on = _images(training, family, config.images)
        logger.info(f"measured on {self.measured_on}")
        model = load_base_model(training.model, device, dtype, training_folder=training.training_folder)
        stores = CacheStores(Path(training.training_folder).expanduser()).on_disk
        dataset = encode_items(items, model, lambda _: stores, dtype, self._progress)
        settings = training.validation or ValidationConfig(fraction=0.5)
        self._validator = Validator(model, dataset, settings.timesteps, settings.seed)
        side = min(NEUTRAL_SIDE, min(min(item.crop.bucket) for item in trained))
        self._neutral = self._sampler(model, list(_neutral(config, family, side)))
        prompts = _prompts(training, family, trained, config) if config.embedder else []
        self._samples = self._sampler(model, prompts)
        model.unload_encoders(keep=family.encoder_parts["vae"] if prompts else ())
        self._embedder = Embedder(config.embedder, config.device, device) if config.embedder else None
        if self._embedder:
            photos = [open_image(item.sample.image, item.sample.background) for item in trained]
            self._photos_ND = self._embedder.images(photos)
        self._read = partial(load_adapter_file, layers=family.every_linear_layer(training.model.files_folder()))
        files = (self._read(file.path) for file in config.files())
        self._adapters = AppliedAdapters(model.network_module, files, device)
        model.enable_modulation_cache(BlockSwap)
        BlockRunner(model, device, dtype, "none", training.model.blocks_to_swap)
        self._of_base: list[Tensor] = []

    def measure(self, name: str, step: int | None, path: Path | None) -> Measured:
        """The numbers of a file; of the model itself for None, which has to come first."""
        self._status.update(name)
        self._adapters.use([(self._read(path), 1.0)] if path else [])
        losses = self._validator.losses()
        assert losses is not None  # nothing asks it to stop
        latents = [self._neutral.latents(index) for index in range(len(self._neutral.prompts))]
        if path is None:
            self._of_base = latents
        drift = fmean(float((a - b).norm() / b.norm()) for a, b in zip(latents, self._of_base, strict=True))
        if self._embedder is None:
            self._status.finish()
            return Measured(name, step, losses[LOSS], drift)
        drawn = [self._samples.generate(index) for index in range(len(self._samples.prompts))]
        drawn_ND = self._embedder.images(drawn)
        said = [prompt.prompt for prompt in self._samples.prompts]
        heard = adherence(drawn_ND, self._embedder.texts(said)) if self._embedder.reads_text else None
        self._status.finish()
        return Measured(name, step, losses[LOSS], drift, distance(drawn_ND, self._photos_ND), heard)

    def _sampler(self, model: DiffusionModel, prompts: Sequence[SamplePrompt]) -> Sampler:
        memory = CachePair(TensorCache(None), TensorCache(None))
        sampler = Sampler(model, prompts, ItemEncoder(model, torch.float32), memory)
        sampler.encode(self._progress)
        self._status.finish()
        return sampler

    def _progress(self, what: str, done: int, total: int) -> None:
        self._status.update(f"{what} {done}/{total}")


def _images(
    training: DiffusionSection, family: ModelFacts, most: int
) -> tuple[list[BucketedSample], list[BucketedSample], str]:
    """Images whose loss is measured; images that were trained on; what the former are, in words."""
    _, trained, split = scan_and_split(training, family, ScanCache.beside(training.training_folder))
    chosen = list({item.sample.image: item for item in trained}.values())[:most]
    if split:
        held_out = list(split.items)[:most]
        return held_out, chosen, f"{len(held_out)} images that were not trained on"
    plain = [as_measured(item) for item in trained if not any(item.sample.flip)][:most]
    return plain, chosen, f"{len(plain)} images of the training, for none are held out (section 'validation')"


def _neutral(config: BestConfig, family: ModelFacts, side: int) -> Iterator[SamplePrompt]:
    size = family.drawable(Size(side, side))
    for prompt in config.prompts:
        yield SamplePrompt(prompt, "", size, seed=0, guidance_scale=1.0, steps=config.steps)


def _prompts(
    training: DiffusionSection, family: ModelFacts, trained: Sequence[BucketedSample], config: BestConfig
) -> list[SamplePrompt]:
    """The run's own prompts, or captions with their references."""
    if pictures := training.sample_pictures():
        return sample_prompts(pictures[: config.samples], training.trigger_word, family)
    return [
        SamplePrompt(
            item.sample.caption,
            "",
            family.drawable(item.crop.bucket),
            seed=index,
            guidance_scale=1.0,
            steps=config.steps,
            references=tuple(map(Path, item.sample.control_images)),
        )
        for index, item in enumerate(trained[: config.samples])
    ]


def recommend(measured: Sequence[Measured], base: Measured) -> tuple[Measured, str]:
    """The LoRA to use, and why: of those whose loss is the lowest, or as good, the one whose samples are nearest to the
    training images where that was measured, else the one that changes other images least."""
    lowest = min(measured, key=lambda each: each.loss)
    as_good = [each for each in measured if each.loss <= lowest.loss * (1 + AS_GOOD)]
    of_these = f" among the {len(as_good)} whose loss is within {AS_GOOD:.0%} of the lowest" if len(as_good) > 1 else ""
    if len(as_good) == 1:
        best, reason = lowest, f"the lowest loss, {lowest.loss:.4f}"
    elif lowest.distance is not None:
        best = min(as_good, key=lambda each: each.distance or 0.0)
        reason = f"samples nearest to the training images ({best.distance:.3f}){of_these}"
    else:
        best = min(as_good, key=lambda each: each.drift)
        reason = f"the least drift ({best.drift:.3f}){of_these}"
    if best.loss < base.loss:
        return best, f"{reason}; the base model has {base.loss:.4f}"
    return best, f"{reason}; but the base model has {base.loss:.4f}: on these images no LoRA of the run is better"


def table(measured: Sequence[Measured]) -> list[str]:
    """Lines of columns; those that nothing was measured for are left out."""
    titles = ("loss", "drift", "distance", "adherence")
    shown = [title for title in titles if getattr(measured[0], title) is not None]
    width = max(len(each.file) for each in measured)
    lines = [f"{'file':{width}} {'step':>8} " + " ".join(f"{title:>9}" for title in shown)]
    for each in measured:
        step = "" if each.step is None else str(each.step)
        numbers = " ".join(f"{getattr(each, title):>9.4f}" for title in shown)
        lines.append(f"{each.file:{width}} {step:>8} {numbers}")
    return lines
