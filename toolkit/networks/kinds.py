"""The kinds of network by the names of `network.type`, with what is known before torch is imported.

A kind is a class in a file of `toolkit/networks/` and its entry in KINDS, which all tables and lists read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from toolkit.registry import load_object

if TYPE_CHECKING:
    from toolkit.networks.interface import Network

Shapes = dict[str, tuple[int, int]]
"""The matrices of a layer by their names in files, each [outputs, inputs]."""

Pair = tuple[float, float]
"""In half precision, in float32."""


class NetworkSection(Protocol):
    """The keys of a `network:` section that every kind of adapter reads; `NetworkKind.settings` names the others."""

    @property
    def linear(self) -> int: ...


@dataclass(frozen=True)
class ActivationUnits:
    """Memory that a block's activations take with this kind on all its linear layers.

    One unit is tokens x width elements, the size of a block's output. Counted on the published Qwen-Image-Edit blocks,
    tensor by tensor (`benchmarks/bench_published.py`). The defaults are those of a LoRA.
    """

    everything: Pair = (22.1, 22.1)
    """Kept for the backward pass where nothing is recomputed."""

    matmul_outputs: Pair = (11.1, 11.1)
    """Those of them that are matmul and attention outputs (what `cheap` saves)."""

    backward: Pair = (6.4, 6.4)
    """Further memory in the backward pass, besides kept or recomputed activations."""

    forward: Pair = (16.0, 15.9)
    """Peak of a forward pass without gradients."""

    change: Pair = (0, 0)
    """Bytes per weight of the largest layer in the backward pass, for kinds that allocate tensors of its size."""

    change_forward: Pair = (0, 0)
    casts: bool = False
    """Whether trained weights are kept a second time in the compute dtype."""

    compiled: Pair = (19.2, 19.1)
    """`everything` of a compiled block: what the partitioner saves (`benchmarks/saved_by_blocks.py`)."""

    compiled_outputs: Pair = (11.1, 11.1)
    """`matmul_outputs` of a compiled block."""


@dataclass(frozen=True)
class NetworkKind:
    """One kind of network. Everything else that the program knows of it is in its class."""

    network_class: str
    """Its class, as "module:Class"; imported when it is used."""

    shapes: Callable[..., Shapes] | None
    """(inputs, outputs, rank, and `settings` by name) -> the matrices of a layer; None: the model's own weights are
    trained."""

    units: ActivationUnits
    settings: Mapping[str, str] = field(default_factory=dict)
    """Further arguments of `shapes` and of the class -> the keys of `network` that give them."""

    up_names: frozenset[str] = frozenset()
    """Matrices with LoRA+'s own learning rate; empty: LoRA+ cannot be used."""

    in_lycoris: bool = False
    """Whether `network_kwargs.algo` of `type: lycoris` may name it."""

    needs_base: bool = False
    """Whether the delta of a layer is computed with its frozen weight."""

    extracts_lora: bool = False
    """Whether a plain LoRA can be extracted from its weights (`save.also: [merged_lora]`)."""

    @property
    def trains_model(self) -> bool:
        """Whether the model's own weights are trained instead of an adapter's."""
        return self.shapes is None

    def load(self) -> type[Network]:
        """Its class."""
        return load_object(self.network_class)

    def extra_kwargs(self, section: object) -> dict[str, Any]:
        """The arguments named in `settings`, from a `network:` section."""
        return {argument: getattr(section, key) for argument, key in self.settings.items()}

    def layer_shapes(self, section: NetworkSection, inputs: int, outputs: int) -> Shapes:
        """The matrices that a `network:` section trains on a layer of this size; none where it trains the model."""
        if self.shapes is None:
            return {}
        return self.shapes(inputs, outputs, section.linear, **self.extra_kwargs(section))


def lora_shapes(inputs: int, outputs: int, rank: int) -> Shapes:
    """Down and up matrix."""
    return {"lora_A.weight": (rank, inputs), "lora_B.weight": (outputs, rank)}


