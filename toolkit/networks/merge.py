"""Merges LoRA files into the frozen model before training.

A weight W becomes W + multiplier (F - W), where F is W with the file applied. For a
LoRA, LoHa or LoKr this is W plus multiplier times its delta. The order of the files
matters only for kinds that depend on the weight before them: a DoRA, OFT, BOFT or
GLoRA. A bias gets multiplier times its change. Sums are float32 and rounded once, to
the model's dtype.

It writes no file; a tool merges files into a saved model. `toolkit.train.base_model`
calls it for `model.base_loras`. Files that are exchanged later use `applied`.

Shape suffixes: I inputs of a layer, O outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from toolkit.config.sections.model import BaseLora
from toolkit.errors import UserError
from toolkit.networks.lora_formats import NO_BIAS, LayerDelta, load_adapter_file


@dataclass(frozen=True)
class LoraToMerge:
    """The deltas of one file.

    >>> print(LoraToMerge("style.safetensors", multiplier=0.5, modules={}))
    style.safetensors times 0.5 into 0 layers
    """

    file: str
    """Name of the file, without the folder."""

    multiplier: float
    modules: dict[str, LayerDelta]
    """By full dotted module name."""

    def __str__(self) -> str:
        return f"{self.file} times {self.multiplier:g} into {len(self.modules)} layers"


def read_base_loras(
    loras: Sequence[BaseLora], layers: Mapping[str, tuple[int, int]]
) -> list[LoraToMerge]:
    """The files of `model.base_loras`, checked against the model's layers: name ->
    (inputs, outputs).

    Raises UserError for a file that cannot be read, belongs to another model, or
    changes nothing.
    """
    read = []
    for lora in loras:
        path = Path(lora.path).expanduser()
        modules = load_adapter_file(path, layers)
        if all(change.is_zero for change in modules.values()):
            raise UserError(
                f"model.base_loras: {path} changes no layer: all of its changes are zero."
            )
        read.append(LoraToMerge(path.name, lora.multiplier, modules))
    return read


class LoraMerger:
    """Merges files into a model while it is loaded. Each layer is merged once; then its
    deltas are freed.

    >>> model = nn.Sequential(nn.Linear(2, 2))
    >>> before = model[0].weight.clone()
    >>> change = LayerDelta({"up": torch.ones(2, 1), "down": torch.ones(1, 2)}, 1.0)
    >>> LoraMerger([LoraToMerge("style.safetensors", 0.5, {"0": change})])(model, "")
    >>> torch.equal(model[0].weight, before + 0.5)
    True
    """

    def __init__(self, files: Sequence[LoraToMerge]) -> None:
        self._files = [
            (file.file, file.multiplier, dict(file.modules)) for file in files
        ]

    @torch.no_grad()
    def __call__(self, module: nn.Module, name: str) -> None:
        """Changes the layers of `module`, whose dotted name in the model is `name`; ""
        is the model with all remaining layers.

        Raises UserError when a weight is not finite afterwards.
        """
        precision = torch.get_float32_matmul_precision()
        # in place of the training's setting
        torch.set_float32_matmul_precision("highest")
        try:
            self._merge(module, f"{name}." if name else "")
        finally:
            torch.set_float32_matmul_precision(precision)

    def _merge(self, module: nn.Module, prefix: str) -> None:
        targets = {
            t: None
            for _, _, changes in self._files
            for t in changes
            if t.startswith(prefix)
        }
        for target in targets:
            layer = module.get_submodule(target.removeprefix(prefix))
            # files change linear layers, which are not quantized yet
            assert isinstance(layer, nn.Linear), target
            weight_OI = layer.weight.data.to(torch.float32, copy=True)
            if layer.bias is None:
                bias_O = None
            else:
                bias_O = layer.bias.data.to(torch.float32, copy=True)
            for file, multiplier, changes in self._files:
                if target in changes:
                    change = changes.pop(target).to(weight_OI.device)
                    weight_OI += multiplier * change.delta_for(weight_OI)
                    if change.bias is not None:
                        if bias_O is None:
                            raise UserError(
                                f"model.base_loras: {file} changes the bias of {target}. {NO_BIAS}"
                            )
                        bias_O += multiplier * change.bias
            layer.weight.data = weight_OI.to(layer.weight.dtype)
            if layer.bias is not None and bias_O is not None:
                layer.bias.data = bias_O.to(layer.bias.dtype)
            if not all(
                torch.isfinite(parameter.data).all() for parameter in layer.parameters()
            ):
                files = ", ".join(file for file, _, _ in self._files)
                raise UserError(
                    f"model.base_loras: {target} is not finite with {files}. Lower the multiplier."
                )
