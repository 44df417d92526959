"""How many kernels a micro-step of the published model launches: `python
benchmarks/bench_kernels.py`, no GPU.

The program itself loads the model and runs it forward and backward, uncompiled, on fake
tensors (`simulation.py`). Each operation that makes or changes numbers counts as one
kernel; views, and memory that is only taken, count as none. Two and three blocks are
counted, and the third stands for all others, as the last one is not checkpointed. The
optimizer's step is not in it.

`--compiled QTYPE` counts what inductor makes of such a block instead: a narrow one,
compiled for this CPU, since kernels depend on the operations and not on the sizes. For
a GPU inductor fuses about as much. Takes minutes.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch._inductor.utils import run_and_get_code  # noqa: E402
from torch._subclasses import FakeTensorMode  # noqa: E402

from benchmarks import report  # noqa: E402
from benchmarks.bench_published import Row, section  # noqa: E402
from benchmarks.live_bytes import Kernels, LiveBytes  # noqa: E402
from benchmarks.random_weights import DRAWN_SIZES, write_folder  # noqa: E402
from benchmarks.simulation import DEVICE, FOLLOWED, as_on_a_device, batch_of, load_model  # noqa: E402
from benchmarks.synthetic import SEED, SIZES, EncoderlessModel, ModelSize, write_model  # noqa: E402
from extensions.sd_trainer.setup import attach_network, build_block_runner  # noqa: E402
from toolkit.config.sections.train import CompileConfig  # noqa: E402
from toolkit.memory.block_runner import BlockRunner  # noqa: E402
from toolkit.memory.quantization import quantizer  # noqa: E402
from toolkit.models.families import ModelLoadOptions  # noqa: E402
from toolkit.system.device import DTYPES  # noqa: E402

BLOCKS = 60
ROWS = {
    "bf16": {"modulation_table": False},
    **{
        qtype: {"quantize": True, "qtype": qtype, "modulation_table": False}
        for qtype in ("int8", "int4", "uint3", "fp8_scaled")
    },
}
LEVELS = ("none", "cheap", "full")
BELOW = replace(SIZES["XS"], heads=4, head_dim=64, layers=2, rope_axes=(16, 24, 24))
"""For inductor: wide enough for every type's groups."""


def of_micro_step(row: Row, size: ModelSize) -> tuple[Counter[str], Counter[str]]:
    """The kernels of a forward and of a backward pass, with gradients there already."""
    with TemporaryDirectory() as folder:
        write_folder(Path(folder), size)
        job = section(Path(folder), row, size)
        with (
            as_on_a_device(LiveBytes()),
            FakeTensorMode(allow_non_fake_inputs=True),
            Kernels(FOLLOWED) as kernels,
        ):
            model = load_model(job, size)
            attach_network(job, model, SEED, None)
            build_block_runner(job, model, DEVICE)
            batch = batch_of(size, row.references, DTYPES[job.train.dtype])
            for _ in range(2):
                kernels.calls = Counter()
                velocity = model.predict_velocity(
                    batch.latents_BCHW,
                    torch.tensor([0.5]),
                    batch.prompts,
                    batch.control_latents,
                )
                forward, kernels.calls = kernels.calls, Counter()
                velocity.square().mean().backward()
    return forward, kernels.calls


def of_all_blocks(row: Row, size: ModelSize) -> dict[str, Any]:
    """Kernels of the whole model in a micro-step, and of one of its blocks, by
    operation."""
    fewer, more = (
        of_micro_step(row, replace(size, layers=layers)) for layers in (2, 3)
    )
    block = [after - before for before, after in zip(fewer, more, strict=True)]
    own = [sum(calls.values()) for calls in block]
    total = sum(calls.total() for calls in more) + (BLOCKS - 3) * sum(own)
    return {
        "total": total,
        "forward": own[0],
        "backward": own[1],
        "operations": dict((block[0] + block[1]).most_common()),
    }


def compiled(qtype: str, level: str = "full") -> list[dict[str, int]]:
    """What each program of inductor launches: its own kernels, and the others' by
    name."""
    with TemporaryDirectory() as folder:
        write_model(Path(folder), BELOW)
        transform = quantizer(qtype) if qtype != "bf16" else None
        options = ModelLoadOptions(
            folder=Path(folder),
            device=DEVICE,
            dtype=torch.bfloat16,
            transform_block=transform,
        )
        model, batch = (
            EncoderlessModel(options, BELOW),
            batch_of(BELOW, 1, torch.bfloat16),
        )
        attach_network(section(Path(folder), Row(), BELOW), model, SEED, None)
        BlockRunner(
            model,
            DEVICE,
            torch.bfloat16,
            level,
            compile_settings=CompileConfig(enabled=True, fullgraph=True),
        )

        def step() -> None:
            velocity = model.predict_velocity(
                torch.ones_like(batch.latents_BCHW),
                torch.tensor([0.5]),
                batch.prompts,
                batch.control_latents,
            )
            velocity.square().mean().backward()

        _, programs = run_and_get_code(step)
    launches = re.compile(r"(cpp_fused|extern_kernels\.\w+|torch\.ops\.[\w.]+)\w*\(")
    return [
        dict(Counter(launches.findall(code[code.index("def call(") :])).most_common())
        for code in programs
    ]


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument(
        "--compiled",
        metavar="QTYPE",
        choices=ROWS,
        help="what inductor makes of such a block",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    report.card(
        "kernels",
        f"fake tensors, {BLOCKS} blocks, LoRA on all layers, one reference, uncompiled",
    )
    if asked.compiled:
        programs = compiled(asked.compiled)
        for program in programs:
            print(f"{sum(program.values()):>6} {program}")
        report.finish("kernels", compiled={asked.compiled: programs})
        return
    print(
        f"{'':<12} {'checkpointing':<14} {'a micro-step':>12} {'block forward':>14} {'backward':>9}"
    )
    found = {}
    for name in asked.rows:
        for level in LEVELS:
            counted = found[f"{name}, {level}"] = of_all_blocks(
                Row(ROWS[name], level), DRAWN_SIZES["published"]
            )
            print(
                f"{name:<12} {level:<14} {counted['total']:>12,} {counted['forward']:>14} {counted['backward']:>9}"
            )
    report.finish("kernels", rows=found)


if __name__ == "__main__":
    main()
