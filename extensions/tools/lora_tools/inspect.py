"""`type: inspect`: prints the contents of a LoRA file, as lines or as JSON.

The facts are kinds, ranks, norms by block, metadata, and which programs can read the
file. Mistakes are only counted: `doctor` explains them. Nothing is written. `process`
exports the class for the table of tools.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from math import sqrt
from typing import Any

from extensions.tools.lora_tools.config import InspectConfig
from extensions.tools.lora_tools.files import read_lora
from extensions.tools.lora_tools.lora_export import (
    FORMATS,
    AdapterFile,
    kind_of,
    why_not_exported,
)
from jobs.process import BaseExtensionProcess
from toolkit.networks.adapter_health import health
from toolkit.networks.lora_formats import rank_of, read_tensors

WRITERS = {
    "ss_network_module": "kohya's sd-scripts or musubi-tuner",
    "lora_adapter_metadata": "diffusers",
}
"""Key of the metadata -> the program that writes it."""


class InspectProcess(BaseExtensionProcess):
    """Prints the facts and writes nothing.

    Example::

        python run.py inspect output/my_character.safetensors
    """

    section: InspectConfig

    def run(self) -> None:
        super().run()
        section = self.section
        model = section.model_folder() if section.model else None
        report = facts(read_lora(section.file, model, any_model=True))
        print(json.dumps(report, indent=2) if section.as_json else render(report))


def facts(file: AdapterFile) -> dict[str, Any]:
    """The contents of a file as JSON values."""
    layers: dict[str, dict[str, Any]] = {}
    for name, change in file.changes.items():
        rank = rank_of(change.parts)
        norm = None if change.multiplied else float(change.delta().norm())
        layers[name] = {
            "kind": kind_of(change),
            "rank": rank,
            "alpha": round(change.scale * rank, 6),
            "shape": [size or None for size in change.shape],
            "norm": norm,
        }
    parameters = 0
    for change in file.changes.values():
        parameters += sum(tensor.numel() for tensor in change.parts.values())
    tensors, metadata = read_tensors(file.path)
    wrong = [
        f"{finding.message} {finding.remedy}"
        for finding in health(tensors, metadata)
        if finding.severity == "error"
    ]
    readable_by = [
        name for name, target in FORMATS.items() if not why_not_exported(file, target)
    ]
    keys = sorted(tensors)
    return {
        "file": str(file.path),
        "bytes": file.path.stat().st_size,
        "kinds": list(file.kinds),
        "dtype": str(file.dtype).removeprefix("torch."),
        "ranks": _counts(layer["rank"] for layer in layers.values() if layer["rank"]),
        "alphas": _counts(layer["alpha"] for layer in layers.values() if layer["rank"]),
        "layers": len(layers),
        "parameters": parameters,
        "biases": sum(change.bias is not None for change in file.changes.values()),
        "zero_layers": sum(change.is_zero for change in file.changes.values()),
        "wrong": wrong,
        "norm": sqrt(sum((x["norm"] or 0.0) ** 2 for x in layers.values())),
        "without_norm": sum(x["norm"] is None for x in layers.values()),
        "norm_by_block": _by_block(layers),
        "first_key": keys[0],
        "readable_by": readable_by,
        "written_by": _writer(metadata),
        "metadata": metadata,
        "by_layer": layers,
    }


def _counts(values: Iterable[float]) -> dict[str, int]:
    return {f"{value:g}": count for value, count in sorted(Counter(values).items())}


def _by_block(layers: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Frobenius norm of the changes of each block. Layers outside of blocks have their
    own name. Changes that multiply the weight have no norm without it."""
    squares: dict[str, float] = defaultdict(float)
    for name, layer in layers.items():
        if layer["norm"] is None:
            continue
        block = re.match(r".*?\.\d+(?=\.)", name)
        squares[block.group() if block else name] += layer["norm"] ** 2
    return {name: sqrt(square) for name, square in squares.items()}


def _writer(metadata: Mapping[str, str]) -> str:
    try:  # ai-toolkit and this program say it themselves
        software = json.loads(metadata.get("software", "{}"))
        return f"{software['name']} {software.get('version', '')}".strip()
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        for key, title in WRITERS.items():
            if key in metadata:
                return title
        return "unknown"


def render(report: Mapping[str, Any]) -> str:
    """The facts as lines."""
    largest = max(report["norm_by_block"].values(), default=0.0) or 1.0
    blocks = []
    for name, of_block in report["norm_by_block"].items():
        bar = "#" * round(30 * of_block / largest)
        blocks.append(f"  {name:28} {of_block:10.4g}  {bar}")
    kinds = " and ".join(report["kinds"]) or "no change"
    more = f" ({len(report['wrong']) - 1} more)" if len(report["wrong"]) > 1 else ""
    wrong = [f"wrong: {line}{more} See run.py doctor." for line in report["wrong"][:1]]
    multiplied = f"{report['without_norm']} layers multiply the model's weights: their change has no norm without those"
    if blocks:
        norm = [f"norm of the change {report['norm']:.4g}; by block:", *blocks]
    else:
        norm = []
    size = f"layers {report['layers']}, parameters {report['parameters']:,}"
    if report["biases"]:
        size += f", biases {report['biases']}"
    metadata = [
        f"  {key}: {_short(value)}" for key, value in sorted(report["metadata"].items())
    ]
    return "\n".join(
        [
            f"{report['file']}: {report['bytes'] / 1e6:.2f} MB, {kinds}, {report['dtype']}",
            size,
            f"rank {_in_words(report['ranks'])}; alpha {_in_words(report['alphas'])}",
            f"keys such as {report['first_key']}",
            f"can be written for: {', '.join(report['readable_by']) or 'none'} (run.py convert)",
            f"written by: {report['written_by']}",
            *wrong,
            *([multiplied] if report["without_norm"] else []),
            *norm,
            "metadata:" if metadata else "metadata: none",
            *metadata,
        ]
    )


def _in_words(counts: Mapping[str, int]) -> str:
    if not counts:
        return "none"
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{key} ({count} layers)" for key, count in counts.items())


def _short(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 100 else f"{text[:97]}..."
