"""Changes of a layer that are not a sum of small matrices: OFT, BOFT, GLoRA and IA3,
which multiply its weight, and whole changes.

An OFT turns the weight W by a rotation R of blocks on the diagonal, a BOFT by several
such rotations with a butterfly's order of rows between them. LyCORIS turns the outputs,
F = s R W, peft the inputs, F = s W R^T, where s scales the rows. A GLoRA is F = W +
scale (W A1 A2 + B1 B2). The change of an output is computed without its matrix: R is
used block by block, on the outputs of the frozen layer or on its inputs, so that the
layer may be quantized.

Source: LyCORIS 4.1.3, modules/{diag_oft,boft,glora}.py and functional/; peft 0.21.2,
tuners/{oft,boft}/layer.py. `multiplied_files.py` reads them from the matrices that
these programs store. Nothing here is trained. Called by `lora_formats.LayerDelta`, and
by the tool that converts files.

Shape suffixes: I inputs of a layer, O outputs of a layer, X anything, D one of I and O,
R rank; M rotations one after the other, K blocks on the diagonal, B size of a block, N
numbers of a triangle.

    kind = kind_for(parts)
    weight_OI = weight_OI + kind.delta(parts, 1.0, weight_OI)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

Parts = Mapping[str, Tensor]
"""Float32, by the names that the classes below give."""

FrozenLayer = Callable[[Tensor], Tensor]
"""From inputs to the outputs of the frozen layer without its bias, float32."""


def cayley_KBB(skew_KBB: Tensor) -> Tensor:
    """The rotations (1 + Q) (1 - Q)^-1 of skew-symmetric Q.

    This is LyCORIS' sign, `get_r` in functional/diag_oft.py. peft's (1 - Q) (1 + Q)^-1
    is the rotation of -Q.

    >>> cayley_KBB(torch.zeros(1, 2, 2))
    tensor([[[1., 0.],
             [0., 1.]]])
    """
    one_BB = torch.eye(skew_KBB.shape[-1], dtype=skew_KBB.dtype)
    rotations_KBB: Tensor = torch.linalg.solve(
        one_BB - skew_KBB, one_BB + skew_KBB, left=False
    )
    return rotations_KBB


def cayley_neumann_KBB(skew_KBB: Tensor, terms: int) -> Tensor:
    """The series 1 + 2 Q + 2 Q^2 + ... that ends at Q^(terms - 1), whose factor is 1.

    Three terms give the same as four. It approximates (1 + Q) (1 - Q)^-1, so it rotates
    in the other direction than peft's exact form. Source: peft 0.21.2,
    `OFTRotationModule._cayley_batch`.
    """
    one_BB = torch.eye(skew_KBB.shape[-1], dtype=skew_KBB.dtype)
    sum_KBB = one_BB.expand_as(skew_KBB).clone()
    factors = [2] * (terms - 1) if terms < 3 else [2] * (max(terms, 4) - 2) + [1]
    power_KBB = skew_KBB
    for factor in factors:
        sum_KBB = sum_KBB + factor * power_KBB
        power_KBB = power_KBB @ skew_KBB
    return sum_KBB


def skew_of_triangle_KBB(triangle_KN: Tensor, size: int) -> Tensor:
    """Skew-symmetric matrices of `size` with these numbers, row by row, above the
    diagonal.

    Source: peft 0.21.2, `OFTRotationModule._pytorch_skew_symmetric`.
    """
    rows, columns = torch.triu_indices(size, size, 1)
    upper_KBB = triangle_KN.new_zeros(len(triangle_KN), size, size)
    upper_KBB[:, rows, columns] = triangle_KN
    return upper_KBB - upper_KBB.transpose(-1, -2)


def limited_skew(skew: Tensor, most: float) -> Tensor:
    """All blocks scaled together so that their Frobenius norm is at most `most`; 0: no
    limit.

    Source: LyCORIS 4.1.3, `get_r` in functional/diag_oft.py.
    """
    norm: Tensor = skew.norm() + 1e-8
    return skew if most <= 0 or norm <= most else skew * most / norm


def limited_each_KBB(skew_KBB: Tensor, eps: float) -> Tensor:
    """Each of K blocks scaled so that its norm is at most eps / sqrt(K).

    Source: peft 0.21.2, `OFTRotationModule._project_batch` (COFT).
    """
    most = eps / len(skew_KBB) ** 0.5
    norm_K11 = skew_KBB.norm(dim=(1, 2), keepdim=True)
    return torch.where(norm_K11 <= most, skew_KBB, most * (skew_KBB / norm_K11))


def turned(vectors_XD: Tensor, blocks_KBB: Tensor) -> Tensor:
    """Each vector multiplied by the matrix that has the blocks on its diagonal; a
    single block is repeated.

    >>> quarter_turn = torch.tensor([[[0.0, -1.0], [1.0, 0.0]]])
    >>> turned(torch.tensor([1.0, 2.0]), quarter_turn)
    tensor([-2.,  1.])
    """
    parts_XKB: Tensor = vectors_XD.unflatten(-1, (-1, blocks_KBB.shape[-1]))
    if len(blocks_KBB) == 1:
        return (parts_XKB @ blocks_KBB[0].T).flatten(-2)
    return torch.einsum("kij,...kj->...ki", blocks_KBB, parts_XKB).flatten(-2)


def butterfly_order(places_D: Tensor, pieces: int, width: int) -> Tensor:
    """The places in another order: in each 2 * pieces runs of `width` places the even
    runs come first.

    >>> butterfly_order(torch.arange(4), pieces=2, width=1)
    tensor([0, 2, 1, 3])
    """
    runs: Tensor = places_D.unflatten(0, (-1, pieces, 2, width))
    return runs.transpose(1, 2).flatten()


TITLES = {
    "oft": "an OFT",
    "boft": "a BOFT",
    "glora": "a GLoRA",
    "full": "a whole change",
    "ia3": "an IA3",
}


class Multiplied(ABC):
    """One kind of change. It has no state: each call gets the matrices.

    >>> kind = kind_for({"a1", "a2", "b1", "b2"})
    >>> type(kind).__name__
    'Glora'
    """

    PART: str
    """The part by which it is recognised."""

    NAME = ""

    def name(self, parts: Parts) -> str:
        """Its name in the tools, a key of TITLES."""
        return self.NAME

    def title(self, parts: Parts) -> str:
        """Its name with its article, for messages."""
        return TITLES[self.name(parts)]

    @abstractmethod
    def shape(self, parts: Parts) -> tuple[int, int]:
        """(outputs, inputs) of the layer; 0 where the matrices do not give the
        number."""

    @abstractmethod
    def delta(self, parts: Parts, scale: float, weight_OI: Tensor) -> Tensor:
        """The change of a weight (float32)."""

    @abstractmethod
    def output_delta(
        self, parts: Parts, scale: float, x_XI: Tensor, layer: FrozenLayer
    ) -> Tensor:
        """The change of the outputs [X, O] of the frozen layer, for its inputs
        (float32)."""

    def rank(self, parts: Parts) -> int:
        """The inner size of its products; 0 where it has no products."""
        return 0

    @abstractmethod
    def is_zero(self, parts: Parts, scale: float) -> bool:
        """Whether no weight is changed."""

    @abstractmethod
    def size(self, parts: Parts) -> float:
        """The approximate size of the change at scale 1, relative to the weight."""

    @abstractmethod
    def split(self, parts: Parts, count: int) -> list[dict[str, Tensor]]:
        """The parts for `count` layers that each have a share of the outputs of this
        one. Raises ValueError where they do not split."""


class Rotation(Multiplied):
    """A rotation [M, K, B, B], float32, of the inputs or outputs, and `rescale` [O, 1]
    for the rows after it.

    >>> no_turn = {"rotation_of_outputs": torch.eye(2)[None, None]}
    >>> TurnedOutputs().name(no_turn), TurnedOutputs().is_zero(no_turn, 1.0)
    ('oft', True)
    """

    def name(self, parts: Parts) -> str:
        return "oft" if len(parts[self.PART]) == 1 else "boft"

    @abstractmethod
    def order(self, stage: int, width: int, places_D: Tensor) -> Tensor:
        """The order of a vector's numbers for one of several rotations. width: half a
        block; places_D: 0 to D - 1."""

    def turn_difference(
        self, vectors_XD: Tensor, rotation_MKBB: Tensor, is_transposed: bool = False
    ) -> Tensor:
        """Turned vectors minus the vectors. is_transposed: they are turned by the
        transposed matrix."""
        if is_transposed:
            rotation_MKBB = rotation_MKBB.transpose(-1, -2)
        if len(rotation_MKBB) == 1:
            # Small angles keep their digits where the 1 is subtracted before the
            # product.
            return turned(
                vectors_XD,
                rotation_MKBB[0] - torch.eye(rotation_MKBB.shape[-1]).to(vectors_XD),
            )
        result_XD = vectors_XD
        places_D = torch.arange(vectors_XD.shape[-1], device=vectors_XD.device)
        stages = list(range(len(rotation_MKBB)))
        if is_transposed:
            stages.reverse()
        for stage in stages:
            order_D = self.order(stage, rotation_MKBB.shape[-1] // 2, places_D)
            turned_XD = turned(result_XD[..., order_D], rotation_MKBB[stage])
            result_XD = turned_XD[..., order_D.argsort()]
        return result_XD - vectors_XD

    def is_zero(self, parts: Parts, scale: float) -> bool:
        return self.size(parts) == 0

    def size(self, parts: Parts) -> float:
        rotation_MKBB = parts[self.PART]
        moved = (
            (rotation_MKBB - torch.eye(rotation_MKBB.shape[-1]))
            .square()
            .sum(dim=(-1, -2))
            .mean(dim=-1)
            .sum()
        )
        of_rotation = float(moved) / rotation_MKBB.shape[-1]
        of_rows = float((parts.get("rescale", torch.ones(1)) - 1).square().mean())
        size: float = (of_rotation + of_rows) ** 0.5
        return size


class TurnedOutputs(Rotation):
    """s R W, as in LyCORIS. Between the rotations of a BOFT it uses LyCORIS' order of
    rows.

    >>> quarter_turn = torch.tensor([[[[0.0, -1.0], [1.0, 0.0]]]])
    >>> TurnedOutputs().delta({"rotation_of_outputs": quarter_turn}, 1.0, torch.eye(2))
    tensor([[-1., -1.],
            [ 1., -1.]])
    """

    PART = "rotation_of_outputs"

    def shape(self, parts: Parts) -> tuple[int, int]:
        _, count, size, _ = parts["rotation_of_outputs"].shape
        return count * size, 0

    def order(self, stage: int, width: int, places_D: Tensor) -> Tensor:
        return butterfly_order(places_D, 2**stage * width, 1).argsort()

    def delta(self, parts: Parts, scale: float, weight_OI: Tensor) -> Tensor:
        return self._added(parts, weight_OI.T).T

    def output_delta(
        self, parts: Parts, scale: float, x_XI: Tensor, layer: FrozenLayer
    ) -> Tensor:
        return self._added(parts, layer(x_XI))

    def _added(self, parts: Parts, outputs_XO: Tensor) -> Tensor:
        difference_XO = self.turn_difference(outputs_XO, parts["rotation_of_outputs"])
        if "rescale" not in parts:
            return difference_XO
        rescale_O = parts["rescale"].flatten()
        return rescale_O * difference_XO + (rescale_O - 1) * outputs_XO

    def split(self, parts: Parts, count: int) -> list[dict[str, Tensor]]:
        rotation_MKBB = parts["rotation_of_outputs"]
        if len(rotation_MKBB) > 1 or rotation_MKBB.shape[1] % count:
            raise ValueError("the rotation mixes rows of several layers")
        return _split_rows(parts, count, {"rotation_of_outputs": 1, "rescale": 0})


class TurnedInputs(Rotation):
    """s W R^T, as in peft. Between the rotations of a BOFT it uses peft's order of
    columns.

    >>> no_turn = {"rotation_of_inputs": torch.eye(2)[None, None]}
    >>> TurnedInputs().shape(no_turn)  # the outputs are not known
    (0, 2)
    """

    PART = "rotation_of_inputs"

    def name(self, parts: Parts) -> str:
        # a BOFT of peft has one rotation by default
        return "boft" if "rescale" in parts else "oft"

    def shape(self, parts: Parts) -> tuple[int, int]:
        _, count, size, _ = parts["rotation_of_inputs"].shape
        return len(parts.get("rescale", ())), count * size

    def order(self, stage: int, width: int, places_D: Tensor) -> Tensor:
        return butterfly_order(places_D, 2**stage, width).argsort()

    def delta(self, parts: Parts, scale: float, weight_OI: Tensor) -> Tensor:
        difference_OI = self.turn_difference(weight_OI, parts["rotation_of_inputs"])
        if "rescale" not in parts:
            return difference_OI
        return parts["rescale"] * difference_OI + (parts["rescale"] - 1) * weight_OI

    def output_delta(
        self, parts: Parts, scale: float, x_XI: Tensor, layer: FrozenLayer
    ) -> Tensor:
        added_XO = layer(
            self.turn_difference(x_XI, parts["rotation_of_inputs"], is_transposed=True)
        )
        if "rescale" not in parts:
            return added_XO
        rescale_O = parts["rescale"].flatten()
        return rescale_O * added_XO + (rescale_O - 1) * layer(x_XI)

    def split(self, parts: Parts, count: int) -> list[dict[str, Tensor]]:
        return _split_rows(parts, count, {"rescale": 0})


class Glora(Multiplied):
    """W + scale (W A1 A2 + B1 B2): a1 [I, R], a2 [R, I], b1 [O, R], b2 [R, I].

    >>> parts = {name: torch.ones(2, 2) for name in ("a1", "a2", "b1", "b2")}
    >>> Glora().shape(parts), Glora().rank(parts)
    ((2, 2), 2)
    """

    PART = "a1"
    NAME = "glora"

    def rank(self, parts: Parts) -> int:
        return len(parts["a2"])

    def shape(self, parts: Parts) -> tuple[int, int]:
        return len(parts["b1"]), len(parts["a1"])

    def delta(self, parts: Parts, scale: float, weight_OI: Tensor) -> Tensor:
        return scale * (
            weight_OI @ parts["a1"] @ parts["a2"] + parts["b1"] @ parts["b2"]
        )

    def output_delta(
        self, parts: Parts, scale: float, x_XI: Tensor, layer: FrozenLayer
    ) -> Tensor:
        through_weight_XO = layer(scale * (x_XI @ parts["a2"].T @ parts["a1"].T))
        return through_weight_XO + scale * (x_XI @ parts["b2"].T @ parts["b1"].T)

    def is_zero(self, parts: Parts, scale: float) -> bool:
        products = (("a1", "a2"), ("b1", "b2"))
        return scale == 0 or not any(
            parts[left].any() and parts[right].any() for left, right in products
        )

    def size(self, parts: Parts) -> float:
        """The size under the assumption that rows and columns of the matrices are
        independent, and that a weight has the size 1 / sqrt(I)."""
        rms = {name: float(part.square().mean().sqrt()) for name, part in parts.items()}
        through_weight = (
            rms["a1"] * rms["a2"] * (parts["a1"].shape[1] * len(parts["a1"])) ** 0.5
        )
        beside_it = (
            rms["b1"] * rms["b2"] * (parts["b1"].shape[1] * len(parts["a1"])) ** 0.5
        )
        return float((through_weight**2 + beside_it**2) ** 0.5)

    def split(self, parts: Parts, count: int) -> list[dict[str, Tensor]]:
        return _split_rows(parts, count, {"b1": 0})


class Whole(Multiplied):
    """W + scale D, with a whole change D [O, I]. It does not need the weight, but is as
    large as one.

    >>> Whole().delta({"diff": torch.ones(1, 2)}, 2.0, torch.zeros(1, 2))
    tensor([[2., 2.]])
    """

    PART = "diff"
    NAME = "full"

    def shape(self, parts: Parts) -> tuple[int, int]:
        outputs, inputs = parts["diff"].shape
        return outputs, inputs

    def delta(self, parts: Parts, scale: float, weight_OI: Tensor) -> Tensor:
        return scale * parts["diff"]

    def output_delta(
        self, parts: Parts, scale: float, x_XI: Tensor, layer: FrozenLayer
    ) -> Tensor:
        return scale * (x_XI @ parts["diff"].T)

    def is_zero(self, parts: Parts, scale: float) -> bool:
        return scale == 0 or not parts["diff"].any()

    def size(self, parts: Parts) -> float:
        """The size relative to a weight of 1 / sqrt(I)."""
        size: float = (
            float(parts["diff"].square().mean().sqrt()) * parts["diff"].shape[1] ** 0.5
        )
        return size

    def split(self, parts: Parts, count: int) -> list[dict[str, Tensor]]:
        return _split_rows(parts, count, {"diff": 0})


class Ia3(Multiplied):
    """W (1 + f), with a factor for each output [O, 1] or each input [1, I]. Source:
    LyCORIS 4.1.3, modules/ia3.py.

    >>> factors = torch.tensor([[1.0], [0.0]])
    >>> Ia3().delta({"factors": factors}, 1.0, torch.ones(2, 2))
    tensor([[1., 1.],
            [0., 0.]])
    """

    PART = "factors"
    NAME = "ia3"

    def shape(self, parts: Parts) -> tuple[int, int]:
        rows, columns = parts["factors"].shape
        return (rows, 0) if columns == 1 else (0, columns)

    def delta(self, parts: Parts, scale: float, weight_OI: Tensor) -> Tensor:
        return scale * parts["factors"] * weight_OI

    def output_delta(
        self, parts: Parts, scale: float, x_XI: Tensor, layer: FrozenLayer
    ) -> Tensor:
        factors = scale * parts["factors"].flatten()
        if parts["factors"].shape[0] == 1:
            return layer(factors * x_XI)
        return factors * layer(x_XI)

    def is_zero(self, parts: Parts, scale: float) -> bool:
        return scale == 0 or not parts["factors"].any()

    def size(self, parts: Parts) -> float:
        return float(parts["factors"].square().mean().sqrt())

    def split(self, parts: Parts, count: int) -> list[dict[str, Tensor]]:
        return _split_rows(
            parts, count, {"factors": 0} if parts["factors"].shape[1] == 1 else {}
        )


KINDS = (TurnedOutputs(), TurnedInputs(), Glora(), Whole(), Ia3())


def kind_for(parts: Collection[str]) -> Multiplied | None:
    """The kind of a layer's matrices, by their names; None for a change that is added
    to the weight."""
    return next((kind for kind in KINDS if kind.PART in parts), None)


def _split_rows(
    parts: Parts, count: int, dims: Mapping[str, int]
) -> list[dict[str, Tensor]]:
    """The parts for each of `count` layers. Parts in `dims` are split along that
    dimension; all layers have the others."""
    layers: list[dict[str, Tensor]] = [{} for _ in range(count)]
    for name, part in parts.items():
        shares: Sequence[Tensor] = [part] * count
        if name in dims:
            if part.shape[dims[name]] % count:
                raise ValueError(f"{name} cannot be split into {count}")
            shares = part.chunk(count, dims[name])
        for layer, share in zip(layers, shares, strict=True):
            # safetensors writes no tensors that share memory
            layer[name] = share.clone()
    return layers
