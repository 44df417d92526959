"""The text of a job that learns from votes (`train.preference`).

`base_job` takes the job that trained the LoRA, or writes a new one as `run.py new`
does. `preference_job` turns it into a job that trains on pairs of images. Both work on
text and write no file: the caller saves and starts the job.

The only caller is the page for votes (`extensions.tools.ui.views.votes`).
docs/preferences.md describes the training.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from extensions.tools.shared.examples import WITHOUT_GPU, written_job
from extensions.tools.shared.run_job import model_of
from extensions.tools.ui.job_text import JobText
from toolkit.config.reading.redacted_copy import as_yaml
from toolkit.data.scan.captions import inject_trigger
from toolkit.errors import RunError, UserError
from toolkit.files.safetensors_io import tensor_shapes
from toolkit.files.writing import read_source
from toolkit.memory.estimate import GB
from toolkit.models.adapter_origin import DOWN_ENDS
from toolkit.rounding import ceil_divide
from toolkit.system.nvidia import least_memory
from toolkit.train.run_reader import read_run

PASSES = 10
"""Number of times that each pair is used. Forty pairs at batch size 1 take 400 steps,
which is about an hour on a GPU with 24 GB."""

LEAST_STEPS = 20
SAVES = 4
MOST_SAMPLES = 4

_WITHOUT_PAIRS = (
    "few_step_loss",
    "noise_levels_per_sample",
    "diff_output_preservation",
)
"""Keys of `train` that cannot be combined with pairs, or need a trigger word."""

_OF_OTHER_IMAGES = ("validation", "stop_when")
"""Sections that measure on images of the earlier run's dataset."""


def base_job(
    config: Path | None, lora: str, model: str, folder: Path, prompts: Sequence[str]
) -> JobText:
    """The job to begin with: the saved job of a run, or else a new one for the model.

    config: saved job of the run that made the images. None: the saved job of the run
    whose folder contains the LoRA.
    lora: LoRA file to start from. Empty: none.
    model: model that made the images. Empty: the model of the LoRA file.
    folder, prompts: the folder and the prompts of the images.

    Raises UserError if neither the job nor the model is known.
    """
    with suppress(RunError, OSError, ValueError):
        config = config or (read_run(Path(lora).parent).config if lora else None)
        if config:
            job = JobText(read_source(config).decode("utf-8-sig"))
            if job.root is not None:
                return job
    if not (lora or model):
        raise UserError(
            "neither a LoRA nor a model is known that made these images. Write a job: docs/preferences.md"
        )
    name = model or model_of(Path(lora)).name_or_path
    gpu = round(least_memory() / GB) or WITHOUT_GPU
    job = JobText(written_job("votes", str(folder), "", name, gpu)).set_prompts(
        prompts[:MOST_SAMPLES]
    )
    shapes = tensor_shapes(Path(lora)) if lora else {}
    ranks = [shape[0] for key, shape in shapes.items() if key.endswith(DOWN_ENDS)]
    if ranks:
        for key in ("linear", "linear_alpha"):
            job = job.set(job.path(f"network.{key}"), str(max(ranks)), False)
    return job


def preference_job(job: JobText, name: str, table: str, lora: str, pairs: int) -> str:
    """The YAML of a job that learns from a table of pairs.

    job: of `base_job`.
    name: name of the new job.
    table: path of the table of pairs.
    lora: LoRA file that training starts from, and is compared with. Empty: the model.
    pairs: number of pairs in the table. It determines the number of steps.

    Raises UserError for a job without a process that trains.
    """
    data: Any = job.data(())
    try:
        process = data["config"]["process"][job.trainer]
        train = process["train"]
        network = process.setdefault("network", {})
        first = process["datasets"][0]
        trigger = process.pop("trigger_word", "") or ""
        process["datasets"] = [
            {"captions_file": table, "resolution": first.get("resolution", 1024)}
        ]
        before = train.get("preference")
        batch = int(train.get("batch_size") or 1)
        if not before:
            batch //= 2  # a pair is two images
        batch = max(1, batch)
        steps = max(LEAST_STEPS, ceil_divide(pairs * PASSES, batch))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"the job cannot be used: it has no {error}. Write one by hand: docs/preferences.md"
        ) from None
    data["config"] |= {"name": name, "process": [process]}
    for section, keys in ((train, _WITHOUT_PAIRS), (process, _OF_OTHER_IMAGES)):
        for key in keys:
            section.pop(key, None)
    preference = {
        key: value for key, value in (before or {}).items() if key != "reference"
    }
    if lora and not train.get("assistant"):  # an assistant is a reference already
        preference["reference"] = lora
    train |= {"batch_size": batch, "steps": steps, "preference": preference}
    network.pop("pretrained_lora_path", None)
    if lora:
        network["pretrained_lora_path"] = lora
    every = ceil_divide(steps, SAVES)
    process["save"] = (process.get("save") or {}) | {"save_every": every}
    sample = process.get("sample")
    if isinstance(sample, dict):
        process["sample"] = _with_trigger(sample, trigger) | {"sample_every": every}
    return f"# Learns from {pairs} votes: docs/preferences.md\n{as_yaml(data)}"


def _with_trigger(value: Any, trigger: str) -> Any:
    """A section in which each text has the trigger word in place of its placeholder.

    The job has no `trigger_word` any more: the prompts of the votes contain it already.
    """
    if isinstance(value, dict):
        return {key: _with_trigger(inner, trigger) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_trigger(inner, trigger) for inner in value]
    if isinstance(value, str):
        return inject_trigger(value, trigger, add=False)
    return value
