"""The engine wraps the blocks as asked, and `auto` goes from level to level."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch

from tests.toolkit.memory.toy_blocks import CPU, WIDTH, Stack, plain, same
from toolkit.config.reading.field_types import CHECKPOINTING_LEVELS
from toolkit.config.sections.train import CompileConfig
from toolkit.memory import block_runner as engine_module
from toolkit.memory.block_runner import BlockRunner
from toolkit.memory.estimate import StepShape, activation_bytes
from toolkit.memory.flops import EFFICIENCY
from toolkit.memory.offload import BlockSwap

WORK = StepShape(tokens=1000, width=64, blocks=5, number_bytes=4)


@dataclass
class ToyModel:
    """As much of an adapter as the engine asks for."""

    stack: Stack
    wrappers: list = field(default_factory=list)
    last_block_wrappers: list | None = None
    head_dim, hidden_size = 16, WIDTH

    def blocks(self):
        return list(self.stack.model)

    def prepare_compiling(self) -> None:
        pass

    def wrap_blocks(self, wrappers, last_block_wrappers=None) -> None:
        self.wrappers, self.last_block_wrappers = list(wrappers), last_block_wrappers
        run = Stack.wrapped(plain, *wrappers)
        runs = [
            run,
            run
            if last_block_wrappers is None
            else Stack.wrapped(plain, *last_block_wrappers),
        ]
        self.stack.run = lambda block, *tensors: runs[block is self.stack.model[-1]](
            block, *tensors
        )


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, said: list[str]):
    """(adapter, engine, lines for the user); `free` is the memory that is found."""

    def made(level: str = "auto", free: int = 0, **options):
        monkeypatch.setattr(engine_module, "free_memory", lambda device: free)
        adapter = ToyModel(Stack())
        return adapter, BlockRunner(adapter, CPU, torch.float32, level, **options), said

    return made


@pytest.mark.parametrize(
    "level",
    CHECKPOINTING_LEVELS,
)
def test_every_level_with_and_without_swapping_gives_the_same_bits(
    made, level: str
) -> None:
    expected = Stack().gradients()
    for swapped in (0, 3):
        adapter, engine, said = made(level, swapped=swapped)
        assert engine.level == level and said == []
        assert any(
            isinstance(wrapper, BlockSwap) for wrapper in adapter.wrappers
        ) is bool(swapped)
        assert same(adapter.stack.gradients(), expected)


@pytest.mark.parametrize("swapped", [0, 3])
def test_the_block_that_backward_begins_with_is_not_computed_again(
    made, swapped: int
) -> None:
    adapter, *_ = made("full", swapped=swapped)
    begun = dict.fromkeys(adapter.stack.model, 0)

    def count(block, inputs) -> None:
        begun[block] += 1

    for block in begun:
        block.register_forward_pre_hook(count)
    adapter.stack.gradients()
    assert list(begun.values()) == [2, 2, 2, 2, 1]


def test_auto_saves_all_it_can_until_it_knows_the_work(made) -> None:
    _, engine, _ = made()
    assert engine.level == "full_offload"


@pytest.mark.parametrize("level", ["none", "cheap", "keep_attention", "full"])
def test_auto_takes_the_fastest_level_that_fits(made, level: str) -> None:
    adapter, engine, said = made(free=activation_bytes(level, WORK) + 50)
    engine.choose_checkpointing(WORK, needed=50)
    assert engine.level == level
    assert said == [
        f"train.gradient_checkpointing auto: {level} (0.0 GB free, largest batch 1000 tokens)"
    ]
    assert same(adapter.stack.gradients(), Stack().gradients())


def test_what_training_needs_besides_is_taken_off(made) -> None:
    free = int(activation_bytes("none", WORK) / 0.9)
    _, engine, _ = made(free=free)
    engine.choose_checkpointing(WORK, needed=free // 4)
    assert engine.level == "cheap"


def test_all_processes_take_what_one_of_them_needs(made) -> None:
    _, engine, _ = made(free=10**12)
    engine.choose_checkpointing(
        WORK, needed=0, gather=lambda own: [own, "keep_attention", "cheap"]
    )
    assert engine.level == "keep_attention"


def test_auto_goes_down_one_level_at_a_time_and_says_so(made) -> None:
    _, engine, said = made(free=10**12)
    engine.choose_checkpointing(WORK, needed=0)
    del said[:]
    levels = []
    while engine.increase_checkpointing():
        levels.append(engine.level)
    # on the CPU there is nothing to offload to
    assert levels == [
        "cheap",
        "keep_attention",
        "full",
    ]
    assert (
        said[0]
        == "train.gradient_checkpointing auto: the largest batch does not fit with none; cheap instead"
    )
    assert len(said) == 3


@pytest.mark.parametrize(("compiled", "level"), [(False, "full"), (True, "cheap")])
def test_uncompiled_on_a_gpu_the_time_of_the_host_counts(
    made, monkeypatch: pytest.MonkeyPatch, compiled: bool, level: str
) -> None:
    _, engine, _ = made(
        free=activation_bytes("cheap", WORK),
        compile_settings=CompileConfig(backend="eager") if compiled else None,
    )
    monkeypatch.setattr(engine, "_device", torch.device("cuda"))
    monkeypatch.setattr(engine, "_wrap", lambda: None)
    monkeypatch.setattr(engine_module, "peak_flops", lambda device: 3e14 / EFFICIENCY)
    engine.choose_checkpointing(WORK, needed=0)
    assert engine.level == level


def test_a_level_that_was_asked_for_stays(made) -> None:
    _, engine, said = made("none", free=0)
    engine.choose_checkpointing(WORK, needed=0)
    assert not engine.increase_checkpointing()
    assert engine.level == "none" and said == []


def test_where_compiling_fails_the_record_of_the_run_says_so(
    made, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*inputs) -> None:
        raise OSError("no compiler")

    monkeypatch.setattr(torch, "compile", lambda run, **_: broken)
    adapter, engine, said = made(
        "full", compile_settings=CompileConfig(backend="eager")
    )
    assert engine.programs.record == {"blocks": True}
    adapter.stack.gradients()
    assert engine.programs.record == {"blocks": False} and len(said) == 1
    engine._wrap()
    assert len(adapter.wrappers) == 1


def test_where_compiling_fails_the_level_is_that_of_blocks_that_keep_more(
    made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uncompiled blocks with `none` do not fit where compiled ones do."""

    def broken(*inputs) -> None:
        raise OSError("no compiler")

    monkeypatch.setattr(torch, "compile", lambda run, **_: broken)
    work = replace(WORK, compiled=True)
    free = (activation_bytes("none", work) + activation_bytes("none", WORK)) // 2
    adapter, engine, said = made(
        free=free, compile_settings=CompileConfig(backend="eager")
    )
    engine.choose_checkpointing(work, needed=0)
    assert engine.level == "none"
    adapter.stack.gradients()
    assert (
        engine.level == "cheap"
        and "cheap instead of none, for uncompiled blocks" in "".join(said)
    )


