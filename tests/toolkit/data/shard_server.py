"""Tar shards made on the spot, and a web server that breaks connections."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from threading import Event

from PIL import Image

from tests import http_server
from tests.http_server import QuietHandler


def png(colour: object = "red", size: tuple[int, int] = (8, 6)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "png")
    return file.getvalue()


def write_tar(path: Path, files: Mapping[str, bytes], **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(
        path, "w:gz" if path.suffix in (".gz", ".tgz") else "w", **options
    ) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def write_shard(
    path: Path, count: int, size: tuple[int, int] = (8, 6), **options: object
) -> Path:
    """`count` samples, a png and a json with the prompt `<shard>/<number>` each."""
    files = {}
    for number in range(count):
        files[f"{number:03}.png"] = png((number * 20, 0, 0), size)
        files[f"{number:03}.json"] = json.dumps(
            {"prompt": f"{path.name.partition('.')[0]}/{number}"}
        ).encode()
    return write_tar(path, files, **options)


class ShardServer:
    """Serves a folder at `address`, and keeps the headers of each request."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.address = folder, ""
        self.cut: int | None = None
        """Bytes of a body after which the connection is closed."""

        self.silent_after: int | None = None
        """Bytes of a body after which nothing more comes, until `released`, but a byte
        every `pause_s`."""

        self.pause_s = 30.0

        self.released = Event()
        self.ranges = True
        self.failures: list[int] = []
        """Status codes of the next answers."""

        self.busy: set[str] = set()
        """Paths that are always answered with 503."""

        self.redirects: dict[str, str] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.sent = 0
        """Bytes of all bodies."""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.requests.append((request.path, dict(request.headers)))
        if self.failures or request.path in self.busy:
            request.send_error(self.failures.pop(0) if self.failures else 503)
            return
        if request.path in self.redirects:
            request.send_response(302)
            request.send_header("Location", self.redirects[request.path])
            request.end_headers()
            return
        file = self.folder / request.path.partition("?")[0].lstrip("/")
        if not file.is_file():
            request.send_error(404)
            return
        body = file.read_bytes()
        wanted = (
            re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
            if self.ranges
            else None
        )
        start = int(wanted[1]) if wanted else 0
        request.send_response(206 if wanted else 200)
        if wanted:
            request.send_header(
                "Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}"
            )
        request.send_header("Content-Length", str(len(body) - start))
        request.end_headers()
        part = body[start:][: self.cut]
        self.sent += len(part)
        if self.silent_after is not None and len(part) > self.silent_after:
            request.wfile.write(part[: self.silent_after])
            request.wfile.flush()
            for byte in part[self.silent_after :]:
                if self.released.wait(self.pause_s):
                    return
                request.wfile.write(bytes([byte]))
            return
        request.wfile.write(part)


@contextmanager
def serving(folder: Path) -> Iterator[ShardServer]:
    server = ShardServer(folder)

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            server.answer(self)

    with http_server.serving(Handler) as server.address:
        yield server
