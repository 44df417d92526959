"""Calculated times beside all that docs/measured.md has of an H100."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from tests.conftest import ROOT
from tests.toolkit.plan.test_memory_plan_measured import (
    INT4,
    OWN_TABLE,
    TEXT_TOKENS,
    job,
)
from toolkit.contracts.data import BucketedSample, ResizeCrop, Sample, Size
from toolkit.models.qwen_image.family import FAMILY
from toolkit.plan import memory_plan
from toolkit.plan.cards import Card, asked_card
from toolkit.plan.memory import Machine
from toolkit.plan.memory_inputs import LETTERS_PER_TOKEN, ItemGroup, group_items
from toolkit.plan.memory_plan import plan_memory
from toolkit.plan.run_plan import SaveSize
from toolkit.plan.run_time import run_work
from toolkit.plan.step_time import PassWork, RunWork, StepWork


@pytest.fixture(autouse=True)
def any_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """How much main memory is free is not known: a busy machine may have no room for
    what waits."""
    monkeypatch.setattr(memory_plan, "free_host_memory", lambda: 0)


CLOSE = 0.15
MICRO_BATCHES = 2
H100 = asked_card("H100")


class Row(NamedTuple):
    """A row of docs/measured.md."""

    model: dict[str, Any]
    level: str
    references: int = 1
    compiled: bool = True
    kernels: int | None = None
    """That a micro-step launched at the measured commit; None: those of today."""


NO_TABLE = {"modulation_table": False}
DEFAULT = Row(OWN_TABLE, "cheap")

MICRO_STEPS = {
    "all `auto`, bf16: compiled, modulation table, `cheap` (a)": DEFAULT,
    "all `auto`, bf16, no control image: compiled, `none` (a)": Row(
        OWN_TABLE, "none", references=0
    ),
    "bf16, `full`, compiled (a)": Row(NO_TABLE, "full"),
    "int4 weights, table, `full`, compiled (a, b)": Row(INT4, "full"),
    "bf16, `full`, eager": Row(NO_TABLE, "full", compiled=False, kernels=36_800),
}
"""Job in "Speed and memory" -> its settings."""

NOT_COVERED = {
    "plain loop of diffusers and peft: no mask, full checkpointing, eager": "another program",
    "int8 products, table, `full`, compiled (a), beside other processes; checkpointing had no effect without (b)": (
        "the card was shared, and the run kept what its level should have computed again"
    ),
}

FIRST_STEPS = {
    "all `auto`, bf16 (a), nothing cached": DEFAULT,
    "int4 weights, compiled (a, b)": Row(INT4, "full"),
}
"""Job in "Time to the first step" -> its settings."""

NO_FIRST_STEP = {
    "plain loop": "another program",
    "the same in a second process, with inductor's caches": "a second run takes what the first one's compiling took",
    "int8 products, compiled (a), beside two other jobs": "the card was shared",
}


def table(heading: str) -> dict[str, tuple[float, float]]:
    """Job -> the range of seconds in the first table under a heading of
    docs/measured.md."""
    page = (ROOT / "docs" / "measured.md").read_text(encoding="utf-8")
    section = page.split(f"### {heading}\n", 1)[1]
    lines = re.findall(r"(?m)^\|.*\n(?:\|.*\n)+", section)[0].splitlines()[2:]
    found = {}
    for line in lines:
        name, seconds = [cell.strip() for cell in line.strip("|").split("|")][:2]
        numbers = [
            float(number)
            for number in re.findall(r"\d+(?:\.\d+)?", seconds.split(":")[0])
        ]
        found[name] = (min(numbers), max(numbers))
    return found


def groups_of(references: int) -> tuple[ItemGroup, ...]:
    """One image of 1024 x 1024 with as many text tokens as were measured."""
    side, facts = (
        Size(1024, 1024),
        FAMILY.footprint(job(NO_TABLE, "full").model.folder()),
    )
    letters = (
        TEXT_TOKENS[references]
        - facts.text_tokens
        - references * facts.text_tokens_per_reference
    )
    caption = "x" * LETTERS_PER_TOKEN * letters
    sample = Sample("a.png", caption, 1, side, ".", ("b.png",) * references)
    return group_items([BucketedSample(sample, ResizeCrop(side, 0, 0, side))])


def work_of(row: Row, **model: Any) -> RunWork:
    section, groups = job(row.model | model, row.level), groups_of(row.references)
    memory = plan_memory(section, groups, Machine("cuda"), compiled=row.compiled)
    found = run_work(
        section,
        groups,
        1000,
        lambda interval: 4,
        memory,
        SaveSize(300_000_000, 1_500_000_000),
    )
    assert found is not None
    return found


def step_of(row: Row) -> StepWork:
    """Of a step of two micro-batches."""
    step = work_of(row).step
    if row.kernels is None:
        return step
    launched = row.kernels * MICRO_BATCHES
    forward, backward = (
        replace(each, kernels=launched / 2) for each in (step.forward, step.backward)
    )
    return replace(step, forward=forward, backward=backward)


def close_to(measured: tuple[float, float]) -> Any:
    return pytest.approx(sum(measured) / 2, rel=CLOSE)


@pytest.mark.parametrize("name", MICRO_STEPS)
def test_a_micro_step_is_within_15_percent_of_the_measured_one(name: str) -> None:
    row, measured = MICRO_STEPS[name], table("Speed and memory")[name]
    assert step_of(row).seconds(H100, row.compiled) / MICRO_BATCHES == close_to(
        measured
    )


def test_each_row_with_a_time_is_compared_or_has_a_reason() -> None:
    assert set(table("Speed and memory")) == MICRO_STEPS.keys() | NOT_COVERED.keys()
    assert (
        set(table("Time to the first step"))
        == FIRST_STEPS.keys() | NO_FIRST_STEP.keys()
    )


@pytest.mark.parametrize("name", FIRST_STEPS)
def test_the_first_step_comes_within_15_percent_of_the_measured_time(name: str) -> None:
    row = FIRST_STEPS[name]
    work = replace(work_of(row), read_bytes=0.0)  # the weights were drawn, not read
    parts = work.parts(H100, row.compiled)
    assert parts["loading"] + parts["compiling"] + work.step.seconds(H100) == close_to(
        table("Time to the first step")[name]
    )


def test_the_parts_of_the_default_are_within_15_percent() -> None:
    """Rows of "The 1.03 seconds of the default", in seconds of the GPU; 283 ms of the
    products are the frozen ones'."""
    step = work_of(DEFAULT).step
    both = (step.forward + step.backward).times(1 / MICRO_BATCHES)
    only = {
        "attention, forward": (PassWork(attention=both.attention), 0.097),
        "attention, backward": (
            PassWork(attention_backward=both.attention_backward),
            0.252,
        ),
        "frozen products": (PassWork(products=both.products), 0.283),
        "products of the LoRA, elementwise kernels, copies": (
            PassWork(moved=both.moved),
            0.190 + 0.170 + 0.036,
        ),
    }
    for name, (part, measured) in only.items():
        assert part.busy_seconds(H100) == pytest.approx(measured, rel=CLOSE), name


