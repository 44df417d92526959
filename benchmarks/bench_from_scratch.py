"""Training from nothing on drawn pictures: `python benchmarks/bench_from_scratch.py vae`.

- `vae`: an autoencoder of at most 1.5 million parameters, by a job of `vae_trainer`; PSNR on pictures held out of it.
- `gan`: the same, shorter, with the discriminator on from `--gan-start`; the range of its losses afterwards.
- `losses`: short runs on crops of the example photographs: the default losses against those of FluxFlow's guide, and
  the adaptive weight of the discriminator against a fixed one; PSNR on crops of a photograph not trained on.
- `flow`: a model of `flow_trainer` on the latents of such an autoencoder; its loss on held-out pictures against that of
  predicting the mean, and whether its samples for two captions are told apart by `mascot_classifier.py`.
- `step`: a step of `vae_trainer` against the same step written plainly with diffusers, taking turns.

The jobs are those a user would write; only the last part is run in this process.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from benchmarks import report, timing  # noqa: E402
from extensions.from_scratch.autoencoders import KINDS, Autoencoder  # noqa: E402
from extensions.from_scratch.vae_process import psnr  # noqa: E402

SIDE = 64
TRAINING, HELD_OUT = 1200, 200
"""Pictures. Those held out have bodies, colours and hats together that no training picture has."""

BATCH = 8
STEPS, GAN_STEPS, GAN_START = 700, 700, 200
SETTLED = 200
"""Steps after its start from which on the losses of the discriminator are judged."""

LEVELS = 3
MODEL: dict[str, Any] = {
    "class_name": "AutoencoderKL",
    "initial_logvar": -4,
    "config": {
        "block_out_channels": [16, 48, 64],
        "down_block_types": ["DownEncoderBlock2D"] * LEVELS,
        "up_block_types": ["UpDecoderBlock2D"] * LEVELS,
        "layers_per_block": 1,
        "latent_channels": 8,
        "norm_num_groups": 8,
        "mid_block_add_attention": False,
    },
}
LOSSES = {"l1": 0, "reconstruction": 1.0, "mse": 2.0, "kl": 1e-4, "kl_warmup_steps": 200}
DISCRIMINATOR = {"channels": 16, "layers": 3}
DISCRIMINATOR_OPTIMIZER = {"optimizer": "adamw", "lr": 2e-4}
ADVERSARIAL = 0.1
WINDOW = 10
"""Steps over which the adversarial losses are averaged: a batch of 8 says little alone."""

PHOTOS, UNSEEN = ROOT / "config" / "examples" / "photos", "chelsea"
CROPS, UNSEEN_CROPS, CROPS_STEPS = 200, 40, 400
GUIDE = {"l1": 0, "reconstruction": 1, "mse": 0.1, "contrast": 0.1, "color": 0.05, "histogram": 0.02}
"""Losses of FluxFlow's guide."""

TRANSFORMER = {"num_layers": 4, "num_attention_heads": 4, "attention_head_dim": 32, "patch_size": 2}
TEXT_ENCODER = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 128}
FLOW_STEPS, SAMPLES = 450, 40
PROMPTS = {
    colour: f"a round {colour} mascot with big eyes, without a hat, holding nothing, standing, on a meadow"
    for colour in ("red", "blue")
}
"""Colour -> the caption that asks for it, all else alike. There are `SAMPLES` samples of each."""


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    timing.one_thread()
    report.card("from_scratch", f"{asked.part}: {TRAINING} + {HELD_OUT} drawn pictures of {SIDE} x {SIDE}")
    with TemporaryDirectory() as temporary:
        folder = Path(asked.folder or temporary).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        PARTS[asked.part](folder, asked)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("part", choices=list(PARTS))
    add(
        "--steps",
        type=int,
        help=f"optimizer steps of the job: vae {STEPS}, gan {GAN_STEPS}, losses {CROPS_STEPS}, flow {FLOW_STEPS}",
    )
    add("--vae", help="flow: folder of an autoencoder that an earlier run left; else one is trained first")
    add("--gan-start", type=int, default=GAN_START, help="step at which the discriminator begins")
    add("--pictures", type=int, default=TRAINING, help="pictures that are trained on")
    add("--folder", help="where to work, and leave everything")
    add("--rounds", type=int, default=15, help="timed steps of each variant")
    add("--warm-up", type=int, default=2, help="untimed steps of each variant, after the first")
    add("--noisy", action="store_true", help="keep rounds in which other work held the processor")
    return parser.parse_args(argv)


# ------------------------------------------------------------ jobs


