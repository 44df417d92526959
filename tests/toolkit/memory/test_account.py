"""The account of a device's memory, on events as PyTorch's allocator records them
(`torch.cuda.memory._snapshot`)."""

from __future__ import annotations

import ast
from typing import Any

import pytest
import torch

from tests.conftest import ROOT
from toolkit.errors import Interrupted, OutOfMemory, RunError
from toolkit.memory import account
from toolkit.memory.account import (
    BACKWARD,
    BEFORE,
    PHASES,
    START,
    account_of,
    memory_account,
    shortage_lines,
)

MB = 2**20
CUDA = torch.device("cuda:0")


def frames(*places: str) -> list[dict[str, Any]]:
    """The innermost first, each "file:line function"; one of this program without a
    leading slash."""
    found = []
    for place in places:
        file, _, rest = place.rpartition(":")
        line, name = rest.split()
        found.append(
            {
                "filename": file if file.startswith("/") else f"{ROOT}/{file}",
                "line": int(line),
                "name": name,
            }
        )
    return found


TRAIN, LARGEST = (
    "toolkit/train/loop.py:90 train",
    "toolkit/train/loop.py:270 try_largest_batch",
)
LOADING = "toolkit/models/folder_model.py:73 part"
TORCH = "/env/site-packages/torch/nn/modules/linear.py:134 forward"
INDUCTOR = "/tmp/torchinductor_root/ab/cab.py:77 call"

WEIGHT = frames(
    "/env/site-packages/torch/nn/modules/module.py:1 to",
    "toolkit/models/loading.py:270 load",
    LOADING,
)
LORA = frames(
    TORCH,
    "toolkit/networks/lora.py:60 forward",
    "toolkit/memory/block_runner.py:9 run",
    TRAIN,
)
TRIED = frames(
    TORCH,
    "toolkit/networks/lora.py:60 forward",
    "toolkit/memory/block_runner.py:9 run",
    LARGEST,
)
FUSED = frames(
    INDUCTOR,
    "/env/site-packages/torch/_inductor/output_code.py:5 __call__",
    "toolkit/memory/x.py:3 y",
    TRAIN,
)
FUSED_BACK = frames(
    INDUCTOR, "/env/site-packages/torch/_functorch/runtime.py:8 backward"
)
MOMENTS = frames("/env/site-packages/torch/optim/adamw.py:30 _init_group", TRAIN)


