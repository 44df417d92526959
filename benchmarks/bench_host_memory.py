"""Main memory of a job whose blocks wait, with and without the kept model: `python
benchmarks/bench_host_memory.py`.

A job on the CPU with `blocks_to_swap` of all blocks but one runs from its start to its
last file: loading, quantizing, a step, saving. The default model is an eighth of
Qwen-Image-Edit-2509. The peak is that of `RssAnon` in /proc/PID/status: all memory of
the process but pages of files, which the system takes back where it needs them. It is
held against the plan, and against a limit that a second copy of the quantized model
would exceed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks import report  # noqa: E402
from benchmarks.bench_second_start import draw_pictures, write_model  # noqa: E402

POLL_S = 0.005
GB = 10**9


@dataclass(frozen=True)
class Peak:
    """A whole run."""

    measured: int
    """Most bytes of the process, without pages of files."""

    planned: int
    limit: int
    """The plan and half of the quantized model."""


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    report.card(
        "host_memory",
        f"a transformer of {asked.gb:g} GB in {asked.qtype}, all blocks but one wait",
    )
    with TemporaryDirectory(dir=asked.folder) as folder:
        write_model(Path(folder) / "model", asked.gb)
        draw_pictures(Path(folder) / "pictures")
        config = json.loads(
            (Path(folder) / "model/transformer/config.json").read_text("utf-8")
        )
        job = Job(Path(folder), config["num_layers"] - 1, asked.qtype)
        print(f"{'':<16} {'measured':>10} {'plan':>9} {'limit':>9}", flush=True)
        peaks = {}
        for name, kept in (
            ("first start", True),
            ("second start", True),
            ("not kept", False),
        )[: 2 + asked.copied]:
            peak = peaks[name] = job.run(name.split()[0], kept)
            columns = f"{peak.measured / GB:>7.2f} GB {peak.planned / GB:>6.2f} GB {peak.limit / GB:>6.2f} GB"
            print(
                f"{name:<16} {columns}{'  exceeded' if peak.measured > peak.limit else ''}",
                flush=True,
            )
    report.finish(
        "host_memory",
        gb=asked.gb,
        qtype=asked.qtype,
        peaks={name: asdict(one) for name, one in peaks.items()},
    )


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--gb", type=float, default=5.1, help="of the transformer in bf16"
    )
    parser.add_argument("--qtype", default="int4")
    parser.add_argument(
        "--copied", action="store_true", help="also without the kept model"
    )
    parser.add_argument(
        "--folder", help="where to write; default: the temporary folder"
    )
    return parser.parse_args(argv)


class Job:
    """Runs in one training folder."""

    def __init__(self, folder: Path, swapped: int, qtype: str) -> None:
        self.folder, self.swapped, self.qtype = folder, swapped, qtype

    def run(self, name: str, kept: bool) -> Peak:
        """A run from its start to its end."""
        job = self._write(name, kept)
        said = json.loads(self._command("--dry-run", "--json", job))["processes"][0]
        size = said["disk"]["kept_bytes"] if kept else 0
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "run.py"), str(job)],
            cwd=self.folder,
            env=_environment(),
            stdout=(self.folder / f"{name}.out").open("w"),
            stderr=subprocess.STDOUT,
        )
        most = most_anonymous_bytes(process)
        if process.returncode:
            raise SystemExit((self.folder / f"{name}.out").read_text("utf-8"))
        planned = said["memory"]["host_bytes"]
        return Peak(most, planned, planned + size // 2)

    def _command(self, *arguments: object) -> str:
        command = [sys.executable, str(ROOT / "run.py"), *map(str, arguments)]
        done = subprocess.run(
            command, cwd=self.folder, env=_environment(), capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        return done.stdout

    def _write(self, name: str, kept: bool) -> Path:
        model = {
            "name_or_path": str(self.folder / "model"),
            "quantize": True,
            "qtype": self.qtype,
        }
        section: dict[str, Any] = {
            "type": "sd_trainer",
            "training_folder": str(self.folder / "output"),
            "device": "cpu",
            "training_seed": 7,
            "network": {"type": "lora", "linear": 4},
            "save": {"save_every": 0},
            "datasets": [
                {"folder_path": str(self.folder / "pictures"), "resolution": 64}
            ],
            "train": {
                "steps": 1,
                "dtype": "bf16",
                "disable_sampling": True,
                "gradient_checkpointing": "full",
            },
            "model": {**model, "blocks_to_swap": self.swapped, "keep_quantized": kept},
        }
        path = self.folder / f"{name}.json"
        path.write_text(
            json.dumps(
                {"job": "extension", "config": {"name": name, "process": [section]}}
            )
        )
        return path


def most_anonymous_bytes(process: subprocess.Popen[Any]) -> int:
    """Waits for a process to end, and gives the most of `anonymous_bytes` meanwhile,
    looked at every POLL_S."""
    most = 0
    while process.poll() is None:
        most = max(most, anonymous_bytes(process.pid))
        time.sleep(POLL_S)
    return most


def anonymous_bytes(pid: int) -> int:
    """Bytes of a process now that are no pages of files; 0 once it has ended
    (Linux)."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0
    return next(
        (
            1024 * int(line.split()[1])
            for line in status.splitlines()
            if line.startswith("RssAnon")
        ),
        0,
    )


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


if __name__ == "__main__":
    main()
