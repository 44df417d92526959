"""Example jobs of ai-toolkit do here what its own trainer did
(tests/golden/aitk_jobs.json)."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file

from tests.golden_tables import golden, table
from tests.running import lines
from toolkit.files.safetensors_io import read_metadata
from toolkit.models.tiny import TinySpec, write_tiny_model

pytestmark = pytest.mark.slow


@pytest.fixture
def as_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_py: Callable[..., Any]
) -> Callable[..., Any]:
    """Runs a job over a tiny model and images of their sizes; returns the folder of the
    run, and what was printed."""
    monkeypatch.chdir(tmp_path)

    def run(case: dict[str, Any], *options: str, **train: Any) -> tuple[Path, str]:
        (process,) = (case := deepcopy(case))["config"]["config"]["process"]
        process["train"] |= train
        shutil.rmtree("model", ignore_errors=True)
        write_tiny_model(Path("model"), TinySpec(arch=process["model"]["arch"]))
        for index, (width, height) in enumerate(table("aitk_jobs")["images"]):
            for folder in ("imgs", "refs1", "refs2", "refs3"):
                Path(folder).mkdir(exist_ok=True)
                Image.effect_noise((width + 50 * (folder != "imgs"), height), 40).save(
                    f"{folder}/{index}.png"
                )
            Path(f"imgs/{index}.txt").write_text(f"caption {index}")
        Path("job.json").write_text(json.dumps(case["config"], indent=1))
        done = run_py("job.json", "-v", *options)
        assert done.returncode == 0, done.stderr
        return Path("output") / case["config"]["config"]["name"], done.stdout

    return run


def buckets_are_theirs(plan: str, case: dict[str, Any]) -> None:
    """An epoch has the images and sizes of their epoch."""
    theirs = Counter[str]()
    for _, width, height, uses in case["epoch"]:
        theirs[f"{width}x{height}"] += uses
    listed = re.findall(r"(\d+x\d+) \((\d+)\)", plan.partition("buckets:")[2])
    ours = {size: int(count) for size, count in listed}
    assert ours == theirs and sum(ours.values()) == 21, case["example"]


def test_examples_are_planned_as_there(as_there: Callable[..., Any]) -> None:
    for case in golden("aitk_jobs"):
        buckets_are_theirs(as_there(case, "--dry-run")[1], case)


def test_an_example_does_what_its_own_trainer_did(as_there: Callable[..., Any]) -> None:
    """Steps, the learning rate in each, names of saved files, their number type and
    matrices; of the longest."""
    case = golden("aitk_jobs")[0]
    folder, plan = as_there(case)
    buckets_are_theirs(plan, case)
    rows = lines(folder / "metrics.jsonl")
    assert len(rows) == case["steps"] == rows[-1]["samples"]
    assert [row["lr"] for row in rows] == pytest.approx(case["rates"])
    found = {}
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        types = {str(tensor.dtype) for tensor in tensors.values()}
        found[path.name] = [" ".join(types), sum("lora_" in name for name in tensors)]
    assert found == case["files"]


def test_an_adapter_begins_as_theirs(as_there: Callable[..., Any]) -> None:
    """The file of a step whose learning rate is 0: layers, shapes, alpha, the bound of
    one factor, the other zero."""
    case = deepcopy(golden("aitk_jobs")[-1])
    (dataset,) = case["config"]["config"]["process"][0]["datasets"]
    dataset |= {"resolution": 64, "control_path": "refs1"}
    folder, _ = as_there(case, lr=0.0, steps=1)
    file = folder / f"{folder.name}.safetensors"
    ours, theirs = load_file(file), table("aitk_jobs")["initial_adapter"]
    alpha = float(read_metadata(file)["alpha"])  # the file has it in its matrices
    layers = {name.rpartition(".lora_A")[0] for name in ours if "lora_A" in name}
    assert {f"transformer.{name.partition('.')[2]}" for name in layers} == theirs.keys()
    for name in layers:
        there = theirs[f"transformer.{name.partition('.')[2]}"]
        assert alpha == there["alpha"]
        for end, (shape, largest) in (
            ("lora_A", there["lora_down"]),
            ("lora_B", there["lora_up"]),
        ):
            tensor = ours[f"{name}.{end}.weight"]
            assert list(tensor.shape) == shape
            assert tensor.abs().max().item() == pytest.approx(largest, rel=0.05)
