"""The memory estimate of a job, phase by phase, from its settings and the sizes of its networks. Imports no torch.

The blocks of the transformer count as `StepShape` says of a model that is trained itself; what surrounds them is
small. tests/extensions/from_scratch/test_flow_memory_plan.py compares it with a step on a CPU; no figure of a GPU is
measured yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from extensions.from_scratch.autoencoder_sizes import FLOAT, NetworkSizes, autoencoder_sizes, discriminator_sizes
from extensions.from_scratch.flow_config import FLOW, TEXT_ENCODER, FlowTrainerConfig
from extensions.from_scratch.latent_flow.family import encoder_width, part_config, part_shapes, text_width
from extensions.from_scratch.latent_flow.sizes import Shape, TransformerSizes, bert_shapes, transformer_sizes
from extensions.from_scratch.losses_config import DISCRIMINATOR, VAE
from toolkit.data.run_plan import SaveSize
from toolkit.memory.estimate import (
    CUDA_CONTEXT,
    FRAGMENTATION,
    HOST_FRAGMENTATION,
    PROCESS_BASELINE,
    PROCESS_BASELINE_WITH_CUDA,
    Machine,
    MemoryEstimate,
    Phase,
    StepShape,
    step_peak,
)
from toolkit.number_types import DTYPE_BYTES
from toolkit.optim.optimizer_args import optimizer_bytes
from toolkit.system.distributed_env import read_distributed_env
from toolkit.train.accumulation import splits_per_micro_batch

Parts = Mapping[str, float]

MEMORY_ADVICE = "Lower train.batch_size (with gradient_accumulation the batch stays as large), or the resolution."
"""What to change when memory is short."""

OF_A_TEXT_TOKEN = 20
"""Numbers that a layer of the text encoder keeps for the backward pass, by its width."""


@dataclass(frozen=True)
class Work:
    """What one rank computes at once."""

    images: int
    pixels: int
    """Of one image."""

    reference_pixels: int = 0
    """Of all references of one image."""


def plan_memory(section: FlowTrainerConfig, work: Work, machine: Machine, level: str = "") -> MemoryEstimate:
    """The estimate on a machine. level: of checkpointing, where `auto` has chosen one. Raises UserError or RunError
    where a folder cannot be read."""
    job = _Job(section, work, machine.kind == "cuda", level)
    phases = {"encoding": job.encoding(), "first step": job.step(0), "training": job.step(), "saving": job.saving()}
    return MemoryEstimate(tuple(job.phase(name, parts) for name, parts in phases.items()), job.on_gpu)


def save_size(section: FlowTrainerConfig) -> SaveSize:
    """What one save takes. Raises UserError or RunError where a folder cannot be read."""
    return _Job(section, Work(1, 1), on_gpu=False, level="").save_size()


def images_at_once(section: FlowTrainerConfig) -> int:
    """Images of the largest micro-batch of one rank."""
    splits = splits_per_micro_batch(section.train.gradient_accumulation, read_distributed_env().world_size)
    return -(-section.train.batch_size // splits)


def step_shape(section: FlowTrainerConfig, tokens: int, transformer: TransformerSizes) -> StepShape:
    """The step of one rank with so many tokens of images and texts."""
    train, weights = section.train, sum(map(prod, transformer.shapes))
    number, own = DTYPE_BYTES[train.dtype], DTYPE_BYTES[section.weights_dtype()]
    return StepShape(
        tokens=tokens,
        width=transformer.width,
        blocks=transformer.blocks,
        number_bytes=number,
        kind="full",
        casts=0 if own == number else weights * number // transformer.blocks,
        gradients=own * weights,
        gradients_wait=train.gradient_accumulation > 1,
    )


def transformer_of(section: FlowTrainerConfig) -> TransformerSizes:
    """The transformer of a section. Raises UserError or RunError where a folder cannot be read."""
    model = section.model
    if model.name_or_path:
        config, shapes = part_config(model.folder(), "transformer"), part_shapes(model.folder() / "transformer")
        width = config["num_attention_heads"] * config["attention_head_dim"]
        return TransformerSizes(tuple(shapes.values()), width, config["num_layers"])
    channels = model.family().latent_channels
    return transformer_sizes(model.transformer.class_name, model.transformer.config, channels, _text_width(section))


def _text_width(section: FlowTrainerConfig) -> int:
    text = section.model.text_encoder
    if section.model.name_or_path:
        return text_width(section.model.folder())
    if text.projection_dim or not text.name_or_path:
        return text.projection_dim or text.config.get("hidden_size", 768)
    folder = _text_folder(section)
    return encoder_width(folder) if folder else 768


def _text_folder(section: FlowTrainerConfig) -> Path | None:
    """The folder of the text encoder; None: one of the hub, which is not here."""
    given = Path(section.model.text_encoder.name_or_path).expanduser()
    return next((part for part in (given, given / "text_encoder") if (part / "config.json").is_file()), None)


class _Job:
    """A section in numbers."""

    def __init__(self, section: FlowTrainerConfig, work: Work, on_gpu: bool, level: str) -> None:
        self.section, self.work, self.on_gpu = section, work, on_gpu
        self.train = section.train
        given = level or self.train.checkpointing_level()
        self.level = "full" if given == "auto" and on_gpu else "none" if given == "auto" else given
        self.number, self.own = DTYPE_BYTES[self.train.dtype], DTYPE_BYTES[section.weights_dtype()]
        self.transformer = transformer_of(section)
        self.family = section.model.family()
        vae = section.model.autoencoder().arguments()
        self.vae = autoencoder_sizes(vae, self.number, bool(vae.get("_spade")), on_gpu)
        self.gaps = FRAGMENTATION if on_gpu else HOST_FRAGMENTATION

    def phase(self, name: str, parts: Parts) -> Phase:
        """The phase with what a process takes in any case; on the CPU all of it is main memory."""
        of_job = {part: int(size) for part, size in parts.items() if size > 0}
        if self.on_gpu:
            return Phase(name, {"context": CUDA_CONTEXT, **of_job}, {"process baseline": PROCESS_BASELINE_WITH_CUDA})
        return Phase(name, {}, {"process baseline": PROCESS_BASELINE, **of_job})

    # ------------------------------------------------------------ phases

    def encoding(self) -> Parts:
        """One image goes through the encoder, which keeps nothing."""
        at_work = 3 * self.vae.encoder.widest * self.work.pixels * self.number / FLOAT
        vae = self.number * self._vae_weights
        return {"VAE": vae, "text encoder": self.number * sum(map(prod, self.text)), "activations": self.gaps * at_work}

    def step(self, optimizer: float | None = None) -> Parts:
        """The peak of a step. optimizer: bytes of the optimizers' state before it."""
        shape = step_shape(self.section, self._tokens, self.transformer)
        activations, gradients = step_peak(shape, self.level, self.gaps)
        along = self._along()
        there = activations + self._text_activations + along.pop("kept", 0)
        return {
            **self._at_rest(),
            "optimizer": self._optimizers if optimizer is None else optimizer,
            "gradients": gradients + self.own * self._beside_transformer,
            "activations": there,
            "gaps": (self.gaps - 1) * there,
            **along,
        }

    def saving(self) -> Parts:
        """Copies of weights and state are written while training continues."""
        size = self.save_size()
        return {**self.step(), "copies to be saved": size.state + size.file}

    def save_size(self) -> SaveSize:
        """What one save takes; parts that are not trained are linked."""
        state = self.own * self._trained + self._average + self._optimizers
        file = DTYPE_BYTES[self.section.save.dtype] * self._trained
        return SaveSize(file, 0 if self.section.save.states == "never" else state)

    # ------------------------------------------------------------ parts

    def _at_rest(self) -> Parts:
        samples = bool(self.section.sample) and not self.section.autoencoder
        return {
            "weights": self.own * self._trained + (self.number if samples else 0) * self._vae_weights,
            "average": self._average,
        }

    def _along(self) -> dict[str, float]:
        """An autoencoder that is trained along: what its backward pass needs, and the discriminator's."""
        if (settings := self.section.autoencoder) is None:
            return {}
        pixels = self.work.images * self.work.pixels
        halves = [self.vae.decoder, *([self.vae.encoder] if settings.train == "all" else [])]
        kept = pixels * (sum(half.kept for half in halves) + 2 * max(half.widest for half in halves))
        judge = 3 * pixels * self._judge.kept if self._judge else 0
        return {"kept": kept, "discriminator": judge, "losses": 100 * pixels}

    @cached_property
    def _judge(self) -> NetworkSizes | None:
        gan = self.section.autoencoder.discriminator if self.section.autoencoder else None
        return discriminator_sizes(gan.channels, gan.layers, self.number) if gan else None

    @cached_property
    def text(self) -> tuple[Shape, ...]:
        """The weights of the text encoder."""
        model = self.section.model
        if model.name_or_path:
            return tuple(part_shapes(model.folder() / "text_encoder").values())
        if model.text_encoder.name_or_path:
            folder = _text_folder(self.section)
            return tuple(part_shapes(folder).values()) if folder else ()
        return tuple(bert_shapes(model.text_encoder.config, model.text_encoder.max_tokens))

    @property
    def _text_activations(self) -> float:
        if not self.section.trains_text():
            return 0
        config: Mapping[str, Any] = self.section.model.text_encoder.config
        width, layers = config.get("hidden_size", _text_width(self.section)), config.get("num_hidden_layers", 12)
        return OF_A_TEXT_TOKEN * FLOAT * width * layers * self.work.images * self.family.max_tokens

    @property
    def _tokens(self) -> int:
        pixels = self.work.pixels + self.work.reference_pixels
        return self.work.images * (pixels // self.family.token_side**2 + self.family.max_tokens)

    @property
    def _vae_weights(self) -> int:
        return self.vae.encoder.weights + self.vae.decoder.weights

    @property
    def _of_roles(self) -> dict[str, tuple[Shape, ...]]:
        along = self.section.autoencoder
        encoder = self.vae.encoder.shapes if along and along.train == "all" else ()
        shapes = {
            FLOW: self.transformer.shapes,
            TEXT_ENCODER: self.text,
            VAE: (*self.vae.decoder.shapes, *encoder),
            DISCRIMINATOR: self._judge.shapes if self._judge else (),
        }
        return {role: shapes[role] for role in self.section.roles()}

    @property
    def _trained(self) -> int:
        return sum(prod(shape) for shapes in self._of_roles.values() for shape in shapes)

    @property
    def _beside_transformer(self) -> int:
        return self._trained - sum(map(prod, self.transformer.shapes))

    @property
    def _average(self) -> int:
        judge = self._judge.weights if self._judge else 0
        return FLOAT * (self._trained - judge) * self.train.ema_config.copies

    @property
    def _optimizers(self) -> int:
        settings = {role: self.section.role_optimizer(role) for role in self._of_roles}
        return sum(
            optimizer_bytes(own.optimizer, own.optimizer_params, self._of_roles[role]) for role, own in settings.items()
        )
