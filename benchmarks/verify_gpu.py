"""Everything about a GPU that a CPU cannot tell, in three calls of at most nine minutes.

`python benchmarks/verify_gpu.py --call A`, then B and C. A: versions, the allocator, the quickstart, the tests marked
`cuda`, kernels; it stops at the first failure. B: the published model's step against its plan and against plain loops,
and texts of many lengths. C: smaller GPUs, other types of weights, levels of checkpointing, optimizers, encoding, a
trace. Each item is a process with a limit of its own, so that one that hangs costs no other. The results file is
written after each; started again, a call goes on with what is missing there. At the end stands a table for README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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

from benchmarks import cuda_report, gpu_rows, kernel_rates, report  # noqa: E402
from benchmarks.device_timer import device_name  # noqa: E402
from benchmarks.random_weights import DRAWN_SIZES  # noqa: E402
from toolkit.errors import UserError  # noqa: E402
from toolkit.optim.optimizers import build_optimizer, step_if  # noqa: E402
from toolkit.system.device import pinned  # noqa: E402

QUICKSTART = ROOT / "config" / "examples" / "quickstart.yaml"
LORA_LAYERS = 14
"""Linear layers of a block that tokens go through, and modulation."""

TEXT_LENGTHS = 16

MINUTES = {"A": 7.0, "B": 9.0, "C": 9.0}
"""Of each call."""


@dataclass(frozen=True)
class Item:
    """One thing to be found out, in a process."""

    call: str
    minutes: float
    """The most it may take."""

    what: str = ""
    row: str = ""
    """Of `bench_gpu`; empty: the part of this file that has the item's name."""

    options: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


def _row(call: str, minutes: float, name: str, *options: str) -> Item:
    return Item(call, minutes, gpu_rows.ROWS[name].what, name, options)


def _lengths(backend: str, **environment: str) -> Item:
    what = f"attention by {backend}{' with ' + next(iter(environment)) if environment else ''}, texts of many lengths"
    return Item("B", 1.5, what, options=("--backend", backend), environment=environment)


ITEMS = {
    "versions": Item("A", 1.5, "versions, the allocator, pinned memory"),
    "quickstart": Item("A", 3, "config/examples/quickstart.yaml"),
    "tests": Item("A", 5, "tests marked cuda"),
    "kernels": Item("A", 2, "products and attention", gpu_rows.KERNELS),
    "1": _row("B", 2, "1"),
    "2": _row("B", 3, "2"),
    "0": _row("B", 2, "0"),
    "0n": _row("B", 2, "0n"),
    "5": _row("B", 3, "5"),
    "lengths, flash": _lengths("flash"),
    "lengths, cudnn": _lengths("cudnn"),
    "lengths, cudnn, planned once": _lengths("cudnn", TORCH_CUDNN_SDPA_AVOID_RECOMPILE="1"),
    "8": _row("C", 3, "8"),
    "9": _row("C", 3, "9"),
    "10": _row("C", 3, "10"),
    "9e": _row("C", 2, "9e"),
    "u3": _row("C", 2, "u3"),
    **{name: _row("C", 1.5, name) for name in ("512 none", "512 cheap", "512 full")},
    "optimizers": Item("C", 1, "optimizer step of a LoRA on every layer"),
    "encoding": Item("C", 2, "building the cache", gpu_rows.CACHE),
    "trace": _row("C", 2, "1", "--steps", "1"),
}
"""By name, in order."""


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    if asked.part:
        print(json.dumps({"row": asked.part, **PARTS[asked.part.partition(",")[0]](asked)}), flush=True)
        return
    if asked.device != "cpu" and not torch.cuda.is_available():
        sys.exit("refused: there is no CUDA device. The same code runs small with --size XS --device cpu.")
    found = read_results(asked)
    names = asked.items or [name for name, item in ITEMS.items() if item.call in asked.call]
    failed = run_missing(names, found, asked)
    table = list(summary(found, asked))
    Path(asked.results).with_suffix(".md").write_text("\n".join(table) + "\n", encoding="utf-8")
    print("\n".join(table))
    sys.exit(f"{failed}: {found[failed]['status']}: see {Path(asked.results).with_suffix('.log')}" if failed else 0)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--call", nargs="+", choices=MINUTES, default=["A"], help="which items, in minutes: A 7, B 9, C 9")
    add("--items", nargs="+", choices=ITEMS, help="these instead of a call's")
    add("--minutes", type=float, help="of this call; what is left comes with the next")
    add("--results", default="verify_gpu.json", help="file of what is known; a log, a table and a trace lie beside it")
    add("--size", choices=DRAWN_SIZES, default="published")
    add("--device", default="cuda:0", help="cuda:0 or cpu")
    add("--steps", type=int, default=2, help="timed optimizer steps of each row, after 1 that is not, of 2 micro-steps")
    add("--part", help=argparse.SUPPRESS)
    add("--backend", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


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


def write_results(found: Mapping[str, Any], asked: argparse.Namespace) -> None:
    path = Path(asked.results)
    unfinished = path.with_name(f"{path.name}.part")
    document = {"of": of_results(asked), "head": cuda_report.head(), "items": report.rounded(found)}
    unfinished.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)


