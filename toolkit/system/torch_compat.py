"""Functions that older supported versions of PyTorch lack or name differently. All
other code is written for the newest version.

Each function looks for the feature that it needs, not at the version: versions under
development have parts of the next one. `torch_version` says which versions are
supported. Called by `toolkit.memory.fsdp`, and by `launch`, which starts several processes.
"""

from __future__ import annotations

import signal
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

FORMER_NAMES = {
    "all_gather_single": "all_gather_into_tensor",
    "reduce_scatter_single": "reduce_scatter_tensor",
}
"""Function of `torch.distributed` -> its name before 2.13, which later versions warn
about."""

SHUTDOWN_TIMEOUT = "--shutdown-timeout"


def collective(name: str) -> Callable[..., Any]:
    """The function of `torch.distributed` that 2.13 calls `name`."""
    import torch.distributed as dist

    function: Callable[..., Any] = getattr(dist, name, None) or getattr(
        dist, FORMER_NAMES[name]
    )
    return function


def torchrun_parser() -> ArgumentParser:
    """torchrun's parser of arguments, with --shutdown-timeout, which 2.11 lacks."""
    from torch.distributed.argparse_util import env
    from torch.distributed.run import get_args_parser

    parser: ArgumentParser = get_args_parser()
    if SHUTDOWN_TIMEOUT not in parser._option_string_actions:
        parser.add_argument(SHUTDOWN_TIMEOUT, action=env, type=int, default=30)
        parser.set_defaults(is_shutdown_timeout_ours=True)
    return parser


def parse_torchrun(arguments: Sequence[str]) -> Namespace:
    """torchrun's options. Where torchrun does not know --shutdown-timeout, its agents
    in this process are changed to obey it."""
    options = torchrun_parser().parse_args(arguments)
    if getattr(options, "is_shutdown_timeout_ours", False):
        _wait_for_workers(options.shutdown_timeout)
    return options


def _wait_for_workers(seconds: int) -> None:
    """Makes agents of torchrun that pass a signal on wait this long for their workers,
    instead of 30 seconds."""
    from torch.distributed.elastic.agent.server.local_elastic_agent import (
        LocalElasticAgent,
    )

    shutdown = LocalElasticAgent._shutdown

    def wait(agent: Any, death_sig: signal.Signals = signal.SIGTERM) -> None:
        context = agent._pcontext
        if context:
            context.close = partial(context.close, timeout=seconds)
        shutdown(agent, death_sig)

    LocalElasticAgent._shutdown = wait  # type: ignore[assignment]
