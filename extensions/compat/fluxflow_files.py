"""Writes the files that FluxFlow's training guide names into the folder of the job: the
weights as one file, metrics, samples, and the position and rates of the training as
JSON. The run's own files are written as well.

The files are for tools that read the results of FluxFlow. A run does not resume from
them. `toolkit.registry` names the callback. The trainers of `extensions.from_scratch`
add it where `save.fluxflow_files` is not `none`.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from toolkit.contracts.training import StepResult
from toolkit.files.run_files import (
    CHECKPOINT_PARTS,
    GRAPH,
    SAMPLE_FILE,
    SAMPLES,
    SAVED_LEARNING_RATES,
    utc_now,
)
from toolkit.files.safetensors_io import merge_files
from toolkit.files.writing import (
    TEMP_FILE_GLOB,
    append_json_line,
    atomic_write,
    link,
    os_error_as_run_error,
    write_json,
)
from toolkit.train.callbacks.metrics import truncate_after_step
from toolkit.train.run import Callback, Run, Sampled, Saved

STATE = "training_state.json"
_WEIGHTS = ("diffusion_pytorch_model", "model", "pytorch_model")
"""Beginnings of the names of a part's main file. The tensors of another file get its
name as a prefix."""


class FluxflowFiles(Callback):
    """Writes FluxFlow's files while a run trains and saves. It comes before the other
    callbacks.

    Example::

        callbacks = [FluxflowFiles(section.save.fluxflow_files), *callbacks]
    """

    essential = True

    def __init__(self, place: str) -> None:
        """place: step, last or only, as `save.fluxflow_files`."""
        self.place = place
        self._rates: dict[int, dict[str, float]] = {}
        self._step_s: float | None = None

    def on_start(self, run: Run) -> None:
        self.folder = run.folder.parent
        # a run that was killed wrote it
        for half in self.folder.glob(f".flxflow_{TEMP_FILE_GLOB.lstrip('.')}"):
            half.unlink(missing_ok=True)
        path = self.folder / GRAPH / f"training_metrics_{run.name}.jsonl"
        with os_error_as_run_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            truncate_after_step(path, run.state.step)
            self._file = path.open("a", encoding="utf-8", newline="\n")
        self._name_metrics()

    def on_metrics(self, run: Run, result: StepResult) -> None:
        rates = {
            name: rate for name, rate in result.lr_by_group.items() if name in run.roles
        }
        self._rates[result.step] = rates or dict.fromkeys(run.roles, result.lr)
        if not result.compiled:
            self._step_s = result.step_s
        step_s = result.step_s if self._step_s is None else self._step_s
        values = {
            name: value if math.isfinite(value) else None
            for name, value in result.logged().items()
        }
        line = {
            "step": result.step,
            "epoch": result.epoch,
            "batch": batch_of(run, result.step, result.epoch),
            "time": utc_now(),
            "seconds": round(result.step_s, 6),
            "eta_s": round(step_s * (run.steps - result.step), 1),
            **values,
        }
        append_json_line(self._file, line)

    def on_sample(self, run: Run, sampled: Sampled) -> None:
        batch = batch_of(run, sampled.step, sampled.epoch)
        stem = f"sample_{run.name}_epoch_{sampled.epoch}_batch_{batch}"
        for file in sampled.files:
            parts_of_name = SAMPLE_FILE.fullmatch(file.name)
            index = ""
            if parts_of_name and len(sampled.files) > 1:
                index = f"_{parts_of_name['index']}"
            target = self.folder / SAMPLES / f"{stem}{index}{file.suffix}"
            link(file, target, durable=False)

    def on_save(self, run: Run, saved: Saved) -> None:
        self._write_state(run, saved)
        if run.folder / run.name in saved.files:
            self._write_weights(run, saved.step)

    def on_end(self, run: Run, finished: bool) -> None:
        self._file.close()
        self._name_metrics()

    def on_error(self, run: Run, error: BaseException) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    def _name_metrics(self) -> None:
        """Gives the file of a single step a second name. Where the second file is a
        copy, it is up to date at the end."""
        if self.place == "only":
            path = Path(self._file.name)
            link(path, path.with_name("training_metrics.jsonl"), durable=False)

    def _write_state(self, run: Run, saved: Saved) -> None:
        step = saved.step
        place = {
            "step_name": run.name,
            "epoch": saved.epoch,
            "batch": batch_of(run, step, saved.epoch),
            "global_step": step,
        }
        write_json(self.folder / STATE, place)
        if step in self._rates:
            write_json(self.folder / SAVED_LEARNING_RATES, self._rates[step])
        for number in sorted(self._rates):
            if number <= step:
                del self._rates[number]

    def _write_weights(self, run: Run, step: int) -> None:
        name = run.name
        folder = run.folder / name
        path = self.folder / f"flxflow_step_{name}_final.safetensors"
        files = {
            file: prefix_of(file.relative_to(folder))
            for file in sorted(folder.rglob("*.safetensors"))
        }
        parts = sorted({prefix.partition(".")[0] for prefix in files.values()})
        where = {"folder": folder.relative_to(self.folder).as_posix(), "parts": parts}
        metadata = {
            "format": "pt",
            CHECKPOINT_PARTS: json.dumps(where),
            "step": str(step),
        }
        with os_error_as_run_error(path), atomic_write(path) as temporary:
            merge_files(files, temporary, metadata)
        if self.place != "step":
            link(path, self.folder / "flxflow_final.safetensors", durable=False)


def batch_of(run: Run, step: int, epoch: int) -> int:
    """Batches of the epoch that are complete after an optimizer step; batches of the
    whole run where an epoch's length is not known."""
    return step * run.grad_accum_steps - epoch * run.batches_per_epoch


def prefix_of(file: Path) -> str:
    """The prefix of the tensors of a file in a model's folder: its part, and its own
    name unless it is the part's main file. file: relative to the folder; in an
    autoencoder's own folder the main part is `vae`.

    >>> prefix_of(Path("transformer/diffusion_pytorch_model.safetensors"))
    'transformer.'
    >>> prefix_of(Path("vae/spade.safetensors"))
    'vae.spade.'
    """
    part = file.parts[0] if len(file.parts) > 1 else ""
    if file.stem.startswith(_WEIGHTS):
        return f"{part or 'vae'}."
    return f"{part}.{file.stem}.".lstrip(".")
