from pathlib import Path

import pytest

from benchmarks import pretrain_single_stream
from benchmarks.bench_mascots import load


@pytest.mark.slow
def test_the_recipe_makes_a_model_that_is_sampled_from(tmp_path: Path) -> None:
    pretrain_single_stream.main([str(tmp_path), "--steps", "1", "--share", "0.002"])
    model = load(str(tmp_path / "single_stream" / "single_stream" / "single_stream"))
    assert model.family.max_references == 10
