"""Starts tools that read the folder of a run at each save: the diagrams, the report, the
upload.

Each runs in a separate process with low priority and without a GPU. Training waits for
none of them and depends on none: a tool that fails is reported once. At the end of the
run the last one is waited for. Added by `standard`.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

from toolkit.errors import Interrupted, missing_package
from toolkit.files.run_files import GRAPH
from toolkit.files.writing import TOOLKIT_ROOT
from toolkit.registry import HINTED_TOOLS
from toolkit.train.run import Callback, Run, Saved

logger = logging.getLogger(__name__)

WAIT_AT_END_S = 60.0
WAIT_FOR_UPLOAD_S = 3600.0


class ToolCallback(Callback):
    """Starts `run.py TOOL` when files have been saved, unless the last one is still at
    work, and at the end.

    Example::

        callbacks.append(ToolCallback("report", ("report", str(folder))))
    """

    included_in_step_time = False

    def __init__(
        self,
        product: str,
        arguments: Sequence[str],
        lack: str = "",
        only_finished: bool = False,
    ) -> None:
        """product: what the tool makes, for messages. arguments: its name and flags.
        lack: why it cannot run. only_finished: it is started once, when the run is
        finished, and uploads something."""
        self._product = product
        self._lack = lack
        self._only_finished = only_finished
        self._wait_s = WAIT_FOR_UPLOAD_S if only_finished else WAIT_AT_END_S
        self._command = [sys.executable, str(TOOLKIT_ROOT / "run.py"), *arguments]
        self._child: subprocess.Popen[bytes] | None = None
        self._warned = False
        self._lock = Lock()  # a separate thread saves the files

    def on_save(self, run: Run, saved: Saved) -> None:
        if not self._only_finished:
            self._start()

    def on_start(self, run: Run) -> None:
        if self._lack:
            self._warn(self._lack)

    def on_end(self, run: Run, finished: bool) -> None:
        self._finish()
        if finished or not self._only_finished:
            self._start()
            self._finish()

    def on_error(self, run: Run, error: BaseException) -> None:
        if not isinstance(error, Interrupted):  # an upload may take an hour
            self._finish()

    def _start(self) -> None:
        with self._lock:
            if self._warned or (self._child and self._child.poll() is None):
                return
            self._collect()
            try:
                # not a pipe, which may be full, and which a process that the tool leaves
                # behind keeps open
                self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - read at its end
                self._child = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=self._errors,
                    start_new_session=True,  # a Ctrl-C is not for it
                    env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
                )
                if hasattr(os, "setpriority"):
                    os.setpriority(os.PRIO_PROCESS, self._child.pid, 15)
            except OSError as error:
                self._warn(str(error))

    def _finish(self) -> None:
        """Waits for the one at work, at most `_wait_s`."""
        with self._lock:
            if self._child is None:
                return
            try:
                self._child.wait(self._wait_s)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._warn(f"not ready within {self._wait_s:g} s")
            self._collect()

    def _collect(self) -> None:
        """Reads how the last one ended."""
        if self._child is not None:
            code = self._child.wait()
            with self._errors as errors:
                errors.seek(0)
                error_text = errors.read().decode(errors="replace")
            if code > 0:
                self._warn((error_text.strip().splitlines() or ["no reason given"])[-1])
            self._child = None

    def _warn(self, reason: str) -> None:
        if not self._warned:
            logger.warning(f"no {self._product}: {reason}. The run goes on without.")
        self._warned = True


def diagrams_at_saves(
    folder: Path, output: Path | None = None, suffix: str = ""
) -> ToolCallback:
    """The callback of `logging.diagrams`. folder: of the run's files. output: of the
    diagrams; None: `graph/` in the run's folder. suffix: appended to the name of each
    file."""
    flags = (
        "--output",
        str(output or folder / GRAPH),
        *(("--suffix", suffix) if suffix else ()),
    )
    return ToolCallback(
        "diagrams",
        ("diagrams", str(folder), *flags),
        missing_package("matplotlib", "diagrams"),
    )


def report_at_saves(folder: Path) -> ToolCallback:
    """The callback of `logging.report`. The files of the run are not read for their
    hashes, which would occupy the disk."""
    return ToolCallback("report", ("report", str(folder), "--hashes", "false"))


def publish_at_end(folder: Path, repo: str, private: bool) -> ToolCallback:
    """The callback of `save.push_to_hub`: it starts the upload once the run is
    finished. repo: name on the hub."""
    flags = ("--repo", repo, "--private", str(private).lower())
    return ToolCallback(
        "upload", (HINTED_TOOLS["publication"], str(folder), *flags), only_finished=True
    )
