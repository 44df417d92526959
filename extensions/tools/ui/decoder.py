"""Small images of large ones, made once. They are decoded in a process of its own: what
a file makes a decoder do, its memory and its time, is not the page's.

Asked by a line of JSON on standard input, it answers by one: `python -m
extensions.tools.ui.decoder`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from threading import Lock, Timer
from typing import Any

from extensions.tools.ui.state import Ui
from toolkit.data.pixels.images import ImageError, open_image
from toolkit.data.scan.fingerprint import version_of
from toolkit.files.writing import atomic_write, python_path

SIDES = (160, 400, 960)
"""Longer sides of small images, in pixels."""

MOST_S = 60.0
"""Seconds that an image may take."""

IDLE_S = 30.0
"""Seconds without a question after which the process ends."""


def thumbnail(ui: Ui, path: Path, side: int) -> Path:
    """The JPEG of an image whose longer side is the least of SIDES that is not below
    `side`; named by the file and its version. Raises ImageError for what is not an
    image, OSError for what cannot be read or written."""
    side = next((each for each in SIDES if each >= side), SIDES[-1])
    about = os.stat(path)
    if not stat.S_ISREG(about.st_mode):
        raise ImageError(path, "is not a file")  # a pipe would be waited for
    origin = repr((str(path.resolve()), version_of(about), side))
    name = hashlib.sha256(origin.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    small = ui.own / "thumbs" / name[:2] / f"{name}.jpg"
    if not small.is_file():
        decoder(ui).decode(path, small, side)
    return small


def decoder(ui: Ui) -> Decoder:
    """The one process that decodes images for the page."""
    found: Decoder = ui.memory.setdefault("decoder", Decoder())
    return found


class Decoder:
    """One process for all who ask, started when it is needed."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._process: subprocess.Popen[str] | None = None
        self._idle = Timer(0, lambda: None)

    def decode(
        self, path: Path, thumb: Path | None = None, side: int = SIDES[-1]
    ) -> None:
        """Decodes a whole image, and writes its thumbnail, whose longer side is `side`;
        not one that another who asked at the same time has got. Raises ImageError, and
        OSError where the thumbnail cannot be written."""
        with self._lock:
            if thumb and thumb.is_file():
                return
            self._idle.cancel()
            question = {
                "path": str(path.absolute()),
                "thumb": str(thumb.absolute()) if thumb else "",
                "side": side,
            }
            answer = self._ask(question)
            self._idle = Timer(IDLE_S, self.end)
            self._idle.daemon = True
            self._idle.start()
        number = answer.get("errno")
        if number:
            raise OSError(number, os.strerror(number), str(thumb))
        error = answer.get("error")
        if error:
            raise ImageError(path, error)

    def end(self) -> None:
        """Ends the process; the next question starts another."""
        with self._lock:
            if self._process and self._process.stdin:
                self._process.stdin.close()
                self._process.wait()
            self._process = None

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        if self._process is None or self._process.poll() is not None:
            environment = os.environ | {"PYTHONPATH": python_path()}
            command = [
                sys.executable,
                "-P",
                "-m",
                __spec__.name,
            ]  # nothing of the working directory
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                env=environment,
            )
        process = self._process
        assert process.stdin and process.stdout
        alarm = Timer(MOST_S, process.kill)
        alarm.start()
        try:
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()
            answer: dict[str, Any] = json.loads(process.stdout.readline())
            return answer
        except (
            OSError,
            ValueError,
        ):  # it was killed, by the alarm or for its memory, or has crashed
            process.kill()
            process.wait()  # else the next question may find it alive still
            return {
                "error": f"cannot be decoded within {MOST_S:.0f} s and the available memory. Save a smaller version"
            }
        finally:
            alarm.cancel()


def main() -> None:
    """Answers until standard input ends, as it does when the page ends."""
    if hasattr(os, "nice"):
        os.nice(5)
    for line in sys.stdin:
        question = json.loads(line)
        try:
            _decode(**question)
            answer: dict[str, Any] = {}
        except ImageError as error:
            answer = {"error": error.reason}
        except MemoryError:
            answer = {"error": "needs more memory than is available. Make it smaller"}
        except OSError as error:  # of the thumbnail's disk
            answer = {"errno": error.errno or errno.EIO}
        with suppress(BrokenPipeError):
            print(json.dumps(answer), flush=True)


def _decode(path: str, thumb: str, side: int) -> None:
    image = open_image(path)
    if thumb:
        image.thumbnail((side, side))
        with atomic_write(Path(thumb), durable=False) as temporary:
            image.save(temporary, "JPEG", quality=85)


if __name__ == "__main__":
    main()
