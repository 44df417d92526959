"""A small stack of blocks with adapters, run as an adapter runs its own: what the tests
of the engine share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._inductor import cpu_vec_isa
from torch._inductor.async_compile import AsyncCompile

from toolkit.contracts.model import BlockForward, BlockWrapper, project
from toolkit.memory.quantization import quantizer
from toolkit.models.folder_model import call_block
from toolkit.networks.adapter import LinearAdapterNetwork
from toolkit.networks.lora import LoraNetwork

WIDTH, TOKENS = 32, 20
CPU = torch.device("cpu")


class Block(nn.Module):
    """A transformer block on one stream [B, S, D]."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x_BSD: Tensor) -> Tensor:
        heads = [
            x.unflatten(-1, (2, -1)).transpose(1, 2)
            for x in project([self.q, self.k, self.v], x_BSD)
        ]
        seen = (
            nn.functional.scaled_dot_product_attention(*heads)
            .transpose(1, 2)
            .flatten(-2)
        )
        x_BSD = x_BSD + self.out(seen)
        return x_BSD + self.down(
            nn.functional.gelu(self.up(nn.functional.layer_norm(x_BSD, (WIDTH,))))
        )


class Stack:
    """Blocks with a network that has learned something, and its training step."""

    def __init__(
        self,
        count: int = 5,
        kind: type[LinearAdapterNetwork] = LoraNetwork,
        qtype: str | None = None,
        dropout: float = 0.1,
        rank: int = 4,
        device: torch.device = CPU,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """dtype: of the blocks; the network is in float32."""
        self.device = device
        self.dtype = dtype
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = nn.ModuleList(Block() for _ in range(count)).requires_grad_(
                False
            )
        for index, block in enumerate(self.model if qtype else ()):
            quantizer(qtype)(block, str(index))
        self.model.to(device, dtype)
        targets = [
            f"{index}.{layer}"
            for index in range(count)
            for layer in ("q", "k", "v", "out", "up", "down")
        ]
        self.network = kind(targets, rank, 4.0, dropout, seed=1)
        self.network.attach(self.model)
        self.network.fuse_projections(
            [[f"{index}.{layer}" for layer in "qkv"] for index in range(count)]
        )
        self.network.cast_by_block(self.model)
        random = torch.Generator().manual_seed(2)
        for parameter in self.network.parameters().values():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=random).to(
                device
            )
        self.run: BlockForward = plain

    def blocks(self, *indices: int) -> Sequence[nn.Module]:
        return [self.model[index] for index in indices]

    def wrap(self, *wrappers: BlockWrapper) -> Stack:
        """Innermost first."""
        self.run = self.wrapped(self.run, *wrappers)
        return self

    @staticmethod
    def wrapped(run: BlockForward, *wrappers: BlockWrapper) -> BlockForward:
        for wrapper in wrappers:
            run = wrapper(run)
        return run

    def output(self, tokens: int = TOKENS) -> Tensor:
        x_BSD = torch.randn(
            (2, tokens, WIDTH), generator=torch.Generator().manual_seed(3)
        ).to(self.device, self.dtype)
        for block in self.model:
            (x_BSD,) = self.run(block, x_BSD)
        return x_BSD

    def gradients(self, steps: int = 1, tokens: int = TOKENS) -> list[Tensor]:
        """The output of the last step and what all steps added to the gradients."""
        with torch.random.fork_rng():
            torch.manual_seed(4)
            for _ in range(steps):
                output_BSD = self.output(tokens)
                output_BSD.square().sum().backward()
        return [output_BSD.detach(), *self.learned()]

    def learned(self) -> list[Tensor]:
        """The gradients so far."""
        return [p.grad for p in self.network.parameters().values()]


def plain(block: nn.Module, x_BSD: Tensor) -> tuple[Tensor]:
    return (call_block(block, x_BSD),)


def same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@contextmanager
def no_kernels() -> Iterator[None]:
    """Inductor lowers programs, counts and caches them, and leaves out the C++
    compiler, which takes a second for each kernel: what a program returns is
    anything."""

    def kernel(*_: object) -> None:
        pass

    # else it tries which instructions the compiler knows
    with (
        patch.object(AsyncCompile, "cpp_pybinding", lambda *_: kernel),
        patch.object(cpu_vec_isa, "valid_vec_isa_list", list),
    ):
        yield
