"""Quantized frozen weights of linear layers, and the two matmuls that training needs.
optimum-quanto computes the codes of int8, int4, int2 and float8.

Each format is a class with `matmul` (forward) and `matmul_grad` (gradient of the
inputs). A quantized weight is a module, so that its tensors move with the model, and
replaces the `weight` tensor of a layer.

This module does not choose a format (`model.qtype` does), nor write it to a file
(`stored_blocks` does). `toolkit.train.base_model` and `toolkit.models.loading` quantize
a model while it is loaded; so do tools that only use it.

Shape suffixes: M rows (tokens), I inputs of the layer, O outputs, R rank, G groups of a
grouped weight, S weights of a group, N blocks along a row."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, MutableMapping
from functools import cache
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from toolkit.memory.quantized_products import (
    LEAST_ROWS,
    MULTIPLE,
    ROTATED,
    multiply,
    product_grad,
    with_gradient,
)
from toolkit.number_types import (
    FILE_CODES,
    STORED_CODES,
    UINT_BITS,
    QuantizedProducts,
)
from toolkit.rotation import regular_hadamard, rotate
from toolkit.system.host_memory import malloc_trim


class QuantizedWeight(nn.Module):
    """A weight [O, I] that is not a tensor, but can be passed to
    `functional.linear`.

    >>> weight = quantize_weight(torch.eye(64), "fp8_scaled")
    >>> functional.linear(torch.ones(2, 64), weight).shape
    torch.Size([2, 64])
    """

    def __init__(self, shape: tuple[int, int], dtype: torch.dtype) -> None:
        """dtype: the dtype of the original and of the dequantized weight."""
        super().__init__()
        self.shape = torch.Size(shape)
        self.dtype = dtype

    @abstractmethod
    def dequantize(self) -> Tensor:
        """The weight [O, I] as a tensor of `dtype`."""

    def matmul(self, x_MI: Tensor, bias_O: Tensor | None) -> Tensor:
        """[M, O] in the dtype of `x_MI`: x times the transposed weight, plus the bias.
        In compiled code autograd differentiates it by x_MI; its gradient equals
        `matmul_grad`."""
        return functional.linear(
            x_MI, _remade(lambda: self.dequantize().to(x_MI.dtype)), bias_O
        )

    def matmul_grad(self, g_MO: Tensor) -> Tensor:
        """[M, I] in the dtype of `g_MO`: g times the weight."""
        return g_MO @ self.dequantize().to(g_MO.dtype)

    @property
    def device(self) -> torch.device:
        """Device of the weight."""
        return next(self.buffers()).device

    @property
    def requires_grad(self) -> bool:
        """Always False, because the weight is frozen."""
        return False

    def detach(self) -> QuantizedWeight:
        """The weight itself, because no graph contains it."""
        return self

    @classmethod
    def __torch_function__(
        cls,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Called by torch when a quantized weight is passed to one of its functions."""
        if func is not functional.linear:
            return NotImplemented
        return _linear(*args, **(kwargs or {}))


def _linear(
    input: Tensor, weight: QuantizedWeight, bias: Tensor | None = None
) -> Tensor:
    if torch.compiler.is_compiling():
        # Plain operations: PyTorch cannot cache a program with an autograd.Function,
        # and 2.11 recomputes nothing in it.
        return weight.matmul(input.reshape(-1, weight.shape[1]), bias).view(
            *input.shape[:-1], weight.shape[0]
        )
    product: Tensor = QuantizedLinearFn.apply(input, weight, bias)
    return product


def _remade(make: Callable[[], Tensor]) -> Tensor:
    """The result of `make`, which computes it from a frozen weight. In compiled code it
    is marked to be computed again in the backward pass; otherwise PyTorch would keep
    the dequantized weights of all blocks."""
    if torch.compiler.is_compiling() and torch.is_grad_enabled():
        weight: Tensor = checkpoint(make, use_reentrant=False)
        return weight
    return make()


_products = torch.library.Library("atelier", "FRAGMENT")
_products.define("frozen_product(Tensor x_MI, int weight, Tensor? bias) -> Tensor")
_in_use: WeakValueDictionary[int, QuantizedWeight] = WeakValueDictionary()


