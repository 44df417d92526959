"""What is going on now: run.json for readers, one line for the person at the terminal."""

from __future__ import annotations

import json
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from statistics import median

import torch

from toolkit.contracts import StepResult
from toolkit.errors import RunError, Stopped
from toolkit.files import write_json
from toolkit.log import StatusLine
from toolkit.train.hooks.intervals import due
from toolkit.train.run import Hook, Run

FILE = "run.json"
FINISHED = "finished"
WRITE_EVERY_S = 1.0


class StatusHook(Hook):
    """Rewrites run.json at most once a second and keeps the status line current."""

    def __init__(self, line: StatusLine, log_every: int = 0) -> None:
        """log_every: optimizer steps between two updates of `line`; 0 leaves the pace to the line itself."""
        self.line = line
        self.log_every = log_every
        self._recent_s: deque[float] = deque(maxlen=50)
        self._losses: deque[float] = deque(maxlen=50)
        self._written = 0.0
        self._last: StepResult | None = None

    def on_start(self, run: Run) -> None:
        self._write(run, "running")

    def on_result(self, run: Run, result: StepResult) -> None:
        self._recent_s.append(result.step_s)
        self._last = result
        if not result.skipped:
            self._losses.append(result.loss)
        if not self.log_every or due(result.step, self.log_every):
            self.line.update(self._text(run, result))
        if time.monotonic() - self._written >= WRITE_EVERY_S:
            self._write(run, "running")

    def on_end(self, run: Run, finished: bool) -> None:
        self.line.finish(self._text(run, self._last) if self._last else "")
        # A stop may have cut the last samples short: only a run that nobody asked to stop is surely complete.
        self._write(run, FINISHED if finished and not run.interrupted else "stopped")

    def on_error(self, run: Run, error: BaseException) -> None:
        self.line.finish()
        if isinstance(error, Stopped | KeyboardInterrupt):
            self._write(run, "stopped")
        else:
            with suppress(RunError):  # a full disk, say: it must not hide the error that ended the run
                self._write(run, "failed", error=f"{type(error).__name__}: {error}")

    def _text(self, run: Run, result: StepResult) -> str:
        seconds = median(self._recent_s)
        # In the order of what may be cut off by a narrow terminal.
        parts = [
            f"step {result.step}/{run.steps} {100 * result.step / run.steps:.1f}%",
            f"loss {result.loss:.4f} (avg {sum(self._losses) / max(1, len(self._losses)):.4f})",
            f"{seconds:.2f} s/it",
            f"ETA {duration((run.steps - result.step) * seconds)}",
            memory_text(),
            f"lr {result.lr:.1e}",
        ]
        if run.state.skipped:
            parts.append(f"{run.state.skipped} skipped")
        return " | ".join(part for part in parts if part)

    def _write(self, run: Run, status: str, **more: object) -> None:
        self._written = time.monotonic()
        last = self._last
        document = {
            "name": run.name,
            "status": status,
            "step": run.state.step,
            "steps": run.steps,
            "epoch": run.state.epoch,
            "samples": run.state.samples,
            "skipped": run.state.skipped,
            "loss": round(sum(self._losses) / len(self._losses), 6) if self._losses else None,
            "lr": last.lr if last else None,
            "step_s": round(median(self._recent_s), 4) if self._recent_s else None,
            "updated": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **run.report,
            **more,
        }
        write_json(run.folder / FILE, document, durable=status != "running")


def is_finished(folder: Path) -> bool:
    """Whether the run in a folder came to its end, everything written."""
    try:
        return json.loads((folder / FILE).read_text(encoding="utf-8"))["status"] == FINISHED
    except (OSError, ValueError, KeyError):
        return False


def duration(seconds: float) -> str:
    """A time span as people say it: 45s, 3m07s, 2h03m."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes}m{seconds:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def memory_text() -> str:
    """Memory of the GPU in use and in all, or of the process where there is no GPU; empty when unknown."""
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return f"VRAM {(total - free) / 2**30:.1f}/{total / 2**30:.1f} GiB"
    resident = _resident_bytes()
    return f"RAM {resident / 2**30:.1f} GiB" if resident else ""


def _resident_bytes() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[1])
    except OSError:
        return 0
    import resource

    return pages * resource.getpagesize()
