"""What happens around the steps, against the same work written plainly: `python
benchmarks/bench_around.py`.

The plain variants are diffusers' own pipeline, optimum-quanto, and loops of torch and
safetensors that do what the formula says and no more: they check nothing, and a write
that is interrupted leaves half a file. Each part runs in two sizes, the second with four
times the work; variants take turns. Only CPU seconds of all threads count.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from benchmarks import report, timing  # noqa: E402
from jobs import ExtensionJob  # noqa: E402
from toolkit.config.reading.tool import load_tool  # noqa: E402
from toolkit.extension import discover as discover_anew  # noqa: E402
from toolkit.memory.quantization import quantizer  # noqa: E402

discover = cache(discover_anew)

GROWTH = 4
"""How much more work the second size of a part is."""

SEED = 7

Variants = Mapping[str, Callable[[], object]]
"""Name -> a call of the work; "ours" and mostly "plain"."""


@dataclass(frozen=True)
class Part:
    """One kind of work."""

    make: Callable[[Path, int], Variants]
    """Of an empty folder and a size."""

    size: int
    """The smaller one."""

    small: int
    """That of the tests."""

    unit: str


# ------------------------------------------------------------ tools


def tool(uid: str, *flags: object) -> None:
    """The work of a command, without its imports."""
    table = discover()
    job = load_tool(uid, table.find_command(uid), [*map(str, flags)])
    ExtensionJob(job, table).process[0].run()


def quantizing(qtype: str) -> Callable[[Path, int], Variants]:
    def make(folder: Path, size: int) -> Variants:
        from optimum.quanto import freeze, qtypes, quantize

        torch.manual_seed(SEED)
        weight = nn.Parameter(torch.randn(4 * size, 768).bfloat16())

        def block() -> nn.Module:
            linear = nn.Linear(*reversed(weight.shape), bias=False, device="meta")
            linear.weight = weight
            return nn.Sequential(linear)

        def plain() -> None:
            one = block()
            quantize(one, weights=qtypes[f"q{qtype}"])
            freeze(one)

        return {"ours": lambda: quantizer(qtype)(block(), "block"), "plain": plain}

    return make


def converting(folder: Path, size: int) -> Variants:
    names = write_lora(folder / "lora.safetensors", size)
    numbers = count()

    def plain() -> None:
        file = load_file(folder / "lora.safetensors")
        tensors: dict[str, Tensor] = {}
        for name in names:
            stem = f"lora_unet_{name.replace('.', '_')}"
            down = file[f"transformer.{name}.lora_A.weight"]
            tensors[f"{stem}.lora_down.weight"] = down
            tensors[f"{stem}.lora_up.weight"] = file[f"transformer.{name}.lora_B.weight"]
            tensors[f"{stem}.alpha"] = torch.tensor(float(len(down)))
        save_file(tensors, folder / f"plain_{next(numbers)}.safetensors")

    def ours() -> None:
        output = folder / f"ours_{next(numbers)}.safetensors"
        tool("convert", folder / "lora.safetensors", output, "--to", "kohya")

    return {"ours": ours, "plain": plain}


def write_lora(file: Path, blocks: int, width: int = 512, rank: int = 16) -> list[str]:
    """A LoRA of the attention of so many blocks, as diffusers writes it. Returns its
    layers."""
    names = [
        f"transformer_blocks.{block}.attn.{layer}"
        for block in range(blocks)
        for layer in ("to_q", "to_k", "to_v", "to_out.0")
    ]
    torch.manual_seed(SEED)
    tensors = {
        f"transformer.{name}.lora_{end}.weight": torch.randn(shape).bfloat16() / width
        for name in names
        for end, shape in (("A", (rank, width)), ("B", (width, rank)))
    }
    save_file(tensors, file)
    return names


PARTS = {
    "int8": Part(quantizing("int8"), 768, 16, "rows of a weight"),
    "int4": Part(quantizing("int4"), 768, 16, "rows of a weight"),
    "convert": Part(converting, 15, 1, "blocks"),
}


# ------------------------------------------------------------ the report


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    timing.one_thread()
    report.card("around", "CPU seconds, one thread for torch")
    rows = {}
    print(f"{'':<10} {'size':>22} {'ours':>10} {'plain':>10}  ratio (pairs)  growth")
    for name in asked.parts or PARTS:
        rows[name] = measured(PARTS[name], asked)
        print(line(name, rows[name]), flush=True)
    report.finish("around", **vars(asked), rows=rows)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--parts", nargs="*", choices=PARTS, help="default: all")
    add("--rounds", type=int, default=7, help="timed calls of each variant and size")
    add("--small", action="store_true", help="sizes of the tests: nothing but overhead")
    return parser.parse_args(argv)


def measured(part: Part, asked: argparse.Namespace) -> dict[str, Any]:
    """The figures of a part: milliseconds of the larger size, the ratio of the minima,
    the median of the ratios of pairs, and the growth for `GROWTH` times the work as a
    share of that."""
    first = part.small if asked.small else part.size
    ours: list[float] = []
    for size in (first, GROWTH * first):
        with TemporaryDirectory() as folder:
            variants = part.make(Path(folder), size)
            times = timing.interleave(variants, 1, asked.rounds, noisy=True).times
        cpu = {name: one.cpu for name, one in times.items()}
        ours.append(min(cpu["ours"]))
    figures: dict[str, Any] = {
        "size": f"{size} {part.unit}",
        "ms": {name: 1e3 * min(seconds) for name, seconds in cpu.items()},
        "growth": ours[1] / ours[0] / GROWTH,
    }
    if "plain" in cpu:
        pairs = zip(cpu["ours"], cpu["plain"], strict=True)
        figures["ratio"] = min(cpu["ours"]) / min(cpu["plain"])
        figures["ratio_of_pairs"] = median(a / b for a, b in pairs)
    return figures


def line(name: str, row: Mapping[str, Any]) -> str:
    ms = row["ms"]
    plain = f"{ms['plain']:10.1f}" if "plain" in ms else f"{'-':>10}"
    ratio = (
        f"{row['ratio']:5.2f} ({row['ratio_of_pairs']:.2f})" if "plain" in ms else "-"
    )
    return (
        f"{name:<10} {row['size']:>22} {ms['ours']:10.1f} {plain}  {ratio:<13}"
        f"  {row['growth']:.2f}"
    )


if __name__ == "__main__":
    main()