def eager_product(x_MI: Tensor, weight: int, bias_O: Tensor | None) -> Tensor:
    """The implementation of `frozen_product`. weight: the `id` of a quantized weight."""
    return _in_use[weight].matmul(x_MI, bias_O)


_products.impl("frozen_product", eager_product, "CompositeExplicitAutograd")

frozen_product = torch.ops.atelier.frozen_product.default
"""`matmul` as one operation, so that selective checkpointing can keep its result;
weights are passed by their `id`."""


class QuantizedLinearFn(torch.autograd.Function):
    """x times the transposed weight, plus a frozen bias.

    For the backward pass it keeps only a reference to the quantized weight, without
    activations and without a dequantized copy.

    >>> weight = quantize_weight(torch.eye(64), "fp8_scaled")
    >>> x = torch.ones(2, 64, requires_grad=True)
    >>> QuantizedLinearFn.apply(x, weight, None).sum().backward()
    >>> x.grad.shape
    torch.Size([2, 64])
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: QuantizedWeight, bias_O: Tensor | None
    ) -> Tensor:
        ctx.weight = weight
        _in_use[id(weight)] = weight
        y_MO: Tensor = frozen_product(x.reshape(-1, x.shape[-1]), id(weight), bias_O)
        return y_MO.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        weight = ctx.weight
        return (
            weight.matmul_grad(g.reshape(-1, g.shape[-1])).view(
                *g.shape[:-1], weight.shape[1]
            ),
            None,
            None,
        )


class RowwiseQuantized(QuantizedWeight):
    """int8 or E4M3 codes with a scale per output row.

    Codes are exact in every compute dtype, so the matmul uses them and its result is
    scaled: the only pass over the weight is its conversion.

    >>> codes = torch.tensor([[127, -64]], dtype=torch.int8)
    >>> RowwiseQuantized(codes, torch.tensor([[0.5]])).dequantize()
    tensor([[ 63.5000, -32.0000]])
    """

    codes_OI: Tensor
    scale_O1: Tensor

    in_8_bits = False
    """Whether both factors of its products have 8 bits: see `quantized_products`."""

    def __init__(
        self, codes_OI: Tensor, scale_O1: Tensor, dtype: torch.dtype | None = None
    ) -> None:
        """dtype: of the weight where it differs from the dtype of the scales; products
        then use the scales unrounded."""
        super().__init__(
            (codes_OI.shape[0], codes_OI.shape[1]), dtype or scale_O1.dtype
        )
        self.rounds_scales = dtype is None
        self.code_type = codes_OI.dtype
        # Stored as bytes: a module that is cast to another floating-point type would
        # convert E4M3 codes too.
        self.register_buffer("codes_OI", codes_OI.view(torch.int8))
        self.register_buffer("scale_O1", scale_O1)

    def multiply_in_8_bits(self) -> None:
        """Quantizes the other factor of its products too, where the sides allow it."""
        self.in_8_bits = not any(side % MULTIPLE for side in self.shape)

    def _multiplies_in_8_bits(self, rows: Tensor) -> bool:
        return self.in_8_bits and len(rows) >= LEAST_ROWS

    def _codes(self) -> Tensor:
        return self.codes_OI.view(self.code_type)

    def _values(self, dtype: torch.dtype) -> Tensor:
        if self.code_type == torch.int8:
            return self.codes_OI.to(dtype)
        return decode_e4m3(self.codes_OI, dtype)

    def dequantize(self) -> Tensor:
        return (self.scale_O1 * self._values(self.scale_O1.dtype)).to(self.dtype)

    def _scale_for(self, dtype: torch.dtype) -> Tensor:
        """[1, O], for products in `dtype`."""
        scale_1O = self.scale_O1.t()
        return scale_1O.to(dtype) if self.rounds_scales else scale_1O

    def matmul(self, x_MI: Tensor, bias_O: Tensor | None) -> Tensor:
        if self._multiplies_in_8_bits(x_MI):
            y_MO = multiply(x_MI.detach(), self._codes().t())
            y_MO = _scaled(y_MO, self.scale_O1.t().float(), bias_O).to(x_MI.dtype)
            if torch.compiler.is_compiling():
                y_MO = with_gradient(x_MI, y_MO, self._codes(), self.scale_O1)
            return y_MO
        # sums of unscaled codes may be too large for float16
        if x_MI.dtype == torch.float16:
            return super().matmul(x_MI, bias_O)
        y_MO = x_MI @ _remade(lambda: self._values(x_MI.dtype)).t()
        return _scaled(y_MO, self._scale_for(x_MI.dtype), bias_O)

    def matmul_grad(self, g_MO: Tensor) -> Tensor:
        if self._multiplies_in_8_bits(g_MO):
            return product_grad(g_MO, self._codes(), self.scale_O1)
        if g_MO.dtype == torch.float16:
            return super().matmul_grad(g_MO)
        # The scale of an output row belongs to a column of g, so it is applied to g.
        return (g_MO * self._scale_for(g_MO.dtype)).to(g_MO.dtype) @ self._values(
            g_MO.dtype
        )


def _scaled(y_MO: Tensor, scale_1O: Tensor, bias_O: Tensor | None) -> Tensor:
    """y times the scale plus the bias, in place of y: one pass over it."""
    # one pass anyway, and a y that checkpointing kept must stay
    if torch.compiler.is_compiling():
        if bias_O is None:
            scaled = y_MO * scale_1O
        else:
            scaled = torch.addcmul(bias_O.to(y_MO.dtype), y_MO, scale_1O)
        return scaled.to(y_MO.dtype)
    if bias_O is None:
        return y_MO.mul_(scale_1O)
    return torch.addcmul(bias_O.to(y_MO.dtype), y_MO, scale_1O, out=y_MO)


class GroupwiseQuantized(QuantizedWeight):
    """Codes of 2 or 4 bits with a scale and a shift per group of weights along the
    input side.

    Group g has the values scale * code - shift. The groups are rows [G, S]; packed, the
    first rows take the lowest bits.

    >>> codes = torch.tensor([[0, 15], [1, 2]], dtype=torch.uint8)
    >>> half, one = torch.full((2, 1), 0.5), torch.ones(2, 1)
    >>> GroupwiseQuantized(pack(codes, 4), 4, half, one, shape=(1, 4)).dequantize()
    tensor([[-1.0000,  6.5000, -0.5000,  0.0000]])
    """

    packed: Tensor
    places: Tensor
    scale_G1: Tensor
    shift_G1: Tensor

    def __init__(
        self,
        packed: Tensor,
        bits: int,
        scale_G1: Tensor,
        shift_G1: Tensor,
        shape: tuple[int, int],
    ) -> None:
        """packed: uint8; each byte has the codes of 8 / bits rows."""
        super().__init__(shape, scale_G1.dtype)
        self.bits = bits
        self.register_buffer("packed", packed)
        self.register_buffer("places", code_places(bits, packed.device))
        self.register_buffer("scale_G1", scale_G1)
        self.register_buffer("shift_G1", shift_G1)

    def dequantize(self) -> Tensor:
        codes_GS = unpack(self.packed, self.bits, self.places)[: len(self.scale_G1)]
        return (self.scale_G1 * codes_GS).sub_(self.shift_G1).view(self.shape)


def code_places(bits: int, device: torch.device) -> Tensor:
    """The lowest bit of each code in a byte, uint8 [8 / bits, 1, 1]: the shifts of
    `unpack`."""
    return torch.arange(0, 8, bits, dtype=torch.uint8, device=device)[:, None, None]


def unpack(packed: Tensor, bits: int, places: Tensor) -> Tensor:
    """The codes of `bits` bits each in a packed uint8 tensor: all lowest ones first,
    along the first axis.

    places: `code_places`. It takes two kernels for any number of bits, because without
    compilation their launch is the cost.
    """
    return (packed >> places).bitwise_and_(2**bits - 1).flatten(0, 1)


def pack(codes: Tensor, bits: int) -> Tensor:
    """The inverse of `unpack`, for any number of rows; missing rows of the last byte
    are 0.

    >>> pack(torch.tensor([[1], [2]], dtype=torch.uint8), bits=4)
    tensor([[33]], dtype=torch.uint8)
    """
    per_byte = 8 // bits
    rows = functional.pad(codes, (0, 0, 0, -len(codes) % per_byte)).view(
        per_byte, -1, codes.shape[1]
    )
    return torch.stack([row << index * bits for index, row in enumerate(rows)]).sum(
        0, dtype=torch.uint8
    )


class ZeroPointQuantized(QuantizedWeight):
    """Codes of 2 to 7 bits with a scale and a zero point per group of weights along
    each row.

    Group g has the values scale * (code - zero). The bits of a code are in parts of 4,
    2 and 1 bits, the lowest ones in the largest part; codes of 7 bits take three
    tensors.

    >>> codes, zero = (torch.tensor(n, dtype=torch.uint8) for n in ([[0, 7]], [[2]]))
    >>> scale = torch.tensor([[0.5]])
    >>> ZeroPointQuantized(codes, 3, scale, zero, shape=(1, 2)).dequantize()
    tensor([[-1.0000,  2.5000]])
    """

    scale_G1: Tensor
    zero_G1: Tensor

    def __init__(
        self,
        codes_GS: Tensor,
        bits: int,
        scale_G1: Tensor,
        zero_G1: Tensor,
        shape: tuple[int, int],
    ) -> None:
        """codes_GS, zero_G1: uint8, below 2^bits."""
        super().__init__(shape, scale_G1.dtype)
        self.widths = [width for width in (4, 2, 1) if bits & width]
        for width, lowest in self._parts():
            self.register_buffer(
                f"packed_{width}", pack((codes_GS >> lowest) & (2**width - 1), width)
            )
            self.register_buffer(f"places_{width}", code_places(width, codes_GS.device))
        self.register_buffer("scale_G1", scale_G1)
        self.register_buffer("zero_G1", zero_G1)

    def _parts(self) -> list[tuple[int, int]]:
        """(bits, number of the lowest one) of each part."""
        return [
            (width, sum(self.widths[:index])) for index, width in enumerate(self.widths)
        ]

    def codes(self) -> Tensor:
        """[G, S], uint8."""
        codes_GS: Tensor | None = None
        for width, lowest in self._parts():
            part_GS = unpack(
                getattr(self, f"packed_{width}"),
                width,
                getattr(self, f"places_{width}"),
            )
            part_GS = part_GS[: len(self.scale_G1)]
            codes_GS = (
                part_GS if codes_GS is None else codes_GS.add_(part_GS, alpha=2**lowest)
            )
        assert codes_GS is not None  # there is a part for each bit
        return codes_GS

    def dequantize(self) -> Tensor:
        # The difference of two codes is exact in 8 bits, and in every computation
        # dtype.
        steps_GS = self.codes().view(torch.int8).sub_(self.zero_G1.view(torch.int8))
        return (self.scale_G1 * steps_GS).view(self.shape)


class BlockwiseQuantized(QuantizedWeight):
    """E4M3 codes with a float32 scale per block of weights along each row.

    >>> block_scaled(torch.tensor([[448.0, -224.0]])).dequantize()
    tensor([[ 448., -224.]])
    """

    codes_OI: Tensor
    scale_ON: Tensor

    def __init__(self, codes_OI: Tensor, scale_ON: Tensor, dtype: torch.dtype) -> None:
        super().__init__((codes_OI.shape[0], codes_OI.shape[1]), dtype)
        # as bytes, see RowwiseQuantized
        self.register_buffer("codes_OI", codes_OI.view(torch.int8))
        self.register_buffer("scale_ON", scale_ON.float())

    def dequantize(self) -> Tensor:
        values = decode_e4m3(self.codes_OI, torch.float32)
        values.unflatten(1, (self.scale_ON.shape[1], -1)).mul_(self.scale_ON[..., None])
        return values.to(self.dtype)


def decode_e4m3(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """E4M3 numbers, stored as bytes, in `dtype`."""
    if codes.device.type != "cpu" or torch.compiler.is_compiling():
        return codes.view(torch.float8_e4m3fn).to(dtype)
    # PyTorch converts them one by one on CPUs, uncompiled; looking them up is five
    # times faster.
    places = codes.view(torch.uint8).flatten().int()
    return _e4m3_table(dtype).index_select(0, places).view(codes.shape)


@cache
def _e4m3_table(dtype: torch.dtype) -> Tensor:
    return torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).to(dtype)


class WithRecoveryLora(QuantizedWeight):
    """A quantized weight with a frozen low-rank delta, up @ down.

    >>> stored = quantize_weight(torch.eye(64), "fp8_scaled")
    >>> up, down = torch.ones(64, 1), torch.ones(1, 64)
    >>> WithRecoveryLora(stored, up, down).dequantize()[0, :2]
    tensor([2., 1.])
    """

    up_OR: Tensor
    down_RI: Tensor

    def __init__(self, stored: QuantizedWeight, up_OR: Tensor, down_RI: Tensor) -> None:
        super().__init__((stored.shape[0], stored.shape[1]), stored.dtype)
        self.stored = stored
        self.register_buffer("up_OR", up_OR.to(stored.device, stored.dtype))
        self.register_buffer("down_RI", down_RI.to(stored.device, stored.dtype))

    def dequantize(self) -> Tensor:
        return torch.addmm(self.stored.dequantize(), self.up_OR, self.down_RI)

    def matmul(self, x_MI: Tensor, bias_O: Tensor | None) -> Tensor:
        low_MR = x_MI @ self.down_RI.to(x_MI.dtype).t()
        return torch.addmm(
            self.stored.matmul(x_MI, bias_O), low_MR, self.up_OR.to(x_MI.dtype).t()
        )

    def matmul_grad(self, g_MO: Tensor) -> Tensor:
        low_MR = g_MO @ self.up_OR.to(g_MO.dtype)
        return self.stored.matmul_grad(g_MO).addmm_(low_MR, self.down_RI.to(g_MO.dtype))


class RotatedQuantized(QuantizedWeight):
    """A quantized weight Q whose groups of inputs are rotated by a symmetric R: the
    weight is Q R, and x times it transposed is (x R) Q^T.

    Example::

        stored = RowwiseQuantized(codes_OI, scale_O1, torch.float32)
        weight = RotatedQuantized(stored, group=256, dtype=torch.bfloat16)
    """

    rotation_SS: Tensor

    def __init__(self, stored: QuantizedWeight, group: int, dtype: torch.dtype) -> None:
        """stored: Q. group: number of inputs that are rotated together. dtype: of the
        weight."""
        super().__init__((stored.shape[0], stored.shape[1]), dtype)
        self.stored = stored
        self.register_buffer(
            "rotation_SS", regular_hadamard(group).to(stored.device, dtype)
        )

    def _rotated(self, rows: Tensor) -> Tensor:
        return rotate(rows, self.rotation_SS.to(rows.dtype))

    def dequantize(self) -> Tensor:
        return self._rotated(self.stored.dequantize()).to(self.dtype)

    def matmul(self, x_MI: Tensor, bias_O: Tensor | None) -> Tensor:
        return self.stored.matmul(self._rotated(x_MI), bias_O)

    def matmul_grad(self, g_MO: Tensor) -> Tensor:
        return self._rotated(self.stored.matmul_grad(g_MO))


class QuantizedLinear(nn.Linear):
    """Replaces an `nn.Linear`; adapters attach to it in the same way.

    `weight` is a QuantizedWeight: it has a shape, a dtype and a device, dequantizes,
    and can be passed to `functional.linear`.

    >>> layer = QuantizedLinear(quantize_weight(torch.eye(64), "fp8_scaled"), None)
    >>> layer(torch.ones(2, 64)).shape
    torch.Size([2, 64])
    """

    def __init__(self, weight: QuantizedWeight, bias_O: nn.Parameter | None) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would allocate a full weight
        self.out_features, self.in_features = weight.shape
        self.weight = weight  # type: ignore[assignment]  # it has all that adapters need of a weight
        self.register_parameter("bias", bias_O)
        self.requires_grad_(False)

    def forward(self, input: Tensor) -> Tensor:
        return _linear(input, self.weight, self.bias)  # type: ignore[arg-type]  # see __init__


QUANTO = {"int8": "qint8", "int4": "qint4", "int2": "qint2", "float8": "qfloat8"}
"""`model.qtype` -> optimum-quanto's name."""

