"""Shards of a stream: patterns become a list of tar files on disk, on a web server or
on the hub, each read from any byte on. Imports no torch.

A connection that breaks is opened again at the byte where it broke (RFC 9110, section
14, range requests). A token goes into a header of the requests to its own host and
nowhere else: not into a name, a message or another host's log.
"""

from __future__ import annotations

import glob
import http.client
import io
import logging
import os
import re
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from threading import Event
from typing import IO, Any, TypeVar, cast
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from toolkit.errors import RunError, UserError, first_line
from toolkit.files.parquet import SUFFIX as PARQUET
from toolkit.files.redact import register_secret
from toolkit.system.read_ahead import result_of, threads

logger = logging.getLogger(__name__)

T = TypeVar("T")

HUB = "hf://"
PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Seconds before each new attempt at a connection. They start over with every byte that
arrives."""

TIMEOUT_S = 60.0
"""Seconds that a server may be silent."""

MAX_SHARDS = 1_000_000

_HUB_PATTERN = re.compile(
    r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?/(?P<file>.+)"
)
_BRACES = re.compile(r"\{([^{}]*)\}")
_NUMBERS = re.compile(r"(\d+)\.\.(\d+)")
_BUSY = frozenset({408, 425, 429})
_TOKEN_HELP = (
    "Accept its terms on its page on the hub and give a token that may read it."
)


@dataclass(frozen=True)
class Shard:
    """One tar file.

    >>> shard = Shard("cats.tar", "https://example.com/cats.tar?signature=0f")
    >>> shard.is_remote, shard
    (True, Shard(name='cats.tar'))
    """

    name: str
    """For messages and the order: its path or address, without the query, which may
    hold a signature."""

    address: str = field(repr=False)
    """Path, or http(s) address."""

    token: str | None = field(default=None, repr=False)

    @property
    def is_remote(self) -> bool:
        """Whether the shard is read from a server, not from this disk."""
        return _is_web(self.address)

    def open(
        self,
        offset: int = 0,
        pauses: Sequence[float] = PAUSES_S,
        stop: Event | None = None,
    ) -> IO[bytes]:
        """The bytes from `offset` on. stop: ends all waiting when it is set.

        Raises OSError for a file on disk that cannot be opened. Of a server, reading
        raises RunError when it refuses, or does not answer after all pauses.
        """
        if _is_web(self.address):
            return io.BufferedReader(
                _WebFile(self, offset, pauses, stop or Event()), buffer_size=1 << 18
            )
        file = Path(self.address).open("rb")  # noqa: SIM115 - the caller closes it
        file.seek(offset)
        return file


def expand_shards(
    patterns: Sequence[str], token: str | None = None
) -> tuple[Shard, ...]:
    """The shards that the patterns mean, each once, in the order of the patterns.

    A pattern is a path with `*`, `?`, `[...]` and `**`; an `http(s)://` address; or
    `hf://datasets/owner/name/*.tar`, with `@revision` behind the name. In each,
    `{000..099}` and `{a,b}` stand for one pattern per number or word.

    token: sent to the hub when a pattern is on it, else to the host of the first
    address; over https only (http to this machine). None: the stored login, for the
    hub. Raises UserError for a pattern that is wrong or matches nothing, and when the
    hub cannot be asked.
    """
    if not patterns:
        raise UserError("no shards: give at least one path or address of a tar file.")
    token = (token or "").strip() or None
    if token:
        register_secret([token])
    expanded = [name for pattern in patterns for name in _without_braces(pattern)]
    parquet = next((name for name in expanded if name.endswith(PARQUET)), "")
    if parquet:
        raise UserError(
            f"{parquet}: is a Parquet file, and shards are tar files. "
            "Give it as 'folder_path'. Of the hub this is 'owner/name'."
        )
    shards = _find_shards(expanded, token)
    return tuple({shard.address: shard for shard in shards}.values())


def _find_shards(patterns: Sequence[str], token: str | None) -> Iterator[Shard]:
    own_host, token = _whose_token(patterns, token)
    for pattern in patterns:
        if pattern.startswith(HUB):
            for name, address in _hub_files(pattern, token):
                yield _web_shard(name, address, token, own_host)
        elif _is_web(pattern):
            yield _web_shard(pattern, pattern, token, own_host)
        elif "://" in pattern:
            raise UserError(
                f"{pattern}: shards are paths, or addresses that begin with https://, http:// or {HUB}"
            )
        else:
            path = os.path.expanduser(pattern)
            files = sorted(glob.glob(path, recursive=True)) or (
                [path] if Path(path).exists() else []
            )
            if not files:
                raise UserError(
                    f"{pattern}: no such file. Paths are looked up from {Path.cwd()}."
                )
            for path in files:
                # to open a pipe would wait for its writer for ever
                if not os.path.isfile(path):
                    raise UserError(
                        f"{path}: is not a regular file. Give the path of a tar file."
                    )
                yield Shard(path, path)


def _whose_token(patterns: Sequence[str], token: str | None) -> tuple[str, str | None]:
    """The host that may see the token, and the token; without one the stored login for
    the hub."""
    hosts = [urlsplit(pattern).netloc for pattern in patterns if _is_web(pattern)]
    on_hub = any(pattern.startswith(HUB) for pattern in patterns)
    if not hosts and not on_hub:
        return "", None
    from huggingface_hub import constants, get_token

    hub = urlsplit(constants.ENDPOINT).netloc
    if not on_hub and hub not in hosts:
        return hosts[0], token
    if not token:
        token = get_token()
        register_secret([token or ""])
    return hub, token


def _is_web(address: str) -> bool:
    return address.startswith(("http://", "https://"))


def _web_shard(name: str, address: str, token: str | None, own_host: str) -> Shard:
    parts = urlsplit(address)
    if "@" in parts.netloc:
        raise UserError(
            f"{parts.scheme}://{parts.hostname}: an address with a user and a password. Give a token."
        )
    return Shard(
        name.partition("?")[0],
        address,
        token if parts.netloc == own_host and _is_safe(address) else None,
    )


def _is_safe(address: str) -> bool:
    """Whether a token may be sent to this address."""
    parts = urlsplit(address)
    return parts.scheme == "https" or parts.hostname in (
        "localhost",
        "127.0.0.1",
        "::1",
    )


def _without_braces(pattern: str) -> list[str]:
    """`a{00..02}` -> `a00`, `a01`, `a02`; `{a,b}` -> `a`, `b`; several braces: every
    pair."""
    names = list[str]()
    waiting = deque([pattern])
    while waiting:  # of braces within braces the inner ones come first
        name = waiting.popleft()
        match = _BRACES.search(name)
        if match:
            begin, end = name[: match.start()], name[match.end() :]
            waiting += [begin + word + end for word in _choices(match[1], name)]
        else:
            names.append(name)
        if len(waiting) > MAX_SHARDS:
            raise UserError(f"{pattern}: means more than {MAX_SHARDS:,} shards.")
    return names


def _choices(inside: str, pattern: str) -> list[str]:
    """The words or numbers for which braces stand. inside: the text between them."""
    numbers = _NUMBERS.fullmatch(inside)
    if not numbers:
        return inside.split(",")
    first, last = int(numbers[1]), int(numbers[2])
    if not 0 <= last - first < MAX_SHARDS:
        raise UserError(
            f"{pattern}: {{{inside}}} counts from {first} to {last}. Write the smaller number first."
        )
    return [str(number).zfill(len(numbers[1])) for number in range(first, last + 1)]


# ---------------------------------------------------------------- the hub


def _hub_files(pattern: str, token: str | None) -> list[tuple[str, str]]:
    """(name, address) of the files of a hub dataset that match, sorted, at the commit
    that its revision is now."""
    from huggingface_hub import HfApi, hf_hub_url
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.errors import HTTPError as HubError

    match = _HUB_PATTERN.fullmatch(pattern)
    if not match:
        raise UserError(
            f"{pattern}: write hf://datasets/owner/name/*.tar, with @revision behind the name if wanted."
        )
    repo, revision, wanted = match.group("repo", "revision", "file")
    try:
        info = HfApi(token=token).dataset_info(repo, revision=revision)
    except GatedRepoError as error:
        raise UserError(f"{pattern}: {_TOKEN_HELP} ({first_line(error)})") from error
    except RevisionNotFoundError as error:
        raise UserError(f"{pattern}: has no revision {revision!r}.") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{pattern}: the hub has no dataset {repo}, or it is private. {_TOKEN_HELP}"
        ) from error
    except HFValidationError as error:
        raise UserError(f"{pattern}: {first_line(error)}") from error
    except (OfflineModeIsEnabled, HubError, OSError) as error:
        raise UserError(
            f"{pattern}: the hub cannot be asked: {first_line(error)}. "
            f"Download the shards with `hf download --repo-type dataset {repo}` and give their path."
        ) from error
    files = sorted(sibling.rfilename for sibling in info.siblings or [])
    # As a shell does: `*` does not go beyond a folder.
    parts = wanted.split("/")
    shard_files = [
        file
        for file in files
        if file.count("/") == len(parts) - 1
        and all(map(fnmatchcase, file.split("/"), parts))
    ]
    if not shard_files:
        tars = [file for file in files if ".tar" in file]
        there = "It has no tar files."
        if tars:
            there = f"It has {len(tars)} tar files, such as {tars[0]}."
        raise UserError(f"{pattern}: matches no file of {repo}. {there}")
    prefix = pattern[: match.start("file")]
    return [
        (
            prefix + file,
            hf_hub_url(repo, file, repo_type="dataset", revision=info.sha),
        )
        for file in shard_files
    ]


# ---------------------------------------------------------------- the web


class _KeepsToken(HTTPRedirectHandler):
    """Sends the token on to another address of the same host only: a hub answers with
    addresses of its storage."""

    def redirect_request(
        self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Request | None:
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        token = req.unredirected_hdrs.get("Authorization")
        if (
            new
            and token
            and urlsplit(newurl).netloc == urlsplit(req.full_url).netloc
            and _is_safe(newurl)
        ):
            new.add_unredirected_header("Authorization", token)
        return new


class _WebFile(io.RawIOBase):
    """A file on a web server, read from `offset` on; connections that break are opened
    again where they broke."""

    def __init__(
        self, shard: Shard, offset: int, pauses: Sequence[float], stop: Event
    ) -> None:
        self.name = shard.name
        self._shard = shard
        self._at = offset
        self._pauses = pauses
        self._stop = stop
        self._response: http.client.HTTPResponse | None = None
        self.length: int | None = None
        """Bytes of the whole file, once it is connected and where the server gives
        them."""

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._disconnect()
        super().close()

    def readinto(self, buffer: Any) -> int:
        """Raises RunError when the server refuses, or does not answer after all
        pauses."""
        for attempt in range(len(self._pauses) + 1):
            try:
                if self._at == self.length:
                    return 0
                # what has arrived: a slow server may never fill the buffer
                count = (self._response or self._connect()).readinto1(buffer)
                if self._stop.is_set():
                    raise ConnectionAbortedError
                if not count and self.length is not None and self._at < self.length:
                    raise ConnectionError(
                        f"{self.length - self._at:,} bytes are missing"
                    )
            except HTTPError as error:
                error.close()
                if error.code < 500 and error.code not in _BUSY:
                    raise self._refusal(error) from None
                self._pause(attempt, f"status {error.code}", error)
            except (OSError, http.client.HTTPException) as error:
                cause = getattr(error, "reason", None)  # of a URLError
                reason = cause if isinstance(cause, OSError) else error
                self._pause(attempt, first_line(reason), error)
            else:
                self._at += count
                return count
        raise AssertionError("the last attempt raises")

    def _connect(self) -> http.client.HTTPResponse:
        name, at = self.name, self._at
        request = Request(self._shard.address)
        if at:
            request.add_header("Range", f"bytes={at}-")
        if self._shard.token:
            request.add_unredirected_header(
                "Authorization", f"Bearer {self._shard.token}"
            )
        response = cast(
            "http.client.HTTPResponse",
            build_opener(_KeepsToken).open(request, timeout=TIMEOUT_S),
        )
        self._response = response
        partial = re.fullmatch(
            r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "")
        )
        if response.status == 206 and not (partial and int(partial[1]) == at):
            raise RunError(
                f"{name}: the server sends other bytes than those from {at:,} on."
            )
        length = partial[2] if partial else response.headers.get("Content-Length", "")
        known = int(length) if length.isdecimal() else None
        if self.length is not None and known not in (None, self.length):
            raise RunError(
                f"{name}: was {self.length:,} bytes long and is {length} now. Start again."
            )
        self.length = known or self.length
        # the server does not support ranges: what lies before is read and dropped
        if response.status != 206 and at:
            for start in range(0, at, 1 << 18):
                wanted = min(1 << 18, at - start)
                if len(response.read(wanted)) < wanted:
                    raise ConnectionError("ended before the byte where it broke")
        return response

    def _refusal(self, error: HTTPError) -> RunError:
        remedy = "Look at the pattern."
        if error.code in (401, 403):
            remedy = "The token that was sent may not read it."
            if not self._shard.token:
                remedy = "No token was sent: give one."
        elif error.code == 416:
            remedy = f"It is shorter than {self._at:,} bytes: it has changed."
        return RunError(
            f"{self.name}: the server answers {error.code} {error.reason}. {remedy}"
        )

    def _pause(self, attempt: int, what: str, error: Exception) -> None:
        """Waits before the next attempt. Raises RunError when it was the last one, or
        the run is stopped."""
        self._disconnect()
        where = f"{self.name}: the connection broke at byte {self._at:,} ({what})"
        if attempt == len(self._pauses):
            raise RunError(
                f"{where}, {attempt + 1} times in a row. Resume when the server can be reached."
            ) from error
        # an idle connection is closed by many servers: once is not worth a word
        if attempt:
            logger.warning(f"{where}. Next attempt in {self._pauses[attempt]:g} s.")
        if self._stop.wait(self._pauses[attempt]):
            raise RunError(f"{where}. The run is being stopped.") from error

    def _disconnect(self) -> None:
        if self._response:
            self._response.close()
        self._response = None


def read_ahead(
    items: Iterator[T],
    stop: Callable[[], None],
    stopping: Callable[[], bool] = lambda: False,
) -> Generator[T, None, None]:
    """The items, each computed by a thread while the one before is used. Closing calls
    `stop`, by which the thread ends.

    stopping: asked now and then while an item is waited for; True raises RunError.
    Nothing waits for the thread then, nor when it is closed, nor after Interrupted.
    """

    def look() -> None:
        if stopping():
            raise RunError("a stop was requested while the run waited for its shards.")

    with threads(1, "shards", RunError) as pool:
        try:
            waiting = pool.submit(next, items, None)
            while (item := result_of(waiting, look)) is not None:
                waiting = pool.submit(next, items, None)
                yield item
        finally:
            stop()
