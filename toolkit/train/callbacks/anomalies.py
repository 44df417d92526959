"""Reports faults of a run while it trains, in the log and as an event `warning`. It
never stops a run.

The detectors and their limits are in `toolkit.train.anomalies`. Each process learns
from the beginning: a resume has no history, and reports a fault again that is still
present.

Added by `standard` to every trainer.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from PIL import Image

from toolkit.config.sections.dataset import TEXTURE
from toolkit.contracts.training import StepResult
from toolkit.errors import Diagnostic, RunError
from toolkit.files.run_files import VALIDATION
from toolkit.system.readings import Reading, read_machine
from toolkit.train.anomalies import (
    RISE_OF_PREDICTED,
    RisingTexture,
    RunawayLoss,
    SampleFeatures,
    SampleLoss,
    SampleSets,
    SilentLayers,
    SlowSteps,
    features_of,
)
from toolkit.train.optimizer_step import ZeroGradients
from toolkit.train.run import Callback, Run, Sampled
from toolkit.train.run_reader import list_samples

logger = logging.getLogger(__name__)

EVENT = "warning"

READ_EVERY_S = 0.05
"""Seconds between two readings of the machine."""

LAYERS_EVERY = 5
"""Optimizer steps between two looks at the layers' gradients."""

_SIZE = re.compile(r"\((?:\d+), (?:.*, )?(\d+), (\d+)\)")