def test_an_eager_step_keeps_the_gpu_busy_as_long_as_measured() -> None:
    """1.57 s of 2.40 (docs/measured.md): the rest of the time it waited for the
    host."""
    step = work_of(Row(NO_TABLE, "full", compiled=False)).step
    busy = (step.forward + step.backward).busy_seconds(H100, compiled=False)
    assert busy / MICRO_BATCHES == pytest.approx(1.57, rel=0.05), (
        "without EAGER it would be 13 % less"
    )


def slow_bus() -> Card:
    return replace(H100, pcie=(4, 1))


def test_swapped_blocks_take_the_bus_twice_and_are_hidden_by_a_fast_one() -> None:
    """A third of the int4 blocks of 0.12 GB each, in the forward and in the backward
    pass of both micro-batches."""
    swapped, none = (
        work_of(Row(INT4, "full"), blocks_to_swap=count).step for count in (20, 0)
    )
    blocks = 20 / 60 * 0.53 * (20_384_317_440 - 6_794_772_480)
    assert (
        swapped.forward.bus
        == swapped.backward.bus
        == pytest.approx(MICRO_BATCHES * blocks)
    )
    assert swapped.seconds(H100) == none.seconds(H100)
    at_least = 2 * MICRO_BATCHES * blocks / (0.8 * 1.969e9)
    assert swapped.seconds(slow_bus()) == pytest.approx(
        at_least, rel=0.02
    ) and at_least > none.seconds(H100)


