"""What only a GPU can tell, in two calls of at most six and four minutes: which promise
of the program holds here.

`python benchmarks/verify_gpu.py --call A`, then `--call B`. Items run the most telling
first: the default job as a user starts it, memory on smaller GPUs, seconds of a step,
tests, rates. Each is a process with a limit, nothing stops at a failure, and what an
item knows when it is cut off is kept: the results file, and the table beside it, are
written after each. Items of one group run side by side; those that time a step run
alone. A call that is started again goes on with what is missing. SIGTERM ends a call as
its time limit does.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from itertools import groupby, pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks import bench_gpu  # noqa: E402 - first: it sets the allocator before torch is imported

# isort: split
import torch  # noqa: E402
import yaml  # noqa: E402

from benchmarks import cuda_report, drawn_job, gpu_rows, kernel_rates, report  # noqa: E402
from benchmarks.device_timer import device_name  # noqa: E402
from benchmarks.gpu_promises import verdicts  # noqa: E402
from benchmarks.random_weights import DRAWN_SIZES  # noqa: E402

QUICKSTART = ROOT / "config" / "examples" / "quickstart.yaml"

MINUTES = {"A": 6.0, "B": 4.0}
"""Of each call."""

MARGIN_S = 5.0
"""Kept free at the end of a call."""

SLOW = 10
"""Factor on the minutes of an item where there is no GPU."""

LEAST_S = 15.0
"""An item is not begun with less time."""

FINAL = ("measured", "out of memory", "refused")
"""How an item can end so that it is not tried again."""


@dataclass(frozen=True)
class Item:
    """One thing to be found out, in a process."""

    call: str
    minutes: float
    """The most it may take."""

    what: str
    row: str = ""
    """Of `bench_gpu`; empty: the part of this file of that name."""

    part: str = ""
    group: str = ""
    """Items of one group that follow each other run side by side; empty: alone."""

    options: tuple[str, ...] = ()


def _row(call: str, minutes: float, name: str) -> Item:
    return Item(call, minutes, gpu_rows.ROWS[name].what, row=name)


def _account(name: str) -> Item:
    """A row for a smaller GPU with the account of its memory, without a limit of it."""
    return Item(
        "A",
        2.5,
        gpu_rows.ROWS[name].what,
        row=name,
        group="memory",
        options=("--account", "--no-cap"),
    )


ITEMS = {
    "first start": Item(
        "A",
        2.5,
        "the default job as a user starts it, two sizes, five caption lengths",
        part="start",
    ),
    "second start": Item(
        "A", 1.5, "the same job again, with the compiler's caches", part="start"
    ),
    "24 GB": _account("24 GB"),
    "16 GB": _account("9"),
    "12 GB": _account("10"),
    "quickstart": Item(
        "A", 2.5, "config/examples/quickstart.yaml", part="quickstart", group="memory"
    ),
    "plain loop": _row("A", 1.5, "0n"),
    "default": _row("A", 2, "default"),
    "no reference": _row("A", 2, "no reference"),
    "int4": _row("A", 2, "9"),
    "eager": _row("B", 1.5, "1"),
    "three references": _row("B", 2, "default, 3 references"),
    "2.1": _row("B", 2, "2.1"),
    "tests": Item(
        "B", 2, "tests marked cuda, without whole jobs", part="tests", group="tests"
    ),
    "whole jobs": Item(
        "B", 2.5, "whole jobs of tests/faults/test_cuda.py", part="tests", group="tests"
    ),
    "rates": Item("B", 1, "products and attention", part="rates"),
}
"""By name, in order."""


class CutOff(BaseException):
    """SIGTERM or SIGINT: what is known is written, then it ends."""


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    if asked.part:
        print(
            json.dumps(
                {
                    "row": asked.part,
                    **report.rounded(PARTS[ITEMS[asked.part].part](asked)),
                }
            ),
            flush=True,
        )
        return
    if asked.device != "cpu" and not torch.cuda.is_available():
        sys.exit(
            "refused: there is no CUDA device. The same code runs small with --size XS --device cpu."
        )
    found = read_results(asked)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, cut_off)
    ended = "at the end"
    try:
        run_groups(items_of(asked, found), found, asked)
    except CutOff as signal_name:
        ended = f"cut off by {signal_name}"
    print("\n".join(whole_report(found, asked, ended)), flush=True)
    sys.exit(1 if any(one["status"] not in FINAL for one in found.values()) else 0)


def cut_off(number: int, _: object) -> None:
    # once is enough, and what is known has to be written
    signal.signal(number, signal.SIG_IGN)
    raise CutOff(signal.Signals(number).name)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add(
        "--call",
        choices=MINUTES,
        default="A",
        help="which items: A 6 minutes, B 4 and what A has left",
    )
    add("--items", nargs="+", choices=ITEMS, help="these instead of a call's")
    add("--minutes", type=float, help="of this call; what is left comes with the next")
    add(
        "--results",
        default="verify_gpu.json",
        help="file of what is known; beside it a table and a folder of logs",
    )
    add("--size", choices=DRAWN_SIZES, default="published")
    add("--device", default="cuda:0", help="cuda:0 or cpu")
    add(
        "--steps",
        type=int,
        default=2,
        help="timed optimizer steps of each row, after 1 that is not, of 2 micro-steps",
    )
    # for the tests: these fail
    add("--fail", nargs="+", choices=ITEMS, default=[], help=argparse.SUPPRESS)
    add("--part", choices=ITEMS, help=argparse.SUPPRESS)
    add("--partial", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def items_of(asked: argparse.Namespace, found: Mapping[str, Any]) -> list[str]:
    """The items to be run. Call B begins with what call A has left, where the results
    file knows of a call A."""
    after_a = asked.call == "B" and any(ITEMS[name].call == "A" for name in found)
    left = [
        name
        for name, item in ITEMS.items()
        if after_a and item.call == "A" and name not in found
    ]
    own = [name for name, item in ITEMS.items() if item.call == asked.call]
    return [
        name
        for name in asked.items or left + own
        if found.get(name, {}).get("status") not in FINAL
    ]


# ------------------------------------------------------------ results


def read_results(asked: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What the results file holds for this size and device, by item."""
    path = Path(asked.results)
    document = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if document and document["of"] != of_results(asked):
        sys.exit(f"refused: {path} is of {document['of']}. Give another --results.")
    return document.get("items", {})


