"""The config sections of `run.py ui`, `queue`, `runs`, `datasets` and `jobs`, and the
page's token.

The sections check that the page cannot be reached by others without a token, and that
no file is where a folder has to be. They do not serve the page or change the queue:
`extensions.tools.ui.process` does that with a checked section.

`queue_folder` and `OWN` name the folders of the page's own files. The state, the queue
and the bar with the machine's state use them.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from extensions.tools.shared.keys import check_folder, check_place
from toolkit.commands import command
from toolkit.config.reading.field_types import StrOrList, WritePathStr
from toolkit.config.reading.located import ConfigNode, Diagnostics
from toolkit.config.reading.process import Diagnostic, JobContext
from toolkit.config.reading.tool import ToolConfig
from toolkit.files.run_files import STATUS

OWN = ".ui"
"""Folder of the page's own files, in the folder of the runs."""

MOST_PRICE = 1e6
"""Highest price per hour."""

TOKEN_VARIABLES = ("APP_AUTH", "AI_TOOLKIT_AUTH")
"""Environment variables that may hold the token. The first that is set is used."""

SHORTEST_TOKEN = 8
"""Minimum length of the token in characters: a shorter one could be guessed."""


def token() -> str:
    """The token of the environment; empty: it has none, and the page makes one."""
    values = (os.environ.get(name, "").strip() for name in TOKEN_VARIABLES)
    return next(filter(None, values), "")


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only.

    >>> is_loopback("127.0.0.1"), is_loopback("0.0.0.0")
    (True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class UiConfig(ToolConfig):
    """`type: ui`: serves a web page with live runs, datasets and captions to edit, and
    a queue of jobs. Open the address that it prints."""

    process_types: ClassVar[tuple[str, ...]] = ("ui",)
    example: ClassVar[str] = "--output output"

    lone_key: ClassVar[str] = "port"

    output: WritePathStr = "output"
    """Folder of the runs, the `training_folder` of jobs."""

    datasets: WritePathStr = "datasets"
    """Folder whose subfolders are the datasets."""

    jobs: WritePathStr = "config"
    """Folder of the job files written by the page."""

    host: str = "127.0.0.1"
    """Address to listen on. Any address that is not local needs a token of your own in
    APP_AUTH."""

    no_token: bool = False
    """Answers everybody on this machine. Without it the page makes a token at each start
    and prints the address with it, unless APP_AUTH holds one."""

    port: int = Field(default=8675, ge=1, le=65535)
    """Port to listen on."""

    price_per_hour: float = Field(default=0.0, ge=0, le=MOST_PRICE)
    """Price of the GPU per hour, to show the cost of a run. 0: not shown."""

    def secret(self) -> str:
        """The token of this start; empty: the page asks for none."""
        return token() or ("" if self.no_token else secrets.token_urlsafe(24))

    def folder(self) -> Path:
        """`output` as a path."""
        return Path(self.output).expanduser()

    def check(self, job: JobContext) -> Iterable[Diagnostic]:
        """Reports an address that others can reach without a token, a token that is too
        short, and files where folders have to be."""
        if not token() and not is_loopback(self.host):
            yield Diagnostic(
                ("host",),
                f"{self.host!r} can be reached by others, who could train and read everything here. Set a token of at "
                f"least {SHORTEST_TOKEN} characters in the environment variable {TOKEN_VARIABLES[0]}.",
            )
        if token() and self.no_token:
            yield Diagnostic(
                ("no_token",),
                f"the environment variable {TOKEN_VARIABLES[0]} or {TOKEN_VARIABLES[1]} holds a token. Leave the flag "
                "out, or unset the variable.",
            )
        if 0 < len(token()) < SHORTEST_TOKEN:
            names = " or ".join(TOKEN_VARIABLES)
            yield Diagnostic(
                ("host",),
                f"the token in {names} is too short: give at least {SHORTEST_TOKEN} characters.",
            )
        for key in ("output", "datasets", "jobs"):
            folder = Path(getattr(self, key)).expanduser()
            yield from check_place(folder, key, "Give a folder.")


SYNONYMS = {
    "list": ("ls", "show", "status"),
    "add": ("push", "submit", "append", "put"),
    "remove": ("delete", "rm", "del"),
    "move": ("mv",),
    "stop": ("cancel", "kill", "abort"),
    "retry": ("restart", "again", "rerun"),
    "clear": ("empty",),
    "run": ("start", "resume", "continue", "work"),
    "longer": ("extend", "continue", "resume"),
    "clone": ("copy", "cp", "duplicate"),
    "rename": ("move", "mv"),
    "delete": ("remove", "rm", "del", "purge"),
    "restore": ("undo", "undelete", "recover"),
}
"""Verb -> verbs of other programs."""


class VerbConfig(ToolConfig):
    """What `run.py queue`, `runs`, `datasets` and `jobs` have in common: a verb, and
    the words that it takes."""

    positional: ClassVar[tuple[str, ...]] = ("action", "words")
    flags: ClassVar[dict[str, str]] = {"as_json": "--json"}
    verbs: ClassVar[Mapping[str, tuple[int | None, str]]] = {}
    """Verb -> the number of words that it takes (None: one or more), and which words."""

    action: str = "list"
    """The verb."""

    words: StrOrList = ()
    """What it is done with."""

    @classmethod
    def rewrite(
        cls, entries: dict[str, ConfigNode], diagnostics: Diagnostics
    ) -> dict[str, ConfigNode]:
        """Reports a verb of other programs, and a path without one, with the whole
        command. Words behind an unknown verb are not looked at."""
        given = entries.get("action")
        if given is None or given.value in cls.verbs:
            return entries
        words = entries["words"].data() if "words" in entries else []
        if meant := cls.meant(str(given.value), words):
            write = command(cls.process_types[0], *meant)
            diagnostics.error(given, f"{given.value!r} is not a verb. Write: {write}")
        return {key: node for key, node in entries.items() if key != "words"}

    @classmethod
    def meant(cls, word: str, words: Sequence[str]) -> Sequence[str]:
        """The words behind the tool for those that were typed, of which the first is no
        verb of it; empty where that is not known."""
        typed = word.lower()
        verb = next((verb for verb in cls.verbs if typed in SYNONYMS[verb]), "")
        return (verb, *words[: cls.verbs[verb][0]]) if verb else ()

    def check(self, job: JobContext) -> Iterable[Diagnostic]:
        """Reports words that the verb does not take."""
        count, which = self.verbs[self.action]
        if len(self.words) != count if count is not None else not self.words:
            yield Diagnostic(("words",), f"{self.action!r} takes {which}.")


def queue_folder(output: Path | str) -> Path:
    """Folder of the queue's entries for a folder of runs.

    >>> queue_folder("output").as_posix()
    'output/.ui/queue'
    """
    return Path(output).expanduser() / OWN / "queue"


class QueueConfig(VerbConfig):
    """`run.py queue`: lists the queue. `queue add JOB.yaml --flags` or `queue add TOOL
    --flags` adds a command, `queue run` works on it in the foreground until it is
    empty. Further: `remove ID`, `move ID BEFORE`, `stop ID`, `retry ID`, `clear`. What
    follows `add` is the command's own, so `--output` stands before it; but for `--at
    22:00`, the time before which it does not start, and `--retries 1`, how often it
    starts again after a failure."""

    process_types: ClassVar[tuple[str, ...]] = ("queue",)
    example: ClassVar[str] = "add config/examples/quickstart.yaml"
    verbatim: ClassVar[tuple[str, str]] = ("add", "words")
    verbs: ClassVar = {
        "list": (0, "nothing"),
        "add": (None, "a job file or a tool, and its flags"),
        "remove": (1, "an id"),
        "move": (2, "an id, and the id that it is to stand before"),
        "stop": (1, "an id"),
        "retry": (1, "an id"),
        "clear": (0, "nothing"),
        "run": (0, "nothing"),
    }

    action: Literal[
        "list", "add", "remove", "move", "stop", "retry", "clear", "run"
    ] = "list"
    """What is done."""

    words: StrOrList = ()
    """What it is done with: ids of `queue list`, or the command to add."""

    output: WritePathStr = "output"
    """Folder of the runs; the queue is in its folder `.ui/queue`, and the page of
    `run.py ui` has the same."""

    as_json: bool = False
    """With `list`: print one JSON object. With `add`: print the entry as one; of a sweep
    a list of entries."""

    @classmethod
    def meant(cls, word: str, words: Sequence[str]) -> Sequence[str]:
        """Adds a job or a tool."""
        from extensions.tools.ui.queue import why_not_queued  # it imports this module

        is_no_command = why_not_queued([word], os.getcwd())
        return super().meant(word, words) if is_no_command else ("add", word, *words)

    def check(self, job: JobContext) -> Iterable[Diagnostic]:
        """Reports words that the action does not take, and a file where a folder has to
        be."""
        yield from super().check(job)
        if self.as_json and self.action not in ("list", "add"):
            yield Diagnostic(
                ("as_json",), f"is for 'list' and 'add', not for {self.action!r}."
            )
        place = queue_folder(self.output)
        yield from check_place(place, remedy="Give a folder.")


class ShelfConfig(VerbConfig):
    """What `run.py runs`, `datasets` and `jobs` have in common."""

    verbs: ClassVar[Mapping[str, tuple[int | None, str]]] = {
        "list": (0, "nothing"),
        "clone": (2, "a name, and the name of the copy"),
        "rename": (2, "a name, and the new name"),
        "delete": (1, "a name"),
        "restore": (1, "a name, or an entry of the trash"),
    }

    @classmethod
    def meant(cls, word: str, words: Sequence[str]) -> Sequence[str]:
        """Lists what is in a folder; for a run's folder, what is beside it."""
        kind = cls.process_types[0]
        run, _, _ = word.rstrip("/").rpartition("/")
        home = run if os.path.isfile(f"{word}/{STATUS}") else word
        flag = "--output" if kind == "runs" else f"--{kind}"
        return (flag, home) if os.path.isdir(home) else super().meant(word, words)

    action: Literal["list", "clone", "rename", "delete", "restore"] = "list"
    """The verb. `delete` moves what it names into the folder `.trash` beside it."""

    words: StrOrList = ()
    """What it is done with: names of `list`."""

    output: WritePathStr = "output"
    """Folder of the runs."""

    datasets: WritePathStr = "datasets"
    """Folder of the datasets."""

    jobs: WritePathStr = "config"
    """Folder of the job files."""

    as_json: bool = False
    """Print one JSON object."""

    def check(self, job: JobContext) -> Iterable[Diagnostic]:
        """As above, and a folder that is missing, except for a script (`as_json`), which
        may ask before there is one."""
        yield from super().check(job)
        for key in ("output", "datasets", "jobs"):
            if not (self.as_json or self.is_default(key)):
                yield from check_folder((key,), getattr(self, key), job)


class RunsConfig(ShelfConfig):
    """`run.py runs`: lists the runs with the size of their folders. `runs longer NAME
    STEPS` sets their steps, `runs clone NAME NEW` writes their job under a new name,
    `runs rename NAME NEW` keeps them resumable. `runs delete NAME` moves one into the
    trash, `runs restore NAME` back."""

    process_types: ClassVar[tuple[str, ...]] = ("runs",)
    example: ClassVar[str] = "clone quickstart quickstart_2"
    verbs: ClassVar = {
        **ShelfConfig.verbs,
        "longer": (2, "a name, and the number of steps in all"),
    }

    action: Literal["list", "longer", "clone", "rename", "delete", "restore"] = "list"  # type: ignore[assignment]  # one more
    """The verb. `delete` moves what it names into the folder `.trash` beside it."""


class DatasetsConfig(ShelfConfig):
    """`run.py datasets`: lists the datasets with the size of their folders. `datasets
    rename NAME NEW` corrects the jobs that name the folder, `datasets clone NAME NEW`
    copies it. `datasets delete NAME` moves one into the trash, `datasets restore NAME`
    back."""

    process_types: ClassVar[tuple[str, ...]] = ("datasets",)
    example: ClassVar[str] = "list"


class JobsConfig(ShelfConfig):
    """`run.py jobs`: lists the job files. `jobs clone NAME NEW` writes a copy under a new
    name, `jobs rename NAME NEW` renames one that has no run yet. `jobs delete NAME`
    moves one into the trash, `jobs restore NAME` back."""

    process_types: ClassVar[tuple[str, ...]] = ("jobs",)
    example: ClassVar[str] = "list --json"
