"""Writes the network files of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from torch import Tensor

from extensions.sd_trainer.metadata import file_metadata
from toolkit.config.sections import DiffusionSection
from toolkit.data.run_plan import RunPlan
from toolkit.device import DTYPES
from toolkit.errors import RunError
from toolkit.interfaces import Network
from toolkit.networks.save import write_safetensors_verified
from toolkit.run_files import best_stem, step_stem
from toolkit.train.flow_step import NETWORK
from toolkit.train.gather_tensors import network_state_dict
from toolkit.train.run import Run


class LoraWriter:
    """Writes the EMA of the weights where there is one, else the raw weights; `save.also: [raw]` adds the raw ones."""

    suffix = ".safetensors"

    def __init__(
        self, network: Network, section: DiffusionSection, meta: dict[str, Any], plan: RunPlan | None = None
    ) -> None:
        """section: the typed `sd_trainer` section. meta: the job's `meta`, unexpanded. plan: of the run."""
        self.network = network
        self.section = section
        self.meta = meta
        self.plan = plan

    def snapshot(self, run: Run, step: int | Literal["best"] | None) -> Callable[[], list[Path]]:
        """Copies the weights of `<name>_<step>.safetensors`, or of `<name>.safetensors` for the end (None), or of
        `<name>_best.safetensors`.

        The result writes the files and returns their paths, while the training goes on.
        """
        copies, metadata = self.copies(run, step), self.metadata(run)

        def write() -> list[Path]:
            for file, tensors in copies.items():
                _write(file, tensors, metadata)
            return list(copies)

        return write

    def copies(self, run: Run, step: int | Literal["best"] | None) -> dict[Path, dict[str, Tensor]]:
        """Copies of the tensors of each file of a step (as in `snapshot`)."""
        dtype = DTYPES[self.section.save.dtype]
        return {
            file: network_state_dict(run, self.network, NETWORK, dtype, raw)
            for file, raw in self.files(run, step).items()
        }

    def files(self, run: Run, step: int | Literal["best"] | None) -> dict[Path, bool]:
        """The files of a step (as in `snapshot`) -> whether the file has the raw weights (`Role.weights`)."""
        stem = run.name if step is None else best_stem(run.name) if step == "best" else step_stem(run.name, step)
        found = {run.folder / f"{stem}{self.suffix}": False}
        if run.roles[NETWORK].ema and "raw" in self.section.save.also:
            found[run.folder / f"{stem}_raw{self.suffix}"] = True
        return found

    def metadata(self, run: Run) -> dict[str, str]:
        """Metadata for the header of the files."""
        return file_metadata(run, self.section, self.meta, self.plan, self.kind_metadata())

    def kind_metadata(self) -> dict[str, Any]:
        """Metadata of adapters only."""
        network = self.section.network
        factor = {"lokr_factor": network.factor} if network.type == "lokr" else {}
        return {"rank": network.linear, "alpha": network.linear_alpha, **factor}


def _write(file: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    try:
        write_safetensors_verified(file, tensors, metadata or None)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{file}: cannot be written: {error}") from error
