"""The process of the page: how it ends."""

from __future__ import annotations

import signal
import socket

import pytest

from tests.extensions.tools.ui.conftest import Served


@pytest.mark.slow
def test_ctrl_c_during_a_request_prints_no_traceback(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port)) as open_request:
        open_request.sendall(
            b"POST /new HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
            b"Content-Type: application/x-www-form-urlencoded\r\n\r\nact"
        )
        served.stop(signal.SIGINT)
    log = (served.folder / "page.log").read_text()
    assert "Stopped." in log and "Traceback" not in log
