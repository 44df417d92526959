"""What only a GPU can tell, in two calls of at most 6:30 and 6:00 minutes.

`python benchmarks/verify_gpu.py --call 1`, then `--call 2`. Each item runs in its own
process with its own time limit. A failure does not stop the other items, and an item
that is cut off keeps its results so far. Each item prints a JSON line and a line for
people, which shows the target beside the figure. The results file is written after each item; a call that is
started again goes on with what is missing there.

Items of one group run side by side; those that time a step run alone. All they write is
in one temporary folder, which this process removes, also after SIGTERM.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from toolkit.system.torch_version import prepare_allocator  # noqa: E402

# as run.py does: rows measure the allocator that users have, which reads this with the
# import
prepare_allocator()

import torch  # noqa: E402

from benchmarks import cuda_report, gpu_parts, gpu_rows, report  # noqa: E402
from benchmarks.gpu_promises import line  # noqa: E402
from benchmarks.random_weights import DRAWN_SIZES  # noqa: E402

SECONDS = {1: 390.0, 2: 360.0}
"""Of each call."""

SLOW = 10
"""Factor on all limits where there is no GPU."""

LEAST_S = 15.0
"""An item is not begun with less time."""

FINAL = ("measured", "out of memory", "refused")
"""How an item can end so that it is not tried again; a crash, and an item that took too
long, are."""

Part = Callable[[argparse.Namespace, Path], dict[str, Any]]


@dataclass(frozen=True)
class Item:
    """One thing to be found out, in a process."""

    call: int
    seconds: float
    """The most it may take."""

    part: Part | None = None
    """None: a row of `gpu_rows`."""

    row: str = ""
    """Its name where that is not the item's."""

    group: str = ""
    """Items of one group that follow each other run side by side; empty: alone."""

    folder: str = ""
    """That it shares with others; empty: its own, which is removed when it ends."""

    options: Mapping[str, int] = field(default_factory=dict)
    """Fields of `gpu_rows.Asked`."""

    traced: bool = False
    """A trace is written beside the logs."""


ITEMS = {
    "2.1": Item(1, 60),
    "default": Item(1, 60),
    "plain loop": Item(1, 25),
    **{
        name: Item(1, 100, group="small")
        for name in ("2.1, 4 GB", "6 GB", "12 GB", "int8, 24 GB")
    },
    "vae": Item(1, 25, gpu_parts.vae),
    "products": Item(1, 30, gpu_parts.products),
    "tests": Item(1, 75, gpu_parts.tests),
    "first start": Item(2, 50, row="kept", folder="kept"),
    "second start": Item(2, 30, row="kept", folder="kept"),
    "offload_attention": Item(2, 30, gpu_parts.offload_attention),
    "encoder": Item(2, 20, gpu_parts.encoder),
    "samples": Item(2, 25, gpu_parts.samples),
    "samples 2.1": Item(2, 25, gpu_parts.samples_21),
    "no reference": Item(2, 50),
    "int4": Item(2, 40),
    "eager": Item(2, 30),
    "trace": Item(
        2, 40, row="default", options={"steps": 1, "accumulation": 1}, traced=True
    ),
}
"""By name, in order."""


class CutOff(BaseException):
    """SIGTERM or SIGINT: what is known is written, then it ends."""


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    method, head = about()
    if asked.device != "cpu" and not head["gpu"]:
        sys.exit(
            "refused: there is no CUDA device. The same code runs small with --size XS --device cpu."
        )
    call = Call(asked, method, head)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, call.cut_off)
    try:
        call.run()
    except CutOff:
        print(f"cut off by {call.cut_off_by}")
    # Printed again, because some figures are compared with those of a later item.
    print("\n".join(line(name, call.found) for name in call.found), flush=True)
    states = {one["status"] for one in call.found.values()}
    sys.exit(0 if states <= {*FINAL} else 1)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--call", type=int, choices=SECONDS, default=1, help="which items")
    add("--items", nargs="+", choices=ITEMS, help="these instead of a call's")
    add(
        "--results",
        default="verify_gpu.json",
        help="results file; the logs and the trace are in a folder next to it",
    )
    add("--size", choices=DRAWN_SIZES, default="published")
    add("--device", default="cuda:0", help="cuda:0 or cpu")
    return parser.parse_args(argv)


