"""The files for engines: scripts that bash reads, YAML of the shape that the engine
takes, torchrun's own flags."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from toolkit.system.torch_compat import torchrun_parser

ENGINES = Path(__file__).resolve().parents[2] / "docker" / "engines"
FILES = sorted(file for file in ENGINES.iterdir() if file.is_file())


@pytest.mark.parametrize(
    "file",
    [file for file in FILES if file.suffix != ".yaml"],
    ids=lambda file: file.name,
)
def test_bash_reads_the_script(file: Path) -> None:
    subprocess.run(["bash", "-n", file], check=True)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_torchrun_knows_the_flags(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    commands = re.findall(
        r"launch\.py(?:(?!launch\.py).)*? run\.py|- \S*launch\.py.*?- \S*run\.py",
        text,
        re.DOTALL,
    )
    used = set(re.findall(r"--[a-z-]+", "".join(commands)))
    known = {
        flag for action in torchrun_parser()._actions for flag in action.option_strings
    }
    assert used and used <= known


def test_the_yaml_files_name_two_machines() -> None:
    kubernetes, sky = (
        yaml.safe_load((ENGINES / f"{name}.yaml").read_text())
        for name in ("kubernetes", "skypilot")
    )
    assert (
        kubernetes["kind"] == "TrainJob"
        and kubernetes["spec"]["trainer"]["numNodes"] == 2
    )
    assert sky["num_nodes"] == 2 and sky["resources"]["use_spot"] is True
