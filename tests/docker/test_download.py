"""docker/download.py: which addresses are asked, and who gets a token."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.http_server import QuietHandler, serving

ROOT = Path(__file__).resolve().parents[2]
download = SimpleNamespace(**runpy.run_path(str(ROOT / "docker" / "download.py")))


class Handler(QuietHandler):
    """/to?<address> redirects there; everything else answers with the request's headers."""

    def do_GET(self) -> None:
        body = str(self.headers).encode()
        redirected = self.path.startswith("/to?")
        self.send_response(302 if redirected else 200)
        if redirected:
            self.send_header("Location", self.path.removeprefix("/to?"))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, str]]:
    """The addresses of two servers."""
    monkeypatch.setenv("ALLOW_HTTP_LOCALHOST", "1")
    with serving(Handler) as first, serving(Handler) as second:
        yield first, second


def headers_of(url: str, token: str) -> str:
    with download.open_url(url, "JOB_CONFIG_URL", token) as answer:
        return answer.read().decode()


@pytest.mark.parametrize(
    ("token", "header"),
    [
        ("abc.def", "Authorization: Bearer abc.def"),
        ("Authorization: Basic eA==", "Authorization: Basic eA=="),
        ("PRIVATE-TOKEN: glpat-1\n", "Private-Token: glpat-1"),
    ],
)
def test_a_token_is_sent_to_its_own_host_only_also_after_a_redirect(
    hosts: tuple[str, str], token: str, header: str
) -> None:
    first, second = hosts
    assert header in headers_of(f"{first}/job", token).splitlines()
    assert header in headers_of(f"{first}/to?{first}/job", token).splitlines()
    for chain in (f"{first}/to?{second}/job", f"{first}/to?{second}/to?{first}/job"):
        assert token.split()[-1] not in headers_of(chain, token)


def test_without_a_token_none_is_sent(hosts: tuple[str, str]) -> None:
    assert "Authorization" not in headers_of(f"{hosts[0]}/job", "")


@pytest.mark.parametrize("token", ["CANARY with spaces", "CANARY\r\nX-Other: 1", "Name: CANARY and more", "CANARY\x01"])
def test_a_token_that_is_no_header_is_refused_unrepeated(hosts: tuple[str, str], token: str) -> None:
    with pytest.raises(download.Mistake, match="the token for JOB_CONFIG_URL must be one word") as raised:
        headers_of(hosts[0], token)
    assert "CANARY" not in str(raised.value)


@pytest.mark.parametrize("url", ["http://example.org/job", "file:///etc/passwd", "ftp://host/a", "http://[::1/", "job"])
def test_only_https_is_asked(url: str) -> None:
    with pytest.raises(download.Mistake, match=r"https://|is not an address"):
        download.open_url(url, "JOB_CONFIG_URL")
