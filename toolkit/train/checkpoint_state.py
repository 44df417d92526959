"""Copies a run into the contents of a checkpoint, and a checkpoint back into a run, bit
for bit.

The parts are the weights, their EMA, the optimizer state, the cursor of the data, and
the settings of the job. Files and their verification are in `checkpoint_store`, the
rows of sharded tensors in `sharded_state`. `SaveCallback` calls `snapshot_state`,
`resumption.ResumePlan.apply` calls `load_state`.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from toolkit.contracts.training import TrainState
from toolkit.errors import RunError
from toolkit.optim.ema import copy_into
from toolkit.optim.optimizers import StateError, load_state_tensors, state_tensors
from toolkit.optim.schedules import Plateau
from toolkit.system.device import to_cpu_copies
from toolkit.system.sharded_param import RowShard
from toolkit.train.checkpoint_store import (
    CheckpointData,
    FileEntry,
    read_checkpoint_json,
    reading_state,
)
from toolkit.train.collectives import WorkerContext
from toolkit.train.run import Run
from toolkit.train.sharded_state import Rows, read_rows, shapes_of_rows, write_rows

_OTHER_CLASS = (
    "The state itself is whole: install the version of the optimizer's package with which it was saved. Or set "
    "train.optimizer to another one and add --allow-change: the weights go on from here, the optimizer starts fresh."
)


def snapshot_state(run: Run) -> CheckpointData:
    """A copy of everything a resume needs; training may continue while it is written,
    once the rows of sharded tensors are. Called by rank 0.
    """
    plain = {}
    for role_name, role in run.roles.items():
        entry: dict[str, Any] = {
            "optimizer_class": type(role.optimizer).__name__,
            "optimizer": state_tensors(role.optimizer, list(role.parameters))[1],
            "ema_updates": role.ema.updates if role.ema else 0,
        }
        if isinstance(role.schedule, Plateau):
            entry["schedule"] = role.schedule.state_dict()
        plain[role_name] = entry
    scaling = {"loss_scaler": run.loss_scaler.state_dict()} if run.loss_scaler else {}
    threads = {"threads": torch.get_num_threads()}
    # Whether blocks are compiled may change while the checkpoint is written.
    metadata = deepcopy(run.checkpoint_metadata)
    tensors, rows = _checkpoint_tensors(run)

    def write(folder: Path) -> Mapping[str, FileEntry]:
        folder = folder.absolute()
        run.broadcast_command(partial(_write_rows_on_worker, folder=folder))
        return write_rows(run.process_group, folder, rows)

    return CheckpointData(
        step=run.state.step,
        tensors={file: to_cpu_copies(by_name) for file, by_name in tensors.items()},
        document={
            "state": asdict(run.state),
            "roles": plain,
            "seed": run.seed,
            **threads,
            **scaling,
            **metadata,
        },
        rows_size=sum(shard_rows.full_bytes for shard_rows in rows.values()),
        write_rows=write if rows else lambda folder: {},
    )


def _write_rows_on_worker(worker: WorkerContext, folder: Path) -> None:
    write_rows(worker.run.process_group, folder, _checkpoint_tensors(worker.run)[1])


def _checkpoint_tensors(
    run: Run,
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Rows]]:
    """The tensors of a checkpoint that every rank has, by file and name, and the rows
    of the sharded ones by `<file>/<name>`. No copies.
    """
    files: dict[str, dict[str, Tensor]] = {"weights": {}, "ema": {}, "optimizer": {}}
    rows: dict[str, Rows] = {}
    for role_name, role in run.roles.items():
        tensors, _ = state_tensors(role.optimizer, list(role.parameters))
        averages = role.ema.averages if role.ema else {}
        of_files = {
            "weights": role.saved_weights,
            "ema": averages,
            "optimizer": tensors,
        }
        for file, by_key in of_files.items():
            for key, tensor in by_key.items():
                name = key.partition("/")[0]
                shard = role.sharded.get(name)
                # Parameters, their EMA, or optimizer state of the same shape.
                if shard is not None and tensor.shape == role.parameters[name].shape:
                    rows[f"{file}/{role_name}/{key}"] = Rows(tensor, shard)
                else:
                    files[file][f"{role_name}/{key}"] = tensor
    return files, rows


def saved_seed(path: Path) -> int:
    """The seed that the run of a checkpoint began with. Raises RunError when its
    document cannot be used, and OSError when it cannot be read."""
    with reading_state(path):
        return int(read_checkpoint_json(path)["seed"])


def load_state(path: Path, run: Run, fresh_optimizer: bool = False) -> None:
    """Loads a verified checkpoint into the run: weights, EMA, optimizers, cursor.

    fresh_optimizer: leave the optimizers as they are, for a job that changed them.
    Raises RunError when the checkpoint has other weights or another optimizer than the
    run.
    """
    document = read_checkpoint_json(path)
    _refuse_other_weights(path, run)
    for role_name, role in run.roles.items():
        weights = _read(path, "weights", role_name, run)
        averages = _read(path, "ema", role_name, run)
        optimizer = _read(path, "optimizer", role_name, run)
        plain = document["roles"][role_name]
        copy_into(role.saved_weights, weights)
        if not fresh_optimizer:
            own_class = type(role.optimizer).__name__
            saved_class = plain["optimizer_class"]
            if own_class != saved_class:
                raise RunError(
                    f"{path} was made with another optimizer: {saved_class}, the job has {own_class}. "
                    "Give the job a new name, or restore train.optimizer."
                )
            try:
                load_state_tensors(
                    role.optimizer, list(role.parameters), optimizer, plain["optimizer"]
                )
            except StateError as error:
                raise RunError(
                    f"{path}: {own_class} {error}. {_OTHER_CLASS}"
                ) from error
        if role.ema:
            # the EMA where none was saved
            start = {name: weights[name] for name in role.parameters}
            role.ema.load(averages or start, int(plain["ema_updates"]))
        if isinstance(role.schedule, Plateau) and "schedule" in plain:
            role.schedule.load_state_dict(plain["schedule"])
    if run.loss_scaler and "loss_scaler" in document:
        run.loss_scaler.load_state_dict(document["loss_scaler"])
    run.state = _state(document["state"])


def _state(saved: dict[str, Any]) -> TrainState:
    """The saved `TrainState`."""
    for name, start in asdict(TrainState()).items():
        if name != "cursor" and not isinstance(saved[name], type(start)):
            raise TypeError(f"{name}: {saved[name]!r}")
    return TrainState(**saved)


def _read(path: Path, stem: str, role_name: str, run: Run) -> dict[str, Tensor]:
    """The tensors of a role in one file of a checkpoint, and those that it has as rows;
    of sharded ones this rank's."""
    role = run.roles[role_name]
    loaded = {}
    prefix = f"{role_name}/"

    def shard_of(key: str, shape: tuple[int, ...]) -> RowShard | None:
        shard = role.sharded.get(key.partition("/")[0])
        return shard if shard is not None and shape == shard.shape else None

    with safe_open(path / f"{stem}.safetensors", framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - not a dict
            key = name.removeprefix(prefix)
            if key == name:
                continue
            saved = tensors.get_slice(name)
            shard = shard_of(key, tuple(saved.get_shape()))
            loaded[key] = (
                tensors.get_tensor(name)
                if shard is None
                else saved[shard.start : shard.stop]
            )
    begin = f"{stem}/{prefix}"
    wanted = {
        name: shard_of(name.removeprefix(begin), shape)
        for name, shape in shapes_of_rows(path).items()
        if name.startswith(begin)
    }
    rows = read_rows(path, wanted, run.process_group)
    return loaded | {name.removeprefix(begin): tensor for name, tensor in rows.items()}


def _refuse_other_weights(path: Path, run: Run) -> None:
    expected = {
        f"{role}/{name}": r.shape_of(name)
        for role, r in run.roles.items()
        for name in r.saved_weights
    }
    saved = {}
    with safe_open(path / "weights.safetensors", framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - not a dict
            saved[name] = tuple(tensors.get_slice(name).get_shape())
    for name, shape in shapes_of_rows(path).items():
        if name.startswith("weights/"):
            saved[name.removeprefix("weights/")] = shape
    differing = sorted(expected.keys() ^ saved.keys())
    if not differing:
        for name in sorted(expected):
            if expected[name] != saved[name]:
                differing.append(name)
    if differing:
        raise RunError(
            f"{path} was made by a job with another network: {differing[0]} and {len(differing) - 1} more differ. "
            "Give the job a new name, or restore network.type, linear and network_kwargs."
        )
