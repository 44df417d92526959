"""Whether two checkouts compute and write the same: `python benchmarks/compare_commits.py BEFORE AFTER`.

Each runs the same jobs with the same seeds on a tiny model, in a folder of its own. Then every tensor is compared bit
by bit, every sample image pixel by pixel, and every logged number, metadata field and `--dry-run --json` field. Times
are left out. At last a run that BEFORE has begun is resumed by both. Exit code 1: something differs.

What is meant to differ stands in a JSON file (`--table`):

    {"files": {"^state/": "checkpoints/"},           paths within the run's folder
     "tensors": {}, "metadata": {}, "logs": {}, "documents": {}, "plans": {}, "values": {},
     "allowed": {"^[^:]*/run.json: updated$": "why"}}

All but `allowed` map regular expressions to what replaces them (`re.sub`) in the names that BEFORE has: `logs` are the
*.jsonl files, `documents` the *.json files, `values` all values that are texts. The name of a nested field is its path,
`processes/0/memory/host_bytes`; in logs it stands after the line, `line 3: loss`. `allowed` maps expressions on
`<job>/<file>: <field>`, in the names of AFTER, to why these may differ or be missing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

KINDS = ("tensors", "metadata", "logs", "documents", "images", "plans", "files")
"""What is compared. `files`: whether a file is there at all."""

STEPS = 6
HALF = 3
"""Steps after which all jobs save, sample and validate; the resumed run is begun with so many."""

SHOWN = 6
"""Differences of one job and kind that are printed; `--all` prints the others too."""

MEASURED = re.compile(
    r"([^/]*/)*([^/]*_s|s_per_it|time|timestamp|updated|updated_at|started|ended|at|measured_.*)|time/.*"
)
"""Fields that no two runs have in common: times (`_s` ends the name of seconds here) and the memory that was used."""

TIME_OF_DAY = re.compile(r"(^|/)\d{10,}__")
"""What the names of sample images begin with."""

NOT_COMPARED = re.compile(r"MANIFEST\.json|\.lock|.*\.lock|events\.out\..*")
"""File names: hashes and sizes of files that are compared themselves."""

Value = Any
"""A tensor, an array of pixels, or a JSON value."""


# ------------------------------------------------------------ jobs

EMA = {"ema_config": {"use_ema": True, "ema_decay": 0.9}}
REFERENCES = {"control_path": ["images/control_1", "images/control_2"], "control_optional": True}
VALIDATION = {"validation": {"every": HALF, "fraction": 0.25, "timesteps": 2}}

JOBS: dict[str, dict[str, Any]] = {
    "lora_int8_fp32": {
        "network": {"type": "lora", "linear": 4, "linear_alpha": 4, "rank_dropout": 0.1},
        "datasets": {**REFERENCES, "caption_dropout_rate": 0.3, "flip_x": True},
        "train": {"dtype": "fp32", "lr_scheduler": "cosine", "lr_warmup_steps": 2, **EMA},
        "model": {"quantize": True, "qtype": "int8"},
        "save": {"also": ["raw"]},
        **VALIDATION,
    },
    "lora_int8_bf16": {
        "network": {"type": "lora", "linear": 4, "linear_alpha": 4},
        "datasets": {**REFERENCES, "caption_dropout_rate": 0.3},
        "train": {"dtype": "bf16", "gradient_checkpointing": "full", **EMA},
        "model": {"quantize": True, "qtype": "int8"},
        **VALIDATION,
    },
    "full_fp32": {"network": {"type": "full"}, "train": {"dtype": "fp32", "lr": 1e-4, **EMA}},
    "full_bf16_fused": {
        "network": {"type": "full"},
        "train": {"dtype": "bf16", "lr": 1e-4, "full_bf16": True, "fused_backward_pass": True},
    },
    "dora": {
        "network": {"type": "dora", "linear": 4},
        "train": {"dtype": "fp32", "lr_groups": [{"match": ".*attn.*", "lr_scale": 0.5, "name": "attention"}]},
        "save": {"also": ["merged_lora"]},
    },
    "lokr": {
        "network": {"type": "lokr", "linear": 4, "factor": 4},
        "train": {"dtype": "bf16", "optimizer": "adafactor"},
    },
}
"""What each job has of its own; `datasets` are further keys of its one dataset."""

RESUMED = "resumed"
"""Begun by BEFORE, without references; `JOBS` has those that run from the start."""

OF_RESUMED: dict[str, Any] = {
    "network": {"type": "lora", "linear": 4},
    "datasets": {"caption_dropout_rate": 0.3},
    "train": {"dtype": "fp32", **EMA},
    **VALIDATION,
}


def job_of(name: str, own: Mapping[str, Any], references: bool, steps: int = STEPS) -> dict[str, Any]:
    """A job with relative paths only; without `references` none of its images has a control image."""
    dataset = {key: value for key, value in own.get("datasets", {}).items() if references or key not in REFERENCES}
    pictures = [{"prompt": "a red cup"}, {"prompt": "a blue cup", "ctrl_img": "images/control_1/2.png"}]
    section = {
        "type": "sd_trainer",
        "device": "cpu",
        "training_seed": 7,
        "trigger_word": "qkst",
        "network": own["network"],
        "save": {"save_every": HALF, "max_states_to_keep": 0, "dtype": "float32", **own.get("save", {})},
        "datasets": [{"folder_path": "images/targets", "resolution": 64, **dataset}],
        "train": {"steps": steps, "batch_size": 2, "gradient_accumulation": 2, "lr": 1e-3, **own["train"]},
        "model": {"name_or_path": "model", "model_kwargs": {"match_target_res": True}, **own.get("model", {})},
        "sample": {
            "sample_every": HALF,
            "width": 64,
            "height": 64,
            "sample_steps": 2,
            "format": "png",
            "samples": pictures if references and "control_path" in dataset else pictures[:1],
        },
        **({"validation": own["validation"]} if "validation" in own else {}),
    }
    return {"job": "extension", "config": {"name": name, "process": [section]}, "meta": {"title": "[name]"}}


def write_images(folder: Path, count: int = 8) -> None:
    """Noise of a fixed seed with captions: targets of two shapes, and two folders of control images, one with gaps."""
    drawn = np.random.default_rng(7)
    for name, numbers, size in (
        ("targets", range(count), (64, 64)),
        ("control_1", range(count), (96, 64)),
        ("control_2", range(0, count, 3), (48, 80)),
    ):
        (folder / name).mkdir(parents=True)
        for number in numbers:
            width, height = size if number % 4 else (80, 48)
            coarse = drawn.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((width, height), Image.BICUBIC).save(folder / name / f"{number}.png")
    for number in range(count):
        (folder / "targets" / f"{number}.txt").write_text(f"picture number {number}", encoding="utf-8")


# ------------------------------------------------------------ running


@dataclass(frozen=True)
class Ran:
    """How a process ended."""

    code: int
    output: str
    errors: str

    @property
    def refused(self) -> bool:
        """Whether it ended in a message about its input (exit code 2), not in a fault."""
        return self.code == 2 and "Traceback" not in self.errors

    def last_words(self) -> str:
        """The end of what it said."""
        return "\n".join((self.errors.strip() or self.output.strip()).splitlines()[-8:])


@dataclass
class Side:
    """One checkout and the folder in which its jobs run."""

    name: str
    checkout: Path
    folder: Path
    failed: list[str] = field(default_factory=list)

    def prepare(self, images: Path, config: Path) -> None:
        """Images, the example configs, and the tiny model as this checkout writes it."""
        shutil.copytree(images, self.folder / "images")
        shutil.copytree(config, self.folder / "config")
        self.train("model", {"type": "tiny_model", "path": "model"})

    def train(self, name: str, section_or_job: Mapping[str, Any]) -> Ran:
        """Runs a job, which must succeed."""
        ran = self.run(self.write(name, section_or_job))
        if ran.code:
            self.failed.append(f"{self.name}: job {name} ended with exit code {ran.code}:\n{ran.last_words()}")
        return ran

    def write(self, name: str, section_or_job: Mapping[str, Any]) -> str:
        """The file of a job, relative to this side's folder."""
        is_job = "job" in section_or_job
        job = section_or_job if is_job else {"job": "extension", "config": {"name": name, "process": [section_or_job]}}
        (self.folder / "jobs").mkdir(parents=True, exist_ok=True)
        (self.folder / "jobs" / f"{name}.json").write_text(json.dumps(job), encoding="utf-8")
        return f"jobs/{name}.json"

    def run(self, *arguments: str) -> Ran:
        """`run.py` of this checkout, with one thread and without a GPU or a hub."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        environment.pop("PYTHONPATH", None)  # the other checkout must not be found
        command = [sys.executable, str(self.checkout / "run.py"), *arguments]
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)
        return Ran(done.returncode, done.stdout, done.stderr)

    def plan(self, config: str) -> Value:
        """`--dry-run --json` of a config; where it is refused, exit code and message."""
        ran = self.run("--dry-run", "--json", config)
        return json.loads(ran.output) if ran.code == 0 else {"exit code": ran.code, "message": ran.errors.strip()}

    def run_folder(self, job: str) -> Path:
        return self.folder / "output" / job


# ------------------------------------------------------------ what a run has left

Facts = dict[tuple[str, str, str], Value]
"""(kind, file, field) -> value."""


def flat(value: Value, path: str = "") -> Iterator[tuple[str, Value]]:
    """The leaves of a JSON value by their paths; empty containers are leaves."""
    if isinstance(value, dict | list) and value:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from flat(inner, f"{path}/{key}" if path else str(key))
    else:
        yield path, value


def facts_of(folder: Path) -> Facts:
    """Everything comparable under a folder."""
    facts: Facts = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if NOT_COMPARED.fullmatch(path.name):
            continue
        name = TIME_OF_DAY.sub(r"\1", path.relative_to(folder).as_posix())
        facts["files", name, "is there"] = True
        reader = READERS.get(path.suffix)
        for kind, key, value in reader(path) if reader else ():
            if kind in ("tensors", "images") or not MEASURED.fullmatch(key.partition(": ")[2] or key):
                facts[kind, name, key] = TIME_OF_DAY.sub(r"\1", value) if isinstance(value, str) else value
    return facts


def _tensors(path: Path) -> Iterator[tuple[str, str, Value]]:
    with safe_open(path, framework="pt") as file:
        yield from (("tensors", key, file.get_tensor(key)) for key in file.keys())  # noqa: SIM118 - not a dict
        metadata = {key: _parsed(text) for key, text in (file.metadata() or {}).items()}
    yield from (("metadata", key, value) for key, value in flat(metadata) if metadata)


def _parsed(text: str) -> Value:
    """JSON within a text, or the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _lines(path: Path) -> Iterator[tuple[str, str, Value]]:
    """Lines are counted by kind of event: the order of those from different threads is left to chance."""
    counts: Counter[str] = Counter()
    for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        kind = line.get("event", "line")
        counts[kind] += 1
        yield from (("logs", f"{kind} {counts[kind]}: {key}", value) for key, value in flat(line))


