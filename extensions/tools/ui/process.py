"""Serves the page until it is stopped."""

from __future__ import annotations

import logging
import socket
from contextlib import suppress
from ctypes import CDLL

import uvicorn

from extensions.tools.ui.app import make_app
from extensions.tools.ui.config import UiConfig, token
from extensions.tools.ui.state import Ui
from extensions.tools.ui.views.queue import queue_of
from jobs.process import BaseExtensionProcess
from toolkit.errors import RunError

logger = logging.getLogger(__name__)

ONE_ARENA = (-8, 1)
"""M_ARENA_MAX of glibc's mallopt(3). With an arena for each thread that reads, the page keeps 30 MB more."""

GRACE_S = 1
"""Seconds that open requests get when the page is stopped; event streams never end by themselves."""


class UiProcess(BaseExtensionProcess):
    """A kill at any moment loses nothing: what the page writes is written whole."""

    section: UiConfig

    def run(self) -> None:
        """Raises RunError where the port is taken."""
        super().run()
        with suppress(AttributeError, OSError, TypeError):  # another C library than glibc
            CDLL(None).mallopt(*ONE_ARENA)
        ui = Ui.of(self.section, token())
        with _listening(self.section.host, self.section.port) as listener:
            host = f"[{self.section.host}]" if ":" in self.section.host else self.section.host
            login = " (it asks for the token)" if ui.token else ""
            logger.info(f"http://{host}:{self.section.port}/ shows {ui.output}{login}. Ctrl-C ends it, runs go on.")
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
        raise RunError(f"{host}:{port}: {error.strerror or error}. Give another --port or --host.") from error
    return listener
