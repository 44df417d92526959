"""The processes of `run.py ui`, `queue`, `runs`, `datasets` and `jobs`.

`UiProcess` opens the port, starts the queue's runner and serves the application of
`extensions.tools.ui.app` until it is stopped. `QueueProcess` does one thing with the
queue and ends; `queue run` works on it in the foreground. Neither trains: a job is
always a separate process, which `extensions.tools.ui.runner` starts. `RunsProcess`,
`DatasetsProcess` and `JobsProcess` do one of the verbs of `extensions.tools.ui.shelf`.

`extensions.tools` lists all as tools, and the command line starts them by name.
starlette and uvicorn are imported for the page only: the queue needs neither.
"""

from __future__ import annotations

import json
import logging
import re
import shlex
import socket
from argparse import ArgumentError, ArgumentParser
from asyncio import CancelledError
from collections.abc import Iterator, Sequence
from contextlib import suppress
from ctypes import CDLL
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Any

from extensions.tools.ui import shelf
from extensions.tools.ui.config import (
    QueueConfig,
    ShelfConfig,
    UiConfig,
    queue_folder,
    token,
)
from extensions.tools.ui.queue import WAITING, Queue, planned, why_not_queued
from jobs.process import BaseExtensionProcess
from jobs.sweep import variants
from toolkit.commands import command
from toolkit.config.reading.tool import ToolConfig, load_tool
from toolkit.errors import RunError, UserError
from toolkit.extension import discover
from toolkit.files.redact import redact_json
from toolkit.files.run_files import utc_now
from toolkit.files.writing import readable_size

logger = logging.getLogger(__name__)

ONE_ARENA = (-8, 1)
"""M_ARENA_MAX of glibc's mallopt(3), and its value. With one arena per thread the page
would take 30 MB more memory."""

GRACE_S = 1
"""Seconds that open requests get when the page is stopped. Event streams never end by
themselves."""


class UiProcess(BaseExtensionProcess):
    """`run.py ui`: serves the page until it is stopped.

    A kill at any moment loses nothing, because every file is written whole.

    Example::

        python run.py ui --output output --port 8675
    """

    section: UiConfig

    def run(self) -> None:
        """Serves until the process is stopped. Raises RunError if the port is taken."""
        import uvicorn  # here, because `run.py queue` needs no server

        from extensions.tools.ui.app import make_app
        from extensions.tools.ui.state import Ui
        from extensions.tools.ui.views.queue import queue_of

        super().run()
        with suppress(AttributeError, OSError, TypeError):  # the C library is not glibc
            CDLL(None).mallopt(*ONE_ARENA)
        ui = Ui.of(self.section, self.section.secret())
        with _listening(self.section.host, self.section.port) as listener:
            is_ipv6 = ":" in self.section.host
            host = f"[{self.section.host}]" if is_ipv6 else self.section.host
            address = f"http://{host}:{self.section.port}/"
            login = " (it asks for the token)" if token() else ""
            if ui.token and not login:
                address += f"?token={ui.token}"
            logger.info(
                f"{address} shows {ui.output}{login}. Ctrl-C ends it, runs go on."
            )
            queue_of(ui).start_runner()
            config = uvicorn.Config(
                make_app(ui),
                log_config=None,
                access_log=False,
                log_level="warning",
                server_header=False,
                timeout_graceful_shutdown=GRACE_S,
                ws="none",
                # X-Forwarded-For would let one client guess tokens under many names.
                proxy_headers=False,
            )
            # A request that is cut at the end is no error.
            logging.getLogger("uvicorn.error").addFilter(
                lambda record: (
                    not isinstance((record.exc_info or (None, None))[1], CancelledError)
                )
            )
            server = uvicorn.Server(config)
            ui.is_stopping = lambda: server.should_exit
            server.run([listener])


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise RunError(
            f"{host}:{port}: {error.strerror or error}. Give another --port or --host."
        ) from error
    return listener