def _document(path: Path) -> Iterator[tuple[str, str, Value]]:
    yield from (("documents", key, value) for key, value in flat(json.loads(path.read_text(encoding="utf-8"))))


def _pixels(path: Path) -> Iterator[tuple[str, str, Value]]:
    with Image.open(path) as image:
        yield "images", "pixels", np.asarray(image)


READERS: dict[str, Callable[[Path], Iterator[tuple[str, str, Value]]]] = {
    ".safetensors": _tensors,
    ".jsonl": _lines,
    ".json": _document,
    ".png": _pixels,
}


# ------------------------------------------------------------ comparing


@dataclass(frozen=True)
class Table:
    """What is meant to differ."""

    renames: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Kind, or `values` -> regular expression -> replacement."""

    allowed: Mapping[str, str] = field(default_factory=dict)
    """Regular expression on `<job>/<file>: <field>` -> reason."""

    @classmethod
    def read(cls, path: Path | None) -> Table:
        """Raises SystemExit for a key that means nothing."""
        given = json.loads(path.read_text(encoding="utf-8")) if path else {}
        allowed = given.pop("allowed", {})
        if unknown := given.keys() - {*KINDS, "values"}:
            raise SystemExit(f"{path}: unknown: {', '.join(sorted(unknown))}")
        return cls(given, allowed)

    def renamed(self, facts: Facts) -> Facts:
        """BEFORE's facts under the names and texts of AFTER."""
        return {
            (kind, self._sub("files", file), self._sub(kind, key) if kind != "files" else key): self._value(value)
            for (kind, file, key), value in facts.items()
        }

    def _value(self, value: Value) -> Value:
        return self._sub("values", value) if isinstance(value, str) else value

    def _sub(self, kind: str, text: str) -> str:
        for pattern, replacement in self.renames.get(kind, {}).items():
            text = re.sub(pattern, replacement, text)
        return text

    def reason(self, place: str) -> str | None:
        """Why a difference is allowed."""
        return next((reason for pattern, reason in self.allowed.items() if re.search(pattern, place)), None)


