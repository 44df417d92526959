"""How many programs the blocks of a real model become, by the sizes and captions of a
dataset."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import torch
from torch._dynamo.utils import counters

from tests.diffusers_reference import open_tiny
from tests.toolkit.memory.toy_blocks import no_kernels
from toolkit.config.sections.train import CompileConfig
from toolkit.contracts.data import PromptEmbeds
from toolkit.contracts.model import DiffusionModel
from toolkit.memory.checkpointing import checkpoint_wrapper
from toolkit.memory.compiling import compile_wrapper
from toolkit.memory.offload import BlockSwap
from toolkit.memory.quantization import quantizer
from toolkit.models.qwen_image21.prompts import SLOTS
from toolkit.models.tiny import TinySpec, write_tiny_model
from toolkit.networks.lora import LoraNetwork

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("fresh_compiler")]

SIZES = ((64, 64), (48, 80), (80, 48), (64, 96), (96, 64), (32, 64))
CAPTIONS = 8
MOST = 3
"""Of the first size, of all others, and of samples, which have no gradient."""


def compiled_model(folder: Path, table: bool) -> DiffusionModel:
    model = open_tiny(folder, transform_block=quantizer("int8"), modulation_table=table)
    network = LoraNetwork(model.lora_targets(), 4, 4.0, dropout=0.0, seed=1)
    network.attach(model.network_module)
    network.fuse_projections(model.fused_projection_groups())
    model.prepare_compiling()
    assert model.enable_modulation_cache(BlockSwap) is None
    compilation = compile_wrapper(CompileConfig(enabled=True, backend="eager"))
    model.wrap_blocks([checkpoint_wrapper("full", model.hidden_size), compilation])
    return model


def use(
    model: DiffusionModel, size: tuple[int, int], words: int, is_sample: bool = False
) -> None:
    """A pass over an image with a control image, forward and backward; of a sample
    forward alone."""
    prompts = PromptEmbeds.stack([model.encode_prompt(" ".join(["word"] * words), ())])
    if SLOTS in prompts.extra:
        prompts.extra[SLOTS][0, 0] = 1
    latents_BCHW = torch.randn(1, 16, size[1] // 8, size[0] // 8)
    with torch.set_grad_enabled(not is_sample):
        velocity = model.predict_velocity(
            latents_BCHW, torch.tensor([0.5]), prompts, [[latents_BCHW[0]]]
        )
    if not is_sample:
        velocity.square().mean().backward()


@pytest.mark.parametrize(
    ("arch", "table"),
    [
        ("qwen_image_edit_plus", True),
        ("qwen_image_2", False),
    ],
)
def test_a_dataset_of_many_sizes_and_captions_becomes_three_programs(
    tmp_path: Path, arch: str, table: bool
) -> None:
    write_tiny_model(tmp_path, TinySpec(arch=arch))
    model, random = compiled_model(tmp_path, table), Random(0)
    lengths = random.sample(range(1, 60), CAPTIONS)
    with no_kernels():
        for index in range(CAPTIONS):
            use(model, SIZES[index % len(SIZES)], lengths[index])
            if index == 3:
                use(model, (64, 64), 5, is_sample=True)
        use(model, (80, 80), 61, is_sample=True)
    assert counters["stats"]["unique_graphs"] == MOST and not counters["graph_break"]