def run_missing(names: Sequence[str], found: dict[str, dict[str, Any]], asked: argparse.Namespace) -> str | None:
    """Runs the items that have no result yet while there is time; the name of one of call A that failed, the last."""
    until = time.monotonic() + 60 * (asked.minutes or sum(MINUTES[call] for call in asked.call))
    for name in names:
        item = ITEMS[name]
        if found.get(name, {}).get("status") in bench_gpu.FINAL:
            print(f"{name}: known")
            continue
        left = until - time.monotonic()
        if left <= 0:
            print(f"{name}: no time left")
            continue
        result = run_item(name, item, asked, min(left, 60 * item.minutes))
        if result is None and left < 60 * item.minutes:
            print(f"{name}: no time left to end it")
            continue
        found[name] = {"what": item.what, **(result or {"status": f"took longer than {item.minutes:g} min"})}
        write_results(found, asked)
        print(f"{name}: {found[name]['status']} {found[name].get('reason', '')}".rstrip(), flush=True)
        if item.call == "A" and found[name]["status"] != "measured":
            return name
    return None


def run_item(name: str, item: Item, asked: argparse.Namespace, seconds: float) -> dict[str, Any] | None:
    """The item's result; None when it took longer."""
    ended = bench_gpu.run_logged(
        command_of(name, item, asked), Path(asked.results).with_suffix(".log"), seconds, item.environment
    )
    return ended and bench_gpu.result_of(name, *ended)


def command_of(name: str, item: Item, asked: argparse.Namespace) -> list[str]:
    if not item.row:
        given = ("--part", name, "--size", asked.size, "--device", asked.device, "--results", asked.results)
        return [sys.executable, str(Path(__file__).resolve()), *given, *item.options]
    trace = ("--trace", str(Path(asked.results).with_suffix(".trace.json.gz"))) if name == "trace" else ()
    given = ("--size", asked.size, "--device", asked.device, "--warm-up", "1", "--steps", str(asked.steps))
    row = bench_gpu.arguments([*given, "--accumulation", "2", "--samples", "16"])
    return [*bench_gpu.command_of(item.row, row), *item.options, *trace]


# ------------------------------------------------------------ parts


def versions(asked: argparse.Namespace) -> dict[str, Any]:
    """What runs here, and that memory can be had with the program's own settings of the allocator."""
    device, facts = torch.device(asked.device), cuda_report.head()
    taken = [torch.empty(2**28, dtype=torch.uint8, device=device)]
    if device.type == "cuda":
        taken.append(pinned(lambda pin_memory: torch.empty(340_000_000, dtype=torch.uint8, pin_memory=pin_memory)))
    facts |= {"allocator": os.environ.get("PYTORCH_ALLOC_CONF"), "is_pinned": taken[-1].is_pinned()}
    facts |= {"c_compiler": shutil.which(os.environ.get("CC", "gcc"))}
    line = f"torch {facts['torch']}, CUDA {facts['cuda']}, driver {facts['driver']}, {facts['allocator']}"
    return {"status": "measured", "line": line, **facts}


