"""The memory of the blocks of a model family: `python benchmarks/family_units.py FOLDER`,
no GPU.

FOLDER is a small model of the family with random weights, of a width of 512 or more and
three blocks or more in the list that is trained. The program's own code attaches the
network and takes a step on fake tensors; what is alive at most is counted for each kind
of network and level of checkpointing. It prints the `ActivationUnits` that explain it; for
compiled blocks, what the partitioner saves (`saved_by_blocks`). `--write FILE` puts them
into the family's `shapes_file`.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch._subclasses import FakeTensorMode  # noqa: E402

from benchmarks import report, saved_by_blocks, simulation  # noqa: E402
from benchmarks.live_bytes import LiveBytes  # noqa: E402
from extensions.sd_trainer.config import SdTrainerConfig  # noqa: E402
from extensions.sd_trainer.setup import attach_network, build_block_runner  # noqa: E402
from toolkit.contracts.data import PromptEmbeds  # noqa: E402
from toolkit.contracts.model import DiffusionModel  # noqa: E402
from toolkit.contracts.network import Network  # noqa: E402
from toolkit.contracts.network_kinds import KINDS  # noqa: E402
from toolkit.memory import block_runner  # noqa: E402
from toolkit.memory.estimate import EXTRA_UNITS, StepShape  # noqa: E402
from toolkit.memory.recompute import RecomputeOffload  # noqa: E402
from toolkit.models.diffusers_model import write_rows  # noqa: E402
from toolkit.models.families import family_for  # noqa: E402
from toolkit.plan.memory_inputs import count_trainable_params, step_shape  # noqa: E402

SIDE = 64
"""Of the latents."""

LEVELS = ("none", "cheap", "full", "block_offload")


@dataclass(frozen=True)
class Taken:
    """Bytes alive at most, without the weights."""

    forward: int
    """Of a forward pass without gradients."""

    step: int
    work: StepShape
    """What the plan knows of the step."""


def job(folder: Path, level: str, kind: str, dtype: str) -> SdTrainerConfig:
    """The smallest network of this kind."""
    least = {"boft": 6, "diag-oft": 4}.get(kind, 1)
    return SdTrainerConfig.model_validate(
        {
            "type": "sd_trainer",
            "network": {"type": kind, "linear": least, "linear_alpha": 1},
            "datasets": [{"folder_path": "images"}],
            "train": {
                "optimizer": "adamw",
                "dtype": dtype,
                "gradient_checkpointing": level,
                "compile": {"enabled": False},
            },
            "model": {"name_or_path": str(folder)},
        }
    )


def taken(section: SdTrainerConfig, caption: str = "a photo of a cat") -> Taken:
    """What a step of a section takes, counted on fake tensors."""
    live = LiveBytes(simulation.FOLLOWED)
    offload = RecomputeOffload(
        simulation.CopiesOf(live), is_elsewhere=lambda tensor: True
    )
    with mock.patch.object(block_runner, "recomputing", lambda _: offload):
        model: Any = saved_by_blocks.model_of(section)
        prompts = PromptEmbeds.stack([model.encode_prompt(caption, ())])
        model.network_module  # noqa: B018 - it is loaded now
        network = attach_network(section, model, 1, None)
        build_block_runner(section, model, simulation.DEVICE)
        x_BCHW = torch.randn(1, model.family.latent_channels, SIDE, SIDE)

        def predicted() -> Tensor:
            found: Tensor = model.predict_velocity(
                x_BCHW, torch.tensor([0.5]), prompts, [()]
            )
            return found

        with FakeTensorMode(allow_non_fake_inputs=True) as mode, live:
            # Weights that an operation returns as views are not counted as its own.
            weights = [mode.from_tensor(one) for one in _weights(model, network)]
            live.own(weights)
            with torch.no_grad():  # fills the tables of positions
                predicted()
            gc.collect()
            before = live.device
            live.phase("forward")
            with torch.no_grad():
                predicted()
            gc.collect()
            live.phase("step")
            predicted().square().mean().backward()
            for parameter in network.parameters().values():
                parameter.grad = None
    facts = family_for(section.model).footprint(Path(section.model.name_or_path))
    tokens = model.num_tokens(x_BCHW, prompts, [()])
    trained = count_trainable_params(section)
    texts = sum(prompts.lengths)
    work = step_shape(section, facts, trained, tokens, text_tokens=texts)
    forward, step = (live.phases[name].device - before for name in ("forward", "step"))
    return Taken(forward, step, work)


def _weights(model: DiffusionModel, network: Network) -> Iterator[Tensor]:
    module = model.network_module
    yield from (*module.parameters(), *module.buffers())
    yield from network.parameters().values()


def units_of(folder: Path, kind: str) -> dict[str, list[float]]:
    """Field of `ActivationUnits` -> its pair, for this kind of network."""
    pairs = [_units(folder, kind, dtype) for dtype in ("bf16", "fp32")]
    return {name: [pair[name] for pair in pairs] for name in pairs[0]}


def _units(folder: Path, kind: str, dtype: str) -> dict[str, float]:
    levels = LEVELS if KINDS[kind].units.offloaded else LEVELS[:-1]
    found = {level: taken(job(folder, level, kind, dtype)) for level in levels}
    work = found["none"].work
    unit = work.tokens * work.width * work.number_bytes
    steps = {at: (one.step - work.outside) / unit for at, one in found.items()}
    none, cheap, full = (steps[level] for level in LEVELS[:3])
    blocks = work.blocks
    # see StepShape.block_backward_bytes
    everything = (none - full + blocks - 1 + EXTRA_UNITS["full"]) / (blocks - 1)
    outputs = (cheap - full + blocks - 1 + EXTRA_UNITS["full"]) / (blocks - 1)
    units = {
        "everything": everything,
        "matmul_outputs": outputs,
        "backward": none - blocks * everything,
        "forward": found["none"].forward / unit,
    }
    if "block_offload" in found:
        units["offloaded"] = steps["block_offload"]
    for name, level in (("compiled", "none"), ("compiled_outputs", "cheap")):
        section = saved_by_blocks.job(folder, level, kind, dtype)
        saved, _, of_tokens = saved_by_blocks.counted(section)
        units[name] = saved / of_tokens
    return {name: round(value, 1) for name, value in units.items()}


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    report.card("family_units", str(asked.folder))
    found = {}
    for kind in asked.kinds:
        found[kind] = units_of(asked.folder, kind)
        print(f"{kind}: {json.dumps(found[kind])}", flush=True)
    if asked.write:
        content = json.loads(asked.write.read_text(encoding="utf-8"))
        content["units"] = {**content.get("units", {}), **found}
        write_rows(asked.write, content)
    report.finish("family_units", units=found)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["lora"])
    parser.add_argument("--write", type=Path, help="the family's shapes_file")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
