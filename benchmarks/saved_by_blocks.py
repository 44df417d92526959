"""What a compiled block keeps for its backward pass, counted without a GPU.

Blocks are traced and divided into a forward and a backward program as inductor does it,
and no kernel is compiled. What the partitioner saves between the two is counted, beside
what the plan counts (`toolkit.contracts.network_kinds.ActivationUnits`). The blocks are
small: what is saved is proportional to tokens x width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch
from functorch.compile import make_boxed_func
from PIL import Image
from torch import Tensor, fx
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.compile_fx import partition_fn
from torch._inductor.decomposition import select_decomp_table

from extensions.sd_trainer.config import SdTrainerConfig
from extensions.sd_trainer.setup import attach_network, build_block_runner
from toolkit.contracts.data import PromptEmbeds
from toolkit.contracts.model import DiffusionModel
from toolkit.contracts.network_kinds import KINDS
from toolkit.models.families import family_for
from toolkit.plan.memory_inputs import count_trainable_params, step_shape
from toolkit.system.device import DTYPES
from toolkit.system.seeding import global_generator
from toolkit.train.base_model import load_base_model

BACKEND = "saved_by_blocks"
"""The name of the backend in `train.compile.backend`."""

DEVICE = torch.device("cpu")
SIDE = 32
"""Of the latents of target and reference."""


@contextmanager
def recording() -> Iterator[list[int]]:
    """Inside the block `BACKEND` is a backend; the list has the bytes that each program
    that it divides keeps."""
    found: list[int] = []

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


def saved_between(forward: fx.GraphModule, outputs: int) -> int:
    """Bytes that a forward program saves for its backward program, besides its own
    outputs, whose number is given: tensors that the block makes, and those of its
    inputs that other blocks made."""
    given = forward.graph.find_nodes(op="output")[0].args[0]
    saved = [
        (node.op == "placeholder", node.meta["val"])
        for node in {*given[outputs:]}
        if isinstance(node, fx.Node)
    ]
    return sum(
        _bytes(value)
        for is_input, value in saved
        if isinstance(value, Tensor) and (not is_input or value.dim() == 3)
    )


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
        found[-1],
        shape.kept(level) // facts.blocks,
        tokens * facts.width * shape.number_bytes,
    )


def model_of(section: SdTrainerConfig) -> DiffusionModel:
    """The model of a section, as a run loads it."""
    dtype, stored = DTYPES[section.train.dtype], DTYPES[section.weights_dtype()]
    return load_base_model(section.model, DEVICE, dtype, stored)
