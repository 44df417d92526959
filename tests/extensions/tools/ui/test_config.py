"""Where the page may listen."""

from __future__ import annotations

from pathlib import Path

import pytest

from extensions.tools.ui.config import TOKEN_VARIABLES, is_loopback
from tests.running import section_of
from toolkit.config.located import ConfigErrors


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TOKEN_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "train.example"])
def test_an_address_that_others_reach_needs_a_token(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_loopback(host)
    with pytest.raises(ConfigErrors, match=r"can be reached by others.*APP_AUTH"):
        section_of("ui", ["--host", host])
    monkeypatch.setenv("AI_TOOLKIT_AUTH", "short")
    with pytest.raises(ConfigErrors, match="too short"):
        section_of("ui", ["--host", host])
    monkeypatch.setenv("AI_TOOLKIT_AUTH", "long-enough")
    assert section_of("ui", ["--host", host]).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1", "localhost"])
def test_this_machine_needs_none(host: str) -> None:
    assert section_of("ui", ["--host", host]).port == 8675


def test_a_file_where_a_folder_is_to_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "output").write_text("")
    with pytest.raises(ConfigErrors, match=r"is a file\. Give a folder"):
        section_of("ui", ["--output", tmp_path / "output"])


def test_a_port_that_is_taken_is_told(run_py, tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_py("ui", "--port", str(port))
    assert done.returncode == 1
    assert f"127.0.0.1:{port}: Address already in use. Give another --port" in done.stderr