def of_results(asked: argparse.Namespace) -> dict[str, str]:
    return {"size": asked.size, "device": device_name(torch.device(asked.device))}


head = cache(cuda_report.head)
"""Machine, versions and device; the table is written after each item."""


def write_results(found: Mapping[str, Any], asked: argparse.Namespace) -> None:
    """The results, and the table with the verdicts: whatever comes next, they are
    there."""
    path = Path(asked.results)
    document = {"of": of_results(asked), "head": head(), "items": found}
    gpu_rows.write_whole(path, document)
    path.with_suffix(".md").write_text(
        "\n".join(whole_report(found, asked)) + "\n", encoding="utf-8"
    )


# ------------------------------------------------------------ items, each in its own
# process


def run_groups(
    names: Sequence[str], found: dict[str, dict[str, Any]], asked: argparse.Namespace
) -> None:
    """Runs the items while there is time; those of one group side by side."""
    until = time.monotonic() + 60 * (asked.minutes or MINUTES[asked.call]) - MARGIN_S
    with TemporaryDirectory(ignore_cleanup_errors=True) as work:
        groups = groupby(
            enumerate(names), key=lambda pair: ITEMS[pair[1]].group or pair[0]
        )
        for _, pairs in groups:
            together = [name for _, name in pairs]
            if until - time.monotonic() < LEAST_S:
                print(f"{', '.join(together)}: no time left", flush=True)
                continue
            run_together(together, found, asked, Path(work), until)


def run_together(
    names: Sequence[str],
    found: dict[str, dict[str, Any]],
    asked: argparse.Namespace,
    work: Path,
    until: float,
) -> None:
    """Runs these items side by side; the result of each is written as it ends. until:
    of `time.monotonic`."""
    with ExitStack() as stack:
        running = {
            name: stack.enter_context(Running(name, asked, work, until))
            for name in names
        }
        try:
            while running:
                for name in [
                    name for name, child in running.items() if child.is_over()
                ]:
                    keep(name, running.pop(name).result(), found, asked)
                time.sleep(0.05)
        except CutOff:
            for name, child in running.items():
                keep(name, child.as_cut_off("the call was cut off"), found, asked)
            raise


def keep(
    name: str,
    result: dict[str, Any],
    found: dict[str, dict[str, Any]],
    asked: argparse.Namespace,
) -> None:
    found[name] = {**result, "what": ITEMS[name].what}
    write_results(found, asked)
    print(f"{name}: {result['status']} {result.get('reason', '')}".rstrip(), flush=True)