LowRank = tuple[Tensor, Tensor]
"""(up [O, R], down [R, I]) of a low-rank delta."""

MakeLowRank = Callable[[str, Tensor, QuantizedWeight], LowRank]
"""A function from a layer's full name, its weight [O, I] and the quantized weight to
the delta that recovers it."""

DEFAULT_RECOVERY_QTYPE = "int8"
"""Quantization of layers without a recovery adapter where other layers have one;
ai-toolkit does not quantize such layers."""

E4M3_MAX = 448.0
BLOCK = 64
"""Weights along a row that share a scale in fp8_scaled and the unsigned types."""


def quantizer(
    qtype: str,
    recovery: MutableMapping[str, LowRank] | None = None,
    make: MakeLowRank | None = None,
    products: QuantizedProducts | None = None,
) -> Callable[[nn.Module, str], None]:
    """A function that quantizes a block to `qtype` in place, called with each block and
    its dotted name.

    recovery: full layer name -> frozen low-rank delta of an accuracy-recovery adapter;
    layers without one become int8. Entries are removed once used, so that none is in
    memory twice. make: makes the delta of every layer instead. products: how the weights
    are multiplied, in place of the type of the computation; they have such codes.

    >>> block = nn.Sequential(nn.Linear(64, 64))
    >>> quantizer("fp8_scaled")(block, "blocks.0")
    >>> type(block[0].weight).__name__
    'BlockwiseQuantized'
    """

    def transform(block: nn.Module, name: str) -> None:
        for layer in [
            layer
            for layer, module in block.named_modules()
            if isinstance(module, nn.Linear)
        ]:
            linear = block.get_submodule(layer)
            assert isinstance(linear, nn.Linear)  # as those listed
            recovery_lora = (
                recovery.pop(f"{name}.{layer}", None) if recovery is not None else None
            )
            chosen = (
                qtype if recovery is None or recovery_lora else DEFAULT_RECOVERY_QTYPE
            )
            stored: tuple[Tensor, Tensor, int] | None = getattr(
                linear, STORED_CODES, None
            )
            stored = stored if chosen in FILE_CODES else None
            if stored:
                weight = as_stored(*stored, linear.weight)
            elif products == "int8" and linear.in_features % ROTATED == 0:
                weight = rotated(linear.weight.detach())
            else:
                weight = quantize_weight(linear.weight.detach(), chosen)
            rowwise = weight.stored if isinstance(weight, RotatedQuantized) else weight
            if products and isinstance(rowwise, RowwiseQuantized):
                rowwise.multiply_in_8_bits()
            if make:
                recovery_lora = make(f"{name}.{layer}", linear.weight.detach(), weight)
            if recovery_lora:
                weight = WithRecoveryLora(weight, *recovery_lora)
            block.set_submodule(layer, QuantizedLinear(weight, linear.bias))
            del linear
            # after each layer: the float temporaries of a block would add up
            malloc_trim()
        block.requires_grad_(False)

    return transform


