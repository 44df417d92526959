"""A run of milliseconds through everything that saves and resumes: a line fitted to
seven points."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.faults.faults import counters
from tests.toolkit.train.conftest import Toy
from toolkit.files.log import StatusLine
from toolkit.files.run_files import step_stem
from toolkit.networks.save import write_safetensors_verified
from toolkit.system.device import to_cpu_copies
from toolkit.train.callbacks.metrics import MetricsCallback
from toolkit.train.callbacks.save import SaveCallback
from toolkit.train.callbacks.status import StatusCallback
from toolkit.train.checkpoint_state import load_state
from toolkit.train.checkpoint_store import checkpoint_dir, remove_partial_writes
from toolkit.train.lock import run_lock
from toolkit.train.resumption import archive_later_files, find_checkpoint
from toolkit.train.run import Interval, Run

STEPS = 4
EVERY = 2


def prepare(run: Run, step: int | None) -> Callable[[], list[Path]]:
    """As the trainer's: the averages now, written later."""
    path = (
        run.folder
        / f"{run.name if step is None else step_stem(run.name, step)}.safetensors"
    )
    tensors = to_cpu_copies(run.roles["network"].eval_weights(), "float32")
    metadata = {"training_info": json.dumps({"step": run.state.step})}

    def write() -> list[Path]:
        write_safetensors_verified(path, tensors, metadata)
        return [path]

    return write


def go_on(folder: Path) -> None:
    """Begins or resumes the run in `folder` and brings it to its end."""
    toy = Toy(folder)
    saving = SaveCallback(prepare, Interval(EVERY), 1, 1)
    hooks = [MetricsCallback(), saving, StatusCallback(StatusLine(io.StringIO()))]
    run = toy.run(STEPS, accumulation=2, momentum=0.9, ema_decay=0.9, callbacks=hooks)
    run.event = lambda *_, **__: None
    with run_lock(folder):
        remove_partial_writes(checkpoint_dir(folder))
        state, _ = find_checkpoint(folder, "auto", False)
        if state:
            load_state(state, run)
        archive_later_files(folder, run.name, run.state.step if state else None)
        toy.train(run, toy.step(run))


def main(arguments: Sequence[str]) -> int:
    go_on(Path(arguments[0]))
    Path("writes").write_text(json.dumps([count() for count in counters]))
    return 0