class Trace:
    """Events and segments as a run leaves them."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.alive: dict[int, dict[str, Any]] = {}
        self.reserved = 0

    def _add(self, action: str, addr: int, size: int, stack: list) -> None:
        event = {
            "action": action,
            "addr": addr,
            "size": size,
            "stream": 0,
            "time_us": len(self.events),
        }
        self.events.append({**event, "frames": stack})

    def segment(self, mb: int, action: str = "segment_alloc") -> Trace:
        self.reserved += (
            mb * MB if action in ("segment_alloc", "segment_map") else -mb * MB
        )
        self._add(action, 1 << 40, mb * MB, [])
        return self

    def alloc(self, addr: int, mb: int, stack: list) -> Trace:
        block = {
            "size": mb * MB + 512,
            "requested_size": mb * MB,
            "address": addr,
            "state": "active_allocated",
        }
        self.alive[addr] = {**block, "frames": stack}
        self._add("alloc", addr, mb * MB, stack)
        return self

    def free(self, *addresses: int) -> Trace:
        for addr in addresses:
            size = self.alive.pop(addr)["requested_size"]
            self._add("free_requested", addr, size, [])
            self._add("free_completed", addr, size, [])
        return self

    def snapshot(self, begin: int = 0) -> dict[str, Any]:
        """begin: events before it are lost."""
        free = {"size": MB, "requested_size": 0, "address": 7, "state": "inactive"}
        blocks = [*self.alive.values(), free]
        segments = [{"device": 0, "total_size": self.reserved, "blocks": blocks}]
        other = [
            {
                "device": 1,
                "total_size": 999,
                "blocks": [{**free, "state": "active_allocated", "size": 999}],
            }
        ]
        return {
            "segments": [*segments, *other],
            "device_traces": [self.events[begin:], []],
        }


def a_run() -> Trace:
    """Loads two weights, tries a batch, takes a step of which the backward pass runs in
    a thread without a caller."""
    trace = Trace().segment(400).alloc(1, 100, WEIGHT).alloc(2, 100, WEIGHT)
    trace.alloc(3, 150, TRIED).free(3)
    trace.segment(300, "segment_map").alloc(4, 120, LORA).alloc(5, 80, LORA).alloc(
        6, 60, FUSED
    )
    trace.alloc(8, 90, []).alloc(9, 50, FUSED_BACK)
    trace.free(4, 5, 6, 8).segment(100, "segment_unmap")
    trace.alloc(10, 40, MOMENTS)
    return trace


def test_the_peak_has_its_phase_and_the_lines_that_made_what_was_alive() -> None:
    found = account_of(a_run().snapshot())
    assert (
        found.peak == 600 * MB
        and found.phase == "training"
        and found.reserved == 700 * MB
    )
    assert found.phases == {
        "loading": 200 * MB,
        "largest batch": 350 * MB,
        "training": 600 * MB,
    }
    assert [
        (group.name, group.bytes // MB, group.blocks, group.largest // MB)
        for group in found.groups
    ] == [
        ("toolkit/models/loading.py:270 load", 200, 2, 100),
        ("toolkit/networks/lora.py:60 forward", 200, 2, 120),
        (BACKWARD, 90, 1, 90),
        ("toolkit/memory/x.py:3 y, compiled", 60, 1, 60),
        (f"{BACKWARD}, compiled", 50, 1, 50),
    ]
    assert sum(group.bytes for group in found.groups) == found.peak
    first, by_phase, *_ = found.lines()
    assert first == "memory account: peak 0.63 GB in training, 0.73 GB reserved"
    assert by_phase.endswith("loading 0.21 GB, largest batch 0.37 GB, training 0.63 GB")


@pytest.mark.parametrize("lost", range(12))
def test_events_that_are_lost_change_no_sum(lost: int) -> None:
    whole, late = account_of(a_run().snapshot()), account_of(a_run().snapshot(lost))
    assert (late.peak, late.reserved) == (whole.peak, whole.reserved)
    assert sum(group.bytes for group in late.groups) == late.peak
    named = {group.name: group.bytes for group in late.groups}
    # What is alive at the end still has its line.
    assert named["toolkit/models/loading.py:270 load"] == 200 * MB
    assert (BEFORE in named) == (lost > 7)  # the tensors of the step, freed later


def test_what_was_read_before_is_kept_where_it_is_the_higher_one() -> None:
    high = account_of(a_run().snapshot())
    later = Trace().segment(50).alloc(1, 30, []).alloc(2, 10, MOMENTS)
    both = high.merged(account_of(later.snapshot(), phase="validation"))
    assert (both.peak, both.phase, both.groups) == (high.peak, "training", high.groups)
    assert (
        both.phases == {**high.phases, "validation": 30 * MB}
        and both.last_phase == "training"
    )
    assert account_of(later.snapshot()).merged(high).peak == high.peak


def test_every_phase_is_a_function_of_the_program() -> None:
    for file, function in PHASES:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert function in {
            node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
        }, (file, function)


def test_a_shortage_without_a_recording_lists_blocks_by_size() -> None:
    active = {"state": "active_allocated"}
    blocks = [{"size": 20 * MB, **active}] * 3 + [
        {"size": 90 * MB, **active},
        {"size": 50 * MB, "state": "inactive"},
    ]
    segments = [
        {"device": 0, "total_size": 200 * MB, "blocks": blocks},
        {"device": 1, "total_size": 1, "blocks": []},
    ]
    said = list(
        shortage_lines(segments, 0, asked=60 * MB, total=1000 * MB, free=700 * MB)
    )
    assert said[0] == (
        "memory at the error: 0.16 GB tensors, 0.05 GB gaps between them, 0.10 GB CUDA and other programs; "
        "0.06 GB more were asked for"
    )
    assert [" ".join(line.split()) for line in said[1:3]] == [
        "0.094 GB 1 blocks of 94.4 MB",
        "0.063 GB 3 blocks of 21.0 MB",
    ]
    assert len(said) == 3


# ------------------------------------------------------------ around a run


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What PyTorch's allocator is asked for, where there is no CUDA."""
    kept: dict[str, Any] = {
        "peak": 500,
        "recording": [],
        "trace": a_run(),
        "observers": [],
    }

    def record(enabled: str | None, **settings: Any) -> None:
        kept["recording"].append(enabled)

    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", record)
    monkeypatch.setattr(
        torch.cuda.memory, "_snapshot", lambda: kept["trace"].snapshot()
    )
    monkeypatch.setattr(
        torch.cuda, "memory_snapshot", lambda: kept["trace"].snapshot()["segments"]
    )
    monkeypatch.setattr(account, "peak_memory", lambda _: kept["peak"])
    monkeypatch.setattr(
        torch._C,
        "_cuda_attach_out_of_memory_observer",
        kept["observers"].append,
        raising=False,
    )
    return kept


