"""Calls of `run.py` in a separate process, and the reading of its output.

The page uses them to check a job and get its plan, to read the schema of job files, and
to convert the file of another program into a job. Each call is a new process, so the
page stays small, and a faulty job or a faulty extension cannot end it. Jobs are not
started here: the queue does that (`extensions.tools.ui.queue`).

The editor for jobs calls most of it (`extensions.tools.ui.views.new`). `run_py` is also
called by the queue, the datasets, and the views that make files.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

from toolkit.errors import Diagnostic, Severity
from toolkit.files.writing import TOOLKIT_ROOT

RUN_PY = TOOLKIT_ROOT / "run.py"

LIMIT_S = 60.0
"""Seconds that a command may take."""

LATE = 124
"""Exit code of a command that took too long. `timeout` of coreutils has the same."""

_SUFFIXES = (".toml", ".yaml", ".yml", ".json", ".jsonc")
_lock = Lock()


@dataclass(frozen=True)
class Message(Diagnostic):
    """One error or warning of a command about a job.

    >>> Message(("process[0].train.steps",), "must be at least 1", line=12).place
    'process[0].train.steps'
    """

    line: int = 0
    """Line of the job file, from 1. 0: the message names no line."""


@dataclass(frozen=True)
class Checked:
    """The result of a dry run: messages, and the plan if there were no errors.

    Example::

        checked = check_job(memory, text, "cat.yaml", tab="")
        if checked.plan is None:
            print([error.message for error in checked.errors])
    """

    errors: Sequence[Message] = ()
    warnings: Sequence[Message] = ()
    plan: dict[str, Any] | None = None
    fault: str = ""
    """`unchecked`: there was no dry run. `late`: it took too long. `replaced`: a newer
    check of the same browser tab ended it. Empty: it came to its end."""


UNCHECKED = Checked(fault="unchecked")


def run_py(
    *arguments: str,
    cwd: str | None = None,
    limit_s: float | None = None,
    is_idle: bool = False,
    checks: dict[str, subprocess.Popen[str]] | None = None,
    tab: str = "",
) -> tuple[int, str, str]:
    """Runs `run.py` with these arguments. Returns its exit code, standard output and
    standard error, or `(LATE, "", "")` if it took too long.

    cwd: working directory. None: the page's.
    limit_s: seconds that the command may take. None: LIMIT_S.
    is_idle: run at a low priority.
    checks, tab: the running processes by browser tab. A tab has one process: a new one
    kills the one before, which then ends with a negative exit code.

    Example::

        code, stdout, stderr = run_py("lint", "datasets/cat", "--json", limit_s=60)
    """
    nice = shutil.which("nice") if is_idle else None
    command = [
        *([nice, "-n", "10"] if nice else []),
        sys.executable,
        str(RUN_PY),
        *arguments,
    ]
    running = checks if checks is not None and tab else {}
    pipe: dict[str, Any] = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
        "errors": "replace",
    }
    with _lock:
        if tab in running:
            running[tab].kill()
        process = subprocess.Popen(command, cwd=cwd, stdin=subprocess.DEVNULL, **pipe)
        running[tab] = process
    try:
        stdout, stderr = process.communicate(
            timeout=LIMIT_S if limit_s is None else limit_s
        )
    except subprocess.TimeoutExpired:
        return LATE, "", ""
    finally:
        process.kill()
        process.wait()
        with _lock:
            if running.get(tab) is process:
                del running[tab]
    return process.returncode, stdout, stderr


def check_job(
    memory: dict[Any, Any], text: str, name: str, tab: str, card: str = ""
) -> Checked:
    """Checks a job with a dry run, as the command line does, and reads its plan.

    memory: `Ui.memory`, where the running checks are kept.
    name: name of the job file, for messages.
    tab: browser tab that asks. Empty: no later check ends this one.
    card: value of `--card`. Empty: the GPU of this machine.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_text(text, encoding="utf-8")
        checks = memory.setdefault("commands", {})
        asked = ["--card", card] if card else []
        code, stdout, stderr = run_py(
            str(path), "--dry-run", "--json", *asked, checks=checks, tab=tab
        )
    if code < 0 or code == LATE:
        return Checked(fault="late" if code == LATE else "replaced")
    messages = [*_messages(stderr.replace(f"{folder}/", ""), name)]
    if code == 0:  # what it has said are notes
        return Checked((), messages, json.loads(stdout))
    errors = [message for message in messages if message.severity == "error"]
    return Checked(errors, [m for m in messages if m.severity == "warning"])


