"""The plans of both trainers: the parts that are made and trained, the number of steps
and the memory. Imports no torch and loads no weights.

The memory of weights, gradients and optimizers is counted from modules without numbers
(`memory`): always at a start, and in a dry run with `--memory`. Activations are not.

The sections name their planner, and `RolesSection.plan` calls it for the plan of a job.
`flow_process`, `vae_process` and `trainer` use the planners and `memory_advice`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, TypeVar

from extensions.from_scratch.autoencoder_config import SPADE
from extensions.from_scratch.flow_config import FlowTrainerConfig
from extensions.from_scratch.losses_config import too_short
from extensions.from_scratch.roles_config import RolesSection
from extensions.from_scratch.vae_config import VaeTrainerConfig
from toolkit.config.sections.dataset import area_of
from toolkit.config.sections.train import TrainConfig
from toolkit.contracts.data import BucketedSample
from toolkit.data.batches.image_data import ImageData
from toolkit.memory.estimate import GAPS_SHARE
from toolkit.plan.memory import (
    CUDA_CONTEXT,
    PROCESS_BASELINE,
    PROCESS_BASELINE_WITH_CUDA,
    MemoryEstimate,
    Phase,
    gaps_on_host,
    positive,
)
from toolkit.plan.oom_hints import MemorySaving, smaller_resolution
from toolkit.plan.planning import Planner
from toolkit.plan.run_plan import SaveSize
from toolkit.registry import load_object

FLOAT = 4
"""Bytes of a float32."""

SectionT = TypeVar("SectionT", bound=RolesSection)


# ------------------------------------------------------------ memory


@dataclass(frozen=True)
class StepBytes:
    """The memory of one rank, in bytes.

    Example::

        estimate = step_bytes(section).estimate(on_gpu=True)
    """

    trained: Mapping[str, int]
    """Role -> number of weights that are trained."""

    weights: int
    """Weights of all modules that exist during a step."""

    gradients: int

    optimizer: int
    average: int
    save: SaveSize

    def estimate(self, on_gpu: bool) -> MemoryEstimate:
        """The memory of each phase, with the parts that an allocator and a process
        always take."""
        held = self.gradients
        gaps = GAPS_SHARE * held if on_gpu else gaps_on_host(held, "none")
        step = {
            "weights": self.weights,
            "average": self.average,
            "gradients": self.gradients,
            "gaps": int(gaps),
        }
        training = step | {"optimizer": self.optimizer}
        phases = {"first step": step, "training": training}
        copies = {"copies to be saved": self.save.file + self.save.state}
        if not on_gpu:
            phases["saving"] = training | copies
        always = {"process baseline": PROCESS_BASELINE}
        host: dict[str, int] = {}
        if on_gpu:
            always = {"context": CUDA_CONTEXT}
            host = {"process baseline": PROCESS_BASELINE_WITH_CUDA} | positive(copies)
        estimated = (
            Phase(name, positive(always | parts)) for name, parts in phases.items()
        )
        return MemoryEstimate(tuple(estimated), on_gpu, host)


def memory_advice(section: RolesSection) -> str:
    """One sentence that lists changes that save memory; those that change the result
    most come last."""
    named = "; ".join(_less_memory(section))
    return f"To save memory, in order of effect: {named}." if named else ""


def _less_memory(section: RolesSection) -> Iterator[str]:
    train = section.train
    along = section.trained_autoencoder()
    if train.batch_size > 1:
        yield f"train.batch_size: 1 with gradient_accumulation: {train.batch_size * train.gradient_accumulation}"
    if isinstance(train, TrainConfig) and train.checkpointing_level() not in (
        "auto",
        "full",
        "full_offload",
    ):
        yield "train.gradient_checkpointing: true"
    if train.dtype == "float32":
        yield "train.dtype: bf16"
    if train.ema_config.use_ema:
        yield "train.ema_config.use_ema: false"
    largest = max(
        (size for dataset in section.datasets for size in dataset.resolution),
        key=area_of,
    )
    smaller = smaller_resolution(largest)
    if smaller:
        yield f"datasets[].resolution: {smaller}"
    if along and along.losses.lpips:
        yield f"{along.place}losses.lpips: 0"
    if along and along.model.spade:
        yield f"{along.place or 'model.'}spade: false"
    if along and along.discriminator:
        yield f"without the section {along.place}discriminator"
    if along and not along.model.name_or_path:
        yield f"fewer channels in {'model.new_vae' if along.place else 'model'}.config"


# ------------------------------------------------------------ the plans


class RolesPlanner(Planner[SectionT]):
    """The plan of a training of several roles.

    Example::

        planner = FlowPlanner(section, job)
        for line in planner.describe_roles():
            print(line)
    """

    step: StepBytes | None = None
    """Once it is measured."""

    def scan(self) -> ImageData:
        return self.section.scan()

    @abstractmethod
    def describe_parts(self) -> Iterator[str]:
        """The parts that are made or loaded, and those that are frozen."""

    def describe_model(self, data: ImageData) -> Iterator[str]:
        yield from self.describe_parts()
        yield from self.describe_roles()

    def describe_roles(self) -> Iterator[str]:
        """Each role with its optimizer and rate."""
        for role in self.section.roles():
            optimizer = self.section.role_optimizer(role)
            weights = self.step.trained.get(role, 0) if self.step else 0
            count = f"{weights:,} parameters, " if weights else ""
            every = f", each {optimizer.every} steps" if optimizer.every > 1 else ""
            rate = f"learning rate {optimizer.lr:g}, {optimizer.lr_scheduler}"
            yield f"{role}: {count}{optimizer.optimizer}, {rate}{every}"

    def memory(self, data: ImageData) -> MemoryEstimate | None:
        if not self.job.measures_memory:
            self.unknown_memory = "computed at the start, or with --dry-run --memory"
            return None
        on_gpu = self.machine.kind == "cuda"
        try:
            self.step = load_object(MEASURE)(self.section)
        except Exception as error:  # noqa: BLE001 - the run itself says what cannot be made, and at which key
            self.unknown_memory = f"not known ({' '.join(str(error).split())[:200]})"
            return None
        assert self.step
        return self.step.estimate(on_gpu)

    unknown_memory = ""
    """Why there is no estimate."""

    def savings(self) -> Iterable[MemorySaving]:
        return map(MemorySaving, _less_memory(self.section))

    def save_size(self) -> SaveSize | None:
        return self.step.save if self.step else None

    def length_notes(self, steps: int) -> Iterator[str]:
        if self.unknown_memory:
            yield f"memory: {self.unknown_memory}"
        elif self.step:
            yield "memory: without the activations, which are most of it"
        yield from super().length_notes(steps)
        along = self.section.trained_autoencoder()
        if along:
            yield from too_short(along.losses, along.discriminator, steps)


MEASURE = "extensions.from_scratch.memory:step_bytes"
"""Loaded where memory is measured: it needs torch."""


class VaePlanner(RolesPlanner[VaeTrainerConfig]):
    """The plan of an autoencoder's training.

    Example::

        planner = VaePlanner(section, job)
        plan = planner.dry_run()
    """

    def without_model(self) -> Iterator[str]:
        section, train = self.section, self.section.train
        if section.model.is_yet_to_come(self.job):
            yield f"starts from {section.model.name_or_path}, which an earlier process of the job writes: counted then"
            by_steps = f"{train.steps:,} optimizer steps" if not train.epochs else ""
            yield by_steps or f"{train.epochs:,} epochs"
            stop = section.stop_when
            if stop and stop.below is not None:
                yield f"or until the mean of {stop.metric} is below {stop.below:g}"
            yield from self.describe_roles()

    def describe_parts(self) -> Iterator[str]:
        model = self.section.model
        known = model.name_or_path
        start = f"from {model.folder()}" if known else "with random weights"
        frozen = "the decoder; the encoder is frozen"
        part = frozen if model.train == "decoder" else "all of it"
        kind = model.arguments()["_class_name"]
        scale = model.latent_scale()
        spade = "; SPADE in the decoder" if model.uses_spade() else ""
        yield f"{kind} {start}, {scale} x {scale} pixels per latent pixel{spade}; trained: {part}"
        if known and model.arguments().get(SPADE) and not model.uses_spade():
            yield "model.spade: false: the decoder goes on without the SPADE of that folder"


class FlowPlanner(RolesPlanner[FlowTrainerConfig]):
    """The plan of a flow model's training.

    Example::

        plan = FlowPlanner(section, job).dry_run()
        print(plan.optimizer_steps)
    """

    def without_model(self) -> Iterator[str]:
        model = self.section.model
        if model.is_yet_to_come(self.job):
            is_whole = self.job.yet_to_come(model.name_or_path)
            folder = model.name_or_path if is_whole else model.vae
            yield f"starts from {folder}, which an earlier process of the job writes: counted then"
            yield from self.describe_parts()
            yield from self.describe_roles()

    def describe_parts(self) -> Iterator[str]:
        section, model, text = (
            self.section,
            self.section.model,
            self.section.model.text_encoder,
        )
        if model.name_or_path:
            yield f"continues from {model.name_or_path}"
        else:
            transformer = model.transformer
            yield f"Auto-created transformer: {transformer.class_name}{_listed(transformer.config)}"
            yield f"prediction: {model.prediction}"
            if model.has_random_text():
                yield f"Auto-created text_encoder: BertModel{_listed(text.config)}"
                yield f"Auto-created tokenizer from the captions, {text.max_tokens} tokens of each at most"
            if text.projection_dim:
                yield f"Auto-created projection of the text embeddings to {text.projection_dim}"
        vae = model.vae or model.name_or_path
        new = model.new_vae
        if new:
            yield f"Auto-created vae: {new.class_name}{_listed(new.config)}, trained along"
        else:
            along = section.autoencoder
            if along:
                yield f"trained along: {'the decoder of ' if along.train == 'decoder' else ''}the autoencoder in {vae}"
            else:
                yield f"Freezing vae ({vae})"
        if not section.trains_text():
            random = ", random weights" if model.has_random_text() else ""
            yield f"Freezing text_encoder ({text.name_or_path or model.name_or_path or 'new'}{random})"

    def describe_model(self, data: ImageData) -> Iterator[str]:
        yield from super().describe_model(data)
        captions = {text for item in data.items for text in item.sample.texts}
        if len(captions) == 1 and len({item.sample.image for item in data.items}) > 1:
            caption = captions.pop()
            none = "no image has a caption"
            reason = f"all captions are {caption!r}" if caption else none
            yield f"warning: {reason}: prompts will have no effect on what is drawn"


def pixels_at_once(item: BucketedSample) -> int:
    """Pixels of an image and its references, each of which has about as many."""
    return prod(item.crop.bucket) * (1 + len(item.sample.control_images))


def _listed(config: dict[str, Any]) -> str:
    listed = ", ".join(f"{key}={value}" for key, value in config.items())
    return f" with {listed}" if config else ""
