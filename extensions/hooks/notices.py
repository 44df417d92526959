"""Tells a command or an address what happens in a run: the event as JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from abc import abstractmethod
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from toolkit.errors import RunError
from toolkit.files.redact import redact_json
from toolkit.files.run_files import utc_now
from toolkit.train.run import Encoded, Run, Sampled, Saved
from toolkit.version import NAME, VERSION

from .background import BackgroundCallback
from .config import CommandConfig, NoticeConfig, WebhookConfig


class NoticeCallback(BackgroundCallback):
    """Makes the JSON of each event that `on` names."""

    section: NoticeConfig

    @abstractmethod
    def send(self, notice: bytes) -> None:
        """Delivers one notice. May take `timeout_s`, and may raise."""

    def on_encoded(self, run: Run, encoded: Encoded) -> None:
        line = f"{encoded.items} items are encoded"
        self._notify(run, "encoded", line, items=encoded.items)

    def on_start(self, run: Run) -> None:
        self._notify(run, "start", f"training from step {run.state.step}")

    def on_sample(self, run: Run, sampled: Sampled) -> None:
        files = [*map(_absolute, sampled.files)]
        line = f"samples of step {sampled.step}"
        more = {"step": sampled.step, "files": files, "prompts": [*sampled.prompts]}
        self._notify(run, "sample", line, **more)

    def on_save(self, run: Run, saved: Saved) -> None:
        files, removed = (
            [*map(_absolute, paths)] for paths in (saved.files, saved.removed)
        )
        line = f"saved step {saved.step} of {run.steps}"
        more = {"step": saved.step, "files": files, "removed": removed}
        self._notify(run, "save", line, **more)

    def on_end(self, run: Run, finished: bool) -> None:
        reason = run.early_stop_reason or run.stop_reason or ""
        line = "finished" if finished else "stopped"
        line += f" at step {run.state.step} of {run.steps}" + f": {reason}" * bool(
            reason
        )
        self._notify(run, "end", line, finished=finished, reason=reason)
        self.finish()

    def on_error(self, run: Run, error: BaseException) -> None:
        message = f"{type(error).__name__}: {error}"
        line = f"failed at step {run.state.step} of {run.steps}: {message}"
        self._notify(run, "error", line, error=message)
        self.finish()

    def _notify(self, run: Run, event: str, line: str, **details: Any) -> None:
        if event not in self.section.on:
            return
        values = {
            "event": event,
            "time": utc_now(),
            "run": run.name,
            "folder": _absolute(run.folder),
            "step": run.state.step,
            "steps": run.steps,
            **details,
            # what Slack and Mattermost show, and what Discord shows
            **dict.fromkeys(("text", "content"), f"{run.name}: {line}"),
        }
        self.later(partial(self.send, json.dumps(redact_json(values)).encode()))


class CommandCallback(NoticeCallback):
    """`type: run`."""

    section: CommandConfig

    def send(self, notice: bytes) -> None:
        # a file, not a pipe, which a process that the command leaves behind keeps open
        with tempfile.TemporaryFile() as errors:
            child = subprocess.Popen(
                self.section.command,
                shell=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,  # a Ctrl-C is not for it
            )
            try:
                child.communicate(notice, self.section.timeout_s)
            except subprocess.TimeoutExpired:
                if hasattr(os, "killpg"):
                    os.killpg(child.pid, signal.SIGKILL)
                child.kill()
                child.wait()
                late = f"the command is not done within {self.section.timeout_s:g} s"
                raise RunError(late) from None
            errors.seek(0)
            lines = errors.read().decode(errors="replace").split("\n")
        if child.returncode:
            last = next((line for line in reversed(lines) if line.strip()), "")
            raise RunError(
                f"the command ended with {child.returncode} {last.strip()}".rstrip()
            )


class _NoRedirect(HTTPRedirectHandler):
    """It would be followed as GET, without the event, and to any address."""

    def redirect_request(self, *_: object) -> None:
        return None


_STRAIGHT = build_opener(_NoRedirect)


class WebhookCallback(NoticeCallback):
    """`type: webhook`."""

    section: WebhookConfig

    def send(self, notice: bytes) -> None:
        # some hosts refuse Python's own name
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"{NAME}/{VERSION}",
        }
        request = Request(self.section.url, notice, headers)
        try:
            _STRAIGHT.open(request, timeout=self.section.timeout_s).close()
        except HTTPError as error:
            answer = f"answers {error.code} {error.reason}"
            if 300 <= error.code < 400:
                answer = f"has moved this address ({error.code}): give the new one"
            raise RunError(f"{self._host} {answer}") from None
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise RunError(f"{self._host} cannot be reached: {reason}") from None

    @property
    def _host(self) -> str:
        """The part of the address that may be told."""
        return str(urlsplit(self.section.url).hostname)


def _absolute(path: Path) -> str:
    return str(path.absolute())
