"""The matrices each kind of network gives a layer, by their names in files. Imports no torch: plans count with it.

The order of a shape is [outputs, inputs].
"""

from __future__ import annotations

from toolkit.config.network import NetworkConfig

Shapes = dict[str, tuple[int, int]]


def weights_per_layer(network: NetworkConfig, inputs: int, outputs: int) -> int:
    """How many weights a `network:` section trains on a layer of this size."""
    return sum(rows * columns for rows, columns in layer_shapes(network, inputs, outputs).values())


def layer_shapes(network: NetworkConfig, inputs: int, outputs: int) -> Shapes:
    """The matrices a `network:` section trains on a layer of this size."""
    rank = network.linear
    kinds = {
        "lora": lambda: lora_shapes(inputs, outputs, rank),
        "dora": lambda: dora_shapes(inputs, outputs, rank),
        "loha": lambda: loha_shapes(inputs, outputs, rank),
        "lokr": lambda: lokr_shapes(inputs, outputs, rank, network.factor, network.lokr_full_rank),
    }
    return kinds[network.type]()


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
    (small_in, large_in), (small_out, large_out) = factorise(inputs, factor), factorise(outputs, factor)
    first = {"lokr_w1": (small_out, small_in)}
    if whole or rank >= max(large_out, large_in) / 2:
        return {**first, "lokr_w2": (large_out, large_in)}
    return {**first, "lokr_w2_a": (large_out, rank), "lokr_w2_b": (rank, large_in)}


def factorise(size: int, factor: int = -1) -> tuple[int, int]:
    """`size` as a product (smaller, larger): the smaller is `factor`, or the nearest divisor below it that balances.

    factor: -1 gives the most balanced pair. Source: LyCORIS 4.1.3, functional/general.py `factorization`.
    """
    if factor > 0 and size % factor == 0:
        return min(factor, size // factor), max(factor, size // factor)
    limit = size if factor < 0 else factor
    divisors = (d for d in range(1, int(size**0.5) + 1) if size % d == 0 and d <= limit)
    small = max(divisors)
    return small, size // small
