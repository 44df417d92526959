"""Full fine-tuning: the parameters of the model itself are trained, without an adapter.

Modules are selected by their dotted names, as the layers of an adapter are; all
parameters of a module (matrix, bias, scale of a norm) are trained. The model is loaded
in float32 by the caller where it is to have master weights. Trainers make the class by
`toolkit.contracts.network_kinds` (`network.type: full`), or directly for a new model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from toolkit.config.sections.network import NetworkConfig
from toolkit.contracts.model import DiffusionModel
from toolkit.contracts.network import Network
from toolkit.errors import UserError
from toolkit.system.sharded_param import (
    RowShard,
    is_sharded,
    local_rows,
    local_shard_parameter,
    shard_of,
)


class FullNetwork(Network):
    """The given modules of the model, trained in the dtype they are loaded in.

    Parameters in float32 are master weights: they are cast to the compute dtype on use,
    so gradients and updates are float32, and the output equals the output of a model in
    the compute dtype. With `train.full_bf16` nothing is float32.

    Sharded parameters are cast when they are gathered; each rank trains its own rows.

    >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    >>> network = FullNetwork(modules_with_weights(model), torch.bfloat16)
    >>> network.attach(model)
    >>> list(network.parameters())
    ['0.weight', '0.bias']
    """

    def __init__(self, targets: Sequence[str], dtype: torch.dtype) -> None:
        """targets: full dotted names of modules with their own parameters. dtype: the
        compute dtype."""
        self.targets = tuple(targets)
        self.dtype = dtype
        self._parameters: dict[str, nn.Parameter] = {}
        self._modules: dict[str, nn.Module] = {}
        self._buffers: dict[str, Tensor] = {}

    @classmethod
    def from_config(
        cls,
        settings: NetworkConfig,
        targets: Sequence[str],
        seed: int,
        dtype: torch.dtype,
    ) -> Self:
        """Uses only the choice of modules of the section. The seed has no effect."""
        return cls(targets, dtype)

    @staticmethod
    def trainable_modules(model: DiffusionModel) -> list[str]:
        """Every module of the model that has its own weights."""
        return modules_with_weights(model.network_module)

    def attach(self, model: nn.Module) -> None:
        model.requires_grad_(False)
        chosen = {target: model.get_submodule(target) for target in self.targets}
        for name, parameter in _parameters_of(chosen):
            parameter.requires_grad_(True)
            if is_sharded(parameter):
                trained = local_shard_parameter(parameter)
            else:
                trained = parameter
            self._parameters[name] = trained
        for module in chosen.values():
            cast_on_use(module, self.dtype)
        # The modules are kept here: the modulation cache may remove frozen ones from
        # the model later.
        self._modules = {
            name: model.get_submodule(name) for name in modules_with_weights(model)
        }
        parameters = {
            name for name, _ in model.named_parameters(remove_duplicate=False)
        }
        self._buffers = {
            name: tensor
            for name, tensor in model.state_dict().items()
            if name not in parameters
        }
        # parameters that are not trained are rounded
        for module in self._modules.values():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.requires_grad or parameter.dtype == self.dtype:
                    continue
                rounded = parameter.detach().to(self.dtype)
                # FSDP2 takes over the parameters of the module when it first runs
                if is_sharded(parameter):
                    setattr(module, name, nn.Parameter(rounded, requires_grad=False))
                else:
                    parameter.data = rounded

    def load_pretrained(self, deltas: Mapping[str, Any]) -> None:
        raise UserError(
            "network.pretrained_lora_path: 'type: full' trains no adapter. Use model.base_loras."
        )

    def parameters(self) -> dict[str, nn.Parameter]:
        return dict(self._parameters)

    def sharded_params(self) -> dict[str, RowShard]:
        return {
            name: shard_of(parameter)
            for name, parameter in _parameters_of(self._modules)
            if is_sharded(parameter)
        }

    def export(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """All weights and buffers of the model, those that are not trained included,
        under the model's own names."""
        return (
            self._buffers
            | {
                name: local_rows(parameter)
                for name, parameter in _parameters_of(self._modules)
            }
            | weights
        )


def _parameters_of(
    modules: Mapping[str, nn.Module],
) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of modules without their children, by dotted name; one of several
    modules has its first name."""
    tied: set[int] = set()
    for name, module in modules.items():
        for parameter_name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in tied:
                continue
            tied.add(id(parameter))
            yield f"{name}.{parameter_name}".lstrip("."), parameter


def modules_with_weights(model: nn.Module) -> list[str]:
    """Dotted names of the modules that own parameters, in the model's order.

    >>> modules_with_weights(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)))
    ['0', '2']
    """
    return [
        name
        for name, module in model.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    ]


def cast_on_use(module: nn.Module, dtype: torch.dtype) -> None:
    """Makes `module` see its own parameters in `dtype`. For all other code they keep
    their dtype. Sharded parameters do not change.

    The class gets a property in front of each parameter, so the names in the model and
    in its files stay (torch's parametrizations would rename them). The conversion is
    part of the graph: gradients come back in the parameter's own dtype. Unlike autocast
    it rounds only the weights.
    """
    parameters = module.named_parameters(recurse=False)
    names = [
        name
        for name, parameter in parameters
        if parameter.dtype != dtype and not is_sharded(parameter)
    ]
    if names:
        kind = type(module)
        module.__class__ = type(
            kind.__name__, (kind,), {name: _seen_in(dtype, name) for name in names}
        )


def _seen_in(dtype: torch.dtype, name: str) -> property:
    return property(lambda module: module._parameters[name].to(dtype))
