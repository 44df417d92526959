"""Fixtures of tests that compile."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor import config as inductor


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Nothing is compiled yet, and settings of the compiler are restored afterwards. It
    starts no processes, each of which would import PyTorch."""
    torch._dynamo.reset()
    counters.clear()
    with (
        torch._dynamo.config.patch(),
        torch._functorch.config.patch(),
        inductor.patch(compile_threads=1),
    ):
        yield
    torch._dynamo.reset()
