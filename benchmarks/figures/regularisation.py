"""What is kept of other mascots while a character is learned, at equal cost: no
regularisation, prior preservation, and images that the base model makes
(`datasets[].from_base`).

The quickstart's character alone, without its images of others. All ways have as many
optimizer steps and as many images with a backward pass per step: of `none` all show the
character; of the others half do, the other half are passes of the preservation, or
images of the base model. What each takes beside that is printed: passes without
gradients of the preservation at each step, and those in which the images are generated,
once. Samples are of prompts that no image was trained or generated with.

`python benchmarks/figures/regularisation.py` trains all ways with three seeds; `--way
none from_base`, `--seed 8`."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT / "config" / "examples" / "extensions", ROOT):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import yaml  # noqa: E402
from mascots.drawing import draw  # noqa: E402
from mascots.mascot import Casting, Lots, Mascot, random_mascot  # noqa: E402
from mascots.words import caption  # noqa: E402

import run  # noqa: E402
from benchmarks import report, timing  # noqa: E402
from benchmarks.figures.characters import NEW, SCENES, Judge, scene, share  # noqa: E402
from benchmarks.figures.learning import MEASURED, SEED, training  # noqa: E402
from benchmarks.mascot_classifier import trained  # noqa: E402
from benchmarks.mascot_model import SIDE  # noqa: E402

QUICKSTART = MEASURED[0]
NAME = "pipo"
PICTURES = 15
BASE_IMAGES, BASE_STEPS, BASE_GUIDANCE = 48, 8, 2.0
"""Of `from_base`, each from a prompt of its own, in steps and at a guidance as samples
have them."""

PER_STEP = 8
"""Images with a backward pass per optimizer step."""

CLASS = "round blue"
WAYS: dict[str, dict[str, Any]] = {
    "none": {},
    "class": {
        "diff_output_preservation": True,
        "diff_output_preservation_class": CLASS,
    },
    "blank": {"blank_prompt_preservation": True},
    "from_base": {},
}


def other(kind: str, index: int) -> Mascot:
    """One of those that the model knows."""
    return random_mascot(Lots(SEED, kind, index), Casting("pretraining"))


def base_prompts() -> list[str]:
    return [caption(other("base", index)) for index in range(BASE_IMAGES)]


def section_of(way: str, seed: int, steps: int) -> dict[str, Any]:
    """Draws the pictures into the working directory; the trainer's section."""
    Path(NAME).mkdir()
    for index in range(PICTURES):
        mascot = scene(NAME, "alone", index)
        draw([mascot], SIDE, SIDE).save(Path(NAME, f"{index:03}.png"))
        Path(NAME, f"{index:03}.txt").write_text(caption(mascot), encoding="utf-8")
    section = training(QUICKSTART.job())
    section["datasets"] = [{"folder_path": NAME, "num_repeats": 16, "resolution": SIDE}]
    if way == "from_base":
        Path("prompts.txt").write_text("\n".join(base_prompts()), encoding="utf-8")
        made = {
            "prompts": "prompts.txt",
            "sample_steps": BASE_STEPS,
            "guidance_scale": BASE_GUIDANCE,
        }
        repeats = PICTURES * 16 // BASE_IMAGES  # half of the uses
        section["datasets"].append(
            {
                "from_base": made,
                "num_repeats": repeats,
                "resolution": SIDE,
                "caption_dropout_rate": 0.15,
            }
        )
    batch = PER_STEP // 2 if way in ("class", "blank") else PER_STEP
    section["train"] |= {"steps": steps, "batch_size": batch, **WAYS[way]}
    section |= {"training_seed": seed, "trigger_word": NAME}
    section["save"]["save_every"] = 0
    del section["sample"]
    return section


def cost(way: str, steps: int) -> dict[str, int]:
    """Passes of one image through the model."""
    half = PER_STEP // 2 * steps
    without = {"class": half, "blank": half, "from_base": BASE_IMAGES * BASE_STEPS * 2}
    of_character = PER_STEP * steps if way == "none" else half
    return {
        "of the character": of_character,
        "all": PER_STEP * steps,
        "without gradients": without.get(way, 0),
    }


def measured(
    way: str, seed: int, steps: int, count: int, judge: Judge
) -> dict[str, float]:
    """Trains and asks, in a new folder."""
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            Path("config").symlink_to(ROOT / "config")
            job = QUICKSTART.job()
            job["config"] |= {"name": "kept", "process": [section_of(way, seed, steps)]}
            Path("job.yaml").write_text(
                yaml.safe_dump(job, sort_keys=False), encoding="utf-8"
            )
            if code := run.main(["job.yaml"]):
                sys.exit(code)
            return figures("output/kept/kept.safetensors", count, judge)
        finally:
            os.chdir(here)


def figures(lora: str, count: int, judge: Judge) -> dict[str, float]:
    """Shares of the samples with a LoRA file; without one those of the base model."""
    tiny = QUICKSTART.tiny(lora, judge.classifier)
    found = {}
    for kind, only in (("seen", SCENES), ("new", NEW)):
        asked = [scene(NAME, f"{kind} asked", index, only) for index in range(count)]
        names = judge.names(tiny.samples([caption(mascot) for mascot in asked]))
        found[f"the character, {kind} scenes"] = share([name == NAME for name in names])
    used = {*base_prompts()}
    others = [
        mascot
        for index in range(4 * count)
        if caption(mascot := other("stays", index)) not in used
    ][:count]
    pictures = tiny.samples([caption(mascot) for mascot in others])
    rows = list(zip(judge.rows(pictures), others, strict=True))
    for key in ("body", "colour"):
        found[f"others, {key}"] = share(
            [row[key] == getattr(mascot, key) for row, mascot in rows]
        )
    both = [
        row["body"] == mascot.body and row["colour"] == mascot.colour
        for row, mascot in rows
    ]
    found["others, both"] = share(both)
    found["others, drawn as the character"] = share(
        [name == NAME for name in judge.names(pictures)]
    )
    return found


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--way", choices=WAYS, nargs="*", default=[*WAYS])
    parser.add_argument("--seed", type=int, nargs="*", default=[8, 9, 10])
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--count", type=int, default=40, help="samples of each kind")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    timing.one_thread()
    report.card(
        "regularisation",
        f"{asked.steps} steps, {asked.count} samples of each kind, seeds {asked.seed}",
    )
    judge, found = Judge(trained()), {}
    found["base model"] = [figures("", asked.count, judge)]
    for way in asked.way:
        found[way] = [
            measured(way, seed, asked.steps, asked.count, judge) for seed in asked.seed
        ]
        print(f"\n{way}: passes {cost(way, asked.steps)}")
        for name in found[way][0]:
            each = [row[name] for row in found[way]]
            print(
                f"  {name}: {fmean(each):.0%} ({', '.join(f'{value:.0%}' for value in each)})",
                flush=True,
            )
    costs = {way: cost(way, asked.steps) for way in asked.way}
    report.finish(
        "regularisation",
        steps=asked.steps,
        seeds=asked.seed,
        count=asked.count,
        costs=costs,
        figures=found,
    )


if __name__ == "__main__":
    main()
