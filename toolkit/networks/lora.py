"""LoRA: a low-rank change B A of each adapted linear layer, scaled by alpha / rank (peft's layers).

Shape suffixes: R rank, I inputs of a layer, O outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from toolkit.contracts import Network
from toolkit.seeding import global_generator

FILE_PREFIX = "diffusion_model."
"""With `.lora_A.weight` / `.lora_B.weight` and `.alpha`: a form that ComfyUI and diffusers both load."""

ADAPTER = "default"


class LoraNetwork(Network):
    """A LoRA on the given linear layers; down matrices A_RI random, up matrices B_OR zero at the start."""

    def __init__(self, targets: Sequence[str], rank: int, alpha: float, dropout: float, seed: int) -> None:
        """targets: full dotted module names. alpha: numerator of the scale. dropout: probability in [0, 1)."""
        self.targets = tuple(targets)
        self.rank = rank
        self.alpha = alpha
        self.dropout = dropout
        self.seed = seed
        self._parameters: dict[str, nn.Parameter] = {}
        self._dropouts: list[nn.Module] = []

    def attach(self, model: nn.Module) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        model.requires_grad_(False)
        config = LoraConfig(
            r=self.rank, lora_alpha=self.alpha, target_modules=list(self.targets), lora_dropout=self.dropout
        )
        with global_generator(self.seed, "network"):
            inject_adapter_in_model(config, model, adapter_name=ADAPTER)
        for target in self.targets:
            layer = model.get_submodule(target)
            # The frozen model is in evaluation mode; dropout is the one thing that must not be.
            self._dropouts.append(layer.lora_dropout[ADAPTER].train())
            for matrix in ("lora_A", "lora_B"):
                weight = getattr(layer, matrix)[ADAPTER].weight
                weight.data = weight.data.float()
                weight.requires_grad_(True)
                self._parameters[f"{target}.{matrix}.weight"] = weight

    def parameters(self) -> dict[str, nn.Parameter]:
        return dict(self._parameters)

    @contextmanager
    def inference(self) -> Iterator[None]:
        try:
            self._set_dropout(False)
            yield
        finally:
            self._set_dropout(True)

    def _set_dropout(self, on: bool) -> None:
        for dropout in self._dropouts:
            dropout.train(on)

    def export(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors = {FILE_PREFIX + name: weight for name, weight in weights.items()}
        for target in self.targets:
            tensors[f"{FILE_PREFIX}{target}.alpha"] = torch.tensor(float(self.alpha))
        return tensors
