"""What a machine is short of is recognised under all of its names."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from toolkit.errors import OutOfMemory, RunError, UserError
from toolkit.files.unreadable import explained
from toolkit.files.writing import TOOLKIT_ROOT
from toolkit.models.loading import reading
from toolkit.shortage import FILES, MEMORY, THREADS, is_short_of, shortage


class PanicException(BaseException):
    """As a panic of a library in Rust is named."""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("can't start new thread"), THREADS),
        (RuntimeError("Resource temporarily unavailable"), THREADS),
        (BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)), THREADS),
        (
            PanicException(
                'ThreadPoolBuildError { message: "Resource temporarily unavailable" }'
            ),
            THREADS,
        ),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE), "a"), FILES),
        (OSError(errno.ENFILE, os.strerror(errno.ENFILE)), FILES),
        (
            SafetensorError("Error opening file: Too many open files (os error 24)"),
            FILES,
        ),
        (MemoryError(), MEMORY),
        (np._core._exceptions._ArrayMemoryError((1,), np.dtype("f4")), MEMORY),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), MEMORY),
        (SafetensorError("I/O error: Cannot allocate memory (os error 12)"), MEMORY),
        (
            ImportError("libx.so: cannot map zero-fill pages: Cannot allocate memory"),
            MEMORY,
        ),
        (
            RuntimeError(
                "unable to mmap 9 bytes from file <a>: Cannot allocate memory (12)"
            ),
            MEMORY,
        ),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"
            ),
            MEMORY,
        ),
        (RuntimeError("CUDA error: out of memory"), MEMORY),
        (RuntimeError("could not create a primitive"), MEMORY),
        (SystemError("error return without exception set"), MEMORY),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
            MEMORY,
        ),
        (ValueError("out of memory"), None),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), None),
        (
            RuntimeError("unable to mmap 9 bytes from file <a>: Invalid argument (22)"),
            None,
        ),
        (OutOfMemory("out of memory with one image. Lower the resolution."), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_each_name_is_known(error: BaseException, expected: object) -> None:
    assert is_short_of(error) is shortage(error) is expected


def raised(
    first: BaseException, second: BaseException, hides: bool = False
) -> BaseException:
    """The second error, as it is raised while the first one is handled."""
    try:
        try:
            raise first
        except BaseException:  # noqa: BLE001 - it is raised again
            if hides:
                raise second from None
            raise second  # noqa: B904 - as libraries do
    except BaseException as error:  # noqa: BLE001 - it is what was asked for
        return error


def test_a_library_may_have_put_its_own_words_on_top() -> None:
    short, words = (
        RuntimeError("can't start new thread"),
        OSError("Can't load the model"),
    )
    assert shortage(raised(short, words)) is THREADS
    assert shortage(raised(short, OSError("another thing"), hides=True)) is None
    assert shortage(raised(short, UserError("what the program says of it"))) is None
    assert is_short_of(raised(short, OSError("Can't load the model"))) is None


def test_a_file_that_could_not_be_opened_is_not_damaged(tmp_path: Path) -> None:
    error = OSError(errno.EMFILE, os.strerror(errno.EMFILE), "a")
    assert explained(
        tmp_path, error, "damaged weights", "Copy or download the model again."
    ) == (
        "not readable (this program may open no more files). Lower num_workers, or raise the limit of 'ulimit -n'."
    )


def program(limit: str, code: str) -> subprocess.CompletedProcess:
    """Runs code under a limit of the system, with its error reported as the program
    does."""
    frame = (
        "import resource, sys, threading\nfrom jobs.exit import run_with_exit_code\n"
    )
    frame += f"def action():\n    {limit}\n    {code}\n    return 0\nsys.exit(run_with_exit_code(action))"
    return subprocess.run(
        [sys.executable, "-c", frame], cwd=TOOLKIT_ROOT, capture_output=True, text=True
    )


MEMORY_LIMIT = "resource.setrlimit(resource.RLIMIT_AS, (1 << 28, 1 << 28))"
FILES_LIMIT = "resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))"
STARTED = "[threading.Thread(target=threading.Event().wait, daemon=True).start() for _ in range(9999)]"


@pytest.mark.parametrize(
    ("limit", "code", "said"),
    [
        (
            MEMORY_LIMIT,
            "bytearray(1 << 30)",
            f"Failed: {MEMORY.what} (MemoryError). {MEMORY.remedy}.\n",
        ),
        (
            MEMORY_LIMIT,
            STARTED,
            f"Failed: {THREADS.what} (RuntimeError: can't start new thread). {THREADS.remedy}.\n",
        ),
        (
            FILES_LIMIT,
            "[open('run.py') for _ in range(99)]",
            f"Failed: {FILES.what} (OSError: [Errno 24] Too many open files: 'run.py'). {FILES.remedy}.\n",
        ),
    ],
    ids=["memory", "threads", "files"],
)
def test_under_a_real_limit_it_is_one_line(limit: str, code: str, said: str) -> None:
    ended = program(limit, code)
    assert (ended.returncode, ended.stderr) == (1, said)


def test_a_part_of_a_model_that_is_not_read_for_want_of_threads_is_not_damaged(
    tmp_path: Path,
) -> None:
    """transformers reads weights in threads, and puts its own words on top."""
    error = raised(
        RuntimeError("can't start new thread"),
        OSError("Error no file named model.safetensors"),
    )
    with pytest.raises(RunError) as caught, reading(tmp_path):
        raise error
    assert (
        str(caught.value)
        == f"{tmp_path}: cannot be loaded: {THREADS.what}. {THREADS.remedy}."
    )
    with pytest.raises(MemoryError), reading(tmp_path):
        raise MemoryError
    with (
        pytest.raises(
            RunError,
            match=r"cannot be loaded \(cut off\)\. Copy or download the model again\.$",
        ),
        reading(tmp_path),
    ):
        raise OSError("cut off")
