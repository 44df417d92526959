"""What a machine reads with `--json`: the errors of a job, and the end of its run.

`run.py` prints both to standard output. docs/json.md has the keys. The plan is
`jobs/dry_run.py`'s.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jobs.sweep import run_folders
from toolkit.config.reading.process import JobConfig
from toolkit.errors import Interrupted, ReportedExit, UserError, with_short_words
from toolkit.files.redact import redact_text

_KEY = r"(?:(?P<key>[a-z_]\w*(?:[.\[][\w.\[\]*-]+)?): )?"
_TEXT = r"(?P<message>.*?[.!?])(?: (?=[A-Z'\"(])(?P<remedy>.*))?|(?P<whole>.*)"
_FLAG = r"--?[a-z]+(?: [\w.*\[\]-]+)?"


def faults(error: BaseException | None, file: str) -> list[dict[str, Any]]:
    """An entry for each line of an error: its place, what is wrong, and what to do.

    file: the job; it is also the file of an error that names no place.

    >>> [fault] = faults(UserError("a.yaml:3:5: train.lr: 'x' is wrong. Write 1."), "a.yaml")
    >>> fault["line"], fault["key"], fault["message"], fault["remedy"]
    (3, 'train.lr', "'x' is wrong.", 'Write 1.')
    """
    if isinstance(error, ReportedExit):
        error = error.__cause__
    if error is None or isinstance(error, Interrupted | KeyboardInterrupt):
        return []
    text = with_short_words(redact_text(str(error))) or type(error).__name__
    of_input = isinstance(error, UserError)
    place = rf"(?:(?P<file>{re.escape(file)}|{_FLAG}|[^\s:]+\.\w+)(?::(?P<line>\d+):(?P<column>\d+))?: )?{_KEY}"
    # an indented line goes on with the message before it
    return [
        _fault(line, place if of_input else "", file)
        for line in (re.split(r"\n(?! )", text) if of_input else [text])
    ]


def _fault(line: str, place: str, file: str) -> dict[str, Any]:
    match = re.fullmatch(f"(?s){place}(?:{_TEXT})", line)
    assert match is not None  # `whole` fits every text
    parts = match.groupdict()
    return {
        "file": parts.get("file") or file,
        "line": int(parts.get("line") or 0) or None,
        "column": int(parts.get("column") or 0) or None,
        "key": parts.get("key"),
        "message": parts["message"] or parts["whole"],
        "remedy": parts["remedy"],
    }


def end_of_run(
    file: str, config: JobConfig | None, code: int, error: BaseException | None
) -> dict[str, Any]:
    """The line that `--json` prints when a run has ended. config: None where the job
    could not be read."""
    folders: list[Path] = run_folders(config) if config else []
    weights = [path for folder in folders for path in folder.glob("*.safetensors")]
    return {
        "file": file,
        "job": config.name if config else None,
        "exit_code": code,
        "folders": list(map(str, folders)),
        "files": sorted(map(str, weights)),
        "errors": faults(error, file),
    }
