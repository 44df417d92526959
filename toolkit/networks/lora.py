"""LoRA: a low-rank delta B A of each adapted linear layer, scaled by alpha / rank.
DoRA: the same delta on the direction of the weight.

The matrices are float32; they are used in the dtype of the layer's input, as under
torch's autocast. The down matrices of layers that read the same input are applied in
one product. Source: Hu et al. 2021, https://arxiv.org/abs/2106.09685, section 4.1. The
matrices start as in peft's LoraLayer.

With DoRA the weight W of each adapted layer becomes m (W + d) / |W + d|, with the LoRA
d = alpha / rank B A. |.| is the norm of each input column, as the paper writes it
(https://arxiv.org/abs/2402.09353, equation 5) and as ComfyUI reads it from a file; peft
and LyCORIS' default take the norm of each output row instead. Gradients treat the norm
as a constant (section 4.3 of the paper).

`toolkit.contracts.network_kinds` names the two network classes, and trainers make them
by it. Attaching, dropout and files are in the base classes (`adapter`).

Shape suffixes: N tokens of all samples, R rank, I inputs of a layer, O outputs of a
layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from toolkit.contracts.network_kinds import KINDS
from toolkit.errors import UserError
from toolkit.networks.adapter import (
    AdapterLinear,
    LinearAdapterNetwork,
    dequantized_weight,
    kaiming_,
    linear,
    product_norm,
)
from toolkit.networks.lora_formats import LayerDelta, dora_norm
from toolkit.networks.svd import extract_lora


class LowRankLinear(AdapterLinear):
    """A layer with a low-rank delta: A [R, I] is initialised randomly, B [O, R] with
    zeros.

    Example::

        class DoraLinear(LowRankLinear):
            def delta(self, x): ...
    """

    lora_A: nn.Parameter
    lora_B: nn.Parameter

    def init_weights(self, random: torch.Generator) -> None:
        kaiming_(self.lora_A.data, random)
        self.lora_B.data.zero_()

    def delta_norm(self) -> Tensor:
        """Norm of the low-rank part, without a magnitude."""
        return self.scale * product_norm(self.lora_B, self.lora_A)


class LoraLinear(LowRankLinear):
    """A LoRA of one layer. `LoraNetwork.attach` makes it.

    >>> model = nn.Sequential(nn.Linear(8, 8))
    >>> LoraNetwork(["0"], rank=4, alpha=4, dropout=0.0, seed=1).attach(model)
    >>> type(model[0]).__name__, model[0].delta_norm().item()
    ('LoraLinear', 0.0)
    """

    fused_group: FusedDownProjection | None = None
    """Set where other layers read the same input."""

    cast_down: Tensor | None = None
    cast_up: Tensor | None = None
    """The matrices in the dtype of the block's inputs, while the block runs
    (`BlockCasts`)."""

    def add_delta(self, out: Tensor, x: Tensor, *shared: Tensor) -> Tensor:
        """shared: the product of `x` with the down matrix."""
        low_R = self.adapter_dropout.ranks(shared[0]) if shared else self.down(x)
        if self.adapter_dropout.rates["module"]:
            return out + self.adapter_dropout.module(
                self.scale * linear(low_R, self.up_for(x))
            )
        # `addmm` adds the product in the same pass over the output. For compiled blocks
        # see `UnfusedSums`.
        up_RO = self.up_for(x).t().to(x.dtype)
        return torch.addmm(
            out.flatten(0, -2), low_R.flatten(0, -2), up_RO, alpha=self.scale
        ).view(out.shape)

    def down(self, x: Tensor) -> Tensor:
        """A x, [..., R]."""
        down_RI = cast_or(self.cast_down, x, lambda: self.lora_A)
        return self.adapter_dropout.ranks(
            linear(self.adapter_dropout.inputs(x), down_RI)
        )

    def up_for(self, x: Tensor) -> Tensor:
        """B, in the dtype of `x` or in its own dtype."""
        return cast_or(self.cast_up, x, lambda: self.lora_B)

    def delta(self, x: Tensor) -> Tensor:
        return self.scale * linear(self.down(x), self.up_for(x))


def cast_or(cast: Tensor | None, x: Tensor, parameter: Callable[[], Tensor]) -> Tensor:
    """`cast` where it has the dtype of `x`, else the parameter."""
    return parameter() if cast is None or cast.dtype != x.dtype else cast


class FusedDownProjection:
    """Layers that read the same input, such as the query, key and value of
    attention.

    Example::

        shared = FusedDownProjection([query, key, value])
        if shared.is_shared():
            lows = shared.down(x)
    """

    cast_down: Tensor | None = None
    """Their down matrices, as in `LoraLinear`."""

    def __init__(self, layers: Sequence[LoraLinear]) -> None:
        self.layers = tuple(layers)

    def is_shared(self) -> bool:
        """Whether one product can be used for all of them now. Input dropout prevents
        it, because each layer drops other inputs."""
        dropout = self.layers[0].adapter_dropout
        return not self.layers[0].disabled and not (
            dropout.training and dropout.rates["inputs"]
        )

    def down(self, x: Tensor) -> Sequence[Tensor]:
        """A x of each layer, in one product."""
        down_RI = cast_or(
            self.cast_down,
            x,
            lambda: torch.cat([layer.lora_A for layer in self.layers]),
        )
        parts: Sequence[Tensor] = linear(x, down_RI).split(
            [len(layer.lora_A) for layer in self.layers], dim=-1
        )
        return parts


# ------------------------------------------------------------ the matrices of a block,
# cast at once


def _cast_stacks(
    dtype: torch.dtype, counts: Sequence[int], *parameters: Tensor
) -> tuple[Tensor, ...]:
    """Casts parameters to another dtype and joins those of each stack into one matrix.
    counts: parameters of each stack, which have the same number of columns."""
    in_order = iter(parameters)
    stacks: list[Tensor] = []
    places: list[Tensor] = []
    for count in counts:
        of_stack = [next(in_order) for _ in range(count)]
        rows = [len(parameter) for parameter in of_stack]
        stack = of_stack[0].new_empty((sum(rows), of_stack[0].shape[1]), dtype=dtype)
        stacks.append(stack)
        if count == 1:
            places.append(stack)
        else:
            places += stack.split(rows)
    torch._foreach_copy_(places, parameters)
    return tuple(stacks)


class _CastTogether(torch.autograd.Function):
    """`_cast_stacks`. Gradients come back in the parameters' dtype."""

    @staticmethod
    def forward(
        ctx: Any, dtype: torch.dtype, counts: Sequence[int], *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.dtype = parameters[0].dtype
        rows = iter([len(parameter) for parameter in parameters])
        ctx.rows = [[next(rows) for _ in range(count)] for count in counts]
        return _cast_stacks(dtype, counts, *parameters)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        there = [gradient for gradient in gradients if gradient is not None]
        wide = [torch.empty_like(gradient, dtype=ctx.dtype) for gradient in there]
        torch._foreach_copy_(wide, there)
        wide_in_order = iter(wide)
        of_parameters: list[Tensor | None] = []
        for gradient, rows in zip(gradients, ctx.rows, strict=True):
            if gradient is None:
                of_parameters += [None] * len(rows)
            elif len(rows) == 1:
                of_parameters.append(next(wide_in_order))
            else:
                of_parameters += next(wide_in_order).split(rows)
        return None, None, *of_parameters


class BlockCasts:
    """The LoRAs of a block. One kernel casts all of their matrices to the dtype of its
    inputs, and one kernel casts their gradients. Otherwise each use would cast its own
    matrix: uncompiled blocks launch kernels one by one, and a fast GPU waits for them.

    The matrices are cast at each call of the block, also where a checkpoint calls it
    again. So changes of the parameters in between (by the optimizer, by averages for
    samples, by a resume) need no notice. It is an attribute of the block and not a
    hook, because a compiled program is specific to the hooks of one block.

    Example::

        with block.adapter_casts.of(inputs):
            outputs = run(block, *inputs)
    """

    def __init__(self, layers: Sequence[LoraLinear]) -> None:
        self._layers = layers

    @contextmanager
    def of(self, inputs: Iterable[object]) -> Iterator[None]:
        """Inside the context the layers have their matrices in the dtype of these
        inputs of the block."""
        floats = (x for x in inputs if isinstance(x, Tensor) and x.is_floating_point())
        x = next(floats, None)
        if (
            x is None
            or x.dtype == self._layers[0].lora_A.dtype
            or self._layers[0].disabled
        ):
            yield
            return
        try:
            self._cast(x.dtype)
            yield
        finally:  # a checkpoint ends its second call early
            self._drop()

    def _cast(self, dtype: torch.dtype) -> None:
        groups = dict.fromkeys(
            layer.fused_group for layer in self._layers if layer.fused_group
        )
        shared = [group for group in groups if group.is_shared()]
        alone = [layer for layer in self._layers if layer.fused_group not in shared]
        stacks = [
            *([layer.lora_A for layer in group.layers] for group in shared),
            *([layer.lora_A] for layer in alone),
            *([layer.lora_B] for layer in self._layers),
        ]
        parameters = [parameter for stack in stacks for parameter in stack]
        # PyTorch 2.13 does not compile the samples of a job with the autograd function
        # (tests/faults/test_cuda_families.py).
        cast = _CastTogether.apply if torch.is_grad_enabled() else _cast_stacks
        casts = iter(cast(dtype, [len(stack) for stack in stacks], *parameters))
        for owner in (*shared, *alone):
            _set(owner, "cast_down", next(casts))
        for layer in self._layers:
            _set(layer, "cast_up", next(casts))

    def _drop(self) -> None:
        for layer in self._layers:
            _set(layer, "cast_down", None)
            _set(layer, "cast_up", None)
            if layer.fused_group:
                layer.fused_group.cast_down = None


_set = object.__setattr__
"""A module's own `__setattr__` searches all of its registers first, which takes ten
times longer."""


# ------------------------------------------------------------ networks


class LoraNetwork(LinearAdapterNetwork):
    """A LoRA on the given linear layers.

    Its files, `.lora_A.weight` / `.lora_B.weight` and `.alpha`, load in ComfyUI and
    diffusers.

    >>> network = LoraNetwork(["0"], rank=4, alpha=4, dropout=0.0, seed=1)
    >>> network.attach(nn.Sequential(nn.Linear(8, 8)))
    >>> list(network.parameters())
    ['0.lora_A.weight', '0.lora_B.weight']
    """

    kind = KINDS["lora"]
    layer = LoraLinear

    def fuse_projections(self, groups: Iterable[Sequence[str]]) -> None:
        """Applies the down matrices of each group of layers in one product."""
        for group in groups:
            adapted = [self.layers.get(target) for target in group]
            layers = [layer for layer in adapted if isinstance(layer, LoraLinear)]
            if len(layers) > 1:
                shared = FusedDownProjection(layers)
                for layer in layers:
                    layer.fused_group = shared

    def cast_by_block(self, blocks: Iterable[nn.Module]) -> None:
        for block in blocks:
            layers = [
                layer for layer in block.modules() if isinstance(layer, LoraLinear)
            ]
            if layers:
                setattr(block, "adapter_casts", BlockCasts(layers))  # noqa: B010 - mypy does not accept a plain attribute of a module

    def load_layer(self, target: str, delta: LayerDelta) -> float:
        """Pads a smaller rank; truncates a larger one or another kind by SVD.

        Further rows of A stay random, with zeros in B: they have no effect yet, but are
        trained.
        """
        if delta.magnitude is not None:
            raise UserError(
                "network.pretrained_lora_path: the file is a DoRA. Set network.type to dora."
            )
        return take_over_low_rank(self, target, delta)


def take_over_low_rank(
    network: LinearAdapterNetwork, target: str, change: LayerDelta
) -> float:
    """Loads the nearest delta of the network's rank into the matrices of a layer;
    returns the relative error."""
    up_OR, down_RI, error = extract_lora(change, network.rank)
    a, b = (
        network.layer_weight(target, f"{matrix}.weight")
        for matrix in ("lora_A", "lora_B")
    )
    a[: len(down_RI)] = down_RI
    b[:, : up_OR.shape[1]] = up_OR / network.scale
    return error


class DoraLinear(LowRankLinear):
    """A DoRA of one layer. At the start the network sets m [1, I] to the norm of W.

    >>> model = nn.Sequential(nn.Linear(8, 8))
    >>> DoraNetwork(["0"], rank=4, alpha=4, dropout=0.0, seed=1).attach(model)
    >>> model[0].norm().shape
    torch.Size([1, 8])
    """

    dora_scale: nn.Parameter

    needs_base = KINDS["dora"].needs_base

    @torch.no_grad()
    def norm(self) -> Tensor:
        """[1, I] of W + d."""
        weight_OI = torch.addmm(
            dequantized_weight(self.base_layer),
            self.lora_B,
            self.lora_A,
            alpha=self.scale,
        )
        return dora_norm(weight_OI, axis=0)

    def add_delta(self, out: Tensor, x: Tensor, *shared: Tensor) -> Tensor:
        return out + self.adapter_dropout.module(self.delta(x))

    def delta(self, x: Tensor) -> Tensor:
        """(c - 1) x through W plus c x through d, with c = m / |W + d| for each input.

        c x through W would save a product. But for c near 1 a half-precision c x equals
        x, and small changes of m would be lost.
        """
        c_I = (self.dora_scale / self.norm())[0]
        wide = x.float()
        low_R = self.adapter_dropout.ranks(
            linear(self.adapter_dropout.inputs(wide * c_I), self.lora_A)
        )
        from_base = functional.linear(
            (wide * (c_I - 1)).to(x.dtype), self.base_layer.weight
        )
        return from_base + (self.scale * linear(low_R, self.lora_B)).to(x.dtype)

    def factors(self) -> list[nn.Parameter]:
        return [self.lora_A, self.lora_B]


class DoraNetwork(LinearAdapterNetwork):
    """A DoRA on the given linear layers.

    >>> network = DoraNetwork(["0"], rank=4, alpha=4, dropout=0.0, seed=1)
    >>> network.attach(nn.Sequential(nn.Linear(8, 8)))
    >>> list(network.parameters())
    ['0.lora_A.weight', '0.lora_B.weight', '0.dora_scale']
    """

    kind = KINDS["dora"]
    layer = DoraLinear

    def attach(self, model: nn.Module) -> None:
        super().attach(model)
        for layer in self.layers.values():
            assert isinstance(layer, DoraLinear)  # the class that `layer` names
            # on the layer's device, as in training: m / |W| is exactly 1
            layer.dora_scale.data.copy_(layer.norm())

    def load_layer(self, target: str, delta: LayerDelta) -> float:
        """Loads the low-rank part as a LoRA does. The magnitude is the file's, or else
        the norm of W + d."""
        magnitude_1I = delta.magnitude
        own_1I = self.layer_weight(target, "dora_scale")
        if magnitude_1I is not None and magnitude_1I.shape != own_1I.shape:
            raise UserError(
                "network.pretrained_lora_path: the file's DoRA scales output rows, here input columns are scaled. "
                "It cannot be taken over."
            )
        error = take_over_low_rank(self, target, delta)
        layer = self.layers[target]
        assert isinstance(layer, DoraLinear)  # the class that `layer` names
        own_1I.copy_(layer.norm() if magnitude_1I is None else magnitude_1I)
        return error
