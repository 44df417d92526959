"""What a step of Qwen-Image-Edit-2511 takes beyond one of 2509."""

from __future__ import annotations

import gc
from pathlib import Path

import torch

from benchmarks.live_bytes import LiveBytes
from toolkit.config.model import ModelConfig
from toolkit.data.types import PromptEmbeds
from toolkit.models.families import ModelLoadOptions, family_for
from toolkit.models.qwen_image.family import EDIT_2511, FAMILY
from toolkit.models.tiny import TinySpec, write_tiny_model
from toolkit.networks.kinds import KINDS
from toolkit.networks.lora import LoraNetwork


def units_of_a_step(folder: Path, zero_cond_t: bool) -> tuple[float, float]:
    """Tensors alive at once in a training step and in a forward pass, in units of tokens x width elements a block."""
    spec = TinySpec(layers=3, heads=4, zero_cond_t=zero_cond_t)
    write_tiny_model(folder, spec)
    model = FAMILY.of_folder(folder).open(ModelLoadOptions(folder, torch.device("cpu"), torch.float32))
    LoraNetwork(list(model.lora_targets()), 1, 1, dropout=0.0, seed=0).attach(model.network_module)
    x_BCHW, prompts = torch.randn(1, 16, 32, 32), PromptEmbeds.stack([torch.randn(2, 64)])

    def forward() -> torch.Tensor:
        return model.predict_velocity(x_BCHW, torch.tensor([0.5]), prompts, [[x_BCHW[0]]])

    forward()  # fills the tables of positions
    taken = []
    for grad, work in ((True, lambda: forward().sum().backward()), (False, forward)):
        gc.collect()
        with torch.set_grad_enabled(grad), LiveBytes() as live:
            live.phase("step")
            before = live.device
            work()
        taken.append((live.phases["step"].device - before) / (4 * 512 * model.network_module.inner_dim))
    return taken[0] / spec.layers, taken[1]


def test_modulation_of_each_token_is_planned(tmp_path: Path) -> None:
    of_2509, of_2511 = (units_of_a_step(tmp_path / str(zero), zero) for zero in (False, True))
    assert family_for(ModelConfig(name_or_path="qwen/qwen-image-edit-2511")) is EDIT_2511
    planned, plain = EDIT_2511.activation_units["lora"], KINDS["lora"].units
    assert abs(of_2511[0] - of_2509[0] - (planned.everything[1] - plain.everything[1])) < 0.5
    assert abs(of_2511[1] - of_2509[1] - (planned.forward[1] - plain.forward[1])) < 0.5
