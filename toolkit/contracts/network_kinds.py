"""The kinds of network by the names of `network.type`, with what is known before torch
is imported.

A kind is a class in a file of `toolkit/networks/` and its entry in KINDS, which all
tables and lists read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Protocol

from toolkit.errors import UserError
from toolkit.extension import added
from toolkit.registry import load_object

if TYPE_CHECKING:
    from toolkit.contracts.network import Network

Shapes = dict[str, tuple[int, ...]]
"""The trained tensors of a layer by their names; matrices are [outputs, inputs]."""

Pair = tuple[float, float]
"""In half precision, in float32."""


class NetworkSection(Protocol):
    """The keys of a `network:` section that every kind of adapter reads;
    `NetworkKind.settings` names the others.

    >>> from types import SimpleNamespace
    >>> section = SimpleNamespace(linear=16)
    >>> KINDS["lora"].layer_shapes(section, inputs=64, outputs=32)
    {'lora_A.weight': (16, 64), 'lora_B.weight': (32, 16)}
    """

    @property
    def linear(self) -> int: ...


@dataclass(frozen=True)
class ActivationUnits:
    """Memory that a block's activations take with this kind on all its linear layers.

    One unit is tokens x width elements, the size of a block's output. Counted on the
    published Qwen-Image-Edit blocks, tensor by tensor
    (`benchmarks/published.py`). The defaults are the numbers of a LoRA.

    >>> half_precision, float32 = KINDS["dora"].units.everything
    >>> half_precision
    52.1
    """

    everything: Pair = (22.1, 22.1)
    """Kept for the backward pass where nothing is recomputed."""

    matmul_outputs: Pair = (11.1, 11.1)
    """The part of `everything` that is matmul and attention outputs (what `cheap`
    saves)."""

    backward: Pair = (6.4, 6.4)
    """Further memory in the backward pass, besides kept or recomputed activations."""

    forward: Pair = (16.0, 15.9)
    """Peak of a forward pass without gradients."""

    change: Pair = (0, 0)
    """Bytes per weight of the largest layer in the backward pass, for kinds that
    allocate tensors of its size."""

    change_forward: Pair = (0, 0)
    change_has_weight: bool = False
    """Whether the weight itself is among them, dequantized: it is not in memory another
    time."""

    casts: bool = False
    """Whether trained weights are kept a second time in the compute dtype."""

    compiled: Pair = (19.2, 19.1)
    """`everything` of a compiled block: what the partitioner saves
    (`benchmarks/saved_by_blocks.py`)."""

    compiled_outputs: Pair = (11.1, 11.1)
    """`matmul_outputs` of a compiled block."""

    offloaded: Pair | None = (17.3, 17.3)
    """Peak on the device with `block_offload`, without a layer's change and its
    dequantized weight; None: not counted, and refused."""


@dataclass(frozen=True)
class NetworkKind:
    """One kind of network. Everything else that the program knows of it is in its
    class.

    >>> KINDS["lora"].trains_model, KINDS["full"].trains_model
    (False, True)
    """

    network_class: str
    """Its class, as "module:Class"; imported when it is used."""

    shapes: Callable[..., Shapes] | None
    """(inputs, outputs, rank, and `settings` by name) -> the matrices of a layer; None:
    the model's own weights are trained."""

    units: ActivationUnits
    settings: Mapping[str, str] = field(default_factory=dict)
    """Further arguments of `shapes` and of the class -> the keys of `network` that give
    them; a dot leads into a section."""

    up_names: frozenset[str] = frozenset()
    """Matrices with LoRA+'s own learning rate; empty: LoRA+ cannot be used."""

    frozen_names: frozenset[str] = frozenset()
    """Matrices of `shapes` that are not trained (`Network.buffers`)."""

    algo: str = ""
    """LyCORIS's name for it, which `network_kwargs.algo` of `type: lycoris` gives;
    empty: it has none."""

    library_class: str = ""
    """The module class of lycoris-lora that is trained, as "module:Class"; empty: one
    of our own."""

    without_effect: tuple[str, ...] = ()
    """Keys of `network` that do nothing with this kind."""

    needs_base: bool = False
    """Whether the delta of a layer is computed with its frozen weight."""

    @property
    def trains_model(self) -> bool:
        """Whether the model's own weights are trained instead of an adapter's."""
        return self.shapes is None

    def load(self) -> type[Network]:
        """Its class."""
        loaded: type[Network] = load_object(self.network_class)
        return loaded

    def extra_kwargs(self, section: object) -> dict[str, Any]:
        """The arguments named in `settings`, from a `network:` section."""
        return {
            argument: attrgetter(key)(section)
            for argument, key in self.settings.items()
        }

    def layer_shapes(
        self, section: NetworkSection, inputs: int, outputs: int, frozen: bool = False
    ) -> Shapes:
        """The matrices that a `network:` section trains on a layer of this size, or its
        frozen ones; none where it trains the model."""
        if self.shapes is None:
            return {}
        shapes = self.shapes(
            inputs, outputs, section.linear, **self.extra_kwargs(section)
        )
        return {
            name: shape
            for name, shape in shapes.items()
            if (name in self.frozen_names) == frozen
        }