def quickstart(asked: argparse.Namespace) -> dict[str, Any]:
    """The example of the README on the device, as a user starts it; two steps of it on a CPU."""
    document = yaml.safe_load(QUICKSTART.read_text(encoding="utf-8"))
    *_, trainer = document["config"]["process"]
    trainer |= {
        "device": asked.device,
        "model": trainer["model"] | {"name_or_path": str(QUICKSTART.parent / "tiny_mascots")},
    }
    if asked.device == "cpu":
        trainer["train"]["steps"] = 2
        trainer.pop("sample")
    with TemporaryDirectory() as folder:
        job = Path(folder) / "job.json"
        job.write_text(json.dumps(document), encoding="utf-8")
        begin = time.perf_counter()
        ended = subprocess.run(
            [sys.executable, str(ROOT / "run.py"), str(job)], cwd=folder, capture_output=True, text=True
        )
        seconds = time.perf_counter() - begin
        print(ended.stdout[-4000:], ended.stderr[-4000:], sep="\n")
        if ended.returncode or f"device {asked.device}" not in ended.stdout:
            last = (ended.stderr.strip() or ended.stdout.strip()).splitlines()[-1:]
            return {"status": "failed", "reason": f"exit code {ended.returncode}: {' '.join(last)}"}
        lines = (Path(folder) / "output/quickstart/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    line = f"{len(losses)} steps in {seconds:.0f} s, loss {losses[0]:.3f} to {losses[-1]:.3f}"
    return {"status": "measured", "line": line, "seconds": seconds, "losses": losses[:: max(1, len(losses) // 24)]}


def tests(asked: argparse.Namespace) -> dict[str, Any]:
    """`pytest -m cuda`; its report stays beside the results."""
    path = Path(asked.results).resolve().with_suffix(".tests.json")
    options = ("-q", "-m", "cuda", f"--cuda-report={path}", "--cuda-minutes=4")
    status = subprocess.run([sys.executable, "-m", "pytest", *options], cwd=ROOT).returncode
    document = json.loads(path.read_text(encoding="utf-8"))
    outcomes = document["outcomes"]
    wrong = {
        one["name"]: one.get("message", "")[:300] for one in document["tests"] if one["outcome"] in ("failed", "error")
    }
    line = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
    state = {"status": "measured"} if status == 0 and not wrong else {"status": "failed", "reason": line}
    return {**state, "line": line, "outcomes": outcomes, "wrong": wrong}


def lengths(asked: argparse.Namespace) -> dict[str, Any]:
    """What the first call with each new number of tokens costs beside the next one."""
    size, device = DRAWN_SIZES[asked.size], torch.device(asked.device)
    found = kernel_rates.of_text_lengths(size, device, asked.backend, TEXT_LENGTHS)
    if "failed" in found:
        return {"status": "refused", "reason": found["failed"]}
    first, following = median(found["first_ms"]), median(found["next_ms"])
    return {"status": "measured", "line": f"first call {first:.1f} ms, next {following:.1f} ms (medians)", **found}


def optimizers(asked: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of a step of AdamW, of the 8-bit one, and of that as bitsandbytes alone makes it."""
    size, device = DRAWN_SIZES[asked.size], torch.device(asked.device)
    width = size.heads * size.head_dim
    found: dict[str, float] = {}
    for name, optimizer_name, direct in (
        ("adamw", "adamw", False),
        ("adamw8bit", "adamw8bit", False),
        ("adamw8bit, a wait per parameter", "adamw8bit", True),
    ):
        shapes = [(gpu_rows.RANK, width), (width, gpu_rows.RANK)] * (LORA_LAYERS * size.layers)
        parameters = [torch.nn.Parameter(torch.zeros(shape, device=device)) for shape in shapes]
        try:
            optimizer = build_optimizer(optimizer_name, parameters, 1e-4, {})
        except (ImportError, UserError) as error:  # bitsandbytes is not installed
            return {"status": "refused", "reason": str(error)}
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        step_ok, each = torch.tensor(True, device=device), []
        for _ in range(5):
            begin = time.perf_counter()
            optimizer.step() if direct else step_if(optimizer, step_ok)
            step_ok.item()  # waits for the device
            each.append(1e3 * (time.perf_counter() - begin))
        found[name] = median(each[1:])
    return {"status": "measured", "line": ", ".join(f"{name} {ms:.1f} ms" for name, ms in found.items()), "ms": found}


PARTS = {part.__name__: part for part in (versions, quickstart, tests, lengths, optimizers)}


# ------------------------------------------------------------ what is reported


def summary(found: Mapping[str, dict[str, Any]], asked: argparse.Namespace) -> Iterator[str]:
    """A table in Markdown, with a line for each item."""
    kernels = found.get("kernels", {}).get("kernels", {})
    peak = kernel_rates.best_bf16_product(kernels)
    head = cuda_report.head()
    versions = f"torch {head['torch']}, driver {head['driver']}, commit {head['commit']}, {head['date']}"
    yield f"{device_name(torch.device(asked.device))}, {versions}"
    yield ""
    yield "| item | what | found |"
    yield "|---|---|---|"
    for name in ITEMS:
        if name in found:
            yield f"| {name} | {found[name]['what']} | {figures(bench_gpu.with_shares(found[name], peak), peak)} |"


def figures(result: Mapping[str, Any], peak: float | None) -> str:
    """The numbers of an item in one line."""
    if result["status"] != "measured":
        return f"{result['status']}: {result.get('reason', '')}".rstrip(": ")
    if "samples_per_s" in result:
        return bench_gpu.cache_line(result)
    if "kernels" in result:
        return f"bf16 {bench_gpu.number(peak, 1, 0)} TFLOP/s" + "".join(attention_rates(result["kernels"]))
    if "s" not in result:
        return result["line"]
    shares = [f"{share.upper()} {result[share]:.0f} %" for share in ("mfu", "hfu") if result.get(share) is not None]
    peaks = [f"{label} {result[key]:.1f} GB" for key, label in GIGABYTES.items() if result.get(key) is not None]
    return ", ".join([f"{result['s']:.3f} s", *shares, *peaks])


GIGABYTES = {"peak_gb": "peak", "planned_gb": "planned", "reserved_gb": "reserved"}


def attention_rates(kernels: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, one in kernels.items():
        if name.startswith("attention") and name.endswith("forward and backward") and "tflops" in one:
            yield f"; {name.removesuffix(', forward and backward')} {one['tflops']:.0f}"


if __name__ == "__main__":
    main()
