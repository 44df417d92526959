"""What an `sd_trainer` process would do: scans its datasets and counts. Imports no torch, writes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toolkit.config.process import JobContext
from toolkit.contracts import Item
from toolkit.data.folder import Scan
from toolkit.data.items import scan_items
from toolkit.data.order import count_batches
from toolkit.data.plan import RunPlan, folder_plans, optimizer_steps
from toolkit.errors import UserError
from toolkit.models.families import family_for
from toolkit.networks.shapes import weights_per_layer
from toolkit.networks.targets import chosen_targets
from toolkit.optim.decay import initial_share

FILE_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}


def plan_run(config: Any, job: JobContext) -> RunPlan:
    """The plan of a checked `sd_trainer` section."""
    return plan_items(config, job, *scan_items(config, family_for(config.model).size_multiple))


def plan_items(config: Any, job: JobContext, scan: Scan, items: tuple[Item, ...]) -> RunPlan:
    """The plan of a section whose datasets are scanned already."""
    train = config.train
    micro_batches = count_batches(items, train.batch_size)
    steps = optimizer_steps(train.steps, train.epochs, micro_batches, train.gradient_accumulation)
    return RunPlan(
        type=config.type,
        name=config.display_name(job),
        datasets=folder_plans(scan.folders, items),
        samples_per_epoch=sum(item.sample.repeats for item in items),
        micro_batches_per_epoch=micro_batches,
        optimizer_steps=steps,
        accumulation=train.gradient_accumulation,
        epochs_asked=train.epochs,
        lines=(*scan.notes, *_estimates(config, job), *_ema_share(config, steps)),
    )


def refuse_full_disk(config: Any, folder: Path) -> None:
    """Raises UserError when not even one state and one file of the run would fit beside `folder`."""
    _, weights = _trained(config)
    needed = weights * (_state_bytes_per_weight(config.train) + FILE_BYTES[config.save.dtype])
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"training_folder: {folder} has {_size(free)} free, one save of this job takes {_size(needed)}. "
            "Free some space, or choose a folder on another disk."
        )


def _trained(config: Any) -> tuple[int, int]:
    """(layers, weights) that the network trains."""
    layers = family_for(config.model).linear_layers(config.model.folder())
    chosen = chosen_targets(config.network, list(layers))
    return len(chosen), sum(weights_per_layer(config.network, *layers[name]) for name in chosen)


def _estimates(config: Any, job: JobContext) -> Iterator[str]:
    """Memory and disk, by arithmetic on the model's config; nothing for a model that an earlier process writes."""
    folder = config.model.folder()
    if folder in job.earlier_outputs and not folder.is_dir():
        return
    layers, weights = _trained(config)
    qtype = config.model.qtype if config.model.quantize else None
    yield f"model in memory: {_size(family_for(config.model).weights_bytes(folder, qtype))} as {qtype or '16 bit'}"
    yield (
        f"{config.network.type} {config.network.size()} on {layers} layers: {weights:,} weights; "
        f"each file {_size(weights * FILE_BYTES[config.save.dtype])}, "
        f"each state {_size(weights * _state_bytes_per_weight(config.train))} on disk"
    )


def _state_bytes_per_weight(train: Any) -> int:
    """Raw weight, its average, and two moments in float32 or one byte each."""
    moments = 2 if train.optimizer.endswith("8bit") else 8
    return 4 + 4 * train.ema_config.use_ema + moments


def _ema_share(config: Any, steps: int) -> Iterator[str]:
    """How much of the untrained start is left in the average that is saved."""
    ema = config.train.ema_config
    if not ema.use_ema:
        return
    saves = [step for step in (config.save.save_every, steps) if 0 < step <= steps]
    shares = [f"{_percent(initial_share(step, ema.ema_decay, ema.use_num_updates))} at step {step}" for step in saves]
    yield f"EMA {ema.ema_decay:g}: share of the untrained start in what is saved: {', '.join(dict.fromkeys(shares))}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.0005 else "under 0.1 %"


def _size(count: float) -> str:
    """Bytes as people say them (powers of 1000)."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
