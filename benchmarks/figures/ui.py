"""The web page: `python benchmarks/figures/ui.py`.

Start to the first page, memory, the pages over 1,000 runs for one client and for a
hundred, the page and curves of a run with a million metric lines and 5,000 samples,
what fifty watchers cost, how soon a new line is at a watcher, and, with Chromium, the
first paint. Times are those of whole HTTP requests to a page in a separate process: the
median of several, and the first, which has no caches.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from urllib.request import urlopen

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks import report  # noqa: E402

WATCH_S = 20.0
PAGES = (
    "/",
    "/runs/run_001",
    "/datasets/ok",
    "/system",
    "/compare?run=run_001&run=run_002",
)
"""What lists the runs."""


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    report.card(
        "ui",
        f"{asked.runs} runs; one of {asked.lines:,} lines and {asked.samples:,} samples",
    )
    with TemporaryDirectory() as folder:
        output = Path(folder) / "output"
        for number in range(asked.runs):
            make_run(output / f"run_{number:03d}", 500, 8)
        make_dataset(output.parent / "datasets" / "ok", 20)
        make_run(output / "large", asked.lines, asked.samples)
        with served(output) as (port, process, start_s):
            idle = resident(process)
            pages = {path: request_times(port, path, asked.repeats) for path in PAGES}
            crowd = many_clients(port, asked.clients)
            of_runs = resident(process)
            page = request_times(port, "/runs/large", asked.repeats)
            curves = request_times(port, "/runs/large/curves", asked.repeats)
            part = request_times(
                port,
                f"/runs/large/curves?from=1000&to={asked.lines // 100}",
                asked.repeats,
            )
            seen, load = watched(port, process, output / "run_000", asked.watchers)
            figures = {
                "start_s": start_s,
                "resident_mb": {
                    "idle": idle,
                    "pages_of_runs": of_runs,
                    "after": resident(process),
                },
                "pages_of_runs_ms": pages,
                "clients_s": crowd,
                "page_ms": page,
                "curves_ms": curves,
                "part_of_curves_ms": part,
                "line_seen_after_s": seen,
                "watchers_share_of_a_core": load,
                "static_gzip_kb": static_size(),
                "first_paint_s": first_paint(port) if asked.browser else None,
            }
    report.finish("ui", **vars(asked), **figures)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--samples", type=int, default=5_000)
    parser.add_argument("--watchers", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--browser", action="store_true", help="measure the first paint in Chromium"
    )
    return parser.parse_args(argv)


def make_run(folder: Path, lines: int, samples: int) -> None:
    """A run's folder with so many metric lines and sample images, four of each step."""
    (folder / "samples").mkdir(parents=True)
    status = {
        "name": folder.name,
        "status": "finished",
        "step": lines,
        "steps": lines,
        "step_s": 1.0,
        "loss": 0.1,
    }
    (folder / "run.json").write_text(
        json.dumps(status | {"updated": "2026-11-01T10:00:00Z"})
    )
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, lines + 1):
            file.write(metric_line(step))
    first = folder / "samples" / "000000000_0.jpg"
    Image.new("RGB", (256, 256), (90, 120, 200)).save(first)
    with (folder / "events.jsonl").open("w") as file:
        for place in range(0, samples, 4):
            step = place // 4 * max(1, lines * 4 // samples)
            files = [f"{step:09d}_{index}.jpg" for index in range(4)]
            for name in files:
                if not (folder / "samples" / name).exists():
                    os.link(first, folder / "samples" / name)
            event = {
                "time": "2026-11-01T10:00:00Z",
                "event": "sample",
                "step": step,
                "files": files,
            }
            file.write(
                json.dumps(event | {"prompts": ["a photo of mychar on a beach"] * 4})
                + "\n"
            )
    (folder / "log.txt").write_text("step 1\n" * 1000)
    (folder / "config.yaml").write_text(
        f"job: extension\nconfig:\n  name: {folder.name}\n  process: []\n"
    )


def make_dataset(folder: Path, images: int) -> None:
    folder.mkdir(parents=True)
    for number in range(images):
        Image.new("RGB", (256, 256), (number * 9 % 255, 50, 90)).save(
            folder / f"{number}.png"
        )
        (folder / f"{number}.txt").write_text("a photo")


def metric_line(step: int) -> str:
    row = {
        "step": step,
        "epoch": 0,
        "loss": 1 / (step % 977 + 1),
        "lr": 1e-4,
        "grad_norm": 0.5,
        "samples": step,
    }
    return (
        json.dumps(
            row
            | {
                "step_s": 1.0,
                "data_s": 0.01,
                "time": "2026-11-01T10:00:00Z",
                "t_mean": 0.5,
            }
        )
        + "\n"
    )


