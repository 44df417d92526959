"""Trains a few-step LoRA of the tiny mascots: 4 steps at CFG 1 end where 28 steps with guidance end.

It stands in for the Lightning LoRAs of Qwen-Image. Trajectory distillation: the teacher, the model with guidance, walks
from noise to an image in 28 Euler steps; between two levels of the 4-step schedule the student learns the one
velocity that takes it as far as the teacher went.

`python benchmarks/few_step_adapter.py output/few_step.safetensors` takes about 8 minutes on a core.

Shape suffixes: N images, T levels of the few-step schedule, B batch, C channels, H/W latent height and width."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
for folder in (ROOT / "config" / "examples" / "extensions", ROOT):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import torch  # noqa: E402
from mascots.mascot import Casting, Lots, random_mascot  # noqa: E402
from mascots.words import caption  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks import report, timing  # noqa: E402
from benchmarks.bench_mascots import GUIDANCE, SIDE, load  # noqa: E402
from toolkit.config.network import NetworkConfig  # noqa: E402
from toolkit.data.types import EncodedPrompt, PromptEmbeds, Size  # noqa: E402
from toolkit.flow.sampler import sigmas  # noqa: E402
from toolkit.models.interface import DiffusionModel  # noqa: E402
from toolkit.networks.lora import LoraNetwork  # noqa: E402
from toolkit.networks.save import write_safetensors_verified  # noqa: E402
from toolkit.system.seeding import generator  # noqa: E402

SEED = 314
MODEL = ROOT / "config" / "examples" / "tiny_mascots"
FEW, MANY, SHIFT = 4, 28, 3.0
"""Steps of the student and of the teacher, and the shift of the levels of both, as of the Lightning LoRAs."""

RANK, BATCH, LR = 32, 32, 2e-3


def schedule(steps: int) -> Tensor:
    """Levels [steps + 1] from 1 down to 0."""
    return sigmas(steps, math.log(SHIFT), None)


@torch.no_grad()
def trajectories(model: DiffusionModel, prompts: Sequence[EncodedPrompt], empty: EncodedPrompt) -> Tensor:
    """Latents of the teacher at the levels of the few-step schedule [N, FEW + 1, C, H, W]."""
    family, levels = model.family, schedule(MANY)
    width, height = family.latent_size(Size(SIDE, SIDE))
    walked = []
    for begin in range(0, len(prompts), BATCH):
        part = prompts[begin : begin + BATCH]
        asked, unasked = PromptEmbeds.stack(part), PromptEmbeds.stack([empty] * len(part))
        none: list[list[Tensor]] = [[] for _ in part]
        draws = generator(SEED, "noise", begin)
        x_BCHW = torch.randn((len(part), family.latent_channels, height, width), generator=draws)
        seen = [x_BCHW]
        for step in range(MANY):
            t_B = levels[step].expand(len(part))
            cond_BCHW = model.predict_velocity(x_BCHW, t_B, asked, none)
            uncond_BCHW = model.predict_velocity(x_BCHW, t_B, unasked, none)
            x_BCHW = x_BCHW + (levels[step + 1] - levels[step]) * model.apply_cfg(cond_BCHW, uncond_BCHW, GUIDANCE)
            if (step + 1) % (MANY // FEW) == 0:
                seen.append(x_BCHW)
        walked.append(torch.stack(seen, 1))
    return torch.cat(walked)


def distil(model: DiffusionModel, prompts: Sequence[EncodedPrompt], walked_NTCHW: Tensor, steps: int) -> LoraNetwork:
    """The LoRA whose velocity at each level of the few-step schedule leads to the teacher's latents at the next."""
    network = LoraNetwork.from_config(NetworkConfig(linear=RANK, linear_alpha=RANK), model.lora_targets(), SEED)
    network.attach(model.network_module)
    levels = schedule(FEW)
    optimizer = torch.optim.AdamW(network.parameters().values(), LR, weight_decay=0.0)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, steps, pct_start=0.05)
    for step in range(steps):
        draws = generator(SEED, "batch", step)
        rows = torch.randint(len(prompts), (BATCH,), generator=draws)
        at = torch.randint(FEW, (BATCH,), generator=draws)
        x_BCHW, next_BCHW = walked_NTCHW[rows, at], walked_NTCHW[rows, at + 1]
        span_B111 = (levels[at + 1] - levels[at]).view(-1, 1, 1, 1)
        asked = PromptEmbeds.stack([prompts[row] for row in rows])
        predicted_BCHW = model.predict_velocity(x_BCHW, levels[at], asked, [[] for _ in rows])
        loss = (predicted_BCHW - (next_BCHW - x_BCHW) / span_B111).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}: loss {loss.item():.4f}", flush=True)
    return network


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path, nargs="?", default=Path("output/few_step.safetensors"))
    parser.add_argument("--images", type=int, default=640, help="trajectories of the teacher")
    parser.add_argument("--steps", type=int, default=1000)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    timing.one_thread()
    report.card("few_step_adapter", f"{asked.images} trajectories, {asked.steps} steps of {BATCH}")
    model = load(str(MODEL))
    mascots = [random_mascot(Lots(SEED, "few step", index), Casting("pretraining")) for index in range(asked.images)]
    # Captions of one length are neighbours: a pass of the model for a batch.
    texts = sorted((caption(mascot) for mascot in mascots), key=lambda text: len(text.split()))
    with torch.no_grad():
        prompts, empty = [model.encode_prompt(text, []) for text in texts], model.encode_prompt(" ", [])
    walked_NTCHW = trajectories(model, prompts, empty)
    network = distil(model, prompts, walked_NTCHW, asked.steps)
    asked.file.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.detach() for name, weight in network.parameters().items()}
    write_safetensors_verified(asked.file, network.export(weights), {})
    print(f"{asked.file}: {FEW} steps, CFG 1, flow_shift {SHIFT:g}")


if __name__ == "__main__":
    main()