def _messages(stderr: str, name: str) -> Iterator[Message]:
    """The messages in standard error. An indented line continues the message before
    it."""
    place = re.compile(
        rf"(?s)(warning: )?(?:{re.escape(name)}(?::(\d+):\d+)?: )?(?:([a-z]\w*(?:[.\[][\w.\[\]-]+)?): (?=\S))?(.*)"
    )
    for line in re.split(r"\n(?! )", stderr.rstrip()) if stderr.strip() else ():
        match = place.fullmatch(line)
        if match:
            warning, row, key, text = match.groups()
            severity: Severity = "warning" if warning else "error"
            key_path = (key,) if key else ()
            yield Message(key_path, text, severity, line=int(row or 0))


def import_text(text: str, file_name: str) -> tuple[str, str]:
    """Converts a configuration file or a command line of another program.

    Returns the job, or the `run.py` command that does the same, and the messages of the
    conversion. The job is empty if the conversion failed.
    """
    suffix = Path(file_name).suffix.lower()
    if suffix not in _SUFFIXES:
        suffix = _suffix_of(text)
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"imported{suffix}"
        path.write_text(text, encoding="utf-8")
        code, stdout, stderr = run_py("import", str(path))
    stderr = stderr.replace(f"{folder}/", "")
    if code != 0:
        return "", stderr
    return stdout.replace(f"{folder}/", ""), stderr


def _suffix_of(text: str) -> str:
    with suppress(ValueError, RecursionError):
        tomllib.loads(text)
        return ".toml"
    if text.lstrip().startswith(("{", "[")):
        return ".json"
    return ".yaml"


@dataclass(frozen=True)
class Key:
    """A key of a process in the schema of job files.

    >>> key = Key("train.steps", "Optimizer steps.", "3000", "integer", ())
    >>> key.section, key.is_text
    ('train', False)
    """

    name: str
    """Key with its sections, such as `datasets[].num_repeats`."""

    about: str
    default: str
    kind: str
    choices: tuple[str, ...]

    @property
    def section(self) -> str:
        """Section of the process that contains the key, or the key itself."""
        return self.name.partition(".")[0]

    @property
    def is_text(self) -> bool:
        """Whether typed text is the value itself. Otherwise it is read as YAML."""
        return self.kind == "string"


def keys_of(memory: dict[Any, Any], process_type: str) -> tuple[Key, ...]:
    """All keys of a process type; empty for an unknown type.

    memory: `Ui.memory`, where the schema is kept. Raises RuntimeError if the schema
    cannot be read.
    """
    if "schema" not in memory:
        code, stdout, stderr = run_py("--print-schema")
        if code:
            raise RuntimeError(stderr)
        memory["schema"] = json.loads(stdout)
    schema = memory["schema"]
    processes = schema["properties"]["config"]["properties"]["process"]
    for rule in processes["items"]["allOf"]:
        if process_type in rule["if"]["properties"]["type"]["enum"]:
            model = rule["then"]["$ref"]
            return tuple(_keys(schema["$defs"], model.rpartition("/")[2], ""))
    return ()


def _kinds(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The kinds of value that a key takes, without null and variables."""
    for kind in schema.get("anyOf", [schema]):
        if "anyOf" in kind:
            yield from _kinds(kind)
        elif kind.get("type") != "null" and kind.get("$ref") != "#/$defs/Variable":
            either = kind.get("type", "")
            yield kind | {"type": either if isinstance(either, str) else either[0]}


def _keys(models: dict[str, Any], model: str, prefix: str) -> Iterator[Key]:
    for name, field_ in models[model]["properties"].items():
        about = field_.get("description", "")
        if (
            field_.get("deprecated")
            or about.startswith("Means ")
            or f"{prefix}{name}" in ("type", "name")
        ):
            continue
        kinds = [*_kinds(field_)]
        section = kinds[0] if len(kinds) == 1 else {}
        inner = section.get("$ref") or section.get("items", {}).get("$ref")
        if inner:
            many = "[]" if "items" in section else ""
            yield from _keys(models, inner.rpartition("/")[2], f"{prefix}{name}{many}.")
            continue
        choices = [
            choice
            for kind in kinds
            for choice in kind.get("enum", [kind["const"]] if "const" in kind else [])
        ]
        if any(kind.get("type") == "boolean" for kind in kinds):
            choices += [True, False]
        default = field_.get("default")
        yield Key(
            name=f"{prefix}{name}",
            about=" ".join(about.split()),
            default="" if default in (None, "") else typed(default),
            kind=" ".join(dict.fromkeys(kind["type"] for kind in kinds)),
            choices=tuple(map(typed, choices)),
        )


def typed(value: Any) -> str:
    """A value as it is typed: a text as it is, anything else as YAML."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)
