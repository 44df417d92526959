"""Does it learn what somebody likes? Votes for blue on samples of the small model, judged by the classifier.

Prompts leave the colour of a mascot open; of two samples of each, one blue and one not, the blue one is better. Then
samples of unseen prompts show how often they are blue, and whether what other prompts name stays. Beside it plain
training on the better images with as many steps, and the votes exchanged.

`python benchmarks/bench_preference.py` measures all; `--beta 500 2000` a sweep."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
for folder in (ROOT / "config" / "examples" / "extensions", ROOT):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from mascots.mascot import Casting, Lots, Mascot, random_mascot  # noqa: E402
from mascots.words import caption  # noqa: E402

from benchmarks import report, timing  # noqa: E402
from benchmarks.bench_mascots import TinyModel, load  # noqa: E402
from benchmarks.mascot_classifier import MascotClassifier, agreement, pixels_of, trained  # noqa: E402

MODEL = ROOT / "config" / "examples" / "tiny_mascots"
SEED, LIKED, STEPS = 7, "blue", 8
NAMED = ("pose", "place", "hat", "colour")


def mascots(kind: str, count: int) -> list[Mascot]:
    return [random_mascot(Lots(SEED, kind, index), Casting("pretraining")) for index in range(count)]


def without_colour(mascot: Mascot) -> str:
    """Its caption, the colour of its body left open."""
    return caption(mascot).replace(f" {mascot.colour} ", " ", 1)


def write_pairs(tiny: TinyModel, folder: Path, wanted: int) -> None:
    """Images of pairs, and two tables that name them: votes for blue, and these exchanged."""
    rows: list[tuple[str, str, str]] = []
    for number in range(100):
        prompts = [without_colour(mascot) for mascot in mascots(f"votes {number}", 50)]
        pictures = tiny.samples(prompts * 2)  # each twice, by the noise of its place
        seen = tiny.seen(pictures)
        for index, prompt in enumerate(prompts):
            pair = index, index + len(prompts)
            liked = [place for place in pair if seen[place]["colour"] == LIKED]
            if len(liked) == 1 and len(rows) < wanted:
                (worse,) = set(pair) - set(liked)
                names = [f"{number}_{place}.png" for place in (liked[0], worse)]
                for name, place in zip(names, (liked[0], worse), strict=True):
                    pictures[place].save(folder / name)
                rows.append((*names, prompt))
        if len(rows) == wanted:
            break
    for name, order in (("votes", (0, 1)), ("exchanged", (1, 0))):
        lines = ({"better": row[order[0]], "worse": row[order[1]], "prompt": row[2]} for row in rows)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def train(folder: Path, name: str, table: Path, steps: int, lr: float, preference: dict[str, float] | None) -> Path:
    """A LoRA file; preference: None for plain training on the better images."""
    section: dict[str, Any] = {
        "type": "sd_trainer",
        "training_folder": str(folder),
        "training_seed": SEED,
        "network": {"type": "lora", "linear": 16, "linear_alpha": 16},
        "datasets": [{"captions_file": str(table), "resolution": 128}],
        "train": {"batch_size": 4, "steps": steps, "lr": lr, "optimizer": "adamw", "dtype": "fp32"},
        "model": {"name_or_path": str(MODEL), "model_kwargs": {"match_target_res": True}},
    }
    section["train"] |= {"gradient_checkpointing": False, "ema_config": {"use_ema": True, "ema_decay": 0.98}}
    if preference is not None:
        section["train"]["preference"] = preference
    job = folder / f"{name}.json"
    job.write_text(json.dumps({"job": "extension", "config": {"name": name, "process": [section]}}), encoding="utf-8")
    subprocess.run([sys.executable, str(ROOT / "run.py"), str(job)], check=True, stdout=subprocess.DEVNULL)
    return folder / name / f"{name}.safetensors"


def figures(classifier: MascotClassifier, lora: str, count: int) -> dict[str, float]:
    """The share of blue where the colour is open, and of what other prompts name."""
    tiny = TinyModel(load(str(MODEL), lora), classifier, STEPS, 2)
    openly = tiny.seen(tiny.samples([without_colour(mascot) for mascot in mascots("unseen", count)]))
    named = mascots("named", count)
    shares = agreement(classifier, pixels_of(tiny.samples([caption(mascot) for mascot in named])), named)
    return {LIKED: sum(row["colour"] == LIKED for row in openly) / count, **{name: shares[name] for name in NAMED}}


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--beta", type=float, nargs="*", default=[2000.0])
    add("--pairs", type=int, default=60)
    add("--steps", type=int, default=200)
    add("--lr", type=float, default=1e-3)
    add("--count", type=int, default=100, help="samples of each kind")
    add("--sweep", action="store_true", help="the values of beta alone")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    timing.one_thread()
    report.card("preference", f"{asked.pairs} pairs, {asked.steps} steps, {asked.count} samples of each kind")
    classifier, found = trained(), {}

    def line(name: str, lora: str, seconds: float = 0) -> None:
        found[name] = figures(classifier, lora, asked.count)
        shares = ", ".join(f"{what} {share:.0%}" for what, share in found[name].items())
        print(f"{name:<14} {shares}, {seconds:.0f} s", flush=True)

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_pairs(TinyModel(load(str(MODEL)), classifier, STEPS, 2), folder, asked.pairs)
        line("before", "")
        runs = [(f"beta {beta:g}", "votes", {"beta": beta}) for beta in asked.beta]
        others = [("plain", "votes", None), ("exchanged", "exchanged", {"beta": asked.beta[0]})]
        for name, table, preference in runs + ([] if asked.sweep else others):
            began = time.perf_counter()
            lora = train(folder, name.replace(" ", "_"), folder / f"{table}.jsonl", asked.steps, asked.lr, preference)
            line(name, str(lora), time.perf_counter() - began)
    report.finish("preference", figures=found)


if __name__ == "__main__":
    main()
