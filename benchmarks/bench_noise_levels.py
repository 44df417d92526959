"""Several noise levels in one pass over text and references against as many passes, of a Qwen-Image-2.1.

`python benchmarks/bench_noise_levels.py` times `train.noise_levels_per_sample: 4` with 0, 1 and 3 references: forward
and backward of a LoRA on random weights, target and references of one size. Noise and levels are the same in both, and
so is the gradient, which is compared first. Memory is that of tensors alive at once, beside the weights."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks import report, timing  # noqa: E402
from benchmarks.live_bytes import LiveBytes  # noqa: E402
from toolkit.config.field_types import CHECKPOINTING_LEVELS  # noqa: E402
from toolkit.data.dataloader import LatentBatch  # noqa: E402
from toolkit.data.types import EMBEDS, BatchSpec, PromptEmbeds  # noqa: E402
from toolkit.flow.settings import cost_of  # noqa: E402
from toolkit.memory.block_runner import BlockRunner  # noqa: E402
from toolkit.models.families import ModelLoadOptions  # noqa: E402
from toolkit.models.interface import DiffusionModel  # noqa: E402
from toolkit.models.qwen_image21.family import FAMILY  # noqa: E402
from toolkit.models.qwen_image21.prompts import SLOTS  # noqa: E402
from toolkit.models.tiny import TEXT_WIDTH, TinySpec, write_tiny_model  # noqa: E402
from toolkit.networks.lora import LoraNetwork  # noqa: E402
from toolkit.train.flow_step import NETWORK, FlowMatchingStep  # noqa: E402

SEED, RANK, TEXT_TOKENS = 42, 16, 64
SIZES = {"XS": (TinySpec(arch=FAMILY.arch), 4), "S": (TinySpec(arch=FAMILY.arch, layers=4, heads=16), 16)}
"""The model, and tokens along a side of each image."""

ALLOWED_ERROR = 1e-5
"""Relative difference of the gradients, as the root of the summed squares: rounding of float32."""


class OneLevel(FlowMatchingStep):
    """One noise level of those that an item has in another step."""

    def __init__(self, shared: FlowMatchingStep, level: int) -> None:
        super().__init__(shared.model, shared.seed, weighting_scheme=shared.settings.weighting_scheme)
        self.shared, self.level = shared, level

    def sample_noise_and_t(
        self, spec: BatchSpec, shape_CHW: torch.Size, levels: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor]:
        noise, t = self.shared.sample_noise_and_t(spec, shape_CHW, self.shared.most_levels)
        return noise[self.level :: self.shared.most_levels], t[self.level :: self.shared.most_levels]


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    timing.one_thread()
    report.card("noise levels", f"size {asked.size}, {asked.levels} levels, checkpointing {asked.checkpointing}")
    spec, side = SIZES[asked.size]
    with TemporaryDirectory() as folder:
        write_tiny_model(Path(folder), spec)
        model = FAMILY.open(ModelLoadOptions(Path(folder), torch.device("cpu"), torch.float32))
        network = LoraNetwork(list(model.lora_targets()), RANK, RANK, dropout=0.0, seed=SEED)
        network.attach(model.network_module)
        BlockRunner(model, torch.device("cpu"), torch.float32, asked.checkpointing)
        rows = {count: measure(model, network, count, side, asked) for count in asked.references}
    report.finish("noise_levels", **vars(asked), rows=rows)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--size", choices=SIZES, default="S")
    add("--levels", type=int, default=4)
    add("--references", type=int, nargs="*", default=[0, 1, 3])
    add("--checkpointing", choices=CHECKPOINTING_LEVELS, default="none")
    add("--rounds", type=int, default=5)
    add("--warm-up", type=int, default=1)
    add("--noisy", action="store_true", help="keep rounds in which other work held the processor")
    return parser.parse_args(argv)


def batch_of(references: int, side: int, channels: int) -> LatentBatch:
    """One item; the places of its references are in front of the text."""
    random = torch.Generator().manual_seed(SEED)
    slots = torch.full((FAMILY.max_references,), -1)
    slots[:references] = 0
    return LatentBatch(
        latents_BCHW=torch.randn(1, channels, side, side, generator=random),
        prompts=PromptEmbeds.stack([{EMBEDS: torch.randn(TEXT_TOKENS, TEXT_WIDTH, generator=random), SLOTS: slots}]),
        control_latents=(tuple(torch.randn(channels, side, side, generator=random) for _ in range(references)),),
        spec=BatchSpec(0, (0,), (0,)),
        names=("item",),
        loss_weight_B=torch.ones(1),
    )


def measure(
    model: DiffusionModel, network: LoraNetwork, references: int, side: int, asked: argparse.Namespace
) -> dict[str, float]:
    """Times and memory of both, as shares of those of the separate passes."""
    batch = batch_of(references, side, model.family.of_folder(model.options.folder).latent_channels)
    shared = FlowMatchingStep(model, SEED, noise_levels=asked.levels)
    passes = [OneLevel(shared, level) for level in range(asked.levels)]
    together = partial(gradients, network, [shared], batch)
    apart = partial(gradients, network, passes, batch)
    check_equal(together(), apart())
    rounds = timing.interleave({"together": together, "apart": apart}, asked.warm_up, asked.rounds, asked.noisy)
    ratio = timing.ratio(rounds.times["together"], rounds.times["apart"])
    memory = alive(together) / alive(partial(gradients, network, passes[:1], batch))
    computed = cost_of(asked.levels, TEXT_TOKENS + references * side**2, side**2)
    print(timing.table(rounds.times))
    print(
        f"{references} references: together / apart {ratio['cpu_min']:.3f} (CPU minimum), {ratio['wall_median']:.3f} "
        f"(wall median), {computed:.3f} of the tokens; memory {memory:.2f} of one pass; {rounds}"
    )
    return {**ratio, "tokens": computed, "memory_of_one_pass": memory, **rounds.facts()}


def gradients(network: LoraNetwork, steps: Sequence[FlowMatchingStep], batch: LatentBatch) -> dict[str, torch.Tensor]:
    """The mean gradient of these steps on the batch."""
    for parameter in network.parameters().values():
        parameter.grad = None
    for step in steps:
        (step(batch).by_role[NETWORK].mean() / len(steps)).backward()
    return {name: parameter.grad for name, parameter in network.parameters().items() if parameter.grad is not None}


def check_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Raises SystemExit where the two did not do the same work."""
    difference = sum(float((gradient - one[name]).square().sum()) for name, gradient in other.items()) ** 0.5
    whole = sum(float(gradient.square().sum()) for gradient in other.values()) ** 0.5
    if one.keys() != other.keys() or not difference <= ALLOWED_ERROR * whole:
        raise SystemExit(f"refused: the gradients differ by {difference / whole:.1e}.")


def alive(work: partial) -> int:
    """Bytes of tensors that `work` has alive at once, beside those that were there."""
    with LiveBytes() as live:
        live.phase("step")
        before = live.device
        work()
    return live.phases["step"].device - before


if __name__ == "__main__":
    main()
