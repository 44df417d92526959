"""A LoRA whose matrices are cast for a whole block at once: the same bits, from fewer
kernels."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from benchmarks.live_bytes import Kernels
from tests.toolkit.memory.toy_blocks import Stack, same
from toolkit.memory.checkpointing import checkpoint_wrapper
from toolkit.models.folder_model import call_block
from toolkit.networks import lora
from toolkit.networks.lora import LoraNetwork

HALF = torch.bfloat16


def half_stack(
    level: str = "none", casts: bool = True, count: int = 2, **options
) -> Stack:
    stack = Stack(count=count, dtype=HALF, **options).wrap(checkpoint_wrapper(level))
    if not casts:
        for block in stack.model:
            del block.adapter_casts
    return stack


def passes(stack: Stack, steps: int = 2) -> list[Tensor]:
    """The last output and all gradients; the parameters change between the steps,
    without their counters knowing."""
    torch.manual_seed(4)
    for step in range(steps):
        x_BSD = torch.randn(
            (2, 20, 32), generator=torch.Generator().manual_seed(step)
        ).to(HALF)
        for block in stack.model:
            (x_BSD,) = stack.run(block, x_BSD)
        x_BSD.float().square().sum().backward()
        for parameter in stack.network.parameters().values():
            parameter.data.mul_(1.1)
    return [x_BSD.detach(), *stack.learned()]


@pytest.mark.parametrize("level", ["none", "cheap", "full"])
@pytest.mark.parametrize(
    "options",
    [{"dropout": 0.0}, {"dropout": 0.2}, {"dropout": 0.0, "qtype": "int8"}],
    ids=str,
)
def test_the_bits_are_those_of_casts_at_each_use(level: str, options: dict) -> None:
    expected = passes(half_stack(level, casts=False, **options))
    found = passes(half_stack(level, **options))
    assert same(found, expected) and found[1].dtype == torch.float32


def test_a_block_has_one_cast_forward_and_one_backward() -> None:
    stack = half_stack(count=1, dropout=0.0)
    block, x_BSD = stack.model[0], torch.ones(1, 4, 32, dtype=HALF)
    with Kernels() as kernels:
        (y_BSD,) = stack.run(block, x_BSD)
        forward, kernels.calls = kernels.calls, Counter()
        y_BSD.backward(torch.ones_like(y_BSD))
    assert forward["_foreach_copy_"] == kernels.calls["_foreach_copy_"] == 1
    assert (
        not forward["_to_copy"] and not kernels.calls["_to_copy"] and not forward["cat"]
    )


def test_nothing_of_it_stays_after_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor after one that failed."""
    stack = half_stack(count=1, dropout=0.0)
    block, x_BSD = stack.model[0], torch.ones(1, 4, 32, dtype=HALF)

    def there() -> list[Tensor]:
        owners = [
            owner
            for layer in stack.network.layers.values()
            for owner in (layer, layer.fused_group)
            if owner
        ]
        casts = [
            getattr(owner, name, None)
            for owner in owners
            for name in ("cast_down", "cast_up")
        ]
        return [cast for cast in casts if cast is not None]

    seen = []
    block.down.register_forward_hook(lambda *_: seen.append(len(there())))
    stack.run(block, x_BSD)
    # ups, downs alone, and the group's as each of its layers sees it
    assert seen == [6 + 3 + 3] and not there()
    monkeypatch.setattr(block.down, "forward", lambda x: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stack.run(block, x_BSD)
    assert not there()


def test_inputs_of_another_dtype_have_the_parameters_own_precision() -> None:
    """A layer in a half-precision block that computes in float32."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4).to(HALF), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).float())

    def output(casts: bool) -> Tensor:
        torch.manual_seed(1)
        model = Mixed()
        network = LoraNetwork(["first", "second"], 2, 2.0, 0.0, seed=1)
        network.attach(model)
        for parameter in network.parameters().values():
            parameter.data.normal_()
        if casts:
            network.cast_by_block([model])
        return call_block(model, torch.ones(2, 4, dtype=HALF))

    assert torch.equal(output(True), output(False))


def test_float32_and_a_network_that_is_off_cast_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    casts: list[object] = []
    monkeypatch.setattr(lora._CastTogether, "apply", lambda *given: casts.append(given))
    Stack(count=1).output()
    stack = half_stack(count=1)
    with stack.network.disabled():
        stack.run(stack.model[0], torch.ones(1, 4, 32, dtype=HALF))
    assert not casts