def dora_shapes(inputs: int, outputs: int, rank: int) -> Shapes:
    """The same, and the norm of each input column of the weight."""
    return {**lora_shapes(inputs, outputs, rank), "dora_scale": (1, inputs)}


def loha_shapes(inputs: int, outputs: int, rank: int) -> Shapes:
    """Two low-rank pairs, whose products are multiplied element by element."""
    return {
        "hada_w1_a": (outputs, rank),
        "hada_w1_b": (rank, inputs),
        "hada_w2_a": (outputs, rank),
        "hada_w2_b": (rank, inputs),
    }


def lokr_shapes(inputs: int, outputs: int, rank: int, factor: int = -1, whole: bool = False) -> Shapes:
    """A small first factor and a second one: low-rank, or in one piece where `whole` is asked or rank saves nothing.

    Source: LyCORIS 4.1.3, modules/lokr.py (`decompose_both` off).
    """
    (small_in, large_in), (small_out, large_out) = factorize(inputs, factor), factorize(outputs, factor)
    first = {"lokr_w1": (small_out, small_in)}
    if whole or rank >= max(large_out, large_in) / 2:
        return {**first, "lokr_w2": (large_out, large_in)}
    return {**first, "lokr_w2_a": (large_out, rank), "lokr_w2_b": (rank, large_in)}


def factorize(size: int, factor: int = -1) -> tuple[int, int]:
    """`size` as a product (smaller, larger): the smaller is `factor`, or the nearest divisor below it that balances.

    factor: -1 gives the most balanced pair. Source: LyCORIS 4.1.3, functional/general.py `factorization`.
    """
    if factor > 0 and size % factor == 0:
        return min(factor, size // factor), max(factor, size // factor)
    limit = size if factor < 0 else factor
    divisors = (d for d in range(1, int(size**0.5) + 1) if size % d == 0 and d <= limit)
    small = max(divisors)
    return small, size // small


KINDS: dict[str, NetworkKind] = {
    "lora": NetworkKind(
        "toolkit.networks.lora:LoraNetwork",
        lora_shapes,
        ActivationUnits(casts=True),
        up_names=frozenset({"lora_B.weight"}),
        in_lycoris=True,
    ),
    "dora": NetworkKind(
        "toolkit.networks.lora:DoraNetwork",
        dora_shapes,
        ActivationUnits(
            (52.1, 31.1),
            (20.1, 20.1),
            (22.2, 11.0),
            (33.3, 23.6),
            (9, 5),
            (9, 5),
            compiled=(45.2, 22.1),
            compiled_outputs=(20.1, 20.1),
        ),
        up_names=frozenset({"lora_B.weight"}),
        needs_base=True,
        extracts_lora=True,
    ),
    "loha": NetworkKind(
        "toolkit.networks.lycoris:LohaNetwork",
        loha_shapes,
        ActivationUnits(
            (22.1, 22.1), (20.1, 20.1), (6.4, 6.4), (21.0, 19.7), (19, 19), (17, 13), compiled=(19.1, 19.1)
        ),
        in_lycoris=True,
        extracts_lora=True,
    ),
    "lokr": NetworkKind(
        "toolkit.networks.lycoris:LokrNetwork",
        lokr_shapes,
        ActivationUnits((31.8, 31.8), (11.1, 11.1), (3.8, 3.8), (21.7, 21.7), compiled=(28.5, 28.5)),
        settings={"factor": "factor", "whole": "lokr_full_rank"},
        in_lycoris=True,
        extracts_lora=True,
    ),
    "full": NetworkKind(
        "toolkit.networks.full:FullNetwork",
        None,
        ActivationUnits(
            (24.1, 24.1), (11.1, 11.1), (3.6, 4.6), (15.9, 15.9), (6, 4), casts=True, compiled=(19.1, 19.1)
        ),
    ),
}
