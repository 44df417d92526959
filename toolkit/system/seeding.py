"""Keyed randomness: each draw has its own generator, named by what it is for.

Nothing draws from a shared stream, so no draw depends on batch size, accumulation, the
number of workers, sampling in between, or on how often a run was stopped and resumed.
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
    version. File names count by their bytes, UTF-8 or not."""
    text = "\x1f".join([str(seed), purpose, *map(str, indices)])
    return (
        int.from_bytes(
            blake2b(text.encode(errors="surrogateescape"), digest_size=8).digest(),
            "big",
        )
        >> 1
    )


def uniform(seed: int, purpose: str, *indices: int | str) -> float:
    """One draw from the uniform distribution on [0, 1), without torch."""
    return (key(seed, purpose, *indices) >> 10) / 2**53


def generator(
    seed: int, purpose: str, *indices: int | str, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A generator for this purpose alone. device: by default the CPU, so that every
    device sees the same numbers."""
    import torch

    return torch.Generator(device).manual_seed(key(seed, purpose, *indices))


@contextmanager
def global_generator(seed: int, purpose: str, *indices: int | str) -> Iterator[None]:
    """Seeds torch's global generators inside the block and restores them afterwards.

    For code that can draw from nowhere else: LoRA initialisation, dropout, stochastic
    rounding.
    """
    import torch

    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(key(seed, purpose, *indices))
        yield