class QueueProcess(BaseExtensionProcess):
    """`run.py queue`: does one thing with the queue and ends.

    A kill at any moment leaves every entry whole, and running jobs go on.

    Example::

        python run.py queue add config/cat.yaml
        python run.py queue list
    """

    section: QueueConfig

    def run(self) -> None:
        """Raises UserError if the action is not possible, and RunError if another runner
        works on the queue."""
        super().run()
        queue = Queue(queue_folder(self.section.output))
        action = self.section.action
        words = self.section.words
        if action == "run":
            from extensions.tools.ui.runner import Runner

            Runner(queue).run()
        elif action == "list" and self.section.as_json:
            entries = [
                entry.model_dump(mode="json") | {"argv": entry.shown()}
                for entry in queue.now()
            ]
            print(json.dumps({"entries": redact_json(entries)}))
        elif action == "list":
            for entry in queue.now():
                about = shlex.join(entry.shown())
                if entry.attempts > 1:
                    about += f", {entry.attempts} starts"
                if entry.state == WAITING and entry.not_before > utc_now():
                    about += f", starts at {entry.not_before}"
                if entry.why:
                    about += f", {entry.why}"
                logger.info(f"{entry.id}  {entry.state:8}  {about}")
        elif action == "add":
            words, own = own_flags(words)
            runs = [*each_run(words)]
            name = checked(words).removesuffix(runs[0][1])
            runner = ""
            if not queue.has_runner():
                runner = f" Next: {_run_the_queue(self.section)}"
            as_json = own.pop("json") or self.section.as_json
            added = [queue.add(words, f"{name}{label}", **own) for words, label in runs]
            for entry in added if not as_json else ():
                until = f" until {entry.not_before}" if entry.not_before else ""
                logger.info(f"{entry.id}: {entry.name} waits{until}.{runner}")
            if as_json:
                shown = redact_json([entry.model_dump(mode="json") for entry in added])
                print(json.dumps(shown if len(shown) > 1 else shown[0]))
        else:
            getattr(queue, action)(*words)
            logger.info(f"{action}: done")


def _run_the_queue(section: QueueConfig) -> str:
    """The command that works on the queue of the section's folder of runs."""
    elsewhere = () if section.output == "output" else ("--output", section.output)
    return command("queue", *elsewhere, "run")


