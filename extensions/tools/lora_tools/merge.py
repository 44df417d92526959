"""`type: merge`: merges LoRAs into a model folder or file, or several LoRAs into one.

Weights are read, changed and written one shard at a time, computed in float32 and
rounded once. The base is never changed, and what rounding loses is reported. Reading
and writing of LoRA files is in `files`. `process` exports the class for the table of
tools.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from extensions.tools.lora_tools.config import MergeConfig
from extensions.tools.lora_tools.files import (
    Loss,
    for_every_program,
    lora_tensors,
    named,
    number_type,
    read_lora,
    refuse_what_needs_the_base,
    write_lora,
)
from extensions.tools.lora_tools.lora_export import AdapterFile, read_adapter
from extensions.tools.shared.keys import split_strength
from extensions.tools.shared.run_job import BASE_MODEL
from jobs.process import BaseExtensionProcess
from toolkit.config.sections.model import ModelConfig
from toolkit.config.sections.model_files import weight_files
from toolkit.errors import UserError
from toolkit.files.safetensors_io import tensor_shapes
from toolkit.files.writing import atomic_write_dir
from toolkit.models.families import family_for
from toolkit.models.loading import ShardReader
from toolkit.models.parts import place_file, place_parts
from toolkit.models.single_file import (
    MARKERS,
    markers_of,
    shapes_of,
    unwritten,
    without_prefix,
)
from toolkit.networks.lora_formats import NO_BIAS, LayerDelta, in_one, read_tensors
from toolkit.networks.save import write_safetensors_verified
from toolkit.networks.spelling import EXPORTED_PREFIX
from toolkit.networks.svd import extract_lora
from toolkit.system.device import DTYPES

logger = logging.getLogger(__name__)


def _sources(files: Sequence[tuple[AdapterFile, float]]) -> str:
    return ", ".join(f"{file.path.name}:{strength:g}" for file, strength in files)


def _changes(
    files: Sequence[tuple[AdapterFile, float]],
) -> dict[str, list[tuple[LayerDelta, float]]]:
    """Name of a weight or bias -> the change by each file, and the file's strength."""
    changes: dict[str, list[tuple[LayerDelta, float]]] = defaultdict(list)
    for file, strength in files:
        for name, change in file.changes.items():
            changes[f"{name}.weight"].append((change, strength))
            if change.bias is not None:
                changes[f"{name}.bias"].append((change, strength))
    return changes


def _check_biases(changes: Collection[str], base: Collection[str]) -> int:
    """The number of layers that are changed. Raises UserError for a bias that the base
    does not have."""
    absent = [name for name in changes if name not in base]
    if absent:
        raise UserError(f"{absent[0]} is changed. {NO_BIAS}")
    return len({name.rpartition(".")[0] for name in changes})


