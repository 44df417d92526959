"""Thumbnails of images, and animations of several, each made once and kept in the
page's folder.

Images are decoded in a separate process, because a damaged or very large file may take
much memory, much time, or crash the decoder. That process is this module, started as
`python -m extensions.tools.ui.decoder`: each line on its standard input is a question
in JSON, and each line on its standard output is the answer. It never changes an image.

The views that show images call `thumbnail`, and the page of a run `animation`. The datasets' uploads call
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
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock, Timer
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps

from extensions.tools.ui.state import Ui
from toolkit.data.pixels.images import ImageError, open_image
from toolkit.data.scan.fingerprint import version_of
from toolkit.files.writing import atomic_write, python_path
from toolkit.train.run_reader import spread

SIDES = (160, 400, 960)
"""Longer sides of thumbnails, in pixels."""

MOST_S = 60.0
"""Seconds that the decoding of an image, or the making of an animation, may take."""

ANIMATIONS = {"webp": "WebP", "gif": "GIF"}
"""Formats of animations: suffix -> name."""

MOST_FRAMES = 40
FRAME_SIDE = 720
"""Images of an animation at most, and its longer side in pixels."""

RUN_MS, LEAST_MS, MOST_MS, LAST_MS = 8000, 120, 700, 2000
"""Milliseconds of an animation before its last image, of one of its images at least and
at most, and of the last."""

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


def animation(ui: Ui, frames: Sequence[tuple[str, Path]], kind: str) -> Path:
    """An animation of at most MOST_FRAMES images, made at the first request, with its
    label in the lower left corner of each.

    frames: label and file of each image. kind: one of ANIMATIONS. Raises as `thumbnail`.

    Example::

        animation(ui, [("step 1", first), ("step 500", last)], "webp")
    """
    frames = spread(frames, MOST_FRAMES)
    about = repr((kind, [(label, tag_of(path)) for label, path in frames]))
    name = hashlib.sha256(about.encode()).hexdigest()[:32]
    made = ui.own / "thumbs" / name[:2] / f"{name}.{kind}"
    if not made.is_file():
        own = Decoder()  # thumbnails do not wait for it
        try:
            labelled = [(label, str(path.absolute())) for label, path in frames]
            own.decode(frames[-1][1], made, FRAME_SIDE, labelled)
        finally:
            own.end()
    return made


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
        self,
        path: Path,
        thumb: Path | None = None,
        side: int = SIDES[-1],
        frames: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Decodes a whole image and writes its thumbnail.

        thumb: file of the thumbnail. None: no thumbnail is written. A file that another
        thread has written meanwhile is left as it is.
        side: longer side of the thumbnail, in pixels.
        frames: label and file of each image of an animation, which is written in place
        of the thumbnail.

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
                "frames": frames,
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


def _decode(
    path: str, thumb: str, side: int, frames: Sequence[tuple[str, str]]
) -> None:
    if frames:
        return _animate(frames, Path(thumb), side)
    image = open_image(path)
    if thumb:
        image.thumbnail((side, side))
        with atomic_write(Path(thumb), durable=False) as temporary:
            image.save(temporary, "WEBP", quality=82)


def _animate(frames: Sequence[tuple[str, str]], file: Path, side: int) -> None:
    """Writes an animation. All images get the size of the first."""
    images: list[Image.Image] = []
    for label, path in frames:
        image = open_image(path).convert("RGB")
        image.thumbnail((side, side))
        image = ImageOps.pad(image, images[0].size) if images else image
        size = max(9, image.height // 28)
        ImageDraw.Draw(image).text(
            (size // 2, image.height - size // 2),
            label,
            "white",
            ImageFont.load_default(size),
            anchor="ls",
            stroke_width=2,
            stroke_fill="black",
        )
        images.append(image)
    each = max(LEAST_MS, min(MOST_MS, RUN_MS // len(images)))
    durations = [each] * (len(images) - 1) + [LAST_MS]
    first, *rest = images
    with atomic_write(file, durable=False) as temporary:
        first.save(
            temporary,
            file.suffix[1:].upper(),
            save_all=True,
            append_images=rest,
            duration=durations,
            loop=0,
            quality=82,
        )


if __name__ == "__main__":
    main()
