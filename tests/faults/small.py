"""A run of milliseconds through everything that saves and resumes: a line fitted to seven points."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.faults.faults import counters
from tests.toolkit.train.conftest import Toy
from toolkit.log import StatusLine
from toolkit.networks.files import as_stored, write_stored
from toolkit.run_files import step_file
from toolkit.train.checkpoint import load_state
from toolkit.train.hooks.intervals import Interval
from toolkit.train.hooks.metrics import MetricsHook
from toolkit.train.hooks.save import SaveHook
from toolkit.train.hooks.status import StatusHook
from toolkit.train.lock import locked
from toolkit.train.resume import choose_state, supersede
from toolkit.train.run import Run
from toolkit.train.state_folder import remove_leftovers, state_root

STEPS = 4
EVERY = 2


def prepare(run: Run, step: int | None) -> Callable[[], list[Path]]:
    """As the trainer's: the averages now, written later."""
    path = run.folder / f"{run.name}.safetensors" if step is None else step_file(run.folder, run.name, step)
    tensors = as_stored(run.roles["network"].weights_to_keep(), "float32")
    metadata = {"training_info": json.dumps({"step": run.state.step})}

    def write() -> list[Path]:
        write_stored(path, tensors, metadata)
        return [path]

    return write


def go_on(folder: Path) -> None:
    """Begins or resumes the run in `folder` and brings it to its end."""
    toy = Toy(folder)
    saving = SaveHook(prepare, Interval(EVERY), 1, 1, lambda *_, **__: None)
    hooks = [MetricsHook(), saving, StatusHook(StatusLine(io.StringIO()))]
    run = toy.run(STEPS, accumulation=2, momentum=0.9, ema_decay=0.9, hooks=hooks)
    with locked(folder):
        remove_leftovers(state_root(folder))
        state = choose_state(folder, "auto", False)
        if state:
            load_state(state, run)
        supersede(folder, run.name, run.state.step if state else None)
        toy.train(run, toy.step(run))


def main(arguments: Sequence[str]) -> int:
    go_on(Path(arguments[0]))
    Path("writes").write_text(json.dumps([count() for count in counters]))
    return 0