@contextmanager
def served(output: Path) -> Iterator[tuple[int, subprocess.Popen[bytes], float]]:
    """The port, the process, and the seconds from its start to the answer of the first
    page."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [
        sys.executable,
        str(ROOT / "run.py"),
        "ui",
        "--output",
        str(output),
        "--port",
        str(port),
        "--no-token",
    ]
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("APP_AUTH", "AI_TOOLKIT_AUTH")
    }
    begun = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=output.parent, env=environment, stdout=subprocess.DEVNULL
    )
    try:
        while True:
            try:
                urlopen(f"http://127.0.0.1:{port}/login", timeout=1).read()
                break
            except OSError:
                if process.poll() is not None or time.perf_counter() - begun > 60:
                    raise
                time.sleep(0.01)
        yield port, process, round(time.perf_counter() - begun, 3)
    finally:
        process.terminate()
        process.wait(20)


def request_times(port: int, path: str, repeats: int) -> dict[str, float]:
    """Milliseconds of the first request and the median of those after it."""
    times = []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        urlopen(f"http://127.0.0.1:{port}{path}", timeout=300).read()
        times.append((time.perf_counter() - begun) * 1000)
    return {"cold": round(times[0], 1), "warm": round(median(times[1:]), 1)}


def many_clients(port: int, clients: int) -> dict[str, float]:
    """Seconds of a request when so many clients ask for each of PAGES, all at one
    time."""
    times: list[float] = []

    def ask(first: int) -> None:
        for path in (*PAGES[first:], *PAGES[:first]):
            begun = time.perf_counter()
            urlopen(f"http://127.0.0.1:{port}{path}", timeout=300).read()
            times.append(time.perf_counter() - begun)

    threads = [
        threading.Thread(target=ask, args=(number % len(PAGES),))
        for number in range(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(times) < clients * len(PAGES):
        raise RuntimeError(
            f"{len(times)} of {clients * len(PAGES)} requests were answered"
        )
    return {"median": round(median(times), 2), "longest": round(max(times), 2)}


def watched(
    port: int, process: subprocess.Popen[bytes], folder: Path, watchers: int
) -> tuple[float, float]:
    """Median seconds until a new line is at a watcher, and the processor time of the
    page per second meanwhile, with a new line each second."""
    arrived: list[float] = []
    written: dict[int, float] = {}
    ready = threading.Barrier(watchers + 1)

    def watch() -> None:
        connection = HTTPConnection("127.0.0.1", port, timeout=WATCH_S * 3)
        cursor = json.loads(
            urlopen(f"http://127.0.0.1:{port}/runs/{folder.name}/news").read()
        )["cursor"]
        connection.request("GET", f"/runs/{folder.name}/live?since={cursor}")
        answer = connection.getresponse()
        ready.wait()
        while not stop.is_set():
            line = answer.readline()
            if not line:
                return
            if line.startswith(b"data: "):
                now = time.perf_counter()
                for row in json.loads(line[6:]).get("rows", []):
                    if row["step"] in written:
                        arrived.append(now - written[row["step"]])

    stop = threading.Event()
    threads = [threading.Thread(target=watch, daemon=True) for _ in range(watchers)]
    for thread in threads:
        thread.start()
    ready.wait()
    before, begun = cpu_seconds(process), time.perf_counter()
    for step in range(100_000, 100_000 + int(WATCH_S)):
        with (folder / "metrics.jsonl").open("a") as file:
            written[step] = time.perf_counter()
            file.write(metric_line(step))
        # at no fixed place between two looks at the file
        time.sleep(0.7 + 0.6 * (step * 0.618 % 1))
    load = (cpu_seconds(process) - before) / (time.perf_counter() - begun)
    stop.set()
    expected = watchers * int(WATCH_S)
    if len(arrived) < expected - watchers:
        raise RuntimeError(f"{len(arrived)} of {expected} lines arrived")
    return round(median(arrived), 3), round(load, 3)


def cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(process: subprocess.Popen[bytes]) -> float:
    """MB of main memory."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return round(int(status.partition("VmRSS:")[2].split()[0]) * 1024 / 1e6, 1)


def static_size() -> float:
    """kB of all files that the page gives to browsers, compressed."""
    import gzip

    files = (ROOT / "extensions" / "tools" / "ui" / "static").rglob("*")
    return round(
        sum(len(gzip.compress(file.read_bytes())) for file in files if file.is_file())
        / 1000,
        1,
    )


def first_paint(port: int) -> Any:
    """Seconds to the first contentful paint of the large run, in headless Chromium; the
    median of five."""
    from tests.html_browser import opened_browser

    script = "return performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"
    times = []
    with opened_browser() as browser:
        for _ in range(5):
            browser.open(f"http://127.0.0.1:{port}/runs/large")
            while (painted := browser.run(script)) is None:
                time.sleep(0.05)
            times.append(painted / 1000)
    return round(median(times), 3)


if __name__ == "__main__":
    main()
