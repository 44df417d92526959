"""How long a save holds up the training, and takes in all: `python benchmarks/bench_checkpoint.py --size M`.

The program's own save: the network file as users take it away and the state that a resume needs (weights and AdamW's
moments in float32), copied, and then written and read back by a thread. Only the shapes of the frozen layers are
there, so that the published model's size (20 B) needs no more memory than its LoRA. "disk alone" is a plain file of
as many bytes, written and flushed in the same folder: less than that no save can take there.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import NamedTemporaryFile, TemporaryDirectory

import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks import report, timing  # noqa: E402
from benchmarks.synthetic import RANK, SEED, SIZES  # noqa: E402
from extensions.sd_trainer.config import SdTrainerConfig  # noqa: E402
from extensions.sd_trainer.metadata import job_metadata  # noqa: E402
from extensions.sd_trainer.writers import LoraWriter  # noqa: E402
from toolkit.config.dataset import DatasetConfig  # noqa: E402
from toolkit.config.model import ModelConfig  # noqa: E402
from toolkit.config.network import NetworkConfig  # noqa: E402
from toolkit.config.output import SaveConfig  # noqa: E402
from toolkit.config.train import TrainConfig  # noqa: E402
from toolkit.models.folder_family import width_of  # noqa: E402
from toolkit.models.qwen_image.family import FAMILY  # noqa: E402
from toolkit.networks.lora import LoraNetwork  # noqa: E402
from toolkit.optim.optimizers import build_optimizer  # noqa: E402
from toolkit.train.callbacks.save import SaveCallback  # noqa: E402
from toolkit.train.flow_step import NETWORK  # noqa: E402
from toolkit.train.optimizer_step import Role  # noqa: E402
from toolkit.train.run import Interval, Run  # noqa: E402

SHAPES = {name: (size.layers, size.heads * size.head_dim) for name, size in SIZES.items()} | {
    "published": (FAMILY.published_transformer["num_layers"], width_of(FAMILY.published_transformer))
}
"""Size -> blocks and hidden width."""


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    timing.one_thread()
    layers, width = SHAPES[asked.size]
    report.card("checkpoint", f"LoRA rank {RANK} on {layers} blocks of width {width}, AdamW; {asked.dtype} file")
    with TemporaryDirectory(dir=asked.folder) as folder:
        run, callback = make_run(Path(folder), asked)
        taken = [save(run, callback) | {"disk alone": disk_alone(run.folder)} for _ in range(1 + asked.rounds)][1:]
        size = size_of_files(run.folder)
    weights = sum(p.numel() for p in run.roles[NETWORK].parameters.values())
    print(
        f"{weights:,} weights in {len(run.roles[NETWORK].parameters)} tensors; {size / 1e6:.0f} MB on disk | "
        f"1 save dropped, {asked.rounds} timed, medians (minima)"
    )
    times = {name: [1e3 * one[name] for one in taken] for name in taken[0]}
    for name, values in times.items():
        print(f"{name:<24} {median(values):9.1f} ms  ({min(values):.1f})")
    beyond_copy = [blocking - copy for blocking, copy in zip(times["blocking"], times["copy alone"], strict=True)]
    print(f"{'blocking beyond the copy':<24} {median(beyond_copy):9.1f} ms  ({min(beyond_copy):.1f})")
    report.finish(
        "checkpoint",
        **vars(asked),
        weights=weights,
        disk_mb=size / 1e6,
        median_ms={name: median(values) for name, values in times.items()} | {"beyond copy": median(beyond_copy)},
        min_ms={name: min(values) for name, values in times.items()} | {"beyond copy": min(beyond_copy)},
    )


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--size", choices=SHAPES, default="S")
    add("--dtype", choices=["float16", "bfloat16", "float32"], default="bfloat16", help="as save.dtype")
    add("--rounds", type=int, default=5, help="timed saves")
    add("--folder", help="where to write (on the disk that is to be measured); default: the temporary folder")
    return parser.parse_args(argv)


def save(run: Run, callback: SaveCallback) -> dict[str, float]:
    """Seconds of one save: what the training waits for, until everything is on disk, and of the bare copying."""
    copied = everything_saved(run)
    begin = time.perf_counter()
    copies = [tensor.clone() for tensor in copied]
    copy = time.perf_counter() - begin
    del copies
    run.state.step += 1
    begin = time.perf_counter()
    callback.save_now(run)
    blocking = time.perf_counter() - begin
    callback.wait()
    return {"blocking": blocking, "copy alone": copy, "total": time.perf_counter() - begin}


def size_of_files(folder: Path) -> int:
    """Bytes of tensors and their headers in the files of one save."""
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def disk_alone(folder: Path) -> float:
    """Seconds to write and flush as many bytes as a save did, in one plain file; it is removed again."""
    size, block = size_of_files(folder), os.urandom(1 << 24)
    with NamedTemporaryFile(dir=folder, buffering=0) as file:
        begin = time.perf_counter()
        while size:
            size -= file.write(block[:size])
        os.fsync(file.fileno())
        return time.perf_counter() - begin


def everything_saved(run: Run) -> list[torch.Tensor]:
    """Weights and optimizer state for the resume, and the weights once more for the network file."""
    role = run.roles[NETWORK]
    moments = [tensor for state in role.optimizer.state.values() for tensor in state.values()]
    return [*role.parameters.values(), *role.parameters.values(), *moments]


# ------------------------------------------------------------ a run without a model


class SaveCallbackToWaitFor(SaveCallback):
    """The program's hook, whose thread can be waited for."""

    def wait(self) -> None:
        self._collect(wait=True)


