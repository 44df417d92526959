"""The table of docs/use_your_lora.md: which program loads which kind of network, as a
run saves it.

Made from the table that `run.py doctor --for` and the end of a run read
(`toolkit/networks/programs.py`), by asking it about a small file of each kind: `python
docs/generate.py`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from extensions.tools.lora_tools.lora_export import (
    FORMATS,
    AdapterFile,
    export,
    why_not_exported,
)
from toolkit.contracts.network_kinds import KINDS
from toolkit.networks.lora_formats import parse_adapter_tensors
from toolkit.networks.programs import PROGRAMS, Program, program_findings
from toolkit.networks.spelling import EXPORTED_PREFIX, SPELLINGS, spelled
from toolkit.registry import FAMILIES

BEGIN, END = "<!-- programs -->\n", "<!-- end of programs -->\n"

COLUMNS = {
    "LoRA": ("lora", "qwen_image_edit_plus"),
    "LoRA of 2.1": ("lora", "qwen_image_2"),
    "DoRA": ("dora", "qwen_image_edit_plus"),
    "LoHa": ("loha", "qwen_image_edit_plus"),
    "LoKr": ("lokr", "qwen_image_edit_plus"),
}
"""Title -> the kind of network and the family."""

LAYERS = {
    "alpha_folded": (
        "transformer_blocks.0.attn.to_q",
        "transformer_blocks.0.img_mod.1",
    ),
    "bare": (
        "transformer_blocks.0.attn.to_q",
        "transformer_blocks.0.img_mlp.gate_layer",
    ),
}
"""Spelling -> layers of a small file."""

TARGETS = {
    "comfyui": "comfyui",
    "diffusers": "diffusers",
    "diffsynth": "aitk",
    "mflux": "aitk",
    "simpletuner": "diffusers",
    "nunchaku": "comfyui",
    "musubi": "musubi",
}
"""Program -> the target of `run.py convert` for it."""


def programs_table() -> str:
    """The table in Markdown."""
    lines = [f"| program | {' | '.join(COLUMNS)} |", f"|---|{'---|' * len(COLUMNS)}"]
    for name, program in PROGRAMS.items():
        cells = [_cell(name, program, *column) for column in COLUMNS.values()]
        lines.append(f"| {program.title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(name: str, program: Program, kind: str, arch: str) -> str:
    spelling = SPELLINGS[FAMILIES.load(arch).lora_spelling]
    tensors = spelled(_example(kind, LAYERS[spelling.name]), spelling)
    answer = _answer(program, tensors)
    if answer:
        return answer
    target = FORMATS[TARGETS[name]]
    changes = parse_adapter_tensors(tensors, LAYERS[spelling.name], kind)
    file = AdapterFile(Path("example"), changes, torch.float32, {})
    if not why_not_exported(file, target):
        answer = _answer(program, export(file, target))
        if answer:
            return f"`--to {TARGETS[name]}`" + answer.removeprefix("yes")
    return "no"


def _answer(program: Program, tensors: dict[str, Tensor]) -> str:
    """yes, with what it leaves out; empty: no."""
    found = list(program_findings(program, tensors, {}))
    if not found:
        return "yes"
    if [one.check for one in found] == ["layers_skipped"] and "_mod" in found[0].place:
        return "yes, without modulation layers"
    return ""


def _example(kind: str, layers: tuple[str, ...]) -> dict[str, Tensor]:
    """What a network of this kind exports for these layers, of rank 2 and alpha 1."""
    shapes_of = KINDS[kind].shapes
    assert shapes_of is not None  # the kinds of COLUMNS are adapters
    tensors = {}
    for layer in layers:
        for part, shape in shapes_of(8, 8, 2).items():
            tensors[f"{EXPORTED_PREFIX}{layer}.{part}"] = torch.ones(shape)
        tensors[f"{EXPORTED_PREFIX}{layer}.alpha"] = torch.tensor(1.0)
    return tensors
