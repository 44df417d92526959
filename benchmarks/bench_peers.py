"""The same small training job in this program, a plain loop, DiffSynth-Studio and
SimpleTuner's transformer.

Each program runs in a separate environment and process, on one CPU thread; they take
turns step by step. The job is a LoRA on all layers of two blocks of Qwen-Image at their
published width, which DiffSynth fixes, with random weights; latents and embeddings are
drawn. Time to the first step counts from the start of the process, including imports;
it is the median of several starts, in turn.

    python benchmarks/bench_peers.py
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks import report  # noqa: E402
from benchmarks.interop.environments import CACHE, ENVIRONMENTS, Environment  # noqa: E402
from benchmarks.synthetic import PUBLISHED, RANK, ModelSize, load_model, write_model  # noqa: E402

SCRIPTS = Path(__file__).parent / "peers"
LR = 1e-4
SIZE = ModelSize(heads=24, layers=2, **(PUBLISHED | {"latent_side": 64}))
"""512 x 512 pixels without a reference; text of 64 tokens."""


@dataclass(frozen=True)
class Program:
    """One of the programs that are compared."""

    version: str
    environment: Environment
    script: str
    words: tuple[str, ...] = ()
    """Behind the folder on its command line."""


PROGRAMS: Mapping[str, Program] = {
    "ours": Program(
        "as it decides itself on a CPU: no checkpointing",
        ENVIRONMENTS["product"],
        "ours.py",
        ("none",),
    ),
    "ours_full": Program(
        "checkpointing full", ENVIRONMENTS["product"], "ours.py", ("full",)
    ),
    "plain": Program(
        "diffusers 0.42.1, peft 0.21.2", ENVIRONMENTS["product"], "diffusers_loop.py"
    ),
    "diffsynth": Program(
        "DiffSynth 2.1.12, its launch_training_task",
        ENVIRONMENTS["diffsynth_training"],
        "diffsynth_loop.py",
    ),
    "simpletuner": Program(
        "SimpleTuner 4.10.1, its transformer",
        ENVIRONMENTS["simpletuner"],
        "diffusers_loop.py",
        ("simpletuner",),
    ),
}


@dataclass
class Running:
    """A process that has taken its first step."""

    process: subprocess.Popen[str]
    first_step: float
    """Seconds from the start of the process to the end of its first step."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def step(self, timed: bool) -> None:
        """One step; the others wait."""
        assert self.process.stdin is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        answer = answer_of(self.process)
        if timed:
            self.wall.append(answer["wall"])
            self.cpu.append(answer["cpu"])

    def end(self) -> dict[str, float]:
        """Ends the process; the bytes of its peak, and those that it held after its
        last step."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        memory = answer_of(self.process)
        self.process.wait()
        return memory


def start(program: Program, folder: Path, cache: Path) -> Running:
    """Starts a program and waits for its first step.

    Raises RuntimeError where it cannot be installed, or ends before the step.
    """
    python = program.environment.python(cache)
    command = [str(python), str(SCRIPTS / program.script), str(folder), *program.words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    began = time.perf_counter()
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, stdin=pipe, stdout=pipe, text=True, env=environment
    )
    answer_of(process)
    return Running(process, time.perf_counter() - began)


def start_all(
    names: Sequence[str], folder: Path, asked: argparse.Namespace
) -> tuple[dict[str, list[float]], dict[str, Running]]:
    """Starts the programs in turn, as often as asked.

    Returns the seconds to the first step of each start, and the processes of the last
    ones, which go on. A program that cannot be started is named and left out.
    """
    seconds: dict[str, list[float]] = {}
    running: dict[str, Running] = {}
    for _ in range(asked.starts):
        for name in names:
            if name in running:
                running.pop(name).end()
            try:
                running[name] = start(PROGRAMS[name], folder, asked.cache)
            except RuntimeError as error:
                print(f"{name} cannot run here: {error}")
                continue
            seconds.setdefault(name, []).append(running[name].first_step)
    return seconds, running


def answer_of(process: subprocess.Popen[str]) -> dict[str, float]:
    """The next JSON line of a process. Raises RuntimeError when it has ended."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(
            f"{process.args} ended with exit code {process.wait()}; its errors are above."
        )
    answer: dict[str, float] = json.loads(line)
    return answer


def write_job(folder: Path) -> None:
    """The model and job.json."""
    import torch

    write_model(folder, SIZE)
    targets = load_model(folder, SIZE, torch.bfloat16).lora_targets()
    job = {"size": asdict(SIZE), "targets": list(targets), "rank": RANK, "lr": LR}
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")


def markdown(figures: Mapping[str, Mapping[str, float]]) -> str:
    """The table of docs/measured.md."""
    lines = [
        "| program | step, CPU seconds (least) | wall (median) | most resident | after the last step | first step |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in figures.items():
        memory = f"{row['peak'] / 1e9:.2f} GB | {row['held'] / 1e9:.2f} GB"
        cells = f"{row['cpu']:.2f} | {row['wall']:.2f} | {memory} | {row['first_step']:.1f} s"
        lines.append(f"| {name}: {PROGRAMS[name].version} | {cells} |")
    return "\n".join(lines)


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS)
    )
    parser.add_argument(
        "--rounds", type=int, default=6, help="timed steps of each program"
    )
    parser.add_argument(
        "--starts", type=int, default=3, help="times that each program is started"
    )
    parser.add_argument(
        "--warm-up", type=int, default=1, help="untimed steps of each, after the first"
    )
    parser.add_argument(
        "--cache", type=Path, default=CACHE, help="folder of the programs' environments"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    width = SIZE.heads * SIZE.head_dim
    sequence = f"{SIZE.tokens} image tokens, {SIZE.text_tokens} text tokens"
    report.card(
        "peers",
        f"LoRA rank {RANK}, hidden {width}, {SIZE.layers} blocks, {sequence}, bf16, 1 thread",
    )
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_job(folder)
        starts, running = start_all(asked.programs, folder, asked)
        for number in range(asked.warm_up + asked.rounds):
            for one in running.values():
                one.step(timed=number >= asked.warm_up)
        figures = {
            name: {
                "cpu": min(one.cpu),
                "wall": median(one.wall),
                "first_step": median(starts[name]),
                **one.end(),
            }
            for name, one in running.items()
        }
    print(markdown(figures))
    report.finish("peers", figures=figures, rounds=asked.rounds)


if __name__ == "__main__":
    main()
