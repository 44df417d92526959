"""A small hub on this machine, over HTTP, which the client library asks as it asks the
real one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from threading import Event

from tests.http_server import QuietHandler, serving
from tests.model_folders import COMMIT

LARGE = 4500
"""Bytes above which a file is kept by the sum of its contents, as large files are."""


@dataclass
class Hub:
    """What the server answers, and what it was asked."""

    url: str = ""
    refusal: tuple[int, str] | None = None
    """Status and X-Error-Code of every answer about the model."""

    break_after: int | None = None
    """The byte of a file before which the connection breaks."""

    breaks: int = 1_000_000
    """How often it does."""

    opened: Event = field(default_factory=Event)
    """While it is not set, a file of more than 20,000 bytes stops after its first
    half."""

    asked: list[str] = field(default_factory=list)

    ranges: list[str] = field(default_factory=list)
    """The values of the header Range."""

    def __post_init__(self) -> None:
        self.opened.set()


@contextmanager
def small_hub(
    files: Mapping[str, bytes], model: str, kind: str = "models"
) -> Iterator[Hub]:
    """A hub on this machine with one model, or one of another `kind` (`datasets`),
    whose only commit is `COMMIT`."""
    state = Hub()
    blob_ids = {file: f"{index:040x}" for index, file in enumerate(files)}
    for file, data in files.items():
        if len(data) > LARGE:
            blob_ids[file] = sha256(data).hexdigest()

    def large(file: str) -> dict[str, object] | None:
        size = len(files[file])
        whole = {"sha256": blob_ids[file], "size": size, "pointerSize": 100}
        return whole if size > LARGE else None

    class Handler(QuietHandler):
        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, with_body: bool) -> None:
            state.asked.append(self.path)
            path = self.path.split("?")[0]
            if state.refusal:
                status, code = state.refusal
                return self.send(
                    status,
                    b"{}",
                    {"X-Error-Code": code, "X-Error-Message": "refused by the test"},
                )
            if "/tree/" in path:
                entries = [
                    {
                        "type": "file",
                        "path": name,
                        "size": len(data),
                        "oid": blob_ids[name],
                    }
                    for name, data in files.items()
                ]
                return self.send(
                    200,
                    json.dumps(entries).encode(),
                    {"Content-Type": "application/json"},
                )
            if path.startswith(f"/api/{kind}/"):
                siblings = [
                    {"rfilename": name, "size": len(data), "lfs": large(name)}
                    for name, data in files.items()
                ]
                info = {
                    "id": model,
                    "modelId": model,
                    "sha": COMMIT,
                    "siblings": siblings,
                    "tags": [],
                    "private": False,
                }
                return self.send(
                    200, json.dumps(info).encode(), {"Content-Type": "application/json"}
                )
            name = path.split("/resolve/")[1].partition("/")[2]
            if name not in files:
                missing = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}
                return self.send(404, b"", missing, with_body)
            data = files[name]
            headers = {
                "ETag": f'"{blob_ids[name]}"',
                "X-Repo-Commit": COMMIT,
                "Accept-Ranges": "bytes",
            }
            start = 0
            if wanted := self.headers.get("Range"):
                state.ranges.append(wanted)
                start = int(wanted.removeprefix("bytes=").split("-")[0])
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            status = 206 if start else 200
            self.send(status, data[start:], headers, with_body, start)

        def send(
            self,
            status: int,
            body: bytes,
            headers: dict[str, str],
            with_body: bool = True,
            start: int = 0,
        ) -> None:
            self.send_response(status)
            for name, value in {
                **headers,
                "Content-Length": str(len(body)),
                "Connection": "close",
            }.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body and self.command == "GET":
                broken = None
                end = start + len(body)
                if state.breaks and end > (state.break_after or end):
                    state.breaks -= 1
                    broken = max(0, (state.break_after or 0) - start)
                half = len(body) // 2 if len(body) > 20_000 else 0
                self.wfile.write(body[:half])
                self.wfile.flush()
                if half:
                    state.opened.wait(60)
                self.wfile.write(body[half:broken])

    with serving(Handler) as state.url:
        yield state