def lora_shapes(inputs: int, outputs: int, rank: int) -> Shapes:
    """Down and up matrix."""
    return {"lora_A.weight": (rank, inputs), "lora_B.weight": (outputs, rank)}


def dora_shapes(inputs: int, outputs: int, rank: int) -> Shapes:
    """The matrices of a LoRA, and the norm of each input column of the weight."""
    return {**lora_shapes(inputs, outputs, rank), "dora_scale": (1, inputs)}


def loha_shapes(inputs: int, outputs: int, rank: int) -> Shapes:
    """Two low-rank pairs, whose products are multiplied element by element."""
    return {
        "hada_w1_a": (outputs, rank),
        "hada_w1_b": (rank, inputs),
        "hada_w2_a": (outputs, rank),
        "hada_w2_b": (rank, inputs),
    }


def lokr_shapes(
    inputs: int, outputs: int, rank: int, factor: int = -1, whole: bool = False
) -> Shapes:
    """A small first factor and a second one: low-rank, or in one piece where `whole` is
    asked or rank saves nothing.

    Source: LyCORIS 4.1.3, modules/lokr.py (`decompose_both` off).
    """
    (small_in, large_in), (small_out, large_out) = (
        factorize(inputs, factor),
        factorize(outputs, factor),
    )
    first = {"lokr_w1": (small_out, small_in)}
    if whole or rank >= max(large_out, large_in) / 2:
        return {**first, "lokr_w2": (large_out, large_in)}
    return {**first, "lokr_w2_a": (large_out, rank), "lokr_w2_b": (rank, large_in)}


def oft_shapes(
    inputs: int, outputs: int, rank: int, rescaled: bool = False, **_: object
) -> Shapes:
    """Rotations of groups of outputs: n blocks of b x b numbers, b n outputs. `rank` is
    the largest b.

    Source: LyCORIS 4.1.3, modules/diag_oft.py.
    """
    size, count = factorize(outputs, rank)
    return {"oft_blocks": (count, size, size), **_output_scales(outputs, rescaled)}


