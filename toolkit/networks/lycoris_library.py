"""Algorithms of lycoris-lora that this program does not have itself: the library's
module classes, as adapters of frozen linear layers.

The library makes each layer's parameters and the change of its weight; the layer
computes W x plus the change times x. So dropout, sampling without it, quantized bases
and additional adapter files work as with the other kinds. The change is as large as the
weight, and is computed again in the backward pass.

The library's own forward passes are not used. In bypass mode a BOFT, an OFT and an IA3
change the bias too, which is not in a file; the other mode keeps a copy of every
weight, and `rank_dropout` of a GLoRA keeps the part that it should drop. Source:
lycoris-lora 4.1.3, modules/*.py.

`toolkit.contracts.network_kinds` names the class for these kinds, and trainers make it
by that. The library is imported when a network is attached.

Shape suffixes: I inputs of a layer, O outputs of a layer."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from toolkit.config.sections.network import NetworkConfig
from toolkit.contracts.network_kinds import KINDS
from toolkit.errors import UserError
from toolkit.networks.adapter import (
    AdapterDropout,
    AdapterLinear,
    LinearAdapterNetwork,
    dequantized_weight,
)
from toolkit.networks.lora_formats import LayerDelta
from toolkit.registry import load_object
from toolkit.system.seeding import global_generator

FILE_PREFIX = "lycoris_"
"""Prefix of the names of layers, in which dots become underscores. Source: lycoris-lora
4.1.3, wrapper.py."""

FILE_NAMES = {"lycoris-full": {"weight": "diff"}}
"""Kind -> name of a parameter -> its different name in files."""

ROTATIONS = "oft_blocks"
"""The parameter of BOFT and OFT that their limit applies to."""

BACKEND = "LYCORIS_KERNEL_BACKEND"
"""Variable of the environment that chooses the library's kernels."""


class LycorisLinear(AdapterLinear):
    """A frozen linear layer with the change that one of the library's modules makes.

    Example::

        layer = network.layers["transformer_blocks.0.attn.to_q"]
        change_OI = layer.weight_delta()
    """

    module: Any

    def __init__(
        self,
        base_layer: nn.Linear,
        module: Any,
        needs_base: bool,
        dropout: AdapterDropout,
    ) -> None:
        """module: made by `make_module`."""
        super().__init__(base_layer, {}, 1.0, dropout)
        self.module = module
        self.needs_base = needs_base
        self.module.org_module = [_FrozenWeight(base_layer)]

    @property
    def layer_weights(self) -> dict[str, nn.Parameter]:
        return dict(self.module.named_parameters())

    def move_to(self, device: torch.device, dtype: torch.dtype) -> None:
        self.module.to(device, dtype)

    def init_weights(self, random: torch.Generator) -> None:
        """Does nothing, because the library's constructor has initialised the weights."""

    def delta(self, x: Tensor) -> Tensor:
        # The change is as large as the layer's own weight, so it is not kept: the
        # backward pass computes it again.
        delta: Tensor = checkpoint(
            self._change, x, use_reentrant=False, preserve_rng_state=False
        )
        return delta

    def _change(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight_delta().to(x.dtype))

    def weight_delta(self) -> Tensor:
        """The change of the frozen weight, [O, I], float32."""
        change_OI: Tensor
        change_OI, _ = self.module.get_diff_weight(device=self.base_layer.weight.device)
        return change_OI

    def delta_norm(self) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(self.weight_delta())
        return norm


class _FrozenWeight:
    """Replaces the layer that the library's module refers to. It has the weight in
    float32, dequantized when it is read."""

    def __init__(self, layer: nn.Linear) -> None:
        self._layer = layer

    @property
    def weight(self) -> Tensor:
        return dequantized_weight(self._layer)