def about() -> tuple[str, dict[str, Any]]:
    """How processes are started, and machine, versions and device. A fork has the
    imports already, but none may use CUDA where an import has asked for its devices."""
    for method in ("fork", "spawn"):
        with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as pool:
            if head := pool.submit(head_here).result():
                return method, head
    raise RuntimeError("no process can use CUDA")


def head_here() -> dict[str, Any]:
    """Empty in a process that may not use CUDA."""
    return {} if torch.cuda._is_in_bad_fork() else cuda_report.head()


class Call:
    """The items of a call, their time and their results."""

    def __init__(
        self, asked: argparse.Namespace, method: str, head: dict[str, Any]
    ) -> None:
        self.asked = asked
        self.cut_off_by = ""
        self.slow = SLOW if asked.device == "cpu" else 1
        self.until = time.monotonic() + SECONDS[asked.call] * self.slow
        self.context: Any = multiprocessing.get_context(method)
        of = {"size": asked.size, "device": head["gpu"] or "cpu"}
        self._document: dict[str, Any] = {"of": of, "head": head, "items": {}}
        path = Path(asked.results)
        if path.exists():
            known = json.loads(path.read_text(encoding="utf-8"))
            if known["of"] != of:
                sys.exit(
                    f"refused: {path} is of {known['of']}. Give another --results."
                )
            self._document["items"] = known["items"]
        self.found: dict[str, dict[str, Any]] = self._document["items"]

    def cut_off(self, number: int, _: object) -> None:
        # once is enough, and what is known has to be written; an error would be dropped
        # where it comes while a process is forked
        signal.signal(number, signal.SIG_IGN)
        self.cut_off_by = signal.Signals(number).name

    def run(self) -> None:
        """Runs the items while there is time. Items of one group run side by side."""
        own = [name for name, item in ITEMS.items() if item.call == self.asked.call]
        names = self.asked.items or [
            name for name in own if self.found.get(name, {}).get("status") not in FINAL
        ]
        groups = groupby(
            enumerate(names), key=lambda pair: ITEMS[pair[1]].group or pair[0]
        )
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work:
            for _, pairs in groups:
                together = [name for _, name in pairs]
                if self.until - time.monotonic() < LEAST_S:
                    print(f"{', '.join(together)}: no time left", flush=True)
                else:
                    self._together(together, Path(work))

    def _together(self, names: Sequence[str], work: Path) -> None:
        with ExitStack() as stack:
            running = [stack.enter_context(Running(name, self, work)) for name in names]
            try:
                while running:
                    if self.cut_off_by:
                        raise CutOff
                    for child in [one for one in running if one.is_over()]:
                        running.remove(child)
                        self._keep(child.name, child.result())
                    time.sleep(0.05)
            except CutOff:
                for child in running:
                    self._keep(child.name, child.as_cut_off("the call was cut off"))
                raise

    def _keep(self, name: str, result: dict[str, Any]) -> None:
        """Writes the results: whatever comes next, they are there."""
        self.found[name] = result
        gpu_rows.write_whole(Path(self.asked.results), self._document)
        print(json.dumps({"item": name, **report.rounded(result)}))  # type: ignore[dict-item]
        print(line(name, self.found), flush=True)