def drawing(folder: Path, pictures: int) -> list[dict[str, Any]]:
    """The processes that draw the pictures."""
    shared = {"type": "mascots", "size": SIDE, "captions": "full"}
    return [
        {**shared, "name": "training pictures", "path": str(folder / "training"), "count": pictures},
        {**shared, "name": "held out", "path": str(folder / "held_out"), "count": HELD_OUT, "mascots": "held_out"},
    ]


def vae_section(folder: Path, name: str, steps: int, **changes: object) -> dict[str, Any]:
    """The process that trains the autoencoder."""
    return {
        "type": "vae_trainer",
        "name": name,
        "training_folder": str(folder),
        "device": "cpu",
        "training_seed": 0,
        "model": MODEL,
        "losses": LOSSES,
        "train": {
            "steps": steps,
            "batch_size": BATCH,
            "dtype": "fp32",
            "optimizer": "muon",
            "optimizer_params": {"weight_decay": 0},
            "lr": 0.02,
            "lr_scheduler": "cosine",
            "lr_warmup_steps": min(50, steps // 4),
        },
        "save": {"save_every": 0},
        "datasets": [{"folder_path": str(folder / "training" / "pictures"), "resolution": SIDE}],
        **changes,
    }


def flow_section(folder: Path, vae: str, steps: int) -> dict[str, Any]:
    """The process that trains the flow model, validates it on the held-out pictures and samples in the end."""
    return {
        "type": "flow_trainer",
        "name": "flow",
        "training_folder": str(folder),
        "device": "cpu",
        "training_seed": 0,
        "model": {"vae": vae, "transformer": {"config": TRANSFORMER}, "text_encoder": {"config": TEXT_ENCODER}},
        "optimizers": {"text_encoder": {"lr": 1e-3}},
        "train": {
            "steps": steps,
            "batch_size": 32,
            "dtype": "fp32",
            "optimizer": "adamw",
            "lr": 1e-3,
            "lr_scheduler": "cosine",
            "lr_warmup_steps": min(50, steps // 4),
            "ema_config": {"use_ema": True, "ema_decay": 0.99},
        },
        "save": {"save_every": 0},
        "validation": {"folder_path": str(folder / "held_out" / "pictures")},
        "sample": {
            "sample_every": 0,
            "width": SIDE,
            "height": SIDE,
            "walk_seed": True,
            "guidance_scale": 3.0,
            "sample_steps": 16,
            "flow_shift": 1,
            "format": "png",
            "samples": [{"prompt": prompt} for _ in range(SAMPLES) for prompt in PROMPTS.values()],
        },
        "datasets": [
            {
                "folder_path": str(folder / "training" / "pictures"),
                "resolution": SIDE,
                "caption_dropout_rate": 0.1,
            }
        ],
    }


def run_job(folder: Path, name: str, processes: list[dict[str, Any]]) -> float:
    """Runs a job of these processes as a user would, on one thread. Returns CPU seconds."""
    file = folder / f"{name}.json"
    file.write_text(json.dumps({"job": "extension", "config": {"name": name, "process": processes}}, indent=2))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, str(ROOT / "run.py"), str(file)]
    result = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        sys.exit(
            f"refused: the job {name} ended with {result.returncode}.\n{result.stdout[-2000:]}{result.stderr[-2000:]}"
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def autoencoder_of(folder: Path) -> Autoencoder:
    """The autoencoder that a run left."""
    kind = KINDS[json.loads((folder / "config.json").read_text())["_class_name"]]
    autoencoder = kind(kind.model_class.from_pretrained(folder))
    autoencoder.module.eval()
    return autoencoder


@torch.no_grad()
def reconstruction_psnr(autoencoder: Autoencoder, files: Iterable[Path]) -> dict[str, float]:
    """PSNR of each picture's reconstruction from the mean of its latents, dB: mean and lowest."""
    found = []
    for file in files:
        pixels_13HW = _pixels(file)
        found.append(psnr(autoencoder.decode(autoencoder.encode(pixels_13HW)[0]).clamp(-1, 1), pixels_13HW))
    return {"mean": sum(found) / len(found), "lowest": min(found)}


def _pixels(file: Path) -> torch.Tensor:
    """[1, 3, H, W] in [-1, 1]."""
    pixels_HW3 = torch.from_numpy(np.array(Image.open(file).convert("RGB")))
    return pixels_HW3.permute(2, 0, 1)[None].float() / 127.5 - 1


def metrics_of(folder: Path) -> list[dict[str, float]]:
    """One row for each step of a run."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# ------------------------------------------------------------ the parts


def quality(folder: Path, asked: argparse.Namespace) -> None:
    steps = asked.steps or STEPS
    run_job(folder, "drawing", drawing(folder, asked.pictures))
    cpu_s = run_job(folder, "vae", [vae_section(folder, "vae", steps)])
    autoencoder = autoencoder_of(folder / "vae" / "vae" / "vae")
    parameters = sum(p.numel() for p in autoencoder.module.parameters())
    found = reconstruction_psnr(autoencoder, sorted((folder / "held_out" / "pictures").glob("*.png")))
    print(f"{parameters:,} parameters, {steps} steps of {BATCH}: {cpu_s / 60:.1f} CPU minutes, the start included")
    print(f"PSNR on {HELD_OUT} held-out pictures: mean {found['mean']:.2f} dB, lowest {found['lowest']:.2f} dB")
    report.finish("from_scratch", part="vae", parameters=parameters, steps=steps, cpu_s=cpu_s, psnr=found)


def adversarial(folder: Path, asked: argparse.Namespace) -> None:
    steps = asked.steps or GAN_STEPS
    run_job(folder, "drawing", drawing(folder, asked.pictures))
    section = vae_section(
        folder,
        "gan",
        steps,
        losses={**LOSSES, "adversarial": ADVERSARIAL},
        discriminator={**DISCRIMINATOR, "start_step": asked.gan_start},
        optimizers={"discriminator": DISCRIMINATOR_OPTIMIZER},
    )
    cpu_s = run_job(folder, "gan", [section])
    rows = [row for row in metrics_of(folder / "gan" / "gan") if row["step"] > asked.gan_start + SETTLED]
    ranges = {name: range_of(row[name] for row in rows) for name in ("loss_disc_real", "loss_disc_fake", "loss_gen")}
    autoencoder = autoencoder_of(folder / "gan" / "gan" / "gan")
    found = reconstruction_psnr(autoencoder, sorted((folder / "held_out" / "pictures").glob("*.png")))
    for name, values in ranges.items():
        print(f"{name}: {values['lowest']:.3f} to {values['highest']:.3f}, mean {values['mean']:.3f}")
    settled = f"{len(rows)} steps from {SETTLED} after its start on, means of {WINDOW} steps"
    print(f"{settled}; PSNR {found['mean']:.2f} dB; {cpu_s / 60:.1f} CPU minutes")
    report.finish("from_scratch", part="gan", steps=steps, cpu_s=cpu_s, losses=ranges, psnr=found)


def losses(folder: Path, asked: argparse.Namespace) -> None:
    steps = asked.steps or CROPS_STEPS
    cut_crops(folder)
    train = {"steps": steps, "batch_size": BATCH, "dtype": "fp32", "optimizer": "adamw", "lr": 1e-3}
    gan = {**DISCRIMINATOR, "start_step": steps // 2}
    variants: dict[str, dict[str, Any]] = {
        "guide": {"losses": GUIDE},
        "default": {},
        "GAN, fixed weight": {"discriminator": {**gan, "adaptive_weight": False}},
        "GAN, adaptive weight": {"discriminator": gan},
    }
    found = {}
    for number, (name, changes) in enumerate(variants.items()):
        run_job(
            folder, f"crops_{number}", [vae_section(folder, "crops", steps, train=train, **{"losses": {}, **changes})]
        )
        autoencoder = autoencoder_of(folder / f"crops_{number}" / "crops" / "crops")
        found[name] = reconstruction_psnr(autoencoder, sorted((folder / "held_out" / "pictures").glob("*.png")))["mean"]
        print(f"{name}: PSNR {found[name]:.2f} dB after {steps} steps of {BATCH}")
    report.finish("from_scratch", part="losses", steps=steps, psnr=found)


def cut_crops(folder: Path) -> None:
    """Square crops of the photographs, at random places and of random sizes, scaled to `SIDE`."""
    files, random = sorted(PHOTOS.glob("*/*.jpg")), np.random.default_rng(0)
    for name, count in (("training", CROPS), ("held_out", UNSEEN_CROPS)):
        (folder / name / "pictures").mkdir(parents=True, exist_ok=True)
        photos = [Image.open(file) for file in files if (file.stem == UNSEEN) == (name == "held_out")]
        for number in range(count):
            photo = photos[number % len(photos)]
            side = int(random.integers(SIDE, min(photo.size) + 1))
            left, top = (int(random.integers(0, full - side + 1)) for full in photo.size)
            crop = photo.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            crop.save(folder / name / "pictures" / f"{number:03}.png")


def flow(folder: Path, asked: argparse.Namespace) -> None:
    from benchmarks import mascot_classifier

    steps, vae = asked.steps or FLOW_STEPS, asked.vae or str(folder / "vae" / "vae" / "vae")
    run_job(folder, "drawing", drawing(folder, asked.pictures))
    if not asked.vae:
        run_job(folder, "vae", [vae_section(folder, "vae", STEPS)])
    cpu_s = run_job(folder, "flow", [flow_section(folder, vae, steps)])
    run = folder / "flow" / "flow"
    loss = json.loads((run / "validation.jsonl").read_text().splitlines()[-1])["validation/loss"]
    mean = loss_of_the_mean(Path(vae), folder)
    files = sample_files(run / "samples", steps)
    wanted = [list(PROMPTS)[index % len(PROMPTS)] for index in range(len(files))]
    seen = mascot_classifier.trained().attributes(mascot_classifier.pixels_of(map(Image.open, files)))
    told = sum(row["colour"] == colour for row, colour in zip(seen, wanted, strict=True)) / len(files)
    print(f"held-out loss {loss:.4f}, of the mean {mean:.4f}: ratio {loss / mean:.3f}")
    print(f"colour of {len(files)} samples as asked for: {told:.1%}; {steps} steps, {cpu_s / 60:.1f} CPU minutes")
    report.finish(
        "from_scratch", part="flow", steps=steps, cpu_s=cpu_s, loss=loss, of_mean=mean, ratio=loss / mean, told=told
    )


def sample_files(folder: Path, step: int) -> list[Path]:
    """The samples of a step in the order of their prompts; their numbers are not padded."""
    return sorted(folder.glob(f"{step:09}_*.png"), key=lambda file: int(file.stem.partition("_")[2]))


@torch.no_grad()
def loss_of_the_mean(vae: Path, folder: Path) -> float:
    """Mean squared error of always predicting the mean velocity, noise - latents, on the held-out pictures: 1 for the
    noise, and what the latents differ by from the mean of the training pictures at each place."""
    autoencoder = autoencoder_of(vae)

    def latents(name: str) -> torch.Tensor:
        files = sorted((folder / name / "pictures").glob("*.png"))
        return torch.cat([autoencoder.normalised(autoencoder.encode(_pixels(file))[0]) for file in files])

    mean_1CHW = latents("training").mean(0, keepdim=True)
    return 1 + float((latents("held_out") - mean_1CHW).square().mean())


def range_of(values: Iterable[float]) -> dict[str, float]:
    """Of means over `WINDOW` steps."""
    found = list(values)
    means = [sum(found[at : at + WINDOW]) / WINDOW for at in range(0, len(found) - WINDOW + 1, WINDOW)]
    return {"lowest": min(means), "highest": max(means), "mean": sum(means) / len(means)}


def step_time(folder: Path, asked: argparse.Namespace) -> None:
    from benchmarks.vae_loops import OurVaeLoop, PlainVaeLoop

    run_job(folder, "drawing", drawing(folder, 64))
    ours = OurVaeLoop(folder, vae_section(folder, "step", 1000, train=STEP_TRAIN))
    plain = PlainVaeLoop(ours)
    for loop in (ours, plain):
        loop.step()
    error = abs(ours.losses[0] / plain.losses[0] - 1)
    print(f"loss of step 1: ours {ours.losses[0]:.6f}, plain {plain.losses[0]:.6f}; ours differs by {error:.1e}")
    if not error <= 1e-5:
        sys.exit("refused: the first losses of ours and plain differ by more than 1e-05.")
    rounds = timing.interleave({"ours": ours.step, "plain": plain.step}, asked.warm_up, asked.rounds, asked.noisy)
    print(timing.table(rounds.times))
    ratio = timing.ratio(rounds.times["ours"], rounds.times["plain"])
    print(f"{rounds}; loss of step {len(ours.losses)}: ours {ours.losses[-1]:.6f}, plain {plain.losses[-1]:.6f}")
    print(f"ours / plain: {ratio['cpu_min']:.3f} (CPU minimum), {ratio['wall_median']:.3f} (wall median)")
    times = {name: t.summary() for name, t in rounds.times.items()}
    losses = {"ours": ours.losses, "plain": plain.losses}
    report.finish(
        "from_scratch", part="step", losses=losses, times=times, ratios=ratio, ratio=ratio["cpu_min"], **rounds.facts()
    )


STEP_TRAIN = {"steps": 1000, "batch_size": BATCH, "dtype": "fp32", "optimizer": "adamw", "lr": 1e-3}
"""Of the job whose step is timed; AdamW, since diffusers' users have it."""

PARTS: dict[str, Callable[[Path, argparse.Namespace], None]] = {
    "vae": quality,
    "gan": adversarial,
    "losses": losses,
    "flow": flow,
    "step": step_time,
}


if __name__ == "__main__":
    main()
