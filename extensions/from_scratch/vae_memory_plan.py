"""The memory estimate of a job, phase by phase, from its settings and the sizes of its networks. Imports no torch.

A step has two moments: the backward pass of the autoencoder begins, when all that was kept for it is there, and that of
the discriminator does. With several ranks it is the memory of each. test_vae_memory_plan.py compares
it with what a step takes on a CPU; no figure of a GPU is measured yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from extensions.from_scratch.autoencoder_sizes import (
    FLOAT,
    AutoencoderSizes,
    NetworkSizes,
    Walk,
    autoencoder_sizes,
    discriminator_sizes,
)
from extensions.from_scratch.losses_config import DISCRIMINATOR, VAE, VGG_BLOCKS
from extensions.from_scratch.vae_config import VaeTrainerConfig
from toolkit.config.dataset import area_of
from toolkit.data.run_plan import SaveSize
from toolkit.data.types import BucketedSample
from toolkit.memory.estimate import (
    CUDA_CONTEXT,
    FRAGMENTATION,
    HOST_FRAGMENTATION,
    PROCESS_BASELINE,
    PROCESS_BASELINE_WITH_CUDA,
    Machine,
    MemoryEstimate,
    Phase,
)
from toolkit.number_types import DTYPE_BYTES
from toolkit.optim.optimizer_args import optimizer_bytes
from toolkit.system.distributed_env import read_distributed_env
from toolkit.train.accumulation import splits_per_micro_batch

IMAGES = 36
"""Bytes per pixel of the images, their reconstructions, and one more such: noise, a gradient."""

OF_LOSS = {"l1": 12, "reconstruction": 36, "mse": 12, "contrast": 12, "color": 12, "histogram": 36}
"""Key of `losses` -> bytes per pixel that its backward pass needs, in float32."""

WORKING_TENSORS = 2
"""Of the largest size in float32, beyond what is kept: the gradients of a layer's output and input."""


@dataclass(frozen=True)
class Work:
    """What one rank computes at once."""

    images: int
    pixels: float
    """Of one image."""

    @staticmethod
    def of_items(section: VaeTrainerConfig, items: Sequence[BucketedSample]) -> Work:
        """The largest micro-batch of these items; as `of_settings` where there are none."""
        counts = Counter(item.crop.bucket for item in items for _ in range(item.sample.repeats))
        most = _images_at_once(section)
        batches = [Work(min(most, count), prod(bucket)) for bucket, count in counts.items()]
        return max(batches, key=lambda work: work.images * work.pixels, default=Work.of_settings(section))

    @staticmethod
    def of_settings(section: VaeTrainerConfig) -> Work:
        """The largest micro-batch that `datasets` and `train` allow."""
        sizes = [area_of(size) for dataset in section.datasets for size in dataset.resolution]
        return Work(_images_at_once(section), max(sizes))


def plan_memory(section: VaeTrainerConfig, work: Work, machine: Machine) -> MemoryEstimate:
    """The estimate on a machine. Raises RunError where the autoencoder's folder cannot be read."""
    job = _Job(section, work, machine.kind == "cuda")
    phases = {"first step": job.step(optimizer=0), "training": job.step(), "saving": job.saving()}
    return MemoryEstimate(tuple(job.phase(name, *parts) for name, parts in phases.items()), job.on_gpu)


def trained_weights(section: VaeTrainerConfig) -> dict[str, int]:
    """Role -> number of weights that it trains. Raises RunError where the autoencoder's folder cannot be read."""
    job = _Job(section, Work(1, 1), on_gpu=False)
    return {VAE: job.trained_vae, **({DISCRIMINATOR: job.judge.weights} if job.judge else {})}


def save_size(section: VaeTrainerConfig) -> SaveSize:
    """What one save takes. Raises RunError where the autoencoder's folder cannot be read."""
    return _Job(section, Work(1, 1), on_gpu=False).save_size()


Parts = Mapping[str, float]


