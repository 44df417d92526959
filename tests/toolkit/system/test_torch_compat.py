"""Older supported versions of PyTorch, imitated by the installed one. `.ci/versions`
tests on all of them."""

from __future__ import annotations

import signal
from argparse import ArgumentParser
from types import SimpleNamespace

import pytest
import torch.distributed as dist
import torch.distributed.run
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

from toolkit.system import torch_compat


@pytest.mark.parametrize(("name", "former"), torch_compat.FORMER_NAMES.items())
def test_a_collective_is_found_by_either_name(
    monkeypatch: pytest.MonkeyPatch, name: str, former: str
) -> None:
    for each in (name, former):
        monkeypatch.setattr(dist, each, each, raising=False)
    assert torch_compat.collective(name) == name
    monkeypatch.delattr(dist, name)
    assert torch_compat.collective(name) == former


@pytest.fixture
def without_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun of 2.11: it knows no --shutdown-timeout, and its agents wait 30
    seconds."""

    def parser() -> ArgumentParser:
        made = ArgumentParser()
        made.add_argument("--nnodes")
        made.add_argument("script")
        made.add_argument("arguments", nargs="...")
        return made

    def shutdown(
        agent: SimpleNamespace, death_sig: signal.Signals = signal.SIGTERM
    ) -> None:
        agent._pcontext.close(death_sig)

    monkeypatch.setattr(torch.distributed.run, "get_args_parser", parser)
    monkeypatch.setattr(LocalElasticAgent, "_shutdown", shutdown)


@pytest.mark.parametrize(
    ("given", "seconds"),
    [([], 300), (["--shutdown-timeout", "7"], 7), (["--shutdown-timeout=7"], 7)],
)
def test_torchrun_without_the_flag_waits_as_long(
    without_flag, monkeypatch: pytest.MonkeyPatch, given: list[str], seconds: int
) -> None:
    monkeypatch.setenv("PET_SHUTDOWN_TIMEOUT", "300")
    options = torch_compat.parse_torchrun(
        [*given, "--nnodes=2", "run.py", "job.yaml", "--shutdown-timeout=9"]
    )
    assert (options.nnodes, options.script) == ("2", "run.py")
    assert options.arguments == ["job.yaml", "--shutdown-timeout=9"]
    closed = []

    def close(death_sig: signal.Signals, timeout: int = 30) -> None:
        closed.append((death_sig, timeout))

    LocalElasticAgent._shutdown(
        SimpleNamespace(_pcontext=SimpleNamespace(close=close)), signal.SIGINT
    )
    assert closed == [(signal.SIGINT, seconds)]
    LocalElasticAgent._shutdown(SimpleNamespace(_pcontext=SimpleNamespace(close=close)))
    assert closed[1] == (signal.SIGTERM, seconds)
