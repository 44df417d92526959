"""An account of a GPU's memory: the peak by phase, and the largest groups of blocks
that were alive at the peak, by the line that made them.

With `train.memory_account: true` PyTorch's allocator records each event with its Python
stack, and `account_of` replays the events. Without the key nothing is recorded, since
it costs time in each step: at an out-of-memory error `Shortage` lists the blocks by
size alone, as they were when the allocation failed.

`jobs.process.trainer` opens `memory_account` around a run; the callback
`toolkit.train.callbacks.memory_account` says when it reads. It estimates nothing: that
is `estimate`.

A stack is a list of frames, the innermost first, as `torch.cuda.memory._snapshot` has
it. Sizes are in bytes.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from toolkit.errors import OutOfMemory
from toolkit.files.writing import TOOLKIT_ROOT
from toolkit.memory.estimate import gigabytes
from toolkit.system.device import is_out_of_memory, peak_memory

logger = logging.getLogger(__name__)

KEY = "train.memory_account"

MOST_EVENTS = 1_000_000
"""Number of the newest events that are kept: up to three steps of the published model
in eager mode. An event takes about 1 KB of main memory, which is not measured."""

SHOWN = 10
"""Groups that are listed."""

GROWN = 1.01
"""Growth of the peak after which the events are read again."""

PHASES = {
    ("toolkit/models/folder_model.py", "part"): "loading",
    ("jobs/process/image_trainer.py", "encode_images"): "encoding",
    ("extensions/sd_trainer/process.py", "attach"): "attaching",
    ("toolkit/train/loop.py", "try_largest_batch"): "largest batch",
    ("toolkit/train/loop.py", "train"): "training",
    ("toolkit/train/callbacks/validation.py", "validate"): "validation",
    ("toolkit/train/callbacks/sample.py", "_generate_set"): "samples",
    ("toolkit/train/callbacks/save.py", "_start_save"): "saving",
}
"""File and function -> the phase of the blocks that it allocates. The innermost
function on a stack counts."""

START = "start"
"""Phase of blocks that are allocated before any of `PHASES`."""

BEFORE = "allocated before the recorded events"
BACKWARD = "autograd, backward pass"
COMPILED = "compiled"

Stack = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Group:
    """Blocks that were made by one line, or have the same size.

    >>> Group("loop.py:10 step", bytes=3_000_000, blocks=2, largest=2_000_000)
    Group(name='loop.py:10 step', bytes=3000000, blocks=2, largest=2000000)
    """

    name: str
    bytes: int
    blocks: int
    largest: int


@dataclass(frozen=True)
class Account:
    """The peak of all tensors of a device.

    Example::

        account = account_of(torch.cuda.memory._snapshot())
        print(*account.lines(), sep="\n")
    """

    peak: int
    phase: str
    """The phase of the peak."""

    reserved: int
    """Peak of the bytes that PyTorch reserved for tensors."""

    phases: Mapping[str, int]
    """Phase -> its highest peak, in the order in which the phases began."""

    groups: Sequence[Group]
    """Groups of blocks that were alive at the peak, the largest first."""

    last_phase: str
    """The phase of the last event."""

    def merged(self, later: Account) -> Account:
        """The account of both periods."""
        higher = later if later.peak > self.peak else self
        phases = {
            name: max(self.phases.get(name, 0), later.phases.get(name, 0))
            for name in (*self.phases, *later.phases)
        }
        reserved = max(self.reserved, later.reserved)
        return replace(
            higher, phases=phases, reserved=reserved, last_phase=later.last_phase
        )

    def lines(self) -> Iterator[str]:
        """The lines for the log."""
        yield f"memory account: peak {gigabytes(self.peak)} in {self.phase}, {gigabytes(self.reserved)} reserved"
        yield "  peak by phase: " + ", ".join(
            f"{name} {gigabytes(peak)}" for name, peak in self.phases.items()
        )
        yield "  alive at the peak, by the line that made it:"
        yield from map(_line, self.groups[:SHOWN])
        rest = self.groups[SHOWN:]
        if rest:
            yield _line(
                Group(
                    "other lines",
                    sum(g.bytes for g in rest),
                    sum(g.blocks for g in rest),
                    0,
                )
            )


def _line(group: Group) -> str:
    largest = f", the largest {group.largest / 1e6:.1f} MB" if group.largest else ""
    return f"    {group.bytes / 1e9:7.3f} GB  {group.name} ({group.blocks} blocks{largest})"


# ------------------------------------------------------------ the replay of recorded
# events


def account_of(
    snapshot: Mapping[str, Any], device: int = 0, phase: str = START
) -> Account:
    """Replays the events of a `torch.cuda.memory._snapshot`. phase: the phase of events
    before the first known one.

    The events may begin late. The blocks that were alive before them follow from the
    blocks at the end, by undoing the events.
    """
    events = snapshot["device_traces"][device] if snapshot["device_traces"] else []
    alive, reserved = _at_begin(snapshot["segments"], events, device)
    sizes = {address: size for address, (size, _) in alive.items()}
    now = peak = sum(sizes.values())
    at = -1
    peak_phase = phase
    most_reserved = reserved
    phases = dict[str, int]()
    place_of = _Places()
    for index, event in enumerate(events):
        action = event["action"]
        if action == "alloc":
            phase = place_of.phase(event.get("frames", ())) or phase
            sizes[event["addr"]] = event["size"]
            now += event["size"]
            phases[phase] = max(phases.get(phase, 0), now)
            if now > peak:
                peak = now
                peak_phase = phase
                at = index
        elif action == "free_completed":
            now -= sizes.pop(event["addr"], 0)
        reserved += _reserved_by(event)
        most_reserved = max(most_reserved, reserved)
    for event in events[: at + 1]:
        if event["action"] == "alloc":
            alive[event["addr"]] = (event["size"], event.get("frames", ()))
        elif event["action"] == "free_completed":
            alive.pop(event["addr"], None)
    groups = _grouped((place_of.line(stack), size) for size, stack in alive.values())
    return Account(
        peak, peak_phase, most_reserved, phases or {phase: peak}, groups, phase
    )


_RESERVING = {
    "segment_alloc": 1,
    "segment_map": 1,
    "segment_free": -1,
    "segment_unmap": -1,
}
"""Action of an event -> whether PyTorch reserves its bytes, or frees them."""

Block = tuple[int, Stack | None]
"""Size in bytes, and the stack that made the block; None: it is not known."""


def _at_begin(
    segments: Sequence[Mapping[str, Any]],
    events: Sequence[Mapping[str, Any]],
    device: int,
) -> tuple[dict[int, Block], int]:
    """The blocks that were alive before the first event, by address, and the bytes
    reserved then."""
    blocks, reserved = _active(segments, device)
    # A block without frames was made before the recording began. Empty frames belong to
    # a thread without a Python stack.
    alive: dict[int, Block] = {
        block["address"]: (
            block.get("requested_size", block["size"]),
            block.get("frames"),
        )
        for block in blocks
    }
    for event in reversed(events):
        reserved -= _reserved_by(event)
        if event["action"] == "alloc":
            alive.pop(event["addr"], None)
        elif event["action"] == "free_completed":
            alive[event["addr"]] = (event["size"], None)
    return alive, reserved


def _active(
    segments: Sequence[Mapping[str, Any]], device: int
) -> tuple[list[Mapping[str, Any]], int]:
    """The blocks of a device that are in use, and the bytes that PyTorch reserved."""
    own = [one for one in segments if one.get("device", device) == device]
    blocks = [
        block
        for segment in own
        for block in segment["blocks"]
        if block["state"].startswith("active")
    ]
    return blocks, sum(segment["total_size"] for segment in own)


def _reserved_by(event: Mapping[str, Any]) -> int:
    """Bytes by which an event changes what PyTorch has reserved."""
    size: int = event["size"]
    return _RESERVING.get(event["action"], 0) * size


def _grouped(blocks: Iterator[tuple[str, int]]) -> list[Group]:
    by_name = defaultdict[str, list[int]](list)
    for name, size in blocks:
        by_name[name].append(size)
    groups = (
        Group(name, sum(sizes), len(sizes), max(sizes))
        for name, sizes in by_name.items()
    )
    return sorted(groups, key=lambda group: -group.bytes)


class _Places:
    """The lines and phases of stacks. They are kept, since many events share a stack."""

    def __init__(self) -> None:
        # with the stack, so that its id stays taken
        self._found: dict[int, tuple[Stack, str, str]] = {}

    def line(self, stack: Stack | None) -> str:
        return BEFORE if stack is None else self._of(stack)[1]

    def phase(self, stack: Stack) -> str:
        """Empty where the stack does not show it: threads of the backward pass have no
        caller."""
        return self._of(stack)[2]

    def _of(self, stack: Stack) -> tuple[Stack, str, str]:
        if id(stack) not in self._found:
            self._found[id(stack)] = (stack, line_of(stack), phase_of(stack))
        return self._found[id(stack)]


def line_of(stack: Stack) -> str:
    """The innermost line of this program, or else of a library; with a note where
    compiled code allocates."""
    compiled = f", {COMPILED}" * any(
        "torchinductor" in frame["filename"] for frame in stack
    )
    for frame in stack:
        program_file = _own(frame["filename"])
        if program_file:
            return f"{program_file}:{frame['line']} {frame['name']}{compiled}"
    libraries = [frame for frame in stack if "/site-packages/" in frame["filename"]]
    if compiled or not libraries:
        return BACKWARD + compiled
    _, _, file = libraries[0]["filename"].rpartition("/site-packages/")
    return f"{file}:{libraries[0]['line']} {libraries[0]['name']}"


def phase_of(stack: Stack) -> str:
    """The phase of the innermost function of `PHASES`; empty where there is none."""
    places = ((_own(frame["filename"]), frame["name"]) for frame in stack)
    return next((PHASES[place] for place in places if place in PHASES), "")


ROOTS = tuple(f"{root}/" for root in (TOOLKIT_ROOT, Path(__file__).parents[2]))
"""The folder of this program, also by its path through a link where there is one."""


def _own(file: str) -> str:
    """The path of a file of this program; empty for others."""
    root = next((root for root in ROOTS if file.startswith(root)), "")
    if root and "/site-packages/" not in file:
        return file.removeprefix(root)
    return ""


# ------------------------------------------------------------ on a device


class MemoryAccount:
    """The account of a device's memory. This base class is for devices other than CUDA
    and knows nothing.

    >>> MemoryAccount().lines()
    []
    """

    def take(self, ended: str = "") -> None:
        """Reads the events since the last call, where they are recorded, and clears
        them. ended: the name of the phase that has ended, used where nothing is
        recorded."""

    def take_if_grown(self) -> None:
        """Calls `take` where the peak is higher than at the last call."""

    def lines(self) -> list[str]:
        """The lines for the log at the end."""
        return []

    def stop(self) -> None:
        """Ends the recording."""


class Recorder(MemoryAccount):
    """Records the allocator's events, and reads them whenever the peak has grown. CUDA
    only.

    The cost of recording on a GPU is not measured.

    Example::

        with memory_account(device, record=True) as account:  # a Recorder
            account.take_if_grown()
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._phase = START
        self._seen = 0
        self._account: Account | None = None
        self._record()

    def _record(self) -> None:
        settings: dict[str, Any] = {
            "context": "all",
            "stacks": "python",
            "max_entries": MOST_EVENTS,
        }
        torch.cuda.memory._record_memory_history(
            enabled="all", clear_history=True, **settings
        )

    def take(self, ended: str = "") -> None:
        phase_account = account_of(
            torch.cuda.memory._snapshot(), self._device.index or 0, self._phase
        )
        self._phase, self._seen = phase_account.last_phase, peak_memory(self._device)
        self._account = (
            self._account.merged(phase_account) if self._account else phase_account
        )
        self._record()

    def take_if_grown(self) -> None:
        if peak_memory(self._device) > GROWN * self._seen:
            self.take()

    def lines(self) -> list[str]:
        self.take()
        return list(self._account.lines()) if self._account else []

    def stop(self) -> None:
        torch.cuda.memory._record_memory_history(enabled=None)