def as_stored(
    codes_OI: Tensor, scale_ON: Tensor, group: int, weight_OI: Tensor
) -> QuantizedWeight:
    """The quantized weight with the numbers of a file, code times scale. It has the
    dtype and the device of `weight_OI`.

    The other arguments are as in `STORED_CODES`; codes are copied, so that the file is
    not needed any more.
    """
    codes_OI = codes_OI.to(weight_OI.device, copy=True)
    scale_ON = scale_ON.to(weight_OI.device, torch.float32, copy=True)
    if scale_ON.shape[1] > 1:
        return BlockwiseQuantized(codes_OI, scale_ON, weight_OI.dtype)
    scale_O1 = scale_ON.expand(len(codes_OI), 1).contiguous()
    if group:
        return RotatedQuantized(
            RowwiseQuantized(codes_OI, scale_O1, torch.float32), group, weight_OI.dtype
        )
    return RowwiseQuantized(codes_OI, scale_O1, weight_OI.dtype)


@torch.no_grad()
def quantize_weight(weight_OI: Tensor, qtype: str) -> QuantizedWeight:
    """`weight_OI` in `qtype`: per output row for int8 and float8, else in groups along
    the input side.

    >>> type(quantize_weight(torch.eye(64), "uint4")).__name__
    'ZeroPointQuantized'
    """
    if qtype == "fp8_scaled":
        return block_scaled(weight_OI)
    if qtype in UINT_BITS:
        return asymmetric(weight_OI, UINT_BITS[qtype])
    return _by_quanto(weight_OI, QUANTO[qtype])


