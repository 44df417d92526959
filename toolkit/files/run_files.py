"""The names of the files of a run, for those who write them and those who read them.

The trainers write these files; resuming, the tools and the page find them by the same
constants and functions: `final_files` and `step_files` list the weights, `saved_as`
translates a name that musubi-tuner would give them. Times and durations are written the
same way everywhere (`utc_now`, `duration`, `amount`), and `EventLog` appends the lines
of events.jsonl. How the weights are written is the concern of the writers in
`extensions`. Imports no torch.
"""

from __future__ import annotations

import json
import math
import re
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from toolkit.files.safetensors_io import read_metadata
from toolkit.files.writing import (
    append_json_line,
    is_own_folder,
    os_error_as_run_error,
    read_object,
    read_regular,
)

STATUS = "run.json"
METRICS = "metrics.jsonl"
VALIDATION = "validation.jsonl"
VALIDATION_IMAGES = "validation_images.jsonl"
"""The losses of each image at each validation, see `ValidationCallback`."""

EVENTS = "events.jsonl"
LOG = "log.txt"
CONFIG = "config.yaml"
SAMPLES = "samples"
GRAPH = "graph"
"""Folder of the diagrams in the folder of a run."""

SUPERSEDED = "superseded"
"""Folder of the files that a resume from an earlier step moved aside."""

DATASET_PREFIX = "dataset-"
"""`dataset-<12 hex digits>.json`: fingerprints of the images of the training."""

SAMPLE_FILE = re.compile(r"(?P<step>\d{9,})_(?P<index>\d+)\.\w+")
"""Name of a sample: optimizer step, index within its set."""

LAYERS = "layers"
"""Folder in the folder of the samples, with the layers that a sample shows in one
row."""

FOLDER_METADATA = "training.json"
"""File in the folder of a fully trained model, with the metadata that a network file has
in its header."""

NEW_MODEL = "new_model.json"
"""File in the folder of a model that began with random weights, with the settings that
decided them."""

TINY_MODEL = "tiny_model.json"
"""In the folder of a small model for tests: its settings (`toolkit.models.tiny`)."""

FILE_SUFFIXES = (".safetensors", "_raw.safetensors", "_lora.safetensors", "", "_raw")
"""Endings after `<name>` and `<name>_<step>` in the names of a run's network files, the
main one first, and of its model folders."""

WORKFLOWS = ("_comfyui.json", "_comfyui_edit.json")
"""Endings after `<name>` in the names of the workflows for ComfyUI: from text, with
control images."""

_MODEL_FILES = ("model_index.json", "config.json")
"""One of these is in each folder that diffusers loads: of a pipeline, or of a single
model such as an autoencoder."""

FINISHED = "finished"
"""`status` in run.json of a run that is complete, everything written."""

SAVED_LEARNING_RATES = "lr_sav.json"
"""Role -> its learning rate at the last save, in the folder of a job that was written
for another program."""

CHECKPOINT_PARTS = "parts"
"""In the metadata of a checkpoint under another program's name: JSON with `folder`, the
model's own, relative to the file, and `parts`, what stands before the first dot of the
tensors' names."""

RECORD = "record"
"""Key in run.json of a run without states: the record of its job that a checkpoint
would have (`ResumePlan.record`)."""

ORIGIN = "origin"
"""Key in run.json: `file` and `cwd`, the path of the job's file, and the working
directory in which it was started; empty where the command line changed the job."""

_TIME = "%Y-%m-%dT%H:%M:%SZ"


JOB_STATE = "job_state.json"
"""In `<training_folder>/<job>/`: which processes of the job are finished."""


