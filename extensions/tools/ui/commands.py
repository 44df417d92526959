"""What the page asks of the program, each time in a process of its own: the check of a
job, its plan, the schema, what another program's file is here. So the page stays light,
and no file that it is given runs in it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

from toolkit.files.writing import TOOLKIT_ROOT

RUN_PY = TOOLKIT_ROOT / "run.py"

LIMIT_S = 60.0
"""Seconds that a command may take."""

LATE = 124
"""Exit code of a command that took too long, as that of coreutils' `timeout`."""

_SUFFIXES = (".toml", ".yaml", ".yml", ".json", ".jsonc")
_lock = Lock()


@dataclass(frozen=True)
class Message:
    """One line that a command said of a job."""

    text: str
    line: int = 0
    """Line of the job, from 1; 0: none."""

    key: str = ""
    """Key as in messages: `process[0].train.steps`."""


@dataclass
class Checked:
    """What `--dry-run` said of a job."""

    errors: list[Message] = field(default_factory=list)
    warnings: list[Message] = field(default_factory=list)
    plan: dict[str, Any] | None = None
    fault: str = ""
    """`late`: it took too long; `replaced`: a newer check of the same tab ended it."""


def run_py(
    *arguments: str,
    cwd: str | None = None,
    limit_s: float | None = None,
    is_idle: bool = False,
    checks: dict[str, subprocess.Popen[str]] | None = None,
    tab: str = "",
) -> tuple[int, str, str]:
    """Exit code and streams of `run.py` with these arguments; LATE and no output where
    it took too long.

    cwd: working directory; None: the page's. limit_s: seconds that it may take; None:
    LIMIT_S. is_idle: at a low priority. checks, tab: the processes of tabs; of one tab
    the newest alone goes on, and the one before it ends with a negative code.
    """
    nice = shutil.which("nice") if is_idle else None
    command = [
        *([nice, "-n", "10"] if nice else []),
        sys.executable,
        str(RUN_PY),
        *arguments,
    ]
    if checks is not None and tab:
        running = checks
    else:
        running = {}
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
        out, told = process.communicate(timeout=LIMIT_S if limit_s is None else limit_s)
    except subprocess.TimeoutExpired:
        return LATE, "", ""
    finally:
        process.kill()
        process.wait()
        with _lock:
            if running.get(tab) is process:
                del running[tab]
    return process.returncode, out, told


def check_job(
    memory: dict[Any, Any], text: str, name: str, tab: str, card: str = ""
) -> Checked:
    """Checks a job as the command line does, with its plan. memory: where the checks
    that still run are kept. name: of the file, for messages. card: that of `--card`;
    empty: none."""
    checked = Checked()
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_text(text, encoding="utf-8")
        checks = memory.setdefault("commands", {})
        asked = ["--card", card] if card else []
        code, out, told = run_py(
            str(path), "--dry-run", "--json", *asked, checks=checks, tab=tab
        )
    if code < 0 or code == LATE:
        return Checked(fault="late" if code == LATE else "replaced")
    for is_warning, message in _messages(told.replace(f"{folder}/", ""), name):
        (checked.warnings if is_warning else checked.errors).append(message)
    if code == 0:
        checked.plan = json.loads(out)
        checked.warnings += checked.errors  # notes: it succeeded
        checked.errors = []
    return checked


def _messages(told: str, name: str) -> Iterator[tuple[bool, Message]]:
    """The lines of standard error, each whether it is a warning; indented ones go on
    with the one before."""
    place = re.compile(
        rf"(?s)(warning: )?(?:{re.escape(name)}(?::(\d+):\d+)?: )?(?:([a-z]\w*(?:[.\[][\w.\[\]-]+)?): (?=\S))?(.*)"
    )
    for line in re.split(r"\n(?! )", told.rstrip()) if told.strip() else ():
        match = place.fullmatch(line)
        if match:
            warning, row, key, text = match.groups()
            yield bool(warning), Message(text, int(row or 0), key or "")


def import_text(text: str, file_name: str) -> tuple[str, str]:
    """The job, or the command, that a file or a command of another program is here; and
    what was said of it. An empty job: it is none."""
    suffix = Path(file_name).suffix.lower()
    with TemporaryDirectory() as folder:
        path = (
            Path(folder)
            / f"imported{suffix if suffix in _SUFFIXES else _suffix_of(text)}"
        )
        path.write_text(text, encoding="utf-8")
        code, out, told = run_py("import", str(path))
    out, told = (each.replace(f"{folder}/", "") for each in (out, told))
    return (out if code == 0 else ""), told


def _suffix_of(text: str) -> str:
    with suppress(ValueError, RecursionError):
        tomllib.loads(text)
        return ".toml"
    if text.lstrip().startswith(("{", "[")):
        return ".json"
    return ".yaml"


@dataclass(frozen=True)
class Key:
    """A key of a process, as the schema has it."""

    name: str
    """`datasets[].num_repeats`."""

    about: str
    default: str
    kind: str
    choices: tuple[str, ...]

    @property
    def section(self) -> str:
        """The section of the process that it is in, or itself."""
        return self.name.partition(".")[0]

    @property
    def is_text(self) -> bool:
        """Whether what is typed is a text, not YAML."""
        return self.kind == "string"


def keys_of(memory: dict[Any, Any], process_type: str) -> tuple[Key, ...]:
    """All keys of a type of process; none of one that is not known. memory: where the
    schema is kept. Raises RuntimeError where there is no schema."""
    if "schema" not in memory:
        code, out, told = run_py("--print-schema")
        if code:
            raise RuntimeError(told)
        memory["schema"] = json.loads(out)
    schema = memory["schema"]
    for rule in schema["properties"]["config"]["properties"]["process"]["items"][
        "allOf"
    ]:
        if process_type in rule["if"]["properties"]["type"]["enum"]:
            model = rule["then"]["$ref"]
            return tuple(_keys(schema["$defs"], model.rpartition("/")[2], ""))
    return ()


def _keys(models: dict[str, Any], model: str, prefix: str) -> Iterator[Key]:
    for name, field_ in models[model]["properties"].items():
        about = field_.get("description", "")
        if (
            field_.get("deprecated")
            or about.startswith("Means ")
            or f"{prefix}{name}" in ("type", "name")
        ):
            continue
        kinds = []
        for kind in field_.get("anyOf", [field_]):
            if kind.get("type") != "null":
                kinds.append(kind)
        section = kinds[0] if len(kinds) == 1 else {}
        inner = section.get("$ref") or section.get("items", {}).get("$ref")
        if inner:
            many = "[]" if "items" in section else ""
            yield from _keys(models, inner.rpartition("/")[2], f"{prefix}{name}{many}.")
            continue
        choices = []
        for kind in kinds:
            for choice in kind.get("enum", [kind["const"]] if "const" in kind else []):
                choices.append(choice)
        if any(kind.get("type") == "boolean" for kind in kinds):
            choices += [True, False]
        default = field_.get("default")
        yield Key(
            name=f"{prefix}{name}",
            about=" ".join(about.split()),
            default="" if default in (None, "") else _shown(default),
            kind=" ".join(dict.fromkeys(str(kind.get("type", "")) for kind in kinds)),
            choices=tuple(map(_shown, choices)),
        )


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)
