"""Each way in which a download fails, played by a server or a proxy on this machine."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from tests.http_server import QuietHandler, serving
from tests.proxies import FORBIDDEN, PasswordProxy, socks_proxy
from tests.small_hub import Hub, small_hub
from toolkit.errors import UserError
from toolkit.models.hub import download_encoder, download_file
from toolkit.models.hub_faults import why_not_downloaded

NAME = "someone/encoder"
FILES = {"config.json": b"{}", "model.safetensors": b"x" * 5000}
VARIABLES = ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "HF_ENDPOINT")

Ask = Callable[..., str]


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ask]:
    """Downloads with these variables of the environment; returns the exit code and the
    error, empty where it has worked."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def call(url: str, **variables: str) -> str:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        for name, value in {"HF_ENDPOINT": url, **variables}.items():
            monkeypatch.setenv(name, value)
        close_session()
        try:
            download_encoder(NAME, "model.text_encoder")
        except UserError as error:
            return f"{error.exit_code} {error}"
        return ""

    yield call
    close_session()


@pytest.fixture
def server() -> Iterator[Hub]:
    with small_hub(FILES, NAME) as state:
        yield state


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def holds(said: str, *parts: str, code: int = 1) -> None:
    """code: 2 where a second try would find the same."""
    assert said.startswith(f"{code} model.text_encoder: someone/encoder: "), said
    for part in parts:
        assert part in said, (part, said)
    assert "\n" not in said and "Traceback" not in said


def test_a_socks_proxy_is_gone_through(ask: Ask, server: Hub) -> None:
    with socks_proxy() as (proxy, asked):
        assert ask(server.url, ALL_PROXY=proxy) == ""
    assert set(asked) == {int(server.url.rpartition(":")[2])}


def test_a_proxy_that_refuses_is_named_with_its_variable(ask: Ask, server: Hub) -> None:
    with socks_proxy(FORBIDDEN) as (proxy, _):
        said = ask(server.url, ALL_PROXY=proxy)
    holds(said, server.url, f"ALL_PROXY ({proxy})", "not allowed", "unset it")


def test_a_proxy_that_wants_a_password_says_how_to_give_it(ask: Ask) -> None:
    with serving(PasswordProxy) as proxy:
        said = ask("https://hub.example", HTTPS_PROXY=proxy)
    write = "HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT"
    holds(said, "https://hub.example (HF_ENDPOINT)", f"HTTPS_PROXY ({proxy})", write)


@pytest.mark.parametrize("scheme", ["socks5", "http"])
def test_a_proxy_that_is_not_there_is_named_without_its_password(
    ask: Ask, server: Hub, scheme: str
) -> None:
    place = f"127.0.0.1:{free_port()}"
    said = ask(server.url, ALL_PROXY=f"{scheme}://me:hunter22@{place}")
    holds(said, f"ALL_PROXY ({scheme}://{place})", "Start the proxy")
    assert "hunter22" not in said


@pytest.mark.parametrize(
    ("given", "write"),
    [
        ("socks://127.0.0.1:7890/", "ALL_PROXY=socks5://127.0.0.1:7890"),
        ("socks4://localhost:1", "ALL_PROXY=socks5://localhost:1"),
        ("ftp://localhost:1", "ALL_PROXY=http://localhost:1"),
    ],
)
def test_a_proxy_of_an_unknown_kind_says_what_to_write(
    ask: Ask, server: Hub, given: str, write: str
) -> None:
    said = ask(server.url, ALL_PROXY=given)
    kind = f"ALL_PROXY is '{given}', and there is no such kind of proxy"
    holds(said, kind, write, code=2)


@pytest.mark.parametrize(
    ("url", "parts", "code"),
    [
        ("https://no-such-host.invalid", ("is not found", "set HF_ENDPOINT to"), 1),
        ("http://127.0.0.1:1", ("refuses the connection", "HTTPS_PROXY"), 1),
        ("hub.example", ("'hub.example', no address", "=https://hub.example"), 2),
        ("htp://hub.example", ("'htp://hub.example'", "=https://hub.example"), 2),
        ("", ("HF_ENDPOINT is ''", "HF_ENDPOINT=https://huggingface.co"), 2),
        ("http://hub.example:x", ("no address (",), 2),
    ],
)
def test_an_address_that_is_not_reached_is_named(
    ask: Ask, url: str, parts: tuple[str, ...], code: int
) -> None:
    holds(ask(url), url, "HF_ENDPOINT", *parts, code=code)


