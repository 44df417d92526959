"""What an entry of the queue is to people: the job or run that it is about, a sentence
in place of its command, and pictures.

The pages of the queue and of a run (`extensions.tools.ui.views`) call this module.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from extensions.tools.shared.html_page import texts
from extensions.tools.ui.datasets import read_dataset, thumbs
from extensions.tools.ui.job_text import JobText
from extensions.tools.ui.path import dataset_at
from extensions.tools.ui.queue import Entry
from extensions.tools.ui.state import Ui, run_id
from extensions.tools.ui.steps import text_of
from toolkit.errors import RunError, UserError
from toolkit.files import run_files
from toolkit.files.redact import redact_text
from toolkit.files.writing import find_config
from toolkit.train.run_reader import RunInfo, read_run

FOLDER = "datasets[].folder_path"


def file_of(cwd: str, name: str) -> Path:
    """The file that the first word of a command means in a working directory."""
    named = os.path.expanduser(name)
    for folder in (cwd, os.path.join(cwd, "config")):
        with suppress(UserError, OSError):
            return find_config(os.path.join(folder, named))
    return Path(cwd, named)


def job_of(entry: Entry | None) -> JobText | None:
    """The job that an entry starts. None: it is a tool, or cannot be read."""
    if entry and entry.argv:
        with suppress(OSError):
            return JobText(text_of(file_of(entry.cwd, entry.argv[0])))
    return None


def run_of(ui: Ui, entry: Entry) -> tuple[RunInfo | None, str]:
    """The latest run of an entry, or the one in which its tool works, and its id, where
    it is one of this page's folder."""
    output = ui.output.resolve()
    values = [word.partition("=")[2] for word in entry.argv[1:] if "=" in word]
    named = [Path(entry.cwd, value).resolve() for value in values if len(value) < 4096]
    inside = [path.relative_to(output) for path in named if path.is_relative_to(output)]
    tools = [output / path.parts[0] for path in reversed(inside) if path.parts]
    for folder in (*map(Path, reversed(entry.runs)), *tools):
        with suppress(RunError, OSError, ValueError):
            run = read_run(folder)
            place = ui.output / run.folder.resolve().relative_to(output)
            return run, run_id(ui, place)
    return None, ""


def sentence(entry: Entry, job: JobText | None) -> str:
    """What an entry does."""
    words: dict[str, str] = texts()["queue"]["what"]
    options = dict(word[2:].split("=", 1) for word in entry.argv if "=" in word)
    tool = entry.argv[0] if entry.argv else ""
    if tool in words:
        return redact_text(words[tool].format(prompt=options.get("prompt", "")))
    if job is None or job.root is None:
        return words["tool"].format(tool=redact_text(tool))
    steps = job.get(job.path("train.steps"))
    folder = os.path.basename(job.get(job.path(FOLDER)).rstrip("/"))
    return redact_text(words["job"].format(steps=steps or "?", folder=folder or "?"))


def images_of(ui: Ui, job: JobText | None, most: int) -> list[list[str]]:
    """Addresses of small images of the dataset of a job: for each the control images
    and the image."""
    return learned_from(ui, job, most)[0]


def learned_from(ui: Ui, job: JobText | None, most: int) -> tuple[list[list[str]], int]:
    """`images_of`, and the number of all images."""
    data = dataset_at(ui, job.get(job.path(FOLDER))) if job and job.root else None
    if data is None:
        return [], 0
    images = read_dataset(ui, data.name).images
    return [thumbs(data, image) for image in images[:most]], len(images)


def sample_ends(folder: Path) -> list[str]:
    """The file names of the first image of the first and of the newest set of samples;
    one name where they are the same."""
    try:
        names = os.listdir(folder / run_files.SAMPLES)
    except OSError:
        return []
    matches = filter(None, map(run_files.SAMPLE_FILE.fullmatch, names))
    samples = sorted(
        (int(match["index"]), int(match["step"]), match.string) for match in matches
    )
    of_first = [name for index, _, name in samples if index == samples[0][0]]
    return [*dict.fromkeys((*of_first[:1], *of_first[-1:]))]


def pictures(ui: Ui, entry: Entry) -> list[str]:
    """Addresses of two small pictures of an entry: the first and the newest sample of
    its run, or images of its dataset."""
    run, id_ = run_of(ui, entry)
    samples = sample_ends(run.folder) if run else []
    if samples:
        here = f"/runs/{quote(id_, safe='')}/samples"
        return [f"{here}/{quote(name)}?side=400" for name in samples]
    return [pair[-1] for pair in images_of(ui, job_of(entry), 2) if pair]