@dataclass(frozen=True)
class Difference:
    """One field that is not the same."""

    kind: str
    place: str
    """`<job>/<file>: <field>`"""

    what: str
    how: str
    """`differs`, `missing` or `added`."""

    reason: str | None = None
    """Why it is allowed; None: it is not."""

    @property
    def counts(self) -> bool:
        """Whether it makes the comparison fail: what is added does not."""
        return self.how != "added" and self.reason is None


def compare(job: str, before: Facts, after: Facts, table: Table) -> tuple[Counter[str], list[Difference]]:
    """Equal fields by kind, and what is not equal."""
    before = table.renamed(before)
    equal: Counter[str] = Counter()
    found = []
    for kind, file, key in sorted(before.keys() | after.keys()):
        fact, place = (kind, file, key), f"{job}/{file}: {key}"
        if fact not in after:
            found.append(Difference(kind, place, shown(before[fact]), "missing", table.reason(place)))
        elif fact not in before:
            found.append(Difference(kind, place, shown(after[fact]), "added", table.reason(place)))
        elif same(before[fact], after[fact]):
            equal[kind] += 1
        else:
            what = difference(before[fact], after[fact])
            found.append(Difference(kind, place, what, "differs", table.reason(place)))
    return equal, found


def same(one: Value, other: Value) -> bool:
    """Bit for bit: 0.0 is not -0.0, 1 is not 1.0, and NaN is itself."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and _bytes(one) == _bytes(other)
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.shape == other.shape and bool((one == other).all())
    return type(one) is type(other) and repr(one) == repr(other)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def difference(one: Value, other: Value) -> str:
    """How two values differ."""
    if isinstance(one, Tensor) and isinstance(other, Tensor) and (one.dtype, one.shape) == (other.dtype, other.shape):
        apart = (one.double() - other.double()).abs()
        return f"{int((apart != 0).sum())} of {apart.numel()} differ, by at most {apart.max().item():.3g}"
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray) and one.shape == other.shape:
        apart = np.abs(one.astype(int) - other.astype(int))
        return f"{(apart != 0).mean():.1%} of the values differ, by at most {apart.max()}"
    if isinstance(one, float) and isinstance(other, float) and math.isfinite(one) and one:
        return f"{one!r} -> {other!r} (relative {abs(other - one) / abs(one):.2g})"
    return f"{shown(one)} -> {shown(other)}"


def shown(value: Value) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)}"
    text = f"pixels {value.shape}" if isinstance(value, np.ndarray) else repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


# ------------------------------------------------------------ the whole comparison


@dataclass
class Outcome:
    """What all comparisons found."""

    table: Table
    show_all: bool = False
    differences: list[Difference] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, job: str, before: Facts, after: Facts) -> None:
        """Compares and prints the rows of a job."""
        equal, found = compare(job, before, after, self.table)
        self.differences += found
        if not equal:
            self.problems.append(f"{job}: nothing is equal")
        for kind in (kind for kind in KINDS if equal[kind] or any(one.kind == kind for one in found)):
            of_kind = [one for one in found if one.kind == kind]
            counts = Counter("allowed" if one.reason and one.how != "added" else one.how for one in of_kind)
            cells = " ".join(f"{counts[how]:>8}" for how in ("differs", "missing", "added", "allowed"))
            print(f"{job:<18} {kind:<10} {equal[kind]:>7} {cells}", flush=True)

    def render(self) -> str:
        """All that is not equal, the unexpected first, a few of each job and kind."""
        lines = []
        for how in ("differs", "missing", "added"):
            groups: dict[tuple[str, str], list[Difference]] = {}
            for one in self.differences:
                if one.how == how:
                    groups.setdefault((one.place.partition("/")[0], one.kind), []).append(one)
            if groups:
                lines.append({"differs": "DIFFERS", "missing": "MISSING", "added": "added by AFTER"}[how])
            for group in groups.values():
                for one in group if self.show_all else group[:SHOWN]:
                    lines.append(f"  {one.place}: {one.what}" + (f" [allowed: {one.reason}]" if one.reason else ""))
                if not self.show_all and len(group) > SHOWN:
                    job, kind = group[0].place.partition("/")[0], group[0].kind
                    lines.append(f"  ... {len(group) - SHOWN} more of {job}, {kind}")
        return "\n".join([*lines, *self.problems])

    @property
    def failed(self) -> bool:
        return bool(self.problems) or any(one.counts for one in self.differences)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints what is equal and what is not; 1 where something differs that is not meant to."""
    asked = arguments(argv)
    outcome = Outcome(Table.read(asked.table), asked.all)
    begun = time.monotonic()
    with TemporaryDirectory(dir=asked.folder) as folder:
        sides = [
            Side(name, checkout.resolve(), Path(folder) / name)
            for name, checkout in (("before", asked.before), ("after", asked.after))
        ]
        for side in sides:
            print(f"{side.name:<7} {side.checkout} at {commit_of(side.checkout)}")
        print(f"\n{'':<18} {'':<10} {'equal':>7} {'differs':>8} {'missing':>8} {'added':>8} {'allowed':>8}")
        with ThreadPoolExecutor(len(sides)) as pool:
            both = partial(_both, pool, sides)
            write_images(Path(folder) / "images")
            both(lambda side: side.prepare(Path(folder) / "images", sides[0].checkout / "config"))
            outcome.add("tiny_model", *(facts_of(side.folder / "model") for side in sides))
            jobs = {name: own for name, own in JOBS.items() if name in (asked.jobs or JOBS)}
            for name, own in jobs.items():
                job = job_of(name, own, asked.references)
                both(lambda side, name=name, job=job: side.train(name, job))
                outcome.add(name, *(facts_of(side.run_folder(name)) for side in sides))
            _compare_plans(outcome, both, sides, jobs, asked.references)
            if asked.resume:
                _compare_resumed(outcome, both, sides)
        outcome.problems += [problem for side in sides for problem in side.failed]
    print(f"\n{outcome.render()}")
    wrong = sum(one.counts for one in outcome.differences)
    print(f"{wrong} unexpected differences, {len(outcome.problems)} problems; {time.monotonic() - begun:.0f} s")
    return int(outcome.failed)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        epilog=__doc__.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("before", type=Path, metavar="BEFORE", help="a checkout: the folder that holds run.py")
    parser.add_argument("after", type=Path, metavar="AFTER", help="another")
    parser.add_argument("--table", type=Path, help="JSON file: what is renamed, what may differ")
    parser.add_argument("--jobs", nargs="*", choices=JOBS, help="default: all")
    parser.add_argument("--no-references", dest="references", action="store_false", help="no control images in any job")
    parser.add_argument("--no-resume", dest="resume", action="store_false", help="leave out the run that is resumed")
    parser.add_argument("--all", action="store_true", help="print every difference")
    parser.add_argument("--folder", help="where to work; default: the temporary folder")
    return parser.parse_args(argv)