@torch.no_grad()
def rotated(weight_OI: Tensor, group: int = ROTATED) -> RotatedQuantized:
    """`weight_OI` in int8, quantized after groups of its inputs were rotated.

    >>> rotated(torch.eye(64)).dequantize().shape
    torch.Size([64, 64])
    """
    matrix_SS = regular_hadamard(group).to(weight_OI)
    stored = _by_quanto(rotate(weight_OI, matrix_SS), QUANTO["int8"])
    return RotatedQuantized(stored, group, weight_OI.dtype)


def _by_quanto(weight_OI: Tensor, name: str) -> QuantizedWeight:
    """The codes of optimum-quanto, without its tensor classes, which need compiled
    kernels."""
    from optimum.quanto import QLinear, qtypes
    from optimum.quanto.tensor.weights.quantization import quantize_weight as by_quanto

    qtype = qtypes[name]
    outputs, inputs = weight_OI.shape
    # its groups and how it scales
    choices = QLinear(inputs, outputs, bias=False, weights=qtype, device="meta")
    if qtype.bits == 8:
        scale_O1 = choices.optimizer(weight_OI, qtype=qtype, axis=0)
        quantized = by_quanto(
            weight_OI, qtype=qtype, axis=0, scale=scale_O1, optimized=False
        )
        return RowwiseQuantized(_zero_for_nan(quantized._data), quantized._scale)
    group = choices.weight_group_size
    scale, shift = choices.optimizer(weight_OI, qtype=qtype, axis=0, group_size=group)
    quantized = by_quanto(
        weight_OI, qtype, 0, scale, shift, group_size=group, optimized=False
    )
    return GroupwiseQuantized(
        quantized._data._data,
        qtype.bits,
        quantized._scale,
        quantized._shift,
        (outputs, inputs),
    )


