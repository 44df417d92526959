"""LoRA: a low-rank change B A of each adapted linear layer, scaled by alpha / rank (peft's layers).

Shape suffixes: R rank, I inputs of a layer, O outputs of a layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from toolkit.errors import UserError
from toolkit.networks.adapter import AdapterNetwork
from toolkit.networks.fit import fit
from toolkit.networks.formats import ModuleChange
from toolkit.networks.thinning import Thinning
from toolkit.seeding import global_generator
from toolkit.side_imports import without

ADAPTER = "default"


class LoraNetwork(AdapterNetwork):
    """A LoRA on the given linear layers; down matrices A_RI random, up matrices B_OR zero at the start.

    Its files, `.lora_A.weight` / `.lora_B.weight` and `.alpha`, load in ComfyUI and diffusers.
    """

    def attach(self, model: nn.Module) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        model.requires_grad_(False)
        config = LoraConfig(
            r=self.rank, lora_alpha=self.alpha, target_modules=list(self.targets), lora_dropout=self.dropout
        )
        with global_generator(self.seed, "network"), without("bitsandbytes"):
            inject_adapter_in_model(config, model, adapter_name=ADAPTER)
        for target in self.targets:
            layer = model.get_submodule(target)
            # The frozen model is in evaluation mode; dropout is the one thing that must not be.
            self._dropouts.append(layer.lora_dropout[ADAPTER].train())
            self._thin(layer)
            for matrix in ("lora_A", "lora_B"):
                weight = getattr(layer, matrix)[ADAPTER].weight
                weight.data = weight.data.to(torch.promote_types(weight.dtype, torch.float32))
                weight.requires_grad_(True)
                self._parameters[f"{target}.{matrix}.weight"] = weight

    def _thin(self, layer: nn.Module) -> None:
        """The dropouts that peft does not have, at the outputs of its two matrices."""
        if not (self.rank_dropout or self.module_dropout):
            return
        thinning = Thinning(ranks=self.rank_dropout, module=self.module_dropout)

        def after_down(_: nn.Module, inputs: object, h: Tensor) -> Tensor:
            return thinning.ranks(h)

        def after_up(_: nn.Module, inputs: object, change: Tensor) -> Tensor:
            return thinning.module(change)

        layer.lora_A[ADAPTER].register_forward_hook(after_down)
        layer.lora_B[ADAPTER].register_forward_hook(after_up)
        self._dropouts.append(thinning.train())

    def take_over(self, target: str, change: ModuleChange) -> float:
        """A smaller rank is filled up, a larger one or another kind cut by SVD.

        Rows of A that the file does not fill keep their random start and have zeros in B: no effect, but trainable.
        """
        if change.magnitude is not None:
            raise UserError("network.pretrained_lora_path: the file is a DoRA. Set network.type to dora.")
        return take_over_low_rank(self, target, change)


def take_over_low_rank(network: AdapterNetwork, target: str, change: ModuleChange) -> float:
    """Fills the down and up matrix of a layer with the nearest change of the network's rank; its relative error."""
    up_OR, down_RI, error = fit(change, network.rank)
    a, b = (network.part(target, f"{matrix}.weight") for matrix in ("lora_A", "lora_B"))
    a[: len(down_RI)] = down_RI
    b[:, : up_OR.shape[1]] = up_OR / network.scale
    return error
