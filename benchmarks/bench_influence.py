"""Does `run.py influence` find what spoils a LoRA? Faults are planted in 10 % of 60 images of mascots, a LoRA is
trained for 8 epochs, and its images are ranked.

Figures of each dataset: AUC (the share of pairs of a planted and another image in which the planted one is ranked as
more harmful), passes against those of an epoch, suspects and how many of them are planted.

`python benchmarks/bench_influence.py` measures all kinds of faults with seeds 1 and 2; `--kind`, `--seed` others."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
for folder in (ROOT / "config" / "examples" / "extensions", ROOT):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import yaml  # noqa: E402
from mascots.drawing import draw, scribble  # noqa: E402
from mascots.mascot import Casting, Lots, Mascot, random_mascot, scene_of  # noqa: E402
from mascots.words import caption  # noqa: E402
from PIL import Image  # noqa: E402

from benchmarks import report  # noqa: E402

SIDE, IMAGES, PLANTED, STEPS, BATCH = 128, 60, 6, 120, 4
PIPO = {"trigger": "pipo", "body": "star", "colour": "teal", "mark": "stripes", "eyes": "big eyes"}

KINDS = {
    "wrong_captions": "images of one character, 10 % with the caption of another",
    "swapped_captions": "images of 60 mascots, 10 % with the caption of another image",
    "foreign": "images of one character, 10 % show another mascot in its scene, with its caption",
    "scribbles": "images of one character, 10 % show coloured shapes, with its caption",
    "clean": "images of one character",
}


@dataclass(frozen=True)
class Shown:
    """An image and its caption."""

    image: Image.Image
    caption: str


def dataset(kind: str, seed: int) -> tuple[list[Shown], set[int]]:
    """The images of a dataset, and the places of those with faults."""
    is_mixed = kind == "swapped_captions"
    casting = Casting("pretraining") if is_mixed else Casting(fixed=PIPO)
    mascots: list[Mascot] = []
    for index in range(IMAGES):
        lots = Lots(seed, "influence", index)
        mascot = random_mascot(lots, casting)
        mascots.append(mascot if is_mixed else scene_of(mascot, lots, casting))
    shown = [Shown(draw([mascot], SIDE, SIDE), caption(mascot)) for mascot in mascots]
    planted = sorted(Lots(seed, "planted", 0).some("bad", list(range(IMAGES)), PLANTED)) if kind != "clean" else []
    for place, index in enumerate(planted):
        right, own = shown[index], mascots[index]
        other = random_mascot(Lots(seed, "other", index), Casting("pretraining"))
        scene = {name: getattr(own, name) for name in ("hat", "hat_colour", "held", "pose", "place")}
        changes: dict[str, dict[str, Any]] = {
            "wrong_captions": {"caption": caption(other)},
            "swapped_captions": {"caption": caption(mascots[planted[(place + 1) % PLANTED]])},
            "foreign": {"image": draw([replace(other, **scene)], SIDE, SIDE)},
            "scribbles": {"image": scribble(Lots(seed, "scribble", index), SIDE, SIDE)},
        }
        shown[index] = replace(right, **changes[kind])
    return shown, set(planted)


def job(folder: Path, seed: int) -> dict:
    section = {
        "type": "sd_trainer",
        "training_folder": str(folder / "output"),
        "device": "cpu",
        "training_seed": seed,
        "network": {"type": "lora", "linear": 16, "linear_alpha": 32},
        "save": {"dtype": "float16", "save_every": 30, "max_step_saves_to_keep": 4},
        "datasets": [{"folder_path": str(folder / "images"), "resolution": SIDE}],
        "train": {
            "batch_size": BATCH,
            "steps": STEPS,
            "gradient_checkpointing": False,
            "noise_scheduler": "flowmatch",
            "optimizer": "muon",
            "lr": 0.02,
            "lr_scheduler": "cosine",
            "dtype": "fp32",
            "disable_sampling": True,
        },
        "model": {
            "name_or_path": str(ROOT / "config" / "examples" / "tiny_mascots"),
            "model_kwargs": {"match_target_res": True},
        },
    }
    return {"job": "extension", "config": {"name": "run", "process": [section]}, "meta": {"name": "[name]"}}


def auc(planted: Sequence[float], others: Sequence[float]) -> float:
    """The share of pairs in which the planted image has the lower number; half of those that are equal."""
    pairs = [(bad < good) + 0.5 * (bad == good) for bad in planted for good in others]
    return sum(pairs) / len(pairs) if pairs else float("nan")


def measure(kind: str, seed: int, folder: Path, flags: Sequence[str]) -> dict[str, object]:
    """The figures of one dataset."""
    (folder / "images").mkdir(parents=True)
    shown, planted = dataset(kind, seed)
    for index, each in enumerate(shown):
        each.image.save(folder / "images" / f"{index:03}.png")
        (folder / "images" / f"{index:03}.txt").write_text(each.caption, encoding="utf-8")
    (folder / "job.yaml").write_text(yaml.safe_dump(job(folder, seed)), encoding="utf-8")
    run = folder / "output" / "run"
    for command in ([str(folder / "job.yaml")], ["influence", str(run), *flags]):
        subprocess.run([sys.executable, "run.py", *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    found = json.loads((run / "influence" / "influence.json").read_text(encoding="utf-8"))
    rows = [(each["deviation"], int(Path(each["image"]).stem) in planted, each["suspect"]) for each in found["images"]]
    return {
        "auc": auc([row[0] for row in rows if row[1]], [row[0] for row in rows if not row[1]]),
        "passes": found["passes"],
        "passes_of_an_epoch": found["passes_of_an_epoch"],
        "suspects": sum(row[2] for row in rows),
        "planted_suspects": sum(row[1] and row[2] for row in rows),
    }


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kind", choices=KINDS, nargs="*", default=list(KINDS))
    parser.add_argument("--seed", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--flags", default="", help="further flags of run.py influence, in one text")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    given = arguments(argv)
    report.card("bench_influence", f"{PLANTED} of {IMAGES} images with faults, {STEPS * BATCH // IMAGES} epochs")
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for kind in given.kind:
            print(f"{kind}: {KINDS[kind]}", flush=True)
            for seed in given.seed:
                name = f"{kind}_{seed}"
                row = measure(kind, seed, Path(temporary, name), given.flags.split())
                print(
                    f"  seed {seed}: AUC {row['auc']:.3f}; {row['passes']} passes, an epoch has "
                    f"{row['passes_of_an_epoch']}; {row['suspects']} suspects, {row['planted_suspects']} planted",
                    flush=True,
                )
                # A clean set has no AUC, and JSON no NaN.
                figures |= {f"{name}_{what}": value for what, value in row.items() if value == value}
    report.finish("influence", **figures)


if __name__ == "__main__":
    main()
