"""What a `cache` process would do."""

from __future__ import annotations

import json


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
    assert not (tmp_path / "output").exists()
