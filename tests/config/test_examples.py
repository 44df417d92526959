"""The jobs in config/examples: each can be planned as it is, and those that run
anywhere really learn."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import yaml

from jobs.dry_run import plan_job
from tests.conftest import ROOT, child_environment
from tests.light_start import FORBID
from tests.processes import output_of
from toolkit.config import load_job
from toolkit.config.reading import normalise
from toolkit.extension import discover
from toolkit.system.nvidia import likely_cause, read_facts

CONFIG = Path(__file__).resolve().parents[2] / "config"
CORE_TYPES = {"sd_trainer"}
"""What processes the examples of the core have. Those of a part are tested in the
folder of its tests."""


def types_in(path: Path) -> set[str]:
    """The types of the processes of a job; empty: it is written for another program."""
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {
        process["type"] for process in document.get("config", {}).get("process", ())
    }


def examples_with(chosen: Callable[[set[str]], bool]) -> list[str]:
    """The examples, relative to the folder of the program, whose types are chosen."""
    files = [
        path
        for path in CONFIG.glob("examples/*")
        if path.suffix in (".yaml", ".yml", ".json", ".jsonc")
    ]
    files += CONFIG.glob("examples/*/*.yaml")
    return sorted(
        path.relative_to(CONFIG.parent).as_posix()
        for path in files
        if chosen(types_in(path))
    )


EXAMPLES = examples_with(lambda types: bool(types) and types <= CORE_TYPES)


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_each_is_read_without_a_word_of_other_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "config/examples/quickstart.yaml" in EXAMPLES
    (tmp_path / "config").symlink_to(CONFIG)
    monkeypatch.chdir(tmp_path)
    for name in EXAMPLES:
        asked = f"{name}: other programs were asked"
        monkeypatch.setattr(normalise, "foreign_keys", partial(pytest.fail, asked))
        assert load_job(Path(name), discover().find_config).processes, name


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    return plans_of(EXAMPLES, tmp_path_factory.mktemp("plans"))


def plans_of(examples: list[str], root: Path) -> dict[str, dict]:
    """What a dry run says of each example, without torch, a network, or a trace."""
    (root / "site").mkdir()
    (root / "site" / "sitecustomize.py").write_text(FORBID, encoding="utf-8")
    shutil.copytree(CONFIG, root / "work" / "config")
    before = files_in(root / "work")
    command = [sys.executable, str(ROOT / "run.py"), *examples, "--dry-run", "--json"]
    found = output_of(
        *command,
        cwd=root / "work",
        env=child_environment({"PYTHONPATH": str(root / "site")}),
        said="".join(f"{path}: done\n" for path in examples),
    )
    assert files_in(root / "work") == before
    plans = dict(zip(examples, json.loads(found), strict=True))
    assert all(plan["processes"] for plan in plans.values())
    return plans


REAL = [example for example in EXAMPLES if "/train_" in example]
"""The examples on the published model."""


@pytest.mark.parametrize("example", REAL)
def test_an_example_says_the_memory_and_the_device_that_its_plan_says(
    plans: dict[str, dict], example: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is too large for a CPU: without a GPU the run does not start."""
    text = (CONFIG.parent / example).read_text(encoding="utf-8")
    head = text.splitlines()[0]
    gpu = re.search(r"one (\d+) GB GPU", head)[1]
    monkeypatch.chdir(ROOT)
    job = load_job(example, discover().find_config)
    memory = plan_job(job, card=gpu).processes[0].memory
    assert f"planned peak {memory.peak_bytes / 1e9:.1f} GB." in head
    assert int(gpu) in memory.fitting()
    (line,) = re.findall(r"^ +device: (.*)$", text, re.MULTILINE)
    assert (
        " ".join(line.split())
        == "cuda:0 # the first GPU; this model is not trained without one"
    )
    refused = [
        reason
        for reason in plans[example]["processes"][0]["will_not_start"]
        if reason.startswith("device: ")
    ]
    assert len(refused) == (likely_cause(read_facts()) != "")


@pytest.mark.parametrize("example", REAL)
def test_the_marked_lines_are_all_that_name_something_of_ones_own(example: str) -> None:
    """Name, trigger word, folder, prompts and control images; everything else can
    stay."""
    lines = (CONFIG.parent / example).read_text(encoding="utf-8").splitlines()
    own = re.compile(r"^ *[^#]*\b(my_char|my_layers|mychr|config/examples|prompt:)")
    assert [line for line in lines if own.search(line)] == [
        line for line in lines[5:] if line.endswith("<- yours")
    ]
    with_references = any("ctrl_img:" in line for line in lines)
    prompts = sum("prompt:" in line for line in lines)
    assert (
        sum(line.endswith("<- yours") for line in lines[5:])
        == 3 + prompts + with_references
    )
