"""The two tiny transformers that the files are of: diffusers' own classes, with the
published names of the layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from toolkit.system.seeding import global_generator

SEED = 60
ROPE_AXES = (4, 6, 6)
ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")


@dataclass(frozen=True)
class TinyModel:
    """One transformer of two blocks, 64 wide."""

    title: str
    arch: str
    """`model.arch` of a job on it."""

    transformer: str
    """Name of its class in diffusers."""

    pipeline: str
    """Name of the pipeline class whose loader reads its LoRAs."""

    config: Mapping[str, Any]
    targets: tuple[str, ...]
    """The layers of a block that files of other programs change, as names without the
    block."""

    own_targets: tuple[str, ...]
    """The layers of a block that a run of this program trains by default."""

    blocks: int = 2

    def layers(self, own: bool = False) -> list[str]:
        """Full names of the changed layers. own: those that a run of this program
        trains."""
        names = self.own_targets if own else self.targets
        return [
            f"transformer_blocks.{block}.{name}"
            for block in range(self.blocks)
            for name in names
        ]

    def build(self) -> nn.Module:
        """The transformer with random weights, the same ones each time."""
        import diffusers

        with global_generator(SEED, f"interop_{self.title}"):
            transformer = getattr(diffusers, self.transformer)(**self.config)
        return transformer.eval().requires_grad_(False)


MODELS: dict[str, TinyModel] = {
    "2509": TinyModel(
        title="2509",
        arch="qwen_image_edit_plus",
        transformer="QwenImageTransformer2DModel",
        pipeline="QwenImageEditPlusPipeline",
        config={
            "in_channels": 64,
            "out_channels": 16,
            "num_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 4,
            "joint_attention_dim": 32,
            "axes_dims_rope": ROPE_AXES,
        },
        targets=(*ATTENTION, "img_mlp.net.2"),
        own_targets=(
            *ATTENTION,
            "attn.add_q_proj",
            "attn.add_k_proj",
            "attn.add_v_proj",
            "attn.to_add_out",
            "img_mlp.net.0.proj",
            "img_mlp.net.2",
            "txt_mlp.net.0.proj",
            "txt_mlp.net.2",
            "img_mod.1",
            "txt_mod.1",
        ),
    ),
    "2.1": TinyModel(
        title="2.1",
        arch="qwen_image_2",
        transformer="QwenImage21Transformer2DModel",
        pipeline="QwenImage21Pipeline",
        config={
            "in_channels": 16,
            "out_channels": 16,
            "num_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 4,
            "context_in_dim": 32,
            "axes_dims_rope": ROPE_AXES,
        },
        targets=(*ATTENTION, "img_mlp.gate_layer", "img_mlp.proj", "img_mlp.out"),
        own_targets=(*ATTENTION, "img_mlp.gate_layer", "img_mlp.proj", "img_mlp.out"),
    ),
}


def linear_sizes(transformer: nn.Module) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of each linear layer by its name."""
    return {
        name: (module.in_features, module.out_features)
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear)
    }


def linear_weights(transformer: nn.Module) -> dict[str, Tensor]:
    """Weights and biases of the linear layers by their names, as copies."""
    layers = linear_sizes(transformer)
    return {
        name: parameter.detach().clone()
        for name, parameter in transformer.named_parameters()
        if name.rpartition(".")[0] in layers
    }


def save_weights(transformer: nn.Module, path: Path) -> None:
    """All weights of the transformer as a file."""
    save_file(
        {
            name: tensor.detach().contiguous()
            for name, tensor in transformer.state_dict().items()
        },
        path,
    )