def test_a_recorded_run_says_it_at_its_end_and_the_recording_stops(
    device: dict, said: list[str]
) -> None:
    with memory_account(CUDA, record=True) as found:
        found.take()
        device["trace"] = Trace().segment(50).alloc(1, 30, [])
        found.take_if_grown()
        assert device["recording"] == ["all", "all"], "nothing has grown"
        device["peak"] = 900
        found.take_if_grown()
    assert device["recording"] == ["all"] * 4 + [None]
    assert said[0].startswith("memory account: peak 0.63 GB in training")
    assert START not in said[1], "what has no stack is of the phase before it"


def test_the_recording_stops_where_its_events_cannot_be_read(
    device: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost() -> None:
        raise RuntimeError("the device is lost")

    monkeypatch.setattr(torch.cuda.memory, "_snapshot", lost)
    with pytest.raises(RuntimeError, match="lost"), memory_account(CUDA, record=True):
        pass
    assert device["recording"][-1] is None


@pytest.mark.parametrize(
    ("error", "record", "begins"),
    [
        (OutOfMemory("out of memory with a.jpg"), True, "memory account: peak"),
        (torch.OutOfMemoryError("CUDA out of memory."), True, "memory account: peak"),
        (Interrupted(0), True, "memory account: peak"),
        (RunError("the disk is full"), True, ""),
        (
            OutOfMemory("out of memory with a.jpg"),
            False,
            "memory at the error: 0.30 GB tensors",
        ),
        (Interrupted(0), False, ""),
    ],
    ids=repr,
)
def test_a_run_that_ends_otherwise(
    device: dict, said: list[str], error: BaseException, record: bool, begins: str
) -> None:
    with pytest.raises(type(error)), memory_account(CUDA, record):
        for observer in device["observers"]:  # the allocator calls it before it raises
            observer(0, 60 * MB, 1000 * MB, 100 * MB)
        device["trace"] = Trace().segment(10)  # what the error held is freed
        raise error
    assert (said == []) if not begins else said[0].startswith(begins)


def test_a_shortage_that_the_allocator_did_not_see(
    device: dict, said: list[str]
) -> None:
    with pytest.raises(RuntimeError), memory_account(CUDA, record=False) as found:
        found.take("encoding")
        device["peak"] = 2e9
        found.take("loading and the largest batch")
        found.take_if_grown()
        raise RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")
    first, before, hint = said
    assert (
        first == "memory at the error: not known, since no allocation of PyTorch failed"
    )
    assert (
        before
        == "  peaks before: encoding 0.00 GB, loading and the largest batch 2.0 GB"
    )
    assert "train.memory_account: true" in hint


def test_another_device_has_none(said: list[str]) -> None:
    with memory_account(torch.device("cpu"), record=True) as found:
        found.take()
    assert said == ["train.memory_account: no effect on cpu."]
    assert found.lines() == []
