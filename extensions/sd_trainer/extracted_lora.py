"""`save.also: [merged_lora]`: extracts a plain LoRA beside each file of a LoHa, LoKr or DoRA."""

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
"""Metadata of the main file that describe what the LoRA was extracted from."""

ARCHITECTURE = "modelspec.architecture"


class ExtractedLoraWriter:
    """Wraps another writer, and adds an extracted LoRA of the same weights."""

    def __init__(
        self,
        writer: LoraWriter,
        network: LinearAdapterNetwork,
        save: SaveConfig,
        event: Callable[..., None],
    ) -> None:
        """save: the typed `save` section. event: called from the writer thread."""
        self.writer = writer
        self.network = network
        self.save = save
        self.event = event

    def snapshot(self, run: Run, step: int | Literal["best"] | None) -> Callable[[], list[Path]]:
        """As `LoraWriter.snapshot`: copies the weights; the result extracts and writes."""
        write_others = self.writer.snapshot(run, step)
        if step == "best":  # written while the training waits
            return write_others
        weights = to_cpu_copies(run.roles[NETWORK].eval_weights(), "float32")
        metadata, done = self.writer.metadata(run), run.state.step

        def should_stop() -> bool:
            """A stop does not wait for the extraction, as the checkpoint is written after it; the end of a run does."""
            return step is not None and run.interrupted

        def write() -> list[Path]:
            files = write_others()
            file = files[0].with_name(f"{files[0].stem}_lora.safetensors")
            extracted = extract_network_lora(
                self.network, weights, self.save.merged_lora_rank, self.save.dtype, should_stop
            )
            if extracted is None:
                logger.info(f"{file.name} is left out: the run is asked to stop")
                return files
            write_safetensors_verified(file, extracted.tensors, _metadata(extracted, metadata) if metadata else None)
            self._log(file, extracted, done)
            return [*files, file]

        return write

    def _log(self, file: Path, extracted: ExtractedLora, step: int) -> None:
        logger.info(
            f"{file.name}: the nearest LoRA of rank {extracted.rank}; relative error of a layer's change "
            f"{extracted.mean:.2g} on average, {extracted.worst:.2g} in {extracted.worst_layer}"
        )
        self.event("merged_lora", step=step, file=file.name, rank=extracted.rank, **_errors(extracted))


def _metadata(extracted: ExtractedLora, of_main: dict[str, str]) -> dict[str, str]:
    """The main file's metadata with the kind replaced, and the errors of the extraction."""
    made_from = {key: of_main[key] for key in OF_THE_KIND if key in of_main}
    shared = {key: text for key, text in of_main.items() if key not in made_from and not key.startswith("ss_network_")}
    if ARCHITECTURE in shared:
        shared[ARCHITECTURE] = f"{shared[ARCHITECTURE].rpartition('/')[0]}/lora"
    rank = str(extracted.rank)
    return {
        **shared,
        "network_type": "lora",
        "rank": rank,
        "alpha": rank,
        "ss_network_module": KINDS["lora"].module,
        "ss_network_dim": rank,
        "ss_network_alpha": rank,
        "merged_from": json.dumps(made_from),
        **{key: json.dumps(value) if isinstance(value, float) else value for key, value in _errors(extracted).items()},
    }


def _errors(extracted: ExtractedLora) -> dict[str, Any]:
    """Relative errors (Frobenius norm) of a layer's delta."""
    return {"error_mean": extracted.mean, "error_worst": extracted.worst, "error_worst_layer": extracted.worst_layer}
