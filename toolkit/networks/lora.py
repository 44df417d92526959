"""LoRA: a low-rank change B A of each adapted linear layer, scaled by alpha / rank (peft's layers).

Shape suffixes: R rank, I inputs of a layer, O outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from toolkit.contracts import Network
from toolkit.errors import UserError
from toolkit.networks.fit import fit
from toolkit.networks.formats import ModuleChange
from toolkit.seeding import global_generator

FILE_PREFIX = "diffusion_model."
"""With `.lora_A.weight` / `.lora_B.weight` and `.alpha`: a form that ComfyUI and diffusers both load."""

ADAPTER = "default"

NOTABLE_ERROR = 1e-4
"""Relative error of a decomposition above which it is mentioned; below it is rounding."""


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
                weight.data = weight.data.to(torch.promote_types(weight.dtype, torch.float32))
                weight.requires_grad_(True)
                self._parameters[f"{target}.{matrix}.weight"] = weight

    @torch.no_grad()
    def start_from(self, changes: Mapping[str, ModuleChange], note: Callable[[str], None]) -> None:
        """Takes over the changes of another file; a smaller rank is filled up, a larger one cut by SVD.

        Rows of A that the file does not fill keep their random start and have zeros in B: no effect, but trainable.
        Raises UserError when no adapted layer is in the file, or the scale is 0.
        """
        common = [target for target in self.targets if target in changes]
        if not common:
            raise UserError("network.pretrained_lora_path: the file changes none of the layers this job trains.")
        scale = self.alpha / self.rank
        if scale == 0:
            raise UserError("network.linear_alpha: 0 cannot take over network.pretrained_lora_path. Give it a value.")
        errors = []
        for target in common:
            up_OR, down_RI, error = fit(changes[target], self.rank)
            a, b = (self._parameters[f"{target}.{matrix}.weight"] for matrix in ("lora_A", "lora_B"))
            a[: len(down_RI)] = down_RI
            b[:, : up_OR.shape[1]] = up_OR / scale
            errors.append(error)
        left_out = len(changes.keys() - set(common))
        note(
            f"started from {len(common)} layers of the given file"
            + (f"; {left_out} of its layers are not trained here" if left_out else "")
            + (
                f"; cut to rank {self.rank} with relative error up to {max(errors):.3g}"
                if max(errors) > NOTABLE_ERROR
                else ""
            )
        )

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
