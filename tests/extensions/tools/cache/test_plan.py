"""What a `cache` process would do."""

from __future__ import annotations

import json

import pytest
from huggingface_hub import constants

from jobs.dry_run import plan_job
from toolkit.config import load_job
from toolkit.extension import discover
from toolkit.system import nvidia


def test_the_plan_counts_what_there_is_to_encode_and_no_steps(
    run_py, write_job, trainer, make_pictures, tmp_path
) -> None:
    folder = make_pictures(tmp_path / "3_data", "a", "b")
    section = trainer(folder, train={"batch_size": 4}) | {"type": "cache"}
    result = run_py(write_job(section), "--dry-run", "--json")
    [plan] = json.loads(result.stdout)["processes"]
    assert (plan["type"], plan["samples_per_epoch"], plan["micro_batches_per_epoch"]) == ("cache", 6, 2)
    assert (plan["optimizer_steps"], plan["epochs"]) == (0, 0)
    assert plan["datasets"][0]["buckets"] == [{"width": 64, "height": 64, "images": 2}]
    assert plan["model"]["bytes"] > 0 and plan["model"]["download"] is None and plan["will_not_start"] == []
    assert "start" not in plan  # it has no folder of its own
    assert not (tmp_path / "output").exists()


def test_a_model_that_is_not_here_or_too_large_for_the_cpu_is_told(
    write_job, trainer, make_pictures, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(nvidia, "read_facts", lambda: nvidia.NvidiaFacts("13.0", None, 0))
    section = trainer(make_pictures(tmp_path / "data", "a"), device="auto", model={"name_or_path": "some/finetune"})
    words = plan_job(load_job(write_job(section | {"type": "cache"}), discover().find_config)).render()
    assert "model: some/finetune (family not known)" in words and "will not start" not in words
    section["model"]["arch"] = "qwen_image_2"
    words = plan_job(load_job(write_job(section | {"type": "cache"}), discover().find_config)).render()
    assert "model: some/finetune (Qwen-Image-2.1, Qwen Research License: not for commercial use)" in words
    assert f"download: size unknown, to {tmp_path / 'hub'} (" in words
    assert "warning: this will not start: device: auto: " in words and "this machine has no NVIDIA GPU" in words
