"""Patterns of shards, and shards on a web server that breaks connections."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Timer
from types import SimpleNamespace

import pytest

from tests.processes import alarm
from tests.toolkit.data.shard_server import ShardServer, serving
from toolkit.data.streams.shards import Shard, expand_shards
from toolkit.errors import RunError, UserError
from toolkit.files.redact import redact_text

TOKEN = "shard-token-Zq81xx04"
BODY = bytes(range(256)) * 40
NO_PAUSES = (0.0, 0.0)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ShardServer]:
    (tmp_path / "a.tar").write_bytes(BODY)
    with serving(tmp_path) as running:
        yield running


def names(*patterns: str) -> list[str]:
    return [shard.name for shard in expand_shards(patterns)]


# ---------------------------------------------------------------- patterns


def test_braces_and_globs_name_each_shard_once(tmp_path: Path) -> None:
    for name in ("x-08.tar", "x-09.tar", "x-10.tar", "deep/y.tar", "z.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert names(
        f"{tmp_path}/x-{{09..10}}.tar", f"{tmp_path}/*.tar", f"{tmp_path}/**/y.tar"
    ) == [
        f"{tmp_path}/{name}"
        for name in ("x-09.tar", "x-10.tar", "x-08.tar", "deep/y.tar")
    ]
    assert names("https://a.b/{000..002}{p,q}.tar?sig=1") == [
        f"https://a.b/{number}{word}.tar"
        for number in ("000", "001", "002")
        for word in "pq"
    ]
    assert names("https://a.b/{c,{d,e}f}.tar", "https://a.b/{d}f.tar") == [
        f"https://a.b/{name}.tar" for name in ("c", "df", "ef")
    ]
    # an order that runs have recorded
    assert names("https://a.b/{c,{d,e}}{0,1}.tar") == [
        f"https://a.b/{name}.tar" for name in ("c0", "c1", "d0", "d1", "e0", "e1")
    ]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            "nowhere/*.tar",
            r"nowhere/\*\.tar: no such file\. Paths are looked up from /",
        ),
        (
            "hf://datasets/user/repo/data/*.parquet",
            r"data/\*\.parquet: is a Parquet file, and shards are tar files",
        ),
        (
            "https://a.b/{9..3}.tar",
            r"\{9\.\.3\} counts from 9 to 3\. Write the smaller number first",
        ),
        (
            "s3://bucket/a.tar",
            "s3://bucket/a.tar: shards are paths, or addresses that begin with https://",
        ),
        (
            "https://me:secret@a.b/a.tar",
            r"https://a\.b: an address with a user and a password\. Give a token\.",
        ),
        ("hf://datasets/only-a-name", r"write hf://datasets/owner/name/\*\.tar"),
        ("https://a.b/{0..9}{0..999999}.tar", "means more than 1,000,000 shards"),
    ],
)
def test_a_pattern_that_leads_nowhere_is_told(pattern: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        expand_shards([pattern])


def test_pipes_sockets_devices_and_folders_are_refused_before_anything_is_opened(
    tmp_path: Path,
) -> None:
    os.mkfifo(tmp_path / "pipe.tar")
    (tmp_path / "folder.tar").mkdir()
    (tmp_path / "gone.tar").symlink_to("nowhere")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket.tar"))
    for path in ("/dev/zero", *map(str, tmp_path.iterdir())):
        with pytest.raises(UserError, match=rf"^{path}: is not a regular file"):
            expand_shards([path])
        with pytest.raises(UserError, match="is not a regular file"):
            expand_shards([f"{path}*"])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """A hub that has one dataset; the tokens it was asked with."""
    asked: list[str | None] = []

    class Api:
        def __init__(self, token: str | None) -> None:
            asked.append(token)

        def dataset_info(self, repo: str, revision: str | None) -> SimpleNamespace:
            files = ["b/1.tar", "b/0.tar", "b/more/2.tar", "README.md"]
            return SimpleNamespace(
                sha="c0ffee",
                siblings=[SimpleNamespace(rfilename=file) for file in files],
            )

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "stored-login-77x")
    return asked


def test_hub_files_are_those_of_one_commit_and_of_one_folder(
    hub: list[str | None],
) -> None:
    shards = expand_shards(["hf://datasets/me/set@v2/b/*.tar"])
    assert [(shard.name, shard.address) for shard in shards] == [
        (
            f"hf://datasets/me/set@v2/b/{n}.tar",
            f"https://huggingface.co/datasets/me/set/resolve/c0ffee/b/{n}.tar",
        )
        for n in (0, 1)
    ]
    assert hub[0] == "stored-login-77x" and {shard.token for shard in shards} == {
        "stored-login-77x"
    }
    assert names("hf://datasets/me/set/*") == ["hf://datasets/me/set/README.md"], (
        "not what lies deeper"
    )
    with pytest.raises(
        UserError,
        match=r"matches no file of me/set\. It has 3 tar files, such as b/0\.tar\.",
    ):
        expand_shards(["hf://datasets/me/set/*.tar"])


def test_a_hub_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError,
        match=r"the hub cannot be asked: .*Download the shards with `hf download",
    ) as caught:
        expand_shards(["hf://datasets/me/set/*.tar"])
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- the token


def test_the_token_belongs_to_one_host_and_goes_over_https_only(
    hub: list[str | None],
) -> None:
    def with_token(*patterns: str) -> list[str]:
        return [
            shard.name
            for shard in expand_shards(patterns, f" {TOKEN}\n")
            if shard.token == TOKEN
        ]

    assert with_token("hf://datasets/me/set/b/0.tar", "https://a.b/1.tar") == [
        "hf://datasets/me/set/b/0.tar"
    ]
    assert with_token("https://a.b/1.tar", "https://c.d/1.tar", "http://a.b/1.tar") == [
        "https://a.b/1.tar"
    ]
    assert with_token("http://localhost:1/1.tar") == ["http://localhost:1/1.tar"]
    assert with_token("http://a.b/1.tar") == []
    assert hub == [TOKEN]
    assert expand_shards(["https://a.b/1.tar"])[0].token is None, (
        "the stored login is the hub's"
    )
    assert redact_text(f"Bearer of {TOKEN}") == "Bearer of <redacted>"


def test_the_token_is_sent_and_not_passed_on_to_another_host(
    server: ShardServer, tmp_path: Path
) -> None:
    port = server.address.rpartition(":")[2]
    server.redirects = {
        "/here.tar": "/a.tar",
        "/there.tar": f"http://localhost:{port}/a.tar",
    }
    for name in ("here", "there"):
        (shard,) = expand_shards([f"{server.address}/{name}.tar"], TOKEN)
        assert TOKEN not in repr(shard) and shard.open().read() == BODY
    sent = [(path, headers.get("Authorization")) for path, headers in server.requests]
    bearer = f"Bearer {TOKEN}"
    assert sent == [
        ("/here.tar", bearer),
        ("/a.tar", bearer),
        ("/there.tar", bearer),
        ("/a.tar", None),
    ]


@pytest.mark.parametrize(
    ("status", "token", "remedy"),
    [
        (401, None, "No token was sent: give one"),
        (403, TOKEN, "The token that was sent may not"),
        (404, None, "Look"),
    ],
)
def test_a_refusal_is_told_at_once_without_the_token(
    server: ShardServer, status: int, token: str | None, remedy: str
) -> None:
    server.failures = [status]
    (shard,) = expand_shards([f"{server.address}/a.tar?signature=abc"], token)
    with pytest.raises(
        RunError, match=rf"/a\.tar: the server answers {status} [\w ]+\. {remedy}"
    ) as caught:
        shard.open().read()
    assert (
        len(server.requests) == 1
        and TOKEN not in str(caught.value)
        and "abc" not in str(caught.value)
    )


# ---------------------------------------------------------------- connections that
# break


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("offset", [0, 300])
def test_a_broken_connection_is_read_on_at_its_byte(
    server: ShardServer, ranges: bool, offset: int
) -> None:
    server.ranges, server.cut = ranges, 3000 if ranges else None
    if not ranges:
        server.failures = [503]
    shard = Shard("a", f"{server.address}/a.tar")
    assert shard.open(offset, NO_PAUSES).read() == BODY[offset:]
    starts = [headers.get("Range") for _, headers in server.requests]
    if ranges:
        assert starts == [
            f"bytes={at}-" if at else None for at in range(offset, len(BODY), 3000)
        ]
        assert server.sent == len(BODY) - offset, "no byte twice"
    else:
        assert starts == [f"bytes={offset}-" if offset else None] * 2


def test_pauses_grow_and_the_last_attempt_names_shard_and_byte(
    server: ShardServer, said: list[str]
) -> None:
    server.failures = [503, 429, 500]
    with pytest.raises(
        RunError,
        match=r"a: the connection broke at byte 0 \(status 500\), 3 times in a row",
    ) as caught:
        Shard("a", f"{server.address}/a.tar", TOKEN).open(0, (0.0, 0.01)).read()
    assert said == [
        "a: the connection broke at byte 0 (status 429). Next attempt in 0.01 s."
    ]
    assert TOKEN not in str(caught.value)


def test_progress_gives_all_attempts_back(server: ShardServer) -> None:
    server.cut = 100
    assert Shard("a", f"{server.address}/a.tar").open(0, (0.0,)).read() == BODY


def test_a_stop_ends_a_pause(server: ShardServer) -> None:
    server.failures = [503] * 2
    stop = Event()
    stop.set()
    with pytest.raises(RunError, match="The run is being stopped"):
        Shard("a", f"{server.address}/a.tar").open(0, (600.0,), stop).read()


def test_a_stop_waits_for_no_slow_server(server: ShardServer) -> None:
    server.silent_after = 100
    server.pause_s = 0.01
    stop = Event()
    Timer(0.1, stop.set).start()
    with alarm(10), pytest.raises(RunError, match="The run is being stopped"):
        Shard("a", f"{server.address}/a.tar").open(stop=stop).read(len(BODY))


def test_a_shard_that_changes_while_it_is_read_is_an_error(
    server: ShardServer, tmp_path: Path
) -> None:
    server.cut = 3000
    file = Shard("a", f"{server.address}/a.tar").open(0, NO_PAUSES)
    assert file.read(100) == BODY[:100]
    (tmp_path / "a.tar").write_bytes(BODY[:-1])
    with pytest.raises(RunError, match=r"a: was 10,240 bytes long and is 10239 now"):
        file.read()
