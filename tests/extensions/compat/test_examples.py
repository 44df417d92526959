"""The examples that are written as another program's guide writes them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.config.test_examples import CONFIG, examples_with


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
    result = subprocess.run(
        command, cwd=examples_alone, env=environment, capture_output=True, text=True
    )
    assert (result.returncode, result.stderr) == (0, "")
    plan = json.loads(result.stdout)
    assert (plan["job"], plan["folders"]) == (
        "fluxflow_sh",
        ["outputs/fluxflow_sh/train"],
    )
    assert plan["processes"][0]["optimizer_steps"] > 0
