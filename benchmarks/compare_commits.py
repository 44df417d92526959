"""Whether two checkouts compute, write and say the same: `python
benchmarks/compare_commits.py BEFORE AFTER`.

Each runs the same jobs and commands with the same seeds at tiny sizes, in its own
folder. Then every tensor is compared bit by bit, every image pixel by pixel, and every
logged number, metadata field, document and `--dry-run --json` field; of pages what they
show; of messages severity and place, and the exit code. Times are left out. At last
runs that BEFORE has begun and that were killed are resumed by both. Exit code 1:
something differs.

The parts are addressed by `run.py` and jobs alone, so the checkouts may have different
modules. `--list` names them, `--only NAME ...` runs some. `--before-results FOLDER`
keeps what BEFORE has done: the next comparison runs AFTER alone.

What is meant to differ stands in a JSON file (`--table`):

    {"files": {"^state/": "checkpoints/"},           paths within the run's folder
     "tensors": {}, "metadata": {}, "logs": {}, "documents": {}, "plans": {}, "values": {},
     "allowed": {"^[^:]*/run.json: updated$": "why"}}

All but `allowed` map regular expressions to what replaces them (`re.sub`) in the names
that BEFORE has: `logs` are the *.jsonl files, `documents` the *.json and *.yaml files,
`values` all values that are texts. The name of a nested field is its path,
`processes/0/memory/host_bytes`; in logs it stands after the line, `line 3: loss`.
`allowed` maps expressions on `<part>/<file>: <field>`, in the names of AFTER, to why
these may differ or be missing.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.freeze import messages, tools  # noqa: E402
from benchmarks.freeze.comparing import Outcome, Table  # noqa: E402
from benchmarks.freeze.facts import MEASURED, Facts, facts_of, flat, printed  # noqa: E402
from benchmarks.freeze.jobs import (  # noqa: E402
    GUIDE_FLAGS,
    HALF,
    JOBS,
    KILLED,
    Section,
    document,
    write_images,
)

EXAMPLES = "config/examples"
DEADLINE_S = 600
"""After which a command counts as hanging."""

NOTHING_TO_COMPARE = re.compile(r"description|markdownDescription|title|examples?")
"""Fields of the JSON Schema that are prose."""


@dataclass(frozen=True)
class Ran:
    """How a process ended."""

    code: int
    output: str
    errors: str

    @property
    def refused(self) -> bool:
        """Whether it ended in a message about its input (exit code 2), not in a
        fault."""
        return self.code == 2 and "Traceback" not in self.errors

    def last_words(self) -> str:
        """The end of what it said."""
        return "\n".join((self.errors.strip() or self.output.strip()).splitlines()[-8:])


@dataclass
class Side:
    """One checkout and the folder in which it runs."""

    name: str
    checkout: Path
    folder: Path
    failed: list[str] = field(default_factory=list)
    done: set[str] = field(default_factory=set)
    """Names of the jobs that ran."""

    @property
    def hidden(self) -> dict[str, str]:
        """Paths that the two sides cannot have in common -> what stands for them."""
        return {str(self.folder): "FOLDER", str(self.checkout): "CHECKOUT"}

    def prepare(self) -> None:
        """Images, the example configs of this checkout with what lies beside them, and
        the tiny model."""
        if not self.folder.exists():
            write_images(self.folder / "images")
            shutil.copytree(self.checkout / "config", self.folder / "config")
            self.must_run(
                "tiny_model",
                self.write("tiny_model", {"type": "tiny_model", "path": "model"}),
            )

    def write(self, name: str, *sections: Section) -> str:
        """The file of a job, relative to this side's folder."""
        file = self.folder / "jobs" / f"{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(document(name, *sections)), encoding="utf-8")
        return file.relative_to(self.folder).as_posix()

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, str(self.checkout / "run.py"), *arguments]

    def start(self, *arguments: str, **streams: Any) -> subprocess.Popen[str]:
        """`run.py` of this checkout, with one thread and without a GPU or a hub."""
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        # the other checkout must not be found
        for name in (
            "PYTHONPATH",
            "EXTENSIONS_PATH",
        ):
            environment.pop(name, None)
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.folder,
            env=environment,
            text=True,
            **streams,
        )

    def run(self, *arguments: str) -> Ran:
        with self.start(
            *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            output, errors = process.communicate(timeout=DEADLINE_S)
        return Ran(process.returncode, output, errors)

    def must_run(self, name: str, *arguments: str) -> Ran:
        """Runs what must succeed."""
        ran = self.run(*arguments)
        if ran.code:
            self.failed.append(
                f"{self.name}: {name} ended with exit code {ran.code}:\n{ran.last_words()}"
            )
        return ran

    def train(self, name: str) -> Path:
        """The folder of a job, which is run where it was not yet; first those whose
        results it reads."""
        if name not in self.done:
            self.done.add(name)
            if name in ("flow", "flow_joint"):
                self.train("vae_gan")
            self.must_run(name, self.write(name, JOBS[name]))
            without_measurements(self.folder / "output" / name)
        return self.folder / "output" / name

    def facts(self, folder: Path | str) -> Facts:
        return facts_of(self.folder / folder, self.hidden)

    def said(self, name: str, ran: Ran) -> Facts:
        return printed(name, ran.code, ran.output, ran.errors, self.hidden)


def without_measurements(run: Path) -> None:
    """Every time and every measured size of a run's logs becomes the same: tools show
    them."""
    for path in run.rglob("*.jsonl"):
        lines = [
            json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()
        ]
        for line in lines:
            line.update(
                {
                    key: 1
                    for key, value in line.items()
                    if MEASURED.fullmatch(key) and not isinstance(value, str)
                }
            )
        path.write_text(
            "".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8"
        )


# ------------------------------------------------------------ the parts


def trained(side: Side, name: str) -> Facts:
    """What a training run leaves."""
    return side.facts(side.train(name))


def tool(side: Side, name: str, arguments: str) -> Facts:
    """What a command writes and says."""
    return _with_results(
        side,
        name,
        lambda out: arguments.replace("OUT", out).replace("GUIDE_FLAGS", GUIDE_FLAGS),
    )


def process(side: Side, name: str, section: Section) -> Facts:
    """The same of a process of a job."""

    def argument(out: str) -> str:
        return side.write(
            name.replace(" ", "_"),
            json.loads(json.dumps(section).replace("OUT", out)),
        )

    return _with_results(side, name, argument)


def _with_results(side: Side, name: str, arguments: Callable[[str], str]) -> Facts:
    for job in tools.NEEDED:
        side.train(job)
    out = f"tools/{name.replace(' ', '_')}"
    ran = side.run(*shlex.split(arguments(out)))
    (side.folder / out).mkdir(parents=True, exist_ok=True)
    written = side.facts("output/guide_flags" if "guide" in name else out)
    if "Traceback" in ran.errors or (ran.code and not name.startswith("lint")):
        side.failed.append(
            f"{side.name}: {name} ended with exit code {ran.code}:\n{ran.last_words()}"
        )
    return written | side.said("printed", ran)


def schema(side: Side) -> Facts:
    """All keys of all process types, with their kinds, ranges and defaults."""
    fields = flat(json.loads(side.must_run("schema", "--print-schema").output))
    return {
        ("documents", "schema", key): value
        for key, value in fields
        if not NOTHING_TO_COMPARE.fullmatch(key.rpartition("/")[2])
    }


def prepare_plans(side: Side) -> None:
    """The runs that plans and messages speak of; a file of the guide has one folder
    under any name."""
    for name in ("vae_gan", "lora_int8_fp32", "guide"):
        side.train(name)


def plans(side: Side) -> Facts:
    """The dry runs of the examples and of the jobs under a name that has not run: as
    JSON and as text."""
    prepare_plans(side)
    facts: Facts = {}
    examples = sorted((side.folder / EXAMPLES).rglob("*.yaml"))
    configs = [
        (path.stem, path.relative_to(side.folder).as_posix()) for path in examples
    ]
    configs += [
        (name, side.write(f"plan_{name}", section)) for name, section in JOBS.items()
    ]
    for name, config in configs:
        as_json = side.must_run(f"dry run of {name}", "--dry-run", "--json", config)
        if as_json.code == 0:
            fields = flat(json.loads(as_json.output))
            facts |= {
                ("plans", name, key): value
                for key, value in fields
                if not MEASURED.fullmatch(key)
            }
        facts |= side.said(name, side.run("--dry-run", config))
    return facts


def refusals(side: Side) -> Facts:
    """What is said about jobs and commands with mistakes; also about the valid jobs
    that they are made of."""
    prepare_plans(side)
    facts: Facts = {}
    sections = {f"valid {name}": section for name, section in messages.VALID.items()}
    sections |= {name: messages.broken(name) for name in messages.BROKEN}
    for name, section in sections.items():
        facts |= side.said(
            name,
            side.run("--dry-run", side.write(name.replace(" ", "_"), section)),
        )
    for name, arguments in messages.COMMANDS.items():
        facts |= side.said(f"command {name}", side.run(*shlex.split(arguments)))
    return facts


PARTS: dict[str, Callable[[Side], Facts]] = {
    "tiny_model": lambda side: side.facts("model"),
    **{name: partial(trained, name=name) for name in JOBS},
    **{
        name: partial(tool, name=name, arguments=arguments)
        for name, arguments in tools.COMMANDS.items()
    },
    **{
        name: partial(process, name=name, section=section)
        for name, section in tools.PROCESSES.items()
    },
    "schema": schema,
    "plans": plans,
    "refusals": refusals,
}
"""Name -> what a side does for it, and the facts of it."""

RESUMED = {f"resumed {name}": name for name in KILLED}
"""Name of a part -> the job that BEFORE begins and both sides resume."""


def begin(before: Side, name: str, folder: Path) -> Side:
    """A folder in which BEFORE has begun a job and was killed after some steps."""
    side = Side(before.name, before.checkout, folder / name)
    if not side.folder.exists():
        for needed in ("images", "model"):
            shutil.copytree(before.folder / needed, side.folder / needed)
        if name == "flow":
            shutil.copytree(before.train("vae_gan") / "vae_gan", side.folder / "vae")
        saved = side.folder / "output" / name / "state" / f"step_{HALF:09d}"
        with side.start(
            side.write(name, KILLED[name]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as run:
            while not saved.is_dir() and run.poll() is None:
                time.sleep(0.005)
            run.send_signal(signal.SIGKILL)
        if run.returncode != -signal.SIGKILL:
            before.failed.append(
                f"{name}: ended with exit code {run.returncode} before it could be killed"
            )
    return side


def resume(begun: Side, side: Side, name: str) -> Facts | None:
    """The end of a begun run in a copy of its folder, by the checkout of `side`; None
    where it is refused in words."""
    own = Side(
        side.name,
        side.checkout,
        side.folder.with_name(f"{side.folder.name}_resumed") / name,
    )
    shutil.copytree(begun.folder, own.folder)
    ran = own.run(f"jobs/{name}.json")
    if ran.refused:
        print(
            f"resumed {name:<10} {side.name} refuses what BEFORE has begun: {ran.last_words()}"
        )
    elif ran.code:
        side.failed.append(
            f"{side.name}: cannot resume {name} as BEFORE has begun it:\n{ran.last_words()}"
        )
    return None if ran.refused else own.facts(f"output/{name}")


# ------------------------------------------------------------ the whole comparison


def main(argv: Sequence[str] | None = None) -> int:
    """Prints what is equal and what is not; 1 where something differs that is not meant
    to."""
    asked = arguments(argv)
    if asked.list:
        print(*PARTS, *RESUMED, sep="\n")
        return 0
    outcome = Outcome(Table.read(asked.table), asked.all)
    begun = time.monotonic()
    kept = (
        nullcontext(asked.before_results)
        if asked.before_results
        else TemporaryDirectory(dir=asked.folder)
    )
    with kept as before_folder, TemporaryDirectory(dir=asked.folder) as after_folder:
        before = Before(
            "before", asked.before.resolve(), Path(before_folder).resolve() / "work"
        )
        after = Side(
            "after", asked.after.resolve(), Path(after_folder).resolve() / "work"
        )
        for side in (before, after):
            print(f"{side.name:<7} {side.checkout} at {commit_of(side.checkout)}")
        print(
            f"\n{'':<18} {'':<10} {'equal':>7} {'differs':>8} {'missing':>8} {'added':>8} {'allowed':>8}"
        )
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda side: side.prepare(), (before, after)))
            for name in asked.only or [*PARTS, *RESUMED]:
                _compare_part(outcome, pool, before, after, name)
        outcome.problems += [*before.failed, *after.failed]
    print(f"\n{outcome.render()}")
    wrong = sum(one.counts for one in outcome.differences)
    print(
        f"{wrong} unexpected differences, {len(outcome.problems)} problems; {time.monotonic() - begun:.0f} s"
    )
    return int(outcome.failed)


class Before(Side):
    """The side whose facts are kept beside its folder, so that they are computed
    once."""

    def kept(self, name: str, compute: Callable[[], Facts | None]) -> Facts | None:
        file = self.folder.with_name("facts") / f"{name.replace(' ', '_')}.pickle"
        if not file.is_file():
            facts = compute()
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(pickle.dumps(facts))
        return pickle.loads(file.read_bytes())

    def train(self, name: str) -> Path:
        """A run that an earlier comparison has finished is not started again."""
        finished = self.folder.with_name("finished") / name
        if finished.exists():
            self.done.add(name)
        folder = super().train(name)
        finished.parent.mkdir(exist_ok=True)
        finished.touch()
        return folder


def _compare_part(
    outcome: Outcome, pool: ThreadPoolExecutor, before: Before, after: Side, name: str
) -> None:
    if name in RESUMED:
        job = RESUMED[name]
        begun = begin(before, job, before.folder.with_name("begun"))
        expected = pool.submit(before.kept, name, lambda: resume(begun, before, job))
        found = pool.submit(resume, begun, after, job)
    else:
        expected = pool.submit(before.kept, name, lambda: PARTS[name](before))
        found = pool.submit(PARTS[name], after)
    facts = [future.result() for future in (expected, found)]
    if None not in facts:
        outcome.add(name, *facts)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        epilog=__doc__.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "before",
        type=Path,
        metavar="BEFORE",
        nargs="?",
        help="a checkout: the folder with run.py",
    )
    parser.add_argument("after", type=Path, metavar="AFTER", nargs="?", help="another")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        choices=[*PARTS, *RESUMED],
        help="compare these parts",
    )
    parser.add_argument(
        "--list", action="store_true", help="print the names of the parts"
    )
    parser.add_argument(
        "--before-results",
        type=Path,
        metavar="FOLDER",
        help="keep what BEFORE has done, and use it",
    )
    parser.add_argument(
        "--table", type=Path, help="JSON file: what is renamed, what may differ"
    )
    parser.add_argument("--all", action="store_true", help="print every difference")
    parser.add_argument("--folder", help="where to work; default: the temporary folder")
    asked = parser.parse_args(argv)
    if not (asked.list or asked.after):
        parser.error("two checkouts are compared: BEFORE AFTER")
    return asked


def commit_of(checkout: Path) -> str:
    """Short hash, with a + when files differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(checkout), *words], capture_output=True, text=True
        ).stdout.strip()

    return (git("rev-parse", "--short", "HEAD") or "no commit") + (
        "+" if git("status", "--porcelain") else ""
    )


if __name__ == "__main__":
    sys.exit(main())