def _zero_for_nan(codes: Tensor) -> Tensor:
    """Repairs float8 rows that were all zero: quanto scales a row by its maximum, and 0
    / 0 is NaN."""
    if codes.is_floating_point():
        return codes.float().nan_to_num_(0.0).to(codes.dtype)
    return codes


def asymmetric(weight_OI: Tensor, bits: int) -> ZeroPointQuantized:
    """Quantizes each group of `BLOCK` weights between its smallest and its largest
    value; 0 stays exact. It computes in the dtype of the weights. Rows whose length
    `BLOCK` does not divide are one group.

    Source: ai-toolkit, toolkit/util/uintx_quant.py, `UIntXQuantizer` (as torchao 0.10,
    `UIntXWeightOnlyConfig`), whose accuracy-recovery adapters were made for exactly
    these numbers.
    """
    inputs = weight_OI.shape[1]
    highest = 2**bits - 1
    values_GS = weight_OI.reshape(-1, BLOCK if inputs % BLOCK == 0 else inputs)
    lowest_G1 = values_GS.amin(1, keepdim=True).clamp(max=0)
    most_G1 = values_GS.amax(1, keepdim=True).clamp(min=0)
    scale_G1 = ((most_G1 - lowest_G1) / highest).clamp(
        min=torch.finfo(torch.float32).eps
    )
    zero_G1 = (-torch.round(lowest_G1 / scale_G1)).clamp(0, highest)
    # A reciprocal that overflows float16 belongs to a group of zeros, and 0 * inf is
    # NaN.
    steps_GS = (values_GS * (1 / scale_G1)).nan_to_num_(0.0).round_()
    codes_GS = steps_GS.add_(zero_G1).clamp_(0, highest).to(torch.uint8)
    return ZeroPointQuantized(
        codes_GS, bits, scale_G1, zero_G1.to(torch.uint8), (weight_OI.shape[0], inputs)
    )


def block_scaled(weight_OI: Tensor, block: int = BLOCK) -> BlockwiseQuantized:
    """E4M3 codes scaled to the maximum of each block. Rows whose length `block` does
    not divide are one block.

    Source: musubi-tuner, modules/fp8_optimization_utils.py, `quantize_weight`. Here the
    scales stay in float32.
    """
    outputs, inputs = weight_OI.shape
    blocks = inputs // block if inputs % block == 0 else 1
    values = weight_OI.float().view(outputs, blocks, -1)
    scale = (values.abs().amax(dim=-1, keepdim=True) / E4M3_MAX).clamp_min_(1e-8)
    codes = (values / scale).clamp_(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    return BlockwiseQuantized(
        codes.view(outputs, inputs), scale[..., 0], weight_OI.dtype
    )
