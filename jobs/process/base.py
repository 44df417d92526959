"""One entry of a job's `process` list as an object: its settings, its name, and `run`.

`BaseProcess` is the base class of every process; `BaseTrainProcess` adds a folder for
the files of a run. Names and arguments are those of ai-toolkit, so that its extensions
load. Nothing is written before `run`.

Extensions subclass these classes (docs/extensions.md). `jobs/job.py` builds the objects
and calls `run`, `on_error` and `move_aside`. `jobs/process/trainer.py` has the base
class of trainers.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.config.reading.process import JobContext, ProcessConfig
from toolkit.errors import UserError
from toolkit.files.run_files import CONFIG
from toolkit.files.writing import write_text

if TYPE_CHECKING:
    from pydantic import BaseModel

    from jobs.job import BaseJob


_INSTEAD = {
    "timer": "time.perf_counter()",
    "progress_bar": "toolkit.files.log.StatusLine",
    "performance_log_every": "self.get_conf('performance_log_every', 0)",
}
"""Attribute that ai-toolkit's processes have -> what to use here."""


class BaseProcess:
    """Created as `(process_id, job, config)` for every process of a job before any of
    them runs.

    Example::

        class Greeting(BaseProcess):
            def run(self) -> None:
                super().run()
                print(self.get_conf("greeting", "Hello"), self.job.name)
    """

    runs_everywhere = False
    """With several ranks (`torchrun`): `run` is called on each of them, which
    communicate over `job.process_group`. False: it is called on rank 0 only, and the
    other ranks wait."""

    def __init__(
        self, process_id: int, job: BaseJob, config: OrderedDict[str, Any]
    ) -> None:
        self.process_id = process_id
        """Index in the job's `process` list."""
        self.job = job
        self.config = config
        """The section as plain data, `type` included."""
        job_config = getattr(job, "job_config", None)
        self.section: BaseModel | None = (
            job_config.processes[process_id].section if job_config else None
        )
        """The section as the extension's own model, when it has one (`get_config`)."""
        self.name: str = self.get_conf("name") or job.name
        self.meta: dict[str, Any] = copy.deepcopy(dict(job.meta))

    @property
    def raw_process_config(self) -> OrderedDict[str, Any]:
        """`config`, by the name of ai-toolkit's processes."""
        return self.config

    if not TYPE_CHECKING:  # which knows every attribute there is

        def __getattr__(self, name: str) -> Any:
            instead = f"; use {_INSTEAD[name]}" if name in _INSTEAD else ""
            raise AttributeError(
                f"{type(self).__name__!r} object has no attribute {name!r}{instead}"
            )

    def run(self) -> None:
        """Runs the process. A subclass calls `super().run()` first. An exception ends
        the job."""

    def on_error(self, error: Exception) -> None:
        """Called with the exception that `run` raised, before the job ends with it. An
        exception in it is printed and does not replace `error`."""

    def move_aside(self) -> None:
        """Moves aside what an earlier run wrote: called before the first process runs,
        with `--restart-from` this one or an earlier one."""

    def add_meta(self, additional_meta: Mapping[str, Any]) -> None:
        """Adds to the metadata of the files that this process saves."""
        self.meta.update(additional_meta)

    def get_conf(
        self,
        key: str,
        default: Any = None,
        required: bool = False,
        as_type: Callable[[Any], Any] | None = None,
    ) -> Any:
        """The value at a dotted key such as "train.lr" or "datasets.0.folder_path".

        A key that is absent or null gives `default`, or a UserError when it is
        `required`. `as_type` converts what is found (and a default that is not None);
        UserError when it cannot.
        """
        value = _look_up(self.config, key)
        if value is None and required:
            raise UserError(f"{self._place(key)}: required, but not given.")
        if value is None:
            value = default
        return (
            value
            if value is None or as_type is None
            else self._convert(key, value, as_type)
        )

    def _convert(self, key: str, value: Any, as_type: Callable[[Any], Any]) -> Any:
        wanted = getattr(as_type, "__name__", str(as_type))
        if as_type is bool and isinstance(value, str):
            # bool("false") is True: YAML's own true and false are the only safe
            # spelling.
            raise UserError(
                f"{self._place(key)}: {value!r} is text. Write true or false, without quotes."
            )
        try:
            return as_type(value)
        except (TypeError, ValueError, AttributeError, LookupError) as error:
            raise UserError(
                f"{self._place(key)}: {value!r} cannot be read as {wanted}: {error}"
            ) from error

    def _place(self, key: str) -> str:
        return f"process[{self.process_id}].{key}"


class BaseExtensionProcess(BaseProcess):
    """Base class of processes in `extensions/`.

    Example::

        class CountImages(BaseExtensionProcess):
            def run(self) -> None:
                super().run()
                folder = Path(self.get_conf("folder", required=True))
                print(len([*folder.glob("*.png")]))
    """


class BaseTrainProcess(BaseProcess):
    """A process with a folder of run files: `<training_folder>/<job>[/<process
    name>]/`. Creating it writes nothing, so that an error in a later process leaves no
    files.

    Example::

        class WriteNotes(BaseTrainProcess):
            def run(self) -> None:
                super().run()  # makes the folder
                (self.save_root / "notes.txt").write_text(f"seed {self.training_seed}")
    """

    def __init__(
        self, process_id: int, job: BaseJob, config: OrderedDict[str, Any]
    ) -> None:
        super().__init__(process_id, job, config)
        # The typed section has defaults and aliases; without one the plain values
        # count.
        given = {
            key: self.get_conf(key) for key in ("training_folder", "training_seed")
        }
        folder, seed = (
            getattr(self.section, key, value) for key, value in given.items()
        )
        # absolute: a callback may change the working directory
        self.training_folder = Path(folder or "output").expanduser().absolute()
        self.training_seed: int | None = seed
        """As in the job; None when it is not set."""
        self.process_group = job.process_group
        own_name = self.get_conf("name")
        self.save_root = self.training_folder / job.name
        if own_name:
            self.save_root = self.save_root / own_name
        if isinstance(self.section, ProcessConfig):
            if run_folder := self.section.run_folder(JobContext(job.name)):
                self.save_root = run_folder.absolute()

    def run(self) -> None:
        """Creates the folder and saves the job in it."""
        super().run()
        self.write_config()

    def write_config(self) -> None:
        """Saves the job in its folder, as given: `${VARS}` unexpanded."""
        write_text(self.save_root / CONFIG, self.job.job_config.unexpanded_text)

    def print(self, *values: object) -> None:
        """Prints a message to the user."""
        print(*values, flush=True)


def _look_up(value: Any, key: str) -> Any:
    """The value at a dotted path through mappings and lists; None when there is
    none."""
    for part in key.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif (
            isinstance(value, list | tuple)
            and part.isdigit()
            and int(part) < len(value)
        ):
            value = value[int(part)]
        else:
            return None
    return value
