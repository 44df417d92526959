"""Reads LoRA files with the layers of their model, and writes them.

The functions that several tools for LoRA files share are here: reading, writing
atomically, the number type of a file, its tensors in the spelling that most programs
load, and the nearest LoRA of a rank. How other programs name tensors is in
`lora_export`.

`process`, `extract`, `inspect` and `merge` call them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from extensions.tools.lora_tools.config import RankConfig
from extensions.tools.lora_tools.lora_export import AdapterFile, read_adapter
from extensions.tools.shared.run_job import model_of
from toolkit.config.sections.model import ModelConfig
from toolkit.errors import UserError
from toolkit.files.safetensors_io import is_own_file, read_metadata
from toolkit.files.writing import require_own
from toolkit.models.adapter_origin import named_families
from toolkit.models.families import ModelFamily, family_for, published_members
from toolkit.networks.lora_formats import LayerDelta
from toolkit.networks.save import write_safetensors_verified
from toolkit.networks.spelling import EXPORTED_PREFIX, UP, spelled, spelling_for_layers
from toolkit.networks.svd import extract_lora, extract_lora_from_delta, within_share
from toolkit.system.device import DTYPES

logger = logging.getLogger(__name__)


def read_lora(file: str, model: Path | None, any_model: bool = False) -> AdapterFile:
    """Reads a LoRA file. Raises UserError as `read_adapter` does.

    model: the folder of its model; None: layers of any size with the names of the
    published models, first of the one in its metadata, or of the model that the file or
    its run names. any_model: layers of other names are accepted too.
    """
    path = Path(file).expanduser()
    if model is not None:
        family = family_for(ModelConfig(name_or_path=str(model)))
        return read_adapter(path, [family.every_linear_layer(model)])
    named: list[ModelFamily] = []
    with suppress(UserError, OSError, ValueError):  # `read_adapter` says what is wrong
        named = named_families(read_metadata(path))
    layers = [
        list(family.every_linear_layer(Path(next(iter(family.published)))))
        for family in (*named, *published_members())
    ]
    try:
        return read_adapter(path, layers, any_model)
    except UserError as error:
        if "this model" not in str(error):
            raise
        try:
            own_model = model_of(path)
        except UserError:
            raise UserError(
                f"{error} Give the folder of its model by 'model' (--model) where it is another."
            ) from None
    return read_adapter(
        path, [family_for(own_model).every_linear_layer(own_model.files_folder())]
    )


def write_lora(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Writes a LoRA file, atomically. metadata: also of a file that it was made from.
    Raises RunError where it cannot be written, or would replace another program's
    file."""
    require_own(path, is_own_file)
    write_safetensors_verified(path, tensors, {**metadata, "format": "pt"})


class Loss:
    """The loss of changes of weights by rounding and lower ranks.

    >>> loss = Loss()
    >>> loss.add(torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 3.5]]))
    >>> print(loss)
    relative error of the change 1.00e-01
    """

    def __init__(self) -> None:
        self._lost = self._whole = 0.0

    def add(self, meant_OI: Tensor, written_OI: Tensor) -> None:
        """Adds the change of a layer, as it is meant and as it is written, both
        float32."""
        self._lost += _sum_of_squares(written_OI - meant_OI)
        self._whole += _sum_of_squares(meant_OI)

    def __str__(self) -> str:
        error = (self._lost / self._whole) ** 0.5 if self._whole else 0.0
        return f"relative error of the change {error:.2e}"


def _sum_of_squares(change_OI: Tensor) -> float:
    # Each row in float32: in float64 a norm takes ten times as long on a CPU.
    rows_O = torch.linalg.vector_norm(change_OI, dim=-1)
    return float(rows_O.double().square().sum())


def number_type(given: str | None, inputs: Iterable[torch.dtype]) -> torch.dtype:
    """The given dtype, or the dtype of all inputs; float32 where the inputs have several
    dtypes or a quantized one.

    >>> number_type(None, [torch.bfloat16, torch.float16])
    torch.float32
    """
    if given:
        return DTYPES[given]
    dtypes = set(inputs)
    if len(dtypes) == 1 and dtypes <= set(DTYPES.values()):
        return dtypes.pop()
    return torch.float32