class MergeProcess(BaseExtensionProcess):
    """Merges in float32 and rounds once.

    Example::

        python run.py merge --base model --lora a.safetensors:0.8 --output merged
    """

    section: MergeConfig

    def run(self) -> None:
        super().run()
        section = self.section
        self._loss = Loss()
        pairs = [split_strength(text) for text in section.lora]
        base = Path(section.base).expanduser() if section.base else None
        if base and base.is_file():
            self._into_single_file(base, pairs)
            return
        model = base or section.model_folder()
        files = [(read_lora(file, model), strength) for file, strength in pairs]
        if base:
            self._into_model(base, files)
        else:
            self._into_file(files)

    def _into_model(
        self, base: Path, files: Sequence[tuple[AdapterFile, float]]
    ) -> None:
        """A model folder of the base's layout, whose weights are read, changed and
        written one after the other."""
        output = self.section.output_path()
        family = family_for(ModelConfig(name_or_path=str(base)))
        fault = unwritten(family)
        if fault and not self.section.writes_folder():
            raise UserError(
                f"output: {fault} Give a folder: '{output.with_suffix('')}'."
            )
        part = base / family.trained_part
        shards = weight_files(part)
        changes = _changes(files)
        names = {name for shard in shards for name in tensor_shapes(shard)}
        layers = _check_biases(changes, names)

        def merged_of(shard: Path) -> dict[str, Tensor]:
            weights, _ = read_tensors(shard)
            return {
                name: self._merged(name, weight, changes.get(name, ()))
                for name, weight in weights.items()
            }

        if not self.section.writes_folder():
            tensors: dict[str, Tensor] = {}
            for shard in shards:
                tensors |= merged_of(shard)
            self._write_single_file(tensors, markers_of(family.title), files, layers)
            return
        with atomic_write_dir(output) as new:
            place_parts(base, new, without={family.trained_part})
            new_part = new / family.trained_part
            for path in sorted(filter(Path.is_file, part.iterdir())):
                if path in shards:
                    merged = merged_of(path)
                    write_safetensors_verified(new_part / path.name, merged, None)
                else:
                    place_file(path, new_part / path.name)
        logger.info(
            f"{output}: {len(files)} files merged into {layers} layers; {self._loss}, by rounding"
        )

    def _into_single_file(self, base: Path, pairs: Sequence[tuple[str, float]]) -> None:
        """Writes the file of a transformer from a base that is one. The file of an
        8-bit base is bfloat16, unless `dtype` is given."""
        with ExitStack() as stack:
            reader = ShardReader(base, stack, base)
            sizes = {
                name.removesuffix(".weight"): (shape[1], shape[0])
                for name, shape in reader.matrices().items()
            }
            files = [
                (read_adapter(Path(file).expanduser(), [sizes]), strength)
                for file, strength in pairs
            ]
            changes = _changes(files)
            dtype = torch.bfloat16 if reader.in_codes() else None
            layers = _check_biases(changes, reader.names)
            names = map(without_prefix, shapes_of(base))
            markers = [name for name in names if MARKERS.get(name)]
            tensors = {}
            for name in sorted(reader.names):
                weight = reader.take(name)
                weight = weight.to(dtype or weight.dtype)
                tensors[name] = self._merged(name, weight, changes.get(name, ()))
            self._write_single_file(tensors, markers, files, layers)

    def _write_single_file(
        self,
        tensors: dict[str, Tensor],
        markers: Sequence[str],
        files: Sequence[tuple[AdapterFile, float]],
        layers: int,
    ) -> None:
        output = self.section.output_path()
        write_lora(output, in_one(tensors, markers), {"merged_from": _sources(files)})
        logger.info(
            f"{output}: {len(files)} files merged into {layers} layers for ComfyUI; {self._loss}, by rounding"
        )

    def _merged(
        self, name: str, weight: Tensor, changes: Sequence[tuple[LayerDelta, float]]
    ) -> Tensor:
        if weight.dtype not in DTYPES.values():
            raise UserError(
                f"base: {name} is {weight.dtype}; {', '.join(DTYPES)} can be merged into."
            )
        dtype = number_type(self.section.dtype, [weight.dtype])
        if not changes:
            return weight.to(dtype).contiguous()
        base = changed = weight.float()
        for change, strength in changes:
            added = change.bias if name.endswith(".bias") else None
            if added is None:
                added = change.delta_for(changed)
            changed = changed + strength * added
        written = changed.to(dtype).contiguous()
        self._loss.add(changed - base, written.float() - base)
        return written

    def _into_file(self, files: Sequence[tuple[AdapterFile, float]]) -> None:
        """Writes the sum of the changes: rows and columns of all matrices together, or
        the nearest LoRA of `rank`.

        The largest strength stays in alpha, where it is not rounded. The factors of the
        other strengths to it are multiplied into `up`.
        """
        section = self.section
        pairs: dict[str, list[tuple[LayerDelta, float]]] = defaultdict(list)
        biases: dict[str, Tensor] = {}
        outputs: dict[str, int] = {}
        for file, strength in files:
            for name, change in file.changes.items():
                refuse_what_needs_the_base(name, change)
                if change.low_rank is None:
                    raise UserError(
                        f"{file.path}: {name} is not a LoRA; only LoRAs can be merged into one file. "
                        "Convert it first with run.py resize."
                    )
                shape = change.shape
                if change.has_weight and name in pairs:
                    shape = pairs[name][0][0].shape
                output_count = outputs.setdefault(name, shape[0])
                if change.shape != shape or shape[0] != output_count:
                    raise UserError(
                        f"{file.path}: {name} has another size than in the files before: another model's."
                    )
                if change.has_weight:
                    pairs[name].append((change, strength * change.scale))
                if change.bias is not None:
                    biases[name] = biases.get(name, 0) + strength * change.bias
        dtype = number_type(section.dtype, (file.dtype for file, _ in files))
        tensors = {
            f"{EXPORTED_PREFIX}{name}.diff_b": bias.to(dtype)
            for name, bias in biases.items()
        }
        for name, of_layer in pairs.items():
            scale = max((scale for _, scale in of_layer), key=abs) or 1.0
            ups = [strength / scale * one.parts["up"] for one, strength in of_layer]
            up = torch.cat(ups, 1)
            down = torch.cat([change.parts["down"] for change, _ in of_layer])
            meant_OI = scale * up @ down
            if section.rank and len(down) > section.rank:
                change = LayerDelta({"up": up, "down": down}, 1.0)
                up, down, _ = extract_lora(change, section.rank)
            of_file, written_OI = lora_tensors(name, up, down, scale, dtype)
            tensors |= of_file
            self._loss.add(meant_OI, written_OI)
        metadata = {"merged_from": _sources(files)}
        models = {file.metadata.get(BASE_MODEL) for file, _ in files}
        model = models.pop()
        if model and not models:
            metadata[BASE_MODEL] = model
        output = section.output_path()
        written = for_every_program(tensors, outputs, files[0][0].layers)
        write_lora(output, written, metadata)
        logger.info(
            f"{output}: {len(files)} files in {len(outputs)} layers, {named(dtype)}; {self._loss}"
        )