@pytest.mark.parametrize(
    ("free", "processes", "pinned", "bytes_s", "limit"),
    [
        # pinned as a whole: 0.8 of 16 lanes of PCIe 5.0
        (64e9, 1, 60, 0.8 * 16 * 3.938e9, "the bus"),
        # two processes pin nothing
        (64e9, 2, 0, 16e9, "the threads that copy"),
        # too little for 7.2 GB of blocks beside 2.5 GB of the process and 2 GB
        (6e9, 1, 0, 1e9, "the disk"),
    ],
)
def test_waiting_blocks_come_as_fast_as_the_slowest_of_bus_copy_and_disk(
    free: float,
    processes: int,
    pinned: int,
    bytes_s: float,
    limit: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory_plan, "free_host_memory", lambda: int(free))
    launched = {"RANK": 0, "LOCAL_RANK": 0, "MASTER_ADDR": "here", "MASTER_PORT": 1}
    for name, value in {**launched, "WORLD_SIZE": processes}.items():
        monkeypatch.setenv(name, str(value))
    swapped = work_of(Row(INT4, "full"), blocks_to_swap=60, keep_quantized=True).step
    blocks = 60 / 60 * 0.53 * (20_384_317_440 - 6_794_772_480)
    micro_batches = MICRO_BATCHES / processes
    for part in (swapped.forward, swapped.backward):
        assert part.copied == (0 if pinned else pytest.approx(micro_batches * blocks))
    arrives = 2 * micro_batches * blocks / bytes_s
    assert swapped.arrival(H100) == (
        f"what waits in main memory comes in {arrives:.2g} s, limited by {limit}"
    )
    # the card computes for longer, but for the disk
    is_limit = swapped.seconds(H100) == pytest.approx(arrives, rel=0.01)
    assert is_limit == (limit == "the disk")


@pytest.mark.parametrize(
    ("copied", "read", "arrives", "limit"),
    [
        (0, 0, 1.0, "the bus"),  # 25.2 GB at 0.8 of 31.5
        (3.2e9, 0, 1.073, "the bus"),  # 22 GB in 0.873 s, 3.2 in 0.2
        (16e9, 0, 1.365, "the threads that copy"),  # 9.2 GB in 0.365 s
        (16e9, 16e9, 16.365, "the disk"),
        (16e9, 0.5e9, 1.365, "the threads that copy"),
    ],
)
def test_pinned_blocks_and_others_come_one_after_the_other(
    copied: float, read: float, arrives: float, limit: str
) -> None:
    work = PassWork(bus=25.2e9, copied=copied, read=read)
    seconds, limited_by = work.arrival(asked_card("4090"))
    assert (round(seconds, 3), limited_by) == (arrives, limit)
    assert work.seconds(asked_card("4090")) == seconds


def test_offloaded_activations_take_the_bus_too() -> None:
    offloaded, kept = (
        work_of(Row(INT4, level)).step for level in ("full_offload", "full")
    )
    inputs = MICRO_BATCHES * 60 * 8472 * 3072 * 2
    assert (
        offloaded.backward.bus == pytest.approx(inputs, rel=0.01)
        and kept.backward.bus == 0
    )


