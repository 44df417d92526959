"""The recipe of the tiny model with few images and steps: it can be planned, and each
process starts from the outputs of earlier ones."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from benchmarks.mascots import main as draw_datasets
from tests.conftest import ROOT
from tests.diffusers_reference import load_pipeline

Run = Callable[..., subprocess.CompletedProcess]

RECIPE = ROOT / "config" / "pretrain_tiny.yaml"
PARTS = ("transformer_1", "transformer_2", "tiny_mascots")
TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"


@pytest.mark.slow
def test_each_process_starts_from_the_outputs_of_earlier_ones(
    run_py: Run, tmp_path: Path
) -> None:
    drawn = tmp_path / "output" / "pretrain_tiny"
    draw_datasets(["--folder", str(drawn), "--share", "0.0001"])
    before = {*tmp_path.rglob("*")}
    planned = run_py(RECIPE, "--dry-run", "--json")
    assert planned.returncode == 0, planned.stderr
    named = [process["name"] for process in json.loads(planned.stdout)["processes"]]
    assert named[-3:] == [*PARTS] and {*tmp_path.rglob("*")} == before
    job = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    for process in job["config"]["process"]:
        if "train" in process:
            process["train"] |= {"steps": 2, "batch_size": 1, "lr_warmup_steps": 1}
            process["sample"]["sample_every"] = 2
            if "sample_steps" in process["sample"]:
                process["sample"]["sample_steps"] = 1
            process["save"]["save_every"] = 2
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(job), encoding="utf-8")
    result = run_py("recipe.yaml")
    assert (result.returncode, "Traceback" in result.stderr) == (0, False), (
        result.stderr
    )

    runs = drawn / "pretrain_tiny"
    folders = [drawn / "untrained", *(runs / name / name for name in PARTS)]
    weights = [load_file(folder / TRANSFORMER) for folder in folders]
    for before, after in itertools.pairwise(weights):
        assert any(not before[name].equal(after[name]) for name in before)
    assert load_pipeline(folders[-1]).transformer.config.num_layers == 5
