"""Proxies on this machine: one that speaks SOCKS 5, and one of HTTP that refuses."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from socketserver import StreamRequestHandler, ThreadingTCPServer

from tests.http_server import QuietHandler

REACHED, FORBIDDEN = 0, 2
"""Replies of a SOCKS proxy to a wish to connect."""


@contextmanager
def socks_proxy(reply: int = REACHED) -> Iterator[tuple[str, list[int]]]:
    """A SOCKS 5 proxy without a password, its address, and the ports that it was asked
    for. Any reply but REACHED ends each wish."""
    asked: list[int] = []

    class Handler(StreamRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):  # the other side has gone
                self.relay()

        def relay(self) -> None:
            _, methods = self.rfile.read(2)
            self.rfile.read(methods)
            self.request.sendall(b"\x05\x00")
            _, _, _, kind = self.rfile.read(4)
            size = {1: 4, 4: 16}.get(kind) or self.rfile.read(1)[0]
            host, port = self.rfile.read(size), int.from_bytes(self.rfile.read(2))
            asked.append(port)
            self.request.sendall(bytes([5, reply, 0, 1]) + bytes(6))
            if reply != REACHED:
                return
            name = host.decode() if kind == 3 else socket.inet_ntoa(host)
            with socket.create_connection((name, port)) as there:
                back = threading.Thread(target=pump, args=(there, self.request))
                back.start()
                pump(self.request, there)
                back.join()

    def pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    class Server(ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield f"socks5://127.0.0.1:{server.server_address[1]}", asked
        finally:
            server.shutdown()


class PasswordProxy(QuietHandler):
    """An HTTP proxy that wants a password."""

    def do_CONNECT(self) -> None:
        self.send_error(407)
