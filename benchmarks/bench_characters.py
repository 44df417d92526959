"""Several characters in one LoRA: who appears when whom is asked for, by the classifier of mascots.

The quickstart with three characters instead of one; `mixed` gives a third of the images the caption of another one, as
a mistake that the table has to show.

`python benchmarks/bench_characters.py` trains both and prints a table each."""

from __future__ import annotations

import argparse
import copy
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
for folder in (ROOT / "config" / "examples" / "extensions", ROOT):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import yaml  # noqa: E402
from mascots.mascot import Casting, Lots, Mascot, random_mascot  # noqa: E402
from mascots.words import caption  # noqa: E402
from PIL import Image  # noqa: E402

import run  # noqa: E402
from benchmarks import report, timing  # noqa: E402
from benchmarks.bench_learning import LOOKS, MEASURED, SEED, training  # noqa: E402
from benchmarks.mascot_classifier import MascotClassifier, pixels_of, trained  # noqa: E402
from extensions.tools.best.characters import NOBODY, Judge, Table, lines_of, who_appears  # noqa: E402

QUICKSTART = MEASURED[0]
CHARACTERS = {
    "pipo": {"body": "star", "colour": "teal", "mark": "stripes"},
    "momo": {"body": "ghost", "colour": "brown", "mark": "spots"},
    "lulu": {"body": "star", "colour": "brown", "mark": "heart"},
}


def job_of(steps: int) -> dict[str, Any]:
    """The quickstart with these characters."""
    job = QUICKSTART.job()
    pipo, *others, section = job["config"]["process"]
    processes, datasets = [], []
    for name, looks in CHARACTERS.items():
        drawn, data = copy.deepcopy(pipo), copy.deepcopy(section["datasets"][0])
        drawn |= {"name": name, "path": f"pictures/{name}"}
        drawn["character"] |= {"trigger": name, **looks}
        data["folder_path"] = f"pictures/{name}/pictures"
        processes.append(drawn)
        datasets.append(data)
    section["datasets"] = [*datasets, *section["datasets"][1:]]
    section["train"]["steps"] = steps
    section["save"]["save_every"] = 0
    del section["sample"]
    job["config"]["process"] = [*processes, *others, section]
    return job


def mix(pictures: Path) -> None:
    """Gives every third image of a character the caption of the next one."""
    for name, other in zip(CHARACTERS, [*CHARACTERS][1:] + [*CHARACTERS][:1], strict=True):
        for file in sorted((pictures / name / "pictures").glob("*.txt"))[::3]:
            file.write_text(file.read_text(encoding="utf-8").replace(name, other), encoding="utf-8")


def judged_by(classifier: MascotClassifier) -> Judge:
    """Names the character whose body, colour and mark are all seen."""

    def judge(images: Sequence[Image.Image]) -> list[str]:
        rows = classifier.attributes(pixels_of(images))
        return [
            next((name for name, looks in CHARACTERS.items() if all(row[key] == looks[key] for key in LOOKS)), NOBODY)
            for row in rows
        ]

    return judge


def table_of(steps: int, count: int, mixed: bool, classifier: MascotClassifier) -> Table:
    """Trains the job in a new folder and asks for each character `count` times, in scenes that all its images show."""
    with tempfile.TemporaryDirectory() as name:
        here = Path.cwd()
        os.chdir(name)
        try:
            Path("config").symlink_to(ROOT / "config")
            job = job_of(steps)
            drawing = copy.deepcopy(job)
            drawing["config"]["process"] = job["config"]["process"][:-1]
            _run(drawing, "drawing")
            if mixed:
                mix(Path("pictures"))
            job["config"]["process"] = [training(job)]
            _run(job, "characters")
            tiny = QUICKSTART.tiny(str(next(Path("output").rglob("characters.safetensors")).resolve()), classifier)
        finally:
            os.chdir(here)

    def samples(name: str) -> list[Image.Image]:
        only = {
            "pose": ("standing", "jumping", "sitting"),
            "place": ("meadow", "room", "night"),
            "hat": ("none", "cap"),
        }
        casting = Casting(fixed=CHARACTERS[name] | {"trigger": name}, only=only)
        asked: list[Mascot] = [random_mascot(Lots(SEED, f"asked {name}", index), casting) for index in range(count)]
        return tiny.samples([caption(mascot) for mascot in asked])

    return who_appears(list(CHARACTERS), samples, judged_by(classifier))


def _run(job: dict[str, Any], name: str) -> None:
    job["config"]["name"] = name
    Path(f"{name}.yaml").write_text(yaml.safe_dump(job, sort_keys=False), encoding="utf-8")
    if code := run.main([f"{name}.yaml"]):
        sys.exit(code)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=360)
    parser.add_argument("--count", type=int, default=40, help="samples of each character")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    timing.one_thread()
    report.card("characters", f"{asked.steps} steps, {asked.count} samples of each character")
    classifier = trained()
    tables = {}
    for mixed in (False, True):
        name = "mixed" if mixed else "right"
        tables[name] = table_of(asked.steps, asked.count, mixed, classifier)
        print(name, *lines_of(tables[name]), sep="\n", flush=True)
    report.finish("characters", steps=asked.steps, count=asked.count, tables=tables)


if __name__ == "__main__":
    main()