class Running:
    """The process of an item, in a session: compiling starts processes, which end with
    it."""

    def __init__(
        self, name: str, asked: argparse.Namespace, work: Path, until: float
    ) -> None:
        self.name = name
        self._minutes = ITEMS[name].minutes * (SLOW if asked.device == "cpu" else 1)
        self._until = min(until, time.monotonic() + 60 * self._minutes)
        self._partial = work / f"{name}.partial.json"
        self._log = log_of(name, asked)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._log.write_bytes(b"")
        self._caches = work / "caches"
        environment = {**os.environ, **caches(self._caches)}
        if name in asked.fail:
            environment[gpu_rows.FAIL] = "1"
        with self._log.open("ab") as output:
            streams: dict[str, Any] = {
                "stdout": output,
                "stderr": subprocess.STDOUT,
                "env": environment,
            }
            command = command_of(name, ITEMS[name], asked, self._partial)
            self._child = subprocess.Popen(
                command, cwd=ROOT, start_new_session=True, **streams
            )

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        bench_gpu.end_session(self._child)

    def is_over(self) -> bool:
        """Whether it has ended, or its time has."""
        return self._child.poll() is not None or time.monotonic() > self._until

    def result(self) -> dict[str, Any]:
        """What it measured, or what it knew when its time was over."""
        if self._child.poll() is None:
            bench_gpu.end_session(self._child)
            # A compiler that is ended leaves files that are cut off, so none is used
            # again.
            shutil.rmtree(self._caches, ignore_errors=True)
            return self.as_cut_off(
                f"took longer than {self._minutes:g} min, or the call had no more time"
            )
        said = self._log.read_bytes().decode("utf-8", "replace").splitlines()
        result = {
            **bench_gpu.result_of(self.name, self._child.returncode, said),
            "account": account_in(said),
        }
        known = self._known() if result["status"] == "failed" else {}
        return {
            **known,
            **{
                key: value for key, value in result.items() if value or key not in known
            },
        }

    def as_cut_off(self, reason: str) -> dict[str, Any]:
        """What it has kept so far."""
        return {**self._known(), "status": "cut off", "reason": reason}

    def _known(self) -> dict[str, Any]:
        with suppress(FileNotFoundError):
            return dict(json.loads(self._partial.read_text(encoding="utf-8")))
        return {}


def caches(folder: Path) -> dict[str, str]:
    """Variables of the environment for what is compiled; all items of a call share it,
    as the runs of a user do."""
    return {
        "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor",
        "TRITON_CACHE_DIR": f"{folder}/triton",
    }


def log_of(name: str, asked: argparse.Namespace) -> Path:
    return Path(asked.results).with_suffix(".logs") / f"{name.replace(' ', '_')}.log"


def account_in(said: Sequence[str]) -> list[str]:
    """The last account of memory that a process has printed."""
    begins = [
        index for index, line in enumerate(said) if line.startswith("memory account: ")
    ]
    if not begins:
        return []
    rest = said[begins[-1] + 1 :]
    return [
        said[begins[-1]],
        *rest[
            : next(
                (i for i, line in enumerate(rest) if not line.startswith("  ")),
                len(rest),
            )
        ],
    ]


def command_of(
    name: str, item: Item, asked: argparse.Namespace, partial: Path
) -> list[str]:
    """What runs an item; what it knows before it ends goes to `partial`."""
    if item.part:
        given = (
            "--part",
            name,
            "--size",
            asked.size,
            "--device",
            asked.device,
            "--results",
            asked.results,
        )
        return [
            sys.executable,
            str(Path(__file__).resolve()),
            *given,
            "--partial",
            str(partial),
        ]
    given = (
        "--size",
        asked.size,
        "--device",
        asked.device,
        "--warm-up",
        "1",
        "--steps",
        str(asked.steps),
    )
    # A CPU takes minutes to compile for itself, and tells nothing of a GPU.
    backend = ("--backend", "aot_eager") if asked.device == "cpu" else ()
    row = bench_gpu.arguments([*given, *backend, "--accumulation", "2"])
    return [
        *bench_gpu.command_of(item.row, row),
        "--partial",
        str(partial),
        *item.options,
    ]


# ------------------------------------------------------------ parts


