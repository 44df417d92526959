import json
from pathlib import Path

import pytest
import torch

from tests.diffusers_reference import open_tiny
from toolkit.memory.quantization import quantizer
from toolkit.models.folder_family import BYTES_PER_WEIGHT
from toolkit.models.qwen_image.family import FAMILY
from toolkit.number_types import QTYPES


def test_layers_and_shapes_are_those_of_the_loaded_model(tiny_model: Path) -> None:
    model = open_tiny(tiny_model)
    loaded = {
        name: (module.in_features, module.out_features)
        for name, module in model.network_module.named_modules()
        if isinstance(module, torch.nn.Linear) and name.startswith("transformer_blocks.")
    }
    assert FAMILY.linear_layers(tiny_model) == loaded
    assert list(model.lora_targets()) == list(FAMILY.linear_layers(tiny_model))


@pytest.mark.parametrize("qtype", QTYPES)
def test_bytes_of_every_type_are_those_of_its_layers(qtype: str) -> None:
    """At the published width."""
    layer = torch.nn.Sequential(torch.nn.Linear(3072, 3072, bias=False, dtype=torch.bfloat16))
    quantizer(qtype)(layer, "block")
    stored = sum(buffer.nbytes for buffer in layer.buffers())
    assert stored / 3072**2 == pytest.approx(BYTES_PER_WEIGHT[qtype], rel=0.01)


def test_a_model_that_is_not_here_yet_is_the_published_one(tmp_path: Path) -> None:
    assert len(FAMILY.linear_layers(tmp_path)) == 60 * 14
    assert sum(FAMILY.modules(tmp_path).values()) == pytest.approx(20.43e9, rel=1e-3)


def test_the_config_decides(tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    config = {"num_layers": 3, "num_attention_heads": 3, "attention_head_dim": 32}
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(config))
    assert len(FAMILY.linear_layers(tmp_path)) == 3 * 14
    assert FAMILY.linear_layers(tmp_path)["transformer_blocks.2.img_mlp.net.0.proj"] == (96, 384)
