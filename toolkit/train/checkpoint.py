"""Between a run and its state folders: what is taken from a run, and how it is put back, bit for bit."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from toolkit.contracts import TrainState
from toolkit.errors import RunError
from toolkit.optim.ema import copy_into
from toolkit.optim.optimizers import load_state_tensors, state_tensors
from toolkit.train.run import Run
from toolkit.train.state_folder import Snapshot, read_document


def capture(run: Run) -> Snapshot:
    """A copy of everything a resume needs; the run may go on while it is written."""
    weights, averages, optimizer, plain = {}, {}, {}, {}
    for role_name, role in run.roles.items():
        tensors, rest = state_tensors(role.optimizer, list(role.parameters))
        weights |= {f"{role_name}/{name}": p for name, p in role.parameters.items()}
        averages |= {f"{role_name}/{name}": t for name, t in (role.ema.averages if role.ema else {}).items()}
        optimizer |= {f"{role_name}/{name}": t for name, t in tensors.items()}
        plain[role_name] = {
            "optimizer_class": type(role.optimizer).__name__,
            "optimizer": rest,
            "ema_updates": role.ema.updates if role.ema else 0,
        }
    return Snapshot(
        step=run.state.step,
        tensors={"weights": _copies(weights), "ema": _copies(averages), "optimizer": _copies(optimizer)},
        document={"state": asdict(run.state), "roles": plain, "seed": run.seed, **run.record},
    )


def _copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    # Cloned also on the CPU: training goes on, and entries of 8-bit optimizers share memory, which safetensors refuses.
    return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}


def recorded_seed(path: Path) -> int:
    """The seed the run of a state folder began with."""
    return read_document(path)["seed"]


def load_state(path: Path, run: Run, fresh_optimizer: bool = False) -> None:
    """Puts a verified state folder into the run: weights, averages, optimizers, cursor.

    fresh_optimizer: leave the optimizers as they are, for a job that changed them.
    Raises RunError when the state was made for other weights or another optimizer than the run has.
    """
    weights = load_file(path / "weights.safetensors")
    document = read_document(path)
    _refuse_other_weights(path, run, weights)
    averages = load_file(path / "ema.safetensors")
    optimizer = load_file(path / "optimizer.safetensors")
    for role_name, role in run.roles.items():
        prefix, plain = f"{role_name}/", document["roles"][role_name]
        copy_into(role.parameters, _under(prefix, weights))
        if not fresh_optimizer:
            _refuse_other_optimizer(path, plain["optimizer_class"], type(role.optimizer).__name__)
            load_state_tensors(role.optimizer, list(role.parameters), _under(prefix, optimizer), plain["optimizer"])
        if role.ema:
            own = _under(prefix, averages) or _under(prefix, weights)  # EMA switched on later: starts here
            role.ema.load(own, plain["ema_updates"])
    run.state = TrainState(**document["state"])


def _refuse_other_weights(path: Path, run: Run, weights: dict[str, Tensor]) -> None:
    expected = {f"{role}/{name}": p for role, r in run.roles.items() for name, p in r.parameters.items()}
    differing = sorted(expected.keys() ^ weights.keys()) or sorted(
        name for name in expected if expected[name].shape != weights[name].shape
    )
    if differing:
        raise RunError(
            f"{path} was made by a job with another network: {differing[0]} and {len(differing) - 1} more differ. "
            "Give the job a new name, or restore network.type, linear and network_kwargs."
        )


def _refuse_other_optimizer(path: Path, made_with: str, has: str) -> None:
    if made_with != has:
        raise RunError(
            f"{path} was made with another optimizer: {made_with}, the job has {has}. "
            "Give the job a new name, or restore train.optimizer."
        )


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