def commit_of(checkout: Path) -> str:
    """Short hash, with a + when files differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(checkout), *words], capture_output=True, text=True).stdout.strip()

    return (git("rev-parse", "--short", "HEAD") or "no commit") + ("+" if git("status", "--porcelain") else "")


def _both(pool: ThreadPoolExecutor, sides: Sequence[Side], work: Callable[[Side], Any]) -> list[Any]:
    """Both sides at once."""
    return list(pool.map(work, sides))


def _compare_plans(
    outcome: Outcome,
    both: Callable[[Callable[[Side], Any]], list[Any]],
    sides: Sequence[Side],
    jobs: Mapping[str, Any],
    references: bool,
) -> None:
    """`--dry-run --json` of BEFORE's example configs and of the jobs under a name that has not run."""
    examples = sides[0].checkout / "config" / "examples"
    configs = [f"config/examples/{path.name}" for path in sorted(examples.glob("*.yaml"))]
    for side in sides:
        planned = [side.write(f"plan_{name}", job_of(f"plan_{name}", own, references)) for name, own in jobs.items()]
    configs += planned
    plans = both(lambda side: {Path(config).stem: side.plan(config) for config in configs})
    outcome.problems += [
        f"before: the dry run of {name} is refused: {plan['message']}"
        for name, plan in plans[0].items()
        if "message" in plan
    ]
    outcome.add(
        "dry run",
        *(
            {("plans", name, key): value for name, plan in plans_.items() for key, value in flat(plan)}
            for plans_ in plans
        ),
    )


