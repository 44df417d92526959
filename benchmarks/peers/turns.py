"""What the scripts share: a process takes one training step whenever it is asked to. It
imports nothing of the project.

The process writes a JSON line after its first step, then one for each line that it
reads. At the end of its input it writes the memory that it holds, and the most that it
ever held.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO


def job_of_command_line() -> dict[str, Any]:
    """job.json of the folder that the command names, with the folder."""
    folder = Path(sys.argv[1])
    job: dict[str, Any] = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    job["folder"] = folder
    return job


def own_output() -> TextIO:
    """The channel of the answers; whatever else the program prints goes to the
    errors."""
    channel = sys.stdout
    sys.stdout = sys.stderr
    return channel


class Turns:
    """Answers for a program, which calls `done` after each of its steps."""

    def __init__(self, channel: TextIO) -> None:
        self.channel = channel
        self.start()

    def start(self) -> None:
        self.wall = time.perf_counter()
        self.cpu = time.process_time()

    def done(self, loss: float) -> bool:
        """Reports a step and waits for the next turn; whether there is one."""
        self._say(
            {
                "wall": time.perf_counter() - self.wall,
                "cpu": time.process_time() - self.cpu,
                "loss": loss,
            }
        )
        if not sys.stdin.readline():
            self._say(
                {"peak": resident_bytes("VmHWM"), "held": resident_bytes("VmRSS")}
            )
            return False
        self.start()
        return True

    def _say(self, answer: dict[str, float]) -> None:
        print(json.dumps(answer), file=self.channel, flush=True)


def serve(channel: TextIO, step: Callable[[], float]) -> None:
    """Takes steps until the input ends. step: one training step; its loss."""
    turns = Turns(channel)
    while turns.done(step()):
        pass


def resident_bytes(kind: str) -> int:
    """Resident memory of this process, mapped files included. kind: VmRSS, now, or
    VmHWM, the most that it ever was."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{kind}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {kind} line.")
