"""Keyed randomness: each draw has its own generator, named by its purpose.

Nothing draws from a shared stream. So no draw depends on batch size, accumulation, the
number of workers, sampling in between, or on how often a run was stopped and resumed.
A new purpose changes no existing draw. Called wherever something is random: the order
of an epoch, timesteps and noise, dropout, the weights of new layers, the validation
split.
"""

from __future__ import annotations

from contextlib import contextmanager
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch


def key(seed: int, purpose: str, *indices: int | str) -> int:
    """A 63-bit number that depends on every argument; the same on every machine and
    version. File names count by their bytes, UTF-8 or not.

    >>> key(42, "noise", 7) == key(42, "noise", 7)
    True
    >>> key(42, "noise", 7) == key(42, "noise", 8)
    False
    """
    text = "\x1f".join([str(seed), purpose, *map(str, indices)])
    digest = blake2b(text.encode(errors="surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def uniform(seed: int, purpose: str, *indices: int | str) -> float:
    """One draw from the uniform distribution on [0, 1), without torch.

    >>> 0 <= uniform(42, "caption dropout", "a.jpg", 3) < 1
    True
    """
    return (key(seed, purpose, *indices) >> 10) / 2**53


def generator(
    seed: int, purpose: str, *indices: int | str, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A generator for this purpose alone. device: by default the CPU, so that every
    device sees the same numbers.

    Example::

        noise = torch.randn(shape, generator=generator(seed, "noise", step))
    """
    import torch

    return torch.Generator(device).manual_seed(key(seed, purpose, *indices))


@contextmanager
def global_generator(seed: int, purpose: str, *indices: int | str) -> Iterator[None]:
    """Seeds torch's global generators inside the block and restores them afterwards.

    It is for code that accepts no generator: LoRA initialisation, dropout, stochastic
    rounding.
    """
    import torch

    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(key(seed, purpose, *indices))
        yield
