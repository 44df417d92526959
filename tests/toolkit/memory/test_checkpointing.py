"""Every level computes the same bits as keeping everything, and keeps what it says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.diffusers_reference import open_tiny
from tests.toolkit.memory.test_offload_activations import WrittenDown
from tests.toolkit.memory.toy_blocks import WIDTH, Stack, same
from toolkit.config.reading.field_types import CHECKPOINTING_LEVELS
from toolkit.contracts.data import PromptEmbeds
from toolkit.memory.checkpointing import checkpoint_wrapper
from toolkit.memory.offload import AttentionOffload, BlockSwap
from toolkit.memory.quantization import frozen_product, quantizer
from toolkit.networks.lora import DoraNetwork, LoraNetwork
from toolkit.networks.lycoris import LohaNetwork

LEVELS = CHECKPOINTING_LEVELS[:-1]
"""`block_offload` has a wrapper of its own."""

ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
MATMULS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, frozen_product)


class Counted(TorchDispatchMode):
    """How often each operation is really computed."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[func] += 1
        return func(*args, **(kwargs or {}))


def computed(level: str, **options) -> Counter:
    """Operations of a step on one block: forward, backward, and what is done again."""
    stack = Stack(count=2, dropout=0.0, **options).wrap(
        checkpoint_wrapper(level, WIDTH)
    )
    with Counted() as counted:
        stack.gradients()
    return counted.calls


@pytest.mark.parametrize(
    ("kind", "qtype"),
    [(LoraNetwork, "int8"), (LohaNetwork, None), (DoraNetwork, "int8")],
)
def test_each_level_gives_the_same_bits_with_dropout(kind, qtype) -> None:
    options = {"count": 2, "kind": kind, "qtype": qtype}
    expected = Stack(**options).gradients()
    for level in LEVELS:
        assert same(
            Stack(**options).wrap(checkpoint_wrapper(level, WIDTH)).gradients(),
            expected,
        ), level


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "levels"),
    [(False, ("none", "full")), (True, LEVELS)],
    ids=["", "table"],
)
def test_each_level_gives_the_same_bits_on_a_real_model(
    tiny_model: Path, table: bool, levels: tuple[str, ...]
) -> None:
    found = []
    for level in levels:
        model = open_tiny(
            tiny_model, transform_block=quantizer("int8"), modulation_table=table
        )
        network = LoraNetwork(model.lora_targets(), 4, 4.0, dropout=0.1, seed=1)
        network.attach(model.network_module)
        network.fuse_projections(model.fused_projection_groups())
        random = torch.Generator().manual_seed(2)
        for parameter in network.parameters().values():
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=random)
        assert model.enable_modulation_cache(BlockSwap) is None
        copies = WrittenDown()
        offload = AttentionOffload(copies, is_elsewhere=lambda tensor: True)
        model.wrap_blocks(
            [
                checkpoint_wrapper(level, model.hidden_size),
                *([offload] if level == "offload_attention" else []),
            ]
        )
        torch.manual_seed(0)
        width = model.network_module.config.joint_attention_dim
        # two groups: two passes
        texts = [torch.randn((tokens, width), generator=random) for tokens in (7, 9)]
        x_t_BCHW = torch.randn((2, 16, 8, 12), generator=random)
        velocity = model.predict_velocity(
            x_t_BCHW, torch.tensor([0.8, 0.3]), PromptEmbeds.stack(texts), [(), ()]
        )
        velocity.square().mean().backward()
        # an output and the logarithms of its sums, of each block in both passes
        waited = 2 * 2 * len(model.blocks()) if level == "offload_attention" else 0
        assert len(copies.hosts) == waited
        found.append(
            [
                velocity.detach(),
                *(p.grad for p in network.parameters().values() if p.grad is not None),
            ]
        )
    assert all(same(other, found[0]) for other in found[1:])


@pytest.mark.parametrize("qtype", [None, "int8"])
def test_what_a_level_keeps_is_not_computed_again(qtype) -> None:
    calls = {level: computed(level, qtype=qtype) for level in LEVELS}
    assert [calls[level][ATTENTION] for level in LEVELS] == [2, 2, 2, 2, 4, 4]
    gelus = [calls[level][torch.ops.aten.gelu.default] for level in LEVELS]
    assert gelus == [2, 4, 4, 4, 4, 4]
    matmuls = {level: sum(calls[level][op] for op in MATMULS) for level in LEVELS}
    assert (
        matmuls["none"]
        < matmuls["cheap"]
        < matmuls["keep_attention"]
        == matmuls["offload_attention"]
        <= matmuls["full"]
    )
    # Of the products only an adapter's way up, which sums over its rank, is made again.
    assert matmuls["cheap"] - matmuls["none"] <= 2 * 6
    if qtype:
        assert (
            calls["cheap"][frozen_product]
            == calls["none"][frozen_product]
            < calls["full"][frozen_product]
        )


def test_products_of_weights_are_not_kept() -> None:
    """LoHa's change of a weight is as large as the weight: `cheap` must not keep one
    for each layer."""
    kept = [op for op in _kept_by_cheap(LohaNetwork) if op[0] == torch.Size([32, 32])]
    assert kept == []


def _kept_by_cheap(kind) -> list[tuple[torch.Size, object]]:
    from torch.utils.checkpoint import CheckpointPolicy

    from toolkit.memory import checkpointing

    kept = []
    policy = checkpointing._keeps_costly

    def spying(tokens, fewest, ctx, op, *args, **kwargs):
        chosen = policy(tokens, fewest, ctx, op, *args, **kwargs)
        if chosen is CheckpointPolicy.MUST_SAVE:
            output = op(*args, **kwargs)
            if isinstance(output, torch.Tensor):
                kept.append((output.shape, op))
        return chosen

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpointing, "_keeps_costly", spying)
        Stack(count=1, kind=kind, rank=16).wrap(
            checkpoint_wrapper("cheap", WIDTH)
        ).gradients()
    assert kept
    return kept


@pytest.mark.parametrize("level", LEVELS)
def test_without_gradients_nothing_is_wrapped(level: str) -> None:
    stack = Stack(dropout=0.0)
    with torch.no_grad():
        expected = stack.output()
        assert torch.equal(
            stack.wrap(checkpoint_wrapper(level, WIDTH)).output(), expected
        )
