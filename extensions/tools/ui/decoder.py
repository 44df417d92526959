"""Thumbnails of images, each made once and kept in the page's folder.

Images are decoded in a separate process, because a damaged or very large file may take
much memory, much time, or crash the decoder. That process is this module, started as
`python -m extensions.tools.ui.decoder`: each line on its standard input is a question
in JSON, and each line on its standard output is the answer. It never changes an image.

The views that show images call `thumbnail`. The datasets' uploads call
`Decoder.decode` to check that a file really is an image.
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
"""Longer sides of thumbnails, in pixels."""

MOST_S = 60.0
"""Seconds that the decoding of an image may take."""

IDLE_S = 30.0
"""Seconds without a question after which the process ends."""


def tag_of(path: Path, side: int = 0) -> str:
    """A hash of an image's path and version, and of the side of its copy. Raises
    ImageError for what is not a file, and OSError."""
    about = os.stat(path)
    if not stat.S_ISREG(about.st_mode):
        raise ImageError(path, "is not a file")  # reading a pipe would wait for ever
    origin = repr((str(path.resolve()), version_of(about), side))
    return hashlib.sha256(origin.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def thumbnail(ui: Ui, path: Path, side: int) -> Path:
    """The thumbnail of an image: a WebP file, made at the first request.

    Its longer side is the smallest of SIDES that is at least `side`, or the largest of
    them. Its name is `tag_of` the image. Raises ImageError for a file that is not an
    image, and OSError for one that cannot be read or written.

    Example::

        return FileResponse(thumbnail(ui, run.folder / "samples" / name, 400))
    """
    side = min((known for known in SIDES if known >= side), default=SIDES[-1])
    name = tag_of(path, side)
    small = ui.own / "thumbs" / name[:2] / f"{name}.webp"
    if not small.is_file():
        decoder(ui).decode(path, small, side)
    return small


def decoder(ui: Ui) -> Decoder:
    """The page's one decoder."""
    shared: Decoder = ui.memory.setdefault("decoder", Decoder())
    return shared


class Decoder:
    """The process that decodes images, started when it is needed.

    All threads share it, and it decodes one image at a time.

    Example::

        decoder = Decoder()
        decoder.decode(Path("photo.png"))  # raises ImageError if it is not an image
        decoder.end()
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._process: subprocess.Popen[str] | None = None
        self._idle = Timer(0, lambda: None)

    def decode(
        self, path: Path, thumb: Path | None = None, side: int = SIDES[-1]
    ) -> None:
        """Decodes a whole image and writes its thumbnail.

        thumb: file of the thumbnail. None: no thumbnail is written. A file that another
        thread has written meanwhile is left as it is.
        side: longer side of the thumbnail, in pixels.

        Raises ImageError if the image cannot be decoded, and OSError if the thumbnail
        cannot be written.
        """
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
        if "errno" in answer:
            raise OSError(answer["errno"], os.strerror(answer["errno"]), str(thumb))
        if "error" in answer:
            raise ImageError(path, answer["error"])

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
            # -P: no module of the working directory is imported
            command = [sys.executable, "-P", "-m", __spec__.name]
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
        except (OSError, ValueError):
            # The process has crashed, or the alarm or the system has killed it.
            process.kill()
            process.wait()  # else the next question may find it still alive
            return {
                "error": f"cannot be decoded within {MOST_S:.0f} s and the available memory. Save a smaller version"
            }
        finally:
            alarm.cancel()


def main() -> None:
    """The decoding process: answers questions until standard input ends.

    It ends with the page, because the page holds the other end.
    """
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
        except OSError as error:  # the thumbnail cannot be written
            answer = {"errno": error.errno or errno.EIO}
        with suppress(BrokenPipeError):
            print(json.dumps(answer), flush=True)


def _decode(path: str, thumb: str, side: int) -> None:
    image = open_image(path)
    if thumb:
        image.thumbnail((side, side))
        with atomic_write(Path(thumb), durable=False) as temporary:
            image.save(temporary, "WEBP", quality=82)


if __name__ == "__main__":
    main()
