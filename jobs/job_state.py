"""Which processes of a job are finished, so that an interrupted job resumes with the
next one.

`job_state.json` is in `<training_folder>/<job>/` of the first process with a
`training_folder` (else `output`). A job of one process has none: the process itself
knows what is left to do.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.config.reading.process import JobContext, ProcessConfig, job_state_file
from toolkit.errors import RunError
from toolkit.files.redact import redact_json, redact_text
from toolkit.files.run_files import finished_processes
from toolkit.files.writing import write_json

if TYPE_CHECKING:
    from toolkit.config import JobConfig, ProcessEntry


class JobState:
    """The first processes of a job that are finished: by an earlier start, with these
    settings and inputs, and their files exist.

    Once a process runs, all after it run too: they may use its output.

    Example::

        state = JobState(job.job_config, job.process)
        if not state.is_finished(0):
            state.begin(0)
            job.process[0].run()
            state.finish(0)
    """

    def __init__(
        self, config: JobConfig, processes: Sequence[Any], anew_from: int | None = None
    ) -> None:
        """processes: the objects of `config.processes`. anew_from: the index from which
        on none counts as finished."""
        self._job = JobContext(config.name)
        self._entries = config.processes
        self.path: Path | None = None
        if len(config.processes) > 1:
            self.path = job_state_file(config.name, config.processes).absolute()
        self._records = {} if self.path is None else finished_processes(self.path)
        self._finished_count = 0
        self._begun = ""
        for entry, process in islice(
            zip(config.processes, processes, strict=False), anew_from
        ):
            recorded = self._records.get(entry.label)
            section = entry.section
            if recorded is None or recorded != self._digest(entry):
                break
            if isinstance(section, ProcessConfig):
                is_there = section.outputs_exist(self._job)
            else:
                folder = getattr(process, "save_root", None)
                is_there = folder is None or folder.exists()
            if not is_there:
                break
            self._finished_count += 1

    def is_finished(self, index: int) -> bool:
        """Whether process `index`, counted from 0, is finished and need not run."""
        return index < self._finished_count

    def describe(self, index: int) -> str:
        """The line that is printed for the skipped process `index`, with the flag that
        runs it again."""
        entry = self._entries[index]
        place = f"process {index + 1} of {len(self._entries)}"
        return f"{place}, {entry.name or entry.type}: finished before, nothing to do (--restart runs it again)"

    def begin(self, index: int) -> None:
        """Records that process `index` runs: it and those after it are no longer
        finished."""
        self._keep_first(index)
        # what it reads may change before it ends
        self._begun = self._digest(self._entries[index])

    def finish(self, index: int) -> None:
        """Records that process `index` is finished. `begin` must have been called for
        it. The records of later processes are dropped."""
        self._keep_first(index, **{self._entries[index].label: self._begun})

    def _digest(self, entry: ProcessEntry) -> str:
        """Digest of the settings, and of what the process reads; empty where nothing is
        recorded."""
        if self.path is None:
            return ""
        text = json.dumps(
            redact_json(entry.raw, by_key=True), sort_keys=True, default=str
        )
        if isinstance(entry.section, ProcessConfig):
            text += entry.section.inputs_digest(self._job)
        return hashlib.sha256(text.encode()).hexdigest()

    def _keep_first(self, count: int, **more: str) -> None:
        first = {entry.label for entry in self._entries[:count]}
        records = {
            label: digest for label, digest in self._records.items() if label in first
        } | more
        if self.path is None or (records == self._records and not more):
            return
        self._records = records
        try:
            write_json(self.path, {"finished": records})
        except RunError as error:  # the process itself has succeeded
            print(redact_text(f"warning: {error}"), file=sys.stderr)
