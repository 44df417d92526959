"""Reads what the allocator has recorded before new events take its place
(`toolkit/memory/account.py`)."""

from __future__ import annotations

from toolkit.memory.account import MemoryAccount
from toolkit.train.run import Callback, Run


class MemoryAccountCallback(Callback):
    """Reads it when training begins, and after each step whose peak is higher than all
    before."""

    included_in_step_time = False

    def __init__(self, account: MemoryAccount) -> None:
        self._account = account

    def on_start(self, run: Run) -> None:
        self._account.take("loading and the largest batch")

    def after_step(self, run: Run) -> None:
        self._account.take_if_grown()
