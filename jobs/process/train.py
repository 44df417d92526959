"""A process with a folder of run files: `<training_folder>/<job>[/<process name>]/`."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.process.base import BaseProcess
from toolkit.config.process import JobContext, ProcessConfig
from toolkit.files.run_files import CONFIG
from toolkit.files.writing import write_text

if TYPE_CHECKING:
    from jobs.job import BaseJob


class BaseTrainProcess(BaseProcess):
    """Base class of trainers. Creating it writes nothing, so that an error in a later process leaves no files."""

    def __init__(self, process_id: int, job: BaseJob, config: OrderedDict[str, Any]) -> None:
        super().__init__(process_id, job, config)
        self.training_folder = Path(self._setting("training_folder", "output")).expanduser()
        self.training_seed: int | None = self._setting("training_seed", None)
        """As in the job; None when it is not set."""
        self.save_root = self._run_folder()

    def run(self) -> None:
        """Creates the folder and saves the job in it."""
        super().run()
        self.write_config()

    def write_config(self) -> None:
        """Saves the job in its folder, as given: `${VARS}` unexpanded."""
        self.save_root.mkdir(parents=True, exist_ok=True)
        write_text(self.save_root / CONFIG, self.job.job_config.unexpanded_text)

    def print(self, *values: object) -> None:
        """Prints a message to the user."""
        print(*values, flush=True)

    def _setting(self, key: str, default: Any) -> Any:
        """A value of the typed section, which has defaults and aliases, or else of the plain one."""
        if self.section is not None and hasattr(self.section, key):
            return getattr(self.section, key)
        return self.get_conf(key, default)

    def _run_folder(self) -> Path:
        if isinstance(self.section, ProcessConfig):
            folder = self.section.run_folder(JobContext(self.job.name))
            if folder is not None:
                return folder
        folder = self.training_folder / self.job.name
        own_name = self.get_conf("name")
        return folder / own_name if own_name else folder
