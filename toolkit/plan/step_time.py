"""How long the parts of a run take on a card, by calculation. Imports no torch.

A pass through the blocks is matrix products and attention, which the card's arithmetic
limits, and bytes that its memory, or the bus to main memory, has to move. What each of
them reaches of the published figures was measured on one H100 (docs/measured.md, "The
1.03 seconds of the default"), and is taken to be the same on every card. Tests keep the
sum within 15 % of all measured step times. `run_time.py` makes these records, and
`Planner` turns them into seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass
from functools import reduce
from operator import add

from toolkit.config.reading.field_types import CHECKPOINTING_LEVELS, OFFLOADING_LEVELS
from toolkit.memory.estimate import OF_ATTENTION, OF_INPUT
from toolkit.memory.flops import (
    BACKWARD_ATTENTION_EXECUTED,
    KERNELS_PER_BLOCK,
    RECOMPUTED,
)
from toolkit.plan.cards import Card

PRODUCTS = 0.79
"""Share of the published operations per second that products reach: 784 of 989 TFLOP/s,
over the layers of a block."""

ATTENTION = 0.55
"""The share that attention by cuDNN reaches in the forward pass: 52.9 TFLOP in 97
ms."""

ATTENTION_BACKWARD = 0.53
"""The same in the backward pass: 132 TFLOP in 252 ms."""

CONVOLUTIONS = 0.3
"""The same of the VAE; an assumption."""

ADAPTER_ACCESSES = 3.8
"""Times that a number which a layer with an adapter reads or writes is moved by the
adapter, in each of a pass forward, its recomputation and twice a backward pass: its
small products wait for memory. 190 ms of the default."""

ELEMENTWISE_FORWARD = 69
"""Times that a block moves tokens x width numbers in its forward pass by operations
that are neither products nor attention. `cheap` computes them again: 206 ms of the
default, copies included."""

ELEMENTWISE_BACKWARD = 83
"""The same in its backward pass."""

EAGER = 1.46
"""The same, with the adapter, without compiling: the GPU was busy for 1.57 s instead of
1.33."""

HOST_S = 65e-6
"""Seconds of the host for each kernel of a training step that is not compiled: 2.40 s
for 36,800."""

COMPILED_HOST_SHARE = 0.2
"""Share of it with compiled blocks, which launch fewer: the most that is compatible
with 0.42 s for a step without a control image."""

FORWARD_KERNELS = 1 / 3
"""Share of a step's kernels in the forward pass; an assumption."""

AWAITED = 0.4
"""Share of the bytes of `block_offload` that come back when they are needed: tensors of
three and four units of all 22 to 29
(`toolkit.contracts.network_kinds.ActivationUnits`), for which there is no room
before."""

BUS = 0.8
"""Share of the bus that copies of pinned memory reach; an assumption."""

COPIED_BYTES_S = 16e9
"""Bytes per second that the two threads of `PinnedWindow` copy from the system's cache of
a mapped file: 8 each, on a CPU with PyTorch 2.13 (docs/measured.md, "Copies in main
memory")."""

DISK_BYTES_S = 1e9
"""Bytes per second that a disk reads and writes; an assumption. NVMe disks read 2 to 7,
SATA ones 0.5."""

WORTH_SAYING = 0.05
"""Share of a step's time from which on a faster level is named."""

SETUP_S = 2.0
"""Seconds before the first step that are none of the other parts."""

COMPILE_S = {
    "none": 43.0,
    "cheap": 43.0,
    **dict.fromkeys(CHECKPOINTING_LEVELS[2:], 28.0),
}
"""Level of checkpointing -> seconds that compiling the blocks takes, the first time on
a machine with 16 cores. The levels that were not measured have the figure of their
neighbour."""

ENCODE_FLOP = 6.7e6
"""Operations per pixel that a VAE encodes, in the published VAE that takes more:
`FlopCounterMode` of PyTorch 2.13 on diffusers 0.42.1 at 512 x 512 and 1024 x 1024
(Qwen-Image 6.66e6, Qwen-Image-2.1 2.96e6)."""

DECODE_FLOP = 16.2e6
"""The same per pixel that it decodes (Qwen-Image 1.07e7, Qwen-Image-2.1 1.62e7)."""