def start(asked: argparse.Namespace) -> dict[str, Any]:
    """The default job of a character in a process, from its begin to the third step.
    The second start finds the model folder, the encoded images and what was
    compiled."""
    folder = Path(asked.partial).parent / "default_job"
    marks = folder / "marks.json"
    if asked.part == "first start":
        shutil.rmtree(folder, ignore_errors=True)
        drawn_job.write_job(folder, DRAWN_SIZES[asked.size], asked.device)
    elif not marks.exists():
        sys.exit(
            "a second start needs a first one in the same call that came to its first step"
        )
    # else it would be resumed
    shutil.rmtree(folder / "output" / "character", ignore_errors=True)
    marks.unlink(missing_ok=True)
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "drawn_job.py"),
        str(folder / "job.json"),
    ]
    options = ("--marks", str(marks), "--begun", str(time.time()))
    with subprocess.Popen([*command, *options], cwd=folder) as child:
        while child.poll() is None:
            time.sleep(0.1)
            if marks.exists():
                gpu_rows.write_whole(Path(asked.partial), start_result(marks))
    if child.returncode:
        sys.exit(child.returncode)  # why is the last line of what the job has said
    return {**start_result(marks), "status": "measured"}


def start_result(marks: Path) -> dict[str, Any]:
    """The marks of a job. first_step_s: after the imports, as of a row."""
    found = json.loads(marks.read_text(encoding="utf-8"))
    ends, imported = found["steps_s"], found["imported_s"]
    each = [end - begin for begin, end in pairwise(ends)]
    known = {"steps_s": each, "imported_s": imported, "peak_gb": found.get("peak_gb")}
    if not ends:
        return known
    line = f"first step {ends[0] - imported:.1f} s after the imports, which took {imported:.1f}"
    line += "".join(f", then {seconds:.2f} s" for seconds in each)
    return {
        **known,
        "first_step_s": ends[0] - imported,
        "process_s": ends[0],
        "line": line,
    }


def quickstart(asked: argparse.Namespace) -> dict[str, Any]:
    """The example of the README on the device, as a user starts it; two steps of it on
    a CPU."""
    gpu_rows.fail_if_asked()
    document = yaml.safe_load(QUICKSTART.read_text(encoding="utf-8"))
    *_, trainer = document["config"]["process"]
    trainer |= {
        "device": asked.device,
        "model": trainer["model"]
        | {"name_or_path": str(QUICKSTART.parent / "tiny_mascots")},
    }
    if asked.device == "cpu":
        trainer["train"]["steps"] = 2
        trainer.pop("sample")
    with TemporaryDirectory() as folder:
        job = Path(folder) / "job.json"
        job.write_text(json.dumps(document), encoding="utf-8")
        begin = time.perf_counter()
        ended = subprocess.run(
            [sys.executable, str(ROOT / "run.py"), str(job)],
            cwd=folder,
            capture_output=True,
            text=True,
        )
        seconds = time.perf_counter() - begin
        print(ended.stdout[-4000:], ended.stderr[-4000:], sep="\n")
        if ended.returncode or f"device {asked.device}" not in ended.stdout:
            last = (ended.stderr.strip() or ended.stdout.strip()).splitlines()[-1:]
            return {
                "status": "failed",
                "reason": f"exit code {ended.returncode}: {' '.join(last)}",
            }
        lines = (
            (Path(folder) / "output/quickstart/metrics.jsonl")
            .read_text(encoding="utf-8")
            .splitlines()
        )
    losses = [json.loads(line)["loss"] for line in lines]
    warned = sum("Warning: " in line for line in ended.stderr.splitlines())
    line = f"{len(losses)} steps in {seconds:.0f} s, loss {losses[0]:.3f} to {losses[-1]:.3f}, {warned} warnings"
    return {"status": "measured", "line": line, "seconds": seconds, "warnings": warned}


def tests(asked: argparse.Namespace) -> dict[str, Any]:
    """`pytest -m cuda` on the files of the item; its report, which is written after
    each test, stays with the logs."""
    gpu_rows.fail_if_asked()
    jobs = "tests/faults/test_cuda.py"
    path = log_of(asked.part, asked).resolve().with_suffix(".json")
    chosen = (jobs,) if asked.part == "whole jobs" else ("tests", f"--ignore={jobs}")
    path.unlink(missing_ok=True)
    minutes = ITEMS[asked.part].minutes - 0.2
    options = (
        "-q",
        "-m",
        "cuda",
        f"--cuda-report={path}",
        f"--cuda-minutes={minutes:.1f}",
    )
    with subprocess.Popen(
        [sys.executable, "-m", "pytest", *options, *chosen], cwd=ROOT
    ) as child:
        while child.poll() is None:
            time.sleep(0.5)
            if path.exists():
                gpu_rows.write_whole(Path(asked.partial), tests_result(path))
    if not path.exists():
        sys.exit(child.returncode or 1)
    found, failed = (
        tests_result(path),
        {"status": "failed", "reason": f"exit code {child.returncode} of pytest"},
    )
    return {
        **found,
        **(failed if child.returncode or found["wrong"] else {"status": "measured"}),
    }


