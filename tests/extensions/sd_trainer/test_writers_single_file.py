"""`save.layout: single_file`: the file stands for the folder that the same run would
write."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from extensions.sd_trainer.config import SdTrainerConfig
from extensions.sd_trainer.writers import (
    LoraWriter,
    ModelFolderWriter,
    SingleFileWriter,
)
from tests.diffusers_reference import MEMBERS
from tests.full_run import run_of_full_network
from tests.golden_tables import table
from toolkit.config.sections.model import ModelConfig
from toolkit.contracts.model import ROWS_OF
from toolkit.memory.quantization import quantizer
from toolkit.models.loading import load_model
from toolkit.models.tiny import TinySpec, write_tiny_model


def weights_of(folder: Path, file: Path | None = None) -> dict[str, torch.Tensor]:
    section = ModelConfig(name_or_path=str(folder), transformer_path=file and str(file))
    return dict(
        load_model(
            section, torch.device("cpu"), torch.bfloat16, quantizer
        ).network_module.state_dict()
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "is_2511"),
    [("qwen_image", False), ("qwen_image_2", False), ("qwen_image_edit_plus", True)],
)
def test_a_saved_file_has_the_bits_of_the_folder_and_the_names_of_comfyui(
    arch: str, is_2511: bool, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    write_tiny_model(
        base, MEMBERS["Qwen-Image-Edit-2511"] if is_2511 else TinySpec(arch=arch)
    )
    model = load_model(
        ModelConfig(name_or_path=str(base)),
        torch.device("cpu"),
        torch.float32,
        quantizer,
    )
    layers = ["transformer_blocks.0.attn.to_q"]
    network, run = run_of_full_network(model.network_module, layers, tmp_path)
    written: dict[type[LoraWriter], list[Path]] = {}
    for kind, layout in (
        (ModelFolderWriter, "diffusers"),
        (SingleFileWriter, "single_file"),
    ):
        section = SdTrainerConfig(
            type="sd_trainer",
            model={"name_or_path": str(base)},
            network={"type": "full"},
            save={"dtype": "bfloat16", "layout": layout, "also": ("raw",)},
            datasets=[{"folder_path": "photos"}],
        )
        assert section.saves_folders == (kind is ModelFolderWriter)
        written[kind] = kind(network, section, {"name": "maya"}).snapshot(run, 3)()
    files = written[SingleFileWriter]
    assert [file.name for file in files] == [
        "maya_000000003.safetensors",
        "maya_000000003_raw.safetensors",
    ]
    for folder, file in zip(written[ModelFolderWriter], files, strict=True):
        expected, found = weights_of(folder), weights_of(base, file)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        parts = {
            part for each in ROWS_OF.values() for part in each if arch == "qwen_image_2"
        }
        names = load_file(file)
        # by it ComfyUI tells the reference method
        assert ("__index_timestep_zero__" in names) == is_2511
        assert not any(f".{part}." in name for part in parts for name in names)
        assert any(".gate_up." in name for name in names) == bool(parts)
        assert (
            parts
            or names.keys() - {"__index_timestep_zero__"}
            == table("comfyui_models")["weights"].keys()
        )
    first, raw = (
        load_file(file)["transformer_blocks.0.attn.to_q.weight"] for file in files
    )
    assert bool((raw == 0.5).all()) and not torch.equal(first, raw)