class Shortage(MemoryAccount):
    """The blocks that were alive when an allocation failed last, by size, and the peaks
    before; without a recording. CUDA only.

    Example::

        with memory_account(device, record=False) as account:  # a Shortage
            account.take("loading the model")
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last: list[str] = []
        self._peaks: dict[str, int] = {}
        # CUDA builds alone have it. It is called before the error is raised, while
        # everything is still alive.
        attach: Callable[..., None] | None = getattr(
            torch._C, "_cuda_attach_out_of_memory_observer", None
        )
        if attach:
            attach(self.note)

    def take(self, ended: str = "") -> None:
        self._peaks[ended] = peak_memory(self._device)

    def note(self, device: int, asked: int, total: int, free: int) -> None:
        """Keeps a list of the allocator's blocks. device: its index. asked: bytes of
        the failed allocation. total, free: bytes of the device."""
        if device == (self._device.index or 0):
            self._last = list(
                shortage_lines(torch.cuda.memory_snapshot(), device, asked, total, free)
            )

    def lines(self) -> list[str]:
        """The lines for the log. The allocator notices no shortage where CUDA's
        libraries allocate memory themselves."""
        known = self._last or [
            "memory at the error: not known, since no allocation of PyTorch failed"
        ]
        before = ", ".join(
            f"{name} {gigabytes(peak)}" for name, peak in self._peaks.items()
        )
        hint = (
            f"  {KEY}: true also names the lines that made them; it makes steps slower."
        )
        return [*known, *([f"  peaks before: {before}"] if before else []), hint]


def shortage_lines(
    segments: Sequence[Mapping[str, Any]],
    device: int,
    asked: int,
    total: int,
    free: int,
) -> Iterator[str]:
    """The lines for the log at an out-of-memory error without a recording. segments: of
    `torch.cuda.memory_snapshot`. The other arguments are as in `Shortage.note`."""
    blocks, reserved = _active(segments, device)
    sizes = Counter(block["size"] for block in blocks)
    held = sum(block["size"] for block in blocks)
    others = f"{gigabytes(max(0, total - free - reserved))} CUDA and other programs"
    gaps = f"{gigabytes(reserved - held)} gaps between them"
    yield f"memory at the error: {gigabytes(held)} tensors, {gaps}, {others}; {gigabytes(asked)} more were asked for"
    for size, count in sorted(sizes.items(), key=lambda group: -group[0] * group[1])[
        :SHOWN
    ]:
        yield f"    {size * count / 1e9:7.3f} GB  {count} blocks of {size / 1e6:.1f} MB"


@contextmanager
def memory_account(device: torch.device, record: bool) -> Iterator[MemoryAccount]:
    """Logs the account where the block ends in an out-of-memory error; with `record`
    also where it ends normally or by a stop."""
    if device.type != "cuda":
        if record:
            logger.warning(f"{KEY}: no effect on {device}.")
        yield MemoryAccount()
        return
    account: MemoryAccount = Recorder(device) if record else Shortage(device)
    try:
        yield account
    except BaseException as error:
        ran_out = isinstance(error, OutOfMemory) or is_out_of_memory(error)
        is_stop = not isinstance(error, Exception)
        record = ran_out or (record and is_stop)
        raise
    finally:
        try:
            for line in account.lines() if record else ():
                logger.info(line)
        finally:
            account.stop()