def tests_result(path: Path) -> dict[str, Any]:
    document = json.loads(path.read_text(encoding="utf-8"))
    wrong = {
        one["name"]: one.get("message", "")[:300]
        for one in document["tests"]
        if one["outcome"] in ("failed", "error")
    }
    late = sum(
        one.get("message", "").startswith("no time left") for one in document["tests"]
    )
    line = ", ".join(
        f"{count} {outcome}" for outcome, count in document["outcomes"].items()
    )
    line += f", {late} of them not reached" if late else ""
    return {"line": line, "outcomes": document["outcomes"], "wrong": wrong}


def rates(asked: argparse.Namespace) -> dict[str, Any]:
    """Products and attention, and what the first call with each new number of tokens
    costs beside the next one."""
    gpu_rows.fail_if_asked()
    size, device = DRAWN_SIZES[asked.size], torch.device(asked.device)
    known: dict[str, Any] = {
        "kernels": kernel_rates.measure(
            size, device, calls=10 if device.type == "cuda" else 1
        )
    }
    gpu_rows.write_whole(Path(asked.partial), known)
    known["lengths"] = {
        name: kernel_rates.of_text_lengths(size, device, name, 6)
        for name in ("cudnn", "flash")
    }
    return {**known, "status": "measured"}


PARTS = {part.__name__: part for part in (start, quickstart, tests, rates)}


# ------------------------------------------------------------ the table


def whole_report(
    found: Mapping[str, dict[str, Any]], asked: argparse.Namespace, ended: str = ""
) -> Iterator[str]:
    """The table, the verdicts, and who holds the memory. ended: how the call did."""
    yield from table(found, asked)
    yield ""
    yield from verdicts(found, ended)
    for name, lines in ((name, one.get("account")) for name, one in found.items()):
        if lines:
            yield from ("", name, *(f"    {line}" for line in lines))


def table(
    found: Mapping[str, dict[str, Any]], asked: argparse.Namespace
) -> Iterator[str]:
    """A table in Markdown for benchmarks/README.md, with a line for each item."""
    of = head()
    versions = f"torch {of['torch']}, driver {of['driver']}, commit {of['commit']}, {of['date']}"
    yield f"{device_name(torch.device(asked.device))}, {versions}"
    yield ""
    yield "| item | what | seconds | of the plain loop | peak of tensors | planned | first step |"
    yield "|---|---|---|---|---|---|---|"
    plain = found.get("plain loop", {}).get("s")
    for name in (name for name in ITEMS if name in found):
        one = found[name]
        share = one["s"] / plain if plain and one.get("s") and ITEMS[name].row else None
        numbers = [
            (one.get("s"), 3, ""),
            (share, 2, ""),
            (one.get("training_gb"), 2, " GB"),
        ]
        numbers += [
            (one.get("planned_training_gb"), 2, " GB"),
            (one.get("first_step_s"), 1, " s"),
        ]
        cells = [
            f"{value:.{digits}f}{unit}" if value is not None else ""
            for value, digits, unit in numbers
        ]
        yield f"| {name} | {one['what']}{said_of(one)} | {' | '.join(cells)} |"


def said_of(result: Mapping[str, Any]) -> str:
    """What the columns do not say of an item."""
    if result["status"] != "measured":
        return f"; **{result['status']}**: {result.get('reason', '')}".rstrip(": ")
    if "kernels" in result:
        peak = kernel_rates.best_bf16_product(result["kernels"])
        said = f": bf16 {bench_gpu.number(peak, 1, 0)} TFLOP/s" + "".join(
            attention_rates(result["kernels"])
        )
        return said + "".join(new_lengths(result["lengths"]))
    return f": {result['line']}" if "line" in result else f", {result['level']}"


def attention_rates(kernels: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, one in kernels.items():
        if (
            name.startswith("attention")
            and name.endswith("forward and backward")
            and "tflops" in one
        ):
            yield f"; {name.removesuffix(', forward and backward')} {one['tflops']:.0f}"


def new_lengths(lengths: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, one in lengths.items():
        if "first_ms" in one:
            yield f"; a new length by {name} {median(one['first_ms']):.0f} ms, then {median(one['next_ms']):.0f}"


if __name__ == "__main__":
    main()