@dataclass(frozen=True)
class PassWork:
    """What a pass through the blocks takes, or several: operations, bytes, kernels.

    >>> work = PassWork(products=2.0) + PassWork(products=1.0, moved=8.0)
    >>> work.times(2).products
    6.0
    """

    products: float = 0.0
    attention: float = 0.0
    attention_backward: float = 0.0
    convolutions: float = 0.0
    moved: float = 0.0
    """Bytes that the adapter and elementwise kernels move; more where they are not
    compiled."""

    weights: float = 0.0
    """Further bytes in the card's memory: copies of quantized weights, layers that are
    not compiled with others."""

    bus: float = 0.0
    """Bytes from main memory to the card. They arrive while blocks compute."""

    awaited: float = 0.0
    """The same, for which computing waits."""

    kernels: float = 0.0
    """That the host starts where blocks are not compiled."""

    plain_kernels: float = 0.0
    """The same where blocks are not quantized, which decides for compiled ones: they
    dequantize in kernels that are there anyway."""

    copied: float = 0.0
    """Those of `bus` that are copied from a mapped file before."""

    read: float = 0.0
    """Those of `copied` that come from its disk."""

    def __add__(self, other: PassWork) -> PassWork:
        return PassWork(*map(add, astuple(self), astuple(other)))

    def times(self, count: float) -> PassWork:
        """This work, `count` times. `count` need not be whole.

        >>> PassWork(products=2.0).times(1.5).products
        3.0
        """
        return PassWork(*(count * amount for amount in astuple(self)))

    def busy_seconds(self, card: Card, compiled: bool = True) -> float:
        """Seconds for which the card computes."""
        flops = 1e12 * card.bf16_tflops
        memory = 1e9 * card.memory_gb_s
        moved = self.moved if compiled else EAGER * self.moved
        return (
            self.products / (PRODUCTS * flops)
            + self.attention / (ATTENTION * flops)
            + self.attention_backward / (ATTENTION_BACKWARD * flops)
            + self.convolutions / (CONVOLUTIONS * flops)
            + (moved + self.weights) / memory
        )

    def seconds(self, card: Card, compiled: bool = True) -> float:
        """Seconds that it takes: of the card, the bus, the host or the file of waiting
        blocks, whichever is the slowest. The bytes of `awaited` come on top.

        compiled: False multiplies the bytes of `moved` by `EAGER`, and the host starts
        every kernel.

        >>> from toolkit.plan.cards import asked_card
        >>> f"{PassWork(products=1e14).seconds(asked_card('4090')):.2f} s"
        '0.77 s'
        """
        kernels = COMPILED_HOST_SHARE * self.plain_kernels if compiled else self.kernels
        host_s = HOST_S * kernels
        return max(
            self.busy_seconds(card, compiled), host_s, self.arrival(card)[0]
        ) + self.awaited / _bus_bytes_s(card)

    def arrival(self, card: Card) -> tuple[float, str]:
        """Seconds in which the bytes of `bus` come, and what limits them: the slowest of
        the bus, the threads that copy and the disk. One block is on its way at a time,
        so those that are pinned and those that are not come one after the other.

        >>> from toolkit.plan.cards import asked_card
        >>> PassWork(bus=8e9, copied=8e9, read=8e9).arrival(asked_card("4090"))
        (8.0, 'the disk')
        """
        pinned_s = (self.bus - self.copied) / _bus_bytes_s(card)
        ways = {
            "the bus": self.copied / _bus_bytes_s(card),
            "the threads that copy": self.copied / COPIED_BYTES_S,
            "the disk": self.read / DISK_BYTES_S,
        }
        slowest = max(ways, key=ways.__getitem__)
        seconds = pinned_s + ways[slowest]
        return seconds, slowest if pinned_s < ways[slowest] else "the bus"


def _bus_bytes_s(card: Card) -> float:
    return BUS * 1e9 * card.bus_gb_s


def total(works: Iterable[PassWork]) -> PassWork:
    """The sum of all of them, done one after the other.

    >>> total([PassWork(products=1.0), PassWork(products=2.0)]).products
    3.0
    """
    return reduce(add, works, PassWork())


