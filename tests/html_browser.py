"""A headless Chromium for pages of the program, driven through chromedriver's own
protocol (https://www.w3.org/TR/webdriver2/): JSON over HTTP, so no package is needed
beside the browser.

    @pytest.mark.slow
    def test_arrows(browser):
        browser.open(path)
        browser.press("ArrowRight")
        assert browser.run("return document.title") == "2"
        assert browser.requests_elsewhere() == []

`browser` is a fixture (tests/conftest.py); a test with it is skipped where no Chromium
is installed, and marked `slow`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from tests.processes import free_port, until

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

KEYS = {
    "ArrowLeft": "\ue012",
    "ArrowUp": "\ue013",
    "ArrowRight": "\ue014",
    "ArrowDown": "\ue015",
    "Backspace": "\ue003",
    "Escape": "\ue00c",
    "Enter": "\ue007",
    "Tab": "\ue004",
    "Home": "\ue011",
    "End": "\ue010",
    "PageDown": "\ue00f",
    "Space": " ",
}
"""Keys without a letter, as WebDriver writes them."""

_OF_THIS_MACHINE = (
    "file:",
    "data:",
    "blob:",
    "about:",
    "http://127.0.0.1:",
    "http://localhost:",
)


class Browser:
    """One tab of one browser."""

    def __init__(self, port: int) -> None:
        self._root = f"http://127.0.0.1:{port}"
        self._session = ""

    def begin(self, chromium: str) -> None:
        """Starts the browser. Neither a sandbox nor much shared memory is to be had in
        a container."""
        arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--no-first-run",
        ]
        options = {
            "browserName": "chrome",
            "goog:chromeOptions": {"binary": chromium, "args": arguments},
            "goog:loggingPrefs": {"performance": "ALL", "browser": "ALL"},
        }
        session = self._send("/session", {"capabilities": {"alwaysMatch": options}})
        self._session = f"/session/{session['sessionId']}"

    def end(self) -> None:
        self._send("", method="DELETE")

    def open(
        self, page: Path | str, width: int = 1280, height: int = 900, dark: bool = False
    ) -> None:
        """Loads a file, or an address, in a window of this size, in CSS pixels, with an
        empty log."""
        phone = {
            "width": width,
            "height": height,
            "deviceScaleFactor": 1,
            "mobile": width < 600,
        }
        self.command("Emulation.setDeviceMetricsOverride", **phone)
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[theme])
        self._send("/url", {"url": "about:blank"})
        self._log("performance"), self._log("browser")
        self._send(
            "/url", {"url": page if isinstance(page, str) else page.absolute().as_uri()}
        )
        # chromedriver 150.0.7871 answered 15 of 300 navigations before the page was
        # there; while a form is busy, its parts move away from under a click
        self.wait_for(
            "location.href !== 'about:blank' && document.readyState === 'complete'"
            " && !document.querySelector('[aria-busy]')"
        )

    def run(self, script: str, *arguments: object) -> Any:
        """What a script returns: `run("return document.title")`."""
        return self._send("/execute/sync", {"script": script, "args": list(arguments)})

    def text(self, selector: str = "body") -> str:
        """The text that is seen in an element."""
        return self.run(
            "return document.querySelector(arguments[0]).innerText", selector
        )

    def click(self, selector: str) -> None:
        """A click on the middle of an element, after scrolling it to where no bar lies
        over it."""
        self.run(
            "document.querySelector(arguments[0])?.scrollIntoView({block: 'center'})",
            selector,
        )
        found = self._send("/element", {"using": "css selector", "value": selector})
        self._send(f"/element/{next(iter(found.values()))}/click", {})

    def type(self, selector: str, text: str) -> None:
        """Keys into a field; into one of files the paths, one a line."""
        found = self._send("/element", {"using": "css selector", "value": selector})
        self._send(f"/element/{next(iter(found.values()))}/value", {"text": text})

    def wait_for(self, script: str, seconds: float = 20) -> Any:
        """What an expression gives as soon as it is true."""
        deadline = time.monotonic() + seconds
        while not (found := self.run(f"return {script}")):
            assert time.monotonic() < deadline, f"{script} stays {found!r}"
            time.sleep(0.05)
        return found

    def press(self, *keys: str) -> None:
        """Keys one after another: names of `KEYS`, or letters."""
        strokes = [
            {"type": kind, "value": KEYS.get(key, key)}
            for key in keys
            for kind in ("keyDown", "keyUp")
        ]
        self._send(
            "/actions",
            {"actions": [{"type": "key", "id": "keyboard", "actions": strokes}]},
        )

    def requests_elsewhere(self) -> list[str]:
        """Addresses that were asked for since `open` and are not of this machine,
        refused ones included."""
        told = [
            json.loads(entry["message"])["message"]
            for entry in self._log("performance")
        ]
        asked = [
            entry["params"]["request"]["url"]
            for entry in told
            if entry["method"] == "Network.requestWillBeSent"
        ]
        refused = [line for line in self.errors() if "Content Security Policy" in line]
        return [url for url in asked if not url.startswith(_OF_THIS_MACHINE)] + refused

    def errors(self) -> list[str]:
        """What the console has told since the last call: errors of scripts, pictures
        that are not there."""
        return [
            entry["message"]
            for entry in self._log("browser")
            if entry["level"] == "SEVERE"
        ]

    def is_as_wide_as_the_window(self) -> bool:
        """Whether nothing has to be scrolled sideways."""
        return self.run(
            "return document.documentElement.scrollWidth <= window.innerWidth"
        )

    def command(self, name: str, **parameters: object) -> Any:
        """A command of the DevTools protocol."""
        return self._send("/goog/cdp/execute", {"cmd": name, "params": parameters})

    def _log(self, kind: str) -> list[dict[str, Any]]:
        return self._send("/se/log", {"type": kind})

    def _send(
        self, path: str, body: dict[str, Any] | None = None, method: str = "POST"
    ) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = Request(
            self._root + self._session + path,
            data,
            {"Content-Type": "application/json"},
            method=method,
        )
        try:
            with urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except HTTPError as error:
            raise RuntimeError(json.load(error)["value"]["message"]) from error


@contextmanager
def opened_browser() -> Iterator[Browser]:
    """A browser of one's own; skips the test where there is none."""
    chromium = next((found for name in CHROMIUM if (found := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip(
            "no Chromium with its driver (Debian: apt-get install chromium chromium-driver)"
        )
    port = free_port()
    process = subprocess.Popen(
        [driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        browser = Browser(port)
        until(lambda: _is_ready(browser), 60)
        browser.begin(chromium)
        try:
            yield browser
        finally:
            browser.end()
    finally:
        process.terminate()
        process.wait(10)


def _is_ready(browser: Browser) -> bool:
    try:
        return browser._send("/status", method="GET")["ready"]
    except OSError:  # it does not listen yet
        return False
