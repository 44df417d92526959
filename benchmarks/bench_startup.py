"""From the start of the process to the end of the first step: `python
benchmarks/bench_startup.py`.

A tiny job on real photographs is run as a user runs it. Cold: no latents or embeddings
cached yet. Warm: all cached. (Files are in the system's cache in both.) One more run
with `-X importtime` tells which imports cost most.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks import importtime, report  # noqa: E402
from toolkit.models.tiny import write_tiny_model  # noqa: E402

PHOTOS = ROOT / "config" / "examples" / "photos"
POLL_S = 0.005


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    report.card(
        "startup",
        f"2 blocks of hidden 64, photographs at {asked.resolution}x{asked.resolution} area, 1 step",
    )
    print(
        f"fp32, optimizer {asked.optimizer}, 1 thread | {asked.runs} runs each, wall from exec, CPU of the process; "
        "bytecode is compiled"
    )
    with TemporaryDirectory() as folder:
        bench = Bench(Path(folder), asked)
        cold = [bench.start(cached=False) for _ in range(asked.runs)]
        warm = [bench.start(cached=True) for _ in range(asked.runs)]
        found = bench.imports() if asked.imports else None
    print(
        f"{'seconds, medians':<18} {'to first step':>14} {'(min)':>7} {'CPU (min)':>10} {'to exit':>8} {'CPU':>6}"
    )
    for name, runs in (("cold cache", cold), ("warm cache", warm)):
        row = summary(runs)
        print(
            f"{name:<18} {row['first_step_s']:14.2f} {row['first_step_min_s']:7.2f} ",
            end="",
        )
        print(
            f"{row['first_step_cpu_min_s']:10.2f} {row['exit_s']:8.2f} {row['exit_cpu_s']:6.2f}"
        )
    if found:
        print(found.render())
    report.finish(
        "startup",
        **vars(asked) | {"imports": found.to_json() if found else None},
        cold=summary(cold),
        warm=summary(warm),
    )


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=3, help="of each kind")
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--optimizer", default="adamw", help="as in train.optimizer")
    parser.add_argument(
        "--no-imports",
        dest="imports",
        action="store_false",
        help="leave out the run with importtime",
    )
    return parser.parse_args(argv)


@dataclass(frozen=True)
class Start:
    """One run; wall seconds from exec."""

    first_step_s: float
    first_step_cpu_s: float
    """CPU time of the process so far; on a machine with other work it says more than
    the wall time."""

    exit_s: float
    exit_cpu_s: float


def summary(runs: Sequence[Start]) -> dict[str, float]:
    """Medians, and the least times to the first step."""
    return {
        "first_step_s": median(run.first_step_s for run in runs),
        "first_step_min_s": min(run.first_step_s for run in runs),
        "first_step_cpu_min_s": min(run.first_step_cpu_s for run in runs),
        "exit_s": median(run.exit_s for run in runs),
        "exit_cpu_s": median(run.exit_cpu_s for run in runs),
    }


class Bench:
    """Runs the job under a new name each time, so that no run resumes from another."""

    def __init__(self, folder: Path, asked: argparse.Namespace) -> None:
        self.folder = folder
        self.asked = asked
        self.count = 0
        write_tiny_model(folder / "model")

    def start(self, cached: bool) -> Start:
        """cached: share the folder of the last run, whose cache holds everything."""
        job, metrics = self._training_job(cached)
        begin = time.perf_counter()
        process = subprocess.Popen(
            self._command(job),
            cwd=self.folder,
            env=environment(),
            stdout=subprocess.DEVNULL,
        )
        first = None
        while first is None:
            time.sleep(POLL_S)
            if os.wait4(process.pid, os.WNOHANG)[0]:
                raise RuntimeError("the job ended before its first step was seen")
            if metrics.exists() and metrics.stat().st_size:
                first = time.perf_counter() - begin, cpu_seconds(process.pid)
        _, process.returncode, usage = os.wait4(process.pid, 0)
        if process.returncode:
            raise RuntimeError(f"the job ended with status {process.returncode}")
        return Start(
            *first, time.perf_counter() - begin, usage.ru_utime + usage.ru_stime
        )

    def imports(self) -> importtime.Imports:
        """What a run imports from its start to its end, with everything cached."""
        job, _ = self._training_job(cached=True)
        return importtime.parse(self._run(job, "-X", "importtime"))

    def _training_job(self, cached: bool) -> tuple[Path, Path]:
        """The job, and the file that gets a line when its first step is done."""
        self.count += 0 if cached else 1
        name = f"run_{time.monotonic_ns()}"
        training_folder = self.folder / f"output_{self.count}"
        section = {
            "type": "sd_trainer",
            "training_folder": str(training_folder),
            "device": "cpu",
            "training_seed": 7,
            "network": {"type": "lora", "linear": 16},
            "datasets": [
                {"folder_path": str(PHOTOS), "resolution": self.asked.resolution}
            ],
            "train": {
                "steps": 1,
                "optimizer": self.asked.optimizer,
                "dtype": "fp32",
                "batch_size": 1,
            },
            "model": {"name_or_path": str(self.folder / "model")},
        }
        return self._job(name, section), training_folder / name / "metrics.jsonl"

    def _job(self, name: str, section: dict) -> Path:
        path = self.folder / f"{name}.json"
        path.write_text(
            json.dumps(
                {"job": "extension", "config": {"name": name, "process": [section]}}
            )
        )
        return path

    def _command(self, job: Path, *options: str) -> list[str]:
        return [sys.executable, *options, str(ROOT / "run.py"), str(job)]

    def _run(self, job: Path, *options: str) -> str:
        """Runs a job to its end and returns what it wrote to standard error."""
        done = subprocess.run(
            self._command(job, *options),
            cwd=self.folder,
            env=environment(),
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"the job failed:\n{done.stdout}\n{done.stderr[-2000:]}")
        return done.stderr


def cpu_seconds(pid: int) -> float:
    """CPU time of a running process so far (Linux)."""
    fields = (
        Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    )
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


if __name__ == "__main__":
    main()