@dataclass(frozen=True)
class Blocks:
    """The blocks of a model with the network: the numbers that decide how long their
    passes take.

    >>> blocks = Blocks(width=3072, blocks=60, token_weights=1e9, number_bytes=2)
    >>> blocks.forward(tokens=4096, pairs=4096**2).products / 1e12
    8.192
    """

    width: int
    blocks: int
    token_weights: float
    """Weights of all blocks that one token goes through."""

    number_bytes: int
    adapter_numbers: float = 0.0
    """Numbers that the layers with an adapter read and write for one token, in all
    blocks."""

    adapter_weights: float = 0.0
    """Weights of the adapter that one token goes through."""

    trains_model: bool = False
    extra_bytes: float = 0.0
    """`PassWork.weights` of one pass."""

    swapped_bytes: float = 0.0
    """Bytes of the blocks that wait in main memory."""

    copied_bytes: float = 0.0
    """Those of them that come from a mapped file."""

    from_disk: float = 0.0
    """The share of `copied_bytes` that each pass reads from its disk."""

    kernels_per_block: float = 0.0
    saved_units: float = 0.0
    """Numbers that a block saves for the backward pass, where everything is kept, by
    tokens x width."""

    def forward(self, tokens: float, pairs: float) -> PassWork:
        """A forward pass of a batch. tokens: of all its images. pairs: of tokens that
        attention compares, of all."""
        adapter = ADAPTER_ACCESSES * self.adapter_numbers * tokens * self.number_bytes
        elementwise = ELEMENTWISE_FORWARD * self._unit(tokens)
        return PassWork(
            products=2.0 * (self.token_weights + self.adapter_weights) * tokens,
            attention=4.0 * self.width * self.blocks * pairs,
            moved=adapter + elementwise,
            weights=self.extra_bytes,
            bus=self.swapped_bytes,
            kernels=FORWARD_KERNELS * self.kernels_per_block * self.blocks,
            plain_kernels=FORWARD_KERNELS * KERNELS_PER_BLOCK[""] * self.blocks,
            copied=self.copied_bytes,
            read=self.from_disk * self.copied_bytes,
        )

    def backward(self, tokens: float, pairs: float, level: str) -> PassWork:
        """The backward pass of the same batch, with the part of the forward pass that
        it computes again. level: of `gradient_checkpointing`. Raises KeyError for a
        level that is not in `RECOMPUTED`."""
        again, attention_again = RECOMPUTED[level]
        forward = self.forward(tokens, pairs)
        elementwise = ELEMENTWISE_FORWARD * self._unit(tokens)
        adapter = forward.moved - elementwise
        elementwise_again = 0.0 if level == "none" else elementwise
        model_passes = 1 + again  # gradients of the inputs
        if self.trains_model:
            model_passes += 1  # and of the weights
        products = model_passes * 2.0 * self.token_weights * tokens
        products += (2 + again) * 2.0 * self.adapter_weights * tokens
        waiting = 0.0
        saved = 0.0
        if level == "offload_attention":  # there and back
            waiting = 2 * (OF_ATTENTION - OF_INPUT) * self._unit(tokens)
        if level in OFFLOADING_LEVELS:
            waiting = self._unit(tokens)
        if level == "block_offload":
            saved = self.saved_units * self._unit(tokens)
        return PassWork(
            products=products,
            attention=attention_again * forward.attention,
            attention_backward=BACKWARD_ATTENTION_EXECUTED * forward.attention,
            moved=(2 + again) * adapter
            + elementwise_again
            + ELEMENTWISE_BACKWARD * self._unit(tokens),
            weights=(1 + again) * self.extra_bytes,
            bus=self.swapped_bytes + waiting + (2 - AWAITED) * saved,  # there and back
            awaited=AWAITED * saved,
            kernels=(1 - FORWARD_KERNELS) * self.kernels_per_block * self.blocks,
            plain_kernels=(1 - FORWARD_KERNELS) * KERNELS_PER_BLOCK[""] * self.blocks,
            copied=forward.copied,
            read=forward.read,
        )

    def _unit(self, tokens: float) -> float:
        """Bytes of a number for each token and channel, in all blocks."""
        return tokens * self.width * self.number_bytes * self.blocks


