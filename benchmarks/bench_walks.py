"""How far a question leads through the program: `python benchmarks/bench_walks.py`.

Tiny jobs run under a profiler that notes every call of ours between the beginning and
the end of an entry point: the files entered (also by an import), the functions, and the
moves: calls in another file than the call before. `--root` measures another checkout.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import CO_OPTIMIZED
from pathlib import Path
from tempfile import TemporaryDirectory
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks import report  # noqa: E402
from benchmarks.compare_commits import commit_of  # noqa: E402

LIBRARY = ("toolkit", "extensions", "jobs", "launch.py", "run.py")
"""What counts as ours, from the root of a checkout."""

# Where the walks begin: <file>:<qualified name>. Whoever renames one of these corrects
# it here; a test looks for each.
FORWARD = "toolkit/train/flow_step.py:FlowMatchingStep.__call__"
SAVE = "toolkit/train/callbacks/save.py:SaveCallback.save_now"
SAVE_THREAD = (
    "toolkit/train/callbacks/save.py:SaveCallback._start_writing.<locals>.work"
)
READ_CONFIG = "toolkit/config/reading/loader.py:load_job"
SCAN = "toolkit/data/scan/validation_split.py:scan_and_split"
ENCODE = "toolkit/data/batches/latent_cache.py:encode_items"
LOAD_BATCH = "toolkit/data/batches/dataloader.py:BatchLoader.load"
CHOOSE_CHECKPOINTING = (
    "extensions/sd_trainer/process.py:SdTrainerProcess._choose_checkpointing"
)
BUILD_OPTIMIZER = "extensions/sd_trainer/setup.py:build_roles"
OPTIMIZER_STEP = "toolkit/train/optimizer_step.py:StandardStep.step"
CHOOSE_STATE = "toolkit/train/resumption.py:find_checkpoint"
COMPARE_STATE = "toolkit/train/resumption.py:plan_start"
APPLY_STATE = "toolkit/train/resumption.py:ResumePlan.apply"
SAMPLE_IMAGE = "toolkit/train/sampling.py:Sampler.generate"
WHOLE_PROCESS = "jobs/process/trainer.py:Trainer.run"

STEPS = 4
SAVE_EVERY = 2


@dataclass(frozen=True)
class Walk:
    """A question, and the calls that answer it."""

    name: str
    job: str
    """A key of `jobs`."""

    entries: tuple[str, ...]
    """Each call's own figures are shown beside those of all together."""

    goal: int | None = None
    """Files, at most."""


WALKS = (
    Walk("forward of one micro-batch, LoRA", "plain", (FORWARD,), goal=10),
    Walk("the same: int8, checkpointing, swap, table", "saving memory", (FORWARD,)),
    Walk("a save: main thread, writer thread", "plain", (SAVE, SAVE_THREAD), goal=14),
    Walk(
        "dataset key: load, scan, encode, batch",
        "plain",
        (READ_CONFIG, SCAN, ENCODE, LOAD_BATCH),
        goal=30,
    ),
    Walk("gradient_checkpointing: auto", "plain", (CHOOSE_CHECKPOINTING,)),
    Walk(
        "learning rate: optimizer, one step", "plain", (BUILD_OPTIMIZER, OPTIMIZER_STEP)
    ),
    Walk(
        "resume: choose, compare, apply",
        "resumed",
        (CHOOSE_STATE, COMPARE_STATE, APPLY_STATE),
    ),
    Walk("a sample image", "plain", (SAMPLE_IMAGE,)),
    Walk(f"all that the trainer runs for {STEPS} steps", "plain", (WHOLE_PROCESS,)),
)