class AnomalyCallback(Callback):
    """Passes the numbers of a run to the detectors, and reports their findings.

    Example::

        log = EventLog(folder / EVENTS)
        callbacks = [AnomalyCallback(log.add, dataset_of(section))]
    """

    def __init__(
        self,
        report: Callable[..., None],
        dataset_of: Callable[[str], str] = lambda name: "",
        silent_steps: int = 20,
        read: Callable[[torch.device], Reading] = read_machine,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """report: records an event. dataset_of: image file -> its dataset, empty: not
        known. silent_steps: as `wait` of `SilentLayers`. read, clock: the state of the
        machine, and seconds."""
        self.report = report
        self.dataset_of = dataset_of
        self.silent_steps = silent_steps
        self.read = read
        self.clock = clock
        self._slow = SlowSteps()
        self._losses = RunawayLoss()
        self._layers: dict[str, SilentLayers] = {}
        self._sets: SampleSets | None = None
        self._predicted: RisingTexture | None = None
        self._results: list[StepResult] = []
        self._looked_at = 0
        self._reading = Reading()
        self._read_at = float("-inf")
        self._begun = False
        self._step = 0
        self._device = torch.device("cpu")

    def on_start(self, run: Run) -> None:
        self._begun = True
        self._step = run.state.step
        self._looked_at = self._step
        self._device = next(
            (p.device for role in run.roles.values() for p in role.parameters.values()),
            self._device,
        )
        for name, role in run.roles.items():
            if not role.sharded:
                self._layers[name] = SilentLayers(role.parameters, self.silent_steps)
                role.zero_gradients = ZeroGradients(self._layers[name].names)
        run.programs.on_stop.append(self._forget_times)  # uncompiled blocks take longer

    def on_metrics(self, run: Run, result: StepResult) -> None:
        self._results.append(result)

    def after_step(self, run: Run) -> None:
        """Looks at the steps whose metrics have come since the last call: those of one
        flush, as `step_s` is their mean and the device has nothing to do just then."""
        results = self._results
        self._results = []
        self._step = run.state.step
        if not results:
            return
        self._say(self._slow_steps(results))
        for result in results:
            for finding in self._losses.add(self._sample_losses(result)):
                self._say(finding)
        if self._step < self._looked_at + LAYERS_EVERY:
            return
        self._looked_at = self._step
        for name, layers in self._layers.items():
            if zero := run.roles[name].zero_gradients:
                steps = zero.steps()
                self._say(layers.add(steps, filter(zero.is_absent, steps)))

    def on_sample(self, run: Run, sampled: Sampled) -> None:
        """Looks at the sample images; those with which a resume begins, before
        `on_start`, are earlier ones to the next."""
        if self._begun or sampled.step == 0:
            self._step = sampled.step
            if self._sets is None:
                self._sets = (
                    self._earlier_sets(run.folder, sampled.files)
                    if self._step
                    else SampleSets()
                )
            features = self._features(sampled.files, sampled.prompts)
            for finding in self._sets.add(features, self._losses.rises()):
                self._say(finding)

    def on_validation(self, run: Run, losses: dict[str, float]) -> None:
        """Compares the texture of the predicted images with the first value in the
        run's file."""
        if TEXTURE not in losses:
            return
        self._step = run.state.step
        if self._predicted is None:
            self._predicted = RisingTexture(
                "the images that the validation predicts", RISE_OF_PREDICTED
            )
            with (run.folder / VALIDATION).open(encoding="utf-8") as file:
                self._predicted.add(
                    [json.loads(file.readline()).get(TEXTURE, losses[TEXTURE])], True
                )
        self._say(self._predicted.add([losses[TEXTURE]], self._losses.rises()))

    def _slow_steps(self, results: Sequence[StepResult]) -> Diagnostic | None:
        samples: Counter[str] = Counter()
        for result in results:
            # A discriminator or another loss that begins later takes its time.
            work = " ".join((*result.by_role, *sorted(result.extra_metrics)))
            samples.update(f"{source.batch} {work}" for source in result.sources)
        if self.clock() - self._read_at >= READ_EVERY_S:
            self._reading = self.read(self._device)
            self._read_at = self.clock()
        first = results[0]
        return self._slow.add(
            samples,
            len(results),
            first.step_s,
            first.data_s,
            self._reading,
            first.compiled,
        )

    def _forget_times(self) -> None:
        self._slow = SlowSteps()

    def _sample_losses(self, result: StepResult) -> Iterable[SampleLoss]:
        losses = result.per_sample.get("loss", ())
        levels = result.per_sample.get("t", (0.0,) * len(losses))
        if len(result.sources) != len(losses):
            return
        for source, loss, t in zip(result.sources, losses, levels, strict=True):
            parts = {}
            if size := _SIZE.search(source.batch):
                parts["bucket"] = (
                    f"{size[2]}x{size[1]} ({source.batch.partition(' ')[0]})"
                )
            if dataset := self.dataset_of(source.name):
                parts["dataset"] = dataset
            yield SampleLoss(parts, loss, t)

    def _earlier_sets(self, folder: Path, but: Sequence[Path]) -> SampleSets:
        """The sets that the run has already, the first and the last; they are not
        reported."""
        sets = SampleSets()
        by_step = dict[int, list[tuple[Path, str]]]()
        for sample in list_samples(folder):
            if sample.path not in but and sample.step < self._step:
                by_step.setdefault(sample.step, []).append(
                    (sample.path, sample.prompt or "")
                )
        for step in [*sorted(by_step)[:2], *sorted(by_step)[2:][-2:]]:
            sets.add(
                self._features(
                    [path for path, _ in by_step[step]],
                    [text for _, text in by_step[step]],
                )
            )
        return sets

    def _features(
        self, paths: Sequence[Path], texts: Sequence[str]
    ) -> list[tuple[str, SampleFeatures]]:
        features = []
        for index, path in enumerate(paths):
            try:
                with Image.open(path) as image:
                    text = texts[index] if index < len(texts) else path.name
                    features.append((text, features_of(image)))
            except OSError:  # removed meanwhile
                logger.debug("%s: cannot be read", path)
        return features

    def _say(self, finding: Diagnostic | None) -> None:
        if finding is None:
            return
        logger.warning(
            f"step {self._step}: {finding.message}. Cause: {finding.cause}. {finding.remedy}"
        )
        try:
            details = {
                "kind": finding.check,
                "message": finding.message,
                "cause": finding.cause,
            }
            self.report(EVENT, step=self._step, **details, remedy=finding.remedy)
        except RunError as error:
            # A full disk, for example: the next save reports it too, and decides.
            logger.warning(str(error))
