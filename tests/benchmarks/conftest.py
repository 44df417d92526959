"""Runs a bench in this process and reads its last line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch


@pytest.fixture
def report_of(
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Callable[..., dict[str, Any]]]:
    """Calls `main` of a bench with these arguments and returns its JSON line."""
    threads = torch.get_num_threads()

    def run(main: Callable[[list[str]], None], *arguments: object) -> dict[str, Any]:
        main([str(argument) for argument in arguments])
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    yield run
    torch.set_num_threads(threads)
