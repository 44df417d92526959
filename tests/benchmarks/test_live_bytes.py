"""Storages are counted once, while they are alive, where they are."""

from __future__ import annotations

import torch

from benchmarks.live_bytes import LiveBytes

KILO = 250
"""Numbers in float32 of a thousand bytes."""


def test_a_storage_counts_from_its_beginning_to_its_end() -> None:
    with LiveBytes() as live:
        first = torch.zeros(KILO)
        again = first[10:].view(-1)
        assert live.device == 1000
        del first
        assert live.device == 1000  # the view is alive
        del again
        assert live.device == 0


def test_what_is_made_of_the_hosts_tensors_alone_is_there_too() -> None:
    with LiveBytes() as live:
        with live.on_host():
            there = torch.zeros(KILO)
        here = torch.zeros(2 * KILO)
        double = there * 2
        mixed = double + here[:KILO]
        assert (live.device, live.host) == (3000, 2000)
        live.move([mixed], to_host=True)
        live.move([there], to_host=False)
        assert (live.device, live.host) == (3000, 2000)
        del here, there, mixed
        assert (live.device, live.host) == (0, 1000)


def test_a_kernels_own_memory_counts_while_it_works() -> None:
    with LiveBytes(extra={torch.ops.aten.neg.default: lambda x: 7}) as live:
        live.phase("negative")
        kept = torch.neg(torch.zeros(KILO))
    assert live.phases["negative"].device == 2007 and live.device == kept.nbytes
