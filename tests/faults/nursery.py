"""Jobs in processes of their own that begin in milliseconds: forked from one process
that has imported everything.

Run as a script this is that process; `Nursery` is how a test talks to it. A child does
what `python run.py` does, with what `faults.py` breaks in it first, and never returns
to the process it was forked from. Jobs on a GPU are not forked: another process runs
them in turn (`Turns`), since each process takes seconds to start a GPU.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from toolkit.files.writing import python_path
from toolkit.registry import is_present

ROOT = Path(__file__).resolve().parents[2]

MODULES = [
    "run",
    "toolkit.config",
    "extensions.sd_trainer.config",
    "toolkit.plan.diffusion",
    "extensions.sd_trainer.process",
    "extensions.from_scratch.vae_process",
    "toolkit.models.tiny",
    "toolkit.models.qwen_image.model",
    "toolkit.networks.lora",
    "peft.tuners.lora",
    "bitsandbytes",
    "torch.distributed.fsdp",
    "tests.faults.faults",
    "tests.faults.small",
]

IN_TURN = "--in-turn"

Fault = Sequence[Any]
"""The name of a function in faults.py, and its arguments."""


class Nursery:
    """The process that forks; one per test session."""

    def __init__(self) -> None:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": python_path(),
        }
        command = [sys.executable, str(Path(__file__).resolve())]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True
        )
        self._turns: Turns | None = None
        self._environment = environment
        assert self._process.stdout.readline() == "ready\n"

    def fork(
        self,
        arguments: Sequence[object],
        cwd: Path,
        name: str,
        faults: Sequence[Fault] = (),
        main: str = "run",
        environment: dict[str, str] | None = None,
    ) -> Child:
        """Starts `main` of a module with these arguments; its output goes to
        `<name>.out` and `<name>.err` in `cwd`.

        environment: all of it; None is that of this process.
        """
        order = {
            "arguments": [*map(str, arguments)],
            "cwd": str(cwd),
            "name": name,
            "faults": list(faults),
        }
        order |= {"main": main, "environment": environment}
        files = cwd / f"{name}.out", cwd / f"{name}.err"
        if any(fault[0] == "real_cuda" for fault in faults):
            if self._turns is None or self._turns.is_over:
                self._turns = Turns(self._environment)
            return Child(self._turns, self._turns.add(order), *files)
        return Child(self, self._ask(order), *files)

    def status_of(self, pid: int) -> int | None:
        """Exit code of a child as `subprocess` counts (a signal is negative), None
        while it runs."""
        return self._ask({"poll": pid})

    def kill(self, pid: int, number: signal.Signals) -> None:
        os.kill(pid, number)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=30)
        if self._turns:
            self._turns.close()

    def _ask(self, order: dict) -> Any:
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


class Turns:
    """A process that runs one job after the other; after each it is as before, as far
    as `as_before` knows."""

    def __init__(self, environment: dict[str, str]) -> None:
        command, pipe = (
            [sys.executable, str(Path(__file__).resolve()), IN_TURN],
            subprocess.PIPE,
        )
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True
        )
        self._orders, self._codes = 0, list[int]()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._process.stdout:
            self._codes.append(json.loads(line))

    @property
    def is_over(self) -> bool:
        """Whether the process is gone, with the jobs that it had."""
        return self._process.poll() is not None

    def add(self, order: dict) -> int:
        """The number of the job that it will run."""
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        self._orders += 1
        return self._orders - 1

    def status_of(self, number: int) -> int | None:
        """Exit code of a job, None while it waits or runs; that of the process where it
        has taken the job with it."""
        over = self.is_over
        if over:
            self._reader.join()
        if number < len(self._codes):
            return self._codes[number]
        return self._process.returncode if over else None

    def kill(self, number: int, how: signal.Signals) -> None:
        """Ends the process, and all jobs with it; the next one is run by another."""
        self._process.send_signal(how)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=30)


@dataclass
class Child:
    """A job in a process of its own, or one of `Turns`."""

    nursery: Nursery | Turns
    pid: int
    out: Path
    err: Path
    code: int | None = None

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        if self.code is None:
            self.code = self.nursery.status_of(self.pid)
        return self.code

    def wait(self, seconds: float = 240) -> int:
        """The exit code. Fails when the job has not ended by then."""
        deadline = time.monotonic() + seconds
        while self.poll() is None:
            assert time.monotonic() < deadline, (
                f"still running after {seconds} s:\n{self.output}"
            )
            time.sleep(0.005)
        return self.code

    def ends_with(self, code: int = 0) -> str:
        """All output, once it has ended with this exit code; no end is a traceback."""
        assert self.wait() == code, self.output
        assert "Traceback" not in self.output, self.output
        return self.output

    def wait_until(self, condition: Callable[[], object], seconds: float = 240) -> None:
        """Waits for something the running job is to bring about."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.poll() is None, f"ended with {self.code}:\n{self.output}"
            assert time.monotonic() < deadline, f"not in {seconds} s:\n{self.output}"
            time.sleep(0.002)

    def send(self, number: signal.Signals) -> None:
        self.nursery.kill(self.pid, number)

    def end(self) -> None:
        """Makes sure that it is gone."""
        if self.poll() is None:
            self.send(signal.SIGKILL)
            self.wait()

    @property
    def output(self) -> str:
        return "".join(self.outputs)

    @property
    def outputs(self) -> tuple[str, str]:
        """Standard output and errors."""
        return self.out.read_text(
            encoding="utf-8"
        ) if self.out.exists() else "", self.errors

    @property
    def errors(self) -> str:
        return self.err.read_text(encoding="utf-8") if self.err.exists() else ""


