"""The state folder: everything a run needs to go on exactly where it was.

    state/step_000000340/
      weights.safetensors     raw float32 weights        `<role>/<parameter>`
      ema.safetensors         their averages             `<role>/<parameter>`
      optimizer.safetensors   optimizer state            `<role>/<parameter>/<entry>`
      state.json              step, cursor, and optimizer entries that are not tensors
      MANIFEST.json           format, sizes and sha256 of the others; written last

Written under a temporary name, flushed, renamed; only then are older ones removed. A folder counts only when its
manifest verifies, and the newest is the one with the highest step: no file time is ever asked.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from toolkit.contracts import TrainState
from toolkit.errors import RunError
from toolkit.files import flush_to_disk, sha256_of, write_json
from toolkit.optim.ema import copy_into
from toolkit.optim.optimizers import load_state_tensors, state_tensors
from toolkit.train.run import Run

FORMAT = 1
MANIFEST = "MANIFEST.json"
KEEP = 2
_STEP_FOLDER = re.compile(r"step_(\d{9,})")
_TEMPORARY = ".tmp-"


def save_state(run: Run) -> Path:
    """Writes the state folder of the current step and removes older ones beyond the newest two."""
    root = run.folder / "state"
    root.mkdir(parents=True, exist_ok=True)
    final = root / f"step_{run.state.step:09d}"
    temporary = root / f"{_TEMPORARY}{run.state.step}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    temporary.mkdir()
    try:
        _write(run, temporary)
        if final.exists():  # the same step once more, after a resume: the new one is as good
            shutil.rmtree(final)
        os.replace(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    flush_to_disk(root)
    _remove_old(root)
    return final


def newest_state(folder: Path, note: Callable[[str], None] = print) -> Path | None:
    """The state folder with the highest step whose manifest verifies; `note` hears what was skipped and why."""
    for path in reversed(_state_folders(folder / "state")):
        problem = verify(path)
        if problem is None:
            return path
        note(f"{path} is skipped: {problem}")
    return None


def verify(path: Path) -> str | None:
    """What is wrong with a state folder, or None."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            return f"its format is {manifest['format']}, this program reads {FORMAT}"
        for name, entry in manifest["files"].items():
            file = path / name
            if not file.is_file() or file.stat().st_size != entry["size"]:
                return f"{name} is missing or has another size than {MANIFEST} says"
            if sha256_of(file) != entry["sha256"]:
                return f"{name} is damaged (sha256 differs from {MANIFEST})"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    return None


def recorded_step(path: Path) -> int:
    """Optimizer steps done when a state folder was written."""
    return int(_STEP_FOLDER.fullmatch(path.name).group(1))


def recorded_seed(path: Path) -> int:
    """The seed the run of a state folder began with."""
    return json.loads((path / "state.json").read_text(encoding="utf-8"))["seed"]


def load_state(path: Path, run: Run) -> None:
    """Puts a verified state folder into the run: weights, averages, optimizers, cursor.

    Raises RunError when the state was made for other weights or another optimizer than the run has.
    """
    weights = load_file(path / "weights.safetensors")
    expected = {f"{role}/{name}": p for role, r in run.roles.items() for name, p in r.parameters.items()}
    differing = sorted(expected.keys() ^ weights.keys()) or sorted(
        name for name in expected if expected[name].shape != weights[name].shape
    )
    if differing:
        raise RunError(
            f"{path} was made by a job with another network: {differing[0]} and {len(differing) - 1} more differ. "
            "Give the job a new name, or restore network.type, linear and network_kwargs."
        )
    document = json.loads((path / "state.json").read_text(encoding="utf-8"))
    for role_name, role in run.roles.items():
        made_with, has = document["roles"][role_name]["optimizer_class"], type(role.optimizer).__name__
        if made_with != has:
            raise RunError(
                f"{path} was made with another optimizer: {made_with}, the job has {has}. "
                "Give the job a new name, or restore train.optimizer."
            )
    averages = load_file(path / "ema.safetensors")
    optimizer = load_file(path / "optimizer.safetensors")
    for role_name, role in run.roles.items():
        prefix = f"{role_name}/"
        copy_into(role.parameters, _under(prefix, weights))
        plain = document["roles"][role_name]
        load_state_tensors(role.optimizer, list(role.parameters), _under(prefix, optimizer), plain["optimizer"])
        if role.ema:
            own = _under(prefix, averages) or _under(prefix, weights)  # EMA switched on later: starts here
            role.ema.load(own, plain["ema_updates"])
    run.state = TrainState(**document["state"])


def _write(run: Run, folder: Path) -> None:
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
    for name, tensors in {"weights": weights, "ema": averages, "optimizer": optimizer}.items():
        # Cloned: entries of 8-bit optimizers share memory, which safetensors refuses.
        own = {key: t.detach().cpu().contiguous().clone() for key, t in tensors.items()}
        save_file(own, folder / f"{name}.safetensors")
        flush_to_disk(folder / f"{name}.safetensors")
    write_json(folder / "state.json", {"state": asdict(run.state), "roles": plain, "seed": run.seed})
    files = {p.name: {"size": p.stat().st_size, "sha256": sha256_of(p)} for p in sorted(folder.iterdir())}
    write_json(folder / MANIFEST, {"format": FORMAT, "step": run.state.step, "files": files})
    flush_to_disk(folder)


def _state_folders(root: Path) -> list[Path]:
    """State folders by ascending step."""
    found = [
        (int(m.group(1)), p) for p in (root.iterdir() if root.is_dir() else ()) if (m := _STEP_FOLDER.fullmatch(p.name))
    ]
    return [path for _, path in sorted(found)]


def _remove_old(root: Path) -> None:
    for path in _state_folders(root)[:-KEEP]:
        shutil.rmtree(path)


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
