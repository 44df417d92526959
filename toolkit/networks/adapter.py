"""Base classes of adapters on frozen linear layers: settings, parameters, file format,
max-norm regularisation.

The kinds are in `lora`, `lycoris` and `lycoris_library`; each defines its delta and its
start. Which layers are adapted is decided in `targets`, and files are written by
`save`. A trainer makes a network by its class in `toolkit.contracts.network_kinds`.

Source of max-norm regularisation: kohya-ss, sd-scripts and musubi-tuner,
`apply_max_norm_regularization`. After each optimizer step a delta whose Frobenius norm
is above the limit is scaled down to it. The matrices of the layer share the factor
evenly.

Shape suffixes: R rank, I inputs of a layer, O outputs of a layer."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from toolkit.config.sections.network import NetworkConfig
from toolkit.contracts.model import DiffusionModel
from toolkit.contracts.network import Network
from toolkit.contracts.network_kinds import NetworkKind, Shapes
from toolkit.errors import UserError
from toolkit.files.mapped import read_in
from toolkit.networks.lora_formats import LayerDelta
from toolkit.networks.spelling import EXPORTED_PREFIX
from toolkit.system.seeding import generator


@torch.no_grad()
def apply_max_norm_(
    norms: Sequence[Tensor],
    matrices: Sequence[Sequence[Tensor]],
    most: float,
    step_ok: Tensor,
) -> dict[str, Tensor]:
    """Scales the matrices of each layer so that no norm is above `most`; no-op where
    `step_ok` (0-dim bool) is false.

    norms: of the delta of each layer, 0-dim. matrices: for each layer the matrices
    whose product is the delta. Returns the number of scaled layers, and the mean and
    the largest norm afterwards; does not wait for the device.

    >>> up, down = torch.full((2, 1), 2.0), torch.ones(1, 2)
    >>> norms, step_ok = [product_norm(up, down)], torch.tensor(True)
    >>> found = apply_max_norm_(norms, [[up, down]], 1.0, step_ok)
    >>> round(float(product_norm(up, down)), 3)
    1.0
    """
    before = torch.stack(list(norms))
    above = (before > most) & step_ok.to(before.device)
    ratio = torch.where(above, most / before, 1.0)
    shares = {
        n: (ratio ** (1 / n)).unbind() for n in {len(parts) for parts in matrices}
    }
    factors = [
        shares[len(parts)][index] for index, parts in enumerate(matrices) for _ in parts
    ]
    torch._foreach_mul_([matrix for parts in matrices for matrix in parts], factors)
    after = before * ratio
    return {
        "max_norm/keys_scaled": above.sum(),
        "max_norm/average_key_norm": after.mean(),
        "max_norm/max_key_norm": after.max(),
    }


def product_norm(up_OR: Tensor, down_RI: Tensor) -> Tensor:
    """|up down| without forming the product: the sum over (up^T up) * (down down^T) is its square."""
    square = ((up_OR.T @ up_OR) * (down_RI @ down_RI.T)).sum()
    return square.clamp(min=0).sqrt()  # rounding may leave a zero slightly below


logger = logging.getLogger(__name__)

Addition = Callable[[Tensor, Tensor], Tensor]
"""Called with the output of a layer and its inputs; returns the output with something
added."""

REPORT_ERROR_ABOVE = 1e-4
"""Relative error of a decomposition above which it is logged. A smaller error is
rounding."""


class LinearAdapterNetwork(Network):
    """Trainable parameters in addition to the given linear layers, which stay frozen.
    Its own layers replace them in the model.

    Example::

        network = LoraNetwork.from_config(section.network, targets, seed=42)
        network.attach(model)
        optimizer = torch.optim.AdamW(network.parameters().values())
    """

    kind: NetworkKind
    layer: ClassVar[type[AdapterLinear]]

    max_norm: float = 0.0
    """Largest Frobenius norm of a layer's delta after a step; 0: no limit."""

    def __init__(
        self,
        targets: Sequence[str],
        rank: int,
        alpha: float,
        dropout: float,
        seed: int,
        rank_dropout: float = 0.0,
        module_dropout: float = 0.0,
    ) -> None:
        """targets: full dotted module names. alpha: numerator of the scale. The
        dropouts: see `AdapterDropout`."""
        self.targets = tuple(targets)
        self.rank = rank
        self.alpha = alpha
        self.dropout = dropout
        self.rank_dropout = rank_dropout
        self.module_dropout = module_dropout
        self.seed = seed
        self._parameters: dict[str, nn.Parameter] = {}
        self._frozen: list[str] = []
        """Names of the parameters that are buffers of the network."""
        self._dropouts: list[nn.Module] = []
        self.layers: dict[str, AdapterLinear] = {}
        """Target -> its layer; empty until `attach`."""

    @staticmethod
    def trainable_modules(model: DiffusionModel) -> Sequence[str]:
        """The linear layers that the family adapts."""
        return model.lora_targets()

    @classmethod
    def from_config(
        cls,
        settings: NetworkConfig,
        targets: Sequence[str],
        seed: int,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """The network that a `network:` section describes, on these layers; it computes
        in the dtype of its inputs."""
        return cls._with_settings(
            settings, targets, seed, **cls.kind.extra_kwargs(settings)
        )

    @classmethod
    def _with_settings(
        cls, settings: NetworkConfig, targets: Sequence[str], seed: int, **of_kind: Any
    ) -> Self:
        """The network with the settings that all kinds have. of_kind: further arguments
        of one kind."""
        network = cls(
            targets,
            settings.linear,
            settings.linear_alpha,
            settings.dropout,
            seed,
            settings.rank_dropout,
            settings.module_dropout,
            **of_kind,
        )
        network.max_norm = settings.scale_weight_norms
        return network

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank

    # ------------------------------------------------------------ loading a file

    @torch.no_grad()
    def load_pretrained(self, deltas: Mapping[str, LayerDelta]) -> None:
        """Initialises the layers from the deltas of a file.

        Raises UserError when no adapted layer is in the file, the scale is 0, or a
        delta cannot be represented.
        """
        common = [target for target in self.targets if target in deltas]
        if not common:
            raise UserError(
                "network.pretrained_lora_path: the file changes none of the layers this job trains."
            )
        for target in common:
            if deltas[target].bias is not None:
                raise _not_trained(
                    f"the file changes biases ({target}), which a network does not train"
                )
        check_trained_kind({target: deltas[target] for target in common})
        if self.scale == 0:
            raise UserError(
                "network.linear_alpha: 0 cannot take over network.pretrained_lora_path. Give it a value."
            )
        worst = max(self.load_layer(target, deltas[target]) for target in common)
        left_out = len(deltas.keys() - set(common))
        logger.info(
            f"started from {len(common)} layers of the given file"
            + (f"; {left_out} of its layers are not trained here" if left_out else "")
            + (
                f"; cut to rank {self.rank} with relative error up to {worst:.3g}"
                if worst > REPORT_ERROR_ABOVE
                else ""
            )
        )

    @abstractmethod
    def load_layer(self, target: str, delta: LayerDelta) -> float:
        """Initialises one layer from a delta; returns the relative error. Raises
        UserError with the reason."""

    def layer_weights(self, target: str) -> dict[str, nn.Parameter]:
        """The trained matrices of one layer by their names in files."""
        prefix = f"{target}."
        return {
            name.removeprefix(prefix): p
            for name, p in self._parameters.items()
            if name.startswith(prefix)
        }

    def layer_weight(self, target: str, name: str) -> nn.Parameter:
        """One trained matrix, by the layer and its name in files."""
        return self._parameters[f"{target}.{name}"]

    # ------------------------------------------------------------ the interface of
    # `Network`

    def parameters(self) -> dict[str, nn.Parameter]:
        return {
            name: p for name, p in self._parameters.items() if name not in self._frozen
        }

    def buffers(self) -> dict[str, Tensor]:
        return {name: self._parameters[name].detach() for name in self._frozen}

    def lora_b_parameters(self) -> frozenset[str]:
        return frozenset(
            f"{target}.{name}" for target in self.targets for name in self.kind.up_names
        )

    @contextmanager
    def inference(self) -> Iterator[None]:
        try:
            for dropout in self._dropouts:
                dropout.eval()
            yield
        finally:
            for dropout in self._dropouts:
                dropout.train()

    def export(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors = {
            EXPORTED_PREFIX + name: weight
            for name, weight in (*self.buffers().items(), *weights.items())
        }
        for target in self.targets:
            tensors[f"{EXPORTED_PREFIX}{target}.alpha"] = torch.tensor(
                float(self.alpha_of(target))
            )
        return tensors

    def alpha_of(self, target: str) -> float:
        """The alpha of one layer in the file."""
        return self.alpha

    def attach(self, model: nn.Module) -> None:
        model.requires_grad_(False)
        for target in self.targets:
            base = model.get_submodule(target)
            # all `candidates` are linear layers
            assert isinstance(base, nn.Linear), target
            adapter_dropout = AdapterDropout(
                self.dropout, self.rank_dropout, self.module_dropout
            )
            layer = self.new_layer(target, base, adapter_dropout).eval()
            # The frozen model is in eval mode, but dropout of the adapter has to be
            # active.
            self._dropouts.append(adapter_dropout.train())
            layer.move_to(
                base.weight.device,
                torch.promote_types(base.weight.dtype, torch.float32),
            )
            for name, parameter in layer.layer_weights.items():
                self._parameters[f"{target}.{name}"] = parameter
                if name in self.kind.frozen_names:
                    self._frozen.append(f"{target}.{name}")
                    parameter.requires_grad_(False)
            model.set_submodule(target, layer)
            self.layers[target] = layer

    def new_layer(
        self, target: str, base: nn.Linear, adapter_dropout: AdapterDropout
    ) -> AdapterLinear:
        """The layer that replaces `base`, initialised on the CPU."""
        make_shapes = self.kind.shapes
        assert make_shapes is not None  # None means that the model itself is trained
        settings = {
            argument: getattr(self, argument) for argument in self.kind.settings
        }
        shapes = make_shapes(base.in_features, base.out_features, self.rank, **settings)
        layer = self.layer(base, shapes, self.scale_for(shapes), adapter_dropout)
        layer.init_weights(generator(self.seed, "network", target))
        return layer

    @contextmanager
    def disabled(self) -> Iterator[None]:
        try:
            for layer in self.layers.values():
                layer.disabled = True
            yield
        finally:
            for layer in self.layers.values():
                layer.disabled = False

    def after_step(self, step_ok: Tensor) -> dict[str, Tensor]:
        if not self.max_norm:
            return {}
        layers = self.layers.values()
        with torch.no_grad():
            norms = [layer.delta_norm() for layer in layers]
        return apply_max_norm_(
            norms, [layer.factors() for layer in layers], self.max_norm, step_ok
        )

    def scale_for(self, names: Container[str]) -> float:
        """The scale of the delta of a layer with these matrices: alpha / rank."""
        return self.scale


def check_trained_kind(deltas: Mapping[str, LayerDelta]) -> None:
    """Raises UserError for a file of a kind that can be applied but not trained."""
    for target, delta in deltas.items():
        if delta.multiplied:
            raise _not_trained(
                f"the file is {delta.multiplied.title(delta.parts)} ({target}), which no network here trains"
            )


def _not_trained(what: str) -> UserError:
    return UserError(
        f"network.pretrained_lora_path: {what}. Give it as model.base_loras, or merge it (run.py merge)."
    )


class AdapterDropout(nn.Module):
    """Three dropouts of one adapted layer, active while `training`; a rate of 0 uses no
    random numbers.

    Kept inputs and ranks are scaled by 1 / (1 - rate); module dropout is not scaled.

    >>> dropout = AdapterDropout(inputs=0.1)
    >>> dropout.eval().inputs(torch.ones(2))
    tensor([1., 1.])
    """

    def __init__(
        self, inputs: float = 0.0, ranks: float = 0.0, module: float = 0.0
    ) -> None:
        """Probabilities to drop each input; each rank, per sample; the whole adapter,
        per call."""
        super().__init__()
        self.rates = {"inputs": inputs, "ranks": ranks, "module": module}

    def inputs(self, x: Tensor) -> Tensor:
        """`x` with dropped inputs."""
        rate = self.rates["inputs"]
        return functional.dropout(x, rate) if rate and self.training else x

    def ranks(self, h: Tensor) -> Tensor:
        """`h` [samples, ..., ranks] with dropped ranks, per sample."""
        rate = self.rates["ranks"]
        if not (rate and self.training):
            return h
        shape = (h.shape[0], *[1] * (h.dim() - 2), h.shape[-1])
        return h * (torch.rand(shape, device=h.device) >= rate).to(h.dtype) / (1 - rate)

    def module(self, delta: Tensor) -> Tensor:
        """`delta`, or zeros where the module is dropped."""
        rate = self.rates["module"]
        if not (rate and self.training):
            return delta
        return delta * (torch.rand((), device=delta.device) >= rate).to(delta.dtype)


class AdapterLinear(nn.Module):
    """A frozen linear layer, plain or quantized, with a trained delta of its weight.

    Example::

        layer = network.layers["transformer_blocks.0.attn.to_q"]
        norm = layer.delta_norm()
    """

    def __init__(
        self,
        base_layer: nn.Linear,
        shapes: Shapes,
        scale: float,
        adapter_dropout: AdapterDropout,
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.scale = scale
        self.adapter_dropout = adapter_dropout
        self._attributes = {name: name.removesuffix(".weight") for name in shapes}
        for name, attribute in self._attributes.items():
            self.register_parameter(
                attribute, nn.Parameter(torch.empty(shapes[name], dtype=torch.float32))
            )

    @property
    def layer_weights(self) -> dict[str, nn.Parameter]:
        """The trained matrices by their names in files."""
        return {
            name: getattr(self, attribute)
            for name, attribute in self._attributes.items()
        }

    disabled = False
    """Whether the layer computes without its delta."""

    needs_base = False
    """Whether the delta itself, or an addition, is computed with the frozen weight."""

    additions: Sequence[Addition] = ()
    """Functions that add the changes of adapter files to the output
    (`toolkit.networks.applied`). `disabled` has no effect on them."""

    def move_to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Moves the trained matrices, which are initialised on the CPU, so that every
        device gets the same values."""
        for attribute in self._attributes.values():
            setattr(
                self,
                attribute,
                nn.Parameter(getattr(self, attribute).data.to(device, dtype)),
            )

    @abstractmethod
    def init_weights(self, random: torch.Generator) -> None:
        """Initialises the matrices so that the delta is zero; `random` is a CPU
        generator."""

    @abstractmethod
    def delta(self, x: Tensor) -> Tensor:
        """The delta of the output for inputs `x`, in the dtype of `x`."""

    @abstractmethod
    def delta_norm(self) -> Tensor:
        """The Frobenius norm of the weight delta, 0-dim; called without gradients."""

    def factors(self) -> list[nn.Parameter]:
        """The trained matrices among those whose product is the delta."""
        return [p for p in self.layer_weights.values() if p.requires_grad]

    def forward_with_base_output(
        self, out: Tensor, x: Tensor, *shared: Tensor
    ) -> Tensor:
        """`out`, the output of the frozen layer for inputs `x`, plus all additions, and
        the delta unless disabled.

        shared: products of `x` that several layers have computed together
        (`toolkit.contracts.model.project`).
        """
        for add in self.additions:
            out = add(out, x)
        return out if self.disabled else self.add_delta(out, x, *shared)

    def add_delta(self, out: Tensor, x: Tensor, *shared: Tensor) -> Tensor:
        """`out`, the output of the frozen layer for inputs `x`, plus the delta."""
        return out + self.adapter_dropout.module(
            self.adapter_dropout.ranks(self.delta(self.adapter_dropout.inputs(x)))
        )

    def forward(self, x: Tensor, *shared: Tensor) -> Tensor:
        return self.forward_with_base_output(self.base_layer(x), x, *shared)


def dequantized_weight(layer: nn.Linear, device: torch.device | None = None) -> Tensor:
    """The frozen weight of a layer in float32, dequantized if necessary. device: None
    keeps the layer's device."""
    if not torch.compiler.is_compiling():
        read_in(*layer.parameters(), *layer.buffers())
    weight = layer.weight.detach()
    return (
        (weight if type(weight) is Tensor else weight.dequantize()).to(device).float()
    )


def kaiming_(matrix: Tensor, random: torch.Generator) -> None:
    """torch's default initialisation of a linear layer's weight."""
    nn.init.kaiming_uniform_(matrix, a=5**0.5, generator=random)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x times the transposed weight, in the dtype of `x`.

    >>> linear(torch.ones(2, 3), torch.ones(4, 3)).shape
    torch.Size([2, 4])
    """
    return functional.linear(x, weight.to(x.dtype))
