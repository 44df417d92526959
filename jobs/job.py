"""`job: extension`: builds the processes of a config by their types and runs them in
order.

`run.py` makes an `ExtensionJob` of a checked `JobConfig`. All processes are built
before the first one runs, so that a mistake in the last one costs nothing. A process
sees its job as a `BaseJob`: name, metadata, ranks, and the other processes.

Which processes an earlier start has finished is in `jobs/job_state.py`. What a process
does is in its class; the base classes are in `jobs/process`.
"""

from __future__ import annotations

import copy
import gc
import sys
import traceback
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from toolkit.errors import RunError, UserError, did_you_mean
from toolkit.files.writing import TOOLKIT_ROOT
from toolkit.system.distributed import ProcessGroup
from toolkit.version import NAME, VERSION

if TYPE_CHECKING:
    from jobs.job_state import JobState
    from toolkit.config import JobConfig, ProcessEntry
    from toolkit.extension import ExtensionTable


@dataclass(frozen=True)
class JobOptions:
    """Command-line options for every process of a job.

    >>> JobOptions(restart=True)
    JobOptions(restart=True, allow_change=False, restart_from=None)
    """

    restart: bool = False
    """Run finished processes again. A run that is complete is moved aside and starts
    over, and so does one that cannot be resumed: no checkpoint of it is good, or it is
    of another job. Any other run resumes."""

    allow_change: bool = False
    """Resume from a checkpoint although the job differs from the one that wrote it."""

    restart_from: str | None = None
    """Name of the process from which the job starts over, `[index]` without one: what
    it and those after it wrote is moved aside."""


class BaseJob:
    """A job, as its processes see it.

    Example::

        job = ExtensionJob(load_job("job.yaml", table.find_config), table)
        try:
            job.run()
        finally:
            job.cleanup()
    """

    def __init__(
        self,
        config: JobConfig,
        options: JobOptions = JobOptions(),
        process_group: ProcessGroup | None = None,
    ) -> None:
        """process_group: the ranks that run the job together; None: a single
        process."""
        self.job_config = config
        self.options = options
        self.process_group = process_group or ProcessGroup()
        self.job: str = config.job
        """The kind of job: what the file says under `job`."""
        self.name: str = config.name
        self.meta: dict[str, Any] = copy.deepcopy(dict(config.meta))
        sections = [
            OrderedDict(copy.deepcopy(dict(entry.raw))) for entry in config.processes
        ]
        self.config = OrderedDict(name=config.name, process=sections)
        """The file's `config` section after checking: the name, and each process as
        plain data."""
        self.raw_config = OrderedDict(
            job=config.job, config=self.config, meta=self.meta
        )
        self.process: list[Any] = []

    @property
    def processes(self) -> list[Any]:
        """The same list as `process`."""
        return self.process

    @property
    def device(self) -> str:
        """PyTorch's name of the best device of this machine, with several ranks the
        device of this rank: "cuda:0", "mps" or "cpu". A process with a `device` key
        uses that instead."""
        from toolkit.system.device import pick_device  # here: it imports torch

        return str(self.process_group.device(pick_device("auto")))

    def run(self) -> None:
        """Runs the processes in order, except those that an earlier start finished.

        The first one that fails ends the job, after its `on_error`.
        """
        # here: it imports the config models, which --help does not need
        from jobs.job_state import (
            JobState,
        )

        trains = (
            getattr(entry.section, "train", None) for entry in self.job_config.processes
        )
        timeout_min = max(
            (getattr(train, "ddp_timeout", 0) for train in trains), default=0
        )
        self.process_group.init_process_group(timeout_min)  # 0: as long as usual
        if not self.process_group.is_single_process:
            self.process_group.assert_equal_across_ranks(
                {**versions(), "the name of the job": self.name}
            )
        options = self.options
        count = len(self.process)
        first_anew = (
            index_of(self.job_config, options.restart_from)
            if options.restart_from
            else count
        )
        state = JobState(
            self.job_config,
            self.process,
            anew_from=0 if options.restart else first_anew,
        )
        if first_anew < count:
            self.process_group.run_on_rank0_then_barrier(
                partial(self._move_aside, first_anew, state)
            )
        for index, process in enumerate(self.process):
            if self.process_group.run_on_rank0_and_broadcast(
                partial(state.is_finished, index)
            ):
                print(state.describe(index), flush=True)
                continue
            if self.process_group.is_main_process:
                state.begin(index)
            run = partial(_run_to_its_end, process, self.job_config.processes[index])
            try:
                if getattr(process, "runs_everywhere", False):
                    run()
                else:
                    self.process_group.run_on_rank0_then_barrier(run)
            except Exception as error:
                _call_on_error(process, error)
                raise
            # a model is in circles of references, and the next process needs its memory
            gc.collect()
            if self.process_group.is_main_process:
                state.finish(index)

    def _move_aside(self, first: int, state: JobState) -> None:
        """Moves aside what process `first` and those after it wrote: all of it before
        any of them runs, so that no later process meets a run that began with files
        which are gone."""
        state.begin(first)  # a job that is killed here continues with this process
        for process in self.process[first:]:
            if move_aside := getattr(process, "move_aside", None):
                move_aside()

    def cleanup(self) -> None:
        """Drops the processes and frees their memory. Always called, however the job
        ended."""
        self.process.clear()
        gc.collect()


