"""The examples that are written as another program's guide writes them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.config.test_examples import CONFIG, examples_with
from tests.processes import output_of


def test_the_file_of_fluxflows_guide_is_planned(
    examples_alone: Path, run_py: Callable
) -> None:
    (example,) = examples_with(lambda types: not types)
    result = run_py(example, "--dry-run", "--json", cwd=examples_alone)
    assert (example, result.returncode) == ("config/examples/fluxflow.yaml", 0), (
        result.stderr
    )
    assert json.loads(result.stdout)["processes"]


@pytest.mark.slow
def test_the_command_of_fluxflows_guide_with_variables_is_planned(
    examples_alone: Path,
) -> None:
    environment = os.environ | {"RUN": f"{sys.executable} {CONFIG.parent / 'run.py'}"}
    command = ["bash", "config/examples/fluxflow.sh", "--dry-run", "--json"]
    told = output_of(*command, cwd=examples_alone, env=environment, said="")
    plan = json.loads(told)
    assert (plan["job"], plan["folders"]) == (
        "fluxflow_sh",
        ["outputs/fluxflow_sh/train"],
    )
    assert plan["processes"][0]["optimizer_steps"] > 0