def own_flags(words: Sequence[str]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The command of `add` without `--at`, `--retries` and `--json`, which are the
    queue's, and what they say: arguments of `Queue.add`, and `json`. Raises UserError
    for what is neither a time nor a number.

    >>> own_flags(["cat.yaml", "--retries", "1", "--restart"])
    (('cat.yaml', '--restart'), {'not_before': '', 'retries': 1, 'json': False})
    """
    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--at", default="")
    parser.add_argument("--retries", type=int)
    if not discover().is_tool(words[0]):  # which may have such a flag
        parser.add_argument("--json", action="store_true")
    try:
        own, rest = parser.parse_known_args(words)
    except ArgumentError as error:
        raise UserError(f"{error}. Write --at 22:00, --retries 1.") from None
    if (own.retries or 0) < 0:
        raise UserError(f"--retries: {own.retries} is negative. Write 0 for none.")
    return tuple(rest), {
        "not_before": start_time(own.at) if own.at else "",
        "retries": own.retries,
        "json": vars(own).get("json", False),
    }


def each_run(words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """The command of each run of `--sweep` and `--seeds`, with the end of its name:
    they are entries of their own, for several GPUs, and one that fails keeps no other.
    Of other commands the command itself.

    >>> [*each_run(("cat.yaml", "--seeds", "1,2"))]
    [(('cat.yaml', '--seeds=1'), '_seed1'), (('cat.yaml', '--seeds=2'), '_seed2')]
    """
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--sweep", nargs="+", action="extend", default=[])
    parser.add_argument("--seeds")
    own, rest = parser.parse_known_args(words)
    if words[0] in discover().tools() or not (own.sweep or own.seeds):
        yield words, ""
        return
    for run in variants(own.sweep, own.seeds):
        yield (*rest, *run.flags()), run.suffix


def start_time(text: str) -> str:
    """`22:00`, the next one, or an ISO 8601 time, as `utc_now` writes it. Without a
    zone it is the time of this machine. Raises UserError for another text, and for a
    time that is over.

    >>> start_time("2999-01-01T22:00:30Z")
    '2999-01-01T22:00:30Z'
    """
    now = datetime.now().astimezone()
    try:
        if "-" in text:
            at = datetime.fromisoformat(text).astimezone(UTC)
        else:
            clock = time.fromisoformat(text)
            day = now.date() + timedelta(days=clock <= now.time())
            at = datetime.combine(day, clock).astimezone(UTC)
    except (ValueError, OverflowError):
        remedy = "Write 22:00, or 2026-12-24T22:00."
        raise UserError(f"--at: {text!r} is not a time. {remedy}") from None
    if at <= now:
        raise UserError(f"--at: {text!r} is over. Leave the flag out to start it now.")
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def checked(argv: tuple[str, ...]) -> str:
    """Checks a command for the queue, and returns a name for its entry. Raises UserError
    for mistakes in its settings."""
    words = [part for word in argv for part in re.split("(?<=^--output)=", word)]
    if "--output" in words and not discover().is_tool(argv[0]):
        at = words.index("--output")
        folder, others = (
            words[at : at + 2],
            [*words[:at], *words[at + 2 :]] or ["JOB.yaml"],
        )
        write = command("queue", *folder, "add", *others)
        raise UserError(
            f"--output: the queue's own flag stands before 'add'. Write: {write}"
        )
    reason = why_not_queued(argv, str(Path.cwd()))
    if reason:
        raise UserError(reason)
    uid, *flags = argv
    if not discover().is_tool(uid):
        return str(planned(argv, str(Path.cwd())).get("job", uid))
    model = discover().find_command(uid)
    if model is not None and issubclass(model, ToolConfig):
        load_tool(uid, model, flags)
    return uid


class ShelfProcess(BaseExtensionProcess):
    """`run.py runs`, `datasets`, `jobs`: does one thing with them and ends.

    Example::

        python run.py runs rename my_char maya
        python run.py datasets list --json
    """

    section: ShelfConfig

    def run(self) -> None:
        """Raises UserError where it is not possible."""
        super().run()
        self.kind: shelf.Kind = self.section.type  # type: ignore[assignment]  # one of these
        asked = self.section
        action: str = asked.action
        folders = (asked.output, asked.datasets, asked.jobs)
        own = shelf.Shelf(*(Path(folder).expanduser() for folder in folders))
        if action == "list":
            self._list(own)
        elif action == "delete":
            gone = shelf.delete(own, self.kind, *asked.words)
            back = command(self.kind, "restore", gone.name)
            size = f"{readable_size(gone.size)} in {gone.files} files"
            self._tell(
                gone._asdict(), f"{gone.name}: {size}, in the trash. Back: {back}"
            )
        elif action == "longer":
            name, steps = asked.words
            words = shelf.longer(own, name, steps)
            self._tell({"name": name, "command": words}, f"{name}: {steps} steps. Next: {command(*words)}")  # fmt: skip
        else:
            path = getattr(shelf, action)(own, self.kind, *asked.words)
            self._tell({"path": str(path)}, f"{path}: {action} is done.")

    def _list(self, own: shelf.Shelf) -> None:
        there: list[dict[str, Any]] = []
        for name, path in shelf.listed(own, self.kind):
            size, files = shelf.size_of(path)
            there.append(
                {"name": name, "path": str(path), "size": size, "files": files}
            )
        trash = [one._asdict() for one in shelf.trashed(own, self.kind)]
        lines = [f"{readable_size(one['size']):>9}  {one['name']}" for one in there]
        lines += [f"{readable_size(one['size']):>9}  {one['name']}  in the trash" for one in trash]  # fmt: skip
        self._tell({self.kind: there, "trash": trash}, *lines)

    def _tell(self, facts: dict[str, Any], *lines: str) -> None:
        if self.section.as_json:
            print(json.dumps(facts))
        else:
            for line in lines:
                logger.info(line)


RunsProcess = DatasetsProcess = JobsProcess = ShelfProcess
"""By the names under which the table of tools looks for them."""