def make_module(
    library_class: Callable[..., Any], inputs: int, outputs: int, **arguments: Any
) -> Any:
    """A module of the library for a linear layer of this size, on the CPU.

    Its layer has weights of zero and no bias, because a file changes only weights, and
    the library would copy real ones.
    """
    layer = nn.Linear(inputs, outputs, bias=False, device="meta")
    layer.weight = nn.Parameter(
        torch.zeros(()).expand(outputs, inputs), requires_grad=False
    )
    module = library_class("", layer, bypass_mode=False, **arguments)
    if hasattr(module, "_org_weight"):
        module._org_weight = []  # a copy of the weight, in the main memory
    return module


class LycorisNetwork(LinearAdapterNetwork):
    """One of the library's algorithms on the given linear layers.

    Example::

        settings = NetworkConfig(type="boft", linear=16)
        network = LycorisNetwork.from_config(settings, ["to_q"], seed=1)
    """

    layer = LycorisLinear

    arguments: dict[str, Any]
    """Arguments of the library's class in addition to rank and alpha."""

    file_names: dict[str, str]
    """Parameter -> its name in files, where that differs."""

    @classmethod
    def from_config(
        cls,
        settings: NetworkConfig,
        targets: Sequence[str],
        seed: int,
        dtype: torch.dtype | None = None,
    ) -> Self:
        network = cls._with_settings(settings, targets, seed)
        network.kind = KINDS[settings.type]
        network.file_names = FILE_NAMES.get(settings.type, {})
        network.arguments = network.kind.extra_kwargs(settings)
        return network

    def new_layer(
        self, target: str, base: nn.Linear, adapter_dropout: AdapterDropout
    ) -> LycorisLinear:
        with global_generator(self.seed, "network", target):
            module = make_module(
                load_library_class(self.kind.library_class),
                base.in_features,
                base.out_features,
                lora_dim=self.rank,
                alpha=self.alpha,
                **self.arguments,
            )
        return LycorisLinear(base, module, self.kind.needs_base, adapter_dropout)

    def load_layer(self, target: str, delta: LayerDelta) -> float:
        raise UserError(
            f"network.pretrained_lora_path: {self.kind.algo} cannot start from a file. Remove it."
        )

    def export(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors under the library's names, with the buffers that it stores."""
        tensors: dict[str, Tensor] = {}
        for target, layer in self.layers.items():
            prefix = f"{FILE_PREFIX}{target.replace('.', '_')}."
            assert isinstance(layer, LycorisLinear)  # made by `new_layer`
            for name in layer.layer_weights:
                weight = weights[f"{target}.{name}"]
                if name == ROTATIONS:
                    weight = within_limit(weight, layer.module.constraint)
                tensors[prefix + self.file_names.get(name, name)] = weight
            tensors |= {
                prefix + name: buffer.float()
                for name, buffer in stored_buffers(layer.module).items()
            }
        return tensors


def stored_buffers(module: Any) -> dict[str, Tensor]:
    """The settings of a library's module that its files have, such as alpha.

    The alpha of rotations is their limit, which the library multiplies by the outputs
    and ComfyUI does not. It is stored as 0, because `within_limit` has already applied
    it.
    """
    buffers = {
        name: buffer
        for name, buffer in module.named_buffers()
        if name not in module._non_persistent_buffers_set
    }
    if hasattr(module, "constraint"):
        buffers["alpha"] = torch.tensor(0.0)
    return buffers


def within_limit(blocks: Tensor, limit: float) -> Tensor:
    """Rotation blocks [..., b, b], scaled so that the norm of their generators is at
    most `limit`; 0: no limit.

    Source: lycoris-lora 4.1.3, functional/diag_oft.py `get_r`.
    """
    norm = torch.linalg.vector_norm(blocks - blocks.mT) + 1e-8
    return blocks * (limit / norm) if limit and norm > limit else blocks


def load_library_class(path: str) -> Any:
    """A module class of the library, as "module:Class".

    Its fused kernels are off: each run would measure which one is fastest, and bits
    would depend on it. Its log shows only errors, because it has a line for each size
    of a layer.
    """
    os.environ.setdefault(BACKEND, "torch")
    library_class = load_object(path)
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    return library_class