def jobs(steps: int = STEPS) -> dict[str, dict[str, Any]]:
    """The section of each job by name; "resumed" resumes from what "plain" has left."""
    plain = {
        "type": "sd_trainer",
        "device": "cpu",
        "training_seed": 7,
        "trigger_word": "qkst",
        "network": {"type": "lora", "linear": 16},
        "save": {"save_every": SAVE_EVERY},
        "datasets": [
            {"folder_path": "photos", "resolution": 128, "caption_dropout_rate": 0.05}
        ],
        "train": {
            "batch_size": 2,
            "steps": steps,
            "lr": 0.002,
            "dtype": "fp32",
            "ema_config": {"use_ema": True},
        },
        "model": {"name_or_path": "model"},
        "sample": {
            "sample_every": SAVE_EVERY,
            "width": 128,
            "height": 128,
            "sample_steps": 4,
            "prompts": ["a cup"],
        },
    }
    memory = {
        "quantize": True,
        "qtype": "int8",
        "modulation_table": True,
        "blocks_to_swap": 1,
    }
    return {
        "plain": plain,
        "resumed": plain | {"train": plain["train"] | {"steps": 2 * steps}},
        "saving memory": plain
        | {
            "model": plain["model"] | memory,
            "train": plain["train"] | {"gradient_checkpointing": "full"},
        },
    }


# ------------------------------------------------------------ tracing


@dataclass
class Traced:
    """What one call of an entry point went through."""

    files: set[str] = field(default_factory=set)
    functions: set[str] = field(default_factory=set)
    """<file>:<qualified name>; comprehensions and the bodies of modules and classes are
    none."""

    moves: int = 0
    latest: str = ""
    """The file of the latest call."""


@dataclass
class _Stack:
    """The calls of ours in one thread."""

    depth: int = 0
    open: list[tuple[int, str, Traced]] = field(default_factory=list)
    """Entry points that have not returned: their depth, name and what they went
    through."""


class Tracer:
    """Notes what the calls of `entries` go through, in all threads that begin while it
    is installed."""

    def __init__(
        self, root: Path, entries: Iterable[str], library: Sequence[str] = LIBRARY
    ) -> None:
        self.calls: dict[str, list[Traced]] = {entry: [] for entry in entries}
        """Entry point -> each of its calls that has returned."""

        self._root = f"{root}{os.sep}"
        self._library = library
        self._places: dict[CodeType, tuple[str, str, bool] | None] = {}
        self._stacks = threading.local()

    def __enter__(self) -> Tracer:
        threading.setprofile(self._note)
        sys.setprofile(self._note)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)

    def _note(self, frame: FrameType, event: str, argument: object) -> None:
        if event not in ("call", "return"):
            return
        code = frame.f_code
        if code not in self._places:
            self._places[code] = self._place(code)
        if (place := self._places[code]) is None:
            return
        stack = getattr(self._stacks, "stack", None)
        if stack is None:
            stack = self._stacks.stack = _Stack()
        self._enter(stack, *place) if event == "call" else self._leave(stack)

    def _enter(self, stack: _Stack, file: str, place: str, is_function: bool) -> None:
        if place in self.calls and all(name != place for _, name, _ in stack.open):
            stack.open.append((stack.depth, place, Traced(latest=file)))
        for _, _, traced in stack.open:
            traced.moves += file != traced.latest
            traced.latest = file
            traced.files.add(file)
            if is_function:
                traced.functions.add(place)
        stack.depth += 1

    def _leave(self, stack: _Stack) -> None:
        # what is left may have been called before the tracer was installed
        stack.depth = max(0, stack.depth - 1)
        if stack.open and stack.open[-1][0] == stack.depth:
            _, place, traced = stack.open.pop()
            self.calls[place].append(traced)

    def _place(self, code: CodeType) -> tuple[str, str, bool] | None:
        """(file, <file>:<qualified name>, whether it is a function) of code of ours."""
        file = Path(code.co_filename.removeprefix(self._root)).as_posix()
        if (
            not code.co_filename.startswith(self._root)
            or file.split("/")[0] not in self._library
        ):
            return None
        is_function = bool(code.co_flags & CO_OPTIMIZED) and not code.co_name.endswith(
            "comp>"
        )
        return file, f"{file}:{code.co_qualname}", is_function


