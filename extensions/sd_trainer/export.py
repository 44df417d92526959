"""The network files of a run: which weights go in, and what their metadata says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from toolkit.contracts import Network
from toolkit.networks.files import save_network, step_file
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

    def write(self, run: Run, step: int | None) -> list[Path]:
        """`<name>_<step>.safetensors`, or `<name>.safetensors` for the end; returns the files written."""
        role = run.roles[ROLE]
        path = run.folder / f"{run.name}.safetensors" if step is None else step_file(run.folder, run.name, step)
        chosen = {path: role.weights_to_keep()}
        if role.ema and "raw" in self.section.save.also:
            chosen[path.with_name(f"{path.stem}_raw.safetensors")] = dict(role.parameters)
        for file, weights in chosen.items():
            save_network(file, self.network.export(weights), self.section.save.dtype, self.metadata(run))
        return list(chosen)

    def metadata(self, run: Run) -> dict[str, str]:
        """Strings for the file's header: the user's own first, ours after. Never a path, never a secret."""
        section = self.section
        ours = {
            "training_info": {"step": run.state.step, "epoch": run.state.epoch},
            "software": {"name": NAME, "version": VERSION},
            "base_model": _public_name(section.model.name_or_path),
            "network_type": section.network.type,
            "rank": section.network.linear,
            "alpha": section.network.linear_alpha,
            "trigger_word": section.trigger_word or "",
            "ss_output_name": run.name,
        }
        return {key: _text(value) for key, value in {**self.meta, **ours}.items()}


def _public_name(name_or_path: str) -> str:
    """A hub id as it is, a folder by its last part alone."""
    folder = Path(name_or_path).expanduser()
    is_path = folder.exists() or name_or_path.count("/") != 1 or name_or_path.startswith((".", "/", "~"))
    return folder.resolve().name if is_path else name_or_path


def _text(value: object) -> str:
    """Safetensors headers hold strings only."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
