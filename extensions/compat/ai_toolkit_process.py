"""What an extension written for ai-toolkit finds in its process: a timer, a progress bar, names of its settings;
and of what it does not find, what to use here."""

from __future__ import annotations

import ast
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from toolkit.files.log import StatusLine


class Timer:
    """Seconds by name: `with self.timer("encode"): ...`, then `self.timer.print()`. Blocks of other names may nest."""

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self.seconds: dict[str, list[float]] = defaultdict(list)
        """Name -> seconds of each of its blocks since the last `reset`."""

        self._clock = clock
        self._started: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.start(name)
        try:
            yield
        finally:
            self.stop(name)

    def start(self, name: str) -> None:
        """Begins a block."""
        self._started[name] = self._clock()

    def stop(self, name: str) -> None:
        """Ends it. Raises ValueError where none of this name was begun."""
        if name not in self._started:
            raise ValueError(f"timer {self.name}: {name!r} was not started")
        self.seconds[name].append(self._clock() - self._started.pop(name))

    def print(self) -> None:
        """One line per name, those with the longest mean first."""
        print(f"{self.name}:")
        means = {name: sum(seconds) / len(seconds) for name, seconds in self.seconds.items()}
        for name, mean in sorted(means.items(), key=lambda entry: -entry[1]):
            print(f"  {mean:.4f} s {name} (mean of {len(self.seconds[name])})", flush=True)

    def reset(self) -> None:
        """Forgets everything."""
        self.seconds.clear()
        self._started.clear()


class ProgressBar:
    """Progress on the status line (`toolkit.files.log.StatusLine`), with methods of tqdm: `12/40 encode | 3 new`."""

    def __init__(self, total: int | None = None, desc: str = "") -> None:
        """total: None where it is not known."""
        self.total, self.n = total, 0
        self._desc, self._postfix = desc, ""
        self._status: StatusLine | None = None

    def update(self, n: int = 1) -> None:
        """So many more are done."""
        self.n += n
        self._show()

    def set_description(self, desc: str) -> None:
        """What is counted."""
        self._desc = desc
        self._show()

    def set_postfix_str(self, text: str) -> None:
        """What stands behind the count."""
        self._postfix = text
        self._show()

    def reset(self, total: int | None = None) -> None:
        """Begins anew at 0. total: None keeps it."""
        self.close()
        self.n, self.total = 0, self.total if total is None else total

    def close(self) -> None:
        """Removes the line; a later call shows it again."""
        if self._status:
            self._status.finish()
            self._status = None

    def _show(self) -> None:
        self._status = self._status or StatusLine()  # standard output as it is now
        count = f"{self.n}" if self.total is None else f"{self.n}/{self.total}"
        head = " ".join(filter(None, (count, self._desc)))
        self._status.update(" | ".join(filter(None, (head, self._postfix))))


ATTRIBUTES: dict[str, Callable[[Any], Any]] = {
    "timer": lambda process: Timer(f"{process.name} timer"),
    "progress_bar": lambda process: ProgressBar(),
    "raw_process_config": lambda process: process.config,
    "performance_log_every": lambda process: process.get_conf("performance_log_every", 0),
}
"""Attribute of a process -> what it is, made when it is first asked for."""


INSTEAD = {
    "toolkit.config_modules": "its own section class: config = '.config:MyConfig', as in extensions/example",
    "toolkit.stable_diffusion_model": "toolkit.models.loading.load_model(section.model, ...)",
    "toolkit.train_tools": "toolkit.number_types, toolkit.flow, toolkit.optim",
    "toolkit.data_loader": "toolkit.data, by a process that extends jobs.process.trainer.Trainer",
    "toolkit.data_transfer_object": "toolkit.data, by a process that extends jobs.process.trainer.Trainer",
    "toolkit.prompt_utils": "toolkit.data.captions, DiffusionModel.encode_prompt",
    "toolkit.lora_special": "toolkit.networks",
    "jobs.process": "BaseProcess, BaseExtensionProcess, BaseTrainProcess of jobs.process; jobs.process.trainer.Trainer",
}
"""Module of ai-toolkit -> what to use here."""


def missing_parts(error: BaseException) -> str:
    """What a module of an extension imports of ai-toolkit's own code that is not here, all of it, with what to use
    instead: a line for each module. Empty where something else went wrong.

    Source: ai-toolkit 27a03a91, the imports of extensions/ and extensions_built_in/.
    """
    if not isinstance(error, ImportError) or (error.name or "").partition(".")[0] not in ("toolkit", "jobs"):
        return ""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_file()]
    lines: list[str] = []
    for node in ast.walk(ast.parse(Path(files[-1]).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and not node.level and node.module:
            module, names = node.module, [alias.name for alias in node.names]
            if module.partition(".")[0] in ("toolkit", "jobs") and (lost := _lost(module, names)):
                known = next((text for start, text in INSTEAD.items() if f"{module}.".startswith(f"{start}.")), "")
                lines.append(f"  {module} ({', '.join(lost)})" + f": here {known}" * bool(known))
    return "\n".join(["ai-toolkit's own code, which this program is not and has not:", *lines]) if lines else ""


def _lost(module: str, names: list[str]) -> list[str]:
    """Those of the names that the module does not have; all of a module that is not there."""
    try:
        found = import_module(module)
    except ImportError:
        return names
    return [name for name in names if not hasattr(found, name) and not _is_module(f"{module}.{name}")]


def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ImportError:
        return False
