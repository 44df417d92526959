"""`type: merge`: LoRAs into a model folder, or several into one file."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from extensions.lora_tools.config import MergeConfig, split_strength
from extensions.lora_tools.files import read_lora, refuse_dora, write_lora
from jobs.process import BaseExtensionProcess
from toolkit.config.model import ModelConfig
from toolkit.config.model_files import weight_files
from toolkit.device import DTYPES
from toolkit.errors import UserError
from toolkit.files import atomic_write_dir
from toolkit.models.families import family_for
from toolkit.models.parts import place_file, place_parts
from toolkit.networks.adapter import FILE_PREFIX
from toolkit.networks.lora_export import AdapterFile
from toolkit.networks.lora_formats import LayerDelta, read_tensors
from toolkit.networks.save import write_safetensors_verified
from toolkit.networks.svd import extract_lora

logger = logging.getLogger(__name__)


class MergeProcess(BaseExtensionProcess):
    """Merges in float32 and rounds once."""

    section: MergeConfig

    def run(self) -> None:
        super().run()
        section = self.section
        model = section.base or section.model
        folder = Path(model).expanduser() if model else None
        pairs = [split_strength(text) for text in section.lora]
        files = [(read_lora(file, folder), strength) for file, strength in pairs]
        output = Path(section.output).expanduser()
        if folder is not None and section.base:
            self._into_model(folder, files, output)
        else:
            self._into_file(files, output)

    def _into_model(self, base: Path, files: Sequence[tuple[AdapterFile, float]], output: Path) -> None:
        """A model folder of the base's layout, whose weights are read, changed and written one after the other."""
        family = family_for(ModelConfig(name_or_path=str(base)))
        part = base / family.trained_part
        shards = weight_files(part)
        changes: dict[str, list[tuple[LayerDelta, float]]] = defaultdict(list)
        for file, strength in files:
            for name, change in file.changes.items():
                changes[f"{name}.weight"].append((change, strength))
        with atomic_write_dir(output) as new:
            place_parts(base, new, without={family.trained_part})
            for other in sorted(path for path in part.iterdir() if path.is_file() and path not in shards):
                place_file(other, new / family.trained_part / other.name)
            for shard in shards:
                tensors, _ = read_tensors(shard)
                merged = {name: self._merged(name, weight, changes.get(name, ())) for name, weight in tensors.items()}
                write_safetensors_verified(new / family.trained_part / shard.name, merged, None)
        logger.info(f"{output}: {len(files)} files merged into {len(changes)} layers")

    def _merged(self, name: str, weight: Tensor, changes: Sequence[tuple[LayerDelta, float]]) -> Tensor:
        if weight.dtype not in DTYPES.values():
            raise UserError(f"base: {name} is {weight.dtype}; {', '.join(DTYPES)} can be merged into.")
        changed = weight.float()
        for change, strength in changes:
            changed = changed + strength * change.delta_for(changed)
        return changed.to(DTYPES[self.section.dtype] if self.section.dtype else weight.dtype).contiguous()

    def _into_file(self, files: Sequence[tuple[AdapterFile, float]], output: Path) -> None:
        """The sum of the changes: rows and columns of all matrices together, or the nearest LoRA of `rank`."""
        pairs: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for file, strength in files:
            for name, change in file.changes.items():
                refuse_dora(name, change)
                if change.low_rank is None:
                    raise UserError(
                        f"{file.path}: {name} is no LoRA: only those add up to one. Make one of it: run.py resize."
                    )
                up, down = change.low_rank
                pairs[name].append((strength * up, down))
        dtypes = {DTYPES[self.section.dtype]} if self.section.dtype else {file.dtype for file, _ in files}
        dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
        tensors: dict[str, Tensor] = {}
        for name, of_layer in pairs.items():
            up, down = torch.cat([up for up, _ in of_layer], 1), torch.cat([down for _, down in of_layer])
            if self.section.rank and len(down) > self.section.rank:
                up, down, _ = extract_lora(LayerDelta({"up": up, "down": down}, 1.0), self.section.rank)
            tensors |= {
                f"{FILE_PREFIX}{name}.lora_A.weight": down.to(dtype).contiguous(),
                f"{FILE_PREFIX}{name}.lora_B.weight": up.to(dtype).contiguous(),
                f"{FILE_PREFIX}{name}.alpha": torch.tensor(float(len(down))),
            }
        write_lora(output, tensors, {"merged_from": ", ".join(f"{f.path.name}:{s:g}" for f, s in files)})
        logger.info(f"{output}: {len(files)} files in {len(pairs)} layers")
