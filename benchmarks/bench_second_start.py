"""What a second start reads and how long it takes: `python
benchmarks/bench_second_start.py`.

A model with a transformer of `--gb` GB in bf16, quantized, starts as a user starts it,
twice in one training folder: the first start encodes, quantizes, and keeps the
quantized transformer; the second one reads that. With `--against FOLDER` another
checkout does the same by turns, which quantizes each time.

Before each start the files of the model and of the cache leave the system's cache of
files (`posix_fadvise`), and `read_bytes` of /proc/PID/io counts what comes from the
disk: read or mapped, it counts the same. The rest, Python and its libraries, is in the
cache all the time and counts for neither. Two times are taken: until the network is on
the loaded model (its line in the output), which is where the steps begin, and until the
first step is done. Between them lies a trial of the largest batch and the step itself,
two passes over all weights, which a CPU takes long for. Both are wall time; beside them
stands the CPU time of the process, which other work on the machine changes little.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import diffusers  # noqa: E402
import torch  # noqa: E402
from accelerate import init_empty_weights  # noqa: E402
from PIL import Image  # noqa: E402

from benchmarks import report  # noqa: E402
from benchmarks.bench_startup import cpu_seconds  # noqa: E402
from benchmarks.random_weights import DEVIATION  # noqa: E402
from toolkit.files.safetensors_io import framed  # noqa: E402
from toolkit.files.writing import fsync  # noqa: E402
from toolkit.models.tiny import TinySpec, write_tiny_model  # noqa: E402

HEADS = 48
"""Of 32 channels each: width 1536, 85 million weights in a block."""

GOAL = {"int4": 0.30, "int8": 0.55}
"""Share of the base's bytes that a second start reads at most."""

GOAL_TIME = 0.35
"""Share of the first start's time."""

POLL_S = 0.01
GB = 10**9


@dataclass(frozen=True)
class Start:
    """One start of the job."""

    ready_s: float
    """Seconds from the command until the network is on the model."""

    ready_cpu_s: float
    first_step_s: float
    first_step_cpu_s: float
    read_bytes: int
    """Bytes from the disk until then."""


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    report.card(
        "second_start",
        f"a transformer of {asked.gb:g} GB in {asked.qtype}, files not in the system's cache",
    )
    with TemporaryDirectory(dir=asked.folder) as folder:
        base = write_model(Path(folder) / "model", asked.gb)
        draw_pictures(Path(folder) / "pictures")
        found: dict[str, dict[str, list[Start]]] = {}
        for turn in range(asked.runs):
            for name, checkout in (
                ("here", ROOT),
                *(("against", Path(each)) for each in asked.against),
            ):
                bench = Bench(
                    Path(folder),
                    checkout,
                    f"{name}_{turn}",
                    asked.qtype,
                    asked.only_ready,
                )
                for which in ("first", "second"):
                    found.setdefault(name, {}).setdefault(which, []).append(
                        bench.start()
                    )
                    print(f"{name}, {which}: {found[name][which][-1]}", flush=True)
    rows = {
        name: {which: middle(starts) for which, starts in kinds.items()}
        for name, kinds in found.items()
    }
    print(f"base {base / GB:.2f} GB; {asked.runs} of each, medians")
    print(
        f"{'seconds (CPU)':<17} {'until the steps':>17} {'first step done':>17} {'from the disk':>15}"
    )
    for name, kinds in rows.items():
        for which, one in kinds.items():
            ready = f"{one.ready_s:.1f} ({one.ready_cpu_s:.1f})"
            step = f"{one.first_step_s:.1f} ({one.first_step_cpu_s:.1f})"
            share = f"{one.read_bytes / GB:.2f} GB, {one.read_bytes / base:.3f}"
            print(f"{name + ', ' + which:<17} {ready:>17} {step:>17} {share:>15}")
    shares = shares_of(rows, base)
    for name, share in shares.items():
        print(f"{name}: {share:.3f}")
    print(f"goals: {GOAL.get(asked.qtype, 1)} of the bytes, {GOAL_TIME} of the time")
    figures = {
        name: {which: asdict(one) for which, one in kinds.items()}
        for name, kinds in rows.items()
    }
    report.finish(
        "second_start",
        qtype=asked.qtype,
        base_bytes=base,
        starts=figures,
        shares=shares,
    )


def shares_of(rows: dict[str, dict[str, Start]], base: int) -> dict[str, float]:
    """What the goals are about: of the second start here."""
    here = rows["here"]
    second, first = here["second"], here["first"]
    found = {"bytes read, of the base": second.read_bytes / base}
    others = {"the first start": first}
    others |= {
        f"the other's {which} start": start
        for which, start in rows.get("against", {}).items()
    }
    for name, other in others.items():
        found[f"time until the steps, of {name}"] = second.ready_s / other.ready_s
        found[f"CPU time until the steps, of {name}"] = (
            second.ready_cpu_s / other.ready_cpu_s
        )
        found[f"CPU time to the first step done, of {name}"] = (
            second.first_step_cpu_s / other.first_step_cpu_s
        )
    return found


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--gb", type=float, default=4.0, help="of the transformer in bf16"
    )
    parser.add_argument("--qtype", default="int4")
    parser.add_argument("--runs", type=int, default=1, help="of each pair of starts")
    parser.add_argument(
        "--against", nargs="*", default=[], help="a checkout of another commit"
    )
    parser.add_argument(
        "--only-ready", action="store_true", help="end each start where the steps begin"
    )
    parser.add_argument(
        "--folder", help="where to write; default: the temporary folder"
    )
    return parser.parse_args(argv)