class Running:
    """The process of an item, in a session: compiling starts processes, which end with
    it."""

    def __init__(self, name: str, call: Call, work: Path) -> None:
        self.name = name
        item = ITEMS[name]
        self._seconds = item.seconds * call.slow
        self._until = min(call.until, time.monotonic() + self._seconds)
        self._partial = work / f"{name}.partial.json"
        self._log = log_of(name, call.asked)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._log.write_bytes(b"")
        self._folder = work / (item.folder or name)
        self._folder.mkdir(exist_ok=True)
        given = {
            **vars(call.asked),
            "partial": str(self._partial),
            "seconds": self._seconds,
        }
        asked = argparse.Namespace(**given)
        self._child = call.context.Process(
            target=measure, args=(name, asked, self._folder, self._log)
        )
        self._child.start()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        """Ends the process and what it has started, and removes its files. What a
        compiler leaves that is ended is cut off, so it is not shared then."""
        killed = self._child.is_alive()
        with suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.kill()  # it may have no session yet
        self._child.join()
        if killed or not ITEMS[self.name].folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    def is_over(self) -> bool:
        """Whether it has ended, or its time has."""
        return not self._child.is_alive() or time.monotonic() > self._until

    def result(self) -> dict[str, Any]:
        """What it measured, or what it knew when its time was over."""
        if self._child.is_alive():
            self._end()
            return self.as_cut_off(
                f"took longer than {self._seconds:g} s, or the call had no more time"
            )
        said = self._log.read_bytes().decode("utf-8", "replace").splitlines()
        result = result_of(self.name, self._child.exitcode, said)
        return {**(self._known() if result["status"] == "failed" else {}), **result}

    def as_cut_off(self, reason: str) -> dict[str, Any]:
        """What it has kept so far."""
        return {**self._known(), "status": "cut off", "reason": reason}

    def _known(self) -> dict[str, Any]:
        with suppress(FileNotFoundError):
            return dict(json.loads(self._partial.read_text(encoding="utf-8")))
        return {}


def result_of(name: str, status: int | None, said: Sequence[str]) -> dict[str, Any]:
    """What a process measured, by its last line that says so; or why it failed."""
    if status == 0 and (
        found := next(
            (line for line in reversed(said) if line.startswith('{"row"')), ""
        )
    ):
        return dict(json.loads(found))
    last = next((line for line in reversed(said) if line.strip()), "it said nothing")
    reason = f"exit status {status}: {last}"
    return {"row": name, "status": "failed", "reason": reason}


def log_of(name: str, asked: argparse.Namespace) -> Path:
    folder = Path(asked.results).resolve().with_suffix(".logs")
    return folder / f"{name.replace(' ', '_')}.log"


# ------------------------------------------------------------ in the item's process


def measure(name: str, asked: argparse.Namespace, folder: Path, log: Path) -> None:
    """Measures an item. All files go to its folder, all words to its log, the last one
    is its result."""
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    output = log.open("a", encoding="utf-8", buffering=1)
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    sys.stdout = sys.stderr = output
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    tempfile.tempdir = None
    os.environ |= {
        "TMPDIR": str(temporary),
        "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor",
        "TRITON_CACHE_DIR": f"{folder}/triton",
    }
    item = ITEMS[name]
    if item.part:
        if asked.device == "cpu":
            torch.set_num_threads(1)
        result = {"row": name, "status": "measured", **item.part(asked, folder)}
    else:
        result = gpu_rows.measure(row_of(name, asked, folder, log))
    print(json.dumps(report.rounded(result)), flush=True)


def row_of(
    name: str, asked: argparse.Namespace, folder: Path, log: Path
) -> gpu_rows.Asked:
    """How the item's row is measured."""
    item = ITEMS[name]
    return gpu_rows.Asked(
        item.row or name,
        folder,
        asked.size,
        asked.device,
        # A CPU takes minutes to compile for itself, and tells nothing of a GPU.
        backend="eager" if asked.device == "cpu" else "inductor",
        partial=Path(asked.partial),
        trace=log.with_suffix(".json.gz") if item.traced else None,
        **item.options,
    )


if __name__ == "__main__":
    main()
