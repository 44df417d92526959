"""`run.py ui` serves the page until it is stopped; `run.py queue` is the queue from a
terminal."""

from __future__ import annotations

import logging
import shlex
import socket
from contextlib import suppress
from ctypes import CDLL
from pathlib import Path

from extensions.tools.ui.config import QueueConfig, UiConfig, queue_folder, token
from extensions.tools.ui.queue import Queue, planned, why_not_queued
from jobs.process import BaseExtensionProcess
from toolkit.commands import command
from toolkit.config.reading.tool import ToolConfig, load_tool
from toolkit.errors import RunError, UserError
from toolkit.extension import discover

logger = logging.getLogger(__name__)

ONE_ARENA = (-8, 1)
"""M_ARENA_MAX of glibc's mallopt(3). With an arena for each thread that reads, the page
keeps 30 MB more."""

GRACE_S = 1
"""Seconds that open requests get when the page is stopped; event streams never end by
themselves."""


class UiProcess(BaseExtensionProcess):
    """A kill at any moment loses nothing: what the page writes is written whole."""

    section: UiConfig

    def run(self) -> None:
        """Raises RunError where the port is taken."""
        import uvicorn  # with what it serves: a terminal's queue needs none of it

        from extensions.tools.ui.app import make_app
        from extensions.tools.ui.state import Ui
        from extensions.tools.ui.views.queue import queue_of

        super().run()
        with suppress(
            AttributeError, OSError, TypeError
        ):  # another C library than glibc
            CDLL(None).mallopt(*ONE_ARENA)
        ui = Ui.of(self.section, token())
        with _listening(self.section.host, self.section.port) as listener:
            if ":" in self.section.host:
                host = f"[{self.section.host}]"
            else:
                host = self.section.host
            login = " (it asks for the token)" if ui.token else ""
            logger.info(
                f"http://{host}:{self.section.port}/ shows {ui.output}{login}. Ctrl-C ends it, runs go on."
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
                proxy_headers=False,  # X-Forwarded-For would let one client guess tokens as many
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
    """Does one thing with the queue. A kill at any moment leaves each entry whole, and
    what runs goes on."""

    section: QueueConfig

    def run(self) -> None:
        """Raises UserError for what cannot be done, RunError where another runner
        works."""
        super().run()
        queue = Queue(queue_folder(self.section.output))
        action = self.section.action
        words = self.section.words
        if action == "run":
            from extensions.tools.ui.runner import Runner

            Runner(queue).run()
        elif action == "list":
            for entry in queue.entries():
                about = "".join(
                    f", {text}"
                    for text in (
                        entry.attempts > 1 and f"{entry.attempts} starts",
                        entry.why,
                    )
                    if text
                )
                logger.info(
                    f"{entry.id}  {entry.state:8}  {shlex.join(entry.argv)}{about}"
                )
        elif action == "add":
            entry = queue.add(words, checked(words))
            if queue.has_runner():
                runner = ""
            else:
                runner = f" Next: {_run_the_queue(self.section)}"
            logger.info(f"{entry.id}: {entry.name} waits.{runner}")
        else:
            getattr(queue, action)(*words)
            logger.info(f"{action}: done")


def _run_the_queue(section: QueueConfig) -> str:
    """The command that works on the queue of this folder of runs."""
    elsewhere = () if section.output == "output" else ("--output", section.output)
    return command("queue", *elsewhere, "run")


def checked(argv: tuple[str, ...]) -> str:
    """A name for a command whose settings are right. Raises UserError for mistakes in
    them."""
    reason = why_not_queued(argv, str(Path.cwd()))
    if reason:
        raise UserError(reason)
    uid, *flags = argv
    if uid not in discover().tools():
        return str(planned(argv, str(Path.cwd())).get("job", uid))
    model = discover().find_command(uid)
    if model is not None and issubclass(model, ToolConfig):
        load_tool(uid, model, flags)
    return uid
