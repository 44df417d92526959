"""The plan of a `vae_trainer` process: counts its images and estimates its memory. Imports no torch, writes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from extensions.from_scratch.autoencoder_config import SPADE
from extensions.from_scratch.losses_config import too_short
from extensions.from_scratch.vae_config import VaeTrainerConfig
from extensions.from_scratch.vae_memory_advice import advice
from extensions.from_scratch.vae_memory_plan import Work, plan_memory, save_size, trained_weights
from toolkit.config.process import JobContext
from toolkit.config.train import OptimizerConfig
from toolkit.data.image_data import ImageData
from toolkit.data.run_plan import RunPlan, SaveSize
from toolkit.memory.estimate import MemoryEstimate
from toolkit.train.planning import Planner


class VaeTrainerSection(VaeTrainerConfig):
    """`type: vae_trainer`: trains an autoencoder of images, from nothing or from a folder."""

    # Apart from its keys, which all that is planned here reads.
    def plan(self, job: JobContext) -> RunPlan:
        """The run's plan: images, sizes, steps, memory. Raises DataErrors naming every offending file."""
        return VaePlanner(self, job).dry_run()


class VaePlanner(Planner[VaeTrainerConfig]):
    """The plan of an autoencoder's training."""

    def scan(self) -> ImageData:
        return ImageData(*self.section.scan(), self.section.stream())

    def without_model(self) -> Iterator[str]:
        section = self.section
        if section.model.is_yet_to_come(self.job):
            yield f"starts from {section.model.name_or_path}, which an earlier process of the job writes: counted then"
            yield from _length(section)
            yield from _optimizers(section)

    def describe_model(self, data: ImageData) -> Iterator[str]:
        return _roles(self.section)

    def memory(self, data: ImageData) -> MemoryEstimate:
        return plan_memory(self.section, self.work(data), self.machine)

    def advice(self, data: ImageData, memory: MemoryEstimate) -> str | None:
        return advice(self.section, self.work(data), self.machine, memory)

    def work(self, data: ImageData) -> Work:
        """What one rank computes at once."""
        return Work.of_settings(self.section) if data.stream else Work.of_items(self.section, data.items)

    def save_size(self) -> SaveSize:
        return save_size(self.section)

    def optimizers(self) -> Iterable[tuple[str, OptimizerConfig]]:
        return [(f"optimizers.{role}", self.section.role_optimizer(role)) for role in self.section.roles()]

    def length_notes(self, steps: int) -> Iterator[str]:
        yield from super().length_notes(steps)
        yield from too_short(self.section.losses, self.section.discriminator, steps)


def _roles(section: VaeTrainerConfig) -> Iterator[str]:
    """What is made, from what, and what is trained with which optimizer."""
    model = section.model
    start = f"from {model.folder()}" if model.name_or_path else "with random weights"
    part = "the decoder; the encoder is frozen" if model.train == "decoder" else "all of it"
    kind, scale = model.arguments()["_class_name"], model.latent_scale()
    spade = "; SPADE in the decoder" if model.uses_spade() else ""
    yield f"{kind} {start}, {scale} x {scale} pixels per latent pixel{spade}; trained: {part}"
    if model.name_or_path and model.arguments().get(SPADE) and not model.uses_spade():
        yield "model.spade: false: the decoder goes on without the SPADE of that folder"
    counts = trained_weights(section)
    for role in section.roles():
        own = section.role_optimizer(role)
        yield f"{role}: {counts[role]:,} parameters, {own.optimizer}, learning rate {own.lr:g}, {own.lr_scheduler}"


def _length(section: VaeTrainerConfig) -> Iterator[str]:
    """How long it trains, where its images cannot be counted yet, and what ends it."""
    train = section.train
    limit = f", at most {train.step_limit:,} optimizer steps" if train.step_limit else ""
    yield f"{train.epochs:,} epochs{limit}" if train.epochs else f"{train.steps:,} optimizer steps"
    if stop := section.stop_when:
        yield f"or until the mean of {stop.metric} is below {stop.below:g}"


def _optimizers(section: VaeTrainerConfig) -> Iterator[str]:
    for role in section.roles():
        own = section.role_optimizer(role)
        yield f"{role}: {own.optimizer}, learning rate {own.lr:g}, {own.lr_scheduler}"
