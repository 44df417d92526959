"""The processes of the tools for LoRA files.

`convert`, `resize` and `post_hoc_ema` are defined here, the others in their own modules
(`extract`, `inspect`, `merge`). Files are read and written by `files`; this
module only connects a section to the functions. The table of tools
(`extensions/tools/__init__.py`) names the classes by this module.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

from extensions.tools.lora_tools.config import (
    ConvertConfig,
    PostHocEmaConfig,
    ResizeConfig,
)
from extensions.tools.lora_tools.extract import ExtractProcess
from extensions.tools.lora_tools.files import (
    number_type,
    read_lora,
    write_lora,
    write_lowrank,
)
from extensions.tools.lora_tools.inspect import InspectProcess
from extensions.tools.lora_tools.lora_export import FORMATS, export, kept_metadata
from extensions.tools.lora_tools.merge import MergeProcess
from extensions.tools.lora_tools.post_hoc_ema import (
    average,
    linear_betas,
    power_betas,
    steps_of,
)
from jobs.process import BaseExtensionProcess
from toolkit.files.safetensors_io import read_metadata

logger = logging.getLogger(__name__)

OF_THE_KIND = re.compile(
    "network_type$|rank$|alpha$|lokr_factor$|ss_network_|modelspec.architecture$"
)
"""Metadata that describe the kind and the rank of the network. They are not true of the
LoRA that `resize` writes."""

__all__ = [
    "ConvertProcess",
    "ExtractProcess",
    "InspectProcess",
    "MergeProcess",
    "PostHocEmaProcess",
    "ResizeProcess",
]


class ConvertProcess(BaseExtensionProcess):
    """Writes a file in the form of another program.

    Example::

        python run.py convert a.safetensors for_kohya.safetensors --to kohya
    """

    section: ConvertConfig

    def run(self) -> None:
        super().run()
        section, target = self.section, FORMATS[self.section.to]
        file = read_lora(section.input, section.model_folder())
        tensors = export(file, target)
        write_lora(section.output_path(), tensors, kept_metadata(file, target))
        matrices = (name for name in tensors if not name.endswith(".alpha"))
        dtype = tensors[next(matrices)].dtype
        rounded = ""
        if dtype != file.dtype:
            rounded = (
                f"; {dtype}, as alpha / rank in the matrices does not fit {file.dtype}"
            )
        logger.info(
            f"{section.output}: {len(file.changes)} layers for {target.title}{rounded}"
        )


class ResizeProcess(BaseExtensionProcess):
    """Writes the nearest LoRA of a rank to a file.

    Example::

        python run.py resize a.safetensors rank_4.safetensors --rank 4
    """

    section: ResizeConfig

    def run(self) -> None:
        super().run()
        section = self.section
        file = read_lora(section.input, section.model_folder())
        kept = kept_metadata(file)
        metadata = {key: kept[key] for key in kept if not OF_THE_KIND.match(key)}
        dtype = number_type(section.dtype, [file.dtype])
        write_lowrank(section, file.changes.items(), metadata, dtype, file.layers)


class PostHocEmaProcess(BaseExtensionProcess):
    """Averages files of one run.

    Example::

        python run.py post_hoc_ema run/a_0*.safetensors --output average.safetensors
    """

    section: PostHocEmaConfig

    def run(self) -> None:
        super().run()
        section = self.section
        given = [Path(file).expanduser() for file in section.files]
        ordered = sorted(zip(steps_of(given), given, strict=True))
        steps = [step for step, _ in ordered]
        files = [file for _, file in ordered]
        if section.sigma_rel:
            betas = power_betas(steps, section.sigma_rel)
        else:
            betas = linear_betas(len(files), section.beta, section.beta2)
        tensors = average(files, betas)
        recipe = {
            "files": [file.name for file in files],
            "steps": steps,
            "betas": [round(beta, 6) for beta in betas],
        }
        metadata = read_metadata(files[-1]) | {"post_hoc_ema": json.dumps(recipe)}
        write_lora(section.output_path(), tensors, metadata)
        for step, share, file in zip(steps, _shares(betas), files, strict=True):
            logger.info(f"{share:7.2%} of step {step}: {file.name}")
        logger.info(f"{section.output}: the average of {len(files)} files")


def _shares(betas: list[float]) -> list[float]:
    """The weight of each file in the average."""
    shares = [1.0]
    for beta in betas:
        shares = [share * beta for share in shares] + [1 - beta]
    return shares