@pytest.mark.parametrize(
    ("level", "lanes", "said"),
    [
        ("full", 16, "% less with gradient_checkpointing: offload_attention (calc"),
        ("full", 1, ""),  # the bus takes 4 s for 6.4 GB
        ("offload_attention", 16, ""),
        ("offload_attention", 1, "% less with gradient_checkpointing: full (calc"),
        ("keep_attention", 16, ""),
    ],
)
def test_the_plan_names_the_faster_of_attention_again_and_from_main_memory(
    level: str, lanes: int, said: str
) -> None:
    """On an H100, which computes for 1 s in the backward pass."""
    work = work_of(Row(INT4, level))
    results = 2 * 1.02 * MICRO_BATCHES * 60 * 8472 * 3072 * 2
    of_attention = {"keep_attention": 0, "full": 0, "offload_attention": results}
    assert work.step.backward.bus == pytest.approx(of_attention[level], rel=0.01)
    card = replace(H100, pcie=(4, lanes))
    found = work.faster_level(card, compiled=True)
    assert said in found and bool(found) == bool(said)


def test_what_waits_while_a_block_is_computed_again_takes_the_bus_there_and_back() -> (
    None
):
    """22.1 units of a LoRA; 40 % of what comes back is waited for, whatever else is
    done."""
    row = Row(INT4, "block_offload", compiled=False)
    offloaded, full = work_of(row).step, work_of(Row(INT4, "full", compiled=False)).step
    unit = MICRO_BATCHES * 60 * 8472 * 3072 * 2
    awaited = 0.4 * 22.1 * unit
    assert (
        offloaded.backward.awaited == pytest.approx(awaited, rel=0.01)
        and full.backward.awaited == 0
    )
    assert offloaded.backward.bus == pytest.approx(
        (1 + 2 * 22.1) * unit - awaited, rel=0.01
    )
    assert offloaded.forward == full.forward
    more = offloaded.seconds(H100, compiled=False) - full.seconds(H100, compiled=False)
    assert more >= 0.99 * awaited / (0.8 * 1e9 * H100.bus_gb_s)


def test_recomputation_costs_what_it_computes_again() -> None:
    none, cheap, attention, full = (
        work_of(Row(OWN_TABLE, level)).step.seconds(H100)
        for level in ("none", "cheap", "keep_attention", "full")
    )
    assert none < cheap < attention < full < 1.5 * none


def test_a_quantized_layer_is_unpacked_in_each_pass() -> None:
    int4, bf16 = (
        work_of(Row(model, "full")).step.forward for model in (INT4, OWN_TABLE)
    )
    weights = 20_384_317_440 - 6_794_772_480
    assert int4.weights - bf16.weights == pytest.approx(
        MICRO_BATCHES * (0.53 + 2) * weights
    )
    assert int4.products == bf16.products


def test_a_card_with_less_arithmetic_memory_or_bus_takes_longer() -> None:
    step = work_of(Row(INT4, "full"), blocks_to_swap=50).step
    seconds = step.seconds(H100)
    assert step.seconds(replace(H100, bf16_tflops=500)) > seconds
    assert step.seconds(replace(H100, memory_gb_s=1000)) > seconds
    assert step.seconds(slow_bus()) > seconds
    assert step.seconds(asked_card("RTX 4070")) > 10 * seconds


def test_a_short_run_compiles_where_its_programs_are_cached() -> None:
    step = step_of(MICRO_STEPS["bf16, `full`, eager"])
    saved = 100 * (step.seconds(H100, compiled=False) - step.seconds(H100))
    assert not step.against_compiling(H100, 100, saved - 1)
    assert step.against_compiling(H100, 100, saved + 1) == (
        f"it takes about {saved + 1:.0f} s, and 100 steps of {step.seconds(H100):.2g} instead of "
        f"{step.seconds(H100, compiled=False):.2g} s (calculated for an H100) save {saved:.0f} s"
    )
