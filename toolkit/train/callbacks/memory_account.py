"""Reads the allocator's records before new events replace them.

`train.memory_account` lists what takes the GPU memory of a run. The account itself is
in `toolkit.memory.account`; this callback only decides when it reads: when training
begins, and after a step with a new peak. Added by `jobs.process.trainer` on a GPU.
"""

from __future__ import annotations

from toolkit.memory.account import MemoryAccount
from toolkit.train.run import Callback, Run


class MemoryAccountCallback(Callback):
    """Reads it when training begins, and after each step whose peak is higher than all
    before.

    Example::

        run.callbacks = [*run.callbacks, MemoryAccountCallback(account)]
    """

    included_in_step_time = False

    def __init__(self, account: MemoryAccount) -> None:
        self._account = account

    def on_start(self, run: Run) -> None:
        self._account.take("loading and the largest batch")

    def after_step(self, run: Run) -> None:
        self._account.take_if_grown()
