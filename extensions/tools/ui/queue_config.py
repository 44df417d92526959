"""The section of `type: queue`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator

from extensions.tools.ui.config import OWN
from toolkit.config.field_types import PathStr, as_list, schema_of_list
from toolkit.config.process import Diagnostic, JobContext
from toolkit.config.tool import ToolConfig
from toolkit.files.writing import file_in_the_way

WORDS = {
    "list": (0, "nothing"),
    "add": (None, "a job file or a tool, and its flags"),
    "remove": (1, "an id"),
    "move": (2, "an id, and the id that it is to stand before"),
    "stop": (1, "an id"),
    "retry": (1, "an id"),
    "clear": (0, "nothing"),
    "run": (0, "nothing"),
}
"""Action -> how many words it takes, None: one or more; and which."""


def queue_folder(output: Path | str) -> Path:
    """Where the entries of a folder of runs are."""
    return Path(output).expanduser() / OWN / "queue"


class QueueConfig(ToolConfig):
    """`run.py queue`: lists the queue. `queue add JOB.yaml --flags` or `queue add TOOL --flags` adds a command,
    `queue run` works on it in the foreground until it is empty. Further: `remove ID`, `move ID BEFORE`, `stop ID`,
    `retry ID`, `clear`. What follows `add` is the command's own, so `--output` stands before it."""

    process_types: ClassVar[tuple[str, ...]] = ("queue",)
    positional: ClassVar[tuple[str, ...]] = ("action", "words")
    verbatim: ClassVar[tuple[str, str]] = ("add", "words")

    action: Literal["list", "add", "remove", "move", "stop", "retry", "clear", "run"] = "list"
    """What is done."""

    words: Annotated[tuple[str, ...], BeforeValidator(as_list), schema_of_list({"type": "string"})] = ()
    """What it is done with: ids of `queue list`, or the command to add."""

    output: PathStr = "output"
    """Folder of the runs; the queue is in its folder `.ui/queue`, and the page of `run.py ui` has the same."""

    def check(self, job: JobContext) -> Iterable[Diagnostic]:
        """Words that the action does not take, and a file where a folder is to be."""
        count, which = WORDS[self.action]
        if len(self.words) != count if count is not None else not self.words:
            yield Diagnostic(("words",), f"{self.action!r} takes {which}.")
        if file := file_in_the_way(queue_folder(self.output)):
            yield Diagnostic(("output",), f"'{file}' is a file. Give a folder.")