def boft_shapes(
    inputs: int, outputs: int, rank: int, rescaled: bool = False, **_: object
) -> Shapes:
    """Such rotations in a butterfly: of 2^p blocks each, p + 1 times. `rank` is the
    largest block size, which is even.

    Raises UserError where no block size up to `rank` divides the outputs into a power
    of two. Source: LyCORIS 4.1.3, functional/general.py `power2factorization`,
    modules/boft.py.
    """
    sizes = [
        size
        for size in range(2, min(rank, outputs) + 1, 2)
        if outputs % size == 0 and _is_power(outputs // size)
    ]
    if not sizes:
        odd = outputs // (outputs & -outputs)
        raise UserError(
            f"network.linear: boft cannot split {outputs} outputs into blocks of at most {rank}. "
            f"Set it to {2 * odd} or more, or leave out layers of that size (exclude_patterns)."
        )
    count = outputs // sizes[-1]
    return {
        "oft_blocks": (count.bit_length(), count, sizes[-1], sizes[-1]),
        **_output_scales(outputs, rescaled),
    }


def _is_power(number: int) -> bool:
    return number & (number - 1) == 0


def _output_scales(outputs: int, rescaled: bool) -> Shapes:
    return {"rescale": (outputs, 1)} if rescaled else {}


def glora_shapes(inputs: int, outputs: int, rank: int, **_: object) -> Shapes:
    """Two low-rank pairs, one of which is applied before the weight. Source: LyCORIS
    4.1.3, modules/glora.py."""
    return {
        "a2.weight": (rank, inputs),
        "a1.weight": (inputs, rank),
        "b2.weight": (rank, inputs),
        "b1.weight": (outputs, rank),
    }


def ia3_shapes(inputs: int, outputs: int, rank: int) -> Shapes:
    """A factor for each output. Source: LyCORIS 4.1.3, modules/ia3.py."""
    return {"weight": (outputs,)}


def whole_shapes(inputs: int, outputs: int, rank: int) -> Shapes:
    """A change of each weight. Source: LyCORIS 4.1.3, modules/full.py; biases are left
    as they are."""
    return {"weight": (outputs, inputs)}


def factorize(size: int, factor: int = -1) -> tuple[int, int]:
    """`size` as a product (smaller, larger): the smaller is `factor`, or the nearest
    divisor below it that balances.

    factor: -1 gives the most balanced pair. Source: LyCORIS 4.1.3,
    functional/general.py `factorization`.
    """
    if factor > 0 and size % factor == 0:
        return min(factor, size // factor), max(factor, size // factor)
    limit = size if factor < 0 else factor
    divisors = (d for d in range(1, int(size**0.5) + 1) if size % d == 0 and d <= limit)
    small = max(divisors)
    return small, size // small


LIBRARY = "toolkit.networks.lycoris_library:LycorisNetwork"
"""The class of all kinds that are lycoris-lora's own modules."""

_LIBRARY_UNITS = ActivationUnits(
    (22.1, 22.1),
    (20.1, 20.1),
    (6.4, 6.4),
    (19.7, 19.7),
    change_has_weight=True,
    compiled=(19.1, 19.1),
    offloaded=None,
)
"""The change of a weight is made of it and computed again in the backward pass: the
kinds differ in what that takes."""

_OFT_SETTINGS = {
    "constraint": "network_kwargs.constraint",
    "rescaled": "network_kwargs.rescaled",
}

OWN_KINDS: dict[str, NetworkKind] = {
    "lora": NetworkKind(
        "toolkit.networks.lora:LoraNetwork",
        lora_shapes,
        ActivationUnits(casts=True),
        up_names=frozenset({"lora_B.weight"}),
        algo="lora",
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
            offloaded=(41.2, 25.0),
        ),
        up_names=frozenset({"lora_B.weight"}),
        needs_base=True,
    ),
    "loha": NetworkKind(
        "toolkit.networks.lycoris:LohaNetwork",
        loha_shapes,
        ActivationUnits(
            (22.1, 22.1),
            (20.1, 20.1),
            (6.4, 6.4),
            (21.0, 19.7),
            (19, 19),
            (17, 13),
            compiled=(19.1, 19.1),
            offloaded=(17.5, 19.8),
        ),
        algo="loha",
    ),
    "lokr": NetworkKind(
        "toolkit.networks.lycoris:LokrNetwork",
        lokr_shapes,
        ActivationUnits(
            (31.8, 31.8),
            (11.1, 11.1),
            (3.8, 3.8),
            (21.7, 21.7),
            compiled=(28.5, 28.5),
            offloaded=(24.4, 24.4),
        ),
        settings={"factor": "factor", "whole": "lokr_full_rank"},
        algo="lokr",
    ),
    "full": NetworkKind(
        "toolkit.networks.full:FullNetwork",
        None,
        ActivationUnits(
            (24.1, 24.1),
            (11.1, 11.1),
            (3.6, 4.6),
            (15.9, 15.9),
            (6, 4),
            casts=True,
            compiled=(19.1, 19.1),
            offloaded=None,
        ),
    ),
    "boft": NetworkKind(
        LIBRARY,
        boft_shapes,
        replace(_LIBRARY_UNITS, change=(56, 51), change_forward=(12, 8)),
        settings=_OFT_SETTINGS,
        algo="boft",
        library_class="lycoris.modules.boft:ButterflyOFTModule",
        without_effect=("linear_alpha",),
        needs_base=True,
    ),
    "diag-oft": NetworkKind(
        LIBRARY,
        oft_shapes,
        replace(_LIBRARY_UNITS, change=(11, 8), change_forward=(8, 4.5)),
        settings=_OFT_SETTINGS,
        algo="diag-oft",
        library_class="lycoris.modules.diag_oft:DiagOFTModule",
        without_effect=("linear_alpha",),
        needs_base=True,
    ),
    "glora": NetworkKind(
        LIBRARY,
        glora_shapes,
        replace(_LIBRARY_UNITS, change=(20, 15), change_forward=(20, 16)),
        algo="glora",
        library_class="lycoris.modules.glora:GLoRAModule",
        needs_base=True,
    ),
    "ia3": NetworkKind(
        LIBRARY,
        ia3_shapes,
        replace(_LIBRARY_UNITS, change=(13, 8), change_forward=(8, 4.5)),
        algo="ia3",
        library_class="lycoris.modules.ia3:IA3Module",
        without_effect=("linear", "linear_alpha"),
        needs_base=True,
    ),
    "lycoris-full": NetworkKind(
        LIBRARY,
        whole_shapes,
        replace(
            _LIBRARY_UNITS,
            change=(6, 4),
            change_forward=(4, 4),
            change_has_weight=False,
        ),
        algo="full",
        library_class="lycoris.modules.full:FullModule",
        without_effect=("linear", "linear_alpha"),
    ),
}


class Kinds(dict[str, NetworkKind]):
    """The table of kinds. An extension is asked for one that is not in it.

    >>> KINDS["lora"].trains_model
    False
    """

    def __missing__(self, name: str) -> NetworkKind:
        kind: NetworkKind = load_object(added("network")[name])
        return kind


KINDS = Kinds(OWN_KINDS)

ALGORITHMS = {kind.algo: name for name, kind in KINDS.items() if kind.algo}
"""LyCORIS's name of an algorithm -> the kind that trains it."""
