"""The memory plan against the memory of a step: all live tensors, counted as they come and go."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from extensions.compat.fluxflow import sized
from extensions.from_scratch.autoencoder_step import Adversary, AutoencoderStep, trained_parameters
from extensions.from_scratch.autoencoders import make_autoencoder
from extensions.from_scratch.discriminator import PatchDiscriminator
from extensions.from_scratch.losses_config import DISCRIMINATOR, VAE
from extensions.from_scratch.perceptual import PerceptualDistance
from extensions.from_scratch.pixels import PixelBatch
from extensions.from_scratch.vae_config import VaeTrainerConfig
from extensions.from_scratch.vae_memory_plan import Work, discriminator_sizes, lpips_sizes, plan_memory, trained_weights
from tests.extensions.from_scratch.conftest import SMALL
from toolkit.data.types import BatchSpec, BucketedSample, ResizeCrop, Sample, Size
from toolkit.memory.estimate import GB, Machine, MemoryEstimate
from toolkit.train.interface import Backward

CARD, HOST = Machine("cuda"), Machine("cpu")
SIDE = 128


def section(kind: str = "AutoencoderKL", **changes: Any) -> VaeTrainerConfig:
    train = {"batch_size": 2, "steps": 10, "dtype": "fp32", **changes.pop("train", {})}
    model = {"class_name": kind, "config": SMALL[kind], **changes.pop("model", {})}
    datasets = [{"folder_path": ".", "resolution": SIDE}]
    return VaeTrainerConfig.model_validate(
        {"type": "vae_trainer", "datasets": datasets, **changes, "model": model, "train": train}
    )


def plan(job: VaeTrainerConfig, machine: Machine = CARD, **work: Any) -> MemoryEstimate:
    settings = Work.of_settings(job)
    return plan_memory(job, Work(work.get("images", settings.images), work.get("pixels", settings.pixels)), machine)


def parts(found: MemoryEstimate, name: str = "training") -> dict[str, int]:
    phase = next(phase for phase in found.phases if phase.name == name)
    return dict(phase.device if found.on_device else phase.host)


class LiveTensors(TorchDispatchMode):
    """Bytes of the storages that operations made and that are still there."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        self.peak = max(self.peak, sum(self.sizes.values()))
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            weakref.finalize(storage, self.sizes.pop, key, None)


def peak_of_step(job: VaeTrainerConfig) -> int:
    """Peak of what a step makes, gradients included, at step 0, which has R1."""
    autoencoder = make_autoencoder(job.model, 0, torch.device("cpu"))
    by_role: dict[str, list[Tensor]] = {VAE: list(trained_parameters(autoencoder, job.model.train).values())}
    adversary = None
    if gan := job.discriminator:
        adversary = Adversary(PatchDiscriminator(gan.channels, gan.layers, 0), gan)
        by_role[DISCRIMINATOR] = list(adversary.network.parameters())
    perceptual = PerceptualDistance() if job.losses.lpips else None
    dtype = torch.bfloat16 if job.train.dtype == "bfloat16" else torch.float32
    step = AutoencoderStep(autoencoder, job.losses, 0, adversary, perceptual, dtype)
    numbers = tuple(range(job.train.batch_size))
    pixels = torch.rand(len(numbers), 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    spec = BatchSpec(epoch=0, items=numbers, positions=numbers)
    names = ("",) * len(numbers)
    batch = PixelBatch(pixels, names, spec, names, torch.ones(len(numbers)))

    def backward(losses: dict[str, Tensor]) -> None:
        [(role, loss)] = losses.items()
        loss.mean().backward(inputs=by_role[role])

    with LiveTensors() as live:
        step.backward(batch, FirstStep(backward))
    return live.peak


class FirstStep(Backward):
    """The backward passes of the first step."""

    step = 0
    roles = frozenset({VAE, DISCRIMINATOR})

    def __init__(self, run: Callable[[dict[str, Tensor]], None]) -> None:
        self.run = run

    def __call__(self, losses: Mapping[str, Tensor], retain_graph: bool = False, final: bool = True) -> None:
        self.run(dict(losses))


GAN = {"discriminator": {"channels": 32}}
OF_A_STEP = ("activations", "losses", "LPIPS", "discriminator", "gradients", "weights, cast")


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"config": sized(32)}},
        {"model": {"config": sized(32), "spade": True}, **GAN},
        {"model": {"config": sized(32)}, "losses": {"lpips": 1.0}},
        {"model": {"config": sized(8)}, "discriminator": {"channels": 64}},  # its own pass is the larger one
        {"model": {"config": sized(8)}, "discriminator": {"channels": 64, "r1_gamma": 0}, "losses": {"adversarial": 0}},
        {"model": {"config": sized(16)}, **GAN, "train": {"dtype": "bf16"}},
        {"kind": "AutoencoderTiny", "losses": {"kl": 0}},
        {"kind": "AutoencoderKLQwenImage"},
    ],
    ids=lambda changes: "-".join(map(str, changes.keys() if isinstance(changes, dict) else [changes])),
)
def test_a_step_takes_what_the_plan_says(changes: dict[str, Any]) -> None:
    job = section(**changes)
    found = parts(plan(job, HOST), "first step")
    assert sum(found.get(name, 0) for name in OF_A_STEP) == pytest.approx(peak_of_step(job), rel=0.15)


