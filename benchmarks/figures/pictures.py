"""The pictures of the page in the documentation: `python benchmarks/figures/pictures.py`.

Trains the two example jobs (some minutes on a CPU), opens the page over their folders
in Chromium, and writes `docs/web_*.png` again. Beside them, in `docs/web_pictures.json`,
it writes a hash of the structure and the text of each of these pages, made from made-up
folders that are the same on each machine. `tests/benchmarks/figures/test_pictures.py`
compares it with the page as it is now.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.figures.ui import served  # noqa: E402

DOCS = ROOT / "docs"
RECORD = DOCS / "web_pictures.json"

COMMAND = "python benchmarks/figures/pictures.py"

RUN, DATASET = "mascot_hats", "pipo"
JOBS = ("quickstart", RUN)
"""Examples that are trained for the pictures."""

PICTURES = {
    "web_run.png": f"/runs/{RUN}",
    "web_runs.png": "/",
    "web_dataset.png": f"/datasets/{DATASET}",
    "web_new.png": f"/new?dataset={DATASET}",
}
"""File of a picture -> the address of its page, over the folders of the trained jobs and
over the made-up ones."""

SIZE = (1200, 900)


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    with TemporaryDirectory() as folder:
        home = (asked.trained or Path(folder)).absolute()
        prepare(home)
        take(home, asked.output.absolute())
    record = asked.output / RECORD.name
    record.write_text(json.dumps(hashes(), indent=2) + "\n", encoding="utf-8")
    print(f"{len(PICTURES)} pictures and {record}")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--output", type=Path, default=DOCS, help="folder of the pictures"
    )
    parser.add_argument("--trained", type=Path, help="a folder where the jobs have run")
    return parser.parse_args(argv)


def prepare(home: Path) -> None:
    """Trains the jobs that were not trained yet, and copies what the first one has drawn
    as a dataset."""
    for name in JOBS:
        job = ROOT / "config" / "examples" / f"{name}.yaml"
        command = [sys.executable, str(ROOT / "run.py"), str(job)]
        subprocess.run(command, cwd=home, check=True)
    drawn = home / "output" / "quickstart_pictures" / DATASET / "pictures"
    if not (home / "datasets" / DATASET).exists():
        shutil.copytree(drawn, home / "datasets" / DATASET)


def take(home: Path, output: Path) -> None:
    """Writes each picture as a PNG file of few colours."""
    from tests.html_browser import opened_browser

    with served(home / "output") as (port, _, _), opened_browser() as browser:
        for name, address in PICTURES.items():
            browser.open(f"http://127.0.0.1:{port}{address}", *SIZE)
            ready = "[...document.images].every(i => i.complete) && !document.querySelector('[aria-busy]')"
            browser.wait_for(ready, 120)
            time.sleep(2)  # curves are drawn, and the plan has come
            browser.wait_for(ready, 120)
            if wrong := browser.errors():
                raise RuntimeError(f"{address}: {wrong}")
            path = browser.screenshot(output / name, whole=False)
            with Image.open(path) as picture:
                small = picture.convert("RGB").quantize(256)
            small.save(path, optimize=True)


# ------------------------------------------------------------ hashes


class _Outline(HTMLParser):
    """The elements and texts of a page, without what differs from time to time and from
    machine to machine: scripts, numbers, and the bar with the machine."""

    SKIPPED = frozenset({"script", "style", "svg", "footer", "noscript"})
    VOID = frozenset({"input", "img", "br", "meta", "link", "hr", "source"})

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._skipped: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._skipped or tag in self.SKIPPED:
            if tag not in self.VOID:
                self._skipped.append(tag)
            return
        shown = {name: value or "" for name, value in attrs}
        kept = [shown.get(name, "") for name in ("id", "class", "aria-label", "title")]
        self._add(f"<{tag}>", *kept)

    def handle_endtag(self, tag: str) -> None:
        if self._skipped and tag == self._skipped[-1]:
            self._skipped.pop()

    def handle_data(self, data: str) -> None:
        if not self._skipped and data.strip():
            self._add(data)

    def _add(self, *parts: str) -> None:
        text = " ".join(" ".join(parts).split())
        self.lines.append(re.sub(r"\d[\d.,:/-]*", "0", text))


def outline(page: str) -> list[str]:
    """The structure and the text of a page, a line for each element and text.

    >>> outline('<p class="big">12 of 30<script>x</script></p>')
    ['<p> big', '0 of 0']
    """
    parser = _Outline()
    parser.feed(page)
    return parser.lines


def hashes() -> dict[str, str]:
    """File of each picture -> the hash of its page over the made-up folders."""
    with _made_up() as get:
        return {
            name: hashlib.sha256("\n".join(outline(get(address))).encode()).hexdigest()
            for name, address in PICTURES.items()
        }


@contextmanager
def _made_up() -> Iterator[object]:
    """Asks the page of made-up folders for an address, without a server and as on a
    machine without a GPU."""
    from starlette.testclient import TestClient

    from benchmarks.figures.ui import make_dataset, make_run
    from extensions.tools.ui import machine
    from extensions.tools.ui.app import make_app
    from extensions.tools.ui.state import Ui

    nothing = patch.object(machine, "ask_nvml", lambda: (None, []))
    with TemporaryDirectory() as folder, chdir(folder), nothing:
        places = [Path(name) for name in ("output", "datasets", "config")]
        for name in JOBS:
            make_run(places[0] / name, 40, 8)
        make_dataset(places[1] / DATASET, 8)
        ui = Ui(*places, token="", price_per_hour=0.0)
        client = TestClient(make_app(ui), base_url="http://localhost:8675")

        def get(address: str) -> str:
            answer = client.get(address, headers={"accept": "text/html"})
            if answer.status_code != 200:
                raise RuntimeError(f"{address}: {answer.status_code}: {answer.text}")
            # where this checkout lies, as the small model has a full path there
            return answer.text.replace(str(ROOT), "")

        yield get


if __name__ == "__main__":
    main()
