"""The path from images to a LoRA, as the pages of a dataset, a job and a run draw it:
Images, Captions, Check, Job, Run, Use. Each step is a link; those that are done have a
tick, and one is the present one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import quote, urlencode

from extensions.tools.ui.datasets import Dataset, lint_file
from extensions.tools.ui.state import Ui
from toolkit.config.reading.loader import name_like
from toolkit.files.run_files import STATUS

STEPS = ("images", "captions", "check", "job", "run", "use")


def job_name(dataset: str) -> str:
    """The name of a new job of a dataset, without the number of repeats.

    >>> job_name("20_my owl"), job_name("")
    ('my_owl', 'my_character')
    """
    return name_like(re.sub(r"^\d+_(?=.)", "", dataset), "my_character")


class Step(NamedTuple):
    """One step of the path. `title`: its key in the texts of the page."""

    title: str
    address: str
    is_done: bool
    is_now: bool


def dataset_at(ui: Ui, folder: str) -> Dataset | None:
    """The dataset, not read, in whose folder a folder of a job is. None: it is
    elsewhere."""
    with suppress(OSError, ValueError):
        within = os.path.relpath(
            os.path.realpath(folder), os.path.realpath(ui.datasets)
        )
        name = within.split(os.sep)[0]
        if not name.startswith(".") and (ui.datasets / name).is_dir():
            return Dataset(ui, name)
    return None


def has_job(data: Dataset) -> bool:
    """Whether a job file of the page names the folder of a dataset, or a run has the
    name that a new job of it gets."""
    folder = re.escape(data.section()["folder_path"])
    named = re.compile(rf"""(?m)\bfolder_path: *["']?{folder}["']?\s""")
    for path in data.ui.jobs.glob("*.y*ml"):
        with suppress(OSError, UnicodeDecodeError):
            if named.search(path.read_text(encoding="utf-8")):
                return True
    return (data.ui.output / job_name(data.name) / STATUS).exists()


def path_of(
    data: Dataset | None, now: str = "", addresses: Mapping[str, str] | None = None
) -> list[Step]:
    """The steps of a dataset. now: the present step; empty: the first that is not done.
    addresses: step -> its link, where it is not that of a new job and of the runs of the
    dataset's name. Of a run the steps before the present one are done, Check if there was one,
    and `data` need not be read."""
    links = dict.fromkeys(STEPS[:3], "/datasets") | {"job": "/new"}
    links |= {"run": "/", "use": "/"}
    is_run = now in STEPS[4:]
    done = {*STEPS[: STEPS.index(now)]} if is_run else set[str]()
    if data:
        here = f"/datasets/{quote(data.name, safe='')}"
        name = job_name(data.name)
        links |= {
            "images": here,
            "captions": f"{here}{'?only=missing' * bool(data.missing)}#filter",
            "check": f"{here}?check=1#lint",
            "job": f"/new?{urlencode({'dataset': data.name})}",
            "run": f"/?{urlencode({'q': name})}",
            "use": f"/?{urlencode({'q': f'{name} finished'})}",
        }
    if data and not is_run:
        is_captioned = not data.missing or (data.is_pairs and data.view["instruction"])
        is_checked = data.findings["images"] is not None and not data.findings["is_old"]
        done |= {"images"} if data.images else set()
        done |= {"captions"} if data.images and is_captioned else set()
        done |= {"check"} if data.images and is_checked else set()
        done |= {"job"} if data.images and has_job(data) else set()
    elif not (data and lint_file(data).exists()):
        done.discard("check")
    now = now or next(step for step in STEPS if step not in done)
    links |= addresses or {}
    return [Step(step, links[step], step in done, step == now) for step in STEPS]