def middle(starts: Sequence[Start]) -> Start:
    """The medians."""
    columns = zip(*map(astuple, starts), strict=True)
    *seconds, read = map(median, columns)
    return Start(*seconds, int(read))


def write_model(folder: Path, gb: float) -> int:
    """A tiny model whose transformer is large, drawn tensor by tensor; the bytes of its
    weights."""
    write_tiny_model(folder, TinySpec(layers=1, heads=HEADS))
    part = folder / "transformer"
    kind, config = (
        diffusers.QwenImageTransformer2DModel,
        json.loads((part / "config.json").read_text("utf-8")),
    )
    blocks = max(1, round(gb * GB / 2 / _weights_of(kind, config)))
    config["num_layers"] = blocks
    (part / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for file in part.glob("*.safetensors*"):
        file.unlink()
    with init_empty_weights():
        shapes = {
            name: tensor.shape
            for name, tensor in kind.from_config(config).state_dict().items()
        }
    header, end = dict[str, object](), 0
    for name, shape in shapes.items():
        header[name] = {
            "dtype": "BF16",
            "shape": list(shape),
            "data_offsets": [end, end + 2 * shape.numel()],
        }
        end += 2 * shape.numel()
    path = part / "diffusion_pytorch_model.safetensors"
    random = torch.Generator().manual_seed(1)
    with path.open("wb") as out:
        out.write(framed(json.dumps(header)))
        for name, shape in shapes.items():
            drawn = torch.empty(shape, dtype=torch.bfloat16).normal_(
                0, DEVIATION, generator=random
            )
            drawn = (
                drawn.add_(1)
                if drawn.dim() == 1 and name.endswith(".weight")
                else drawn
            )
            out.write(memoryview(drawn.view(torch.uint8).numpy()))  # type: ignore[arg-type]  # numpy's own type
    return path.stat().st_size


def _weights_of(kind: type, config: dict) -> int:
    """Weights of one block."""
    with init_empty_weights():
        block = kind.from_config({**config, "num_layers": 1}).transformer_blocks[0]  # type: ignore[attr-defined]
    return sum(parameter.numel() for parameter in block.parameters())


def draw_pictures(folder: Path) -> None:
    folder.mkdir()
    for number in range(2):
        Image.radial_gradient("L").resize((64, 64)).convert("RGB").save(
            folder / f"{number}.png"
        )
        (folder / f"{number}.txt").write_text(f"picture {number}", encoding="utf-8")


class Bench:
    """Starts of one checkout, in its own training folder."""

    def __init__(
        self, folder: Path, checkout: Path, name: str, qtype: str, only_ready: bool
    ) -> None:
        """only_ready: ends a start where the steps begin."""
        self.folder, self.checkout, self.output, self.qtype = (
            folder,
            checkout,
            folder / f"output_{name}",
            qtype,
        )
        self.only_ready = only_ready
        self.count = 0

    def start(self) -> Start:
        """A start under a new name, which is ended once its first step is seen."""
        self.count += 1
        name = f"run_{self.count}"
        job, metrics = self._job(name), self.output / name / "metrics.jsonl"
        forget([self.folder / "model", self.output / "_cache"])
        begin = time.perf_counter()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, str(self.checkout / "run.py"), str(job)]
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        said, ready = list[str](), (0.0, 0.0)
        for line in process.stdout:
            said.append(line)
            if "trainable parameters" in line and line.startswith("lora: "):
                ready = time.perf_counter() - begin, cpu_seconds(process.pid)
                break
        while not self.only_ready and not (metrics.exists() and metrics.stat().st_size):
            if process.poll() is not None:
                raise SystemExit(
                    f"the job ended before its first step:\n{''.join(said)}{process.stdout.read()}"
                )
            time.sleep(POLL_S)
        found = Start(
            *ready,
            time.perf_counter() - begin,
            cpu_seconds(process.pid),
            disk_bytes(process.pid),
        )
        while process.poll() is None and self._is_being_kept():
            time.sleep(POLL_S)
        process.kill()
        process.communicate()
        return found

    def _is_being_kept(self) -> bool:
        """Whether a start still writes the quantized transformer: a thread flushes it
        while the steps begin."""
        return any((self.output / "_cache" / "models").glob(".*.tmp"))

    def _job(self, name: str) -> Path:
        section = {
            "type": "sd_trainer",
            "training_folder": str(self.output),
            "device": "cpu",
            "training_seed": 7,
            "network": {"type": "lora", "linear": 4},
            "datasets": [
                {"folder_path": str(self.folder / "pictures"), "resolution": 64}
            ],
            "train": {
                "steps": 100,
                "dtype": "bf16",
                "batch_size": 1,
                "disable_sampling": True,
            },
            "model": {
                "name_or_path": str(self.folder / "model"),
                "quantize": True,
                "qtype": self.qtype,
            },
        }
        path = self.folder / f"{name}.json"
        path.write_text(
            json.dumps(
                {"job": "extension", "config": {"name": name, "process": [section]}}
            )
        )
        return path


def forget(folders: Sequence[Path]) -> None:
    """Puts what is in the files on the disk, and takes it out of the system's cache of
    files (Linux)."""
    for file in (
        file for folder in folders for file in folder.rglob("*") if file.is_file()
    ):
        fsync(file)
        handle = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def disk_bytes(pid: int) -> int:
    """Bytes that a process has read from the disk so far, mapped ones included
    (Linux)."""
    lines = Path(f"/proc/{pid}/io").read_text(encoding="ascii").splitlines()
    return int(dict(line.split(": ") for line in lines)["read_bytes"])


if __name__ == "__main__":
    main()