class ExtensionJob(BaseJob):
    """Processes by their `type`, each built by the extension of that uid. All are built
    before any runs.

    Example::

        job = ExtensionJob(config, discover(), JobOptions(restart=True))
        job.run()
    """

    def __init__(
        self,
        config: JobConfig,
        extensions: ExtensionTable,
        options: JobOptions = JobOptions(),
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(config, options, process_group)
        for entry, section in zip(
            config.processes, self.config["process"], strict=True
        ):
            process_class = extensions.process_class(entry.type)
            self.process.append(process_class(entry.index, self, section))


def index_of(config: JobConfig, name: str) -> int:
    """The index of the process of this name (`[index]` of one without). Raises
    UserError where there is none."""
    names = [entry.name or f"[{entry.index}]" for entry in config.processes]
    if name not in names:
        raise UserError(
            f"--restart-from: the job has no process {name!r}. {did_you_mean(name, names)}"
        )
    return names.index(name)


def versions() -> dict[str, str]:
    """The versions that have to be equal on all machines of a run, by name: the
    program's files, Python, PyTorch."""
    import platform

    import torch

    files = {TOOLKIT_ROOT / "run.py"}
    for name in ("jobs", "toolkit", "extensions"):
        files.update((TOOLKIT_ROOT / name).rglob("*.py"))
    digest = sha256()
    for file in sorted(files):
        digest.update(
            f"{file.relative_to(TOOLKIT_ROOT)}\0".encode() + file.read_bytes()
        )
    return {
        "the program": f"{NAME} {VERSION}, files {digest.hexdigest()[:12]}",
        "the version of Python": platform.python_version(),
        "the version of PyTorch": torch.__version__,
    }


def _run_to_its_end(process: Any, entry: ProcessEntry) -> None:
    """Runs a process; one that calls `sys.exit` has failed, as the processes after it
    would silently not run."""
    # here: it imports the config models, which --help does not need
    from jobs.places import (
        places_of_datasets,
    )

    try:
        with places_of_datasets(entry):
            process.run()
    except SystemExit as error:
        raise RunError(
            f"{type(process).__name__} called sys.exit({error.code!r}): it counts as failed."
        ) from error


def _call_on_error(process: Any, error: Exception) -> None:
    """Calls the process's `on_error`, if it has one. An error in it is printed; `error`
    stays the one that counts."""
    on_error = getattr(process, "on_error", None)
    if on_error is None:
        return
    try:
        on_error(error)
    except (Exception, SystemExit):  # noqa: BLE001 - it must not hide the error it was called for
        print(f"on_error of {type(process).__name__} failed too:", file=sys.stderr)
        traceback.print_exc()