@dataclass(frozen=True)
class StepWork:
    """What an optimizer step takes of one process.

    >>> from toolkit.plan.cards import asked_card
    >>> step = StepWork(PassWork(products=1e14), PassWork(products=2e14))
    >>> f"{step.seconds(asked_card('4090')):.1f} s"
    '2.3 s'
    """

    forward: PassWork
    backward: PassWork
    optimizer_bytes: float = 0.0
    """Bytes that the optimizer, clipping and the average read and write."""

    def seconds(self, card: Card, compiled: bool = True) -> float:
        """Seconds of an optimizer step on a card. Forward and backward pass each wait
        for what is slowest in them."""
        passes = self.forward.seconds(card, compiled) + self.backward.seconds(
            card, compiled
        )
        return passes + self.optimizer_bytes / (1e9 * card.memory_gb_s)

    def less_than(self, other: StepWork, card: Card, compiled: bool) -> float:
        """The share of the other step's seconds that this one saves; negative where it
        takes longer."""
        return 1 - self.seconds(card, compiled) / other.seconds(card, compiled)

    def arrival(self, card: Card) -> str:
        """What the plan says of what waits in main memory; empty where no block does."""
        if not self.forward.bus:
            return ""
        seconds, slowest = (self.forward + self.backward).arrival(card)
        return (
            f"what waits in main memory comes in {seconds:.2g} s, limited by {slowest}"
        )

    def against_compiling(self, card: Card, steps: int, compile_s: float) -> str:
        """Why compiling the blocks does not pay in a run of so many optimizer steps;
        empty where it does. compile_s: seconds that compiling takes here."""
        compiled, eager = self.seconds(card), self.seconds(card, compiled=False)
        saved = steps * (eager - compiled)
        if saved >= compile_s:
            return ""
        return (
            f"it takes about {compile_s:.0f} s, and {steps:,} steps of {compiled:.2g} instead of {eager:.2g} s "
            f"(calculated for {card.called}) save {saved:.0f} s"
        )


@dataclass(frozen=True)
class RunWork:
    """What a whole run takes of one process.

    Example::

        parts = work.parts(card, compiled=True)
        print(max(parts, key=parts.get), sum(parts.values()))
    """

    step: StepWork
    steps: int
    level: str
    """The level of checkpointing."""

    other_level: str = ""
    """`offload_attention` at `full`, and the reverse: which of them is faster is a
    question of the bus. Empty at other levels."""

    other_step: StepWork | None = None
    """The step at that level."""

    samples: PassWork = PassWork()
    pictures: float = 0.0
    """Sample images, of all sets."""

    validation: PassWork = PassWork()
    encoding: PassWork = PassWork()
    read_bytes: float = 0.0
    """Bytes of the model's files."""

    copied_bytes: float = 0.0
    """Bytes of all saves, copied from the card; they are written while training
    continues."""

    written_bytes: float = 0.0
    """Bytes of the last save, which the end waits for."""

    def faster_level(self, card: Card, compiled: bool) -> str:
        """What the plan says of `other_level`; empty where it saves less than
        `WORTH_SAYING`."""
        if self.other_step is None:
            return ""
        less = self.other_step.less_than(self.step, card, compiled)
        if less < WORTH_SAYING:
            return ""
        percent = round(100 * less)
        return (
            f"{percent} % less with gradient_checkpointing: {self.other_level} "
            "(calculated, never measured)"
        )

    def parts(
        self, card: Card, compiled: bool, compile_s: float | None = None
    ) -> dict[str, float]:
        """Part of the run -> seconds. compile_s: the seconds that compiling took here
        the last time; None: the table `COMPILE_S`. Without `compiled` the entry
        "compiling" is 0."""
        compiling = compile_s or COMPILE_S[self.level] if compiled else 0.0
        return {
            "steps": self.steps * self.step.seconds(card, compiled),
            "samples": self.samples.seconds(card, compiled),
            "validation": self.validation.seconds(card, compiled),
            "encoding": self.encoding.seconds(card),
            "saving": self.copied_bytes / _bus_bytes_s(card)
            + self.written_bytes / DISK_BYTES_S,
            "loading": SETUP_S + self.read_bytes / DISK_BYTES_S,
            "compiling": compiling,
        }


@dataclass(frozen=True)
class RunTime:
    """What says how long a run takes: its work, and the device that does it.

    Example::

        time = plan.time  # of a RunPlan
        if time and time.card:
            seconds = time.work.step.seconds(time.card)
    """

    work: RunWork
    card: Card | None
    """None: there is none, or no figure of it suits the job."""

    gpu: str
    """The name that the driver gives the device of the job; empty: there is none."""

    key: str
    """By which the times of an earlier run here are known
    (`toolkit.memory.kept_times`)."""

    is_asked: bool = False
    """The card is the one of `--card`: nothing was measured on it here."""

    no_card: str = ""
    """Why `card` is None, where there is something to say."""
