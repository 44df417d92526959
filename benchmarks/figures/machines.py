"""What a step takes on 8, 64 and 512 H100, by arithmetic: `python
benchmarks/figures/machines.py`, no GPU. With `--write docs/multi_gpu.md` the table
takes its place there.

Computing is `benchmarks/flops.py`; the network is what its makers publish, of which
NCCL reaches less. Each GPU computes one micro-batch per step, so a step covers as many
of them as there are GPUs. Not counted: the latency of an exchange, reading data, saves,
samples.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks import report  # noqa: E402
from benchmarks.flops import of_forward  # noqa: E402
from toolkit.memory.flops import EFFICIENCY, WEIGHTS_PER_TOKEN  # noqa: E402
from toolkit.plan.cards import asked_card  # noqa: E402

GPUS = (8, 64, 512)
PER_MACHINE = 8
NVLINK = 450e9
"""Bytes per second that an H100 (SXM) receives over NVLink: half of the 900 GB/s of
NVIDIA's data sheet."""

NETWORKS = {"8 x 400 Gbit/s": 400e9, "100 Gbit/s": 12.5e9}
"""Of a machine: a DGX H100 by its data sheet, and what is commonly rented -> bytes per
second that it receives."""

REACHED = EFFICIENCY * 1e12 * asked_card("H100").bf16_tflops
"""Operations per second that training is expected to reach."""

MARKERS = "<!-- machines -->", "<!-- end of machines -->"
RANK = 16


@dataclass(frozen=True)
class Row:
    """A kind of training."""

    name: str
    width: int
    blocks: int
    per_token: int
    """Weights of a block that a token goes through, in units of width^2."""

    weights: float
    """Of all blocks."""

    tokens: int
    adapter: int = 0
    """Weights of a LoRA of rank 16; 0: the model itself is trained."""

    images: int = 1
    """Per micro-batch."""

    sharded: bool = False

    @property
    def compute_s(self) -> float:
        """Of one micro-batch."""
        work = of_forward(self.tokens, self.width, self.blocks, self.adapter)
        work = replace(work, linear=work.linear * self.per_token / WEIGHTS_PER_TOKEN)
        return (
            self.images * work.executed("full", trains_model=not self.adapter) / REACHED
        )

    @property
    def exchanged(self) -> float:
        """Bytes that a member of a very large group receives per step."""
        if self.sharded:  # the bf16 weights twice, their float32 gradients once
            return (2 * 2 + 4) * self.weights
        # a ring passes float32 gradients around twice
        return 2 * 4 * (self.adapter or self.weights)

    def received(self, gpus: int) -> float:
        """Bytes that each GPU receives per step."""
        return self.exchanged * (gpus - 1) / gpus

    def exchange_s(self, gpus: int, network: float) -> float:
        """Of all exchanges of a step: within a machine or between machines, whichever
        is slower."""
        machines = gpus // PER_MACHINE
        return max(
            self.received(gpus) / NVLINK,
            self.exchanged * (machines - 1) / machines / network,
        )

    def step_s(self, gpus: int, network: float) -> float:
        """With `fsdp` exchanges can hide behind computing; with ddp they come after
        it."""
        compute, exchange = self.compute_s, self.exchange_s(gpus, network)
        return max(compute, exchange) if self.sharded else compute + exchange


IMAGE, TEXT = 4096, 256
"""Tokens of 1024x1024, and of a caption."""

ROWS = [
    Row(
        "LoRA of 2.1, ddp",
        4096,
        32,
        13,
        32 * 13 * 4096**2,
        IMAGE + TEXT,
        adapter=RANK * 20 * 4096 * 32,
    ),
    Row(
        "LoRA of 2509, one reference, ddp",
        3072,
        60,
        12,
        20.39e9,
        2 * IMAGE + TEXT,
        adapter=RANK * 36 * 3072 * 60,
    ),
    Row(
        "2.1 itself, fsdp", 4096, 32, 13, 32 * 13 * 4096**2, IMAGE + TEXT, sharded=True
    ),
    Row(
        "2509 itself, one reference, fsdp",
        3072,
        60,
        12,
        20.39e9,
        2 * IMAGE + TEXT,
        sharded=True,
    ),
    Row(
        "flow model of 1 B, 512x512, 8 images, ddp",
        1536,
        36,
        12,
        36 * 12 * 1536**2,
        1024 + 77,
        images=8,
    ),
]


def table() -> list[str]:
    """Lines of Markdown."""
    networks = " | ".join(f"{name}: step, of it computing" for name in NETWORKS)
    lines = [
        f"| trained | GPUs | received per GPU | {networks} |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in ROWS:
        for gpus in GPUS:
            steps = [row.step_s(gpus, network) for network in NETWORKS.values()]
            cells = [f"{step:.2f} s, {row.compute_s / step:.0%}" for step in steps]
            lines.append(
                f"| {row.name} | {gpus} | {row.received(gpus) / 1e9:.2f} GB | {' | '.join(cells)} |"
            )
    return lines


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--write", type=Path, help="the document whose table is replaced"
    )
    return parser.parse_args(argv)


def main() -> None:
    path = arguments(sys.argv[1:]).write
    lines = table()
    if path:
        begin, end = MARKERS
        text = path.read_text(encoding="utf-8")
        made = "\n".join([begin, *lines, end])
        path.write_text(
            re.sub(f"{begin}.*?{end}", lambda _: made, text, flags=re.DOTALL),
            encoding="utf-8",
        )
    report.card("machines", "seconds and bytes per step on many H100, by arithmetic")
    print("\n".join(lines))
    report.finish("machines", compute_s={row.name: row.compute_s for row in ROWS})


if __name__ == "__main__":
    main()