def test_a_trained_decoder_keeps_nothing_of_the_encoder() -> None:
    job, whole = section(model={"train": "decoder"}), section()
    assert parts(plan(job, HOST))["activations"] < 0.75 * parts(plan(whole, HOST))["activations"]
    assert sum(parts(plan(job, HOST), "first step").get(name, 0) for name in OF_A_STEP) == pytest.approx(
        peak_of_step(job), rel=0.15
    )


def test_parameters_moments_and_averages_are_those_of_the_roles() -> None:
    job = section(
        **GAN, train={"ema_config": {"use_ema": True}, "optimizer": "sgd"}, optimizers={"vae": {"optimizer": "adamw"}}
    )
    autoencoder = make_autoencoder(job.model, 0, torch.device("cpu")).module
    vae, judge = (sum(p.numel() for p in module.parameters()) for module in (autoencoder, PatchDiscriminator(32, 3, 0)))
    assert trained_weights(job) == {VAE: vae, DISCRIMINATOR: judge}
    found = parts(plan(job))
    assert found["weights"] == found["gradients"] == 4 * (vae + judge) and found["average"] == 4 * vae
    assert found["optimizer"] == pytest.approx(8 * vae, rel=0.01)
    assert "optimizer" not in parts(plan(job), "first step")
    averages = parts(plan(job), "first step")["average"]
    saved = next(phase for phase in plan(job).phases if phase.name == "saving").host["copies to be saved"]
    assert saved == pytest.approx(8 * (vae + judge) + averages + 8 * vae, rel=0.01)


def test_the_frozen_networks_have_the_sizes_that_they_have() -> None:
    perceptual = PerceptualDistance()
    assert lpips_sizes(4, 4).weights == sum(p.numel() for p in perceptual.parameters())
    for channels, layers in ((64, 3), (8, 5)):
        network = PatchDiscriminator(channels, layers, 0)
        assert discriminator_sizes(channels, layers, 4).weights == sum(p.numel() for p in network.parameters())


def item(side: int, repeats: int = 1) -> BucketedSample:
    size = Size(side, side)
    return BucketedSample(Sample("a.png", "", repeats, size, "."), ResizeCrop(size, 0, 0, size))


def test_the_largest_batch_is_that_of_the_bucket_with_most_pixels_at_once() -> None:
    job = section(train={"batch_size": 4})
    assert Work.of_items(job, [item(64), item(64), item(64, 2), item(96)]) == Work(4, 64 * 64)
    assert Work.of_items(job, [item(64), item(256)]) == Work(1, 256 * 256)
    assert Work.of_items(job, []) == Work.of_settings(job) == Work(4, SIDE * SIDE)


def test_activations_grow_with_images_and_pixels_and_nothing_else_does() -> None:
    job = section(**GAN, losses={"lpips": 1})
    one, four = plan(job, images=1, pixels=512**2), plan(job, images=2, pixels=2 * 512**2)
    assert four.device_bytes > 2 * one.device_bytes
    changed = {name for name, size in parts(four).items() if size != parts(one)[name]}
    assert changed == {"activations", "losses", "LPIPS", "discriminator", "gaps"}
    assert parts(four)["activations"] == pytest.approx(4 * parts(one)["activations"], rel=1e-6)


def test_a_card_has_its_context_and_a_host_its_process() -> None:
    job = section()
    assert "context" in parts(plan(job)) and plan(job).card() == 8
    on_host = plan(job, HOST)
    assert on_host.device_bytes == 0 and parts(on_host)["process baseline"] < GB
