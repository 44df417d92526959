"""What a machine is short of: memory, threads, or open files.

`shortage` recognises the shortage in an error, by all the names that Python, PyTorch,
libraries in Rust and the system have for it. Nothing is damaged in such a case, and
nothing has to be downloaded again; the message says what to lower or raise.

`jobs/exit.py` and the modules that read files and models call it. Memory of a GPU that
runs out in a step is handled by `toolkit/train/loop.py`. Imports no torch.
"""

from __future__ import annotations

import errno
import re
from typing import NamedTuple

from toolkit.errors import RunError, UserError


class Shortage(NamedTuple):
    """A resource of the machine that ran out.

    >>> print(Shortage("there is no more room", "Free some space"))
    There is no more room. Free some space.
    """

    what: str
    """In words that follow the name of what cannot be done, and a colon."""

    remedy: str
    """What to lower or raise, without a full stop."""

    def __str__(self) -> str:
        return f"{self.what.capitalize()}. {self.remedy}."


MEMORY = Shortage(
    "there is no more memory for this program",
    "Lower batch_size, resolution or num_workers, close other programs, or raise the limit of the container or of "
    "'ulimit -v'",
)
THREADS = Shortage(
    "the system starts no more threads or processes for this program",
    "Set OMP_NUM_THREADS=1, lower num_workers, or raise the limit of the container (pids), of 'ulimit -u' or of "
    "'ulimit -v'",
)
FILES = Shortage(
    "this program may open no more files",
    "Lower num_workers, or raise the limit of 'ulimit -n'",
)

_NUMBERS = {errno.ENOMEM: MEMORY, errno.EMFILE: FILES, errno.ENFILE: FILES}

_TEXTS = {
    "can't start new thread|Resource temporarily unavailable": THREADS,
    "Too many open files": FILES,
    r"[Oo]ut of memory|_ALLOC_FAILED|ALLOCATION_FAILED|[Cc]an('t|not) allocate memory|bad_alloc": MEMORY,
    "could not (create|execute) a primitive|error return without exception set": MEMORY,
}
"""In the messages of errors that have no class or number of their own: of threads, of
PyTorch's allocators, cuBLAS, cuDNN, NCCL and the driver, of `mmap`, of Rust ("Cannot
allocate memory (os error 12)"); last of oneDNN and CPython 3.11 (both seen under
'ulimit -v')."""

_OF_RUST = ("SafetensorError", "PanicException")


def is_short_of(error: BaseException) -> Shortage | None:
    """The shortage that this very error reports; None: it reports something else.

    >>> is_short_of(OSError(24, "Too many open files")).what
    'this program may open no more files'
    """
    name = type(error).__name__
    if isinstance(error, MemoryError) or name == "OutOfMemoryError":  # of torch
        return MEMORY
    if isinstance(error, OSError) and error.errno in _NUMBERS:
        return _NUMBERS[error.errno]
    if (
        not isinstance(error, RuntimeError | OSError | ImportError | SystemError)
        and name not in _OF_RUST
    ):
        return None
    return next(
        (short for text, short in _TEXTS.items() if re.search(text, str(error))), None
    )


def shortage(error: BaseException) -> Shortage | None:
    """The shortage that an error reports, or one of the errors that led to it: a
    library may have put its own words on top.

    >>> shortage(ValueError("a")) is None
    True
    """
    behind: BaseException | None = error
    while behind is not None and not isinstance(behind, UserError | RunError):
        if is_short := is_short_of(behind):
            return is_short
        behind = behind.__cause__ or (
            None if behind.__suppress_context__ else behind.__context__
        )
    return None
