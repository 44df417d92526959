"""The tools that make one LoRA file of others: `convert`, `resize`, `post_hoc_ema`."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from extensions.lora_tools.config import ConvertConfig, PostHocEmaConfig, RankConfig, ResizeConfig
from extensions.lora_tools.files import read_lora, write_lora
from jobs.process import BaseExtensionProcess
from toolkit.device import DTYPES
from toolkit.errors import UserError
from toolkit.networks.adapter import FILE_PREFIX
from toolkit.networks.lora_export import FORMATS, export, kept_metadata
from toolkit.networks.lora_formats import LayerDelta, read_tensors
from toolkit.networks.post_hoc_ema import average, linear_betas, power_betas, steps_of
from toolkit.networks.svd import extract_lora, extract_lora_from_delta, within_share

logger = logging.getLogger(__name__)


class ConvertProcess(BaseExtensionProcess):
    """Writes a file in the form of another program."""

    section: ConvertConfig

    def run(self) -> None:
        super().run()
        section, target = self.section, FORMATS[self.section.to]
        file = read_lora(section.input, section.model_folder() if section.model else None)
        tensors = export(file, target)
        write_lora(section.output_path(), tensors, kept_metadata(file))
        dtype = next(tensor.dtype for name, tensor in tensors.items() if not name.endswith(".alpha"))
        rounded = "" if dtype == file.dtype else f"; {dtype}, as alpha / rank in the matrices does not fit {file.dtype}"
        logger.info(f"{section.output}: {len(file.changes)} layers for {target.title}{rounded}")


class ResizeProcess(BaseExtensionProcess):
    """Writes the nearest LoRA of a rank to a file."""

    section: ResizeConfig

    def run(self) -> None:
        super().run()
        section = self.section
        file = read_lora(section.input, section.model_folder() if section.model else None)
        write_lowrank(section, file.changes, kept_metadata(file))


def write_lowrank(section: RankConfig, changes: Mapping[str, LayerDelta | Tensor], metadata: Mapping[str, str]) -> None:
    """Writes the nearest LoRA to changes of weights, given as such or whole [O, I], and reports its errors."""
    tensors: dict[str, Tensor] = {}
    ranks: list[int] = []
    dropped = total = 0.0
    dtype = DTYPES[section.dtype]
    for name, change in changes.items():
        most = section.rank or min(change.shape)
        if isinstance(change, LayerDelta):
            refuse_dora(name, change)
            up, down, error = extract_lora(change, most)
            norm = float(change.delta().double().norm())
        else:
            up, down, error = extract_lora_from_delta(change, most)
            norm = float(change.double().norm())
        if section.share:
            up, down, error = within_share(up, down, error, section.share)
        ranks.append(len(down))
        dropped, total = dropped + (error * norm) ** 2, total + norm**2
        stem = f"{FILE_PREFIX}{name}"
        tensors |= {
            f"{stem}.lora_A.weight": down.to(dtype).contiguous(),
            f"{stem}.lora_B.weight": up.to(dtype).contiguous(),
            f"{stem}.alpha": torch.tensor(float(len(down))),
        }
    write_lora(section.output_path(), tensors, metadata)
    of_ranks = f"rank {min(ranks)}" if len(set(ranks)) == 1 else f"ranks {min(ranks)} to {max(ranks)}"
    error = (dropped / total) ** 0.5 if total else 0.0
    logger.info(f"{section.output}: {len(ranks)} layers, {of_ranks}; relative error of the change {error:.2e}")


def refuse_dora(name: str, change: LayerDelta) -> None:
    """Raises UserError for a DoRA: what it changes depends on the weights it is used with."""
    if change.magnitude is not None:
        remedy = "Merge it into its model, then extract a LoRA."
        raise UserError(f"{name} is a DoRA, whose change depends on the model's weights. {remedy}")


class PostHocEmaProcess(BaseExtensionProcess):
    """Averages files of one run."""

    section: PostHocEmaConfig

    def run(self) -> None:
        super().run()
        section = self.section
        given = [Path(file).expanduser() for file in section.files]
        ordered = sorted(zip(steps_of(given), given, strict=True))
        steps, files = [step for step, _ in ordered], [file for _, file in ordered]
        if section.sigma_rel:
            betas = power_betas(steps, section.sigma_rel)
        else:
            betas = linear_betas(len(files), section.beta, section.beta2)
        tensors = average(files, betas)
        recipe = {"files": [file.name for file in files], "steps": steps, "betas": [round(beta, 6) for beta in betas]}
        kept = {key: value for key, value in read_tensors(files[-1])[1].items() if key not in ("sha256", "format")}
        write_lora(section.output_path(), tensors, {**kept, "post_hoc_ema": json.dumps(recipe)})
        for step, share, file in zip(steps, _shares(betas), files, strict=True):
            logger.info(f"{share:7.2%} of step {step}: {file.name}")
        logger.info(f"{section.output}: the average of {len(files)} files")


def _shares(betas: list[float]) -> list[float]:
    """The weight of each file in the average."""
    shares = [1.0]
    for beta in betas:
        shares = [share * beta for share in shares] + [1 - beta]
    return shares