@pytest.mark.parametrize(
    ("name", "value"),
    [("SSL_CERT_FILE", "/nonexistent.pem"), ("HTTPS_PROXY", "http://127.0.0.1:seven")],
)
def test_a_variable_that_cannot_be_meant_is_named_with_its_value(
    ask: Ask, name: str, value: str
) -> None:
    holds(
        ask("https://hub.invalid", **{name: value}), name, value, "or unset it", code=2
    )


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl makes a certificate")
def test_a_certificate_that_nobody_trusts_names_the_file_to_set(
    ask: Ask, tmp_path: Path
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    asked = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1"
    for_whom = ["-nodes", "-subj", "/CN=localhost", "-keyout", key, "-out", certificate]
    subprocess.run([*asked.split(), *for_whom], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = ThreadingHTTPServer(("127.0.0.1", 0), QuietHandler)
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        said = ask(f"https://localhost:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()
    holds(said, "https://localhost:", "is not trusted", "SSL_CERT_FILE")


@pytest.mark.parametrize(
    ("refusal", "parts", "code"),
    [
        ((401, ""), ("no such model", "private", "HF_TOKEN"), 2),
        ((401, "GatedRepo"), ("refuses it (401)", "HF_TOKEN"), 2),
        ((403, "GatedRepo"), ("refuses it (403)", "HF_TOKEN"), 2),
        ((403, ""), ("refuses it (403)", "HF_TOKEN"), 2),
        ((404, "RepoNotFound"), ("no such model", "private", "HF_TOKEN"), 2),
        ((404, ""), ("no such model", "private"), 2),
        ((407, ""), ("proxy", "407"), 1),
        ((429, ""), ("takes no more requests", "(429)", "what has arrived is kept"), 1),
        ((503, ""), ("has a fault of its own (503)", "Start again later"), 1),
    ],
    ids=str,
)
def test_what_the_hub_answers_is_told_with_its_address(
    ask: Ask, server: Hub, refusal: tuple[int, str], parts: tuple[str, ...], code: int
) -> None:
    server.refusal = refusal
    holds(ask(server.url), server.url, *parts, code=code)


def test_a_model_that_is_not_here_says_that_the_hub_may_not_be_asked(
    ask: Ask, server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    said = ask(server.url)
    cache = f"not complete in {tmp_path / 'hub'}, and the hub cannot be used"
    unset = ("HF_HUB_OFFLINE is set. Unset it", "`hf download someone/encoder`")
    holds(said, cache, *unset, code=2)
    assert server.asked == []


def test_a_server_that_is_no_hub_is_named(ask: Ask) -> None:
    class Other(QuietHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>log in</html>")

        do_HEAD = do_GET

    with serving(Other) as url:
        holds(ask(url), url, "HF_ENDPOINT")


def test_a_full_disk_names_the_folder_and_the_room(
    ask: Ask, server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real call on a device that is always full."""
    opened = Path.open

    def full(self: Path, mode: str = "r", *more: object, **others: object) -> object:
        is_part = self.suffix == ".incomplete"
        return opened(Path("/dev/full") if is_part else self, mode, *more, **others)

    monkeypatch.setattr(Path, "open", full)
    said = ask(server.url)
    holds(said, f"the disk of {tmp_path / 'hub'} is full", "HF_HOME", "continues")


def test_a_cache_that_cannot_be_made_is_named(
    ask: Ask, server: Hub, tmp_path: Path
) -> None:
    (tmp_path / "hub").write_text("a file")
    holds(ask(server.url), str(tmp_path / "hub"), "cannot be made", "HF_HOME")


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (OSError(errno.EDQUOT, "Disk quota exceeded"), ("quota", "Enlarge")),
        (OSError(errno.EACCES, "denied"), ("belongs to this user", "chmod u+rwx /")),
        (
            OSError(errno.EACCES, "denied", "/usr/share"),
            ("belongs to user 0, and this is user 1234", "sudo chown -R 1234"),
        ),
        (OSError(errno.EROFS, "Read-only file system"), ("read-only", "HF_HOME")),
        (RuntimeError("IO: No space left (os error 28)"), ("is full", "HF_HOME")),
        (
            RuntimeError("the server is odd"),
            ("cannot be used: the server is odd", "HF_ENDPOINT"),
        ),
    ],
    ids=str,
)
def test_what_the_disk_or_the_storage_says_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    parts: tuple[str, ...],
) -> None:
    """Errors of disks that cannot be had without a file system of their own."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    if "sudo" in str(parts):
        monkeypatch.setattr(os, "getuid", lambda: 1234)
    said = why_not_downloaded(error, NAME)
    assert all(part in said for part in parts), said


@pytest.mark.slow
def test_a_download_that_is_cut_off_says_what_is_kept(ask: Ask, server: Hub) -> None:
    server.break_after = 3000
    holds(ask(server.url), server.url, "was cut off", "start again, and it continues")


def test_one_file_has_the_same_words(ask: Ask, server: Hub) -> None:
    server.refusal = 403, ""
    ask(server.url)
    said = rf"a\.key: o/r/x: {server.url} \(HF_ENDPOINT\) refuses it .* HF_TOKEN"
    with pytest.raises(UserError, match=said):
        download_file("o/r/x", "a.key")