def finished_processes(path: Path) -> dict[str, str]:
    """Label of each process that a job_state.json records as finished -> digest of its
    settings and inputs; a file that is missing or damaged records none."""
    try:
        return dict(json.loads(read_regular(path))["finished"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def utc_now() -> str:
    """The time as all files of a run write it: ISO 8601 in UTC, to the second."""
    return time.strftime(_TIME, time.gmtime())


def duration(seconds: float) -> str:
    """A time span for people: 45s, 3m07s, 2h03m.

    >>> duration(187)
    '3m07s'
    """
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes}m{seconds:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"


def amount(seconds: float) -> str:
    """An estimate of a minute or more, in two digits and the unit that suits it: 14
    min, 5.3 h, 3 days.

    >>> amount(850), amount(19_000)
    ('14 min', '5.3 h')
    """
    for unit, length, below in (("min", 60, 90), ("h", 3600, 72)):
        if seconds < below * length:
            return f"{float(f'{seconds / length:.2g}'):g} {unit}"
    return f"{float(f'{seconds / 86400:.2g}'):g} days"


def about(seconds: float) -> str:
    """An estimate of any length, for messages. seconds: 0 or more.

    >>> about(850), about(12)
    ('about 14 min', 'under a minute')
    """
    return "under a minute" if seconds < 60 else f"about {amount(seconds)}"


def parse_time(text: str) -> datetime | None:
    """The time in UTC that `utc_now` wrote; None for any other text.

    >>> parse_time("yesterday") is None, parse_time(utc_now()).tzinfo == UTC
    (True, True)
    """
    try:
        return datetime.strptime(text, _TIME).replace(tzinfo=UTC)
    except ValueError:
        return None


def read_status(folder: Path) -> dict[str, Any]:
    """run.json of the run in a folder; empty when it is missing or damaged."""
    return read_object(folder / STATUS)


def final_files(folder: Path, name: str) -> list[Path]:
    """The existing files and model folders of the end of the run `name`, the main one
    first."""
    paths = [folder / f"{name}{ending}" for ending in FILE_SUFFIXES]
    return [path for path in paths if _is_product(path)]


def workflow_files(folder: Path, name: str) -> list[Path]:
    """The existing workflows for ComfyUI of the run `name` in `folder`: at most two,
    from text first, then with control images. Empty where the run wrote none."""
    paths = [folder / f"{name}{ending}" for ending in WORKFLOWS]
    return [path for path in paths if path.is_file()]


def is_own_result(path: Path) -> bool:
    """Whether a run may replace a folder: it has a model in it, or the program made
    it."""
    return _is_product(path) or is_own_folder(path)


def _is_product(path: Path) -> bool:
    """Whether what has one of the names is a network file, or a folder with a model in
    it (another run's has none)."""
    if path.suffix == ".safetensors":
        return path.is_file()
    return any((path / name).is_file() for name in _MODEL_FILES)


def step_stem(name: str, step: int) -> str:
    """`<name>_000000340`: the name of a step's file without its ending, or of its
    folder.

    >>> step_stem("my_char", 340)
    'my_char_000000340'
    """
    return f"{name}_{step:09d}"


def best_stem(name: str) -> str:
    """The name, without its ending, of the weights with the lowest validation loss.

    >>> best_stem("maya")
    'maya_best'
    """
    return f"{name}_best"


def stem_of(name: str, step: int | Literal["best"] | None) -> str:
    """The name, without its ending, of the weights of a step; None: of the end.

    >>> stem_of("maya", 250), stem_of("maya", "best"), stem_of("maya", None)
    ('maya_000000250', 'maya_best', 'maya')
    """
    if step is None:
        return name
    if step == "best":
        return best_stem(name)
    return step_stem(name, step)


def step_files(folder: Path, name: str) -> dict[int, list[Path]]:
    """Step -> the files and model folders that the run `name` saved at it, in rising
    order. Empty where the folder does not exist."""
    pattern = re.compile(
        rf"{re.escape(name)}_(\d{{9,}})(?:{'|'.join(map(re.escape, FILE_SUFFIXES))})"
    )
    by_step: dict[int, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = pattern.fullmatch(path.name)
        if match and _is_product(path):
            by_step.setdefault(int(match[1]), []).append(path)
    return by_step


_MUSUBI = re.compile(
    r"(?P<name>.+?)(?:-step(?P<step>\d{8,})|-(?P<epoch>\d{6,}))?\.safetensors"
)
"""musubi-tuner's names of weights: of the end, of a step, of an epoch."""


def saved_as(path: str) -> Path | None:
    """The weights that musubi-tuner would call `OUT/NAME.safetensors`,
    `OUT/NAME-000003.safetensors` (epoch 3) or `OUT/NAME-step00000012.safetensors`: a run
    writes into the folder `OUT/NAME`, and names files by steps. The last file of a run
    for its folder. None for a file that exists, and for other texts."""
    # no path, or one that no file can have
    with suppress(OSError, ValueError, RuntimeError):
        return _saved_as(Path(path).expanduser())
    return None


def _saved_as(file: Path) -> Path | None:
    if file.is_dir() and (file / STATUS).is_file():
        return next(filter(Path.is_file, final_files(file, file.name)), None)
    if file.suffix != ".safetensors" or file.exists():
        return None
    match = _MUSUBI.fullmatch(file.name)
    assert match  # it has the suffix, and a name before it
    candidates = final_files(file.with_suffix(""), file.stem)
    run = file.parent / match["name"]
    if match["step"]:
        candidates += step_files(run, match["name"]).get(int(match["step"]), [])
    elif match["epoch"]:
        saved = [
            *step_files(run, match["name"]).values(),
            final_files(run, match["name"]),
        ]
        candidates += [
            files[0]
            for files in saved
            if files and _epoch_in(files[0]) == int(match["epoch"])
        ]
    with_suffix = [candidate for candidate in candidates if candidate.suffix]
    return next(iter(with_suffix or candidates), None)


def saved_like(pattern: str) -> list[Path]:
    """The files of a pattern that no shell has replaced: those in its folder, else the
    step files of the run whose epoch files musubi-tuner would call
    `OUT/NAME-*.safetensors`. None for other texts."""
    file = Path(pattern).expanduser() if "*" in pattern else Path()
    if "*" not in file.name or "*" in str(file.parent) or file.suffix != ".safetensors":
        return []
    with suppress(OSError, ValueError):
        name, _, rest = file.name.partition("*")
        name = name.rstrip("-") if rest == file.suffix else ""
        steps = step_files(file.parent / name, name) if name else {}
        return sorted(file.parent.glob(file.name)) or [
            steps[step][0] for step in sorted(steps)
        ]
    return []


def _epoch_in(path: Path) -> int:
    """The epochs that were complete when a network file was written; -1 where it does
    not say it."""
    try:
        return int(read_metadata(path)["ss_epoch"]) if path.is_file() else -1
    except (OSError, ValueError, KeyError, TypeError):
        return -1


def step_in(path: Path) -> float:
    """The optimizer step that a network file or a model folder names in its metadata;
    infinity when it names none."""
    try:
        if path.is_dir():
            metadata = json.loads(read_regular(path / FOLDER_METADATA))
        else:
            metadata = read_metadata(path)
        return int(json.loads(metadata["training_info"])["step"])
    except (OSError, ValueError, OverflowError, KeyError, TypeError, RecursionError):
        return math.inf


class EventLog:
    """Appends events; each line is flushed at once.

    Example::

        events = EventLog(folder / EVENTS)
        events.add("saved", step=100)
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, event: str, **details: object) -> None:
        """Appends one line: the time in UTC, the event and its details (JSON values).
        Raises RunError where the file cannot be written."""
        with (
            os_error_as_run_error(self.path),
            self.path.open("a", encoding="utf-8", newline="\n") as file,
        ):
            append_json_line(file, {"time": utc_now(), "event": event, **details})