def make_run(folder: Path, asked: argparse.Namespace) -> tuple[Run, SaveCallbackToWaitFor]:
    """A run with the LoRA of the asked size and an optimizer that has done one step."""
    layers, width = SHAPES[asked.size]
    shapes = {
        f"blocks.{i}.{name}": shape for i in range(layers) for name, shape in FAMILY.block_linears(width, {}).items()
    }
    network = LoraNetwork(list(shapes), RANK, RANK, dropout=0.0, seed=SEED)
    network.attach(hollow_model(shapes))
    parameters = network.parameters()
    optimizer = build_optimizer("adamw", parameters.values(), 1e-4, {})
    for parameter in parameters.values():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()
    optimizer.zero_grad()
    role = Role(parameters, optimizer, 1e-4, lambda step: 1.0)
    run = Run("bench", folder, steps=100, grad_accum_steps=1, seed=SEED, roles={NETWORK: role})
    section = SdTrainerConfig(
        type="sd_trainer",
        model=ModelConfig(name_or_path="Qwen/Qwen-Image-Edit-2509"),
        network=NetworkConfig(linear=RANK),
        save=SaveConfig(dtype=asked.dtype),
        train=TrainConfig(),
        datasets=(DatasetConfig(folder_path="."),),
    )
    metadata = job_metadata(section, {}, run.name, run.steps, run.seed, optimizer)
    writer = LoraWriter(network, section, metadata)
    callback = SaveCallbackToWaitFor(writer.snapshot, every=Interval(), keep=1, keep_states=1)
    callback.on_start(run)
    return run, callback


def hollow_model(shapes: Mapping[str, tuple[int, int]]) -> nn.Module:
    """Linear layers under these dotted names; each weight is one number that stands for all."""
    model = nn.Module()
    for name, (inputs, outputs) in shapes.items():
        *path, last = name.split(".")
        place = model
        for part in path:
            if not hasattr(place, part):
                place.add_module(part, nn.Module())
            place = getattr(place, part)
        layer = nn.Linear(inputs, outputs, device="meta")
        layer.weight = nn.Parameter(torch.zeros(()).expand(outputs, inputs), requires_grad=False)
        layer.bias = None
        place.add_module(last, layer)
    return model


if __name__ == "__main__":
    main()
