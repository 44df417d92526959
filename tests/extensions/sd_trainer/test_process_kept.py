"""Jobs that begin from a kept model train the same bits as those that quantize,
whatever waits where."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.running import run_job
from toolkit.models.kept import kept_entries


def trained(write_job, section: dict, name: str) -> dict[str, torch.Tensor]:
    run_job(write_job(section, name=name))
    return load_file(Path(section["training_folder"]) / name / f"{name}.safetensors")


@pytest.mark.parametrize(
    ("model", "train"),
    [
        ({"qtype": "int4", "blocks_to_swap": 1}, {"gradient_checkpointing": "full"}),
        pytest.param(
            {"qtype": "int8", "blocks_to_swap": 1, "modulation_table": True},
            {},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"qtype": "uint3", "accuracy_recovery_adapter": "auto"},
            {},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_training_from_the_kept_model_gives_the_same_file(
    write_job, trainer, make_pictures, tmp_path: Path, model: dict, train: dict
) -> None:
    section = trainer(
        make_pictures(tmp_path / "data", "a", "b"),
        training_folder=str(tmp_path / "output"),
        train=train,
    )
    section["model"] |= {"quantize": True, **model}
    plain = {**section, "model": section["model"] | {"keep_quantized": False}}
    expected = trained(write_job, plain, "quantized")
    assert not kept_entries(tmp_path / "output" / "_cache")
    files = [trained(write_job, section, name) for name in ("first", "second")]
    assert len(kept_entries(tmp_path / "output" / "_cache")) == 1
    for file in files:
        assert file.keys() == expected.keys()
        assert all(torch.equal(file[name], tensor) for name, tensor in expected.items())