def trace_job(root: Path, job: str, answer: Path) -> None:
    """Runs a job of the working directory and writes what all calls of each entry point
    went through.

    The moves are those of the last call, which finds everything imported.
    """
    sys.path[:] = [
        str(root),
        *(
            path
            for path in sys.path
            if Path(path).resolve() not in (ROOT, ROOT / "benchmarks")
        ),
    ]
    import torch  # noqa: F401 - before the tracer, which would make it slower

    from run import main as run_job

    with Tracer(root, {entry for walk in WALKS for entry in walk.entries}) as tracer:
        code = run_job([job])
    if code:
        raise SystemExit(code)
    told = {
        entry: {
            "files": sorted(set().union(*(call.files for call in calls))),
            "functions": sorted(set().union(*(call.functions for call in calls))),
            "moves": calls[-1].moves,
        }
        for entry, calls in tracer.calls.items()
        if calls
    }
    answer.write_text(json.dumps(told), encoding="utf-8")


# ------------------------------------------------------------ the bench


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    root = asked.root.resolve()
    if asked.trace:
        trace_job(root, asked.trace[0], Path(asked.trace[1]))
        return
    measured = commit_of(root)
    report.card(
        "walks", f"files, functions and moves between files of {root} at {measured}"
    )
    with TemporaryDirectory() as folder:
        traces = trace_all(root, Path(folder))
    rows = [row(walk, traces[walk.job]) for walk in WALKS]
    print(
        f"{'':<46} {'files':>5} {'goal':>5} {'functions':>9} {'moves':>6}   files of each part"
    )
    for one in rows:
        goal = "" if one["goal"] is None else f"<={one['goal']}"
        of_each = " + ".join(map(str, one["parts"])) if len(one["parts"]) > 1 else ""
        print(
            f"{one['walk']:<46} {one['files']:>5} {goal:>5} {one['functions']:>9} {one['moves']:>6}   {of_each}"
        )
    report.finish("walks", measured_commit=measured, walks=rows)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--root",
        type=Path,
        default=ROOT,
        help="the checkout to measure; default: this one",
    )
    parser.add_argument(
        "--trace", nargs=2, metavar=("JOB", "ANSWER"), help=argparse.SUPPRESS
    )
    return parser.parse_args(argv)


def trace_all(root: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """Runs the jobs in `folder`, each in a process of its own: job -> entry point ->
    what it went through."""
    (folder / "photos").symlink_to(
        root / "config" / "examples" / "photos", target_is_directory=True
    )
    _run(root, folder, "model", {"type": "tiny_model", "path": "model", "heads": 4})
    found = {}
    for name, section in jobs().items():
        # The resumed one has the name, and so the folder, of the one that it resumes.
        found[name] = _run(
            root,
            folder,
            "plain" if name == "resumed" else name.replace(" ", "_"),
            section,
        )
    return found


def _run(
    root: Path, folder: Path, name: str, section: Mapping[str, Any]
) -> dict[str, Any]:
    job, answer = folder / f"{name}.json", folder / "answer.json"
    job.write_text(
        json.dumps(
            {"job": "extension", "config": {"name": name, "process": [section]}}
        ),
        encoding="utf-8",
    )
    command = [sys.executable, __file__, "--root", root, "--trace", job, answer]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*map(str, command)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"job {name} failed:\n{done.stdout}\n{done.stderr}")
    return json.loads(answer.read_text(encoding="utf-8"))


def row(walk: Walk, traces: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of a walk: distinct files and functions, and the sum of moves, of all
    its entry points."""
    if lost := [entry for entry in walk.entries if entry not in traces]:
        raise SystemExit(
            f"{walk.name}: {lost[0]} was never called. Correct the entry points at the top of this file."
        )
    parts = [traces[entry] for entry in walk.entries]
    return {
        "walk": walk.name,
        "files": len({file for part in parts for file in part["files"]}),
        "goal": walk.goal,
        "functions": len(
            {function for part in parts for function in part["functions"]}
        ),
        "moves": sum(part["moves"] for part in parts),
        "parts": [len(part["files"]) for part in parts],
    }


if __name__ == "__main__":
    main()