def _compare_resumed(
    outcome: Outcome, both: Callable[[Callable[[Side], Any]], list[Any]], sides: Sequence[Side]
) -> None:
    """A run that BEFORE has begun: resumed by AFTER it ends as resumed by BEFORE, or is refused in a message."""
    before, after = sides
    name = RESUMED
    before.train(name, job_of(name, OF_RESUMED, references=False, steps=HALF))
    other = Side(after.name, after.checkout, after.folder.with_name("after_resumed"))
    shutil.copytree(before.folder, other.folder)
    job = job_of(name, OF_RESUMED, references=False)
    sides = before, other
    for side in sides:
        side.write(name, job)
    own, resumed = _both_resume(both, sides, f"jobs/{name}.json")
    if own.code:
        outcome.problems.append(f"before does not resume its own run:\n{own.last_words()}")
    elif resumed.refused:
        print(f"{name:<18} AFTER refuses what BEFORE has begun: {resumed.last_words()}")
    elif resumed.code:
        outcome.problems.append(f"after cannot resume what before has begun:\n{resumed.last_words()}")
    else:
        outcome.add(name, *(facts_of(side.run_folder(name)) for side in sides))


def _both_resume(both: Any, sides: Sequence[Side], config: str) -> list[Ran]:
    with ThreadPoolExecutor(len(sides)) as pool:
        return _both(pool, sides, lambda side: side.run(config))


if __name__ == "__main__":
    sys.exit(main())
