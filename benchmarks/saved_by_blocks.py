"""What a compiled block keeps for its backward pass: `python
benchmarks/saved_by_blocks.py`, no GPU.

Blocks are traced and divided into a forward and a backward program as inductor does it,
and no kernel is compiled. What the partitioner saves between the two is counted, for
each family, kind of network, format of the weights and level of checkpointing, in the
units of `toolkit.contracts.network_kinds.ActivationUnits`, beside what the plan counts.
The blocks are small: what is saved is proportional to tokens x width.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from functorch.compile import make_boxed_func  # noqa: E402
from PIL import Image  # noqa: E402
from torch import Tensor, fx  # noqa: E402
from torch._dynamo.backends.common import aot_autograd  # noqa: E402
from torch._inductor.compile_fx import partition_fn  # noqa: E402
from torch._inductor.decomposition import select_decomp_table  # noqa: E402

from benchmarks import report  # noqa: E402
from extensions.sd_trainer.config import SdTrainerConfig  # noqa: E402
from extensions.sd_trainer.setup import attach_network, build_block_runner  # noqa: E402
from toolkit.config.reading.field_types import AUTO_LEVELS  # noqa: E402
from toolkit.contracts.data import PromptEmbeds  # noqa: E402
from toolkit.contracts.model import DiffusionModel  # noqa: E402
from toolkit.contracts.network_kinds import KINDS  # noqa: E402
from toolkit.memory.quantization import quantizer  # noqa: E402
from toolkit.models.families import ModelLoadOptions, family_for  # noqa: E402
from toolkit.models.tiny import HEAD_DIM, TinySpec, write_tiny_model  # noqa: E402
from toolkit.plan.memory_inputs import count_trainable_params, step_shape  # noqa: E402
from toolkit.system.device import DTYPES  # noqa: E402
from toolkit.system.seeding import global_generator  # noqa: E402

BACKEND = "saved_by_blocks"
"""The name of the backend in `train.compile.backend`."""

DEVICE = torch.device("cpu")
HEADS = 8
WIDTH = HEADS * HEAD_DIM
FAMILIES = {
    "2509": TinySpec(heads=HEADS),
    "2511": TinySpec(heads=HEADS, zero_cond_t=True),
    "2.1": TinySpec(heads=HEADS, arch="qwen_image_2"),
}

SIDE = 32
"""Of the latents of target and reference."""


@dataclass(frozen=True)
class Saved:
    """What one program keeps, in bytes."""

    made: int
    """Of tensors that the block makes."""

    inputs: int
    """Of its inputs that other blocks made: the streams."""

    @property
    def total(self) -> int:
        return self.made + self.inputs


@contextmanager
def recording() -> Iterator[list[Saved]]:
    """Inside the block `BACKEND` is a backend; the list has what each program that it
    divides keeps."""
    found: list[Saved] = []

    def divide(
        joint: fx.GraphModule, inputs: Sequence[object], **kwargs: Any
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        forward, backward = partition_fn(joint, inputs, **kwargs)
        found.append(saved_between(forward, kwargs["num_fwd_outputs"]))
        return forward, backward

    def as_it_is(program: fx.GraphModule, inputs: Sequence[object]) -> Any:
        return make_boxed_func(program)

    backend = aot_autograd(
        fw_compiler=as_it_is,
        bw_compiler=as_it_is,
        partition_fn=divide,
        decompositions=select_decomp_table(),
    )
    registry = torch._dynamo.backends.registry
    registry._COMPILER_FNS[BACKEND], registry._BACKENDS[BACKEND] = backend, None
    torch._dynamo.reset()
    try:
        yield found
    finally:
        torch._dynamo.reset()
        del registry._COMPILER_FNS[BACKEND], registry._BACKENDS[BACKEND]


def saved_between(forward: fx.GraphModule, outputs: int) -> Saved:
    """What a forward program gives its backward program besides its own outputs, of
    which it has so many."""
    given = forward.graph.find_nodes(op="output")[0].args[0]
    saved = {
        node: node.meta["val"] for node in given[outputs:] if isinstance(node, fx.Node)
    }
    tensors = {
        node: value for node, value in saved.items() if isinstance(value, Tensor)
    }
    size = sum(
        _bytes(value) for node, value in tensors.items() if node.op != "placeholder"
    )
    streams = [
        value
        for node, value in tensors.items()
        if node.op == "placeholder" and value.dim() == 3
    ]
    return Saved(size, sum(map(_bytes, streams)))


def _bytes(tensor: Tensor) -> int:
    return prod(map(int, tensor.shape)) * tensor.element_size()


def job(
    folder: Path, level: str, kind: str = "lora", dtype: str = "bf16", qtype: str = ""
) -> SdTrainerConfig:
    model = {"quantize": True, "qtype": qtype} if qtype else {}
    return SdTrainerConfig.model_validate(
        {
            "type": "sd_trainer",
            "network": {
                "type": kind,
                "linear": 6 if KINDS[kind].library_class else 1,
                "linear_alpha": 1,
            },
            "datasets": [{"folder_path": "pictures"}],
            "train": {
                "gradient_checkpointing": level,
                "optimizer": "adamw",
                "dtype": dtype,
                "compile": {"enabled": True, "backend": BACKEND},
            },
            "model": {"name_or_path": str(folder), "modulation_table": False} | model,
        }
    )


def counted(section: SdTrainerConfig) -> tuple[int, int, int]:
    """Bytes that a block in the middle of the model keeps, as the partitioner and as
    the plan has it, and of a unit."""
    folder, level = (
        Path(section.model.name_or_path),
        section.train.checkpointing_level(),
    )
    with global_generator(1, BACKEND):
        model = model_of(section)
        x_BCHW = torch.randn(1, model.family.latent_channels, SIDE, SIDE)
        pictures = [Image.new("RGB", (64, 64))][: model.family.max_references]
        prompts = PromptEmbeds.stack(
            [model.encode_prompt("a photo of a cat", pictures)]
        )
    references = [[x_BCHW[0]][: len(pictures)]]
    attach_network(section, model, 1, None)
    with recording() as found:
        build_block_runner(section, model, DEVICE)
        model.predict_velocity(
            x_BCHW, torch.tensor([0.5]), prompts, references
        ).sum().backward()
    tokens = model.num_tokens(x_BCHW, prompts, references)
    facts = family_for(section.model).footprint(folder)
    shape = step_shape(
        section, facts, count_trainable_params(section), tokens, compiled=True
    )
    return (
        found[-1].total,
        shape.kept(level) // facts.blocks,
        tokens * facts.width * shape.number_bytes,
    )


def model_of(section: SdTrainerConfig) -> DiffusionModel:
    """The model of a section, as a run loads it."""
    model, folder = section.model, Path(section.model.name_or_path)
    options = ModelLoadOptions(
        folder,
        DEVICE,
        DTYPES[section.train.dtype],
        weights_dtype=DTYPES[section.weights_dtype()],
        transform_block=quantizer(model.qtype) if model.quantize else None,
    )
    return family_for(model).open(options)


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    report.card("saved_by_blocks", f"blocks of width {WIDTH}, of tiny models")
    print(f"{'':<40} {'saved':>9} {'plan':>8}   units of tokens x width")
    found = {}
    with TemporaryDirectory() as root:
        for family in asked.families:
            write_tiny_model(Path(root) / family, FAMILIES[family])
        for family, kind, qtype, level in product(
            asked.families, asked.kinds, asked.qtypes, asked.levels
        ):
            name = f"{family}, {kind}, {qtype or asked.dtype}, {level}"
            saved, plan, unit = counted(
                job(Path(root) / family, level, kind, asked.dtype, qtype)
            )
            print(f"{name:<40} {saved / unit:>9.2f} {plan / unit:>8.2f}", flush=True)
            found[name] = {"saved": saved, "planned": plan, "unit": unit}
    report.finish("saved_by_blocks", dtype=asked.dtype, blocks=found)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    add("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    add(
        "--qtypes",
        nargs="+",
        default=[""],
        help="of the weights; default: not quantized",
    )
    add("--levels", nargs="+", choices=AUTO_LEVELS, default=["none", "cheap"])
    add("--dtype", choices=["bf16", "fp32"], default="bf16")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
