"""The process of `influence`: measures each training image of a run, and writes the
results.

The gradient of each image's loss is computed at saved LoRAs, as a sketch. A folder gets
the page, the list of suspects and the numbers. The run is only read, and nothing is
trained. The table of tools (`extensions/tools/__init__.py`) names the process.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from extensions.tools.influence.config import InfluenceConfig
from extensions.tools.influence.gradients import (
    deviations,
    influence_on,
    influence_on_others,
    medians,
    sketch,
)
from extensions.tools.influence.plan import Measurement
from extensions.tools.shared.encoded_run import encoded_run
from extensions.tools.shared.html_page import embedded, page
from extensions.tools.shared.suspects import FILE, suspects_text
from jobs.process import BaseExtensionProcess
from toolkit.contracts.data import BatchSpec, BucketedSample
from toolkit.contracts.network_kinds import KINDS
from toolkit.data.batches.dataloader import BatchLoader
from toolkit.data.pixels.images import ImageError, open_image, resize_cover_crop
from toolkit.errors import RunError
from toolkit.files.log import StatusLine
from toolkit.files.writing import atomic_write_dir, write_json, write_text
from toolkit.memory.block_runner import BlockRunner
from toolkit.memory.offload import BlockSwap
from toolkit.models.loading import checked_family
from toolkit.networks.lora_formats import load_adapter_file
from toolkit.networks.targets import select_target_modules
from toolkit.system.seeding import generator
from toolkit.train.validation import loss_at_level

logger = logging.getLogger(__name__)

NOT_FOUND = (
    "Captions exchanged within one character, and lost ones, are not found "
    "reliably: read them (run.py lint --preview)."
)
"""Limit of the list of suspects, for the log and the page."""

PAGE = "influence.html"
NUMBERS = "influence.json"

MOST_SHARE = 0.2
"""Largest share of the images that can be suspects."""

MOST_IMAGES = 300
"""Images on the page."""

CROP_SIDE = 384
"""Pixels of the longer side of an image on the page."""


@dataclass(frozen=True)
class Influence:
    """The result for an image.

    >>> result = Influence("07.png", "a cat", -0.31, 1.9, -4.2, by_round=(-0.31,))
    >>> result.reason
    'influence -0.310, gradient 1.9 times the median: 4.2 deviations from the others'
    """

    image: str
    caption: str
    influence: float
    """Mean cosine of its gradients with the gradients it is measured against, -1 to 1.
    Negative: learning it makes those images worse.
    """

    gradient: float
    """Length of its gradient, relative to the median of its dataset: how much it has
    left to teach."""

    deviation: float
    """Distance from the median of its dataset, in robust standard deviations, by
    influence and by length of the gradient together. Negative: less influence, a longer
    gradient. The images are sorted by it."""

    by_round: tuple[float, ...]
    """The influence in each round."""

    suspect: bool = False

    @property
    def reason(self) -> str:
        """The reason why it is suspected."""
        of_gradient = f"gradient {self.gradient:.2g} times the median"
        return f"influence {self.influence:+.3f}, {of_gradient}: {-self.deviation:.1f} deviations from the others"


class InfluenceProcess(BaseExtensionProcess):
    """Only reads the run, and writes to a separate folder.

    Example::

        python run.py influence output/my_character
    """

    section: InfluenceConfig

    def run(self) -> None:
        super().run()
        section = self.section
        plan = section.measurement()
        for line in plan.notes():
            logger.info(line)
        began = time.monotonic()
        bench = _Bench(section, plan)
        results = ranked(plan, *bench.measure(), section.threshold)
        seconds = time.monotonic() - began
        suspects = [suspect for suspect in results if suspect.suspect]
        folder = section.output_folder()
        reasons = {suspect.image: suspect.reason for suspect in suspects}
        with atomic_write_dir(folder) as new:
            write_text(new / PAGE, _page(plan, results))
            write_text(new / FILE, suspects_text(reasons, _head(section, plan)))
            write_json(new / NUMBERS, _numbers(section, plan, results, seconds))
        for suspect in suspects:
            logger.info(f"suspect: {suspect.image}: {suspect.reason}")
        at_what = "them first" if suspects else "the first of the page all the same"
        logger.info(
            f"{folder / PAGE}: {len(suspects)} of {len(results)} images are suspects. Look at {at_what}"
        )
        logger.info(NOT_FOUND)


class _Bench:
    """The model of the run, with its network and its images."""

    def __init__(self, config: InfluenceConfig, plan: Measurement) -> None:
        self._config = config
        self._plan = plan
        self._status = StatusLine()
        training = plan.training
        family = checked_family(training.model)
        items = [*plan.images, *plan.validation]
        model, self._dataset, device, dtype = encoded_run(
            training, items, config.device, self._status.count
        )
        self._model = model
        self._status.finish()
        self._loader = BatchLoader(self._dataset, config.seed)
        model.unload_encoders()
        kind = KINDS[training.network.type].load()
        targets = select_target_modules(training.network, kind.trainable_modules(model))
        self._network = kind.from_config(training.network, targets, config.seed, dtype)
        self._network.attach(model.network_module)
        model.enable_modulation_cache(BlockSwap)
        level = "none" if device.type == "cpu" else "full"
        BlockRunner(model, device, dtype, level, training.model.blocks_to_swap)
        self._layers = family.every_linear_layer(training.model.files_folder())

    def measure(self) -> tuple[Tensor, Tensor]:
        """The influence of each training image in each round, and the length of its
        gradient, [R, N] each."""
        influences = []
        lengths = []
        loaded = None
        with self._network.inference():
            for number, round_ in enumerate(self._plan.rounds, 1):
                if loaded != round_.file.path:
                    loaded = round_.file.path
                    changes = load_adapter_file(loaded, self._layers)
                    self._network.load_pretrained(changes)
                self._model.prefetch_timesteps([round_.level])
                what = f"round {number} of {len(self._plan.rounds)}, image"
                sketches_ND = self._sketches(round_.level, what)
                influences.append(self._influence(functional.normalize(sketches_ND)))
                lengths.append(sketches_ND[: len(self._plan.images)].norm(dim=1))
        return torch.stack(influences), torch.stack(lengths)

    def _influence(self, units_ND: Tensor) -> Tensor:
        """The influence [N] of the training images. units_ND: their gradients, and
        behind them the gradients of the validation images."""
        images_ND, reference_ND = units_ND.split(
            [len(self._plan.images), len(self._plan.validation)]
        )
        if len(reference_ND):
            return influence_on(images_ND, reference_ND)
        group_N = torch.tensor(self._plan.groups)
        influence_N = torch.zeros(len(images_ND))
        for group in set(self._plan.groups):
            at_N = group_N == group
            influence_N[at_N] = influence_on_others(images_ND[at_N])
        return influence_N

    def _sketches(self, level: float, what: str) -> Tensor:
        """The sketches [N, D] of the gradients of all images at a noise level."""
        rows = []
        for index, item in enumerate(self._dataset.items):
            self._status.count(what, index + 1, len(self._dataset.items))
            rows.append(self._gradient(index, item, level))
        self._status.finish()
        return torch.stack(rows)

    def _gradient(self, index: int, item: BucketedSample, level: float) -> Tensor:
        """The sketch [D] of the gradient of an image's loss, unweighted, with the noise
        that all images have."""
        batch = self._loader.load(BatchSpec(0, (index,), (index,)))
        random = generator(self._config.seed, "influence")
        noise_BCHW = torch.randn(batch.latents_BCHW.shape, generator=random)
        loss_at_level(
            self._model, self._model.predict_velocity, batch, noise_BCHW, level
        ).sum().backward()
        parameters = self._network.parameters().values()
        gradients = [
            torch.zeros_like(p) if p.grad is None else p.grad for p in parameters
        ]
        for parameter in parameters:
            parameter.grad = None
        sketch_D = sketch(gradients)
        if not torch.isfinite(sketch_D).all():
            raise RunError(
                f"{item.sample.image}: its gradient is not finite at noise level {level:g}."
            )
        return sketch_D


def ranked(
    plan: Measurement, influence_RN: Tensor, length_RN: Tensor, threshold: float
) -> list[Influence]:
    """The images, the most harmful first. influence_RN, length_RN: as returned by
    `_Bench.measure`. threshold: as in `InfluenceConfig`."""
    log_length_RN = length_RN.clamp_min(torch.finfo(length_RN.dtype).tiny).log()
    by_influence_RN = deviations(influence_RN, plan.groups)
    by_length_RN = deviations(log_length_RN, plan.groups)
    # The mean of the rounds varies less than each round.
    far_N = deviations((by_influence_RN - by_length_RN).mean(0), plan.groups)
    relative_N = (log_length_RN - medians(log_length_RN, plan.groups)).mean(0).exp()
    order = far_N.argsort(stable=True).tolist()
    most = int(MOST_SHARE * len(order))
    results = []
    for place, index in enumerate(order):
        sample = plan.images[index].sample
        of_image_R = influence_RN[:, index]
        results.append(
            Influence(
                sample.image,
                sample.caption,
                round(float(of_image_R.mean()), 4),
                round(float(relative_N[index]), 3),
                round(float(far_N[index]), 3),
                tuple(round(value, 4) for value in of_image_R.tolist()),
                suspect=place < most and float(far_N[index]) <= -threshold,
            )
        )
    return results


def _head(config: InfluenceConfig, plan: Measurement) -> str:
    return (
        f"Images of {config.run} that act against {plan.against}: `run.py influence`.\n"
        "Look at each image and its caption. `run.py lint` of the job names it too, until one of them is changed."
    )


def _numbers(
    config: InfluenceConfig,
    plan: Measurement,
    results: Sequence[Influence],
    seconds: float,
) -> Mapping[str, object]:
    rounds = [
        {"file": round_.file.path.name, "step": round_.file.step, "level": round_.level}
        for round_ in plan.rounds
    ]
    return {
        "against": plan.against,
        "rounds": rounds,
        "passes": plan.passes,
        "passes_of_an_epoch": plan.uses,
        "seconds": round(seconds, 1),
        "threshold": config.threshold,
        "images": [asdict(round_) for round_ in results],
    }


def _page(plan: Measurement, results: Sequence[Influence]) -> str:
    items = {item.sample.image: item for item in plan.images}

    def crop(image: str) -> str:
        """The address of the crop that is trained; empty where the image cannot be read
        any more."""
        sample, box = items[image]
        try:
            whole = open_image(image, sample.background)
            return embedded(resize_cover_crop(whole, box), CROP_SIDE)
        except ImageError:
            return ""

    return page(
        Path(__file__).with_name("influence.html.j2"),
        "Which images hurt",
        notes=[*plan.notes(), NOT_FOUND],
        count=len(results),
        suspects=sum(result.suspect for result in results),
        images=results[:MOST_IMAGES],
        crop=crop,
    )
