"""`save.also: [merged_lora]`: beside each file of another kind the plain LoRA that comes nearest to it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from extensions.sd_trainer.lora_writer import LoraWriter
from toolkit.config.save import SaveConfig
from toolkit.network_kinds import KINDS
from toolkit.networks.adapter import LinearAdapterNetwork
from toolkit.networks.extract_lora import ExtractedLora, extract_network_lora
from toolkit.networks.save import to_cpu_copies, write_safetensors_verified
from toolkit.train.flow_step import NETWORK
from toolkit.train.run import Run

logger = logging.getLogger(__name__)

OF_THE_KIND = ("network_type", "rank", "alpha", "lokr_factor")
"""Metadata of the main file that say what the plain LoRA was made from."""

ARCHITECTURE = "modelspec.architecture"


class ExtractedLoraWriter:
    """Lets another writer write its files, and adds a plain LoRA of the same weights."""

    def __init__(
        self,
        writer: LoraWriter,
        network: LinearAdapterNetwork,
        save: SaveConfig,
        event: Callable[..., None],
    ) -> None:
        """save: the typed `save` section. event: called from the thread that writes."""
        self.writer = writer
        self.network = network
        self.save = save
        self.event = event

    def snapshot(self, run: Run, step: int | Literal["best"] | None) -> Callable[[], list[Path]]:
        """As `LoraWriter.snapshot`: here the weights are copied, all else is done by the result."""
        write_others = self.writer.snapshot(run, step)
        if step == "best":  # is written while the training waits
            return write_others
        weights = to_cpu_copies(run.roles[NETWORK].eval_weights(), "float32")
        metadata, done = self.writer.metadata(run), run.state.step

        def must_end() -> bool:
            """A stop does not wait, as the state is written afterwards; the last file of a run is worth the time."""
            return step is not None and run.interrupted

        def write() -> list[Path]:
            files = write_others()
            file = files[0].with_name(f"{files[0].stem}_lora.safetensors")
            plain = extract_network_lora(self.network, weights, self.save.merged_lora_rank, self.save.dtype, must_end)
            if plain is None:
                logger.info(f"{file.name} is left out: the run is asked to stop")
                return files
            write_safetensors_verified(file, plain.tensors, _metadata(plain, metadata) if metadata else None)
            self._tell(file, plain, done)
            return [*files, file]

        return write

    def _tell(self, file: Path, plain: ExtractedLora, step: int) -> None:
        logger.info(
            f"{file.name}: the nearest LoRA of rank {plain.rank}; relative error of a layer's change "
            f"{plain.mean:.2g} on average, {plain.worst:.2g} in {plain.worst_layer}"
        )
        self.event("merged_lora", step=step, file=file.name, rank=plain.rank, **_errors(plain))


def _metadata(plain: ExtractedLora, of_main: dict[str, str]) -> dict[str, str]:
    """The main file's, but for the kind, and how well this one stands for it."""
    made_from = {key: of_main[key] for key in OF_THE_KIND if key in of_main}
    shared = {key: text for key, text in of_main.items() if key not in made_from and not key.startswith("ss_network_")}
    if ARCHITECTURE in shared:
        shared[ARCHITECTURE] = f"{shared[ARCHITECTURE].rpartition('/')[0]}/lora"
    rank = str(plain.rank)
    return {
        **shared,
        "network_type": "lora",
        "rank": rank,
        "alpha": rank,
        "ss_network_module": KINDS["lora"].module,
        "ss_network_dim": rank,
        "ss_network_alpha": rank,
        "merged_from": json.dumps(made_from),
        **{key: json.dumps(value) if isinstance(value, float) else value for key, value in _errors(plain).items()},
    }


def _errors(plain: ExtractedLora) -> dict[str, Any]:
    """Of the change of a layer, relative (Frobenius norms)."""
    return {"error_mean": plain.mean, "error_worst": plain.worst, "error_worst_layer": plain.worst_layer}
