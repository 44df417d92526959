"""Are LoRAs that turn into texture found, and sound ones left alone? Short trainings on
the tiny mascots.

`python benchmarks/figures/texture.py --folder OUT --sound 50 --planted 10`: in planted
runs the images have an added pattern (two of them, five strengths), which the network
learns. Optimizers and seeds alternate. Prints of each run the textures of its samples
and predicted images, and its lines; a run that `--folder` has already is not trained
again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks import report  # noqa: E402
from jobs import ExtensionJob, JobOptions  # noqa: E402
from toolkit.config import load_job  # noqa: E402
from toolkit.config.sections.dataset import TEXTURE  # noqa: E402
from toolkit.extension import discover  # noqa: E402
from toolkit.train.anomalies import texture_of  # noqa: E402
from toolkit.train.run_reader import list_samples, read_events  # noqa: E402

STEPS, EVERY = 30, 10
OPTIMIZERS = (
    {"optimizer": "muon", "lr": 0.02, "lr_scheduler": "cosine"},
    {"optimizer": "adamw", "lr": 0.002, "lr_scheduler": "constant"},
    {"optimizer": "adamw", "lr": 0.003, "lr_scheduler": "linear"},
    {"optimizer": "lion", "lr": 0.0005, "lr_scheduler": "constant"},
    {"optimizer": "adamw", "lr": 0.005, "lr_scheduler": "cosine"},
)
PROMPTS = (
    "a pipo mascot, wearing a yellow crown, holding nothing, cheering, in the snow",
    "a pipo mascot, wearing a red top hat, holding a balloon, waving, at the beach",
    "a round blue mascot with big eyes, wearing a red cap, holding nothing, waving, on a meadow",
)
PIPO = {"trigger": "pipo", "body": "star", "colour": "teal", "mark": "stripes"}
PICTURES: dict[str, dict[str, Any]] = {
    "pipo": {"count": 15, "character": PIPO},
    "held out": {"count": 4, "character": PIPO, "seed": 1},
    "others": {"count": 48},
}
"""Those held out never have a pattern."""


def run_process(folder: Path, name: str, *processes: dict[str, Any]) -> None:
    file = folder / f"{name}.json"
    file.write_text(
        json.dumps(
            {"job": "extension", "config": {"name": name, "process": list(processes)}}
        )
    )
    table = discover()
    job = ExtensionJob(load_job(file, table.find_config), table, JobOptions())
    try:
        job.run()
    finally:
        job.cleanup()


def plant(source: Path, target: Path, seed: int) -> Path:
    """The images with a pattern of 10 to 12 pixels, which the tiny VAE still shows."""
    target.mkdir(parents=True, exist_ok=True)
    y_HW, x_HW = np.mgrid[:128, :128] * 2 * np.pi / (10 + seed % 3)
    pattern_HW = (
        np.sign(np.sin(x_HW + y_HW))
        if seed % 2
        else np.sign(np.sin(x_HW) * np.sin(y_HW))
    )
    for path in sorted(source.iterdir()):
        shutil.copy(path, target / path.name)
        if path.suffix == ".png":
            image_HWP = np.asarray(Image.open(path).convert("RGB"), dtype=float)
            image_HWP = np.clip(
                image_HWP + (24 + 3 * (seed % 5)) * pattern_HW[..., None], 0, 255
            )
            Image.fromarray(image_HWP.round().astype("uint8")).save(target / path.name)
    return target


def section(folder: Path, pictures: Path, seed: int) -> dict[str, Any]:
    return {
        "type": "sd_trainer",
        "training_folder": str(folder / "out"),
        "device": "cpu",
        "training_seed": seed,
        "network": {"type": "lora", "linear": 16, "linear_alpha": 32},
        "save": {"save_every": 0, "states": "never"},
        "datasets": [
            {"folder_path": str(pictures), "num_repeats": 10, "resolution": 128},
            {
                "folder_path": str(folder / "others" / "pictures"),
                "is_reg": True,
                "resolution": 128,
            },
        ],
        "train": {
            **OPTIMIZERS[seed % len(OPTIMIZERS)],
            **{
                "batch_size": 4,
                "steps": STEPS,
                "dtype": "fp32",
                "gradient_checkpointing": False,
            },
            "group_by_length": True,
        },
        "model": {"name_or_path": str(ROOT / "config" / "examples" / "tiny_mascots")},
        "validation": {
            "folder_path": str(folder / "held out" / "pictures"),
            "every": EVERY,
            "timesteps": 4,
        },
        "sample": {
            **{
                "sample_every": EVERY,
                "width": 128,
                "height": 128,
                "sample_steps": 6,
                "guidance_scale": 1,
            },
            "prompts": list(PROMPTS),
        },
    }


def measured(run: Path) -> tuple[list[float], list[float], list[str]]:
    """Median texture of each set of samples, that of each validation, and the lines
    about it."""
    sets: dict[int, list[float]] = {}
    for sample in list_samples(run):
        with Image.open(sample.path) as image:
            sets.setdefault(sample.step, []).append(texture_of(image))
    rows = [
        json.loads(line) for line in (run / "validation.jsonl").read_text().splitlines()
    ]
    said = [
        event
        for event in read_events(run).rows
        if event["event"] == "warning" and event.get("kind") == "texture"
    ]
    lines = [
        f"{event['step']}: {'predicted' if 'validation' in event['message'] else 'samples'}"
        for event in said
    ]
    first = [
        max(values) if step == 0 else median(values)
        for step, values in sorted(sets.items())
    ]
    return first, [row[TEXTURE] for row in rows], lines


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--folder", type=Path, required=True, help="of pictures and runs"
    )
    parser.add_argument("--sound", type=int, default=50)
    parser.add_argument("--planted", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="seed of the first run")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    folder = asked.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    report.card(
        "texture",
        f"{asked.sound} sound and {asked.planted} planted runs of {STEPS} steps",
    )
    for name, keys in PICTURES.items():
        only = {"place": ["meadow", "room", "night"]}
        if not (folder / name).exists():
            mascots = {
                "type": "mascots",
                "name": name,
                "path": str(folder / name),
                "captions": "full",
                "only": only,
            }
            run_process(folder, name, mascots | keys)
    found = {"sound": 0, "planted": 0}
    for kind, count in (("planted", asked.planted), ("sound", asked.sound)):
        for seed in range(asked.first, asked.first + count):
            name, pictures, begun = (
                f"{kind}_{seed}",
                folder / "pipo" / "pictures",
                time.monotonic(),
            )
            if not (folder / "out" / name / "validation.jsonl").exists():
                pictures = (
                    plant(pictures, folder / name, seed)
                    if kind == "planted"
                    else pictures
                )
                run_process(folder, name, section(folder, pictures, seed))
            samples, predicted, lines = measured(folder / "out" / name)
            found[kind] += bool(lines)
            told = [
                " ".join(f"{value:.2f}" for value in values)
                for values in (samples, predicted)
            ]
            print(
                f"{name} | samples {told[0]} | predicted {told[1]} | {', '.join(lines)}",
                flush=True,
            )
            print(f"  {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    report.finish(
        "texture",
        runs={"sound": asked.sound, "planted": asked.planted},
        with_a_line=found,
    )


if __name__ == "__main__":
    main()
