"""Files that writers made, with the change that they mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from benchmarks.interop.models import SEED
from toolkit.system.seeding import generator

RANK = 4
ALPHA = 2.0
"""Of most files: a strength of a half, so that a reader without alpha is off by a
factor of two."""

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
"""What peft names the two files of a folder."""

Changes = Mapping[str, Tensor]
"""The change of each weight and bias by its name, float32."""


@dataclass(frozen=True)
class WrittenFile:
    """One file, or folder of peft."""

    name: str
    """Its name among the files of its model."""

    model: str
    writer: str
    """Program and version."""

    what: str
    """What is special about it, in a few words."""

    path: Path
    """The file of tensors."""

    meant: Changes
    layers: tuple[str, ...]
    """The layers it is of."""

    in_file: bool = True
    """Whether its strength is in the file, or beside it, at all."""

    @property
    def place(self) -> str:
        """Its name among the files of all models."""
        return f"{self.model}/{self.name}"

    @property
    def config(self) -> Path | None:
        """The settings beside it that peft reads; None: there are none."""
        beside = self.path.with_name(CONFIG_FILE)
        return beside if beside.is_file() else None

    @property
    def is_folder(self) -> bool:
        """Whether peft can load it: a folder of its own form."""
        return self.path.name == WEIGHTS_FILE and self.config is not None

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors as they are."""
        with safe_open(self.path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping

    def metadata(self) -> dict[str, str]:
        """Its header metadata."""
        with safe_open(self.path, framework="pt") as file:
            return dict(file.metadata() or {})


class Draws:
    """Random numbers of one file, the same each time."""

    def __init__(self, *names: str) -> None:
        self._generator = generator(SEED, "interop", *names)

    def normal(self, *shape: int, std: float = 0.3) -> Tensor:
        return torch.randn(shape, generator=self._generator) * std

    @torch.no_grad()
    def fill(self, module: nn.Module, part: str, std: float = 0.3) -> None:
        """Draws all floating parameters whose name contains `part`, in the order of
        their names."""
        for name, parameter in sorted(module.named_parameters()):
            if part in name and parameter.is_floating_point():
                parameter.copy_(self.normal(*parameter.shape, std=std))


def changes_of(
    after: Mapping[str, Tensor], before: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """after - before, of the weights that changed."""
    changes = {
        name: after[name].float() - before[name].float()
        for name in before
        if name in after
    }
    return {name: change for name, change in changes.items() if change.any()}


def without_wrappers(transformer: nn.Module) -> dict[str, Tensor]:
    """Weights and biases of a model in which peft has wrapped layers, by the names of
    the plain model."""
    return {
        name.replace(".base_layer", ""): tensor.detach().clone()
        for name, tensor in transformer.state_dict().items()
        if "lora_" not in name
    }
