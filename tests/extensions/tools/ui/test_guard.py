"""Who may ask for what."""

from __future__ import annotations

import re
import socket
import time
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from starlette.routing import Mount

from extensions.tools.ui import guard
from extensions.tools.ui.app import ROUTES
from extensions.tools.ui.config import TOKEN_VARIABLES, is_loopback
from extensions.tools.ui.state import Ui
from tests.extensions.tools.ui.conftest import TOKEN, Served, client_of, run_here
from tests.html_browser import Browser
from tests.running import section_of
from toolkit.config.reading.located import ConfigErrors

PLACES = {
    "name:path": "one.safetensors",
    "index:int": "0",
    "slot:int": "0",
    "name": "000000010_0.png",
}


def addresses() -> list[tuple[str, str]]:
    """Method and address of every route, with names that exist."""
    found = []
    for route in ROUTES:
        if isinstance(route, Mount):
            continue
        path = re.sub(r"\{([^}]+)\}", lambda part: PLACES.get(part[1], "1"), route.path)
        found += [(method, path) for method in sorted(route.methods - {"HEAD"})]
    return found


def is_open(path: str) -> bool:
    """What answers everybody: the login, the sign of life, the program's own files."""
    return path in guard.OPEN or path.startswith("/static/")


@pytest.fixture
def locked(ui: Ui, make_run: Any) -> Ui:
    make_run()
    ui.token = TOKEN
    return ui


def test_nothing_is_answered_without_the_token(locked: Ui) -> None:
    client = client_of(locked)
    asked = [each for each in addresses() if not is_open(each[1])]
    assert len(asked) > 50
    for method, path in asked:
        answer = client.request(method, path)
        assert (answer.status_code, answer.text) == (401, "a token is needed\n"), path
    for headers in (
        {"authorization": "Bearer wrong-token"},
        {"authorization": f"Basic {TOKEN}"},
        {"cookie": f"{guard.COOKIE}=wrong"},
    ):
        assert client.get("/runs/one", headers=headers).status_code == 401
    for path in ("/runs/one", "/status"):
        answer = client.get(path, headers={"accept": "text/html"})
        assert answer.status_code == 401 and 'name="token"' in answer.text
        assert "one.safetensors" not in answer.text and "machine" not in answer.text


