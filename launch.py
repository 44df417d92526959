"""torchrun, but for how it ends: with one line that says why, and with the exit code of
its processes.

    python launch.py --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint node0:29500 run.py job.yaml

Takes torchrun's arguments. Processes that are stopped by a signal have 300 seconds to
save, not 30 (`--shutdown-timeout`).

Exit code: 0, or that of the process that failed first (128 + n when it was killed by
signal n); 75 or 130 when this launcher was stopped by a signal, as `run.py`; 1 when the
machines did not meet, or lost each other; 2 when PyTorch is too old.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from toolkit.errors import EXIT_DONE, EXIT_FAILURE, EXIT_SIGINT, EXIT_SIGTERM, UserError
from toolkit.system.torch_compat import parse_torchrun
from toolkit.system.torch_version import check_torch_version

_SAID_HERE = ("failed (exitcode", "Sending process")
"""How torchrun's messages begin about a process that failed, which is reported once
below or has said why itself, and about each of the others that it stops then. One that
does not end is still told."""


def main(arguments: Sequence[str]) -> int:
    """Runs torchrun with these arguments and returns the exit code."""
    try:
        check_torch_version()
    except UserError as error:
        _report(str(error))
        return error.exit_code
    # torchrun looks there for what its arguments do not say
    os.environ.setdefault("PET_SHUTDOWN_TIMEOUT", "300")
    with _no_stacks_of_cpp():
        from torch.distributed import DistError
        from torch.distributed.elastic.multiprocessing import api, errors
        from torch.distributed.elastic.rendezvous import RendezvousError
        from torch.distributed.run import run

    logging.getLogger(api.__name__).addFilter(
        lambda record: not str(record.msg).startswith(_SAID_HERE)
    )
    options = parse_torchrun(arguments)
    try:
        run(options)
    except errors.ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:
            return failure.exitcode  # the process has said why
        _report(f"process {rank} was killed by {failure.signal_name()}")
        return 128 - failure.exitcode
    except api.SignalException as error:
        return EXIT_SIGINT if error.sigval == signal.SIGINT else EXIT_SIGTERM
    except (RendezvousError, DistError) as error:
        _report(_why_not_met(error, options))
        return EXIT_FAILURE
    return EXIT_DONE


def _why_not_met(error: Exception, options: Namespace) -> str:
    from torch.distributed.elastic.rendezvous import (
        RendezvousClosedError,
        RendezvousTimeoutError,
    )

    place = (
        options.rdzv_endpoint or f"{options.master_addr}:{options.master_port or 29500}"
    )
    if isinstance(error, RendezvousTimeoutError):
        count = options.nnodes.partition(":")[0]
        return (
            f"fewer than {count} machines met at {place} in time (join_timeout of --rdzv-conf, 600 s if not given). "
            "Check that all were started, with the same --rdzv-id."
        )
    if isinstance(error, RendezvousClosedError):
        return f"the run of this --rdzv-id is ending at {place}. Start the command again on all machines."
    # below it may be a stack of C++
    reason = str(error.__cause__ or error).partition("\n")[0].rstrip(". ")
    return (
        f"no connection to the rendezvous at {place}: {reason}. Check --rdzv-endpoint, and that the launcher of that "
        "machine is running."
    )


def _report(text: str) -> None:
    print(f"launch.py: {text}", file=sys.stderr, flush=True)


@contextmanager
def _no_stacks_of_cpp() -> Iterator[None]:
    """PyTorch, if imported inside the block, does not log each failed connection with a
    stack; the processes that are started later are not affected."""
    name = "TORCH_CPP_LOG_LEVEL"
    given = os.environ.get(name)
    os.environ[name] = "FATAL"
    try:
        yield
    finally:
        os.environ.pop(name)
        if given is not None:
            os.environ[name] = given


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