@pytest.mark.parametrize(
    ("work", "images", "has_kernel", "warned"),
    [
        (StepShape(tokens=8472, width=3072, blocks=60, number_bytes=2), 1, False, True),
        (StepShape(tokens=8472, width=3072, blocks=60, number_bytes=2), 1, True, False),
        (
            StepShape(tokens=8 * 1000, width=3072, blocks=60, number_bytes=2),
            8,
            False,
            False,
        ),  # 7.5 % of the products
        (
            StepShape(tokens=8 * 90, width=128, blocks=5, number_bytes=4),
            8,
            False,
            False,
        ),  # the host takes the time
    ],
)
def test_a_slow_kernel_of_attention_is_mentioned_where_it_counts(
    made,
    monkeypatch: pytest.MonkeyPatch,
    work: StepShape,
    images: int,
    has_kernel: bool,
    warned: bool,
) -> None:
    _, engine, said = made()
    monkeypatch.setattr(
        engine_module.attention, "has_fast_kernel", lambda *_: has_kernel
    )
    monkeypatch.setattr(engine_module, "peak_flops", lambda device: 9.9e14)
    engine.warn_of_slow_attention(work, images)
    assert said == []  # on a CPU
    monkeypatch.setattr(engine, "_device", torch.device("cuda"))
    engine.warn_of_slow_attention(work, images)
    line = "attention: no flash or cuDNN kernel for torch.float32 on this device; using a slower one."
    assert said == [line] * warned


@pytest.mark.parametrize(("before", "after"), [("none", "full"), ("full", "full")])
def test_uncompiled_blocks_take_the_level_that_is_fastest_for_them(
    made, monkeypatch: pytest.MonkeyPatch, before: str, after: str
) -> None:
    """The host's time counts then; a level that saves more stays."""
    adapter, engine, said = made(
        free=10**12, compile_settings=CompileConfig(backend="eager")
    )
    monkeypatch.setattr(engine, "_device", torch.device("cuda"))
    monkeypatch.setattr(engine_module, "peak_flops", lambda device: 1e18)
    engine.choose_checkpointing(WORK, needed=0)
    assert engine.level == "none"
    engine.level, said[:] = before, []
    # it has what it needs to know
    monkeypatch.setattr(engine_module, "fastest_level_that_fits", None)
    engine._fitting = lambda levels, compiled, flops: (
        "none" if flops is None else "full"
    )
    engine.programs.stop()
    assert engine.level == after and not engine.programs.used
    assert len(adapter.wrappers) == 1 and adapter.last_block_wrappers == []
    assert said == (
        [
            "train.gradient_checkpointing auto: full instead of none, for uncompiled blocks"
        ]
        if before != after
        else []
    )


def test_after_programs_a_batch_that_does_not_fit_is_computed_again_at_a_more_saving_level(
    made,
) -> None:
    _, engine, _ = made(free=10**12, compile_settings=CompileConfig(backend="eager"))
    engine.choose_checkpointing(WORK, needed=0)
    # compiled, the trial of the largest batch decides
    assert not engine.programs.save_memory()
    engine.programs.stop()
    assert engine.programs.save_memory() and engine.level == "cheap"
