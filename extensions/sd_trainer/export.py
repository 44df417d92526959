"""The network files of a run: which weights go in, and where."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from torch import Tensor

from extensions.sd_trainer.metadata import file_metadata
from toolkit.contracts import Network
from toolkit.data.plan import RunPlan
from toolkit.errors import RunError
from toolkit.networks.files import as_stored, step_stem, write_stored
from toolkit.train.flow_step import ROLE
from toolkit.train.run import Run


class NetworkWriter:
    """Writes the average of the weights when there is one, else the weights; `save.also: [raw]` adds the latter."""

    suffix = ".safetensors"

    def __init__(self, network: Network, section: Any, meta: dict[str, Any], plan: RunPlan | None = None) -> None:
        """section: the typed `sd_trainer` section. meta: the job's `meta`, unexpanded. plan: of the run."""
        self.network = network
        self.section = section
        self.meta = meta
        self.plan = plan

    def prepare(self, run: Run, step: int | Literal["best"] | None) -> Callable[[], list[Path]]:
        """Copies the weights of `<name>_<step>.safetensors`, or of `<name>.safetensors` for the end (None), or of
        `<name>_best.safetensors`.

        The result writes the files and returns their paths; the run may have gone on by then.
        """
        dtype, metadata = self.section.save.dtype, self.metadata(run)
        chosen = self.chosen_weights(run, step)
        copies = {file: as_stored(self.network.export(weights), dtype) for file, weights in chosen.items()}

        def write() -> list[Path]:
            for file, tensors in copies.items():
                _write(file, tensors, metadata)
            return list(copies)

        return write

    def chosen_weights(self, run: Run, step: int | Literal["best"] | None) -> dict[Path, dict[str, Tensor]]:
        """The files of a step (as of `prepare`) and the weights that go into each."""
        role = run.roles[ROLE]
        stem = {None: run.name, "best": f"{run.name}_best"}.get(step) or step_stem(run.name, step)
        chosen = {run.folder / f"{stem}{self.suffix}": role.weights_to_keep()}
        if role.ema and "raw" in self.section.save.also:
            chosen[run.folder / f"{stem}_raw{self.suffix}"] = dict(role.parameters)
        return chosen

    def metadata(self, run: Run) -> dict[str, str]:
        """Strings for the files' header."""
        return file_metadata(run, self.section, self.meta, self.plan, self.kind_metadata())

    def kind_metadata(self) -> dict[str, Any]:
        """What only the files of adapters say."""
        network = self.section.network
        factor = {"lokr_factor": network.factor} if network.type == "lokr" else {}
        return {"rank": network.linear, "alpha": network.linear_alpha, **factor}


def _write(file: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    try:
        write_stored(file, tensors, metadata or None)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{file}: cannot be written: {error}") from error