def test_the_token_is_given_once_in_the_address_or_the_form_or_with_each_request(
    locked: Ui,
) -> None:
    client = client_of(locked)
    answer = client.get(f"/compare?run=one&token={TOKEN}", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/compare?run=one")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and TOKEN not in cookie
    assert client.get("/runs/one").status_code == 200
    # it stays in no history
    again = client.get(f"/?token={TOKEN}", follow_redirects=False)
    assert (again.status_code, again.headers["location"]) == (303, "/")

    client = client_of(locked)
    assert client.post("/login", data={"token": "wrong"}).status_code == 401
    answer = client.post("/login", data={"token": TOKEN}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert client.get("/").status_code == 200

    assert (
        client_of(locked)
        .get("/", headers={"authorization": f"Bearer {TOKEN}"})
        .status_code
        == 200
    )


def test_the_cookie_is_secure_behind_https_and_ends_with_the_token(locked: Ui) -> None:
    client = client_of(locked)
    answer = client.get(
        f"/?token={TOKEN}",
        headers={"x-forwarded-proto": "https"},
        follow_redirects=False,
    )
    assert "secure" in answer.headers["set-cookie"].lower()
    value = guard.session_of(TOKEN)
    assert client_of(locked, cookies={guard.COOKIE: value}).get("/").status_code == 200
    locked.token = "another-token-of-tests"
    assert client_of(locked, cookies={guard.COOKIE: value}).get("/").status_code == 401


def test_after_ten_wrong_tokens_a_client_waits_and_those_inside_do_not(
    locked: Ui, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = client_of(locked)
    wrong = {"authorization": "Bearer wrong-token"}
    statuses = [
        client.get("/", headers=wrong).status_code for _ in range(guard.MOST_FAILURES)
    ]
    assert statuses == [401] * (guard.MOST_FAILURES - 1) + [429]
    answer = client.get("/", headers={"authorization": f"Bearer {TOKEN}"})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "60")
    assert client.post("/login", data={"token": TOKEN}).status_code == 429
    inside = client.get(
        "/", headers={"cookie": f"{guard.COOKIE}={guard.session_of(TOKEN)}"}
    )
    assert inside.status_code == 200
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + guard.FAILURES_S + 1)
    assert (
        client.get("/", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
    )


def test_a_name_that_others_can_point_here_is_refused(
    ui: Ui, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(guard.HOSTS_VARIABLE, "train.example, Other.example")
    client = client_of(ui)
    for host, status in (
        ("localhost:8675", 200),
        ("127.0.0.1:8675", 200),
        ("[::1]:8675", 200),
        ("203.0.113.7:40123", 200),
        ("abc123-8675.proxy.runpod.net", 200),
        ("train.example:80", 200),
        ("other.example", 200),
        ("evil.example", 421),
        ("evil.example:8675", 421),
        ("proxy.runpod.net.evil.example", 421),
        ("localhost.evil.example", 421),
        ("", 421),
    ):
        assert client.get("/", headers={"host": host}).status_code == status, host


def test_another_site_changes_nothing(ui: Ui) -> None:
    client = client_of(ui, follow_redirects=False)
    for headers, status in (
        ({}, 303),
        ({"origin": "http://localhost:8675"}, 303),
        ({"sec-fetch-site": "same-origin"}, 303),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://localhost:9999"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://["}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
    ):
        answer = client.post("/theme", data={"theme": "dark"}, headers=headers)
        assert answer.status_code == status, headers


@pytest.mark.slow
def test_nothing_is_changed_by_asking(locked: Ui) -> None:
    """The folders after every GET are the folders before, but for small images."""
    client = client_of(locked, cookies={guard.COOKIE: guard.session_of(TOKEN)})
    root = locked.output.parent

    def state() -> dict[Path, tuple[int, int]]:
        files = [
            path
            for path in root.rglob("*")
            if path.is_file() and "thumbs" not in path.parts
        ]
        return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in files}

    before = state()
    for method, path in addresses():
        if method == "GET" and not path.endswith("/live"):
            client.get(path)
    assert state() == before


def test_every_answer_forbids_what_the_page_does_not_need(locked: Ui) -> None:
    client = client_of(locked)
    for path in ("/", "/login", "/healthz", "/static/ui.css", "/nothing"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


def test_a_request_that_is_too_large_is_cut(ui: Ui) -> None:
    large = b"x" * (guard.MOST_BYTES + 1)
    assert client_of(ui).post("/theme", content=large).status_code == 413

    def pieces() -> Any:
        for _ in range(guard.MOST_BYTES // 2**20 + 2):
            yield b"x" * 2**20

    form = {"content-type": "application/x-www-form-urlencoded"}
    assert (
        client_of(ui).post("/theme", content=pieces(), headers=form).status_code >= 400
    )
    digits = "9" * (guard.MOST_PATH + 400)
    for path in (f"/queue/1/images/{digits}", f"/runs/one/animations/{digits}.gif"):
        assert client_of(ui).get(path).status_code == 414


def test_back_leads_to_no_other_site(ui: Ui) -> None:
    for back in (
        "//evil.example",
        "/\\evil.example",
        "https://evil.example",
        "/\r\nx: y",
    ):
        answer = client_of(ui).post(
            "/theme", data={"theme": "dark", "back": back}, follow_redirects=False
        )
        assert re.match(r"/(?![/\\])", answer.headers["location"])


def test_another_site_makes_the_program_do_no_work(ui: Ui) -> None:
    client = client_of(ui)
    for site, mode, part, status in (
        ("cross-site", "no-cors", "image", 403),
        ("cross-site", "navigate", "iframe", 403),
        ("same-site", "cors", "empty", 403),
        ("cross-site", "navigate", "document", 200),
        ("same-origin", "no-cors", "image", 200),
        ("same-origin", "cors", "empty", 200),
    ):
        headers = {
            "sec-fetch-site": site,
            "sec-fetch-mode": mode,
            "sec-fetch-dest": part,
        }
        assert client.get("/queue", headers=headers).status_code == status, headers


def test_the_address_that_is_open_is_the_one_that_is_routed(locked: Ui) -> None:
    """What another reader of the address takes out of it opens nothing."""
    client = client_of(locked)
    for path, status in (
        ("/healthz%23/../runs/one", 401),
        ("/stat%09ic/ui.css", 401),
        ("/static%2f..%2fruns/one", 404),
        ("//healthz", 401),
    ):
        assert client.get(path).status_code == status, path
    for host in (
        "x/static/.proxy.runpod.net",
        "x/healthz?.proxy.runpod.net",
        "[fe80::1%/healthz?]",
    ):
        answer = client.get("/runs/one", headers={"host": host})
        assert answer.status_code in (401, 421), host


def test_the_address_without_its_token_is_the_same_otherwise(locked: Ui) -> None:
    client = client_of(locked)
    for path, rest in (("/runs/a%3Fb%23x", "?x=+%26&y="), ("/runs/one", "?step=0")):
        query = f"{rest}&token={TOKEN}"
        assert (
            client.get(path + query, follow_redirects=False).headers["location"]
            == path + rest
        )
    for path in (
        "//evil.example/x",
        "/%5cevil.example",
        "/%09/evil.example",
        "/%0d%0aX:y//evil.example",
    ):
        location = client.get(f"{path}?token={TOKEN}", follow_redirects=False).headers[
            "location"
        ]
        assert re.match(r"/(?![/\\\t\r\n])", location), path


def test_a_broken_login_is_no_defect_and_a_defect_is_protected_too(
    locked: Ui, monkeypatch: Any
) -> None:
    forms = ["", "; boundary=x"]
    file = '--x\r\nContent-Disposition: form-data; name="token"; filename="a"\r\n\r\nabc\r\n--x--\r\n'
    monkeypatch.setattr("extensions.tools.ui.views.system.ask_nvml", lambda: 1 / 0)
    client = client_of(locked)
    answers = [
        client.post(
            "/login", content=file, headers={"content-type": f"multipart/form-data{f}"}
        )
        for f in forms
    ]
    answers.append(client.get("/system", headers={"authorization": f"Bearer {TOKEN}"}))
    assert [answer.status_code for answer in answers] == [400, 400, 500]
    for answer in answers:
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["cache-control"] == "no-store"


@pytest.mark.slow
def test_a_client_that_says_to_be_many_is_one(ui: Ui) -> None:
    page = Served(ui.output.parent, TOKEN)
    try:
        for number in range(guard.MOST_FAILURES + 1):
            headers = {
                "Authorization": "Bearer wrong-token",
                "X-Forwarded-For": f"203.0.113.{number}",
            }
            with pytest.raises(HTTPError) as answer:
                urlopen(Request(f"{page.address}/", headers=headers))
        assert answer.value.code == 429
    finally:
        page.stop()


# ------------------------------------------------------------ where the page may listen


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TOKEN_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "train.example"])
def test_an_address_that_others_reach_needs_a_token(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not is_loopback(host)
    with pytest.raises(ConfigErrors, match=r"can be reached by others.*APP_AUTH"):
        section_of("ui", ["--host", host])
    monkeypatch.setenv("AI_TOOLKIT_AUTH", "short")
    with pytest.raises(ConfigErrors, match="too short"):
        section_of("ui", ["--host", host])
    monkeypatch.setenv("AI_TOOLKIT_AUTH", "long-enough")
    assert section_of("ui", ["--host", host]).host == host


def test_this_machine_needs_no_token_of_ones_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for host in ("127.0.0.1", "127.3.2.1", "::1", "localhost"):
        made = {section_of("ui", ["--host", host]).secret() for _ in range(2)}
        assert len(made) == 2 and all(len(token) >= 32 for token in made)
        assert section_of("ui", ["--host", host, "--no-token"]).secret() == ""
    with pytest.raises(ConfigErrors, match="can be reached by others"):
        section_of("ui", ["--host", "0.0.0.0", "--no-token"])
    monkeypatch.setenv("APP_AUTH", "long-enough")
    assert section_of("ui", []).secret() == "long-enough"
    with pytest.raises(ConfigErrors, match="no-token: the environment variable APP_"):
        section_of("ui", ["--no-token"])


@pytest.mark.slow
def test_the_printed_address_opens_the_page_and_a_bookmark_stays(
    ui: Ui, browser: Browser
) -> None:
    log = ui.output.parent / "page.log"

    def printed(page: Served) -> str:
        (address,) = re.findall(r"^(http://\S+) shows ", log.read_text(), re.MULTILINE)
        assert address.startswith(f"{page.address}/?token=")
        return address

    first = Served(ui.output.parent, makes_token=True)
    try:
        with pytest.raises(HTTPError) as answer:
            urlopen(first.address)
        assert answer.value.code == 401
        browser.open(f"{first.address}/system")
        assert "new at each start" in browser.text()
        browser.open(printed(first))
        browser.wait_for("document.title.startsWith('Trainings')")
        assert browser.run("return location.search") == "", "it leaves the history"
        log.unlink()
        second = Served(ui.output.parent, makes_token=True)
        try:
            browser.open(printed(second))
            browser.wait_for("document.title.startsWith('Trainings')")
            browser.open(f"{first.address}/system")  # a bookmark
            browser.wait_for("document.title.startsWith('System')")
        finally:
            second.stop()
    finally:
        first.stop()


def test_a_file_where_a_folder_is_to_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "output").write_text("")
    with pytest.raises(ConfigErrors, match=r"is a file\. Give a folder"):
        section_of("ui", ["--output", tmp_path / "output"])


def test_a_port_that_is_taken_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, errors = run_here("ui", "--port", str(port))
    assert code == 1
    assert f"127.0.0.1:{port}: Address already in use. Give another --port" in errors
