"""How many kernels a micro-step of the published model launches: `python
benchmarks/bench_kernels.py`, no GPU.

The program itself loads the model and runs it forward and backward, uncompiled, on fake
tensors (`simulation.py`). Each operation that makes or changes numbers counts as one
kernel; views, and memory that is only taken, count as none. Two and three blocks are
counted, and the third stands for all others, as the last one is not checkpointed. The
optimizer's step is not in it.

`--compiled ROW` counts instead what inductor generates for a compiled block on a GPU,
for each family. The model is tiny, because kernels depend on the operations and not on
the sizes, and runs on the stand-in for CUDA (`tests/stand_in_cuda`). This requires
Triton and a C++ compiler, and takes minutes.
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
from PIL import Image  # noqa: E402
from torch._subclasses import FakeTensorMode  # noqa: E402

from benchmarks import report  # noqa: E402
from benchmarks.live_bytes import Kernels, LiveBytes  # noqa: E402
from benchmarks.published import Row, section  # noqa: E402
from benchmarks.random_weights import DRAWN_SIZES, write_folder  # noqa: E402
from benchmarks.simulation import DEVICE, FOLLOWED, as_on_a_device, batch_of, load_model  # noqa: E402
from benchmarks.synthetic import SEED, SIZES, ModelSize  # noqa: E402
from extensions.sd_trainer.setup import attach_network, build_block_runner  # noqa: E402
from tests.stand_in_cuda import built, install  # noqa: E402
from tests.stand_in_cuda.inductor import install_compiler  # noqa: E402
from toolkit.config.sections.train import CompileConfig  # noqa: E402
from toolkit.contracts.data import PromptEmbeds, Size  # noqa: E402
from toolkit.memory.block_runner import BlockRunner  # noqa: E402
from toolkit.memory.quantization import quantizer  # noqa: E402
from toolkit.models.families import ModelLoadOptions  # noqa: E402
from toolkit.models.tiny import TinySpec, write_tiny_model  # noqa: E402
from toolkit.number_types import TYPES_OF_PRODUCTS  # noqa: E402
from toolkit.registry import FAMILIES  # noqa: E402
from toolkit.system.device import DTYPES  # noqa: E402

BLOCKS = 60
ROWS = {
    "bf16": {"modulation_table": False},
    **{
        qtype: {"quantize": True, "qtype": qtype, "modulation_table": False}
        for qtype in ("int8", "int4", "uint3", "fp8_scaled")
    },
    **{
        f"{kind} products": {
            "quantize": True,
            "qtype": qtype,
            "modulation_table": False,
            "quantized_products": kind,
        }
        for kind, qtype in TYPES_OF_PRODUCTS.items()
    },
}
LEVELS = ("none", "cheap", "full")
BELOW = replace(SIZES["XS"], heads=4, head_dim=64, layers=2, rope_axes=(16, 24, 24))
"""For tests: wide enough for every type's groups."""
SPECS = {
    "Qwen-Image-Edit-2509": TinySpec(),
    "Qwen-Image-Edit-2511": TinySpec(zero_cond_t=True),
    "Qwen-Image": TinySpec(arch="qwen_image"),
    "Qwen-Image-Layered": TinySpec(arch="qwen_image_layered"),
    "Qwen-Image-2.1": TinySpec(arch="qwen_image_2"),
}


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


def run_compiled(spec: TinySpec, row: str) -> None:
    """A micro-step of a tiny model with compiled blocks, forward and backward, on the
    device named cuda that `install_compiler` has prepared."""
    torch._dynamo.reset()
    keys: Any = ROWS[row]
    quantizing = keys.get("quantize") and quantizer(
        keys["qtype"], products=keys.get("quantized_products")
    )
    device = torch.device("cuda:0")
    with TemporaryDirectory() as folder:
        write_tiny_model(Path(folder), spec)
        family = FAMILIES.load(spec.arch).of_folder(Path(folder))
        model = family.open(
            ModelLoadOptions(
                folder=Path(folder),
                device=device,
                dtype=torch.bfloat16,
                transform_block=quantizing,
            )
        )
        attach_network(section(Path(folder), Row(), BELOW), model, SEED, None)
        settings = CompileConfig(enabled=True, fullgraph=True)
        BlockRunner(model, device, torch.bfloat16, "full", compile_settings=settings)
        size = Size(64, 64)
        has_reference = family.max_references > 0
        prompt = model.encode_prompt(
            "a cat on a mat", [Image.new("RGB", size)] * has_reference
        )
        width, height = family.latent_size(size)
        latents_BCHW = torch.randn(1, family.latent_channels, height, width)
        velocity = model.predict_velocity(
            latents_BCHW,
            torch.tensor([0.5]),
            PromptEmbeds.stack([prompt]),
            [[latents_BCHW[0]] * has_reference],
        )
        velocity.square().mean().backward()


LAUNCH = re.compile(
    r"triton_(\w+)\.run\(|extern_kernels\.(\w+)\(|torch\.ops\.\w+\.([\w.]+)\("
)
CAST = re.compile(r"poi_fused__to_copy_\d+|for_fused_\d+")
VIEWS = ("view_as_real.default", "view_as_complex.default")


def launched(program: str) -> Counter[str]:
    """What a program launches: inductor's kernels that only cast, all its others, and
    the operations of PyTorch by name."""
    calls = LAUNCH.findall(program[program.rindex("def call(") :])
    return Counter(
        product or operation or ("casts" if CAST.fullmatch(kernel) else "of inductor")
        for kernel, product, operation in calls
        if operation not in VIEWS
    )


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument(
        "--compiled",
        metavar="ROW",
        choices=ROWS,
        help="what inductor makes of such a block for a GPU",
    )
    parser.add_argument("--models", nargs="+", choices=SPECS, default=list(SPECS))
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    if asked.compiled:
        report.card(
            "kernels", f"one compiled block, {asked.compiled}, LoRA on all layers"
        )
        install(built())
        programs = install_compiler()
        found = {}
        for name in asked.models:
            programs.clear()
            run_compiled(SPECS[name], asked.compiled)
            found[name] = [launched(program) for program in programs]
            for counted in found[name]:
                print(f"{name:<22} {counted.total():>5} {dict(counted)}")
        report.finish("kernels", qtype=asked.compiled, compiled=found)
        return
    report.card(
        "kernels",
        f"fake tensors, {BLOCKS} blocks, LoRA on all layers, one reference, uncompiled",
    )
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
