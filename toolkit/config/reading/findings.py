"""What a section says against its values: errors, and warnings about what is allowed
but does nothing.

Each section says it in its `check`, one `if` and one line per message;
`base.all_findings` asks a section and those below it, and puts the place before each
key. What concerns two sections is reported by the one above both; combinations in the
whole section of a trainer stand in its `rules.py`, bounds of a single value at its
field.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from toolkit.config.reading.field_types import moved_hint, near_path, path_hint
from toolkit.errors import Diagnostic, Severity
from toolkit.files.archives import archive_in

Findings = Iterable[Diagnostic]


@dataclass(frozen=True)
class JobContext:
    """What a section may know of the job it stands in.

    >>> earlier = frozenset({Path("models/new").resolve()})
    >>> job = JobContext("my_char", earlier_outputs=earlier)
    >>> job.will_write("models/new/vae"), job.yet_to_come("models/other")
    (True, False)
    """

    name: str
    """The job's name."""

    earlier_outputs: frozenset[Path] = frozenset()
    """Resolved folders that earlier processes of this job will write (a model, say):
    not missing, only later."""

    restart: bool = False
    """As `--restart` and `allow_change` as `--allow-change` were given: they decide how
    a run starts."""

    allow_change: bool = False

    was_finished: bool = False
    """An earlier start of the job finished this process: what it wrote is its own."""

    measures_memory: bool = False
    """Memory that is only known by a step on fake tensors is measured: seconds, and
    torch. A start always does."""

    card: str = ""
    """`--card`: the card that a dry run calculates the time for; empty: the one of this
    machine."""

    begins_anew: bool = False
    """What this process wrote before is moved aside (`--restart-from`)."""

    def will_write(self, path: str | Path) -> bool:
        """Whether an earlier process of this job writes `path`, or a folder that it is
        in."""
        resolved = Path(path).expanduser().resolve()
        return any(
            folder in self.earlier_outputs for folder in (resolved, *resolved.parents)
        )

    def yet_to_come(self, path: str | Path) -> bool:
        """Whether an earlier process of this job writes `path`, which is not there
        yet."""
        return self.will_write(path) and not Path(path).expanduser().exists()


def _finding(severity: Severity, key: str, message: str) -> Diagnostic:
    return Diagnostic(
        tuple(int(part) if part.isdigit() else part for part in key.split(".")),
        message,
        severity,
    )


error = partial(_finding, "error")
"""error("datasets.0.folder_path", "message with the remedy")"""

warning = partial(_finding, "warning")


def below(name: str | int, findings: Findings) -> Iterator[Diagnostic]:
    """The findings of a section with `name` put before their keys, so that they are
    right one section further up.

    >>> next(below("train", [Diagnostic(("lr",), "is negative")])).place
    'train.lr'
    """
    return (replace(finding, key=(name, *finding.key)) for finding in findings)


def is_absolute(path: str) -> bool:
    """Whether it begins at a root, a home folder or a drive, of this machine's kind or
    another's.

    >>> is_absolute("C:/photos"), is_absolute("~/photos"), is_absolute("photos")
    (True, True, False)
    """
    return path.startswith(("/", "~", "\\")) or path[1:3] in (":\\", ":/")


def check_path(
    key: str, path: str | None, remedy: str, job: JobContext, *, file: bool = False
) -> Iterator[Diagnostic]:
    """An error for a folder, or file, that is not there and that no earlier process of
    the job writes."""
    if path is None or job.will_write(path):
        return
    resolved = Path(path).expanduser().resolve()
    if not file and archive_in(path):
        return
    if not resolved.exists():
        offer = path_hint(path) or near_path(path) + remedy + moved_hint(path)
        yield error(
            key, f"{path!r} does not exist (working directory: {Path.cwd()}). {offer}"
        )
    elif file != resolved.is_file():
        yield error(key, f"{path!r} is not a {'file' if file else 'folder'}. {remedy}")