class _Job:
    """A section in numbers."""

    def __init__(self, section: VaeTrainerConfig, work: Work, on_gpu: bool) -> None:
        self.section, self.on_gpu = section, on_gpu
        self.train, self.losses, self.gan = section.train, section.losses, section.discriminator
        self.number = DTYPE_BYTES[section.train.dtype]
        self.norm_number = FLOAT if on_gpu else self.number
        self.pixels = work.images * work.pixels
        self.vae = sizes_of(section, on_gpu)
        self.judge = discriminator_sizes(self.gan.channels, self.gan.layers, self.number) if self.gan else None
        self.perceptual = lpips_sizes(self.number, self.norm_number) if self.losses.lpips else None

    # ------------------------------------------------------------ phases

    def phase(self, name: str, device: Parts, host: Parts) -> Phase:
        """The phase with what a process takes in any case; on the CPU all of it is main memory."""
        if self.on_gpu:
            return Phase(
                name,
                _positive({"context": CUDA_CONTEXT, **device}),
                _positive({"process baseline": PROCESS_BASELINE_WITH_CUDA, **host}),
            )
        return Phase(name, {}, _positive({"process baseline": PROCESS_BASELINE, **device, **host}))

    def step(self, optimizer: float | None = None) -> tuple[Parts, Parts]:
        """The larger moment of a step. optimizer: bytes of the optimizers' state before it."""
        state = self.optimizers if optimizer is None else optimizer
        moments = [self._of_autoencoder(), *([self._of_discriminator()] if self.judge else [])]
        kept = max(moments, key=lambda parts: sum(parts.values()))
        gaps = ((FRAGMENTATION if self.on_gpu else HOST_FRAGMENTATION) - 1) * sum(kept.values())
        return {**self._at_rest(), "optimizer": state, "gradients": FLOAT * self.trained, **kept, "gaps": gaps}, {}

    def saving(self) -> tuple[Parts, Parts]:
        """Copies of weights and state are written while training continues."""
        size = self.save_size()
        return self.step()[0], {"copies to be saved": size.state + size.file}

    def save_size(self) -> SaveSize:
        averages = FLOAT * self.trained_vae * self.train.ema_config.copies
        state = FLOAT * self.trained + averages + self.optimizers
        vae = self._weights(self.vae.encoder) + self._weights(self.vae.decoder)
        files = DTYPE_BYTES[self.section.save.dtype] * vae + FLOAT * self._weights(self.judge)
        return SaveSize(files, 0 if self.section.save.states == "never" else state)

    def _of_autoencoder(self) -> Parts:
        """When its backward pass begins."""
        networks = [self.vae.decoder, *([self.vae.encoder] if self.trains_encoder else [])]
        of_losses = IMAGES + sum(size for key, size in OF_LOSS.items() if getattr(self.losses, key))
        judge = self.judge if self.losses.adversarial else None
        working = WORKING_TENSORS * max(network.widest for network in filter(None, (*networks, judge, self.perceptual)))
        return {
            "activations": self.pixels * (sum(network.kept for network in networks) + working),
            "losses": self.pixels * of_losses,
            "LPIPS": self.pixels * self.perceptual.kept if self.perceptual else 0,
            "discriminator": self.pixels * judge.kept + self._normed_weights(1) if judge else 0,
        }

    def _of_discriminator(self) -> Parts:
        """When its backward pass begins: it has seen images of both kinds, and with R1 the real ones once more in
        float32, whose gradient has a graph of its own. Normalised weights have gradients too, by image kind."""
        assert self.judge and self.gan
        kept = 2 * self.judge.kept + WORKING_TENSORS * self.judge.widest
        if self.gan.r1_gamma:
            kept += PENALTY_GRAPH * discriminator_sizes(self.gan.channels, self.gan.layers, FLOAT).kept
        passes = 3 if self.gan.r1_gamma else 2
        return {
            "losses": self.pixels * IMAGES,
            "discriminator": self.pixels * kept + self._normed_weights(passes) + 2 * FLOAT * self.judge.weights,
        }

    def _normed_weights(self, passes: int) -> int:
        """Bytes of the discriminator's weights after spectral normalisation, which each pass has for itself."""
        return passes * self._weights(self.judge) * (FLOAT + (self.number if self.number < FLOAT else 0))

    # ------------------------------------------------------------ what stays

    def _at_rest(self) -> Parts:
        cast = sum(map(self._weights, [self.vae.encoder, self.vae.decoder, self.perceptual]))
        return {
            "weights": FLOAT * (cast + self._weights(self.judge)),
            "weights, cast": self.number * cast if self.number < FLOAT else 0,
            "average": FLOAT * self.trained_vae * self.train.ema_config.copies,
        }

    @property
    def trains_encoder(self) -> bool:
        return self.section.model.train == "all"

    @property
    def trained_vae(self) -> int:
        """Number of weights of the autoencoder that are trained."""
        return self.vae.decoder.weights + self.vae.encoder.weights * self.trains_encoder

    @property
    def trained(self) -> int:
        """Number of weights of all roles."""
        return self.trained_vae + self._weights(self.judge)

    @property
    def optimizers(self) -> int:
        """Bytes of the state of all roles' optimizers."""
        vae = [*self.vae.decoder.shapes, *(self.vae.encoder.shapes if self.trains_encoder else ())]
        roles = {VAE: vae, DISCRIMINATOR: self.judge.shapes if self.judge else ()}
        settings = {role: self.section.role_optimizer(role) for role, shapes in roles.items() if shapes}
        return sum(optimizer_bytes(own.optimizer, own.optimizer_params, roles[role]) for role, own in settings.items())

    @staticmethod
    def _weights(network: NetworkSizes | None) -> int:
        return network.weights if network else 0


# ------------------------------------------------------------ sizes


def sizes_of(section: VaeTrainerConfig, on_gpu: bool) -> AutoencoderSizes:
    """The autoencoder of a section. Raises RunError where its folder cannot be read."""
    model = section.model
    return autoencoder_sizes(model.arguments(), DTYPE_BYTES[section.train.dtype], model.uses_spade(), on_gpu)


PENALTY_GRAPH = 1.5
"""What R1 keeps, by what a pass keeps: the pass again, and the gradient of each layer's output."""


def lpips_sizes(number: int, norm_number: int) -> NetworkSizes:
    """VGG16 and what its pass over the reconstructions keeps: each ReLU's output, the places of the maxima, and at the
    end of each block the difference of the features. norm_number: bytes of the latter."""
    walk, before = Walk(number), 3
    for index, block in enumerate(VGG_BLOCKS):
        if index:
            walk.scale(1 / 4)
            walk.keep(before, INDEX)
        for channels in block:
            walk.conv(before, channels)
            walk.relu(channels)
            before = channels
        walk.weights((before,))
        walk.keep(before, norm_number)
    return walk.sizes()


INDEX = 8
"""Bytes of a place."""


def _images_at_once(section: VaeTrainerConfig) -> int:
    """Images of the largest micro-batch of one rank."""
    train = section.train
    return -(
        -train.batch_size // splits_per_micro_batch(train.gradient_accumulation, read_distributed_env().world_size)
    )


def _positive(parts: Parts) -> dict[str, int]:
    return {name: int(size) for name, size in parts.items() if size > 0}