def named(dtype: torch.dtype) -> str:
    """The name of a dtype as the keys of a job have it."""
    return str(dtype).removeprefix("torch.")


def lora_tensors(
    name: str, up_OR: Tensor, down_RI: Tensor, scale: float, dtype: torch.dtype
) -> tuple[dict[str, Tensor], Tensor]:
    """The tensors of scale * up @ down in a file, and the change [O, I] that they have
    in that file."""
    down = down_RI.to(dtype).contiguous()
    up = up_OR.to(dtype).contiguous()
    alpha = torch.tensor(scale * len(down))
    parts = {"lora_A.weight": down, "lora_B.weight": up, "alpha": alpha}
    tensors = {f"{EXPORTED_PREFIX}{name}.{part}": parts[part] for part in parts}
    return tensors, float(alpha) / len(down) * up.float() @ down.float()


def for_every_program(
    tensors: Mapping[str, Tensor], layers: Iterable[str], model: Iterable[str]
) -> dict[str, Tensor]:
    """The tensors in the spelling that most programs load. The strength is multiplied
    into the matrices where nothing is rounded by it, and stays in alpha otherwise.
    layers: those that are changed. model: all of its layers."""
    spelling = spelling_for_layers(layers, model)
    folded = spelled(tensors, spelling)
    dtypes = {tensor.dtype for key, tensor in tensors.items() if key.endswith(UP)}
    for dtype in dtypes:
        stored = {
            key: tensor.to(dtype)
            for key, tensor in folded.items()
            if key.endswith(spelling.down_up[1])
        }
        if not all(stored[key].float().equal(folded[key].float()) for key in stored):
            return spelled(tensors, replace(spelling, folds_alpha=False))
        folded |= stored
    return folded


def write_lowrank(
    section: RankConfig,
    changes: Iterable[tuple[str, LayerDelta | Tensor]],
    metadata: Mapping[str, str],
    dtype: torch.dtype,
    model: Iterable[str],
) -> None:
    """Writes the LoRA that is nearest to changes of weights, and reports the error of
    the written file. The changes are given as `LayerDelta` or as whole matrices
    [O, I]. model: all of its layers."""
    tensors: dict[str, Tensor] = {}
    ranks: list[int] = []
    layers: list[str] = []
    loss = Loss()
    for name, change in changes:
        layers.append(name)
        if isinstance(change, LayerDelta) and change.bias is not None:
            tensors[f"{EXPORTED_PREFIX}{name}.diff_b"] = change.bias.to(dtype)
            if not change.has_weight:
                continue
        most = section.rank or min(change.shape)
        scale = 1.0
        if isinstance(change, LayerDelta):
            refuse_what_needs_the_base(name, change)
            up, down, error = extract_lora(change, most)
            # The scale stays in alpha, where it is not rounded.
            scale = change.scale if change.low_rank and change.scale else 1.0
        else:
            up, down, error = extract_lora_from_delta(change, most)
        if section.share:
            up, down, error = within_share(up, down, error, section.share)
        ranks.append(len(down))
        of_layer, written_OI = lora_tensors(name, up / scale, down, scale, dtype)
        tensors |= of_layer
        meant_OI = change.delta() if isinstance(change, LayerDelta) else change
        loss.add(meant_OI, written_OI)
    written = for_every_program(tensors, layers, model)
    write_lora(section.output_path(), written, metadata)
    of_ranks = f"rank {max(ranks, default=0)}"
    if len(set(ranks)) > 1:
        of_ranks = f"ranks {min(ranks)} to {max(ranks)}"
    logger.info(
        f"{section.output}: {len(layers)} layers, {of_ranks}, {named(dtype)}; {loss}"
    )


def refuse_what_needs_the_base(name: str, change: LayerDelta) -> None:
    """Raises UserError for a DoRA, OFT, BOFT or GLoRA, because its change depends on
    the weights that it is used with."""
    if change.needs_base:
        title = change.multiplied.title(change.parts) if change.multiplied else "a DoRA"
        remedy = "Merge it into its model, then extract a LoRA."
        raise UserError(
            f"{name} is {title}, whose change depends on the model's weights. {remedy}"
        )
