"""The network files of a run: which weights go in, and what their metadata says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from toolkit.config.variables import as_written
from toolkit.contracts import Network
from toolkit.errors import RunError
from toolkit.networks.files import as_stored, step_file, write_stored
from toolkit.redact import black_out_data
from toolkit.train.flow_step import ROLE
from toolkit.train.run import Run
from toolkit.version import NAME, VERSION


class NetworkWriter:
    """Writes the average of the weights when there is one, else the weights; `save.also: [raw]` adds the latter."""

    def __init__(self, network: Network, section: Any, meta: dict[str, Any]) -> None:
        """section: the typed `sd_trainer` section. meta: the job's `meta`, unexpanded."""
        self.network = network
        self.section = section
        self.meta = meta

    def prepare(self, run: Run, step: int | None) -> Callable[[], list[Path]]:
        """Copies the weights of `<name>_<step>.safetensors`, or of `<name>.safetensors` for the end.

        The result writes the files and returns their paths; the run may have gone on by then.
        """
        role = run.roles[ROLE]
        path = run.folder / f"{run.name}.safetensors" if step is None else step_file(run.folder, run.name, step)
        chosen = {path: role.weights_to_keep()}
        if role.ema and "raw" in self.section.save.also:
            chosen[path.with_name(f"{path.stem}_raw.safetensors")] = dict(role.parameters)
        dtype, metadata = self.section.save.dtype, self.metadata(run)
        copies = {file: as_stored(self.network.export(weights), dtype) for file, weights in chosen.items()}

        def write() -> list[Path]:
            for file, tensors in copies.items():
                _write(file, tensors, metadata)
            return list(copies)

        return write

    def metadata(self, run: Run) -> dict[str, str]:
        """Strings for the file's header: the user's own first, ours after.

        Never a path, never a secret; `${VAR}` as it was written.
        """
        section = self.section
        ours = {
            "training_info": {"step": run.state.step, "epoch": run.state.epoch},
            "software": {"name": NAME, "version": VERSION},
            "base_model": _base_model(section.model),
            "network_type": section.network.type,
            "rank": section.network.linear,
            "alpha": section.network.linear_alpha,
            **({"lokr_factor": section.network.factor} if section.network.type == "lokr" else {}),
            "trigger_word": as_written(section.trigger_word or ""),
            "ss_output_name": as_written(run.name),
        }
        return {key: _text(value) for key, value in black_out_data({**self.meta, **ours}, by_key=True).items()}


def _base_model(model: Any) -> str:
    """The model's public name; of one that came from a variable, what was written."""
    written = as_written(model.name_or_path)
    if written == model.name_or_path:
        return model.public_name()
    return written.rstrip("/").rpartition("/")[2] if model.is_path() else written


def _write(file: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    try:
        write_stored(file, tensors, metadata)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{file}: cannot be written: {error}") from error


def _text(value: object) -> str:
    """Safetensors headers hold strings only."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