# ------------------------------------------------------------ the forking process


def serve() -> None:
    with no_gpu_in_sight():
        import_everything()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # only answers go where the client reads
    answers.write("ready\n")
    for line in sys.stdin:
        order = json.loads(line)
        answers.write(
            json.dumps(poll(order["poll"]) if "poll" in order else fork(order)) + "\n"
        )


@contextmanager
def no_gpu_in_sight() -> Iterator[None]:
    """What is imported would use a GPU that it sees, and no forked process could use it
    afterwards."""
    variables = {"CUDA_VISIBLE_DEVICES": "", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def import_everything() -> None:
    """What a job imports in the end, so that each child finds it; not the modules of a
    part that is absent."""
    for name in filter(is_present, MODULES):
        import_module(name)
    Image.init()
    gc.collect()
    # no child looks through what is imported when it collects its garbage, nor gets a
    # copy of its pages
    gc.freeze()


def fork(order: dict) -> int:
    if pid := os.fork():
        return pid
    code = 70
    try:
        # importing has used a GPU all the same: import once more
        if torch.cuda._is_in_bad_fork():
            os.execv(
                sys.executable,
                [sys.executable, str(Path(__file__).resolve()), json.dumps(order)],
            )
        code = become_the_job(order)
    finally:
        os._exit(code)


def run_in_turn() -> None:
    """Runs the jobs of the orders on standard input, and answers with the exit code of
    each."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    import_everything()
    for line in sys.stdin:
        with as_before():
            try:
                code = become_the_job(json.loads(line))
            except BaseException:  # noqa: BLE001 - the outermost frame of the job: the next one has its turn all the same
                traceback.print_exc()
                code = 70
            sys.stdout.flush()
            sys.stderr.flush()
        answers.write(f"{code}\n")


@contextmanager
def as_before() -> Iterator[None]:
    """After the block the process is as before: what jobs and the faults of jobs on a
    GPU change."""
    from jobs.process import trainer
    from tests.faults import faults
    from toolkit.train import flow_step, metrics_buffer

    places = [
        (sys, name) for name in ("argv", "stdin", "stdout", "stderr", "unraisablehook")
    ]
    places += [(warnings, "showwarning"), (metrics_buffer, "METRICS_SYNC_SECONDS")]
    places += [(trainer, "FETCH_EVERY"), (flow_step, "LOOKAHEAD_BATCHES")]
    places += [
        (owner, "allow_tf32")
        for owner in (torch.backends.cudnn, torch.backends.cuda.matmul)
    ]
    kept = [(owner, name, getattr(owner, name)) for owner, name in places]
    folder, environment = Path.cwd(), dict(os.environ)
    handlers = {
        number: signal.getsignal(number)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    streams = os.dup(1), os.dup(2)
    try:
        with warnings.catch_warnings():
            yield
    finally:
        for owner, name, value in kept:
            setattr(owner, name, value)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number, copy in zip((1, 2), streams, strict=True):
            os.dup2(copy, number)
            os.close(copy)
        faults.at_end.clear()
        forget_the_device()


def forget_the_device() -> None:
    """Frees what a job has left, and lifts what it was limited to."""
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def become_the_job(order: dict) -> int:
    from tests.faults import faults

    if order.get("environment") is not None:
        os.environ.clear()
        os.environ.update(order["environment"])
    sys.argv = [f"{order['main']}.py", *order["arguments"]]
    os.chdir(order["cwd"])
    for number, suffix in ((1, "out"), (2, "err")):
        file = os.open(
            f"{order['name']}.{suffix}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644
        )
        os.dup2(file, number)
    sys.stdin = open(os.devnull, encoding="ascii")  # noqa: SIM115 - it lives as long as the process
    sys.stdout, sys.stderr = (
        os.fdopen(number, "w", encoding="utf-8") for number in (1, 2)
    )
    for name, *arguments in order["faults"]:
        getattr(faults, name)(*arguments)
    try:
        code = import_module(order["main"]).main(order["arguments"])
    except SystemExit as end:  # as argparse ends
        code = end.code
    for work in faults.at_end:
        work()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def poll(pid: int) -> int | None:
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


if __name__ == "__main__":
    if sys.argv[1:] == [IN_TURN]:
        run_in_turn()
    elif sys.argv[1:]:
        sys.exit(become_the_job(json.loads(sys.argv[1])))
    else:
        serve()
