"""What a verb changes, as one list of steps: done whole, or not at all.

`do` looks at every target first, and nothing is replaced. What needs room is written
next, under temporary names (`atomic_write`); what is left is renames. So a disk that is
full changes nothing, and where a rename fails those before it are taken back.

A kill can come between two steps. Each verb of `extensions.tools.ui.shelf` lists the
steps that are left, and the last one moves what the verb names: until then the same
command finds it, and does the rest.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from contextlib import ExitStack
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from toolkit.errors import RunError, UserError
from toolkit.files.writing import (
    atomic_write,
    fsync,
    os_error_as_run_error,
    read_source,
    sweep,
)


class Step(NamedTuple):
    """`source` moves to `target`, unless the step has a text or copies.

    >>> Step(Path("datasets/cats"), Path("datasets/toms")).text is None
    True
    """

    source: Path
    target: Path
    text: str | None = None
    """What the file `target` says, which may be `source` itself. It gets the rights of
    `source`, and secrets stay in it."""

    copies: bool = False
    """The folder `source` is copied. Links in it stay links."""

    @property
    def moves(self) -> bool:
        """Whether `source` moves."""
        return self.text is None and not self.copies


def text_of(path: Path) -> str:
    """The text of a file, which a step writes back byte for byte. Raises OSError."""
    return read_source(path).decode("utf-8", "surrogateescape")


def do(steps: Iterable[Step]) -> None:
    """Does all of the steps in their order, the moves last.

    Raises UserError where a target is taken, and RunError for an error of the disk,
    after which nothing has changed.
    """
    steps = [*steps]
    _require_free(steps)
    made = [step for step in steps if not step.moves]
    for step in made:
        sweep(step.target)
    texts, moved = list[Step](), list[Step]()  # what takes them back
    try:
        with ExitStack() as staged:
            for step in reversed(made):  # they are renamed in the order of the list
                staged.enter_context(os_error_as_run_error(step.target))
                temporary = atomic_write(step.target, durable=False)
                _make(step, staged.enter_context(temporary))
            edited = (path for path, target, *_ in made if path == target)
            texts = [Step(path, path, text_of(path)) for path in edited]
        for step in filter(attrgetter("moves"), steps):
            with os_error_as_run_error(step.target):
                step.target.parent.mkdir(parents=True, exist_ok=True)
                os.rename(step.source, step.target)
            moved.insert(0, Step(step.target, step.source))
    except RunError:
        do(moved)
        do(texts)
        raise


def _require_free(steps: Iterable[Step]) -> None:
    moved = set[Path]()
    for step in steps:
        is_free = step.target in (step.source, *moved)
        if not is_free and os.path.lexists(step.target):
            raise UserError(
                f"{step.target}: is in the way, and nothing is replaced. Move it away, or give another name."
            )
        if step.moves:
            moved.add(step.source)


def _make(step: Step, temporary: Path) -> None:
    if step.text is not None:
        temporary.touch(0o600 if step.source.is_file() else 0o666)
        temporary.write_bytes(step.text.encode("utf-8", "surrogateescape"))
        if step.source.is_file():
            shutil.copymode(step.source, temporary)
        fsync(temporary)
        return
    try:
        shutil.copytree(step.source, temporary, symlinks=True, copy_function=_copy)
        for folder in (temporary, *filter(Path.is_dir, temporary.rglob("*"))):
            fsync(folder)
    except shutil.Error as error:
        source, _, why = error.args[0][0]
        raise RunError(f"{source}: cannot be copied: {why}") from error


def _copy(source: str, target: str) -> None:
    shutil.copy2(source, target)
    fsync(Path(target))
