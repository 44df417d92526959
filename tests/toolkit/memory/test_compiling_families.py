"""One program trains on images and captions of every size, and one draws them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch._dynamo.utils import counters

from toolkit.config.sections.train import CompileConfig
from toolkit.contracts.data import PromptEmbeds, Size
from toolkit.memory.block_runner import BlockRunner
from toolkit.memory.offload import BlockSwap
from toolkit.memory.quantization import quantizer
from toolkit.models.families import ModelLoadOptions
from toolkit.models.tiny import TinySpec, write_tiny_model
from toolkit.networks.lora import LoraNetwork
from toolkit.registry import FAMILIES, part_of

CPU = torch.device("cpu")
CAPTIONS = ("a cat", "a cat on a mat", "a cat " * 9, "the mat", "a dog, a cat " * 4)
SIZES = (Size(80, 112), Size(64, 96), Size(96, 64), Size(96, 128), Size(64, 64))


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(
    "spec",
    [
        *(TinySpec(arch=arch) for arch in FAMILIES if not part_of(FAMILIES[arch])),
        TinySpec(zero_cond_t=True),  # Qwen-Image-Edit-2511
    ],
    ids=lambda spec: f"{spec.arch} {'2511' * spec.zero_cond_t}".strip(),
)
def test_sizes_and_captions_have_one_program(spec: TinySpec, tmp_path: Path) -> None:
    """Qwen-Image-2.1 has another one where an image has no references: its sequence
    then has no part for them. A LoRA on a quantized base has no more, nor has the table
    of modulations."""
    write_tiny_model(tmp_path, spec)
    family = FAMILIES.load(spec.arch).of_folder(tmp_path)
    is_21 = spec.arch == "qwen_image_2"
    model = family.open(
        ModelLoadOptions(
            folder=tmp_path,
            device=CPU,
            dtype=torch.bfloat16,
            transform_block=quantizer("int8"),
            modulation_table=not is_21,
        )
    )
    # Query, key and value share a product; each further layer takes seconds.
    targets = [name for name in model.lora_targets() if name[-4:-1] == "to_"]
    network = LoraNetwork(targets, 4, 4.0, dropout=0.0, seed=1)
    network.attach(model.network_module)
    network.fuse_projections(model.fused_projection_groups())
    network.cast_by_block(model.blocks())
    assert is_21 or model.enable_modulation_cache(BlockSwap) is None
    compiling = CompileConfig(enabled=True, backend="eager", fullgraph=True).for_sizes(
        several=True
    )
    BlockRunner(model, CPU, torch.bfloat16, "full", compile_settings=compiling)

    def latents(size: Size) -> torch.Tensor:
        width, height = family.latent_size(size)
        return torch.randn(1, family.latent_channels, height, width)

    def inputs(index: int, has_reference: bool):
        target = SIZES[index]
        size = target if family.stacks_layers else SIZES[index - 1]
        size = model.reference_size(size, target)
        pictures = [Image.new("RGB", size)] * has_reference
        prompt = model.encode_prompt(CAPTIONS[index], pictures)
        return PromptEmbeds.stack([prompt]), [[latents(size)[0]] * has_reference]

    def trained(has_reference: bool) -> int:
        """Programs that are made."""
        begun = programs()
        for index, size in enumerate(SIZES):
            velocity = model.predict_velocity(
                latents(size), torch.tensor([0.5]), *inputs(index, has_reference)
            )
            assert velocity.requires_grad
        return programs() - begun

    def drawn(has_reference: bool) -> int:
        begun = programs()
        with torch.no_grad():
            for index, size in enumerate(SIZES):
                step = model.sampling_steps(*inputs(index, has_reference))
                for level in (1.0, 0.5):
                    step(latents(size), torch.tensor([level]))
        return programs() - begun

    has_reference = family.max_references > 0
    assert trained(has_reference) == 1
    assert drawn(has_reference) == 1
    if has_reference and not family.stacks_layers:
        assert trained(False) == is_21
        assert drawn(False) == 0
    assert not counters["graph_break"]


def programs() -> int:
    return counters["stats"]["unique_graphs"]
