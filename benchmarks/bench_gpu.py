"""Training steps of the model at its published size on a GPU: `python
benchmarks/bench_gpu.py --results gpu.jsonl`.

Nothing is downloaded: the weights (20 B) are drawn on the device while the program
loads them (`random_weights.py`). First come the kernels a step is made of, then whole training
steps, each row a job that the program itself runs, in a process of its own, the most
telling first. What is measured is added to the results file at once; started again, the
bench goes on with what is missing there. A row that does not fit into memory says so.
Random weights show speed and memory, never quality.

MFU is what a step needs at least (`flops.py`) as a share of what the fastest product of
bf16 reached here; HFU is what it computes, second times included. 8-bit products are
counted like those of bf16.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from toolkit.system.torch_version import prepare_allocator  # noqa: E402

# as run.py does: rows measure the allocator that users have, which reads this with the
# import
prepare_allocator()

import torch  # noqa: E402

from benchmarks import encoding, gpu_rows, kernel_rates, report  # noqa: E402
from benchmarks.device_timer import device_name  # noqa: E402
from benchmarks.gpu_rows import CACHE, KERNELS, ROWS, Row  # noqa: E402
from benchmarks.random_weights import DRAWN_SIZES  # noqa: E402
from benchmarks.synthetic import DTYPES  # noqa: E402

FINAL = ("measured", "out of memory", "refused")
"""How a row can end so that it is not tried again; a crash, and a row that took too
long, are."""

NAMES = [KERNELS, *ROWS, CACHE]

Results = dict[str, dict[str, Any]]
"""By the row's name; the last line of each counts."""


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    if asked.row:
        print(json.dumps(report.rounded(run_row(asked))), flush=True)
        return
    size, device = DRAWN_SIZES[asked.size], torch.device(asked.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit(
            "refused: there is no CUDA device. The same code runs small with --size XS --device cpu."
        )
    report.card(
        "gpu",
        f"size {asked.size}: {size.layers} blocks of width {size.heads * size.head_dim}",
    )
    print(
        f"{device_name(device)}, {asked.dtype} | LoRA rank {gpu_rows.RANK}, AdamW, batch 1 x {asked.accumulation} | "
        f"{asked.warm_up} steps dropped, {asked.steps} timed; s is the median of a micro-step"
    )
    measure_missing(asked)
    found = read_results(asked)
    if "kernels" in found.get(KERNELS, {}):
        print("\n".join(kernel_rates.lines(found[KERNELS]["kernels"])))
    rows = {
        name: with_shares(found.get(name, {}), peak_of(asked, found))
        for name in asked.rows
        if name in ROWS
    }
    print("\n".join(table(rows, goals=asked.size == "published")))
    if "samples_per_s" in found.get(CACHE, {}):
        print(cache_line(found[CACHE]))
    for name in asked.rows:
        print(
            json.dumps(
                {
                    "bench": "gpu",
                    **report.rounded(
                        rows.get(name) or found.get(name) or not_measured(name)
                    ),
                }
            )
        )
    states = {
        name: found.get(name, not_measured(name))["status"] for name in asked.rows
    }
    report.finish("gpu", **vars(asked), device_name=device_name(device), states=states)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--size", choices=DRAWN_SIZES, default="published")
    add("--device", default="cuda:0", help="cuda:0 or cpu")
    add("--dtype", choices=["bf16", "fp32"], default="bf16")
    add(
        "--rows",
        nargs="+",
        choices=NAMES,
        default=NAMES,
        help="in this order; default: all",
    )
    add(
        "--results",
        default="bench_gpu.jsonl",
        help="file of what is measured so far; others are added to it",
    )
    add(
        "--minutes",
        type=float,
        default=0,
        help="of this call; a row broken off by it comes again. 0: no limit",
    )
    add("--row-minutes", type=float, default=9, help="most that one row may take")
    add("--warm-up", type=int, default=2, help="untimed optimizer steps")
    add("--steps", type=int, default=5, help="timed optimizer steps")
    add("--accumulation", type=int, default=4, help="micro-steps of each")
    add("--calls", type=int, default=20, help="timed calls of each kernel")
    add("--samples", type=int, default=32, help="encoded for the cache")
    add(
        "--peak-tflops",
        type=float,
        help="what MFU and HFU are shares of; default: the kernels' best product of bf16",
    )
    add(
        "--trace",
        metavar="FILE.json.gz",
        help="writes a trace of the timed steps of one row (with --row)",
    )
    add(
        "--backend",
        default="inductor",
        help="of compiled rows; aot_eager compiles nothing, in seconds",
    )
    add(
        "--folder",
        help="of the row's model, images and run; default: one that is removed",
    )
    add(
        "--partial",
        metavar="FILE",
        help="what is known so far is kept there (with --row)",
    )
    add("--row", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


# ------------------------------------------------------------ results


def key_of(asked: argparse.Namespace) -> dict[str, object]:
    """What tells the results of one set of rows from others in the same file."""
    device = device_name(torch.device(asked.device))
    return {
        "size": asked.size,
        "dtype": asked.dtype,
        "device_name": device,
        "accumulation": asked.accumulation,
    }


def read_results(asked: argparse.Namespace) -> Results:
    """What the results file holds of these rows."""
    try:
        lines = Path(asked.results).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    key, found = key_of(asked), [json.loads(line) for line in lines if line.strip()]
    return {one["row"]: one for one in found if key.items() <= one.items()}


def add_result(asked: argparse.Namespace, result: Mapping[str, object]) -> None:
    with Path(asked.results).open("a", encoding="utf-8") as file:
        file.write(json.dumps({**key_of(asked), **report.facts(), **result}) + "\n")


def not_measured(name: str) -> dict[str, Any]:
    return {"row": name, "status": "not measured"}


# ------------------------------------------------------------ rows, each in its own
# process


def measure_missing(asked: argparse.Namespace) -> None:
    """Runs the rows that have no result yet, as long as there is time."""
    until = time.monotonic() + 60 * asked.minutes if asked.minutes else float("inf")
    done = read_results(asked)
    for name in asked.rows:
        if done.get(name, {}).get("status") in FINAL:
            print(f"{name}: measured before")
            continue
        left, most = until - time.monotonic(), 60 * asked.row_minutes
        if left <= 0:
            print(f"{name}: no time left")
            continue
        result = run_child(name, asked, min(left, most))
        if result is None and left < most:
            print(f"{name}: no time left to end it")
            continue
        result = result or {
            "row": name,
            "status": f"took longer than {asked.row_minutes:g} min",
        }
        add_result(asked, result)
        print(
            f"{name}: {result['status']}{': ' + result['reason'] if 'reason' in result else ''}",
            flush=True,
        )


def run_child(
    name: str, asked: argparse.Namespace, seconds: float
) -> dict[str, Any] | None:
    """The row's result, or None when it took longer. What it said goes to the log
    beside the results."""
    ended = run_logged(
        command_of(name, asked), Path(asked.results).with_suffix(".log"), seconds
    )
    return ended and result_of(name, *ended)


def run_logged(
    command: Sequence[str],
    log: Path,
    seconds: float,
    environment: Mapping[str, str] | None = None,
) -> tuple[int, list[str]] | None:
    """The exit status of a command and the lines it said, which go to the log; None
    when it took longer.

    What it compiles is not kept: a compiler that is ended leaves files that are cut
    off, and the next one would load them.
    """
    with (
        log.open("ab") as output,
        TemporaryDirectory(ignore_cleanup_errors=True) as compiled,
    ):
        begin = output.tell()
        caches = {
            "TORCHINDUCTOR_CACHE_DIR": f"{compiled}/inductor",
            "TRITON_CACHE_DIR": f"{compiled}/triton",
        }
        own = {**os.environ, **caches, **(environment or {})}
        streams = {"stdout": output, "stderr": subprocess.STDOUT, "env": own}
        # A session of its own: compiling starts processes, which go with it.
        child = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **streams)
        try:
            status = child.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            end_session(child)
    return status, log.read_bytes()[begin:].decode("utf-8", "replace").splitlines()


def result_of(name: str, status: int, said: Sequence[str]) -> dict[str, Any]:
    """What a child measured, by its last line that says so; or why it failed."""
    if status == 0 and (
        found := next(
            (line for line in reversed(said) if line.startswith('{"row"')), ""
        )
    ):
        return json.loads(found)
    reason = next((line for line in reversed(said) if line.strip()), "it said nothing")
    return {
        "row": name,
        "status": "failed",
        "reason": f"exit status {status}: {reason}",
    }


def command_of(name: str, asked: argparse.Namespace) -> list[str]:
    """What measures one row."""
    given = (
        "size",
        "device",
        "dtype",
        "warm_up",
        "steps",
        "accumulation",
        "calls",
        "samples",
        "backend",
    )
    options = [
        text
        for key in given
        for text in (f"--{key.replace('_', '-')}", str(getattr(asked, key)))
    ]
    return [sys.executable, str(Path(__file__).resolve()), *options, "--row", name]


def end_session(child: subprocess.Popen) -> None:
    """Ends the child, and what it has started and left."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def run_row(asked: argparse.Namespace) -> dict[str, Any]:
    """In the child: measures one row."""
    size, device = DRAWN_SIZES[asked.size], torch.device(asked.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    if asked.row == KERNELS:
        return {
            "row": KERNELS,
            "status": "measured",
            "kernels": kernel_rates.measure(size, device, asked.calls),
        }
    with (
        TemporaryDirectory()
        if not asked.folder
        else nullcontext(asked.folder) as folder
    ):
        if asked.row == CACHE:
            of_cache = (
                8 * size.latent_side,
                asked.size == "published",
                device,
                DTYPES[asked.dtype],
                asked.samples,
            )
            return {
                "row": CACHE,
                "status": "measured",
                **encoding.measure(Path(folder), *of_cache),
            }
        return {
            "row": asked.row,
            **gpu_rows.measure(ROWS[asked.row], size, Path(folder), asked),
        }


# ------------------------------------------------------------ what is reported


def peak_of(asked: argparse.Namespace, found: Results) -> float | None:
    """TFLOP/s that rows are compared with."""
    return asked.peak_tflops or kernel_rates.best_bf16_product(
        found.get(KERNELS, {}).get("kernels", {})
    )


def with_shares(result: dict[str, Any], peak: float | None) -> dict[str, Any]:
    """The result with MFU and HFU in percent, where they can be had."""
    if result.get("status") != "measured" or "model_tflop" not in result:
        return result
    shares = {
        share: 100 * result[work] / result["s"] / peak
        if peak and result[work]
        else None
        for share, work in (("mfu", "model_tflop"), ("hfu", "executed_tflop"))
    }
    return {**result, "peak_tflops": peak, **shares}


def table(rows: Mapping[str, dict[str, Any]], goals: bool = True) -> list[str]:
    """A line for each row; what was not measured says so. goals: show what each is
    meant to reach."""
    width = max(len(ROWS[name].what) for name in rows) if rows else 0
    heads = f"{'s':>7} {'goal':>5} {'MFU %':>6} {'HFU %':>6} {'peak GB':>8} {'goal':>5} {'reserved':>8}"
    lines = [f"{'row':<5} {'':<{width}}  {heads}  checkpointing"]
    for name, result in rows.items():
        row: Row = ROWS[name]
        begin = f"{name:<5} {row.what:<{width}}  "
        if result.get("status") != "measured":
            lines.append(begin + result.get("status", "not measured"))
            continue
        numbers = (
            number(result.get("s"), 7, 3),
            number(row.goal_s if goals else None, 5, 2),
            number(result.get("mfu"), 6, 1),
            number(result.get("hfu"), 6, 1),
            number(result.get("peak_gb"), 8, 1),
            number(row.goal_gb if goals else None, 5, 1),
            number(result.get("reserved_gb"), 8, 1),
        )
        lines.append(
            f"{begin}{' '.join(numbers)}  {result.get('level') or ''}".rstrip()
        )
    return lines


def cache_line(found: Mapping[str, Any]) -> str:
    passes = ", ".join(
        f"{what} {seconds:.2f} s" for what, seconds in found["seconds"].items()
    )
    peak = number(found["peak_gb"], 1, 1)
    return f"cache of {found['samples']} samples: {found['samples_per_s']:.2f} per second ({passes}); peak {peak} GB"


def number(value: float | None, width: int, digits: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:{width}.{digits}f}"


if __name__ == "__main__":
    main()
