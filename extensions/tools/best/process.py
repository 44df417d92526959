"""The process of `best`: measures the saved LoRAs of a run and recommends the one of the
lowest loss on images that were held out.

The model is loaded once, and the LoRAs are exchanged on it. The results are printed and
written as JSON. The run itself is not changed, except for the file of `link`. The table
of tools (`extensions/tools/__init__.py`) names the process.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict, dataclass
from functools import partial
from math import isfinite
from typing import Any

from extensions.tools.best.config import BestConfig
from extensions.tools.shared.encoded_run import encoded_run
from extensions.tools.shared.run_job import validation_every
from jobs.process import BaseExtensionProcess
from toolkit.config.sections.dataset import LOSS
from toolkit.data.batches.latent_cache import CacheEntry, fill_texts
from toolkit.data.scan.directory import ScanCache
from toolkit.data.scan.validation_split import scan_and_split
from toolkit.errors import RunError, UserError
from toolkit.files.log import StatusLine
from toolkit.files.writing import link, write_json
from toolkit.memory.block_runner import BlockRunner
from toolkit.memory.offload import BlockSwap
from toolkit.models.loading import checked_family
from toolkit.networks.applied import AppliedAdapters, Changes
from toolkit.networks.lora_formats import load_adapter_file
from toolkit.train.resumption import trained_images
from toolkit.train.run_reader import NetworkFile
from toolkit.train.validation import Validator

logger = logging.getLogger(__name__)

BASE = "base model"

_CANNOT_TELL = (
    "no images are held out. Look at the samples, and take the earliest file that shows what you want. To measure it, "
    "train with 'validation: {{fraction: 0.1, every: {every}}}'"
)
"""Why no file of a run without validation is recommended."""


@dataclass(frozen=True)
class Measured:
    """The loss of one LoRA, or of the model without any.

    >>> base = Measured("base model", None, loss=0.5)
    >>> recommend([base, Measured("a_100.safetensors", 100, loss=0.4)])
    (Measured(file='a_100.safetensors', ...), 'the lowest loss, 0.4000; ...0.5000')
    """

    file: str
    step: int | None
    loss: float


class BestProcess(BaseExtensionProcess):
    """Prints a table and a recommendation, and writes both as JSON.

    Example::

        python run.py best output/my_character
    """

    section: BestConfig

    def run(self) -> None:
        super().run()
        as_json = self.section.as_json
        with redirect_stdout(sys.stderr) if as_json else nullcontext():
            report = self._report()
        if as_json:
            print(json.dumps(report))

    def _report(self) -> dict[str, Any]:
        """Measures, prints and writes what is recommended, and returns it."""
        section = self.section
        last = section.files()[-1].step
        measured: list[Measured] = []
        best, on = None, ""
        reason = _CANNOT_TELL.format(every=validation_every(last or 0))
        if section.training().validation:
            on, measured = self._measured()
            best, reason = recommend(measured)
            for line in table(measured):
                logger.info(line)
            logger.info(f"recommended: {best.file}: {reason}")
        else:
            logger.info(f"cannot tell which file is best: {reason}")
        report = {
            "recommended": best.file if best else None,
            "reason": reason,
            "measured_on": on,
            "files": [asdict(numbers) for numbers in measured],
        }
        write_json(section.output_path(), report)
        if section.link and best:
            link(section.folder() / best.file, section.best_file())
            logger.info(f"{section.best_file()} is {best.file}")
        return report

    def _measured(self) -> tuple[str, list[Measured]]:
        """What is measured, and the loss of the model alone and of each file."""
        section, training = self.section, self.section.training()
        settings = training.validation
        assert settings is not None
        status = StatusLine()
        family = checked_family(training.model)
        cache = ScanCache.beside(training.training_folder)
        trained = partial(trained_images, section.folder())
        *_, split = scan_and_split(training, family, cache, trained)
        assert split is not None  # there is a validation
        items = list(split.items)[: section.images]
        texts: list[Sequence[CacheEntry]] = []
        model, dataset, device, dtype = encoded_run(
            training, items, section.device, status.count, texts
        )
        validator = Validator(model, dataset, settings.timesteps)
        fill_texts(texts, model, status.count)
        model.unload_encoders()
        files: list[tuple[NetworkFile, Changes]] = []
        layers = family.every_linear_layer(training.model.files_folder())

        def readable() -> Iterator[Changes]:
            """The changes of the files that can be read: a run that broke down may have
            saved others."""
            for file in section.files():
                try:
                    changes = load_adapter_file(file.path, layers=layers)
                except UserError as error:
                    logger.warning(f"{error} It is left out")
                    continue
                files.append((file, changes))
                yield changes

        adapters = AppliedAdapters(model.network_module, readable(), device)
        model.enable_modulation_cache(BlockSwap)
        BlockRunner(model, device, dtype, "none", training.model.blocks_to_swap)
        measured = []
        for name, step, used in (
            (BASE, None, []),
            *((file.path.name, file.step, [(new, 1.0)]) for file, new in files),
        ):
            status.update(name)
            adapters.use(used)
            losses = validator.losses()
            assert losses is not None  # nothing asks it to stop
            if isfinite(losses[LOSS]):
                measured.append(Measured(name, step, losses[LOSS]))
            else:
                logger.warning(f"{name}: its loss is not finite. It is left out")
        status.finish()
        if len(measured) == 1:
            raise RunError(
                f"{section.folder()}: no saved LoRA can be measured: see the lines above."
            )
        return f"{len(items)} images that were not trained on", measured


def recommend(measured: Sequence[Measured]) -> tuple[Measured, str]:
    """The LoRA of the lowest loss, and the reason. measured: the model alone first."""
    base, *files = measured
    best = min(files, key=lambda numbers: numbers.loss)
    against = f"the base model has {base.loss:.4f}"
    if best.loss >= base.loss:
        against = f"but {against}: on these images no LoRA of the run is better"
    return best, f"the lowest loss, {best.loss:.4f}; {against}"


def table(measured: Sequence[Measured]) -> list[str]:
    """The numbers as lines of columns."""
    width = max(len(row.file) for row in measured)
    return [f"{'file':{width}} {'step':>8} {'loss':>9}"] + [
        f"{row.file:{width}} {row.step or '':>8} {row.loss:>9.4f}" for row in measured
    ]
